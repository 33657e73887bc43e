using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>Scattered extents are laid out anew: same content, same versions, few runs; and what stands in the way of it.</summary>
public class RelayoutTests
{
    private const int Extent = Units.ExtentBytes;
    private static readonly StoreOptions Options = new()
    {
        RingBytes = 1 << 20, RelayoutBytesPerSecond = 1 << 30, RelayoutColdNanos = 1_000_000,
    };

    [Fact]
    public void A_scattered_extent_becomes_one_run_with_the_same_data_and_versions()
    {
        var world = new StoreWorld(1, 32 << 20, 8 << 20, Options with { RelayoutBytesPerSecond = 0 });
        byte[] data = Scatter(world, 0, Extent);
        byte[] other = Scatter(world, 3 << 20, Extent);
        Assert.Equal(2UL, world.Store.GetStats().ExtentsScattered);
        BlockEntry[] before = Entries(world, 0);
        Assert.InRange(Runs(before), 200, 256);
        ulong used = world.Store.GetStats().BlocksUsed;

        world.Options = Options;
        world.Use(world.TryOpen().Store!);
        Settle(world);
        StoreStats stats = world.Store.GetStats();
        Assert.Equal(0UL, stats.ExtentsScattered);
        Assert.Equal(512UL, stats.BlocksRelaid);
        Assert.Equal(used, stats.BlocksUsed);
        Assert.Equal((0UL, 0UL), (stats.RelayoutsLost, stats.RelayoutsSkipped));
        Assert.Equal(data, world.Read(0, Extent));
        Assert.Equal(other, world.Read(3 << 20, Extent));
        // The old places are free again.
        world.Loop.RunToQuiescence();
        stats = world.Store.GetStats();
        Assert.Equal(stats.BlocksTotal, stats.BlocksFree + stats.BlocksUsed);

        BlockEntry[] after = Entries(world, 0);
        Assert.InRange(Runs(after), 1, 2);
        for (int i = 0; i < after.Length; i++)
        {
            Assert.Equal((before[i].Version, before[i].Crc), (after[i].Version, after[i].Crc));
            Assert.NotEqual(before[i].Block, after[i].Block);
        }

        world.Use(world.TryOpen().Store!);
        Assert.Equal(data, world.Read(0, Extent));
    }

    [Fact]
    public void Holes_stay_holes()
    {
        var world = new StoreWorld(2, 32 << 20, 8 << 20, Options);
        byte[] data = Scatter(world, 0, Extent);
        foreach (int hole in (int[])[0, 10, 11, 12, 33, 100, 255])
        {
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync((ulong)hole << 12, 4096, WriteFlags.None)));
            data.AsSpan(hole << 12, 4096).Clear();
        }

        ulong used = world.Store.UsedBytes(7);
        Settle(world);
        Assert.Equal(249UL, world.Store.GetStats().BlocksRelaid);
        Assert.Equal(data, world.Read(0, Extent));
        Assert.Equal(used, world.Store.UsedBytes(7));
        var runs = new List<MapRun>();
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.MapAsync(0, Extent, 100, runs)));
        Assert.Equal(
            [new(1 << 12, true), new(9 << 12, false), new(3 << 12, true), new(20 << 12, false), new(1 << 12, true), new(66 << 12, false),
                new(1 << 12, true), new(154 << 12, false), new(1 << 12, true)],
            runs);
        BlockEntry[] entries = Entries(world, 0);
        Assert.Equal(0, Cuts(entries));
        Assert.Equal(249u, entries.Where(e => e.Block != 0).Max(e => e.Block) - entries.Where(e => e.Block != 0).Min(e => e.Block) + 1);
    }

    [Fact]
    public void Cuts_are_counted_right_whatever_clients_do()
    {
        var world = new StoreWorld(3, 32 << 20, 8 << 20, Options with { RelayoutBytesPerSecond = 0, RelayoutCutsMin = 1, RelayoutBlocksPerCut = 256 });
        var random = new SeededRandom(3);
        for (int round = 0; round < 40; round++)
        {
            for (int i = 0; i < 20; i++)
            {
                ulong offset = (ulong)random.NextBelow(512) << 12;
                int length = (1 + random.NextBelow(random.NextChance(0.1) ? 256 : 6)) << 12;
                if (random.NextChance(0.3)) Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(offset, (ulong)length, WriteFlags.None)));
                else world.Write(offset, StoreWorld.Pattern(offset, length));
            }

            // A new opening counts from the pages; the running store has counted change by change.
            ulong counted = world.Store.GetStats().ExtentsScattered;
            ulong[] cuts = [.. Enumerable.Range(0, 3).Select(extent => (ulong)Cuts(Entries(world, (uint)extent)))];
            Assert.Equal((ulong)cuts.Count(c => c > 0), counted);
            world.Use(world.TryOpen().Store!);
            Assert.Equal(counted, world.Store.GetStats().ExtentsScattered);
        }
    }

    [Fact]
    public void Few_cuts_and_what_was_written_lately_are_left_alone()
    {
        var world = new StoreWorld(4, 32 << 20, 8 << 20, Options with { RelayoutColdNanos = 1_000_000_000 });
        world.Write(0, StoreWorld.Pattern(1, Extent));
        for (ulong i = 0; i < 30; i++) world.Write(i * 8 << 12, StoreWorld.Pattern(i, 4096)); // 60 cuts of 256
        Assert.Equal(0UL, world.Store.GetStats().ExtentsScattered);
        for (ulong i = 0; i < 4; i++) world.Write((i * 8 + 4) << 12, StoreWorld.Pattern(i, 4096));
        Assert.Equal(1UL, world.Store.GetStats().ExtentsScattered);
        for (ulong i = 0; i < 10; i++)
        {
            world.Loop.Run(world.Loop.DelayAsync(800_000_000));
            world.Write(0, StoreWorld.Pattern(i, 4096));
            Assert.Equal(0UL, world.Store.GetStats().BlocksRelaid);
        }

        world.Loop.Run(world.Loop.DelayAsync(3_000_000_000));
        Assert.Equal(256UL, world.Store.GetStats().BlocksRelaid);
    }

    /// <summary>The loop comes to rest: no timer is left, neither when all is done nor when nothing can be done.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void An_idle_store_sleeps(bool hasRoom)
    {
        var world = new StoreWorld(5, 8 << 20, 8 << 20, Options with { RelayoutColdNanos = 10_000 });
        ulong blocks = world.Store.GetStats().BlocksTotal - world.Store.GetStats().BlocksReserved - 270;
        Scatter(world, 0, Extent);
        if (!hasRoom) world.Write(Extent, StoreWorld.Pattern(1, (int)(blocks - 256) << 12));
        world.Loop.RunToQuiescence(1_000_000);
        ulong events = world.Loop.EventCount;
        world.Loop.RunToQuiescence(1);
        Assert.Equal(events, world.Loop.EventCount);
        Assert.Equal(hasRoom ? 0UL : 1UL, world.Store.GetStats().ExtentsScattered);
        if (hasRoom) return;

        // Room again: it goes on.
        Assert.Equal(0UL, world.Store.GetStats().BlocksRelaid);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(Extent, 4 << 20, WriteFlags.None)));
        Settle(world);
        Assert.Equal(256UL, world.Store.GetStats().BlocksRelaid);
    }

    /// <summary>Without room, it goes on when blocks come back, whoever gave them and however late.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Room_that_comes_late_wakes_it(bool isHeldByRead)
    {
        var world = new StoreWorld(15, 8 << 20, 8 << 20, Options with { RelayoutColdNanos = 10_000 });
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, 8 << 20) with { Uuid = Guid.NewGuid() })));
        IBlockDevice other = world.Store.OpenVolume(8)!;
        ulong blocks = world.Store.GetStats().BlocksTotal - world.Store.GetStats().BlocksReserved - 270;
        Scatter(world, 0, Extent);
        var fill = new byte[(int)(blocks - 256) << 12];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(other.WriteAsync(0, fill, WriteFlags.None)));
        world.Loop.RunToQuiescence(1_000_000);
        Assert.Equal((1UL, 0UL), (world.Store.GetStats().ExtentsScattered, world.Store.GetStats().BlocksRelaid));
        if (isHeldByRead)
        {
            var held = new LoopEvent<bool>();
            world.File.ReadsHeld = held;
            ValueTask<ReadResult> read = other.ReadAsync(0, new byte[Units.BlockBytes]);
            world.File.ReadsHeld = null;
            Assert.Equal(IoStatus.Ok, world.Loop.Run(other.TrimAsync(0, 4 << 20, WriteFlags.None)));
            world.Loop.Run(world.Loop.DelayAsync(20_000_000_000));
            Assert.Equal(0UL, world.Store.GetStats().BlocksRelaid); // the read may still look at what was trimmed
            held.Set(true);
            world.Loop.Run(read);
        }
        else
        {
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(8)));
        }

        world.Loop.RunToQuiescence(1_000_000);
        Assert.Equal(256UL, world.Store.GetStats().BlocksRelaid);
    }

    /// <summary>Every place at which a client's write can meet the work on its extent: the client's data stays.</summary>
    [Fact]
    public void A_client_that_writes_meanwhile_wins()
    {
        ulong lost = 0, done = 0;
        for (ulong events = 0; events < 300; events += 5)
        {
            var world = new StoreWorld(6, 32 << 20, 8 << 20, Options);
            byte[] data = Scatter(world, 0, Extent);
            int reads = world.File.Reads.Count;
            Assert.True(world.Loop.RunUntil(() => world.File.Reads.Count > reads)); // the first of the work
            ulong end = world.Loop.EventCount + events;
            world.Loop.RunUntil(() => world.Loop.EventCount >= end);
            byte[] fresh = StoreWorld.Pattern(events, 5000);
            world.Write(40_000, fresh);
            fresh.CopyTo(data, 40_000);
            Assert.Equal(data, world.Read(0, Extent));
            lost += world.Store.GetStats().RelayoutsLost;
            Settle(world);
            Assert.Equal(data, world.Read(0, Extent));
            world.Loop.RunToQuiescence();
            done += world.Store.GetStats().BlocksRelaid;
            StoreStats stats = world.Store.GetStats();
            Assert.Equal(stats.BlocksTotal, stats.BlocksFree + stats.BlocksUsed);
            world.Reopen(isClean: false);
            Assert.Equal(data, world.Read(0, Extent));
        }

        Assert.True(lost > 3 && done >= 60 * 256, $"{lost} lost, {done} blocks done");
    }

    [Fact]
    public void A_bad_block_is_left_alone_and_its_extent_skipped_until_it_is_written_again()
    {
        var world = new StoreWorld(7, 32 << 20, 8 << 20, Options with { RelayoutBytesPerSecond = 0 });
        byte[] data = Scatter(world, 0, Extent);
        byte[] good = Scatter(world, 2 << 20, Extent);
        BlockEntry[] before = Entries(world, 0);
        world.File.Rot(world.Loop, before[77].Block);
        world.Options = Options;
        world.Use(world.TryOpen().Store!);
        Settle(world);
        StoreStats stats = world.Store.GetStats();
        Assert.Equal((0UL, 1UL, 256UL), (stats.ExtentsScattered, stats.RelayoutsSkipped, stats.BlocksRelaid));
        Assert.Equal(1UL, stats.BlocksBad);
        Assert.Equal(good, world.Read(2 << 20, Extent));
        Assert.Equal(data[..(77 << 12)], world.Read(0, 77 << 12));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(77 << 12, 4096));
        ScrubReport scrub = world.Loop.Run(world.Store.ScrubAsync(7, 0, null, CancellationToken.None));
        Assert.Equal([new BadBlock(7, 77 << 12, IoStatus.Corrupt)], scrub.Bad);
        Assert.Equal(before, Entries(world, 0));

        world.Use(world.TryOpen().Store!);
        byte[] fresh = StoreWorld.Pattern(1, 4096);
        world.Write(77 << 12, fresh);
        fresh.CopyTo(data, 77 << 12);
        Settle(world);
        Assert.Equal(256UL, world.Store.GetStats().BlocksRelaid);
        Assert.Equal(data, world.Read(0, Extent));
        // What does not keep its content is not given out again.
        Assert.DoesNotContain(Entries(world, 0), e => e.Block == before[77].Block);
    }

    [Fact]
    public void A_place_that_the_medium_does_not_take_is_retired_and_another_one_found()
    {
        var world = new StoreWorld(8, 32 << 20, 8 << 20, Options with { RelayoutBytesPerSecond = 0 });
        byte[] data = Scatter(world, 0, Extent);
        HashSet<uint> used = [.. Entries(world, 0).Select(e => e.Block)];
        for (ulong block = world.Geometry.DataStart; block < world.Geometry.DataEnd; block += 300)
        {
            if (!used.Contains((uint)block)) world.File.BadWrites.Add(block);
        }

        world.Options = Options;
        world.Use(world.TryOpen().Store!);
        world.Write(4 << 20, StoreWorld.Pattern(1, 4 << 20)); // what is written in vain counts too
        Settle(world);
        StoreStats stats = world.Store.GetStats();
        Assert.Equal(256UL, stats.BlocksRelaid);
        Assert.True(stats.BlocksBad > 0);
        Assert.Equal(StoreState.Online, world.Store.State);
        Assert.Equal(data, world.Read(0, Extent));
        Assert.InRange(Runs(Entries(world, 0)), 1, 2);
    }

    /// <summary>Killed after any number of events of the work: the content is there, and so is every block.</summary>
    [Fact]
    public void A_restart_in_between_loses_nothing_and_leaks_nothing()
    {
        int relaid = 0;
        for (ulong events = 0; events < 400; events += 3)
        {
            var world = new StoreWorld(9, 32 << 20, 8 << 20, Options);
            byte[] data = Scatter(world, 0, 2 * Extent);
            ulong end = world.Loop.EventCount + events;
            world.Loop.RunUntil(() => world.Loop.EventCount >= end);
            if (world.Store.GetStats().BlocksRelaid > 0) relaid++;
            world.Reopen(isClean: false);
            Assert.Equal(data, world.Read(0, 2 * Extent));
            Settle(world);
            Assert.Equal(data, world.Read(0, 2 * Extent));
            world.Loop.RunToQuiescence();
            StoreStats stats = world.Store.GetStats();
            Assert.Equal(stats.BlocksTotal, stats.BlocksFree + stats.BlocksUsed);
            Assert.Equal(512UL, stats.BlocksUsed);
        }

        Assert.InRange(relaid, 1, 130);
    }

    [Fact]
    public void No_more_is_written_anew_than_clients_have_written()
    {
        var world = new StoreWorld(10, 64 << 20, 8 << 20, Options with { RelayoutColdNanos = 100_000 });
        world.Write(0, StoreWorld.Pattern(1, 8 << 20));
        ulong written = 2048;
        for (ulong round = 0; round < 300; round++)
        {
            // The least that makes an extent a scattered one.
            for (ulong i = 0; i < 32; i++, written++) world.Write((round % 8 << 20) + ((i * 8 + 4) << 12), StoreWorld.Pattern(round + i, 4096));
            world.Loop.RunToQuiescence();
            Assert.True(world.Store.GetStats().BlocksRelaid <= written);
        }

        Assert.InRange(world.Store.GetStats().BlocksRelaid, written - 256, written);
        Assert.True(world.Store.GetStats().ExtentsScattered > 0);
    }

    [Fact]
    public void Clients_at_work_leave_it_one_extent_a_second()
    {
        var world = new StoreWorld(11, 64 << 20, 32 << 20, Options with { RelayoutColdNanos = 1 });
        for (ulong extent = 0; extent < 12; extent++) Scatter(world, extent << 20, Extent);
        ulong begin = world.Loop.NowNanos, relaid = world.Store.GetStats().BlocksRelaid;
        while (world.Loop.NowNanos - begin < 4_000_000_000)
        {
            world.Read(13 << 20, 4096);
            world.Write(13 << 20, StoreWorld.Pattern(1, 4096));
            world.Loop.Run(world.Loop.DelayAsync(500_000));
        }

        Assert.InRange((world.Store.GetStats().BlocksRelaid - relaid) / 256, 1UL, 5UL);
        begin = world.Loop.NowNanos;
        Settle(world);
        Assert.InRange(world.Loop.NowNanos - begin, 1_000_000UL, 3_000_000_000UL);
    }

    [Fact]
    public void The_rate_is_kept()
    {
        var world = new StoreWorld(12, 64 << 20, 32 << 20, Options with { RelayoutBytesPerSecond = 10 * Units.MiB });
        for (ulong extent = 0; extent < 20; extent++) Scatter(world, extent << 20, Extent);
        ulong begin = world.Loop.NowNanos, left = world.Store.GetStats().ExtentsScattered;
        Settle(world);
        Assert.True(world.Loop.NowNanos - begin >= (left - 2) * 100_000_000);
    }

    [Fact]
    public void Pages_that_are_not_in_RAM_are_brought_for_scattered_extents_only()
    {
        var world = new StoreWorld(13, 128 << 20, 96 << 20, Options with
        {
            RingBytes = 4 << 20, MetadataBudgetBytes = 8 * MetadataPage.EntriesBytes, RelayoutBytesPerSecond = 0,
        });
        for (ulong extent = 0; extent < 64; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 65536));
        byte[] data = Scatter(world, 20 << 20, Extent);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        world.Options = world.Options with { RelayoutBytesPerSecond = 1 << 30 };
        world.Use(world.TryOpen().Store!);
        Settle(world);
        world.Loop.RunToQuiescence();
        Assert.Equal(256UL, world.Store.GetStats().BlocksRelaid);
        Assert.InRange(world.Store.GetStats().MetadataLoads, 0UL, 2UL);
        Assert.Equal(data, world.Read(20 << 20, Extent));
    }

    /// <summary>Overwritten at random for long, a store's free blocks lie in many short runs between those that hold data: the
    /// first extents use up the long ones, and the last ones have to do with shorter ones until more come together.</summary>
    [Theory]
    [InlineData(96, 16384)]
    [InlineData(96, 32768)]
    [InlineData(64, 32768)]
    [InlineData(48, 32768)]
    public void It_gets_done_though_free_blocks_lie_in_short_runs(int storeMegabytes, int writes)
    {
        var world = new StoreWorld(14, (ulong)storeMegabytes << 20, 32 << 20, Options with { RelayoutBytesPerSecond = 0 });
        for (ulong extent = 0; extent < 32; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, Extent));
        var random = new SeededRandom(14);
        var last = new ulong[16 * Units.BlocksPerExtent];
        for (int i = 0; i < writes; i++)
        {
            int block = random.NextBelow(last.Length);
            last[block] = (ulong)i + 100;
            world.Write((ulong)block << 12, StoreWorld.Pattern(last[block], 4096));
        }

        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        world.Options = Options;
        world.Use(world.TryOpen().Store!);
        Assert.Equal(16UL, world.Store.GetStats().ExtentsScattered);
        world.Loop.RunToQuiescence(10_000_000);
        StoreStats stats = world.Store.GetStats();
        Assert.Equal((0UL, 16UL * Units.BlocksPerExtent), (stats.ExtentsScattered, stats.BlocksRelaid));
        Assert.Equal(stats.BlocksTotal, stats.BlocksFree + stats.BlocksUsed);
        for (int block = 0; block < last.Length; block++)
        {
            if (last[block] != 0) Assert.Equal(StoreWorld.Pattern(last[block], 4096), world.Read((ulong)block << 12, 4096));
        }

        for (uint extent = 0; extent < 16; extent++) Assert.InRange(Runs(Entries(world, extent)), 1, 16);
    }

    /// <summary>Fills a range in order and then twice block by block in a drawn order; answers what it holds.</summary>
    private static byte[] Scatter(StoreWorld world, ulong offset, int length)
    {
        var random = new SeededRandom(offset + 1);
        world.Write(offset, StoreWorld.Pattern(offset, length));
        byte[] data = StoreWorld.Pattern(offset + 2, length);
        int[] order = [.. Enumerable.Range(0, length >> 12)];
        for (int round = 0; round < 2; round++)
        {
            for (int i = order.Length - 1; i > 0; i--)
            {
                int other = random.NextBelow(i + 1);
                (order[i], order[other]) = (order[other], order[i]);
            }

            foreach (int block in order) world.Write(offset + ((ulong)block << 12), data.AsSpan(block << 12, 4096).ToArray());
        }

        return data;
    }

    private static void Settle(StoreWorld world) =>
        Assert.True(world.Loop.RunUntil(() => world.Store.GetStats().ExtentsScattered == 0, 10_000_000));

    /// <summary>What the page of an extent says at home; closes the store.</summary>
    private static BlockEntry[] Entries(StoreWorld world, uint extent)
    {
        if (world.Store.State == StoreState.Online) Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        Assert.Null(Superblock.TryRead(Page(world, 0), out Superblock superblock));
        ulong newest = 0;
        var found = new BlockEntry[Units.BlocksPerExtent];
        for (uint slot = 0; slot < superblock.SlotHighWater; slot++)
        {
            for (int home = 0; home < 2; home++)
            {
                ulong address = world.Geometry.HomeOffset(slot, home);
                byte[] page = Page(world, address);
                if (MetadataPage.TryReadPage(page, address, Seal.Fold(superblock.StoreUuid), slot, out MetadataPageHeader header) is not null
                    || header.Kind != MetadataKind.Extent || header.Extent != extent || header.PageLsn <= newest) continue;
                newest = header.PageLsn;
                for (int i = 0; i < found.Length; i++) found[i] = MetadataPage.Entry(page.AsSpan(MetadataPage.EntriesOffset), i);
            }
        }

        return found;
    }

    private static byte[] Page(StoreWorld world, ulong address)
    {
        var page = new byte[Units.BlockBytes];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.File.Medium.ReadAsync(address, page)));
        return page;
    }

    private static int Cuts(BlockEntry[] entries) =>
        Enumerable.Range(1, entries.Length - 1).Count(i => entries[i - 1].Block != 0 && entries[i].Block != 0 && entries[i].Block != entries[i - 1].Block + 1);

    private static int Runs(BlockEntry[] entries) => Cuts(entries) + 1;
}
