using System.Buffers.Binary;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Faults that are put into a running daemon: each makes exactly one right event, and it goes when the fault does.</summary>
public sealed class EventWatchTests
{
    [Fact]
    public async Task A_disk_whose_flush_fails_is_told_once_and_is_over_when_the_disk_is_removed()
    {
        var disks = new List<FaultyFile>();
        await using TestDaemon test = await TestDaemon.StartAsync(file =>
        {
            lock (disks) disks.Add(new FaultyFile(file));
            return disks[^1];
        });
        StoreHost second = await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("two.blk"), "two", 80 * Units.MiB, false));
        VolumeRecord volume = await test.CreateAsync("v", store: second.StoreId);
        Assert.Empty(await OpenAsync(test));
        disks[1].FailsFlushes = true;
        IoStatus status = await second.Thread.InvokeAsync(async () =>
        {
            IBlockDevice device = second.Store.OpenVolume(volume.Id)!;
            await device.WriteAsync(0, new byte[4096], WriteFlags.None);
            return await device.FlushAsync();
        });
        Assert.NotEqual(IoStatus.Ok, status);
        EventInfo fault = Assert.Single(await OpenAsync(test));
        Assert.Equal((EventCatalogue.DiskFailed, "two", "critical"), (fault.Code, fault.Subject, fault.Severity));
        Assert.Equal(fault.Id, Assert.Single(await OpenAsync(test)).Id);
        await test.Daemon.RemoveDiskAsync(second.StoreId, isForced: true);
        Assert.Empty(await OpenAsync(test));
    }

    [Fact]
    public async Task A_block_that_is_not_what_was_written_is_told()
    {
        var disks = new List<FaultyFile>();
        await using TestDaemon test = await TestDaemon.StartAsync(file =>
        {
            lock (disks) disks.Add(new FaultyFile(file));
            return disks[^1];
        });
        VolumeRecord volume = await test.CreateAsync("v");
        StoreHost host = test.Daemon.Stores.All[0];
        byte[] data = new byte[4096];
        data.AsSpan().Fill(0xA5);
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, data, WriteFlags.Fua)));
        disks[0].Rots = true;
        Assert.Equal(IoStatus.Corrupt, (await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.ReadAsync(0, data))).Status);
        disks[0].Rots = false;
        EventInfo fault = Assert.Single(await OpenAsync(test));
        Assert.Equal((EventCatalogue.Checksum, host.Name, "error"), (fault.Code, fault.Subject, fault.Severity));
        Assert.Empty(await OpenAsync(test, hours: 2)); // no more were found
    }

    [Fact]
    public async Task A_missing_disk_is_told_after_a_restart_and_over_when_it_is_back()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        string path = test.PathOf("two.blk");
        await test.Daemon.Disks.AddAsync(new AddDisk(path, "two", 80 * Units.MiB, false));
        await test.StopAsync();
        File.Move(path, path + ".away");
        await test.StartAgainAsync();
        EventInfo fault = Assert.Single(await OpenAsync(test));
        Assert.Equal((EventCatalogue.DiskMissing, "two"), (fault.Code, fault.Subject));
        await test.StopAsync();
        File.WriteAllBytes(path, new byte[1 << 20]);
        await test.StartAgainAsync();
        Assert.Equal(EventCatalogue.DiskRefused, Assert.Single(await OpenAsync(test)).Code);
        File.Delete(path);
        File.Move(path + ".away", path);
        await test.Daemon.Disks.AddAsync(new AddDisk(path, null, null, false));
        Assert.Empty(await OpenAsync(test));
        Assert.Contains(test.Daemon.Events.List(), e => e.Id == fault.Id && e.ClearedAt is not null); // over restarts too
    }

    [Fact]
    public async Task A_full_disk_is_told_as_low_then_full_and_is_over_when_the_volume_goes()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("low-space=25", "write-protect=100");
        VolumeRecord volume = await test.CreateAsync("v", 64 << 20);
        StoreHost host = test.Daemon.Stores.All[0];
        var seen = new List<string>();
        IoStatus status = IoStatus.Ok;
        for (ulong at = 0; status == IoStatus.Ok && at < volume.SizeBytes; at += 256 << 10)
        {
            status = await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(at, Junk(256 << 10, at), WriteFlags.None));
            if (status == IoStatus.NoSpace) break;
            IReadOnlyList<EventInfo> open = await OpenAsync(test);
            Assert.InRange(open.Count, 0, 1); // never both
            foreach (EventInfo e in open) seen.Add(e.Code);
        }

        for (ulong at = 0; status == IoStatus.NoSpace && at < 256 << 10; at += 4096) // the rest, block by block
            await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(volume.SizeBytes - (256 << 10) + at, Junk(4096, at), WriteFlags.None));
        if (status == IoStatus.NoSpace) Assert.Equal(EventCatalogue.StoreFull, Assert.Single(await OpenAsync(test)).Code);
        Assert.Equal(EventCatalogue.StoreLow, seen[0]);
        Assert.Empty(seen.Except([EventCatalogue.StoreLow, EventCatalogue.StoreFull]));
        await test.Daemon.Directory.DeleteAsync("v", volume.Id, null);
        for (int i = 0; i < 200 && (await OpenAsync(test)).Count > 0; i++) await Task.Delay(20); // its space comes back in the background
        Assert.Empty(await OpenAsync(test));
    }

    [Fact]
    public async Task A_disk_that_runs_full_takes_no_new_extents_and_everything_else_goes_on()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("write-protect=90", "store-size=160m");
        VolumeRecord volume = await test.CreateAsync("v", 1 << 30);
        StoreHost host = test.Daemon.Stores.All[0];
        Task<IoStatus> Write(ulong at, int length) =>
            host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(at, Junk(length, at), WriteFlags.None));
        ulong end = 0;
        while (await Write(end, 1 << 20) == IoStatus.Ok) end += Units.MiB;
        EventInfo fault = Assert.Single(await OpenAsync(test));
        Assert.Equal((EventCatalogue.StoreProtected, "store-0", "error"), (fault.Code, fault.Subject, fault.Severity));
        for (ulong at = 0; at < end; at += Units.MiB) Assert.Equal(IoStatus.Ok, await Write(at, 1 << 20));
        Assert.Equal(IoStatus.NoSpace, await Write(end, 1 << 20));
        // Over when a hundredth is free, not at the first block.
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.TrimAsync(0, 4096, WriteFlags.None)));
        Assert.Equal(fault.Id, Assert.Single(await OpenAsync(test)).Id);
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.TrimAsync(0, 8 << 20, WriteFlags.None)));
        Assert.Equal(EventCatalogue.StoreLow, Assert.Single(await OpenAsync(test)).Code);
        Assert.Equal(IoStatus.Ok, await Write(end, 1 << 20));
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.TrimAsync(0, 1 << 30, WriteFlags.None)));
        Assert.Empty(await OpenAsync(test));
    }

    [Fact]
    public async Task Metadata_slots_that_run_out_are_told_and_initiators_are_too()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("store-size=80m", "metadata-warn=50");
        VolumeRecord volume = await test.CreateAsync("v", 1 << 30);
        StoreHost host = test.Daemon.Stores.All[0];
        var told = new List<ulong>();
        (ulong total, ulong used) = await host.Thread.InvokeAsync(async () =>
        {
            SpaceWatch watch = host.Watch(10, 50);
            watch.Crossed = told.Add;
            var device = new WatchedDevice(host.Store.OpenVolume(volume.Id)!, watch);
            StoreStats stats = host.Store.GetStats();
            for (ulong at = 0; told.Count == 0 && stats.SlotsUsed < stats.SlotsTotal * 9 / 10; at += Units.MiB, stats = host.Store.GetStats())
                Assert.Equal(IoStatus.Ok, await device.WriteAsync(at, Junk(4096, at), WriteFlags.None));
            return (stats.SlotsTotal, stats.SlotsUsed);
        });
        Assert.Single(told);
        Assert.InRange(used, total / 2, total * 6 / 10 + 64); // looked at now and then
        Assert.Equal(EventCatalogue.MetadataLow, Assert.Single(await OpenAsync(test)).Code);
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.TrimAsync(0, 1 << 30, WriteFlags.None)));
        // At once: that the slots come back with the next checkpoint, which an idle disk does not make, is nobody's worry.
        Assert.Empty(await OpenAsync(test));
        Assert.InRange((await host.Thread.InvokeAsync(() => new ValueTask<StoreStats>(host.Store.GetStats()))).SlotsReturning, 1UL, used);
        Assert.InRange((await host.DescribeAsync()).MetadataSlotsUsed, 1UL, 2UL);
    }

    [Fact]
    public async Task A_database_that_cannot_be_written_is_told_until_it_can()
    {
        var inner = new BrokenMeta();
        await using var meta = new WatchedMetaStore(inner);
        Assert.Null(await meta.FaultAsync());
        inner.IsBroken = true;
        Assert.Equal(MetaOutcome.Unknown, (await meta.TransactAsync([], [new MetaChange("a", "1"u8.ToArray())])).Outcome);
        Assert.NotNull(await meta.FaultAsync());
        await Assert.ThrowsAsync<MetaException>(async () => await meta.GetAsync("a"));
        Assert.NotNull(await meta.FaultAsync());
        inner.IsBroken = false;
        Assert.Null(await meta.FaultAsync());
        await Assert.ThrowsAsync<MetaException>(async () =>
        {
            inner.IsBroken = true;
            await meta.RangeAsync("a");
        });
        Assert.NotNull(await meta.FaultAsync());
    }

    [Fact]
    public async Task A_hook_that_fails_is_told_until_the_policy_goes()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        VolumeRecord volume = await test.CreateAsync("v");
        Directory.CreateDirectory(Path.Combine(test.DataDir, "hooks"));
        Assert.Null((await test.Daemon.Policies.CreateAsync(new PolicyRecord("p", [volume.Id], 3600, 3, null, "nothing", null, 5))).Fault);
        for (int i = 0; i < 500 && test.Daemon.PolicyEngine.OutcomeOf("p") is null; i++) await Task.Delay(20);
        EventInfo fault = Assert.Single(await OpenAsync(test));
        Assert.Equal((EventCatalogue.HookFailed, "p"), (fault.Code, fault.Subject));
        Assert.Null((await test.Daemon.Policies.DeleteAsync("p", null)).Fault);
        Assert.Empty(await OpenAsync(test));
    }

    [Fact]
    public async Task A_certificate_that_ends_soon_is_told_and_one_that_has_ended_too()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        test.Daemon.EventWatch.CertificateEnds = test.Daemon.ApiClock.GetUtcNow() + TimeSpan.FromDays(29);
        Assert.Equal(EventCatalogue.CertificateExpiring, Assert.Single(await OpenAsync(test)).Code);
        test.Daemon.EventWatch.CertificateEnds = test.Daemon.ApiClock.GetUtcNow() - TimeSpan.FromSeconds(1);
        Assert.Equal(EventCatalogue.CertificateExpired, Assert.Single(await OpenAsync(test)).Code);
        test.Daemon.EventWatch.CertificateEnds = test.Daemon.ApiClock.GetUtcNow() + TimeSpan.FromDays(31);
        Assert.Empty(await OpenAsync(test));
    }

    [Fact]
    public async Task A_task_that_failed_and_an_address_that_is_lost_are_noted_once()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        var task = new TaskInfo(7, "scrub", "v", "failed", 0.5, test.Daemon.ApiClock.GetUtcNow(), test.Daemon.ApiClock.GetUtcNow(), "3 bad blocks");
        test.Daemon.Metrics.Tasks = () => [task with { Id = 8, State = "running" }, task];
        for (int i = 0; i < 3; i++) Assert.Empty(await OpenAsync(test));
        EventInfo note = Assert.Single(test.Daemon.Events.List(), e => e.Code == EventCatalogue.TaskFailed);
        Assert.Equal(("task 7", "scrub of v failed: 3 bad blocks"), (note.Subject, note.Detail));
        test.Daemon.Sessions.ListenerFailed!("127.0.0.1:1", "too many open files");
        Assert.Equal("127.0.0.1:1", Assert.Single(test.Daemon.Events.List(), e => e.Code == EventCatalogue.ListenerFailed).Subject);
    }

    [Fact]
    public async Task A_volume_whose_reservations_cannot_be_read_is_told_until_it_is_served_again()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        VolumeRecord record = await test.CreateAsync("v");
        StoreHost host = test.Daemon.Stores.All[0];
        SharedVolume volume = (await host.Thread.InvokeAsync(() => test.Daemon.Volumes.OpenAsync(record, host.Thread)))!;
        volume.Fault = "its saved persistent reservations are damaged";
        EventInfo fault = Assert.Single(await OpenAsync(test));
        Assert.Equal((EventCatalogue.VolumeFenced, "v"), (fault.Code, fault.Subject));
        volume.Fault = null;
        Assert.Empty(await OpenAsync(test));
    }

    /// <summary>Looks, and gives the faults that are open; <paramref name="hours"/> later.</summary>
    private static async Task<IReadOnlyList<EventInfo>> OpenAsync(TestDaemon test, int hours = 0)
    {
        await test.Daemon.EventWatch.LookAsync(TimeSpan.FromHours(hours) + TimeSpan.FromSeconds(1));
        return test.Daemon.Events.List(onlyOpen: true);
    }

    private static byte[] Junk(int bytes, ulong seed)
    {
        var junk = new byte[bytes];
        for (int i = 0; i < bytes; i += 8) BinaryPrimitives.WriteUInt64LittleEndian(junk.AsSpan(i), (seed + (ulong)i) * 0x9E3779B97F4A7C15 | 1);
        return junk;
    }

    private sealed class FaultyFile(IFile file) : IFile
    {
        public volatile bool FailsFlushes, Rots;

        public ulong SizeBytes => file.SizeBytes;

        public async ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target)
        {
            IoStatus status = await file.ReadAsync(offsetBytes, target);
            if (Rots) target.Span[0] ^= 1;
            return status;
        }

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) => file.WriteAsync(offsetBytes, source);

        public async ValueTask<IoStatus> FlushAsync()
        {
            IoStatus status = await file.FlushAsync();
            return FailsFlushes ? IoStatus.IoError : status;
        }

        public ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes) => file.DiscardAsync(offsetBytes, lengthBytes);
    }

    private sealed class BrokenMeta : IMetaStore
    {
        private readonly MemoryMetaStore _store = new();

        public bool IsBroken { get; set; }

        public ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default) =>
            IsBroken ? throw new MetaException("the disk is gone") : _store.GetAsync(key, cancel);

        public ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default) =>
            IsBroken ? throw new MetaException("the disk is gone") : _store.RangeAsync(prefix, cancel);

        public ValueTask<MetaResult> TransactAsync(
            IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default) =>
            IsBroken ? new(new MetaResult(MetaOutcome.Unknown, 0)) : _store.TransactAsync(compares, changes, cancel);

        public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default) => _store.GrantLeaseAsync(timeToLive, cancel);

        public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default) => _store.KeepAliveAsync(leaseId, cancel);

        public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) => _store.WatchAsync(prefix, fromRevision, cancel);

        public ValueTask DisposeAsync() => _store.DisposeAsync();
    }
}
