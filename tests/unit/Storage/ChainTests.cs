using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>P3: a request of at most 1 MiB is there whole or not at all after a power cut, wherever it lies.</summary>
public class ChainTests
{
    private const int Mib = 1 << 20;
    private const int VolumeBytes = 3 * Mib;
    private static readonly StoreOptions Small = new() { RingBytes = 256 << 10 };
    private static readonly VolumeHead Head = new(7, new Guid("00112233-4455-6677-8899-aabbccddeeff"), "demo", VolumeBytes, 1);

    public enum Change
    {
        Write,
        Trim,
        WriteZeroes,
        WriteZeroesNoHole,
    }

    /// <summary>Power cuts before every event, with every subset of what is pending (drawn ones when there are many).</summary>
    [Theory]
    [InlineData(Change.Write, Mib - 4096, 8192)]
    [InlineData(Change.Write, 2 * Mib - 512, 1024)]
    [InlineData(Change.Write, Mib / 2 + 512, Mib)]
    [InlineData(Change.Write, 5 * 512, 8 * 4096)]
    [InlineData(Change.Trim, Mib - 3 * 4096, 5 * 4096)]
    [InlineData(Change.WriteZeroes, Mib - 4096 - 512, 3 * 4096)]
    [InlineData(Change.WriteZeroes, Mib - 512, 1024)]
    [InlineData(Change.WriteZeroes, 4096 + 512, 3 * 4096)]
    [InlineData(Change.WriteZeroesNoHole, Mib - 4096 - 512, 3 * 4096)]
    public void A_request_is_whole_or_not_at_all_after_a_power_cut(Change change, int offset, int length)
    {
        var random = new SeededRandom((ulong)(offset + length));
        (SimLoop loop, SimDisk disk, IStore store, byte[] old) = Filled(11);
        byte[] data = Pattern(2, length);
        byte[] changed = Changed(old, change, offset, length, data);
        int whole = 0, none = 0;
        ulong seen = disk.ChangeCount;
        loop.StopBeforeEvent = _ =>
        {
            if (disk.ChangeCount == seen) return false;
            seen = disk.ChangeCount;
            int pending = disk.Pending.Count;
            for (int draw = 0; draw < (pending <= 5 ? 1 << pending : 32); draw++)
            {
                ulong kept = pending <= 5 ? (ulong)draw : random.NextUInt64() | random.NextUInt64();
                var after = new SimLoop(random.NextUInt64());
                SimDisk fork = disk.ForkAfterPowerCut(after, 1, (write, _) => (kept >> (write % 64) & 1) != 0 ? byte.MaxValue : (byte)0);
                byte[] found = ReadAll(after, Opened(after, fork));
                if (found.AsSpan().SequenceEqual(changed)) whole++;
                else if (found.AsSpan().SequenceEqual(old)) none++;
                else Assert.Fail($"after {kept:x} of {pending} writes a part of the request is there");
            }

            return false;
        };
        IBlockDevice device = store.OpenVolume(7)!;
        Assert.Equal(IoStatus.Ok, loop.Run(Begin(device, change, offset, length, data)));
        Assert.Equal(IoStatus.Ok, loop.Run(store.FlushAsync()));
        Assert.True(whole > 0 && none > 0, $"{whole} whole, {none} not at all");
    }

    /// <summary>A recovery that is cut short may have written one home of two; rot in between makes no half of it.</summary>
    [Fact]
    public void Rot_between_two_recoveries_does_not_split_a_request()
    {
        var random = new SeededRandom(4);
        (SimLoop loop, SimDisk disk, IStore store, byte[] old) = Filled(5);
        byte[] data = Pattern(3, 8192);
        byte[] changed = Changed(old, Change.Write, Mib - 4096, 8192, data);
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.WriteAsync(Mib - 4096, data, WriteFlags.None)));
        int refused = 0, judged = 0;
        for (int run = 0; run < 400; run++)
        {
            var first = new SimLoop(random.NextUInt64());
            SimDisk fork = disk.ForkAfterPowerCut(first, random.NextUInt64(), (_, _) => byte.MaxValue);
            ulong stopAt = (ulong)random.NextBelow(120);
            first.StopBeforeEvent = n => n >= stopAt;
            Task<StoreOpenResult> opening = Store.OpenAsync(first, fork, null, Small).AsTask();
            first.RunUntil(() => opening.IsCompleted);
            fork.CutPower();
            // One of the two blocks rots, wherever it lies.
            for (ulong page = 0; page < fork.SizeBytes / 4096; page++)
            {
                if (fork.PageNow(page).AsSpan().SequenceEqual(data.AsSpan(run % 2 * 4096, 4096))) fork.Rot(page, 77);
            }

            var second = new SimLoop(random.NextUInt64());
            fork.Attach(second);
            StoreOpenResult result = second.Run(Store.OpenAsync(second, fork, null, Small));
            if (result.Store is null)
            {
                refused++;
                continue;
            }

            judged++;
            IBlockDevice device = result.Store.OpenVolume(7)!;
            ReadOnlySpan<byte> low = ReadBlock(second, device, Mib - 4096), high = ReadBlock(second, device, Mib);
            bool isNew = low.IsEmpty || high.IsEmpty || low.SequenceEqual(data.AsSpan(0, 4096)) || high.SequenceEqual(data.AsSpan(4096));
            byte[] expected = isNew ? changed : old;
            Assert.True(low.IsEmpty || low.SequenceEqual(expected.AsSpan(Mib - 4096, 4096)), $"stopped at {stopAt}");
            Assert.True(high.IsEmpty || high.SequenceEqual(expected.AsSpan(Mib, 4096)), $"stopped at {stopAt}");
        }

        Assert.True(judged > 300, $"{refused} refused");
    }

    /// <summary>Overlapping requests across borders neither wait for each other for ever nor mix within a request's block.</summary>
    [Fact]
    public void Overlapping_requests_across_borders_all_end()
    {
        (SimLoop loop, _, IStore store, _) = Filled(9);
        IBlockDevice device = store.OpenVolume(7)!;
        var random = new SeededRandom(8);
        var model = new List<(int Offset, byte[] Data)>();
        var running = new List<Task<IoStatus>>();
        for (int i = 0; i < 64; i++)
        {
            int offset = (Mib * (1 + (i & 1)) - 65536) + random.NextBelow(32768);
            byte[] data = Pattern((ulong)i + 100, 40_000 + random.NextBelow(60_000));
            model.Add((offset, data));
            running.Add(device.WriteAsync((ulong)offset, data, WriteFlags.None).AsTask());
        }

        Assert.True(loop.RunUntil(() => running.TrueForAll(t => t.IsCompleted)));
        Assert.All(running, t => Assert.Equal(IoStatus.Ok, t.Result));
        byte[] found = ReadAll(loop, store);
        // Each byte is of one of the requests over it; blocks that one request covers whole are of one request.
        for (int block = 0; block < found.Length; block += 4096)
        {
            var over = model.Where(w => w.Offset <= block && w.Offset + w.Data.Length >= block + 4096).ToList();
            if (over.Count == 0 || model.Exists(w => !over.Contains(w) && w.Offset < block + 4096 && w.Offset + w.Data.Length > block)) continue;
            Assert.Contains(over, w => found.AsSpan(block, 4096).SequenceEqual(w.Data.AsSpan(block - w.Offset, 4096)));
        }
    }

    private static (SimLoop Loop, SimDisk Disk, IStore Store, byte[] Content) Filled(ulong seed)
    {
        var loop = new SimLoop(seed);
        var disk = new SimDisk(loop, 16 << 20, seed + 1);
        Assert.Null(loop.Run(Store.FormatAsync(loop, disk, Small)));
        IStore store = Opened(loop, disk);
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(Head)));
        byte[] content = Pattern(1, VolumeBytes);
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.WriteAsync(0, content, WriteFlags.Fua)));
        return (loop, disk, store, content);
    }

    private static ValueTask<IoStatus> Begin(IBlockDevice device, Change change, int offset, int length, byte[] data) => change switch
    {
        Change.Write => device.WriteAsync((ulong)offset, data, WriteFlags.None),
        Change.Trim => device.TrimAsync((ulong)offset, (ulong)length, WriteFlags.None),
        Change.WriteZeroes => device.WriteZeroesAsync((ulong)offset, (ulong)length, WriteFlags.None),
        _ => device.WriteZeroesAsync((ulong)offset, (ulong)length, WriteFlags.NoHole),
    };

    private static byte[] Changed(byte[] old, Change change, int offset, int length, byte[] data)
    {
        byte[] changed = [.. old];
        if (change == Change.Write) data.CopyTo(changed, offset);
        else changed.AsSpan(offset, length).Clear();
        return changed;
    }

    private static IStore Opened(SimLoop loop, SimDisk disk)
    {
        StoreOpenResult result = loop.Run(Store.OpenAsync(loop, disk, null, Small));
        Assert.Null(result.Refusal);
        return result.Store!;
    }

    private static byte[] ReadAll(SimLoop loop, IStore store)
    {
        var content = new byte[VolumeBytes];
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.ReadAsync(0, content)).Status);
        return content;
    }

    /// <summary>The block, or nothing when it cannot be read right.</summary>
    private static byte[] ReadBlock(SimLoop loop, IBlockDevice device, int offset)
    {
        var content = new byte[4096];
        IoStatus status = loop.Run(device.ReadAsync((ulong)offset, content)).Status;
        Assert.True(status is IoStatus.Ok or IoStatus.Corrupt);
        return status == IoStatus.Ok ? content : [];
    }

    private static byte[] Pattern(ulong seed, int length)
    {
        var data = new byte[length];
        new SeededRandom(seed).Fill(data);
        return data;
    }
}
