using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Volumes: created, changed, deleted; what they use.
public sealed partial class Store
{
    /// <inheritdoc/>
    public async ValueTask<IoStatus> CreateVolumeAsync(VolumeHead head)
    {
        if (Refusal is { } refusal) return refusal;
        if (!IsValid(head)) return IoStatus.Invalid;
        if (_volumes.ContainsKey(head.Id)) return IoStatus.Conflict;
        uint slots = head.IsAppendOnly ? 2u : 1;
        bool hasSlots = await WaitForSlotsAsync(slots);
        if (Refusal is { } late) return late; // or another one of this number came meanwhile
        if (_volumes.ContainsKey(head.Id)) return IoStatus.Conflict;
        if (!hasSlots || !_slots.TryTake(MetadataKind.VolumeHead, head.Id, 0, out uint slot)) return IoStatus.NoSpace;
        var volume = new Volume(head, slot, _slots);
        _volumes.Add(head.Id, volume);
        return await WriteFirstHeadAsync(volume, 0);
    }

    /// <inheritdoc/>
    public async ValueTask<IoStatus> UpdateVolumeAsync(VolumeHead head)
    {
        if (Refusal is { } refusal) return refusal;
        if (!IsValid(head)) return IoStatus.Invalid;
        if (!_volumes.TryGetValue(head.Id, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
        if (volume.IsChanging) return IoStatus.Conflict;
        if (AppendHeadFault(volume, head) is { } fault) return fault;
        volume.IsChanging = true;
        if (volume.Appends is { } appends) appends.IsSealing = head.IsSealed;
        RangeLock held = await _locks.TakeAsync(head.Id, StructureLock, 0, 1);
        if (volume.IsDeleting || Refusal is not null)
        {
            _locks.Give(held);
            volume.IsChanging = false;
            EndHeadChange(volume);
            return volume.IsDeleting ? IoStatus.NotFound : Refusal!.Value;
        }

        // Behind the length of an append-only volume is nothing, but for what an append writes at the moment.
        bool shrinks = head.SizeBytes < volume.Head.SizeBytes && volume.Appends is null;
        IoStatus status = head.SizeBytes > volume.Head.SizeBytes && volume.Appends is null ? await DropBeyondAsync(volume) : IoStatus.Ok;
        if (status == IoStatus.Ok) status = await WriteHeadAsync(volume, head);
        if (status == IoStatus.Ok && shrinks)
        {
            // The smaller size is durable first: after a crash the rest is dropped at the next open.
            status = await DropBeyondAsync(volume);
            if (status == IoStatus.Ok) status = await EnsureDurable(_appliedLsn);
        }

        _locks.Give(held);
        volume.IsChanging = false;
        EndHeadChange(volume);
        return status;
    }

    /// <inheritdoc/>
    public async ValueTask<IoStatus> DeleteVolumeAsync(uint volumeId)
    {
        if (Refusal is { } refusal) return refusal;
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
        if (volume.Layers.Values.Any(HasClone)) return IoStatus.Conflict;
        volume.IsDeleting = true;
        (volume.PromisedBlocks, volume.PromisedSlots) = (0, 0);
        NotePromise(volume);
        WakeAppendWaits(volume);
        Pending record = NewPending(RedoKind.VolumeDelete, volume, volume.Slot);
        RedoRecordWriter.VolumeDelete(Append(record, RedoRecord.HeadBytes), volume.Slot, volumeId, record.Before);
        IoStatus status = await record.Begin();
        if (status == IoStatus.Ok) status = await EnsureDurable(_appliedLsn);
        if (status == IoStatus.Ok) StartBackground(() => FreeVolumeAsync(volume));
        return status;
    }

    /// <inheritdoc/>
    public IBlockDevice? OpenVolume(uint volumeId) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) && !volume.IsDeleting
            ? new VolumeDevice(this, volume, _pool)
            : null;

    /// <inheritdoc/>
    public ulong UsedBytes(uint volumeId) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) ? volume.UsedBlocks * Units.BlockBytes : 0;

    /// <inheritdoc/>
    public async ValueTask<ulong> HighestUsedByteAsync(uint volumeId)
    {
        if (!_volumes.TryGetValue(volumeId, out Volume? volume)) return 0;
        for (uint? at = volume.Line.SkipBack(volume.Line.ExtentEnd); at is { } extent; at = volume.Line.SkipBack(extent))
        {
            if (volume.IsDeleting) return 0;
            if (!volume.Line.TryGetSlot(extent, out uint slot) || _slots[slot].Mapped == 0) continue;
            ulong begin = (ulong)extent << Units.ExtentShift;
            // A page that cannot be read counts as a whole.
            if (await ReadyAsync(volume, extent) != IoStatus.Ok) return begin + Units.ExtentBytes;
            if (!volume.Line.TryGetSlot(extent, out slot)) continue;
            for (int i = Units.BlocksPerExtent; i-- > 0;)
            {
                if (MetadataPage.Entry(_slots.Entries(slot), i).Block != 0) return begin + ((ulong)(i + 1) << Units.BlockShift);
            }
        }

        return 0;
    }

    /// <summary>What an answer still waits for: durability, when asked for.</summary>
    internal ValueTask<IoStatus> SettleAsync(WriteFlags flags) =>
        (flags & WriteFlags.Fua) != 0 || _options.Durability == Durability.Ack
            ? EnsureDurable(_appliedLsn)
            : new(IoStatus.Ok);

    /// <summary>Whether the block at <paramref name="offset"/> is a hole, and where the run of its kind ends at the latest
    /// (within its extent, or behind a gap of extents). Errors: Corrupt, IoError, Unavailable.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<(IoStatus Status, bool IsHole, ulong End)> LookAsync(Volume volume, ulong offset, Line? view = null)
    {
        Line line = view ?? volume.Line;
        if (line.IsClosed || volume.IsDeleting) return (IoStatus.Unavailable, false, 0);
        uint extent = (uint)(offset >> Units.ExtentShift);
        ulong end = (ulong)(extent + 1) << Units.ExtentShift;
        if (!line.TryGetSlot(extent, out uint slot))
        {
            bool isLast = extent >= line.ExtentEnd;
            return (IoStatus.Ok, !volume.IsDoubtful, isLast ? ulong.MaxValue : (ulong)line.Skip(extent + 1) << Units.ExtentShift);
        }

        // Most extents are full, or empty: then their page is not needed.
        int mapped = _slots[slot].Mapped;
        if (mapped is 0 or Units.BlocksPerExtent) return (IoStatus.Ok, mapped == 0, end);
        IoStatus status = await ReadyAsync(volume, extent, view);
        if (status != IoStatus.Ok) return (status, false, end);
        if (line.IsClosed || volume.IsDeleting) return (IoStatus.Unavailable, false, 0);
        if (view is null) line = volume.Line; // a rollback may have come between
        if (!line.TryGetSlot(extent, out slot)) return (IoStatus.Ok, !volume.IsDoubtful, end);
        return (IoStatus.Ok, HoleRun(slot, (int)(offset % Units.ExtentBytes) >> Units.BlockShift, out int next),
            ((ulong)extent << Units.ExtentShift) + ((ulong)next << Units.BlockShift));
    }

    private bool HoleRun(uint slot, int at, out int next)
    {
        ReadOnlySpan<byte> entries = _slots.Entries(slot);
        bool hole = MetadataPage.Entry(entries, at).Block == 0;
        next = at + 1;
        while (next < Units.BlocksPerExtent && MetadataPage.Entry(entries, next).Block == 0 == hole) next++;
        return hole;
    }

    private static bool IsValid(VolumeHead head) =>
        head.Id != 0 && VolumeName.IsValid(head.Name, out _) && VolumeHeadLayout.SizeFault(head.SizeBytes) is null;

    private async ValueTask<IoStatus> WriteHeadAsync(Volume volume, VolumeHead head)
    {
        await WaitForRing();
        if (State != StoreState.Online) return IoStatus.Unavailable;
        Pending record = NewPending(RedoKind.Volume, volume, volume.Slot);
        record.Head = LayoutOf(volume) with { Head = head };
        RedoRecordWriter.Volume(Append(record, RedoRecord.VolumeLength(record.Head)), volume.Slot, record.Head);
        IoStatus status = await record.Begin();
        return status == IoStatus.Ok ? await EnsureDurable(_appliedLsn) : status;
    }

    /// <summary>Drops what lies behind the end of a volume, and remembers when that was not to be had. Behind the length of an
    /// append-only one nobody reads, and appends write there: that of a crash is dropped when it is opened, or overwritten. Without
    /// <paramref name="takesRoom"/> pages over those of layers below are left as they are, and NoSpace is answered.</summary>
    private async ValueTask<IoStatus> DropBeyondAsync(Volume volume, bool takesRoom = true)
    {
        IoStatus status = await DropBehindEndAsync(volume, takesRoom);
        volume.IsOverhanging = status != IoStatus.Ok && volume.Appends is null;
        return status;
    }

    private async ValueTask<IoStatus> DropBehindEndAsync(Volume volume, bool takesRoom)
    {
        ulong end = EndOf(volume);
        ulong whole = (end + Units.ExtentBytes - 1) >> Units.ExtentShift;
        IoStatus done = IoStatus.Ok;
        for (uint extent = volume.Line.Skip((uint)whole); extent < volume.Line.ExtentEnd; extent = volume.Line.Skip(extent + 1))
        {
            if (!volume.Line.TryGetSlot(extent, out uint slot)) continue;
            // What a layer below has would show again: there a page of holes lies over it.
            bool isAlone = IsOwn(volume, slot) && _slots.Link(slot).Older == 0;
            if (!isAlone && _slots[slot].Mapped == 0) continue;
            if (!isAlone && !takesRoom)
            {
                done = IoStatus.NoSpace;
                continue;
            }

            IoStatus status = isAlone
                ? await DropExtentAsync(volume, extent)
                : await ChangeExtentAsync(volume, extent, 0, Units.ExtentBytes, default);
            if (status != IoStatus.Ok) return status;
        }

        uint last = (uint)(end >> Units.ExtentShift);
        int from = (int)(end % Units.ExtentBytes);
        int hole = (from + Units.BlockBytes - 1) & ~(Units.BlockBytes - 1);
        if (from == 0 || !volume.Line.TryGetSlot(last, out uint lastSlot)) return done;
        if (!takesRoom && !(IsOwn(volume, lastSlot) && _slots.Link(lastSlot).Older == 0)) return IoStatus.NoSpace;
        if (hole < Units.ExtentBytes)
        {
            IoStatus status = await ChangeExtentAsync(volume, last, hole, Units.ExtentBytes - hole, default);
            if (status != IoStatus.Ok) return status;
        }

        // The half block at the end: zeros behind it, unless it is a hole.
        if (hole == from) return done;
        (IoStatus looked, bool isHole, _) = await LookAsync(volume, ((ulong)last << Units.ExtentShift) + (ulong)from);
        if (looked == IoStatus.Ok && !isHole) looked = await ChangeExtentAsync(volume, last, from, hole - from, new byte[hole - from]);
        return looked == IoStatus.Ok ? done : looked;
    }

    private async ValueTask<IoStatus> DropExtentAsync(Volume volume, uint extent)
    {
        if (!volume.Line.TryGetSlot(extent, out uint slot)) return IoStatus.Ok;
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, extent, 0, Units.BlocksPerExtent);
        IoStatus status = IoStatus.Ok;
        while (State == StoreState.Online && status == IoStatus.Ok)
        {
            await WaitForRing();
            if (IsReady(volume, extent)) break;
            status = await ReadyAsync(volume, extent);
        }

        if (status == IoStatus.Ok)
            status = State == StoreState.Online ? await DropSlotAsync(volume, slot, extent) : IoStatus.Unavailable;
        _locks.Give(held);
        return status;
    }

    /// <summary>Drops what a slot holds. <paramref name="heir"/>: the page of the layer above, slot + 1, that goes on with what
    /// it shares; it is in RAM.</summary>
    private ValueTask<IoStatus> DropSlotAsync(Volume volume, uint slot, uint extent, uint heir = 0)
    {
        Pending record = NewPending(RedoKind.DropPage, volume, slot);
        record.Heir = heir;
        if (heir != 0) _slots.Pin(heir - 1); // until it is applied
        RedoRecordWriter.DropPage(Append(record, RedoRecord.HeadBytes), slot, volume.Head.Id, extent);
        return record.Begin();
    }
}
