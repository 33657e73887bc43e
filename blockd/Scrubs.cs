using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Reads what lies on the disks and verifies it, volume by volume: by itself once in a period, slowly, and when it is asked
/// for. How far it is and what it found survives a restart. Thread-safe.</summary>
#pragma warning disable CA1001 // The semaphore has no handle; a pass that is late when the daemon stops may still ask for it.
internal sealed class Scrubs(Daemon daemon, IWallClock clock)
#pragma warning restore CA1001
{
    private static readonly TimeSpan s_lookEvery = TimeSpan.FromMinutes(1);

    private readonly Lock _lock = new();
    private readonly Dictionary<Guid, TaskInfo> _running = [];
    private readonly SemaphoreSlim _keep = new(1, 1);

    /// <summary>Begins to look whether a disk is due, until the daemon ends.</summary>
    public void Start() => _ = RunAsync();

    /// <summary>Begins what is due: passes that a restart interrupted, and disks that were not read for a period. The first look at a
    /// disk begins its period.</summary>
    public void BeginDue()
    {
        if (daemon.Settings.ScrubPeriod == TimeSpan.Zero) return;
        foreach (StoreHost host in daemon.Stores.All)
        {
            ScrubRecord known = daemon.ScrubRecords.Find(host.StoreId);
            if (known.BeganAt is null)
            {
                _ = NoteAsync(host.StoreId, 0, [], r => r with { BeganAt = clock.UtcNow, EndedAt = clock.UtcNow });
                continue;
            }

            bool isDue = known.EndedAt is null || clock.UtcNow - known.EndedAt >= daemon.Settings.ScrubPeriod;
            if (isDue) Begin(host, daemon.Settings.ScrubBytesPerSecond);
        }
    }

    /// <summary>Begins to read a disk, or goes on with the pass that was interrupted; the task.</summary>
    public TaskInfo Begin(StoreHost host, ulong bytesPerSecond)
    {
        lock (_lock)
        {
            if (_running.TryGetValue(host.StoreId, out TaskInfo? known)) return daemon.Tasks.Find(known.Id) ?? known;
            return _running[host.StoreId] = daemon.Tasks.Start(
                new TaskSpec("scrub-disk", host.Name), run => PassAsync(host, bytesPerSecond, run.Report, run.Cancel));
        }
    }

    /// <summary>Takes down what a scrub of a volume has found; what was known of it before is void, unless it was found after
    /// <paramref name="since"/>, in the part of the pass that lies in front of a restart.</summary>
    public async Task NoteAsync(
        Guid store, uint volumeId, IReadOnlyList<BadBlock> bad, Func<ScrubRecord, ScrubRecord>? also = null, DateTimeOffset? since = null)
    {
        await _keep.WaitAsync();
        try
        {
            ScrubRecord known = daemon.ScrubRecords.Find(store);
            HashSet<uint> there = [.. daemon.Directory.List().Select(v => v.Id)];
            IEnumerable<ScrubFinding> kept = known.Bad.Where(b => (b.VolumeId != volumeId || b.FoundAt >= since) && there.Contains(b.VolumeId));
            IEnumerable<ScrubFinding> found = bad.Select(b => new ScrubFinding(b.VolumeId, b.OffsetBytes, b.Reason, b.Snapshot, clock.UtcNow));
            ScrubRecord now = known with { Bad = [.. found.Concat(kept).DistinctBy(b => (b.VolumeId, b.OffsetBytes, b.Snapshot))] };
            await daemon.ScrubRecords.KeepAsync(store, also?.Invoke(now) ?? now);
        }
        finally
        {
            _keep.Release();
        }
    }

    private async Task<string> PassAsync(StoreHost host, ulong bytesPerSecond, Action<double> progress, CancellationToken cancel)
    {
        await Task.Yield(); // whoever has begun it enters it first
        try
        {
            ScrubRecord known = daemon.ScrubRecords.Find(host.StoreId);
            bool goesOn = known is { BeganAt: not null, EndedAt: null };
            if (!goesOn) await NoteAsync(host.StoreId, 0, [], r => r with { BeganAt = clock.UtcNow, EndedAt = null, Done = 0, Volume = 0, Position = 0 });
            ulong read = 0;
            int bad = 0;
            while (Next(host, out double part) is { } volume)
            {
                cancel.ThrowIfCancellationRequested();
                progress(part);
                ScrubReport report = await ReadAsync(host, volume, bytesPerSecond, cancel);
                cancel.ThrowIfCancellationRequested();
                if (!report.Finished) throw new IOException($"disk {host.Name} stopped; the pass goes on when it serves");
                (read, bad) = (read + report.BlocksRead, bad + report.Bad.Count);
                DateTimeOffset? began = daemon.ScrubRecords.Find(host.StoreId).BeganAt;
                await NoteAsync(host.StoreId, volume.Id, report.Bad, r => r with { Done = volume.Id, Volume = 0, Position = 0 }, began);
            }

            await NoteAsync(host.StoreId, 0, [], r => r with { EndedAt = clock.UtcNow, Done = 0 });
            string result = string.Create(CultureInfo.InvariantCulture, $"{read} blocks read{(goesOn ? " since the restart" : "")}, ");
            return bad == 0 ? result + "all good" : throw new IOException(string.Create(CultureInfo.InvariantCulture, $"{result}{bad} bad; see list_bad_block"));
        }
        finally
        {
            lock (_lock) _running.Remove(host.StoreId);
        }
    }

    /// <summary>Reads a volume, from where an earlier run of the daemon had come, and writes down from time to time where it is.</summary>
    private async Task<ScrubReport> ReadAsync(StoreHost host, VolumeRecord volume, ulong bytesPerSecond, CancellationToken cancel)
    {
        ScrubRecord known = daemon.ScrubRecords.Find(host.StoreId);
        ulong from = known.Volume == volume.Id ? known.Position : 0;
        Task keeping = Task.CompletedTask;
        void Keep(ScrubReport report)
        {
            // On the loop, which does not wait; nor does it queue more than one.
            if (!report.Finished && keeping.IsCompleted) keeping = Task.Run(() => KeepAsync(report), CancellationToken.None);
        }

        Task KeepAsync(ScrubReport report) =>
            NoteAsync(host.StoreId, 0, report.Bad, r => r with { Volume = volume.Id, Position = report.Position });

        ScrubReport ended = await host.RunAsync(store => store.ScrubAsync(volume.Id, bytesPerSecond, Keep, cancel, from));
        await keeping;
        // A stop in order loses nothing of it.
        if (!ended.Finished) await KeepAsync(ended);
        return ended;
    }

    /// <summary>The next volume of the pass, by number: those that are made meanwhile come last.</summary>
    private VolumeRecord? Next(StoreHost host, out double part)
    {
        uint done = daemon.ScrubRecords.Find(host.StoreId).Done;
        VolumeRecord[] there = [.. daemon.Directory.List().Where(v => v.StoreId == host.StoreId).OrderBy(v => v.Id)];
        part = there.Length == 0 ? 1 : (double)there.Count(v => v.Id <= done) / there.Length;
        return there.FirstOrDefault(v => v.Id > done);
    }

    private async Task RunAsync()
    {
        using var timer = new PeriodicTimer(s_lookEvery);
        do BeginDue();
        while (await timer.WaitForNextTickAsync() && !daemon.IsStopping);
    }
}
