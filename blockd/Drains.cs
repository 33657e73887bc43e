using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Empties disks by moving their volumes to the others, and evens the disks out. A drain is written down with the disk
/// and goes on after a restart; while it lasts nothing new is placed there. Thread-safe.</summary>
internal sealed class Drains(Daemon daemon, Moves moves)
{
    /// <summary>Disks whose used parts differ by less than this are even.</summary>
    private const double Even = 0.05;

    private const string ReplaceKind = "replace";

    private const int RebalanceMovesMax = 10_000;

    private readonly Lock _lock = new();
    private readonly Dictionary<Guid, TaskInfo> _running = [];
    private TaskInfo? _rebalancing;

    /// <summary>Begins to empty a disk, or answers the task that does. Throws <see cref="DiskException"/>.</summary>
    public async Task<TaskInfo> BeginAsync(Guid id)
    {
        StoreHost host = Host(id);
        if (Targets(id, null).Count == 0)
            throw new DiskException(409, "no-other-disk", "there is no other disk in service that the volumes could go to; add one first", null);
        await daemon.Disks.MarkDrainingAsync(id, true);
        return Run(host, null);
    }

    /// <summary>Lets a disk be used again, while it is drained or afterwards. Answers when its task has ended. Throws <see cref="DiskException"/>.</summary>
    public async Task UndoAsync(Guid id, CancellationToken cancel)
    {
        StoreHost host = Host(id);
        if (!daemon.Directory.IsDraining(id)) throw new DiskException(409, "not-draining", $"disk {host.Name} is not being drained, nor was it", null);
        TaskInfo? running;
        lock (_lock) running = _running.GetValueOrDefault(id);
        if (running is not null)
        {
            daemon.Tasks.Cancel(running.Id);
            await daemon.Tasks.EndedAsync(running.Id, cancel);
            if (!daemon.Directory.IsDraining(id)) return; // it took the mark away itself
            Host(id); // a replacement that came to its end meanwhile has taken the disk out
        }

        await daemon.Disks.MarkDrainingAsync(id, false);
    }

    /// <summary>Puts a new disk into service, moves everything from an old one to it, and takes the old one out.</summary>
    public async Task<TaskInfo> ReplaceAsync(Guid id, AddDisk request)
    {
        StoreHost old = Host(id);
        StoreHost fresh = await daemon.Disks.AddAsync(request);
        await daemon.Disks.MarkDrainingAsync(id, true);
        return Run(old, fresh.StoreId);
    }

    /// <summary>Goes on with every drain that is written down.</summary>
    public void Resume()
    {
        foreach (StoreHost host in daemon.Stores.All.Where(h => daemon.Directory.IsDraining(h.StoreId)))
        {
            TaskRecord? replacing = daemon.Tasks.Interrupted(ReplaceKind).FirstOrDefault(t => t.Subject == host.Name);
            Run(host, Guid.TryParse(replacing?.Parameters, out Guid fresh) ? fresh : null);
        }
    }

    /// <summary>Begins to move volumes from the fullest disk to the emptiest until they are even, or answers the task that
    /// does.</summary>
    public TaskInfo Rebalance()
    {
        lock (_lock)
        {
            if (_rebalancing is { } known && daemon.Tasks.Find(known.Id) is { EndedAt: null }) return known;
            return _rebalancing = daemon.Tasks.Start(new TaskSpec("rebalance", "all disks"), run => RebalanceAsync(run.Report, run.Cancel));
        }
    }

    private StoreHost Host(Guid id) =>
        daemon.Stores.Find(id) ?? throw new DiskException(404, "no-such-disk", $"there is no disk '{id}' in service", null);

    private List<StoreHost> Targets(Guid from, Guid? only) =>
        [.. daemon.Stores.All.Where(h => h.StoreId != from && (only is null || h.StoreId == only) && !daemon.Directory.IsDraining(h.StoreId))];

    private TaskInfo Run(StoreHost host, Guid? only)
    {
        lock (_lock)
        {
            if (_running.TryGetValue(host.StoreId, out TaskInfo? known)) return daemon.Tasks.Find(known.Id) ?? known;
            return _running[host.StoreId] = daemon.Tasks.Start(
                new TaskSpec(only is null ? "drain" : ReplaceKind, host.Name, Parameters: only?.ToString()), run => DrainAsync(host, only, run.Report, run.Cancel));
        }
    }

    private async Task<string> DrainAsync(StoreHost host, Guid? only, Action<double> progress, CancellationToken cancel)
    {
        await Task.Yield(); // whoever has begun it enters it first
        try
        {
            int moved = await EmptyAsync(host, only, progress, cancel);
            if (only is null) return $"{moved} volume{(moved == 1 ? "" : "s")} moved; nothing lies on disk {host.Name} any more, remove_disk takes it out";
            await daemon.RemoveDiskAsync(host.StoreId, isForced: false);
            return $"{moved} volume{(moved == 1 ? "" : "s")} moved, and disk {host.Name} is out of service";
        }
        catch (OperationCanceledException) when (!daemon.IsStopping)
        {
            await daemon.Disks.MarkDrainingAsync(host.StoreId, false);
            throw;
        }
        finally
        {
            lock (_lock) _running.Remove(host.StoreId);
        }
    }

    private async Task<int> EmptyAsync(StoreHost host, Guid? only, Action<double> progress, CancellationToken cancel)
    {
        int all = daemon.Directory.CountOn(host.StoreId), moved = 0;
        var stays = new SortedDictionary<string, string>(StringComparer.Ordinal);
        while (true)
        {
            cancel.ThrowIfCancellationRequested();
            VolumeRecord? next = daemon.Directory.List().FirstOrDefault(v => v.StoreId == host.StoreId && !stays.ContainsKey(v.Name));
            if (next is null) break;
            try
            {
                await moves.MoveAsync(next, await TargetAsync(host, only, next), cancel);
            }
            catch (Exception e) when (e is IOException or DiskException)
            {
                stays.Add(next.Name, e.Message);
            }

            moved = Math.Max(moved, all - daemon.Directory.CountOn(host.StoreId));
            progress(all == 0 ? 1 : Math.Min(1, (double)moved / all));
        }

        if (stays.Count == 0) return moved;
        throw new IOException(string.Create(
            CultureInfo.InvariantCulture, $"{moved} volumes moved, {stays.Count} stay: {string.Join("; ", stays.Take(5).Select(s => $"'{s.Key}': {s.Value}"))}"));
    }

    /// <summary>Where most is neither used nor promised.</summary>
    private async Task<Guid> TargetAsync(StoreHost from, Guid? only, VolumeRecord volume)
    {
        // A move that is under way goes where it goes.
        if (daemon.Directory.MoveOf(volume.Id) is { } move) return move.To;
        (Guid Id, double Room)? best = null;
        foreach (StoreHost host in Targets(from.StoreId, only))
        {
            if (await host.FreeBytesAsync() is not { } free) continue;
            double promised = daemon.Directory.List().Where(v => v.StoreId == host.StoreId).Sum(v => (double)v.SizeBytes);
            if (best is null || free - promised > best.Value.Room) best = (host.StoreId, free - promised);
        }

        return best?.Id ?? throw new DiskException(409, "no-other-disk", "there is no other disk in service that it could go to; add one", null);
    }

    private async Task<string> RebalanceAsync(Action<double> progress, CancellationToken cancel)
    {
        await Task.Yield();
        int moved = 0;
        double first = -1;
        var tried = new HashSet<uint>();
        while (moved < RebalanceMovesMax)
        {
            cancel.ThrowIfCancellationRequested();
            var parts = new List<(StoreHost Host, double Part, ulong Bytes)>();
            foreach (StoreHost host in Targets(Guid.Empty, null))
            {
                DiskInfo disk = await host.DescribeAsync();
                if (disk.Status == "online" && disk.DataBytes > 0) parts.Add((host, (double)disk.UsedBytes / disk.DataBytes, disk.DataBytes));
            }

            if (parts.Count < 2) break;
            (StoreHost Host, double Part, ulong Bytes) full = parts.MaxBy(p => p.Part), empty = parts.MinBy(p => p.Part);
            double apart = full.Part - empty.Part;
            if (first < 0) first = apart;
            progress(first <= Even ? 1 : Math.Clamp((first - apart) / (first - Even), 0, 1));
            if (apart <= Even || await BestAsync(full.Host, apart, full.Bytes, empty.Bytes, tried) is not { } volume) break;
            tried.Add(volume.Id); // once each: it must end
            await moves.MoveAsync(volume, empty.Host.StoreId, cancel);
            moved++;
        }

        return moved == 0 ? "the disks are as even as their volumes allow" : $"{moved} volume{(moved == 1 ? "" : "s")} moved";
    }

    /// <summary>The largest volume whose move leaves the two disks closer to each other than they were.</summary>
    private async Task<VolumeRecord?> BestAsync(StoreHost full, double apart, ulong fromBytes, ulong toBytes, HashSet<uint> tried)
    {
        VolumeRecord[] there = [.. daemon.Directory.List().Where(v => v.StoreId == full.StoreId && !tried.Contains(v.Id))];
        Dictionary<uint, ulong> used = await full.UsedBytesAsync([.. there.Select(v => v.Id)]);
        return there
            .Where(v => used.GetValueOrDefault(v.Id) is > 0 and var bytes && Math.Abs(apart - (double)bytes / fromBytes - (double)bytes / toBytes) < apart * 0.95)
            .OrderBy(v => Math.Abs(apart - (double)used[v.Id] / fromBytes - (double)used[v.Id] / toBytes)).FirstOrDefault();
    }
}
