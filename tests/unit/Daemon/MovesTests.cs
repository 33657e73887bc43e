using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Volumes that go from one disk of a running daemon to another while somebody uses them.</summary>
public sealed class MovesTests
{
    private const ulong DiskBytes = 160 * Units.MiB;

    private static async Task<(Guid First, Guid Second)> DisksAsync(TestDaemon test)
    {
        Guid first = test.Daemon.Stores.All[0].StoreId;
        StoreHost second = await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("second.blk"), "second", DiskBytes));
        return (first, second.StoreId);
    }

    private static async Task MoveAsync(TestDaemon test, string name, Guid to) =>
        await new Moves(test.Daemon).MoveAsync(test.Daemon.Directory.Find(name)!, to, TestContext.Current.CancellationToken);

    private static Task<IBlockDevice> AttachAsync(TestDaemon test, string name) => AttachAsync(test, name, out _);

    private static Task<IBlockDevice> AttachAsync(TestDaemon test, string name, out LoopThread thread)
    {
        VolumeRecord record = test.Daemon.Directory.Find(name)!;
        LoopThread there = thread = test.Daemon.Volumes.ThreadOf(record)!;
        return there.InvokeAsync(async () =>
        {
            SharedVolume volume = (await test.Daemon.Volumes.OpenAsync(record, there))!;
            return (IBlockDevice)new GatedDevice(volume.Device, volume.Gate);
        });
    }

    private static byte[] Block(ulong index, ulong round)
    {
        var block = new byte[Units.BlockBytes];
        new Random((int)(index * 31 + round)).NextBytes(block);
        return block;
    }

    private static async Task<byte[]> ContentAsync(TestDaemon test, string name, string? snapshot = null)
    {
        VolumeRecord record = test.Daemon.Directory.Find(name)!;
        StoreHost host = test.Daemon.Stores.Find(record.StoreId)!;
        var content = new byte[record.SizeBytes];
        await host.Thread.InvokeAsync(async () =>
        {
            IBlockDevice device = snapshot is null ? host.Store.OpenVolume(record.Id)!
                : host.Store.OpenSnapshot(record.Id, host.Store.Snapshots(record.Id).Single(s => s.Name == snapshot).Uuid)!;
            for (int at = 0; at < content.Length; at += Units.ExtentBytes)
            {
                int length = Math.Min(Units.ExtentBytes, content.Length - at);
                Assert.Equal(IoStatus.Ok, (await device.ReadAsync((ulong)at, content.AsMemory(at, length))).Status);
            }
        });
        return content;
    }

    private static async Task WriteAsync(TestDaemon test, string name, ulong offset, byte[] data)
    {
        IBlockDevice device = await AttachAsync(test, name, out LoopThread thread);
        Assert.Equal(IoStatus.Ok, await thread.InvokeAsync(() => device.WriteAsync(offset, data, WriteFlags.None)));
    }

    /// <summary>Writes, reads back and flushes at random until it is told to end; what the volume must hold.</summary>
    private static async Task<byte[]> LoadAsync(IBlockDevice device, LoopThread thread, byte[] model, Task end, int seed)
    {
        var random = new Random(seed);
        ulong blocks = (ulong)model.Length / Units.BlockBytes;
        for (ulong round = 1; !end.IsCompleted; round++)
        {
            ulong index = (ulong)random.NextInt64((long)blocks);
            int at = (int)(index * Units.BlockBytes);
            switch (random.Next(10))
            {
                case 0:
                    Assert.Equal(IoStatus.Ok, await thread.InvokeAsync(device.FlushAsync));
                    break;
                case 1:
                    Assert.Equal(IoStatus.Ok, await thread.InvokeAsync(() => device.TrimAsync((ulong)at, Units.BlockBytes, WriteFlags.None)));
                    model.AsSpan(at, Units.BlockBytes).Clear();
                    break;
                case < 5:
                    var read = new byte[Units.BlockBytes];
                    Assert.Equal(IoStatus.Ok, (await thread.InvokeAsync(() => device.ReadAsync((ulong)at, read))).Status);
                    Assert.True(read.AsSpan().SequenceEqual(model.AsSpan(at, Units.BlockBytes)), $"block {index} reads wrong in round {round}");
                    break;
                default:
                    byte[] data = Block(index, round);
                    Assert.Equal(IoStatus.Ok, await thread.InvokeAsync(() => device.WriteAsync((ulong)at, data, WriteFlags.None)));
                    data.CopyTo(model.AsSpan(at));
                    break;
            }
        }

        return model;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task A_volume_moves_under_load_with_its_snapshots_and_nobody_notices(int loops)
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m", $"loops={loops}");
        (Guid first, Guid second) = await DisksAsync(test);
        await test.CreateAsync("v", 16 * Units.MiB, first);
        for (ulong i = 0; i < 2048; i += 3) await WriteAsync(test, "v", i * Units.BlockBytes, Block(i, 0));
        await test.Daemon.Directory.CutAsync("one", ["v"], default);
        await WriteAsync(test, "v", 8 * Units.BlockBytes, Block(8, 77));
        await test.Daemon.Directory.CutAsync("two", ["v"], default);
        byte[] one = await ContentAsync(test, "v", "one"), two = await ContentAsync(test, "v", "two"), model = await ContentAsync(test, "v");

        IBlockDevice device = await AttachAsync(test, "v", out LoopThread thread);
        var end = new TaskCompletionSource();
        Task<byte[]> load = LoadAsync(device, thread, model, end.Task, 5);
        await MoveAsync(test, "v", second);
        await Task.Delay(50, TestContext.Current.CancellationToken); // the client works on for a while in the new home
        await MoveAsync(test, "v", first);
        await MoveAsync(test, "v", second);
        end.SetResult();
        model = await load;

        Assert.Equal(second, test.Daemon.Directory.Find("v")!.StoreId);
        Assert.Equal(model, await ContentAsync(test, "v"));
        Assert.Equal(one, await ContentAsync(test, "v", "one"));
        Assert.Equal(two, await ContentAsync(test, "v", "two"));
        Assert.Equal(["one", "two"], (await test.Daemon.Directory.SnapshotsAsync(test.Daemon.Directory.Find("v")!)).Snapshots.Select(s => s.Info.Name));
        await test.RestartAsync();
        Assert.Equal(model, await ContentAsync(test, "v"));
        Assert.Empty(await test.Daemon.Stores.Find(first)!.ListAsync());
        Assert.Empty(test.Daemon.Warnings);
    }

    /// <summary>Sessions of its own target and of a configured one go on, over one loop and over two, and lose nothing; a reservation
    /// stays in force.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task A_volume_moves_under_the_load_of_initiators_and_none_of_them_notices(int loops)
    {
        const string Disks = "iqn.2026-11.org.example:disks", One = "iqn.2026-11.org.example:one", Two = "iqn.2026-11.org.example:two";
        const int Blocks = 1024;
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m", $"loops={loops}", "iscsi=127.0.0.1:0");
        (Guid first, Guid second) = await DisksAsync(test);
        await test.CreateAsync("other", 4 * Units.MiB, second); // LUN 0: the target lives on the loop of the second disk
        await test.CreateAsync("v", Blocks * (ulong)Units.BlockBytes, first);
        int port = System.Net.IPEndPoint.Parse(test.Daemon.Listeners.Single(l => l.Protocol == "iscsi").Address).Port;
        using var one = new RawInitiator(port, test.Daemon.Settings.IscsiPrefix + ":v", One, isid: 1); // opens it where it lies
        Assert.Equal([0x2900], one.TakeAttentions());
        Assert.NotNull((await test.Daemon.Targets.CreateAsync(Disks, null, [], true)).Target);
        Assert.NotNull((await test.Daemon.Targets.AllowAsync(Disks, new TargetAccess("*", null))).Target);
        foreach (string name in new[] { "other", "v" })
            Assert.NotNull((await test.Daemon.Targets.AddLunAsync(Disks, test.Daemon.Directory.Find(name)!.Id, null, false)).Target);
        using var two = new RawInitiator(port, Disks, Two, isid: 2);
        Assert.Equal([0x2900], two.TakeAttentions(1));

        // Each has half of the blocks to itself.
        var end = new TaskCompletionSource();
        Task<byte[]>[] loads = [Task.Run(() => Load(one, 0, 0)), Task.Run(() => Load(two, 1, Blocks / 2))];
        foreach (Guid to in new[] { second, first, second })
        {
            await MoveAsync(test, "v", to);
            await Task.Delay(50, TestContext.Current.CancellationToken);
        }

        end.SetResult();
        byte[][] models = await Task.WhenAll(loads);
        Assert.Equal(second, test.Daemon.Directory.Find("v")!.StoreId);
        Assert.Equal(models.SelectMany(m => m), await ContentAsync(test, "v"));
        Assert.Equal(2, test.Daemon.Sessions.List().Count(s => s.Target is not null)); // nobody had to come back
        Assert.Equal(0, two.Send("160000000000", lun: 1).Status);
        await MoveAsync(test, "v", first);
        Assert.Equal(0x18, one.Send("28000000000000000800", expected: 4096).Status);
        Assert.Empty(test.Daemon.Warnings);

        byte[] Load(RawInitiator initiator, ushort lun, int from)
        {
            var random = new Random(from);
            var model = new byte[Blocks / 2 * Units.BlockBytes];
            for (ulong round = 1; !end.Task.IsCompleted || round < 100; round++)
            {
                int index = random.Next(Blocks / 2);
                string range = ((from + index) * 8).ToString("X8", System.Globalization.CultureInfo.InvariantCulture) + "00000800";
                Span<byte> block = model.AsSpan(index * Units.BlockBytes, Units.BlockBytes);
                if (random.Next(3) == 0)
                {
                    RawReply read = initiator.Send("2800" + range, expected: Units.BlockBytes, lun: lun);
                    Assert.True(read.Status == 0 && read.Data.AsSpan().SequenceEqual(block), $"block {from + index} in round {round}: status {read.Status:X2}, {read.Code:X4}");
                    continue;
                }

                byte[] data = Block((ulong)(from + index), round);
                RawReply written = initiator.Send("2A00" + range, data, lun: lun);
                Assert.True(written.Status == 0, $"block {from + index} in round {round}: status {written.Status:X2}, {written.Code:X4}");
                data.CopyTo(block);
            }

            return model;
        }
    }

    [Fact]
    public async Task Clones_move_with_what_they_were_cloned_from_and_share_there_too()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        (Guid first, Guid second) = await DisksAsync(test);
        await test.CreateAsync("root", 8 * Units.MiB, first);
        for (ulong i = 0; i < 1024; i++) await WriteAsync(test, "root", i * Units.BlockBytes, Block(i, 0));
        await test.Daemon.Directory.CutAsync("s", ["root"], default);
        Assert.Null((await test.Daemon.Directory.CloneAsync("root", new CloneVolume("leaf", "s", 9 * Units.MiB))).Fault);
        await WriteAsync(test, "leaf", 5 * Units.BlockBytes, Block(5, 9));
        await test.Daemon.Directory.CutAsync("t", ["leaf"], default);
        Assert.Null((await test.Daemon.Directory.CloneAsync("leaf", new CloneVolume("bud", "t"))).Fault);
        await WriteAsync(test, "bud", 6 * Units.BlockBytes, Block(6, 9));
        await WriteAsync(test, "root", 7 * Units.BlockBytes, Block(7, 9));
        byte[] root = await ContentAsync(test, "root"), leaf = await ContentAsync(test, "leaf"), bud = await ContentAsync(test, "bud");

        await MoveAsync(test, "leaf", second);
        Assert.All(test.Daemon.Directory.List(), v => Assert.Equal(second, v.StoreId));
        Assert.Equal(root, await ContentAsync(test, "root"));
        Assert.Equal(leaf, await ContentAsync(test, "leaf"));
        Assert.Equal(bud, await ContentAsync(test, "bud"));
        DiskInfo there = await test.Daemon.Stores.Find(second)!.DescribeAsync();
        Assert.True(there.UsedBytes < 8 * Units.MiB + 64 * Units.BlockBytes, $"{there.UsedBytes} bytes are used: the blocks are not shared any more");
        VolumeRecord moved = test.Daemon.Directory.Find("bud")!;
        Assert.Equal("t", (await VolumeSight.OfAsync(test.Daemon, [moved]))[moved.Id].BaseName);
    }

    [Fact]
    public async Task While_it_moves_a_volume_cannot_be_deleted_resized_or_rolled_back_but_snapshots_are_cut()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        (Guid first, Guid second) = await DisksAsync(test);
        await test.CreateAsync("v", 8 * Units.MiB, first);
        await WriteAsync(test, "v", 0, Block(0, 1));
        await test.Daemon.Directory.CutAsync("s", ["v"], default);
        VolumeDirectory directory = test.Daemon.Directory;
        Assert.Null((await directory.BeginMoveAsync("v", second)).Fault);
        Assert.Equal("volume-moving", (await directory.DeleteAsync("v", null, null, withSnapshots: true)).Fault!.Code);
        Assert.Equal("volume-moving", (await directory.ChangeAsync("v", new ChangeVolume(SizeBytes: 9 * Units.MiB))).Fault!.Code);
        Assert.Equal("volume-moving", (await directory.RollBackAsync("v", "s", null)).Fault!.Code);
        Assert.Equal("volume-moving", (await directory.DeleteSnapshotAsync("v", "s", null)).Fault!.Code);
        Assert.Equal("volume-moving", (await directory.CloneAsync("v", new CloneVolume("c"))).Fault!.Code);
        Assert.Null((await directory.CutAsync("during", ["v"], default)).Fault);
        // The start takes it up again; here the same move is asked for.
        await MoveAsync(test, "v", second);
        Assert.Equal(["s", "during"], (await directory.SnapshotsAsync(directory.Find("v")!)).Snapshots.Select(s => s.Info.Name));
        Assert.Null((await directory.DeleteAsync("v", null, null, withSnapshots: true)).Fault);
    }

    [Fact]
    public async Task A_move_without_room_is_given_up_and_leaves_nothing()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=320m");
        (Guid first, Guid second) = await DisksAsync(test);
        await test.CreateAsync("big", 200 * Units.MiB, first);
        var piece = new byte[Units.MiB];
        for (ulong i = 0; i < 180; i++)
        {
            new Random((int)i).NextBytes(piece);
            await WriteAsync(test, "big", i * Units.MiB, piece);
        }

        IOException refused = await Assert.ThrowsAnyAsync<IOException>(() => MoveAsync(test, "big", second));
        Assert.Contains("no room", refused.Message, StringComparison.Ordinal);
        Assert.Equal(first, test.Daemon.Directory.Find("big")!.StoreId);
        Assert.Empty(test.Daemon.Directory.Moves);
        Assert.Empty(await test.Daemon.Stores.Find(second)!.ListAsync());
        Assert.Empty((await test.Daemon.Stores.Find(first)!.LayersAsync(test.Daemon.Directory.Find("big")!.Id))!.Snapshots);
        await WriteAsync(test, "big", 0, Block(0, 3));
    }
}
