using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Rules of relayout whose breach needs a certain power cut, made by hand: the broken store shows the symptom, the
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

    /// <summary>
    /// FreeRelaidEarly (S3). An extent is laid out anew, and what is written next takes the places that it left. A power cut
    /// takes the log from there on and leaves the data: the extent is again where it was, and there lies the other data.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.FreeRelaidEarly)]
    [InlineData(BrokenRules.None)]
    public void The_places_that_an_extent_left_wait_for_its_claim(BrokenRules broken)
    {
        var loop = new SimLoop(1);
        var disk = new SimDisk(loop, 32 * Units.MiB, 1);
        var options = new StoreOptions
        {
            RingBytes = 8 * Units.MiB, BrokenRules = broken, ReusesSoon = true, FlushIntervalNanos = ulong.MaxValue / 4,
            RelayoutBytesPerSecond = Units.GiB, RelayoutColdNanos = 1_000, RelayoutCutsMin = 1, RelayoutBlocksPerCut = Units.BlocksPerExtent,
        };
        Assert.Null(loop.Run(Store.FormatAsync(loop, disk, options)));
        IStore store = loop.Run(Store.OpenAsync(loop, disk, null, options)).Store!;
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(new VolumeHead(1, Guid.Empty, "v", 2 * Units.MiB, 1))));
        IBlockDevice device = store.OpenVolume(1)!;
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, Content(0, 256, 1), WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(100 << Units.BlockShift, Content(100, 1, 2), WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.FlushAsync()));
        Assert.True(loop.RunUntil(() => store.GetStats().BlocksRelaid >= 256));
        // One by one, so that they need no run of free blocks; the ring is so large that no checkpoint makes them durable.
        for (ulong block = 256; block < 512; block++)
            Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(block << Units.BlockShift, Content(block, 1, 3), WriteFlags.None)));

        int cut = 0;
        var later = new SimLoop(2);
        SimDisk fork = disk.ForkAfterPowerCut(later, 3, (write, page) =>
        {
            bool isLog = disk.Pending[write].Pages[page].AsSpan(4, 4).SequenceEqual("RDPG"u8);
            if (isLog) cut++;
            return isLog ? (byte)0 : byte.MaxValue;
        });
        Assert.True(cut > 0);
        StoreOpenResult opened = later.Run(Store.OpenAsync(later, fork, null, options with { BrokenRules = BrokenRules.None }));
        Assert.Null(opened.Refusal);
        var data = new byte[Units.ExtentBytes];
        IoStatus read = later.Run(opened.Store!.OpenVolume(1)!.ReadAsync(0, data)).Status;
        Assert.Equal(broken == BrokenRules.None ? IoStatus.Ok : IoStatus.Corrupt, read);
        if (broken == BrokenRules.None) Assert.Equal((1UL, 2UL), (IdOf(data), IdOf(data[(100 << Units.BlockShift)..])));
    }

    private static ulong IdOf(byte[] data) => BitConverter.ToUInt64(data);

    private static byte[] Content(ulong block, int blocks, ulong id)
    {
        var data = new byte[blocks * Units.BlockBytes];
        VolumeModel.Fill(data, id, 1, block * (Units.BlockBytes / Units.SectorBytes));
        return data;
    }
}
