using BlockServer.Core;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation;

// Snapshots, clones, rollbacks, flattening and differences: what clients ask for, and what is compared with the model.
public sealed partial class StoreSimulation
{
    private const int SnapshotsMax = 6;
    private readonly double _layerChance;
    private readonly List<SnapshotModel> _snapshots = [];

    private async ValueTask<bool> LayerRequestAsync(ILayeredStore store, List<VolumeModel> live)
    {
        VolumeModel volume = live[_clients.NextBelow(live.Count)];
        List<SnapshotModel> mine = [.. _snapshots.Where(s => s.VolumeId == volume.Head.Id && s is { IsSure: true, IsGone: false, IsDeleting: false })];
        SnapshotModel? one = mine.Count == 0 ? null : mine[_clients.NextBelow(mine.Count)];
        int dice = _clients.NextBelow(100);
        if (mine.Count == 0 && dice < 40 && store.BaseOf(volume.Head.Id) is not null) return await FlattenAsync(store, volume);
        if (one is null || (dice < 30 && mine.Count < SnapshotsMax)) return await CutAsync(store, volume, live);
        return dice switch
        {
            < 50 => await DeleteSnapshotAsync(store, one),
            < 65 => await JudgeOneAsync(store, one),
            < 75 => await CloneAsync(store, one, live.Count),
            < 83 => await RollBackAsync(store, volume, one),
            < 91 => await DiffAsync(store, volume, one, mine[_clients.NextBelow(mine.Count)]),
            < 96 => await FlattenAsync(store, volume),
            _ => await UsageAsync(store, one),
        };
    }

    private async ValueTask<bool> CutAsync(ILayeredStore store, VolumeModel volume, List<VolumeModel> live)
    {
        List<VolumeModel> group = [volume];
        if (_clients.NextChance(0.3)) group.AddRange(live.Where(other => other != volume && _clients.NextChance(0.5)));
        group.RemoveAll(one => one.HeadMaybe is not null || one.IsCutting || one.IsBusy);
        if (group.Count == 0) return false;
        var cuts = new List<SnapshotModel>();
        foreach (VolumeModel one in group)
        {
            one.IsCutting = true;
            one.BeginRead();
            cuts.Add(new SnapshotModel(one.Head.Id, _clients.NextGuid(), one.Head.SizeBytes, ++_now) { IsExcused = one.Excused.Count > 0 });
        }

        _snapshots.AddRange(cuts);
        IoStatus status = await store.CreateSnapshotsAsync([.. cuts.Select(s => new SnapshotRequest(s.VolumeId, s.Uuid, $"s{_nextId++}", 1))]);
        _now++;
        for (int i = 0; i < cuts.Count; i++)
        {
            group[i].IsCutting = false;
            if (status == IoStatus.Ok) cuts[i].Frozen = group[i].Fork(cuts[i].SizeBytes);
            cuts[i].IsSure = status == IoStatus.Ok;
            // Refused before anything was written down: it never was.
            cuts[i].IsGone = status is IoStatus.NoSpace or IoStatus.Conflict or IoStatus.NotFound;
            group[i].ReadDone();
        }

        if (status == IoStatus.Ok) _counters[cuts.Count > 1 ? Did.Groups : Did.Snapshots]++;
        else if (status == IoStatus.NotFound && group.Exists(one => one.IsDeleting)) return true;
        else if (status == IoStatus.Conflict && group.Exists(one => store.IsFlattening(one.Head.Id))) return true;
        else Expect(status, "snapshot", IoStatus.NoSpace);
        return true;
    }

    private async ValueTask<bool> DeleteSnapshotAsync(ILayeredStore store, SnapshotModel snapshot)
    {
        snapshot.IsDeleting = true;
        IoStatus status = await store.DeleteSnapshotAsync(snapshot.VolumeId, snapshot.Uuid);
        if (status == IoStatus.Ok)
        {
            snapshot.IsGone = true;
            _counters[Did.SnapshotsDeleted]++;
            foreach (VolumeHead head in store.Volumes)
            {
                if (store.BaseOf(head.Id) == (snapshot.VolumeId, snapshot.Uuid))
                    Violate(ViolationKind.WrongAnswer, $"snapshot {snapshot.Uuid} is deleted, and volume {head.Id} builds on it");
            }
        }
        else if (status == IoStatus.Conflict && snapshot.WasCloned)
        {
            snapshot.IsDeleting = false;
            _counters[Did.HeldByClones]++;
        }
        else if (!IsLeaving(snapshot))
        {
            Expect(status, "delete of a snapshot");
        }

        return true;
    }

    /// <summary>Its volume is being deleted: answers may say that it is not there.</summary>
    private bool IsLeaving(SnapshotModel snapshot) => _volumes[snapshot.VolumeId].IsDeleting;

    private async ValueTask<bool> JudgeOneAsync(ILayeredStore store, SnapshotModel snapshot)
    {
        if (store.OpenSnapshot(snapshot.VolumeId, snapshot.Uuid) is not { } device)
        {
            if (!IsLeaving(snapshot)) Violate(ViolationKind.LostVolume, $"snapshot {snapshot.Uuid} of volume {snapshot.VolumeId} cannot be opened");
            return false;
        }

        var content = new byte[device.SizeBytes];
        var unreadable = new HashSet<ulong>();
        for (int at = 0; at < content.Length; at += Units.ExtentBytes)
        {
            Memory<byte> target = content.AsMemory(at, Math.Min(Units.ExtentBytes, content.Length - at));
            ReadResult result = await device.ReadAsync((ulong)at, target);
            if (snapshot.IsDeleting || IsLeaving(snapshot)) return true; // Unavailable is fine, and so is the rest
            if (result.Status == IoStatus.Ok) continue;
            if (result.Status == IoStatus.Corrupt && snapshot.IsExcused) return true;
            Expect(result.Status, "read of a snapshot");
            for (int block = 0; block < target.Length; block += Units.BlockBytes) unreadable.Add((ulong)(at + block) / Units.BlockBytes);
        }

        JudgeSnapshot(snapshot, content, unreadable, powerWasCut: false, settle: unreadable.Count == 0);
        return true;
    }

    private async ValueTask<bool> CloneAsync(ILayeredStore store, SnapshotModel snapshot, int live)
    {
        if (snapshot.Content is null || live >= 5 || MayMiss) return await JudgeOneAsync(store, snapshot);
        uint id = _nextVolume++;
        var head = new VolumeHead(id, _clients.NextGuid(), $"v{id}", snapshot.SizeBytes, 1);
        var clone = new VolumeModel(head);
        clone.Become(snapshot.Frozen!, snapshot.Seen, ++_now);
        snapshot.WasCloned = true;
        _volumes.Add(id, clone);
        IoStatus status = await store.CreateCloneAsync(head, snapshot.VolumeId, snapshot.Uuid);
        clone.IsSure = status == IoStatus.Ok;
        if (status == IoStatus.Ok) _counters[Did.Clones]++;
        else if (status != IoStatus.NotFound || !(snapshot.IsDeleting || IsLeaving(snapshot))) Expect(status, "clone", IoStatus.NoSpace);
        return true;
    }

    private async ValueTask<bool> RollBackAsync(ILayeredStore store, VolumeModel volume, SnapshotModel snapshot)
    {
        bool isUsed = volume.HeadMaybe is not null || volume.IsCutting || volume.Reads > 0 || _inFlight.Exists(entry => ReferenceEquals(entry.Volume, volume));
        if (isUsed || snapshot.Content is null || MayMiss) return await JudgeOneAsync(store, snapshot);
        volume.IsBusy = true;
        var safety = new SnapshotModel(volume.Head.Id, _clients.NextGuid(), volume.Head.SizeBytes, ++_now) { RollBackTo = snapshot, IsExcused = volume.Excused.Count > 0 };
        safety.Frozen = volume.Fork(safety.SizeBytes);
        _snapshots.Add(safety);
        IoStatus status = await store.RollBackAsync(snapshot.Uuid, new SnapshotRequest(volume.Head.Id, safety.Uuid, $"s{_nextId++}", 1));
        safety.IsSure = status == IoStatus.Ok;
        safety.IsGone = status is IoStatus.NoSpace or IoStatus.Conflict or IoStatus.NotFound;
        if (status == IoStatus.Ok)
        {
            RolledBack(volume, safety);
            _counters[Did.RollBacks]++;
        }
        else if (!((status == IoStatus.NotFound && (snapshot.IsDeleting || volume.IsDeleting))
            || (status == IoStatus.Conflict && store.IsFlattening(volume.Head.Id))))
        {
            Expect(status, "rollback", IoStatus.NoSpace);
        }

        if (status == IoStatus.Ok || safety.IsGone) volume.IsBusy = false;
        return true;
    }

    private void RolledBack(VolumeModel volume, SnapshotModel safety)
    {
        SnapshotModel target = safety.RollBackTo!;
        safety.RollBackTo = null;
        volume.SettleHead(volume.Head with { SizeBytes = target.SizeBytes });
        volume.Become(target.Frozen!, target.Seen, ++_now);
        volume.Excused.Clear();
        _now++;
    }

    private async ValueTask<bool> FlattenAsync(ILayeredStore store, VolumeModel volume)
    {
        bool wasClone = store.BaseOf(volume.Head.Id) is not null;
        IoStatus status = await store.FlattenAsync(volume.Head.Id);
        if (status == IoStatus.Conflict) return true; // it has snapshots
        if (status != IoStatus.Ok)
        {
            if (!(status == IoStatus.NotFound && volume.IsDeleting)) Expect(status, "flatten");
            return true;
        }

        for (int wait = 0; wait < 50 && store.IsFlattening(volume.Head.Id); wait++) await _loop.DelayAsync(20_000_000);
        if (wasClone && store.BaseOf(volume.Head.Id) is null) _counters[Did.Flattened]++;
        return true;
    }

    private async ValueTask<bool> DiffAsync(ILayeredStore store, VolumeModel volume, SnapshotModel one, SnapshotModel two)
    {
        if (one.Content is null || two.Content is null) return await JudgeOneAsync(store, one.Content is null ? one : two);
        var runs = new List<DiffRun>();
        ulong size = Math.Max(one.SizeBytes, two.SizeBytes);
        IoStatus status = await store.DiffAsync(volume.Head.Id, one.Uuid, two.Uuid, 0, size, 10_000, runs);
        if (status != IoStatus.Ok)
        {
            bool goes = one.IsDeleting || two.IsDeleting || volume.IsDeleting;
            if (!(goes && status is IoStatus.NotFound or IoStatus.Unavailable)) ExpectOf(volume, status, "diff");
            return true;
        }

        if (MayMiss) return true;
        _counters[Did.DiffsJudged]++;
        ulong at = 0;
        foreach (DiffRun run in runs)
        {
            if (!run.IsChanged && !PartOf(one, at, run.LengthBytes).SequenceEqual(PartOf(two, at, run.LengthBytes)))
                Violate(ViolationKind.WrongMap, $"snapshots {one.Uuid} and {two.Uuid} are said to be equal at {at}+{run.LengthBytes}");
            if (run.IsChanged && ReferenceEquals(one, two)) Violate(ViolationKind.WrongMap, "a snapshot is said to differ from itself");
            at += run.LengthBytes;
        }

        if (at != size) Violate(ViolationKind.WrongMap, $"a diff ends at {at} of {size}");
        return true;
    }

    private static byte[] PartOf(SnapshotModel snapshot, ulong offset, ulong length)
    {
        var part = new byte[length];
        int begin = (int)Math.Min(offset, (ulong)snapshot.Content!.Length), end = (int)Math.Min(offset + length, (ulong)snapshot.Content.Length);
        snapshot.Content.AsSpan(begin, end - begin).CopyTo(part);
        return part;
    }

    private async ValueTask<bool> UsageAsync(ILayeredStore store, SnapshotModel snapshot)
    {
        (IoStatus status, SnapshotUsage usage) = await store.SnapshotUsageAsync(snapshot.VolumeId, snapshot.Uuid);
        if (status == IoStatus.Ok && usage.ExclusiveBytes > usage.UsedBytes) Violate(ViolationKind.WrongAnswer, $"a snapshot takes {usage}");
        if (status != IoStatus.Ok && !(status == IoStatus.NotFound && (snapshot.IsDeleting || IsLeaving(snapshot))))
            ExpectOf(_volumes[snapshot.VolumeId], status, "usage");
        return true;
    }

    /// <summary>The process died: what an unanswered snapshot may hold is what its volume may hold.</summary>
    private void CrashSnapshots()
    {
        foreach (SnapshotModel snapshot in _snapshots)
        {
            if (!snapshot.IsGone && snapshot.Frozen is null) snapshot.Frozen = _volumes[snapshot.VolumeId].Fork(snapshot.SizeBytes);
        }
    }

    /// <summary>A rollback is in one log page with the snapshot that it keeps: where that is, it happened.</summary>
    private void SettleRollBacks(IStore store)
    {
        if (store is not ILayeredStore layered) return;
        foreach (SnapshotModel safety in _snapshots.Where(s => s is { IsGone: false, RollBackTo: not null }).ToArray())
        {
            if (layered.Snapshots(safety.VolumeId).Any(info => info.Uuid == safety.Uuid)) RolledBack(_volumes[safety.VolumeId], safety);
        }
    }

    private void JudgeSnapshots(SimLoop loop, IStore store, bool powerWasCut, bool settle)
    {
        if (store is not ILayeredStore layered || _snapshots.Count == 0) return;
        var there = new HashSet<Guid>();
        foreach (VolumeHead head in store.Volumes)
        {
            if (_appendVolumes.ContainsKey(head.Id)) continue;
            foreach (SnapshotInfo info in layered.Snapshots(head.Id))
            {
                there.Add(info.Uuid);
                SnapshotModel? known = _snapshots.Find(s => s.Uuid == info.Uuid);
                if ((known is null || known.IsGone || info.VolumeId != known.VolumeId || info.SizeBytes != known.SizeBytes) && !MayMiss)
                    Violate(ViolationKind.WrongVolume, $"snapshot {info} is there and must not be, or not so");
            }
        }

        foreach (SnapshotModel snapshot in _snapshots)
        {
            if (IsBroken || snapshot.IsGone) continue;
            VolumeModel volume = _volumes[snapshot.VolumeId];
            bool isThere = there.Contains(snapshot.Uuid);
            if (!isThere)
            {
                if (snapshot is { IsSure: true, IsDeleting: false } && !volume.IsGone && !volume.IsDeleting && !MayMiss)
                    Violate(ViolationKind.LostVolume, $"snapshot {snapshot.Uuid} of volume {snapshot.VolumeId} is lost");
                if (settle) snapshot.IsGone = true;
                continue;
            }

            if (settle && !snapshot.IsSure) _counters[Did.SnapshotsKept]++;
            IBlockDevice device = layered.OpenSnapshot(snapshot.VolumeId, snapshot.Uuid)!;
            var content = new byte[device.SizeBytes];
            HashSet<ulong> unreadable = ReadAll(loop, device, content);
            bool isExcused = snapshot.IsExcused || volume.Excused.Overlaps(unreadable) || _wasBlind;
            if (unreadable.Count > 0 && !(settle && MayMiss) && !isExcused)
            {
                Violate(ViolationKind.Unreadable, $"snapshot {snapshot.Uuid} of volume {snapshot.VolumeId}: {unreadable.Count} blocks cannot be read though the disk is honest");
                return;
            }

            JudgeSnapshot(snapshot, content, unreadable, powerWasCut, settle);
            if (!settle) continue;
            snapshot.IsExcused |= unreadable.Count > 0 && isExcused;
            (snapshot.IsSure, snapshot.IsDeleting, snapshot.RollBackTo) = (true, false, null);
        }
    }

    private void JudgeSnapshot(SnapshotModel snapshot, byte[] content, HashSet<ulong> unreadable, bool powerWasCut, bool settle)
    {
        if (MayMiss || snapshot.IsGone) return;
        VolumeModel? frozen = snapshot.Frozen;
        if (snapshot.Content is { } known)
        {
            for (int at = 0; at < content.Length; at += Units.BlockBytes)
            {
                int length = Math.Min(Units.BlockBytes, content.Length - at);
                if (unreadable.Contains((ulong)at / Units.BlockBytes) || content.AsSpan(at, length).SequenceEqual(known.AsSpan(at, length))) continue;
                Violate(ViolationKind.WrongData, $"snapshot {snapshot.Uuid} of volume {snapshot.VolumeId}: block {at / Units.BlockBytes} changed");
                return;
            }

            _counters[Did.SnapshotsJudged]++;
            return;
        }

        if (unreadable.Count > 0) return;
        // In a fork of the medium it may be there before its cut was answered.
        frozen ??= _volumes[snapshot.VolumeId].Fork(snapshot.SizeBytes);
        if (frozen.JudgeCut(content, snapshot.Start, powerWasCut && !snapshot.IsSure) is { } fault)
        {
            Violate(fault with { Text = $"snapshot {snapshot.Uuid} ({(snapshot.IsSure ? "sure" : "perhaps")}): {fault.Text}" });
            return;
        }

        _counters[Did.SnapshotsJudged]++;
        if (!settle) return;
        snapshot.Content = content;
        snapshot.Seen = frozen.IdentifyAll(content, null);
        snapshot.Frozen = frozen;
    }

    /// <summary>S2 and S9 by the page and the block, once the background is through.</summary>
    private void Audit(IStore store)
    {
        string? fault = "";
        ulong until = _loop.NowNanos + 60_000_000_000;
        while (fault is not null && store.State == StoreState.Online && !MayMiss)
        {
            Task<string?> audit = _options.Driver.AuditAsync(store).AsTask();
            if (!_loop.RunUntil(() => audit.IsCompleted, EventsPerLifeMax)) return;
            fault = audit.GetAwaiter().GetResult();
            if (fault is not null && _loop.NowNanos > until)
            {
                Violate(fault[..2] switch { "S1" => ViolationKind.BrokenPromise, "S9" => ViolationKind.Leak, _ => ViolationKind.WrongData }, "audit: " + fault);
                return;
            }

            ulong next = _loop.NowNanos + 1_000_000_000;
            if (fault is not null) _loop.RunUntil(() => _loop.NowNanos >= next, EventsPerLifeMax);
        }

        _counters[Did.Audits]++;
    }
}
