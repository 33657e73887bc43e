using System.Buffers.Binary;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>One change that a client asked for: what it leaves in each sector of its range, and what is known about it.</summary>
public sealed class ModelWrite(ulong id, ulong firstSector, ulong sectors, bool isZero, bool isAtomic, ulong start, uint volume = 0)
{
    /// <summary>The volume that it was written to: clones show its content too.</summary>
    public uint VolumeId { get; } = volume;

    /// <summary>Unique; the written content carries it.</summary>
    public ulong Id { get; } = id;

    /// <summary>First sector of the range.</summary>
    public ulong FirstSector { get; } = firstSector;

    /// <summary>Sectors of the range.</summary>
    public ulong Sectors { get; } = sectors;

    /// <summary>It leaves zeros (trim, write zeroes, shrink).</summary>
    public bool IsZero { get; } = isZero;

    /// <summary>All or none of it is there after a crash (P3).</summary>
    public bool IsAtomic { get; } = isAtomic;

    /// <summary>Model time of the call.</summary>
    public ulong Start { get; } = start;

    /// <summary>Model time of the answer; the largest number while it is in flight.</summary>
    public ulong End { get; set; } = ulong.MaxValue;

    /// <summary>It was answered Ok; an unsure one may or may not have happened, before its end.</summary>
    public bool IsSure { get; set; }

    /// <summary>It survives a power cut.</summary>
    public bool IsDurable { get; set; }

    /// <summary>What is known of it now, as a request of its own.</summary>
    public ModelWrite Copy() => (ModelWrite)MemberwiseClone();

    /// <summary>It ended before <paramref name="other"/> began.</summary>
    public bool IsBefore(ModelWrite other) => End < other.Start;
}

/// <summary>
/// One volume as its clients may see it: for every 512 B sector the changes whose content it may hold. Contents are
/// unique per change and sector, so a sector read names the change it came from. The oracle of P1 to P4, P8 and of
/// request atomicity; it knows nothing of how a store works, except that a block is stored as a whole (see
/// VolumeModel.Blocks.cs).
/// </summary>
public sealed partial class VolumeModel
{
    private static readonly ModelWrite Fresh = new(0, 0, 0, true, false, 0) { End = 0, IsSure = true, IsDurable = true };
    private const ulong SectorsPerBlock = Units.BlockBytes / Units.SectorBytes;
    private static readonly byte[] ZeroSector = new byte[Units.SectorBytes];
    private readonly List<ModelWrite> _notDurable = [];
    private List<ModelWrite>?[] _sectors;
    private int _reads;

    /// <summary>A new volume: all zeros.</summary>
    public VolumeModel(VolumeHead head)
    {
        Head = head;
        _sectors = new List<ModelWrite>?[WholeBlocks(Sectors)];
    }

    /// <summary>The head as it is when nothing is going on.</summary>
    public VolumeHead Head { get; set; }

    /// <summary>The head that an unanswered or failed update asked for.</summary>
    public VolumeHead? HeadMaybe { get; set; }

    /// <summary>Creation was answered Ok.</summary>
    public bool IsSure { get; set; }

    /// <summary>Deletion was asked for: it may be gone.</summary>
    public bool IsDeleting { get; set; }

    /// <summary>Deletion was answered Ok, or it was seen gone.</summary>
    public bool IsGone { get; set; }

    /// <summary>A rollback is under way: nobody else uses it.</summary>
    public bool IsBusy { get; set; }

    /// <summary>A snapshot of it is being cut.</summary>
    public bool IsCutting { get; set; }

    /// <summary>Sectors at the current size.</summary>
    public ulong Sectors => Head.SizeBytes / Units.SectorBytes;

    /// <summary>Writes the content that change <paramref name="id"/> leaves in the sectors from <paramref name="firstSector"/>.</summary>
    public static void Fill(Span<byte> target, ulong id, uint volume, ulong firstSector)
    {
        for (int at = 0; at < target.Length; at += Units.SectorBytes)
        {
            Span<ulong> words = MemoryMarshal.Cast<byte, ulong>(target.Slice(at, Units.SectorBytes));
            ulong seed = Tag(id, volume, firstSector + (ulong)(at / Units.SectorBytes));
            words[0] = id;
            for (int i = 1; i < words.Length; i++) words[i] = seed + (ulong)i;
        }
    }

    /// <summary>A change begins.</summary>
    public ModelWrite Begin(ulong id, ulong firstSector, ulong sectors, bool isZero, ulong now)
    {
        // Up to 1 MiB (P3); zeros are left out because nobody can tell whose they are.
        bool isAtomic = !isZero && sectors * Units.SectorBytes <= Units.ExtentBytes;
        var write = new ModelWrite(id, firstSector, sectors, isZero, isAtomic, now, Head.Id);
        for (ulong s = firstSector; s < firstSector + sectors; s++)
        {
            List<ModelWrite> history = _sectors[s] ??= [Fresh];
            if (history.Count >= 4 && _reads == 0) Prune(history);
            history.Add(write);
        }

        return write;
    }

    /// <summary>The change was answered.</summary>
    public void End(ModelWrite write, bool isOk, bool isDurable, ulong now)
    {
        write.End = now;
        write.IsSure = isOk;
        write.IsDurable = isOk && isDurable;
        if (isOk && !isDurable) _notDurable.Add(write);
    }

    /// <summary>A flush that was called at <paramref name="start"/> was answered Ok.</summary>
    public void Flushed(ulong start)
    {
        foreach (ModelWrite write in _notDurable)
        {
            if (write.End < start) write.IsDurable = true;
        }

        _notDurable.RemoveAll(write => write.IsDurable);
    }

    /// <summary>A read begins: histories are kept until it ends.</summary>
    public void BeginRead() => _reads++;

    /// <summary>Judges what a read that began at <paramref name="start"/> answered; a sentence, or null.</summary>
    public Violation? EndRead(ulong firstSector, ReadOnlySpan<byte> data, ulong start)
    {
        int count = data.Length / Units.SectorBytes;
        var seen = new ModelWrite?[count];
        for (int i = 0; i < count; i++)
        {
            ulong sector = firstSector + (ulong)i;
            Violation? fault = JudgeLive(sector, data.Slice(i * Units.SectorBytes, Units.SectorBytes), start, out seen[i]);
            if (fault is not null) return fault;
        }

        if (_isStale) return null;
        ulong end = firstSector + (ulong)count;
        for (ulong block = (firstSector + SectorsPerBlock - 1) / SectorsPerBlock; block * SectorsPerBlock < end; block++)
        {
            ulong first = block * SectorsPerBlock;
            if (first + SectorsPerBlock > end && end != Sectors) break; // only whole blocks can be judged as such
            Violation? fault = JudgeBlock(first, seen.AsSpan((int)(first - firstSector)), out _);
            if (fault is not null) return fault;
        }

        return null;
    }

    /// <summary>Judges that the sectors were said to be holes by an answer to a question asked at <paramref name="start"/>:
    /// each must have read as zeros at some time since.</summary>
    public Violation? JudgeHole(ulong firstSector, ulong sectors, ulong start)
    {
        for (ulong s = firstSector; s < firstSector + sectors; s++)
        {
            if (HistoryOf(s) is null) continue;
            if (JudgeLive(s, ZeroSector, start, out _) is { } fault)
                return new Violation(ViolationKind.WrongMap, "said to be a hole: " + fault.Text);
        }

        return null;
    }

    /// <summary>The read is over.</summary>
    public void ReadDone() => _reads--;

    /// <summary>A restart showed that the update of the head happened (or did not).</summary>
    public void SettleHead(VolumeHead head)
    {
        Head = head;
        HeadMaybe = null;
        Array.Resize(ref _sectors, Math.Max(WholeBlocks(Sectors), _sectors.Length));
    }

    /// <summary>What may be in it at this moment, as a model of its own: for a snapshot.</summary>
    public VolumeModel Fork(ulong sizeBytes)
    {
        var fork = new VolumeModel(Head with { SizeBytes = sizeBytes }) { _isStale = _isStale };
        for (int s = 0; s < Math.Min(fork._sectors.Length, _sectors.Length); s++)
            fork._sectors[s] = _sectors[s] is { } history ? [.. history] : null;
        fork._ancestors.UnionWith(_ancestors);
        return fork;
    }

    /// <summary>Everything that went on is forgotten: from now on it holds what <paramref name="seen"/> says, as after a
    /// restart.</summary>
    public void Become(VolumeModel origin, ModelWrite?[] seen, ulong now)
    {
        if (origin.Head.Id != Head.Id) _ancestors.Add(origin.Head.Id);
        _ancestors.UnionWith(origin._ancestors);
        // A copy: that a request which failed half way left a part here does not make it sure for the volume it was written to.
        var copies = new Dictionary<ModelWrite, ModelWrite>();
        ModelWrite? CopyOf(ModelWrite? write) => write is null ? null : copies.TryGetValue(write, out ModelWrite? known) ? known : copies[write] = write.Copy();
        Settle([.. seen.Select(CopyOf)], staleAllowed: origin._isStale, now);
    }

    /// <summary>Judges a snapshot that was asked for at <paramref name="start"/>: what was over before is in it (with
    /// <paramref name="onlyDurable"/> only what was durable), every request as a whole or not at all.</summary>
    public Violation? JudgeCut(ReadOnlySpan<byte> content, ulong start, bool onlyDurable)
    {
        bool MustBeThere(ModelWrite write) => write.IsSure && write.End < start && (write.IsDurable || !onlyDurable);
        var seen = new ModelWrite?[content.Length / Units.SectorBytes];
        for (int s = 0; s < seen.Length; s++)
        {
            seen[s] = Identify((ulong)s, content.Slice(s * Units.SectorBytes, Units.SectorBytes), out Violation? fault);
            if (seen[s] is not { } write) return fault;
            foreach (ModelWrite later in HistoryOf((ulong)s) ?? [])
            {
                if (MustBeThere(later) && write.IsBefore(later))
                    return new Violation(ViolationKind.LostWrite, $"volume {Head.Id} sector {s}: {Name(write)} is in the snapshot, {Name(later)} is not");
            }
        }

        return _isStale ? null : JudgeBlocks(seen, powerWasCut: true, MustBeThere);
    }

    /// <summary>Reads under way.</summary>
    public int Reads => _reads;

    /// <summary>Which change left each sector of <paramref name="content"/>; null for those that <paramref name="unreadable"/>
    /// says.</summary>
    public ModelWrite?[] IdentifyAll(ReadOnlySpan<byte> content, Func<ulong, bool>? unreadable)
    {
        var seen = new ModelWrite?[content.Length / Units.SectorBytes];
        for (int s = 0; s < seen.Length; s++)
        {
            if (unreadable is not null && unreadable((ulong)s)) continue;
            seen[s] = Identify((ulong)s, content.Slice(s * Units.SectorBytes, Units.SectorBytes), out _);
        }

        return seen;
    }

    private readonly SortedSet<uint> _ancestors = []; // volumes whose content may be here

    /// <summary>What lies behind the end in its last block was zeroed when the end came there, and is seen after growth.</summary>
    private static int WholeBlocks(ulong sectors) => (int)((sectors + SectorsPerBlock - 1) / SectorsPerBlock * SectorsPerBlock);

    private static ulong Tag(ulong id, uint volume, ulong sector) =>
        (id * 0x9E3779B97F4A7C15) ^ (sector * 0xC2B2AE3D27D4EB4F) ^ volume;

    private static string Name(ModelWrite write) =>
        write.Id == 0 ? "the first zeros" : $"{(write.IsZero ? "zeroing" : "write")} {write.Id} (sectors {write.FirstSector}+{write.Sectors}, "
            + $"{(write.End == ulong.MaxValue ? "in flight" : write.IsSure ? "acked" : "failed")}{(write.IsDurable ? ", durable" : "")})";

    private static void Prune(List<ModelWrite> history)
    {
        ModelWrite? last = null;
        foreach (ModelWrite write in history)
        {
            if (write.IsSure && write.IsDurable && (last is null || write.Start > last.Start)) last = write;
        }

        if (last is not null) history.RemoveAll(write => write.IsBefore(last));
    }

    /// <summary>A sector beyond every size the volume had so far (a growth in flight) is untouched.</summary>
    private List<ModelWrite>? HistoryOf(ulong sector) => sector < (ulong)_sectors.Length ? _sectors[sector] : null;

    private Violation? JudgeLive(ulong sector, ReadOnlySpan<byte> data, ulong readStart, out ModelWrite? write)
    {
        write = Identify(sector, data, out Violation? fault);
        if (write is null) return fault;
        if (HistoryOf(sector) is not { } history) return null;
        foreach (ModelWrite later in history)
        {
            if (later.IsSure && later.End < readStart && write.IsBefore(later))
            {
                return new Violation(
                    ViolationKind.StaleRead,
                    $"volume {Head.Id} sector {sector}: a read gave {Name(write)}, though {Name(later)} was over before");
            }
        }

        return null;
    }

    /// <summary>The change whose content this is; of several zeroings the one that ended last.</summary>
    private ModelWrite? Identify(ulong sector, ReadOnlySpan<byte> data, out Violation? fault)
    {
        fault = null;
        ulong id = BinaryPrimitives.ReadUInt64LittleEndian(data);
        List<ModelWrite>? history = HistoryOf(sector);
        bool isZero = id == 0 && data.IndexOfAnyExcept((byte)0) < 0;
        if (isZero && history is null) return Fresh;
        ModelWrite? found = null;
        foreach (ModelWrite write in history ?? [])
        {
            bool fits = isZero ? write.IsZero : write.Id == id && !write.IsZero;
            if (fits && (found is null || write.End >= found.End)) found = write;
        }

        if (found is null)
        {
            fault = new Violation(
                ViolationKind.WrongData,
                $"volume {Head.Id} sector {sector}: holds {(isZero ? "zeros" : $"content of id {id}")}, which cannot be there"
                    + (history is null ? "" : $"; possible: {string.Join(", ", history.Select(Name))}"));
            return null;
        }

        if (isZero) return found;
        Span<byte> expected = stackalloc byte[Units.SectorBytes];
        Fill(expected, id, found.VolumeId, sector);
        if (data.SequenceEqual(expected)) return found;
        fault = new Violation(
            ViolationKind.WrongData, $"volume {Head.Id} sector {sector}: content of {Name(found)} is damaged or from another place");
        return null;
    }
}
