using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>Gives thick volumes all their blocks, as tasks in the background: after one was made thick or grew, and again at
/// the start when the daemon ended in between. Clients may work meanwhile. Any thread.</summary>
internal sealed class ThickVolumes(Daemon daemon)
{
    /// <summary>Bytes between two looks at cancellation; a piece takes the store's locks extent by extent.</summary>
    private const ulong PieceBytes = 16 * Units.MiB;

    private readonly Lock _lock = new();
    private readonly HashSet<uint> _running = [];

    /// <summary>Begins what is not complete and not under way.</summary>
    public async Task BeginAsync()
    {
        foreach (VolumeRecord volume in daemon.Directory.List().Where(v => v.Export.Thick))
        {
            if (daemon.Stores.Find(volume.StoreId) is not { } host) continue;
            Dictionary<uint, ulong> used = await host.UsedBytesAsync([volume.Id]);
            if (!used.TryGetValue(volume.Id, out ulong bytes) || bytes >= volume.SizeBytes) continue;
            lock (_lock)
            {
                if (!_running.Add(volume.Id)) continue;
            }

            daemon.Tasks.Start(new TaskSpec("allocate", volume.Name, volume.Id, Unit: "bytes"), run => AllocateAsync(host, volume.Id, run));
        }
    }

    private async Task<string> AllocateAsync(StoreHost host, uint id, TaskRun run)
    {
        try
        {
            // The size is asked anew for every piece: it may grow meanwhile.
            ulong at = 0;
            while (true)
            {
                run.Cancel.ThrowIfCancellationRequested();
                ulong from = at;
                (IoStatus status, ulong size) = await host.Thread.InvokeAsync(() => PieceAsync(host, id, from));
                if (status != IoStatus.Ok) throw new TaskException(status == IoStatus.NoSpace ? "no-space" : "disk-unavailable", Why(status));
                if (at >= size) return $"all {size} bytes are allocated";
                at += PieceBytes;
                run.Report(Math.Min(at, size), size);
            }
        }
        finally
        {
            lock (_lock) _running.Remove(id);
        }
    }

    private static async ValueTask<(IoStatus Status, ulong SizeBytes)> PieceAsync(StoreHost host, uint id, ulong at)
    {
        if (host.Store.OpenVolume(id) is not { } device) return (IoStatus.Unavailable, 0);
        ulong size = device.SizeBytes;
        if (at >= size) return (await device.FlushAsync(), size);
        IoStatus status = await device.WriteZeroesAsync(at, Math.Min(PieceBytes, size - at), WriteFlags.HolesOnly);
        return (status, size);
    }

    private static string Why(IoStatus status) => status switch
    {
        IoStatus.NoSpace => "the disk is too full to allocate the whole volume; free space and restart, or make it thin",
        IoStatus.Unavailable => "the volume is not served any more",
        _ => $"the disk answered {status}",
    };
}
