using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>A store as the directory and the jobs of the daemon see it. <paramref name="pause"/>: what passes on the way to the
/// store's loop and back; null: nothing. <paramref name="lies"/>: it says of every clone that it shares nothing any more. <paramref name="updating"/> is told of
/// every head that is about to be changed.</summary>
internal sealed class SimSide(ILayeredStore store, Func<ValueTask>? pause = null, bool lies = false, Action<VolumeHead>? updating = null) : IMoveSide
{
    public ILayeredStore Store => store;

    public Guid StoreId => store.StoreUuid;

    public async Task<T> RunAsync<T>(Func<ILayeredStore, ValueTask<T>> work)
    {
        if (pause is null) return await work(store);
        await pause();
        T result = await work(store);
        await pause();
        return result;
    }

    public Task<ulong?> FreeBytesAsync() => RunAsync(s => new ValueTask<ulong?>(s.State == StoreState.Online ? s.GetStats().BlocksFree * Units.BlockBytes : null));

    public Task<ulong?> PromisableBytesAsync() => RunAsync(s => new ValueTask<ulong?>(s.State == StoreState.Online ? DiskSpace.PromisableBytes(s.GetStats()) : null));

    public Task<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced) => RunAsync(s => s.PromiseAsync(volumeId, bytes, isForced));

    public Task<IReadOnlyList<VolumeHead>> ListAsync() => RunAsync(s => new ValueTask<IReadOnlyList<VolumeHead>>([.. s.Volumes]));

    public Task<IoStatus> CreateAsync(VolumeHead head) => RunAsync(s => s.CreateVolumeAsync(head));

    public Task<IoStatus> UpdateAsync(VolumeHead head)
    {
        updating?.Invoke(head);
        return RunAsync(s => s.UpdateVolumeAsync(head));
    }

    public Task<IoStatus> DeleteAsync(uint volumeId) => RunAsync(s => s.DeleteVolumeAsync(volumeId));

    public Task<ulong> HighestUsedByteAsync(uint volumeId) => RunAsync(s => s.HighestUsedByteAsync(volumeId));

    public Task<VolumeLayers?> LayersAsync(uint volumeId) => RunAsync(s => new ValueTask<VolumeLayers?>(s.OpenVolume(volumeId) is null
        ? null : new VolumeLayers(s.Snapshots(volumeId), lies ? null : s.BaseOf(volumeId), !lies && s.IsFlattening(volumeId))));

    public Task<CutSight?> SightAsync(uint volumeId, string snapshot) => RunAsync(s => new ValueTask<CutSight?>(s.OpenVolume(volumeId) is null
        ? null : new CutSight(s.FindSnapshot(volumeId, snapshot), !lies && s.IsFlattening(volumeId))));

    public Task<IoStatus> CutAsync(IReadOnlyList<SnapshotRequest> requests) => RunAsync(s => s.CreateSnapshotsAsync(requests));

    public Task<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot) => RunAsync(s => s.DeleteSnapshotAsync(volumeId, snapshot));

    public Task<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety) => RunAsync(s => s.RollBackAsync(snapshot, safety));

    public Task<IoStatus> CloneAsync(VolumeHead head, uint volumeId, Guid snapshot) => RunAsync(s => s.CreateCloneAsync(head, volumeId, snapshot));

    public Task<IoStatus> FlattenAsync(uint volumeId) => RunAsync(s => s.FlattenAsync(volumeId));
}
