using System.Buffers.Binary;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Groups of volumes on several disks and loops, cut while one ordered counter is written across them: each group shows
/// a moment of the counter.</summary>
public sealed class GroupCutTests
{
    private const int Volumes = 4, Cuts = 25;

    [Fact]
    public async Task Every_group_shows_one_moment_of_a_counter_that_is_written_across_its_volumes()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("loops=3", "store-size=80m");
        for (int i = 1; i < 3; i++) await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf($"d{i}.blk"), $"d{i}", 80UL << 20));
        StoreHost[] hosts = [.. test.Daemon.Stores.All];
        var volumes = new VolumeRecord[Volumes];
        for (int i = 0; i < Volumes; i++) volumes[i] = await test.CreateAsync($"v{i}", store: hosts[i % hosts.Length].StoreId);
        Assert.Equal(3, hosts.Select(h => h.Thread).Distinct().Count());
        await test.Daemon.Directory.ReconcileAsync(hosts.Select((h, i) => new SlowHost(h, new Random(i))));
        string[] names = [.. volumes.Select(v => v.Name)];
        using var stop = new CancellationTokenSource();
        ulong written = 0;
        Task writer = Task.Run(async () =>
        {
            for (ulong n = 1; !stop.IsCancellationRequested; n++)
            {
                await WriteAsync(test, volumes[n % Volumes], n);
                Volatile.Write(ref written, n);
            }
        }, TestContext.Current.CancellationToken);
        for (int c = 0; c < Cuts; c++)
        {
            ulong before = Volatile.Read(ref written);
            SnapshotResult cut = await test.Daemon.Directory.CutAsync($"g{c}", names, default);
            ulong after = Volatile.Read(ref written) + 1;
            Assert.True(cut.Fault is null, cut.Fault?.Detail);
            var seen = new ulong[Volumes];
            foreach (VolumeSnapshot s in cut.Snapshots) seen[Array.FindIndex(volumes, v => v.Id == s.Volume.Id)] = await ReadAsync(test, s);
            ulong last = seen.Max();
            Assert.True(last >= before && last <= after, $"cut {c} shows {last}, {before} was answered before and {after} not begun after it");
            for (int i = 0; i < Volumes; i++)
            {
                ulong right = Enumerable.Range(0, Volumes).Select(k => last - (ulong)k).FirstOrDefault(n => n <= last && n % Volumes == (ulong)i);
                Assert.True(seen[i] == (last < (ulong)Volumes && right > last ? 0 : right), $"cut {c} of {last}: volume {i} shows {seen[i]} instead of {right}");
            }
        }

        await stop.CancelAsync();
        await writer;
        Assert.True(written > Cuts, "the writer hardly ran");
    }

    [Fact]
    public async Task A_volume_that_does_not_come_to_rest_fails_the_cut_and_holds_nobody()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("loops=2", "store-size=80m");
        await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("d1.blk"), "d1", 80UL << 20));
        StoreHost[] hosts = [.. test.Daemon.Stores.All];
        VolumeRecord one = await test.CreateAsync("a", store: hosts[0].StoreId), two = await test.CreateAsync("b", store: hosts[1].StoreId);
        test.Daemon.Directory.CutGate = new CutGate(test.Daemon.Volumes, TimeSpan.FromMilliseconds(50));
        StoreHost busy = test.Daemon.Stores.Find(two.StoreId)!;
        (SharedVolume volume, VolumeGate.Range held) = await busy.Thread.InvokeAsync(async () =>
        {
            SharedVolume v = (await test.Daemon.Volumes.OpenAsync(two, busy.Thread))!;
            return (v, v.Gate.Take(0, 4096, false, out _)); // a change that does not end
        });
        SnapshotResult cut = await test.Daemon.Directory.CutAsync("g", ["a", "b"], default);
        Assert.Equal("cut-too-slow", cut.Fault!.Code);
        await WriteAsync(test, one, 1);
        await busy.Thread.InvokeAsync(() =>
        {
            volume.Gate.Release(held);
            return default;
        });
        await WriteAsync(test, two, 2);
        Assert.Empty((await test.Daemon.Directory.SnapshotsAsync(one)).Snapshots);
        test.Daemon.Directory.CutGate = new CutGate(test.Daemon.Volumes, TimeSpan.FromMinutes(1));
        Assert.Null((await test.Daemon.Directory.CutAsync("g", ["a", "b"], default)).Fault);
    }

    [Fact]
    public async Task Volumes_on_several_disks_go_back_together()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("loops=2", "store-size=80m");
        await test.Daemon.Disks.AddAsync(new AddDisk(test.PathOf("d1.blk"), "d1", 80UL << 20));
        StoreHost[] hosts = [.. test.Daemon.Stores.All];
        VolumeRecord[] volumes = [await test.CreateAsync("a", store: hosts[0].StoreId), await test.CreateAsync("b", store: hosts[1].StoreId)];
        for (ulong n = 0; n < 2; n++) await WriteAsync(test, volumes[n], n + 1);
        Assert.Null((await test.Daemon.Directory.CutAsync("g", ["a", "b"], default)).Fault);
        for (ulong n = 0; n < 2; n++) await WriteAsync(test, volumes[n], n + 11);
        SnapshotResult back = await test.Daemon.Directory.RollBackTogetherAsync("g", ["a", "b"], "kept");
        Assert.Null(back.Fault);
        Assert.NotNull(Assert.Single(back.Snapshots.Select(s => s.Record!.Group).Distinct()));
        foreach (VolumeSnapshot kept in back.Snapshots) Assert.Equal(kept.Volume.Name == "a" ? 11UL : 12UL, await ReadAsync(test, kept));
        Assert.Null((await test.Daemon.Directory.CutAsync("now", ["a", "b"], default)).Fault);
        foreach (VolumeRecord volume in volumes)
        {
            VolumeSnapshot now = (await test.Daemon.Directory.SnapshotsAsync(volume)).Snapshots.Single(s => s.Info.Name == "now");
            Assert.Equal(volume.Name == "a" ? 1UL : 2UL, await ReadAsync(test, now));
            await WriteAsync(test, volume, 77); // nothing is held back any more
        }
    }

    private static Task WriteAsync(TestDaemon test, VolumeRecord record, ulong n)
    {
        StoreHost host = test.Daemon.Stores.Find(record.StoreId)!;
        return host.Thread.InvokeAsync(async () =>
        {
            SharedVolume volume = (await test.Daemon.Volumes.OpenAsync(record, host.Thread))!;
            var block = new byte[4096];
            BinaryPrimitives.WriteUInt64LittleEndian(block, n);
            Assert.Equal(IoStatus.Ok, await new GatedDevice(volume.Device, volume.Gate).WriteAsync(0, block, WriteFlags.None));
        });
    }

    private static Task<ulong> ReadAsync(TestDaemon test, VolumeSnapshot snapshot)
    {
        StoreHost host = test.Daemon.Stores.Find(snapshot.Volume.StoreId)!;
        return host.Thread.InvokeAsync(async () =>
        {
            var block = new byte[4096];
            Assert.Equal(IoStatus.Ok, (await host.Store.OpenSnapshot(snapshot.Volume.Id, snapshot.Info.Uuid)!.ReadAsync(0, block)).Status);
            return BinaryPrimitives.ReadUInt64LittleEndian(block);
        });
    }

    /// <summary>A disk that is cut a little later than asked, so that the others go on meanwhile if they can.</summary>
    private sealed class SlowHost(IVolumeHost inner, Random delays) : IVolumeHost
    {
        public Guid StoreId => inner.StoreId;

        public Task<ulong?> FreeBytesAsync() => inner.FreeBytesAsync();

        public Task<ulong?> PromisableBytesAsync() => inner.PromisableBytesAsync();

        public Task<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced) => inner.PromiseAsync(volumeId, bytes, isForced);

        public Task<IReadOnlyList<VolumeHead>> ListAsync() => inner.ListAsync();

        public Task<IoStatus> CreateAsync(VolumeHead head) => inner.CreateAsync(head);

        public Task<IoStatus> UpdateAsync(VolumeHead head) => inner.UpdateAsync(head);

        public Task<IoStatus> DeleteAsync(uint volumeId) => inner.DeleteAsync(volumeId);

        public Task<ulong> HighestUsedByteAsync(uint volumeId) => inner.HighestUsedByteAsync(volumeId);

        public Task<VolumeLayers?> LayersAsync(uint volumeId) => inner.LayersAsync(volumeId);

        public Task<CutSight?> SightAsync(uint volumeId, string snapshot) => inner.SightAsync(volumeId, snapshot);

        public async Task<IoStatus> CutAsync(IReadOnlyList<SnapshotRequest> requests)
        {
            await Task.Delay(delays.Next(6));
            return await inner.CutAsync(requests);
        }

        public Task<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot) => inner.DeleteSnapshotAsync(volumeId, snapshot);

        public Task<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety) => inner.RollBackAsync(snapshot, safety);

        public Task<IoStatus> CloneAsync(VolumeHead head, uint volumeId, Guid snapshot) => inner.CloneAsync(head, volumeId, snapshot);

        public Task<IoStatus> FlattenAsync(uint volumeId) => inner.FlattenAsync(volumeId);
    }
}
