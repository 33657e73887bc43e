using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Rules of layers whose breach needs a certain order of steps, made by hand: the broken store shows the symptom, the
/// honest one does not.</summary>
public sealed class LayerRulesTests
{
    private static readonly StoreOptions Options = new() { RingBytes = Units.MiB, SlotFraction = 0.04 };

    private static readonly byte[] s_block = new byte[Units.BlockBytes];

    private readonly SimDisk _disk;
    private SimLoop _loop = new(1);
    private ILayeredStore? _store;

    /// <summary>A medium with a store.</summary>
    public LayerRulesTests()
    {
        _disk = new SimDisk(_loop, 32 * Units.MiB, 1);
        Assert.Null(_loop.Run(Store.FormatAsync(_loop, _disk, Options)));
    }

    /// <summary>
    /// ForgetBelow (B5). The first write to an extent after a cut begins its page as what the layers below show. Begun empty,
    /// it hides all that was there.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.ForgetBelow)]
    [InlineData(BrokenRules.None)]
    public void A_page_over_a_snapshot_begins_as_what_is_below(BrokenRules broken)
    {
        Open(broken);
        Create(1);
        Write(1, 0, 1, blocks: 2);
        Cut(1, 1);
        Write(1, 0, 2);
        Assert.Equal((2UL, broken == BrokenRules.None ? 1UL : 0UL), (Read(1, 0), Read(1, 1)));
    }

    /// <summary>
    /// IgnoreClones (B5). A snapshot on which, after a rollback, nothing builds but a clone is deleted. Its pages would go over
    /// to the clone, but they name the volume that made them, as what another of its layers has there.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.IgnoreClones)]
    [InlineData(BrokenRules.None)]
    public void A_snapshot_with_a_clone_stays(BrokenRules broken)
    {
        Open(broken);
        Create(1);
        Write(1, 0, 1, blocks: 2);
        Cut(1, 1);
        Write(1, 0, 2);
        Cut(1, 2);
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CreateCloneAsync(HeadOf(2), 1, Id(2))));
        Assert.Equal(IoStatus.Ok, _loop.Run(_store.RollBackAsync(Id(1), new SnapshotRequest(1, Id(3), "safety", 1))));
        Assert.Equal(IoStatus.Ok, Delete(1, 3));
        Assert.Equal(broken == BrokenRules.None ? IoStatus.Conflict : IoStatus.Ok, Delete(1, 2));
        _loop.Run(_store.FlushAsync());
        _disk.CutPower();
        _loop = new SimLoop(2);
        _disk.Attach(_loop);
        StoreOpenResult opened = _loop.Run(Store.OpenAsync(_loop, _disk, null, Options));
        if (broken != BrokenRules.None)
        {
            Assert.Contains("its slot belongs to another", opened.Refusal, StringComparison.Ordinal);
            return;
        }

        _store = (ILayeredStore)opened.Store!;
        Assert.Equal((2UL, 1UL), (Read(2, 0), Read(2, 1)));
        Assert.Equal((1UL, 1UL), (Read(1, 0), Read(1, 1)));
    }

    /// <summary>
    /// ThawEarly (B5). A request that is answered but not durable, then a cut, then a write over it. A power cut takes the request's data and
    /// leaves the whole log: the request is dropped, and no page of a later layer may have it all the same.
    /// </summary>
    [Theory]
    [InlineData(BrokenRules.ThawEarly)]
    [InlineData(BrokenRules.None)]
    public void A_page_over_a_snapshot_has_nothing_that_a_power_cut_takes(BrokenRules broken)
    {
        Open(broken);
        Create(1);
        Write(1, 0, 1, blocks: 2);
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.FlushAsync()));
        Write(1, 0, 2);
        Task<IoStatus> cutting = _store.CreateSnapshotsAsync([new SnapshotRequest(1, Id(1), "s1", 1)]).AsTask();
        var gone = new byte[Units.BlockBytes];
        gone[0] = 2;
        int states = 0;
        string? refusal = null;
        ulong seen = _disk.ChangeCount;
        _loop.StopBeforeEvent = _ =>
        {
            if (_disk.ChangeCount == seen) return false;
            seen = _disk.ChangeCount;
            var later = new SimLoop(2);
            SimDisk fork = _disk.ForkAfterPowerCut(later, 3, (write, page) =>
                _disk.Pending[write].Pages[page].AsSpan().SequenceEqual(gone) ? (byte)0 : byte.MaxValue);
            states++;
            StoreOpenResult opened = later.Run(Store.OpenAsync(later, fork, null, Options));
            refusal ??= opened.Refusal;
            if (opened.Store is not ILayeredStore store) return false;
            var data = new byte[Units.BlockBytes];
            Assert.Equal(IoStatus.Ok, later.Run(store.OpenVolume(1)!.ReadAsync(0, data)).Status);
            Assert.InRange(data[0], 1, 3);
            Assert.Null(later.Run(((Store)store).AuditAsync()));
            if (store.OpenSnapshot(1, Id(1)) is { } snapshot) Assert.Equal(IoStatus.Ok, later.Run(snapshot.ReadAsync(0, data)).Status);
            return false;
        };
        Write(1, 1, 3);
        Assert.True(_loop.RunUntil(() => cutting.IsCompleted));
        Assert.Equal(IoStatus.Ok, cutting.Result);
        Assert.True(states > 1);
        if (broken == BrokenRules.None) Assert.Null(refusal);
        else Assert.NotNull(refusal);
    }

    /// <summary>
    /// Writes that find bad blocks are said again while a cut waits for them: each is in the snapshot or is not, and the same on the
    /// running store and on what a power cut leaves.
    /// </summary>
    [Fact]
    public void A_cut_over_writes_that_find_bad_blocks_has_each_or_not()
    {
        const int Writes = 6;
        int moved = 0, seen = 0;
        for (ulong seed = 1; seed <= 40; seed++)
        {
            var loop = new SimLoop(seed);
            var disk = new SimDisk(loop, 32 * Units.MiB, seed);
            Assert.Null(loop.Run(Store.FormatAsync(loop, disk, Options)));
            var store = (ILayeredStore)loop.Run(Store.OpenAsync(loop, disk, null, Options)).Store!;
            Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(HeadOf(1))));
            // Pages are bad from a place on; up to there all are taken.
            Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(HeadOf(2) with { SizeBytes = 8 * Units.MiB })));
            for (ulong i = 0; i < 512; i++) Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(2)!.WriteAsync(i << Units.BlockShift, s_block, WriteFlags.None)));
            disk.Faults = new SimDiskFaults { BadPages = 0.15 };
            byte[][] contents = [.. Enumerable.Range(1, Writes).Select(i => { var data = new byte[Units.BlockBytes]; data.AsSpan().Fill((byte)i); return data; })];
            Task<IoStatus>[] writes = [.. contents.Select((data, i) => store.OpenVolume(1)!.WriteAsync((ulong)(i * 50) << Units.BlockShift, data, WriteFlags.None).AsTask())];
            ulong at = loop.EventCount + seed % 8;
            loop.RunUntil(() => loop.EventCount >= at);
            Task<IoStatus> cutting = store.CreateSnapshotsAsync([new SnapshotRequest(1, Id(1), "s1", 1)]).AsTask();
            Assert.True(loop.RunUntil(() => cutting.IsCompleted && writes.All(w => w.IsCompleted)));
            disk.Faults = SimDiskFaults.None;
            Assert.All(writes, w => Assert.Equal(IoStatus.Ok, w.Result));
            Assert.Equal(IoStatus.Ok, cutting.Result);
            bool[] isIn = Judge(loop, store, null);
            if (disk.CountOf(DiskEvent.BadPage) > 0) moved++;
            if (isIn.Any(one => one)) seen++;
            Assert.Equal(IoStatus.Ok, loop.Run(store.FlushAsync()));
            disk.CutPower();
            var later = new SimLoop(seed);
            disk.Attach(later);
            StoreOpenResult opened = later.Run(Store.OpenAsync(later, disk, null, Options));
            Assert.Null(opened.Refusal);
            Judge(later, (ILayeredStore)opened.Store!, isIn);
            Assert.Null(later.Run(((Store)opened.Store!).AuditAsync()));
        }

        Assert.True(moved > 10 && seen > 10, $"{moved} with bad blocks, {seen} with writes in the snapshot");

        static bool[] Judge(SimLoop loop, ILayeredStore store, bool[]? wanted)
        {
            var isIn = new bool[Writes];
            var data = new byte[Units.BlockBytes];
            for (int i = 0; i < Writes; i++)
            {
                ulong offset = (ulong)(i * 50) << Units.BlockShift;
                Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(1)!.ReadAsync(offset, data)).Status);
                Assert.Equal((byte)(i + 1), data[0]);
                Assert.Equal(IoStatus.Ok, loop.Run(store.OpenSnapshot(1, Id(1))!.ReadAsync(offset, data)).Status);
                Assert.True(data[0] == 0 || data[0] == i + 1, $"block {i} shows {data[0]}");
                isIn[i] = data[0] != 0;
            }

            if (wanted is not null) Assert.Equal(wanted, isIn);
            return isIn;
        }
    }

    /// <summary>First writes after a cut that come together put more into the log than a page holds: what a turn fills goes to the medium by
    /// few writes, none across the ring's end, and all of it is there when the store is opened anew.</summary>
    [Fact]
    public void Log_pages_of_one_turn_share_a_write()
    {
        const int Extents = 20;
        Open(BrokenRules.None);
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CreateVolumeAsync(HeadOf(1) with { SizeBytes = Extents * Units.MiB })));
        int shared = 0;
        for (int round = 1; round <= 15; round++)
        {
            _loop.Run(_store.FlushAsync());
            int before = _disk.Pending.Count;
            IBlockDevice device = _store.OpenVolume(1)!;
            byte[][] contents = [.. Enumerable.Range(0, Extents).Select(i => { var data = new byte[Units.BlockBytes]; data[0] = (byte)round; data[1] = (byte)i; return data; })];
            Task<IoStatus>[] writes = [.. contents.Select((data, i) => device.WriteAsync((ulong)i << Units.ExtentShift, data, WriteFlags.None).AsTask())];
            Assert.True(_loop.RunUntil(() => writes.All(w => w.IsCompleted)));
            Assert.All(writes, w => Assert.Equal(IoStatus.Ok, w.Result));
            foreach (PendingWrite write in _disk.Pending.Skip(before).Where(w => w.Pages.Count > 1 && w.Pages[0].AsSpan(4, 4).SequenceEqual("RDPG"u8)))
            {
                shared = Math.Max(shared, write.Pages.Count);
                Assert.All(write.Pages, page => Assert.True(page.AsSpan(4, 4).SequenceEqual("RDPG"u8), "a write that leaves the ring"));
            }

            Cut(1, round);
            if (round > 1) Assert.Equal(IoStatus.Ok, Delete(1, round - 1)); // there are not slots for all
        }

        Assert.InRange(shared, 8, 16);
        _loop.Run(_store.FlushAsync());
        _disk.CutPower();
        _loop = new SimLoop(2);
        _disk.Attach(_loop);
        Open(BrokenRules.None);
        for (int i = 0; i < Extents; i++) Assert.Equal(15UL + ((ulong)i << 8), Read(1, (ulong)i * Units.BlocksPerExtent));
    }

    private static VolumeHead HeadOf(uint volume) => new(volume, new Guid((int)volume, 1, 1, new byte[8]), $"v{volume}", 2 * Units.MiB, 1);

    private static Guid Id(int n) => new(n, 2, 2, new byte[8]);

    private void Open(BrokenRules broken) =>
        _store = (ILayeredStore)_loop.Run(Store.OpenAsync(_loop, _disk, null, Options with { BrokenRules = broken })).Store!;

    private void Create(uint volume) => Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CreateVolumeAsync(HeadOf(volume))));

    private void Cut(uint volume, int n) =>
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.CreateSnapshotsAsync([new SnapshotRequest(volume, Id(n), $"s{n}", 1)])));

    /// <summary>Deletes a snapshot and lets the background work for a second.</summary>
    private IoStatus Delete(uint volume, int n)
    {
        IoStatus status = _loop.Run(_store!.DeleteSnapshotAsync(volume, Id(n)));
        ulong until = _loop.NowNanos + 1_000_000_000;
        Task<bool> waiting = WaitAsync(until).AsTask();
        Assert.True(_loop.RunUntil(() => waiting.IsCompleted));
        return status;
    }

    private async ValueTask<bool> WaitAsync(ulong until)
    {
        while (_loop.NowNanos < until) await _loop.DelayAsync(100_000_000);
        return true;
    }

    private void Write(uint volume, ulong block, ulong id, int blocks = 1)
    {
        var data = new byte[blocks * Units.BlockBytes];
        for (int i = 0; i < blocks; i++) BitConverter.TryWriteBytes(data.AsSpan(i * Units.BlockBytes), id);
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.OpenVolume(volume)!.WriteAsync(block << Units.BlockShift, data, WriteFlags.None)));
    }

    private ulong Read(uint volume, ulong block)
    {
        var data = new byte[Units.BlockBytes];
        Assert.Equal(IoStatus.Ok, _loop.Run(_store!.OpenVolume(volume)!.ReadAsync(block << Units.BlockShift, data)).Status);
        return BitConverter.ToUInt64(data);
    }
}
