using System.Net.Sockets;
using System.Text;
using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>What lies in deploy/ fits the daemon, and the daemon speaks to systemd.</summary>
public sealed class DeployTests
{
    private static string Deploy(string file)
    {
        string at = AppContext.BaseDirectory;
        while (!File.Exists(Path.Combine(at, "BlockServer.sln"))) at = Path.GetDirectoryName(at.TrimEnd('/'))!;
        return Path.Combine(at, "deploy", file);
    }

    [Fact]
    public void The_sample_settings_are_right()
    {
        var sources = new SettingsSources();
        sources.AddFile(Deploy("blockd.json"));
        Settings settings = sources.Read("/d", 1 << 30);
        Assert.Equal("/var/lib/blockd", settings.DataDir);
        Assert.All(settings.Nbd.Concat(settings.Api), a => Assert.True(a.IsLocal));
    }

    [Fact]
    public void The_commented_settings_of_the_sample_exist_too()
    {
        string[] quoted = [.. File.ReadAllLines(Deploy("blockd.json")).Where(l => l.TrimStart().StartsWith("// \"", StringComparison.Ordinal))];
        Assert.NotEmpty(quoted);
        foreach (string line in quoted)
        {
            foreach (string part in line.Split("\": ")[..^1]) Assert.True(SettingsReader.IsKnown(part[(part.LastIndexOf('"') + 1)..]), line);
        }
    }

    [Fact]
    public void The_unit_starts_what_is_installed_and_waits_for_it()
    {
        string[] unit = File.ReadAllLines(Deploy("blockd.service"));
        Assert.Contains("Type=notify", unit);
        Assert.Contains("ExecStart=/usr/lib/blockd/blockd --config /etc/blockd/blockd.json", unit);
        Assert.Contains("RestartPreventExitStatus=2", unit);
        Assert.Contains("u blockd - ", File.ReadAllText(Deploy("blockd.sysusers.conf")), StringComparison.Ordinal);
        foreach (string directory in new[] { "/var/lib/blockd", "/run/blockd", "/etc/blockd" })
            Assert.Contains("d " + directory + " ", File.ReadAllText(Deploy("blockd.tmpfiles.conf")), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Systemd_is_told_over_its_socket(bool isAbstract)
    {
        string name = Path.Combine(Path.GetTempPath(), $"notify-{Guid.NewGuid():N}");
        using var systemd = new Socket(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
        systemd.Bind(new UnixDomainSocketEndPoint(isAbstract ? "\0" + name : name));
        Assert.Null(SystemdNotify.Send(SystemdNotify.Ready, (isAbstract ? "@" : "") + name));
        var got = new byte[100];
        Assert.Equal("READY=1", Encoding.UTF8.GetString(got, 0, systemd.Receive(got)));
        if (!isAbstract) File.Delete(name);
    }

    [Fact]
    public void Without_systemd_nothing_happens_and_a_wrong_socket_is_told()
    {
        Assert.Null(SystemdNotify.Send(SystemdNotify.Ready, null));
        Assert.Null(SystemdNotify.Send(SystemdNotify.Ready, ""));
        Assert.Contains("neither", SystemdNotify.Send(SystemdNotify.Ready, "vsock:1"), StringComparison.Ordinal);
        Assert.Contains("was not told", SystemdNotify.Send(SystemdNotify.Ready, "/nonexistent/notify"), StringComparison.Ordinal);
    }
}
