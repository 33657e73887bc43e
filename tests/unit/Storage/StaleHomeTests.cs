using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>
/// A metadata page has two homes, and the log says only what came after the newer one. When that one is gone, the older one
/// and the log together lack what came between: this is noticed, whatever became of the newer home.
/// </summary>
public class StaleHomeTests
{
    private const int Extents = 4;
    private static readonly StoreOptions Small = new() { RingBytes = 128 << 10 };
    private static readonly StoreOptions Accepting = Small with { AcceptDataLoss = true };

    public enum Harm
    {
        Rots,
        BecomesZeros,
        WasNeverWritten,
        CannotBeRead,
    }

    [Theory]
    [InlineData(Harm.Rots)]
    [InlineData(Harm.BecomesZeros)]
    [InlineData(Harm.WasNeverWritten)]
    [InlineData(Harm.CannotBeRead)]
    public void A_newer_home_that_is_gone_is_not_made_up_for_by_later_records(Harm harm)
    {
        StoreWorld world = Filled(1, out byte[][] older);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(3 * 4096, Block(3), WriteFlags.Fua)));
        world.Cut();
        Do(world, harm, slot: 1, older);
        StoreOpenResult result = world.TryOpen();
        Assert.Null(result.Store);
        Assert.Contains("damaged home that the log does not explain", result.Refusal, StringComparison.Ordinal);
        Assert.Contains("accept data loss", result.Refusal, StringComparison.Ordinal);
        Assert.Equal(result.Refusal, world.TryOpen().Refusal); // refusing changed nothing
        world.Options = Accepting;
        world.Use(world.TryOpen().Store!);
        ExpectLoss(world);
        world.Options = Small;
        world.Reopen(isClean: true);
        ExpectLoss(world);
        world.Reopen(isClean: true);
        ExpectLoss(world);
    }

    /// <summary>Recovery itself writes homes when RAM runs short: none of a page that it refuses.</summary>
    [Fact]
    public void A_small_budget_does_not_hide_it()
    {
        StoreOptions calm = Small with { RingBytes = 1 << 20 }; // no checkpoint on the way
        var world = new StoreWorld(2, 32 << 20, 16 << 20, calm);
        for (ulong round = 0; round < 3; round++)
        {
            for (ulong extent = 0; extent < 12; extent++) world.Write((extent << 20) + (round << 12), Block(extent + round));
            world.Reopen(isClean: true);
        }

        for (ulong extent = 0; extent < 12; extent++)
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync((extent << 20) + (3 << 12), Block(extent + 3), WriteFlags.Fua)));
        world.Cut();
        world.File.Rot(world.Loop, NewerHome(world, 12));
        ulong spilled = LsnOf(world, 1, 0) + LsnOf(world, 1, 1);
        world.Options = calm with { MetadataBudgetBytes = 1 };
        string? refusal = world.TryOpen().Refusal;
        Assert.Contains("slot 12 has a damaged home", refusal, StringComparison.Ordinal);
        Assert.NotEqual(spilled, LsnOf(world, 1, 0) + LsnOf(world, 1, 1));
        Assert.Equal(refusal, world.TryOpen().Refusal);
    }

    /// <summary>Slots that were never used hold tombstones, so that zeros are damage in every slot.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void A_home_of_zeros_is_damage_where_the_log_says_nothing_too(int home)
    {
        var world = new StoreWorld(3, 32 << 20, 3 << 20, Small);
        world.Write(0, Block(0));
        world.Reopen(isClean: true);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        Put(world, world.Geometry.HomeOffset(1, home), new byte[4096]);
        Assert.Contains("damaged home that the log does not explain (first: 1)", world.TryOpen().Refusal, StringComparison.Ordinal);
    }

    /// <summary>A record names the one before it of its slot also when that one is still under way: its page may go home
    /// before the second one is applied.</summary>
    [Fact]
    public void Records_of_one_turn_are_linked()
    {
        var world = new StoreWorld(4, 32 << 20, 3 << 20, Small);
        world.Write(0, Block(9));
        Task<IoStatus>[] writes =
            [.. Enumerable.Range(0, 3).Select(i => world.Device.WriteAsync((ulong)i * 4096, Block((ulong)i), WriteFlags.None).AsTask())];
        world.Loop.RunUntil(() => writes.All(w => w.IsCompleted));
        var found = new List<(ulong Lsn, ulong Before)>();
        var page = new byte[4096];
        for (ulong at = world.Geometry.RingOffset; at < world.Geometry.SlotsOffset; at += 4096)
        {
            world.Loop.Run(world.File.ReadAsync(at, page));
            if (RedoPageHeader.TryRead(page, out RedoPageHeader header) is not null) continue;
            for (int i = 0, offset = RedoPageHeader.Size; i < header.Count; i++)
            {
                Assert.Null(RedoRecord.TryRead(page, offset, header.UsedBytes, out RedoRecord record));
                if (record.Kind == RedoKind.Write) found.Add((header.PageNumber * 4096 + (ulong)offset, record.Before));
                offset += record.Length;
            }
        }

        Assert.Equal(4, found.Count);
        Assert.Equal(0UL, found[0].Before);
        for (int i = 1; i < 4; i++) Assert.Equal(found[i - 1].Lsn, found[i].Before);
    }

    /// <summary>The page began in the log and one home holds it already, for an opening was cut short behind it: whatever the
    /// other home held, nothing of it is needed.</summary>
    [Theory]
    [InlineData(Harm.CannotBeRead)]
    [InlineData(Harm.Rots)]
    public void A_damaged_home_of_a_page_that_the_log_begins_anew_is_not_needed(Harm harm)
    {
        int times = 0;
        for (ulong cutAt = 0; cutAt < 60; cutAt++)
        {
            var world = new StoreWorld(5, 32 << 20, 3 << 20, Small);
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(0, Block(0), WriteFlags.Fua)));
            world.Cut();
            ulong end = world.Loop.EventCount + cutAt % 80;
            Task<StoreOpenResult> opening = Store.OpenAsync(world.Loop, world.File, null, Small).AsTask();
            world.Loop.RunUntil(() => opening.IsCompleted || world.Loop.EventCount >= end);
            world.Cut();
            // Its home is written, and the log still counts.
            if (LsnOf(world, 1, 0) == 0 || Enumerable.Range(0, 4).Any(copy => IncarnationOf(world, copy) > 2)) continue;
            times++;
            ulong other = world.Geometry.HomeOffset(1, 1) >> Units.BlockShift;
            if (harm == Harm.CannotBeRead) world.File.ReadableWhenWritten.Add(other);
            else world.File.Rot(world.Loop, other);
            world.Use(world.TryOpen().Store!);
            Assert.Equal(Block(0), world.Read(0, 4096));
            // Mended, for no log explains it at the next opening.
            world.Reopen(isClean: true);
            Assert.Equal(Block(0), world.Read(0, 4096));
        }

        Assert.True(times > 0);
    }

    /// <summary>Both homes are damaged and the log says all of the page: afterwards both are good.</summary>
    [Fact]
    public void Two_damaged_homes_of_a_page_that_the_log_begins_anew_are_mended()
    {
        var world = new StoreWorld(6, 32 << 20, 3 << 20, Small);
        world.Write(0, Block(0));
        world.Reopen(isClean: true);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(1 << 20, Block(1), WriteFlags.Fua)));
        world.Cut();
        for (int home = 0; home < 2; home++) world.File.Rot(world.Loop, world.Geometry.HomeOffset(2, home) >> Units.BlockShift);
        world.Use(world.TryOpen().Store!);
        world.Reopen(isClean: true);
        Assert.Equal(Block(0), world.Read(0, 4096));
        Assert.Equal(Block(1), world.Read(1 << 20, 4096));
    }

    /// <summary>Whatever home is damaged after whatever history: what is acknowledged is there, or the store is refused.</summary>
    [Fact]
    public void A_damaged_home_never_loses_anything_in_silence()
    {
        int refused = 0, opened = 0;
        for (ulong seed = 1; seed <= 250; seed++)
        {
            var random = new SeededRandom(seed);
            StoreOptions options = Small with { MetadataBudgetBytes = random.NextChance(0.5) ? 1 : 64 * Units.MiB };
            var world = new StoreWorld(seed, 16 << 20, Extents << 20, options);
            byte[] model = Churn(world, random);
            world.Cut();
            ulong home = world.Geometry.HomeOffset((uint)random.NextBelow(Extents + 2), random.NextBelow(2));
            if (random.NextChance(0.3)) Put(world, home, new byte[4096]);
            else if (random.NextChance(0.3)) world.File.ReadableWhenWritten.Add(home >> Units.BlockShift);
            else world.File.Rot(world.Loop, home >> Units.BlockShift);
            StoreOpenResult result = world.TryOpen();
            if (result.Store is null)
            {
                Assert.Contains("a damaged home that the log does not explain", result.Refusal, StringComparison.Ordinal);
                refused++;
                continue;
            }

            opened++;
            world.Use(result.Store);
            Assert.True(model.AsSpan().SequenceEqual(world.Read(0, model.Length)), $"seed {seed}");
            world.Reopen(isClean: true);
            Assert.True(model.AsSpan().SequenceEqual(world.Read(0, model.Length)), $"seed {seed}, opened again");
        }

        Assert.True(refused > 20 && opened > 20, $"{refused} refused, {opened} opened");
    }

    /// <summary>A recovery in little RAM is cut behind the home of one extent of a request and not of the other. The next one
    /// judges the request before it replays what was in front of it: then the other's page is behind, and not lost.</summary>
    [Fact]
    public void A_page_that_is_only_behind_is_not_taken_for_a_lost_one()
    {
        StoreOptions calm = Small with { RingBytes = 1 << 20 };
        int opened = 0, ahead = 0;
        for (ulong cutAt = 0; cutAt < 320; cutAt++)
        {
            var world = new StoreWorld(8 + cutAt / 80, 32 << 20, 16 << 20, calm);
            for (ulong extent = 0; extent < 12; extent++) world.Write(extent << 20, Block(extent));
            world.Reopen(isClean: true);
            world.Write((9 << 20) + (40 << 12), Block(100));
            byte[] across = StoreWorld.Pattern(101, 8 * 4096);
            world.Write((9 << 20) - 4 * 4096, across); // extents 8 and 9
            for (ulong extent = 0; extent < 7; extent++) world.Write((extent << 20) + 4096, Block(extent + 200));
            world.Cut();
            world.Options = calm with { MetadataBudgetBytes = 1 };
            ulong end = world.Loop.EventCount + cutAt % 80;
            Task<StoreOpenResult> opening = Store.OpenAsync(world.Loop, world.File, null, world.Options).AsTask();
            world.Loop.RunUntil(() => opening.IsCompleted || world.Loop.EventCount >= end);
            world.Cut();
            if (opening.IsCompleted) opened++;
            if (LsnOf(world, 9, 1) > 0 != LsnOf(world, 10, 1) > 0) ahead++;
            StoreOpenResult result = world.TryOpen();
            Assert.Null(result.Refusal);
            world.Use(result.Store!);
            Assert.Equal(Block(100), world.Read((9 << 20) + (40 << 12), 4096));
            Assert.Equal(across, world.Read((9 << 20) - 4 * 4096, across.Length));
        }

        Assert.True(ahead > 0 && opened < 320, $"{ahead} cut between the two, {opened} not cut");
    }

    /// <summary>A request that is said again, because a block did not take it, names its first record as the one before.</summary>
    [Fact]
    public void A_store_whose_blocks_go_bad_opens_again_after_whatever_history()
    {
        for (ulong seed = 1; seed <= 60; seed++)
        {
            var random = new SeededRandom(seed);
            var world = new StoreWorld(seed, 16 << 20, Extents << 20, Small);
            for (ulong block = world.Geometry.DataStart; block < world.Geometry.DataEnd; block += 5) world.File.BadWrites.Add(block);
            byte[] model = Churn(world, random);
            world.Cut();
            StoreOpenResult result = world.TryOpen();
            Assert.True(result.Store is not null, $"seed {seed}: {result.Refusal}");
            world.Use(result.Store);
            Assert.True(world.Store.GetStats().BlocksBad > 0);
            Assert.True(model.AsSpan().SequenceEqual(world.Read(0, model.Length)), $"seed {seed}");
        }
    }

    [Fact]
    public void A_store_of_an_earlier_format_is_refused_by_its_version()
    {
        var world = new StoreWorld(7, 32 << 20, 3 << 20, Small);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
        for (int copy = 0; copy < 4; copy++)
        {
            var page = new byte[4096];
            ulong offset = world.Geometry.SuperblockOffset(copy);
            world.Loop.Run(world.File.ReadAsync(offset, page));
            page[16] = 1;
            BitConverter.TryWriteBytes(page, Crc32C.Compute(page.AsSpan(8)));
            Put(world, offset, page);
        }

        Assert.Contains("format version 1, this program reads 2", world.TryOpen().Refusal, StringComparison.Ordinal);
    }

    /// <summary>Durable changes, several at a time, with crashes and clean restarts in between; what they leave.</summary>
    private static byte[] Churn(StoreWorld world, SeededRandom random)
    {
        var model = new byte[Extents << 20];
        for (int step = 10 + random.NextBelow(40); step > 0; step--)
        {
            var running = new List<Task<IoStatus>>();
            for (int i = 1 + random.NextBelow(3); i > 0; i--)
            {
                // One block of each four, so that those of one turn do not meet.
                int at = (random.NextBelow(Extents << 6) * 4 + i) << Units.BlockShift;
                byte[] data = random.NextChance(0.2) ? new byte[4096] : Block(random.NextUInt64());
                data.CopyTo(model, at);
                running.Add(data.AsSpan().ContainsAnyExcept((byte)0)
                    ? world.Device.WriteAsync((ulong)at, data, WriteFlags.Fua).AsTask()
                    : world.Device.WriteZeroesAsync((ulong)at, 4096, WriteFlags.Fua).AsTask());
            }

            Assert.True(world.Loop.RunUntil(() => running.TrueForAll(r => r.IsCompleted)));
            Assert.All(running, r => Assert.Equal(IoStatus.Ok, r.Result));
            if (!random.NextChance(0.15)) continue;
            HashSet<ulong> bad = world.File.BadWrites;
            world.Reopen(isClean: random.NextChance(0.5));
            world.File.BadWrites.UnionWith(bad);
        }

        return model;
    }

    /// <summary>Blocks 0, 1 and 2 of slot 1, each at home in an image of its own; and what its homes held before the last.</summary>
    private static StoreWorld Filled(ulong seed, out byte[][] older)
    {
        var world = new StoreWorld(seed, 32 << 20, 3 << 20, Small);
        older = [];
        for (ulong i = 0; i < 3; i++)
        {
            if (i == 2) older = [.. Enumerable.Range(0, 2).Select(home => Get(world, world.Geometry.HomeOffset(1, home)))];
            world.Write(i * 4096, Block(i));
            world.Reopen(isClean: true);
        }

        return world;
    }

    private static void Do(StoreWorld world, Harm harm, uint slot, byte[][] older)
    {
        ulong block = NewerHome(world, slot);
        if (harm == Harm.Rots) world.File.Rot(world.Loop, block);
        else if (harm == Harm.BecomesZeros) Put(world, block << Units.BlockShift, new byte[4096]);
        else if (harm == Harm.CannotBeRead) world.File.ReadableWhenWritten.Add(block);
        else Put(world, block << Units.BlockShift, older[block << Units.BlockShift == world.Geometry.HomeOffset(slot, 0) ? 0 : 1]);
    }

    /// <summary>What the log said is there, the rest of the extent is an error, never old content and never zeros.</summary>
    private static void ExpectLoss(StoreWorld world)
    {
        for (ulong i = 0; i < 5; i++)
        {
            if (i == 3) Assert.Equal(Block(3), world.Read(i * 4096, 4096));
            else Assert.Equal(IoStatus.Corrupt, world.ReadStatus(i * 4096, 4096));
        }

        Assert.Equal(new byte[4096], world.Read(1 << 20, 4096)); // its extent is known, so no other is in doubt
    }

    private static byte[] Block(ulong seed) => StoreWorld.Pattern(seed, 4096);

    private static byte[] Get(StoreWorld world, ulong offset)
    {
        var page = new byte[4096];
        world.Loop.Run(world.File.Medium.ReadAsync(offset, page));
        return page;
    }

    private static void Put(StoreWorld world, ulong offset, byte[] page) => world.Loop.Run(world.File.Medium.WriteAsync(offset, page));

    private static ulong LsnOf(StoreWorld world, uint slot, int home) =>
        MetadataPageHeader.TryRead(Get(world, world.Geometry.HomeOffset(slot, home)), out MetadataPageHeader header) is null ? header.PageLsn : 0;

    private static ulong IncarnationOf(StoreWorld world, int copy) =>
        Superblock.TryRead(Get(world, world.Geometry.SuperblockOffset(copy)), out Superblock root) is null ? root.Incarnation : 0;

    private static ulong NewerHome(StoreWorld world, uint slot)
    {
        ulong a = LsnOf(world, slot, 0), b = LsnOf(world, slot, 1);
        Assert.NotEqual(a, b);
        return world.Geometry.HomeOffset(slot, a > b ? 0 : 1) >> Units.BlockShift;
    }
}
