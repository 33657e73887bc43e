using BlockServer.Core;

namespace BlockServer.Storage;

// Snapshots: cut, listed, opened, deleted, gone back to (engine B5).
public sealed partial class Store
{
    // A snapshot and the head of its volume must lie in one log page, and those of a group too.
    private const int CutsMax = 13;

    // Locks that are not on blocks: what a volume's layers are, and the freeing of layers, one at a time.
    private const uint StructureLock = uint.MaxValue, FreeingLock = uint.MaxValue - 1;

    /// <inheritdoc/>
    public PauseCounters CutPauses { get; } = new();

    /// <inheritdoc/>
    public IReadOnlyList<SnapshotInfo> Snapshots(uint volumeId) =>
        !_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting ? []
        : [.. volume.Layers.Values.Where(layer => layer is { IsTop: false, IsDeleting: false }).Select(InfoOf)];

    /// <inheritdoc/>
    public SnapshotInfo? FindSnapshot(uint volumeId, string name) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) && !volume.IsDeleting && volume.SnapshotsByName.TryGetValue(name, out Layer? layer)
            ? InfoOf(layer) : null;

    /// <inheritdoc/>
    public SnapshotInfo? FindSnapshot(uint volumeId, Guid snapshot) => Find(volumeId, snapshot) is { } layer ? InfoOf(layer) : null;

    /// <inheritdoc/>
    public int SnapshotCount(uint volumeId) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) && !volume.IsDeleting ? volume.Snapshots.Count : 0;

    /// <inheritdoc/>
    public async ValueTask<IoStatus> CreateSnapshotsAsync(IReadOnlyList<SnapshotRequest> requests)
    {
        if (Refusal is { } refusal) return refusal;
        bool isSane = requests.Count is > 0 and <= CutsMax && requests.DistinctBy(r => r.VolumeId).Count() == requests.Count;
        if (!isSane || requests.Any(r => r.Uuid == Guid.Empty || !VolumeName.IsValid(r.Name, out _))) return IoStatus.Invalid;
        _active++;
        var held = new List<RangeLock>();
        // In order, so that two groups never wait for each other.
        foreach (SnapshotRequest request in requests.OrderBy(r => r.VolumeId))
            held.Add(await _locks.TakeAsync(request.VolumeId, StructureLock, 0, 1));
        IoStatus status = IoStatus.Ok;
        if (Breaks(BrokenRules.CutApart))
        {
            foreach (SnapshotRequest request in requests) status = await CutAsync([request], null);
        }
        else
        {
            status = await CutAsync(requests, null);
        }

        foreach (RangeLock one in held) _locks.Give(one);
        _active--;
        return status;
    }

    /// <inheritdoc/>
    public async ValueTask<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety)
    {
        if (Refusal is { } refusal) return refusal;
        if (safety.Uuid == Guid.Empty || !VolumeName.IsValid(safety.Name, out _)) return IoStatus.Invalid;
        _active++;
        RangeLock held = await _locks.TakeAsync(safety.VolumeId, StructureLock, 0, 1);
        Layer? target = Find(safety.VolumeId, snapshot);
        IoStatus status = target is null ? IoStatus.NotFound
            : target.Volume.Head.IsSealed ? IoStatus.ReadOnly
            : await CutAsync([safety], target);
        _locks.Give(held);
        _active--;
        return status;
    }

    /// <inheritdoc/>
    public async ValueTask<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot)
    {
        if (Refusal is { } refusal) return refusal;
        _active++;
        RangeLock held = await _locks.TakeAsync(volumeId, StructureLock, 0, 1);
        Layer? layer = Find(volumeId, snapshot);
        IoStatus status = layer is null ? IoStatus.NotFound
            : HasClone(layer) && !Breaks(BrokenRules.IgnoreClones) ? IoStatus.Conflict
            : await SayAsync(layer, layer.Head with { IsDeleting = true });
        if (status == IoStatus.Ok) status = await EnsureDurable(_appliedLsn);
        if (status == IoStatus.Ok) StartBackground(() => FreeLayerAsync(layer!));
        _locks.Give(held);
        _active--;
        return status;
    }

    /// <inheritdoc/>
    public IBlockDevice? OpenSnapshot(uint volumeId, Guid snapshot) =>
        Find(volumeId, snapshot) is { } layer ? new VolumeDevice(this, layer.Volume, _pool, new Line(_slots, layer)) : null;

    private static SnapshotInfo InfoOf(Layer layer) => new(
        layer.Volume.Head.Id, layer.Head.Uuid, layer.Head.Name, layer.Head.SizeBytes, layer.Head.UnixSeconds, layer.Cut,
        [.. layer.Children.Where(child => child.Volume != layer.Volume).Select(child => child.Volume.Head.Id)])
    {
        LengthBytes = layer.Head.IsAppendOnly ? layer.Head.LengthBytes : null,
    };

    private static bool HasClone(Layer layer) => layer.Children.Any(child => child.Volume != layer.Volume);

    private Layer? Find(uint volumeId, Guid snapshot) =>
        !_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting ? null
        : volume.Snapshots.GetValueOrDefault(snapshot);

    /// <summary>Holds changes of the volumes back, waits for those in the log, and ends their top layers in one log page. With
    /// a <paramref name="target"/> the one volume goes on from there. The structure of all of them is locked.</summary>
    private async ValueTask<IoStatus> CutAsync(IReadOnlyList<SnapshotRequest> requests, Layer? target)
    {
        var volumes = new List<Volume>();
        foreach (SnapshotRequest request in requests)
        {
            if (!_volumes.TryGetValue(request.VolumeId, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
            if (volume.IsFlattening || volume.Snapshots.ContainsKey(request.Uuid) || volume.SnapshotsByName.ContainsKey(request.Name)) return IoStatus.Conflict;
            volumes.Add(volume);
        }

        // A snapshot has nothing behind its end: a larger clone of it would show that, and a diff take it for content.
        foreach (Volume volume in volumes.Where(v => v.IsOverhanging))
        {
            if (await DropBeyondAsync(volume) is var dropped and not IoStatus.Ok) return volume.IsDeleting ? IoStatus.NotFound : dropped;
        }

        if (!await WaitForSlotsAsync((uint)requests.Count)) return Refusal ?? IoStatus.NoSpace;
        await WaitForRing();
        // Most of what must be durable becomes so while changes still go on, so that they wait for little.
        if (!Breaks(BrokenRules.ThawEarly) && await EnsureDurable(_appliedLsn) != IoStatus.Ok) return IoStatus.Unavailable;
        ulong heldSince = _loop.NowNanos;
        // All stop before the first is waited for: the group's cut is where none goes on. From here to the thaw clients wait, of the first
        // cut also for the compiler: nothing here may be made of the runtime's generic types where plain code does.
        foreach (Volume volume in volumes) volume.Freezes++;
        foreach (Volume volume in volumes) await DrainAsync(volume);
        IoStatus status = State != StoreState.Online ? IoStatus.Unavailable
            : !HasSlotsForHeads((uint)requests.Count) ? IoStatus.NoSpace
            : await AppendCuts(requests, volumes, target);
        // A page of the new layer begins as an image of one of the old: recovery must not drop a request that the image has.
        ulong cut = _appliedLsn;
        if (status == IoStatus.Ok && !Breaks(BrokenRules.ThawEarly)) status = await EnsureDurable(cut);
        foreach (Volume volume in volumes) Thaw(volume);
        CutPauses.Add(_loop.NowNanos - heldSince);
        // Of the cut alone: what was written since the thaw is its clients' business, and would cost a flush.
        return status == IoStatus.Ok ? await EnsureDurable(cut) : status;
    }

    private ValueTask<IoStatus> AppendCuts(IReadOnlyList<SnapshotRequest> requests, List<Volume> volumes, Layer? target)
    {
        Reserve(requests.Count * (2 * RedoRecord.HeadBytes + SnapshotLayout.Size + VolumeHeadLayout.Size)
            + (target is null ? 0 : AppendPage.PagesMax * RedoRecord.BeginAppendsLength));
        Pending? last = null;
        for (int i = 0; i < requests.Count; i++)
        {
            Volume volume = volumes[i];
            Layer top = volume.Top;
            if (last is not null) last.IsContinued = true;
            Check.That(_slots.TryTake(MetadataKind.Snapshot, volume.Head.Id, top.Number, out uint slot));
            Pending cut = NewPending(RedoKind.Snapshot, volume, slot);
            cut.IsContinued = true;
            cut.Layer = top;
            cut.Snapshot = new SnapshotLayout
            {
                Id = top.Id,
                Parent = top.Parent?.Id,
                Uuid = requests[i].Uuid,
                Name = requests[i].Name,
                UnixSeconds = requests[i].UnixSeconds,
                Cut = _nextVersion - 1,
                SizeBytes = EndOf(volume),
                IsAppendOnly = volume.Head.IsAppendOnly,
                SlackBytes = volume.Appends is { } appends ? (uint)(EndOf(volume) - appends.LengthBytes) : 0,
            };
            RedoRecordWriter.Snapshot(Append(cut, RedoRecord.SnapshotLength), slot, cut.Snapshot);
            last = NewPending(RedoKind.Volume, volume, volume.Slot);
            last.Head = LayoutOf(volume) with
            {
                Head = target is null || volume.Head.IsAppendOnly ? volume.Head : volume.Head with { SizeBytes = target.Head.SizeBytes },
                Layer = top.Number + 1,
                Parent = (target ?? top).Id,
            };
            RedoRecordWriter.Volume(Append(last, RedoRecord.VolumeLength(last.Head)), volume.Slot, last.Head);
        }

        if (target is not null) last = ResetAppends(volumes[0], target, last!);
        return last!.Begin();
    }

    /// <summary>Writes a snapshot's head anew.</summary>
    private async ValueTask<IoStatus> SayAsync(Layer layer, SnapshotLayout head)
    {
        await WaitForRing();
        if (State != StoreState.Online) return IoStatus.Unavailable;
        return await AppendSnapshot(layer, head).Begin();
    }

    private Pending AppendSnapshot(Layer layer, SnapshotLayout head)
    {
        Pending record = NewPending(RedoKind.Snapshot, layer.Volume, layer.Slot);
        record.Layer = layer;
        record.Snapshot = head;
        RedoRecordWriter.Snapshot(Append(record, RedoRecord.SnapshotLength), layer.Slot, head);
        return record;
    }
}
