using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>A scrub over layers: every block once, wherever it is shown.</summary>
public class SnapshotScrubTests
{
    private static readonly StoreOptions Options = new() { RingBytes = Units.MiB, SlotFraction = 0.05 };

    private static Guid Id(int n) => new(n, 1, 1, new byte[8]);

    private static void Cut(StoreWorld world, int n) => Assert.Equal(
        IoStatus.Ok, world.Loop.Run(((ILayeredStore)world.Store).CreateSnapshotsAsync([new SnapshotRequest(7, Id(n), $"s{n}", 1)])));

    private static ScrubReport Scrub(StoreWorld world, uint? volume) =>
        world.Loop.Run(world.Store.ScrubAsync(volume, 0, null, CancellationToken.None));

    private static ulong FindBlock(StoreWorld world, ReadOnlySpan<byte> content)
    {
        var page = new byte[Units.BlockBytes];
        for (ulong block = world.Geometry.DataStart; block < world.Geometry.DataStart + world.Geometry.DataBlocks; block++)
        {
            world.Loop.Run(world.File.Medium.ReadAsync(block << Units.BlockShift, page));
            if (content.SequenceEqual(page)) return block;
        }

        throw new InvalidOperationException("no block has this content");
    }

    [Fact]
    public void Every_block_of_every_layer_is_verified_once()
    {
        var world = new StoreWorld(1, 32 * Units.MiB, 4 * Units.MiB, Options);
        byte[] old = StoreWorld.Pattern(1, 2 * Units.ExtentBytes);
        world.Write(0, old);
        Cut(world, 1);
        world.Write(8192, StoreWorld.Pattern(2, 8192));
        Cut(world, 2);
        world.Write(12288, StoreWorld.Pattern(3, 8192));
        var store = (ILayeredStore)world.Store;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateCloneAsync(StoreWorld.HeadOf(9, 4 * Units.MiB), 7, Id(1))));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(9)!.WriteAsync(0, StoreWorld.Pattern(4, 4096), WriteFlags.None)));
        ulong used = store.UsedBytes(7) / Units.BlockBytes;
        Assert.Equal(512UL + 2 + 2, used);
        Assert.Equal((used + 1, used + 1), (Scrub(world, null).BlocksRead, Scrub(world, null).BlocksTotal));
        Assert.Equal((used, used), (Scrub(world, 7).BlocksRead, Scrub(world, 7).BlocksTotal));
        Assert.Equal(used + 1, Scrub(world, 9).BlocksRead); // what it builds on, too

        // Block 2 is shown by the first snapshot alone, block 3 by the second alone (the pattern's second half), block 9 by all.
        world.File.Rot(world.Loop, FindBlock(world, old.AsSpan(8192, 4096)));
        world.File.Rot(world.Loop, FindBlock(world, StoreWorld.Pattern(2, 8192).AsSpan(4096)));
        world.File.Rot(world.Loop, FindBlock(world, old.AsSpan(9 * 4096, 4096)));
        ScrubReport report = Scrub(world, null);
        Assert.Equal(
            [
                new BadBlock(7, 8192, IoStatus.Corrupt) { Snapshot = Id(1) },
                new BadBlock(7, 12288, IoStatus.Corrupt) { Snapshot = Id(2) },
                new BadBlock(7, 9 * 4096, IoStatus.Corrupt),
            ],
            report.Bad.OrderBy(bad => bad.OffsetBytes));
        Assert.Equal(3UL, world.Store.GetStats().BlocksBad);
    }

    /// <summary>While it scrubs a clone the clone goes, then its base, and the slots of their pages become other pages'.</summary>
    [Fact]
    public void A_scrub_of_a_clone_that_goes_names_no_block()
    {
        var world = new StoreWorld(1, 64 * Units.MiB, 16 * Units.MiB, Options with { MetadataBudgetBytes = 1 });
        var store = (ILayeredStore)world.Store;
        for (ulong extent = 0; extent < 12; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 8192));
        Cut(world, 1);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateCloneAsync(StoreWorld.HeadOf(9, 16 * Units.MiB), 7, Id(1))));
        IBlockDevice clone = store.OpenVolume(9)!;
        var runs = new List<MapRun>();
        Task<ScrubReport> scrub = store.ScrubAsync(9, 65536, null, CancellationToken.None).AsTask();
        Task<IoStatus> map = clone.MapAsync(0, 16 * Units.MiB, 100, runs).AsTask();
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DeleteVolumeAsync(9)));
        world.Loop.Run(WaitAsync(world, 200_000_000));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DeleteSnapshotAsync(7, Id(1))));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, 16 * Units.MiB, WriteFlags.None)));
        world.Loop.Run(WaitAsync(world, 200_000_000));
        for (int n = 2; n < 20; n++) Cut(world, n);
        Assert.True(world.Loop.RunUntil(() => scrub.IsCompleted && map.IsCompleted));
        Assert.Empty(scrub.Result.Bad);
        Assert.NotEqual(IoStatus.Corrupt, map.Result);
        Assert.Equal(IoStatus.Unavailable, world.Loop.Run(clone.MapAsync(0, 16 * Units.MiB, 100, runs)));
    }

    private static async ValueTask<bool> WaitAsync(StoreWorld world, ulong nanos)
    {
        await world.Loop.DelayAsync(nanos);
        return true;
    }
}
