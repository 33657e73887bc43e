using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>What is promised through the admin API is there, and what cannot be promised is refused with figures.</summary>
public sealed class CapacityApiTests
{
    private const ulong MiB = Units.MiB;

    [Fact]
    public async Task Capacity_is_what_the_store_really_takes_and_says_what_fits()
    {
        await using ApiServer server = await StartAsync("write-protect=90");
        CapacityInfo empty = await CapacityAsync(server, "?size=8388608");
        DiskCapacity disk = Assert.Single(empty.Disks);
        CapacityFigures all = empty.Total;
        Assert.Equal(disk.Figures, all);
        Assert.Equal(90, empty.WriteProtectPercent);
        Assert.Equal(160 * MiB, all.RawBytes);
        Assert.Equal(all.RawBytes, all.LogBytes + all.MetadataBytes + all.ReserveBytes + all.UsableBytes);
        Assert.Equal((all.UsableBytes, all.UsableBytes, 0d), (all.FreeBytes, all.AvailableBytes, all.OvercommitRatio));
        Assert.Equal((long)(all.UsableBytes / (8 * MiB)), all.Fits);

        // As many as fit are made, and one more is not.
        for (long i = 0; i < all.Fits; i++) await server.DoneAsync("create_volume", "-v", $"v{i}", "-s", "8m");
        await server.RefusedAsync("capacity-exceeded", "create_volume", "-v", "more", "-s", "8m");
        await server.DoneAsync("create_volume", "-v", "thin", "-s", "1g", "--thin");
        CapacityFigures full = (await CapacityAsync(server, "?size=8388608")).Total;
        Assert.Equal(((ulong)all.Fits! * 8 * MiB, (ulong)all.Fits * 8 * MiB, 1024 * MiB, 0L), (full.PromisedBytes, full.PromisedLeftBytes, full.ThinBytes, full.Fits));
        Assert.InRange(full.OvercommitRatio, 10, 20);
        Assert.Equal(["thin"], (await VolumesAsync(server)).Where(v => v.Thin).Select(v => v.Name));

        // The thin one gets what nobody was promised, and the others get theirs, to the last block.
        ulong thin = await FillAsync(server, "thin", 1024 * MiB, IoStatus.NoSpace);
        Assert.True(thin < 8 * MiB, $"{thin} bytes");
        for (long i = 0; i < all.Fits; i++) await FillAsync(server, $"v{i}", 8 * MiB, IoStatus.Ok);
        CapacityFigures written = (await CapacityAsync(server, "")).Total;
        Assert.True(Math.Abs((double)written.UsedBytes - all.UsableBytes) / all.UsableBytes < 0.01, $"{written.UsedBytes} of {all.UsableBytes} bytes");
        Assert.Equal((0UL, null), (written.PromisedLeftBytes, written.Fits));
        string shown = await server.DoneAsync("capacity", "-s", "1g");
        Assert.Contains("Fits 1 GiB", shown, StringComparison.Ordinal);
        Assert.Contains(SizeText.Format(written.UsableBytes), shown, StringComparison.Ordinal);
    }

    [Fact]
    public async Task What_cannot_be_promised_is_refused_whatever_asks_for_it()
    {
        await using ApiServer server = await StartAsync();
        ulong usable = (await CapacityAsync(server, "")).Total.UsableBytes;
        RawAnswer refused = await server.SendAsync("POST", "/v1/volumes", $"{{\"name\":\"large\",\"sizeBytes\":{usable / MiB * MiB + MiB}}}");
        Assert.Equal(507, refused.Status);
        ApiProblem problem = JsonSerializer.Deserialize(refused.Body, ApiJson.Default.ApiProblem)!;
        Assert.Equal(("capacity-exceeded", "sizeBytes"), (problem.Code, problem.Field));
        Assert.Contains(SizeText.Format(usable / MiB * MiB), problem.Detail, StringComparison.Ordinal);
        Assert.Contains("thin", problem.Detail, StringComparison.Ordinal);
        Assert.Empty(await VolumesAsync(server));

        await server.DoneAsync("create_volume", "-v", "db", "-s", "30m");
        await server.RefusedAsync("capacity-exceeded", "resize_volume", "-v", "db", "-s", "1g");
        await server.RefusedAsync("capacity-exceeded", "clone_volume", "-v", "db", "-c", "copy", "-s", "1g");
        await server.RefusedAsync("capacity-exceeded", "create_volume", "-v", "full", "--from", "db", "-s", "1g");
        await server.RefusedAsync("capacity-exceeded", "aof_create", "-v", "log", "-s", "1g", "--reserve");
        await server.RefusedAsync("thin-and-thick", "create_volume", "-v", "both", "-s", "1m", "--thin", "--thick");
        await server.DoneAsync("create_volume", "-v", "spare", "-s", "1g", "--thin");
        await server.RefusedAsync("capacity-exceeded", "export_volume", "-v", "spare", "--thick");
        Assert.Equal(507, (await server.SendAsync("PATCH", "/v1/volumes/spare", "{\"thin\":false}")).Status);
        Assert.Equal(["db", "spare"], (await VolumesAsync(server)).Select(v => v.Name));
        Assert.Equal((30 * MiB, 30 * MiB), await PromisedAsync(server));

        // And with thin it is done.
        await server.DoneAsync("clone_volume", "-v", "db", "-c", "copy", "-s", "1g", "--thin");
        await server.DoneAsync("create_volume", "-v", "full", "--from", "db", "-s", "1g", "--thin", "--wait");
        await server.DoneAsync("aof_create", "-v", "log", "-s", "1g");
        await server.DoneAsync("aof_create", "-v", "kept", "-s", "2m", "--reserve");
        await server.DoneAsync("clone_volume", "-v", "spare", "-c", "spare2"); // as what it is made from
        Assert.Equal((32 * MiB, 32 * MiB), await PromisedAsync(server));
        await server.DoneAsync("resize_volume", "-v", "db", "-s", "1g", "--thin");
        Assert.Equal((2 * MiB, 2 * MiB), await PromisedAsync(server));
    }

    [Fact]
    public async Task A_promise_grows_shrinks_and_goes_with_its_volume_and_outlives_a_restart()
    {
        await using ApiServer server = await StartAsync();
        await server.DoneAsync("create_volume", "-v", "db", "-s", "20m");
        await server.DoneAsync("resize_volume", "-v", "db", "-s", "30m");
        await server.DoneAsync("create_volume", "-v", "thin", "-s", "1g", "--thin");
        Assert.Equal((30 * MiB, 30 * MiB), await PromisedAsync(server));
        await FillAsync(server, "thin", 1024 * MiB, IoStatus.NoSpace);
        await server.RestartAsync();
        Assert.Equal((30 * MiB, 30 * MiB), await PromisedAsync(server));
        await FillAsync(server, "thin", 1024 * MiB, IoStatus.NoSpace);
        await FillAsync(server, "db", 20 * MiB, IoStatus.Ok);
        Assert.Equal((30 * MiB, 10 * MiB), await PromisedAsync(server));
        await server.DoneAsync("resize_volume", "-v", "db", "-s", "25m", "--yes");
        Assert.Equal((25 * MiB, 5 * MiB), await PromisedAsync(server));
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/volumes/db", "{\"thin\":true}")).Status);
        Assert.Equal((0UL, 0UL), await PromisedAsync(server));
        await server.DoneAsync("delete_volume", "-v", "thin", "--yes");
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/volumes/db", "{\"thin\":false}")).Status);
        Assert.Equal((25 * MiB, 5 * MiB), await PromisedAsync(server));
        await server.DoneAsync("delete_volume", "-v", "db", "--yes");
        Assert.Equal((0UL, 0UL), await PromisedAsync(server));
    }

    [Fact]
    public async Task What_is_declared_says_whether_it_is_promised()
    {
        await using ApiServer server = await StartAsync();
        string path = server.Test.PathOf("state.json");
        await File.WriteAllTextAsync(path, """{"volumes":[{"name":"a","size":"20m"},{"name":"b","size":"1g","thin":true}]}""");
        await server.DoneAsync("apply", "-f", path);
        Assert.Equal([("a", false), ("b", true)], (await VolumesAsync(server)).Select(v => (v.Name, v.Thin)));
        await File.WriteAllTextAsync(path, """{"volumes":[{"name":"a","size":"20m","thin":true},{"name":"b","size":"1g","thin":true}]}""");
        Assert.Contains("take the promise of room back", await server.DoneAsync("apply", "-f", path, "--dry-run"), StringComparison.Ordinal);
        await server.DoneAsync("apply", "-f", path);
        Assert.Equal([true, true], (await VolumesAsync(server)).Select(v => v.Thin));
    }

    [Fact]
    public async Task A_volume_that_moves_takes_its_promise_along_or_stays()
    {
        await using ApiServer server = await StartAsync();
        await server.DoneAsync("create_volume", "-v", "db", "-s", "40m");
        await FillAsync(server, "db", 8 * MiB, IoStatus.Ok);
        await server.DoneAsync("add_disk", server.Test.PathOf("small.blk"), "-s", "90m", "-n", "small");
        await server.RefusedAsync("capacity-exceeded", "move_volume", "-v", "db", "-d", "small");
        await server.DoneAsync("add_disk", server.Test.PathOf("large.blk"), "-s", "160m", "-n", "large");
        await server.DoneAsync("move_volume", "-v", "db", "-d", "large");
        CapacityInfo now = await CapacityAsync(server, "");
        Assert.Equal([40 * MiB], now.Disks.Where(d => d.Name == "large").Select(d => d.Figures.PromisedBytes));
        Assert.Equal([32 * MiB], now.Disks.Where(d => d.Name == "large").Select(d => d.Figures.PromisedLeftBytes));
        // Placed where there is room for it, though elsewhere more is free.
        await server.DoneAsync("create_volume", "-v", "thin", "-s", "8m", "--thin", "--disk", "large");
        await server.DoneAsync("create_volume", "-v", "next", "-s", "70m");
        Assert.Equal("store-0", (await CapacityAsync(server, "")).Disks.Single(d => d.Figures.PromisedBytes == 70 * MiB).Name);
    }

    [Fact]
    public async Task The_volume_of_the_first_start_is_thin_where_there_is_no_room_for_it()
    {
        await using TestDaemon test = await TestDaemon.StartAsync("provisioning=reserved", "create-volume=demo:1g", "create-volume=fits:4m");
        Assert.Equal([("demo", 0UL), ("fits", 4 * MiB)], test.Daemon.Directory.List().Select(v => (v.Name, v.PromisedBytes)));
        Assert.Contains(test.Daemon.Warnings, w => w.Contains("'demo' is thin", StringComparison.Ordinal));
    }

    private static Task<ApiServer> StartAsync(params string[] arguments) =>
        ApiServer.StartAsync(null, null, ["provisioning=reserved", "store-size=160m", .. arguments]);

    private static async Task<CapacityInfo> CapacityAsync(ApiServer server, string query) =>
        JsonSerializer.Deserialize((await server.SendAsync("GET", "/v1/capacity" + query)).Body, ApiJson.Default.CapacityInfo)!;

    private static async Task<(ulong All, ulong Left)> PromisedAsync(ApiServer server)
    {
        CapacityFigures all = (await CapacityAsync(server, "")).Total;
        return (all.PromisedBytes, all.PromisedLeftBytes);
    }

    private static async Task<IReadOnlyList<VolumeInfo>> VolumesAsync(ApiServer server) =>
        JsonSerializer.Deserialize((await server.SendAsync("GET", "/v1/volumes")).Body, ApiJson.Default.VolumeList)!.Volumes;

    /// <summary>Writes a volume from its begin on, until <paramref name="bytes"/> or an error, which must be the expected one; what it
    /// takes then.</summary>
    private static Task<ulong> FillAsync(ApiServer server, string name, ulong bytes, IoStatus expected)
    {
        VolumeRecord record = server.Test.Daemon.Directory.Find(name)!;
        StoreHost host = server.Test.Daemon.Stores.Find(record.StoreId)!;
        return host.Thread.InvokeAsync(async () =>
        {
            IBlockDevice device = host.Store.OpenVolume(record.Id)!;
            var data = new byte[Units.ExtentBytes];
            data.AsSpan().Fill(1);
            IoStatus status = IoStatus.Ok;
            for (ulong at = 0; at < bytes && status == IoStatus.Ok; at += MiB) status = await device.WriteAsync(at, data, WriteFlags.None);
            Assert.Equal(expected, status);
            return host.Store.UsedBytes(record.Id);
        });
    }
}
