using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Client;
using BlockServer.Core;
using BlockServer.Tests.Unit.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Append streams of a running daemon: who may have one, what ends it, and that the client's writer lands everything once whatever does.</summary>
public sealed class AppendStreamApiTests : IAsyncLifetime
{
    private const string Upgrade = "Connection: Upgrade\r\nUpgrade: blockd-append/1\r\n";

    private ApiServer _server = null!;

    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(new ApiLimits { StreamsPerAddressMax = 3 });
        await _server.Test.CreateAsync("plain", 8 << 20);
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("log", cancel: Cancel);
        await blockd.OpenAofAsync("other", cancel: Cancel);
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    [Fact]
    public async Task Only_who_may_append_gets_a_stream()
    {
        string viewer = (await ApiAccessTests.TokenAsync(_server, "v", "viewer")).Token;
        uint other = _server.Test.Daemon.Directory.Find("other")!.Id;
        string confined = (await ApiAccessTests.TokenAsync(_server, "c", "operator", ",\"volumes\":[\"other\"]")).Token;
        (string Volume, string? Token, string Headers, int Status, string Code)[] cases =
        [
            ("log", null, Upgrade, 401, "wrong-token"),
            ("log", viewer, Upgrade, 403, "wrong-role"),
            ("log", confined, Upgrade, 404, "no-such-volume"),
            ("none", _server.Token, Upgrade, 404, "no-such-volume"),
            ("plain", _server.Token, Upgrade, 409, "not-append-only"),
            ("log", _server.Token, "", 426, "upgrade-needed"),
            ("log", _server.Token, "Connection: Upgrade\r\nUpgrade: websocket\r\n", 426, "upgrade-needed"),
            ("log", _server.Token, Upgrade + "Origin: http://evil\r\n", 403, "cross-origin"),
        ];
        foreach ((string volume, string? token, string headers, int status, string code) in cases)
        {
            using Socket socket = await OpenAsync(volume, token ?? "wrong", headers);
            string answer = await HeadAsync(socket);
            Assert.True(answer.StartsWith($"HTTP/1.1 {status} ", StringComparison.Ordinal) && answer.Contains($"\"{code}\"", StringComparison.Ordinal), $"{volume} {headers}: {answer}");
        }

        using Socket right = await OpenAsync("other", confined, Upgrade);
        Assert.Contains($"Blockd-Volume: {other}\r\n", await HeadAsync(right), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Streams_of_an_address_are_bounded_and_leave_the_other_calls_alone()
    {
        var open = new List<Socket>();
        for (int i = 0; i < 3; i++)
        {
            open.Add(await OpenAsync("log", _server.Token, Upgrade));
            Assert.StartsWith("HTTP/1.1 101 ", await HeadAsync(open[^1]), StringComparison.Ordinal);
        }

        using (Socket fourth = await OpenAsync("log", _server.Token, Upgrade))
            Assert.Contains("\"too-many-streams\"", await HeadAsync(fourth), StringComparison.Ordinal);
        Assert.Equal(200, (await _server.SendAsync("GET", "/v1/volumes/log/aof")).Status);
        foreach (Socket socket in open) socket.Dispose();
        await AssertSoonAsync(async () =>
        {
            using Socket again = await OpenAsync("log", _server.Token, Upgrade);
            return (await HeadAsync(again)).StartsWith("HTTP/1.1 101 ", StringComparison.Ordinal);
        });
    }

    [Theory]
    [InlineData("revoked")]
    [InlineData("denied")]
    public async Task A_live_stream_is_cut_with_its_token_and_the_audit_log_says_so(string how)
    {
        (string id, string token) = await ApiAccessTests.TokenAsync(_server, "t", "operator");
        using Socket socket = await OpenAsync("log", token, Upgrade);
        Assert.StartsWith("HTTP/1.1 101 ", await HeadAsync(socket), StringComparison.Ordinal);
        await RawHttp.SendAllAsync(socket, FrameOf("log", 1, "before"u8));
        var reply = new byte[AppendReply.SizeBytes];
        for (int got = 0; got < reply.Length;) got += await socket.ReceiveAsync(reply.AsMemory(got), Cancel);
        Assert.Null(AppendReply.TryRead(reply, out AppendReply landed));
        Assert.Equal((AppendCode.Done, 0UL, 6UL), (landed.Code, landed.OffsetBytes, landed.LengthBytes));
        if (how == "revoked") Assert.Equal(204, (await _server.SendAsync("DELETE", $"/v1/tokens/{id}")).Status);
        else Assert.Equal(201, (await _server.SendAsync("POST", "/v1/denied", $$"""{"kind":"token","value":"{{id}}"}""")).Status);
        Assert.True(await EndsAsync(socket));
        await AssertSoonAsync(async () => (await _server.SendAsync("GET", "/v1/audit")).Body.Contains("1 appends, 6 bytes", StringComparison.Ordinal));
        string audit = (await _server.SendAsync("GET", "/v1/audit")).Body;
        Assert.Contains($"\"caller\":\"{id}\"", audit, StringComparison.Ordinal);
        Assert.Contains("/v1/volumes/log/append-stream", audit, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Everything_lands_once_while_streams_are_ended_all_the_time()
    {
        using BlockdClient blockd = Connect();
        byte[][] sent = [.. Enumerable.Range(0, 600).Select(i => Encoding.ASCII.GetBytes($"append {i} {new string('x', i)}\n"))];
        using var over = new CancellationTokenSource();
        Task ending = Task.Run(async () =>
        {
            for (int i = 0; !over.IsCancellationRequested; i++)
            {
                await Task.Delay(7, Cancel);
                if (i % 2 == 0) _server.Test.Daemon.AppendStreams.StopAll();
                else _server.Test.Daemon.Calls.Cut("admin");
            }
        }, Cancel);
        var options = new AofWriterOptions { RetryDelay = TimeSpan.FromMilliseconds(1) };
        AofWriter[] writers = [new(blockd, "log", options), new(blockd, "log", options)];
        ulong[] offsets = await Task.WhenAll(sent.Select((bytes, i) => writers[i % 2].AppendAsync(bytes, Cancel)));
        await over.CancelAsync();
        await ending;
        foreach (AofWriter writer in writers)
        {
            await writer.DisposeAsync();
            Assert.Equal(301UL, writer.NextSequence);
        }

        byte[] all = await ReadAllAsync(blockd, "log");
        Assert.Equal(sent.Sum(s => s.Length), all.Length);
        for (int i = 0; i < sent.Length; i++) Assert.Equal(sent[i], all.AsSpan((int)offsets[i], sent[i].Length));
        // Of each writer in the order in which they were asked for.
        for (int i = 2; i < sent.Length; i++) Assert.True(offsets[i] > offsets[i - 2]);
    }

    [Fact]
    public async Task A_refusal_tells_the_culprit_and_those_behind_it_and_those_in_front_have_landed()
    {
        using BlockdClient blockd = Connect();
        await blockd.OpenAofAsync("small", 1 << 20, Cancel);
        await using var writer = new AofWriter(blockd, "small");
        Task<ulong> fits = writer.AppendAsync(new byte[1 << 19], Cancel), full = writer.AppendAsync(new byte[(1 << 19) + 1], Cancel);
        Task<ulong>[] behind = [.. Enumerable.Range(0, 30).Select(_ => writer.AppendAsync(new byte[1 << 18], Cancel))];
        Assert.Equal(0UL, await fits);
        BlockdException why = await Assert.ThrowsAsync<BlockdException>(() => full);
        Assert.Equal(("volume-full", 507), (why.Code, why.Status));
        foreach (Task<ulong> late in behind)
        {
            BlockdException e = await Assert.ThrowsAsync<BlockdException>(() => late);
            Assert.Equal("volume-full", e.Code);
            Assert.Contains("in front of it", e.Message, StringComparison.Ordinal);
        }

        // None of them landed, though each would have fitted.
        Assert.Equal(1UL << 19, (await blockd.StatAofAsync("small", Cancel)).LengthBytes);
        await Assert.ThrowsAsync<BlockdException>(() => writer.AppendAsync(new byte[1], Cancel));
    }

    [Fact]
    public async Task Streams_go_by_the_unix_socket_too()
    {
        using var blockd = new BlockdClient(new Uri("http://localhost"), _server.Token, _server.UnixPath);
        await AppendAsync(blockd);
    }

    [Fact]
    public async Task Streams_go_by_TLS_too()
    {
        string folder = Directory.CreateTempSubdirectory("blockd-append-").FullName;
        try
        {
            var pki = new TestCertificates(folder, "authority");
            pki.Sign("server", TestCertificates.ForServers).Dispose();
            await using ApiServer server = await ApiServer.StartAsync(
                null, null, $"tls-cert={pki.CertificateOf("server")}", $"tls-key={pki.KeyOf("server")}", "api-tls=always");
            var handler = new SocketsHttpHandler { UseProxy = false };
            handler.SslOptions.CertificateChainPolicy = new X509ChainPolicy { TrustMode = X509ChainTrustMode.CustomRootTrust, RevocationMode = X509RevocationMode.NoCheck };
            handler.SslOptions.CertificateChainPolicy.CustomTrustStore.ImportFromPemFile(pki.Path);
            using var blockd = new BlockdClient(new Uri($"https://localhost:{server.Port}"), server.Token, handler);
            await blockd.OpenAofAsync("log", cancel: Cancel);
            await AppendAsync(blockd);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static async Task AppendAsync(BlockdClient blockd)
    {
        await using var writer = new AofWriter(blockd, "log");
        byte[] large = new byte[3 << 20];
        new Random(1).NextBytes(large);
        Task<ulong>[] tasks = [writer.AppendAsync("one"u8.ToArray(), Cancel), writer.AppendAsync(large, Cancel), writer.AppendAsync("three"u8.ToArray(), Cancel)];
        ulong[] offsets = await Task.WhenAll(tasks);
        Assert.True(offsets is [0, 3, 3 + (3 << 20)]);
        byte[] all = await ReadAllAsync(blockd, "log"), expected = [.. "one"u8, .. large, .. "three"u8];
        Assert.Equal(expected, all);
    }

    private BlockdClient Connect() => new(new Uri($"http://127.0.0.1:{_server.Port}"), _server.Token);

    private async Task<Socket> OpenAsync(string volume, string token, string headers)
    {
        Socket socket = await RawHttp.ConnectAsync(_server.Port);
        string request = $"POST /v1/volumes/{volume}/append-stream HTTP/1.1\r\nHost: 127.0.0.1:{_server.Port}\r\nAuthorization: Bearer {token}\r\n{headers}Content-Length: 0\r\n\r\n";
        await RawHttp.SendAllAsync(socket, Encoding.ASCII.GetBytes(request));
        return socket;
    }

    /// <summary>What is answered: the head of a 101, all of a refusal.</summary>
    private static async Task<string> HeadAsync(Socket socket)
    {
        var text = new StringBuilder();
        var bytes = new byte[4096];
        while (true)
        {
            int got = await socket.ReceiveAsync(bytes, Cancel);
            text.Append(Encoding.UTF8.GetString(bytes, 0, got));
            string said = text.ToString();
            if (got == 0 || (said.StartsWith("HTTP/1.1 101", StringComparison.Ordinal) ? said.EndsWith("\r\n\r\n", StringComparison.Ordinal) : said.Contains('}', StringComparison.Ordinal))) return said;
        }
    }

    private byte[] FrameOf(string volume, ulong sequence, ReadOnlySpan<byte> data)
    {
        var bytes = new byte[AppendFrame.SizeBytes + data.Length];
        new AppendFrame
        {
            Volume = _server.Test.Daemon.Directory.Find(volume)!.Id, Key = new(new Guid("11111111-2222-3333-4444-555555555555"), sequence), LengthBytes = (uint)data.Length, DataCrc = Crc32C.Compute(data),
        }.WriteTo(bytes);
        data.CopyTo(bytes.AsSpan(AppendFrame.SizeBytes));
        return bytes;
    }

    private static async Task<bool> EndsAsync(Socket socket)
    {
        try
        {
            return await socket.ReceiveAsync(new byte[1], Cancel) == 0;
        }
        catch (SocketException)
        {
            return true;
        }
    }

    private static async Task AssertSoonAsync(Func<Task<bool>> isSo)
    {
        for (int i = 0; i < 500; i++)
        {
            if (await isSo()) return;
            await Task.Delay(20, Cancel);
        }

        Assert.Fail("it never came");
    }

    private static async Task<byte[]> ReadAllAsync(BlockdClient blockd, string name)
    {
        using var all = new MemoryStream();
        while (true)
        {
            AofChunk chunk = await blockd.ReadAofAsync(name, (ulong)all.Length, cancel: Cancel);
            if (chunk.Bytes.Length == 0) return all.ToArray();
            all.Write(chunk.Bytes.Span);
        }
    }
}
