using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

// What only a front end can know.
public sealed partial class VolumeModel
{
    // By change and sector: since when the change, whose end was told without saying whether it happened, is known not to be
    // what the sector holds.
    private readonly Dictionary<(ModelWrite Write, ulong Sector), ulong> _missed = [];

    /// <summary>The change was refused: it certainly did not happen, and nobody may ever see it.</summary>
    public void Never(ModelWrite write)
    {
        for (ulong s = write.FirstSector; s < write.FirstSector + write.Sectors; s++) _sectors[s]!.Remove(write);
    }

    /// <summary>Judges a read that <see cref="EndRead"/> was content with once more: a change that was over before the read
    /// and that the read did not show cannot be shown by a later one, whether it happened or not.</summary>
    public Violation? JudgeSettled(ulong firstSector, ReadOnlySpan<byte> data, ulong start, ulong now)
    {
        for (int i = 0; i < data.Length / Units.SectorBytes; i++)
        {
            ulong sector = firstSector + (ulong)i;
            if (HistoryOf(sector) is not { } history) continue;
            ModelWrite? seen = Identify(sector, data.Slice(i * Units.SectorBytes, Units.SectorBytes), out _);
            if (seen is { IsZero: true }) continue; // nobody can tell whose zeros they are
            if (seen is not null && _missed.TryGetValue((seen, sector), out ulong since) && since < start)
            {
                return new Violation(
                    ViolationKind.StaleRead,
                    $"volume {Head.Id} sector {sector}: {Name(seen)} happened after it was over: a read before did not show it");
            }

            foreach (ModelWrite write in history)
            {
                bool isSettled = !write.IsSure && !write.IsZero && write.End < start;
                if (isSettled && !ReferenceEquals(write, seen)) _missed.TryAdd((write, sector), now);
            }
        }

        return null;
    }

    /// <summary>The process ended: what a crash leaves is judged anew.</summary>
    public void ForgetSettled() => _missed.Clear();
}
