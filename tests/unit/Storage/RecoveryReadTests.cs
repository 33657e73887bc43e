using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>Pages that cannot be read while a store is opened: nothing acknowledged is dropped in silence.</summary>
public class RecoveryReadTests
{
    private static readonly StoreOptions Small = new() { RingBytes = 128 << 10 };

    /// <summary>It may hold writes that were acknowledged last; no later page says that it was durable.</summary>
    [Fact]
    public void An_unreadable_last_page_of_the_log_is_no_torn_tail()
    {
        var world = new StoreWorld(1, 32 << 20, 3 << 20, Small);
        byte[] data = StoreWorld.Pattern(1, 4096);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(0, data, WriteFlags.Fua)));
        world.Cut();
        world.File.BadReads.Add(LastLogPage(world));
        StoreOpenResult result = world.TryOpen();
        Assert.Null(result.Store);
        Assert.Contains("the log cannot be read", result.Refusal, StringComparison.Ordinal);
        Assert.Contains("accept data loss", result.Refusal, StringComparison.Ordinal);
        world.File.BadReads.Clear();
        world.Use(world.TryOpen().Store!);
        Assert.Equal(data, world.Read(0, 4096));
    }

    [Fact]
    public void Accepted_loss_opens_in_front_of_an_unreadable_page_of_the_log()
    {
        var world = new StoreWorld(2, 32 << 20, 3 << 20, Small);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(0, StoreWorld.Pattern(1, 4096), WriteFlags.Fua)));
        world.Cut();
        world.File.BadReads.Add(LastLogPage(world));
        world.Options = Small with { AcceptDataLoss = true };
        world.Use(world.TryOpen().Store!);
        Assert.Equal(new byte[4096], world.Read(0, 4096));
    }

    /// <summary>The newer home of a page is of a checkpoint that was complete, so the log behind it no longer says what it
    /// held: a later record of the same page does not make up for it.</summary>
    [Fact]
    public void An_unreadable_home_is_not_made_up_for_by_a_later_record()
    {
        var world = new StoreWorld(3, 32 << 20, 3 << 20, Small);
        for (ulong i = 0; i < 3; i++)
        {
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(i * 4096, StoreWorld.Pattern(i, 4096), WriteFlags.Fua)));
            world.Reopen(isClean: i < 2);
        }

        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(3 * 4096, StoreWorld.Pattern(3, 4096), WriteFlags.Fua)));
        world.Cut();
        world.File.BadReads.Add(NewerHome(world, 1));
        StoreOpenResult result = world.TryOpen();
        Assert.Null(result.Store);
        Assert.Contains("damaged home that the log does not explain", result.Refusal, StringComparison.Ordinal);
        world.File.BadReads.Clear();
        world.Use(world.TryOpen().Store!);
        for (ulong i = 0; i < 4; i++) Assert.Equal(StoreWorld.Pattern(i, 4096), world.Read(i * 4096, 4096));
    }

    /// <summary>Requests whose data lies together are judged by one read, and still each by its own data.</summary>
    [Fact]
    public void What_is_judged_together_counts_by_itself()
    {
        var world = new StoreWorld(6, 32 << 20, 3 << 20, Small with { RingBytes = 4 << 20 });
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.FlushAsync()));
        for (ulong i = 0; i < 100; i++) world.Write(i << 12, StoreWorld.Pattern(i, 4096));
        world.Cut();
        uint first = world.Geometry.DataStart;
        for (int i = 0; i < 100; i++) // small writes lie one behind the other
        {
            var block = new byte[4096];
            world.Loop.Run(world.File.ReadAsync((ulong)(first + i) << Units.BlockShift, block));
            Assert.Equal(StoreWorld.Pattern((ulong)i, 4096), block);
        }

        world.File.Rot(world.Loop, first + 40);
        world.File.BadReads.Add(first + 77);
        world.File.Reads.Clear();
        StoreOpenResult result = world.TryOpen();
        Assert.InRange(world.File.Reads.Count(block => block >= first && block < first + 100), 4, 60);
        world.Use(result.Store!);
        for (ulong i = 0; i < 100; i++)
        {
            if (i == 77) Assert.Equal(IoStatus.IoError, world.ReadStatus(i << 12, 4096)); // it may have been there
            else Assert.Equal(i == 40 ? new byte[4096] : StoreWorld.Pattern(i, 4096), world.Read(i << 12, 4096));
        }
    }

    /// <summary>Homes near each other are read back together: what lies in between may have become unreadable, what was
    /// written may not.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void What_is_read_back_at_the_end_is_what_was_written_and_nothing_else(bool isNeighbour)
    {
        var world = new StoreWorld(4, 32 << 20, 3 << 20, Small);
        for (ulong extent = 0; extent < 3; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 4096));
        world.Reopen(isClean: true);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(4096, StoreWorld.Pattern(7, 4096), WriteFlags.Fua)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync((2 << 20) + 4096, StoreWorld.Pattern(8, 4096), WriteFlags.Fua)));
        ulong neighbour = NewerHome(world, 2), older = NewerHome(world, 1) ^ 1;
        Assert.Equal(0UL, world.Geometry.HomeOffset(1, 0) / Units.BlockBytes % 2);
        world.Cut();
        bool isWritten = false;
        world.File.Writing = block =>
        {
            if (block != older) return;
            isWritten = true;
            world.File.BadReads.Add(isNeighbour ? neighbour : older);
        };
        StoreOpenResult result = world.TryOpen();
        Assert.True(isWritten);
        if (!isNeighbour)
        {
            Assert.Contains("does not read back", result.Refusal, StringComparison.Ordinal);
            return;
        }

        Assert.Null(result.Refusal);
        world.Use(result.Store!);
        Assert.Equal(StoreWorld.Pattern(7, 4096), world.Read(4096, 4096));
        Assert.Equal(StoreWorld.Pattern(8, 4096), world.Read((2 << 20) + 4096, 4096));
    }

    /// <summary>A page behind a gap says how far the log was durable: up to the first record of the page in the gap, which is
    /// no loss, or with it, which is one.</summary>
    [Theory]
    [InlineData(-1, true)]
    [InlineData(0, false)]
    public void A_claim_that_ends_in_the_header_of_a_lost_page_covers_no_record(int beyond, bool opens)
    {
        var world = new StoreWorld(5, 32 << 20, 3 << 20, Small);
        byte[] data = StoreWorld.Pattern(1, 4096);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(0, data, WriteFlags.Fua)));
        world.Cut();
        var page = new byte[Units.BlockBytes];
        world.Loop.Run(world.File.ReadAsync(LastLogPage(world) << Units.BlockShift, page));
        Assert.Null(RedoPageHeader.TryRead(page, out RedoPageHeader header));
        ulong lost = header.PageNumber + 1;
        header = header with { PageNumber = lost + 1, DurableLsn = lost * Units.BlockBytes + (ulong)(RedoPageHeader.Size + beyond) };
        header.WriteTo(page);
        ulong address = world.Geometry.PageOffset(lost + 1);
        Seal.Put(page, address, header.StoreFold);
        world.Loop.Run(world.File.WriteAsync(address, page));
        StoreOpenResult result = world.TryOpen();
        if (!opens)
        {
            Assert.Contains("the log is damaged", result.Refusal, StringComparison.Ordinal);
            return;
        }

        Assert.Null(result.Refusal);
        world.Use(result.Store!);
        Assert.Equal(data, world.Read(0, 4096));
    }

    private static ulong LastLogPage(StoreWorld world)
    {
        ulong newest = 0, found = 0;
        var page = new byte[Units.BlockBytes];
        for (ulong at = world.Geometry.RingOffset; at < world.Geometry.SlotsOffset; at += Units.BlockBytes)
        {
            world.Loop.Run(world.File.ReadAsync(at, page));
            if (RedoPageHeader.TryRead(page, out RedoPageHeader header) is not null || header.PageNumber < newest) continue;
            (newest, found) = (header.PageNumber, at >> Units.BlockShift);
        }

        return found;
    }

    private static ulong NewerHome(StoreWorld world, uint slot)
    {
        var lsn = new ulong[2];
        var page = new byte[Units.BlockBytes];
        for (int home = 0; home < 2; home++)
        {
            world.Loop.Run(world.File.ReadAsync(world.Geometry.HomeOffset(slot, home), page));
            Assert.Null(MetadataPageHeader.TryRead(page, out MetadataPageHeader header));
            lsn[home] = header.PageLsn;
        }

        Assert.NotEqual(lsn[0], lsn[1]);
        return world.Geometry.HomeOffset(slot, lsn[0] > lsn[1] ? 0 : 1) >> Units.BlockShift;
    }
}
