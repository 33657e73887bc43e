using System.Collections.Concurrent;
using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Follows volumes until they are copies, as tasks: those that are made, and at the start those that an earlier run left
/// half; then they may be attached. Thread-safe.</summary>
internal sealed class Populations(Daemon daemon)
{
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
            await new VolumePopulation(daemon.Directory, daemon.Around, time => Task.Delay(time, run.Cancel), run.Report).RunAsync(volume);
            return "it is whole, and shares nothing with another volume";
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
}
