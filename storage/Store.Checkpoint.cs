using BlockServer.Core;

namespace BlockServer.Storage;

// Checkpoint (B1.6): images, flush, homes, flush, read back, tail, note.
public sealed partial class Store
{
    // Pages of one cycle; their images are at most 4 MiB of memory.
    private const int CyclePages = 1024;

    // Writes or reads of homes under way at a time.
    private const int HomesAtOnce = 32;

    // New slots get tombstones in both homes, this many at a time, before the superblock counts them: from then on a home
    // that is no good page, zeros too, is damaged.
    private const uint HighWaterStep = 256;
    private readonly Queue<uint> _dirty = new();
    private readonly List<LoopEvent<bool>> _checkpointWaiters = [];
    private ulong _checkpoints, _checkpointBytes, _checkpointedNanos;
    private bool _isCheckpointing;

    private void KickCheckpoint()
    {
        if (_isCheckpointing || _isRecovering || _isClosing || State != StoreState.Online || _isKicked) return;
        _isKicked = true;
        _loop.Post(() => _ = PaceAsync());
    }

    private bool _isKicked;

    private async Task PaceAsync()
    {
        if (_isClosing || State != StoreState.Online)
        {
            _isKicked = false; // a close checkpoints by itself
            return;
        }

        _background++;
        do
        {
            await CheckpointAsync();
        }
        while (State == StoreState.Online && !_isClosing
            && ((RingOccupancy >= 0.3 && (_dirty.Count > 0 || RingOccupancy > 0.8)) || IsPressed));

        _isKicked = false;
        _background--;
    }

    private async ValueTask CheckpointAsync()
    {
        Check.That(!_isCheckpointing);
        _isCheckpointing = true;
        string? fault = await CycleAsync();
        _isCheckpointing = false;
        if (fault is not null) Fail(fault);
        else _checkpoints++;
        _checkpointedNanos = _loop.NowNanos;
        WakeCheckpointWaiters();
    }

    /// <summary>Waits for the end of a cycle, begun by somebody else perhaps: for slots whose tombstones are not home yet. Answers
    /// whether any came back.</summary>
    private async ValueTask<bool> WaitForCheckpoint()
    {
        if (State != StoreState.Online) return false;
        ulong released = _slots.Released;
        var done = new LoopEvent<bool>();
        _checkpointWaiters.Add(done);
        KickCheckpoint();
        await done.WaitAsync();
        return _slots.Released != released;
    }

    private void WakeCheckpointWaiters()
    {
        LoopEvent<bool>[] waiting = [.. _checkpointWaiters];
        _checkpointWaiters.Clear();
        foreach (LoopEvent<bool> waiter in waiting) _loop.Post(() => waiter.Set(true));
    }

    private async ValueTask<string?> CycleAsync()
    {
        var images = new List<(uint Slot, int Home, byte[] Page, MetadataKind Kind)>();
        ulong highest = 0;
        uint end = 0;
        while (_dirty.Count > 0 && images.Count < CyclePages)
        {
            uint number = _dirty.Dequeue();
            (byte[] page, int home) = TakeImage(number);
            highest = Math.Max(highest, _slots[number].PageLsn);
            end = Math.Max(end, number + 1);
            images.Add((number, home, page, _slots[number].Kind));
        }

        if (!Breaks(BrokenRules.SkipFlushBeforeHome) && await EnsureDurable(highest) != IoStatus.Ok) return "checkpoint: flush failed";
        string? fault = await RaiseHighWaterAsync(end) ?? await WriteHomesAsync(images);
        if (fault is not null) return fault;
        foreach ((uint slot, _, _, MetadataKind kind) in images)
        {
            // Dirty again means reused? No: a dropped slot is not handed out before this line.
            if (kind == MetadataKind.Free) _slots.Release(slot);
            _slots.Unpin(slot);
        }

        _checkpointBytes += (ulong)images.Count * Units.BlockBytes;
        MoveTail();
        await MakeSpaceAsync();
        return null;
    }

    /// <summary>Replay need not look at what is in front of the oldest dirty page's first change.</summary>
    private void MoveTail()
    {
        ulong tail = _dirty.TryPeek(out uint oldest) ? Math.Min(_slots[oldest].RecLsn - 1, _appliedLsn) : _appliedLsn;
        _tailLsn = Breaks(BrokenRules.TrimLogTooFar) ? _appliedLsn : Math.Max(_tailLsn, tail);
    }

    /// <summary>The image of a dirty page, clean from here on, and the home it goes to; in memory of the caller's if there is
    /// any.</summary>
    private (byte[] Page, int Home) TakeImage(uint number, byte[]? memory = null)
    {
        ref Slot slot = ref _slots[number];
        byte[] page = memory ?? new byte[Units.BlockBytes];
        if (memory is not null) page.AsSpan().Clear();
        int home = slot.NextHome;
        slot.NextHome = (byte)(1 - home);
        slot.IsDirty = false;
        if (_isRecovering) _badHomes.Remove((number, home));
        new MetadataPageHeader
        {
            Kind = slot.Kind,
            VolumeId = slot.VolumeId,
            LayerId = slot.Kind == MetadataKind.Extent ? _slots.Link(number).Layer : 0,
            Extent = slot.Extent,
            Slot = number,
            PageLsn = slot.PageLsn,
            MaxVersion = slot.MaxVersion,
            MinVersion = slot.Kind == MetadataKind.Extent ? MinVersion(_slots.Entries(number)) : 0,
        }.WriteTo(page);
        if (slot.Kind == MetadataKind.Extent)
        {
            _slots.Entries(number).CopyTo(page.AsSpan(MetadataPage.EntriesOffset));
        }
        else if (slot.Kind == MetadataKind.BadBlocks)
        {
            WriteBadBlocks(number, page.AsSpan(MetadataPage.EntriesOffset));
        }
        else if (slot.Kind == MetadataKind.VolumeHead)
        {
            LayoutOf(_volumes[slot.VolumeId]).WriteTo(page.AsSpan(MetadataPage.EntriesOffset));
        }
        else if (slot.Kind == MetadataKind.Snapshot)
        {
            _volumes[slot.VolumeId].Layers[slot.Extent].Head.WriteTo(page.AsSpan(MetadataPage.EntriesOffset));
        }

        else if (slot.Kind == MetadataKind.Appends)
        {
            _volumes[slot.VolumeId].Appends!.Pages[slot.Extent]!.WriteTo(page.AsSpan(MetadataPage.EntriesOffset));
        }

        Seal.Put(page, _geometry.HomeOffset(number, home), _fold);
        return (page, home);
    }

    private static ulong MinVersion(ReadOnlySpan<byte> entries)
    {
        ulong least = ulong.MaxValue;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            ulong version = MetadataPage.Entry(entries, i).Version;
            if (version != 0) least = Math.Min(least, version);
        }

        return least == ulong.MaxValue ? 0 : least;
    }

    private async ValueTask<string?> WriteHomesAsync(List<(uint Slot, int Home, byte[] Page, MetadataKind Kind)> images)
    {
        var under = new ValueTask<IoStatus>[HomesAtOnce];
        for (int done = 0; done < images.Count; done += HomesAtOnce)
        {
            int count = Math.Min(HomesAtOnce, images.Count - done);
            for (int i = 0; i < count; i++)
            {
                (uint slot, int home, byte[] page, _) = images[done + i];
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
                under[i] = _file.WriteAsync(_geometry.HomeOffset(slot, home), page);
#pragma warning restore CA2012
            }

            bool good = true;
            for (int i = 0; i < count; i++) good &= await under[i] == IoStatus.Ok;
            if (!good) return "checkpoint: writing a metadata page failed";
        }

        if (images.Count == 0) return null;
        if (await FlushFilesAsync() != IoStatus.Ok) return "checkpoint: flush failed";
        return await ReadHomesBackAsync(images, under);
    }

    /// <summary>Before the log gives up what the homes hold, they are seen to hold it.</summary>
    private async ValueTask<string?> ReadHomesBackAsync(
        List<(uint Slot, int Home, byte[] Page, MetadataKind Kind)> images, ValueTask<IoStatus>[] under)
    {
        IoBuffer back = await _pageBuffers.RentAsync(HomesAtOnce * Units.BlockBytes);
        string? fault = null;
        for (int done = 0; done < images.Count; done += HomesAtOnce)
        {
            int count = Math.Min(HomesAtOnce, images.Count - done);
            for (int i = 0; i < count; i++)
            {
                (uint slot, int home, _, _) = images[done + i];
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
                under[i] = _file.ReadAsync(_geometry.HomeOffset(slot, home), back.Slice(i * Units.BlockBytes, Units.BlockBytes));
#pragma warning restore CA2012
            }

            for (int i = 0; i < count; i++)
            {
                IoStatus status = await under[i];
                (uint slot, _, byte[] page, _) = images[done + i];
                if (status != IoStatus.Ok || !back.Slice(i * Units.BlockBytes, Units.BlockBytes).Span.SequenceEqual(page))
                    fault = $"checkpoint: the metadata page of slot {slot} does not read back";
            }
        }

        back.Return();
        return fault;
    }

    private async ValueTask<string?> RaiseHighWaterAsync(uint end)
    {
        uint mark = _superblock.SlotHighWater;
        if (end <= mark) return null;
        uint next = (uint)Math.Min(_geometry.SlotCount, ((ulong)end + HighWaterStep - 1) / HighWaterStep * HighWaterStep);
        const uint atOnce = HighWaterStep / 4;
        var homes = new byte[atOnce * 2 * Units.BlockBytes];
        for (uint slot = mark; slot < next; slot += atOnce)
        {
            int length = 0;
            for (uint one = slot; one < Math.Min(next, slot + atOnce); one++)
            {
                for (int home = 0; home < 2; home++, length += Units.BlockBytes)
                    PutTombstone(homes.AsSpan(length, Units.BlockBytes), one, home, 0);
            }

            if (await _file.WriteAsync(_geometry.HomeOffset(slot, 0), homes.AsMemory(0, length)) != IoStatus.Ok)
                return "checkpoint: clearing metadata slots failed";
        }

        return await FlushFilesAsync() == IoStatus.Ok
            && await WriteSuperblockAsync(_superblock with { SlotHighWater = next }) == IoStatus.Ok
                ? null
                : "checkpoint: raising the slots' high-water mark failed";
    }

    private void PutTombstone(Span<byte> page, uint slot, int home, ulong lsn)
    {
        page.Clear();
        new MetadataPageHeader { Kind = MetadataKind.Free, Slot = slot, PageLsn = lsn }.WriteTo(page);
        Seal.Put(page, _geometry.HomeOffset(slot, home), _fold);
    }

    /// <summary>Writes all copies of the superblock; a failure stops the store.</summary>
    private async ValueTask<IoStatus> WriteSuperblockAsync(Superblock next)
    {
        next = next with { Sequence = _superblock.Sequence + 1 };
        if (await WriteSuperblocksAsync(_file, () => FlushInTurnAsync(isLogToo: false), _superblock, next) != IoStatus.Ok)
        {
            Fail("writing the superblock failed");
            return IoStatus.Unavailable;
        }

        _superblock = next;
        return IoStatus.Ok;
    }
}
