using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>A store as the directory sees it: asked from any thread, answered by messages to the store's loop.</summary>
public interface IVolumeHost
{
    /// <summary>Identity of the store.</summary>
    Guid StoreId { get; }

    /// <summary>Bytes that data may still use; null when the store has failed.</summary>
    Task<ulong?> FreeBytesAsync();

    /// <summary>Bytes that may be promised to a volume; null when the store has failed.</summary>
    Task<ulong?> PromisableBytesAsync();

    /// <summary>As <see cref="ILayeredStore.PromiseAsync"/>.</summary>
    Task<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced);

    /// <summary>Every volume there has been promised anew what it was promised: as <see cref="ILayeredStore.ResumeFlattening"/>.</summary>
    Task ResumeFlatteningAsync() => Task.CompletedTask;

    /// <summary>Heads of all volumes that lie there.</summary>
    Task<IReadOnlyList<VolumeHead>> ListAsync();

    /// <summary>As <see cref="IStore.CreateVolumeAsync"/>.</summary>
    Task<IoStatus> CreateAsync(VolumeHead head);

    /// <summary>As <see cref="IStore.UpdateVolumeAsync"/>.</summary>
    Task<IoStatus> UpdateAsync(VolumeHead head);

    /// <summary>As <see cref="IStore.DeleteVolumeAsync"/>.</summary>
    Task<IoStatus> DeleteAsync(uint volumeId);

    /// <summary>As <see cref="IStore.HighestUsedByteAsync"/>.</summary>
    Task<ulong> HighestUsedByteAsync(uint volumeId);

    /// <summary>The layers of a volume; null when the store does not serve it.</summary>
    Task<VolumeLayers?> LayersAsync(uint volumeId);

    /// <summary>What a cut asks of the layers before and after it; null when the store does not serve the volume. Clients wait while
    /// the store's loop looks, so that a store with ten thousand snapshots has to answer it without listing them.</summary>
    Task<CutSight?> SightAsync(uint volumeId, string snapshot);

    /// <summary>As <see cref="ILayeredStore.CreateSnapshotsAsync"/>.</summary>
    Task<IoStatus> CutAsync(IReadOnlyList<SnapshotRequest> requests);

    /// <summary>As <see cref="ILayeredStore.DeleteSnapshotAsync"/>.</summary>
    Task<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot);

    /// <summary>As <see cref="ILayeredStore.RollBackAsync"/>.</summary>
    Task<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety);

    /// <summary>As <see cref="ILayeredStore.CreateCloneAsync"/>.</summary>
    Task<IoStatus> CloneAsync(VolumeHead head, uint volumeId, Guid snapshot);

    /// <summary>As <see cref="ILayeredStore.FlattenAsync"/>.</summary>
    Task<IoStatus> FlattenAsync(uint volumeId);
}
