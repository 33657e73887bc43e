using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>The sizes that are promised.</summary>
public class LimitsTests
{
    private static readonly StoreOptions Small = new() { RingBytes = 1 << 20, SlotFraction = 0.02 };

    [Fact]
    public void A_volume_of_64_TiB_lives_thin_on_a_small_store()
    {
        var world = new StoreWorld(1, 32 << 20, Units.VolumeBytesMax, Small);
        byte[] first = StoreWorld.Pattern(1, 4096), last = StoreWorld.Pattern(2, 4096);
        const ulong end = Units.VolumeBytesMax;
        world.Write(0, first);
        world.Write(end - 4096, last);
        world.Write(end - 100, StoreWorld.Pattern(3, 200), IoStatus.OutOfRange);
        for (int round = 0; round < 2; round++)
        {
            Assert.Equal(first, world.Read(0, 4096));
            Assert.Equal(last, world.Read(end - 4096, 4096));
            Assert.All(world.Read(end / 2, 4096), b => Assert.Equal(0, b));
            var runs = new List<MapRun>();
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.MapAsync(0, end, 10, runs)));
            Assert.Equal([new MapRun(4096, false), new MapRun(end - 8192, true), new MapRun(4096, false)], runs);
            Assert.Equal(end, world.Loop.Run(world.Store.HighestUsedByteAsync(7)));
            Assert.Equal(8192UL, world.Store.UsedBytes(7));
            world.Reopen(isClean: round == 0);
        }

        Assert.True(world.Store.GetStats().MetadataTableBytes < 1 << 20);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(0, end, WriteFlags.None)));
        Assert.Equal(0UL, world.Store.UsedBytes(7));
        Assert.Equal(0UL, world.Loop.Run(world.Store.HighestUsedByteAsync(7)));
        world.Reopen(isClean: true);
        Assert.Equal(1UL, world.Store.GetStats().SlotsUsed); // trimmed extents cost no slot
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteZeroesAsync(0, end, WriteFlags.None)));
        world.Write(end - 4096, last);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(7)));
        world.Loop.RunToQuiescence();
        world.Reopen(isClean: true);
        Assert.Equal((0UL, 0UL), (world.Store.GetStats().SlotsUsed, world.Store.GetStats().BlocksUsed));
    }

    [Fact]
    public void Writing_and_trimming_all_over_a_thin_volume_does_not_use_up_the_slots()
    {
        var world = new StoreWorld(2, 16 << 20, Units.VolumeBytesMax, Small);
        ulong slots = world.Store.GetStats().SlotsTotal;
        for (ulong i = 0; i < 3 * slots; i++)
        {
            ulong at = i * 977 << 20;
            world.Write(at, StoreWorld.Pattern(i, 4096));
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.TrimAsync(at, 1 << 20, WriteFlags.None)));
        }

        Assert.Equal(0UL, world.Store.GetStats().BlocksUsed);
    }

    [Fact]
    public void The_smallest_volume_takes_every_byte_of_it_and_none_behind()
    {
        var world = new StoreWorld(3, 32 << 20, Units.VolumeBytesMin, Small);
        byte[] data = StoreWorld.Pattern(3, 1 << 20);
        world.Write(0, data);
        Assert.Equal(data, world.Read(0, 1 << 20));
        Assert.Equal(IoStatus.OutOfRange, world.ReadStatus((1 << 20) - 511, 512));
        Assert.Equal(IoStatus.Invalid, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, Units.VolumeBytesMin - 512))));
        Assert.Equal(IoStatus.Invalid, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, Units.VolumeBytesMax + 512))));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(8, Units.VolumeBytesMin + 512))));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(512)]
    [InlineData(1_234_567)]
    public void A_request_of_32_MiB_goes_through_at_any_offset(int offset)
    {
        var world = new StoreWorld(4, 128 << 20, 64 << 20, Small with { MetadataBudgetBytes = 8 * MetadataPage.EntriesBytes });
        byte[] data = StoreWorld.Pattern((ulong)offset, 32 << 20);
        world.Write((ulong)offset, data);
        Assert.True(world.Read((ulong)offset, data.Length).AsSpan().SequenceEqual(data));
        Assert.Equal(IoStatus.Invalid, world.ReadStatus(0, (32 << 20) + 512));
        world.Write(0, new byte[(32 << 20) + 512], IoStatus.Invalid);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteZeroesAsync((ulong)offset, 32 << 20, WriteFlags.NoHole)));
        Assert.False(world.Read((ulong)offset, data.Length).AsSpan().ContainsAnyExcept((byte)0));
    }

    [Fact]
    public void Requests_of_512_bytes_go_through_at_every_alignment()
    {
        var world = new StoreWorld(5, 32 << 20, 4 << 20, Small);
        var model = new byte[4 << 20];
        // Every sector of the last and the first blocks of two extents, in an order that mixes them.
        for (int i = 0; i < 128; i++)
        {
            int at = (1 << 20) - 64 * 512 + i * 37 % 128 * 512;
            byte[] data = StoreWorld.Pattern((ulong)i, 512);
            world.Write((ulong)at, data);
            data.CopyTo(model, at);
            Assert.Equal(data, world.Read((ulong)at, 512));
        }

        Assert.Equal(model, world.Read(0, model.Length));
        world.Reopen(isClean: false);
        Assert.Equal(model, world.Read(0, model.Length));
    }

    [Fact]
    public void Ten_thousand_volumes_are_created_listed_opened_and_deleted()
    {
        const uint count = 10_000;
        var world = new StoreWorld(6, 256 << 20, 0, Small with { SlotFraction = 0.5 });
        var creating = new List<Task<IoStatus>>();
        for (uint id = 1; id <= count; id++)
        {
            creating.Add(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(id, Units.GiB)).AsTask());
            if (creating.Count < 100) continue;
            Assert.True(world.Loop.RunUntil(() => creating.TrueForAll(c => c.IsCompleted)));
            Assert.All(creating, c => Assert.Equal(IoStatus.Ok, c.Result));
            creating.Clear();
        }

        foreach (uint id in new uint[] { 1, 5000, count })
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.OpenVolume(id)!.WriteAsync(id << 12, StoreWorld.Pattern(id, 4096), WriteFlags.None)));
        for (int round = 0; round < 2; round++)
        {
            world.Reopen(isClean: round == 0);
            Assert.Equal(Enumerable.Range(1, (int)count).Select(id => $"v{id}"), world.Store.Volumes.Select(v => v.Name));
            foreach (uint id in new uint[] { 1, 5000, count })
            {
                var data = new byte[4096];
                Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.OpenVolume(id)!.ReadAsync(id << 12, data)).Status);
                Assert.Equal(StoreWorld.Pattern(id, 4096), data);
            }
        }

        // What a volume costs that nothing was written to: its head's slot, nothing that grows with its size.
        Assert.True(world.Store.GetStats().MetadataTableBytes < 2 << 20, $"{world.Store.GetStats().MetadataTableBytes} bytes");
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Store.DeleteVolumeAsync(5000)));
        Assert.Equal(IoStatus.Conflict, world.Loop.Run(world.Store.CreateVolumeAsync(StoreWorld.HeadOf(1, Units.GiB))));
        Assert.Equal((int)count - 1, world.Store.Volumes.Count);
    }
}
