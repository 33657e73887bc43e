using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Targets as an operator configures them with pfcli, and as initiators see them, while the daemon runs.</summary>
public sealed class IscsiTargetTests : IAsyncLifetime
{
    private const string Prefix = "iqn.2026-11.org.blockserver", Disks = "iqn.2026-11.org.example:disks";
    private const string One = "iqn.2026-11.org.example:one", Two = "iqn.2026-11.org.example:two";
    private const string Secret = "correct-horse-battery", OtherSecret = "the-other-direction";

    private ApiServer _server = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0 127.0.0.1:0,2");
        await _server.Test.CreateAsync("a");
        await _server.Test.CreateAsync("b");
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    [Fact]
    public async Task A_target_lets_in_whom_its_rules_name_and_its_luns_come_and_go_under_them()
    {
        Assert.Contains("Nobody may log in yet", await DoneAsync("create_target", "-t", Disks, "--description", "two disks"), StringComparison.Ordinal);
        Assert.Equal($"Volume a is LUN 0 of {Disks}.", (await DoneAsync("add_lun", "-t", Disks, "-v", "a")).Split('\n')[0]);
        using (var stranger = new RawInitiator(Port(1), Disks)) Assert.Equal(0x0202, stranger.Status);
        using (var own = new RawInitiator(Port(1), $"{Prefix}:a")) Assert.Equal(0x0203, own.Status); // withdrawn
        await DoneAsync("allow_initiator", "-t", Disks, "-i", One, "-a", "127.0.0.0/8");
        using var one = new RawInitiator(Port(1), Disks, One);
        Assert.Equal(0, one.Status);
        Assert.Equal([0x2900], one.TakeAttentions());
        Assert.Equal(0x2500, one.Send("000000000000", lun: 7).Code);

        await DoneAsync("add_lun", "-t", Disks, "-v", "b", "-l", "7", "--read-only");
        Assert.Equal(0, one.TakeEvent()); // who sends nothing hears of it too
        Assert.Equal([0x3F0E], one.TakeAttentions());
        Assert.Equal(0x2900, one.Send("000000000000", lun: 7).Code);
        Assert.Equal([0x3F0E], one.TakeAttentions(7));
        Assert.Equal("000000100000000000000000000000000007000000000000", Luns(one));
        Assert.Equal(0x2700, one.Send("2A000000000000000100", new byte[512], lun: 7).Code);
        Assert.Equal(0, one.Send("2A000000000000000100", new byte[512]).Status);
        SessionInfo session = Assert.Single(JsonSerializer.Deserialize(await DoneAsync("--json", "list_session", "-t", Disks), ApiJson.Default.SessionList)!.Sessions);
        Assert.Equal(("a,b", Disks), (session.Volume, session.Target));
        StatsInfo stats = JsonSerializer.Deserialize((await _server.SendAsync("GET", "/v1/stats")).Body, ApiJson.Default.StatsInfo)!;
        Assert.Equal([("a", 1UL), ("b", 1UL)], stats.Volumes.Select(v => (v.Volume, v.WriteOps)));

        // One goes, the other one stays as it was, in the same session.
        await RefusedAsync("target-in-use", "--yes", "remove_lun", "-t", Disks, "-l", "7");
        await DoneAsync("--yes", "remove_lun", "-t", Disks, "-l", "7", "--force");
        Assert.Equal([0x3F0E], one.TakeAttentions());
        Assert.Equal(0x2500, one.Send("2A000000000000000100", new byte[512], lun: 7).Code);
        Assert.Equal(0, one.Send("2A000000000000000100", new byte[512]).Status);

        await DoneAsync("allow_initiator", "-t", Disks, "-i", Two);
        using var two = new RawInitiator(Port(1), Disks, Two);
        await DoneAsync("deny_initiator", "-t", Disks, "-i", One, "-a", "127.0.0.0/8");
        Assert.True(one.IsClosed());
        Assert.Equal([0x2900], two.TakeAttentions());
        using (var again = new RawInitiator(Port(1), Disks, One)) Assert.Equal(0x0202, again.Status);
        await DoneAsync("--yes", "disable_target", "-t", Disks);
        Assert.True(two.IsClosed());
        using (var again = new RawInitiator(Port(1), Disks, Two)) Assert.Equal(0x0203, again.Status);
    }

    [Fact]
    public async Task All_of_it_outlives_a_restart()
    {
        await ReadyAsync("-i", "iqn.2026-11.org.example:*");
        await DoneAsync("add_lun", "-t", Disks, "-v", "b", "-l", "300");
        string secret = Path.Combine(_server.Test.Root, "secret");
        await File.WriteAllTextAsync(secret, Secret + "\n", TestContext.Current.CancellationToken);
        await DoneAsync("add_chap_user", "-t", Disks, "-u", "alice", "--secret-file", secret);
        string before = (await _server.SendAsync("GET", "/v1/targets")).Body;
        await _server.Test.RestartAsync();
        TargetInfo target = JsonSerializer.Deserialize(before, ApiJson.Default.TargetList)!.Targets.Single(t => t.Name == Disks);
        Assert.Equal(new AccessRule("iqn.2026-11.org.example:*"), Assert.Single(target.Access));
        Assert.Equal([0, 300], _server.Test.Daemon.Targets.Find(Disks)!.Luns.Select(l => (int)l.Lun));
        using var one = new RawInitiator(Port(1), Disks, One, user: "alice", secret: Secret);
        Assert.Equal(0, one.Status);
        Assert.Equal([0x2900], one.TakeAttentions((ushort)(0x4000 | 300)));
    }

    [Fact]
    public async Task Users_prove_themselves_and_no_answer_and_no_log_shows_a_secret()
    {
        await ReadyAsync();
        using var early = new RawInitiator(Port(1), Disks, Two);
        Assert.Equal(0, early.Status);
        string made = await DoneAsync("add_chap_user", "-t", Disks, "-u", "alice");
        string secret = made.Trim().Split(' ')[^1];
        Assert.Equal(32, secret.Length);
        Assert.True(early.IsClosed()); // from now on initiators prove themselves
        string file = Path.Combine(_server.Test.Root, "secret");
        await File.WriteAllTextAsync(file, OtherSecret, TestContext.Current.CancellationToken);
        await DoneAsync("add_chap_user", "-t", Disks, "-u", "blockd", "--mutual", "--secret-file", file);
        using var one = new RawInitiator(Port(1), Disks, One, user: "alice", secret: secret, mutualSecret: OtherSecret);
        Assert.Equal((0, true), (one.Status, one.IsTargetProven));
        foreach ((string? user, string? word) in new[] { (null, null), ("alice", "wrong-horse-battery"), ("bob", secret), ("blockd", OtherSecret) })
        {
            using var wrong = new RawInitiator(Port(1), Disks, One, isid: 0x400001370009, user: user, secret: word);
            Assert.Equal(0x0201, wrong.Status);
        }

        foreach (string[] verb in new string[][] { ["show_target", "-t", Disks], ["list_target"], ["--json", "show_target", "-t", Disks], ["--json", "list_target"] })
        {
            string said = await DoneAsync(verb);
            Assert.DoesNotContain(secret, said, StringComparison.Ordinal);
            Assert.DoesNotContain(OtherSecret, said, StringComparison.Ordinal);
        }

        Assert.Contains("mutual-chap", await DoneAsync("show_target", "-t", Disks), StringComparison.Ordinal);
        foreach (string database in Directory.GetFiles(_server.Test.DataDir, "metadata.db*"))
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(database));
        Assert.Contains("need not prove themselves", await DoneAsync("remove_chap_user", "-t", Disks, "-u", "alice"), StringComparison.Ordinal);
        Assert.True(one.IsClosed());
    }

    [Fact]
    public async Task Portal_groups_decide_where_a_target_is_and_who_comes_elsewhere_is_sent_there()
    {
        await ReadyAsync();
        using (var any = new RawInitiator(Port(2), Disks, One)) Assert.Equal("2", any.Keys["TargetPortalGroupTag"]);
        await DoneAsync("move_target", "-t", Disks, "-g", "1");
        using var one = new RawInitiator(Port(1), Disks, One);
        Assert.Equal((0, "1"), (one.Status, one.Keys["TargetPortalGroupTag"]));
        using (var lost = new RawInitiator(Port(2), Disks, One))
        {
            Assert.Equal(0x0101, lost.Status);
            Assert.Equal($"127.0.0.1:{Port(1)}", lost.Keys["TargetAddress"]);
        }

        await DoneAsync("move_target", "-t", Disks, "-g", "2");
        Assert.Equal(1, one.TakeEvent()); // asked to log out, and served until then
        Assert.Equal([0x2900], one.TakeAttentions());
        Assert.Equal(0, one.LogOut());
        Assert.True(one.IsClosed());
        using (var moved = new RawInitiator(Port(1), Disks, One)) Assert.Equal($"127.0.0.1:{Port(2)}", moved.Keys["TargetAddress"]);
        using (var attached = new RawInitiator(Port(2), Disks, One))
            Assert.Equal([$"127.0.0.1:{Port(2)},2"], Assert.Single(attached.SendTargets("")).Addresses);
        await DoneAsync("move_target", "-t", Disks, "-g", "9"); // where nothing listens
        using (var nowhere = new RawInitiator(Port(2), Disks, One)) Assert.Equal(0x0203, nowhere.Status);
        await DoneAsync("move_target", "-t", Disks, "--all");
        Assert.Contains("Group", await DoneAsync("list_portal"), StringComparison.Ordinal);
    }

    [Fact]
    public async Task Discovery_shows_what_the_rules_let_one_see_to_who_may_discover()
    {
        await ReadyAsync("-i", One);
        using (var one = new RawInitiator(Port(2), null, One))
        {
            List<(string Name, List<string> Addresses)> found = one.SendTargets();
            Assert.Equal([$"{Prefix}:b", Disks], found.Select(t => t.Name));
            Assert.Equal([$"127.0.0.1:{Port(1)},1", $"127.0.0.1:{Port(2)},2"], found[1].Addresses);
        }

        using (var two = new RawInitiator(Port(1), null, Two)) Assert.Equal([$"{Prefix}:b"], two.SendTargets().Select(t => t.Name));
        await DoneAsync("move_target", "-t", Disks, "-g", "2");
        using (var one = new RawInitiator(Port(1), null, One)) Assert.Equal([$"127.0.0.1:{Port(2)},2"], one.SendTargets()[1].Addresses);

        string secret = (await DoneAsync("add_chap_user", "--discovery", "-u", "finder")).Trim().Split(' ')[^1];
        using (var nobody = new RawInitiator(Port(1), null, One)) Assert.Equal(0x0201, nobody.Status);
        using (var finder = new RawInitiator(Port(1), null, One, user: "finder", secret: secret)) Assert.Equal(2, finder.SendTargets().Count);
        Assert.Contains("finder", await DoneAsync("show_discovery"), StringComparison.Ordinal);
        await DoneAsync("remove_chap_user", "--discovery", "-u", "finder");
        using (var one = new RawInitiator(Port(1), null, One)) Assert.Equal(0, one.Status);
        Assert.DoesNotContain("discovery", await DoneAsync("list_target"), StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_volume_in_use_is_not_moved_or_deleted_without_force()
    {
        using var own = new RawInitiator(Port(1), $"{Prefix}:a", One);
        await DoneAsync("create_target", "-t", Disks);
        await DoneAsync("allow_initiator", "-t", Disks, "-i", "*");
        await RefusedAsync("volume-in-use", "add_lun", "-t", Disks, "-v", "a");
        await DoneAsync("add_lun", "-t", Disks, "-v", "a", "--keep-own-target");
        Assert.Equal([0x2900], own.TakeAttentions());

        // The same unit by both: a registration by one is not one by the other.
        using var one = new RawInitiator(Port(1), Disks, One);
        Assert.Equal([0x2900], one.TakeAttentions());
        Assert.Equal(0, one.Send("5F000000000000001800", [.. new byte[8], 0, 0, 0, 0, 0, 0, 0, 5, .. new byte[8]]).Status);
        Assert.Equal(0, one.Send("5F010100000000001800", [0, 0, 0, 0, 0, 0, 0, 5, .. new byte[16]]).Status);
        Assert.Equal(0x18, own.Send("2A000000000000000100", new byte[512]).Status);
        Assert.Contains("write-exclusive", await DoneAsync("list_reservation"), StringComparison.Ordinal);
        Assert.Contains(" 65 ", await DoneAsync("list_reservation"), StringComparison.Ordinal);
        await DoneAsync("--yes", "clear_reservation", "-v", "a");
        Assert.Equal(0, own.Send("2A000000000000000100", new byte[512]).Status);

        await RefusedAsync("volume-in-use", "--yes", "delete_volume", "-v", "a");
        await DoneAsync("--yes", "delete_volume", "-v", "a", "--force");
        Assert.True(own.IsClosed());
        Assert.Empty(_server.Test.Daemon.Targets.Find(Disks)!.Luns);
        await DoneAsync("add_lun", "-t", Disks, "-v", "b");
        await RefusedAsync("target-in-use", "--yes", "delete_target", "-t", Disks);
        await DoneAsync("--yes", "disable_target", "-t", Disks);
        Assert.True(one.IsClosed());
        while (_server.Test.Daemon.Sessions.CountOf(Disks) > 0) await Task.Delay(10, TestContext.Current.CancellationToken);
        await RefusedAsync("volume-is-lun", "--yes", "delete_volume", "-v", "b");
        await DoneAsync("enable_target", "-t", Disks);
        using var two = new RawInitiator(Port(1), Disks, Two);
        await DoneAsync("--yes", "delete_target", "-t", Disks, "--force");
        Assert.True(two.IsClosed());
        await DoneAsync("--yes", "delete_volume", "-v", "b", "--force");
    }

    [Fact]
    public async Task Extended_copy_reaches_the_luns_of_the_target_and_no_other_volume()
    {
        await ReadyAsync();
        await _server.Test.CreateAsync("foreign");
        await DoneAsync("add_lun", "-t", Disks, "-v", "b");
        using var one = new RawInitiator(Port(1), Disks, One);
        one.TakeAttentions();
        one.TakeAttentions(1);
        Assert.Equal(0, one.Send("2A000000000000000100", [.. Enumerable.Repeat((byte)0x5A, 512)]).Status);
        byte[] a = Designator(one, 0), b = Designator(one, 1);
        Assert.Equal(0, Copy(one, a, b).Status);
        Assert.Equal(0x5A, one.Send("28000000000000000100", expected: 512, lun: 1).Data[511]);
        using var other = new RawInitiator(Port(1), $"{Prefix}:foreign", One);
        other.TakeAttentions();
        Assert.Equal(0x0D02, Copy(one, a, Designator(other, 0)).Code); // CVE-2020-28374
    }

    [Theory]
    [InlineData("POST", "targets", "{\"name\":\"disks\"}", 400, "invalid-target-name")]
    [InlineData("POST", "targets", "{\"name\":\"iqn.2026-11.org.example:x\",\"portalGroups\":[0]}", 400, "invalid-portal-group")]
    [InlineData("POST", "targets", "{\"name\":\"iqn.2026-11.org.example:x\",\"portalGroups\":[1,1]}", 400, "invalid-portal-group")]
    [InlineData("POST", "targets", "{\"name\":\"iqn.2026-11.org.blockserver:a\"}", 409, "target-exists")]
    [InlineData("POST", "targets", "{\"name\":\"T\"}", 409, "target-exists")]
    [InlineData("POST", "targets", "{}", 400, "invalid-json")]
    [InlineData("GET", "targets/iqn.2026-11.org.example:none", null, 404, "no-such-target")]
    [InlineData("PATCH", "targets/O", "{\"enabled\":false}", 409, "own-target")]
    [InlineData("PATCH", "targets/T", "{\"revision\":1}", 412, "revision-differs")]
    [InlineData("PATCH", "targets/T", "{\"portalGroups\":[64]}", 400, "invalid-portal-group")]
    [InlineData("DELETE", "targets/T?revision=1", null, 412, "revision-differs")]
    [InlineData("DELETE", "targets/T?revision=x", null, 400, "invalid-query")]
    [InlineData("DELETE", "targets/O", null, 409, "own-target")]
    [InlineData("POST", "targets/T/luns", "{\"volume\":\"none\"}", 404, "no-such-volume")]
    [InlineData("POST", "targets/T/luns", "{\"volume\":\"b\",\"lun\":-1}", 400, "invalid-lun")]
    [InlineData("POST", "targets/T/luns", "{\"volume\":\"b\",\"lun\":16384}", 400, "invalid-lun")]
    [InlineData("POST", "targets/T/luns", "{\"volume\":\"b\",\"lun\":0}", 409, "lun-taken")]
    [InlineData("POST", "targets/T/luns", "{\"volume\":\"a\"}", 409, "volume-is-lun")]
    [InlineData("POST", "targets/O/luns", "{\"volume\":\"a\"}", 409, "own-target")]
    [InlineData("DELETE", "targets/T/luns/9", null, 404, "no-such-lun")]
    [InlineData("DELETE", "targets/T/luns/-1", null, 404, "no-such-lun")]
    [InlineData("POST", "targets/T/access", "{\"initiator\":\"linux\"}", 400, "invalid-initiator")]
    [InlineData("POST", "targets/T/access", "{\"address\":\"10.0.0.1/8\"}", 400, "invalid-address")]
    [InlineData("DELETE", "targets/T/access?initiator=iqn.none*", null, 404, "no-such-rule")]
    [InlineData("DELETE", "targets/T/access?initiator=a&initiator=b", null, 400, "invalid-query")]
    [InlineData("POST", "targets/T/users", "{\"user\":\"a b\",\"secret\":\"0123456789ab\"}", 400, "invalid-user")]
    [InlineData("POST", "targets/T/users", "{\"user\":\"bob\",\"secret\":\"short\"}", 400, "invalid-secret")]
    [InlineData("POST", "targets/T/users", "{\"user\":\"bob\",\"secret\":\"with space in it\"}", 400, "invalid-secret")]
    [InlineData("POST", "targets/T/users", "{\"user\":\"alice\",\"secret\":\"0123456789ab\"}", 409, "user-exists")]
    [InlineData("POST", "targets/T/users", "{\"user\":\"us\",\"secret\":\"correct-horse-battery\",\"mutual\":true}", 400, "secret-reused")]
    [InlineData("DELETE", "targets/T/users/bob", null, 404, "no-such-user")]
    [InlineData("DELETE", "targets/T/users/alice?mutual=true", null, 404, "no-such-user")]
    [InlineData("POST", "discovery/users", "{\"user\":\"\",\"secret\":\"0123456789ab\"}", 400, "invalid-user")]
    [InlineData("DELETE", "discovery/users/bob", null, 404, "no-such-user")]
    [InlineData("DELETE", "volumes/none/reservations", null, 404, "no-such-volume")]
    [InlineData("POST", "portals", "{}", 405, "wrong-method")]
    public async Task Bad_input_is_refused_by_its_code_and_changes_nothing(string method, string path, string? body, int status, string code)
    {
        await ReadyAsync();
        Assert.Equal(201, (await _server.SendAsync("POST", $"/v1/targets/{Disks}/users", $"{{\"user\":\"alice\",\"secret\":\"{Secret}\"}}")).Status);
        string before = (await _server.SendAsync("GET", "/v1/targets")).Body;
        path = path.Replace("/T", "/" + Disks, StringComparison.Ordinal).Replace("/O", $"/{Prefix}:b", StringComparison.Ordinal);
        RawAnswer answer = await _server.SendAsync(method, "/v1/" + path, body?.Replace("\"T\"", $"\"{Disks}\"", StringComparison.Ordinal));
        if (path.Contains("blockserver:a", StringComparison.Ordinal) || body?.Contains("blockserver:a", StringComparison.Ordinal) == true)
        {
            // Its own target was withdrawn, so its name was free: the volume that still has one is refused.
            Assert.Equal(201, answer.Status);
            answer = await _server.SendAsync(method, "/v1/" + path, body!.Replace("blockserver:a", "blockserver:b", StringComparison.Ordinal));
            before = (await _server.SendAsync("GET", "/v1/targets")).Body;
        }

        Assert.Equal((status, code), (answer.Status, answer.Code));
        Assert.DoesNotContain("0123456789ab", answer.Body, StringComparison.Ordinal);
        Assert.Equal(before, (await _server.SendAsync("GET", "/v1/targets")).Body);
    }

    [Theory]
    [InlineData(2, "create_target")]
    [InlineData(2, "add_lun", "-t", "x")]
    [InlineData(2, "add_lun", "-t", "x", "-v", "BAD NAME")]
    [InlineData(2, "add_lun", "-t", "x", "-v", "a", "-l", "one")]
    [InlineData(2, "remove_lun", "-t", "x")]
    [InlineData(2, "allow_initiator", "-t", "x")]
    [InlineData(2, "deny_initiator", "-i", "x")]
    [InlineData(2, "add_chap_user", "-u", "alice")]
    [InlineData(2, "add_chap_user", "-u", "alice", "-t", "x", "--discovery")]
    [InlineData(2, "remove_chap_user", "-t", "x")]
    [InlineData(2, "move_target", "-t", "x")]
    [InlineData(2, "move_target", "-t", "x", "-g", "1", "--all")]
    [InlineData(2, "show_target")]
    [InlineData(2, "clear_reservation")]
    [InlineData(1, "create_target", "-t", "disks")]
    [InlineData(1, "show_target", "-t", "iqn.2026-11.org.example:none")]
    [InlineData(1, "enable_target", "-t", "iqn.2026-11.org.blockserver:a")]
    [InlineData(1, "disable_target", "-t", "iqn.2026-11.org.example:none")]
    [InlineData(1, "delete_target", "-t", "iqn.2026-11.org.blockserver:a")]
    [InlineData(1, "move_target", "-t", "iqn.2026-11.org.example:none", "-g", "1")]
    [InlineData(1, "remove_lun", "-t", "iqn.2026-11.org.example:none", "-l", "1")]
    [InlineData(1, "allow_initiator", "-t", "iqn.2026-11.org.example:none", "-i", "*")]
    [InlineData(1, "deny_initiator", "-t", "iqn.2026-11.org.example:none", "-i", "*")]
    [InlineData(1, "add_chap_user", "-t", "iqn.2026-11.org.example:none", "-u", "alice")]
    [InlineData(1, "add_chap_user", "--discovery", "-u", "alice", "--secret-file", "/nonexistent/secret")]
    [InlineData(1, "remove_chap_user", "--discovery", "-u", "alice")]
    [InlineData(1, "clear_reservation", "-v", "none")]
    public async Task A_wrong_command_line_is_one_line_of_complaint(int code, params string[] arguments)
    {
        (int exit, string said, string error) = await _server.RunAsync(arguments);
        Assert.Equal((code, ""), (exit, said));
        Assert.StartsWith("pfcli: ", Assert.Single(error.TrimEnd('\n').Split('\n')), StringComparison.Ordinal);
    }

    private static string Luns(RawInitiator raw) => Convert.ToHexString(raw.Send("A00000000000000001000000", expected: 256).Data);

    /// <summary>The NAA designator of a unit as a target descriptor of EXTENDED COPY.</summary>
    private static byte[] Designator(RawInitiator raw, ushort lun)
    {
        byte[] page = raw.Send("120183010000", expected: 256, lun: lun).Data;
        byte[] descriptor = new byte[32];
        descriptor[0] = 0xE4;
        page.AsSpan(4, 12).CopyTo(descriptor.AsSpan(4));
        descriptor[29] = 0;
        (descriptor[30], descriptor[31]) = (0x02, 0x00);
        return descriptor;
    }

    private static RawReply Copy(RawInitiator raw, byte[] source, byte[] target)
    {
        byte[] segment = [0x02, 0, 0, 0x18, 0, 0, 0, 1, 0, 0, 0, 1, .. new byte[16]];
        byte[] head = [1, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
        byte[] list = [.. head, .. source, .. target, .. segment];
        return raw.Send($"83000000000000000000{list.Length:X8}0000", list);
    }

    private int Port(ushort group) => _server.Test.Daemon.Catalog.Portals.First(p => p.Group == group).EndPoint.Port;

    /// <summary>A target with volume a as LUN 0.</summary>
    private async Task ReadyAsync(params string[] rule)
    {
        await DoneAsync("create_target", "-t", Disks);
        await DoneAsync("add_lun", "-t", Disks, "-v", "a");
        await DoneAsync(["allow_initiator", "-t", Disks, .. rule.Length > 0 ? rule : ["-i", "*"]]);
    }

    private Task<string> DoneAsync(params string[] arguments) => _server.DoneAsync(arguments);

    private Task RefusedAsync(string code, params string[] arguments) => _server.RefusedAsync(code, arguments);
}
