using System.Globalization;
using System.Net.Sockets;
using System.Text;
using BlockServer.Client;
using BlockServer.Tests.Running;
using Xunit;

namespace BlockServer.Tests.Recovery;

/// <summary>The real daemon, killed while writers append: what was answered is there, nothing is there by half or twice, and every writer goes
/// on with the number that it had.</summary>
public sealed class AppendKillTests(ITestOutputHelper output)
{
    private const int Writers = 6;
    private const string Name = "log";
    private const ushort ReadOnlyFlag = 2;

    private sealed class Writer
    {
        public Guid Client { get; } = Guid.NewGuid();

        public ulong Next { get; set; } = 1;

        public Dictionary<ulong, ulong> Offsets { get; } = [];
    }

    [Fact]
    public async Task EveryAppendLandsOnceOverKills()
    {
        DaemonProcess.Require();
        int cycles = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_APPEND_KILLS"), NumberStyles.None, CultureInfo.InvariantCulture, out int n) ? n : 5;
        int seed = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_SEED"), out int given) ? given : Random.Shared.Next();
        output.WriteLine($"BLOCKSERVER_SEED={seed}");
        var random = new Random(seed);
        using ScratchFolder folder = new();
        Writer[] writers = [.. Enumerable.Range(0, Writers).Select(_ => new Writer())];
        for (int cycle = 0; cycle < cycles; cycle++)
        {
            using DaemonProcess daemon = DaemonProcess.Start(folder.Path, cycle % 2 == 0 ? "io_uring" : "aio", "flush", "512m");
            using BlockdClient blockd = ClientOf(folder, daemon);
            await blockd.OpenAofAsync(Name, cancel: TestContext.Current.CancellationToken);
            await JudgeAsync(blockd, writers);
            int goal = writers.Sum(w => w.Offsets.Count) + 50 + random.Next(300);
            using var stop = new CancellationTokenSource();
            Task[] load = [.. writers.Select((writer, index) => Task.Run(() => AppendAsync(blockd, writer, index, stop.Token)))];
            while (load.All(l => !l.IsCompleted) && Total(writers) < goal) await Task.Delay(1, TestContext.Current.CancellationToken);
            daemon.Kill();
            await stop.CancelAsync();
            foreach (Task one in load)
            {
                BlockdException broken = await Assert.ThrowsAsync<BlockdException>(() => one);
                Assert.True(broken.IsTransient, broken.Message);
            }
        }

        using DaemonProcess last = DaemonProcess.Start(folder.Path, "io_uring", "flush", "512m");
        using BlockdClient reader = ClientOf(folder, last);
        byte[] content = await JudgeAsync(reader, writers);
        output.WriteLine($"{Total(writers)} appends answered over {cycles} kills, {content.Length} bytes");
        // Over NBD it is the same, read-only, with zeros to the end of the block.
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        await socket.ConnectAsync(new UnixDomainSocketEndPoint(last.Socket), TestContext.Current.CancellationToken);
        using var nbd = new NbdClient(socket, Name);
        Assert.Equal((content.Length + 4095) / 4096 * 4096, nbd.Size);
        Assert.NotEqual(0, nbd.Flags & ReadOnlyFlag);
        byte[] shown = new byte[nbd.Size];
        for (int at = 0; at < shown.Length; at += 1 << 20)
        {
            Assert.True(nbd.TryReadRange(at, Math.Min(1 << 20, shown.Length - at), out byte[] data, out uint error), $"{at}: error {error}");
            data.CopyTo(shown, at);
        }

        Assert.True(shown.AsSpan(0, content.Length).SequenceEqual(content));
        Assert.False(shown.AsSpan(content.Length).ContainsAnyExcept((byte)0));
        nbd.Send(DiskCommand.Write, false, false, 1, 0, 4096, new byte[4096]);
        Assert.Equal((1UL, 1u), nbd.Receive()); // EPERM
    }

    private static int Total(Writer[] writers)
    {
        int total = 0;
        foreach (Writer writer in writers)
        {
            lock (writer) total += writer.Offsets.Count;
        }

        return total;
    }

    private static BlockdClient ClientOf(ScratchFolder folder, DaemonProcess daemon) => new(
        new Uri($"http://127.0.0.1:{daemon.ApiPort}"), File.ReadAllText(Path.Combine(folder.Path, "data", "admin.token")).Trim());

    private static byte[] BytesOf(int writer, ulong sequence) =>
        Encoding.ASCII.GetBytes($"{writer} {sequence} {new string((char)('a' + writer), (int)(sequence * 37 % 6000))}\n");

    private static async Task AppendAsync(BlockdClient blockd, Writer writer, int index, CancellationToken stop)
    {
        // The first one may have landed before the kill: it has the number that it had.
        await using var appender = new AofWriter(blockd, Name, new AofWriterOptions { Client = writer.Client, NextSequence = writer.Next, RetryFor = TimeSpan.Zero });
        while (true)
        {
            ulong offset = await appender.AppendAsync(BytesOf(index, writer.Next), stop.IsCancellationRequested ? default : stop);
            lock (writer) writer.Offsets.Add(writer.Next++, offset);
        }
    }

    /// <summary>Reads all of it: whole lines, each writer's in their order and once, all that was answered at its place, and of what was not
    /// at most the one that was on its way.</summary>
    private static async Task<byte[]> JudgeAsync(BlockdClient blockd, Writer[] writers)
    {
        using var all = new MemoryStream();
        while (true)
        {
            AofChunk chunk = await blockd.ReadAofAsync(Name, (ulong)all.Length, 1 << 20, cancel: TestContext.Current.CancellationToken);
            if (chunk.Bytes.Length == 0) break;
            all.Write(chunk.Bytes.Span);
        }

        byte[] content = all.ToArray();
        var seen = new ulong[Writers];
        for (int at = 0; at < content.Length;)
        {
            int end = Array.IndexOf(content, (byte)'\n', at);
            Assert.True(end >= 0, "the last append is there by half");
            string[] words = Encoding.ASCII.GetString(content, at, end - at).Split(' ');
            int writer = int.Parse(words[0], CultureInfo.InvariantCulture);
            ulong sequence = ulong.Parse(words[1], CultureInfo.InvariantCulture);
            Assert.Equal(++seen[writer], sequence);
            Assert.Equal(BytesOf(writer, sequence), content.AsSpan(at, end + 1 - at));
            if (writers[writer].Offsets.TryGetValue(sequence, out ulong offset)) Assert.Equal(offset, (ulong)at);
            at = end + 1;
        }

        for (int i = 0; i < Writers; i++) Assert.InRange(seen[i], writers[i].Next - 1, writers[i].Next);
        return content;
    }
}
