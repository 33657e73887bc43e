using System.Net;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Core;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>A daemon with its admin API on a free port, for all tests of a class.</summary>
public sealed class ApiServer : IAsyncDisposable
{
    private TestDaemon _test = null!;
    private AdminApi _api = null!;

    private ApiServer()
    {
    }

    public int Port { get; private set; }

    /// <summary>The API's unix socket.</summary>
    public string UnixPath { get; private set; } = "";

    public string Token { get; private set; } = "";

    internal TestDaemon Test => _test;

    internal static Task<ApiServer> StartAsync(ApiLimits? limits = null, TimeProvider? time = null, params string[] arguments) =>
        BeginAsync(TestDaemon.StartAsync(arguments), limits, time);

    /// <summary>With a layer in front of its disks.</summary>
    internal static Task<ApiServer> StartOnAsync(Func<IFile, IFile> layer, params string[] arguments) =>
        BeginAsync(TestDaemon.StartAsync(layer, arguments), null, null);

    private static async Task<ApiServer> BeginAsync(Task<TestDaemon> starting, ApiLimits? limits, TimeProvider? time)
    {
        var server = new ApiServer { _test = await starting };
        await server.ListenAsync(limits, time);
        return server;
    }

    /// <summary>Another daemon takes the directory, on another port.</summary>
    internal async Task RestartAsync()
    {
        await _api.DisposeAsync();
        await _test.RestartAsync();
        await ListenAsync(null, null);
    }

    private async Task ListenAsync(ApiLimits? limits, TimeProvider? time)
    {
        ListenAddress address = new(new IPEndPoint(IPAddress.Loopback, 0), null);
        if (time is not null) _test.Daemon.ApiClock = time;
        var routes = new AdminRoutes(_test.Daemon);
        UnixPath = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        _api = await AdminApi.StartAsync(routes, _test.Daemon.ApiTokens, [address, new(null, UnixPath)], limits, time, _test.Daemon);
        await routes.ResumeAsync(); // as the daemon does
        Port = new Uri(_api.Addresses[0]).Port;
        Token = (await File.ReadAllTextAsync(_test.Daemon.TokenPath)).Trim();
    }

    /// <summary>A right request; <paramref name="body"/> is JSON or null.</summary>
    internal Task<RawAnswer> SendAsync(string method, string path, string? body = null, string headers = "") =>
        RawHttp.SendAsync(Port, Request(method, path, body, headers));

    /// <summary>As the other, with another token.</summary>
    internal Task<RawAnswer> SendAsAsync(string? token, string method, string path, string? body = null, string headers = "")
    {
        string text = Request(method, path, body, headers, token ?? "-");
        return RawHttp.SendAsync(Port, token is null ? text.Replace("Authorization: Bearer -\r\n", "", StringComparison.Ordinal) : text);
    }

    internal string Request(string method, string path, string? body, string headers = "", string? token = null)
    {
        var text = new StringBuilder($"{method} {path} HTTP/1.1\r\nConnection: close\r\nAuthorization: Bearer {token ?? Token}\r\n");
        if (!headers.Contains("Host:", StringComparison.Ordinal)) text.Append($"Host: 127.0.0.1:{Port}\r\n");
        if (body is not null && !headers.Contains("Content-Type:", StringComparison.Ordinal)) text.Append("Content-Type: application/json\r\n");
        if (body is not null && !headers.Contains("Content-Length:", StringComparison.Ordinal) && !headers.Contains("chunked", StringComparison.Ordinal))
            text.Append($"Content-Length: {Encoding.UTF8.GetByteCount(body)}\r\n");
        return text.Append(headers).Append("\r\n").Append(body).ToString();
    }

    public async ValueTask DisposeAsync()
    {
        await _api.DisposeAsync();
        await _test.DisposeAsync();
    }
}
