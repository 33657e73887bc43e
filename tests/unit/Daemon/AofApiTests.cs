using System.Text;
using BlockServer.Client;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Pfcli;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Append-only volumes through the admin API, the client and pfcli, on a real store.</summary>
public sealed class AofApiTests : IAsyncLifetime
{
    private const string Octets = "Content-Type: application/octet-stream\r\n";
    private const string Client = "client=11111111-2222-3333-4444-555555555555";

    private static readonly (string Method, string Path, string? Body, int Status, string Code)[] s_refused =
    [
        ("POST", "/v1/aof", "{\"name\":\"x@y\"}", 400, "invalid-name"),
        ("POST", "/v1/aof", "{\"name\":null}", 400, "invalid-json"),
        ("POST", "/v1/aof", "{}", 400, "invalid-json"),
        ("POST", "/v1/aof", "{\"name\":\"y\",\"sizeBytesMax\":5}", 400, "invalid-size"),
        ("POST", "/v1/aof", "{\"name\":\"plain\"}", 409, "not-append-only"),
        ("GET", "/v1/volumes/none/aof", null, 404, "no-such-volume"),
        ("GET", "/v1/volumes/plain/aof", null, 409, "not-append-only"),
        ("GET", "/v1/volumes/a/aof?wait=31", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/a/aof?beyond=-1&wait=1", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/a/data?offset=1", null, 416, "beyond-end"),
        ("GET", "/v1/volumes/a/data?offset=9223372036854775807", null, 416, "beyond-end"),
        ("GET", "/v1/volumes/a/data?offset=18446744073709551616", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/a/data?length=0", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/a/data?length=4194305", null, 400, "invalid-query"),
        ("GET", "/v1/volumes/plain/data", null, 409, "not-append-only"),
        ("POST", "/v1/volumes/a/rename", "{\"newName\":\"a b\"}", 400, "invalid-name"),
        ("POST", "/v1/volumes/a/rename", "{\"newName\":\"plain\",\"replace\":true}", 409, "not-append-only"),
        ("POST", "/v1/volumes/plain/rename", "{\"newName\":\"b\"}", 409, "not-append-only"),
        ("POST", "/v1/volumes/plain/seal", "{}", 409, "not-append-only"),
        ("POST", "/v1/volumes/none/seal", "{}", 404, "no-such-volume"),
        ("PATCH", "/v1/volumes/a", "{\"image\":true}", 409, "volume-is-append-only"),
    ];

    private static readonly (string Query, string Body, string Headers, int Status, string Code)[] s_badAppends =
    [
        ("", "x", "Content-Type: application/json\r\n", 415, "wrong-content-type"),
        ("", "x", Octets + "Origin: http://evil\r\n", 403, "cross-origin"),
        ("", "", Octets, 400, "empty-append"),
        ("", "", Octets + "Content-Length: 33554433\r\n", 413, "body-too-large"),
        ("", "1\r\nx\r\n0\r\n\r\n", Octets + "Transfer-Encoding: chunked\r\n", 411, "length-needed"),
        ("?client=7&sequence=1", "x", Octets, 400, "invalid-query"),
        ("?client=00000000-0000-0000-0000-000000000000&sequence=1", "x", Octets, 400, "invalid-query"),
        ("?" + Client, "x", Octets, 400, "invalid-query"),
        ("?sequence=1", "x", Octets, 400, "invalid-query"),
        ("?" + Client + "&sequence=0", "x", Octets, 400, "invalid-query"),
        ("?" + Client + "&sequence=9223372036854775807", "x", Octets, 400, "invalid-query"),
        ("?" + Client + "&sequence=1&sequence=2", "x", Octets, 400, "invalid-query"),
        ("?" + Client + "&sequence=2", "x", Octets, 409, "client-unknown"),
        ("?lengths=1,1", "x", Octets, 400, "invalid-query"),
        ("?lengths=2,-1", "x", Octets, 400, "invalid-query"),
        ("?lengths=0,1", "x", Octets, 400, "invalid-query"),
        ("?lengths=,", "x", Octets, 400, "invalid-query"),
        ("?lengths=1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "xxxxxxxxxxxxxxxxx", Octets, 400, "invalid-query"),
        ("?lengths=2147483647,2147483647", "x", Octets, 400, "invalid-query"),
    ];

    private ApiServer _server = null!;

    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync();
        await _server.Test.CreateAsync("plain", 8 << 20);
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    [Fact]
    public async Task Bad_inputs_are_refused_with_their_code_and_change_nothing()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("a", cancel: Cancel);
        foreach ((string method, string path, string? body, int status, string code) in s_refused)
        {
            RawAnswer answer = await _server.SendAsync(method, path, body);
            Assert.True((answer.Status, answer.Code) == (status, code), $"{method} {path} {body}: {answer.Status} {answer.Code}");
        }

        foreach ((string query, string body, string headers, int status, string code) in s_badAppends)
        {
            RawAnswer answer = await _server.SendAsync("POST", "/v1/volumes/a/append" + query, body, headers);
            Assert.True((answer.Status, answer.Code) == (status, code), $"append {query} {headers}: {answer.Status} {answer.Code}");
        }

        Assert.Equal("not-append-only", (await _server.SendAsync("POST", "/v1/volumes/plain/append", "x", Octets)).Code);
        Assert.Equal(401, (await RawHttp.SendAsync(_server.Port, _server.Request("POST", "/v1/volumes/a/append", "x", Octets, token: "wrong"))).Status);
        AofInfo info = await blockd.StatAofAsync("a", Cancel);
        Assert.Equal((0UL, false), (info.LengthBytes, info.Sealed));
    }

    /// <summary>With a client and without one: what the answer does not name has not landed.</summary>
    [Theory]
    [InlineData("")]
    [InlineData("client=11111111-2222-4333-8444-555555555555&sequence=1&")]
    public async Task Of_several_appends_of_a_call_none_lands_behind_one_that_is_refused(string client)
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("small", 1 << 20, Cancel);
        Assert.Equal(200, (await _server.SendAsync("POST", "/v1/volumes/small/append", new string('f', (1 << 20) - 10), Octets)).Status);
        RawAnswer answer = await _server.SendAsync("POST", $"/v1/volumes/small/append?{client}lengths=4,7,3,2", "aaaabbbbbbbcccdd", Octets);
        Assert.Equal(200, answer.Status);
        Assert.Contains("\"code\":\"volume-full\"", answer.Body, StringComparison.Ordinal);
        Assert.Equal((1UL << 20) - 6, (await blockd.StatAofAsync("small", Cancel)).LengthBytes);
    }

    [Fact]
    public async Task Many_writers_append_exactly_once_over_a_restart()
    {
        using BlockdClient first = Connect();
        await first.OpenAofAsync("log", cancel: Cancel);
        var offsets = new Dictionary<ulong, byte[]>();
        var clients = new List<(Guid Client, ulong Next)>();
        for (int round = 0; round < 2; round++)
        {
            using BlockdClient blockd = Connect();
            AofWriter[] writers = [.. Enumerable.Range(0, 4).Select(i => new AofWriter(
                blockd, "log", round == 0 ? null : new AofWriterOptions { Client = clients[i].Client, NextSequence = clients[i].Next }))];
            (byte[] Bytes, Task<ulong> Task)[] appends = [.. Enumerable.Range(0, 200).Select(i =>
            {
                byte[] bytes = Encoding.ASCII.GetBytes($"round {round} append {i} {new string('x', i * 7)}\n");
                return (bytes, writers[i % 4].AppendAsync(bytes, Cancel));
            })];
            foreach ((byte[] bytes, Task<ulong> task) in appends) offsets.Add(await task, bytes);
            clients.Clear();
            foreach (AofWriter writer in writers)
            {
                await writer.DisposeAsync();
                clients.Add((writer.Client, writer.NextSequence));
            }

            Assert.All(clients, c => Assert.Equal(50UL * (ulong)(round + 1) + 1, c.Next));
            if (round == 0) await _server.RestartAsync();
        }

        using BlockdClient reader = Connect();
        // The last of them again: it had landed.
        ulong last = offsets.Keys.Max();
        AppendAnswerInfo repeated = await reader.AppendAsync("log", clients[3].Client, clients[3].Next - 1, [offsets.First(o => IsLastOf(o.Value)).Value], cancel: Cancel);
        Assert.True(repeated.Appends[0].Repeated);
        AofInfo info = await reader.StatAofAsync("log", Cancel);
        Assert.Equal(last + (ulong)offsets[last].Length, info.LengthBytes);
        Assert.Equal(4, info.Clients);
        byte[] all = await ReadAllAsync(reader, "log");
        ulong at = 0;
        foreach ((ulong offset, byte[] bytes) in offsets.OrderBy(o => o.Key))
        {
            Assert.Equal(at, offset);
            Assert.Equal(bytes, all.AsSpan((int)offset, bytes.Length));
            at += (ulong)bytes.Length;
        }

        static bool IsLastOf(byte[] bytes) => Encoding.ASCII.GetString(bytes).StartsWith("round 1 append 199 ", StringComparison.Ordinal);
    }

    [Fact]
    public async Task Appends_and_reads_pass_the_door_of_their_volume()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("limited", cancel: Cancel);
        uint id = _server.Test.Daemon.Directory.Find("limited")!.Id;
        RawAnswer limited = await _server.SendAsync("PATCH", "/v1/volumes/limited", "{\"qos\":{\"iops\":200}}");
        Assert.Equal(200, limited.Status);
        byte[] bytes = [.. Enumerable.Range(0, 100).Select(i => (byte)i)];
        AofWriter[] writers = [.. Enumerable.Range(0, 4).Select(_ => new AofWriter(blockd, "limited"))];
        await Task.WhenAll(Enumerable.Range(0, 60).Select(i => writers[i % 4].AppendAsync(bytes, Cancel)));
        VolumeAdmission door = Assert.Single(_server.Test.Daemon.Volumes.Doors.Find(id));
        ulong throttled = door.Throttled;
        Assert.True(throttled > 0, "no append waited");
        for (int i = 0; i < 60 && door.Throttled == throttled; i++)
            await Task.WhenAll(Enumerable.Range(0, 8).Select(_ => ReadAllAsync(blockd, "limited")));
        Assert.True(door.Throttled > throttled, "no read waited");
        Assert.Equal((0, 0), (door.Inside, door.Waiting));
        Assert.Equal(Enumerable.Repeat(bytes, 60).SelectMany(b => b), await ReadAllAsync(blockd, "limited"));
    }

    [Fact]
    public async Task Joined_appends_lie_where_they_were_answered_to_lie()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("joined", cancel: Cancel);
        var writer = new AofWriter(blockd, "joined", new AofWriterOptions { Joins = true });
        (byte[] Bytes, Task<ulong> Task)[] appends = [.. Enumerable.Range(0, 700).Select(i =>
        {
            byte[] bytes = Encoding.ASCII.GetBytes($"append {i} {new string('y', i * 5)}\n");
            return (bytes, writer.AppendAsync(bytes, Cancel));
        })];
        ulong at = 0;
        foreach ((byte[] bytes, Task<ulong> task) in appends)
        {
            Assert.Equal(at, await task);
            at += (ulong)bytes.Length;
        }

        await writer.DisposeAsync();
        Assert.True(writer.NextSequence < 350, $"{writer.NextSequence} requests");
        byte[] all = await ReadAllAsync(blockd, "joined");
        Assert.Equal(appends.SelectMany(a => a.Bytes), all);
    }

    [Fact]
    public async Task A_large_append_is_read_again_and_one_that_is_too_large_is_refused()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("big", cancel: Cancel);
        await using var writer = new AofWriter(blockd, "big");
        var bytes = new byte[(9 << 20) + 333];
        new Random(1).NextBytes(bytes);
        Assert.Equal(0UL, await writer.AppendAsync(bytes, Cancel));
        Assert.Equal((ulong)bytes.Length, await writer.AppendAsync("tail"u8.ToArray(), Cancel));
        byte[] all = await ReadAllAsync(blockd, "big");
        Assert.Equal([.. bytes, .. "tail"u8], all);
        await Assert.ThrowsAsync<ArgumentOutOfRangeException>(() => writer.AppendAsync(new byte[Units.RequestBytesMax + 1], Cancel));
    }

    [Fact]
    public async Task Who_follows_sees_every_append_and_the_end()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("tail", cancel: Cancel);
        var seen = new MemoryStream();
        Task following = Task.Run(async () =>
        {
            await foreach (AofChunk chunk in blockd.FollowAofAsync("tail", 0, Cancel)) seen.Write(chunk.Bytes.Span);
        }, Cancel);
        await using (var writer = new AofWriter(blockd, "tail"))
        {
            for (int i = 0; i < 20; i++) await writer.AppendAsync(Encoding.ASCII.GetBytes($"{i}\n"), Cancel);
        }

        Assert.True((await blockd.SealAofAsync("tail", Cancel)).Sealed);
        await following;
        Assert.Equal(string.Concat(Enumerable.Range(0, 20).Select(i => $"{i}\n")), Encoding.ASCII.GetString(seen.ToArray()));
        await using var late = new AofWriter(blockd, "tail");
        BlockdException refused = await Assert.ThrowsAsync<BlockdException>(() => late.AppendAsync(new byte[1], Cancel));
        Assert.Equal(("volume-is-sealed", 409), (refused.Code, refused.Status));
        await _server.RestartAsync();
        using BlockdClient again = Connect();
        Assert.True((await again.StatAofAsync("tail", Cancel)).Sealed);
    }

    [Fact]
    public async Task A_rename_replaces_at_once_and_over_a_restart()
    {
        using BlockdClient blockd = Connect();
        AofInfo old = await blockd.OpenAofAsync("events", cancel: Cancel), fresh = await blockd.OpenAofAsync("events.new", cancel: Cancel);
        await blockd.AppendAsync("events", default, 0, ["old"u8.ToArray()], cancel: Cancel);
        await blockd.AppendAsync("events.new", default, 0, ["fresh"u8.ToArray()], cancel: Cancel);
        BlockdException taken = await Assert.ThrowsAsync<BlockdException>(() => blockd.RenameAofAsync("events.new", "events", cancel: Cancel));
        Assert.Equal("name-taken", taken.Code);
        AofInfo renamed = await blockd.RenameAofAsync("events.new", "events", replace: true, Cancel);
        Assert.Equal((fresh.Id, "events", 5UL), (renamed.Id, renamed.Name, renamed.LengthBytes));
        Assert.False(await blockd.AofExistsAsync("events.new", Cancel));
        await _server.RestartAsync();
        using BlockdClient again = Connect();
        Assert.Equal("fresh"u8.ToArray(), await ReadAllAsync(again, "events"));
        AofInfo only = Assert.Single(await again.ListAofAsync(Cancel));
        Assert.Equal(fresh.Id, only.Id);
        Assert.Equal(old.Id, (await again.OpenAofAsync("events", cancel: Cancel)).Id - 1); // opened, not made anew
        await again.DeleteAofAsync("events", fresh.Id, Cancel);
        Assert.Empty(await again.ListAofAsync(Cancel));
    }

    [Fact]
    public async Task Pfcli_does_what_its_verbs_say()
    {
        string file = Path.Combine(_server.Test.Root, "input");
        await File.WriteAllTextAsync(file, "one\ntwo\nthree", Cancel);
        Assert.Contains("log: 0 bytes, at most 1 GiB", await _server.DoneAsync("aof_create", "-v", "log", "-s", "1g"), StringComparison.Ordinal);
        await _server.DoneAsync("check_volume_exists", "-v", "log");
        Assert.Contains("13 bytes appended at offset 0 in 1 appends", await _server.DoneAsync("aof_append", "-v", "log", "-f", file), StringComparison.Ordinal);
        Assert.Contains("13 bytes appended at offset 13 in 3 appends", await _server.DoneAsync("aof_append", "-v", "log", "-f", file, "--lines"), StringComparison.Ordinal);
        string[] once = ["aof_append", "-v", "log", "-f", file, "--client", Guid.NewGuid().ToString()];
        Assert.Contains("at offset 26", await _server.DoneAsync(once), StringComparison.Ordinal);
        Assert.Contains("at offset 26", await _server.DoneAsync(once), StringComparison.Ordinal);
        Assert.Contains("\"lengthBytes\":39", await _server.DoneAsync("--json", "aof_stat", "-v", "log"), StringComparison.Ordinal);
        Assert.Equal("one\ntwo\nthreeone\ntwo\nthreeone\ntwo\nthree", await BytesAsync("aof_read", "-v", "log"));
        Assert.Equal("two\n", await BytesAsync("aof_read", "-v", "log", "-o", "17", "-l", "4"));
        Assert.Contains("1 append-only volumes returned.", await _server.DoneAsync("aof_list"), StringComparison.Ordinal);
        await _server.RefusedAsync("no-such-volume", "aof_stat", "-v", "none");
        await _server.RefusedAsync("not-append-only", "aof_append", "-v", "plain", "-f", file);
        Assert.Equal(1, (await _server.RunAsync("aof_append", "-v", "log", "-f", file + ".none")).Exit);
        Assert.Equal(2, (await _server.RunAsync("aof_append", "-v", "log", "--sequence", "1")).Exit);
        Assert.Equal(1, (await _server.RunAsync("aof_seal", "-v", "log")).Exit); // nobody said yes
        await _server.DoneAsync("aof_create", "-v", "log2");
        Assert.Equal(1, (await _server.RunAsync("aof_rename", "-v", "log", "-n", "log2")).Exit);
        Assert.Contains("log2: 39 bytes", await _server.DoneAsync("aof_rename", "-v", "log", "-n", "log2", "--replace", "--yes"), StringComparison.Ordinal);
        Assert.Contains("sealed", await _server.DoneAsync("aof_seal", "-v", "log2", "--yes"), StringComparison.Ordinal);
        Assert.Equal("three", await BytesAsync("aof_follow", "-v", "log2", "-o", "34"));
        await _server.RefusedAsync("volume-is-sealed", "aof_append", "-v", "log2", "-f", file);
        await _server.DoneAsync("aof_delete", "-v", "log2", "--yes");
        Assert.Contains("0 append-only volumes", await _server.DoneAsync("aof_list"), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Snapshots_and_clones_have_the_length_of_the_cut()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("log", cancel: Cancel);
        await blockd.AppendAsync("log", default, 0, ["first"u8.ToArray()], cancel: Cancel);
        await _server.DoneAsync("create_snapshot", "-v", "log", "-n", "cut");
        await blockd.AppendAsync("log", default, 0, ["second"u8.ToArray()], cancel: Cancel);
        await _server.DoneAsync("clone_volume", "-v", "log", "-n", "cut", "-c", "copy");
        await blockd.AppendAsync("copy", default, 0, ["other"u8.ToArray()], cancel: Cancel);
        Assert.Equal("firstother"u8.ToArray(), await ReadAllAsync(blockd, "copy"));
        Assert.Equal("firstsecond"u8.ToArray(), await ReadAllAsync(blockd, "log"));
        await _server.DoneAsync("rollback_snapshot", "-v", "log", "-n", "cut", "--yes");
        Assert.Equal("first"u8.ToArray(), await ReadAllAsync(blockd, "log"));
    }

    private BlockdClient Connect() => new(new Uri($"http://127.0.0.1:{_server.Port}"), _server.Token);

    private static async Task<byte[]> ReadAllAsync(BlockdClient blockd, string name)
    {
        using var all = new MemoryStream();
        while (true)
        {
            AofChunk chunk = await blockd.ReadAofAsync(name, (ulong)all.Length, 777_777, cancel: Cancel);
            if (chunk.Bytes.Length == 0) return all.ToArray();
            all.Write(chunk.Bytes.Span);
        }
    }

    private async Task<string> BytesAsync(params string[] arguments)
    {
        using var bytes = new MemoryStream();
        using var error = new StringWriter();
        int exit = await CommandLine.RunAsync(
            ["--server", $"http://127.0.0.1:{_server.Port}", "--token-file", _server.Test.Daemon.TokenPath, .. arguments],
            new CliHost
            {
                Out = TextWriter.Null, Error = error, In = new StringReader(""), Environment = _ => null, Transport = () => new SocketsHttpHandler(), Delay = Task.Delay,
                OpenOut = () => bytes,
            },
            Cancel);
        Assert.True(exit == 0, error.ToString());
        return Encoding.ASCII.GetString(bytes.ToArray());
    }
}
