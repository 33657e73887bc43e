using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

public class StoreTests
{
    private const ulong VolumeBytes = 4 << 20;
    private static readonly StoreOptions Small = new() { RingBytes = 256 << 10, SlotFraction = 0.02 };
    private static readonly VolumeHead Head = new(7, new Guid("00112233-4455-6677-8899-aabbccddeeff"), "demo", VolumeBytes, 1);

    [Fact]
    public void What_was_written_is_read_after_a_clean_close()
    {
        var loop = new SimLoop(1);
        var file = new CutFile(new MemoryFile(loop, 64 << 20));
        IStore store = Fresh(loop, file);
        byte[] data = Pattern(9, 8192);
        Assert.Equal(IoStatus.Ok, loop.Run(store.OpenVolume(7)!.WriteAsync(4096, data, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(store.CloseAsync()));
        store = Open(loop, file, Small);
        Assert.Equal(data, Read(loop, store.OpenVolume(7)!, 4096, 8192));
        Assert.Equal(8192UL, store.UsedBytes(7));
    }

    [Theory]
    [InlineData(1, Durability.Flush)]
    [InlineData(2, Durability.Ack)]
    [InlineData(3, Durability.Flush)]
    [InlineData(4, Durability.Flush)]
    public void Random_changes_equal_a_byte_array_through_crashes_and_reopens(ulong seed, Durability durability)
    {
        var loop = new SimLoop(seed);
        var file = new CutFile(new MemoryFile(loop, 64 << 20));
        IStore store = Fresh(loop, file, durability);
        StoreOptions options = Small with { Durability = durability };
        IBlockDevice device = store.OpenVolume(7)!;
        var model = new byte[VolumeBytes];
        var random = new SeededRandom(seed + 100);
        for (int step = 0; step < 1500; step++)
        {
            int offset = random.NextBelow((int)VolumeBytes);
            int length = Math.Min(1 + random.NextBelow(random.NextBelow(8) == 0 ? 600_000 : 20_000), (int)VolumeBytes - offset);
            if (random.NextBelow(2) == 0)
            {
                offset &= ~4095;
                length = Math.Min((length + 4095) & ~4095, (int)VolumeBytes - offset);
            }

            Step(loop, device, model, random, offset, length);
            if (step % 400 == 399)
            {
                // A crash: the store object is dropped with whatever is under way.
                if (random.NextBelow(2) == 0) Assert.Equal(IoStatus.Ok, loop.Run(store.CloseAsync()));
                file.Cut();
                file = new CutFile(file.Medium);
                store = Open(loop, file, options);
                device = store.OpenVolume(7)!;
            }
        }

        Assert.Equal(model, Read(loop, device, 0, (int)VolumeBytes));
        Assert.True(store.GetStats().Checkpoints > 0);
        ScrubReport scrub = loop.Run(store.ScrubAsync(null, 0, null, CancellationToken.None));
        Assert.True(scrub.Finished);
        Assert.Empty(scrub.Bad);
        loop.RunToQuiescence();
        Assert.Equal(0UL, store.GetStats().BlocksQuarantined);
    }

    [Fact]
    public void A_full_store_answers_no_space_and_takes_writes_again_after_a_trim()
    {
        var loop = new SimLoop(5);
        var file = new CutFile(new MemoryFile(loop, 8 << 20));
        IStore store = Fresh(loop, file, size: 64 << 20);
        IBlockDevice device = store.OpenVolume(7)!;
        byte[] data = Pattern(1, 1 << 20);
        IoStatus status = IoStatus.Ok;
        ulong at = 0;
        for (; status == IoStatus.Ok; at += 1 << 20) status = loop.Run(device.WriteAsync(at, data, WriteFlags.None));
        Assert.Equal(IoStatus.NoSpace, status);
        Assert.Equal(IoStatus.Ok, loop.Run(device.TrimAsync(0, 1 << 20, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(at, data, WriteFlags.None)));
        Assert.Equal(data, Read(loop, device, at, 1 << 20));
    }

    [Fact]
    public void Holes_get_blocks_of_zeros_and_what_is_written_meanwhile_stays()
    {
        for (ulong seed = 1; seed <= 40; seed++)
        {
            var loop = new SimLoop(seed);
            var file = new CutFile(new MemoryFile(loop, 64 << 20));
            IStore store = Fresh(loop, file);
            IBlockDevice device = store.OpenVolume(7)!;
            var model = new byte[VolumeBytes];
            byte[] before = Pattern(seed, 300_000);
            Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(1_000_000, before, WriteFlags.None)));
            before.CopyTo(model, 1_000_000);
            Task<IoStatus> filling = device.WriteZeroesAsync(0, VolumeBytes, WriteFlags.HolesOnly).AsTask();
            var random = new SeededRandom(seed);
            var writes = new List<Task<IoStatus>>();
            for (int i = 0; i < 24; i++)
            {
                // Each in a place of its own, most of them not whole blocks; in between the filling goes on.
                int offset = i * (int)(VolumeBytes / 24) + random.NextBelow(5000);
                byte[] data = Pattern(seed * 100 + (ulong)i, 1 + random.NextBelow(20_000));
                data.CopyTo(model, offset);
                writes.Add(device.WriteAsync((ulong)offset, data, WriteFlags.None).AsTask());
                int turns = random.NextBelow(6);
                loop.RunUntil(() => turns-- == 0);
            }

            Assert.True(loop.RunUntil(() => filling.IsCompleted && writes.TrueForAll(w => w.IsCompleted)));
            Assert.Equal(IoStatus.Ok, filling.Result);
            Assert.All(writes, w => Assert.Equal(IoStatus.Ok, w.Result));
            Assert.Equal(VolumeBytes, store.UsedBytes(7));
            Assert.Equal(model, Read(loop, device, 0, (int)VolumeBytes));
            file.Cut();
            store = Open(loop, new CutFile(file.Medium), Small);
            Assert.Equal(VolumeBytes, store.UsedBytes(7));
            Assert.Equal(model, Read(loop, store.OpenVolume(7)!, 0, (int)VolumeBytes));
        }
    }

    [Fact]
    public void A_thick_device_gives_nothing_back()
    {
        var loop = new SimLoop(3);
        IStore store = Fresh(loop, new CutFile(new MemoryFile(loop, 64 << 20)));
        var device = new ThickDevice(store.OpenVolume(7)!);
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(0, VolumeBytes, WriteFlags.HolesOnly)));
        byte[] data = Pattern(4, 64 << 10);
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync(0, data, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.TrimAsync(0, VolumeBytes, WriteFlags.None)));
        Assert.Equal(data, Read(loop, device, 0, data.Length));
        Assert.Equal(IoStatus.OutOfRange, loop.Run(device.TrimAsync(4096, VolumeBytes, WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync(0, 2 << 20, WriteFlags.None)));
        Assert.Equal(IoStatus.NotSupported, loop.Run(device.WriteZeroesAsync(0, 2 << 20, WriteFlags.FastOnly)));
        Assert.Equal(new byte[data.Length], Read(loop, device, 0, data.Length));
        Assert.Equal(VolumeBytes, store.UsedBytes(7));
    }

    [Fact]
    public void Filling_a_store_that_is_too_small_says_so()
    {
        var loop = new SimLoop(5);
        IStore store = Fresh(loop, new CutFile(new MemoryFile(loop, 8 << 20)), size: 64 << 20);
        Assert.Equal(IoStatus.NoSpace, loop.Run(store.OpenVolume(7)!.WriteZeroesAsync(0, 64 << 20, WriteFlags.HolesOnly)));
    }

    [Fact]
    public void A_deleted_volume_gives_its_blocks_back_and_its_id_may_be_used_again()
    {
        var loop = new SimLoop(6);
        var file = new CutFile(new MemoryFile(loop, 64 << 20));
        IStore store = Fresh(loop, file);
        IBlockDevice device = store.OpenVolume(7)!;
        loop.Run(device.WriteAsync(0, Pattern(1, 3 << 20), WriteFlags.None));
        Assert.Equal(IoStatus.Ok, loop.Run(store.DeleteVolumeAsync(7)));
        Assert.Equal(IoStatus.Unavailable, loop.Run(device.ReadAsync(0, new byte[4096])).Status);
        file.Cut();
        store = Open(loop, new CutFile(file.Medium), Small);
        loop.RunToQuiescence();
        Assert.Equal(0UL, store.GetStats().BlocksUsed);
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(Head)));
        Assert.All(Read(loop, store.OpenVolume(7)!, 0, 1 << 20), b => Assert.Equal(0, b));
    }

    [Fact]
    public void What_a_shrink_dropped_does_not_come_back()
    {
        var loop = new SimLoop(8);
        var file = new CutFile(new MemoryFile(loop, 64 << 20));
        IStore store = Fresh(loop, file);
        IBlockDevice device = store.OpenVolume(7)!;
        loop.Run(device.WriteAsync(0, Pattern(1, (int)VolumeBytes), WriteFlags.None));
        Assert.Equal(IoStatus.Ok, loop.Run(store.UpdateVolumeAsync(Head with { SizeBytes = (1 << 20) + 512 })));
        Assert.Equal(IoStatus.OutOfRange, loop.Run(device.ReadAsync(2 << 20, new byte[4096])).Status);
        file.Cut();
        store = Open(loop, new CutFile(file.Medium), Small);
        Assert.Equal(IoStatus.Ok, loop.Run(store.UpdateVolumeAsync(Head)));
        byte[] all = Read(loop, store.OpenVolume(7)!, 0, (int)VolumeBytes);
        Assert.Equal(Pattern(1, (int)VolumeBytes)[..((1 << 20) + 512)], all[..((1 << 20) + 512)]);
        Assert.False(all.AsSpan((1 << 20) + 512).ContainsAnyExcept((byte)0));
    }

    [Fact]
    public void The_map_shows_holes_and_data()
    {
        var loop = new SimLoop(9);
        var file = new CutFile(new MemoryFile(loop, 64 << 20));
        IStore store = Fresh(loop, file);
        IBlockDevice device = store.OpenVolume(7)!;
        loop.Run(device.WriteAsync(1 << 20, Pattern(1, 8192), WriteFlags.Fua));
        var runs = new List<MapRun>();
        Assert.Equal(IoStatus.Ok, loop.Run(device.MapAsync(0, VolumeBytes, 100, runs)));
        Assert.Equal([new MapRun(1 << 20, true), new MapRun(8192, false), new MapRun((3 << 20) - 8192, true)], runs);
        Assert.Equal((1UL << 20) + 8192, loop.Run(store.HighestUsedByteAsync(7)));
    }

    private static void Step(SimLoop loop, IBlockDevice device, byte[] model, SeededRandom random, int offset, int length)
    {
        switch (random.NextBelow(9))
        {
            case 8:
                Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync((ulong)offset, (ulong)length, WriteFlags.HolesOnly)));
                break;
            case 0:
                Assert.Equal(IoStatus.Ok, loop.Run(device.WriteZeroesAsync((ulong)offset, (ulong)length, WriteFlags.None)));
                model.AsSpan(offset, length).Clear();
                break;
            case 1:
                Assert.Equal(IoStatus.Ok, loop.Run(device.TrimAsync((ulong)offset, (ulong)length, WriteFlags.None)));
                int start = (offset + 4095) & ~4095, end = (offset + length) & ~4095;
                if (end > start) model.AsSpan(start, end - start).Clear();
                break;
            case 2:
                Assert.Equal(IoStatus.Ok, loop.Run(device.FlushAsync()));
                break;
            case 3:
                Assert.True(Read(loop, device, (ulong)offset, length).AsSpan().SequenceEqual(model.AsSpan(offset, length)));
                break;
            default:
                byte[] data = Pattern(random.NextUInt64(), length);
                Assert.Equal(IoStatus.Ok, loop.Run(device.WriteAsync((ulong)offset, data, WriteFlags.None)));
                data.CopyTo(model, offset);
                break;
        }
    }

    private static IStore Fresh(
        SimLoop loop, CutFile file, Durability durability = Durability.Flush, ulong size = VolumeBytes)
    {
        Assert.Null(loop.Run(Store.FormatAsync(loop, file, Small)));
        IStore store = Open(loop, file, Small with { Durability = durability });
        Assert.Equal(IoStatus.Ok, loop.Run(store.CreateVolumeAsync(Head with { SizeBytes = size })));
        return store;
    }

    private static IStore Open(SimLoop loop, CutFile file, StoreOptions options)
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

    private static byte[] Pattern(ulong seed, int length)
    {
        var data = new byte[length];
        new SeededRandom(seed).Fill(data);
        return data;
    }
}
