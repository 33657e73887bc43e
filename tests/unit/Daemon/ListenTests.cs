using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Who may listen how, and how many may come.</summary>
public sealed class ListenTests : IDisposable
{
    private readonly string _file = Path.GetTempFileName();

    public void Dispose() => File.Delete(_file);

    [Theory]
    [InlineData("", "None none")]
    [InlineData("tls=off", "None none")]
    [InlineData("cert", "Optional none")]
    [InlineData("cert tls=off", "None none")]
    [InlineData("cert tls=required", "Required none")]
    [InlineData("cert ca tls-clients=optional", "Optional optional")]
    [InlineData("cert ca tls-clients=required", "Required required")]
    [InlineData("cert ca tls-clients=required tls=optional", "Optional required")]
    [InlineData("cert ca tls-clients=required nbd=0.0.0.0:1", "Required required")]
    [InlineData("cert ca tls-clients=required nbd=0.0.0.0:1 tls=optional", "Optional required")]
    [InlineData("nbd=0.0.0.0:1 insecure=true", "None none")]
    [InlineData("cert nbd=0.0.0.0:1 insecure=true", "Optional none")]
    [InlineData("nbd=0.0.0.0:1", "refused --nbd")]
    [InlineData("cert nbd=0.0.0.0:1", "refused --nbd")]
    [InlineData("cert ca tls-clients=optional nbd=[::]:1", "refused --nbd")]
    [InlineData("cert ca tls-clients=required nbd=0.0.0.0:1 tls=off", "refused --tls")]
    [InlineData("cert ca tls-clients=optional tls=off", "refused --tls")]
    [InlineData("tls=required", "refused --tls")]
    [InlineData("tls=optional", "refused --tls")]
    [InlineData("cert tls=perhaps", "refused --tls")]
    [InlineData("cert tls-clients=required", "refused --tls-clients")]
    [InlineData("cert ca", "refused --tls-ca")]
    [InlineData("connections=0", "refused --connections")]
    [InlineData("connections-per-address=x", "refused --connections-per-address")]
    public void Settings_of_TLS_agree_or_are_refused_by_name(string given, string expected)
    {
        var values = new Dictionary<string, IReadOnlyList<string>>();
        foreach (string word in given.Split(' ', StringSplitOptions.RemoveEmptyEntries))
        {
            if (word == "cert") (values["tls-cert"], values["tls-key"]) = ([_file], [_file]);
            else if (word == "ca") values["tls-ca"] = [_file];
            else values[word[..word.IndexOf('=', StringComparison.Ordinal)]] = [word[(word.IndexOf('=', StringComparison.Ordinal) + 1)..]];
        }

        string found;
        try
        {
            Settings settings = SettingsReader.Read(values, "/tmp/nothing", 1UL << 30);
            found = $"{settings.Tls} {settings.TlsClients.ToString().ToLowerInvariant()}";
        }
        catch (SettingException e)
        {
            found = "refused " + e.Name;
        }

        Assert.Equal(expected, found);
    }

    [Fact]
    public void Connections_are_limited_in_all_and_by_address()
    {
        var sessions = new Sessions(new ConnectionLimits(Connections: 4, PerAddress: 2));
        Assert.Null(sessions.Enter("10.0.0.1:1", 0, out string address));
        Assert.Null(sessions.Enter("10.0.0.1:2", 0, out _));
        Assert.Equal("more than 2 connections of 10.0.0.1 (--connections-per-address)", sessions.Enter("10.0.0.1:3", 0, out _));
        Assert.Null(sessions.Enter("[::1]:3", 0, out _));
        Assert.Null(sessions.Enter("unix:/x", 0, out string unix));
        Assert.Equal("more than 4 connections (--connections)", sessions.Enter("unix:/x", 0, out _));
        sessions.Leave(address);
        Assert.Null(sessions.Enter("10.0.0.1:4", 0, out _));
        sessions.Leave(unix);
        Assert.Null(sessions.Enter("unix:/x", 0, out _));
    }

    [Fact]
    public void Five_failures_in_ten_seconds_block_an_address_for_thirty()
    {
        const ulong second = 1_000_000_000;
        var sessions = new Sessions(new ConnectionLimits());
        for (ulong i = 0; i < 20; i++) sessions.Failed("10.0.0.1", i * 3 * second); // four within any ten seconds
        Assert.Null(sessions.Enter("10.0.0.1:1", 60 * second, out _));
        for (int i = 0; i < 5; i++) sessions.Failed("10.0.0.2", 100 * second);
        Assert.StartsWith("10.0.0.2 is blocked", sessions.Enter("10.0.0.2:1", 129 * second, out _), StringComparison.Ordinal);
        Assert.Null(sessions.Enter("10.0.0.1:1", 129 * second, out _));
        Assert.Null(sessions.Enter("10.0.0.2:1", 131 * second, out _));
        for (int i = 0; i < 50; i++) sessions.Failed("", 100 * second);
        Assert.Null(sessions.Enter("unix:/x", 100 * second, out _));
        // Only so many addresses are remembered.
        for (int i = 0; i < 5000; i++) sessions.Failed($"10.1.{i / 250}.{i % 250}", (200 + (ulong)i) * second);
        Assert.Null(sessions.Enter("10.1.0.0:1", 6000 * second, out _));
    }

    [Theory]
    [InlineData("7", "2", "a:b", "2")]
    [InlineData("7", "0", null, "0")]
    [InlineData("8", "2", null, "0")]
    [InlineData(null, "2", null, "0")]
    [InlineData("7", "x", null, "refused LISTEN_FDS")]
    [InlineData("7", "-1", null, "refused LISTEN_FDS")]
    [InlineData("7", "65", null, "refused LISTEN_FDS")]
    [InlineData("7", "1", "api", "refused LISTEN_FDNAMES")]
    public void Systemds_variables_are_for_one_process_and_in_range(string? pid, string count, string? names, string expected)
    {
        string? Of(string name) => name switch { "LISTEN_PID" => pid, "LISTEN_FDS" => count, _ => names };
        string found;
        try
        {
            found = SystemdSockets.Read(Of, 7).ToString(System.Globalization.CultureInfo.InvariantCulture);
        }
        catch (SettingException e)
        {
            found = "refused " + e.Name;
        }

        Assert.Equal(expected, found);
    }
}
