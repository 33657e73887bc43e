using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Thick volumes through the admin API: all blocks are there when the task has ended, also of what grew.</summary>
public sealed class ThickVolumeTests
{
    [Fact]
    public async Task A_thick_volume_is_allocated_as_a_whole_and_again_when_it_grows()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        RawAnswer made = await server.SendAsync("POST", "/v1/volumes", "{\"name\":\"full\",\"sizeBytes\":2097664,\"export\":{\"thick\":true}}");
        Assert.Equal(201, made.Status);
        Assert.Equal(513UL * 4096, (await AllocatedAsync(server, 1)).UsedBytes);
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/volumes/full", "{\"sizeBytes\":4194304}")).Status);
        VolumeInfo grown = await AllocatedAsync(server, 2);
        Assert.Equal((4 * Units.MiB, true), (grown.UsedBytes, grown.Export.Thick));
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/volumes/full", "{\"description\":\"nothing to do\"}")).Status);
        await AllocatedAsync(server, 2);
    }

    [Fact]
    public async Task What_does_not_fit_does_not_become_thick()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        Assert.Equal(201, (await server.SendAsync("POST", "/v1/volumes", "{\"name\":\"large\",\"sizeBytes\":1073741824}")).Status);
        RawAnswer refused = await server.SendAsync("PATCH", "/v1/volumes/large", "{\"export\":{\"thick\":true}}");
        Assert.Equal((507, "capacity-exceeded"), (refused.Status, JsonSerializer.Deserialize(refused.Body, ApiJson.Default.ApiProblem)!.Code));
        Assert.Empty(await EndedAsync(server));
    }

    [Fact]
    public async Task What_a_stop_left_is_taken_up_at_the_next_start()
    {
        await using TestDaemon test = await TestDaemon.StartAsync();
        VolumeRecord volume = (await test.Daemon.Directory.CreateAsync(new CreateVolume("full", 2 * Units.MiB, Export: new ExportOptions(Thick: true)))).Volume!;
        await test.RestartAsync();
        await new AdminRoutes(test.Daemon).ResumeAsync();
        StoreHost host = test.Daemon.Stores.Find(volume.StoreId)!;
        while ((await host.UsedBytesAsync([volume.Id]))[volume.Id] < 2 * Units.MiB) await Task.Delay(20, TestContext.Current.CancellationToken);
    }

    private static async Task<VolumeInfo> AllocatedAsync(ApiServer server, int tasks)
    {
        IReadOnlyList<TaskInfo> all = await EndedAsync(server);
        Assert.Equal(tasks, all.Count);
        Assert.All(all, t => Assert.Equal("succeeded", t.State));
        return JsonSerializer.Deserialize((await server.SendAsync("GET", "/v1/volumes/full")).Body, ApiJson.Default.VolumeInfo)!;
    }

    private static async Task<IReadOnlyList<TaskInfo>> EndedAsync(ApiServer server)
    {
        while (true)
        {
            IReadOnlyList<TaskInfo> all = JsonSerializer.Deserialize((await server.SendAsync("GET", "/v1/tasks")).Body, ApiJson.Default.TaskList)!.Tasks;
            all = [.. all.Where(t => t.Kind == "allocate")]; // the daemon has tasks of its own, such as the scrub of a disk
            if (all.All(t => t.EndedAt is not null)) return all;
            await Task.Delay(20, TestContext.Current.CancellationToken);
        }
    }
}
