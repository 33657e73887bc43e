using BlockServer.Cluster;
using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>A copy of an image for which the disk has not the room, through pfcli.</summary>
public sealed class FullPopulationTests
{
    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    /// <summary>It stops, is attached by nobody, and goes on where it stood when there is room, or leaves nothing when it is deleted. Nothing
    /// else on the disk is changed by it.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_copy_that_found_the_disk_full_goes_on_when_there_is_room_or_leaves_nothing(bool givesUp)
    {
        await using StreamWorld world = await StreamWorld.StartAsync("store-size=80m");
        await world.CreateAsync("gold", 4 * Units.MiB);
        await world.WriteAsync("gold", 0, StreamWorld.Pattern(1, 4 << 20));
        byte[] expected = await world.ReadAsync("gold");
        await DoneAsync(world, "create_image", "-v", "gold");
        // All but 2 MiB is taken, so that the copy stops half way.
        ulong crowd = ((await world.Host("gold").DescribeAsync()).FreeBytes - 2 * Units.MiB) & ~(Units.MiB - 1UL);
        await world.CreateAsync("crowd", crowd);
        byte[] filler = StreamWorld.Pattern(2, 1 << 20);
        for (ulong at = 0; at < crowd; at += Units.MiB) await world.WriteAsync("crowd", at, filler);
        ulong used = await world.UsedAsync();

        (int code, _, string error) = await RunAsync(world, "create_volume", "-v", "promised", "--from", "gold", "--thin=false");
        Assert.True(code == 1 && error.Contains("capacity-exceeded", StringComparison.Ordinal), error);
        Assert.Null(world.Daemon.Directory.Find("promised"));

        await DoneAsync(world, "create_volume", "-v", "vm", "--from", "gold", "--thin");
        Assert.Contains("the disk is full", await StoppedAsync(world), StringComparison.Ordinal);
        Assert.True(world.Volume("vm").IsPopulating);
        VolumeRecord copy = world.Volume("vm");
        Assert.Null(await world.Host("vm").Thread.InvokeAsync(() => world.Daemon.Volumes.OpenAsync(copy, world.Host("vm").Thread)));
        (code, _, error) = await RunAsync(world, "delete_volume", "-v", "gold");
        Assert.True(code == 1 && error.Contains("vm is still being populated", StringComparison.Ordinal), error);
        await DoneAsync(world, "flatten_volume", "-v", "vm", "--no-wait");
        Assert.Contains("the disk is full", await StoppedAsync(world), StringComparison.Ordinal); // still
        if (givesUp)
        {
            await DoneAsync(world, "delete_volume", "-v", "vm");
            for (int i = 0; i < 500 && (await world.SnapshotsAsync("gold")).Count > 0; i++) await Task.Delay(20, Cancel);
            // What was cut for it goes with it, though nobody followed it any more.
            Assert.Empty(await world.SnapshotsAsync("gold"));
            Assert.Equal(used, await world.UsedAsync());
            await DoneAsync(world, "delete_volume", "-v", "gold");
            return;
        }

        await world.TrimAsync("crowd", 0, 4 * Units.MiB);
        await DoneAsync(world, "flatten_volume", "-v", "vm");
        while (world.Volume("vm").IsPopulating) await Task.Delay(20, Cancel);
        Assert.Equal(expected, await world.ReadAsync("vm"));
        await DoneAsync(world, "delete_volume", "-v", "gold"); // at once
        Assert.Equal(expected, await world.ReadAsync("vm"));
        Assert.Equal(used - 4 * Units.MiB, await world.UsedAsync());
    }

    /// <summary>What show_volume says when the copying has stopped.</summary>
    private static async Task<string> StoppedAsync(StreamWorld world)
    {
        while (true)
        {
            string shown = await DoneAsync(world, "show_volume", "-v", "vm");
            if (shown.Contains("could not be copied", StringComparison.Ordinal)) return shown;
            await Task.Delay(20, Cancel);
        }
    }

    private static async Task<string> DoneAsync(StreamWorld world, params string[] args)
    {
        (int code, string text, string error) = await RunAsync(world, args);
        Assert.True(code == 0, $"{string.Join(' ', args)}: {error}");
        return text;
    }

    private static Task<(int Code, string Text, string Error)> RunAsync(StreamWorld world, params string[] args) =>
        ApiPfcli.RunAsync(world.Url, world.Daemon.TokenPath, ["--yes", .. args], Cancel);
}
