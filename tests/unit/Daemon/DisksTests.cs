using System.Diagnostics;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Disks of a running daemon: what is attached, what is formatted, what is refused.</summary>
public sealed class DisksTests
{
    private const ulong Size = 80 * Units.MiB;

    private static async Task<StoreHost> AddAsync(TestDaemon test, string path, ulong? size = null, bool force = false, string? name = null) =>
        await test.Daemon.Disks.AddAsync(new AddDisk(path, name, size, force));

    private static async Task<string> RefusalAsync(TestDaemon test, AddDisk request) =>
        (await Assert.ThrowsAsync<DiskException>(() => test.Daemon.Disks.AddAsync(request))).Code;

    private static async Task WriteAsync(TestDaemon test, VolumeRecord volume, byte content)
    {
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        var data = new byte[Units.BlockBytes];
        data.AsSpan().Fill(content);
        Assert.Equal(IoStatus.Ok, await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.WriteAsync(0, data, WriteFlags.Fua)));
    }

    private static async Task<byte> ReadAsync(TestDaemon test, string name)
    {
        VolumeRecord volume = test.Daemon.Directory.Find(name)!;
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        var data = new byte[Units.BlockBytes];
        ReadResult read = await host.Thread.InvokeAsync(() => host.Store.OpenVolume(volume.Id)!.ReadAsync(0, data));
        Assert.Equal(IoStatus.Ok, read.Status);
        return data[17];
    }

    [Fact]
    public async Task A_removed_disk_stays_away_over_restarts_and_comes_back_with_its_data_when_added()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        StoreHost second = await AddAsync(test, Path.Combine(test.DataDir, "store-7.blk"), Size);
        VolumeRecord volume = await test.CreateAsync("kept", store: second.StoreId);
        await WriteAsync(test, volume, 0x5A);
        await test.Daemon.RemoveDiskAsync(second.StoreId, isForced: true);
        Assert.Null(test.Daemon.Stores.Find(second.StoreId));
        Assert.NotNull(test.Daemon.Directory.Find("kept"));

        await test.RestartAsync();
        Assert.Single(test.Daemon.Stores.All);
        Assert.Empty(test.Daemon.Disks.Absent);
        Assert.NotNull(test.Daemon.Directory.Find("kept"));

        StoreHost again = await AddAsync(test, Path.Combine(test.DataDir, "store-7.blk"));
        Assert.Equal(second.StoreId, again.StoreId);
        Assert.Equal(0x5A, await ReadAsync(test, "kept"));
        await test.RestartAsync();
        Assert.Equal(2, test.Daemon.Stores.All.Count);
        Assert.Equal(0x5A, await ReadAsync(test, "kept"));
    }

    [Fact]
    public async Task A_disk_with_volumes_is_removed_by_force_only()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        VolumeRecord volume = await test.CreateAsync("here");
        DiskException refused = await Assert.ThrowsAsync<DiskException>(() => test.Daemon.RemoveDiskAsync(volume.StoreId, false));
        Assert.Equal("disk-in-use", refused.Code);
        Assert.NotNull(test.Daemon.Stores.Find(volume.StoreId));
        Assert.Null((await test.Daemon.Directory.DeleteAsync("here", null, null)).Fault);
        await test.Daemon.RemoveDiskAsync(volume.StoreId, false);
        Assert.Empty(test.Daemon.Stores.All);
        // A node whose last disk was taken out starts, and does not make a new one over it.
        await test.RestartAsync();
        Assert.Empty(test.Daemon.Stores.All);
        Assert.Equal("no-disk", (await test.Daemon.Directory.CreateAsync(new CreateVolume("x", Units.MiB))).Fault!.Code);
    }

    [Fact]
    public async Task A_volume_deleted_while_its_disk_is_away_does_not_come_back_with_it()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        StoreHost second = await AddAsync(test, test.PathOf("two.blk"), Size);
        await test.CreateAsync("gone", store: second.StoreId);
        await test.Daemon.RemoveDiskAsync(second.StoreId, isForced: true);
        Assert.Equal("disk-unavailable", (await test.Daemon.Directory.DeleteAsync("gone", null, null)).Fault!.Code);
        Assert.Null((await test.Daemon.Directory.DeleteAsync("gone", null, null, evenIfAbsent: true)).Fault);
        VolumeRecord other = await test.CreateAsync("gone"); // the name is free at once
        StoreHost again = await AddAsync(test, test.PathOf("two.blk"));
        Assert.Empty(await again.ListAsync());
        Assert.Equal(other.Id, test.Daemon.Directory.Find("gone")!.Id);
        await test.RestartAsync();
        Assert.Equal(other.Id, Assert.Single(test.Daemon.Directory.List()).Id);
    }

    [Fact]
    public async Task A_missing_disk_is_shown_with_its_reason_and_the_others_serve()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        VolumeRecord stays = await test.CreateAsync("stays", store: test.Daemon.Stores.All[0].StoreId);
        StoreHost second = await AddAsync(test, test.PathOf("two.blk"), Size);
        await WriteAsync(test, await test.CreateAsync("away", store: second.StoreId), 0x33);
        await test.StopAsync();
        File.Move(test.PathOf("two.blk"), test.PathOf("elsewhere.blk"));
        await test.StartAgainAsync();
        AbsentDisk absent = Assert.Single(test.Daemon.Disks.Absent);
        Assert.Equal((second.StoreId, "two", "missing"), (absent.Id, absent.Name, absent.State));
        Assert.Contains("two.blk", absent.Reason, StringComparison.Ordinal);
        Assert.NotNull(test.Daemon.Directory.Find("away"));
        await WriteAsync(test, stays, 1);
        Assert.Null((await test.Daemon.Directory.CreateAsync(new CreateVolume("new", Units.MiB))).Fault);

        await AddAsync(test, test.PathOf("elsewhere.blk"));
        Assert.Empty(test.Daemon.Disks.Absent);
        Assert.Equal(0x33, await ReadAsync(test, "away"));
        await test.RestartAsync();
        Assert.Equal(0x33, await ReadAsync(test, "away"));
    }

    [Fact]
    public async Task A_damaged_disk_is_refused_shown_and_left_alone()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        StoreHost second = await AddAsync(test, test.PathOf("two.blk"), Size);
        await test.StopAsync();
        byte[] junk = [1, 2, 3, 4];
        foreach (long at in new[] { 100L, 4096 + 100, (long)Size - 8192 + 100 }) Patch(test.PathOf("two.blk"), at, junk);
        byte[] before = File.ReadAllBytes(test.PathOf("two.blk"));
        await test.StartAgainAsync();
        AbsentDisk absent = Assert.Single(test.Daemon.Disks.Absent);
        Assert.Equal((second.StoreId, "refused"), (absent.Id, absent.State));
        Assert.Equal("damaged-store", await RefusalAsync(test, new AddDisk(test.PathOf("two.blk"))));
        Assert.True(before.AsSpan().SequenceEqual(File.ReadAllBytes(test.PathOf("two.blk"))));
        await test.Daemon.RemoveDiskAsync(second.StoreId, false); // a disk that will not come back can be forgotten
        Assert.Empty(test.Daemon.Disks.Absent);
    }

    [Fact]
    public async Task Two_files_with_one_identity_are_both_refused_and_a_copy_is_never_added()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        StoreHost second = await AddAsync(test, Path.Combine(test.DataDir, "store-1.blk"), Size);
        await test.StopAsync();
        File.Copy(second.DiskPath, Path.Combine(test.DataDir, "store-2.blk"));
        File.Copy(second.DiskPath, test.PathOf("copy.blk"));
        await test.StartAgainAsync();
        AbsentDisk absent = Assert.Single(test.Daemon.Disks.Absent);
        Assert.Equal(second.StoreId, absent.Id);
        Assert.Contains("store-2.blk", absent.Reason, StringComparison.Ordinal);
        Assert.Equal("disk-is-a-copy", await RefusalAsync(test, new AddDisk(test.PathOf("copy.blk"))));
        File.Delete(Path.Combine(test.DataDir, "store-2.blk"));
        await AddAsync(test, second.DiskPath);
        Assert.Empty(test.Daemon.Disks.Absent);
        Assert.Equal("disk-is-a-copy", await RefusalAsync(test, new AddDisk(test.PathOf("copy.blk"))));
        Assert.Equal("disk-is-a-copy", await RefusalAsync(test, new AddDisk(test.PathOf("copy.blk"), Force: true)));
    }

    [Fact]
    public async Task The_disk_of_another_cluster_is_refused_unless_forced()
    {
        await using TestDaemon ours = await TestDaemon.StartAsync();
        await using TestDaemon theirs = await TestDaemon.StartAsync();
        Assert.NotEqual(ours.Daemon.Disks.ClusterId, theirs.Daemon.Disks.ClusterId);
        await theirs.CreateAsync("theirs");
        string path = theirs.Daemon.Stores.All[0].DiskPath;
        await theirs.StopAsync();
        byte[] before = File.ReadAllBytes(path);
        Assert.Equal("other-cluster", await RefusalAsync(ours, new AddDisk(path)));
        Assert.True(before.AsSpan().SequenceEqual(File.ReadAllBytes(path)));

        // Laid into our data directory it is not served either, and is not written to.
        await ours.StopAsync();
        string laid = Path.Combine(ours.DataDir, "store-9.blk");
        File.Copy(path, laid);
        await ours.StartAgainAsync();
        Assert.Single(ours.Daemon.Stores.All);
        Assert.Contains(ours.Daemon.Warnings, w => w.Contains("another cluster", StringComparison.Ordinal));
        Assert.True(before.AsSpan().SequenceEqual(File.ReadAllBytes(laid)));

        StoreHost forced = await AddAsync(ours, path, force: true);
        Assert.Empty(await forced.ListAsync());
    }

    [Fact]
    public async Task The_cluster_is_kept_by_the_disks_when_the_metadata_are_lost()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("provisioning=reserved");
        Guid cluster = test.Daemon.Disks.ClusterId;
        VolumeRecord volume = await test.CreateAsync("saved");
        await WriteAsync(test, volume, 0x77);
        DirectoryResult thin = await test.Daemon.Directory.CreateAsync(new CreateVolume("wide", Units.TiB, Thin: true));
        Assert.Null(thin.Fault);
        await test.RestartAsync();
        Assert.Equal(cluster, test.Daemon.Disks.ClusterId);
        await test.StopAsync();
        foreach (string file in Directory.GetFiles(test.DataDir, "metadata.db*")) File.Delete(file);
        await test.StartAgainAsync();
        Assert.Equal(cluster, test.Daemon.Disks.ClusterId);
        Assert.Equal(0x77, await ReadAsync(test, "saved"));
        Assert.Equal(volume.SizeBytes, test.Daemon.Directory.Find("saved")!.PromisedBytes);
        EventInfo told = Assert.Single(test.Daemon.Events.List(), e => e.Code == EventCatalogue.VolumesAdopted);
        Assert.Equal(("warning", "store-0", "promised their size: saved; thin: wide"), (told.Severity, told.Subject, told.Detail));
        Assert.Contains("--thin=false", told.Advice, StringComparison.Ordinal);
        Assert.True((await test.CreateAsync("next")).Id > volume.Id);
    }

    [Theory]
    [InlineData("ext4", "not-blank")]
    [InlineData("gpt", "not-blank")]
    [InlineData("lvm", "not-blank")]
    [InlineData("tail", "not-blank")]
    [InlineData("unknown", "not-blank")]
    [InlineData("blank", null)]
    public async Task Foreign_data_is_refused_unless_forced(string kind, string? code)
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        string path = test.PathOf("foreign.img");
        using (FileStream file = File.Create(path)) file.SetLength((long)Size);
        if (kind == "ext4") Run("/sbin/mkfs.ext4", "-q", path);
        if (kind == "gpt") Patch(path, 512, "EFI PART"u8);
        if (kind == "lvm") Patch(path, 512, "LABELONE"u8);
        if (kind == "tail") Patch(path, (long)Size - 512, "EFI PART"u8);
        if (kind == "unknown") Patch(path, 700_000, [1]);
        byte[] before = File.ReadAllBytes(path);
        if (code is not null)
        {
            Assert.Equal(code, await RefusalAsync(test, new AddDisk(path)));
            Assert.True(before.AsSpan().SequenceEqual(File.ReadAllBytes(path)));
        }

        StoreHost added = await AddAsync(test, path, force: code is not null);
        Assert.Equal("foreign", added.Name);
    }

    [Fact]
    public async Task What_cannot_be_a_disk_is_refused_with_a_code()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        Assert.Equal("no-such-file", await RefusalAsync(test, new AddDisk(test.PathOf("none.blk"))));
        Assert.Equal("invalid-size", await RefusalAsync(test, new AddDisk(test.PathOf("odd.blk"), SizeBytes: 5000)));
        Assert.Equal("invalid-size", await RefusalAsync(test, new AddDisk(test.PathOf("huge.blk"), SizeBytes: 17 * Units.TiB)));
        Assert.Equal("disk-refused", await RefusalAsync(test, new AddDisk(test.PathOf("small.blk"), SizeBytes: Units.MiB)));
        Assert.False(File.Exists(test.PathOf("small.blk")));
        Assert.Equal("not-a-disk", await RefusalAsync(test, new AddDisk(test.Root)));
        foreach (string own in new[] { "metadata.db", "admin.token", "lock" })
            Assert.Equal("not-a-disk", await RefusalAsync(test, new AddDisk(Path.Combine(test.DataDir, own), Force: true)));
        Assert.Equal("disk-in-service", await RefusalAsync(test, new AddDisk(test.Daemon.Stores.All[0].DiskPath, Force: true)));
        File.CreateSymbolicLink(test.PathOf("link.blk"), test.Daemon.Stores.All[0].DiskPath);
        Assert.Equal("disk-refused", await RefusalAsync(test, new AddDisk(test.PathOf("link.blk"), Force: true)));
        Assert.Equal("name-taken", await RefusalAsync(test, new AddDisk(test.PathOf("two.blk"), "store-0", Size)));
        await File.WriteAllTextAsync(test.PathOf("tiny"), "");
        Assert.Equal("disk-refused", await RefusalAsync(test, new AddDisk(test.PathOf("tiny"))));
        Assert.Single(test.Daemon.Stores.All);
    }

    [Fact]
    public async Task Disks_get_names_from_their_paths()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        Directory.CreateDirectory(test.PathOf("a"));
        Assert.Equal("my-disk-", (await AddAsync(test, test.PathOf("My Disk!.blk"), Size)).Name);
        Assert.Equal("my-disk--2", (await AddAsync(test, test.PathOf("a/My Disk!.blk"), Size)).Name);
    }

    [Fact]
    public async Task Volumes_go_where_the_most_space_is_neither_used_nor_promised()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        await AddAsync(test, test.PathOf("two.blk"), Size);
        for (int i = 0; i < 6; i++) await test.CreateAsync($"v{i}", 8 * Units.MiB);
        foreach (StoreHost host in test.Daemon.Stores.All) Assert.Equal(3, (await host.ListAsync()).Count);
    }

    private static void Patch(string path, long at, ReadOnlySpan<byte> content)
    {
        using FileStream file = File.OpenWrite(path);
        file.Position = at;
        file.Write(content);
    }

    private static void Run(string tool, params string[] arguments)
    {
        using var process = Process.Start(tool, arguments);
        process.WaitForExit();
        Assert.Equal(0, process.ExitCode);
    }
}
