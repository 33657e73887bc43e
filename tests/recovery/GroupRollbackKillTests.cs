using System.Globalization;
using System.Text.Json;
using BlockServer.Tests.Running;
using Xunit;

namespace BlockServer.Tests.Recovery;

/// <summary>The real daemon, killed in the midst of a rollback of two volumes on two disks. After each restart both have gone back, or
/// neither has; what they were is kept of both, or of neither.</summary>
public sealed class GroupRollbackKillTests(ITestOutputHelper output)
{
    private static readonly string[] Volumes = ["a", "b"];

    [Fact]
    public async Task VolumesOnTwoDisksGoBackTogetherOrNotAtAll()
    {
        DaemonProcess.Require();
        int cycles = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_ROLLBACK_KILLS"), NumberStyles.None, CultureInfo.InvariantCulture, out int n) ? n : 10;
        int seed = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_SEED"), out int given) ? given : Random.Shared.Next();
        output.WriteLine($"BLOCKSERVER_SEED={seed}");
        Random random = new(seed);
        using ScratchFolder folder = new();
        string second = Path.Combine(folder.Path, "second.blk");
        int answered = 0, back = 0;
        for (int cycle = 0; cycle < cycles; cycle++)
        {
            string[] old, target;
            bool isDone;
            using (DaemonProcess daemon = DaemonProcess.Start(folder.Path, cycle % 2 == 0 ? "io_uring" : "aio", "flush", "512m"))
            using (HttpClient api = LayerApi.Open(folder, daemon))
            {
                if (cycle == 0) await MakeVolumesAsync(api, second);
                target = await WriteAsync(daemon, (byte)(2 * cycle + 1));
                await LayerApi.MustAsync(api, "POST", "v1/snapshots", $"{{\"name\":\"g{cycle}\",\"volumes\":[\"a\",\"b\"]}}");
                old = await WriteAsync(daemon, (byte)(2 * cycle + 2));
                Assert.NotEqual(old, target);
                Task<bool> rollback = LayerApi.SendAsync(
                    api, "POST", "v1/snapshots/rollback", $"{{\"snapshot\":\"g{cycle}\",\"volumes\":[\"a\",\"b\"],\"safetyName\":\"k{cycle}\",\"force\":true}}");
                // It takes some tens of milliseconds; now and then it is done.
                await Task.WhenAny(rollback, Task.Delay(cycle % 5 == 4 ? 2000 : random.Next(40)));
                daemon.Kill();
                isDone = await rollback;
            }

            if (isDone) answered++;
            string inspector = Path.Combine(DaemonProcess.Root, "out", "pfinspect");
            foreach (string store in new[] { DaemonProcess.StoreIn(folder.Path), second })
                Assert.EndsWith("\nsound\n", DaemonProcess.Run(inspector, "check", store), StringComparison.Ordinal);
            using DaemonProcess next = DaemonProcess.Start(folder.Path, "auto", "flush", "512m");
            using HttpClient again = LayerApi.Open(folder, next);
            string?[] now = [.. Volumes.Select(v => LayerApi.DigestOf(next, v))], kept = [.. Volumes.Select(v => LayerApi.DigestOf(next, $"{v}@k{cycle}"))];
            bool hasGone = now.SequenceEqual(target);
            if (hasGone) back++;
            Assert.True(hasGone || now.SequenceEqual(old), "one volume has gone back and the other has not");
            Assert.True(hasGone || !isDone, "the rollback was answered and is not there");
            Assert.Equal(hasGone ? old : new string?[Volumes.Length], kept);
            Assert.Equal(target, Volumes.Select(v => LayerApi.DigestOf(next, $"{v}@g{cycle}")));
            foreach (string volume in Volumes)
            {
                await LayerApi.MustAsync(again, "DELETE", $"v1/volumes/{volume}/snapshots/g{cycle}", null);
                if (hasGone) await LayerApi.MustAsync(again, "DELETE", $"v1/volumes/{volume}/snapshots/k{cycle}", null);
            }
        }

        output.WriteLine($"{cycles} kills, {answered} answered before, {back} have gone back");
    }

    private static async Task MakeVolumesAsync(HttpClient api, string path)
    {
        using JsonDocument disk = JsonDocument.Parse(await LayerApi.MustAsync(api, "POST", "v1/disks", $"{{\"path\":\"{path}\",\"sizeBytes\":{512 << 20}}}"));
        string two = disk.RootElement.GetProperty("id").GetString()!;
        using JsonDocument disks = JsonDocument.Parse(await LayerApi.MustAsync(api, "GET", "v1/disks", null));
        string one = disks.RootElement.GetProperty("disks").EnumerateArray().Select(d => d.GetProperty("id").GetString()!).Single(id => id != two);
        foreach ((string name, string id) in new[] { ("a", one), ("b", two) })
            await LayerApi.MustAsync(api, "POST", "v1/volumes", $"{{\"name\":\"{name}\",\"sizeBytes\":{LayerApi.SideBytes},\"storeId\":\"{id}\"}}");
    }

    /// <summary>Fills both, each with something else; what they show then.</summary>
    private static async Task<string[]> WriteAsync(DaemonProcess daemon, byte value)
    {
        LayerApi.Fill(daemon, "a", value);
        LayerApi.Fill(daemon, "b", (byte)(value + 100));
        await Task.Yield();
        return [.. Volumes.Select(v => LayerApi.DigestOf(daemon, v)!)];
    }
}
