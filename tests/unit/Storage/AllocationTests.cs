using System.Runtime.CompilerServices;
using BlockServer.Core;
using BlockServer.Io;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>In steady state a change of any kind allocates nothing, the flushes and notes in between included.</summary>
public sealed class AllocationTests : IDisposable
{
    private readonly string _path = Path.Combine(Path.GetTempPath(), $"allocation-{Guid.NewGuid():N}.store");

    public enum Change
    {
        Write,
        CutWriteAcrossExtents,
        Trim,
        WriteZeroes,
        Flush,
        Large,
    }

    public void Dispose() => File.Delete(_path);

    [Theory]
    [InlineData(Change.Write)]
    [InlineData(Change.CutWriteAcrossExtents)]
    [InlineData(Change.Trim)]
    [InlineData(Change.WriteZeroes)]
    [InlineData(Change.Flush)]
    [InlineData(Change.Large)]
    public async Task A_steady_change_allocates_nothing(Change change)
    {
        DiskFile.Create(_path, 160 << 20);
        using LoopThread thread = LoopFactory.Create("auto", "test");
        DiskFile file = DiskFile.Open(thread.Loop, _path);
        long allocated = await thread.InvokeAsync(async () =>
        {
            // The ring stays below what begins a checkpoint; every 64 KiB begin a flush and a note.
            var options = new StoreOptions { RingBytes = 64 << 20, FlushBytes = 64 << 10, Force = true };
            Assert.Null(await Store.FormatAsync(thread.Loop, file, options));
            IStore store = (await Store.OpenAsync(thread.Loop, file, null, options)).Store!;
            Assert.Equal(IoStatus.Ok, await store.CreateVolumeAsync(StoreWorld.HeadOf(7, 8 << 20)));
            IBlockDevice device = store.OpenVolume(7)!;
            IoBuffer buffer = thread.Loop.Buffers.TryRent(3 << 20)!;
            int count = change == Change.Large ? 8 : 50;
            for (int i = 0; i < 4; i++) await ManyAsync(device, change, buffer, count);
            long least = long.MaxValue;
            for (int round = 0; round < 5; round++)
            {
                long before = GC.GetAllocatedBytesForCurrentThread();
                await ManyAsync(device, change, buffer, count);
                least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
            }

            Assert.Equal(0UL, store.GetStats().Checkpoints);
            buffer.Return();
            Assert.Equal(IoStatus.Ok, await store.CloseAsync());
            file.Close();
            return least;
        });
#if !DEBUG
        // The test's own wait costs a little; an object in every tenth request would be more.
        Assert.InRange(allocated, 0, 300);
#endif
    }

    /// <summary>Relayout of a volume of 8 extents, again and again.</summary>
    [Fact]
    public async Task Steady_relayout_allocates_nothing()
    {
        DiskFile.Create(_path, 160 << 20);
        using LoopThread thread = LoopFactory.Create("auto", "test");
        DiskFile file = DiskFile.Open(thread.Loop, _path);
        long allocated = await thread.InvokeAsync(async () =>
        {
            var options = new StoreOptions { RingBytes = 64 << 20, Force = true, RelayoutBytesPerSecond = 1UL << 40, RelayoutColdNanos = 1_000_000 };
            Assert.Null(await Store.FormatAsync(thread.Loop, file, options));
            IStore store = (await Store.OpenAsync(thread.Loop, file, null, options)).Store!;
            Assert.Equal(IoStatus.Ok, await store.CreateVolumeAsync(StoreWorld.HeadOf(7, 8 << 20)));
            IBlockDevice device = store.OpenVolume(7)!;
            IoBuffer buffer = thread.Loop.Buffers.TryRent(1 << 20)!;
            long least = long.MaxValue;
            for (int round = 0; round < 8; round++)
            {
                long before = GC.GetAllocatedBytesForCurrentThread();
                int waits = 0;
                for (ulong extent = 0; extent < 8; extent++) Check.That(await ScatterAsync(device, buffer, extent << 20) == IoStatus.Ok);
                for (; store.GetStats().ExtentsScattered > 0; waits++) await thread.Loop.DelayAsync(20_000_000);
                long now = GC.GetAllocatedBytesForCurrentThread() - before;
                if (round >= 3) least = Math.Min(least, now - waits * 2_000);
            }

            Assert.True(store.GetStats().BlocksRelaid >= 8 * 2048);
            buffer.Return();
            Assert.Equal(IoStatus.Ok, await store.CloseAsync());
            file.Close();
            return least;
        });
#if !DEBUG
        // A byte for every block that was read, written and mapped would be more.
        Assert.InRange(allocated, long.MinValue, 2_000);
#endif
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<IoStatus> ScatterAsync(IBlockDevice device, IoBuffer buffer, ulong offset)
    {
        IoStatus status = await device.WriteAsync(offset, buffer.Slice(0, 1 << 20), WriteFlags.None);
        for (ulong i = 0; i < 128 && status == IoStatus.Ok; i++)
            status = await device.WriteAsync(offset + i * 2 * Units.BlockBytes, buffer.Slice(0, Units.BlockBytes), WriteFlags.None);
        return status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<int> ManyAsync(IBlockDevice device, Change change, IoBuffer buffer, int count)
    {
        for (int i = 0; i < count; i++)
        {
            // What is trimmed and zeroed must be there.
            if (change != Change.Large) Check.That(await device.WriteAsync((1 << 20) - 16384, buffer.Slice(0, 32768), WriteFlags.None) == IoStatus.Ok);
            IoStatus status = change switch
            {
                Change.Write => await device.WriteAsync(4096UL * (ulong)i, buffer.Slice(0, 4096), WriteFlags.Fua),
                Change.CutWriteAcrossExtents => await device.WriteAsync((1 << 20) - 5000, buffer.Slice(0, 10_000), WriteFlags.None),
                Change.Trim => await device.TrimAsync((1 << 20) - 8192, 16384, WriteFlags.None),
                Change.WriteZeroes => await device.WriteZeroesAsync((1 << 20) - 5000, 10_000, WriteFlags.None),
                Change.Flush => await device.FlushAsync(),
                _ => await device.WriteAsync(8192, buffer.Slice(0, 3 << 20), WriteFlags.None),
            };
            Check.That(status == IoStatus.Ok);
            if (change != Change.Large) continue;
            Check.That(await device.WriteZeroesAsync(5000, (3 << 20) - 1000, WriteFlags.None) == IoStatus.Ok);
            Check.That(await device.TrimAsync(0, 4 << 20, WriteFlags.None) == IoStatus.Ok);
        }

        return 0;
    }
}
