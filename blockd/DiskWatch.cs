using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Looks at the disks every few seconds: what begins to fail or does not answer is told once, and a disk that takes no
/// more changes is emptied onto the others, if that is wished, so that its volumes can be written again. A loop is visited only
/// when its disk has answered something since: an idle daemon stays asleep. Any thread.</summary>
internal sealed class DiskWatch(Daemon daemon, Drains drains, Action<string> warn)
{
    private static readonly TimeSpan s_period = TimeSpan.FromSeconds(5), s_patience = TimeSpan.FromSeconds(1);

    private readonly Dictionary<StoreHost, Seen> _seen = [];

    /// <summary>Begins to look, until the daemon ends.</summary>
    public void Start() => _ = RunAsync();

    /// <summary>One look, one at a time; how many loops were visited for it.</summary>
    public async Task<int> LookAsync()
    {
        int visits = 0;
        IReadOnlyList<StoreHost> hosts = daemon.Stores.All;
        foreach (StoreHost gone in _seen.Keys.Except(hosts).ToArray()) _seen.Remove(gone);
        foreach (StoreHost host in hosts)
        {
            if (!_seen.TryGetValue(host, out Seen? seen)) _seen[host] = seen = new Seen();
            if (seen.Looking is null && host.IsHung)
            {
                Tell(host, seen, "hung", "it has answered nothing for 10 s; look at its cable and the kernel's log, pfcli remove_disk --force gives it up");
                continue;
            }

            if (seen.Looking is null && seen.Answered == host.Answered && seen.Health != "hung") continue;
            if (seen.Looking is null)
            {
                seen.Answered = host.Answered;
                seen.Looking = host.DescribeAsync();
                visits++;
            }

            // A loop that hangs keeps nobody from looking at the other disks.
            if (await Task.WhenAny(seen.Looking, Task.Delay(s_patience)) != seen.Looking) continue;
            DiskInfo disk;
            try
            {
                disk = await seen.Looking;
            }
            finally
            {
                seen.Looking = null;
            }

            if (Tell(host, seen, disk.Health, Why(disk)) && disk.Health == "failed" && daemon.Settings.DrainsFailed) await DrainAsync(disk);
        }

        return visits;
    }

    private bool Tell(StoreHost host, Seen seen, string health, string why)
    {
        if (health == seen.Health) return false;
        seen.Health = health;
        if (health != "good") warn($"disk {host.Name} ({host.DiskPath}) is {health}: {why}");
        return true;
    }

    private static string Why(DiskInfo disk) => disk.Health switch
    {
        "failed" => $"{disk.FailReason}; its volumes can be read and not written: pfcli drain_disk moves what can be read to another disk",
        _ => $"{disk.IoErrors} errors, {disk.ChecksumErrors} blocks that were not what was written, {disk.BlocksBad} bad blocks since it was opened; pfcli replace_disk, and scrub_volume shows what is damaged",
    };

    private async Task DrainAsync(DiskInfo disk)
    {
        try
        {
            await drains.BeginAsync(disk.Id);
        }
        catch (DiskException e)
        {
            warn($"disk {disk.Name} is not drained: {e.Message}");
        }
    }

    private async Task RunAsync()
    {
        try
        {
            using var timer = new PeriodicTimer(s_period);
            while (await timer.WaitForNextTickAsync() && !daemon.IsStopping) await LookAsync();
        }
        catch (ObjectDisposedException)
        {
            // The daemon ends.
        }
    }

    /// <summary>What was seen of a disk last.</summary>
    private sealed class Seen
    {
        public string Health = "good";

        /// <summary>Requests that it had answered when its loop was visited; none yet.</summary>
        public ulong Answered = ulong.MaxValue;

        /// <summary>A visit that has not been answered yet.</summary>
        public Task<DiskInfo>? Looking;
    }
}
