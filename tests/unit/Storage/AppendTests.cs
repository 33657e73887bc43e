using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>The rules of append-only volumes, one by one, and that they hold over restarts.</summary>
public class AppendTests
{
    private const int Mib = 1 << 20;
    private static readonly Guid Ada = new("aaaaaaaa-0000-4000-8000-000000000001");
    private static readonly Guid Bob = new("bbbbbbbb-0000-4000-8000-000000000002");
    private static readonly StoreOptions Small = new() { RingBytes = 256 << 10 };

    [Theory]
    [InlineData(1)]
    [InlineData(100)]
    [InlineData(4096)]
    [InlineData(5000)]
    [InlineData(Mib)]
    [InlineData(Mib + 1)]
    [InlineData(3 * Mib + 12345)]
    public void What_was_appended_is_read_in_order_and_after_restarts(int each)
    {
        StoreWorld world = World();
        var all = new List<byte>();
        for (int i = 0; i < 5; i++)
        {
            byte[] bytes = StoreWorld.Pattern((ulong)i, each + i);
            Assert.Equal(new AppendResult(AppendOutcome.Done, (ulong)all.Count), Append(world, default, bytes));
            all.AddRange(bytes);
            AssertHolds(world, all);
            world.Reopen(isClean: i % 2 == 0);
            AssertHolds(world, all);
        }
    }

    [Fact]
    public void A_page_that_goes_takes_its_clients_along_and_no_others()
    {
        var state = new AppendState();
        AppendPage one = new() { [3] = new AppendClient(Ada) }, two = new() { [0] = new AppendClient(Bob) };
        state.SetPage(0, 11, one);
        state.SetPage(1, 12, two);
        state.Drop(0);
        Assert.Null(state.Find(Ada)); // appends of a volume that goes still ask
        Assert.Same(two[0], state.Find(Bob));
        Assert.Equal(1, state.ClientCount);
    }

    [Fact]
    public void Appends_of_one_turn_share_one_batch_and_lie_in_their_order()
    {
        StoreWorld world = World();
        world.Reopen(isClean: true);
        int logPages = 0;
        ulong ring = world.Geometry.RingOffset >> Units.BlockShift, end = world.Geometry.SlotsOffset >> Units.BlockShift;
        world.File.Writing = block => logPages += block >= ring && block < end ? 1 : 0;
        ValueTask<AppendResult>[] under = [.. Enumerable.Range(0, 16).Select(i =>
            Store(world).AppendAsync(7, default, StoreWorld.Pattern((ulong)i, 100 + i)))];
        var all = new List<byte>();
        for (int i = 0; i < 16; i++)
        {
            Assert.Equal((ulong)all.Count, world.Loop.Run(under[i]).OffsetBytes);
            all.AddRange(StoreWorld.Pattern((ulong)i, 100 + i));
        }

        AssertHolds(world, all);
        Assert.True(logPages <= 2, $"{logPages} log pages for 16 appends");
    }

    [Fact]
    public void A_repeat_lands_once_also_after_a_restart()
    {
        StoreWorld world = World();
        byte[] one = StoreWorld.Pattern(1, 300), two = StoreWorld.Pattern(2, 400);
        Assert.Equal(new AppendResult(AppendOutcome.Done, 0), Append(world, new(Ada, 1), one));
        Assert.Equal(new AppendResult(AppendOutcome.Done, 300), Append(world, new(Bob, 1), two));
        foreach (bool isClean in new[] { true, false })
        {
            Assert.Equal(new AppendResult(AppendOutcome.Done, 0, IsRepeat: true), Append(world, new(Ada, 1), one));
            Assert.Equal(new AppendResult(AppendOutcome.Done, 300, IsRepeat: true), Append(world, new(Bob, 1), two));
            Assert.Equal(AppendOutcome.Differs, Append(world, new(Bob, 1), one).Outcome);
            AssertHolds(world, [.. one, .. two]);
            world.Reopen(isClean);
        }

        Assert.Equal(new AppendResult(AppendOutcome.Done, 0, IsRepeat: true), Append(world, new(Ada, 1), one));
        Assert.Equal(2, Info(world).Clients);
    }

    [Fact]
    public void A_repeat_in_the_same_turn_lands_once()
    {
        StoreWorld world = World();
        byte[] bytes = StoreWorld.Pattern(1, 300);
        ValueTask<AppendResult> first = Store(world).AppendAsync(7, new(Ada, 1), bytes), again = Store(world).AppendAsync(7, new(Ada, 1), bytes);
        Assert.Equal(new AppendResult(AppendOutcome.Done, 0), world.Loop.Run(first));
        Assert.Equal(new AppendResult(AppendOutcome.Done, 0, IsRepeat: true), world.Loop.Run(again));
        AssertHolds(world, [.. bytes]);
    }

    [Fact]
    public void The_last_sixteen_are_answered_and_older_ones_refused()
    {
        StoreWorld world = World();
        for (ulong i = 1; i <= 20; i++) Assert.Equal(AppendOutcome.Done, Append(world, new(Ada, i), [(byte)i]).Outcome);
        for (int round = 0; round < 2; round++)
        {
            for (ulong i = 1; i <= 4; i++) Assert.Equal(AppendOutcome.StaleSequence, Append(world, new(Ada, i), [(byte)i]).Outcome);
            for (ulong i = 5; i <= 20; i++) Assert.Equal(new AppendResult(AppendOutcome.Done, i - 1, IsRepeat: true), Append(world, new(Ada, i), [(byte)i]));
            world.Reopen(isClean: false);
        }

        AssertHolds(world, [.. Enumerable.Range(1, 20).Select(i => (byte)i)]);
    }

    [Fact]
    public void Numbers_that_come_out_of_order_land_once_each()
    {
        StoreWorld world = World();
        foreach (ulong i in new ulong[] { 1, 4, 2, 9, 3 }) Assert.Equal(AppendOutcome.Done, Append(world, new(Ada, i), [(byte)i]).Outcome);
        Assert.True(Append(world, new(Ada, 2), [2]).IsRepeat);
        AssertHolds(world, [1, 4, 2, 9, 3]);
        ValueTask<AppendResult>[] under = [.. new ulong[] { 20, 11, 30 }.Select(i => Store(world).AppendAsync(7, new(Ada, i), new[] { (byte)i }))];
        foreach (ValueTask<AppendResult> one in under) Assert.Equal(AppendOutcome.Done, world.Loop.Run(one).Outcome);
        AssertHolds(world, [1, 4, 2, 9, 3, 20, 11, 30]);
    }

    [Fact]
    public void A_client_that_was_forgotten_is_told_so()
    {
        StoreWorld world = World();
        const int known = AppendPage.PagesMax * AppendPage.PlacesMax;
        Assert.Equal(AppendOutcome.Done, Append(world, new(Ada, 1), [1]).Outcome);
        Assert.Equal(AppendOutcome.Done, Append(world, new(Ada, 2), [2]).Outcome);
        for (int i = 0; i < known; i++) Assert.Equal(AppendOutcome.Done, Append(world, new(new Guid(i + 1, 0, 0, new byte[8]), 1), [3]).Outcome);
        Assert.Equal(known, Info(world).Clients);
        for (int round = 0; round < 2; round++)
        {
            Assert.Equal(AppendOutcome.UnknownClient, Append(world, new(Ada, 2), [2]).Outcome);
            Assert.Equal(AppendOutcome.UnknownClient, Append(world, new(Ada, 3), [3]).Outcome);
            Assert.True(Append(world, new(new Guid(known, 0, 0, new byte[8]), 1), [3]).IsRepeat);
            world.Reopen(isClean: round == 0);
            Assert.Equal(known, Info(world).Clients);
        }

        Assert.Equal((ulong)known + 2, Info(world).LengthBytes);
    }

    [Fact]
    public void A_page_for_more_clients_takes_no_slot_that_is_promised()
    {
        var world = new StoreWorld(1, 96 * Mib, 0, Small with { SlotFraction = 0.005 });
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(Head())));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, 64 * Units.MiB))));
        for (int i = 0; i < AppendPage.PlacesMax; i++) Append(world, new(new Guid(i + 1, 0, 0, new byte[8]), 1), [3]);
        StoreStats stats = world.Store.GetStats();
        ulong free = stats.SlotsTotal - stats.SlotsUsed;
        Assert.InRange(free, 5UL, 60UL);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(((ILayeredStore)world.Store).PromiseAsync(8, free * Units.MiB, isForced: true)));
        Assert.Equal(AppendOutcome.Done, Append(world, new(Ada, 1), [1]).Outcome);
        stats = world.Store.GetStats();
        Assert.Equal((free, free), (stats.SlotsPromised, stats.SlotsTotal - stats.SlotsUsed));
        Assert.Equal(AppendPage.PlacesMax, Info(world).Clients); // one was forgotten
        Assert.True(Append(world, new(Ada, 1), [1]).IsRepeat);
    }

    [Fact]
    public void A_sealed_volume_takes_nothing_for_ever()
    {
        StoreWorld world = World();
        byte[] bytes = StoreWorld.Pattern(1, 5000);
        Append(world, new(Ada, 1), bytes);
        VolumeHead head = Head();
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.UpdateVolumeAsync(head with { IsSealed = true })));
        for (int round = 0; round < 2; round++)
        {
            Assert.Equal(AppendOutcome.Sealed, Append(world, new(Ada, 2), bytes).Outcome);
            Assert.Equal(AppendOutcome.Sealed, Append(world, default, bytes).Outcome);
            Assert.True(Append(world, new(Ada, 1), bytes).IsRepeat);
            Assert.Equal(IoStatus.ReadOnly, world.Loop.Run(world.Store.UpdateVolumeAsync(head)));
            Assert.True(Info(world).IsSealed);
            AssertHolds(world, [.. bytes]);
            world.Reopen(isClean: false);
        }
    }

    [Fact]
    public void What_would_overwrite_is_refused()
    {
        StoreWorld world = World();
        byte[] bytes = StoreWorld.Pattern(1, 10000);
        Append(world, default, bytes);
        Assert.True(world.Device.IsReadOnly);
        world.Write(0, new byte[4096], IoStatus.ReadOnly);
        Assert.Equal(IoStatus.ReadOnly, world.Loop.Run(world.Device.TrimAsync(0, 4096, WriteFlags.None)));
        Assert.Equal(IoStatus.ReadOnly, world.Loop.Run(world.Device.WriteZeroesAsync(0, 4096, WriteFlags.None)));
        AssertHolds(world, [.. bytes]);
    }

    [Fact]
    public void Bad_appends_are_refused_and_change_nothing()
    {
        StoreWorld world = World();
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, Mib))));
        Assert.Equal(AppendOutcome.Invalid, Append(world, default, []).Outcome);
        Assert.Equal(AppendOutcome.Invalid, Append(world, new(Ada, 0), [1]).Outcome);
        Assert.Equal(AppendOutcome.Invalid, Append(world, new(Guid.Empty, 1), [1]).Outcome);
        Assert.Equal(AppendOutcome.Invalid, Append(world, default, new byte[Units.RequestBytesMax + 1]).Outcome);
        Assert.Equal(AppendOutcome.NotFound, world.Loop.Run(Store(world).AppendAsync(8, default, new byte[1])).Outcome);
        Assert.Equal(AppendOutcome.NotFound, world.Loop.Run(Store(world).AppendAsync(9, default, new byte[1])).Outcome);
        Assert.Equal(IoStatus.Invalid, world.Loop.Run(world.Store.UpdateVolumeAsync(StoreWorld.HeadOf(7, 8 * Mib))));
        Assert.Equal(IoStatus.Invalid, world.Loop.Run(world.Store.UpdateVolumeAsync(StoreWorld.HeadOf(8, Mib) with { IsAppendOnly = true })));
        Assert.Equal(0UL, Info(world).LengthBytes);
        Assert.Equal((ulong)Units.BlockBytes, world.Device.SizeBytes);
    }

    [Fact]
    public void The_maximum_size_is_kept_and_can_be_changed()
    {
        StoreWorld world = World(Mib);
        Assert.Equal(AppendOutcome.Done, Append(world, default, new byte[Mib - 10]).Outcome);
        Assert.Equal(AppendOutcome.Full, Append(world, default, new byte[11]).Outcome);
        Assert.Equal(AppendOutcome.Done, Append(world, default, new byte[10]).Outcome);
        Assert.Equal(AppendOutcome.Full, Append(world, default, new byte[1]).Outcome);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.UpdateVolumeAsync(Head(2 * Mib))));
        Assert.Equal(AppendOutcome.Done, Append(world, default, new byte[5000]).Outcome);
        Assert.Equal(IoStatus.OutOfRange, world.Loop.Run(world.Store.UpdateVolumeAsync(Head(Mib))));
        Assert.Equal((ulong)Mib + 5000, Info(world).LengthBytes);
    }

    /// <summary>The client asked for all of them before it knew that the first does not fit: would the last one land, there would be a hole
    /// in what it asked for.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void What_waits_behind_a_refused_append_of_its_client_is_refused_with_it(bool hasClient)
    {
        StoreWorld world = World(Mib);
        Guid order = hasClient ? default : Guid.NewGuid();
        AppendKey Key(ulong sequence) => hasClient ? new(Ada, sequence) : default;
        Assert.Equal(AppendOutcome.Done, Append(world, new(Bob, 1), new byte[Mib - 100]).Outcome);
        byte[] one = StoreWorld.Pattern(1, 20), bobs = StoreWorld.Pattern(2, 5), alone = StoreWorld.Pattern(3, 6), again = StoreWorld.Pattern(4, 7);
        ValueTask<AppendResult>[] under =
        [
            Store(world).AppendAsync(7, Key(1), one, order),
            Store(world).AppendAsync(7, Key(2), new byte[200], order),
            Store(world).AppendAsync(7, new(Bob, 2), bobs),
            Store(world).AppendAsync(7, Key(3), new byte[3], order),
            Store(world).AppendAsync(7, default, alone),
            Store(world).AppendAsync(7, Key(4), new byte[4], order),
        ];
        ulong at = Mib - 100;
        Assert.Equal(new AppendResult(AppendOutcome.Done, at), world.Loop.Run(under[0]));
        Assert.Equal(AppendOutcome.Full, world.Loop.Run(under[1]).Outcome);
        Assert.Equal(new AppendResult(AppendOutcome.Done, at + 20), world.Loop.Run(under[2]));
        Assert.Equal(AppendOutcome.Full, world.Loop.Run(under[3]).Outcome);
        Assert.Equal(new AppendResult(AppendOutcome.Done, at + 25), world.Loop.Run(under[4]));
        Assert.Equal(AppendOutcome.Full, world.Loop.Run(under[5]).Outcome);
        // Now the client knows: what it asks for next stands for itself.
        Assert.Equal(new AppendResult(AppendOutcome.Done, at + 31), Append(world, Key(2), again));
        AssertHolds(world, [.. new byte[at], .. one, .. bobs, .. alone, .. again]);
    }

    [Fact]
    public void Behind_a_large_append_that_finds_no_room_its_client_lands_nothing()
    {
        StoreWorld world = World();
        Append(world, new(Ada, 1), [1]);
        while (Append(world, default, new byte[9 * Mib]).Outcome == AppendOutcome.Done)
        {
        }

        ulong length = Info(world).LengthBytes;
        ValueTask<AppendResult> large = Store(world).AppendAsync(7, new(Ada, 2), new byte[9 * Mib]), small = Store(world).AppendAsync(7, new(Ada, 3), new byte[9]),
            repeat = Store(world).AppendAsync(7, new(Ada, 1), new byte[] { 1 }), other = Store(world).AppendAsync(7, new(Bob, 1), new byte[8]);
        Assert.Equal(AppendOutcome.NoSpace, world.Loop.Run(large).Outcome);
        Assert.Equal(AppendOutcome.NoSpace, world.Loop.Run(small).Outcome);
        Assert.Equal(new AppendResult(AppendOutcome.Done, 0, IsRepeat: true), world.Loop.Run(repeat));
        Assert.Equal(new AppendResult(AppendOutcome.Done, length), world.Loop.Run(other));
        Assert.Equal(length + 8, Info(world).LengthBytes);
    }

    [Fact]
    public void A_large_append_that_finds_no_room_leaves_nothing()
    {
        StoreWorld world = World();
        byte[] bytes = StoreWorld.Pattern(1, 700);
        Append(world, default, bytes);
        int done = 0;
        while (Append(world, default, new byte[9 * Mib]).Outcome == AppendOutcome.Done) done++;
        Assert.True(done > 0);
        ulong length = Info(world).LengthBytes;
        Assert.Equal(700 + (ulong)done * 9 * Mib, length);
        Assert.True(world.Store.UsedBytes(7) <= length + Units.BlockBytes, $"{world.Store.UsedBytes(7)} bytes used for {length}");
        Assert.Equal(AppendOutcome.Done, Append(world, default, bytes).Outcome);
        Assert.Equal(bytes, ReadAt(world.Device, world, length, 700));
    }

    [Fact]
    public void A_snapshot_has_the_length_of_its_cut_and_a_clone_goes_on_from_there()
    {
        StoreWorld world = World();
        byte[] one = StoreWorld.Pattern(1, 5000), two = StoreWorld.Pattern(2, 6000), three = StoreWorld.Pattern(3, Mib + 77);
        Append(world, new(Ada, 1), one);
        Guid cut = Guid.NewGuid();
        var layered = (ILayeredStore)world.Store;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(layered.CreateSnapshotsAsync([new SnapshotRequest(7, cut, "cut", 1)])));
        Append(world, new(Ada, 2), two);
        for (int round = 0; round < 2; round++)
        {
            layered = (ILayeredStore)world.Store;
            SnapshotInfo info = Assert.Single(layered.Snapshots(7));
            Assert.Equal(5000UL, info.LengthBytes);
            IBlockDevice device = layered.OpenSnapshot(7, cut)!;
            Assert.Equal(8192UL, device.SizeBytes);
            Assert.Equal([.. one, .. new byte[8192 - 5000]], ReadAt(device, world, 0, 8192));
            Assert.True(Append(world, new(Ada, 2), two).IsRepeat);
            AssertHolds(world, [.. one, .. two]);
            world.Reopen(isClean: false);
        }

        layered = (ILayeredStore)world.Store;
        VolumeHead head = Head() with { Id = 8, Name = "clone" };
        Assert.Equal(IoStatus.Invalid, world.Loop.Run(layered.CreateCloneAsync(head with { IsAppendOnly = false }, 7, cut)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(layered.CreateCloneAsync(head, 7, cut)));
        Assert.Equal(new AppendResult(AppendOutcome.Done, 5000), world.Loop.Run(Store(world).AppendAsync(8, default, three)));
        world.Reopen(isClean: false);
        Assert.Equal([.. one, .. three], ReadAt(world.Store.OpenVolume(8)!, world, 0, 5000 + three.Length));
        AssertHolds(world, [.. one, .. two]);
    }

    [Fact]
    public void A_rollback_takes_the_length_back_and_forgets_the_clients()
    {
        StoreWorld world = World();
        byte[] one = StoreWorld.Pattern(1, 5000), two = StoreWorld.Pattern(2, 6000), three = StoreWorld.Pattern(3, 3000);
        Append(world, new(Ada, 1), one);
        Guid cut = Guid.NewGuid(), safety = Guid.NewGuid();
        var layered = (ILayeredStore)world.Store;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(layered.CreateSnapshotsAsync([new SnapshotRequest(7, cut, "cut", 1)])));
        Append(world, new(Ada, 2), two);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(layered.RollBackAsync(cut, new SnapshotRequest(7, safety, "safety", 2))));
        AssertHolds(world, [.. one]);
        Assert.Equal(AppendOutcome.UnknownClient, Append(world, new(Ada, 2), two).Outcome);
        Assert.Equal(new AppendResult(AppendOutcome.Done, 5000), Append(world, new(Bob, 1), three));
        world.Reopen(isClean: false);
        AssertHolds(world, [.. one, .. three]);
        Assert.Equal(AppendOutcome.UnknownClient, Append(world, new(Ada, 2), two).Outcome);
        layered = (ILayeredStore)world.Store;
        Assert.Equal([.. one, .. two], ReadAt(layered.OpenSnapshot(7, safety)!, world, 0, 11000));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.UpdateVolumeAsync(Head() with { IsSealed = true })));
        Assert.Equal(IoStatus.ReadOnly, world.Loop.Run(layered.RollBackAsync(cut, new SnapshotRequest(7, Guid.NewGuid(), "x", 2))));
    }

    [Fact]
    public void Deleting_gives_everything_back()
    {
        StoreWorld world = World();
        StoreStats before = world.Store.GetStats();
        for (int i = 0; i < 25; i++) Append(world, new(new Guid(i + 1, 0, 0, new byte[8]), 1), StoreWorld.Pattern(1, 100_000));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(7)));
        Assert.Equal(AppendOutcome.NotFound, Append(world, default, [1]).Outcome);
        world.Reopen(isClean: false);
        world.Loop.Run(Rest(world));
        world.Reopen(isClean: true);
        StoreStats after = world.Store.GetStats();
        Assert.Equal((0UL, before.SlotsUsed - 2), (after.BlocksUsed, after.SlotsUsed));
    }

    [Fact]
    public void Who_waits_is_told_of_growth_seal_and_deletion()
    {
        StoreWorld world = World();
        ValueTask<AppendInfo?> waiting = Store(world).WaitForAppendAsync(7, 0, 1_000_000_000_000);
        Append(world, default, new byte[10]);
        Assert.Equal(10UL, world.Loop.Run(waiting)!.Value.LengthBytes);
        Assert.Equal(10UL, world.Loop.Run(Store(world).WaitForAppendAsync(7, 10, 1_000_000))!.Value.LengthBytes); // the time is over
        waiting = Store(world).WaitForAppendAsync(7, 10, 1_000_000_000_000);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.UpdateVolumeAsync(Head() with { IsSealed = true })));
        Assert.True(world.Loop.Run(waiting)!.Value.IsSealed);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(Head() with { Id = 8 })));
        waiting = Store(world).WaitForAppendAsync(8, 0, 1_000_000_000_000);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(8)));
        Assert.Null(world.Loop.Run(waiting));
    }

    [Fact]
    public void A_bad_block_under_an_append_is_gone_round()
    {
        StoreWorld world = World();
        byte[] one = StoreWorld.Pattern(1, 9000), two = StoreWorld.Pattern(2, 9000);
        Append(world, new(Ada, 1), one);
        ulong data = world.Geometry.DataStart;
        for (ulong i = 0; i < 8; i++) world.File.BadWrites.Add(data + i);
        Assert.Equal(new AppendResult(AppendOutcome.Done, 9000), Append(world, new(Ada, 2), two));
        Assert.True(world.Store.GetStats().BlocksBad > 0);
        AssertHolds(world, [.. one, .. two]);
        world.Reopen(isClean: false);
        AssertHolds(world, [.. one, .. two]);
        Assert.True(Append(world, new(Ada, 2), two).IsRepeat);
    }

    private static StoreWorld World(ulong sizeMax = 64 * Mib)
    {
        var world = new StoreWorld(1, 48 * Mib, 0, Small);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(Head(sizeMax))));
        return world;
    }

    private static VolumeHead Head(ulong sizeMax = 64 * Mib) => StoreWorld.HeadOf(7, sizeMax) with { IsAppendOnly = true };

    private static IAppendStore Store(StoreWorld world) => (IAppendStore)world.Store;

    private static AppendInfo Info(StoreWorld world) => Store(world).AppendInfoOf(7)!.Value;

    private static AppendResult Append(StoreWorld world, AppendKey key, byte[] bytes) => world.Loop.Run(Store(world).AppendAsync(7, key, bytes));

    private static byte[] ReadAt(IBlockDevice device, StoreWorld world, ulong offset, int length)
    {
        var data = new byte[length];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(device.ReadAsync(offset, data)).Status);
        return data;
    }

    private static void AssertHolds(StoreWorld world, List<byte> all)
    {
        Assert.Equal((ulong)all.Count, Info(world).LengthBytes);
        Assert.Equal(((ulong)all.Count + 4095) / 4096 * 4096, world.Device.SizeBytes);
        byte[] shown = ReadAt(world.Device, world, 0, (int)world.Device.SizeBytes);
        Assert.True(shown.AsSpan(0, all.Count).SequenceEqual(all.ToArray()), "the bytes differ");
        Assert.False(shown.AsSpan(all.Count).ContainsAnyExcept((byte)0));
    }

    private static async ValueTask<bool> Rest(StoreWorld world)
    {
        await world.Loop.DelayAsync(5_000_000_000);
        return true;
    }
}
