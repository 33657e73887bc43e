using System.Net;
using System.Net.Sockets;
using System.Runtime.CompilerServices;
using BlockServer.Core;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Io;

public sealed class LoopTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("blockserver-io-").FullName;

    public static TheoryData<string> Engines => [.. EngineNames];

    private static string[] EngineNames => ["io_uring", "aio"];

    public void Dispose() => Directory.Delete(_directory, recursive: true);

    [Theory]
    [InlineData("io_uring", false)]
    [InlineData("io_uring", true)]
    [InlineData("aio", false)]
    public async Task A_file_reads_back_what_was_written(string engine, bool inMemory)
    {
        // tmpfs is read and written in place; where the machine has none this is once more a file on the disk.
        inMemory &= Directory.Exists("/dev/shm");
        using var memory = new TemporaryDirectory(inMemory ? "/dev/shm" : _directory);
        string path = Path.Combine(memory.Path, "file");
        DiskFile.Create(path, 64 << 20);
        using LoopThread thread = LoopFactory.Create(engine, "test");
        DiskFile file = DiskFile.Open(thread.Loop, path);
        Assert.True(file.IsInMemory || !inMemory);
        Assert.Equal(64UL << 20, file.SizeBytes);
        Assert.Throws<IOException>(() => DiskFile.Open(thread.Loop, path));
        Assert.Throws<IOException>(() => DiskFile.Create(path, 4096));
        await thread.InvokeAsync(async () =>
        {
            var random = new SeededRandom(7);
            var writes = new List<ValueTask<IoStatus>>();
            var sources = new List<byte[]>();
            for (int i = 0; i < 2000; i++)
            {
                // Not pool memory, so most of it is misaligned and takes the bounce.
                byte[] source = new byte[4096 * (1 + i % 4)];
                random.Fill(source);
                sources.Add(source);
                writes.Add(file.WriteAsync((ulong)i * 16384, source));
                Assert.False(writes[^1].IsCompleted); // never inside the call, in memory neither
            }

            foreach (ValueTask<IoStatus> write in writes) Assert.Equal(IoStatus.Ok, await write);
            Assert.Equal(IoStatus.Ok, await file.FlushAsync());
            IoBuffer buffer = thread.Loop.Buffers.TryRent(16384)!;
            for (int i = 0; i < 2000; i++)
            {
                Memory<byte> target = buffer.Slice(0, sources[i].Length);
                Assert.Equal(IoStatus.Ok, await file.ReadAsync((ulong)i * 16384, target));
                Assert.True(target.Span.SequenceEqual(sources[i]));
            }

            byte[] odd = new byte[8192 + 1];
            Assert.Equal(IoStatus.Ok, await file.ReadAsync(16384, odd.AsMemory(1, 8192)));
            Assert.True(odd.AsSpan(1).SequenceEqual(sources[1]));
            Assert.Equal(IoStatus.OutOfRange, await file.ReadAsync(64 << 20, buffer.Slice(0, 4096)));
            Assert.Equal(IoStatus.Ok, await file.DiscardAsync(0, 16384));
            Assert.Equal(IoStatus.Ok, await file.ReadAsync(0, buffer.Slice(0, 4096)));
            Assert.True(buffer.Slice(0, 4096).Span.IndexOfAnyExcept((byte)0) < 0);
            buffer.Return();
            file.Close();
            Assert.Equal(IoStatus.Unavailable, await file.FlushAsync());
            Assert.Equal(0, thread.Loop.Buffers.LentCount);
        });
    }

    [Theory]
    [MemberData(nameof(Engines))]
    public async Task Steady_file_io_allocates_nothing(string engine)
    {
        string path = Path.Combine(_directory, "file");
        DiskFile.Create(path, 8 << 20);
        using LoopThread thread = LoopFactory.Create(engine, "test");
        DiskFile file = DiskFile.Open(thread.Loop, path);
        long allocated = await thread.InvokeAsync(async () =>
        {
            IoBuffer buffer = thread.Loop.Buffers.TryRent(4096)!;
            await ManyAsync(file, buffer, 500);
            long least = long.MaxValue;
            for (int round = 0; round < 5; round++)
            {
                long before = GC.GetAllocatedBytesForCurrentThread();
                await ManyAsync(file, buffer, 2000);
                least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
            }

            buffer.Return();
            file.Close();
            return least;
        });
#if !DEBUG
        // The outer method's own waits cost a little; an object in every hundredth request would be more. The least of the
        // rounds counts: the runtime may charge a thread with work of its own (recompilation, a collection) once.
        Assert.InRange(allocated, 0, 1000);
#endif
    }

    [Theory]
    [MemberData(nameof(Engines))]
    public async Task Sockets_echo_large_sends(string engine)
    {
        using LoopThread thread = LoopFactory.Create(engine, "test");
        string unixPath = Path.Combine(_directory, "sock");
        foreach (EndPoint where in new EndPoint[]
                 {
                     new IPEndPoint(IPAddress.Loopback, 0), new IPEndPoint(IPAddress.IPv6Loopback, 0),
                     new UnixDomainSocketEndPoint(unixPath),
                 })
        {
            SocketListener listener = await thread.InvokeAsync(() => new ValueTask<SocketListener>(
                where is IPEndPoint ip
                    ? SocketListener.ListenTcp(thread.Loop, ip)
                    : SocketListener.ListenUnix(thread.Loop, unixPath)));
            Task<int> served = thread.InvokeAsync(() => EchoAsync(listener));
            EndPoint target = listener.BoundEndPoint ?? where;
            using var client = new Socket(
                target.AddressFamily, SocketType.Stream, target is IPEndPoint ? ProtocolType.Tcp : ProtocolType.Unspecified);
            await client.ConnectAsync(target);
            byte[] sent = new byte[12_345_678];
            new SeededRandom(3).Fill(sent);
            Task sending = Task.Run(async () =>
            {
                using var stream = new NetworkStream(client);
                await stream.WriteAsync(sent);
                client.Shutdown(SocketShutdown.Send);
            });
            byte[] received = new byte[sent.Length + 1];
            int count = 0;
            while (count < received.Length)
            {
                int got = await client.ReceiveAsync(received.AsMemory(count));
                if (got == 0) break;
                count += got;
            }

            await sending;
            Assert.Equal(sent.Length, count);
            Assert.True(received.AsSpan(0, count).SequenceEqual(sent));
            Assert.Equal(sent.Length, await served);
            Assert.Null(await thread.InvokeAsync(() =>
            {
                ValueTask<SocketConnection?> waiting = listener.AcceptAsync();
                thread.Loop.Post(listener.Close);
                return waiting;
            }));
            Assert.False(File.Exists(unixPath));
        }
    }

    [Theory]
    [MemberData(nameof(Engines))]
    public async Task Close_ends_what_waits_and_a_connection_moves(string engine)
    {
        using LoopThread first = LoopFactory.Create(engine, "first"), second = LoopFactory.Create(engine, "second");
        string path = Path.Combine(_directory, "sock");
        using (var stale = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified))
        {
            stale.Bind(new UnixDomainSocketEndPoint(path));
        }

        if (!File.Exists(path)) // the runtime removes it when it closes; a killed process does not
        {
            await File.WriteAllTextAsync(path, "");
            await Assert.ThrowsAsync<IOException>(() => first.InvokeAsync(() =>
                new ValueTask<SocketListener>(SocketListener.ListenUnix(first.Loop, path))));
            File.Delete(path);
        }

        SocketListener listener = await first.InvokeAsync(() =>
            new ValueTask<SocketListener>(SocketListener.ListenUnix(first.Loop, path)));
        using var client = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        await client.ConnectAsync(new UnixDomainSocketEndPoint(path));
        int fd = await first.InvokeAsync(async () => (await listener.AcceptAsync())!.Detach());
        Task<int> waiting = second.InvokeAsync(async () =>
        {
            SocketConnection connection = SocketConnection.Attach(second.Loop, fd);
            byte[] one = new byte[1];
            Assert.Equal(1, await connection.ReceiveAsync(one));
            second.Loop.CreateTimer(connection.Close).Start(5_000_000);
            int answer = await connection.ReceiveAsync(one);
            Assert.True(await connection.ReceiveAsync(one) < 0);
            return answer;
        });
        await client.SendAsync(new byte[1]);
        Assert.True(await waiting < 0);
        Assert.Equal(0, await client.ReceiveAsync(new byte[1]));
        await first.InvokeAsync(() =>
        {
            listener.Close();
            return ValueTask.CompletedTask;
        });
    }

    [Theory]
    [MemberData(nameof(Engines))]
    public async Task Timers_run_in_order_and_stop(string engine)
    {
        using LoopThread thread = LoopFactory.Create(engine, "test");
        string order = await thread.InvokeAsync(async () =>
        {
            string seen = "";
            KernelLoop loop = thread.Loop;
            var done = new LoopEvent<bool>();
            loop.CreateTimer(() => seen += "c").Start(20_000_000);
            loop.CreateTimer(() => seen += "a").Start(1_000_000);
            LoopTimer never = loop.CreateTimer(() => seen += "never");
            never.Start(5_000_000);
            loop.CreateTimer(() =>
            {
                seen += "b";
                never.Stop();
            }).Start(2_000_000);
            loop.CreateTimer(() => done.Set(true)).Start(30_000_000);
            ulong before = loop.NowNanos;
            await done.WaitAsync();
            Assert.InRange(loop.NowNanos - before, 30_000_000UL, 2_000_000_000UL);
            Assert.True(loop.IsHere);
            Assert.Null(SynchronizationContext.Current);
            return seen;
        });
        Assert.Equal("abc", order);
    }

    [Theory]
    [MemberData(nameof(Engines))]
    public async Task Posts_from_many_threads_all_run_on_the_loop(string engine)
    {
        using LoopThread thread = LoopFactory.Create(engine, "test");
        int count = 0;
        var hooks = 0;
        var hook = new TurnEndHook(() => hooks++);
        await Parallel.ForEachAsync(Enumerable.Range(0, 10_000), (_, _) =>
        {
            thread.Post(() =>
            {
                Assert.True(thread.Loop.IsHere);
                thread.Loop.CallAtTurnEnd(hook);
                count++;
            });
            return ValueTask.CompletedTask;
        });
        Assert.Equal(10_000, await thread.InvokeAsync(() => new ValueTask<int>(count)));
        Assert.InRange(await thread.InvokeAsync(() => new ValueTask<int>(hooks)), 1, 10_001);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private static async ValueTask<int> ManyAsync(DiskFile file, IoBuffer buffer, int rounds)
    {
        for (int i = 0; i < rounds; i++)
        {
            ulong offset = (ulong)(i % 2048) * 4096;
            Check.That(await file.WriteAsync(offset, buffer.Slice(0, 4096)) == IoStatus.Ok);
            Check.That(await file.ReadAsync(offset, buffer.Slice(0, 4096)) == IoStatus.Ok);
        }

        return rounds;
    }

    private static async ValueTask<int> EchoAsync(SocketListener listener)
    {
        SocketConnection connection = (await listener.AcceptAsync())!;
        byte[] memory = new byte[300_000];
        var batch = new SendBatch();
        int total = 0;
        while (true)
        {
            int got = await connection.ReceiveAsync(memory);
            if (got <= 0) break;
            total += got;
            batch.Clear();
            int half = got / 2, quarter = half / 2;
            batch.Add(memory.AsMemory(0, quarter));
            batch.Add(memory.AsMemory(quarter, half - quarter));
            batch.Add(memory.AsMemory(half, got - half));
            if (await connection.SendAsync(batch) != 0) break;
        }

        connection.ShutdownSend();
        connection.Close();
        return total;
    }

    private sealed class TemporaryDirectory(string parent) : IDisposable
    {
        public string Path { get; } =
            Directory.CreateDirectory(System.IO.Path.Combine(parent, "blockserver-" + Guid.NewGuid().ToString("n"))).FullName;

        public void Dispose() => Directory.Delete(Path, recursive: true);
    }
}
