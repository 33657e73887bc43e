using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

public class SuperblockTests
{
    private const ulong MediumBytes = 8 << 20;
    private static readonly StoreOptions Small = new() { RingBytes = 256 << 10, StoreUuid = new Guid(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) };

    [Theory]
    [InlineData(0, 1)]
    [InlineData(0, 2)]
    [InlineData(0, 3)]
    [InlineData(1, 2)]
    [InlineData(1, 3)]
    [InlineData(2, 3)]
    public void With_two_copies_damaged_a_cut_at_any_moment_of_an_opening_leaves_a_store_that_opens(int one, int two)
    {
        Assert.Null(StoreGeometry.Plan(MediumBytes, Small.RingBytes, Small.SlotFraction, out StoreGeometry geometry));
        bool isThrough = false;
        for (ulong cutAt = 0; !isThrough && cutAt < 1000; cutAt++)
        {
            for (ulong seed = 1; seed <= 4; seed++)
            {
                (SimLoop loop, SimDisk disk) = Formatted(seed);
                foreach (int copy in new[] { one, two }) Assert.True(disk.Rot(geometry.SuperblockOffset(copy) >> Units.BlockShift, 4096 + 7));
                ulong end = loop.EventCount + cutAt;
                loop.StopBeforeEvent = n => n >= end;
                Task<StoreOpenResult> opening = Store.OpenAsync(loop, disk, null, Small).AsTask();
                isThrough = loop.RunUntil(() => opening.IsCompleted);
                disk.CutPower();
                Assert.Null(Reopen(disk, seed).Refusal);
            }
        }

        Assert.True(isThrough);
    }

    [Fact]
    public void A_copy_that_a_cut_left_ahead_of_the_others_is_overwritten_first()
    {
        Assert.Null(StoreGeometry.Plan(MediumBytes, Small.RingBytes, Small.SlotFraction, out StoreGeometry geometry));
        for (ulong cutAt = 0; cutAt < 40; cutAt++)
        {
            (SimLoop loop, SimDisk disk) = Formatted(3);
            // Copy 0 alone has the next state, copy 2 was torn: what a cut in the first pair may leave.
            var page = disk.PageNow(0);
            Assert.Null(Superblock.TryRead(page, out Superblock now));
            (now with { Copy = 0, Sequence = now.Sequence + 1, SlotHighWater = 0, IsClean = false, Incarnation = now.Incarnation + 1 }).WriteTo(page);
            Assert.Equal(IoStatus.Ok, loop.Run(disk.WriteAsync(0, page)));
            Assert.Equal(IoStatus.Ok, loop.Run(disk.FlushAsync()));
            Assert.True(disk.Rot(geometry.SuperblockOffset(2) >> Units.BlockShift, 999));
            ulong begin = loop.EventCount;
            loop.StopBeforeEvent = n => n >= begin + cutAt;
            Task<StoreOpenResult> opening = Store.OpenAsync(loop, disk, null, Small).AsTask();
            loop.RunUntil(() => opening.IsCompleted);
            disk.CutPower();
            Assert.Null(Reopen(disk, cutAt).Refusal);
        }
    }

    private static (SimLoop Loop, SimDisk Disk) Formatted(ulong seed)
    {
        var loop = new SimLoop(seed);
        var disk = new SimDisk(loop, MediumBytes, seed);
        Assert.Null(loop.Run(Store.FormatAsync(loop, disk, Small)));
        return (loop, disk);
    }

    private static StoreOpenResult Reopen(SimDisk disk, ulong seed)
    {
        var loop = new SimLoop(seed + 1000);
        disk.Attach(loop);
        return loop.Run(Store.OpenAsync(loop, disk, null, Small));
    }
}
