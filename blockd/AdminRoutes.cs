using System.Diagnostics;
using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>The admin API's resources (core/Api/ApiRecords.cs) on a running daemon.</summary>
internal sealed class AdminRoutes(Daemon daemon) : IAdminRoutes
{
    private readonly AdminTasks _tasks = new();

    /// <inheritdoc/>
    public Task HandleAsync(ApiCall call) => (call.Parts[0], call.Parts.Count) switch
    {
        ("version", 1) => Only(call, "GET", VersionAsync),
        ("node", 1) => Only(call, "GET", NodeAsync),
        ("volumes", 1) => VolumesAsync(call),
        ("volumes", 2) => VolumeAsync(call, call.Parts[1]),
        ("volumes", 3) when call.Parts[2] == "scrub" => Only(call, "POST", c => ScrubAsync(c, c.Parts[1])),
        ("disks", 1) => DisksAsync(call),
        ("disks", 2) => Only(call, "DELETE", c => RemoveDiskAsync(c, c.Parts[1])),
        ("sessions", 1) => Only(call, "GET", SessionsAsync),
        ("sessions", 2) => Only(call, "DELETE", c => CutAsync(c, c.Parts[1])),
        ("stats", 1) => Only(call, "GET", StatsAsync),
        ("tasks", 1) => Only(call, "GET", c => c.AnswerAsync(new TaskList(_tasks.List()), ApiJson.Default.TaskList)),
        ("tasks", 2) => TaskAsync(call, call.Parts[1]),
        _ => throw new ApiException(404, "no-such-resource", "there is no such resource"),
    };

    private static Task Only(ApiCall call, string method, Func<ApiCall, Task> answer) =>
        call.Method == method ? answer(call) : throw call.WrongMethod(method);

    private static Task VersionAsync(ApiCall call) =>
        call.AnswerAsync(new VersionInfo("BlockServer", Program.Version, "v1"), ApiJson.Default.VersionInfo);

    private Task NodeAsync(ApiCall call) => call.AnswerAsync(
        new NodeInfo(
            Environment.MachineName, Program.Version, daemon.Settings.DataDir, daemon.EngineName,
            daemon.Settings.Durability == Durability.Ack ? "ack" : "flush", daemon.StartedAt, [.. daemon.Listeners], [.. daemon.Warnings]),
        ApiJson.Default.NodeInfo);

    private async Task VolumesAsync(ApiCall call)
    {
        switch (call.Method)
        {
            case "GET":
                await call.AnswerAsync(new VolumeList(await DescribeAsync(daemon.Directory.List())), ApiJson.Default.VolumeList);
                return;
            case "POST":
                CreateVolume request = await call.ReadAsync(ApiJson.Default.CreateVolume);
                VolumeRecord created = Must(await daemon.Directory.CreateAsync(request));
                await call.AnswerAsync(await DescribeAsync(created), ApiJson.Default.VolumeInfo, 201);
                return;
            default:
                throw call.WrongMethod("GET, POST");
        }
    }

    private async Task VolumeAsync(ApiCall call, string name)
    {
        if (!VolumeName.IsValid(name, out string? reason)) throw new ApiException(400, "invalid-name", reason, "name");
        VolumeRecord volume = daemon.Directory.Find(name)
            ?? throw new ApiException(404, "no-such-volume", $"there is no volume '{name}'");
        switch (call.Method)
        {
            case "GET":
                await call.AnswerAsync(await DescribeAsync(volume), ApiJson.Default.VolumeInfo);
                return;
            case "PATCH":
                ChangeVolume change = await call.ReadAsync(ApiJson.Default.ChangeVolume);
                if (change.SizeBytes < volume.SizeBytes && daemon.Sessions.CountOf(volume.Id) > 0)
                    throw new ApiException(409, "volume-in-use", "clients are attached; detach them before the volume shrinks", "sizeBytes");
                VolumeRecord changed = Must(await daemon.Directory.ChangeAsync(name, change));
                daemon.OnResized(volume.Id);
                await call.AnswerAsync(await DescribeAsync(changed), ApiJson.Default.VolumeInfo);
                return;
            case "DELETE":
                long? id = call.QueryNumber("id");
                long? revision = call.QueryNumber("revision");
                bool isForced = call.QueryFlag("force");
                if (id is null && revision is null)
                    throw new ApiException(400, "id-or-revision-needed", "name the volume's id or revision, so that no other one is deleted", "id");
                if (id is { } wanted && wanted != volume.Id)
                    throw new ApiException(412, "id-differs", $"'{name}' is volume {volume.Id} now; read it again", "id");
                int sessions = daemon.Sessions.CountOf(volume.Id);
                if (sessions > 0 && !isForced)
                    throw new ApiException(409, "volume-in-use", $"{sessions} clients are attached; detach them or say force=true");
                Must(await daemon.Directory.DeleteAsync(name, volume.Id, revision, isForced));
                foreach (Session session in daemon.Sessions.List().Where(s => s.VolumeId == volume.Id)) session.Cut("the volume was deleted");
                daemon.Meters.Forget(volume.Id);
                await call.AnswerNothingAsync();
                return;
            default:
                throw call.WrongMethod("GET, PATCH, DELETE");
        }
    }

    private async Task ScrubAsync(ApiCall call, string name)
    {
        VolumeRecord volume = daemon.Directory.Find(name)
            ?? throw new ApiException(404, "no-such-volume", $"there is no volume '{name}'");
        ScrubRequest request = await call.ReadAsync(ApiJson.Default.ScrubRequest);
        StoreHost host = daemon.Stores.Find(volume.StoreId)
            ?? throw new ApiException(503, "disk-unavailable", "the volume's disk is not in service");
        TaskInfo task = _tasks.Start("scrub", name, async (progress, cancel) =>
        {
            ScrubReport report = await host.Thread.InvokeAsync(() => host.Store.ScrubAsync(
                volume.Id, request.BytesPerSecond, r => progress(r.BlocksTotal == 0 ? 1 : (double)r.BlocksRead / r.BlocksTotal), cancel));
            cancel.ThrowIfCancellationRequested();
            if (report.Bad.Count == 0) return $"{report.BlocksRead} blocks read, all good";
            BadBlock first = report.Bad[0];
            throw new IOException($"{report.Bad.Count} bad blocks, the first at byte {first.OffsetBytes} ({first.Reason})");
        });
        await call.AnswerAsync(task, ApiJson.Default.TaskInfo, 202);
    }

    private async Task DisksAsync(ApiCall call)
    {
        switch (call.Method)
        {
            case "GET":
                var disks = new List<DiskInfo>();
                foreach (StoreHost host in daemon.Stores.All) disks.Add(await host.DescribeAsync());
                foreach (AbsentDisk absent in daemon.Disks.Absent) disks.Add(Describe(absent));
                await call.AnswerAsync(new DiskList(disks), ApiJson.Default.DiskList);
                return;
            case "POST":
                AddDisk request = await call.ReadAsync(ApiJson.Default.AddDisk);
                if (!Path.IsPathRooted(request.Path) || request.Path.Contains('\0')) throw new ApiException(400, "invalid-path", "the path must be absolute", "path");
                if (request.Name is not null && !VolumeName.IsValid(request.Name, out string? reason)) throw new ApiException(400, "invalid-name", reason, "name");
                try
                {
                    StoreHost host = await daemon.Disks.AddAsync(request);
                    await call.AnswerAsync(await host.DescribeAsync(), ApiJson.Default.DiskInfo, 201);
                }
                catch (DiskException e)
                {
                    throw new ApiException(e.Status, e.Code, e.Message, e.Field);
                }

                return;
            default:
                throw call.WrongMethod("GET, POST");
        }
    }

    private async Task RemoveDiskAsync(ApiCall call, string id)
    {
        if (!Guid.TryParse(id, out Guid uuid)) throw new ApiException(404, "no-such-disk", $"there is no disk '{id}'");
        try
        {
            await daemon.RemoveDiskAsync(uuid, isForced: call.QueryFlag("force"));
        }
        catch (DiskException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message, e.Field);
        }

        await call.AnswerNothingAsync();
    }

    private DiskInfo Describe(AbsentDisk disk) => new(
        disk.Id, disk.Name, disk.Path, "absent", disk.State, 0, 0, 0, 0, 0, 0, 0, daemon.Directory.CountOn(disk.Id), 0, 0, 0, disk.Reason);

    private Task SessionsAsync(ApiCall call)
    {
        Dictionary<uint, string> names = daemon.Directory.List().ToDictionary(v => v.Id, v => v.Name);
        SessionInfo[] sessions = [.. daemon.Sessions.List().Select(s => s.Describe(names.GetValueOrDefault(s.VolumeId, "")))];
        return call.AnswerAsync(new SessionList(sessions), ApiJson.Default.SessionList);
    }

    private Task CutAsync(ApiCall call, string id)
    {
        Session session = daemon.Sessions.Find(id) ?? throw new ApiException(404, "no-such-session", $"there is no session '{id}'");
        session.Cut("cut by the administrator");
        return call.AnswerNothingAsync();
    }

    private Task StatsAsync(ApiCall call)
    {
        DateTimeOffset now = SystemClock.Instance.UtcNow;
        using Process self = Process.GetCurrentProcess();
        VolumeStats[] volumes = [.. daemon.Directory.List().Select(v => daemon.Meters.Of(v.Id).ToStats(v.Name))];
        var stats = new StatsInfo(now, (now - daemon.StartedAt).TotalSeconds, self.TotalProcessorTime.TotalSeconds, volumes);
        return call.AnswerAsync(stats, ApiJson.Default.StatsInfo);
    }

    private Task TaskAsync(ApiCall call, string id)
    {
        TaskInfo? task = long.TryParse(id, NumberStyles.None, CultureInfo.InvariantCulture, out long number) ? _tasks.Find(number) : null;
        if (task is null) throw new ApiException(404, "no-such-task", $"there is no task '{id}'");
        switch (call.Method)
        {
            case "GET":
                return call.AnswerAsync(task, ApiJson.Default.TaskInfo);
            case "DELETE":
                _tasks.Cancel(number);
                return call.AnswerNothingAsync();
            default:
                throw call.WrongMethod("GET, DELETE");
        }
    }

    private async Task<VolumeInfo> DescribeAsync(VolumeRecord volume) => (await DescribeAsync([volume]))[0];

    private async Task<IReadOnlyList<VolumeInfo>> DescribeAsync(IReadOnlyList<VolumeRecord> volumes)
    {
        var used = new Dictionary<uint, ulong>();
        foreach (IGrouping<Guid, VolumeRecord> there in volumes.GroupBy(v => v.StoreId))
        {
            if (daemon.Stores.Find(there.Key) is not { } host) continue;
            foreach ((uint id, ulong bytes) in await host.UsedBytesAsync([.. there.Select(v => v.Id)])) used[id] = bytes;
        }

        Dictionary<uint, int> sessions = daemon.Sessions.CountByVolume();
        return [.. volumes.Select(v => new VolumeInfo(
            v.Id, v.Uuid, v.Name, v.SizeBytes, used.GetValueOrDefault(v.Id), 1, used.ContainsKey(v.Id) ? "online" : "unavailable", v.Export,
            v.Description, v.StoreId, sessions.GetValueOrDefault(v.Id), v.Revision, v.CreatedAt, used.ContainsKey(v.Id) ? null : WhyNot(v)))];
    }

    private string WhyNot(VolumeRecord volume)
    {
        if (daemon.Stores.Find(volume.StoreId) is { } host) return $"its disk {host.Name} does not serve it; see pfcli list_disk";
        return daemon.Disks.FindAbsent(volume.StoreId) is { } absent
            ? $"its disk {absent.Name} is {absent.State}: {absent.Reason}"
            : "its disk was removed; add it again";
    }

    private static VolumeRecord Must(DirectoryResult result)
    {
        if (result.Fault is not { } fault) return result.Volume!;
        int status = fault.Code switch
        {
            "revision-differs" or "id-differs" => 412,
            "no-space" => 507,
            _ => fault.Status switch
            {
                IoStatus.Invalid => 400,
                IoStatus.NotFound => 404,
                IoStatus.Conflict => 409,
                _ => 503,
            },
        };
        throw new ApiException(status, fault.Code, fault.Detail, fault.Field);
    }
}
