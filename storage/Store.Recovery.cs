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

        if (fault is null && suspects.Count > 0) fault = await LoseAsync(suspects, last);
        _blocks.BeginLoad();
        fault ??= await BuildMapAsync(last);
        _blocks.EndLoad();
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
                fault = await RecoveryCycleAsync();
                if (fault is not null) return fault;
            }

            fault = await HealHomesAsync();
            if (fault is not null) return fault;
            _tailLsn = last;
            if (await WriteSuperblockAsync(_superblock with
                {
                    IsClean = false, Incarnation = _superblock.Incarnation + 1, StartLsn = last,
                }) != IoStatus.Ok) return "writing the superblock failed";
        }

        _isRecovering = false;
        CountPages();
        WakeRelayout();
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

    /// <summary>Goes on with what the crash interrupted: shrinks now, deletions in the background.</summary>
    private async ValueTask<string?> ResumeAsync()
    {
        foreach (Volume volume in _volumes.Values.ToArray())
        {
            if (volume.IsDeleting)
            {
                StartBackground(() => FreeVolumeAsync(volume));
                continue;
            }

            if (volume.Appends is not null && await AdoptLengthAsync(volume) is { } lengthFault) return lengthFault;
            // Over a snapshot this takes room, which may be somebody's who was promised it and has not said so yet; without any it is
            // done again before the volume grows or a snapshot of it is cut.
            if (await DropBeyondAsync(volume, takesRoom: !_options.AwaitsPromises) is not (IoStatus.Ok or IoStatus.NoSpace))
                return "dropping what lies behind a shrunk volume failed";
            if (volume.IsFlattening && !_options.AwaitsPromises) StartBackground(() => FlattenAllAsync(volume));
            else if (volume.IsFlattening || volume.IsOverhanging) _interrupted.Add(volume);
            foreach (Layer layer in volume.Layers.Values.Where(layer => layer.IsDeleting)) StartBackground(() => FreeLayerAsync(layer));
        }

        return null;
    }
}
