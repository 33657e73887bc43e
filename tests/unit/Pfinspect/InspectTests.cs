using System.Text.Json;
using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Pfinspect;

public class InspectTests
{
    /// <summary>Volume 7 "v1" in slot 0, its extent 0 in slot 1 with one block, a write of another block in the log.</summary>
    private static StoreBuilder Small(out uint first)
    {
        var store = new StoreBuilder();
        first = store.Geometry.DataStart;
        store.PutHead(0, 0, 1000, StoreBuilder.Volume(7, "v1"));
        store.PutHome(1, 1, 2000, 7, 0, (0, new BlockEntry(first, store.PutData(first, 1), 5)));
        store.LogWrite(1, 7, 0, isNew: false, version: 6, index: 1, first + 1, store.PutData(first + 1, 2));
        store.ClosePage();
        return store;
    }

    [Fact]
    public void A_sound_store_is_sound()
    {
        using StoreBuilder store = Small(out uint first);
        Assert.Equal(0, store.Run("verify"));
        Assert.Contains("2 slots, 1 extents, 2 blocks referenced", store.Out, StringComparison.Ordinal);
        Assert.Contains("1 log records replayed, 0 dropped, 2 blocks read\nsound", store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("check", "--json"));
        Assert.True(JsonDocument.Parse(store.Out).RootElement.GetProperty("sound").GetBoolean());
        Assert.Equal(0, store.Run("superblock"));
        Assert.Contains("incarnation  3", store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("volumes"));
        Assert.Contains("7 v1 2 MiB, 8 KiB used in 1 extents, epoch 1", store.Out, StringComparison.Ordinal);
        foreach (string name in new[] { "v1", "7" })
        {
            Assert.Equal(0, store.Run("map", name));
            Assert.Contains($"0 +8192 block {first} slot 1 versions 5 to 6", store.Out, StringComparison.Ordinal);
        }

        Assert.Equal(0, store.Run("log"));
        Assert.Contains($"Write slot 1 volume 7 extent 0 [replay] version 6, blocks 1@{first + 1}", store.Out, StringComparison.Ordinal);
        foreach (string command in new[] { "superblock", "log", "volumes" })
        {
            Assert.Equal(0, store.Run(command, "--json"));
            using JsonDocument _ = JsonDocument.Parse(store.Out);
        }
    }

    [Fact]
    public void The_log_brings_volumes_extents_holes_and_drops()
    {
        using StoreBuilder store = Small(out uint first);
        store.LogVolume(2, StoreBuilder.Volume(8, "v2"));
        store.LogWrite(3, 8, 1, isNew: true, version: 7, index: 9, first + 2, store.PutData(first + 2, 3));
        store.LogHole(1, 7, 0, 8, 0);
        store.ClosePage();
        Assert.Equal(0, store.Run("verify"));
        Assert.Equal(0, store.Run("map", "v2", "--json"));
        JsonElement run = JsonDocument.Parse(store.Out).RootElement.GetProperty("runs")[0];
        Assert.Equal((1 << 20) + 9 * 4096, run.GetProperty("offsetBytes").GetInt32());
        Assert.Equal(0, store.Run("map", "v1"));
        Assert.Contains($"4096 +4096 block {first + 1} ", store.Out, StringComparison.Ordinal);
        store.LogDelete(2, 8);
        store.LogDrop(3, 8, 1);
        store.ClosePage();
        Assert.Equal(0, store.Run("volumes"));
        Assert.Contains("8 v2 2 MiB, 0 B used in 0 extents", store.Out, StringComparison.Ordinal);
        Assert.Contains("being deleted", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_bad_data_block_is_found_by_verify_only()
    {
        using StoreBuilder store = Small(out uint first);
        store.Damage((ulong)first * 4096 + 77);
        Assert.Equal(0, store.Run("check"));
        Assert.Equal(1, store.Run("verify"));
        Assert.Contains($"error S1: v1 offset 0: block {first} does not match", store.Out, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(false, "2 log records replayed, 1 dropped")]
    [InlineData(true, "1 log records replayed, 2 dropped")]
    public void A_chain_is_dropped_whole(bool isContinued, string replayed)
    {
        using StoreBuilder store = Small(out uint first);
        store.LogWrite(1, 7, 0, false, 7, 2, first + 2, store.PutData(first + 2, 3), isContinued);
        store.LogWrite(3, 7, 1, true, 7, 0, first + 3, 12345);
        store.ClosePage();
        Assert.Equal(0, store.Run("verify"));
        Assert.Contains(replayed, store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("log"));
        Assert.Equal(isContinued, store.Out.Contains("version 7, continued, blocks 2@", StringComparison.Ordinal));
    }

    [Fact]
    public void A_chain_that_leaves_its_page_is_an_error()
    {
        using StoreBuilder store = Small(out uint first);
        store.LogWrite(1, 7, 0, false, 7, 2, first + 2, store.PutData(first + 2, 3), isContinued: true);
        store.ClosePage();
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("nothing follows", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_torn_tail_is_dropped_and_a_durable_one_is_an_error()
    {
        using StoreBuilder torn = Small(out uint first);
        torn.Damage((ulong)(first + 1) * 4096);
        Assert.Equal(0, torn.Run("verify"));
        Assert.Contains("0 log records replayed, 1 dropped", torn.Out, StringComparison.Ordinal);

        using StoreBuilder durable = Small(out first);
        durable.ClosePage(durable: durable.PageNumber * 4096 - 1);
        durable.Damage((ulong)(first + 1) * 4096);
        Assert.Equal(1, durable.Run("verify"));
        Assert.Contains("error S1: v1 offset 4096", durable.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_hole_in_the_durable_log_is_corruption()
    {
        using StoreBuilder store = Small(out _);
        ulong first = store.PageNumber - 1;
        store.ClosePage(durable: store.PageNumber * 4096 - 1);
        store.Damage(store.Geometry.PageOffset(first) + 100);
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error log: log page 40: the log ends at", store.Out, StringComparison.Ordinal);
        Assert.Contains($"warning log: ring page {first % store.Geometry.RingPages}: ", store.Out, StringComparison.Ordinal);
        Assert.Contains("warning log: log page 40: it is not there, but 1 pages of the same incarnation lie beyond it", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void Older_incarnations_do_not_count_and_newer_ones_are_wrong()
    {
        using StoreBuilder store = Small(out uint first);
        store.LogWrite(1, 7, 0, false, 9, 2, first + 9, 0);
        store.ClosePage(incarnation: 2);
        Assert.Equal(0, store.Run("check"));
        Assert.Contains("2 blocks referenced", store.Out, StringComparison.Ordinal);
        store.ClosePage(incarnation: 4);
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error S8: log page 42", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void One_bad_home_is_a_warning_two_are_a_loss()
    {
        using StoreBuilder store = Small(out uint first);
        store.PutHome(1, 0, 1500, 7, 0);
        store.Damage(store.Geometry.HomeOffset(1, 0) + 500);
        Assert.Equal(0, store.Run("verify"));
        Assert.Contains("warning slot: slot 1 home A", store.Out, StringComparison.Ordinal);
        store.Damage(store.Geometry.HomeOffset(1, 1) + 500);
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error slot: slot 1: no home is readable", store.Out, StringComparison.Ordinal);
        Assert.NotEqual(0u, first);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void A_page_that_is_older_than_the_log_behind_it_is_a_loss(bool isZero)
    {
        using StoreBuilder store = Small(out _);
        store.PutHome(1, 0, 1500, 7, 0);
        Assert.Equal(0, store.Run("check"));
        if (isZero) store.Zero(1, 1);
        else store.PutTombstone(1, 1, 0); // the newer home was never written
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error slot: slot 1: its page ends at LSN 1500, but the log goes on from 2000", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_damaged_home_that_the_log_does_not_explain_is_a_loss()
    {
        using StoreBuilder store = Small(out _);
        store.Zero(0, 1);
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error slot: slot 0: a home is damaged and the log does not explain it", store.Out, StringComparison.Ordinal);
    }

    /// <summary>From a page of them and from the log; one of them still holds what it held before it was found bad.</summary>
    [Fact]
    public void Bad_blocks_are_listed_and_are_not_free()
    {
        using StoreBuilder store = Small(out uint first);
        Assert.Equal(0, store.Run("badblocks"));
        Assert.Equal("0 bad blocks\n", store.Out);
        Assert.Equal(0, store.Run("check", "--json"));
        ulong free = JsonDocument.Parse(store.Out).RootElement.GetProperty("blocksFree").GetUInt64();
        store.PutBadBlocks(2, 0, 1200, first + 7, first);
        store.LogBadBlock(2, first + 9);
        store.LogBadBlock(3, first + 8); // the first of another slot
        store.ClosePage();
        Assert.Equal(0, store.Run("badblocks"));
        Assert.Equal(
            $"4 bad blocks\nblock {first} slot 2, volume 7 offset 0 still lies there\nblock {first + 7} slot 2\nblock {first + 8} slot 3\n"
            + $"block {first + 9} slot 2\n", store.Out);
        Assert.Equal(0, store.Run("check", "--json"));
        JsonElement check = JsonDocument.Parse(store.Out).RootElement;
        Assert.Equal(4u, check.GetProperty("blocksBad").GetUInt64());
        Assert.Equal(free - 3, check.GetProperty("blocksFree").GetUInt64());
        Assert.Equal(0, store.Run("badblocks", "--json"));
        JsonElement held = JsonDocument.Parse(store.Out).RootElement.GetProperty("blocks")[0];
        Assert.Equal((7u, 0UL), (held.GetProperty("volumeId").GetUInt32(), held.GetProperty("offsetBytes").GetUInt64()));
        store.LogBadBlock(2, store.Geometry.DataEnd);
        store.ClosePage();
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error S9: slot 2: names bad block", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tombstone_outlives_older_records_of_its_slot()
    {
        using StoreBuilder store = Small(out _);
        store.LogDrop(1, 7);
        store.ClosePage(durable: store.PageNumber * 4096 + 64);
        store.PutTombstone(1, 0, (store.PageNumber - 1) * 4096 + 64);
        Assert.Equal(0, store.Run("check"));
        Assert.Contains("1 slots, 0 extents, 0 blocks referenced", store.Out, StringComparison.Ordinal);
        Assert.DoesNotContain("error", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void Broken_maps_are_found()
    {
        using StoreBuilder store = Small(out uint first);
        store.PutHome(2, 0, 3000, 7, 1, (0, new BlockEntry(first, 0, 5)), (1, new BlockEntry(store.Geometry.DataEnd, 1, 5)), (2, new BlockEntry(0, 3, 1)));
        store.PutHome(3, 0, 3000, 7, 1, (0, new BlockEntry(MetadataPage.UnknownBlock, 0, 5)), (1, new BlockEntry(first + 5, 0, 500)));
        store.PutHome(4, 0, 3000, 9, 0);
        store.PutHome(5, 0, 1UL << 40, 7, 5);
        store.PutHead(6, 0, 1000, StoreBuilder.Volume(7, "v1"));
        Assert.Equal(1, store.Run("check"));
        foreach (string expected in new[]
        {
            $"S2: slot 2 volume 7 extent 1 block 0: block {first} is referenced by another",
            "S9: slot 2 volume 7 extent 1 block 1: refers to block",
            "map: slot 2 volume 7 extent 1 block 2: a hole with a checksum",
            "S2: slot 3: extent 1 of volume 7 is in slot 2 too",
            "S1: slot 3 volume 7 extent 1 block 0: marked as lost",
            "map: slot 3: an entry has version 500",
            "volume: slot 4: extent 0 of volume 9, which has no head",
            "S4: slot 5: its home holds LSN",
            "warning volume: slot 5: extent 5 lies beyond the end",
            "volume: slot 6: volume 7 has another head in slot 0",
            "NOT SOUND",
        })
        {
            Assert.Contains(expected, store.Out, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Two_superblock_copies_are_enough_and_one_is_not()
    {
        using StoreBuilder store = Small(out _);
        store.Damage(store.Geometry.SuperblockOffset(0) + 90);
        Assert.Equal(0, store.Run("check"));
        store.PutRoot(3, store.Root with { Sequence = 10 });
        Assert.Equal(0, store.Run("check"));
        Assert.Contains("warning superblock: copy 3: sequence 10 instead of 9", store.Out, StringComparison.Ordinal);
        store.Damage(store.Geometry.SuperblockOffset(1) + 90);
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("no two superblock copies", store.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void A_clean_flag_over_a_full_log_is_a_lie()
    {
        using StoreBuilder store = Small(out _);
        for (int copy = 0; copy < 4; copy++) store.PutRoot(copy, store.Root with { IsClean = true });
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("clean flag", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_store_that_a_daemon_holds_is_refused()
    {
        using StoreBuilder store = Small(out _);
        Assert.Equal(0, store.Run("check"));
        using (new FileStream(store.Path, FileMode.Open, FileAccess.ReadWrite, FileShare.None))
        {
            Assert.Equal(1, store.RunOnFile("check"));
            Assert.Contains("held by a running daemon", store.Error, StringComparison.Ordinal);
        }

        Assert.Equal(0, store.RunOnFile("check"));
    }

    [Fact]
    public void What_is_no_store_is_refused_in_one_line()
    {
        using var store = new StoreBuilder();
        Assert.Equal(1, store.RunOnFile("superblock"));
        foreach (int size in new[] { 0, 100, 4096, 1 << 20 })
        {
            File.WriteAllBytes(store.Path, new byte[size]);
            foreach (string command in new[] { "superblock", "log", "volumes", "check", "verify" })
            {
                Assert.Equal(1, store.RunOnFile(command));
                Assert.StartsWith("pfinspect: ", store.Error, StringComparison.Ordinal);
                Assert.Single(store.Error.TrimEnd('\n').Split('\n'));
            }
        }

        Assert.Equal(2, store.RunOnFile("map"));
        Assert.Equal(2, store.RunOnFile("nonsense"));
        using StoreBuilder real = Small(out _);
        Assert.Equal(1, real.Run("map", "v9"));
    }

    [Fact]
    public void Random_damage_never_becomes_a_fault_of_pfinspect()
    {
        var random = new SeededRandom(11);
        for (int round = 0; round < 60; round++)
        {
            using StoreBuilder store = Small(out _);
            for (int n = 0; n < 40; n++) store.Damage(random.NextBelow(store.Geometry.SlotsOffset + 20 * 4096));
            store.Run("verify");
            Assert.DoesNotContain("a fault in pfinspect", store.Error, StringComparison.Ordinal);
        }
    }
}
