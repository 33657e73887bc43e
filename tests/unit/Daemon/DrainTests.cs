using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Disks that are emptied, replaced and evened out, and one that does not answer any more.</summary>
public sealed class DrainTests
{
    private const ulong DiskBytes = 160 * Units.MiB;

    private static async Task<Guid> AddAsync(TestDaemon test, string name, ulong bytes = DiskBytes) =>
        (await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf(name + ".blk"), name, bytes))).StoreId;

    private static (Drains Drains, TaskRegistry Tasks) Begin(TestDaemon test) =>
        (new Drains(test.Daemon, new Moves(test.Daemon)), test.Daemon.Tasks);

    private static async Task<TaskInfo> EndedAsync(TaskRegistry tasks, TaskInfo task)
    {
        while (tasks.Find(task.Id) is { EndedAt: null }) await Task.Delay(5, TestContext.Current.CancellationToken);
        return tasks.Find(task.Id)!;
    }

    private static async Task WriteAsync(TestDaemon test, VolumeRecord volume, ulong bytes)
    {
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        var data = new byte[bytes];
        new Random((int)volume.Id).NextBytes(data);
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, data, WriteFlags.Fua)));
    }

    private static async Task CheckAsync(TestDaemon test, string name, ulong bytes)
    {
        VolumeRecord volume = test.Daemon.Directory.Find(name)!;
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        byte[] data = new byte[bytes], expected = new byte[bytes];
        new Random((int)volume.Id).NextBytes(expected);
        Assert.Equal(IoStatus.Ok, (await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.ReadAsync(0, data))).Status);
        Assert.Equal(expected, data);
    }

    [Fact]
    public async Task A_drained_disk_is_empty_takes_nothing_new_and_can_be_removed()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        (Drains drains, TaskRegistry tasks) = Begin(test);
        Assert.Equal("no-other-disk", (await Assert.ThrowsAsync<DiskException>(() => drains.BeginAsync(first))).Code);
        for (int i = 0; i < 8; i++) await WriteAsync(test, await test.CreateAsync($"v{i}", 4 * Units.MiB), Units.MiB);
        Guid second = await AddAsync(test, "second"), third = await AddAsync(test, "third");

        TaskInfo done = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.Equal("succeeded", done.State);
        Assert.Equal(0, test.Daemon.Directory.CountOn(first));
        Assert.True(test.Daemon.Directory.CountOn(second) > 0 && test.Daemon.Directory.CountOn(third) > 0);
        for (int i = 0; i < 8; i++) await CheckAsync(test, $"v{i}", Units.MiB);
        for (int i = 0; i < 4; i++) Assert.NotEqual(first, (await test.CreateAsync($"new{i}")).StoreId);
        // What is empty because it was emptied stays so over a restart.
        await test.RestartAsync();
        Assert.NotEqual(first, (await test.CreateAsync("later")).StoreId);
        await test.Daemon.RemoveDiskAsync(first, isForced: false);
        Assert.Null(test.Daemon.Stores.Find(first));
        for (int i = 0; i < 8; i++) await CheckAsync(test, $"v{i}", Units.MiB);
    }

    [Fact]
    public async Task A_drain_that_a_restart_interrupts_goes_on_and_one_that_is_cancelled_does_not()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        for (int i = 0; i < 4; i++) await WriteAsync(test, await test.CreateAsync($"v{i}", 8 * Units.MiB), 8 * Units.MiB);
        await AddAsync(test, "second");
        await test.Daemon.Disks.MarkDrainingAsync(first, true);
        Assert.Null((await test.Daemon.Directory.BeginMoveAsync("v1", test.Daemon.Stores.All.First(h => h.StoreId != first).StoreId)).Fault);
        await test.RestartAsync();
        (Drains drains, TaskRegistry tasks) = Begin(test);
        drains.Resume();
        Assert.Equal("succeeded", (await EndedAsync(tasks, Assert.Single(tasks.List(), t => t.Kind == "drain"))).State);
        Assert.Equal(0, test.Daemon.Directory.CountOn(first));

        await test.Daemon.Disks.MarkDrainingAsync(first, false);
        Guid second = test.Daemon.Stores.All.First(h => h.StoreId != first).StoreId;
        TaskInfo back = await drains.BeginAsync(second);
        tasks.Cancel(back.Id);
        Assert.Equal("cancelled", (await EndedAsync(tasks, back)).State);
        Assert.False(test.Daemon.Directory.IsDraining(second));
        Assert.Empty(test.Daemon.Directory.Moves);
        for (int i = 0; i < 4; i++) await CheckAsync(test, $"v{i}", 8 * Units.MiB);
    }

    [Fact]
    public async Task A_drained_disk_is_used_again_when_that_is_asked_for_during_the_drain_and_after_it()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        (Drains drains, TaskRegistry tasks) = Begin(test);
        CancellationToken stop = TestContext.Current.CancellationToken;
        Assert.Equal("not-draining", (await Assert.ThrowsAsync<DiskException>(() => drains.UndoAsync(first, stop))).Code);
        Assert.Equal("no-such-disk", (await Assert.ThrowsAsync<DiskException>(() => drains.UndoAsync(Guid.NewGuid(), stop))).Code);
        for (int i = 0; i < 4; i++) await WriteAsync(test, await test.CreateAsync($"v{i}", 8 * Units.MiB), 8 * Units.MiB);
        Guid second = await AddAsync(test, "second");

        TaskInfo going = await drains.BeginAsync(first);
        await drains.UndoAsync(first, stop);
        Assert.Contains((await EndedAsync(tasks, going)).State, new[] { "cancelled", "succeeded" });
        Assert.False(test.Daemon.Directory.IsDraining(first));

        Assert.Equal("succeeded", (await EndedAsync(tasks, await drains.BeginAsync(first))).State);
        Assert.True(test.Daemon.Directory.IsDraining(first));
        await drains.UndoAsync(first, stop);
        // For good: a restart does not begin to drain it again, and the other disk can be drained onto it.
        await test.RestartAsync();
        Assert.False(test.Daemon.Directory.IsDraining(first));
        (drains, tasks) = Begin(test);
        drains.Resume();
        Assert.DoesNotContain(tasks.List(), t => t.Kind == "drain" && t.EndedAt is null);
        Assert.Equal("succeeded", (await EndedAsync(tasks, await drains.BeginAsync(second))).State);
        for (int i = 0; i < 4; i++)
        {
            Assert.Equal(first, test.Daemon.Directory.Find($"v{i}")!.StoreId);
            await CheckAsync(test, $"v{i}", 8 * Units.MiB);
        }
    }

    [Fact]
    public async Task A_replaced_disk_is_out_of_service_with_everything_on_the_new_one()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        await AddAsync(test, "bystander");
        await WriteAsync(test, await test.CreateAsync("v", 8 * Units.MiB, first), 8 * Units.MiB);
        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo done = await EndedAsync(tasks, await drains.ReplaceAsync(first, new AddDisk(test.PathOf("fresh.blk"), "fresh", DiskBytes)));
        Assert.True(done.State == "succeeded", done.Result);
        Assert.Null(test.Daemon.Stores.Find(first));
        Assert.Equal("fresh", test.Daemon.Stores.Find(test.Daemon.Directory.Find("v")!.StoreId)!.Name);
        await CheckAsync(test, "v", 8 * Units.MiB);
    }

    [Fact]
    public async Task Disks_are_evened_out_by_what_is_used()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        for (int i = 0; i < 8; i++) await WriteAsync(test, await test.CreateAsync($"v{i}", 8 * Units.MiB, first), 8 * Units.MiB);
        Guid second = await AddAsync(test, "second");
        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo done = await EndedAsync(tasks, drains.Rebalance());
        Assert.True(done.State == "succeeded", done.Result);
        Assert.Equal((4, 4), (test.Daemon.Directory.CountOn(first), test.Daemon.Directory.CountOn(second)));
        for (int i = 0; i < 8; i++) await CheckAsync(test, $"v{i}", 8 * Units.MiB);
        Assert.Contains("even", (await EndedAsync(tasks, drains.Rebalance())).Result, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_disk_that_answers_nothing_is_removed_all_the_same()
    {
        var stuck = new StuckFile();
        await using TestDaemon test = await TestDaemon.StartAsync(file => stuck.Around(file), "store-size=160m", "stop-wait=1");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        VolumeRecord volume = await test.CreateAsync("v", 4 * Units.MiB, first);
        stuck.IsStuck = true;
        // Somebody waits for the disk inside a change of the directory.
        Task<DirectoryResult> waiting = test.Daemon.Directory.CreateAsync(new CreateVolume("never", Units.MiB, StoreId: first));
        await test.Daemon.RemoveDiskAsync(first, isForced: true);
        Assert.Null(test.Daemon.Stores.Find(first));
        Assert.Equal("disk-unavailable", (await waiting).Fault!.Code);
        Assert.NotNull(test.Daemon.Directory.Find(volume.Name));
        Assert.Contains(test.Daemon.Warnings, w => w.Contains("given up", StringComparison.Ordinal));
        stuck.IsStuck = false;
        stuck.Release();
    }

    [Fact]
    public async Task What_a_failed_disk_still_reads_moves_to_another_one_and_is_written_again()
    {
        var faulty = new FaultyFile();
        await using TestDaemon test = await TestDaemon.StartAsync(file => faulty.Around(file), "store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        VolumeRecord volume = await test.CreateAsync("v", 8 * Units.MiB, first);
        await WriteAsync(test, volume, 8 * Units.MiB);
        await test.Daemon.Directory.CutAsync("s", ["v"], default);
        await WriteAsync(test, volume, Units.MiB);
        faulty.FailsFlush = true;
        StoreHost host = test.Daemon.Stores.Find(first)!;
        Assert.NotEqual(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, new byte[4096], WriteFlags.Fua)));
        faulty.FailsFlush = false;
        faulty.Around(null);
        Assert.Equal("failed", (await host.DescribeAsync()).Status);
        Assert.Equal("failed", (await host.DescribeAsync()).Health);
        Guid second = await AddAsync(test, "second");
        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo done = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.True(done.State == "succeeded", done.Result);
        Assert.Equal(second, test.Daemon.Directory.Find("v")!.StoreId);
        Assert.Equal("s", Assert.Single((await test.Daemon.Directory.SnapshotsAsync(test.Daemon.Directory.Find("v")!)).Snapshots).Info.Name);
        await WriteAsync(test, test.Daemon.Directory.Find("v")!, 8 * Units.MiB);
    }

    [Fact]
    public async Task A_volume_with_a_block_that_cannot_be_read_stays_and_the_task_names_it()
    {
        var faulty = new FaultyFile();
        await using TestDaemon test = await TestDaemon.StartAsync(file => faulty.Around(file), "store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        VolumeRecord good = await test.CreateAsync("good", 8 * Units.MiB, first), bad = await test.CreateAsync("bad", 8 * Units.MiB, first);
        await WriteAsync(test, good, 4 * Units.MiB);
        await WriteAsync(test, bad, 4 * Units.MiB);
        // One block is written by itself, and where it went cannot be read any more.
        const ulong offset = 3 * Units.MiB + 5 * 4096;
        var block = new byte[4096];
        new Random(99).NextBytes(block);
        ulong place = 0;
        faulty.Writing = (at, source) =>
        {
            if (source.Span.SequenceEqual(block)) place = at;
        };
        StoreHost host = test.Daemon.Stores.Find(first)!;
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(bad.Id)!.WriteAsync(offset, block, WriteFlags.Fua)));
        Assert.NotEqual(0UL, place);
        faulty.FailsReads = (int)place..(int)(place + 4096);
        Guid second = await AddAsync(test, "second");

        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo ended = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.Equal("failed", ended.State);
        Assert.Contains("1 volumes moved, 1 stay: 'bad'", ended.Result, StringComparison.Ordinal);
        Assert.Contains($"byte {offset}", ended.Result, StringComparison.Ordinal);
        Assert.Equal((second, first), (test.Daemon.Directory.Find("good")!.StoreId, test.Daemon.Directory.Find("bad")!.StoreId));
        await CheckAsync(test, "good", 4 * Units.MiB);
        await CheckAsync(test, "bad", 3 * Units.MiB); // what lies in front of it is served on
        Assert.Empty(test.Daemon.Directory.Moves);
        Assert.DoesNotContain(test.Daemon.Stores.Find(second)!.Store.Volumes, v => v.Id == bad.Id); // and nothing of it is left there

        // Overwritten it is good again, elsewhere, and goes.
        await WriteAsync(test, bad, 4 * Units.MiB);
        ended = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.True(ended.State == "succeeded", ended.Result);
        await CheckAsync(test, "bad", 4 * Units.MiB);
    }

    [Fact]
    public async Task A_target_that_fails_its_writes_leaves_the_volume_at_home_and_usable()
    {
        int disks = 0;
        var faulty = new FaultyFile();
        await using TestDaemon test = await TestDaemon.StartAsync(file => disks++ == 0 ? file : faulty.Around(file), "store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        VolumeRecord volume = await test.CreateAsync("v", 8 * Units.MiB, first);
        await WriteAsync(test, volume, 8 * Units.MiB);
        Guid second = await AddAsync(test, "second");
        // From the second MiB of data on nothing is taken any more.
        int large = 0;
        faulty.Writing = (_, source) => faulty.FailsWrites |= source.Length >= 256 * 1024 && ++large > 1;
        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo ended = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.Equal("failed", ended.State);
        Assert.Contains("'v'", ended.Result, StringComparison.Ordinal);
        Assert.Equal(first, test.Daemon.Directory.Find("v")!.StoreId);
        await CheckAsync(test, "v", 8 * Units.MiB);
        await WriteAsync(test, volume, 8 * Units.MiB);
        Assert.Equal("failed", (await test.Daemon.Stores.Find(second)!.DescribeAsync()).Health);
        // Another disk takes it.
        Guid third = await AddAsync(test, "third");
        await test.Daemon.RemoveDiskAsync(second, isForced: true);
        ended = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.True(ended.State == "succeeded", ended.Result);
        Assert.Equal(third, test.Daemon.Directory.Find("v")!.StoreId);
        await CheckAsync(test, "v", 8 * Units.MiB);
    }

    [Fact]
    public async Task A_target_without_room_takes_what_fits_and_the_rest_stays()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        Guid small = await AddAsync(test, "small", 84 * Units.MiB);
        ulong room = (await test.Daemon.Stores.Find(small)!.FreeBytesAsync())!.Value;
        ulong large = (room / Units.MiB + 2) * Units.MiB;
        await WriteAsync(test, await test.CreateAsync("fits", 4 * Units.MiB, first), 4 * Units.MiB);
        await WriteAsync(test, await test.CreateAsync("large", large, first), large);
        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo ended = await EndedAsync(tasks, await drains.BeginAsync(first));
        Assert.Equal("failed", ended.State);
        Assert.Contains("1 stay: 'large'", ended.Result, StringComparison.Ordinal);
        Assert.Contains("has no room", ended.Result, StringComparison.Ordinal);
        Assert.Equal((small, first), (test.Daemon.Directory.Find("fits")!.StoreId, test.Daemon.Directory.Find("large")!.StoreId));
        await CheckAsync(test, "fits", 4 * Units.MiB);
        await CheckAsync(test, "large", large);
        // What had come is given back.
        StoreHost target = test.Daemon.Stores.Find(small)!;
        while ((await target.FreeBytesAsync())!.Value < room - 6 * Units.MiB) await Task.Delay(10, TestContext.Current.CancellationToken);
        await WriteAsync(test, test.Daemon.Directory.Find("fits")!, 4 * Units.MiB);
    }

    [Fact]
    public async Task A_failed_disk_is_told_once_and_drained_by_itself_unless_that_is_off()
    {
        foreach (string drains in new[] { "on", "off" })
        {
            var faulty = new FaultyFile();
            await using TestDaemon test = await TestDaemon.StartAsync(file => faulty.Around(file), "store-size=160m", "drain-failed=" + drains);
            Guid first = test.Daemon.Stores.All[0].StoreId;
            VolumeRecord volume = await test.CreateAsync("v", 8 * Units.MiB, first);
            await WriteAsync(test, volume, 8 * Units.MiB);
            Guid second = await AddAsync(test, "second");
            var warnings = new List<string>();
            var watch = new DiskWatch(test.Daemon, Begin(test).Drains, warnings.Add);
            Assert.Equal(2, await watch.LookAsync());
            faulty.FailsFlush = true;
            StoreHost host = test.Daemon.Stores.Find(first)!;
            Assert.NotEqual(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, new byte[4096], WriteFlags.Fua)));
            for (int i = 0; i < 3; i++) await watch.LookAsync();
            Assert.Single(warnings, w => w.Contains("is failed", StringComparison.Ordinal));
            Assert.Equal(drains == "on", test.Daemon.Directory.IsDraining(first));
            if (drains == "off") continue;
            TaskInfo ended = await EndedAsync(test.Daemon.Tasks, Assert.Single(test.Daemon.Tasks.List(), t => t.Kind == "drain"));
            Assert.True(ended.State == "succeeded", ended.Result);
            Assert.Equal(second, test.Daemon.Directory.Find("v")!.StoreId);
            await WriteAsync(test, test.Daemon.Directory.Find("v")!, 8 * Units.MiB);
            await CheckAsync(test, "v", 8 * Units.MiB);
        }
    }

    [Fact]
    public async Task An_idle_disk_is_not_asked_how_it_is()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("relayout=off");
        VolumeRecord volume = await test.CreateAsync("v");
        StoreHost host = test.Daemon.Stores.All[0];
        await host.Thread.InvokeAsync(() => host.Store.FlushAsync());
        var watch = new DiskWatch(test.Daemon, Begin(test).Drains, _ => { });
        while (await watch.LookAsync() > 0) await Task.Delay(10, TestContext.Current.CancellationToken); // what begins with the daemon ends
        for (int i = 0; i < 5; i++) Assert.Equal(0, await watch.LookAsync());
        await WriteAsync(test, volume, 4096);
        Assert.Equal(1, await watch.LookAsync());
    }

    [Fact]
    public async Task A_replacement_that_a_restart_interrupts_ends_with_the_old_disk_out_of_service()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=160m", "move-rate=2m");
        Guid first = test.Daemon.Stores.All[0].StoreId;
        await AddAsync(test, "bystander"); // nothing goes there
        for (int i = 0; i < 2; i++) await WriteAsync(test, await test.CreateAsync($"v{i}", 4 * Units.MiB, first), 4 * Units.MiB);
        (Drains drains, TaskRegistry tasks) = Begin(test);
        TaskInfo task = await drains.ReplaceAsync(first, new AddDisk(test.PathOf("fresh.blk"), "fresh", DiskBytes));
        while (test.Daemon.Directory.Moves.Count == 0) await Task.Delay(5, TestContext.Current.CancellationToken);
        Assert.Null(tasks.Find(task.Id)!.EndedAt);
        await test.RestartAsync();
        Assert.NotNull(test.Daemon.Stores.Find(first));
        await new DiskRoutes(test.Daemon).ResumeAsync();
        while (test.Daemon.Stores.Find(first) is not null) await Task.Delay(20, TestContext.Current.CancellationToken);
        for (int i = 0; i < 2; i++)
        {
            Assert.Equal("fresh", test.Daemon.Stores.Find(test.Daemon.Directory.Find($"v{i}")!.StoreId)!.Name);
            await CheckAsync(test, $"v{i}", 4 * Units.MiB);
        }

        // And it stays out.
        await test.RestartAsync();
        Assert.Null(test.Daemon.Stores.Find(first));
        Assert.Empty(test.Daemon.Directory.Moves);
    }
}
