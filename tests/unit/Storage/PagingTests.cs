using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

public class PagingTests
{
    private const int Extents = 64;
    private const ulong VolumeBytes = Extents * Units.MiB;

    private static StoreOptions Pages(int count) => new()
    {
        RingBytes = 256 << 10, SlotFraction = 0.02, MetadataBudgetBytes = (ulong)count * MetadataPage.EntriesBytes,
    };

    [Theory]
    [InlineData(1, 4)]
    [InlineData(2, 4)]
    [InlineData(3, 7)]
    [InlineData(4, 20)]
    public void A_volume_of_many_extents_lives_in_few_pages(ulong seed, int pages)
    {
        var world = new StoreWorld(seed, 128 << 20, VolumeBytes, Pages(pages));
        var model = new byte[VolumeBytes];
        var random = new SeededRandom(seed + 7);
        for (int round = 0; round < 6; round++)
        {
            // Sixteen clients at a time, each in a part of its own, so that the model knows the outcome.
            var clients = new List<Task>();
            for (int client = 0; client < 16; client++)
                clients.Add(ClientAsync(world.Device, model, client * (model.Length / 16), model.Length / 16, random));
            Assert.True(world.Loop.RunUntil(() => clients.TrueForAll(c => c.IsCompleted)));
            foreach (Task client in clients) client.GetAwaiter().GetResult();
            Assert.True(world.Store.GetStats().MetadataResidentBytes <= (ulong)pages * MetadataPage.EntriesBytes);
            if (round % 2 == 1) world.Reopen(isClean: round % 4 == 1);
        }

        Assert.Equal(model, ReadAll(world));
        StoreStats stats = world.Store.GetStats();
        Assert.True(stats.MetadataEvictions > (ulong)(Extents - pages), $"{stats.MetadataEvictions} evictions");
        Assert.True(stats.MetadataLoads >= stats.MetadataEvictions / 2);
        Assert.Equal(StoreState.Online, world.Store.State);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CloseAsync()));
    }

    [Fact]
    public void All_who_miss_a_page_at_once_share_one_read()
    {
        var world = new StoreWorld(5, 64 << 20, 32 << 20, Pages(4));
        for (ulong extent = 0; extent < 32; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 8192));
        world.Reopen(isClean: true);
        Assert.True(world.Store.GetStats().MetadataLoads == 0);
        ulong slotsEnd = world.Geometry.DataStart;
        world.File.Reads.Clear();
        var reads = new List<Task<ReadResult>>();
        for (int i = 0; i < 20; i++) reads.Add(world.Device.ReadAsync((31UL << 20) + ((ulong)(i % 2) << 12), new byte[4096]).AsTask());
        Assert.True(world.Loop.RunUntil(() => reads.TrueForAll(r => r.IsCompleted)));
        Assert.All(reads, r => Assert.Equal(IoStatus.Ok, r.Result.Status));
        Assert.Equal(1, world.File.Reads.Count(block => block < slotsEnd));
        Assert.Equal(1UL, world.Store.GetStats().MetadataLoads);
    }

    [Fact]
    public void A_page_that_rots_at_home_gives_errors_for_its_extent_only()
    {
        var world = new StoreWorld(6, 64 << 20, 32 << 20, Pages(4));
        for (ulong extent = 0; extent < 32; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 8192));
        world.Reopen(isClean: true);
        // Slot 0 is the volume's head; extent 31 came last. Both homes, so that the current one is among them.
        world.File.Rot(world.Loop, world.Geometry.HomeOffset(32, 0) >> Units.BlockShift);
        world.File.Rot(world.Loop, world.Geometry.HomeOffset(32, 1) >> Units.BlockShift);
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(31UL << 20, 4096));
        Assert.Equal(IoStatus.Corrupt, world.Loop.Run(world.Device.WriteAsync(31UL << 20, new byte[4096], WriteFlags.None)));
        for (ulong extent = 0; extent < 31; extent++) Assert.Equal(StoreWorld.Pattern(extent, 8192), world.Read(extent << 20, 8192));
        ScrubReport scrub = world.Loop.Run(world.Store.ScrubAsync(null, 0, null, CancellationToken.None));
        Assert.Equal([new BadBlock(7, 31UL << 20, IoStatus.Corrupt)], scrub.Bad);
        Assert.True(world.Store.GetStats().ChecksumErrors > 0);
    }

    [Fact]
    public void An_old_image_in_the_place_of_the_new_one_is_noticed()
    {
        var world = new StoreWorld(7, 64 << 20, 32 << 20, Pages(4));
        ulong home = world.Geometry.HomeOffset(1, 0);
        var old = new byte[2 * Units.BlockBytes];
        for (int round = 0; round < 3; round++)
        {
            if (round == 2) world.Loop.Run(world.File.ReadAsync(home, old));
            for (ulong extent = 0; extent < 32; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent + 100 * (ulong)round, 8192));
            world.Reopen(isClean: true);
        }

        Assert.Equal(StoreWorld.Pattern(200, 8192), world.Read(0, 8192));
        for (ulong extent = 20; extent < 32; extent++) world.Read(extent << 20, 4096); // the page of extent 0 leaves
        world.Loop.Run(world.File.WriteAsync(home, old));
        Assert.Equal(IoStatus.Corrupt, world.ReadStatus(0, 8192));
    }

    [Fact]
    public void A_miss_that_waits_for_room_ends_when_the_store_is_closed_or_fails()
    {
        var world = new StoreWorld(8, 64 << 20, 32 << 20, Pages(4));
        for (ulong extent = 0; extent < 32; extent++) world.Write(extent << 20, StoreWorld.Pattern(extent, 4096));
        IBlockDevice device = world.Device;
        var writes = new List<Task<IoStatus>>();
        for (ulong extent = 0; extent < 32; extent++)
            writes.Add(device.WriteAsync(extent << 20, StoreWorld.Pattern(extent + 50, 4096), WriteFlags.None).AsTask());
        Task<IoStatus> closing = world.Store.CloseAsync().AsTask();
        Assert.True(world.Loop.RunUntil(() => closing.IsCompleted && writes.TrueForAll(w => w.IsCompleted), 1_000_000));
        Assert.Equal(IoStatus.Ok, closing.Result);
        Assert.All(writes, w => Assert.Equal(IoStatus.Ok, w.Result));
        world.Reopen(isClean: false);
        for (ulong extent = 0; extent < 32; extent++) Assert.Equal(StoreWorld.Pattern(extent + 50, 4096), world.Read(extent << 20, 4096));

        // The log's medium fails while many wait.
        for (ulong page = 0; page < world.Geometry.RingPages; page++) world.File.BadWrites.Add(2 + page);
        writes.Clear();
        for (ulong extent = 0; extent < 32; extent++)
            writes.Add(world.Device.WriteAsync(extent << 20, StoreWorld.Pattern(extent, 4096), WriteFlags.None).AsTask());
        Assert.True(world.Loop.RunUntil(() => writes.TrueForAll(w => w.IsCompleted), 1_000_000));
        Assert.All(writes, w => Assert.Equal(IoStatus.Unavailable, w.Result));
        Assert.Equal(StoreState.Failed, world.Store.State);
    }

    private static async Task ClientAsync(IBlockDevice device, byte[] model, int begin, int length, SeededRandom random)
    {
        for (int step = 0; step < 25; step++)
        {
            int offset = begin + random.NextBelow(length);
            int count = Math.Min(1 + random.NextBelow(random.NextBelow(6) == 0 ? 1_500_000 : 30_000), begin + length - offset);
            switch (random.NextBelow(8))
            {
                case 0:
                    Assert.Equal(IoStatus.Ok, await device.WriteZeroesAsync((ulong)offset, (ulong)count, WriteFlags.None));
                    model.AsSpan(offset, count).Clear();
                    break;
                case 1:
                    Assert.Equal(IoStatus.Ok, await device.TrimAsync((ulong)offset, (ulong)count, WriteFlags.None));
                    int start = (offset + 4095) & ~4095, end = (offset + count) & ~4095;
                    if (end > start) model.AsSpan(start, end - start).Clear();
                    break;
                case 2 or 3:
                    var back = new byte[count];
                    Assert.Equal(IoStatus.Ok, (await device.ReadAsync((ulong)offset, back)).Status);
                    Assert.True(back.AsSpan().SequenceEqual(model.AsSpan(offset, count)));
                    break;
                case 4:
                    var runs = new List<MapRun>();
                    Assert.Equal(IoStatus.Ok, await device.MapAsync((ulong)offset, (ulong)count, 1000, runs));
                    JudgeMap(model, offset, runs);
                    break;
                default:
                    byte[] data = StoreWorld.Pattern(random.NextUInt64(), count);
                    Assert.Equal(IoStatus.Ok, await device.WriteAsync((ulong)offset, data, WriteFlags.None));
                    data.CopyTo(model, offset);
                    break;
            }
        }
    }

    private static void JudgeMap(byte[] model, int at, List<MapRun> runs)
    {
        foreach (MapRun run in runs)
        {
            if (run.IsHole) Assert.False(model.AsSpan(at, (int)run.LengthBytes).ContainsAnyExcept((byte)0));
            at += (int)run.LengthBytes;
        }
    }

    private static byte[] ReadAll(StoreWorld world)
    {
        var all = new List<byte>();
        for (ulong at = 0; at < VolumeBytes; at += 1 << 20) all.AddRange(world.Read(at, 1 << 20));
        return [.. all];
    }
}
