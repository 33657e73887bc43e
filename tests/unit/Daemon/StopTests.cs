using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>A stop ends, whatever a disk does.</summary>
public sealed class StopTests
{
    [Fact]
    public async Task A_disk_that_never_answers_is_named_and_given_up_and_loses_nothing()
    {
        var hung = new List<HungFile>();
        await using TestDaemon test = await TestDaemon.StartAsync(file =>
        {
            lock (hung) hung.Add(new HungFile(file));
            return hung[^1];
        }, "stop-wait=1");
        StoreHost second = await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("two.blk"), "slow", 80 * Units.MiB, false));
        VolumeRecord good = await test.CreateAsync("good", store: test.Daemon.Stores.All.Single(h => h.Name == "store-0").StoreId);
        VolumeRecord slow = await test.CreateAsync("slow", store: second.StoreId);
        byte[] data = new byte[4096];
        data.AsSpan().Fill(0x5A);
        foreach (VolumeRecord volume in new[] { good, slow }) Assert.Equal(IoStatus.Ok, await WriteAsync(test, volume, data));
        hung[1].IsHung = true;
        _ = WriteAsync(test, slow, new byte[4096]);

        var lines = new List<string>();
        Assert.False(await test.StopAsync(lines.Add));
        string line = Assert.Single(lines);
        Assert.Contains($"disk slow ({test.PathOf("two.blk")}) has answered nothing for 1 s", line, StringComparison.Ordinal);
        Assert.DoesNotContain("store-0", line, StringComparison.Ordinal);

        // This process still holds the file of the disk; what lies on it is as after a kill.
        // cp, since the runtime reads no file that is locked.
        using (var copy = System.Diagnostics.Process.Start("cp", [test.PathOf("two.blk"), test.PathOf("copy.blk")]))
        {
            await copy.WaitForExitAsync();
            Assert.Equal(0, copy.ExitCode);
        }

        await test.StartAgainAsync();
        Assert.Equal(data, await ReadAsync(test, "good"));
        Assert.Equal("refused", Assert.Single(test.Daemon.Disks.Absent).State);
        File.Delete(test.PathOf("two.blk"));
        StoreHost back = await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("copy.blk"), null, null, false));
        Assert.Equal(second.StoreId, back.StoreId);
        Assert.Equal(data, await ReadAsync(test, "slow"));
        Assert.True(await test.StopAsync());
    }

    private static Task<IoStatus> WriteAsync(TestDaemon test, VolumeRecord volume, byte[] data)
    {
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        return host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, data, WriteFlags.Fua));
    }

    private static async Task<byte[]> ReadAsync(TestDaemon test, string name)
    {
        VolumeRecord volume = test.Daemon.Directory.Find(name)!;
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        var data = new byte[4096];
        Assert.Equal(IoStatus.Ok, (await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.ReadAsync(0, data))).Status);
        return data;
    }

    private sealed class HungFile(IFile file) : IFile
    {
        public volatile bool IsHung;

        public ulong SizeBytes => file.SizeBytes;

        public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) => IsHung ? Never() : file.ReadAsync(offsetBytes, target);

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) =>
            IsHung ? Never() : file.WriteAsync(offsetBytes, source);

        public ValueTask<IoStatus> FlushAsync() => IsHung ? Never() : file.FlushAsync();

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => IsHung ? Never() : file.DiscardAsync(offsetBytes, lengthBytes);

        private static ValueTask<IoStatus> Never() => new LoopEvent<IoStatus>().WaitAsync();
    }
}
