using System.Buffers.Binary;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Unit.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The frames of an append stream against a store, on one simulated loop: right ones, wrong ones, and clients that misbehave.</summary>
public class AppendStreamTests
{
    private const ulong Second = 1_000_000_000;
    private static readonly Guid s_ada = new("11111111-2222-3333-4444-555555555555"), s_bob = new("66666666-7777-8888-9999-aaaaaaaaaaaa");

    /// <summary>What is done to the head of a right frame, and what is answered.</summary>
    public static TheoryData<string, AppendCode> BadFrames => new()
    {
        { "magic", AppendCode.BadFrame }, { "volume bits", AppendCode.BadFrame }, { "sequence bits", AppendCode.BadFrame }, { "client bits", AppendCode.BadFrame },
        { "length bits", AppendCode.BadFrame }, { "crc bits", AppendCode.BadFrame }, { "head crc bits", AppendCode.BadFrame }, { "reserved", AppendCode.BadFrame },
        { "volume", AppendCode.WrongVolume }, { "no sequence", AppendCode.Invalid }, { "no client", AppendCode.Invalid }, { "no length", AppendCode.Invalid },
        { "too long", AppendCode.Invalid }, { "longest number", AppendCode.Invalid }, { "data", AppendCode.DamagedOnTheWay },
    };

    [Fact]
    public void The_bytes_of_frames_and_replies_are_these()
    {
        byte[] frame = Frame(s_ada, 0x0102030405060708, "abc"u8.ToArray());
        Assert.Equal(
            "42415031" + "07000000" + "0807060504030201" + "11111111222233334444555555555555" + "03000000" + "B73F4B36" + "00000000" + "F43F1C46" + "616263",
            Convert.ToHexString(frame));
        var reply = new AppendReply { Code = AppendCode.Full, IsRepeat = true, Key = new(s_ada, 3), OffsetBytes = 5, LengthBytes = 0x0A0B };
        var bytes = new byte[AppendReply.SizeBytes];
        reply.WriteTo(bytes);
        Assert.Equal(
            "42415231" + "0400" + "0100" + "0300000000000000" + "11111111222233334444555555555555" + "0500000000000000" + "0B0A000000000000" + "00000000" + "AD2D2602",
            Convert.ToHexString(bytes));
        Assert.Null(AppendReply.TryRead(bytes, out AppendReply again));
        Assert.Equal(reply, again);
        for (int i = 0; i < bytes.Length * 8; i++)
        {
            bytes[i / 8] ^= (byte)(1 << (i % 8));
            Assert.NotNull(AppendReply.TryRead(bytes, out _));
            bytes[i / 8] ^= (byte)(1 << (i % 8));
        }
    }

    [Fact]
    public void Appends_land_in_order_and_once_however_they_are_cut_on_their_way()
    {
        for (ulong seed = 1; seed <= 20; seed++)
        {
            var world = new World(seed);
            var random = new SeededRandom(seed);
            var all = new List<byte>();
            for (ulong i = 1; i <= 40; i++)
            {
                byte[] data = StoreWorld.Pattern(i, 1 + random.NextBelow(i % 7 == 0 ? 300_000 : 9000));
                world.Send(Frame(s_ada, i, data));
                if (i % 5 == 0) world.Send(Frame(s_ada, i, data)); // sent again
                Assert.Equal((AppendCode.Done, i, (ulong)all.Count, false), Short(world.Receive()));
                if (i % 5 == 0) Assert.Equal((AppendCode.Done, i, (ulong)all.Count, true), Short(world.Receive()));
                all.AddRange(data);
            }

            // Many on their way at once, of two clients.
            byte[][] together = [.. Enumerable.Range(0, 30).Select(i => StoreWorld.Pattern((ulong)i, 5000))];
            for (int i = 0; i < 30; i++) world.Send(Frame(i % 2 == 0 ? s_ada : s_bob, i % 2 == 0 ? 41 + (ulong)i / 2 : 1 + (ulong)i / 2, together[i]));
            for (int i = 0; i < 30; i++) Assert.Equal(AppendCode.Done, world.Receive()!.Value.Code);
            foreach (byte[] data in together) all.AddRange(data);
            world.Leave();
            Assert.Equal("the client left", world.End());
            world.AssertHolds([.. all]);
        }
    }

    [Theory]
    [MemberData(nameof(BadFrames))]
    public void A_bad_frame_is_answered_with_its_code_and_ends_the_stream(string what, AppendCode code)
    {
        var world = new World();
        byte[] good = StoreWorld.Pattern(1, 5000);
        world.Send(Frame(s_ada, 1, good));
        byte[] bad = Frame(s_ada, 2, good);
        switch (what)
        {
            case "magic": bad[0] ^= 1; break;
            case "volume bits": bad[4] ^= 1; break;
            case "sequence bits": bad[8] ^= 1; break;
            case "client bits": bad[16] ^= 1; break;
            case "length bits": bad[32] ^= 1; break;
            case "crc bits": bad[36] ^= 1; break;
            case "head crc bits": bad[44] ^= 1; break;
            case "reserved": bad[40] = 1; Seal(bad); break;
            case "volume": bad[4] = 8; Seal(bad); break;
            case "no sequence": bad.AsSpan(8, 8).Clear(); Seal(bad); break;
            case "no client": bad.AsSpan(16, 16).Clear(); Seal(bad); break;
            case "no length": bad.AsSpan(32, 4).Clear(); Seal(bad); break;
            case "too long": BinaryPrimitives.WriteUInt32LittleEndian(bad.AsSpan(32), (uint)Units.RequestBytesMax + 1); Seal(bad); break;
            case "longest number": bad.AsSpan(32, 4).Fill(0xFF); Seal(bad); break;
            default: bad[^1] ^= 1; break;
        }

        world.Send(bad);
        world.Send(Frame(s_ada, 3, good)); // never begun
        // In any order: the first one has begun.
        AppendReply?[] replies = [world.Receive(), world.Receive()];
        Assert.Equal((AppendCode.Done, 1UL, 0UL, false), Short(Assert.Single(replies, r => r!.Value.Code == AppendCode.Done)));
        Assert.Single(replies, r => r!.Value.Code == code);
        Assert.Null(world.Receive());
        world.Leave();
        Assert.NotEqual("the client left", world.End());
        world.AssertHolds(good);
    }

    [Fact]
    public void What_the_store_refuses_is_answered_and_ends_the_stream()
    {
        (AppendCode Code, Action<World> Prepare, byte[] Frame)[] cases =
        [
            (AppendCode.StaleSequence, w => { for (ulong i = 2; i <= 20; i++) w.Append(i, 10); }, Frame(s_ada, 1, new byte[10])),
            (AppendCode.Differs, w => w.Append(1, 10), Frame(s_ada, 1, new byte[11])),
            (AppendCode.UnknownClient, _ => { }, Frame(s_bob, 2, new byte[1])),
            (AppendCode.Full, w => w.Change(h => h with { SizeBytes = 1 << 20 }), Frame(s_ada, 1, new byte[(1 << 20) + 1])),
            (AppendCode.Sealed, w => w.Change(h => h with { IsSealed = true }), Frame(s_ada, 1, new byte[1])),
            (AppendCode.NotFound, w => Assert.Equal(IoStatus.Ok, w.Loop.Run(w.Disk.Store.DeleteVolumeAsync(7))), Frame(s_ada, 1, new byte[1])),
        ];
        foreach ((AppendCode code, Action<World> prepare, byte[] frame) in cases)
        {
            var world = new World();
            if (code is AppendCode.StaleSequence or AppendCode.Differs) world.Append(code == AppendCode.StaleSequence ? 1UL : 9, 10, code == AppendCode.Differs ? s_bob : s_ada, first: true);
            prepare(world);
            world.Send(frame);
            Assert.Equal(code, world.Receive()!.Value.Code);
            Assert.Null(world.Receive());
            world.Leave();
            Assert.StartsWith("an append was refused", world.End(), StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(47)]
    [InlineData(48)]
    [InlineData(5000)]
    public void A_sender_who_stops_in_a_frame_is_answered_and_dropped(int sent)
    {
        var world = new World();
        world.Send(Frame(s_ada, 1, new byte[9000])[..sent]);
        ulong began = world.Loop.NowNanos;
        Assert.Equal(AppendCode.TooSlow, world.Receive()!.Value.Code);
        Assert.InRange(world.Loop.NowNanos - began, 10 * Second - 1_000_000, 11 * Second);
        Assert.Null(world.Receive());
        Assert.Equal("half a frame, then silence", world.End());
        world.AssertHolds([]);
    }

    [Fact]
    public void A_sender_who_trickles_is_dropped_too()
    {
        var world = new World();
        byte[] frame = Frame(s_ada, 1, new byte[100]);
        for (int i = 0; i < 5; i++)
        {
            world.Send(frame[i..(i + 1)]);
            world.Rest(3 * Second);
        }

        Assert.Equal(AppendCode.TooSlow, world.Receive()!.Value.Code);
        Assert.Equal("half a frame, then silence", world.End());
    }

    [Fact]
    public void An_idle_stream_ends_after_a_minute_and_not_before()
    {
        var world = new World();
        for (ulong i = 1; i <= 3; i++)
        {
            world.Append(i, 10);
            world.Rest(59 * Second);
            Assert.False(world.HasEnded);
        }

        Assert.Null(world.Receive());
        Assert.Equal("nothing came for a while", world.End());
    }

    [Fact]
    public void A_client_that_reads_no_reply_is_read_no_more_and_dropped()
    {
        var world = new World(window: 2000);
        ValueTask<int> sending = default;
        var batch = new SendBatch();
        byte[] many = [.. Enumerable.Range(1, 400).SelectMany(i => Frame(s_ada, (ulong)i, new byte[100]))];
        batch.Add(many);
        sending = world.Client.SendAsync(batch);
        world.Rest(30 * Second);
        Assert.False(sending.IsCompleted);
        Assert.Equal(0, world.Loop.Buffers.LentCount);
        ulong length = world.Store.AppendInfoOf(7)!.Value.LengthBytes;
        Assert.InRange(length, 6400UL, 30_000UL); // the window, what the socket took, and one lot of replies
        world.Rest(40 * Second);
        Assert.True(world.HasEnded);
        Assert.Equal("the client does not read", world.End());
        Assert.True(sending.IsCompleted);
    }

    [Fact]
    public void A_stream_that_breaks_anywhere_keeps_whole_appends_only()
    {
        byte[] data = StoreWorld.Pattern(1, 3000);
        byte[] two = [.. Frame(s_ada, 1, data), .. Frame(s_ada, 2, data)];
        for (int sent = 0; sent <= two.Length; sent += 131)
        {
            var world = new World((ulong)sent + 1);
            world.Send(two[..sent]);
            world.Rest(Second / 10);
            world.Client.Break();
            world.End();
            int whole = sent / (two.Length / 2);
            world.AssertHolds([.. Enumerable.Repeat(data, whole).SelectMany(d => d)]);
            Assert.Equal(0, world.Loop.Buffers.LentCount);
        }
    }

    [Fact]
    public void Random_damage_harms_nobody()
    {
        for (ulong seed = 1; seed <= 300; seed++)
        {
            var world = new World(seed);
            var random = new SeededRandom(seed);
            byte[] data = StoreWorld.Pattern(seed, 700);
            var frames = new List<byte>();
            for (ulong i = 1; i <= 10; i++) frames.AddRange(Frame(s_ada, i, data));
            byte[] sent = [.. frames];
            for (int flips = random.NextBelow(4); flips >= 0; flips--) sent[random.NextBelow(sent.Length)] ^= (byte)(1 << random.NextBelow(8));
            if (random.NextBelow(3) == 0) sent = sent[..random.NextBelow(sent.Length)];
            world.Send(sent);
            world.Leave();
            world.End();
            ulong length = world.Store.AppendInfoOf(7)!.Value.LengthBytes;
            Assert.True(length % 700 == 0, $"seed {seed}: {length} bytes");
            world.AssertHolds([.. Enumerable.Repeat(data, (int)(length / 700)).SelectMany(d => d)]);
            Assert.Equal(0, world.Loop.Buffers.LentCount);
        }
    }

    [Fact]
    public void The_door_of_the_volume_holds_streams_back_and_forgets_those_that_end()
    {
        var world = new World(iops: 100);
        for (ulong i = 1; i <= 60; i++) world.Send(Frame(s_ada, i, new byte[10]));
        world.Rest(Second / 10);
        Assert.True(world.Door!.Waiting == 1, "nobody waits");
        ulong length = world.Store.AppendInfoOf(7)!.Value.LengthBytes;
        Assert.InRange(length, 10UL, 400UL);
        world.Stream.Cut("an operator said so");
        world.End();
        Assert.Equal((0, 0), (world.Door.Inside, world.Door.Waiting));
    }

    [Fact]
    public void A_stop_answers_what_has_begun_and_a_cut_ends_at_once()
    {
        var world = new World();
        for (ulong i = 1; i <= 5; i++) world.Send(Frame(s_ada, i, new byte[10]));
        world.Loop.RunUntil(() => world.Loop.Buffers.LentCount > 0);
        world.Stream.RequestStop();
        int replies = 0;
        while (world.Receive() is { } reply)
        {
            Assert.Equal(AppendCode.Done, reply.Code);
            replies++;
        }

        Assert.Equal((ulong)replies * 10, world.Store.AppendInfoOf(7)!.Value.LengthBytes);
        world.Leave();
        Assert.Equal("the daemon or the disk stops", world.End());
    }

    [Fact]
    public void Writers_with_a_stream_each_share_their_flushes()
    {
        // Each sends its next append 50 microseconds after the last one was answered: those who begin apart are together soon.
        var world = new World();
        const int Writers = 16, Rounds = 50;
        int left = Writers;
        for (int i = 0; i < Writers; i++) _ = WriteAsync(new Guid(i + 1, 0, 0, new byte[8]), (ulong)i * 37_000);
        ulong flushes = (ulong)world.Disk.File.Flushes;
        Assert.True(world.Loop.RunUntil(() => left == 0));
        flushes = (ulong)world.Disk.File.Flushes - flushes;
        Assert.Equal((ulong)(Writers * Rounds * 100), world.Store.AppendInfoOf(7)!.Value.LengthBytes);
        Assert.InRange(flushes, (ulong)Rounds, (ulong)Rounds + 25);

        async Task WriteAsync(Guid client, ulong delay)
        {
            await world.Loop.DelayAsync(delay + 1);
            for (ulong i = 1; i <= Rounds; i++)
            {
                Assert.Equal(AppendOutcome.Done, (await world.Store.AppendAsync(7, new AppendKey(client, i), new byte[100])).Outcome);
                await world.Loop.DelayAsync(50_000);
            }

            left--;
        }
    }

    [Fact]
    public async Task A_steady_append_allocates_nothing_on_the_loop()
    {
        string path = Path.Combine(Path.GetTempPath(), Path.GetRandomFileName());
        DiskFile.Create(path, 160 << 20);
        try
        {
            using LoopThread thread = LoopFactory.Create("auto", "test");
            DiskFile file = DiskFile.Open(thread.Loop, path);
            long allocated = await thread.InvokeAsync(async () =>
            {
                var options = new StoreOptions { RingBytes = 64 << 20, Force = true };
                Assert.Null(await Store.FormatAsync(thread.Loop, file, options));
                IStore store = (await Store.OpenAsync(thread.Loop, file, null, options)).Store!;
                Assert.Equal(IoStatus.Ok, await store.CreateVolumeAsync(StoreWorld.HeadOf(7, 64 << 20) with { IsAppendOnly = true }));
                var connection = new EchoConnection(1 << 11);
                var stream = new AppendStream(thread.Loop, connection, (IAppendStore)store, 7, new VolumeAdmission(thread.Loop));
                ValueTask<string> running = stream.RunAsync();
                long least = long.MaxValue;
                for (int round = 0; round < 8; round++)
                {
                    long before = GC.GetAllocatedBytesForCurrentThread();
                    await connection.AskAsync(100);
                    if (round >= 3) least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
                }

                stream.Cut("enough");
                await running;
                Assert.Equal(800UL, stream.Appends);
                Assert.Equal(IoStatus.Ok, await store.CloseAsync());
                file.Close();
                return least;
            });
#if !DEBUG
            Assert.InRange(allocated, 0, 300);
#endif
        }
        finally
        {
            File.Delete(path);
        }
    }

    private static byte[] Frame(Guid client, ulong sequence, byte[] data)
    {
        var bytes = new byte[AppendFrame.SizeBytes + data.Length];
        new AppendFrame { Volume = 7, Key = new(client, sequence), LengthBytes = (uint)data.Length, DataCrc = Crc32C.Compute(data) }.WriteTo(bytes);
        data.CopyTo(bytes, AppendFrame.SizeBytes);
        return bytes;
    }

    /// <summary>The head's checksum is right again.</summary>
    private static void Seal(byte[] frame) => BinaryPrimitives.WriteUInt32LittleEndian(frame.AsSpan(44), Crc32C.Compute(frame.AsSpan(0, 44)));

    private static (AppendCode Code, ulong Sequence, ulong Offset, bool IsRepeat) Short(AppendReply? reply) =>
        (reply!.Value.Code, reply.Value.Key.Sequence, reply.Value.OffsetBytes, reply.Value.IsRepeat);

    /// <summary>A store with one append-only volume, a stream to it, and the client's end of it.</summary>
    private sealed class World
    {
        private readonly Task<string> _end;

        public World(ulong seed = 1, int window = 256 << 10, ulong iops = 0)
        {
            Disk = new StoreWorld(seed, 48 << 20, 0, new StoreOptions { RingBytes = 8 << 20, Force = true });
            Assert.Equal(IoStatus.Ok, Loop.Run(Disk.Store.CreateVolumeAsync(Head)));
            (Client, SimConnection server) = SimConnection.Pair(Loop, window);
            if (iops > 0)
            {
                Door = new VolumeAdmission(Loop);
                Door.SetLimits(QosLimits.None with { Iops = iops });
            }

            Stream = new AppendStream(Loop, server, Store, 7, Door);
            _end = Stream.RunAsync().AsTask();
        }

        public StoreWorld Disk { get; }

        public SimLoop Loop => Disk.Loop;

        public IAppendStore Store => (IAppendStore)Disk.Store;

        public SimConnection Client { get; }

        public AppendStream Stream { get; }

        public VolumeAdmission? Door { get; }

        public bool HasEnded => _end.IsCompleted;

        private static VolumeHead Head => StoreWorld.HeadOf(7, 64 << 20) with { IsAppendOnly = true };

        public void Change(Func<VolumeHead, VolumeHead> how) => Assert.Equal(IoStatus.Ok, Loop.Run(Disk.Store.UpdateVolumeAsync(how(Head))));

        public void Send(byte[] bytes)
        {
            var batch = new SendBatch();
            batch.Add(bytes);
            Loop.Run(Client.SendAsync(batch));
        }

        /// <summary>One append that lands.</summary>
        public void Append(ulong sequence, int length, Guid? client = null, bool first = false)
        {
            Send(Frame(client ?? s_ada, first && client == s_bob ? 1 : sequence, new byte[length]));
            Assert.Equal(AppendCode.Done, Receive()!.Value.Code);
        }

        public AppendReply? Receive()
        {
            var bytes = new byte[AppendReply.SizeBytes];
            for (int have = 0; have < bytes.Length;)
            {
                int got = Loop.Run(Client.ReceiveAsync(bytes.AsMemory(have)));
                if (got <= 0) return null;
                have += got;
            }

            Assert.Null(AppendReply.TryRead(bytes, out AppendReply reply));
            return reply;
        }

        public void Leave() => Client.ShutdownSend();

        public void Rest(ulong nanos) => Loop.Run(RestAsync(nanos));

        public string End()
        {
            Assert.True(Loop.RunUntil(() => _end.IsCompleted));
            Assert.Equal(0, Loop.Buffers.LentCount);
            return _end.GetAwaiter().GetResult();
        }

        public void AssertHolds(byte[] all)
        {
            Assert.Equal((ulong)all.Length, Store.AppendInfoOf(7)!.Value.LengthBytes);
            if (all.Length == 0) return;
            var shown = new byte[(all.Length + 4095) / 4096 * 4096];
            Assert.Equal(IoStatus.Ok, Loop.Run(Disk.Device.ReadAsync(0, shown)).Status);
            Assert.True(shown.AsSpan(0, all.Length).SequenceEqual(all), "the bytes differ");
        }

        private async ValueTask<bool> RestAsync(ulong nanos)
        {
            await Loop.DelayAsync(nanos);
            return true;
        }
    }

    /// <summary>A client that sends the next frame when the last one is answered; allocates nothing.</summary>
    private sealed class EchoConnection(int bytes) : IConnection
    {
        private readonly LoopOperation<int> _receive = new();
        private readonly LoopOperation<bool> _done = new();
        private readonly byte[] _frame = Frame(s_ada, 1, new byte[bytes]);
        private Memory<byte> _target;
        private ulong _sequence;
        private int _left;

        public string Peer => "echo";

        public ValueTask<bool> AskAsync(int appends)
        {
            _left = appends;
            ValueTask<bool> done = _done.Begin();
            Deliver();
            return done;
        }

        public ValueTask<int> ReceiveAsync(Memory<byte> target)
        {
            _target = target;
            return _receive.Begin();
        }

        public ValueTask<int> SendAsync(SendBatch batch)
        {
            Check.That(AppendReply.TryRead(batch.Parts[0].Span, out AppendReply reply) is null && reply.Code == AppendCode.Done);
            if (--_left == 0) _done.Complete(true);
            else Deliver();
            return new ValueTask<int>(0);
        }

        public void ShutdownSend()
        {
        }

        public void Close()
        {
            if (_receive.IsPending) _receive.Complete(-1);
        }

        private void Deliver()
        {
            BinaryPrimitives.WriteUInt64LittleEndian(_frame.AsSpan(8), ++_sequence);
            Seal(_frame);
            _frame.CopyTo(_target);
            _receive.Complete(_frame.Length);
        }
    }
}
