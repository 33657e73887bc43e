using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Snapshots and clones through the admin API, on a real store.</summary>
public sealed class SnapshotApiTests : IAsyncLifetime
{
    private const int Size = 8 << 20;

    private static readonly (string Method, string Path, string? Body, int Status, string Code)[] Refused =
    [
        ("POST", "/v1/snapshots", "{\"name\":\"x@y\",\"volumes\":[\"v\"]}", 400, "invalid-name"),
        ("POST", "/v1/snapshots", "{\"name\":\"x\",\"volumes\":[]}", 400, "invalid-volumes"),
        ("POST", "/v1/snapshots", "{\"name\":\"x\",\"volumes\":null}", 400, "invalid-json"),
        ("POST", "/v1/snapshots", "{\"name\":\"x\",\"volumes\":[null]}", 400, "invalid-volumes"),
        ("POST", "/v1/snapshots", "{\"name\":\"x\",\"volumes\":[\"w\"]}", 404, "no-such-volume"),
        ("GET", "/v1/volumes/w/snapshots", null, 404, "no-such-volume"),
        ("GET", "/v1/volumes/v/snapshots?usage=maybe", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/v/snapshots/none", null, 404, "no-such-snapshot"),
        ("DELETE", "/v1/volumes/v/snapshots/none", null, 404, "no-such-snapshot"),
        ("DELETE", "/v1/volumes/v/snapshots/none?uuid=7", null, 400, "invalid-query"),
        ("POST", "/v1/volumes/v/snapshots/none/rollback", "{}", 404, "no-such-snapshot"),
        ("GET", "/v1/volumes/v/diff", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/v/diff?from=none", null, 404, "no-such-snapshot"),
        ("GET", "/v1/volumes/v/diff?from=one&offset=1", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/v/diff?from=one&offset=99999999999", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/v/diff?from=one&ranges=0", null, 400, "invalid-query"),
        ("POST", "/v1/volumes/v/clone", "{\"name\":\"v\"}", 409, "name-taken"),
        ("POST", "/v1/volumes/v/clone", "{\"name\":\"c\",\"sizeBytes\":1048576}", 400, "invalid-size"),
        ("POST", "/v1/volumes/v/clone", "{\"name\":\"c\",\"snapshot\":\"none\"}", 404, "no-such-snapshot"),
    ];

    private ApiServer _server = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync();
        await _server.Test.CreateAsync("v", Size);
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    [Fact]
    public async Task A_snapshot_is_cut_listed_compared_gone_back_to_and_deleted()
    {
        await WriteAsync("v", 0, 1, 2 << 20);
        SnapshotEntry one = Assert.Single((await CutAsync("one", "v")).Snapshots);
        Assert.Equal(("v", "one", "unknown", (ulong)Size), (one.Volume, one.Name, one.Label, one.SizeBytes));
        await WriteAsync("v", 1 << 20, 2, 1 << 20);
        SnapshotEntry two = Assert.Single((await CutAsync("two", "v", clean: true)).Snapshots);
        Assert.Equal("clean", two.Label);
        await WriteAsync("v", 4 << 20, 3, 4096);

        SnapshotList list = await GetAsync("/v1/volumes/v/snapshots?usage=true", ApiJson.Default.SnapshotList);
        Assert.Equal(["one", "two"], list.Snapshots.Select(s => s.Name));
        Assert.Equal((2UL << 20, 1UL << 20), (list.Snapshots[0].UsedBytes, list.Snapshots[0].ExclusiveBytes));
        Assert.Equal((2UL << 20, 0UL), (list.Snapshots[1].UsedBytes, list.Snapshots[1].ExclusiveBytes));
        Assert.Null((await GetAsync("/v1/snapshots", ApiJson.Default.SnapshotList)).Snapshots[0].UsedBytes);
        Assert.Equal(2, (await GetAsync("/v1/volumes/v", ApiJson.Default.VolumeInfo)).Snapshots);

        DiffInfo diff = await GetAsync("/v1/volumes/v/diff?from=one&to=two", ApiJson.Default.DiffInfo);
        Assert.Equal([new DiffRange(1 << 20, 1 << 20)], diff.Ranges);
        diff = await GetAsync("/v1/volumes/v/diff?from=one", ApiJson.Default.DiffInfo);
        Assert.Equal([new DiffRange(1 << 20, 1 << 20), new DiffRange(4 << 20, 4096)], diff.Ranges);
        Assert.Equal(((1UL << 20) + 4096, (ulong?)null), (diff.ChangedBytes, diff.NextOffsetBytes));
        diff = await GetAsync("/v1/volumes/v/diff?from=one&ranges=1", ApiJson.Default.DiffInfo);
        Assert.Equal([new DiffRange(1 << 20, 1 << 20)], diff.Ranges);
        Assert.Equal(4UL << 20, diff.NextOffsetBytes);
        diff = await GetAsync($"/v1/volumes/v/diff?from=one&offset={diff.NextOffsetBytes}", ApiJson.Default.DiffInfo);
        Assert.Equal([new DiffRange(4 << 20, 4096)], diff.Ranges);

        RollbackInfo back = await PostAsync("/v1/volumes/v/snapshots/one/rollback", "{\"safetyName\":\"kept\"}", ApiJson.Default.RollbackInfo);
        Assert.Equal("kept", back.Safety.Name);
        await ReadsAsync("v", 1 << 20, 1, 1 << 20);
        await ReadsAsync("v", 4 << 20, 0, 4096);
        await PostAsync("/v1/volumes/v/snapshots/kept/rollback", "{}", ApiJson.Default.RollbackInfo);
        await ReadsAsync("v", 1 << 20, 2, 1 << 20);
        await ReadsAsync("v", 4 << 20, 3, 4096);

        RawAnswer wrong = await _server.SendAsync("DELETE", $"/v1/volumes/v/snapshots/one?uuid={two.Uuid}");
        Assert.Equal((412, "uuid-differs"), (wrong.Status, wrong.Code));
        foreach (string name in new[] { "two", "one" })
        {
            TaskInfo task = await SendAsync("DELETE", $"/v1/volumes/v/snapshots/{name}", null, 202, ApiJson.Default.TaskInfo);
            task = await EndedAsync(task);
            Assert.Equal(("delete-snapshot", "succeeded", 1.0), (task.Kind, task.State, task.Progress));
        }

        Assert.Equal(404, (await _server.SendAsync("GET", "/v1/volumes/v/snapshots/one")).Status);
        await ReadsAsync("v", 1 << 20, 2, 1 << 20);
    }

    [Fact]
    public async Task A_clone_holds_its_base_until_it_is_flattened_and_everything_in_the_way_is_named()
    {
        await WriteAsync("v", 0, 1, 2 << 20);
        VolumeInfo clone = await PostAsync("/v1/volumes/v/clone", "{\"name\":\"c\"}", ApiJson.Default.VolumeInfo, 201);
        Assert.Equal("v@clone-c", clone.Base);
        await WriteAsync("c", 0, 9, 4096);
        await ReadsAsync("v", 0, 1, 4096);
        await ReadsAsync("c", 4096, 1, 4096);
        RawAnswer refused = await _server.SendAsync("DELETE", "/v1/volumes/v/snapshots/clone-c");
        Assert.Equal((409, "snapshot-has-clones"), (refused.Status, refused.Code));
        Assert.Contains("c is a clone of 'v@clone-c'", refused.Body.Replace("\\u0027", "'", StringComparison.Ordinal), StringComparison.Ordinal);
        VolumeInfo v = await GetAsync("/v1/volumes/v", ApiJson.Default.VolumeInfo);
        string delete = $"/v1/volumes/v?id={v.Id}";
        Assert.Equal("snapshot-has-clones", (await _server.SendAsync("DELETE", delete + "&snapshots=true")).Code);
        Assert.Equal("not-a-clone", (await _server.SendAsync("POST", "/v1/volumes/v/flatten", "{}")).Code);
        VolumeInfo larger = await PostAsync("/v1/volumes/v/clone", "{\"name\":\"d\",\"snapshot\":\"clone-c\",\"sizeBytes\":16777216}", ApiJson.Default.VolumeInfo, 201);
        Assert.Equal(16UL << 20, larger.SizeBytes);
        await ReadsAsync("d", 0, 1, 4096);
        await ReadsAsync("d", 12 << 20, 0, 4096);

        TaskInfo task = await EndedAsync(await PostAsync("/v1/volumes/c/flatten", "{}", ApiJson.Default.TaskInfo, 202));
        Assert.Equal(("flatten", "succeeded"), (task.Kind, task.State));
        Assert.Null((await GetAsync("/v1/volumes/c", ApiJson.Default.VolumeInfo)).Base);
        Assert.Equal(204, (await _server.SendAsync("DELETE", $"/v1/volumes/d?id={larger.Id}")).Status);
        Assert.Equal("volume-has-snapshots", (await _server.SendAsync("DELETE", delete)).Code);
        Assert.Equal(204, (await _server.SendAsync("DELETE", delete + "&snapshots=true")).Status);
        await ReadsAsync("c", 0, 9, 4096);
        await ReadsAsync("c", 4096, 1, 4096);
    }

    [Fact]
    public async Task Snapshots_survive_a_restart_and_resizes_of_the_volume()
    {
        await WriteAsync("v", 0, 1, 2 << 20);
        await CutAsync("small", "v", clean: true);
        await PatchAsync("{\"sizeBytes\":16777216}");
        await WriteAsync("v", 12 << 20, 5, 4096);
        await CutAsync("large", "v");
        await TrimAsync("v", 1 << 20, 15 << 20);
        await PatchAsync("{\"sizeBytes\":1048576,\"force\":true}");
        await _server.Test.RestartAsync();
        await using var again = await ApiServerOf(_server.Test);
        SnapshotList list = JsonSerializer.Deserialize((await again.SendAsync("GET", "/v1/volumes/v/snapshots")).Body, ApiJson.Default.SnapshotList)!;
        Assert.Equal([("small", 8UL << 20, "clean"), ("large", 16UL << 20, "unknown")], list.Snapshots.Select(s => (s.Name, s.SizeBytes, s.Label)));
        await ReadsSnapshotAsync("v", "small", 1 << 20, 1, 1 << 20);
        await ReadsSnapshotAsync("v", "large", 12 << 20, 5, 4096);
        RawAnswer back = await again.SendAsync("POST", "/v1/volumes/v/snapshots/large/rollback", "{}");
        Assert.Equal(200, back.Status);
        Assert.Equal(16UL << 20, JsonSerializer.Deserialize(back.Body, ApiJson.Default.RollbackInfo)!.Volume.SizeBytes);
        await _server.Test.RestartAsync();
        Assert.Equal(16UL << 20, _server.Test.Daemon.Directory.Find("v")!.SizeBytes);
        await ReadsAsync("v", 12 << 20, 5, 4096);
    }

    [Fact]
    public async Task A_rollback_under_attached_clients_must_be_forced_and_cuts_them_off()
    {
        await CutAsync("one", "v");
        Blockd.Daemon daemon = _server.Test.Daemon;
        VolumeRecord volume = daemon.Directory.Find("v")!;
        LoopThread thread = daemon.Stores.Find(volume.StoreId)!.Thread;
        var cut = new TaskCompletionSource<string>();
        uint[] ids = [volume.Id];
        daemon.Sessions.Add(new Session(
            "s", () => ids, null, "unix:x", "l", false, null, DateTimeOffset.UnixEpoch,
            new SessionHandle("nbd", thread, cut.SetResult, () => { }, () => default)));
        RawAnswer refused = await _server.SendAsync("POST", "/v1/volumes/v/snapshots/one/rollback", "{}");
        Assert.Equal((409, "volume-in-use", "force"), (refused.Status, refused.Code, refused.Field));
        Assert.False(cut.Task.IsCompleted);
        Assert.Equal(200, (await _server.SendAsync("POST", "/v1/volumes/v/snapshots/one/rollback", "{\"force\":true}")).Status);
        Assert.Equal("the volume went back to a snapshot", await cut.Task);
    }

    [Fact]
    public async Task What_cannot_be_is_refused()
    {
        await CutAsync("one", "v");
        foreach ((string method, string path, string? body, int status, string code) in Refused)
        {
            RawAnswer answer = await _server.SendAsync(method, path, body);
            Assert.True((answer.Status, answer.Code) == (status, code), $"{method} {path} {body}: {answer.Status} {answer.Body}");
        }

        Assert.Single((await GetAsync("/v1/snapshots", ApiJson.Default.SnapshotList)).Snapshots);
    }

    [Fact]
    public async Task A_task_that_the_store_carries_through_is_not_cancelled()
    {
        var tasks = new TaskRegistry(new MemoryMetaStore(), SystemClock.Instance, Assert.Fail);
        var end = new TaskCompletionSource<string>();
        TaskInfo task = tasks.Start(new TaskSpec("flatten", "v", Cancellable: false), _ => end.Task);
        Assert.False(tasks.Cancel(task.Id));
        Assert.Equal("running", tasks.Find(task.Id)!.State);
        end.SetResult("done");
        while (tasks.Find(task.Id)!.EndedAt is null) await Task.Yield();
        Assert.True(tasks.Cancel(task.Id));
        Assert.Equal("succeeded", tasks.Find(task.Id)!.State);
    }

    private static async Task<ApiServerHandle> ApiServerOf(TestDaemon test)
    {
        AdminApi api = await AdminApi.StartAsync(new AdminRoutes(test.Daemon), test.Daemon.ApiTokens, [new ListenAddress(new(System.Net.IPAddress.Loopback, 0), null)], null, null);
        return new ApiServerHandle(api, (await File.ReadAllTextAsync(test.Daemon.TokenPath)).Trim());
    }

    private async Task<SnapshotList> CutAsync(string name, string volume, bool clean = false) => await PostAsync(
        "/v1/snapshots", $"{{\"name\":\"{name}\",\"volumes\":[\"{volume}\"],\"clean\":{(clean ? "true" : "false")}}}", ApiJson.Default.SnapshotList, 201);

    private async Task PatchAsync(string body)
    {
        RawAnswer answer = await _server.SendAsync("PATCH", "/v1/volumes/v", body);
        Assert.True(answer.Status == 200, answer.Body);
    }

    private Task<T> GetAsync<T>(string path, JsonTypeInfo<T> type) => SendAsync("GET", path, null, 200, type);

    private Task<T> PostAsync<T>(string path, string body, JsonTypeInfo<T> type, int status = 200) => SendAsync("POST", path, body, status, type);

    private async Task<T> SendAsync<T>(string method, string path, string? body, int status, JsonTypeInfo<T> type)
    {
        RawAnswer answer = await _server.SendAsync(method, path, body);
        Assert.True(answer.Status == status, $"{method} {path}: {answer.Status} {answer.Body}");
        return JsonSerializer.Deserialize(answer.Body, type)!;
    }

    private async Task<TaskInfo> EndedAsync(TaskInfo task)
    {
        while (task.EndedAt is null)
        {
            await Task.Delay(20, TestContext.Current.CancellationToken);
            task = await GetAsync($"/v1/tasks/{task.Id}", ApiJson.Default.TaskInfo);
        }

        return task;
    }

    private Task WriteAsync(string volume, ulong at, byte value, int length) => OnAsync(volume, async (store, id) =>
    {
        var content = new byte[Math.Min(length, 1 << 20)];
        content.AsSpan().Fill(value);
        for (int done = 0; done < length; done += content.Length)
            Assert.Equal(IoStatus.Ok, await store.OpenVolume(id)!.WriteAsync(at + (ulong)done, content, WriteFlags.None));
    });

    private Task TrimAsync(string volume, ulong at, ulong length) => OnAsync(volume, async (store, id) =>
        Assert.Equal(IoStatus.Ok, await store.OpenVolume(id)!.TrimAsync(at, length, WriteFlags.None)));

    private Task ReadsAsync(string volume, ulong at, byte value, int length) => OnAsync(volume, (store, id) => ReadAsync(store.OpenVolume(id)!, at, value, length));

    private Task ReadsSnapshotAsync(string volume, string snapshot, ulong at, byte value, int length) => OnAsync(volume, (store, id) =>
        ReadAsync(store.OpenSnapshot(id, store.Snapshots(id).Single(s => s.Name == snapshot).Uuid)!, at, value, length));

    private static async ValueTask ReadAsync(IBlockDevice device, ulong at, byte value, int length)
    {
        var content = new byte[length];
        Assert.Equal(IoStatus.Ok, (await device.ReadAsync(at, content)).Status);
        Assert.True(content.All(b => b == value), $"at {at} there is {content.FirstOrDefault(b => b != value)} instead of {value}");
    }

    private Task OnAsync(string volume, Func<ILayeredStore, uint, ValueTask> work)
    {
        VolumeRecord record = _server.Test.Daemon.Directory.Find(volume)!;
        StoreHost host = _server.Test.Daemon.Stores.Find(record.StoreId)!;
        return host.Thread.InvokeAsync(() => work(host.Store, record.Id));
    }

    private sealed class ApiServerHandle(AdminApi api, string token) : IAsyncDisposable
    {
        public Task<RawAnswer> SendAsync(string method, string path, string? body = null)
        {
            int port = new Uri(api.Addresses[0]).Port;
            string content = body is null ? "" : $"Content-Type: application/json\r\nContent-Length: {body.Length}\r\n";
            return RawHttp.SendAsync(port, $"{method} {path} HTTP/1.1\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nHost: 127.0.0.1:{port}\r\n{content}\r\n{body}");
        }

        public ValueTask DisposeAsync() => api.DisposeAsync();
    }
}
