using BlockServer.Core;

namespace BlockServer.Storage;

// Format and recovery (B1.7).
public sealed partial class Store
{
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
        IoStatus status = await WriteSuperblocksAsync(file, default, new Superblock
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
        if (_superblock.SlotHighWater == 0) return null;
        const int slotBytes = 2 * Units.BlockBytes;
        var ahead = new ReadAhead(_file, _pool);
        ulong start = _geometry.HomeOffset(0, 0);
        ahead.Begin(start, _geometry.HomeOffset(_superblock.SlotHighWater, 0));
        var split = new byte[slotBytes]; // a slot whose homes lie in two pieces
        uint number = 0;
        int kept = 0;
        for (Memory<byte> piece = await ahead.NextAsync(); !piece.IsEmpty; piece = await ahead.NextAsync())
        {
            if (kept > 0)
            {
                piece.Span[..(slotBytes - kept)].CopyTo(split.AsSpan(kept));
                LoadSlot(number++, split, suspects);
                piece = piece[(slotBytes - kept)..];
            }

            for (kept = 0; piece.Length >= slotBytes; piece = piece[slotBytes..]) LoadSlot(number++, piece.Span[..slotBytes], suspects);
            kept = piece.Length;
            piece.Span.CopyTo(split);
        }

        await ahead.CloseAsync();
        _slots.Reach(_superblock.SlotHighWater - 1);
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
