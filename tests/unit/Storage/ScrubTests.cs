using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>A scrub goes on where another one ended, and lets clients go first.</summary>
public sealed class ScrubTests
{
    private const int Extents = 40;

    [Fact]
    public void A_scrub_goes_on_where_another_one_ended_also_after_a_restart()
    {
        StoreWorld world = World();
        using var cancel = new CancellationTokenSource();
        var positions = new List<ulong>();
        ScrubReport first = world.Loop.Run(world.Store.ScrubAsync(
            7, 4 * Units.MiB, r =>
            {
                positions.Add(r.Position);
                if (positions.Count == 3) cancel.Cancel();
            }, cancel.Token));
        Assert.False(first.Finished);
        Assert.InRange(first.BlocksRead, 8 * 256UL, 20 * 256UL);
        Assert.Equal(positions[^1], first.Position);
        world.Reopen(isClean: false);
        ScrubReport rest = world.Loop.Run(world.Store.ScrubAsync(7, 0, null, CancellationToken.None, first.Position));
        Assert.True(rest.Finished);
        Assert.Equal(Extents * 256UL, first.BlocksRead + rest.BlocksRead);
    }

    [Fact]
    public void Its_position_is_told_every_32_MiB_however_quick_it_is()
    {
        StoreWorld world = World();
        var told = new List<ulong>();
        ScrubReport report = world.Loop.Run(world.Store.ScrubAsync(7, 0, r => told.Add(r.BlocksRead), CancellationToken.None));
        Assert.Equal([32 * 256UL, Extents * 256UL], told.Distinct());
        Assert.True(report.Finished);
    }

    [Fact]
    public void It_rests_while_clients_ask_for_something_and_goes_on_all_the_same()
    {
        StoreWorld world = World();
        ulong idle = TimeOf(world, hasClient: false), busy = TimeOf(world, hasClient: true);
        // 40 rests of at most a quarter of a second, most of them that long.
        Assert.InRange(busy - idle, 30 * 250_000_000UL, 41 * 250_000_000UL);
    }

    private static ulong TimeOf(StoreWorld world, bool hasClient)
    {
        ulong began = world.Loop.NowNanos;
        bool isDone = false;
        var block = new byte[4096];
        async Task Client()
        {
            while (!isDone)
            {
                Assert.Equal(IoStatus.Ok, (await world.Device.ReadAsync(0, block)).Status);
                await world.Loop.DelayAsync(1_000_000);
            }
        }

        Task client = hasClient ? Client() : Task.CompletedTask;
        ScrubReport report = world.Loop.Run(world.Store.ScrubAsync(7, 0, null, CancellationToken.None));
        ulong passed = world.Loop.NowNanos - began;
        isDone = true;
        Assert.True(world.Loop.RunUntil(() => client.IsCompleted));
        Assert.Equal((true, Extents * 256UL), (report.Finished, report.BlocksRead));
        return passed;
    }

    private static StoreWorld World()
    {
        var world = new StoreWorld(11, 96 * Units.MiB, 64 * Units.MiB, new StoreOptions { RingBytes = 8 * Units.MiB });
        for (ulong i = 0; i < Extents; i++) world.Write(i * Units.MiB, StoreWorld.Pattern(i + 1, Units.ExtentBytes));
        return world;
    }
}
