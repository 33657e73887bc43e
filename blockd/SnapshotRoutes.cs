using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The admin API's snapshots and clones.</summary>
internal sealed class SnapshotRoutes(
    Daemon daemon, TargetRoutes targets, Populations populations, Func<VolumeRecord, ApiCall, Task<VolumeInfo>> describe, Func<Task> begin)
{
    private const int RangesMax = 10_000;

    private const string DeletionKind = "delete-snapshot";

    // A loop compares this much before others have their turn.
    private const ulong DiffStepBytes = Units.GiB;

    private static readonly TimeSpan s_lookEvery = TimeSpan.FromMilliseconds(100);

    // A deleted clone still holds its base while its pages are dropped.
    private static readonly TimeSpan s_cloneWait = TimeSpan.FromSeconds(20);

    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET snapshots"] = ListAllAsync,
        ["POST snapshots"] = CreateAsync,
        ["POST snapshots/rollback"] = RollBackTogetherAsync,
        ["GET volumes/{name}/snapshots"] = ListAsync,
        ["GET volumes/{name}/snapshots/{snapshot}"] = ShowAsync,
        ["DELETE volumes/{name}/snapshots/{snapshot}"] = DeleteAsync,
        ["POST volumes/{name}/snapshots/{snapshot}/rollback"] = RollBackAsync,
        ["GET volumes/{name}/diff"] = DiffAsync,
        ["POST volumes/{name}/clone"] = CloneAsync,
        ["POST volumes/{name}/flatten"] = FlattenAsync,
    };

    /// <summary>Follows what the stores go on with since the last run of the daemon.</summary>
    public async Task ResumeAsync()
    {
        foreach (VolumeRecord volume in daemon.Directory.List().Where(v => !v.IsPopulating))
        {
            if (await daemon.Directory.LayersAsync(volume) is { IsFlattening: true }) FollowFlattening(volume);
        }

        foreach (TaskRecord left in daemon.Tasks.Interrupted(DeletionKind))
        {
            if (DeletionInWork.TryParse(left.Parameters) is { } gone) FollowDeletion(left.Subject, gone);
        }
    }

    /// <summary>Runs a deletion again while a deleted clone still gives its blocks back.</summary>
    public static async Task<T> PatientlyAsync<T>(Func<Task<T>> delete, Func<T, DirectoryFault?> faultOf, CancellationToken cancel)
    {
        for (TimeSpan waited = default; ; waited += s_lookEvery)
        {
            T result = await delete();
            if (faultOf(result) is not { Code: "clone-being-deleted" } || waited >= s_cloneWait) return result;
            await Task.Delay(s_lookEvery, cancel);
        }
    }

    /// <summary>The snapshots of a volume as the API shows them to a caller who sees it, without what they take; none while its disk
    /// does not serve.</summary>
    public async Task<IReadOnlyList<SnapshotEntry>> ListAsync(VolumeRecord volume, ApiCall call)
    {
        SnapshotResult known = await daemon.Directory.SnapshotsAsync(volume);
        return known.Fault is null ? await DescribeAsync(call, known.Snapshots, withUsage: false) : [];
    }

    private async Task ListAllAsync(ApiCall call)
    {
        bool withUsage = call.QueryFlag("usage");
        var entries = new List<SnapshotEntry>();
        foreach (VolumeRecord volume in daemon.Directory.List().Where(v => call.Sees(v.Name)))
        {
            SnapshotResult known = await daemon.Directory.SnapshotsAsync(volume);
            if (known.Fault is null) entries.AddRange(await DescribeAsync(call, known.Snapshots, withUsage));
        }

        await call.AnswerAsync(new SnapshotList(entries), ApiJson.Default.SnapshotList);
    }

    private async Task ListAsync(ApiCall call)
    {
        bool withUsage = call.QueryFlag("usage");
        SnapshotResult known = Must(await daemon.Directory.SnapshotsAsync(AdminRoutes.VolumeOf(daemon, call)));
        await call.AnswerAsync(new SnapshotList(await DescribeAsync(call, known.Snapshots, withUsage)), ApiJson.Default.SnapshotList);
    }

    private async Task ShowAsync(ApiCall call) =>
        await call.AnswerAsync((await DescribeAsync(call, [await FindAsync(call)], withUsage: true))[0], ApiJson.Default.SnapshotEntry);

    private async Task CreateAsync(ApiCall call)
    {
        CreateSnapshot request = await call.ReadAsync(ApiJson.Default.CreateSnapshot);
        call.About($"{request.Name} of {string.Join(", ", request.Volumes)}");
        if (request.Volumes.FirstOrDefault(v => v is not null && !call.Sees(v)) is { } unseen) throw AdminRoutes.NoVolume(unseen);
        SnapshotResult cut = Must(await daemon.Directory.CutAsync(request.Name, request.Volumes, new SnapshotLabel(request.Clean)));
        await call.AnswerAsync(new SnapshotList(await DescribeAsync(call, cut.Snapshots, withUsage: false)), ApiJson.Default.SnapshotList, 201);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        string? text = call.Query("uuid");
        if (text is not null && !Guid.TryParse(text, out _)) throw new ApiException(400, "invalid-query", "uuid must be one", "uuid");
        Guid? uuid = text is null ? null : Guid.Parse(text);
        VolumeRecord volume = AdminRoutes.VolumeOf(daemon, call);
        VolumeSnapshot named = await FindAsync(call);
        int readers = daemon.Sessions.Reading(named.Info.Uuid).Count;
        bool isForced = call.QueryFlag("force");
        if (readers > 0 && !isForced)
            throw new ApiException(409, "snapshot-in-use", $"{readers} clients read it; detach them or say force=true");
        if (!isForced && targets.UseOf(named.Info.Uuid) is { } use) throw new ApiException(409, "snapshot-is-lun", use);
        SnapshotResult gone = Must(await PatientlyAsync(
            () => daemon.Directory.DeleteSnapshotAsync(volume.Name, call.Parts[3], uuid), r => r.Fault, call.Aborted));
        VolumeSnapshot snapshot = gone.Snapshots[0];
        // Who has other LUNs beside it by a configured target loses this one only.
        await targets.RemoveSnapshotAsync(snapshot);
        foreach (Session session in daemon.Sessions.Reading(snapshot.Info.Uuid)) session.Cut("the snapshot was deleted");
        TaskInfo task = FollowDeletion($"{volume.Name}@{snapshot.Info.Name}", new DeletionInWork(volume.StoreId, volume.Id, snapshot.Info.Uuid));
        await daemon.Tasks.FlushAsync();
        await call.AnswerAsync(task, ApiJson.Default.TaskInfo, 202);
    }

    private TaskInfo FollowDeletion(string subject, DeletionInWork gone) => daemon.Tasks.Start(
        new TaskSpec(DeletionKind, subject, gone.VolumeId, Cancellable: false, Unit: "pages", gone.ToString()), run => FollowDeletionAsync(gone, run));

    private async Task<string> FollowDeletionAsync(DeletionInWork gone, TaskRun run)
    {
        long first = -1;
        while (true)
        {
            if (daemon.Stores.Find(gone.StoreId) is not { } host) throw new TaskException("disk-unavailable", "its disk was removed; the rest follows when it is back");
            (FreeingState? state, bool isOnline) = await host.Thread.InvokeAsync(() => new ValueTask<(FreeingState?, bool)>(
                (host.Store.FreeingOf(gone.VolumeId, gone.Snapshot), host.Store.State == StoreState.Online)));
            if (state is not { } now) return "deleted";
            if (now.Waits) return "deleted; several layers build on what it shares, which goes when one of them is left";
            if (!isOnline) throw new TaskException("disk-unavailable", "the disk does not serve any more; the rest follows when it does");
            if (first < 0) first = now.PagesLeft;
            if (first > 0) run.Report((ulong)Math.Max(0, first - now.PagesLeft), (ulong)first);
            await Task.Delay(s_lookEvery, run.Cancel);
        }
    }

    private void MustBeUnused(IEnumerable<VolumeRecord> volumes, bool isForced)
    {
        int sessions = volumes.Sum(v => daemon.Sessions.CountOf(v.Id));
        if (sessions > 0 && !isForced)
            throw new ApiException(409, "volume-in-use", $"{sessions} clients are attached; detach them, or say force: then they are cut off", "force");
    }

    /// <summary>Whoever is attached to volumes that went back knows another content, also who came in between.</summary>
    private void CutOff(IReadOnlyList<VolumeRecord> volumes)
    {
        foreach (Session session in daemon.Sessions.List().Where(s => volumes.Any(v => s.Volumes.Contains(v.Id)))) session.Cut("the volume went back to a snapshot");
    }

    private async Task RollBackAsync(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(daemon, call);
        RollbackSnapshot request = await call.ReadAsync(ApiJson.Default.RollbackSnapshot);
        MustBeUnused([volume], request.Force);
        if (request.Revision is { } revision && revision != volume.Revision)
            throw new ApiException(412, "revision-differs", $"the volume has revision {volume.Revision} now; read it again", "revision");
        if (request.Uuid is { } uuid && (await FindAsync(call)).Info.Uuid != uuid)
            throw new ApiException(412, "uuid-differs", $"'{call.Parts[3]}' is another snapshot now; read it again", "uuid");
        SnapshotResult back = Must(await daemon.Directory.RollBackAsync(volume.Name, call.Parts[3], request.SafetyName));
        VolumeRecord now = daemon.Directory.Find(volume.Name) ?? volume;
        daemon.OnChanged(now);
        CutOff([volume]);
        await begin();
        var answer = new RollbackInfo(await describe(now, call), (await DescribeAsync(call, back.Snapshots, withUsage: false))[0]);
        await call.AnswerAsync(answer, ApiJson.Default.RollbackInfo);
    }

    private async Task RollBackTogetherAsync(ApiCall call)
    {
        RollbackTogether request = await call.ReadAsync(ApiJson.Default.RollbackTogether);
        IReadOnlyList<string> names = request.Volumes;
        call.About($"{request.Snapshot} of {string.Join(", ", names)}");
        if (names.FirstOrDefault(v => v is not null && !call.Sees(v)) is { } unseen) throw AdminRoutes.NoVolume(unseen);
        if (request.Group)
        {
            if (names is not [{ } one]) throw new ApiException(400, "invalid-volumes", "with group, name one volume of it", "volumes");
            (names, DirectoryFault? missing) = await daemon.Directory.MembersOfGroupAsync(one, request.Snapshot);
            if (missing is not null) throw AdminRoutes.Refusal(missing);
            if (names.FirstOrDefault(v => !call.Sees(v)) is { } hidden) throw AdminRoutes.NoVolume(hidden);
        }

        VolumeRecord[] known = [.. names.Where(n => n is not null).Select(daemon.Directory.Find).OfType<VolumeRecord>()];
        MustBeUnused(known, request.Force);
        SnapshotResult back;
        try
        {
            back = await daemon.Directory.RollBackTogetherAsync(request.Snapshot, names, request.SafetyName);
        }
        finally
        {
            // Whatever became of it: some may have gone back, and whoever is attached knows another content.
            foreach (VolumeRecord now in known.Select(v => daemon.Directory.Find(v.Id)).OfType<VolumeRecord>()) daemon.OnChanged(now);
        }

        if (back.Fault is null or { Code: "rollback-unfinished" }) CutOff(known);
        Must(back);
        await begin();
        var volumes = new List<VolumeInfo>();
        foreach (VolumeSnapshot kept in back.Snapshots) volumes.Add(await describe(daemon.Directory.Find(kept.Volume.Id) ?? kept.Volume, call));
        await call.AnswerAsync(
            new RollbackTogetherInfo(volumes, await DescribeAsync(call, back.Snapshots, withUsage: false)), ApiJson.Default.RollbackTogetherInfo);
    }

    private async Task DiffAsync(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(daemon, call);
        string from = call.Query("from") ?? throw new ApiException(400, "invalid-query", "from must name a snapshot", "from");
        string? to = call.Query("to");
        long offset = call.QueryNumber("offset") ?? 0, wanted = call.QueryNumber("ranges") ?? RangesMax;
        if (wanted is < 1 or > RangesMax) throw new ApiException(400, "invalid-query", $"ranges is 1 to {RangesMax}", "ranges");
        IReadOnlyList<VolumeSnapshot> known = Must(await daemon.Directory.SnapshotsAsync(volume)).Snapshots;
        SnapshotInfo older = Named(known, volume, from);
        SnapshotInfo? newer = to is null ? null : Named(known, volume, to);
        StoreHost host = HostOf(volume);
        ulong size = Math.Max(older.SizeBytes, newer?.SizeBytes ?? volume.SizeBytes), at = (ulong)offset;
        if (at > size || at % Units.BlockBytes != 0)
            throw new ApiException(400, "invalid-query", "offset must be within the volume, and a multiple of 4096", "offset");
        var ranges = new List<DiffRange>();
        ulong changed = 0;
        while (at < size)
        {
            call.Aborted.ThrowIfCancellationRequested();
            ulong begin = at, length = Math.Min(DiffStepBytes, size - at);
            var runs = new List<DiffRun>();
            IoStatus status = await host.Thread.InvokeAsync(
                () => host.Store.DiffAsync(volume.Id, older.Uuid, newer?.Uuid, begin, length, 2 * RangesMax, runs));
            if (status != IoStatus.Ok) throw Refused(status);
            foreach (DiffRun run in runs)
            {
                if (run.IsChanged)
                {
                    bool isNext = ranges.Count > 0 && ranges[^1].OffsetBytes + ranges[^1].LengthBytes == at;
                    if (!isNext && ranges.Count == wanted) break;
                    if (isNext) ranges[^1] = ranges[^1] with { LengthBytes = ranges[^1].LengthBytes + run.LengthBytes };
                    else ranges.Add(new DiffRange(at, run.LengthBytes));
                    changed += run.LengthBytes;
                }

                at += run.LengthBytes;
            }

            if (at < begin + length && ranges.Count == wanted) break;
        }

        await call.AnswerAsync(new DiffInfo(ranges, changed, at < size ? at : null), ApiJson.Default.DiffInfo);
    }

    private async Task CloneAsync(ApiCall call)
    {
        VolumeRecord source = AdminRoutes.VolumeOf(daemon, call);
        CloneVolume request = await call.ReadAsync(ApiJson.Default.CloneVolume);
        call.MustOwn(request.Name);
        VolumeRecord made = AdminRoutes.Must(await daemon.Directory.CloneAsync(source.Name, request));
        if (made.IsPopulating) populations.Follow(made);
        await begin();
        await call.AnswerAsync(await describe(made, call), ApiJson.Default.VolumeInfo, 201);
    }

    private async Task FlattenAsync(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(daemon, call);
        _ = await call.ReadAsync(ApiJson.Default.FlattenVolume);
        AdminRoutes.Must(await daemon.Directory.FlattenAsync(volume.Name));
        TaskInfo task = volume.IsPopulating ? populations.Follow(volume) : FollowFlattening(volume);
        await daemon.Tasks.FlushAsync();
        await call.AnswerAsync(task, ApiJson.Default.TaskInfo, 202);
    }

    private TaskInfo FollowFlattening(VolumeRecord volume) => daemon.Tasks.Start(new TaskSpec("flatten", volume.Name, volume.Id, Cancellable: false), async run =>
    {
        while (true)
        {
            StoreHost? host = daemon.Stores.Find(volume.StoreId);
            if (host is null || await host.LayersAsync(volume.Id) is not { } layers)
                throw new IOException("the volume is gone, or its disk does not serve it; where it is there, the rest follows when its disk does");
            if (layers.Base is null && !layers.IsFlattening) return "it shares nothing with another volume any more";
            if (!layers.IsFlattening)
                throw new IOException("a block of its base could not be copied: the disk is full, or the block cannot be read (pfcli scrub_volume); it is a clone still");
            run.Report(await host.Thread.InvokeAsync(() => new ValueTask<double>(host.Store.OwnPart(volume.Id))));
            await Task.Delay(s_lookEvery, run.Cancel);
        }
    });

    private async Task<VolumeSnapshot> FindAsync(ApiCall call)
    {
        VolumeRecord volume = AdminRoutes.VolumeOf(daemon, call);
        IReadOnlyList<VolumeSnapshot> known = Must(await daemon.Directory.SnapshotsAsync(volume)).Snapshots;
        return known.FirstOrDefault(s => s.Info.Name == call.Parts[3]) ?? throw NoSnapshot(volume, call.Parts[3]);
    }

    private static SnapshotInfo Named(IReadOnlyList<VolumeSnapshot> known, VolumeRecord volume, string name) =>
        known.FirstOrDefault(s => s.Info.Name == name)?.Info ?? throw NoSnapshot(volume, name);

    private static ApiException NoSnapshot(VolumeRecord volume, string name) =>
        new(404, "no-such-snapshot", $"'{volume.Name}' has no snapshot '{name}'; pfcli list_snapshot shows what there is");

    private StoreHost HostOf(VolumeRecord volume) => daemon.Stores.Find(volume.StoreId)
        ?? throw new ApiException(503, "disk-unavailable", "the volume's disk is not in service");

    private static ApiException Refused(IoStatus status) => status switch
    {
        IoStatus.NotFound => new(404, "no-such-snapshot", "it was deleted meanwhile"),
        IoStatus.OutOfRange => new(409, "changed-meanwhile", "the volume changed its size meanwhile; try again"),
        _ => new(503, "disk-unavailable", $"the disk does not serve ({status}); see pfcli list_disk"),
    };

    private static SnapshotResult Must(SnapshotResult result) => result.Fault is { } fault ? throw AdminRoutes.Refusal(fault) : result;

    private async Task<IReadOnlyList<SnapshotEntry>> DescribeAsync(ApiCall call, IReadOnlyList<VolumeSnapshot> snapshots, bool withUsage)
    {
        Dictionary<uint, string> names = daemon.Directory.List().ToDictionary(v => v.Id, v => v.Name);
        var entries = new List<SnapshotEntry>();
        foreach (VolumeSnapshot one in snapshots)
        {
            SnapshotUsage? usage = null;
            if (withUsage)
            {
                StoreHost host = HostOf(one.Volume);
                (IoStatus status, SnapshotUsage found) = await host.Thread.InvokeAsync(() => host.Store.SnapshotUsageAsync(one.Volume.Id, one.Info.Uuid));
                if (status == IoStatus.NotFound && snapshots.Count > 1) continue; // it went meanwhile
                if (status != IoStatus.Ok) throw Refused(status);
                usage = found;
            }

            entries.Add(new SnapshotEntry(
                one.Volume.Name, one.Info.Name, one.Info.Uuid, one.Info.SizeBytes,
                DateTimeOffset.FromUnixTimeSeconds((long)Math.Min(one.Info.UnixSeconds, 253_402_300_799)),
                one.Record is { Clean: true } ? "clean" : "unknown",
                [.. one.Info.Clones.Select(id => names.GetValueOrDefault(id) is not { } name ? "(being deleted)" : call.Caller.IsConfined && !call.Sees(name) ? "(another's)" : name)],
                one.Record?.Group, one.Record?.Policy, usage?.UsedBytes, usage?.ExclusiveBytes));
        }

        return entries;
    }

    /// <summary>A snapshot whose blocks the store gives back.</summary>
    private sealed record DeletionInWork(Guid StoreId, uint VolumeId, Guid Snapshot)
    {
        public static DeletionInWork? TryParse(string? text) => text?.Split(' ') is [var store, var volume, var snapshot]
            && Guid.TryParse(store, out Guid s) && uint.TryParse(volume, System.Globalization.CultureInfo.InvariantCulture, out uint v)
            && Guid.TryParse(snapshot, out Guid u) ? new DeletionInWork(s, v, u) : null;

        public override string ToString() => string.Create(System.Globalization.CultureInfo.InvariantCulture, $"{StoreId:N} {VolumeId} {Snapshot:N}");
    }
}
