using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Snapshots as units of iSCSI: by a target of their own, and as LUNs of a configured one.</summary>
public sealed class IscsiSnapshotTests : IAsyncLifetime
{
    private const string Prefix = "iqn.2026-11.org.blockserver", Disks = "iqn.2026-11.org.example:disks";
    private const string Read = "28000000000000000100", Write = "2A000000000000000100";

    private ApiServer _server = null!;

    private int Port => _server.Test.Daemon.Catalog.Portals[0].EndPoint.Port;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0");
        await _server.Test.CreateAsync("a", 2 << 20);
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    [Fact]
    public async Task A_snapshot_has_a_target_of_its_own_that_refuses_writes_and_shows_another_disk()
    {
        using var volume = new RawInitiator(Port, $"{Prefix}:a");
        volume.TakeAttentions();
        Assert.Equal(0, volume.Send(Write, Filled(1)).Status);
        using (var none = new RawInitiator(Port, $"{Prefix}:a:one")) Assert.Equal(0x0203, none.Status);
        await DoneAsync("create_snapshot", "-v", "a", "-n", "one");
        await DoneAsync("create_snapshot", "-v", "a", "-n", "two");
        Assert.Equal(0, volume.Send(Write, Filled(2)).Status);

        using var one = new RawInitiator(Port, $"{Prefix}:a:one");
        Assert.Equal([0x2900], one.TakeAttentions());
        Assert.Equal(Filled(1), one.Send(Read, expected: 512).Data);
        Assert.Equal(Filled(2), volume.Send(Read, expected: 512).Data);
        RawReply refused = one.Send(Write, Filled(3));
        Assert.Equal((2, 7, 0x2700), (refused.Status, refused.Sense[2] & 0x0F, refused.Code)); // data protect, write protected
        byte[] mode = one.Send("1A003F00FF00", expected: 255).Data;
        Assert.Equal(0x80, mode[2] & 0x80);
        using var two = new RawInitiator(Port, $"{Prefix}:a:two");
        two.TakeAttentions();
        string[] ids = [.. new[] { volume, one, two }.Select(i => Convert.ToHexString(i.Send("12018300FF00", expected: 255).Data))];
        string[] serials = [.. new[] { volume, one, two }.Select(i => Convert.ToHexString(i.Send("12018000FF00", expected: 255).Data))];
        Assert.Equal((3, 3), (ids.Distinct().Count(), serials.Distinct().Count()));
        Assert.Equal(ids[1], Convert.ToHexString(one.Send("12018300FF00", expected: 255).Data));

        // Its size stays when the volume's does not; who reads it is not in the volume's way, but in its own deletion's.
        await DoneAsync("resize_volume", "-v", "a", "-s", "4m");
        Assert.Equal("00000FFF00000200", Convert.ToHexString(one.Send("25000000000000000000", expected: 8).Data));
        Assert.Equal(["a", "a@one", "a@two"], (await SessionsAsync()).Order(StringComparer.Ordinal));
        volume.Dispose();
        while ((await SessionsAsync()).Contains("a")) await Task.Delay(10, TestContext.Current.CancellationToken);
        await DoneAsync("--yes", "rollback_snapshot", "-v", "a", "-n", "one", "--safety", "kept");
        Assert.Equal(Filled(1), one.Send(Read, expected: 512).Data);
        await RefusedAsync("snapshot-in-use", "--yes", "delete_snapshot", "-v", "a", "-n", "one");
        await DoneAsync("--yes", "delete_snapshot", "-v", "a", "-n", "one", "--force", "--no-wait");
        Assert.True(one.IsClosed());
        using (var gone = new RawInitiator(Port, $"{Prefix}:a:one")) Assert.Equal(0x0203, gone.Status);
        Assert.Equal(0, two.Send(Read, expected: 512).Status);
        Assert.DoesNotContain(two.SendTargets(), t => t.Name.Contains(":two", StringComparison.Ordinal)); // volumes only
    }

    [Fact]
    public async Task A_snapshot_is_a_LUN_of_a_configured_target_until_it_is_removed()
    {
        using (var volume = new RawInitiator(Port, $"{Prefix}:a"))
        {
            volume.TakeAttentions();
            Assert.Equal(0, volume.Send(Write, Filled(1)).Status);
        }

        await DoneAsync("create_snapshot", "-v", "a", "-n", "one");
        await DoneAsync("create_target", "-t", Disks);
        await DoneAsync("allow_initiator", "-t", Disks, "-i", "*");
        await RefusedAsync("no-such-snapshot", "add_lun", "-t", Disks, "-v", "a", "-n", "none");
        Assert.Equal($"Volume a@one is LUN 0 of {Disks}.", (await DoneAsync("add_lun", "-t", Disks, "-v", "a", "-n", "one")).Split('\n')[0]);
        await RefusedAsync("volume-is-lun", "add_lun", "-t", Disks, "-v", "a", "-n", "one");
        using (var own = new RawInitiator(Port, $"{Prefix}:a")) Assert.Equal(0, own.Status); // not withdrawn for a snapshot
        await DoneAsync("add_lun", "-t", Disks, "-v", "a", "--keep-own-target");
        using var disks = new RawInitiator(Port, Disks);
        disks.TakeAttentions();
        disks.TakeAttentions(1);
        Assert.Equal(0x2700, disks.Send(Write, Filled(3)).Code);
        Assert.Equal(0, disks.Send(Write, Filled(3), lun: 1).Status);
        Assert.Equal(Filled(1), disks.Send(Read, expected: 512).Data);
        TargetInfo target = JsonSerializer.Deserialize(await DoneAsync("--json", "show_target", "-t", Disks), ApiJson.Default.TargetInfo)!;
        Assert.Equal([(0, "a@one", true), (1, "a", false)], target.Luns.Select(l => (l.Lun, l.Volume, l.ReadOnly)));
        Assert.Equal(["a,a@one"], await SessionsAsync());

        await RefusedAsync("snapshot-in-use", "--yes", "delete_snapshot", "-v", "a", "-n", "one");
        await DoneAsync("--yes", "delete_snapshot", "-v", "a", "-n", "one", "--force", "--no-wait");
        Assert.Equal([0x3F0E], disks.TakeAttentions(1)); // the session goes on with its other LUN
        Assert.Equal(0x2500, disks.Send("000000000000").Code);
        Assert.Equal(0, disks.Send(Read, expected: 512, lun: 1).Status);

        await DoneAsync("create_snapshot", "-v", "a", "-n", "two");
        await DoneAsync("add_lun", "-t", Disks, "-v", "a", "-n", "two", "-l", "5");
        disks.Dispose();
        while ((await SessionsAsync()).Count > 0) await Task.Delay(10, TestContext.Current.CancellationToken);
        await RefusedAsync("snapshot-is-lun", "--yes", "delete_snapshot", "-v", "a", "-n", "two");
        await _server.Test.RestartAsync();
        using var again = new RawInitiator(Port, Disks);
        again.TakeAttentions(5);
        Assert.Equal(Filled(3), again.Send(Read, expected: 512, lun: 5).Data);
    }

    private static byte[] Filled(byte value)
    {
        var block = new byte[512];
        block.AsSpan().Fill(value);
        return block;
    }

    private async Task<IReadOnlyList<string>> SessionsAsync() =>
        [.. JsonSerializer.Deserialize((await _server.SendAsync("GET", "/v1/sessions")).Body, ApiJson.Default.SessionList)!.Sessions.Select(s => s.Volume)];

    private Task<string> DoneAsync(params string[] arguments) => _server.DoneAsync(arguments);

    private Task RefusedAsync(string code, params string[] arguments) => _server.RefusedAsync(code, arguments);
}
