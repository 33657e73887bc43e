using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>What a store does when its medium fails, its log is damaged or its ring is full.</summary>
public class StoreFailureTests
{
    private const int VolumeBytes = 3 << 20;
    private static readonly StoreOptions Small = new() { RingBytes = 128 << 10 };

    [Fact]
    public void A_failed_flush_stops_the_store_for_changes_but_not_for_reads()
    {
        var loop = new SimLoop(1);
        var medium = new MemoryFile(loop, 32 << 20);
        var file = new NthFile(medium);
        IStore store = Fresh(loop, file, Small);
        IBlockDevice device = store.OpenVolume(7)!;
        byte[] data = Pattern(1, 8192);
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, data, WriteFlags.None)));
        file.FailFlushes = true;
        Assert.Equal(IoStatus.Unavailable, loop.Run(device.FlushAsync()));
        file.FailFlushes = false;
        int requests = file.Count;
        Assert.Equal(StoreState.Failed, store.State);
        Assert.Contains("flush", store.GetStats().FailReason, StringComparison.Ordinal);
        Assert.Equal(IoStatus.Unavailable, loop.Run(device.FlushAsync())); // never tried again
        Assert.Equal(IoStatus.Unavailable, loop.Run(device.WriteAsync(0, data, WriteFlags.None)));
        Assert.Equal(IoStatus.Unavailable, loop.Run(device.TrimAsync(0, 8192, WriteFlags.None)));
        Assert.Equal(IoStatus.Unavailable, loop.Run(device.WriteZeroesAsync(0, 8192, WriteFlags.None)));
        Assert.Equal(IoStatus.Unavailable, loop.Run(store.CreateVolumeAsync(HeadOf(8))));
        Assert.Equal(requests, file.Count);
        Assert.Equal(data, Read(loop, device, 0, 8192));
        file.Cut();
        store = Open(loop, new NthFile(medium), Small);
        Assert.Equal(data, Read(loop, store.OpenVolume(7)!, 0, 8192));
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.WriteAsync(0, data, WriteFlags.Fua)));
    }

    /// <summary>One workload again and again, each time the next request to the medium fails (trust C.5 e).</summary>
    [Theory]
    [InlineData(Durability.Flush)]
    [InlineData(Durability.Ack)]
    public void Whichever_request_to_the_medium_fails_nothing_acknowledged_is_lost_or_torn(Durability durability)
    {
        bool reached = true;
        int refusals = 0, failures = 0, n = 0;
        while (reached)
        {
            n++;
            var loop = new SimLoop((ulong)n);
            var medium = new MemoryFile(loop, 32 << 20);
            var first = new NthFile(medium);
            IStore store = Fresh(loop, first, Small);
            var model = new byte[VolumeBytes];
            Assert.Null(Work(loop, store.OpenVolume(7)!, model, 1));
            first.Cut(); // killed with a log to replay

            var file = new NthFile(medium) { FailAt = n };
            StoreOptions options = Small with { Durability = durability };
            StoreOpenResult result = loop.Run(Store.OpenAsync(loop, file, null, options));
            byte[]? torn = null;
            if (result.Store is null)
            {
                Assert.False(string.IsNullOrWhiteSpace(result.Refusal));
                refusals++;
            }
            else
            {
                torn = Work(loop, result.Store.OpenVolume(7)!, model, 2);
                IoStatus closed = loop.Run(result.Store.CloseAsync());
                Assert.True(closed == IoStatus.Ok || result.Store.State == StoreState.Failed);
                if (result.Store.State == StoreState.Failed) failures++;
            }

            reached = file.Count >= n;
            file.Cut();
            byte[] found = Read(loop, Open(loop, new NthFile(medium), options).OpenVolume(7)!, 0, VolumeBytes);
            Assert.True(
                found.AsSpan().SequenceEqual(model) || (torn is not null && found.AsSpan().SequenceEqual(torn)), $"request {n} failed");
        }

        Assert.True(n > 100 && refusals > 10 && failures > 10, $"{n} requests, {refusals} refusals, {failures} failures");
    }

    [Fact]
    public void A_damaged_last_page_of_the_log_is_a_torn_tail()
    {
        var loop = new SimLoop(3);
        var medium = new MemoryFile(loop, 32 << 20);
        var file = new NthFile(medium);
        IBlockDevice device = Fresh(loop, file, Small).OpenVolume(7)!;
        byte[] data = Pattern(1, 4096);
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, data, WriteFlags.Fua)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, Pattern(2, 4096), WriteFlags.None)));
        file.Cut();
        Damage(loop, medium, fromEnd: 0);
        Assert.Equal(data, Read(loop, Open(loop, medium, Small).OpenVolume(7)!, 0, 4096));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(5)]
    public void A_damaged_page_in_the_durable_part_of_the_log_is_refused(int fromEnd)
    {
        var loop = new SimLoop(4);
        var medium = new MemoryFile(loop, 32 << 20);
        var file = new NthFile(medium);
        IBlockDevice device = Fresh(loop, file, Small).OpenVolume(7)!;
        for (ulong i = 0; i < 8; i++) Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(i * 4096, Pattern(i, 4096), WriteFlags.Fua)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, Pattern(9, 4096), WriteFlags.None)));
        file.Cut();
        Damage(loop, medium, fromEnd);
        StoreOpenResult result = loop.Run(Store.OpenAsync(loop, medium, null, Small));
        Assert.Null(result.Store);
        Assert.Contains("the log is damaged", result.Refusal, StringComparison.Ordinal);
        Assert.Contains("accept data loss", result.Refusal, StringComparison.Ordinal);
        // Refusing wrote nothing: again the same, and with consent it opens.
        Assert.Equal(result.Refusal, loop.Run(Store.OpenAsync(loop, medium, null, Small)).Refusal);
        IStore store = Open(loop, medium, Small with { AcceptDataLoss = true });
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.WriteAsync(0, Pattern(1, 4096), WriteFlags.Fua)));
    }

    /// <summary>The smallest ring, cut blocks, many at once, little space: it throttles, and never stands still.</summary>
    [Theory]
    [InlineData(1, 32)]
    [InlineData(2, 32)]
    [InlineData(3, 7)]
    public void A_full_ring_throttles_and_does_not_stand_still(ulong seed, int mediumMib)
    {
        var loop = new SimLoop(seed);
        var file = new NthFile(new MemoryFile(loop, (ulong)mediumMib << 20));
        IStore store = Fresh(loop, file, Small);
        IBlockDevice device = store.OpenVolume(7)!;
        var model = new byte[VolumeBytes];
        var random = new SeededRandom(seed);
        var running = new List<Task<IoStatus>>();
        const int lane = VolumeBytes / 64;
        async Task<IoStatus> Client(int client)
        {
            for (int i = 0; i < 40; i++)
            {
                int offset = client * lane + random.NextBelow(lane / 2), length = 1 + random.NextBelow(lane / 2);
                byte[] data = Pattern(random.NextUInt64(), length);
                data.CopyTo(model, offset);
                IoStatus status = await device.WriteAsync((ulong)offset, data, WriteFlags.None);
                if (status != IoStatus.Ok) return status;
            }

            return IoStatus.Ok;
        }

        for (int i = 0; i < 64; i++) running.Add(Client(i));
        Assert.True(loop.RunUntil(() => running.TrueForAll(t => t.IsCompleted), 20_000_000));
        Assert.All(running, t => Assert.Equal(IoStatus.Ok, t.Result));
        Assert.Equal(model, Read(loop, device, 0, VolumeBytes));
        Assert.True(store.GetStats().Checkpoints > 3);
        file.Cut();
    }

    [Fact]
    public void A_separate_log_file_takes_the_ring_and_nothing_else()
    {
        var loop = new SimLoop(5);
        var medium = new MemoryFile(loop, 32 << 20);
        Assert.Null(loop.Run(Store.FormatAsync(loop, medium, Small)));
        NthFile file = new(medium), log = new(medium);
        IStore store = loop.Run(Store.OpenAsync(loop, file, log, Small)).Store!;
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(HeadOf(7))));
        var model = new byte[VolumeBytes];
        Assert.Null(Work(loop, store.OpenVolume(7)!, model, 1));
        Assert.Null(StoreGeometry.Plan(32 << 20, Small.RingBytes, Small.SlotFraction, out StoreGeometry geometry));
        Assert.NotEmpty(log.Writes);
        Assert.All(log.Writes, w => Assert.True(w.Start >= geometry.RingOffset && w.End <= geometry.SlotsOffset));
        Assert.All(file.Writes, w => Assert.True(w.End <= geometry.RingOffset || w.Start >= geometry.SlotsOffset));
        log.FailFlushes = true;
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.WriteAsync(0, new byte[4096], WriteFlags.None)));
        model.AsSpan(0, 4096).Clear();
        Assert.Equal(IoStatus.Unavailable, loop.Run(store.FlushAsync())); // both files are flushed
        file.Cut();
        log.Cut();
        store = loop.Run(Store.OpenAsync(loop, new NthFile(medium), new NthFile(medium), Small)).Store!;
        Assert.Equal(model, Read(loop, store.OpenVolume(7)!, 0, VolumeBytes));
    }

    [Fact]
    public void Zeroes_leave_blocks_or_holes_as_asked_and_prefetch_verifies()
    {
        var loop = new SimLoop(6);
        var medium = new MemoryFile(loop, 32 << 20);
        IStore store = Fresh(loop, new NthFile(medium), Small);
        IBlockDevice device = store.OpenVolume(7)!;
        Assert.Equal(IoStatus.NotSupported, loop.Run(device.WriteZeroesAsync(0, 4096, WriteFlags.NoHole | WriteFlags.FastOnly)));
        Assert.Equal(0UL, store.UsedBytes(7));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(512, 8192, WriteFlags.NoHole)));
        Assert.Equal(3 * 4096UL, store.UsedBytes(7));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, Pattern(1, 16384), WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(512, 12288, WriteFlags.FastOnly)));
        Assert.Equal(2 * 4096UL, store.UsedBytes(7));
        byte[] expected = Pattern(1, 16384);
        expected.AsSpan(512, 12288).Clear();
        Assert.Equal(expected, Read(loop, device, 0, 16384));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(2 << 20, 4096 + 512, WriteFlags.None)));
        Assert.Equal(2 * 4096UL, store.UsedBytes(7)); // a hole stays one at its edges too
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(0, VolumeBytes, WriteFlags.NoHole)));
        Assert.Equal((ulong)VolumeBytes, store.UsedBytes(7));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(0, VolumeBytes, WriteFlags.None)));
        Assert.Equal(0UL, store.UsedBytes(7));

        Assert.Equal(IoStatus.Ok, loop.Run(device.PrefetchAsync(100, VolumeBytes - 100)));
        Assert.Equal(IoStatus.OutOfRange, loop.Run(device.PrefetchAsync(1, VolumeBytes)));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_read_that_races_a_shrink_or_a_deletion_is_right_or_refused(bool deletes)
    {
        int ok = 0, refused = 0;
        for (ulong seed = 1; seed <= 40; seed++)
        {
            var loop = new SimLoop(seed);
            IStore store = Fresh(loop, new NthFile(new MemoryFile(loop, 32 << 20)), Small);
            IBlockDevice device = store.OpenVolume(7)!;
            byte[] data = Pattern(seed, VolumeBytes);
            // In pieces that leave every extent in several runs.
            for (int at = 0; at < VolumeBytes; at += 96 * 1024)
                loop.Run(device.WriteAsync((ulong)at, data.AsMemory(at, Math.Min(96 * 1024, VolumeBytes - at)), WriteFlags.None));
            for (int at = 8192; at < VolumeBytes; at += 200 * 1024)
                loop.Run(device.WriteAsync((ulong)at, data.AsMemory(at, 4096), WriteFlags.None));
            loop.Run(device.FlushAsync());
            int end = deletes ? 0 : (1 << 20) + 512;
            var random = new SeededRandom(seed);
            var reads = new List<(int Offset, byte[] Target, Task<ReadResult> Task)>();
            Task<IoStatus>? change = null;
            for (int i = 0; i < 60; i++)
            {
                if (i == 20)
                {
                    change = deletes ? store.DeleteVolumeAsync(7).AsTask()
                        : store.UpdateVolumeAsync(HeadOf(7) with { SizeBytes = (ulong)end }).AsTask();
                }

                int length = 512 * (1 + random.NextBelow(2000)), offset = 512 * random.NextBelow((VolumeBytes - length) / 512);
                var target = new byte[length];
                reads.Add((offset, target, device.ReadAsync((ulong)offset, target).AsTask()));
                loop.RunUntil(() => false, random.NextBelow(8UL));
            }

            // Others take what was given back.
            loop.RunUntil(() => change!.IsCompleted);
            Assert.Equal(IoStatus.Ok, change!.Result);
            Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(HeadOf(8))));
            loop.Run(store.OpenVolume(8)!.WriteAsync(0, Pattern(99, VolumeBytes), WriteFlags.Fua));
            Assert.True(loop.RunUntil(() => reads.TrueForAll(r => r.Task.IsCompleted)));
            foreach ((int offset, byte[] target, Task<ReadResult> task) in reads)
            {
                if (task.Result.Status != IoStatus.Ok)
                {
                    Assert.Contains(task.Result.Status, new[] { IoStatus.OutOfRange, IoStatus.Unavailable });
                    refused++;
                    continue;
                }

                ok++;
                for (int i = 0; i < target.Length; i++)
                {
                    if (target[i] != data[offset + i] && !(target[i] == 0 && offset + i >= end)) Assert.Fail($"byte {offset + i} is wrong");
                }
            }
        }

        Assert.True(ok > 0 && refused > 0, $"{ok} served, {refused} refused");
    }

    /// <summary>Changes of every kind, one after another; when one fails the content it would have left, else null.</summary>
    private static byte[]? Work(SimLoop loop, IBlockDevice device, byte[] model, ulong seed)
    {
        for (int step = 0; step < 10; step++)
        {
            byte[] next = [.. model];
            IoStatus status;
            switch (step)
            {
                case 0 or 3 or 7:
                    int offset = (1 << 20) - 3000 * (step + 1), length = step == 3 ? 300_000 : 9_000;
                    byte[] data = Pattern(seed * 100 + (ulong)step, length);
                    data.CopyTo(next, offset);
                    status = loop.Run(device.WriteAsync((ulong)offset, data, step == 7 ? WriteFlags.Fua : WriteFlags.None));
                    break;
                case 1 or 6:
                    next.AsSpan((1 << 20) - 8192, 5 * 4096).Clear();
                    status = loop.Run(device.TrimAsync((1 << 20) - 8192, 5 * 4096, WriteFlags.None));
                    break;
                case 4:
                    next.AsSpan((1 << 20) - 5000, 12_000).Clear();
                    status = loop.Run(device.WriteZeroesAsync((1 << 20) - 5000, 12_000, WriteFlags.None));
                    break;
                case 5:
                    next.AsSpan(2 << 20, 70_000).Clear();
                    status = loop.Run(device.WriteZeroesAsync(2 << 20, 70_000, WriteFlags.NoHole));
                    break;
                case 8:
                    status = loop.Run(device.FlushAsync());
                    break;
                default:
                    var target = new byte[VolumeBytes];
                    status = loop.Run(device.ReadAsync(0, target)).Status;
                    if (status == IoStatus.Ok) Assert.True(target.AsSpan().SequenceEqual(model));
                    break;
            }

            if (status != IoStatus.Ok) return next;
            next.CopyTo(model, 0);
        }

        return null;
    }

    /// <summary>Changes a bit of a log page, counted from the newest one.</summary>
    private static void Damage(SimLoop loop, MemoryFile medium, int fromEnd)
    {
        Assert.Null(StoreGeometry.Plan(medium.SizeBytes, Small.RingBytes, Small.SlotFraction, out StoreGeometry geometry));
        var pages = new SortedDictionary<ulong, ulong>();
        var page = new byte[Units.BlockBytes];
        for (ulong at = geometry.RingOffset; at < geometry.SlotsOffset; at += Units.BlockBytes)
        {
            loop.Run(medium.ReadAsync(at, page));
            if (RedoPageHeader.TryRead(page, out RedoPageHeader header) is null) pages.Add(header.PageNumber, at);
        }

        ulong offset = pages.Values.ElementAt(pages.Count - 1 - fromEnd);
        loop.Run(medium.ReadAsync(offset, page));
        page[100] ^= 1;
        loop.Run(medium.WriteAsync(offset, page));
    }

    private static VolumeHead HeadOf(uint id) => new(id, StoreWorld.VolumeUuid, $"v{id}", VolumeBytes, 1);

    private static byte[] Pattern(ulong seed, int length) => StoreWorld.Pattern(seed, length);

    private static IStore Fresh(SimLoop loop, IFile file, StoreOptions options)
    {
        Assert.Null(loop.Run(Store.FormatAsync(loop, file, options)));
        IStore store = Open(loop, file, options);
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(HeadOf(7))));
        return store;
    }

    private static IStore Open(SimLoop loop, IFile file, StoreOptions options)
    {
        StoreOpenResult result = loop.Run(Store.OpenAsync(loop, file, null, options));
        Assert.Null(result.Refusal);
        return result.Store!;
    }

    private static byte[] Read(SimLoop loop, IBlockDevice device, ulong offset, int length)
    {
        var data = new byte[length];
        Assert.Equal(IoStatus.Ok, loop.Run(device.ReadAsync(offset, data)).Status);
        return data;
    }
}
