using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Persistent reservations over restarts of the daemon, and what happens when they cannot be read.</summary>
public sealed class IscsiReservationTests
{
    private const string Target = "iqn.2026-11.org.blockserver:disk";

    [Fact]
    public async Task A_reservation_with_aptpl_survives_a_restart_and_one_without_does_not()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0");
        VolumeRecord volume = await test.CreateAsync("disk");
        using (RawInitiator one = Connect(test))
        {
            Assert.Equal(0, one.Send("5F000000000000001800", List(0, 0x1122, aptpl: true)).Status);
            Assert.Equal(0, one.Send("5F010500000000001800", List(0x1122, 0)).Status);
        }

        await test.RestartAsync();
        ReservationInfo kept = Assert.IsType<ReservationInfo>(await DescribeAsync(test, volume));
        Assert.Equal(("write-exclusive-registrants-only", true), (kept.Type, kept.Persistent));
        RegistrantInfo registrant = Assert.Single(kept.Registrants);
        Assert.Equal(("0x0000000000001122", true, false), (registrant.Key, registrant.Holder, registrant.Attached));
        using (RawInitiator two = Connect(test, "iqn.2026-11.org.example:two"))
        {
            Assert.Equal(0x18, two.Send("2A000000000000000100", new byte[512]).Status);
            Assert.Equal(0, two.Send("28000000000000000100", expected: 512).Status);
        }

        using (RawInitiator one = Connect(test))
        {
            Assert.Equal(0, one.Send("2A000000000000000100", new byte[512]).Status);

            // Registered anew without APTPL: now nothing outlives the daemon.
            Assert.Equal(0, one.Send("5F060000000000001800", List(0, 0x3344)).Status);
        }

        await test.RestartAsync();
        Assert.Null(await DescribeAsync(test, volume));
    }

    [Fact]
    public async Task It_is_shown_also_of_a_volume_that_is_served_on_another_loop_than_its_disk()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("loops=2", "iscsi=127.0.0.1:0");
        StoreHost first = test.Daemon.Stores.All.Single();
        StoreHost second = await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("second.blk"), null, 80 * Units.MiB));
        VolumeRecord volume = await test.CreateAsync("disk", store: second.StoreId), idle = await test.CreateAsync("idle", store: second.StoreId);
        SharedVolume? served = await first.Thread.InvokeAsync(() => test.Daemon.Volumes.OpenAsync(volume, first.Thread));
        Assert.NotEqual(second.Thread, served!.Thread);
        using RawInitiator one = Connect(test);
        Assert.Equal(0, one.Send("5F000000000000001800", List(0, 0x1122)).Status);
        Assert.Equal(0, one.Send("5F010500000000001800", List(0x1122, 0)).Status);
        IReadOnlyDictionary<uint, VolumeSight> sights = await VolumeSight.OfAsync(test.Daemon, [idle, volume]);
        Assert.Equal("write-exclusive-registrants-only", sights[volume.Id].Reservation?.Type);
        Assert.Null(sights[idle.Id].Reservation);
        Assert.All(sights.Values, sight => Assert.NotNull(sight.UsedBytes));
    }

    [Fact]
    public async Task The_record_goes_with_the_volume()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0");
        VolumeRecord volume = await test.CreateAsync("disk");
        using (RawInitiator one = Connect(test)) Assert.Equal(0, one.Send("5F000000000000001800", List(0, 1, aptpl: true)).Status);
        Assert.Null((await test.Daemon.Directory.DeleteAsync("disk", volume.Id, null)).Fault);
        await test.StopAsync();
        await using SqliteMetaStore meta = SqliteMetaStore.Open(Path.Combine(test.DataDir, "metadata.db"));
        Assert.Empty(await meta.RangeAsync("pr/", TestContext.Current.CancellationToken));
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Damaged_reservations_keep_the_volume_out_of_service_until_the_operator_clears_them(bool isEmpty)
    {
        await using TestDaemon test = await TestDaemon.StartAsync("iscsi=127.0.0.1:0");
        VolumeRecord volume = await test.CreateAsync("disk");
        using (RawInitiator one = Connect(test)) Assert.Equal(0, one.Send("5F000000000000001800", List(0, 1, aptpl: true)).Status);
        await test.StopAsync();
        await using (SqliteMetaStore meta = SqliteMetaStore.Open(Path.Combine(test.DataDir, "metadata.db")))
        {
            MetaEntry entry = Assert.Single(await meta.RangeAsync("pr/", TestContext.Current.CancellationToken));
            byte[] damaged = isEmpty ? [] : entry.Value.ToArray();
            if (!isEmpty) damaged[^1] ^= 1;
            await meta.TransactAsync([], [new MetaChange(entry.Key, damaged)], TestContext.Current.CancellationToken);
        }

        await test.StartAgainAsync();
        Assert.Contains(test.Daemon.Warnings, w => w.Contains("volume 'disk': its saved persistent reservations are damaged", StringComparison.Ordinal));
        using (var refused = new RawInitiator(Port(test), Target)) Assert.Equal(0x0301, refused.Status);
        Assert.Equal("unknown", (await DescribeAsync(test, volume))!.Type);
        StoreHost host = test.Daemon.Stores.All[0];
        SharedVolume shared = (await host.Thread.InvokeAsync(() => test.Daemon.Volumes.OpenAsync(volume, host.Thread)))!;
        Assert.Equal(Fence.All, shared.Gate.Fence);

        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => test.Daemon.Volumes.ClearReservationsAsync(volume, host.Thread)));
        Assert.Null(await DescribeAsync(test, volume));
        using (RawInitiator one = Connect(test)) Assert.Equal(0, one.Send("2A000000000000000100", new byte[512]).Status);
        await test.RestartAsync();
        using (RawInitiator one = Connect(test)) Assert.Equal(0, one.Send("2A000000000000000100", new byte[512]).Status);
    }

    private static int Port(TestDaemon test) => int.Parse(
        test.Daemon.Listeners.First(l => l.Protocol == "iscsi").Address.Split(':')[^1], System.Globalization.CultureInfo.InvariantCulture);

    private static RawInitiator Connect(TestDaemon test, string initiator = "iqn.2026-11.org.example:one")
    {
        var raw = new RawInitiator(Port(test), Target, initiator);
        Assert.Equal(0, raw.Status);
        Assert.Equal([0x2900], raw.TakeAttentions());
        return raw;
    }

    private static Task<ReservationInfo?> DescribeAsync(TestDaemon test, VolumeRecord volume) =>
        test.Daemon.Stores.All[0].Thread.InvokeAsync(() => new ValueTask<ReservationInfo?>(test.Daemon.Volumes.Describe(volume.Id)));

    private static byte[] List(ulong key, ulong newKey, bool aptpl = false) =>
        [.. Convert.FromHexString($"{key:X16}{newKey:X16}00000000"), aptpl ? (byte)1 : (byte)0, 0, 0, 0];
}
