using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>A rule of relayout whose breach needs a certain power cut, made by hand: the broken store shows the symptom, the
/// honest one does not.</summary>
public sealed class RelayoutRulesTests
{
    /// <summary>
    /// RelayUnclaimed (P3). A request of two extents is acknowledged, not flushed; the first extent is laid out anew. A power
    /// cut takes the request's data in the second extent and nothing else. The request is dropped, but the copy of its first
    /// block would bring that part back.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.RelayUnclaimed)]
    [InlineData(BrokenRules.None)]
    public void A_copy_does_not_outlive_the_request_that_it_copied(BrokenRules broken)
    {
        var loop = new SimLoop(1);
        var disk = new SimDisk(loop, 32 * Units.MiB, 1);
        var options = new StoreOptions
        {
            RingBytes = 256 << 10, BrokenRules = broken, FlushIntervalNanos = ulong.MaxValue / 4,
            RelayoutBytesPerSecond = Units.GiB, RelayoutColdNanos = 1_000, RelayoutCutsMin = 1, RelayoutBlocksPerCut = Units.BlocksPerExtent,
        };
        Assert.Null(loop.Run(Store.FormatAsync(loop, disk, options)));
        IStore store = loop.Run(Store.OpenAsync(loop, disk, null, options)).Store!;
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(new VolumeHead(1, Guid.Empty, "v", 2 * Units.MiB, 1))));
        IBlockDevice device = store.OpenVolume(1)!;
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, Content(0, 257, 1), WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.FlushAsync()));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(255 << Units.BlockShift, Content(255, 2, 2), WriteFlags.None)));
        Assert.True(loop.RunUntil(() => store.GetStats().BlocksRelaid >= 256));

        byte[] gone = Content(256, 1, 2);
        int dropped = 0;
        var later = new SimLoop(2);
        SimDisk fork = disk.ForkAfterPowerCut(later, 3, (write, page) =>
        {
            if (!disk.Pending[write].Pages[page].AsSpan().SequenceEqual(gone)) return byte.MaxValue;
            dropped++;
            return 0;
        });
        Assert.Equal(broken == BrokenRules.None ? 0 : 1, Math.Min(dropped, 1));
        StoreOpenResult opened = later.Run(Store.OpenAsync(later, fork, null, options with { BrokenRules = BrokenRules.None }));
        Assert.Null(opened.Refusal);
        var data = new byte[2 * Units.BlockBytes];
        Assert.Equal(IoStatus.Ok, later.Run(opened.Store!.OpenVolume(1)!.ReadAsync(255 << Units.BlockShift, data)).Status);
        ulong first = IdOf(data), second = IdOf(data[Units.BlockBytes..]);
        Assert.Equal(broken == BrokenRules.None ? (2UL, 2UL) : (2UL, 1UL), (first, second));
    }

    private static ulong IdOf(byte[] data) => BitConverter.ToUInt64(data);

    private static byte[] Content(ulong block, int blocks, ulong id)
    {
        var data = new byte[blocks * Units.BlockBytes];
        VolumeModel.Fill(data, id, 1, block * (Units.BlockBytes / Units.SectorBytes));
        return data;
    }
}
