using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

// What may be there after a restart.
public sealed partial class VolumeModel
{
    /// <summary>Sectors with content that had to survive and did.</summary>
    public long KeptSectors { get; private set; }

    /// <summary>Requests that did not have to survive and did as a whole.</summary>
    public long WholeRequests { get; private set; }

    /// <summary>Acknowledged requests that did not have to survive and of which nothing did.</summary>
    public long AbsentRequests { get; private set; }

    /// <summary>Blocks that answered errors at the last restart, with a good excuse.</summary>
    public HashSet<ulong> Excused { get; } = [];

    /// <summary>Whether a request that did not have to survive touches the block: if recovery could not read its data, it is
    /// kept, and what never arrived of it answers errors.</summary>
    public bool IsUnsettled(ulong block, bool powerWasCut)
    {
        for (ulong s = block * SectorsPerBlock; s < Math.Min((block + 1) * SectorsPerBlock, Sectors); s++)
        {
            foreach (ModelWrite write in HistoryOf(s) ?? [])
            {
                if (!IsFirm(write, powerWasCut)) return true;
            }
        }

        return false;
    }

    private bool _isStale; // content from before a lie of the disk was accepted: what made a block is not known any more

    /// <summary>
    /// Judges the whole content after a restart. <paramref name="powerWasCut"/>: only what is durable must be there.
    /// <paramref name="staleAllowed"/>: the medium lied, so older content of the same sector is not counted as a fault.
    /// <paramref name="unreadable"/>: blocks that answered an error. With <paramref name="settle"/> the model takes what
    /// it saw as the durable truth from now on.
    /// </summary>
    public Violation? JudgeAfterRestart(
        ReadOnlySpan<byte> content, bool powerWasCut, bool staleAllowed, Func<ulong, bool>? unreadable, bool settle, ulong now)
    {
        int count = content.Length / Units.SectorBytes;
        var seen = new ModelWrite?[count];
        for (int s = 0; s < count; s++)
        {
            if (unreadable is not null && unreadable((ulong)s)) continue;
            ReadOnlySpan<byte> sector = content.Slice(s * Units.SectorBytes, Units.SectorBytes);
            ModelWrite? write = Identify((ulong)s, sector, out Violation? fault) ?? (staleAllowed ? Stale((ulong)s, sector) : null);
            if (write is null) return fault;
            seen[s] = write;
            if (staleAllowed || HistoryOf((ulong)s) is not { } history) continue;
            foreach (ModelWrite later in history)
            {
                if (!IsFirm(later, powerWasCut)) continue;
                if (write.IsBefore(later))
                {
                    return new Violation(
                        ViolationKind.LostWrite,
                        $"volume {Head.Id} sector {s}: {Name(write)} is back, {Name(later)} is lost (power cut: {powerWasCut})");
                }

                KeptSectors++;
            }
        }

        Violation? parts = staleAllowed || _isStale ? null : JudgeBlocks(seen, powerWasCut);
        if (parts is not null) return parts;
        if (settle) Settle(seen, staleAllowed, now);
        return null;
    }

    private static bool IsFirm(ModelWrite write, bool powerWasCut) => write.IsSure && (write.IsDurable || !powerWasCut);

    /// <summary>Content that was right for this sector once, though it is forgotten by now; null when it never was.</summary>
    private ModelWrite? Stale(ulong sector, ReadOnlySpan<byte> data)
    {
        if (data.IndexOfAnyExcept((byte)0) < 0) return Fresh;
        ulong id = BinaryPrimitives.ReadUInt64LittleEndian(data);
        Span<byte> expected = stackalloc byte[Units.SectorBytes];
        foreach (uint volume in _ancestors.Append(Head.Id))
        {
            Fill(expected, id, volume, sector);
            if (data.SequenceEqual(expected))
                return new ModelWrite(id, sector, 1, isZero: false, isAtomic: false, 0, volume) { End = 0, IsSure = true, IsDurable = true };
        }

        return null;
    }

    private void Settle(ModelWrite?[] seen, bool staleAllowed, ulong now)
    {
        _isStale |= staleAllowed;
        // Nobody can tell whose zeros they are, and from here on it does not matter. In a block of zeros and other content
        // they stand for whatever made the block, so they are younger than the first zeros.
        var zeros = new ModelWrite(0, 0, 0, isZero: true, isAtomic: false, now) { End = now, IsSure = true, IsDurable = true };
        var settled = new Dictionary<ModelWrite, ModelWrite>(ReferenceEqualityComparer.Instance);
        for (int s = 0; s < _sectors.Length; s++)
        {
            ModelWrite? write = s < seen.Length ? seen[s] : Fresh;
            if (write is null) continue; // unreadable: whatever it may hold stays possible
            if (write.IsZero)
            {
                _sectors[s] = IsBlockOfZeros(s, seen) ? null : [zeros];
                continue;
            }

            // A copy: the volume that a snapshot was cut from, and one that failed in part, know more of it than was seen here.
            if (!settled.TryGetValue(write, out ModelWrite? kept))
            {
                kept = new ModelWrite(write.Id, write.FirstSector, write.Sectors, write.IsZero, write.IsAtomic, write.Start, write.VolumeId)
                {
                    End = Math.Min(write.End, now),
                    IsSure = true,
                    IsDurable = true,
                };
                settled.Add(write, kept);
            }

            _sectors[s] = [kept];
        }

        _notDurable.Clear();
        _reads = 0;
    }

    private static bool IsBlockOfZeros(int sector, ModelWrite?[] seen)
    {
        int first = sector / (int)SectorsPerBlock * (int)SectorsPerBlock;
        for (int s = first; s < Math.Min(first + (int)SectorsPerBlock, seen.Length); s++)
        {
            if (seen[s] is not { IsZero: true }) return false;
        }

        return true;
    }
}
