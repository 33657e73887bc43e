using BlockServer.Core;
using BlockServer.Storage;

namespace BlockServer.Pfinspect;

/// <summary>What a metadata slot holds: from its newer home, then brought forward by the log.</summary>
public sealed class SlotPage
{
    /// <summary>The slot.</summary>
    public required uint Slot { get; init; }

    /// <summary>What it is.</summary>
    public required MetadataKind Kind { get; set; }

    /// <summary>The volume.</summary>
    public required uint VolumeId { get; init; }

    /// <summary>The extent's index; 0 in a volume's head.</summary>
    public required uint Extent { get; init; }

    /// <summary>The layer that an extent belongs to, or that a snapshot's head is of; 0 in everything else.</summary>
    public uint Layer { get; set; }

    /// <summary>LSN of the last record that it contains.</summary>
    public required ulong PageLsn { get; set; }

    /// <summary>The 256 entries of an extent.</summary>
    public byte[] Entries { get; init; } = [];

    /// <summary>The head of a volume.</summary>
    public VolumeHeadLayout Head { get; set; }

    /// <summary>The head of a snapshot.</summary>
    public SnapshotLayout Snapshot { get; set; }

    /// <summary>Length and clients that a page of an append-only volume holds; null in everything else.</summary>
    public AppendPage? Appends { get; init; }

    /// <summary>The numbers of a page of bad blocks.</summary>
    public SortedSet<uint> BadBlocks { get; init; } = [];
}

/// <summary>Collects problems; keeps the first <see cref="KeptMax"/> and counts all.</summary>
public sealed class ProblemList
{
    /// <summary>How many are kept.</summary>
    public const int KeptMax = 1000;

    private readonly List<Problem> _kept = [];

    /// <summary>Those kept.</summary>
    public IReadOnlyList<Problem> Kept => _kept;

    /// <summary>All that were found.</summary>
    public ulong Count { get; private set; }

    /// <summary>Something is lost or broken.</summary>
    public bool HasErrors { get; private set; }

    /// <summary>Adds something lost or broken.</summary>
    public void Error(string rule, string where, string what)
    {
        HasErrors = true;
        Add(new Problem("error", rule, where, what));
    }

    /// <summary>Adds something that the next open mends.</summary>
    public void Warning(string rule, string where, string what) => Add(new Problem("warning", rule, where, what));

    private void Add(Problem problem)
    {
        Count++;
        if (_kept.Count < KeptMax) _kept.Add(problem);
    }
}

/// <summary>
/// A store as recovery (engine B1.7) would see it: superblock quorum, newer homes, log replayed in memory. Nothing is
/// written. What was found odd on the way stands in <see cref="Problems"/>.
/// </summary>
public sealed class StoreImage
{
    private const int ChunkBytes = 1 << 20;
    private readonly StoreFile _file;
    private readonly uint _fold;
    private readonly SortedDictionary<ulong, RedoPageHeader> _logPages = [];
    private readonly SortedDictionary<uint, string> _lost = [];
    private readonly Dictionary<uint, ulong> _freedAt = [];
    private readonly SortedDictionary<uint, ulong> _homeLsn = [];
    private readonly byte[] _block = new byte[Units.BlockBytes];

    private StoreImage(StoreFile file, Superblock superblock, IReadOnlyList<SuperblockCopy> copies)
    {
        _file = file;
        Superblock = superblock;
        Copies = copies;
        _fold = Seal.Fold(superblock.StoreUuid);
    }

    /// <summary>The chosen root.</summary>
    public Superblock Superblock { get; }

    /// <summary>The four copies of it.</summary>
    public IReadOnlyList<SuperblockCopy> Copies { get; }

    /// <summary>Every slot in use, by number.</summary>
    public SortedDictionary<uint, SlotPage> Slots { get; } = [];

    /// <summary>What was found on the way.</summary>
    public ProblemList Problems { get; } = new();

    /// <summary>Replay starts behind this LSN.</summary>
    public ulong TailLsn { get; private set; }

    /// <summary>Everything up to here must be there.</summary>
    public ulong DurableLsn { get; private set; }

    /// <summary>Last LSN of the contiguous log, or <see cref="TailLsn"/> when there is none.</summary>
    public ulong EndLsn { get; private set; }

    /// <summary>The pages of the log that would be replayed, with what becomes of each record; only when asked for.</summary>
    public List<LogPage> Log { get; } = [];

    /// <summary>Pages of this incarnation in the ring.</summary>
    public int PagesOfThisIncarnation => _logPages.Count;

    /// <summary>Valid pages of other incarnations, which nobody reads again.</summary>
    public int PagesOfOthers { get; private set; }

    /// <summary>Pages that are neither empty nor valid.</summary>
    public int PagesUnreadable { get; private set; }

    /// <summary>Records that brought something forward.</summary>
    public ulong RecordsReplayed { get; private set; }

    /// <summary>Records above the durable claim whose data is not there: never acknowledged as durable, dropped.</summary>
    public ulong RecordsSkipped { get; private set; }

    /// <summary>Reads the roots only.</summary>
    public static StoreImage OpenRoot(StoreFile file)
    {
        var found = new List<(SuperblockCopy Copy, Superblock? Block)>();
        StoreGeometry? geometry = null;
        for (int copy = 0; copy < 4; copy++)
        {
            // Without a geometry to trust, the last two copies are looked for at the end of the medium.
            ulong end = geometry is { } g && g.Fault(file.SizeBytes) is null ? g.TotalBytes : file.SizeBytes;
            if (end < 4 * Units.BlockBytes) throw new InspectException($"'{file.Path}' is no store: it is smaller than one");
            ulong offset = copy < 2 ? (ulong)copy * Units.BlockBytes : end - (ulong)(4 - copy) * Units.BlockBytes;
            string? fault = ReadCopy(file, offset, copy, out Superblock block);
            if (fault is null) geometry ??= block.Geometry;
            found.Add((new SuperblockCopy(copy, offset, fault, fault is null ? block.Sequence : null, false), fault is null ? block : null));
        }

        if (found.All(f => f.Block is null)) throw new InspectException($"'{file.Path}' is no store: {found[0].Copy.Fault}");
        Superblock? chosen = found.Where(f => f.Block is not null).Select(f => f.Block!.Value with { Copy = 0 })
            .GroupBy(block => block).Where(same => same.Count() >= 2)
            .OrderByDescending(same => same.Key.Sequence).Select(same => (Superblock?)same.Key).FirstOrDefault();
        if (chosen is not { } root)
            throw new InspectException($"'{file.Path}' has no two superblock copies that agree; the store cannot be opened");
        if (root.Geometry.Fault(file.SizeBytes) is { } impossible) throw new InspectException($"'{file.Path}': {impossible}");
        return new StoreImage(file, root, [.. found.Select(f => f.Copy with { Chosen = f.Block is { } b && b with { Copy = 0 } == root })]);
    }

    /// <summary>Reads everything but data blocks, and replays the log; <paramref name="keepLog"/> fills <see cref="Log"/>.</summary>
    public static StoreImage Load(StoreFile file, bool keepLog = false)
    {
        StoreImage image = OpenRoot(file);
        image.CheckCopies();
        image.ReadRing();
        image.ReadSlots();
        image.Replay(keepLog);
        image.CheckHomes();
        foreach ((uint slot, string fault) in image._lost) image.Problems.Error("slot", $"slot {slot}", fault);
        return image;
    }

    /// <summary>Reads a data block and compares its checksum.</summary>
    public bool BlockMatches(uint block, uint crc) =>
        IsData(block) && _file.TryRead((ulong)block << Units.BlockShift, _block) && Crc32C.Compute(_block) == crc;

    /// <summary>True when the block lies in the data area.</summary>
    public bool IsData(uint block) => block >= Superblock.Geometry.DataStart && block < Superblock.Geometry.DataEnd;

    /// <summary>The volumes' heads, by id.</summary>
    public IEnumerable<SlotPage> Heads =>
        Slots.Values.Where(p => p.Kind == MetadataKind.VolumeHead).OrderBy(p => p.VolumeId);

    /// <summary>The snapshots' heads, by volume and layer.</summary>
    public IEnumerable<SlotPage> Snapshots =>
        Slots.Values.Where(p => p.Kind == MetadataKind.Snapshot).OrderBy(p => p.VolumeId).ThenBy(p => p.Layer);

    /// <summary>The pages of an append-only volume.</summary>
    public IEnumerable<SlotPage> AppendsOf(uint volumeId) =>
        Slots.Values.Where(p => p.Kind == MetadataKind.Appends && p.VolumeId == volumeId).OrderBy(p => p.Extent);

    /// <summary>Length of an append-only volume: that of its longest page.</summary>
    public ulong LengthOf(uint volumeId) => AppendsOf(volumeId).Select(p => p.Appends!.LengthBytes).DefaultIfEmpty().Max();

    /// <summary>Blocks that are never used again, and the slot that says so, by block.</summary>
    public SortedDictionary<uint, uint> BadBlocks()
    {
        var found = new SortedDictionary<uint, uint>();
        foreach (SlotPage page in Slots.Values.Where(p => p.Kind == MetadataKind.BadBlocks))
        {
            foreach (uint block in page.BadBlocks) found.TryAdd(block, page.Slot);
        }

        return found;
    }

    private static string? ReadCopy(StoreFile file, ulong offset, int copy, out Superblock block)
    {
        block = default;
        var bytes = new byte[Superblock.Size];
        if (!file.TryRead(offset, bytes)) return "superblock: the medium cannot read it";
        string? fault = Storage.Superblock.TryRead(bytes, out block);
        if (fault is not null) return fault;
        return block.Copy == copy ? null : $"superblock: copy {block.Copy} in the place of copy {copy}";
    }

    private void CheckCopies()
    {
        int good = Copies.Count(c => c.Chosen);
        foreach (SuperblockCopy copy in Copies.Where(c => !c.Chosen))
        {
            string what = copy.Fault ?? $"sequence {copy.Sequence} instead of {Superblock.Sequence}";
            Problems.Warning("superblock", $"copy {copy.Copy}", what);
        }

        if (good < 3) Problems.Warning("superblock", "copies", $"only {good} of 4 agree; an update leaves 3 at least");
    }

    /// <summary>S4: what a home holds was durable in the log before. The log's own claim may be older than that (nothing was
    /// written after the flush), but the log itself must reach that far.</summary>
    private void CheckHomes()
    {
        foreach ((uint slot, ulong lsn) in _homeLsn)
        {
            if (lsn > EndLsn) Problems.Error("S4", $"slot {slot}", $"its home holds LSN {lsn}, beyond the log's end {EndLsn}");
        }
    }

    private void ReadRing()
    {
        StoreGeometry g = Superblock.Geometry;
        ForEachPage(g.RingOffset, g.RingPages, (index, page, readable) =>
        {
            ulong address = g.RingOffset + index * Units.BlockBytes;
            if (readable && !page.ContainsAnyExcept((byte)0)) return;
            RedoPageHeader header = default;
            string? fault = readable ? RedoPageHeader.TryReadPage(page, address, _fold, out header) : "the medium cannot read it";
            if (fault is null && header.PageNumber % g.RingPages != index) fault = "log page: in another page's place";
            if (fault is not null)
            {
                PagesUnreadable++;
                Problems.Warning("log", $"ring page {index}", fault + "; a page that was being written when the daemon died looks so, and so does rot");
            }
            else if (header.Incarnation > Superblock.Incarnation)
            {
                PagesOfOthers++;
                Problems.Error("S8", $"log page {header.PageNumber}", $"of incarnation {header.Incarnation}, the store is at {Superblock.Incarnation}");
            }
            else if (header.Incarnation < Superblock.Incarnation)
            {
                PagesOfOthers++;
            }
            else
            {
                _logPages[header.PageNumber] = header;
            }
        });
        TailLsn = Superblock.StartLsn;
        foreach (RedoPageHeader page in _logPages.Values)
        {
            TailLsn = Math.Max(TailLsn, page.TailLsn);
            DurableLsn = Math.Max(DurableLsn, page.DurableLsn);
        }

        DurableLsn = Math.Max(DurableLsn, TailLsn);
        EndLsn = TailLsn;
    }

    private void ReadSlots()
    {
        StoreGeometry g = Superblock.Geometry;
        MetadataPageHeader first = default;
        byte[] firstPage = new byte[Units.BlockBytes];
        string? firstFault = null;
        ForEachPage(g.SlotsOffset, 2UL * Superblock.SlotHighWater, (index, page, readable) =>
        {
            uint slot = (uint)(index / 2);
            MetadataPageHeader header = default;
            string? fault = readable
                ? MetadataPage.TryReadPage(page, g.HomeOffset(slot, (int)(index % 2)), _fold, slot, out header)
                : "metadata page: the medium cannot read it";
            if (index % 2 == 0)
            {
                (first, firstFault) = (header, fault);
                page.CopyTo(firstPage);
                return;
            }

            TakeSlot(slot, first, firstPage, firstFault, header, page, fault);
        });
    }

    private void TakeSlot(
        uint slot, MetadataPageHeader a, byte[] pageA, string? faultA, MetadataPageHeader b, ReadOnlySpan<byte> pageB, string? faultB)
    {
        // A crash while one home is being written leaves that one torn; the other, older one and the log make it good.
        if (faultA is not null) Problems.Warning("slot", $"slot {slot} home A", faultA);
        if (faultB is not null) Problems.Warning("slot", $"slot {slot} home B", faultB);
        bool useA = faultA is null;
        bool useB = faultB is null && (!useA || b.PageLsn > a.PageLsn);
        if (useB)
        {
            TakeHome(slot, b, pageB);
        }
        else if (useA)
        {
            TakeHome(slot, a, pageA);
        }

        if (faultA is not null && faultB is not null)
            _lost[slot] = "no home is readable and the log does not hold it: its extent or volume is lost";
        else if (faultA is not null || faultB is not null)
            _lost[slot] = "a home is damaged and the log does not explain it: the other one may be older, and the store is refused";
    }

    private void TakeHome(uint slot, MetadataPageHeader header, ReadOnlySpan<byte> page)
    {
        string where = $"slot {slot}";
        _homeLsn[slot] = header.PageLsn;
        if (header.Kind == MetadataKind.Free)
        {
            // Records older than the tombstone still lie in the log and must not bring the page back.
            _freedAt[slot] = header.PageLsn;
            return;
        }

        AppendPage? appends = null;
        if (header.Kind == MetadataKind.Appends && AppendPage.TryRead(page[MetadataPage.EntriesOffset..], out appends) is { } wrong)
        {
            Problems.Error("append", where, wrong);
            return;
        }

        var taken = new SlotPage
        {
            Appends = appends,
            Slot = slot,
            Kind = header.Kind,
            VolumeId = header.VolumeId,
            Extent = header.Extent,
            Layer = header.Kind == MetadataKind.Snapshot ? header.Extent : header.LayerId,
            PageLsn = header.PageLsn,
            Entries = header.Kind == MetadataKind.Extent
                ? page.Slice(MetadataPage.EntriesOffset, MetadataPage.EntriesBytes).ToArray()
                : [],
        };
        if (header.Kind == MetadataKind.VolumeHead)
        {
            if (VolumeHeadLayout.TryRead(page[MetadataPage.EntriesOffset..], out VolumeHeadLayout head) is { } fault)
            {
                Problems.Error("volume", where, fault);
                return;
            }

            taken.Head = head;
        }
        else if (header.Kind == MetadataKind.Snapshot)
        {
            string? fault = SnapshotLayout.TryRead(page[MetadataPage.EntriesOffset..], out SnapshotLayout snapshot);
            if (fault is null && snapshot.Id != new LayerId(header.VolumeId, header.Extent)) fault = $"is in the place of layer {header.Extent}";
            if (fault is not null)
            {
                Problems.Error("layer", where, fault);
                return;
            }

            taken.Snapshot = snapshot;
        }

        for (int i = 0; header.Kind == MetadataKind.BadBlocks && i < MetadataPage.BadBlocksMax; i++)
        {
            if (MetadataPage.BadBlock(page[MetadataPage.EntriesOffset..], i) is not 0 and var bad) taken.BadBlocks.Add(bad);
        }

        Slots[slot] = taken;
        if (header.Kind == MetadataKind.Extent) CheckVersions(where, header, taken.Entries);
    }

    private void CheckVersions(string where, MetadataPageHeader header, byte[] entries)
    {
        ulong max = 0, min = ulong.MaxValue;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            ulong version = MetadataPage.Entry(entries, i).Version;
            max = Math.Max(max, version);
            if (version != 0) min = Math.Min(min, version);
        }

        if (max > header.MaxVersion) Problems.Error("map", where, $"an entry has version {max}, the page says at most {header.MaxVersion}");
        if (max != 0 && min < header.MinVersion) Problems.Error("map", where, $"an entry has version {min}, the page says at least {header.MinVersion}");
    }

    private void Replay(bool keepLog)
    {
        ulong number = TailLsn / Units.BlockBytes;
        // The page that the tail lies in belongs to the log only when it is of this incarnation.
        if (!_logPages.ContainsKey(number)) number++;
        uint? previous = null;
        for (; _logPages.TryGetValue(number, out RedoPageHeader header); number++)
        {
            if (previous is { } crc && header.PreviousCrc != crc) break;
            previous = header.Crc;
            string? fault = ReplayPage(header, keepLog);
            EndLsn = header.EndLsn;
            if (fault is null) continue;
            Problems.Error("log", $"log page {number}", fault);
            break;
        }

        int beyond = _logPages.Keys.Count(later => later > number);
        if (beyond > 0)
        {
            Problems.Warning("log", $"log page {number}",
                $"it is not there, but {beyond} pages of the same incarnation lie beyond it and are not replayed");
        }

        // A claim of a durable LSN names a position inside its last page, which must then be there.
        if (EndLsn < DurableLsn)
            Problems.Error("log", $"log page {number}", $"the log ends at LSN {EndLsn} although everything up to {DurableLsn} was durable");
        if (Superblock.IsClean && RecordsReplayed + RecordsSkipped > 0)
            Problems.Error("superblock", "clean flag", "set, but the log holds records that no home has");
    }

    private string? ReplayPage(RedoPageHeader header, bool keepLog)
    {
        var page = new byte[Units.BlockBytes];
        if (!_file.TryRead(Superblock.Geometry.PageOffset(header.PageNumber), page)) return "the medium cannot read it any more";
        List<LogRecord>? kept = keepLog ? [] : null;
        int offset = RedoPageHeader.Size;
        string? fault = null;
        bool isGood = true, isContinued = false;
        for (int i = 0; i < header.Count; i++)
        {
            fault = RedoRecord.TryRead(page, offset, header.UsedBytes, out RedoRecord record);
            if (fault is not null) break;
            ulong lsn = header.PageNumber * Units.BlockBytes + (ulong)offset;
            // Below the durable claim data is there by rule (S1); above it, all of a request's blocks or none.
            if (!isContinued) isGood = lsn <= DurableLsn || (AllBlocksMatch(page, offset, header) && FollowsLength(page, offset, header));
            isContinued = record.IsContinued;
            string fate = Apply(record, lsn, isGood);
            if (fate == "replay") RecordsReplayed++;
            if (fate == "drop") RecordsSkipped++;
            kept?.Add(new LogRecord(lsn, record.Kind.ToString(), record.Slot, record.VolumeId, record.Extent, Describe(record), fate));
            offset += record.Length;
        }

        if (fault is null && isContinued) fault = "its last record is continued, but nothing follows";
        if (fault is null && offset != header.UsedBytes) fault = "its records do not fill the bytes that it says are used";
        if (kept is not null)
        {
            Log.Add(new LogPage(
                header.PageNumber, header.Incarnation, header.Lap, header.DurableLsn, header.TailLsn, header.FlushPoint, fault, kept));
        }

        return fault;
    }

    /// <summary>What becomes of a record: replay, home (a home has it already), drop (its data never arrived) or note.</summary>
    private string Apply(in RedoRecord record, ulong lsn, bool isGood)
    {
        if (record.Kind is RedoKind.Note or RedoKind.Epoch) return "note";
        string where = $"log record {lsn}";
        if (record.Slot >= Superblock.Geometry.SlotCount)
        {
            Problems.Error("log", where, $"names slot {record.Slot} of {Superblock.Geometry.SlotCount}");
            return "drop";
        }

        Slots.TryGetValue(record.Slot, out SlotPage? page);
        ulong known = page?.PageLsn ?? _freedAt.GetValueOrDefault(record.Slot);
        if (lsn > known && record.Before > known)
        {
            if (known != 0 || !_lost.ContainsKey(record.Slot)) _lost[record.Slot] = $"its page ends at LSN {known}, but the log goes on from {record.Before}: its newer home is lost";
            return "drop";
        }

        // All that came after the page in hand is in the log, whatever the other home held.
        _lost.Remove(record.Slot);
        if (lsn <= known) return "home";
        switch (record.Kind)
        {
            case RedoKind.PageImage:
                Begin(record, lsn, record.Entries.ToArray(), record.Layer);
                return "replay";
            case RedoKind.BeginPage:
                Begin(record, lsn, new byte[MetadataPage.EntriesBytes], record.Layer);
                return "replay";
            case RedoKind.Rekey:
                return ApplyRekey(record, lsn, page, where);
            case RedoKind.Snapshot:
                return ApplySnapshot(record, lsn, where);
            case RedoKind.Volume:
                return ApplyHead(record, lsn, where);
            case RedoKind.VolumeDelete:
                return ApplyDelete(record.VolumeId, lsn);
            case RedoKind.BadBlock:
                return ApplyBadBlock(record, lsn, page);
            case RedoKind.DropPage:
                Slots.Remove(record.Slot);
                _freedAt[record.Slot] = lsn;
                return "replay";
            case RedoKind.BeginAppends:
                Slots[record.Slot] = new SlotPage
                {
                    Slot = record.Slot, Kind = MetadataKind.Appends, VolumeId = record.VolumeId, Extent = record.Extent, PageLsn = lsn,
                    Appends = new AppendPage { LengthBytes = record.AppendedBytes },
                };
                return "replay";
            case RedoKind.Append:
                return ApplyAppend(record, lsn, page, where, isGood);
            default:
                return ApplyBlocks(record, lsn, page, where, isGood);
        }
    }

    private string ApplyHead(in RedoRecord record, ulong lsn, string where)
    {
        if (record.TryReadHead(out VolumeHeadLayout head) is { } fault)
        {
            Problems.Error("volume", where, fault);
            return "drop";
        }

        Slots[record.Slot] = new SlotPage
        {
            Slot = record.Slot, Kind = MetadataKind.VolumeHead, VolumeId = head.Head.Id, Extent = 0, PageLsn = lsn, Head = head,
        };
        return "replay";
    }

    private string ApplySnapshot(in RedoRecord record, ulong lsn, string where)
    {
        if (record.TryReadSnapshot(out SnapshotLayout snapshot) is { } fault)
        {
            Problems.Error("layer", where, fault);
            return "drop";
        }

        Slots[record.Slot] = new SlotPage
        {
            Slot = record.Slot, Kind = MetadataKind.Snapshot, VolumeId = snapshot.Id.Volume, Extent = snapshot.Id.Layer,
            Layer = snapshot.Id.Layer, PageLsn = lsn, Snapshot = snapshot,
        };
        return "replay";
    }

    private string ApplyRekey(in RedoRecord record, ulong lsn, SlotPage? page, string where)
    {
        if (page is not { Kind: MetadataKind.Extent } || page.VolumeId != record.VolumeId || page.Extent != record.Extent)
        {
            Problems.Error("log", where, $"gives away extent {record.Extent} of volume {record.VolumeId}, which slot {record.Slot} does not hold");
            return "drop";
        }

        page.Layer = record.Layer;
        page.PageLsn = lsn;
        return "replay";
    }

    private string ApplyDelete(uint volumeId, ulong lsn)
    {
        SlotPage? head = Heads.FirstOrDefault(h => h.VolumeId == volumeId);
        if (head is null || lsn <= head.PageLsn) return "home";
        head.Head = head.Head with { IsDeleting = true };
        head.PageLsn = lsn;
        return "replay";
    }

    private string ApplyBadBlock(in RedoRecord record, ulong lsn, SlotPage? page)
    {
        if (page is not { Kind: MetadataKind.BadBlocks } || record.Before == 0)
        {
            page = Slots[record.Slot] = new SlotPage
            {
                Slot = record.Slot, Kind = MetadataKind.BadBlocks, VolumeId = 0, Extent = 0, PageLsn = lsn,
            };
        }

        page.BadBlocks.Add(record.BadBlock);
        page.PageLsn = lsn;
        return "replay";
    }

    private string ApplyAppend(in RedoRecord record, ulong lsn, SlotPage? page, string where, bool isGood)
    {
        if (page is not { Kind: MetadataKind.Appends } || page.VolumeId != record.VolumeId || page.Extent != record.Extent)
        {
            Problems.Error("log", where, $"appends to page {record.Extent} of volume {record.VolumeId}, which slot {record.Slot} does not hold");
            return "drop";
        }

        page.PageLsn = lsn;
        if (!isGood) return "drop";
        page.Appends!.Take(record.AppendEntry);
        return "replay";
    }

    /// <summary>Behind an append that is dropped there is no place for the next one.</summary>
    private bool FollowsLength(byte[] page, int offset, RedoPageHeader header)
    {
        while (RedoRecord.TryRead(page, offset, header.UsedBytes, out RedoRecord record) is null)
        {
            if (record.Kind == RedoKind.Append) return record.AppendEntry.OffsetBytes <= LengthOf(record.VolumeId);
            if (!record.IsContinued) return true;
            offset += record.Length;
        }

        return true;
    }

    private string ApplyBlocks(in RedoRecord record, ulong lsn, SlotPage? page, string where, bool isGood)
    {
        if (record.Kind == RedoKind.Write && record.IsNewPage)
        {
            page = Begin(record, lsn, new byte[MetadataPage.EntriesBytes], layer: 0);
        }
        else if (page is not { Kind: MetadataKind.Extent } || page.VolumeId != record.VolumeId || page.Extent != record.Extent)
        {
            Problems.Error("log", where, $"changes extent {record.Extent} of volume {record.VolumeId}, which slot {record.Slot} does not hold");
            return "drop";
        }

        page.PageLsn = lsn;
        if (!isGood) return "drop";
        int named = 0;
        for (int i = 0; i < record.RunCount; i++)
        {
            BlockRun run = record.Run(i);
            for (int n = 0; n < run.Count; n++)
            {
                ulong version = record.IsRelaid ? MetadataPage.Entry(page.Entries, run.First + n).Version : record.Version;
                BlockEntry entry = record.Kind == RedoKind.Hole
                    ? new BlockEntry(0, 0, version)
                    : new BlockEntry(run.Block + (uint)n, record.CrcOf(named++), version);
                MetadataPage.SetEntry(page.Entries, run.First + n, entry);
            }
        }

        return "replay";
    }

    /// <summary>Every block that the records of one request name holds what they say.</summary>
    private bool AllBlocksMatch(byte[] page, int offset, RedoPageHeader header)
    {
        while (RedoRecord.TryRead(page, offset, header.UsedBytes, out RedoRecord record) is null)
        {
            if (record.Kind == RedoKind.Write && !AllBlocksMatch(record)) return false;
            if (!record.IsContinued) return true;
            offset += record.Length;
        }

        return false;
    }

    private bool AllBlocksMatch(in RedoRecord record)
    {
        int named = 0;
        for (int i = 0; i < record.RunCount; i++)
        {
            BlockRun run = record.Run(i);
            for (int n = 0; n < run.Count; n++)
            {
                if (!BlockMatches(run.Block + (uint)n, record.CrcOf(named++))) return false;
            }
        }

        return true;
    }

    private SlotPage Begin(in RedoRecord record, ulong lsn, byte[] entries, uint layer) =>
        Slots[record.Slot] = new SlotPage
        {
            Slot = record.Slot, Kind = MetadataKind.Extent, VolumeId = record.VolumeId, Extent = record.Extent, Layer = layer,
            PageLsn = lsn, Entries = entries,
        };

    private static string Describe(in RedoRecord record)
    {
        switch (record.Kind)
        {
            case RedoKind.Write or RedoKind.Hole:
                var runs = new List<string>();
                for (int i = 0; i < record.RunCount; i++)
                {
                    BlockRun run = record.Run(i);
                    string span = run.Count == 1 ? $"{run.First}" : $"{run.First}-{run.First + run.Count - 1}";
                    runs.Add(record.Kind == RedoKind.Hole ? span : $"{span}@{run.Block}");
                }

                string more = (record.IsNewPage ? ", new page" : "") + (record.IsContinued ? ", continued" : "") + (record.IsRelaid ? ", relaid" : "");
                return $"version {record.Version}{more}, blocks {string.Join(' ', runs)}";
            case RedoKind.Volume:
                return record.TryReadHead(out VolumeHeadLayout head)
                    ?? $"{head.Head.Name}, {SizeText.Format(head.Head.SizeBytes)}{(head.IsDeleting ? ", being deleted" : "")}";
            case RedoKind.Snapshot:
                return record.TryReadSnapshot(out SnapshotLayout snapshot)
                    ?? $"{snapshot.Name}, layer {snapshot.Id.Layer}, cut {snapshot.Cut}{(snapshot.IsDeleting ? ", being deleted" : "")}";
            case RedoKind.PageImage or RedoKind.BeginPage or RedoKind.Rekey:
                return $"layer {record.Layer}";
            case RedoKind.BeginAppends:
                return $"length {record.AppendedBytes}";
            case RedoKind.Append:
                AppendEntry entry = record.AppendEntry;
                string whose = entry.Client == Guid.Empty ? "" : $", client {entry.Client} append {entry.Sequence}";
                return $"version {entry.Version}, {entry.LengthBytes} bytes at {entry.OffsetBytes}{whose}{(record.IsContinued ? ", continued" : "")}";
            case RedoKind.BadBlock:
                return $"block {record.BadBlock}";
            case RedoKind.Note:
                return $"F {record.FlushPoint}, tail {record.TailLsn}";
            case RedoKind.Epoch:
                return $"epoch {record.Epoch}, leader {record.Leader}";
            default:
                return "";
        }
    }

    private delegate void PageVisitor(ulong index, ReadOnlySpan<byte> page, bool readable);

    /// <summary>Visits pages in order, read in large pieces; a piece that fails is read page by page.</summary>
    private void ForEachPage(ulong offset, ulong count, PageVisitor visit)
    {
        var chunk = new byte[ChunkBytes];
        for (ulong done = 0; done < count;)
        {
            int pages = (int)Math.Min(count - done, ChunkBytes / Units.BlockBytes);
            bool whole = _file.TryRead(offset + done * Units.BlockBytes, chunk.AsSpan(0, pages * Units.BlockBytes));
            for (int i = 0; i < pages; i++)
            {
                Span<byte> page = chunk.AsSpan(i * Units.BlockBytes, Units.BlockBytes);
                bool readable = whole || _file.TryRead(offset + (done + (ulong)i) * Units.BlockBytes, page);
                visit(done + (ulong)i, page, readable);
            }

            done += (ulong)pages;
        }
    }
}
