using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>What a store holds is known before it is made; what is promised is kept; and when it is full, what exists can be
/// worked with.</summary>
public sealed class CapacityTests
{
    private const int MiB = 1 << 20;

    private readonly byte[] _extent = StoreWorld.Pattern(1, MiB);

    private static IoStatus Promise(StoreWorld world, ILayeredStore store, uint id, ulong bytes, bool isForced) =>
        world.Loop.Run(store.PromiseAsync(id, bytes, isForced));

    [Theory]
    [InlineData(96, 2, 0.02, 100, false)]
    [InlineData(96, 8, 0.02, 95, true)]
    [InlineData(160, 64, 0.02, 95, false)]
    [InlineData(160, 4, 0.005, 100, false)] // the slots end first
    [InlineData(256, 16, 0.03, 80, true)]
    public void What_a_store_takes_is_predicted(int sizeMiB, int ringMiB, double slots, int protect, bool hasLogFile)
    {
        var options = new StoreOptions { RingBytes = (ulong)ringMiB * Units.MiB, SlotFraction = slots, ProtectPercent = protect };
        Assert.Null(StoreGeometry.Plan((ulong)sizeMiB * Units.MiB, options.RingBytes, slots, out StoreGeometry geometry));
        ulong predicted = StoreCapacity.Of(geometry, protect).UsableBytes;

        var loop = new SimLoop(3);
        var file = new MemoryFile(loop, (ulong)sizeMiB * Units.MiB);
        Assert.Null(loop.Run(BlockServer.Storage.Store.FormatAsync(loop, file, options)));
        var log = new CutFile(file); // a second view of the medium, as a log of its own has
        IStore store = loop.Run(BlockServer.Storage.Store.OpenAsync(loop, file, hasLogFile ? log : null, options)).Store!;
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(StoreWorld.HeadOf(7, Units.TiB))));
        Fill(loop, store, 7);
        double apart = Math.Abs((double)store.UsedBytes(7) - predicted) / predicted;
        Assert.True(apart < 0.01, $"{store.UsedBytes(7)} bytes were taken, {predicted} predicted");
    }

    [Fact]
    public void On_a_full_store_everything_that_is_there_can_be_overwritten_trimmed_and_deleted()
    {
        StoreWorld world = World(100);
        ulong used = Fill(world.Loop, world.Store, 7);
        Assert.Equal(IoStatus.NoSpace, Write(world, 7, Units.TiB - Units.MiB, 4096));
        var random = new SeededRandom(4);
        ulong extents = used >> Units.ExtentShift;
        for (int round = 0; round < 8; round++)
        {
            // Many at once, each block again and again: the copies together are far more than the reserve.
            var writes = new List<Task<IoStatus>>();
            for (int i = 0; i < 200; i++)
            {
                ulong at = ((ulong)random.NextBelow((int)extents) << Units.ExtentShift) + (ulong)random.NextBelow(200) * 4096;
                writes.Add(world.Device.WriteAsync(at, _extent.AsMemory(0, 4096 * (1 + random.NextBelow(30))), WriteFlags.None).AsTask());
            }

            Assert.True(world.Loop.RunUntil(() => writes.TrueForAll(w => w.IsCompleted)));
            Assert.All(writes, w => Assert.Equal(IoStatus.Ok, w.Result));
        }

        Assert.Equal(used, world.Store.UsedBytes(7));
        Assert.Equal(IoStatus.NoSpace, Write(world, 7, Units.TiB - Units.MiB, 4096));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, Write(world, 7, Units.TiB - Units.MiB, 4096));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(7)));
        world.Loop.RunToQuiescence();
        Assert.Equal(0UL, world.Store.GetStats().BlocksUsed);
    }

    [Fact]
    public void What_is_promised_is_there_although_others_fill_the_store()
    {
        StoreWorld world = World(95);
        ILayeredStore store = Make(world, 8, 9);
        const ulong promised = 20 * MiB;
        Assert.Equal(IoStatus.Ok, Promise(world, store, 8, promised, isForced: false));
        Assert.Equal(IoStatus.Ok, Promise(world, store, 9, promised, isForced: false));
        ulong thin = Fill(world.Loop, store, 7);
        Assert.InRange(thin, Units.MiB, StoreCapacity.Of(world.Geometry, 95).UsableBytes - 2 * promised + Units.MiB);
        // Both take theirs at once, block by block and in disorder, while the third tries to get in between.
        var random = new SeededRandom(5);
        int[] order = [.. Enumerable.Range(0, 2 * 20 * 16)];
        for (int i = order.Length; i-- > 1;)
        {
            int j = random.NextBelow(i + 1);
            (order[i], order[j]) = (order[j], order[i]);
        }

        var own = new List<Task<IoStatus>>();
        var others = new List<Task<IoStatus>>();
        foreach (int n in order)
        {
            ulong at = (ulong)(n / 2) * 65536;
            own.Add(store.OpenVolume(n % 2 == 0 ? 8u : 9)!.WriteAsync(at, _extent.AsMemory(0, 65536), WriteFlags.None).AsTask());
            others.Add(world.Device.WriteAsync(Units.TiB - Units.MiB - (ulong)n * Units.MiB, _extent.AsMemory(0, 4096), WriteFlags.None).AsTask());
        }

        Assert.True(world.Loop.RunUntil(() => own.TrueForAll(w => w.IsCompleted) && others.TrueForAll(w => w.IsCompleted)));
        Assert.All(own, w => Assert.Equal(IoStatus.Ok, w.Result));
        Assert.All(others, w => Assert.Equal(IoStatus.NoSpace, w.Result));
        Assert.Equal((promised, promised), (store.UsedBytes(8), store.UsedBytes(9)));
        Assert.Equal((0UL, 0UL), (store.GetStats().BlocksPromised, store.GetStats().SlotsPromised));
        // What it has trimmed is its own again.
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(8)!.TrimAsync(0, promised, WriteFlags.None)));
        Assert.Equal((promised >> Units.BlockShift, 20UL), (store.GetStats().BlocksPromised, store.GetStats().SlotsPromised));
        Assert.Equal(IoStatus.NoSpace, Write(world, 7, Units.TiB - Units.MiB, 4096));
        for (ulong at = 0; at < promised; at += MiB) Assert.Equal(IoStatus.Ok, Write(world, 8, at, MiB));
    }

    [Fact]
    public void Only_what_is_free_is_promised_and_a_deletion_takes_the_promise_back()
    {
        StoreWorld world = World(95);
        ILayeredStore store = Make(world, 8);
        ulong usable = StoreCapacity.Of(world.Geometry, 95).UsableBytes;
        Assert.Equal(IoStatus.NoSpace, Promise(world, store, 8, usable + Units.MiB, isForced: false));
        Assert.Equal(0UL, store.GetStats().BlocksPromised);
        Assert.Equal(IoStatus.Ok, Promise(world, store, 8, usable, isForced: false));
        Assert.Equal(IoStatus.NoSpace, Promise(world, store, 7, Units.MiB, isForced: false));
        Assert.Equal(IoStatus.NoSpace, Write(world, 7, 0, 4096));
        Assert.Equal(IoStatus.Ok, Promise(world, store, 7, Units.MiB, isForced: true)); // it was promised in an earlier life
        Assert.Equal(IoStatus.Ok, Promise(world, store, 7, 0, isForced: false));
        Assert.Equal(IoStatus.Ok, Promise(world, store, 8, usable - 2 * Units.MiB, isForced: false));
        Assert.Equal(IoStatus.Ok, Write(world, 7, 0, 4096));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DeleteVolumeAsync(8)));
        Assert.Equal((0UL, 0UL), (store.GetStats().BlocksPromised, store.GetStats().SlotsPromised));
        Assert.Equal(IoStatus.NotFound, Promise(world, store, 8, Units.MiB, isForced: true));
    }

    [Fact]
    public void What_snapshots_keep_counts_for_the_promise_of_their_volume()
    {
        StoreWorld world = World(100);
        ILayeredStore store = Make(world, 8);
        Assert.Equal(IoStatus.Ok, Promise(world, store, 8, 8 * Units.MiB, isForced: false));
        for (ulong at = 0; at < 4 * Units.MiB; at += MiB) Assert.Equal(IoStatus.Ok, Write(world, 8, at, MiB));
        var cut = new SnapshotRequest(8, Guid.NewGuid(), "before", 0);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([cut])));
        Fill(world.Loop, store, 7);
        // Four MiB of the promise are left: for copies of what the snapshot keeps as for anything else.
        for (ulong at = 0; at < 4 * Units.MiB; at += MiB) Assert.Equal(IoStatus.Ok, Write(world, 8, at, MiB));
        Assert.Equal(IoStatus.NoSpace, Write(world, 8, 4 * Units.MiB, MiB));
        Assert.Equal(IoStatus.Ok, Write(world, 8, 0, MiB)); // nothing keeps this copy
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DeleteSnapshotAsync(8, cut.Uuid)));
        world.Loop.RunToQuiescence();
        Assert.Equal(4 * Units.MiB >> Units.BlockShift, store.GetStats().BlocksPromised);
        for (ulong at = 4 * Units.MiB; at < 8 * Units.MiB; at += MiB) Assert.Equal(IoStatus.Ok, Write(world, 8, at, MiB));
    }

    [Fact]
    public void New_extents_end_at_the_level_of_protection_and_the_rest_goes_on()
    {
        StoreWorld world = World(80);
        Fill(world.Loop, world.Store, 7, MiB / 2); // the other half of each extent is free
        const ulong end = Units.TiB - Units.MiB;
        StoreStats stats = world.Store.GetStats();
        Assert.InRange((double)stats.BlocksUsed / stats.BlocksTotal, 0.79, 0.80);
        Assert.Equal(IoStatus.NoSpace, Write(world, 7, end, 4096));
        Assert.Equal(IoStatus.Ok, Write(world, 7, MiB / 2, MiB / 2));
        Assert.Equal(IoStatus.Ok, Write(world, 7, 0, MiB));
        Assert.Equal(IoStatus.NoSpace, Write(world, 7, end, 4096));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, 2 * MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, Write(world, 7, end, 4096));
    }

    [Fact]
    public void New_extents_end_at_the_level_of_protection_of_the_slots_too()
    {
        StoreWorld world = World(90);
        StoreStats stats = world.Store.GetStats();
        ulong at = 0;
        while (Write(world, 7, at, 4096) == IoStatus.Ok) at += Units.MiB;
        Assert.Equal((stats.SlotsTotal - stats.SlotsTotal / 10, stats.SlotsTotal / 10), (world.Store.GetStats().SlotsUsed, stats.SlotsKept));
        Assert.Equal(IoStatus.Ok, Write(world, 7, 8192, 65536));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, Write(world, 7, at, 4096));
        // A promise is of slots too: this one would need more than the level leaves.
        ILayeredStore store = Make(world, 8);
        Assert.Equal(IoStatus.NoSpace, Promise(world, store, 8, Units.MiB, isForced: false));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_shrink_that_a_restart_interrupted_takes_no_slot_that_is_promised_to_another(bool hasRoom)
    {
        var world = new StoreWorld(6, 96 * Units.MiB, Units.TiB, new StoreOptions { RingBytes = 8 * Units.MiB, ProtectPercent = 100, AwaitsPromises = true });
        ILayeredStore store = Make(world, 8, 9);
        for (ulong at = 0; at < 4 * Units.MiB; at += MiB) Assert.Equal(IoStatus.Ok, Write(world, 8, at, 4096));
        var cut = new SnapshotRequest(8, Guid.NewGuid(), "before", 0);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([cut])));
        const ulong promised = 8 * MiB;
        Assert.Equal(IoStatus.Ok, Promise(world, store, 9, promised, isForced: false));
        ulong others = 0;
        for (StoreStats stats = store.GetStats(); stats.SlotsTotal - stats.SlotsUsed > stats.SlotsPromised; stats = store.GetStats())
            Assert.Equal(IoStatus.Ok, Write(world, 7, others++ << Units.ExtentShift, 4096));
        // Over the snapshot each MiB behind the new end takes a page of holes, and there is no slot for one.
        Assert.Equal(IoStatus.NoSpace, world.Loop.Run(store.UpdateVolumeAsync(StoreWorld.HeadOf(8, Units.MiB))));
        if (hasRoom) Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, 3 * Units.MiB, WriteFlags.Fua)));

        world.Reopen(isClean: false);
        store = (ILayeredStore)world.Store;
        world.Loop.RunToQuiescence();
        ulong used = store.GetStats().SlotsUsed;
        Assert.Equal(IoStatus.Ok, Promise(world, store, 9, promised, isForced: true));
        store.ResumeFlattening();
        world.Loop.RunToQuiescence();
        Assert.Equal(used + (hasRoom ? 3u : 0), store.GetStats().SlotsUsed);
        for (ulong at = 0; at < promised; at += MiB) Assert.Equal(IoStatus.Ok, Write(world, 9, at, 4096));

        // With room again it is done, before the volume grows: what lay behind the end does not come back.
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, 8 * Units.MiB, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.UpdateVolumeAsync(StoreWorld.HeadOf(8, 4 * Units.MiB))));
        var seen = new byte[4 * MiB];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(8)!.ReadAsync(0, seen)).Status);
        Assert.True(seen.AsSpan(0, 4096).SequenceEqual(_extent.AsSpan(0, 4096)));
        Assert.False(seen.AsSpan(4096).ContainsAnyExcept((byte)0));
    }

    private static StoreWorld World(int protect) =>
        new(6, 96 * Units.MiB, Units.TiB, new StoreOptions { RingBytes = 8 * Units.MiB, ProtectPercent = protect });

    private static ILayeredStore Make(StoreWorld world, params uint[] volumes)
    {
        foreach (uint id in volumes) Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(id, Units.GiB))));
        return (ILayeredStore)world.Store;
    }

    private IoStatus Write(StoreWorld world, uint id, ulong at, int length) =>
        world.Loop.Run(world.Store.OpenVolume(id)!.WriteAsync(at, _extent.AsMemory(0, length), WriteFlags.None));

    /// <summary>Writes the begin of extent after extent until there is no space; what the volume takes then.</summary>
    private ulong Fill(SimLoop loop, IStore store, uint id, int length = MiB)
    {
        IBlockDevice device = store.OpenVolume(id)!;
        ulong at = 0;
        IoStatus status = IoStatus.Ok;
        for (; status == IoStatus.Ok; at += Units.MiB) status = loop.Run(device.WriteAsync(at, _extent.AsMemory(0, length), WriteFlags.None));
        for (status = IoStatus.Ok; status == IoStatus.Ok; at += Units.MiB) status = loop.Run(device.WriteAsync(at, _extent.AsMemory(0, 4096), WriteFlags.None));
        Assert.Equal(IoStatus.NoSpace, status);
        return store.UsedBytes(id);
    }
}
