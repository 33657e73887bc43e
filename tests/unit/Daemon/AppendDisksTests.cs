using System.Collections.Concurrent;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Client;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Append-only volumes on disks that are replaced, that have failed, and that cannot read all of them any more.</summary>
public sealed class AppendDisksTests
{
    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    /// <summary>Writers go on while the disk under them is replaced; a sealed volume, an empty one, and one with a snapshot and a clone go too.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task A_replaced_disk_is_out_of_service_with_every_append_on_the_new_one(int loops)
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "store-size=160m", $"loops={loops}");
        Blockd.Daemon daemon = server.Test.Daemon;
        Guid first = daemon.Stores.All[0].StoreId;
        await daemon.Disks.AddAsync(new AddDisk(server.Test.PathOf("bystander.blk"), "bystander", 160 * Units.MiB));
        using BlockdClient blockd = Connect(server);
        foreach (string name in new[] { "log", "sealed", "empty", "base" }) await CreateAsync(daemon, name, first);
        await blockd.AppendAsync("sealed", Guid.Empty, 0, [Line("sealed", 1)], cancel: Cancel);
        await blockd.SealAofAsync("sealed", Cancel);
        await blockd.AppendAsync("base", Guid.Empty, 0, [Line("base", 1)], cancel: Cancel);
        Assert.Null((await daemon.Directory.CutAsync("cut", ["base"], default)).Fault);
        Assert.Null((await daemon.Directory.CloneAsync("base", new CloneVolume("clone", "cut"))).Fault);
        await blockd.AppendAsync("base", Guid.Empty, 0, [Line("base", 2)], cancel: Cancel);
        await blockd.AppendAsync("clone", Guid.Empty, 0, [Line("clone", 1)], cancel: Cancel);

        await using var writers = new Writers(blockd, 3);
        await writers.LandAsync(20);
        var drains = new Drains(daemon, new Moves(daemon));
        TaskInfo done = await EndedAsync(daemon, await drains.ReplaceAsync(first, new AddDisk(server.Test.PathOf("fresh.blk"), "fresh", 160 * Units.MiB)));
        Assert.True(done.State == "succeeded", done.Result);
        Assert.Null(daemon.Stores.Find(first));
        await writers.LandAsync(20);
        await writers.StopAsync();
        await server.RestartAsync();
        using BlockdClient again = Connect(server);
        daemon = server.Test.Daemon;
        Assert.Null(daemon.Stores.Find(first));
        Assert.All(daemon.Directory.List(), v => Assert.Equal("fresh", daemon.Stores.Find(v.StoreId)!.Name));
        await writers.CheckAsync(again);
        Assert.Equal(Joined(Line("base", 1), Line("base", 2)), await ReadAllAsync(again, "base"));
        Assert.Equal(Joined(Line("base", 1), Line("clone", 1)), await ReadAllAsync(again, "clone"));
        Assert.Equal(Line("sealed", 1), await ReadAllAsync(again, "sealed"));
        Assert.True((await again.StatAofAsync("sealed", Cancel)).Sealed);
        Assert.Equal(0UL, (await again.StatAofAsync("empty", Cancel)).LengthBytes);
        foreach (string name in new[] { "empty", "base", "clone" }) await again.AppendAsync(name, Guid.Empty, 0, [Line("later", 1)], cancel: Cancel);
    }

    /// <summary>A disk fails under writers that have appends under way. Emptied, it leaves them a home where each of those lands once, and all
    /// that had landed before is where it was.</summary>
    [Theory]
    [InlineData(1, true)]
    [InlineData(1, false)]
    [InlineData(2, true)]
    public async Task Writers_of_a_failed_disk_go_on_when_it_is_drained(int loops, bool failsFlush)
    {
        var faulty = new FaultyFile();
        await using ApiServer server = await ApiServer.StartOnAsync(file => faulty.Around(file), "store-size=160m", $"loops={loops}");
        Blockd.Daemon daemon = server.Test.Daemon;
        Guid first = daemon.Stores.All[0].StoreId;
        using BlockdClient blockd = Connect(server);
        foreach (string name in new[] { "log", "sealed" }) await CreateAsync(daemon, name, first);
        await blockd.AppendAsync("sealed", Guid.Empty, 0, [Line("sealed", 1)], cancel: Cancel);
        await blockd.SealAofAsync("sealed", Cancel);
        await using var writers = new Writers(blockd, 3);
        await writers.LandAsync(20);
        Assert.Null((await daemon.Directory.CutAsync("cut", ["log"], default)).Fault);
        byte[] cut = await ReadAllAsync(blockd, "log");
        await writers.LandAsync(20);
        (faulty.FailsFlush, faulty.FailsWrites) = (failsFlush, !failsFlush);
        StoreHost host = daemon.Stores.Find(first)!;
        while ((await host.DescribeAsync()).Health != "failed") await Task.Delay(5, Cancel);
        byte[] shown = await ReadAllAsync(blockd, "log");
        Assert.True(shown.AsSpan().StartsWith(cut));

        StoreHost second = await daemon.Disks.AddAsync(new AddDisk(server.Test.PathOf("second.blk"), "second", 160 * Units.MiB));
        TaskInfo done = await EndedAsync(daemon, await new Drains(daemon, new Moves(daemon)).BeginAsync(first));
        Assert.True(done.State == "succeeded", done.Result);
        Assert.All(daemon.Directory.List(), v => Assert.Equal(second.StoreId, v.StoreId));
        await writers.LandAsync(20);
        await writers.StopAsync();
        await writers.CheckAsync(blockd);
        Assert.True((await ReadAllAsync(blockd, "log")).AsSpan().StartsWith(shown));
        await daemon.RemoveDiskAsync(first, isForced: true);
        await server.RestartAsync();
        using BlockdClient again = Connect(server);
        daemon = server.Test.Daemon;
        await writers.CheckAsync(again);
        Assert.Equal(Line("sealed", 1), await ReadAllAsync(again, "sealed"));
        Assert.True((await again.StatAofAsync("sealed", Cancel)).Sealed);
        Assert.Null((await daemon.Directory.CloneAsync("log", new CloneVolume("clone", "cut"))).Fault);
        byte[] clone = await ReadAllAsync(again, "clone");
        Assert.InRange(clone.Length, 1, cut.Length);
        Assert.True(cut.AsSpan().StartsWith(clone));
    }

    /// <summary>A log with a block that cannot be read stays at its disk, and is appended to there as before; the others go.</summary>
    [Fact]
    public async Task A_log_that_cannot_be_read_as_a_whole_stays_and_takes_appends()
    {
        var faulty = new FaultyFile();
        await using ApiServer server = await ApiServer.StartOnAsync(file => faulty.Around(file), "store-size=160m");
        Blockd.Daemon daemon = server.Test.Daemon;
        Guid first = daemon.Stores.All[0].StoreId;
        using BlockdClient blockd = Connect(server);
        foreach (string name in new[] { "log", "good" }) await CreateAsync(daemon, name, first);
        var client = Guid.NewGuid();
        byte[] front = new byte[64 << 10], bad = new byte[4096];
        Random.Shared.NextBytes(bad);
        await blockd.AppendAsync("log", client, 1, [front], cancel: Cancel);
        ulong place = 0;
        faulty.Writing = (at, source) =>
        {
            if (source.Span.StartsWith(bad)) place = at;
        };
        await blockd.AppendAsync("log", client, 2, [bad], cancel: Cancel);
        Assert.NotEqual(0UL, place);
        faulty.FailsReads = (int)place..(int)(place + 4096);
        await blockd.AppendAsync("good", client, 1, [front], cancel: Cancel);
        StoreHost second = await daemon.Disks.AddAsync(new AddDisk(server.Test.PathOf("second.blk"), "second", 160 * Units.MiB));
        TaskInfo ended = await EndedAsync(daemon, await new Drains(daemon, new Moves(daemon)).BeginAsync(first));
        Assert.Equal("failed", ended.State);
        Assert.Contains("1 stay: 'log'", ended.Result, StringComparison.Ordinal);
        Assert.Contains($"byte {front.Length}", ended.Result, StringComparison.Ordinal);
        Assert.Equal((first, second.StoreId), (daemon.Directory.Find("log")!.StoreId, daemon.Directory.Find("good")!.StoreId));
        Assert.Empty(daemon.Directory.Moves);
        while (second.Store.Volumes.Any(v => v.Name == "log")) await Task.Delay(5, Cancel); // nothing of it is left there

        AppendAnswerInfo landed = await blockd.AppendAsync("log", client, 3, [new byte[10]], cancel: Cancel);
        Assert.Equal([new AppendedInfo((ulong)(front.Length + bad.Length), 10, Repeated: false)], landed.Appends);
        Assert.True((await blockd.AppendAsync("log", client, 2, [bad], cancel: Cancel)).Appends[0].Repeated);
        Assert.Equal(front, (await blockd.ReadAofAsync("log", 0, front.Length, cancel: Cancel)).Bytes.ToArray());
        // What could not be read for a while only goes with the next try.
        faulty.FailsReads = null;
        ended = await EndedAsync(daemon, await new Drains(daemon, new Moves(daemon)).BeginAsync(first));
        Assert.True(ended.State == "succeeded", ended.Result);
        Assert.Equal(Joined(front, bad, new byte[10]), await ReadAllAsync(blockd, "log"));
        Assert.True((await blockd.AppendAsync("log", client, 3, [new byte[10]], cancel: Cancel)).Appends[0].Repeated);
    }

    private static BlockdClient Connect(ApiServer server) => new(new Uri($"http://127.0.0.1:{server.Port}"), server.Token);

    private static async Task CreateAsync(Blockd.Daemon daemon, string name, Guid store) =>
        Assert.Null((await daemon.Directory.CreateAsync(new CreateVolume(name, 32 * Units.MiB, StoreId: store, AppendOnly: true))).Fault);

    private static async Task<TaskInfo> EndedAsync(Blockd.Daemon daemon, TaskInfo task)
    {
        while (daemon.Tasks.Find(task.Id) is { EndedAt: null }) await Task.Delay(5, Cancel);
        return daemon.Tasks.Find(task.Id)!;
    }

    private static async Task<byte[]> ReadAllAsync(BlockdClient blockd, string name)
    {
        using var all = new MemoryStream();
        while (await blockd.ReadAofAsync(name, (ulong)all.Length, 1 << 20, cancel: Cancel) is { Bytes.Length: > 0 } chunk) all.Write(chunk.Bytes.Span);
        return all.ToArray();
    }

    private static byte[] Joined(params byte[][] parts) => [.. parts.SelectMany(p => p)];

    private static byte[] Line(string writer, int number) => Encoding.ASCII.GetBytes($"{writer} {number} {new string('x', number * 37 % 5000)}\n");

    /// <summary>Append to the volume log, each by a stream of its own, until they are stopped; none of them may hear an error.</summary>
    private sealed class Writers : IAsyncDisposable
    {
        private readonly ConcurrentDictionary<ulong, byte[]> _landed = new();
        private readonly ConcurrentDictionary<Guid, (ulong Sequence, ulong Offset, byte[] Bytes)> _last = new();
        private readonly CancellationTokenSource _end = new();
        private readonly Task[] _running;

        public Writers(BlockdClient blockd, int count) =>
            _running = [.. Enumerable.Range(0, count).Select(i => Task.Run(() => WriteAsync(blockd, $"writer{i}")))];

        /// <summary>Until so many more have landed.</summary>
        public async Task LandAsync(int count)
        {
            int before = _landed.Count;
            while (_landed.Count < before + count && _running.All(w => !w.IsCompleted)) await Task.Delay(1, Cancel);
        }

        public async Task StopAsync()
        {
            await _end.CancelAsync();
            await Task.WhenAll(_running);
        }

        /// <summary>Every line lies where it was said to, nothing is there twice, and the last of each writer is known.</summary>
        public async Task CheckAsync(BlockdClient blockd)
        {
            byte[] all = await ReadAllAsync(blockd, "log");
            int at = 0;
            foreach ((ulong offset, byte[] line) in _landed.OrderBy(l => l.Key))
            {
                Assert.Equal((ulong)at, offset);
                Assert.True(all.AsSpan(at).StartsWith(line), $"at {at} lies another line");
                at += line.Length;
            }

            Assert.Equal(all.Length, at);
            foreach ((Guid client, (ulong sequence, ulong offset, byte[] bytes)) in _last)
            {
                AppendAnswerInfo repeat = await blockd.AppendAsync("log", client, sequence, [bytes], cancel: Cancel);
                Assert.Equal([new AppendedInfo(offset, (uint)bytes.Length, Repeated: true)], repeat.Appends);
            }
        }

        public async ValueTask DisposeAsync()
        {
            await _end.CancelAsync();
            await Task.WhenAny(Task.WhenAll(_running), Task.Delay(1000, CancellationToken.None));
            _end.Dispose();
        }

        private async Task WriteAsync(BlockdClient blockd, string name)
        {
            await using var writer = new AofWriter(blockd, "log", new AofWriterOptions { RetryDelay = TimeSpan.FromMilliseconds(1) });
            for (int i = 0; !_end.IsCancellationRequested; i += 8)
            {
                byte[][] lines = [.. Enumerable.Range(i, 8).Select(n => Line(name, n))];
                ulong[] offsets = await Task.WhenAll(lines.Select(l => writer.AppendAsync(l, Cancel)));
                for (int n = 0; n < lines.Length; n++) Assert.True(_landed.TryAdd(offsets[n], lines[n]));
                _last[writer.Client] = ((ulong)i + 8, offsets[^1], lines[^1]);
            }
        }
    }
}
