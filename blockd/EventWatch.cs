using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>
/// Looks every two seconds for what is wrong and brings the event log to it: each fault is open once while it is there. A disk that
/// does nothing is not asked, so that an idle loop sleeps on. Runs on the ordinary thread pool.
/// </summary>
internal sealed class EventWatch : IAsyncDisposable
{
    /// <summary>Between two looks.</summary>
    public static readonly TimeSpan Every = TimeSpan.FromSeconds(2);

    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(1), s_certificateWarning = TimeSpan.FromDays(30);

    private static readonly HashSet<string> s_codes =
    [
        EventCatalogue.DiskFailed, EventCatalogue.DiskMissing, EventCatalogue.DiskRefused, EventCatalogue.DiskHung, EventCatalogue.DiskSlow,
        EventCatalogue.DiskErrors, EventCatalogue.DiskBadBlocks, EventCatalogue.Checksum, EventCatalogue.StoreLow, EventCatalogue.StoreFull,
        EventCatalogue.StoreProtected, EventCatalogue.MetadataLow,
        EventCatalogue.MetadataUnavailable, EventCatalogue.PolicyFailed, EventCatalogue.HookFailed, EventCatalogue.VolumeFenced,
        EventCatalogue.CertificateExpiring, EventCatalogue.CertificateExpired,
    ];

    private readonly Daemon _daemon;
    private readonly WatchedMetaStore _meta;
    private readonly Dictionary<StoreHost, DiskJudge> _disks = [];
    private readonly Dictionary<StoreHost, Task<DiskLook>> _looking = [];
    private readonly SemaphoreSlim _one = new(1, 1);
    private readonly CancellationTokenSource _stop = new();
    private HashSet<long> _failedTasks = [];
    private Task _running = Task.CompletedTask;

    public EventWatch(Daemon daemon, WatchedMetaStore meta) => (_daemon, _meta) = (daemon, meta);

    /// <summary>When a certificate ends that is looked at in place of the server's own.</summary>
    public DateTimeOffset? CertificateEnds { get; set; }

    /// <summary>Begins to look.</summary>
    public void Start() => _running = RunAsync();

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _running;
        _stop.Dispose();
        _one.Dispose();
    }

    /// <summary>One look at everything, at <paramref name="now"/> of a clock that never goes back.</summary>
    public async Task LookAsync(TimeSpan now)
    {
        await _one.WaitAsync();
        try
        {
            await LookAloneAsync(now);
        }
        finally
        {
            _one.Release();
        }
    }

    private async Task LookAloneAsync(TimeSpan now)
    {
        var faults = new List<SeenFault>();
        StoreHost[] hosts = [.. _daemon.Stores.All];
        foreach (StoreHost gone in _disks.Keys.Except(hosts).ToArray())
        {
            _disks.Remove(gone);
            _looking.Remove(gone);
        }

        foreach (StoreHost host in hosts) faults.AddRange(await LookAsync(now, host));
        foreach (AbsentDisk absent in _daemon.Disks.Absent)
            faults.Add(new SeenFault(absent.State == "missing" ? EventCatalogue.DiskMissing : EventCatalogue.DiskRefused, absent.Name, absent.Reason));
        if (await _meta.FaultAsync() is { } trouble) faults.Add(new SeenFault(EventCatalogue.MetadataUnavailable, "metadata", trouble));
        foreach (PolicyRecord policy in _daemon.Policies.List())
        {
            if (_daemon.PolicyEngine.OutcomeOf(policy.Name) is not { } outcome) continue;
            if (outcome.IsCut == false) faults.Add(new SeenFault(EventCatalogue.PolicyFailed, policy.Name, outcome.Result));
            if (outcome.HasHookFailed) faults.Add(new SeenFault(EventCatalogue.HookFailed, policy.Name, outcome.Result));
        }

        foreach (SharedVolume volume in _daemon.Volumes.List().Where(v => v.Fault is not null))
        {
            string? name = _daemon.Directory.Find(volume.Id)?.Name;
            if (name is not null && volume.Fault is { } fault) faults.Add(new SeenFault(EventCatalogue.VolumeFenced, name, fault));
        }

        if ((CertificateEnds ?? _daemon.Tls?.Current.EndsAt) is { } ends)
        {
            TimeSpan left = ends - _daemon.ApiClock.GetUtcNow();
            if (left <= TimeSpan.Zero) faults.Add(new SeenFault(EventCatalogue.CertificateExpired, "certificate", $"the certificate ended at {ends:u}"));
            else if (left < s_certificateWarning) faults.Add(new SeenFault(EventCatalogue.CertificateExpiring, "certificate", $"the certificate ends at {ends:u}"));
        }

        _daemon.Events.Reconcile(s_codes, faults);
        NoteFailedTasks();
    }

    private async Task<IReadOnlyList<SeenFault>> LookAsync(TimeSpan now, StoreHost host)
    {
        if (!_disks.TryGetValue(host, out DiskJudge? watch)) _disks[host] = watch = new DiskJudge(_daemon.Settings.LowSpacePercent, _daemon.Settings.MetadataWarnPercent);
        var pulse = new DiskPulse(host.Name, host.Answered, host.InFlight);
        if (!_looking.ContainsKey(host) && watch.IsWorthALook(pulse))
        {
            _looking[host] = host.Thread.InvokeAsync(() => new ValueTask<DiskLook>(LookThere(host)));
        }

        DiskLook? look = null;
        if (_looking.TryGetValue(host, out Task<DiskLook>? looking) && await Task.WhenAny(looking, Task.Delay(s_patience)) == looking)
        {
            _looking.Remove(host);
            if (looking.IsCompletedSuccessfully) look = await looking;
        }

        return watch.Judge(now, pulse, look);
    }

    private void NoteFailedTasks()
    {
        TaskInfo[] failed = [.. _daemon.Metrics.Tasks().Where(t => t.State == "failed")];
        foreach (TaskInfo task in failed.Where(t => !_failedTasks.Contains(t.Id)))
            _daemon.Events.Note(EventCatalogue.TaskFailed, string.Create(CultureInfo.InvariantCulture, $"task {task.Id}"), $"{task.Kind} of {task.Target} failed: {task.Result}");
        _failedTasks = [.. failed.Select(t => t.Id)];
    }

    /// <summary>On the loop of the disk. What waits in quarantine is as good as free: the next flush frees it.</summary>
    private static DiskLook LookThere(StoreHost host)
    {
        StoreStats stats = host.Store.GetStats();
        DiskCounters medium = host.Medium;
        return new DiskLook(
            host.Store.State, stats, host.FreeBytesNow + stats.BlocksQuarantined * Units.BlockBytes,
            medium.Reads.Operations + medium.Writes.Operations + medium.Flushes.Operations, medium.Reads.Nanos + medium.Writes.Nanos + medium.Flushes.Nanos);
    }

    private async Task RunAsync()
    {
        using var timer = new PeriodicTimer(Every);
        long began = System.Diagnostics.Stopwatch.GetTimestamp();
        try
        {
            do
            {
                try
                {
                    await LookAsync(System.Diagnostics.Stopwatch.GetElapsedTime(began));
                }
#pragma warning disable CA1031 // One look that met a disk being removed, say: the next one is two seconds away.
                catch (Exception e) when (e is not OperationCanceledException)
#pragma warning restore CA1031
                {
                    await Console.Error.WriteLineAsync("events: " + e.Message);
                }
            }
            while (await timer.WaitForNextTickAsync(_stop.Token));
        }
        catch (OperationCanceledException)
        {
            // The daemon stops.
        }
    }
}
