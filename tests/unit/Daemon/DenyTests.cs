using System.Net.Sockets;
using System.Text;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Who is denied is cut on every front end, refused thereafter, and after a restart.</summary>
public sealed class DenyTests : IAsyncLifetime
{
    private const string Initiator = "iqn.2026-11.org.example:bad";

    private ApiServer _server = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, "nbd=127.0.0.1:0", "iscsi=127.0.0.1:0");
        await _server.Test.CreateAsync("vol");
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    private int PortOf(string protocol) =>
        int.Parse(_server.Test.Daemon.Listeners.First(l => l.Protocol == protocol).Address.Split(':')[^1], System.Globalization.CultureInfo.InvariantCulture);

    private async Task<RawAnswer> DenyAsync(string kind, string value)
    {
        RawAnswer answer = await _server.SendAsync("POST", "/v1/denied", $$"""{"kind":"{{kind}}","value":"{{value}}","reason":"test"}""");
        Assert.True(answer.Status == 201, answer.Body);
        return answer;
    }

    /// <summary>Attaches over NBD; the socket that stays open.</summary>
    private async Task<Socket> AttachNbdAsync()
    {
        Socket socket = await RawHttp.ConnectAsync(PortOf("nbd"));
        await ReceiveAsync(socket, 18);
        byte[] name = Encoding.ASCII.GetBytes("vol");
        byte[] go = [0, 0, 0, 3, .. "IHAVEOPT"u8, 0, 0, 0, 7, 0, 0, 0, (byte)(name.Length + 6), 0, 0, 0, (byte)name.Length, .. name, 0, 0];
        await RawHttp.SendAllAsync(socket, go);
        while (true)
        {
            byte[] head = await ReceiveAsync(socket, 20);
            uint type = (uint)(head[12] << 24 | head[13] << 16 | head[14] << 8 | head[15]);
            await ReceiveAsync(socket, head[18] << 8 | head[19]);
            if (type == 1) return socket; // the acknowledgement: transmission
        }
    }

    private static async Task<byte[]> ReceiveAsync(Socket socket, int count)
    {
        var bytes = new byte[count];
        for (int got = 0; got < count;)
        {
            int now = await socket.ReceiveAsync(bytes.AsMemory(got));
            if (now == 0) throw new EndOfStreamException();
            got += now;
        }

        return bytes;
    }

    private static async Task<bool> EndsAsync(Socket socket)
    {
        try
        {
            return await socket.ReceiveAsync(new byte[1]) == 0;
        }
        catch (SocketException)
        {
            return true;
        }
    }

    [Fact]
    public async Task An_address_is_cut_over_NBD_and_refused_until_it_is_allowed()
    {
        // The API is called from another address than NBD, or it would deny itself.
        using Socket attached = await AttachNbdAsync();
        using Socket shaking = await RawHttp.ConnectAsync(PortOf("nbd"));
        await ReceiveAsync(shaking, 18); // it has begun, and negotiates nothing
        Assert.Equal("would-deny-you", (await _server.SendAsync("POST", "/v1/denied", """{"kind":"address","value":"127.0.0.0/8"}""")).Code);
        Assert.Null(await _server.Test.Daemon.DenyList.DenyAsync(new("address", "127.0.0.1/32", null, default)));
        Assert.True(_server.Test.Daemon.EnforceDenied() >= 2);
        Assert.True(await EndsAsync(attached));
        Assert.True(await EndsAsync(shaking));
        using Socket later = await RawHttp.ConnectAsync(PortOf("nbd"));
        Assert.True(await EndsAsync(later));
        Assert.Equal(0, (await _server.SendAsync("GET", "/v1/node")).Status); // the API too
        Assert.Null(await _server.Test.Daemon.DenyList.AllowAsync("address", "127.0.0.1/32"));
        _server.Test.Daemon.EnforceDenied();
        using Socket again = await AttachNbdAsync();
        Assert.Equal(200, (await _server.SendAsync("GET", "/v1/node")).Status);
    }

    [Fact]
    public async Task An_initiator_is_cut_and_refused_after_a_restart_too()
    {
        string target = _server.Test.Daemon.Settings.IscsiPrefix + ":vol";
        using var good = new RawInitiator(PortOf("iscsi"), target);
        using var bad = new RawInitiator(PortOf("iscsi"), target, Initiator, isid: 0x400001370001);
        Assert.Equal((0, 0), (good.Status, bad.Status));
        RawAnswer denied = await DenyAsync("initiator", Initiator.ToUpperInvariant());
        Assert.Contains("\"cut\":1", denied.Body, StringComparison.Ordinal);
        Assert.ThrowsAny<Exception>(() => bad.Send("000000000000"));
        Assert.Equal(0, good.Send("000000000000").Status is 0 or 2 ? 0 : 1); // a unit attention at most
        using (var again = new RawInitiator(PortOf("iscsi"), target, Initiator)) Assert.Equal(0x0202, again.Status);
        await _server.RestartAsync();
        using (var later = new RawInitiator(PortOf("iscsi"), target, Initiator)) Assert.Equal(0x0202, later.Status);
        Assert.Equal(204, (await _server.SendAsync("DELETE", "/v1/denied?kind=initiator&value=" + Uri.EscapeDataString(Initiator))).Status);
        using var allowed = new RawInitiator(PortOf("iscsi"), target, Initiator);
        Assert.Equal(0, allowed.Status);
    }

    [Fact]
    public async Task A_token_is_refused_and_its_call_cut_off()
    {
        (string id, string token) = await ApiAccessTests.TokenAsync(_server, "bad", "operator");
        using Socket slow = await RawHttp.ConnectAsync(_server.Port);
        // A call that is being answered: it waits for the rest of its body.
        await RawHttp.SendAllAsync(slow, Encoding.ASCII.GetBytes(_server.Request("POST", "/v1/volumes", "{", "Content-Length: 100\r\n", token)));
        while (!_server.Test.Daemon.Calls.Has(id)) await Task.Yield();
        await DenyAsync("token", id);
        Assert.True(await EndsAsync(slow));
        RawAnswer answer = await _server.SendAsAsync(token, "GET", "/v1/volumes");
        Assert.Equal((403, "denied"), (answer.Status, answer.Code));
        await _server.RestartAsync();
        Assert.Equal("denied", (await _server.SendAsAsync(token, "GET", "/v1/volumes")).Code);
        Assert.Equal(204, (await _server.SendAsync("DELETE", $"/v1/denied?kind=token&value={id}")).Status);
        Assert.Equal(200, (await _server.SendAsAsync(token, "GET", "/v1/volumes")).Status);
    }

    [Fact]
    public async Task A_revoked_token_loses_the_call_that_is_being_answered()
    {
        (string id, string token) = await ApiAccessTests.TokenAsync(_server, "bad", "operator");
        using Socket slow = await RawHttp.ConnectAsync(_server.Port);
        await RawHttp.SendAllAsync(slow, Encoding.ASCII.GetBytes(_server.Request("POST", "/v1/volumes", "{", "Content-Length: 100\r\n", token)));
        while (!_server.Test.Daemon.Calls.Has(id)) await Task.Yield();
        Assert.Equal(204, (await _server.SendAsync("DELETE", "/v1/tokens/" + id)).Status);
        Assert.True(await EndsAsync(slow));
    }

    [Theory]
    [InlineData("user", "x", "invalid-kind", "kind")]
    [InlineData("address", "10", "invalid-value", "value")]
    [InlineData("address", "10.0.0.1/8", "invalid-value", "value")]
    [InlineData("initiator", "not an iqn", "invalid-value", "value")]
    [InlineData("token", "none", "no-such-token", "value")]
    public async Task Who_cannot_be_denied_is_said(string kind, string value, string code, string field)
    {
        RawAnswer answer = await _server.SendAsync("POST", "/v1/denied", $$"""{"kind":"{{kind}}","value":"{{value}}"}""");
        Assert.Equal((code, field), (answer.Code, answer.Field));
        Assert.Contains("\"denied\":[]", (await _server.SendAsync("GET", "/v1/denied")).Body, StringComparison.Ordinal);
    }
}
