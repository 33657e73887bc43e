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
