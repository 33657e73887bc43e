using BlockServer.Core;

namespace BlockServer.Storage;

// Format and recovery (B1.7).
public sealed partial class Store
{
    private const int ScanBytes = 1 << 20;
    private bool _isRecovering;
    private readonly Dictionary<uint, VolumeHeadLayout> _recoveredHeads = [];

    /// <summary>Makes a store of the whole of <paramref name="file"/>. Answers why not, or null.</summary>
    public static async ValueTask<string?> FormatAsync(ILoop loop, IFile file, StoreOptions options)
    {
        string? fault = StoreGeometry.Plan(file.SizeBytes, options.RingBytes, options.SlotFraction, out StoreGeometry geometry);
        if (fault is not null) return fault;
        var page = new byte[Units.BlockBytes];
        if (await file.ReadAsync(0, page) != IoStatus.Ok) return "the medium cannot be read";
        if (!options.Force && page.AsSpan().ContainsAnyExcept((byte)0))
            return "the medium is not empty; force overwrites whatever it holds";
        // Page 0 is never written, so every LSN is above 0 and replay starts behind page 0.
        IoStatus status = await WriteSuperblocksAsync(file, file.FlushAsync, default, new Superblock
        {
            StoreUuid = options.StoreUuid == Guid.Empty ? loop.Random.NextGuid() : options.StoreUuid,
            ClusterUuid = options.ClusterUuid,
            Geometry = geometry,
            Incarnation = 1,
            StartLsn = PageEnd(0),
            Sequence = 1,
            IsClean = true,
        });
        return status == IoStatus.Ok ? null : "writing the superblocks failed: " + status;
    }

    /// <summary>Opens a store, replaying what its log holds. <paramref name="logFile"/> is a second view of the same
    /// medium for the log, or null.</summary>
    public static async ValueTask<StoreOpenResult> OpenAsync(ILoop loop, IFile file, IFile? logFile, StoreOptions options)
    {
        (Superblock superblock, string? fault) = await ReadSuperblockAsync(file);
        fault ??= ClusterFault(superblock, options);
        if (fault is not null) return new StoreOpenResult(null, fault);
        // A store of no cluster joins the one that opens it; the superblock that ends recovery says so.
        if (superblock.ClusterUuid == Guid.Empty) superblock = superblock with { ClusterUuid = options.ClusterUuid };
        var store = new Store(loop, file, logFile, options, superblock);
        fault = await store.RecoverAsync();
        return fault is null ? new StoreOpenResult(store, null) : new StoreOpenResult(null, fault);
    }

    private static async ValueTask<(Superblock, string?)> ReadSuperblockAsync(IFile file)
    {
        var found = new List<Superblock>();
        var page = new byte[Units.BlockBytes];
        string? fault = null;
        ulong end = file.SizeBytes;
        async ValueTask Look(ulong offset)
        {
            if (await file.ReadAsync(offset, page) != IoStatus.Ok) return;
            string? why = Superblock.TryRead(page, out Superblock copy) ?? copy.Geometry.Fault(end);
            if (why is null) found.Add(copy);
            else fault ??= why;
        }

        await Look(0);
        await Look(Units.BlockBytes);
        // The medium may have grown since: the far copies are where the geometry says, else at the end.
        ulong total = found.Count > 0 ? found[0].Geometry.TotalBytes : end;
        await Look(total - 2 * Units.BlockBytes);
        await Look(total - Units.BlockBytes);
        foreach (Superblock candidate in found.OrderByDescending(s => s.Sequence))
        {
            if (found.Count(s => s with { Copy = 0 } == candidate with { Copy = 0 }) >= 2) return (candidate, null);
        }

        return (default, found.Count > 0 ? "fewer than two copies of the superblock agree" : fault ?? "no superblock can be read");
    }

    private async ValueTask<string?> RecoverAsync()
    {
        _isRecovering = true;
        var suspects = new HashSet<uint>();
        string? fault = await LoadSlotsAsync(suspects);
        ulong last = _superblock.StartLsn;
        if (fault is null && (!_superblock.IsClean || Breaks(BrokenRules.AnyIncarnation)))
            (last, fault) = await ReplayAsync(suspects);
        if (fault is null && suspects.Count > 0 && !_options.AcceptDataLoss)
        {
            fault = $"{suspects.Count} metadata slots have a damaged home that the log does not explain (first: "
                + $"{suspects.Min()}); what they map may be lost; accept data loss to open all the same";
        }

        fault ??= BuildMap();
        if (fault is not null) return fault;
        _appliedLsn = _durableLsn = _claimedLsn = _claimedTail = _tailLsn = last;
        _nextPage = (last + 1) / Units.BlockBytes;
        if (!Breaks(BrokenRules.NoEndOfRecoveryCheckpoint))
        {
            if (Breaks(BrokenRules.SuperblockFirst) && await WriteSuperblockAsync(_superblock with
                {
                    IsClean = false, Incarnation = _superblock.Incarnation + 1, StartLsn = last,
                }) != IoStatus.Ok) return "writing the superblock failed";
            while (_dirty.Count > 0)
            {
                fault = await CycleAsync();
                if (fault is not null) return fault;
            }

            _tailLsn = last;
            if (await WriteSuperblockAsync(_superblock with
                {
                    IsClean = false, Incarnation = _superblock.Incarnation + 1, StartLsn = last,
                }) != IoStatus.Ok) return "writing the superblock failed";
        }

        _isRecovering = false;
        return await ResumeAsync();
    }

    private async ValueTask<string?> LoadSlotsAsync(HashSet<uint> suspects)
    {
        var chunk = new byte[ScanBytes];
        const uint slotsPerChunk = ScanBytes / (2 * Units.BlockBytes);
        for (uint first = 0; first < _superblock.SlotHighWater; first += slotsPerChunk)
        {
            uint count = Math.Min(slotsPerChunk, _superblock.SlotHighWater - first);
            Memory<byte> target = chunk.AsMemory(0, (int)count * 2 * Units.BlockBytes);
            if (await _file.ReadAsync(_geometry.HomeOffset(first, 0), target) != IoStatus.Ok)
                return "metadata slots cannot be read";
            for (uint i = 0; i < count; i++) LoadSlot(first + i, target.Span.Slice((int)i * 8192, 8192), suspects);
        }

        if (_superblock.SlotHighWater > 0) _slots.Reach(_superblock.SlotHighWater - 1);
        return null;
    }

    private void LoadSlot(uint number, ReadOnlySpan<byte> homes, HashSet<uint> suspects)
    {
        ref Slot slot = ref _slots[number];
        for (int home = 0; home < 2; home++)
        {
            ReadOnlySpan<byte> page = homes.Slice(home * Units.BlockBytes, Units.BlockBytes);
            ulong address = _geometry.HomeOffset(number, home);
            if (MetadataPage.TryReadPage(page, address, _fold, number, out MetadataPageHeader header) is not null)
            {
                suspects.Add(number); // torn by a checkpoint under way (then the log touches it) or rotten
                slot.NextHome = (byte)home;
                continue;
            }

            if (header.Kind == MetadataKind.Empty || header.PageLsn < slot.PageLsn) continue;
            slot.Kind = header.Kind;
            slot.VolumeId = header.VolumeId;
            slot.Extent = header.Extent;
            slot.PageLsn = header.PageLsn;
            slot.MaxVersion = header.MaxVersion;
            if (!suspects.Contains(number)) slot.NextHome = (byte)(1 - home);
            _nextVersion = Math.Max(_nextVersion, header.MaxVersion + 1);
            ReadOnlySpan<byte> body = page[MetadataPage.EntriesOffset..];
            if (header.Kind == MetadataKind.Extent) body[..MetadataPage.EntriesBytes].CopyTo(_slots.Entries(number));
            else if (header.Kind == MetadataKind.VolumeHead && VolumeHeadLayout.TryRead(body, out VolumeHeadLayout head) is null)
                _recoveredHeads[number] = head;
        }
    }

    private async ValueTask<(ulong Last, string? Fault)> ReplayAsync(HashSet<uint> suspects)
    {
        var pages = new Dictionary<ulong, RedoPageHeader>();
        ulong tail = _superblock.StartLsn, durable = 0;
        var chunk = new byte[ScanBytes];
        for (ulong done = 0; done < _geometry.RingPages; done += ScanBytes / Units.BlockBytes)
        {
            int count = (int)Math.Min(ScanBytes / Units.BlockBytes, _geometry.RingPages - done);
            ulong at = _geometry.RingOffset + done * Units.BlockBytes;
            if (await _log.ReadAsync(at, chunk.AsMemory(0, count * Units.BlockBytes)) != IoStatus.Ok)
                return (0, "the redo ring cannot be read");
            for (int i = 0; i < count; i++, at += Units.BlockBytes)
            {
                ReadOnlySpan<byte> page = chunk.AsSpan(i * Units.BlockBytes, Units.BlockBytes);
                if (RedoPageHeader.TryReadPage(page, at, _fold, out RedoPageHeader header) is not null
                    && !(Breaks(BrokenRules.AcceptTornLogPage) && RedoPageHeader.TryRead(page, out header) is null)) continue;
                if (header.Incarnation != _superblock.Incarnation && !Breaks(BrokenRules.AnyIncarnation)) continue;
                if (_geometry.PageOffset(header.PageNumber) != at) continue;
                pages[header.PageNumber] = header;
                tail = Math.Max(tail, header.TailLsn);
                durable = Math.Max(durable, header.DurableLsn);
            }
        }

        durable = Math.Max(durable, tail);
        ulong next = (tail + 1) / Units.BlockBytes;
        uint previous = 0;
        bool isFirst = true;
        while (pages.TryGetValue(next, out RedoPageHeader header) && (isFirst || header.PreviousCrc == previous))
        {
            if (await _log.ReadAsync(_geometry.PageOffset(next), chunk.AsMemory(0, Units.BlockBytes)) != IoStatus.Ok)
                return (0, "the redo ring cannot be read");
            string? fault = await ReplayPageAsync(chunk, header, durable, suspects);
            if (fault is not null) return (0, fault);
            previous = header.Crc;
            isFirst = false;
            next++;
        }

        ulong last = Math.Max(PageEnd(next - 1), _superblock.StartLsn);
        if (durable > last && !_options.AcceptDataLoss)
        {
            return (0, $"the log is damaged: it ends at {last}, but was durable up to {durable}; acknowledged writes "
                + "are lost; accept data loss to open all the same");
        }

        // After accepted loss new LSNs must still be above every one that a page holds.
        return (durable > last ? PageEnd(durable / Units.BlockBytes) : last, null);
    }

    private async ValueTask<string?> ReplayPageAsync(
        byte[] page, RedoPageHeader header, ulong durable, HashSet<uint> suspects)
    {
        string? fault = TryCutChains(page, header, out List<(int At, int Count)> chains);
        foreach ((int at, int count) in chains)
        {
            if (fault is not null) break;
            ulong lsn = header.PageNumber * Units.BlockBytes + (ulong)at;
            // Claims lie at the ends of chains, and a tail inside one means that a home has its first part: below either
            // the data is there by rule (S1).
            bool? isGood = lsn <= durable || Breaks(BrokenRules.SkipTailCrc)
                ? true
                : JudgeByHomes(page, at, count, header) ?? await AreBlocksGoodAsync(page, at, count, header.UsedBytes);
            if (isGood is null && !_options.AcceptDataLoss)
            {
                fault = "data that it names cannot be read; it may have been acknowledged; accept data loss to open without it";
                break;
            }

            bool data = isGood ?? false;
            for (int i = 0, offset = at; i < count && fault is null; i++)
            {
                fault = RedoRecord.TryRead(page, offset, header.UsedBytes, out RedoRecord record);
                if (fault is not null) break;
                int length = record.Length;
                fault = Replay(page, offset, header.UsedBytes, lsn + (ulong)(offset - at), data, suspects);
                offset += length;
            }
        }

        return fault is null ? null : $"log page {header.PageNumber}: {fault}";
    }

    /// <summary>The records of a page by request: offset of the first and how many. Reads every record once.</summary>
    private string? TryCutChains(byte[] page, RedoPageHeader header, out List<(int At, int Count)> chains)
    {
        chains = [];
        int at = RedoPageHeader.Size, first = at, count = 0;
        for (int i = 0; i < header.Count; i++)
        {
            string? fault = RedoRecord.TryRead(page, at, header.UsedBytes, out RedoRecord record);
            if (fault is not null) return fault;
            at += record.Length;
            count++;
            if (record.IsContinued && !Breaks(BrokenRules.SplitRequests)) continue;
            chains.Add((first, count));
            (first, count) = (at, 0);
        }

        return count == 0 ? null : "record: a chain is cut off";
    }

    /// <summary>
    /// What an earlier recovery, cut short behind some of its homes, made of a chain: true or false when a home shows it,
    /// else null. Without it rot between the two recoveries could leave a part of a request. True also when every home is
    /// ahead of the chain, so that nothing of it matters any more.
    /// </summary>
    private bool? JudgeByHomes(byte[] page, int at, int count, RedoPageHeader header)
    {
        bool isPast = true;
        for (int i = 0; i < count; i++)
        {
            if (RedoRecord.TryRead(page, at, header.UsedBytes, out RedoRecord record) is not null) return null;
            ulong lsn = header.PageNumber * Units.BlockBytes + (ulong)at;
            at += record.Length;
            if (PageLsnOf(record) < lsn) isPast = false;
            if (record.Kind is not (RedoKind.Write or RedoKind.Hole) || PageLsnOf(record) < lsn) continue;
            Slot slot = _slots[record.Slot];
            if (slot.Kind != MetadataKind.Extent || slot.VolumeId != record.VolumeId || slot.Extent != record.Extent) continue;
            ReadOnlySpan<byte> entries = _slots.Entries(record.Slot);
            for (int r = 0; r < record.RunCount; r++)
            {
                BlockRun run = record.Run(r);
                for (int b = run.First; b < run.First + run.Count; b++)
                {
                    ulong version = MetadataPage.Entry(entries, b).Version;
                    if (version <= record.Version) return version == record.Version;
                }
            }
        }

        return isPast ? true : null;
    }

    private ulong PageLsnOf(RedoRecord record) => record.Slot < _geometry.SlotCount ? _slots[record.Slot].PageLsn : 0;

    /// <summary>Whether all data of a chain reached the medium; null when that cannot be told because a read fails twice:
    /// unlike a checksum that does not match, that is no sign of a write that was cut.</summary>
    private async ValueTask<bool?> AreBlocksGoodAsync(byte[] page, int at, int count, int used)
    {
        var runs = new List<BlockRun>();
        var crcs = new List<uint>();
        Collect();
        int checkedBlocks = 0;
        foreach (BlockRun run in runs)
        {
            if (!_blocks.Holds(run.Block) || !_blocks.Holds(run.Block + (uint)run.Count - 1)) return false;
            var data = new byte[run.Count * Units.BlockBytes];
            if (await _file.ReadAsync((ulong)run.Block << Units.BlockShift, data) != IoStatus.Ok
                && await _file.ReadAsync((ulong)run.Block << Units.BlockShift, data) != IoStatus.Ok) return null;
            for (int i = 0; i < run.Count; i++)
            {
                if (Crc32C.Compute(data.AsSpan(i * Units.BlockBytes, Units.BlockBytes)) != crcs[checkedBlocks++]) return false;
            }
        }

        return true;

        void Collect()
        {
            for (int i = 0; i < count; i++)
            {
                if (RedoRecord.TryRead(page, at, used, out RedoRecord record) is not null) return;
                at += record.Length;
                if (record.Kind != RedoKind.Write) continue;
                for (int r = 0; r < record.RunCount; r++) runs.Add(record.Run(r));
                for (int b = 0; b < record.BlockCount; b++) crcs.Add(record.CrcOf(b));
            }
        }
    }

    private string? Replay(byte[] page, int at, int used, ulong lsn, bool data, HashSet<uint> suspects)
    {
        string? fault = RedoRecord.TryRead(page, at, used, out RedoRecord record);
        if (fault is not null) return fault;
        if (record.Kind is RedoKind.Note or RedoKind.BadBlock or RedoKind.Epoch) return null;
        if (record.Slot >= _geometry.SlotCount) return "record: slot beyond the store";
        _slots.Reach(record.Slot);
        ref Slot slot = ref _slots[record.Slot];
        bool isStale = lsn <= slot.PageLsn;
        suspects.Remove(record.Slot);
        if (isStale) return null;
        switch (record.Kind)
        {
            case RedoKind.Write or RedoKind.Hole or RedoKind.PageImage:
                if (record.IsNewPage || record.Kind == RedoKind.PageImage)
                {
                    (slot.Kind, slot.VolumeId, slot.Extent, slot.MaxVersion) =
                        (MetadataKind.Extent, record.VolumeId, record.Extent, 0);
                    _slots.Entries(record.Slot).Clear();
                    _recoveredHeads.Remove(record.Slot);
                    if (record.Kind == RedoKind.PageImage) record.Entries.CopyTo(_slots.Entries(record.Slot));
                }

                if (slot.Kind != MetadataKind.Extent || slot.VolumeId != record.VolumeId || slot.Extent != record.Extent)
                    return "record: its slot belongs to another extent";
                if (record.Kind == RedoKind.PageImage) break;
                _nextVersion = Math.Max(_nextVersion, record.Version + 1);
                if (data) ReplayBlocks(record, ref slot);
                break;
            case RedoKind.Volume:
                fault = VolumeHeadLayout.TryRead(record.HeadBytesOf, out VolumeHeadLayout head);
                if (fault is not null) return fault;
                (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.VolumeHead, head.Head.Id, 0);
                _recoveredHeads[record.Slot] = head;
                break;
            case RedoKind.VolumeDelete:
                if (!_recoveredHeads.TryGetValue(record.Slot, out VolumeHeadLayout dying)) return "record: deletes no volume";
                _recoveredHeads[record.Slot] = dying with { IsDeleting = true };
                break;
            case RedoKind.DropPage:
                slot.Kind = MetadataKind.Free;
                _recoveredHeads.Remove(record.Slot);
                break;
        }

        Touch(record.Slot, lsn);
        return null;
    }

    private void ReplayBlocks(RedoRecord record, ref Slot slot)
    {
        Span<byte> entries = _slots.Entries(record.Slot);
        int crc = 0;
        for (int r = 0; r < record.RunCount; r++)
        {
            BlockRun run = record.Run(r);
            for (int i = 0; i < run.Count; i++)
            {
                bool hole = record.Kind == RedoKind.Hole;
                MetadataPage.SetEntry(entries, run.First + i, new BlockEntry(
                    hole ? 0 : run.Block + (uint)i, hole ? 0 : record.CrcOf(crc++), record.Version));
            }
        }

        slot.MaxVersion = Math.Max(slot.MaxVersion, record.Version);
    }

    /// <summary>Volumes, extents and the bitmap, from the slots. Finds what cannot be (S2).</summary>
    private string? BuildMap()
    {
        foreach ((uint number, VolumeHeadLayout layout) in _recoveredHeads)
        {
            if (_slots[number].Kind != MetadataKind.VolumeHead) continue;
            if (!_volumes.TryAdd(layout.Head.Id, new Volume(layout.Head, number) { IsDeleting = layout.IsDeleting }))
                return $"two heads of volume {layout.Head.Id}";
        }

        for (uint number = 0; number < _slots.Next; number++)
        {
            ref Slot slot = ref _slots[number];
            if (slot.Kind == MetadataKind.VolumeHead && !_volumes.ContainsKey(slot.VolumeId)) return $"slot {number}: a damaged volume head";
            if (slot.Kind != MetadataKind.Extent) continue;
            if (!_volumes.TryGetValue(slot.VolumeId, out Volume? volume)) return $"slot {number}: an extent of volume {slot.VolumeId}, which has no head";
            if (volume.TryGetSlot(slot.Extent, out _)) return $"extent {slot.Extent} of volume {slot.VolumeId} lies in two slots";
            volume.SetSlot(slot.Extent, number);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                uint block = MetadataPage.Entry(_slots.Entries(number), i).Block;
                if (block is 0 or MetadataPage.UnknownBlock) continue;
                if (!_blocks.Holds(block) || !_blocks.TryTake(block))
                    return $"block {block} of volume {slot.VolumeId}, extent {slot.Extent} is outside the data or referenced twice";
                volume.UsedBlocks++;
                _used++;
            }
        }

        // A dropped slot whose tombstone is not home yet is released by the checkpoint, not here.
        _slots.Rebuild(_superblock.SlotHighWater);
        _recoveredHeads.Clear();
        return null;
    }

    /// <summary>Goes on with what the crash interrupted: shrinks now, deletions in the background.</summary>
    private async ValueTask<string?> ResumeAsync()
    {
        foreach (Volume volume in _volumes.Values.ToArray())
        {
            if (volume.IsDeleting) _loop.Post(() => _ = FreeVolumeAsync(volume));
            else if (await DropBeyondAsync(volume) != IoStatus.Ok) return "dropping what lies behind a shrunk volume failed";
        }

        return null;
    }
}
