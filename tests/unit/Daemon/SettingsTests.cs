using System.Text;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Nbd;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Settings: where they come from, which wins, and what is refused.</summary>
public sealed class SettingsTests
{
    private static Settings Read(params string[] arguments)
    {
        var sources = new SettingsSources();
        foreach (IGrouping<string, string> same in arguments.GroupBy(a => a.Split('=')[0], a => a[(a.IndexOf('=', StringComparison.Ordinal) + 1)..]))
            sources.AddArgument(same.Key, [.. same]);
        return sources.Read("/d", 8UL << 30);
    }

    private static SettingsSources Json(string json)
    {
        var sources = new SettingsSources();
        sources.AddJson(Encoding.UTF8.GetBytes(json), "b.json");
        return sources;
    }

    [Fact]
    public void Without_any_setting_everything_has_its_default()
    {
        Settings s = Read();
        Assert.Equal("/d", s.DataDir);
        Assert.Equal(["127.0.0.1:10809", "unix:/d/nbd.sock"], s.Nbd.Select(a => a.ToString()));
        Assert.Equal(["127.0.0.1:49180"], s.Api.Select(a => a.ToString()));
        Assert.Null(s.StoreSizeBytes);
        Assert.Equal((Durability.Flush, "auto", 1UL << 30, 1), (s.Durability, s.Engine, s.MetadataRamBytes, s.Loops));
        Assert.Equal(64UL << 20, s.RelayoutBytesPerSecond);
        Assert.Equal((256, 32), (s.Connections, s.ConnectionsPerAddress));
        Assert.Equal(new ConnectionLimits(256, 32), s.Limits.OfConnections(256, 32));
        Assert.Equal(new IscsiOptions(), s.Limits.OfIscsi());
        Assert.Equal(new NbdOptions(), s.Limits.OfNbd());
        Assert.Equal(256UL << 20, s.Limits.LoopBytes);
        Assert.False(s.Insecure);
        Assert.Empty(s.CreateVolumes);
        Assert.Null(s.Stdio);
    }

    [Fact]
    public void The_command_line_wins_over_the_environment_and_that_over_the_file()
    {
        SettingsSources sources = Json("""{"loops": 2, "engine": "aio", "durability": "ack", "nbd": ["127.0.0.1:1", "[::1]:2"], "insecure": true}""");
        sources.AddEnvironment(new Dictionary<string, string> { ["BLOCKD_LOOPS"] = "3", ["BLOCKD_ENGINE"] = "io_uring", ["BLOCKD_NBD"] = "127.0.0.1:3 127.0.0.1:4" });
        sources.AddArgument("loops", ["4"]);
        Settings s = sources.Read("/d", 1 << 30);
        Assert.Equal((4, "io_uring", Durability.Ack, true), (s.Loops, s.Engine, s.Durability, s.Insecure));
        Assert.Equal(["127.0.0.1:3", "127.0.0.1:4"], s.Nbd.Select(a => a.ToString())); // replaced, not lengthened
    }

    [Fact]
    public void What_clients_may_take_is_set()
    {
        ClientLimits limits = Read(
            "connections-negotiating=7", "negotiation-wait=2", "stall-wait=3", "loop-memory=1g", "iscsi-sessions=4", "iscsi-commands=5",
            "iscsi-window=6m", "iscsi-ping=8", "iscsi-ping-wait=9").Limits;
        const ulong second = 1_000_000_000;
        Assert.Equal(new ConnectionLimits(1, 2, Handshakes: 7), limits.OfConnections(1, 2));
        Assert.Equal(new NbdOptions { HandshakeNanos = 2 * second, SendStallNanos = 3 * second }, limits.OfNbd());
        Assert.Equal(
            new IscsiOptions
            {
                LoginNanos = 2 * second, SendStallNanos = 3 * second, SessionsMax = 4, WindowCommands = 5, WindowBytes = 6 << 20,
                PingAfterNanos = 8 * second, PingAnswerNanos = 9 * second,
            },
            limits.OfIscsi());
        Assert.Equal(1UL << 30, limits.LoopBytes);
    }

    [Fact]
    public void Relayout_has_a_rate_unless_it_is_off()
    {
        Assert.Equal(0UL, Read("relayout=off").RelayoutBytesPerSecond);
        Assert.Equal(10UL << 20, Read("relayout=on", "relayout-rate=10m").RelayoutBytesPerSecond);
        Assert.Contains("contradicts", Assert.Throws<SettingException>(() => Read("relayout=off", "relayout-rate=10m")).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("store-size=80m", "store-size=1g")]
    [InlineData("engine=io_uring", "engine=aio")]
    public void A_single_setting_is_given_once(string one, string two) =>
        Assert.Contains("may be given once", Assert.Throws<SettingException>(() => Read(one, two)).Message, StringComparison.Ordinal);

    [Theory]
    [InlineData("data-dir=", "a value is needed")]
    [InlineData("nbd=10809", "ADDRESS:PORT")]
    [InlineData("nbd=host.example:1", "ADDRESS:PORT")]
    [InlineData("nbd=127.0.0.1:99999", "ADDRESS:PORT")]
    [InlineData("nbd=::1:10809", "ADDRESS:PORT")]
    [InlineData("nbd=unix:", "ADDRESS:PORT")]
    [InlineData("nbd=unix:/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678", "107 bytes")]
    [InlineData("nbd=0.0.0.0:10809", "--insecure")]
    [InlineData("iscsi=unix:/tmp/x", "write ADDRESS:PORT")]
    [InlineData("iscsi=127.0.0.1:3260,0", "groups are 1 to 63")]
    [InlineData("iscsi=127.0.0.1:3260,64", "groups are 1 to 63")]
    [InlineData("iscsi=127.0.0.1:3260,x", "groups are 1 to 63")]
    [InlineData("iscsi=127.0.0.1,1", "write ADDRESS:PORT")]
    [InlineData("iscsi-prefix=disks", "iSCSI name")]
    [InlineData("iscsi-prefix=iqn.2026-11.org.Example", "lower case")]
    [InlineData("iscsi-chap=/nonexistent/x", "no such file")]
    [InlineData("api=0.0.0.0:49180", "--insecure")]
    [InlineData("api=x", "ADDRESS:PORT")]
    [InlineData("api-tls=never", "allowed: beyond, always")]
    [InlineData("api-tls=always", "it needs --tls-cert")]
    [InlineData("store-size=79m", "80 MiB to")]
    [InlineData("store-size=17t", "TiB")]
    [InlineData("store-size=-1g", "store-size")]
    [InlineData("store-size=many", "store-size")]
    [InlineData("durability=always", "allowed: flush, ack")]
    [InlineData("engine=spdk", "allowed: auto, io_uring, aio")]
    [InlineData("metadata-ram=1k", "1 MiB to")]
    [InlineData("relayout=maybe", "allowed: on, off")]
    [InlineData("scrub-period=never", "allowed: 0 to 3650")]
    [InlineData("scrub-rate=1k", "1 MiB to")]
    [InlineData("drain-failed=maybe", "allowed: on, off")]
    [InlineData("move-rate=1k", "1 MiB to")]
    [InlineData("relayout-rate=1k", "1 MiB to")]
    [InlineData("loops=0", "allowed: 1 to 64")]
    [InlineData("loops=65", "allowed: 1 to 64")]
    [InlineData("loops=two", "allowed: 1 to 64")]
    [InlineData("busy-poll=1001", "allowed: 0 to 1000")]
    [InlineData("background-nice=20", "allowed: 0 to 19")]
    [InlineData("background-nice=-1", "allowed: 0 to 19")]
    [InlineData("tls-cert=/nonexistent/c.pem", "no such file")]
    [InlineData("tls-key=/nonexistent/k.pem", "no such file")]
    [InlineData("tls-ca=/nonexistent/a.pem", "no such file")]
    [InlineData("tls=maybe", "allowed: off, optional, required")]
    [InlineData("tls-clients=maybe", "allowed: none, optional, required")]
    [InlineData("tls-clients=required", "it needs --tls-cert")]
    [InlineData("insecure=perhaps", "allowed: false, true")]
    [InlineData("low-space=51", "allowed: 0 to 50")]
    [InlineData("metadata-warn=0", "allowed: 1 to 100")]
    [InlineData("write-protect=49", "allowed: 50 to 100")]
    [InlineData("provisioning=thick", "allowed: reserved, thin")]
    [InlineData("disk-share=63k", "allowed: 64 KiB to 1 GiB")]
    [InlineData("connections=0", "allowed: 1 to 65536")]
    [InlineData("connections-per-address=65537", "allowed: 1 to 65536")]
    [InlineData("connections-negotiating=0", "allowed: 1 to 65536")]
    [InlineData("negotiation-wait=601", "allowed: 1 to 600")]
    [InlineData("stall-wait=-1", "allowed: 1 to 3600")]
    [InlineData("loop-memory=63m", "allowed: 64 MiB to 64 GiB")]
    [InlineData("iscsi-sessions=4097", "allowed: 1 to 4096")]
    [InlineData("iscsi-commands=1025", "allowed: 1 to 1024")]
    [InlineData("iscsi-window=65m", "allowed: 64 KiB to 64 MiB")]
    [InlineData("iscsi-ping=soon", "allowed: 1 to 3600")]
    [InlineData("iscsi-ping-wait=0", "allowed: 1 to 3600")]
    [InlineData("stop-wait=0", "allowed: 1 to 3600")]
    [InlineData("create-volume=demo", "NAME:SIZE")]
    [InlineData("create-volume=Demo:1g", "must begin with")]
    [InlineData("create-volume=demo:1k", "1 MiB to 64 TiB")]
    [InlineData("create-volume=demo:65t", "1 MiB to 64 TiB")]
    [InlineData("stdio=../x", "name a volume")]
    public void A_wrong_setting_is_refused_by_name_with_what_is_allowed(string argument, string allowed)
    {
        SettingException refused = Assert.Throws<SettingException>(() => Read(argument));
        Assert.Equal("--" + argument.Split('=')[0], refused.Name);
        Assert.StartsWith(refused.Name + ": '", refused.Message, StringComparison.Ordinal);
        Assert.Contains(allowed, refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Every_setting_has_a_test_of_its_refusal()
    {
        var tested = typeof(SettingsTests).GetMethod(nameof(A_wrong_setting_is_refused_by_name_with_what_is_allowed))!
            .GetCustomAttributes(typeof(InlineDataAttribute), false).Cast<InlineDataAttribute>()
            .Select(d => ((string)d.Data[0]!).Split('=')[0]).ToHashSet();
        Assert.Equal(SettingsReader.All.Select(s => s.Name).Order(StringComparer.Ordinal), tested.Order(StringComparer.Ordinal));
    }

    [Fact]
    public void None_listens_nowhere_and_excludes_every_other_address()
    {
        Assert.Empty(Read("nbd=none").Nbd);
        Assert.Contains("none excludes", Assert.Throws<SettingException>(() => Read("nbd=none", "nbd=127.0.0.1:1")).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("""{"store_size": "1g"}""", "did you mean store-size?")]
    [InlineData("""{"durabilty": "ack"}""", "did you mean durability?")]
    [InlineData("""{"Engine": "aio"}""", "did you mean engine?")]
    [InlineData("""{"zzzzzz": 1}""", "known: data-dir, nbd")]
    [InlineData("""{"nbd": {"port": 1}}""", "--nbd")]
    [InlineData("""{"nbd": [["127.0.0.1:1"]]}""", "--nbd")]
    [InlineData("""{"loops": null}""", "--loops")]
    [InlineData("""{"loops": 1.5}""", "allowed: 1 to 64 (set in b.json)")]
    [InlineData("""{"loops": 1, "loops": 2}""", "not JSON")]
    [InlineData("""["loops"]""", "one JSON object")]
    [InlineData("{", "not JSON")]
    [InlineData("", "not JSON")]
    public void A_wrong_file_is_refused_with_the_fault_and_the_file(string json, string fault)
    {
        SettingException refused = Assert.Throws<SettingException>(() => Json(json).Read("/d", 1 << 30));
        Assert.Contains(fault, refused.Message, StringComparison.Ordinal);
        Assert.Contains("b.json", refused.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_may_have_comments_and_trailing_commas() =>
        Assert.Equal(2, Json("{ // why\n \"loops\": \"2\", }").Read("/d", 1 << 30).Loops);

    [Fact]
    public void A_missing_file_is_a_wrong_setting() =>
        Assert.Equal("--config", Assert.Throws<SettingException>(() => new SettingsSources().AddFile("/nonexistent/b.json")).Name);

    [Fact]
    public void The_environment_is_named_in_a_refusal_and_strange_variables_are_told()
    {
        var sources = new SettingsSources();
        sources.AddEnvironment(new Dictionary<string, string>
        {
            ["BLOCKD_LOOPS"] = "x", ["BLOCKD_STORE_SZIE"] = "1g", ["BLOCKD_TOKEN_FILE"] = "/t", ["BLOCKD_CONFIG"] = "/c", ["PATH"] = "/bin", ["BLOCKD_API"] = "",
        });
        Assert.Contains("(set in $BLOCKD_LOOPS)", Assert.Throws<SettingException>(() => sources.Read("/d", 1 << 30)).Message, StringComparison.Ordinal);
        Assert.Contains("did you mean BLOCKD_STORE_SIZE?", Assert.Single(sources.Warnings), StringComparison.Ordinal);
    }
}
