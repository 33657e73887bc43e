using BlockServer.Core;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation;

// Append-only volumes: what is compared with their model, by clients, after every opening and in forks of the medium.
public sealed partial class StoreSimulation
{
    private async Task ReadAppendsAsync(IStore store, IAppendStore appends, AppendModel volume)
    {
        if (volume.IsBusy || store.OpenVolume(volume.Head.Id) is not { } device || appends.AppendInfoOf(volume.Head.Id) is not { } info) return;
        int rollbacks = volume.Rollbacks;
        ulong start = ++_now;
        var content = new byte[AppendModel.Shown(info.LengthBytes)];
        if (device.SizeBytes != (ulong)content.Length) Violate(ViolationKind.WrongAnswer, $"append-only volume {volume.Head.Id}: {info.LengthBytes} bytes long, and the device says {device.SizeBytes}");
        for (int at = 0; at < content.Length; at += Units.ExtentBytes)
        {
            ReadResult read = await device.ReadAsync((ulong)at, content.AsMemory(at, Math.Min(Units.ExtentBytes, content.Length - at)));
            if (volume.IsDeleting || volume.IsBusy || volume.Rollbacks != rollbacks) return;
            if (read.Status == IoStatus.Ok) continue;
            if (!volume.IsDamaged) Expect(read.Status, "read of appends");
            return;
        }

        if (MayMiss || volume.IsDamaged) return;
        // What came while it was read may lie behind the length.
        if (volume.Judge(content.AsSpan(0, (int)info.LengthBytes), start, out _) is { } fault) Violate(fault);
        _counters[Did.AppendsJudged]++;
    }

    private async Task JudgeOneOfAppendsAsync(ILayeredStore store, AppendSnapshot snapshot)
    {
        AppendModel volume = _appendVolumes[snapshot.VolumeId];
        if (store.OpenSnapshot(snapshot.VolumeId, snapshot.Uuid) is not { } device)
        {
            Violate(ViolationKind.LostVolume, $"snapshot {snapshot.Uuid} of append-only volume {snapshot.VolumeId} cannot be opened");
            return;
        }

        ulong length = store.Snapshots(snapshot.VolumeId).Single(s => s.Uuid == snapshot.Uuid).LengthBytes!.Value;
        var content = new byte[device.SizeBytes];
        for (int at = 0; at < content.Length; at += Units.ExtentBytes)
        {
            ReadResult read = await device.ReadAsync((ulong)at, content.AsMemory(at, Math.Min(Units.ExtentBytes, content.Length - at)));
            if (snapshot.IsDeleting || volume.IsDeleting) return;
            if (read.Status == IoStatus.Ok) continue;
            if (!volume.IsDamaged) Expect(read.Status, "read of a snapshot of appends");
            return;
        }

        JudgeSnapshotOfAppends(snapshot, content, length, settle: true);
    }

    private void JudgeSnapshotOfAppends(AppendSnapshot snapshot, byte[] content, ulong length, bool settle)
    {
        AppendModel volume = _appendVolumes[snapshot.VolumeId];
        if (MayMiss || volume.IsDamaged || snapshot.IsGone) return;
        if ((ulong)content.Length != AppendModel.Shown(length) || content.AsSpan((int)length).ContainsAnyExcept((byte)0))
        {
            Violate(ViolationKind.WrongData, $"snapshot {snapshot.Uuid} of append-only volume {snapshot.VolumeId}: {content.Length} bytes for {length}, or no zeros behind them");
            return;
        }

        ReadOnlySpan<byte> said = content.AsSpan(0, (int)length);
        Violation? fault = snapshot.Content is { } known
            ? said.SequenceEqual(known) ? null : new Violation(ViolationKind.WrongData, $"changed, {length} bytes, were {known.Length}")
            : (snapshot.Frozen ?? volume.Fork()).Judge(said, snapshot.Start, out _);
        if (fault is not null) Violate(fault with { Text = $"snapshot {snapshot.Uuid} of append-only volume {snapshot.VolumeId}: {fault.Text}" });
        else if (settle) snapshot.Content ??= said.ToArray();
        _counters[Did.AppendSnapshotsJudged]++;
    }

    /// <summary>The process died: what an unanswered snapshot may hold is what its volume may hold.</summary>
    private void CrashAppends()
    {
        foreach (AppendSnapshot snapshot in _appendSnapshots.Where(s => s is { IsGone: false, Frozen: null })) snapshot.Frozen = _appendVolumes[snapshot.VolumeId].Fork();
    }

    private void JudgeAppends(SimLoop loop, IStore store, bool settle)
    {
        if (store is not IAppendStore appends || store is not ILayeredStore layered) return;
        foreach (AppendSnapshot cut in _appendSnapshots.Where(s => settle && s is { IsGone: false, RollBackTo: not null }))
        {
            // A rollback is in one log page with the snapshot that it keeps: where that is, it happened.
            if (layered.Snapshots(cut.VolumeId).Any(s => s.Uuid == cut.Uuid)) WentBack(_appendVolumes[cut.VolumeId], cut);
            cut.RollBackTo = null;
        }

        foreach (AppendModel volume in _appendVolumes.Values.Where(v => !v.IsGone))
        {
            if (!IsBroken) JudgeAppendOnly(loop, store, appends, volume, settle);
        }

        foreach (AppendSnapshot snapshot in _appendSnapshots.Where(s => !s.IsGone))
        {
            if (!IsBroken) JudgeSnapshotOfAppends(loop, layered, snapshot, settle);
        }
    }

    private void JudgeAppendOnly(SimLoop loop, IStore store, IAppendStore appends, AppendModel volume, bool settle)
    {
        VolumeHead? found = store.Volumes.FirstOrDefault(head => head.Id == volume.Head.Id);
        if (found is null && volume.IsSure && !volume.IsDeleting && !MayMiss) Violate(ViolationKind.LostVolume, $"append-only volume {volume.Head.Id} is lost");
        if (found is not null && found != volume.Head && found != volume.HeadMaybe && !MayMiss)
            Violate(ViolationKind.WrongVolume, $"append-only volume {volume.Head.Id} has head {found}, expected {volume.Head} or {volume.HeadMaybe}");
        if (settle && found is null) volume.IsGone = true;
        if (found is null || (volume.IsBusy && !settle)) return;
        if (settle)
        {
            (volume.IsSure, volume.IsDeleting, volume.IsBusy, volume.IsGoingBack) = (true, false, false, false);
            (volume.Head, volume.HeadMaybe) = (found, null);
        }

        ulong length = appends.AppendInfoOf(found.Id)?.LengthBytes ?? 0;
        IBlockDevice device = store.OpenVolume(found.Id)!;
        var content = new byte[device.SizeBytes];
        HashSet<ulong> unreadable = ReadAll(loop, device, content);
        bool isExcused = MayMiss || volume.IsDamaged || (_wasBlind && unreadable.All(block => (block + 1) * Units.BlockBytes > (ulong)volume.Settled.Length));
        if (unreadable.Count > 0 && !isExcused)
        {
            Violate(ViolationKind.Unreadable, $"append-only volume {found.Id}: {unreadable.Count} blocks cannot be read though the disk is honest");
            return;
        }

        if (settle && (unreadable.Count > 0 || MayMiss)) volume.IsDamaged = true;
        if (unreadable.Count > 0 || volume.IsDamaged || MayMiss) return;
        if ((ulong)content.Length != AppendModel.Shown(length) || content.AsSpan((int)length).ContainsAnyExcept((byte)0))
            Violate(ViolationKind.WrongData, $"append-only volume {found.Id}: the device shows {content.Length} bytes for {length}, or no zeros behind them");
        if (volume.Judge(content.AsSpan(0, (int)length), ulong.MaxValue, out List<AppendItem> landed) is { } fault)
        {
            Violate(fault);
            return;
        }

        _counters[Did.AppendsJudged]++;
        if (settle) volume.Settle(content.AsSpan(0, (int)length), landed);
    }

    private void JudgeSnapshotOfAppends(SimLoop loop, ILayeredStore store, AppendSnapshot snapshot, bool settle)
    {
        AppendModel volume = _appendVolumes[snapshot.VolumeId];
        SnapshotInfo? info = store.Snapshots(snapshot.VolumeId).FirstOrDefault(s => s.Uuid == snapshot.Uuid);
        if (info is null)
        {
            if (snapshot is { IsSure: true, IsDeleting: false } && !volume.IsGone && !volume.IsDeleting && !MayMiss)
                Violate(ViolationKind.LostVolume, $"snapshot {snapshot.Uuid} of append-only volume {snapshot.VolumeId} is lost");
            if (settle) snapshot.IsGone = true;
            return;
        }

        IBlockDevice device = store.OpenSnapshot(snapshot.VolumeId, snapshot.Uuid)!;
        var content = new byte[device.SizeBytes];
        HashSet<ulong> unreadable = ReadAll(loop, device, content);
        if (unreadable.Count > 0 && !MayMiss && !volume.IsDamaged && !_wasBlind)
            Violate(ViolationKind.Unreadable, $"snapshot {snapshot.Uuid} of append-only volume {snapshot.VolumeId}: {unreadable.Count} blocks cannot be read though the disk is honest");
        if (unreadable.Count == 0) JudgeSnapshotOfAppends(snapshot, content, info.LengthBytes!.Value, settle);
        if (settle) (snapshot.IsSure, snapshot.IsDeleting) = (true, false);
    }
}
