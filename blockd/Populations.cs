using System.Collections.Concurrent;
using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Follows volumes until they are copies, as tasks: those that are made, and at the start those that an earlier run left
/// half; then they may be attached. Thread-safe.</summary>
internal sealed class Populations(Daemon daemon)
{
    private static readonly TimeSpan s_lookEvery = TimeSpan.FromMilliseconds(100);

    // A deleted copy holds its base while its pages are dropped; longer than that, and the next copy or start sweeps.
    private const int SweepsMax = 600;

    private readonly Lock _lock = new();
    private readonly Dictionary<uint, TaskInfo> _running = [];
    private readonly ConcurrentDictionary<uint, string> _stopped = new();

    /// <summary>Why the copying of a volume does not go on; null while it does.</summary>
    public string? FaultOf(uint volumeId) => _stopped.GetValueOrDefault(volumeId);

    /// <summary>Follows every volume that is being populated and that nobody follows yet, and sweeps what is left of old ones.</summary>
    public async Task ResumeAsync()
    {
        foreach (VolumeRecord volume in daemon.Directory.List().Where(v => v.IsPopulating)) Follow(volume);
        await daemon.Directory.SweepCopiesAsync();
    }

    /// <summary>The task that populates a volume, begun unless it runs.</summary>
    public TaskInfo Follow(VolumeRecord volume)
    {
        lock (_lock)
        {
            if (_running.TryGetValue(volume.Id, out TaskInfo? known)) return daemon.Tasks.Find(known.Id) ?? known;
            _stopped.TryRemove(volume.Id, out _);
            TaskInfo task = daemon.Tasks.Start(new TaskSpec("populate", volume.Name, volume.Id, Cancellable: false), run => RunAsync(volume, run));
            _running.Add(volume.Id, task);
            return task;
        }
    }

    private async Task<string> RunAsync(VolumeRecord volume, TaskRun run)
    {
        string? fault = null;
        try
        {
            return await PopulateAsync(volume, run);
        }
        catch (IOException e)
        {
            fault = e.Message;
            throw;
        }
        finally
        {
            lock (_lock)
            {
                if (fault is not null) _stopped[volume.Id] = fault;
                _running.Remove(volume.Id);
            }
        }
    }

    private async Task<string> PopulateAsync(VolumeRecord volume, TaskRun run)
    {
        while (true)
        {
            DirectoryResult result = await daemon.Directory.PopulateAsync(volume.Id);
            if (result.Fault is { Code: "no-such-volume" })
            {
                await SweepAsync(run.Cancel);
                throw new IOException("the volume was deleted");
            }

            if (result.Fault is { } fault) throw new IOException($"{fault.Detail}; it goes on when its disk serves, or by pfcli flatten_volume");
            if (!result.Volume!.IsPopulating) break;
            await CopyAsync(volume, run);
        }

        await daemon.ServedTargets.ApplyAllAsync();
        await SweepAsync(run.Cancel);
        return "it is whole, and shares nothing with another volume";
    }

    /// <summary>Returns when the volume shares nothing any more, or is gone.</summary>
    private async Task CopyAsync(VolumeRecord volume, TaskRun run)
    {
        while (true)
        {
            if (daemon.Directory.List().All(v => v.Id != volume.Id)) return;
            StoreHost? host = daemon.Stores.Find(volume.StoreId);
            if (host is null || await host.LayersAsync(volume.Id) is not { } layers)
            {
                if (daemon.Directory.List().All(v => v.Id != volume.Id)) return;
                throw new IOException("its disk does not serve it; the rest follows when it does");
            }

            if (layers.Base is null) return;
            if (!layers.IsFlattening)
                throw new IOException("a block could not be copied: the disk is full, or the block cannot be read (pfcli scrub_volume); mend that, then pfcli flatten_volume goes on");
            run.Report(await host.Thread.InvokeAsync(() => new ValueTask<double>(host.Store.OwnPart(volume.Id))));
            await Task.Delay(s_lookEvery, run.Cancel);
        }
    }

    private async Task SweepAsync(CancellationToken stop)
    {
        for (int i = 0; i < SweepsMax && !await daemon.Directory.SweepCopiesAsync(); i++) await Task.Delay(s_lookEvery, stop);
    }
}
