using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>What the disks hold, what was promised, and what still fits.</summary>
internal sealed class CapacityRoutes(Daemon daemon)
{
    /// <summary>By method and template.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET capacity"] = CapacityAsync,
    };

    private async Task CapacityAsync(ApiCall call)
    {
        ulong? size = call.QueryNumber("size") is not { } asked ? null : asked is >= (long)Units.VolumeBytesMin and <= (long)Units.VolumeBytesMax ? (ulong)asked
            : throw new ApiException(400, "invalid-query", "size is the size of a volume in bytes, 1 MiB to 64 TiB", "size");
        ILookup<Guid, VolumeRecord> volumes = daemon.Directory.List().ToLookup(v => v.StoreId);
        var disks = new List<DiskCapacity>();
        foreach (StoreHost host in daemon.Stores.All)
        {
            VolumeRecord[] here = [.. volumes[host.StoreId]];
            (StoreStats stats, Dictionary<uint, ulong> used, bool isOnline) = await host.Thread.InvokeAsync(() => new ValueTask<(StoreStats, Dictionary<uint, ulong>, bool)>((
                host.Store.GetStats(), here.ToDictionary(v => v.Id, v => host.Store.UsedBytes(v.Id)), host.Store.State == StoreState.Online)));
            // A disk that takes no more changes holds nothing more, and keeps no promise.
            if (!isOnline) continue;
            ulong promised = 0, thin = 0;
            foreach (VolumeRecord volume in here)
            {
                promised += volume.PromisedBytes;
                // The size of an append-only volume is a limit that it need not come near.
                if (volume.PromisedBytes == 0 && !volume.IsAppendOnly) thin += volume.SizeBytes - Math.Min(volume.SizeBytes, used[volume.Id]);
            }

            disks.Add(new DiskCapacity(host.StoreId, host.Name, daemon.Directory.IsDraining(host.StoreId), DiskSpace.Describe(stats, promised, thin, size)));
        }

        CapacityFigures all = DiskSpace.Sum([.. disks.Select(d => d.Figures)]);
        await call.AnswerAsync(new CapacityInfo(all, disks, daemon.Settings.WriteProtectPercent), ApiJson.Default.CapacityInfo);
    }
}
