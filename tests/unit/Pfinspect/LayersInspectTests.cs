using System.Text.Json;
using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Unit.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Pfinspect;

/// <summary>What pfinspect makes of layers: of stores that the store wrote, and of some laid out by hand that cannot be.</summary>
public class LayersInspectTests
{
    private static readonly LayerId Old = new(7, 0), New = new(7, 1);

    /// <summary>Volume 7, cut once at version 5: block 0 is shared, block 1 was written anew, block 2 is only in the new layer.</summary>
    private static StoreBuilder Cut(out uint first)
    {
        var store = new StoreBuilder();
        first = store.Geometry.DataStart;
        store.PutHead(0, 0, 3000, StoreBuilder.Volume(7, "v1") with { Layer = 1, Parent = Old });
        store.PutSnapshot(1, 3000, Monday);
        BlockEntry shared = Entry(store, first, 4), before = Entry(store, first + 1, 5);
        store.PutLayerHome(2, 2000, Old, 0, (0, shared), (1, before));
        store.PutLayerHome(3, 4000, New, 0, (0, shared), (1, Entry(store, first + 2, 6)), (2, Entry(store, first + 3, 7)));
        store.ClosePage(durable: 160_000);
        return store;
    }

    private static SnapshotLayout Monday => new()
    {
        Id = Old, Uuid = new Guid(1, 2, 3, new byte[8]), Cut = 5, SizeBytes = 2 << 20, Name = "monday", UnixSeconds = 99,
    };

    private static BlockEntry Entry(StoreBuilder store, uint block, ulong version) => new(block, store.PutData(block, (byte)version), version);

    [Fact]
    public void Layers_are_shown_with_what_they_hold_alone()
    {
        using StoreBuilder store = Cut(out uint first);
        Assert.Equal((0, ""), (store.Run("verify"), store.Error));
        Assert.Contains("4 slots, 2 extents, 4 blocks referenced", store.Out, StringComparison.Ordinal);
        Assert.Contains("4 blocks read\nsound", store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("layers"));
        Assert.Contains("2 layers, 1 of them snapshots\n", store.Out, StringComparison.Ordinal);
        Assert.Contains("7 v1 layer 0: snapshot monday, cut 5, 4 KiB alone, 8 KiB used, 8 KiB owned in 1 extents\n", store.Out, StringComparison.Ordinal);
        Assert.Contains("7 v1 layer 1 on layer 0: written to, 12 KiB used, 8 KiB owned in 1 extents\n", store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("volumes"));
        Assert.Contains("16 KiB used in 2 extents", store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("map", "v1"));
        Assert.Contains($"4096 +8192 block {first + 2} slot 3", store.Out, StringComparison.Ordinal);
        Assert.Equal(0, store.Run("map", "v1@monday"));
        Assert.Contains($"0 +8192 block {first} slot 2", store.Out, StringComparison.Ordinal);
        Assert.Equal(1, store.Run("map", "v1@friday"));
        Assert.Contains("no snapshot 'friday'", store.Error, StringComparison.Ordinal);
    }

    [Fact]
    public void A_block_that_was_freed_while_shared_is_noticed()
    {
        using StoreBuilder store = Cut(out uint first);
        // The snapshot's page says that block 0 lies elsewhere: the layer above shares what nobody has.
        store.PutLayerHome(2, 2000, Old, 0, (0, Entry(store, first + 9, 3)), (1, Entry(store, first + 1, 5)));
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error S2: slot 3 volume 7 layer 1 extent 0 block 0: shares block", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_block_that_two_layers_own_is_noticed()
    {
        using StoreBuilder store = Cut(out uint first);
        store.PutLayerHome(3, 4000, New, 0, (0, Entry(store, first + 1, 6)));
        Assert.Equal(1, store.Run("check"));
        Assert.Contains($"block {first + 1} is referenced by another entry too", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_page_of_a_layer_that_nothing_names_is_a_leak()
    {
        using StoreBuilder store = Cut(out uint first);
        store.PutLayerHome(4, 2000, new LayerId(7, 9), 1, (0, Entry(store, first + 9, 3)));
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("error layer: slot 4: extent 1 of volume 7, layer 9, which nothing names: its blocks are leaked", store.Out, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tree_that_cannot_be_is_noticed()
    {
        using StoreBuilder store = Cut(out _);
        store.PutSnapshot(4, 3000, Monday with { Id = new LayerId(8, 0) });
        store.PutSnapshot(5, 3000, Monday with { Name = "twice" });
        store.PutHead(6, 0, 3000, StoreBuilder.Volume(9, "v9") with { Layer = 0, Parent = new LayerId(7, 5) });
        Assert.Equal(1, store.Run("check"));
        Assert.Contains("slot 4: snapshot monday of volume 8, which has no head", store.Out, StringComparison.Ordinal);
        Assert.Contains("slot 5: layer 0 of volume 7 has another head in slot 1", store.Out, StringComparison.Ordinal);
        Assert.Contains("slot 6: layer 0 of volume 9 builds on layer 5 of volume 7, which is not there", store.Out, StringComparison.Ordinal);
    }

    /// <summary>What the store says while it runs, pfinspect finds on its medium: from the log, and from the homes.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void What_the_store_wrote_is_sound_and_means_the_same(bool isClosed)
    {
        var world = new StoreWorld(1, 32 * Units.MiB, 4 * Units.MiB, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05 });
        var store = (ILayeredStore)world.Store;
        for (int n = 1; n <= 4; n++)
        {
            world.Write((ulong)n * 123_000, StoreWorld.Pattern((ulong)n, 300_000));
            Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateSnapshotsAsync([new SnapshotRequest(7, Id(n), $"s{n}", 1)])));
        }

        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CreateCloneAsync(StoreWorld.HeadOf(9, 4 * Units.MiB), 7, Id(2))));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.OpenVolume(9)!.WriteAsync(5000, StoreWorld.Pattern(7, 200_000), WriteFlags.None)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.RollBackAsync(Id(3), new SnapshotRequest(7, Id(5), "s5", 1))));
        world.Write(0, StoreWorld.Pattern(8, 50_000));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.DeleteSnapshotAsync(7, Id(1))));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(WaitAsync(world)));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(store.FlushAsync()));
        var expected = new SortedDictionary<string, SnapshotUsage>();
        foreach (int n in (int[])[2, 3, 4, 5]) expected[$"s{n}"] = world.Loop.Run(store.SnapshotUsageAsync(7, Id(n))).Usage;
        if (isClosed) Assert.Equal(IoStatus.Ok, world.Loop.Run(store.CloseAsync()));

        using var inspect = new StoreBuilder();
        var medium = new byte[world.File.SizeBytes];
        for (int at = 0; at < medium.Length; at += (int)Units.MiB)
            Assert.Equal(IoStatus.Ok, world.Loop.Run(world.File.Medium.ReadAsync((ulong)at, medium.AsMemory(at, (int)Units.MiB))));
        File.WriteAllBytes(inspect.Path, medium);
        Assert.True(inspect.RunOnFile("verify") == 0, inspect.Out);
        Assert.Equal(0, inspect.RunOnFile("layers", "--json"));
        var found = new SortedDictionary<string, SnapshotUsage>();
        foreach (JsonElement layer in JsonDocument.Parse(inspect.Out).RootElement.GetProperty("layers").EnumerateArray())
        {
            if (layer.GetProperty("snapshot").GetString() is { } name)
                found[name] = new SnapshotUsage(layer.GetProperty("usedBytes").GetUInt64(), layer.GetProperty("aloneBytes").GetUInt64());
        }

        Assert.Equal(expected, found);
        Assert.Equal(0, inspect.RunOnFile("volumes", "--json"));
        foreach (JsonElement volume in JsonDocument.Parse(inspect.Out).RootElement.GetProperty("volumes").EnumerateArray())
            Assert.Equal(store.UsedBytes(volume.GetProperty("id").GetUInt32()), volume.GetProperty("usedBytes").GetUInt64());
    }

    private static async ValueTask<IoStatus> WaitAsync(StoreWorld world)
    {
        await world.Loop.DelayAsync(1_000_000_000);
        return IoStatus.Ok;
    }

    private static Guid Id(int n) => new(n, 1, 1, new byte[8]);
}
