using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Looks at the disks every few seconds: what begins to fail or does not answer is told once, and a disk that takes no
/// more changes is emptied onto the others, if that is wished, so that its volumes can be written again. Any thread.</summary>
internal sealed class DiskWatch(Daemon daemon, Drains drains, Action<string> warn)
{
    private static readonly TimeSpan s_period = TimeSpan.FromSeconds(5);

    private readonly Dictionary<Guid, string> _known = [];

    /// <summary>Begins to look, until the daemon ends.</summary>
    public void Start() => _ = RunAsync();

    /// <summary>One look.</summary>
    public async Task LookAsync()
    {
        foreach (StoreHost host in daemon.Stores.All)
        {
            DiskInfo disk = await host.DescribeAsync();
            string before = _known.GetValueOrDefault(disk.Id, "good");
            _known[disk.Id] = disk.Health;
            if (disk.Health == before) continue;
            if (disk.Health != "good") warn($"disk {disk.Name} ({disk.Path}) is {disk.Health}: {Why(disk)}");
            if (disk.Health == "failed" && daemon.Settings.DrainsFailed) await DrainAsync(disk);
        }
    }

    private static string Why(DiskInfo disk) => disk.Health switch
    {
        "failed" => $"{disk.FailReason}; its volumes can be read and not written: pfcli drain_disk moves what can be read to another disk",
        "hung" => "it has answered nothing for 10 s; look at its cable and the kernel's log, pfcli remove_disk --force gives it up",
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
}
