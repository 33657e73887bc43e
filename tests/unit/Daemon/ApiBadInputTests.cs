using System.Net.Sockets;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Tests.Unit.Cluster;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Every bad input of the admin API, against a real listener: each costs its own request, with a stable code.</summary>
public sealed class ApiBadInputTests : IAsyncLifetime
{
    private ApiServer _server = null!;

    public async ValueTask InitializeAsync() => _server = await ApiServer.StartAsync();

    public async ValueTask DisposeAsync()
    {
        // Whatever came, the daemon goes on, and nothing was made.
        Assert.Equal(200, (await _server.SendAsync("GET", "/v1/node")).Status);
        Assert.Empty(_server.Test.Daemon.Directory.List());
        Assert.Single(_server.Test.Daemon.Stores.All);
        await _server.DisposeAsync();
    }

    private async Task ExpectAsync(int status, string? code, Task<RawAnswer> asked, string? field = null)
    {
        RawAnswer answer = await asked;
        Assert.True((status, code) == (answer.Status, answer.Code), $"{answer.Status} {answer.Code}, wanted {status} {code}: {answer.Head} {answer.Body}");
        if (field is not null) Assert.Equal(field, answer.Field);
        Assert.DoesNotContain(_server.Token, answer.Body, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", answer.Body, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_missing_or_wrong_token_is_refused()
    {
        string host = $"Host: 127.0.0.1:{_server.Port}\r\nConnection: close\r\n";
        await ExpectAsync(401, "no-token", RawHttp.SendAsync(_server.Port, $"GET /v1/node HTTP/1.1\r\n{host}\r\n"));
        await ExpectAsync(401, "no-token", RawHttp.SendAsync(_server.Port, $"GET /v1/node HTTP/1.1\r\n{host}Authorization: Basic YTpi\r\n\r\n"));
        await ExpectAsync(401, "no-token", RawHttp.SendAsync(
            _server.Port, $"GET /v1/node HTTP/1.1\r\n{host}Authorization: Bearer {_server.Token}\r\nAuthorization: Bearer x\r\n\r\n"));
        await ExpectAsync(401, "wrong-token", RawHttp.SendAsync(_server.Port, _server.Request("GET", "/v1/node", null, token: "x")));
        await ExpectAsync(401, "wrong-token", RawHttp.SendAsync(_server.Port, _server.Request("POST", "/v1/volumes", "{}", token: _server.Token[..^1])));
        Assert.Equal("ok", (await RawHttp.SendAsync(_server.Port, $"GET /healthz HTTP/1.1\r\n{host}\r\n")).Body);
    }

    [Theory]
    [InlineData("localhost", 200)]
    [InlineData("LOCALHOST:1", 200)]
    [InlineData("127.0.0.1", 200)]
    [InlineData("127.0.0.2", 421)]
    [InlineData("192.0.2.1", 421)]
    [InlineData("0.0.0.0", 421)]
    [InlineData("[::1]", 421)]
    [InlineData("evil.example", 421)]
    [InlineData("localhost.evil.example", 421)]
    [InlineData("127.0.0.1.evil.example", 421)]
    [InlineData("2130706433", 421)]
    public async Task Only_our_own_names_are_answered(string host, int status) =>
        await ExpectAsync(status, status == 421 ? "wrong-host" : null, _server.SendAsync("GET", "/v1/node", null, $"Host: {host}\r\n"));

    [Theory]
    [InlineData("Origin: http://evil.example\r\n")]
    [InlineData("Origin: null\r\n")]
    [InlineData("Sec-Fetch-Site: cross-site\r\n")]
    [InlineData("Sec-Fetch-Site: same-site\r\n")]
    public async Task Another_web_page_changes_nothing(string headers) =>
        await ExpectAsync(403, "cross-origin", _server.SendAsync("POST", "/v1/volumes", """{"name":"a","sizeBytes":1048576}""", headers));

    [Theory]
    [InlineData("text/plain")]
    [InlineData("application/x-www-form-urlencoded")]
    [InlineData("multipart/form-data; boundary=x")]
    [InlineData("application/jsonx")]
    [InlineData("")]
    public async Task A_change_that_is_not_json_is_refused(string type) =>
        await ExpectAsync(415, "wrong-content-type", _server.SendAsync("POST", "/v1/volumes", """{"name":"a","sizeBytes":1048576}""", $"Content-Type: {type}\r\n"));

    [Fact]
    public async Task A_change_without_a_body_is_refused() =>
        await ExpectAsync(415, "wrong-content-type", _server.SendAsync("POST", "/v1/volumes", null, "Content-Length: 0\r\n"));

    [Fact]
    public async Task A_body_above_a_mebibyte_is_refused_declared_or_not()
    {
        string large = new(' ', (1 << 20) + 1);
        await ExpectAsync(413, "body-too-large", _server.SendAsync("POST", "/v1/volumes", "{}", "Content-Length: 1048577\r\n"));
        await ExpectAsync(413, "body-too-large", _server.SendAsync("POST", "/v1/volumes", "{}", "Content-Length: 9000000000000000000\r\n"));
        await ExpectAsync(413, "body-too-large", _server.SendAsync(
            "POST", "/v1/volumes", $"{large.Length:x}\r\n{large}\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"));
    }

    [Theory]
    [InlineData("", null)]
    [InlineData("{", null)]
    [InlineData("null", null)]
    [InlineData("[]", null)]
    [InlineData("\"name\"", null)]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576}{}", null)]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576,}", null)]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576 /* c */}", null)]
    [InlineData("{\"sizeBytes\":1048576}", "name")]
    [InlineData("{\"name\":\"a\"}", "sizeBytes")]
    [InlineData("{\"name\":null,\"sizeBytes\":1048576}", "name")]
    [InlineData("{\"name\":7,\"sizeBytes\":1048576}", "name")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":\"1048576\"}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":-1}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576.5}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1e999}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":18446744073709551616}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":NaN}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":Infinity}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":\"NaN\"}", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"name\":\"b\",\"sizeBytes\":1048576}", "name")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576,\"sise\":1}", "sise")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576,\"storeId\":\"x\"}", "storeId")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576,\"export\":{\"nbd\":1}}", "export.nbd")]
    public async Task A_body_that_is_wrong_names_its_field(string body, string? field) =>
        await ExpectAsync(400, "invalid-json", _server.SendAsync("POST", "/v1/volumes", body.Length == 0 ? " " : body), field);

    [Fact]
    public async Task A_body_that_is_too_deep_or_no_text_is_refused()
    {
        string deep = string.Concat(Enumerable.Repeat("{\"export\":", 40)) + "1" + new string('}', 40);
        await ExpectAsync(400, "invalid-json", _server.SendAsync("POST", "/v1/volumes", deep));
        await ExpectAsync(400, "invalid-json", _server.SendAsync("POST", "/v1/volumes", new string('[', 500_000)));
        byte[] head = Encoding.ASCII.GetBytes(_server.Request("POST", "/v1/volumes", "{\"name\":\"__\"}"));
        int at = head.AsSpan().IndexOf("__"u8);
        (head[at], head[at + 1]) = (0xC3, 0x28);
        using Socket socket = await RawHttp.ConnectAsync(_server.Port);
        await RawHttp.SendAllAsync(socket, head);
        await ExpectAsync(400, "invalid-json", RawHttp.ReadAsync(socket));
    }

    [Theory]
    [InlineData("{\"name\":\"\",\"sizeBytes\":1048576}", "invalid-name", "name")]
    [InlineData("{\"name\":\"../etc\",\"sizeBytes\":1048576}", "invalid-name", "name")]
    [InlineData("{\"name\":\"UPPER\",\"sizeBytes\":1048576}", "invalid-name", "name")]
    [InlineData("{\"name\":\"a\\u0000b\",\"sizeBytes\":1048576}", "invalid-name", "name")]
    [InlineData("{\"name\":\"0123456789012345678901234567890123456789012345678901234567890123\",\"sizeBytes\":1048576}", "invalid-name", "name")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":0}", "invalid-size", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":18446744073709551615}", "invalid-size", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048577}", "invalid-size", "sizeBytes")]
    [InlineData("{\"name\":\"a\",\"sizeBytes\":1048576,\"repCount\":0}", "invalid-rep-count", "repCount")]
    public async Task A_value_that_cannot_be_is_refused_with_its_field(string body, string code, string field) =>
        await ExpectAsync(400, code, _server.SendAsync("POST", "/v1/volumes", body), field);

    [Theory]
    [InlineData("{\"path\":\"relative.blk\"}", "invalid-path")]
    [InlineData("{\"path\":\"\"}", "invalid-path")]
    [InlineData("{\"path\":\"/tmp/a\\u0000b\"}", "invalid-path")]
    [InlineData("{\"path\":\"/nonexistent-disk\",\"name\":\"A B\"}", "invalid-name")]
    public async Task A_disk_that_cannot_be_is_refused(string body, string code) =>
        await ExpectAsync(400, code, _server.SendAsync("POST", "/v1/disks", body));

    [Theory]
    [InlineData("/")]
    [InlineData("/v1")]
    [InlineData("/v1/")]
    [InlineData("/v2/node")]
    [InlineData("//v1/node")]
    [InlineData("/v1//node")]
    [InlineData("/v1/node/")]
    [InlineData("/v1/nodes")]
    [InlineData("/v1/../v1/node")]
    [InlineData("/v1/x/../node")]
    [InlineData("/v1/%2e%2e/v1/node")]
    [InlineData("/v1/x%2f..%2fnode")]
    [InlineData("/v1%2Fnode")]
    [InlineData("/v1/volumes/a%2Fb")]
    [InlineData("/v1/volumes/..%5c..%5cetc")]
    [InlineData("/v1/volumes/a%00b")]
    [InlineData("/v1/tasks/99999999999999999999999")]
    [InlineData("/v1/tasks/-1")]
    [InlineData("/v1/tasks/0x1")]
    public async Task A_path_that_is_none_of_ours_is_not_found(string path)
    {
        RawAnswer answer = await _server.SendAsync("GET", path);
        // What is no HTTP at all (a NUL) is refused before it comes to us.
        Assert.True(answer.Status == 404 || (path.Contains("%00", StringComparison.Ordinal) && answer.Status == 400), $"{path}: {answer.Status}");
    }

    [Fact]
    public async Task Every_other_method_is_refused_with_those_that_would_do()
    {
        foreach (ApiRoute route in ApiRouteTable.All)
        {
            string path = "/v1/" + route.Template.Replace("{name}", "a", StringComparison.Ordinal).Replace("{id}", "1", StringComparison.Ordinal);
            string[] allowed = [.. ApiRouteTable.All.Where(r => r.Template == route.Template).Select(r => r.Method)];
            foreach (string method in new[] { "GET", "POST", "PATCH", "DELETE", "PUT", "OPTIONS", "TRACE", "BREW" })
            {
                if (allowed.Contains(method)) continue;
                RawAnswer answer = await _server.SendAsync(method, path, method is "POST" or "PATCH" or "PUT" ? "{}" : null);
                Assert.True(answer is { Status: 405, Code: "wrong-method" }, $"{method} {path}: {answer.Status} {answer.Body}");
                foreach (string one in allowed) Assert.Contains(one, answer.Head, StringComparison.Ordinal);
            }
        }
    }

    [Theory]
    [InlineData("force=yes", "invalid-query")]
    [InlineData("id=1&id=2", "invalid-query")]
    [InlineData("id=-1", "invalid-query")]
    [InlineData("id=1e3", "invalid-query")]
    [InlineData("id=99999999999999999999", "invalid-query")]
    [InlineData("", "id-or-revision-needed")]
    public async Task A_destruction_must_name_what_it_destroys(string query, string code)
    {
        await _server.Test.CreateAsync("here");
        await ExpectAsync(400, code, _server.SendAsync("DELETE", "/v1/volumes/here?" + query));
        await ExpectAsync(412, "id-differs", _server.SendAsync("DELETE", "/v1/volumes/here?id=77"));
        await ExpectAsync(412, "revision-differs", _server.SendAsync("DELETE", "/v1/volumes/here?revision=1"));
        await ExpectAsync(412, "revision-differs", _server.SendAsync("PATCH", "/v1/volumes/here", """{"revision":1,"name":"there"}"""));
        Assert.Equal(204, (await _server.SendAsync("DELETE", "/v1/volumes/here?id=1")).Status);
    }

    [Theory]
    [InlineData("GET /v1/node HTTP/1.1\r\n\r\n")]
    [InlineData("GET /v1/node HTTP/9.9\r\nHost: localhost\r\n\r\n")]
    [InlineData("GET\r\n\r\n")]
    [InlineData("\0\0\0\0\r\n\r\n")]
    [InlineData("GET /v1/node HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")]
    [InlineData("POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef")]
    [InlineData("POST /v1/volumes HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n")]
    [InlineData("GET http://evil.example/v1/node HTTP/1.1\r\nHost: localhost\r\n\r\n")]
    [InlineData("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    public async Task What_is_no_http_is_refused_and_closed(string request)
    {
        RawAnswer answer = await RawHttp.SendAsync(_server.Port, request);
        Assert.True(answer.Status is 0 or (>= 400 and < 500) or 505, $"{answer.Status}");
    }

    [Fact]
    public async Task Headers_above_16_kib_are_refused() =>
        Assert.Equal(431, (await _server.SendAsync("GET", "/v1/node", null, $"X-Long: {new string('x', 17 << 10)}\r\n")).Status);

    [Fact]
    public async Task A_long_request_line_is_refused() =>
        Assert.Equal(414, (await _server.SendAsync("GET", "/v1/volumes/" + new string('a', 17 << 10))).Status);

    [Fact]
    public async Task Errors_of_the_unix_socket_kind_are_no_business_of_the_browser()
    {
        RawAnswer answer = await _server.SendAsync("GET", "/v1/volumes/none");
        Assert.Contains("no-store", answer.Head, StringComparison.Ordinal);
        Assert.Contains("nosniff", answer.Head, StringComparison.Ordinal);
        Assert.Equal("no-such-volume", answer.Code);
    }
}

/// <summary>Those who are slow, many or guessing.</summary>
public sealed class ApiLimitTests
{
    private static readonly ApiLimits Hasty = new()
    {
        HeadersTimeout = TimeSpan.FromMilliseconds(300), SlowBodyGrace = TimeSpan.FromMilliseconds(1100), BodyBytesPerSecondMin = 1e6,
    };

    [Fact]
    public async Task Slow_headers_are_cut_off()
    {
        await using ApiServer server = await ApiServer.StartAsync(Hasty);
        using Socket socket = await RawHttp.ConnectAsync(server.Port);
        await RawHttp.SendAllAsync(socket, "GET /v1/node HTTP/1.1\r\nHost: loc"u8.ToArray());
        Assert.Equal(408, (await RawHttp.ReadAsync(socket)).Status);
    }

    [Fact]
    public async Task A_slow_body_is_cut_off_with_its_code()
    {
        await using ApiServer server = await ApiServer.StartAsync(Hasty);
        using Socket socket = await RawHttp.ConnectAsync(server.Port);
        await RawHttp.SendAllAsync(socket, Encoding.UTF8.GetBytes(server.Request("POST", "/v1/volumes", "{\"na", "Content-Length: 1000\r\n")));
        RawAnswer answer = await RawHttp.ReadAsync(socket);
        Assert.Equal((408, "too-slow"), (answer.Status, answer.Code));
    }

    [Fact]
    public async Task One_address_has_16_connections_and_gets_them_back()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        var open = new List<Socket>();
        for (int i = 0; i < 16; i++) open.Add(await KeptAsync(server));
        Assert.Equal(0, (await server.SendAsync("GET", "/v1/node")).Status);
        foreach (Socket socket in open) socket.Dispose();
        RawAnswer answer;
        do answer = await server.SendAsync("GET", "/v1/node");
        while (answer.Status == 0);
        Assert.Equal(200, answer.Status);
    }

    [Fact]
    public async Task The_process_has_a_limit_too()
    {
        await using ApiServer server = await ApiServer.StartAsync(new ApiLimits { ConnectionsMax = 3 });
        var open = new List<Socket>();
        for (int i = 0; i < 3; i++) open.Add(await KeptAsync(server));
        Assert.Equal(0, (await server.SendAsync("GET", "/v1/node")).Status);
        foreach (Socket socket in open) socket.Dispose();
    }

    [Fact]
    public async Task Five_wrong_tokens_block_the_next_guess_for_30_seconds()
    {
        var time = new ManualTime();
        await using ApiServer server = await ApiServer.StartAsync(null, time);
        async Task<int> GuessAsync() => (await RawHttp.SendAsync(server.Port, server.Request("GET", "/v1/node", null, token: "wrong"))).Status;
        for (int i = 0; i < 4; i++) Assert.Equal(401, await GuessAsync());
        time.Move(TimeSpan.FromSeconds(11)); // four within ten seconds are forgiven
        for (int i = 0; i < 5; i++) Assert.Equal(401, await GuessAsync());
        RawAnswer blocked = await RawHttp.SendAsync(server.Port, server.Request("GET", "/v1/node", null, token: "wrong"));
        Assert.Equal((429, "too-many-failures"), (blocked.Status, blocked.Code));
        Assert.Contains("Retry-After: 30", blocked.Head, StringComparison.Ordinal);
        Assert.Equal(200, (await server.SendAsync("GET", "/v1/node")).Status); // the right token is no guess
        time.Move(TimeSpan.FromSeconds(29));
        Assert.Equal(429, await GuessAsync());
        time.Move(TimeSpan.FromSeconds(2));
        Assert.Equal(401, await GuessAsync());
    }

    private static async Task<Socket> KeptAsync(ApiServer server)
    {
        Socket socket = await RawHttp.ConnectAsync(server.Port);
        await RawHttp.SendAllAsync(socket, Encoding.ASCII.GetBytes("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        Assert.True(await socket.ReceiveAsync(new byte[4096]) > 0);
        return socket;
    }
}
