using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>Layers from outside: what snapshots and clones show, what they take, and what stands in their way.</summary>
public class SnapshotTests
{
    private readonly StoreWorld _world = new(1, 32 * Units.MiB, 4 * Units.MiB, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05 });

    private ILayeredStore Store => (ILayeredStore)_world.Store;

    private static Guid Id(int n) => new(n, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1);

    private void Cut(int n, uint volume = 7, IoStatus expected = IoStatus.Ok) =>
        Assert.Equal(expected, _world.Loop.Run(Store.CreateSnapshotsAsync([new SnapshotRequest(volume, Id(n), $"s{n}", (ulong)n)])));

    private void Delete(int n, IoStatus expected = IoStatus.Ok)
    {
        Assert.Equal(expected, _world.Loop.Run(Store.DeleteSnapshotAsync(7, Id(n))));
        Settle();
    }

    private void Settle() => _world.Loop.Run(Wait());

    private async ValueTask<bool> Wait()
    {
        await _world.Loop.DelayAsync(1_000_000_000);
        return true;
    }

    private byte[] ReadOf(IBlockDevice device, ulong offset, int length)
    {
        var data = new byte[length];
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(device.ReadAsync(offset, data)).Status);
        return data;
    }

    private byte[] ReadSnapshot(int n, ulong offset, int length, uint volume = 7) =>
        ReadOf(Store.OpenSnapshot(volume, Id(n))!, offset, length);

    private void Audit() => Assert.Null(_world.Loop.Run(((Store)_world.Store).AuditAsync()));

    private void Reopen(bool isClean)
    {
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.FlushAsync()));
        _world.Reopen(isClean);
        Settle();
        Audit();
    }

    /// <summary>A write that begins at any event of a cut, and that the disk takes only at the second place: it is said again in
    /// the log, for the page that it was begun on, and the cut waits for it.</summary>
    [Fact]
    public void A_write_is_before_a_cut_or_after_it()
    {
        for (ulong wait = 0; wait < 40; wait++) Assert.Null(WriteWhileCutting(wait));
    }

    private static string? WriteWhileCutting(ulong wait)
    {
        var world = new StoreWorld(
            wait, 32 * Units.MiB, 4 * Units.MiB, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05 });
        ulong data = world.Geometry.DataStart;
        var store = (ILayeredStore)world.Store;
        byte[] one = StoreWorld.Pattern(1, 8192), two = StoreWorld.Pattern(2, 8192), three = StoreWorld.Pattern(3, 4096);
        world.Write(0, one);
        Task<IoStatus> cutting = store.CreateSnapshotsAsync([new SnapshotRequest(7, Id(1), "s1", 1)]).AsTask();
        ulong begin = world.Loop.EventCount + wait;
        world.Loop.RunUntil(() => world.Loop.EventCount >= begin || cutting.IsCompleted);
        world.File.Writing = block =>
        {
            if (block < data) return;
            world.File.BadWrites.Add(block);
            world.File.Writing = null;
        };
        Task<IoStatus> writing = world.Device.WriteAsync(0, two, WriteFlags.None).AsTask();
        Assert.True(world.Loop.RunUntil(() => cutting.IsCompleted && writing.IsCompleted));
        Assert.Equal((IoStatus.Ok, IoStatus.Ok), (cutting.Result, writing.Result));
        Assert.Null(world.File.Writing);
        world.Write(0, three);
        if (world.Loop.Run(((Store)world.Store).AuditAsync()) is { } fault) return fault;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.FlushAsync()));
        world.File.BadWrites.Clear();
        world.Reopen(isClean: false);
        store = (ILayeredStore)world.Store;
        var then = new byte[8192];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenSnapshot(7, Id(1))!.ReadAsync(0, then)).Status);
        if (!then.AsSpan().SequenceEqual(one) && !then.AsSpan().SequenceEqual(two)) return "the snapshot has neither";
        if (!world.Read(0, 8192).AsSpan().SequenceEqual((byte[])[.. three, .. two[4096..]])) return "the volume has something else";
        return world.Loop.Run(((Store)world.Store).AuditAsync());
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_snapshot_shows_what_was_there_at_the_cut(bool isClean)
    {
        byte[] old = StoreWorld.Pattern(1, 2 * Units.ExtentBytes), now = StoreWorld.Pattern(2, 5000);
        _world.Write(0, old);
        ulong used = _world.Store.UsedBytes(7);
        Cut(1);
        Assert.Equal(used, _world.Store.UsedBytes(7));
        _world.Write(1000, now);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Device.TrimAsync(Units.ExtentBytes, Units.ExtentBytes, WriteFlags.None)));
        for (int round = 0; round < 2; round++)
        {
            Assert.Equal(old, ReadSnapshot(1, 0, old.Length));
            Assert.Equal(now, _world.Read(1000, now.Length));
            Assert.Equal(old[..1000], _world.Read(0, 1000));
            Assert.All(_world.Read(Units.ExtentBytes, Units.ExtentBytes), value => Assert.Equal(0, value));
            Audit();
            if (round == 0) Reopen(isClean);
        }

        Assert.Equal(IoStatus.ReadOnly, _world.Loop.Run(Store.OpenSnapshot(7, Id(1))!.WriteAsync(0, now, WriteFlags.None)));
        Assert.Equal(new SnapshotUsage((ulong)old.Length, 2 * Units.BlockBytes + Units.ExtentBytes), _world.Loop.Run(Store.SnapshotUsageAsync(7, Id(1))).Usage);
        Delete(1);
        Audit();
        Assert.Null(Store.OpenSnapshot(7, Id(1)));
        Assert.Equal(Units.ExtentBytes, (int)_world.Store.UsedBytes(7));
        Assert.Equal(now, _world.Read(1000, now.Length));
        Reopen(isClean);
        Assert.Equal(now, _world.Read(1000, now.Length));
        Assert.Equal((ulong)Units.ExtentBytes, _world.Store.UsedBytes(7));
    }

    [Fact]
    public void A_cut_says_how_long_it_held_changes_and_a_refused_one_says_nothing()
    {
        _world.Write(0, StoreWorld.Pattern(1, Units.BlockBytes));
        ulong before = _world.Loop.NowNanos;
        Cut(1);
        ulong passed = _world.Loop.NowNanos - before;
        Assert.InRange(Store.CutPauses.Nanos, 1UL, passed); // a flush takes its time on the simulated disk too
        Assert.Equal(Store.CutPauses.Nanos, Store.CutPauses.NanosMax);
        Assert.Equal(IoStatus.Conflict, _world.Loop.Run(Store.CreateSnapshotsAsync([new SnapshotRequest(7, Id(1), "again", 1)])));
        Assert.Equal(1UL, Store.CutPauses.Histogram.Aggregate(0UL, (sum, n) => sum + n));
    }

    [Fact]
    public void Layers_go_in_any_order_and_free_what_nobody_needs()
    {
        foreach (int[] order in new int[][] { [0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1] })
        {
            var world = new SnapshotTests();
            var contents = new byte[4][];
            for (int n = 0; n < 4; n++)
            {
                world._world.Write((ulong)(n * 40000), StoreWorld.Pattern((ulong)n, 300_000));
                if (n % 2 == 0) world._world.Write(3 * Units.ExtentBytes + (ulong)n * 8192, StoreWorld.Pattern((ulong)n + 9, 8192));
                contents[n] = world._world.Read(0, 4 * Units.ExtentBytes);
                world.Cut(n + 1);
            }

            world._world.Write(20_000, StoreWorld.Pattern(77, 100_000));
            byte[] now = world._world.Read(0, 4 * Units.ExtentBytes);
            for (int i = 0; i < 4; i++)
            {
                ulong before = world._world.Store.UsedBytes(7);
                SnapshotUsage usage = world._world.Loop.Run(world.Store.SnapshotUsageAsync(7, Id(order[i] + 1))).Usage;
                world.Delete(order[i] + 1);
                Assert.Equal(before - usage.ExclusiveBytes, world._world.Store.UsedBytes(7));
                world.Reopen(i % 2 == 0);
                Assert.Equal(now, world._world.Read(0, now.Length));
                foreach (int left in order[(i + 1)..]) Assert.Equal(contents[left], world.ReadSnapshot(left + 1, 0, now.Length));
            }

            Assert.Empty(world.Store.Snapshots(7));
        }
    }

    [Fact]
    public void A_volume_goes_back_to_a_snapshot_and_what_it_was_is_kept()
    {
        byte[] one = StoreWorld.Pattern(1, 100_000), two = StoreWorld.Pattern(2, 100_000), three = StoreWorld.Pattern(3, 100_000);
        _world.Write(0, one);
        Cut(1);
        _world.Write(0, two);
        Cut(2);
        _world.Write(50_000, three);
        byte[] last = _world.Read(0, 200_000);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.RollBackAsync(Id(1), new SnapshotRequest(7, Id(3), "safety", 3))));
        for (int round = 0; round < 2; round++)
        {
            Assert.Equal(one, _world.Read(0, one.Length));
            Assert.Equal(two, ReadSnapshot(2, 0, two.Length));
            Assert.Equal(last, ReadSnapshot(3, 0, last.Length));
            Audit();
            Reopen(round == 0);
        }

        _world.Write(4096, three);
        byte[] now = _world.Read(0, 200_000);
        Delete(1); // two branches grow from it: it goes when one of them is gone
        Assert.Equal(last, ReadSnapshot(3, 0, last.Length));
        Audit();
        Delete(2);
        Assert.Equal(last, ReadSnapshot(3, 0, last.Length));
        Audit();
        Delete(3);
        Reopen(false);
        Assert.Equal(now, _world.Read(0, now.Length));
        Assert.Empty(Store.Snapshots(7));
        Assert.Equal(26 * 4096u, _world.Store.UsedBytes(7));
    }

    [Fact]
    public void A_clone_is_a_volume_of_its_own_and_holds_its_base()
    {
        byte[] old = StoreWorld.Pattern(1, 2_000_000), own = StoreWorld.Pattern(2, 10_000);
        _world.Write(0, old);
        Cut(1);
        _world.Write(0, own);
        VolumeHead head = StoreWorld.HeadOf(9, 4 * Units.MiB);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.CreateCloneAsync(head, 7, Id(1))));
        IBlockDevice clone = _world.Store.OpenVolume(9)!;
        Assert.Equal(old, ReadOf(clone, 0, old.Length));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(clone.WriteAsync(1_000_000, own, WriteFlags.None)));
        own.CopyTo(old, 1_000_000);
        Delete(1, IoStatus.Conflict);
        Assert.Equal([9u], Store.Snapshots(7)[0].Clones);
        Assert.Equal(IoStatus.Conflict, _world.Loop.Run(_world.Store.DeleteVolumeAsync(7)));
        Reopen(false);
        Assert.Equal((7u, Id(1)), Store.BaseOf(9));
        Assert.Equal(old, ReadOf(_world.Store.OpenVolume(9)!, 0, old.Length));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.FlattenAsync(9)));
        Settle();
        Audit();
        Assert.Null(Store.BaseOf(9));
        Delete(1);
        Reopen(true);
        Assert.Equal(old, ReadOf(_world.Store.OpenVolume(9)!, 0, old.Length));
        Assert.Equal(own, _world.Read(0, own.Length));
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.DeleteVolumeAsync(9)));
        Settle();
        Assert.Equal(_world.Store.UsedBytes(7), _world.Store.GetStats().BlocksUsed * Units.BlockBytes);
        Audit();
    }

    [Fact]
    public void Flattening_that_a_restart_interrupted_waits_until_promises_are_made_anew()
    {
        var world = new StoreWorld(1, 32 * Units.MiB, 4 * Units.MiB, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05, AwaitsPromises = true });
        ILayeredStore Layered() => (ILayeredStore)world.Store;
        ulong Later() => world.Loop.Run(AfterAsync());
        async ValueTask<ulong> AfterAsync()
        {
            await world.Loop.DelayAsync(1_000_000_000);
            return world.Store.UsedBytes(9);
        }

        byte[] old = StoreWorld.Pattern(1, 3_000_000);
        world.Write(0, old);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(Layered().CreateSnapshotsAsync([new SnapshotRequest(7, Id(1), "s1", 1)])));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(Layered().CreateCloneAsync(StoreWorld.HeadOf(9, 4 * Units.MiB), 7, Id(1))));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(Layered().FlattenAsync(9)));
        world.Reopen(false);
        ulong used = world.Store.UsedBytes(9);
        Assert.Equal((used, (7u, Id(1))), (Later(), Layered().BaseOf(9))); // nothing was copied
        Assert.True(used < 3_000_000);
        Layered().ResumeFlattening();
        Layered().ResumeFlattening();
        Assert.InRange(Later(), 3_000_000u, 3_010_000u);
        Assert.Null(Layered().BaseOf(9));
        var copied = new byte[old.Length];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.OpenVolume(9)!.ReadAsync(0, copied)).Status);
        Assert.Equal(old, copied);
        Assert.Null(world.Loop.Run(((Store)world.Store).AuditAsync()));
    }

    [Fact]
    public void A_diff_names_what_was_written_in_between()
    {
        _world.Write(0, StoreWorld.Pattern(1, 1_500_000));
        Cut(1);
        _world.Write(8192, StoreWorld.Pattern(2, 4096));
        Cut(2);
        _world.Write(2_097_152, StoreWorld.Pattern(2, 4096));
        var runs = new List<DiffRun>();
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DiffAsync(7, Id(1), Id(2), 0, 4 * Units.MiB, 10, runs)));
        Assert.Equal([new(8192, false), new(4096, true), new(4 * Units.MiB - 12288, false)], runs);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DiffAsync(7, Id(1), null, 0, 4 * Units.MiB, 10, runs)));
        Assert.Equal([new(8192, false), new(4096, true), new(2_097_152 - 12288, false), new(4096, true), new(2_097_152 - 4096, false)], runs);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DiffAsync(7, Id(2), Id(2), 0, 4 * Units.MiB, 10, runs)));
        Assert.Equal([new(4 * Units.MiB, false)], runs);
    }

    /// <summary>A diff waits for its turn to have two pages in RAM; meanwhile one of its snapshots goes, and the page with it. What
    /// is in that slot now must not be called damage.</summary>
    [Fact]
    public void A_diff_whose_snapshot_goes_while_it_waits_does_not_claim_damage()
    {
        var world = new StoreWorld(5, 64 * Units.MiB, 8 * Units.MiB, new StoreOptions
        {
            RingBytes = Units.MiB, SlotFraction = 0.05, MetadataBudgetBytes = 6 * MetadataPage.EntriesBytes,
        });
        ILayeredStore Layers() => (ILayeredStore)world.Store;
        for (int n = 1; n <= 4; n++)
        {
            // Only the first extent differs between all of them.
            for (ulong extent = 0; extent < (n == 2 ? 1UL : 8UL); extent++) world.Write(extent << Units.ExtentShift, StoreWorld.Pattern((ulong)n, 8192));
            Assert.Equal(IoStatus.Ok, world.Loop.Run(Layers().CreateSnapshotsAsync([new SnapshotRequest(7, Id(n), $"s{n}", (ulong)n)])));
        }

        world.Reopen(isClean: true);
        ILayeredStore store = Layers();
        foreach (int n in new[] { 2, 3 }) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenSnapshot(7, Id(n))!.ReadAsync(0, new byte[4096])).Status);
        var held = new LoopEvent<bool>();
        world.File.ReadsHeld = held;
        Task<IoStatus> first = store.DiffAsync(7, Id(3), Id(4), 5 * Units.MiB, Units.MiB, 10, []).AsTask();
        Task<IoStatus> second = store.DiffAsync(7, Id(2), Id(4), 0, Units.MiB, 10, []).AsTask();
        Task<IoStatus> deleting = store.DeleteSnapshotAsync(7, Id(2)).AsTask();
        ulong used = store.GetStats().BlocksUsed;
        Assert.True(world.Loop.RunUntil(() => deleting.IsCompleted && store.GetStats().BlocksUsed < used));
        Assert.False(second.IsCompleted);
        world.File.ReadsHeld = null;
        held.Set(true);
        Assert.True(world.Loop.RunUntil(() => first.IsCompleted && second.IsCompleted));
        Assert.Equal(IoStatus.Ok, first.Result);
        Assert.Equal(IoStatus.Unavailable, second.Result);
        Assert.Equal(0UL, world.Store.GetStats().ChecksumErrors);
    }

    [Fact]
    public void A_shrunk_volume_grows_with_zeros_and_its_snapshot_keeps_the_end()
    {
        byte[] old = StoreWorld.Pattern(1, 4 * Units.ExtentBytes);
        _world.Write(0, old);
        Cut(1);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.UpdateVolumeAsync(StoreWorld.HeadOf(7, Units.MiB + 512))));
        Reopen(false);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.UpdateVolumeAsync(StoreWorld.HeadOf(7, 4 * Units.MiB))));
        byte[] now = _world.Read(0, old.Length);
        Assert.Equal(old[..(Units.ExtentBytes + 512)], now[..(Units.ExtentBytes + 512)]);
        Assert.Equal(-1, now.AsSpan(Units.ExtentBytes + 512).IndexOfAnyExcept((byte)0));
        Assert.Equal(old, ReadSnapshot(1, 0, old.Length));
        Audit();
    }

    /// <summary>What the shrink of a full store could not drop is dropped before a snapshot takes the smaller size: it would hold
    /// what nobody reads in it, and a larger clone or a diff would show that.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_shrink_without_room_is_finished_before_a_snapshot_is_cut(bool dies)
    {
        byte[] old = StoreWorld.Pattern(1, 4 * Units.ExtentBytes);
        _world.Write(0, old);
        Cut(1);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, Units.TiB))));
        IoStatus status = IoStatus.Ok;
        for (ulong at = 0; status == IoStatus.Ok; at += Units.MiB)
            status = _world.Loop.Run(_world.Store.OpenVolume(8)!.WriteAsync(at, old.AsMemory(0, Units.BlockBytes), WriteFlags.None));
        Assert.Equal(IoStatus.NoSpace, status);
        Assert.Equal(IoStatus.NoSpace, _world.Loop.Run(_world.Store.UpdateVolumeAsync(StoreWorld.HeadOf(7, Units.MiB))));
        if (dies) Reopen(isClean: false);
        Cut(2, expected: IoStatus.NoSpace);
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(_world.Store.DeleteVolumeAsync(8)));
        Settle();
        Cut(2);

        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.CreateCloneAsync(StoreWorld.HeadOf(9, 4 * Units.MiB), 7, Id(2))));
        byte[] clone = ReadOf(Store.OpenVolume(9)!, 0, old.Length);
        Assert.Equal(old[..Units.ExtentBytes], clone[..Units.ExtentBytes]);
        Assert.Equal(-1, clone.AsSpan(Units.ExtentBytes).IndexOfAnyExcept((byte)0));
        var runs = new List<DiffRun>();
        Assert.Equal(IoStatus.Ok, _world.Loop.Run(Store.DiffAsync(7, Id(2), Id(1), 0, 4 * Units.MiB, 10, runs)));
        Assert.Equal([new(Units.MiB, false), new(3 * Units.MiB, true)], runs);
        Audit();
    }
}
