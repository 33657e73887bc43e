using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>Power cuts under the directory, with the metadata in its real file: every operation on volumes is cut at every event of
/// the file's log (between two writes, with any of a commit's unsynced writes lost, one of them torn) and at every step of a store.
/// After a restart it happened or it did not; names, records and what lies on the disks agree.</summary>
public sealed class DirectoryCrashTests(ITestOutputHelper output) : IDisposable
{
    // SQLite's write-ahead log: a header, then frames of a header and a page each.
    private const int LogHeaderBytes = 32, FrameBytes = 24 + 4096;

    // Frames of one commit of which every subset is tried; of more, each one alone is lost.
    private const int SubsetsOf = 5;

    private readonly string _folder = Directory.CreateTempSubdirectory("blockserver-dircrash-").FullName;

    private static readonly (string Name, Func<VolumeDirectory, Task<DirectoryResult>> Run, string Gone, string Come)[] s_operations =
    [
        ("create", d => d.CreateAsync(new CreateVolume("new", Units.MiB)), "", "new"),
        ("create append-only", d => d.CreateAsync(new CreateVolume("new", Units.MiB, AppendOnly: true)), "", "new append-only"),
        ("seal", d => d.SealAsync("log"), "log append-only", "log append-only sealed"),
        ("rename", d => d.RenameAsync("log", "log.1", replaces: false), "log append-only", "log.1 append-only"),
        ("rename over another", d => d.RenameAsync("log", "old", replaces: true), "log append-only,old append-only sealed", "old append-only"),
        ("rename an ordinary volume", d => d.ChangeAsync("disk", new ChangeVolume(Name: "disk2")), "disk", "disk2"),
        ("delete", d => d.DeleteAsync("disk", null, null), "disk", ""),
        ("delete append-only", d => d.DeleteAsync("log", null, null), "log append-only", ""),
        ("delete sealed", d => d.DeleteAsync("old", null, null), "old append-only sealed", ""),
    ];

    public static TheoryData<string> Operations => [.. s_operations.Select(o => o.Name)];

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    /// <summary>The medium at one moment: the database, its log, and the heads on the disks.</summary>
    private sealed record Moment(byte[] Log, Dictionary<Guid, VolumeHead[]> Heads);

    [Theory]
    [MemberData(nameof(Operations))]
    public async Task A_power_cut_leaves_what_was_or_what_was_asked_for(string operation)
    {
        string path = Path.Combine(_folder, "metadata.db");
        await using SqliteMetaStore meta = SqliteMetaStore.Open(path);
        var world = new DirectoryWorld { Meta = meta };
        using VolumeDirectory directory = world.Begin();
        await directory.ReconcileAsync(world.Hosts());
        await MustAsync(directory.CreateAsync(new CreateVolume("disk", Units.MiB)));
        await MustAsync(directory.CreateAsync(new CreateVolume("log", Units.MiB, AppendOnly: true)));
        await MustAsync(directory.CreateAsync(new CreateVolume("old", Units.MiB, AppendOnly: true)));
        await MustAsync(directory.SealAsync("old"));
        Dictionary<string, Guid> before = Identities(directory);
        byte[] database = await ReadAsync(path);
        List<Moment> moments = [await NowAsync(path, world)];
        world.Stepped = () => moments.Add(NowAsync(path, world).GetAwaiter().GetResult());
        (_, Func<VolumeDirectory, Task<DirectoryResult>> run, string gone, string come) = s_operations.Single(o => o.Name == operation);
        DirectoryResult answer = await run(directory);
        // The delete of a volume has no record to answer with.
        Assert.Null(answer.Fault);
        world.Stepped = null;
        Dictionary<string, Guid> after = Identities(directory);
        Assert.Equal(database, await ReadAsync(path)); // the log was not taken into the database meanwhile: it alone was written
        Assert.Equal(gone.Split(',', StringSplitOptions.RemoveEmptyEntries), before.Keys.Except(after.Keys).Order(StringComparer.Ordinal));
        Assert.Equal(come.Length == 0 ? [] : [come], after.Where(v => !before.TryGetValue(v.Key, out Guid id) || id != v.Value).Select(v => v.Key));
        int states = 0, olds = 0;
        for (int i = 0; i < moments.Count; i++)
        {
            byte[] written = moments[i].Log, begun = i == 0 ? written : moments[i - 1].Log;
            foreach (byte[] log in Cuts(begun, written))
            {
                string because = $"{operation}: step {i} of {moments.Count}, log of {begun.Length} to {written.Length}, state {states}";
                Dictionary<string, Guid> found = await RestartAsync(database, log, moments[i].Heads, because);
                bool isBefore = Same(found, before), isAfter = Same(found, after);
                Assert.True(isBefore || isAfter, $"{because}: {string.Join("; ", found.Keys)}");
                if (isBefore) olds++;
                if (i == moments.Count - 1 && log.Length == written.Length && log.AsSpan().SequenceEqual(written)) Assert.True(isAfter, $"{because}: acknowledged and not there");
                states++;
            }
        }

        output.WriteLine($"{operation}: {states} states of the medium at {moments.Count} steps; {olds} as before, {states - olds} as asked for");
        Assert.InRange(olds, 1, states - 1);
    }

    /// <summary>Logs as a power cut can leave them while <paramref name="begun"/> became <paramref name="written"/>.</summary>
    private static IEnumerable<byte[]> Cuts(byte[] begun, byte[] written)
    {
        yield return written;
        Assert.True(written.Length >= begun.Length && written.AsSpan(0, begun.Length).SequenceEqual(begun), "the log is only added to");
        int frames = (written.Length - begun.Length) / FrameBytes;
        Assert.Equal(frames * FrameBytes, written.Length - begun.Length);
        if (begun.Length == written.Length) yield break;
        Assert.True(begun.Length >= LogHeaderBytes);
        for (int kept = 0; kept < frames; kept++)
        {
            yield return written[..(begun.Length + kept * FrameBytes)];
            foreach (int torn in new[] { 1, 24, 24 + 512, 24 + 2048, FrameBytes - 1 }) yield return written[..(begun.Length + kept * FrameBytes + torn)];
        }

        // Nothing of a commit is synced before its end: its writes may reach the medium in any order.
        foreach (uint lost in frames <= SubsetsOf ? Enumerable.Range(1, (1 << frames) - 1).Select(m => (uint)m) : Enumerable.Range(0, Math.Min(frames, 32)).Select(f => 1u << f))
        {
            byte[] log = [.. written];
            for (int frame = 0; frame < frames; frame++)
            {
                if ((lost >> frame & 1) != 0) log.AsSpan(begun.Length + frame * FrameBytes, FrameBytes).Clear();
            }

            yield return log;
        }
    }

    private static async Task<Dictionary<string, Guid>> RestartAsync(byte[] database, byte[] log, Dictionary<Guid, VolumeHead[]> heads, string because)
    {
        string folder = Directory.CreateTempSubdirectory("blockserver-dircrash-").FullName;
        try
        {
            string path = Path.Combine(folder, "metadata.db");
            await File.WriteAllBytesAsync(path, database);
            if (log.Length > 0) await File.WriteAllBytesAsync(path + "-wal", log);
            await using SqliteMetaStore meta = SqliteMetaStore.Open(path);
            var world = new DirectoryWorld { Meta = meta };
            foreach ((Guid disk, VolumeHead[] there) in heads)
            {
                foreach (VolumeHead head in there) world.Disks[disk].Add(head.Id, head);
            }

            using VolumeDirectory directory = world.Begin();
            Assert.Empty(await directory.ReconcileAsync(world.Hosts()));
            Dictionary<string, Guid> found = Identities(directory);
            await CheckAsync(world, directory, because);
            // A second start has nothing to do, and the directory goes on.
            using VolumeDirectory again = world.Begin();
            Assert.Empty(await again.ReconcileAsync(world.Hosts()));
            Assert.True(Same(found, Identities(again)), because);
            Assert.Null((await again.CreateAsync(new CreateVolume("later", Units.MiB))).Fault);
            await CheckAsync(world, again, because);
            return found;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    /// <summary>Each record has its volume on its disk and each volume its record, under one name.</summary>
    private static async Task CheckAsync(DirectoryWorld world, VolumeDirectory directory, string because)
    {
        string[] there = [.. world.Disks.SelectMany(d => d.Value.Values.Select(h => $"{d.Key} {h.Id} {h.Uuid} {h.Name} {h.IsAppendOnly} {h.IsSealed}")).Order(StringComparer.Ordinal)];
        string[] known = [.. directory.List().Select(v => $"{v.StoreId} {v.Id} {v.Uuid} {v.Name} {v.IsAppendOnly} {v.IsSealed}").Order(StringComparer.Ordinal)];
        Assert.True(there.SequenceEqual(known), $"{because}: on the disks {string.Join("; ", there)}, known {string.Join("; ", known)}");
        string[] records = [.. (await world.Meta.RangeAsync("vol/")).Select(e => e.Key).Order(StringComparer.Ordinal)];
        Assert.True(records.SequenceEqual(directory.List().Select(v => $"vol/{v.Id}").Order(StringComparer.Ordinal)), $"{because}: records {string.Join(' ', records)}");
        string[] names = [.. (await world.Meta.RangeAsync("name/")).Select(e => $"{e.Key}={JsonSerializer.Deserialize<uint>(e.Value.Span)}")];
        Assert.True(names.SequenceEqual(directory.List().Select(v => $"name/{v.Name}={v.Id}").Order(StringComparer.Ordinal)), $"{because}: names {string.Join(' ', names)}");
    }

    private static Dictionary<string, Guid> Identities(VolumeDirectory directory) =>
        directory.List().ToDictionary(v => v.Name + (v.IsAppendOnly ? " append-only" : "") + (v.IsSealed ? " sealed" : ""), v => v.Uuid);

    private static bool Same(Dictionary<string, Guid> one, Dictionary<string, Guid> other) =>
        one.Count == other.Count && one.All(v => other.TryGetValue(v.Key, out Guid id) && id == v.Value);

    private static async Task MustAsync(Task<DirectoryResult> asked) => Assert.Null((await asked).Fault);

    private static async Task<Moment> NowAsync(string path, DirectoryWorld world) =>
        new(await ReadAsync(path + "-wal"), world.Disks.ToDictionary(d => d.Key, d => d.Value.Values.ToArray()));

    private static async Task<byte[]> ReadAsync(string path)
    {
        await using var file = new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite);
        var bytes = new byte[file.Length];
        await file.ReadExactlyAsync(bytes);
        return bytes;
    }
}
