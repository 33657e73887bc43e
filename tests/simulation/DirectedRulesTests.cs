using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>
/// Rules whose breach hardly any seed shows: the state of the disk that needs them is made by hand, from writes that a power
/// cut may leave. The broken store shows the symptom, the honest one does not.
/// </summary>
public sealed class DirectedRulesTests
{
    private static readonly StoreOptions Honest = new() { RingBytes = 256 << 10, ReusesSoon = true };

    private readonly SimDisk _disk;
    private SimLoop _loop = new(1);
    private IStore? _store;

    /// <summary>A store with one volume, open.</summary>
    public DirectedRulesTests()
    {
        _disk = new SimDisk(_loop, 32 * Units.MiB, 1);
        Assert.Null(_loop.Run(Store.FormatAsync(_loop, _disk, Honest)));
        Open(Honest);
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CreateVolumeAsync(new VolumeHead(1, Guid.Empty, "v", Units.MiB, 1))));
    }

    private IBlockDevice Device => _store!.OpenVolume(1)!;

    /// <summary>
    /// AnyIncarnation (S8). A power cut takes a log page and leaves those behind it. The next life ends the log before the
    /// gap, writes into it, and closes. Its log then ends where the old pages still lie; whoever takes them would bring back
    /// what was never acknowledged over what was, did they not name records before them that no page holds.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.AnyIncarnation)]
    [InlineData(BrokenRules.None)]
    public void Pages_of_an_earlier_incarnation_are_not_the_log(BrokenRules broken)
    {
        Write(0, 1, WriteFlags.Fua);
        ulong gap = NewestPage() + 1;
        Write(9, 2, WriteFlags.None);
        for (ulong id = 3; id < 16; id++) Write(0, id, WriteFlags.None);
        ulong oldEnd = NewestPage();
        Assert.True(oldEnd > gap + 10);
        Kill();
        Erase(gap);
        Open(Honest);
        Assert.Equal(1UL, Read(0));
        Write(0, 100, WriteFlags.Fua);
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CloseAsync()));
        Kill();
        if (broken != BrokenRules.None)
        {
            StoreOpenResult opened = _loop.Run(Store.OpenAsync(_loop, _disk, null, Honest with { BrokenRules = broken }));
            Assert.Contains("a damaged home that the log does not explain", opened.Refusal, StringComparison.Ordinal);
            return;
        }

        Open(Honest);
        Assert.Equal(100UL, Read(0));
    }

    /// <summary>
    /// PromiseEarly (decision 0014). A promise counts on blocks that a trim has given back a moment ago. A power cut takes the trim, and
    /// there is less room than was promised.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.PromiseEarly)]
    [InlineData(BrokenRules.None)]
    public void What_is_promised_outlives_a_power_cut_that_takes_back_what_was_given_back(BrokenRules broken)
    {
        Kill();
        Open(Honest with { BrokenRules = broken });
        var store = (ILayeredStore)_store!;
        Assert.Equal(IoStatus.Ok, _loop.Run(store.CreateVolumeAsync(new VolumeHead(2, Guid.NewGuid(), "promised", 64 * Units.MiB, 1))));
        Write(0, 1, WriteFlags.Fua, blocks: 256);
        Assert.Equal(IoStatus.Ok, _loop.Run(Device.TrimAsync(0, Units.MiB, WriteFlags.None)));
        StoreStats stats = store.GetStats();
        ulong bytes = (stats.BlocksFreeSoon - stats.BlocksKept) * Units.BlockBytes;
        Assert.Equal(IoStatus.Ok, _loop.Run(store.PromiseAsync(2, bytes, isForced: false)));
        // Of what was not flushed nothing is left.
        var loop = new SimLoop(9);
        SimDisk left = _disk.ForkAfterPowerCut(loop, 9, (_, _) => 0);
        var again = (ILayeredStore)loop.Run(Store.OpenAsync(loop, left, null, Honest)).Store!;
        Assert.Equal(broken == BrokenRules.None ? IoStatus.Ok : IoStatus.NoSpace, loop.Run(again.PromiseAsync(2, bytes, isForced: false)));
    }

    /// <summary>
    /// ReuseAtDurable (B1.5, 4a). A request of two blocks is durable, no page says so yet; one of its blocks is replaced, which
    /// is durable too. Given out again at once, that block takes data whose log page a power cut takes: recovery finds that the
    /// request's data does not match, and drops its other block with it.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.ReuseAtDurable)]
    [InlineData(BrokenRules.None)]
    public void A_replaced_block_waits_for_a_durable_claim(BrokenRules broken)
    {
        Kill();
        Open(Honest with { BrokenRules = broken });
        Write(0, 1, WriteFlags.Fua, blocks: 2);
        Write(0, 2, WriteFlags.None, blocks: 2);
        Write(0, 3, WriteFlags.None);
        Assert.Equal(IoStatus.Ok, _loop.Run(Device.FlushAsync()));
        ulong flushed = NewestPage();
        for (ulong block = 16; block < 24; block++) Write(block, 4, WriteFlags.None); // more than were replaced
        ulong end = NewestPage();
        Assert.True(end > flushed);
        Kill();
        for (ulong page = flushed + 1; page <= end; page++) Erase(page);
        Open(Honest);
        Assert.Equal(3UL, Read(0));
        // Dropped, it leaves the content before it, of which the block was given out again as well.
        Assert.Equal(broken == BrokenRules.None ? IoStatus.Ok : IoStatus.Corrupt, StatusOf(1));
        if (broken == BrokenRules.None) Assert.Equal(2UL, Read(1));
    }

    /// <summary>
    /// OlderPage (B1.7, step 3). The newer home of a page rots, and the log holds a later record of it. On the older home that
    /// record makes a page that looks sound and has lost what the checkpoint between the two took out of the log.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.OlderPage)]
    [InlineData(BrokenRules.None)]
    public void A_record_is_not_replayed_on_an_older_page(BrokenRules broken)
    {
        for (ulong block = 0; block < 3; block++)
        {
            Write(block, block + 1, WriteFlags.Fua);
            if (block == 2) break;
            Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CloseAsync()));
            Kill();
            Open(Honest);
        }

        _disk.CutPower(); // all of it is durable
        _loop = new SimLoop(2);
        _disk.Attach(_loop);
        ulong[] homes = [Geometry.HomeOffset(1, 0) >> Units.BlockShift, Geometry.HomeOffset(1, 1) >> Units.BlockShift];
        Assert.True(_disk.Rot(homes.MaxBy(page => MetadataPageHeader.TryRead(_disk.PageNow(page), out MetadataPageHeader header) is null ? header.PageLsn : 0), 999));
        StoreOpenResult opened = _loop.Run(Store.OpenAsync(_loop, _disk, null, Honest with { BrokenRules = broken }));
        if (broken == BrokenRules.None)
        {
            Assert.Contains("a damaged home that the log does not explain", opened.Refusal, StringComparison.Ordinal);
            return;
        }

        _store = opened.Store!;
        Assert.Equal((1UL, 3UL), (Read(0), Read(2)));
        var lost = new byte[Units.BlockBytes];
        Assert.Equal(IoStatus.Ok, _loop.Run(Device.ReadAsync(Units.BlockBytes, lost)).Status);
        Assert.False(lost.AsSpan().ContainsAnyExcept((byte)0)); // acknowledged, durable, and zeros without a word
    }

    /// <summary>
    /// RetryFlush (B1.5). The kernel drops what a failed flush did not get out, and says so once: the next flush answers Ok over
    /// content that is gone. Believed, it loses what a client was told to be durable, or the log behind a claim, and then the
    /// store is refused.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.RetryFlush)]
    [InlineData(BrokenRules.None)]
    public void A_flush_that_failed_is_not_tried_again(BrokenRules broken)
    {
        Kill();
        Open(Honest with { BrokenRules = broken });
        for (ulong block = 0; block < 16; block++) Write(block, 1, WriteFlags.Fua);
        for (ulong block = 0; block < 16; block++) Write(block, 2, WriteFlags.None);
        _disk.Faults = new SimDiskFaults { FlushError = 1 };
        Task<IoStatus> flushing = Device.FlushAsync().AsTask();
        Assert.True(_loop.RunUntil(() => _disk.HasFailedFlush));
        _disk.Faults = SimDiskFaults.None; // one that is asked now succeeds
        Assert.True(_loop.RunUntil(() => flushing.IsCompleted));
        Assert.Equal(broken == BrokenRules.None ? IoStatus.Unavailable : IoStatus.Ok, flushing.Result);
        Assert.Equal(broken == BrokenRules.None ? [] : ["a flush after one had failed"], _disk.Misuse.Distinct());
        _disk.CutPower();
        _loop = new SimLoop(2);
        _disk.Attach(_loop);
        StoreOpenResult opened = _loop.Run(Store.OpenAsync(_loop, _disk, null, Honest));
        if (broken != BrokenRules.None && opened.Store is null) return;
        _store = opened.Store!;
        ulong[] found = [.. Enumerable.Range(0, 16).Select(block => Read((ulong)block))];
        Assert.All(found, id => Assert.InRange(id, 1UL, 2UL));
        Assert.Contains(1UL, found); // what was not told to be durable, or, with the broken rule, was
    }

    private void Open(StoreOptions options)
    {
        StoreOpenResult opened = _loop.Run(Store.OpenAsync(_loop, _disk, null, options));
        Assert.Null(opened.Refusal);
        _store = opened.Store!;
    }

    private void Kill()
    {
        _disk.Kill();
        _loop = new SimLoop(_loop.EventHash);
        _disk.Attach(_loop);
    }

    private void Write(ulong block, ulong id, WriteFlags flags, int blocks = 1)
    {
        var data = new byte[blocks * Units.BlockBytes];
        for (int i = 0; i < blocks; i++) Content(block + (ulong)i, id).CopyTo(data, i * Units.BlockBytes);
        Assert.Equal(IoStatus.Ok, _loop.Run(Device.WriteAsync(block << Units.BlockShift, data, flags)));
    }

    private ulong Read(ulong block)
    {
        var data = new byte[Units.BlockBytes];
        Assert.Equal(IoStatus.Ok, _loop.Run(Device.ReadAsync(block << Units.BlockShift, data)).Status);
        ulong id = BitConverter.ToUInt64(data);
        Assert.Equal(Content(block, id), data);
        return id;
    }

    private IoStatus StatusOf(ulong block) =>
        _loop.Run(Device.ReadAsync(block << Units.BlockShift, new byte[Units.BlockBytes])).Status;

    private static byte[] Content(ulong block, ulong id)
    {
        var data = new byte[Units.BlockBytes];
        VolumeModel.Fill(data, id, 1, block * (Units.BlockBytes / Units.SectorBytes));
        return data;
    }

    private StoreGeometry Geometry
    {
        get
        {
            Assert.Null(StoreGeometry.Plan(_disk.SizeBytes, Honest.RingBytes, Honest.SlotFraction, out StoreGeometry geometry));
            return geometry;
        }
    }

    private ulong NewestPage()
    {
        ulong newest = 0;
        for (ulong at = Geometry.RingOffset; at < Geometry.SlotsOffset; at += Units.BlockBytes)
        {
            if (RedoPageHeader.TryRead(_disk.PageNow(at >> Units.BlockShift), out RedoPageHeader header) is null)
                newest = Math.Max(newest, header.PageNumber);
        }

        return newest;
    }

    private void Erase(ulong page) => Assert.Equal(
        IoStatus.Ok, _loop.Run(_disk.WriteAsync(Geometry.PageOffset(page), new byte[Units.BlockBytes])));
}
