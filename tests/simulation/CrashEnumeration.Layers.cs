using BlockServer.Core;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation;

// Steps of layers, one after another: what each snapshot and the clone hold is known exactly, so every crash state shows
// just that, and no block is lost or free while it is in use.
public sealed partial class CrashEnumeration
{
    private const uint CloneId = 2;
    private readonly List<SnapshotModel> _cuts = [];
    private readonly List<SnapshotModel> _groups = [];
    private byte[]? _cloned;    // what the clone holds once it is there
    private bool _isCloneSure;

    private async ValueTask<bool> LayerStepAsync(ILayeredStore store, CrashStep step)
    {
        SnapshotModel? oldest = _cuts.Find(cut => cut is { IsSure: true, IsDeleting: false });
        SnapshotModel? newest = _cuts.FindLast(cut => cut is { IsSure: true, IsDeleting: false });
        return step switch
        {
            CrashStep.Snapshot => await CutAsync(store, null),
            CrashStep.Group => await CutAsync(store, null, isGroup: true),
            CrashStep.RollBack => await CutAsync(store, oldest!),
            CrashStep.DeleteOldest => await DeleteAsync(store, oldest!),
            CrashStep.DeleteNewest => await DeleteAsync(store, newest!),
            CrashStep.Clone => await CloneAsync(store, newest!),
            CrashStep.Flatten => await store.FlattenAsync(CloneId) == IoStatus.Ok,
            CrashStep.DeleteVolume => await DeleteCloneAsync(store),
            _ => await RestAsync(store),
        };
    }

    private async ValueTask<bool> CutAsync(ILayeredStore store, SnapshotModel? target, bool isGroup = false)
    {
        int number = _cuts.Count + 1;
        var cut = new SnapshotModel(1, new Guid(number, 0, 0, new byte[8]), _volume.Head.SizeBytes, ++_now) { RollBackTo = target };
        cut.Frozen = _volume.Fork(cut.SizeBytes);
        _cuts.Add(cut);
        var request = new SnapshotRequest(1, cut.Uuid, $"s{number}", 1);
        // The clone comes first, so that a group that is cut one after the other is short of what this volume's model says.
        SnapshotRequest[] requests = isGroup ? [request with { VolumeId = CloneId, Uuid = TwinOf(cut.Uuid) }, request] : [request];
        if (isGroup) _groups.Add(cut);
        IoStatus status = target is null ? await store.CreateSnapshotsAsync(requests) : await store.RollBackAsync(target.Uuid, request);
        _now++;
        if (status != IoStatus.Ok) return false;
        var content = new byte[cut.SizeBytes];
        if ((await store.OpenSnapshot(1, cut.Uuid)!.ReadAsync(0, content)).Status != IoStatus.Ok) return false;
        Violation ??= cut.Frozen.JudgeCut(content, cut.Start, onlyDurable: false);
        (cut.Content, cut.Seen, cut.IsSure, cut.RollBackTo) = (content, cut.Frozen.IdentifyAll(content, null), true, null);
        if (target is not null) _volume.Become(target.Frozen!, target.Seen, ++_now);
        return true;
    }

    private static Guid TwinOf(Guid snapshot) => new(snapshot.ToByteArray().Select(b => (byte)~b).ToArray());

    /// <summary>The snapshots of a group are all there or none is, and that of the clone holds what the clone does.</summary>
    private void JudgeGroups(SimLoop loop, ILayeredStore store)
    {
        foreach (SnapshotModel cut in _groups)
        {
            if (store.OpenVolume(CloneId) is null) continue; // it went with its snapshots
            bool isHere = store.OpenSnapshot(1, cut.Uuid) is not null;
            IBlockDevice? twin = store.OpenSnapshot(CloneId, TwinOf(cut.Uuid));
            if (Violation is null && cut is { IsDeleting: false } && isHere != twin is not null)
                Violation = new Violation(ViolationKind.LostVolume, $"of group {cut.Uuid} only the snapshot of {(isHere ? "the volume" : "the clone")} is there");
            if (Violation is not null || twin is null) continue;
            var content = new byte[twin.SizeBytes];
            if (Read(loop, twin, content) && !content.AsSpan().SequenceEqual(_cloned))
                Violation = new Violation(ViolationKind.WrongData, $"the clone's snapshot differs at byte {content.AsSpan().CommonPrefixLength(_cloned)}");
        }
    }

    private static async ValueTask<bool> DeleteAsync(ILayeredStore store, SnapshotModel cut)
    {
        cut.IsDeleting = true;
        bool isOk = await store.DeleteSnapshotAsync(1, cut.Uuid) == IoStatus.Ok;
        cut.IsGone = isOk;
        return isOk;
    }

    private async ValueTask<bool> CloneAsync(ILayeredStore store, SnapshotModel basis)
    {
        _cloned = basis.Content;
        _isCloneSure = await store.CreateCloneAsync(new VolumeHead(CloneId, Guid.Empty, "clone", basis.SizeBytes, 1), 1, basis.Uuid) == IoStatus.Ok;
        return _isCloneSure;
    }

    private async ValueTask<bool> DeleteCloneAsync(ILayeredStore store)
    {
        _isCloneSure = false;
        return await store.DeleteVolumeAsync(CloneId) == IoStatus.Ok;
    }

    /// <summary>Lets the background work: every event of it is a place for a power cut.</summary>
    private async ValueTask<bool> RestAsync(ILayeredStore store)
    {
        await _loop.DelayAsync(100_000_000);
        while (store.IsFlattening(CloneId)) await _loop.DelayAsync(100_000_000);
        return true;
    }

    /// <summary>Compares snapshots and the clone of a recovered store with what they must hold; answers whether volume 1 is to be
    /// judged by its model, which a rollback that nobody answered yet does not know.</summary>
    private bool JudgeLayers(SimLoop loop, ILayeredStore store)
    {
        bool isRolledBack = false;
        JudgeGroups(loop, store);
        foreach (SnapshotModel cut in _cuts)
        {
            if (store.OpenSnapshot(1, cut.Uuid) is not { } device)
            {
                if (cut is { IsSure: true, IsDeleting: false }) Violation ??= new Violation(ViolationKind.LostVolume, $"snapshot {cut.Uuid} is lost");
                continue;
            }

            if (cut.IsGone) Violation ??= new Violation(ViolationKind.WrongVolume, $"snapshot {cut.Uuid} is back");
            var content = new byte[device.SizeBytes];
            if (Violation is not null || !Read(loop, device, content)) return false;
            if (cut.Content is { } known && !content.AsSpan().SequenceEqual(known))
                Violation = new Violation(ViolationKind.WrongData, $"snapshot {cut.Uuid} changed at byte {content.AsSpan().CommonPrefixLength(known)}");
            else if (cut.Content is null)
                Violation = cut.Frozen!.JudgeCut(content, cut.Start, onlyDurable: true);
            if (Violation is not null || cut.RollBackTo is not { } target) continue;
            isRolledBack = true;
            var now = new byte[target.SizeBytes];
            if (Read(loop, store.OpenVolume(1)!, now) && !now.AsSpan().SequenceEqual(target.Content))
                Violation = new Violation(ViolationKind.WrongData, "the volume went back to something else");
        }

        IBlockDevice? clone = store.OpenVolume(CloneId);
        if (clone is null && _isCloneSure) Violation ??= new Violation(ViolationKind.LostVolume, "the clone is lost");
        if (Violation is not null || clone is null) return !isRolledBack;
        var cloned = new byte[clone.SizeBytes];
        if (Read(loop, clone, cloned) && !cloned.AsSpan().SequenceEqual(_cloned))
            Violation = new Violation(ViolationKind.WrongData, $"the clone differs at byte {cloned.AsSpan().CommonPrefixLength(_cloned)}");
        return !isRolledBack;
    }

    /// <summary>Once what the crash interrupted is done, every block is somebody's or free.</summary>
    private void Audit(SimLoop loop, IStore store)
    {
        string? fault = "";
        for (int round = 0; round < 60 && fault is not null; round++)
        {
            ulong until = loop.NowNanos + 200_000_000;
            Task<bool> resting = WaitAsync(loop, until).AsTask();
            loop.RunUntil(() => resting.IsCompleted, EventsMax);
            Task<string?> audit = driver.AuditAsync(store).AsTask();
            loop.RunUntil(() => audit.IsCompleted, EventsMax);
            fault = audit.IsCompletedSuccessfully ? audit.Result : "no answer";
        }

        if (fault is not null) Violation = new Violation(ViolationKind.Leak, "audit: " + fault);
    }

    private static async ValueTask<bool> WaitAsync(SimLoop loop, ulong until)
    {
        while (loop.NowNanos < until) await loop.DelayAsync(until - loop.NowNanos);
        return true;
    }
}
