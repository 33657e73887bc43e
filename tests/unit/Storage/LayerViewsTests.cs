using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>What the store says of its layers: how deep a block lies, how far a deletion is, what a clone has of its own.</summary>
public class LayerViewsTests
{
    private readonly StoreWorld _world = new(1, 64 * Units.MiB, 8 * Units.MiB, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05 });

    private ILayeredStore Store => (ILayeredStore)_world.Store;

    private static Guid Id(int n) => new(n, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1);

    private void Cut(int n, uint volume = 7) =>
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.CreateSnapshotsAsync([new SnapshotRequest(volume, Id(n), $"s{n}", (ulong)n)])));

    private List<DepthRun> DepthOf(Guid? snapshot = null, uint volume = 7, ulong offset = 0, ulong length = 4 * Units.MiB, int runsMax = 20)
    {
        var runs = new List<DepthRun>();
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DepthAsync(volume, snapshot, offset, length, runsMax, runs)));
        return runs;
    }

    [Fact]
    public void Depth_counts_the_layers_down_to_where_a_block_was_written()
    {
        const ulong block = Units.BlockBytes;
        _world.Write(0, StoreWorld.Pattern(1, 4 * Units.BlockBytes));
        Cut(1);
        _world.Write(block, StoreWorld.Pattern(2, 2 * Units.BlockBytes));
        Cut(2);
        _world.Write(2 * block, StoreWorld.Pattern(3, Units.BlockBytes));
        ulong rest = 4 * Units.MiB - 4 * block;
        Assert.Equal([new(block, 3), new(block, 2), new(block, 1), new(block, 3), new(rest, 0)], DepthOf());
        Assert.Equal([new(block, 2), new(2 * block, 1), new(block, 2), new(rest, 0)], DepthOf(Id(2)));
        Assert.Equal([new(4 * block, 1), new(rest, 0)], DepthOf(Id(1)));
        // A part, and no more runs than asked for: the first is cut at the part's begin, what is left out is not told.
        Assert.Equal([new(block / 2, 3), new(block, 2)], DepthOf(offset: block / 2, runsMax: 2));

        // A snapshot that goes takes its step with it, and a clone counts on through its base.
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DeleteSnapshotAsync(7, Id(1))));
        Assert.Equal([new(2 * block, 2), new(block, 1), new(block, 2), new(rest, 0)], DepthOf());
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.CreateCloneAsync(StoreWorld.HeadOf(9, 8 * Units.MiB), 7, Id(2))));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.OpenVolume(9)!.WriteAsync(block, StoreWorld.Pattern(4, Units.BlockBytes), WriteFlags.None)));
        Assert.Equal([new(block, 2), new(block, 1), new(2 * block, 2), new(rest, 0)], DepthOf(volume: 9));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Device.TrimAsync(0, Units.MiB, WriteFlags.None)));
        Assert.Equal([new(4 * Units.MiB, 0)], DepthOf());
    }

    [Fact]
    public void Depth_is_refused_where_nothing_is()
    {
        var runs = new List<DepthRun>();
        Assert.Equal(IoStatus.NotFound, _world.Loop.Run(Store.DepthAsync(7, Id(1), 0, 4096, 10, runs)));
        Assert.Equal(IoStatus.NotFound, _world.Loop.Run(Store.DepthAsync(8, null, 0, 4096, 10, runs)));
        Assert.Equal(IoStatus.OutOfRange, _world.Loop.Run(Store.DepthAsync(7, null, 8 * Units.MiB, 4096, 10, runs)));
        Assert.Empty(runs);
    }

    [Fact]
    public void A_deletion_says_how_much_is_left_of_it()
    {
        for (ulong extent = 0; extent < 8; extent++) _world.Write(extent << Units.ExtentShift, StoreWorld.Pattern(extent, 8192));
        Cut(1);
        for (ulong extent = 0; extent < 8; extent++) _world.Write(extent << Units.ExtentShift, StoreWorld.Pattern(extent + 9, 8192));
        Cut(2);
        Assert.Null(Store.FreeingOf(7, Id(1))); // nobody deletes it
        Task<IoStatus> deleting = Store.DeleteSnapshotAsync(7, Id(1)).AsTask();
        var seen = new List<long>();
        Assert.True(_world.Loop.RunUntil(() =>
        {
            if (Store.FreeingOf(7, Id(1)) is not { } state) return deleting.IsCompleted;
            Assert.False(state.Waits);
            if (seen.Count == 0 || seen[^1] != state.PagesLeft) seen.Add(state.PagesLeft);
            return false;
        }));
        Assert.Equal([8, 7, 6, 5, 4, 3, 2, 1, 0], seen);
        Assert.Null(Store.FreeingOf(7, Id(1)));
        Assert.Null(Store.FreeingOf(8, Id(1)));
    }

    [Fact]
    public void A_deletion_waits_while_several_build_on_the_layer()
    {
        _world.Write(0, StoreWorld.Pattern(1, 8192));
        Cut(1);
        _world.Write(0, StoreWorld.Pattern(2, 8192));
        Cut(2);
        // Back to the first: the second's layer and the head both build on it now.
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.RollBackAsync(Id(1), new SnapshotRequest(7, Id(3), "s3", 3))));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DeleteSnapshotAsync(7, Id(1))));
        Settle();
        Assert.Equal(new FreeingState(1, true), Store.FreeingOf(7, Id(1)));
        foreach (int n in new[] { 3, 2 }) Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DeleteSnapshotAsync(7, Id(n))));
        Settle();
        Assert.Null(Store.FreeingOf(7, Id(1)));
        Assert.Equal(2UL, Store.GetStats().BlocksUsed);
    }

    [Fact]
    public void A_clone_knows_its_own_part()
    {
        _world.Write(0, StoreWorld.Pattern(1, 4 * Units.BlockBytes));
        Cut(1);
        Assert.Equal(1, Store.OwnPart(7));
        Assert.Equal(1, Store.OwnPart(99));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.CreateCloneAsync(StoreWorld.HeadOf(9, 8 * Units.MiB), 7, Id(1))));
        Assert.Equal(0, Store.OwnPart(9));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.OpenVolume(9)!.WriteAsync(0, StoreWorld.Pattern(2, Units.BlockBytes), WriteFlags.None)));
        Assert.Equal(0.25, Store.OwnPart(9));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.FlattenAsync(9)));
        Settle();
        Assert.Equal(1, Store.OwnPart(9));
    }

    private void Settle() => _world.Loop.Run(Wait());

    private async ValueTask<bool> Wait()
    {
        await _world.Loop.DelayAsync(1_000_000_000);
        return true;
    }
}
