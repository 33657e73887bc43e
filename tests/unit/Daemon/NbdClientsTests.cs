using System.Net;
using System.Net.Sockets;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Volumes that are for some NBD clients only: others do not see them, and lose them when the rules change.</summary>
public sealed class NbdClientsTests : IAsyncLifetime
{
    private readonly string _path = Path.Combine(Path.GetTempPath(), $"blockd-nbd-{Guid.NewGuid():N}.sock");
    private ApiServer _server = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, $"nbd=127.0.0.1:0 unix:{_path}");
        await _server.Test.CreateAsync("a");
        await _server.Test.CreateAsync("b");
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    private EndPoint Unix => new UnixDomainSocketEndPoint(_path);

    private EndPoint Tcp => IPEndPoint.Parse(_server.Test.Daemon.Listeners.First(l => l is { Protocol: "nbd" } && !l.Address.StartsWith("unix", StringComparison.Ordinal)).Address);

    private async Task<string> ExportAsync(params string[] options) => await _server.DoneAsync(["export_volume", "-v", "a", .. options]);

    [Fact]
    public async Task Who_is_not_named_neither_sees_nor_gets_the_volume()
    {
        Assert.EndsWith("NBD for CN=web-* or unix only.", (await ExportAsync("--nbd-clients", "CN=web-*", "unix")).Trim(), StringComparison.Ordinal);
        Assert.Equal(["b"], RawNbd.List(Tcp));
        Assert.Equal(["a", "b"], RawNbd.List(Unix));
        using (var stranger = new RawNbd(Tcp, "a")) Assert.Equal("no such export", stranger.Refusal);
        using (var stranger = new RawNbd(Tcp, "a@x")) Assert.Equal("no such export", stranger.Refusal);
        using (var other = new RawNbd(Tcp, "b")) Assert.Null(other.Refusal);
        using (var local = new RawNbd(Unix, "a")) Assert.Equal(new byte[512], local.Read(0, 512));

        await ExportAsync("--nbd-clients", "CN=web-*");
        Assert.Equal(["b"], RawNbd.List(Unix));
        Assert.EndsWith("over: nbd, iscsi.", (await ExportAsync("--nbd-clients", "any")).Trim(), StringComparison.Ordinal);
        Assert.Equal(["a", "b"], RawNbd.List(Tcp));
    }

    [Fact]
    public async Task Who_is_not_named_any_more_is_cut_off_and_nobody_else()
    {
        using var local = new RawNbd(Unix, "a");
        using var remote = new RawNbd(Tcp, "a");
        using var other = new RawNbd(Tcp, "b");
        await ExportAsync("--nbd-clients", "unix");
        Assert.True(remote.Ends());
        local.Write(0, new byte[512]);
        Assert.Equal(new byte[512], other.Read(0, 512));
        await _server.RestartAsync(); // it holds from then on
        Assert.Equal("unix", _server.Test.Daemon.Directory.Find("a")!.Export.NbdClients);
    }

    [Fact]
    public async Task What_names_nobody_is_refused()
    {
        RawAnswer answer = await _server.SendAsync("PATCH", "/v1/volumes/a", """{"export":{"nbdClients":"web"}}""");
        Assert.Equal(400, answer.Status);
        Assert.Contains("invalid-nbd-clients", answer.Body, StringComparison.Ordinal);
        answer = await _server.SendAsync("POST", "/v1/volumes", """{"name":"c","sizeBytes":1048576,"export":{"nbdClients":"CN=x; CN=x"}}""");
        Assert.Equal(201, answer.Status);
        Assert.Equal("CN=x", _server.Test.Daemon.Directory.Find("c")!.Export.NbdClients);
    }
}
