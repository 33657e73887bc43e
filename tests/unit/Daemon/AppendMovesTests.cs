using System.Collections.Concurrent;
using System.Text;
using BlockServer.Blockd;
using BlockServer.Client;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Append-only volumes that go from one disk to another while writers append by streams and by calls, and readers follow.</summary>
public sealed class AppendMovesTests
{
    private static CancellationToken Cancel => TestContext.Current.CancellationToken;

    private static async Task<(Guid First, Guid Second)> DisksAsync(ApiServer server)
    {
        Guid first = server.Test.Daemon.Stores.All[0].StoreId;
        StoreHost second = await server.Test.Daemon.Disks.AddAsync(new AddDisk(server.Test.PathOf("second.blk"), "second", 160 * Units.MiB));
        return (first, second.StoreId);
    }

    private static async Task MoveAsync(ApiServer server, Guid to, string name = "log") =>
        await new Moves(server.Test.Daemon).MoveAsync(server.Test.Daemon.Directory.Find(name)!, to, Cancel);

    private static BlockdClient Connect(ApiServer server) => new(new Uri($"http://127.0.0.1:{server.Port}"), server.Token);

    private static async Task<byte[]> ReadAllAsync(BlockdClient blockd, string name)
    {
        using var all = new MemoryStream();
        while (await blockd.ReadAofAsync(name, (ulong)all.Length, 1 << 20, cancel: Cancel) is { Bytes.Length: > 0 } chunk) all.Write(chunk.Bytes.Span);
        return all.ToArray();
    }

    private static byte[] Line(string writer, int number) => Encoding.ASCII.GetBytes($"{writer} {number} {new string('x', number * 37 % 5000)}\n");

    /// <summary>Streams, single calls with a client and without one, several appends of a call: each lands once, at the answered place, and no
    /// writer hears an error.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public async Task Writers_go_on_through_moves_and_everything_lands_once(int loops)
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "store-size=160m", $"loops={loops}");
        (Guid first, Guid second) = await DisksAsync(server);
        using BlockdClient blockd = Connect(server);
        VolumeDirectory directory = server.Test.Daemon.Directory;
        Assert.Null((await directory.CreateAsync(new CreateVolume("log", 64 * Units.MiB, StoreId: first, AppendOnly: true))).Fault);
        var landed = new ConcurrentDictionary<ulong, byte[]>();
        var last = new ConcurrentDictionary<Guid, (ulong Sequence, ulong Offset, byte[] Bytes)>();
        using var end = new CancellationTokenSource();
        Task[] writers =
        [
            .. Enumerable.Range(0, 3).Select(i => Task.Run(() => StreamAsync($"stream{i}"))),
            .. Enumerable.Range(0, 2).Select(i => Task.Run(() => CallAsync($"call{i}", Guid.NewGuid()))),
            Task.Run(() => CallAsync("nobody", Guid.Empty)),
        ];
        Task<ulong> following = Task.Run(FollowAsync);
        byte[]? cut = null;
        foreach (Guid to in new[] { second, first, second, first, second })
        {
            int before = landed.Count;
            while (landed.Count < before + 40 && writers.All(w => !w.IsCompleted)) await Task.Delay(1, Cancel);
            if (cut is null)
            {
                Assert.Null((await directory.CutAsync("cut", ["log"], default)).Fault);
                cut = await ReadAllAsync(blockd, "log");
            }

            await MoveAsync(server, to);
            Assert.Equal(to, directory.Find("log")!.StoreId);
        }

        await end.CancelAsync();
        await Task.WhenAll(writers);
        AofInfo info = await blockd.StatAofAsync("log", Cancel);
        await AssertAllAsync(blockd);
        await blockd.SealAofAsync("log", Cancel);
        Assert.Equal(info.LengthBytes, await following);
        // Sealed it moves too, and its clients are known wherever it is, and after a start.
        await MoveAsync(server, first);
        await server.RestartAsync();
        using BlockdClient again = Connect(server);
        await AssertAllAsync(again);
        AofInfo moved = await again.StatAofAsync("log", Cancel);
        Assert.Equal((info.LengthBytes, true, info.Clients), (moved.LengthBytes, moved.Sealed, moved.Clients));
        foreach ((Guid client, (ulong sequence, ulong offset, byte[] bytes)) in last)
        {
            AppendAnswerInfo repeat = await again.AppendAsync("log", client, sequence, [bytes], cancel: Cancel);
            Assert.Equal([new AppendedInfo(offset, (uint)bytes.Length, Repeated: true)], repeat.Appends);
        }

        BlockdException refused = await Assert.ThrowsAsync<BlockdException>(() => again.AppendAsync("log", Guid.NewGuid(), 1, [new byte[1]], cancel: Cancel));
        Assert.Equal("volume-is-sealed", refused.Code);
        directory = server.Test.Daemon.Directory;
        Assert.Null((await directory.CloneAsync("log", new CloneVolume("clone", "cut"))).Fault);
        byte[] clone = await ReadAllAsync(again, "clone"), now = await ReadAllAsync(again, "log");
        Assert.InRange(clone.Length, 1, cut!.Length);
        Assert.True(now.AsSpan().StartsWith(clone));
        Assert.Empty(server.Test.Daemon.Warnings);

        async Task StreamAsync(string name)
        {
            await using var writer = new AofWriter(blockd, "log", new AofWriterOptions { RetryDelay = TimeSpan.FromMilliseconds(1) });
            for (int i = 0; !end.IsCancellationRequested; i += 8)
            {
                byte[][] lines = [.. Enumerable.Range(i, 8).Select(n => Line(name, n))];
                ulong[] offsets = await Task.WhenAll(lines.Select(l => writer.AppendAsync(l, Cancel)));
                for (int n = 0; n < lines.Length; n++) Assert.True(landed.TryAdd(offsets[n], lines[n]));
                last[writer.Client] = ((ulong)i + 8, offsets[^1], lines[^1]);
            }
        }

        async Task CallAsync(string name, Guid client)
        {
            for (int i = 0; !end.IsCancellationRequested; i += 3)
            {
                byte[][] lines = [.. Enumerable.Range(i, 3).Select(n => Line(name, n))];
                AppendAnswerInfo answer = await blockd.AppendAsync("log", client, (ulong)i + 1, [.. lines.Select(l => (ReadOnlyMemory<byte>)l)], cancel: Cancel);
                Assert.Null(answer.Code);
                Assert.Equal(3, answer.Appends.Count);
                for (int n = 0; n < 3; n++) Assert.True(landed.TryAdd(answer.Appends[n].OffsetBytes, lines[n]));
                if (client != Guid.Empty) last[client] = ((ulong)i + 3, answer.Appends[2].OffsetBytes, lines[2]);
            }
        }

        async Task<ulong> FollowAsync()
        {
            for (ulong at = 0; ;)
            {
                AofChunk chunk = await blockd.ReadAofAsync("log", at, 1 << 20, 30, Cancel);
                at += (ulong)chunk.Bytes.Length;
                if (chunk.IsSealed && at == chunk.LengthBytes) return at;
            }
        }

        async Task AssertAllAsync(BlockdClient reader)
        {
            byte[] all = await ReadAllAsync(reader, "log");
            int at = 0;
            foreach ((ulong offset, byte[] line) in landed.OrderBy(l => l.Key))
            {
                Assert.Equal((ulong)at, offset); // nothing between them: so nothing is there twice
                Assert.True(all.AsSpan(at).StartsWith(line), $"at {at} lies another line");
                at += line.Length;
            }

            Assert.Equal(all.Length, at);
        }
    }

    /// <summary>Ninety clients are more than are remembered, eighty; each is known at the new home as at the old one, with all of its last
    /// appends, and the oldest of those that were forgotten are told so.</summary>
    [Fact]
    public async Task Every_client_and_the_bound_of_its_memory_go_with_the_volume()
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "store-size=160m");
        (Guid first, Guid second) = await DisksAsync(server);
        using BlockdClient blockd = Connect(server);
        Assert.Null((await server.Test.Daemon.Directory.CreateAsync(new CreateVolume("log", 8 * Units.MiB, StoreId: first, AppendOnly: true))).Fault);
        Guid[] clients = [.. Enumerable.Range(0, 90).Select(_ => Guid.NewGuid())];
        foreach (Guid client in clients) await blockd.AppendAsync("log", client, 1, [new byte[10]], cancel: Cancel);
        Guid busy = clients[^1];
        for (ulong i = 2; i <= 20; i++) await blockd.AppendAsync("log", busy, i, [new byte[i]], cancel: Cancel);
        AofInfo before = await blockd.StatAofAsync("log", Cancel);
        Assert.Equal(80, before.Clients);
        for (int move = 0; move < 2; move++)
        {
            await MoveAsync(server, move == 0 ? second : first);
            Assert.Equal(before with { Revision = 0 }, await blockd.StatAofAsync("log", Cancel) with { Revision = 0 });
            foreach (Guid client in clients[10..89]) Assert.True((await blockd.AppendAsync("log", client, 1, [new byte[10]], cancel: Cancel)).Appends[0].Repeated);
            foreach (Guid client in clients[..10]) await RefusedAsync(client, 2, 10, "client-unknown");
            for (ulong i = 5; i <= 20; i++) Assert.True((await blockd.AppendAsync("log", busy, i, [new byte[i]], cancel: Cancel)).Appends[0].Repeated);
            for (ulong i = 1; i <= 4; i++) await RefusedAsync(busy, i, (int)i, "sequence-too-old");
            await RefusedAsync(busy, 20, 7, "append-differs");
        }

        Assert.Equal(before.LengthBytes, (await blockd.StatAofAsync("log", Cancel)).LengthBytes);

        async Task RefusedAsync(Guid client, ulong sequence, int length, string code) => Assert.Equal(
            code, (await Assert.ThrowsAsync<BlockdException>(() => blockd.AppendAsync("log", client, sequence, [new byte[length]], cancel: Cancel))).Code);
    }

    /// <summary>A log is rotated while it moves: it gets another name, and is sealed.</summary>
    [Fact]
    public async Task A_log_that_moves_can_be_renamed_and_sealed_but_gives_no_other_one_its_name()
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "store-size=160m");
        (Guid first, Guid second) = await DisksAsync(server);
        using BlockdClient blockd = Connect(server);
        VolumeDirectory directory = server.Test.Daemon.Directory;
        foreach (string name in new[] { "log", "next" })
            Assert.Null((await directory.CreateAsync(new CreateVolume(name, 8 * Units.MiB, StoreId: first, AppendOnly: true))).Fault);
        await blockd.AppendAsync("log", Guid.Empty, 0, [Line("a", 3)], cancel: Cancel);
        Assert.Null((await directory.BeginMoveAsync("log", second)).Fault); // as if it had been interrupted
        Assert.Equal("volume-moving", (await directory.RenameAsync("next", "log", replaces: true)).Fault!.Code);
        Assert.Null((await directory.RenameAsync("log", "log.1", replaces: false)).Fault);
        Assert.Null((await directory.SealAsync("log.1")).Fault);
        await MoveAsync(server, second, "log.1");
        await server.RestartAsync();
        using BlockdClient again = Connect(server);
        AofInfo info = await again.StatAofAsync("log.1", Cancel);
        Assert.Equal((true, (ulong)Line("a", 3).Length), (info.Sealed, info.LengthBytes));
        Assert.Equal(second, server.Test.Daemon.Directory.Find("log.1")!.StoreId);
        Assert.Equal(Line("a", 3), await ReadAllAsync(again, "log.1"));
        Assert.Empty(server.Test.Daemon.Warnings);
    }
}
