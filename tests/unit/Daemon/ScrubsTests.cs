using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Reading and verifying whole disks: what is found is kept, and what was done is not done again.</summary>
public sealed class ScrubsTests
{
    private static async Task<TaskInfo> PassAsync(TestDaemon test)
    {
        TaskRegistry tasks = test.Daemon.Tasks;
        TaskInfo task = new Scrubs(test.Daemon, SystemClock.Instance).Begin(test.Daemon.Stores.All[0], 0);
        while (tasks.Find(task.Id) is { EndedAt: null }) await Task.Delay(5, TestContext.Current.CancellationToken);
        return tasks.Find(task.Id)!;
    }

    private static async Task WriteAsync(TestDaemon test, VolumeRecord volume, int blocks, int seed = 1)
    {
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        var data = new byte[blocks * Units.BlockBytes];
        new Random(seed).NextBytes(data);
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, data, WriteFlags.Fua)));
    }

    [Fact]
    public async Task Bad_blocks_are_listed_by_volume_and_offset_over_restarts_until_a_scrub_finds_them_good()
    {
        var faulty = new FaultyFile();
        await using TestDaemon test = await TestDaemon.StartAsync(file => faulty.Around(file));
        await WriteAsync(test, await test.CreateAsync("good"), 2);
        VolumeRecord bad = await test.CreateAsync("bad");
        await WriteAsync(test, bad, 3);
        Assert.Equal("succeeded", (await PassAsync(test)).State);
        Assert.Empty(test.Daemon.ScrubRecords.Bad());

        // The blocks that were read in a pass were written in order: those of the second volume lie behind those of the first.
        faulty.FailsReads = 0..int.MaxValue;
        TaskInfo failed = await PassAsync(test);
        faulty.FailsReads = null;
        Assert.Equal("failed", failed.State);
        Assert.Contains("5 bad", failed.Result, StringComparison.Ordinal);
        Assert.Equal(
            [0UL, 4096, 8192], test.Daemon.ScrubRecords.Bad().Where(b => b.VolumeId == bad.Id).Select(b => b.OffsetBytes));
        await test.RestartAsync();
        Assert.Equal(5, test.Daemon.ScrubRecords.Bad().Count);
        Assert.All(test.Daemon.ScrubRecords.Bad(), b => Assert.Equal(IoStatus.IoError, b.Reason));
        Assert.Null((await test.Daemon.Directory.DeleteAsync("good", null, null)).Fault);
        Assert.Equal("succeeded", (await PassAsync(test)).State);
        Assert.Empty(test.Daemon.ScrubRecords.Bad());
    }

    [Fact]
    public async Task A_pass_goes_on_behind_the_last_volume_that_was_read_and_is_due_again_after_its_period()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("scrub-period=2");
        VolumeRecord first = await test.CreateAsync("first"), second = await test.CreateAsync("second");
        await WriteAsync(test, first, 10);
        await WriteAsync(test, second, 7);
        Guid store = first.StoreId;
        DateTimeOffset began = SystemClock.Instance.UtcNow - TimeSpan.FromHours(1);
        Assert.True(await test.Daemon.ScrubRecords.KeepAsync(store, new ScrubRecord(began, null, first.Id, [])));
        await test.RestartAsync();
        Assert.StartsWith("7 blocks", (await PassAsync(test)).Result, StringComparison.Ordinal);
        ScrubRecord ended = test.Daemon.ScrubRecords.Find(store);
        Assert.Equal(began, ended.BeganAt);
        Assert.NotNull(ended.EndedAt);

        TaskRegistry tasks = test.Daemon.Tasks;
        var clock = new ManualClock { UtcNow = ended.EndedAt.Value + TimeSpan.FromHours(47) };
        var scrubs = new Scrubs(test.Daemon, clock);
        scrubs.BeginDue();
        int before = tasks.List().Count;
        Assert.DoesNotContain(tasks.List(), t => t.EndedAt is null);
        clock.UtcNow += TimeSpan.FromHours(2);
        scrubs.BeginDue();
        Assert.Equal(before + 1, tasks.List().Count);
        TaskInfo task = tasks.List()[0];
        while (tasks.Find(task.Id) is { EndedAt: null }) await Task.Delay(5, TestContext.Current.CancellationToken);
        Assert.StartsWith("17 blocks", tasks.Find(task.Id)!.Result, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_pass_goes_on_inside_of_a_volume_and_keeps_what_it_found_in_front()
    {
        var faulty = new FaultyFile();
        await using TestDaemon test = await TestDaemon.StartAsync(file => faulty.Around(file), "store-size=256m");
        VolumeRecord volume = await test.CreateAsync("large", 128 * Units.MiB);
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        await host.Thread.InvokeAsync(async () =>
        {
            var data = new byte[Units.ExtentBytes];
            new Random(3).NextBytes(data);
            IBlockDevice device = host.Store.OpenVolume(volume.Id)!;
            for (ulong at = 0; at < volume.SizeBytes; at += Units.MiB) Assert.Equal(IoStatus.Ok, await device.WriteAsync(at, data, WriteFlags.None));
            Assert.Equal(IoStatus.Ok, await device.FlushAsync());
        });
        // What an earlier pass said is void; what this one finds at its begin stays.
        DateTimeOffset yesterday = SystemClock.Instance.UtcNow - TimeSpan.FromDays(1);
        await test.Daemon.ScrubRecords.KeepAsync(volume.StoreId, new ScrubRecord(
            yesterday, yesterday, 0, [new ScrubFinding(volume.Id, 77 * Units.MiB, IoStatus.Corrupt, null, yesterday)]));
        faulty.FailsReads = 0..int.MaxValue;
        TaskRegistry tasks = test.Daemon.Tasks;
        TaskInfo task = new Scrubs(test.Daemon, SystemClock.Instance).Begin(test.Daemon.Stores.All[0], 0);
        ScrubRecord Record() => test.Daemon.ScrubRecords.Find(volume.StoreId);
        while (Record().Position == 0) await Task.Delay(1, TestContext.Current.CancellationToken);
        ulong first = Record().Position;
        faulty.FailsReads = null;
        tasks.Cancel(task.Id);
        while (tasks.Find(task.Id) is { EndedAt: null }) await Task.Delay(1, TestContext.Current.CancellationToken);
        ScrubRecord stopped = Record();
        Assert.Equal(volume.Id, stopped.Volume);
        Assert.InRange(stopped.Position, first, 200UL);
        ScrubFinding[] found = [.. stopped.Bad.Where(b => b.FoundAt > yesterday)];
        Assert.NotEmpty(found);

        await test.RestartAsync();
        TaskInfo rest = await PassAsync(test);
        ulong read = ulong.Parse(rest.Result!.Split(' ')[0], System.Globalization.CultureInfo.InvariantCulture);
        // A slot holds an extent; the head of the volume has one too.
        Assert.InRange(read, (129 - stopped.Position) * 256 - 512, (129 - stopped.Position) * 256);
        ScrubRecord ended = Record();
        Assert.Equal((0u, 0UL), (ended.Volume, ended.Position));
        Assert.Equal(found.Select(b => b.OffsetBytes).Order(), ended.Bad.Select(b => b.OffsetBytes).Order());
        Assert.DoesNotContain(ended.Bad, b => b.OffsetBytes == 77 * Units.MiB && b.FoundAt == yesterday);
    }

    [Fact]
    public async Task Writes_in_the_middle_of_a_pass_are_never_called_bad()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        VolumeRecord volume = await test.CreateAsync("busy");
        await WriteAsync(test, volume, 256);
        var end = new TaskCompletionSource();
        Task load = Task.Run(
            async () =>
            {
                for (int i = 2; !end.Task.IsCompleted; i++) await WriteAsync(test, volume, 1 + i % 200, i);
            }, TestContext.Current.CancellationToken);
        for (int i = 0; i < 5; i++) Assert.Equal("succeeded", (await PassAsync(test)).State);
        end.SetResult();
        await load;
        Assert.Empty(test.Daemon.ScrubRecords.Bad());
    }

    private sealed class ManualClock : IWallClock
    {
        public DateTimeOffset UtcNow { get; set; }
    }
}
