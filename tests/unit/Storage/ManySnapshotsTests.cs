using System.Diagnostics;
using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>Ten thousand snapshots of one volume, each with a page of its own.</summary>
public class ManySnapshotsTests(ITestOutputHelper output)
{
    private const int Count = 10_000;

    private static Guid Id(int n) => new(n, 1, 1, new byte[8]);

    [Fact]
    public void Ten_thousand_snapshots_are_kept_apart()
    {
        var world = new StoreWorld(1, 512 * Units.MiB, 4 * Units.MiB, new StoreOptions { RingBytes = 16 * Units.MiB, SlotFraction = 0.4 });
        var store = (ILayeredStore)world.Store;
        var watch = Stopwatch.StartNew();
        for (int n = 1; n <= Count; n++)
        {
            world.Write((ulong)(n % 200) << Units.BlockShift, Content(n));
            Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([new SnapshotRequest(7, Id(n), $"s{n}", (ulong)n)])));
        }

        Tell("create", watch);
        output.WriteLine($"{store.GetStats().MetadataTableBytes / Count} bytes of tables for each snapshot and its page");
        Check(world, "read all of 20", [.. Enumerable.Range(0, 20).Select(i => 1 + i * 523)]);
        for (int n = 0; n < 10_000; n++) world.Write((ulong)(n % 50) << Units.BlockShift, Content(Count));
        Tell("10,000 writes", watch);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CloseAsync()));
        Tell("close", watch);
        world.Reopen(isClean: false);
        store = (ILayeredStore)world.Store;
        Tell("open", watch);
        Assert.Equal(Count, store.Snapshots(7).Count);
        Assert.Equal(Id(5000), store.FindSnapshot(7, "s5000")!.Uuid);
        Assert.Null(store.FindSnapshot(7, "s0"));
        Assert.Equal(("s5000", 10_000), (store.FindSnapshot(7, Id(5000))!.Name, store.SnapshotCount(7)));
        Assert.Equal((null, 0), (store.FindSnapshot(7, Id(10_001)), store.SnapshotCount(8)));
        Assert.Null(store.FindSnapshot(8, "s1"));
        Check(world, "read all of 3", [1, 5000, Count]);
        var runs = new List<DiffRun>();
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DiffAsync(7, Id(1000), Id(1002), 0, 4 * Units.MiB, 100, runs)));
        Assert.Equal(2UL * Units.BlockBytes, (ulong)runs.Where(run => run.IsChanged).Sum(run => (long)run.LengthBytes));
        Tell("diff", watch);
        for (int n = 1; n <= Count; n++)
        {
            if (n % 1000 != 500) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DeleteSnapshotAsync(7, Id(n))));
        }

        Assert.Null(store.FindSnapshot(7, "s1"));
        Assert.Equal(Id(500), store.FindSnapshot(7, "s500")!.Uuid);
        Tell("delete", watch);
        world.Loop.Run(WaitAsync(world));
        Tell("background", watch);
        Assert.Equal((10, 10), (store.Snapshots(7).Count, store.SnapshotCount(7)));
        Check(world, "read all of 10", [.. Enumerable.Range(0, 10).Select(i => 500 + i * 1000)]);
        Assert.Null(world.Loop.Run(((Store)world.Store).AuditAsync()));
        world.Reopen(isClean: true);
        Assert.InRange(world.Store.GetStats().SlotsUsed, 1u, 30u);

        void Check(StoreWorld at, string what, int[] snapshots)
        {
            foreach (int n in snapshots)
            {
                IBlockDevice view = ((ILayeredStore)at.Store).OpenSnapshot(7, Id(n))!;
                var data = new byte[200 * Units.BlockBytes];
                Assert.Equal(IoStatus.Ok, at.Loop.Run(view.ReadAsync(0, data)).Status);
                for (int block = 0; block < 200; block++)
                {
                    int by = n - (n % 200 - block + 200) % 200; // who wrote it last
                    Assert.Equal(Math.Max(by, 0), BitConverter.ToInt32(data, block << Units.BlockShift));
                }
            }

            Tell(what, watch);
        }
    }

    private static byte[] Content(int n)
    {
        var data = new byte[Units.BlockBytes];
        BitConverter.TryWriteBytes(data, n);
        return data;
    }

    private void Tell(string what, Stopwatch watch)
    {
        output.WriteLine($"{what}: {watch.ElapsedMilliseconds} ms");
        watch.Restart();
    }

    private static async ValueTask<bool> WaitAsync(StoreWorld world)
    {
        for (ulong before = ulong.MaxValue; world.Store.UsedBytes(7) < before;)
        {
            before = world.Store.UsedBytes(7);
            await world.Loop.DelayAsync(2_000_000_000);
        }

        return true;
    }
}
