using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>Slots whose pages are gone come back with a checkpoint: whoever has a right to one waits for it, and none is
/// counted twice.</summary>
public sealed class ReturningSlotsTests
{
    private const int AtOnce = 128;
    private const ulong End = Units.TiB;

    private readonly byte[] _block = StoreWorld.Pattern(1, Units.BlockBytes);

    [Fact]
    public void Slots_of_what_is_gone_are_told_until_a_checkpoint_gives_them_back()
    {
        StoreWorld world = World(0.02);
        WriteExtents(world, 7, 0, 10);
        Assert.Equal((11UL, 0UL, 11UL), Slots(world));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, 4 * Units.MiB, WriteFlags.Fua)));
        Assert.Equal((11UL, 4UL, 7UL), Slots(world));
        Audit(world);
        world.Loop.RunToQuiescence();
        Assert.Equal((11UL, 4UL, 7UL), Slots(world)); // nobody needs them
        world.Reopen(isClean: false);
        Assert.Equal((7UL, 0UL, 7UL), Slots(world)); // recovery brings them home
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(7)));
        world.Loop.RunToQuiescence();
        Assert.Equal((7UL, 7UL, 0UL), Slots(world));
        Audit(world);
        world.Reopen(isClean: true);
        Assert.Equal((0UL, 0UL, 0UL), Slots(world));
        Audit(world);
    }

    [Theory]
    [InlineData(true)] // a volume that was promised them
    [InlineData(false)] // one that takes what is free
    public void A_write_waits_for_slots_that_come_back_behind_many_dirty_pages(bool isPromised)
    {
        StoreWorld world = FullOfDirt(isPromised);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.OpenVolume(8)!.TrimAsync(0, 4 * Units.MiB, WriteFlags.None)));
        StoreStats stats = world.Store.GetStats();
        Assert.Equal((stats.SlotsTotal, 4UL, isPromised ? 4UL : 0), (stats.SlotsUsed, stats.SlotsReturning, stats.SlotsPromised));
        WriteExtents(world, 8, 0, 4);
        Assert.InRange(world.Store.GetStats().Checkpoints, 4UL, 5UL);
        Audit(world);
    }

    [Fact]
    public void A_volume_a_snapshot_and_a_clone_wait_for_them_too()
    {
        StoreWorld world = FullOfDirt(isPromised: false);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.OpenVolume(8)!.TrimAsync(0, Units.MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(9, Units.GiB))));
        Assert.Equal(IoStatus.NoSpace, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(10, Units.GiB))));

        world = FullOfDirt(isPromised: false);
        var store = (ILayeredStore)world.Store;
        var cut = new SnapshotRequest(8, Guid.NewGuid(), "s", 0);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(8)!.TrimAsync(0, Units.MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([cut])));
        Assert.Equal(IoStatus.NoSpace, world.Loop.Run(store.CreateCloneAsync(StoreWorld.HeadOf(9, End), 8, cut.Uuid)));
        ulong count = store.GetStats().SlotsTotal - 6;
        WriteExtents(world, 7, 0, count); // all of its pages are dirty again
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(7)!.TrimAsync(count - 1 << Units.ExtentShift, Units.MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateCloneAsync(StoreWorld.HeadOf(9, End), 8, cut.Uuid)));
        Audit(world);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_disk_that_fails_while_one_is_waited_for_is_not_called_full(bool isClone)
    {
        StoreWorld world = FullOfDirt(isPromised: false);
        var store = (ILayeredStore)world.Store;
        var cut = new SnapshotRequest(8, Guid.NewGuid(), "s", 0);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(8)!.TrimAsync(0, 2 * Units.MiB, WriteFlags.Fua)));
        if (isClone) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([cut])));
        if (isClone) WriteExtents(world, 8, 0, 1); // the second slot
        if (isClone) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(7)!.TrimAsync(0, Units.MiB, WriteFlags.Fua)));
        for (ulong block = 0; block < world.File.SizeBytes >> Units.BlockShift; block++) world.File.BadWrites.Add(block);
        Assert.Equal(IoStatus.Unavailable, world.Loop.Run(isClone
            ? store.CreateCloneAsync(StoreWorld.HeadOf(9, End), 8, cut.Uuid) : store.CreateSnapshotsAsync([cut])));
        Assert.Equal(StoreState.Failed, store.State);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void What_a_deletion_gives_back_can_be_promised_at_once(bool isCut)
    {
        StoreWorld world = World(0.02);
        var store = (ILayeredStore)world.Store;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateVolumeAsync(StoreWorld.HeadOf(8, End))));
        ulong count = store.GetStats().SlotsTotal - 2;
        WriteExtents(world, 7, 0, count);
        Assert.Equal(IoStatus.NoSpace, world.Loop.Run(store.PromiseAsync(8, 16 * Units.MiB, isForced: false)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, 16 * Units.MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.NoSpace, world.Loop.Run(store.PromiseAsync(8, 17 * Units.MiB, isForced: false)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.PromiseAsync(8, 16 * Units.MiB, isForced: false)));
        if (isCut)
        {
            // A promise that was answered holds over a power cut: what it counts on is durable.
            world.Reopen(isClean: false);
            store = (ILayeredStore)world.Store;
            Assert.Equal(IoStatus.Ok, world.Loop.Run(store.PromiseAsync(8, 16 * Units.MiB, isForced: true)));
        }

        // Others find it taken.
        Assert.Equal(IoStatus.NoSpace, WriteBlock(world, 7, 0));
        WriteExtents(world, 8, 0, 16);
        Assert.Equal((0UL, 0UL), (store.GetStats().SlotsPromised, store.GetStats().SlotsTotal - store.GetStats().SlotsHeld));
        Audit(world);
    }

    [Fact]
    public void Two_changes_under_way_do_not_take_the_last_promised_slot_both()
    {
        StoreWorld world = World(0.02);
        var store = (ILayeredStore)world.Store;
        foreach (uint id in new uint[] { 8, 9 }) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateVolumeAsync(StoreWorld.HeadOf(id, End))));
        WriteExtents(world, 8, 0, 2);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([new SnapshotRequest(8, Guid.NewGuid(), "s", 0)])));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.PromiseAsync(8, 3 * Units.MiB, isForced: false))); // one more than the snapshot keeps
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.PromiseAsync(9, 2 * Units.MiB, isForced: false)));
        StoreStats stats = store.GetStats();
        Assert.Equal(3UL, stats.SlotsPromised);
        WriteExtents(world, 7, 0, stats.SlotsTotal - stats.SlotsUsed - 3);

        // Over a snapshot each of the two needs a page; the promise is of one, and the other two are another volume's.
        IBlockDevice device = store.OpenVolume(8)!;
        Task<IoStatus> hole = device.TrimAsync(0, Units.BlockBytes, WriteFlags.None).AsTask();
        Task<IoStatus> write = device.WriteAsync(Units.MiB, _block, WriteFlags.None).AsTask();
        Assert.True(world.Loop.RunUntil(() => hole.IsCompleted && write.IsCompleted));
        Assert.Equal((IoStatus.Ok, IoStatus.NoSpace), (hole.Result, write.Result));
        WriteExtents(world, 9, 0, 2);
        Audit(world);
    }

    private static StoreWorld World(double slots) => new(6, 96 * Units.MiB, End, new StoreOptions
    {
        RingBytes = 32 * Units.MiB, SlotFraction = slots, ProtectPercent = 100,
    });

    /// <summary>A store without a free slot, and more pages changed since the last checkpoint than three cycles bring home;
    /// those of the four extents of volume 8 come last.</summary>
    private StoreWorld FullOfDirt(bool isPromised)
    {
        StoreWorld world = World(0.3);
        var store = (ILayeredStore)world.Store;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateVolumeAsync(StoreWorld.HeadOf(8, End))));
        if (isPromised) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.PromiseAsync(8, 4 * Units.MiB, isForced: false)));
        ulong count = store.GetStats().SlotsTotal - 6;
        Assert.InRange(count, 3 * 1024UL + 1, 4 * 1024UL - 16);
        WriteExtents(world, 7, 0, count);
        WriteExtents(world, 8, 0, 4);
        Assert.Equal((store.GetStats().SlotsTotal, 0UL), (store.GetStats().SlotsUsed, store.GetStats().Checkpoints));
        return world;
    }

    private void WriteExtents(StoreWorld world, uint id, ulong first, ulong count)
    {
        var writes = new List<Task<IoStatus>>();
        for (ulong extent = first; extent < first + count; extent++)
        {
            writes.Add(world.Store.OpenVolume(id)!.WriteAsync(extent << Units.ExtentShift, _block, WriteFlags.None).AsTask());
            if (writes.Count < AtOnce && extent + 1 < first + count) continue;
            Assert.True(world.Loop.RunUntil(() => writes.TrueForAll(w => w.IsCompleted)));
            Assert.All(writes, w => Assert.Equal(IoStatus.Ok, w.Result));
            writes.Clear();
        }
    }

    private IoStatus WriteBlock(StoreWorld world, uint id, ulong at) =>
        world.Loop.Run(world.Store.OpenVolume(id)!.WriteAsync(at, _block, WriteFlags.None));

    private static (ulong Used, ulong Returning, ulong Held) Slots(StoreWorld world)
    {
        StoreStats stats = world.Store.GetStats();
        return (stats.SlotsUsed, stats.SlotsReturning, stats.SlotsHeld);
    }

    private static void Audit(StoreWorld world) => Assert.Null(world.Loop.Run(((Store)world.Store).AuditAsync()));
}
