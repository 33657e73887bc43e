using System.Globalization;
using System.Text.Json;
using BlockServer.Tests.Running;
using Xunit;

namespace BlockServer.Tests.Recovery;

/// <summary>
/// The real daemon, killed in the midst of what is done to layers, while a verifying load runs on the volume. What was answered
/// holds afterwards, what was not is there as a whole or not at all, and no view ever shows anything else than before.
/// </summary>
public sealed class SnapshotKillTests(ITestOutputHelper output)
{
    private const int Blocks = 2048;

    // "w" is rolled back: nobody writes it but this test, each time as a whole.
    private const int SideBytes = LayerApi.SideBytes;

    private static readonly string[] Kinds = ["snapshot", "delete", "clone", "flatten", "rollback", "group"];

    private readonly Dictionary<string, string?> _views = new(StringComparer.Ordinal); // export -> digest of its content; null: not read yet
    private readonly HashSet<string> _doubtful = new(StringComparer.Ordinal); // exports that may be there or not

    [Fact]
    public async Task WhatIsDoneToLayersIsDoneWholeOrNotAtAll()
    {
        DaemonProcess.Require();
        int cycles = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_SNAPSHOT_KILLS"), NumberStyles.None, CultureInfo.InvariantCulture, out int n) ? n : 10;
        int seed = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_SEED"), out int given) ? given : Random.Shared.Next();
        output.WriteLine($"BLOCKSERVER_SEED={seed}");
        Random random = new(seed);
        using ScratchFolder folder = new();
        Verifier verifier = new("v", Blocks);
        string? side = null, sideMaybe = null;
        var answered = new Dictionary<string, int>(StringComparer.Ordinal);
        for (int cycle = 0; cycle < cycles; cycle++)
        {
            string[] volumes = cycle == 0 ? [$"v:{(long)Blocks * Verifier.BlockSize}", $"w:{SideBytes}"] : [];
            using DaemonProcess daemon = DaemonProcess.Start(folder.Path, cycle % 2 == 0 ? "io_uring" : "aio", "flush", "512m", volumes);
            using HttpClient api = LayerApi.Open(folder, daemon);
            verifier.Verify(daemon);
            Judge(daemon, ref side, ref sideMaybe);
            await TidyAsync(api);

            // Enough for every kind to have something to work on.
            string kind = Kinds[cycle % Kinds.Length];
            string name = $"s{cycle}", clone = $"c{cycle}", below = $"v@b{cycle}";
            Task load = verifier.Load(daemon, random.Next());
            await verifier.MakeProgress(load, 200);
            await LayerApi.MustAsync(api, "POST", "v1/snapshots", $"{{\"name\":\"b{cycle}\",\"volumes\":[\"v\"]}}");
            _views[below] = null;
            if (kind == "flatten")
            {
                await LayerApi.MustAsync(api, "POST", "v1/volumes/v/clone", $"{{\"name\":\"{clone}\",\"snapshot\":\"b{cycle}\"}}");
                _views[clone] = _views[below] = LayerApi.DigestOf(daemon, below)!;
            }

            string? target = null;
            if (kind == "rollback")
            {
                await LayerApi.MustAsync(api, "POST", "v1/snapshots", $"{{\"name\":\"r{cycle}\",\"volumes\":[\"w\"]}}");
                target = _views[$"w@r{cycle}"] = LayerApi.DigestOf(daemon, "w")!;
                LayerApi.Fill(daemon, "w", (byte)(cycle + 1));
                side = LayerApi.DigestOf(daemon, "w");
            }

            await verifier.MakeProgress(load, 200);
            Task<bool> operation = kind switch
            {
                "snapshot" => LayerApi.SendAsync(api, "POST", "v1/snapshots", $"{{\"name\":\"{name}\",\"volumes\":[\"v\"]}}"),
                "delete" => LayerApi.SendAsync(api, "DELETE", $"v1/volumes/v/snapshots/b{cycle}", null),
                "clone" => LayerApi.SendAsync(api, "POST", "v1/volumes/v/clone", $"{{\"name\":\"{clone}\",\"snapshot\":\"b{cycle}\"}}"),
                "flatten" => LayerApi.SendAsync(api, "POST", $"v1/volumes/{clone}/flatten", "{}"),
                "rollback" => LayerApi.SendAsync(api, "POST", $"v1/volumes/w/snapshots/r{cycle}/rollback", $"{{\"safetyName\":\"k{cycle}\"}}"),
                _ => LayerApi.SendAsync(api, "POST", "v1/snapshots", $"{{\"name\":\"{name}\",\"volumes\":[\"v\",\"w\"]}}"),
            };
            // Often before it is answered, and often while the background goes on with it.
            if (random.Next(2) == 0) await Task.WhenAny(operation, Task.Delay(random.Next(20)));
            else await Task.WhenAny(operation, Task.Delay(2000));
            if (operation.IsCompleted) await Task.Delay(random.Next(30));
            verifier.ExpectEnd();
            daemon.Kill();
            await load;
            bool isDone = await operation;
            if (isDone) answered[kind] = answered.GetValueOrDefault(kind) + 1;
            switch (kind)
            {
                case "snapshot":
                    Expect($"v@{name}", null, isDone);
                    break;
                case "delete":
                    if (isDone) _views.Remove(below);
                    else _doubtful.Add(below);
                    break;
                case "clone":
                    Expect(clone, _views[below], isDone);
                    break;
                case "rollback":
                    Expect($"w@k{cycle}", side, isDone);
                    if (isDone) side = target;
                    else sideMaybe = target;
                    break;
                case "group":
                    Expect($"v@{name}", null, isDone);
                    Expect($"w@{name}", side, isDone);
                    break;
            }

            string inspector = Path.Combine(DaemonProcess.Root, "out", "pfinspect");
            Assert.EndsWith("\nsound\n", DaemonProcess.Run(inspector, "check", DaemonProcess.StoreIn(folder.Path)), StringComparison.Ordinal);
        }

        using DaemonProcess last = DaemonProcess.Start(folder.Path, "auto", "flush", "512m");
        verifier.Verify(last);
        Judge(last, ref side, ref sideMaybe);
        using HttpClient lastApi = LayerApi.Open(folder, last);
        await TidyAsync(lastApi);
        Judge(last, ref side, ref sideMaybe);
        output.WriteLine($"{cycles} kills, answered before: {string.Join(", ", answered.Select(a => $"{a.Key} {a.Value}"))}; {_views.Count} views");
    }

    private void Expect(string export, string? digest, bool isDone)
    {
        _views[export] = digest;
        if (!isDone) _doubtful.Add(export);
    }

    /// <summary>Every view is what it was; what was not answered is there as a whole, a group all or none, or it is forgotten.</summary>
    private void Judge(DaemonProcess daemon, ref string? side, ref string? sideMaybe)
    {
        var there = new Dictionary<string, bool>(StringComparer.Ordinal);
        foreach ((string export, string? digest) in _views.ToArray())
        {
            string? now = LayerApi.DigestOf(daemon, export);
            Assert.True(now is not null || _doubtful.Contains(export), $"{export} is gone");
            if (now is not null && digest is not null) Assert.True(now == digest, $"{export} shows something else than before");
            there[export] = now is not null;
            if (now is null) _views.Remove(export);
            else _views[export] = now;
        }

        foreach (string export in _doubtful.Where(e => e.StartsWith("w@s", StringComparison.Ordinal)))
            Assert.True(there[export] == there["v" + export[1..]], $"half of the group of {export} is there");
        string? sideNow = LayerApi.DigestOf(daemon, "w");
        bool isRolledBack = _doubtful.FirstOrDefault(e => e.StartsWith("w@k", StringComparison.Ordinal)) is { } safety && there[safety];
        string? wanted = isRolledBack ? sideMaybe : side;
        Assert.True(wanted is null || sideNow == wanted, "w is neither what it was nor what its snapshot is");
        (side, sideMaybe) = (sideNow, null);
        _doubtful.Clear();
    }

    /// <summary>Deletes most of what there is, so that the store does not fill and layers go in any order.</summary>
    private async Task TidyAsync(HttpClient api)
    {
        foreach (string clone in _views.Keys.Where(e => !e.Contains('@', StringComparison.Ordinal)).ToArray())
        {
            using JsonDocument info = JsonDocument.Parse(await LayerApi.MustAsync(api, "GET", $"v1/volumes/{clone}", null));
            await LayerApi.MustAsync(api, "DELETE", $"v1/volumes/{clone}?id={info.RootElement.GetProperty("id").GetUInt32()}", null);
            _views.Remove(clone);
        }

        foreach (string export in _views.Keys.Order(StringComparer.Ordinal).ToArray()[..(_views.Count / 2)])
        {
            string[] parts = export.Split('@');
            await LayerApi.MustAsync(api, "DELETE", $"v1/volumes/{parts[0]}/snapshots/{parts[1]}", null);
            _views.Remove(export);
        }
    }
}
