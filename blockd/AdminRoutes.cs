using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>The admin API's resources (core/Api/ApiRecords.cs) on a running _daemon.</summary>
internal sealed class AdminRoutes : IAdminRoutes
{
    private static readonly byte[] s_openApi = ReadOpenApi();

    private readonly Daemon _daemon;
    private readonly ThickVolumes _thick;
    private readonly TargetRoutes _targets;
    private readonly Populations _populations;
    private readonly SnapshotRoutes _snapshots;
    private readonly StreamRoutes _streams;
    private readonly WatchRoutes _watch;
    private readonly DeclaredStates _declared;
    private readonly ApiAccess _access;
    private readonly DiskRoutes _disks;
    private readonly TaskRoutes _taskRoutes;
    private readonly Dictionary<string, Func<ApiCall, Task>> _handlers;

    /// <summary>Routes to <paramref name="daemon"/>.</summary>
    public AdminRoutes(Daemon daemon)
    {
        _daemon = daemon;
        _access = new ApiAccess(daemon, id => _taskRoutes!.SeenAs(id));
        _taskRoutes = new TaskRoutes(daemon);
        _thick = new ThickVolumes(daemon);
        _targets = new TargetRoutes(daemon, _access);
        _populations = new Populations(daemon);
        _snapshots = new SnapshotRoutes(daemon, _targets, _populations, DescribeAsync, _thick.BeginAsync);
        _streams = new StreamRoutes(daemon, DescribeAsync);
        var policies = new PolicyRoutes(daemon);
        _watch = new WatchRoutes(daemon, new WatchSource(daemon, DescribeAsync, SessionListAsync, _snapshots, _targets, policies, _taskRoutes));
        _declared = new DeclaredStates(daemon.Meta, daemon.Tenants, caller => new DeclaredWorld(daemon, this, _targets, policies, caller));
        _disks = new DiskRoutes(daemon);
        _handlers = new(StringComparer.Ordinal)
        {
            ["GET version"] = VersionAsync,
            ["GET node"] = NodeAsync,
            ["GET volumes"] = ListAsync,
            ["POST volumes"] = CreateAsync,
            ["GET volumes/{name}"] = async c => await c.AnswerAsync(await DescribeAsync(Volume(c), c), ApiJson.Default.VolumeInfo),
            ["PATCH volumes/{name}"] = ChangeAsync,
            ["DELETE volumes/{name}"] = DeleteAsync,
            ["POST volumes/{name}/scrub"] = ScrubAsync,
            ["DELETE volumes/{name}/reservations"] = ClearReservationsAsync,
            ["GET disks"] = DisksAsync,
            ["POST disks"] = AddDiskAsync,
            ["DELETE disks/{id}"] = RemoveDiskAsync,
            ["GET audit"] = AuditAsync,
            ["GET events"] = EventsAsync,
            ["GET sessions"] = SessionsAsync,
            ["DELETE sessions/{id}"] = CutAsync,
            ["GET stats"] = StatsAsync,
            ["GET openapi.json"] = c => c.AnswerAsync(s_openApi),
        };
        foreach ((string key, Func<ApiCall, Task> handler) in _targets.Handlers.Concat(_snapshots.Handlers).Concat(_streams.Handlers).Concat(_disks.Handlers).Concat(new CapacityRoutes(daemon).Handlers)
            .Concat(policies.Handlers).Concat(new DenyRoutes(daemon).Handlers).Concat(new TokenRoutes(daemon).Handlers)
            .Concat(new TenantRoutes(daemon, _declared.ForgetAsync).Handlers).Concat(new AofRoutes(daemon, _targets).Handlers).Concat(_taskRoutes.Handlers).Concat(_watch.Handlers)
            .Concat(new SupportRoutes(new SupportBundle(daemon, this)).Handlers).Concat(new DeclaredRoutes(_declared, () => _daemon.Declared).Handlers)) _handlers.Add(key, handler);
        Core.Check.That(_handlers.Keys.ToHashSet().SetEquals(ApiRouteTable.All.Select(r => r.Key)));
    }

    /// <summary>Takes up what the last run of the daemon left unfinished.</summary>
    public async Task ResumeAsync()
    {
        await _thick.BeginAsync();
        await _populations.ResumeAsync();
        await _snapshots.ResumeAsync();
        await _disks.ResumeAsync();
        _disks.Start();
        await _daemon.Tasks.FailInterrupted(); // what nobody has gone on with
        await _daemon.ReconcileAsync(_declared);
    }

    /// <inheritdoc/>
    public Task HandleAsync(ApiCall call)
    {
        ApiRoute route = ApiRouteTable.Find(call);
        try
        {
            _access.Check(route, call);
        }
        catch (ApiException)
        {
            call.WasRefused = true;
            throw;
        }

        return _handlers[route.Key](call);
    }

    private static byte[] ReadOpenApi()
    {
        using Stream stream = typeof(AdminRoutes).Assembly.GetManifestResourceStream("openapi.json")!;
        var content = new byte[stream.Length];
        stream.ReadExactly(content);
        return content;
    }

    private static Task VersionAsync(ApiCall call) =>
        call.AnswerAsync(new VersionInfo("BlockServer", Program.Version, "v1"), ApiJson.Default.VersionInfo);

    private Task NodeAsync(ApiCall call) => call.AnswerAsync(
        new NodeInfo(
            Environment.MachineName, Program.Version, _daemon.Settings.DataDir, _daemon.EngineName,
            _daemon.Settings.Durability == Durability.Ack ? "ack" : "flush", _daemon.StartedAt, [.. _daemon.Listeners], [.. _daemon.Warnings]),
        ApiJson.Default.NodeInfo);

    private VolumeRecord Volume(ApiCall call) => VolumeOf(_daemon, call);

    /// <summary>The volume that the path names; throws 400 or 404.</summary>
    public static VolumeRecord VolumeOf(Daemon daemon, ApiCall call)
    {
        string name = call.Parts[1];
        if (!VolumeName.IsValid(name, out string? reason)) throw new ApiException(400, "invalid-name", reason, "name");
        return daemon.Directory.Find(name) ?? throw NoVolume(name);
    }

    /// <summary>What is answered when there is no such volume, or none that the caller sees.</summary>
    public static ApiException NoVolume(string name, string? field = null) => new(404, "no-such-volume", $"there is no volume '{name}'", field);

    private async Task ListAsync(ApiCall call)
    {
        IReadOnlyList<VolumeRecord> volumes = _daemon.Directory.List();
        if (call.Caller.IsConfined) volumes = [.. volumes.Where(v => call.Sees(v.Name))];
        if (call.Query("tenant") is { } tenant)
        {
            bool isKnown = _daemon.Tenants.Find(tenant) is not null && (!call.Caller.IsConfined || call.Caller.Tenant == tenant);
            if (!isKnown) throw TenantRoutes.NoTenant(tenant, "tenant");
            volumes = [.. volumes.Where(v => TenantDirectory.IsOf(tenant, v.Name))];
        }

        await call.AnswerAsync(new VolumeList(await DescribeAsync(volumes, call)), ApiJson.Default.VolumeList);
    }

    private async Task CreateAsync(ApiCall call)
    {
        CreateVolume request = await call.ReadAsync(ApiJson.Default.CreateVolume);
        call.MustOwn(request.Name);
        VolumeRecord created = Must(await _daemon.Directory.CreateAsync(request));
        await _thick.BeginAsync();
        await call.AnswerAsync(await DescribeAsync(created, call), ApiJson.Default.VolumeInfo, 201);
    }

    private async Task ChangeAsync(ApiCall call)
    {
        VolumeRecord volume = Volume(call);
        ChangeVolume change = await call.ReadAsync(ApiJson.Default.ChangeVolume);
        if (change.Name is { } renamed && renamed != volume.Name) call.MustOwn(renamed);
        if (change.SizeBytes < volume.SizeBytes && _daemon.Sessions.CountOf(volume.Id) > 0)
            throw new ApiException(409, "volume-in-use", "clients are attached; detach them before the volume shrinks", "sizeBytes");
        if (change.Export is { } export && !SharedVolumes.IsShownAlike(export, volume.Export) && _daemon.Sessions.CountOf(volume.Id) > 0)
            throw new ApiException(409, "volume-in-use", "clients are attached; detach them before the volume is shown otherwise", "export");
        VolumeRecord changed = change.Image == true && !volume.IsImage
            ? await _daemon.Imports.MarkImageAsync(volume, change)
            : Must(await _daemon.Directory.ChangeAsync(volume.Name, change));
        await _thick.BeginAsync();
        _daemon.OnChanged(changed);
        await call.AnswerAsync(await DescribeAsync(changed, call), ApiJson.Default.VolumeInfo);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        VolumeRecord volume = Volume(call);
        long? id = call.QueryNumber("id");
        long? revision = call.QueryNumber("revision");
        bool isForced = call.QueryFlag("force"), withSnapshots = call.QueryFlag("snapshots");
        if (id is null && revision is null)
            throw new ApiException(400, "id-or-revision-needed", "name the volume's id or revision, so that no other one is deleted", "id");
        if (id is { } wanted && wanted != volume.Id)
            throw new ApiException(412, "id-differs", $"'{volume.Name}' is volume {volume.Id} now; read it again", "id");
        int sessions = _daemon.Sessions.CountOf(volume.Id);
        if (sessions > 0 && !isForced)
            throw new ApiException(409, "volume-in-use", $"{sessions} clients are attached; detach them or say force=true");
        if (_targets.UseOf(volume) is { } use)
        {
            if (!isForced) throw new ApiException(409, "volume-is-lun", use);
            await _targets.RemoveVolumeAsync(volume);
        }

        Must(await SnapshotRoutes.PatientlyAsync(
            () => _daemon.Directory.DeleteAsync(volume.Name, volume.Id, revision, isForced, withSnapshots), r => r.Fault, call.Aborted));
        // What was cut for a copy goes with it, also when its copying had stopped and nobody follows it any more.
        if (volume.IsPopulating) _populations.Follow(volume);
        HashSet<uint> gone = [volume.Id];
        foreach (Session session in _daemon.Sessions.List().Where(s => s.Touches(gone))) session.Cut("the volume was deleted");
        _daemon.Meters.Forget(volume.Id);
        _daemon.Volumes.Forget(volume.Id);
        await call.AnswerNothingAsync();
    }

    private async Task ScrubAsync(ApiCall call)
    {
        VolumeRecord volume = Volume(call);
        ScrubRequest request = await call.ReadAsync(ApiJson.Default.ScrubRequest);
        StoreHost host = _daemon.Stores.Find(volume.StoreId)
            ?? throw new ApiException(503, "disk-unavailable", "the volume's disk is not in service");
        TaskInfo task = await _daemon.Tasks.StartAsync(new TaskSpec("scrub", volume.Name, volume.Id, Unit: "blocks"), async run =>
        {
            ScrubReport report = await host.Thread.InvokeAsync(
                () => host.Store.ScrubAsync(volume.Id, request.BytesPerSecond, r => run.Report(r.BlocksRead, r.BlocksTotal), run.Cancel));
            run.Cancel.ThrowIfCancellationRequested();
            if (report.Finished) await _disks.NoteAsync(volume, report);
            if (report.Bad.Count > 0)
            {
                BadBlock first = report.Bad[0];
                throw new TaskException("bad-blocks", $"{report.Bad.Count} bad blocks, the first at byte {first.OffsetBytes} ({first.Reason})");
            }

            if (!report.Finished)
                throw new TaskException("disk-unavailable", $"the disk stopped serving when {report.BlocksRead} blocks had been read; see pfcli list_disk");
            return $"{report.BlocksRead} blocks read, all good";
        });
        await call.AnswerAsync(task, ApiJson.Default.TaskInfo, 202);
    }

    private async Task ClearReservationsAsync(ApiCall call)
    {
        VolumeRecord volume = Volume(call);
        LoopThread thread = _daemon.Volumes.ThreadOf(volume)
            ?? throw new ApiException(503, "disk-unavailable", "the volume's disk is not in service");
        IoStatus status = await thread.InvokeAsync(() => _daemon.Volumes.ClearReservationsAsync(volume, thread));
        if (status == IoStatus.Unavailable) throw new ApiException(503, "disk-unavailable", "the volume's disk does not serve it; see pfcli list_disk");
        if (status != IoStatus.Ok) throw new ApiException(503, "metadata-unavailable", "the metadata database failed and nothing was changed; see the daemon's log");
        await call.AnswerNothingAsync();
    }

    private async Task DisksAsync(ApiCall call)
    {
        var disks = new List<DiskInfo>();
        foreach (StoreHost host in _daemon.Stores.All) disks.Add(await host.DescribeAsync() with { Draining = _daemon.Directory.IsDraining(host.StoreId) });
        foreach (AbsentDisk absent in _daemon.Disks.Absent) disks.Add(Describe(absent));
        await call.AnswerAsync(new DiskList(disks), ApiJson.Default.DiskList);
    }

    private async Task AddDiskAsync(ApiCall call)
    {
        AddDisk request = await call.ReadAsync(ApiJson.Default.AddDisk);
        call.About(request.Path);
        Check(request);
        try
        {
            StoreHost host = await _daemon.Disks.AddAsync(request);
            await _daemon.Imports.RecoverAsync();
            await _daemon.Volumes.OpenReservedAsync();
            await _thick.BeginAsync();
            await _populations.ResumeAsync();
            await _daemon.ServedTargets.ApplyAllAsync();
            await _disks.ResumeAsync();
            await call.AnswerAsync(await host.DescribeAsync(), ApiJson.Default.DiskInfo, 201);
        }
        catch (DiskException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message, e.Field);
        }
    }

    /// <summary>Throws 400 when the request is malformed.</summary>
    public static void Check(AddDisk request)
    {
        if (!Path.IsPathRooted(request.Path) || request.Path.Contains('\0'))
            throw new ApiException(400, "invalid-path", "the path must be absolute", "path");
        if (request.Name is not null && !VolumeName.IsValid(request.Name, out string? reason)) throw new ApiException(400, "invalid-name", reason, "name");
    }

    private async Task RemoveDiskAsync(ApiCall call)
    {
        string id = call.Parts[1];
        if (!Guid.TryParse(id, out Guid uuid)) throw new ApiException(404, "no-such-disk", $"there is no disk '{id}'");
        try
        {
            await _daemon.RemoveDiskAsync(uuid, call.QueryFlag("force"));
            await _daemon.ServedTargets.ApplyAllAsync();
        }
        catch (DiskException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message, e.Field);
        }

        await call.AnswerNothingAsync();
    }

    private DiskInfo Describe(AbsentDisk disk) => new(
        disk.Id, disk.Name, disk.Path, "absent", disk.State, 0, 0, 0, 0, 0, 0, 0, _daemon.Directory.CountOn(disk.Id), 0, 0, 0, 0, disk.Reason);

    private Task AuditAsync(ApiCall call)
    {
        long limit = call.QueryNumber("limit") ?? 100, before = call.QueryNumber("before") ?? long.MaxValue;
        if (limit is < 1 or > AuditLog.ListMax) throw new ApiException(400, "invalid-query", $"limit is 1 to {AuditLog.ListMax}", "limit");
        string kind = call.Query("kind") ?? "all";
        if (kind is not ("all" or "changes" or "refused")) throw new ApiException(400, "invalid-query", "kind is changes, refused or all", "kind");
        return call.AnswerAsync(new AuditList(_daemon.Audit.List((int)limit, before, kind != "refused", kind != "changes")), ApiJson.Default.AuditList);
    }

    // The counters of a session belong to its loop: they are read there, in one visit to each loop.
    private async Task SessionsAsync(ApiCall call) => await call.AnswerAsync(new SessionList(await SessionListAsync(call)), ApiJson.Default.SessionList);

    private async Task<IReadOnlyList<SessionInfo>> SessionListAsync(ApiCall call)
    {
        var sessions = new List<SessionInfo>();
        foreach (IGrouping<LoopThread, Session> there in _daemon.Sessions.List().Where(s => _access.Sees(call.Caller, s)).GroupBy(s => s.Thread))
        {
            sessions.AddRange(await there.Key.InvokeAsync(() => new ValueTask<SessionInfo[]>(
                [.. there.Select(s => s.Describe(id => _daemon.Directory.Find(id)?.Name))])));
        }

        return [.. sessions.OrderBy(s => long.Parse(s.Id, CultureInfo.InvariantCulture))];
    }

    private Task EventsAsync(ApiCall call)
    {
        string? severity = call.Query("severity");
        if (severity is not null && !EventCatalogue.Severities.Contains(severity))
            throw new ApiException(400, "invalid-query", "severity is " + string.Join(", ", EventCatalogue.Severities), "severity");
        long limit = call.QueryNumber("limit") ?? EventLog.KeptMax;
        if (limit is < 1 or > EventLog.KeptMax) throw new ApiException(400, "invalid-query", $"limit is 1 to {EventLog.KeptMax}", "limit");
        return call.AnswerAsync(
            new EventList(_daemon.Events.List(call.QueryFlag("open"), call.QueryNumber("since") ?? 0, severity, (int)limit)), ApiJson.Default.EventList);
    }

    private Task CutAsync(ApiCall call)
    {
        string id = call.Parts[1];
        Session session = _daemon.Sessions.Find(id) ?? throw new ApiException(404, "no-such-session", $"there is no session '{id}'");
        session.Cut("cut by the administrator");
        return call.AnswerNothingAsync();
    }

    // As in SessionsAsync: a volume's meter is written on the volume's loop, and read there.
    private async Task StatsAsync(ApiCall call)
    {
        var volumes = new List<VolumeStats>();
        IEnumerable<(VolumeRecord Volume, VolumeMeter Meter)> seen = _daemon.Meters.All.Select(m => (Volume: _daemon.Directory.Find(m.VolumeId), m.Meter))
            .Where(m => m.Volume is not null && call.Sees(m.Volume.Name))!;
        foreach (IGrouping<LoopThread?, (VolumeRecord Volume, VolumeMeter Meter)> there in seen.GroupBy(m => _daemon.Volumes.ThreadOf(m.Volume)))
        {
            if (there.Key is { } thread)
                volumes.AddRange(await thread.InvokeAsync(() => new ValueTask<VolumeStats[]>([.. there.Select(m => m.Meter.ToStats(m.Volume.Name))])));
        }

        DateTimeOffset now = SystemClock.Instance.UtcNow;
        var stats = new StatsInfo(
            now, (now - _daemon.StartedAt).TotalSeconds, Environment.CpuUsage.TotalTime.TotalSeconds,
            [.. volumes.OrderBy(v => v.Volume, StringComparer.Ordinal)]);
        await call.AnswerAsync(stats, ApiJson.Default.StatsInfo);
    }

    private async Task<VolumeInfo> DescribeAsync(VolumeRecord volume, ApiCall call) => (await DescribeAsync([volume], call))[0];

    private async Task<IReadOnlyList<VolumeInfo>> DescribeAsync(IReadOnlyList<VolumeRecord> volumes, ApiCall call)
    {
        IReadOnlyDictionary<uint, VolumeSight> sights = await VolumeSight.OfAsync(_daemon, volumes);
        Dictionary<uint, int> sessions = _daemon.Sessions.CountByVolume();
        return [.. volumes.Select(v => Describe(v, sights.GetValueOrDefault(v.Id), sessions.GetValueOrDefault(v.Id), call))];
    }

    private VolumeInfo Describe(VolumeRecord v, VolumeSight sight, int sessions, ApiCall call) => new(
        v.Id, v.Uuid, v.Name, v.SizeBytes, sight.UsedBytes ?? 0, 1,
        sight.UsedBytes is null ? "unavailable" : VolumeDirectory.ImportFault(v) is null ? "online" : "initializing", v.Export,
        v.Description, v.StoreId, sessions, v.Revision, v.CreatedAt, sight.UsedBytes is null ? WhyNot(v) : v.IsPopulating ? _populations.FaultOf(v.Id) : null,
        sight.Reservation, BaseOf(sight, call), sight.IsFlattening, sight.Snapshots, StreamRoutes.Describe(v.Import), v.IsImage, v.IsAppendOnly, v.IsSealed,
        v.Qos, v.PromisedBytes == 0);

    private string? BaseOf(VolumeSight sight, ApiCall call)
    {
        if (sight.Base is not { } basis) return null;
        string name = _daemon.Directory.Find(basis.VolumeId)?.Name ?? "(deleted)";
        return !call.Caller.IsConfined || call.Sees(name) ? $"{name}@{sight.BaseName}" : "(another's)";
    }

    private string WhyNot(VolumeRecord volume)
    {
        if (_daemon.Stores.Find(volume.StoreId) is { } host) return $"its disk {host.Name} does not serve it; see pfcli list_disk";
        return _daemon.Disks.FindAbsent(volume.StoreId) is { } absent
            ? $"its disk {absent.Name} is {absent.State}: {absent.Reason}"
            : "its disk was removed; add it again";
    }

    /// <summary>The volume; throws the refusal.</summary>
    public static VolumeRecord Must(DirectoryResult result) => result.Fault is { } fault ? throw Refusal(fault) : result.Volume!;

    /// <summary>A refusal of the directory as the API says it.</summary>
    public static ApiException Refusal(DirectoryFault fault)
    {
        int status = fault.Code switch
        {
            "revision-differs" or "id-differs" or "uuid-differs" => 412,
            "no-space" or "capacity-exceeded" => 507,
            _ => fault.Status switch
            {
                IoStatus.Invalid => 400,
                IoStatus.NotFound => 404,
                IoStatus.Conflict => 409,
                _ => 503,
            },
        };
        return new ApiException(status, fault.Code, fault.Detail, fault.Field);
    }
}
