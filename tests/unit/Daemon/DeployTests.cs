using System.Net.Sockets;
using System.Text;
using System.Text.RegularExpressions;
using BlockServer.Blockd;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>What lies in deploy/ fits the daemon, and the daemon speaks to systemd.</summary>
public sealed partial class DeployTests
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

    // Makes no sense in a file: one client on the standard input of the command.
    private static readonly string[] s_commandLineOnly = ["stdio"];

    [Fact]
    public void The_sample_tells_of_every_setting_once()
    {
        string[] lines = File.ReadAllLines(Deploy("blockd.json"));
        string[] told = [.. lines.Select(l => SampleLine().Match(l)).Where(m => m.Success).Select(m => m.Groups["name"].Value)];
        string[] known = [.. SettingsReader.All.Select(s => s.Name).Except(s_commandLineOnly)];
        string[] lacking = [.. known.Except(told)], wrong = [.. told.Except(known)];
        Assert.True(lacking.Length == 0, $"add to deploy/blockd.json, with the default: {string.Join(", ", lacking)}");
        Assert.True(wrong.Length == 0, $"deploy/blockd.json tells of what is no setting: {string.Join(", ", wrong)}");
        Assert.Equal(told.Distinct(), told);
    }

    [Fact]
    public void What_the_sample_calls_a_default_is_the_default()
    {
        string text = File.ReadAllText(Deploy("blockd.json"));
        Assert.Contains("\n    //\"", text, StringComparison.Ordinal);
        Assert.Equal(Read(text), Read(text.Replace("\n    //\"", "\n    \"", StringComparison.Ordinal)));

        static string[] Read(string json)
        {
            var sources = new SettingsSources();
            sources.AddJson(Encoding.UTF8.GetBytes(json), "blockd.json");
            Settings settings = sources.Read("/d", 1 << 30);
            // That somebody said where it is served is no difference in where it is served.
            return [.. typeof(Settings).GetProperties().Where(p => !p.Name.EndsWith("Default", StringComparison.Ordinal))
                .Select(p => $"{p.Name}: {(p.GetValue(settings) is IEnumerable<object> many ? string.Join(' ', many) : p.GetValue(settings))}")];
        }
    }

    [Fact]
    public void What_the_sample_suggests_is_json()
    {
        foreach (string line in File.ReadAllLines(Deploy("blockd.json")).Where(l => l.Contains("for instance \"", StringComparison.Ordinal)))
        {
            string setting = line[(line.IndexOf("for instance ", StringComparison.Ordinal) + "for instance ".Length)..];
            new SettingsSources().AddJson(Encoding.UTF8.GetBytes("{" + setting + "}"), line);
        }
    }

    [Fact]
    public void The_unit_starts_what_is_installed_and_waits_for_it()
    {
        string[] unit = File.ReadAllLines(Deploy("blockd.service"));
        Assert.Contains("Type=notify", unit);
        Assert.Contains("WatchdogSec=60s", unit);
        Assert.Contains("ExecStart=/usr/lib/blockd/blockd --config /etc/blockd/blockd.json", unit);
        Assert.Contains("RestartPreventExitStatus=2", unit);
        Assert.Contains("u blockd - ", File.ReadAllText(Deploy("blockd.sysusers.conf")), StringComparison.Ordinal);
        foreach (string directory in new[] { "/var/lib/blockd", "/run/blockd", "/etc/blockd" })
            Assert.Contains("d " + directory + " ", File.ReadAllText(Deploy("blockd.tmpfiles.conf")), StringComparison.Ordinal);
    }

    [Fact]
    public void The_socket_unit_listens_where_the_default_is_and_on_loopback_only()
    {
        string[] listens = [.. File.ReadAllLines(Deploy("blockd.socket")).Where(l => l.StartsWith("ListenStream=", StringComparison.Ordinal)).Select(l => l["ListenStream=".Length..])];
        Settings settings = new SettingsSources().Read("/d", 1 << 30);
        Assert.Contains(settings.Nbd[0].ToString(), listens);
        Assert.All(listens, l => Assert.True(l.StartsWith('/') || l.StartsWith("127.0.0.1:", StringComparison.Ordinal), l));
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
    public async Task Systemd_is_told_that_it_lives_only_while_every_loop_answers()
    {
        string name = "\0" + Path.Combine(Path.GetTempPath(), $"notify-{Guid.NewGuid():N}");
        using var systemd = new Socket(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
        systemd.Bind(new UnixDomainSocketEndPoint(name));
        int Told()
        {
            var got = new byte[100];
            int count = 0;
            while (systemd.Available > 0)
            {
                Assert.Equal("WATCHDOG=1", Encoding.UTF8.GetString(got, 0, systemd.Receive(got)));
                count++;
            }

            return count;
        }

        using LoopThread one = LoopFactory.Create("auto", "one"), two = LoopFactory.Create("auto", "two");
        var said = new List<string>();
        await using var watchdog = new SystemdWatchdog([one, two], TimeSpan.FromHours(1), state => SystemdNotify.Send(state, "@" + name[1..]), said.Add);
        TimeSpan patient = TimeSpan.FromMinutes(1), brief = TimeSpan.FromMilliseconds(50);
        Assert.True(await watchdog.TellAsync(patient));
        Assert.Equal(1, Told());

        using var held = new ManualResetEventSlim();
        two.Post(() => held.Wait(TestContext.Current.CancellationToken));
        for (int i = 0; i < 3; i++) Assert.False(await watchdog.TellAsync(brief));
        Assert.Equal(0, Told());
        Assert.Contains("loop two does not answer", Assert.Single(said), StringComparison.Ordinal);
        held.Set();
        Assert.True(await watchdog.TellAsync(patient));
        Assert.Equal(1, Told());

        // A loop that has ended does not answer either.
        one.Dispose();
        Assert.False(await watchdog.TellAsync(brief));
        Assert.Equal(0, Told());
    }

    [Fact]
    public async Task The_watchdog_tells_by_itself_and_ends_at_once_though_a_loop_is_stuck()
    {
        var told = new TaskCompletionSource();
        using LoopThread loop = LoopFactory.Create("auto", "loop");
        var watchdog = new SystemdWatchdog([loop], TimeSpan.FromMilliseconds(20), _ =>
        {
            told.TrySetResult();
            return null;
        }, _ => { });
        watchdog.Start();
        await told.Task;
        using var held = new ManualResetEventSlim();
        loop.Post(() => held.Wait(TestContext.Current.CancellationToken));
        await watchdog.DisposeAsync();
        held.Set();
    }

    [Theory]
    [InlineData("60000000", "7", 20_000)]
    [InlineData("60000000", null, 20_000)]
    [InlineData("60000000", "8", null)] // another process is watched
    [InlineData(null, "7", null)]
    [InlineData("0", "7", null)]
    [InlineData("-3", "7", null)]
    [InlineData("soon", "7", null)]
    [InlineData("18446744073709551615", "7", null)]
    public void Systemd_says_how_often_it_wants_to_be_told(string? micros, string? pid, int? every) =>
        Assert.Equal(every, (int?)SystemdWatchdog.EveryOf(micros, pid, 7)?.TotalMilliseconds);

    [Fact]
    public void Without_systemd_nothing_happens_and_a_wrong_socket_is_told()
    {
        Assert.Null(SystemdNotify.Send(SystemdNotify.Ready, null));
        Assert.Null(SystemdNotify.Send(SystemdNotify.Ready, ""));
        Assert.Contains("neither", SystemdNotify.Send(SystemdNotify.Ready, "vsock:1"), StringComparison.Ordinal);
        Assert.Contains("was not told", SystemdNotify.Send(SystemdNotify.Ready, "/nonexistent/notify"), StringComparison.Ordinal);
    }

    // A setting that holds, one at its default behind //, or one that is only suggested.
    [GeneratedRegex("""^    (//|// for instance )?"(?<name>[a-z-]+)":""")]
    private static partial Regex SampleLine();
}
