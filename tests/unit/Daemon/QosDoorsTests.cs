using BlockServer.Blockd;
using BlockServer.Client;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The doors of volumes in the daemon. Who is let in is seen from a debt that outlasts the test.</summary>
public sealed class QosDoorsTests
{
    private const ulong DebtBytes = 32 << 20; // at the smallest limit: nine minutes

    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task The_limit_of_a_volume_that_has_moved_is_one_for_its_readers_and_its_appends(int loops)
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, $"loops={loops}");
        Blockd.Daemon daemon = server.Test.Daemon;
        StoreHost first = daemon.Stores.All[0], second = await daemon.Disks.AddAsync(new AddDisk(server.Test.PathOf("second.blk"), "second", 80 * Units.MiB));
        Assert.Equal(loops == 1, first.Thread == second.Thread);
        VolumeRecord log = await CreateLogAsync(daemon, first.StoreId);
        VolumeAdmission readers = await OpenAsync(daemon, log);
        using var blockd = new BlockdClient(new Uri($"http://127.0.0.1:{server.Port}"), server.Token);
        await blockd.AppendAsync("log", Guid.NewGuid(), 1, [new byte[100]], cancel: Cancel);
        await new Moves(daemon).MoveAsync(log, second.StoreId, Cancel);
        await blockd.AppendAsync("log", Guid.NewGuid(), 1, [new byte[100]], cancel: Cancel);
        Assert.Equal(loops, daemon.Volumes.Doors.Find(log.Id).Count);

        // A reader who came before the move takes all there is for minutes.
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/volumes/log", "{\"qos\":{\"bytesPerSecond\":65536}}")).Status);
        await UntilAsync(() => daemon.Volumes.Doors.Find(log.Id).All(d => d.Limits.BytesPerSecond == QosLimits.BytesPerSecondMin), "a door has no limit");
        Assert.Equal(QosLimits.BytesPerSecondMin, readers.Limits.BytesPerSecond);
        Assert.True(await first.Thread.InvokeAsync(() => new ValueTask<bool>(readers.Enter(new AdmissionWaiter(() => { }), DebtBytes))));
        Task<AppendAnswerInfo> appending = blockd.AppendAsync("log", Guid.NewGuid(), 1, [new byte[100]], cancel: Cancel);
        await UntilAsync(() => appending.IsCompleted || daemon.Volumes.Doors.Find(log.Id).Sum(d => d.Waiting) > 0, "the append got lost");
        Assert.False(appending.IsCompleted, "an append passed a limit that was used up");

        // Without a limit it goes on.
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/volumes/log", "{\"qos\":{\"bytesPerSecond\":0}}")).Status);
        Assert.Single((await appending).Appends);
        await first.Thread.InvokeAsync(() =>
        {
            readers.Exit(DebtBytes);
            return default;
        });
        Assert.Equal(0, daemon.Volumes.Doors.Find(log.Id).Sum(d => d.Waiting));
    }

    [Fact]
    public async Task New_limits_reach_who_is_attached_after_the_old_disk_of_a_moved_volume_is_gone()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        Guid first = test.Daemon.Stores.All[0].StoreId;
        VolumeRecord volume = await test.CreateAsync("v", store: first), stays = await test.CreateAsync("stays", store: first);
        VolumeAdmission door = await OpenAsync(test.Daemon, volume);
        await OpenAsync(test.Daemon, stays);
        StoreHost second = await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("second.blk"), "second", 80 * Units.MiB));
        await new Moves(test.Daemon).MoveAsync(volume, second.StoreId, Cancel);
        await test.Daemon.RemoveDiskAsync(first, isForced: true);
        Assert.Empty(test.Daemon.Volumes.Doors.Find(stays.Id));
        DirectoryResult changed = await test.Daemon.Directory.ChangeAsync("v", new ChangeVolume(Qos: new QosLimits(Iops: 70)));
        test.Daemon.OnChanged(changed.Volume!);
        await UntilAsync(() => door.Limits.Iops == 70, "who is attached has the old limits");
        Assert.Same(door, Assert.Single(test.Daemon.Volumes.Doors.Find(volume.Id)));
    }

    /// <summary>What comes by a message from another thread.</summary>
    private static async Task UntilAsync(Func<bool> isSo, string otherwise)
    {
        for (long end = Environment.TickCount64 + 30_000; !isSo(); await Task.Delay(1, Cancel)) Assert.True(Environment.TickCount64 < end, otherwise);
    }

    private static async Task<VolumeRecord> CreateLogAsync(Blockd.Daemon daemon, Guid store)
    {
        DirectoryResult made = await daemon.Directory.CreateAsync(new CreateVolume("log", 16 * Units.MiB, StoreId: store, AppendOnly: true));
        Assert.True(made.Fault is null, made.Fault?.Detail);
        return made.Volume!;
    }

    /// <summary>As a front end does for who attaches.</summary>
    private static async Task<VolumeAdmission> OpenAsync(Blockd.Daemon daemon, VolumeRecord volume)
    {
        StoreHost host = daemon.Stores.Find(volume.StoreId)!;
        return (await host.Thread.InvokeAsync(() => daemon.Volumes.OpenAsync(volume, host.Thread)))!.Door;
    }
}
