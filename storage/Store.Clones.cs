using BlockServer.Core;

namespace BlockServer.Storage;

// Clones: volumes whose first layer lies on a snapshot of another one. Flattening copies what they share and cuts the tie.
public sealed partial class Store
{
    /// <inheritdoc/>
    public (uint VolumeId, Guid Snapshot)? BaseOf(uint volumeId) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) && BaseOf(volume) is { } basis
            ? (basis.Volume.Head.Id, basis.Head.Uuid)
            : null;

    /// <inheritdoc/>
    public bool IsFlattening(uint volumeId) => _volumes.TryGetValue(volumeId, out Volume? volume) && (volume.IsFlattening || volume.IsLettingGo);

    /// <inheritdoc/>
    public async ValueTask<IoStatus> CreateCloneAsync(VolumeHead head, uint volumeId, Guid snapshot)
    {
        if (Refusal is { } refusal) return refusal;
        if (!IsValid(head)) return IoStatus.Invalid;
        _active++;
        RangeLock held = await _locks.TakeAsync(volumeId, StructureLock, 0, 1);
        IoStatus status = await CreateOnAsync(head, volumeId, snapshot);
        _locks.Give(held);
        _active--;
        return status;
    }

    private async ValueTask<IoStatus> CreateOnAsync(VolumeHead head, uint volumeId, Guid snapshot)
    {
        if (!await WaitForSlotsAsync(head.IsAppendOnly ? 2u : 1)) return Refusal ?? IoStatus.NoSpace;
        if (Find(volumeId, snapshot) is not { } basis) return IoStatus.NotFound;
        if (State != StoreState.Online) return IoStatus.Unavailable;
        if (_volumes.ContainsKey(head.Id)) return IoStatus.Conflict;
        if (head.SizeBytes < basis.Head.SizeBytes || head.IsAppendOnly != basis.Head.IsAppendOnly || head.IsSealed) return IoStatus.Invalid;
        if (!_slots.TryTake(MetadataKind.VolumeHead, head.Id, 0, out uint slot)) return IoStatus.NoSpace;
        var volume = new Volume(head, slot, _slots, 0, basis) { IsDoubtful = basis.Volume.IsDoubtful };
        _volumes.Add(head.Id, volume);
        return await WriteFirstHeadAsync(volume, basis.Head.LengthBytes);
    }

    /// <inheritdoc/>
    public async ValueTask<IoStatus> FlattenAsync(uint volumeId)
    {
        if (Refusal is { } refusal) return refusal;
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
        _active++;
        RangeLock held = await _locks.TakeAsync(volumeId, StructureLock, 0, 1);
        bool isShared = BaseOf(volume) is not null && !volume.IsFlattening;
        IoStatus status = Refusal is { } late ? late
            : volume.IsDeleting ? IoStatus.NotFound
            : !isShared ? IoStatus.Ok
            : volume.Layers.Count > 1 ? IoStatus.Conflict
            : await SayAsync(volume, LayoutOf(volume) with { IsFlattening = true });
        if (status == IoStatus.Ok && isShared)
        {
            status = await EnsureDurable(_appliedLsn);
            StartBackground(() => FlattenAllAsync(volume));
        }

        _locks.Give(held);
        _active--;
        return status;
    }

    /// <inheritdoc/>
    public void ResumeFlattening()
    {
        foreach (Volume volume in _interrupted)
        {
            if (!IsFreeing(volume)) continue;
            if (volume.IsOverhanging) StartBackground(() => EndShrinkAsync(volume));
            if (volume.IsFlattening) StartBackground(() => FlattenAllAsync(volume));
        }

        _interrupted.Clear();
    }

    private async Task EndShrinkAsync(Volume volume)
    {
        _background++;
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, StructureLock, 0, 1);
        // Whoever grew the volume meanwhile has done it.
        if (volume.IsOverhanging && IsFreeing(volume)) await DropBeyondAsync(volume);
        _locks.Give(held);
        _background--;
    }

    private static Layer? BaseOf(Volume volume)
    {
        foreach (Layer layer in volume.Layers.Values)
        {
            if (layer.Parent is { } parent && parent.Volume != volume) return parent;
        }

        return null;
    }

    private async ValueTask<IoStatus> SayAsync(Volume volume, VolumeHeadLayout head)
    {
        await WaitForRing();
        return State == StoreState.Online ? await AppendHead(volume, head).Begin() : IoStatus.Unavailable;
    }

    private async Task FlattenAllAsync(Volume volume)
    {
        _background++;
        IoStatus status = IoStatus.Ok;
        for (uint extent = volume.Line.Skip(0); extent < volume.Line.ExtentEnd && status == IoStatus.Ok; extent = volume.Line.Skip(extent + 1))
        {
            if (!IsFreeing(volume)) break;
            status = await FlattenExtentAsync(volume, extent);
        }

        // Recovery drops what a power cut took, and what lay there before is the base's: it must be there before the tie is cut.
        if (status == IoStatus.Ok) status = await EnsureDurable(_appliedLsn);
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, StructureLock, 0, 1);
        // Where a block cannot be read the clone stays one.
        if (IsFreeing(volume))
        {
            VolumeHeadLayout head = LayoutOf(volume) with { IsFlattening = false };
            volume.IsLettingGo = true;
            status = await SayAsync(volume, status == IoStatus.Ok ? head with { Parent = null } : head);
            // Whoever was told that nothing is shared any more may rely on it.
            if (status == IoStatus.Ok) status = await EnsureDurable(_appliedLsn);
            volume.IsLettingGo = status != IoStatus.Ok; // else the store has failed
        }

        _locks.Give(held);
        _background--;
    }

    private async ValueTask<IoStatus> FlattenExtentAsync(Volume volume, uint extent)
    {
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, extent, 0, Units.BlocksPerExtent);
        IoBuffer buffer = await _pool.RentAsync(Units.ExtentBytes);
        IoStatus status = IoStatus.Ok;
        for (int at = 0; status == IoStatus.Ok && IsFreeing(volume);)
        {
            status = await ReadyAsync(volume, extent);
            if (status != IoStatus.Ok || !volume.Line.TryGetSlot(extent, out uint slot)) break;
            int count = NextShared(volume, slot, ref at);
            if (count == 0) break;
            Memory<byte> data = buffer.Slice(0, count << Units.BlockShift);
            status = (await ReadBlocksAsync(volume, extent, at, count, data)).Status;
            ulong first = (ulong)extent * Units.BlocksPerExtent + (ulong)at;
            if (status == IoStatus.Ok) status = await MakeRoomAsync(volume, first, count, count, begins: true);
            if (status == IoStatus.Ok) status = Reach(volume, 0, 0, isBounded: false);
            if (status != IoStatus.Ok) break;
            ChainWrite(volume, first, data);
            volume.InFlight++;
            status = await StartChain();
            EndFlight(volume);
            at += count;
        }

        buffer.Return();
        _locks.Give(held);
        return status;
    }

    /// <summary>The next run of blocks that the volume shares, from <paramref name="at"/> on.</summary>
    private int NextShared(Volume volume, uint slot, ref int at)
    {
        ulong limit = IsOwn(volume, slot) ? SharedUpTo(slot) : ulong.MaxValue;
        ReadOnlySpan<byte> entries = _slots.Entries(slot);
        while (at < Units.BlocksPerExtent && !IsShared(entries, at, limit)) at++;
        int count = 0;
        while (at + count < Units.BlocksPerExtent && IsShared(entries, at + count, limit)) count++;
        return count;
    }

    private static bool IsShared(ReadOnlySpan<byte> entries, int index, ulong limit) =>
        MetadataPage.Entry(entries, index) is var entry && entry.Block != 0 && entry.Version <= limit;

    /// <summary>Nothing of the base shows any more: every page that is left of it is one of holes.</summary>
    private void CutTie(Volume volume)
    {
        for (uint page = volume.Top.FirstPage; page != 0; page = _slots.Link(page - 1).Next) _slots.LinkOf(page - 1).Older = 0;
        Line line = volume.Line;
        for (uint extent = line.Skip(0); extent < line.ExtentEnd; extent = line.Skip(extent + 1))
        {
            if (line.TryGetSlot(extent, out uint slot) && _slots[slot].VolumeId != volume.Head.Id) line.SetSlot(extent, null);
        }
    }
}
