using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using BlockServer.Tests.Simulated;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

public class NbdTransmissionTests
{
    private const ulong Size = 64 << 20;

    public static TheoryData<NbdReplyMode> Modes => [NbdReplyMode.Simple, NbdReplyMode.Structured, NbdReplyMode.Extended];

    [Theory]
    [MemberData(nameof(Modes))]
    public void What_was_written_is_read_back_at_any_offset(NbdReplyMode mode)
    {
        for (ulong seed = 1; seed <= 5; seed++)
        {
            NbdWorld world = new NbdWorld(seed).Enter(mode);
            foreach ((ulong offset, int length) in new (ulong, int)[] { (0, 4096), (512, 512), (4095, 4098), (100_000, 300_001) })
            {
                byte[] data = Pattern(length, length);
                Assert.Equal(NbdError.None, world.Write(offset, data));
                Assert.Equal(data, world.Read(offset, length));
                Assert.Equal(data, world.Read(offset, length, mode == NbdReplyMode.Simple ? 0 : NbdCommandFlags.DontFragment));
            }

            Assert.Equal(NbdError.None, world.Ask(NbdCommand.Flush, 0, 0));
            Assert.Equal(1, world.Device.Flushes);
            world.Send(world.RequestBytes(NbdCommand.Disconnect, 0, 0, 0));
            Assert.Equal("the client left", world.End());
            Assert.Equal(0, world.Loop.Buffers.LentCount);
        }
    }

    [Theory]
    [MemberData(nameof(Modes))]
    public void Every_bad_request_gets_its_error_and_the_session_lives(NbdReplyMode mode)
    {
        NbdWorld world = new NbdWorld().Enter(mode);
        byte[] page = new byte[4096];
        (NbdError Error, NbdCommand Command, ulong Offset, ulong Length, NbdCommandFlags Flags, byte[]? Payload)[] cases =
        [
            (NbdError.Invalid, NbdCommand.Read, Size, 1, 0, null),
            (NbdError.Invalid, NbdCommand.Read, ulong.MaxValue, 4096, 0, null),
            (NbdError.Invalid, NbdCommand.Read, 0, (32 << 20) + 1, 0, null),
            (NbdError.NoSpace, NbdCommand.Write, Size, 4096, 0, page),
            (NbdError.NoSpace, NbdCommand.Write, Size - 512, 4096, 0, page),
            (NbdError.Invalid, NbdCommand.Write, 0, (32 << 20) + 1, 0, new byte[(32 << 20) + 1]),
            (NbdError.NoSpace, NbdCommand.WriteZeroes, Size, 4096, 0, null),
            (NbdError.Invalid, NbdCommand.Trim, Size, 4096, 0, null),
            (NbdError.Invalid, NbdCommand.Cache, Size, 4096, 0, null),
            (NbdError.Invalid, NbdCommand.Flush, 1, 0, 0, null),
            (NbdError.Invalid, NbdCommand.Flush, 0, 4096, 0, null),
            (NbdError.Invalid, (NbdCommand)99, 0, 0, 0, null),
            (NbdError.Invalid, NbdCommand.Read, 0, 512, NbdCommandFlags.FastZero, null),
            (NbdError.Invalid, NbdCommand.Read, 0, 512, (NbdCommandFlags)0x8000, null),
            (NbdError.Invalid, NbdCommand.Write, 0, 4096, NbdCommandFlags.NoHole, page),
            (NbdError.Invalid, NbdCommand.BlockStatus, 0, 4096, 0, null),
            (NbdError.None, NbdCommand.Write, 0, 0, 0, []),
            (NbdError.None, NbdCommand.Read, 0, 0, 0, null),
            (NbdError.None, NbdCommand.Trim, Size, 0, 0, null),
            (NbdError.None, NbdCommand.Read, 0, 0, NbdCommandFlags.Fua, null),
            (NbdError.None, NbdCommand.Flush, 0, 0, NbdCommandFlags.Fua, null),
            (NbdError.None, NbdCommand.Cache, 0, 4096, NbdCommandFlags.Fua, null),
        ];
        foreach ((NbdError error, NbdCommand command, ulong offset, ulong length, NbdCommandFlags flags, byte[]? payload) in cases)
            Assert.Equal((command, offset, error), (command, offset, world.Ask(command, offset, length, flags, payload)));
        if (mode != NbdReplyMode.Simple)
            Assert.Equal(NbdError.Overflow, world.Ask(NbdCommand.Read, 0, 33 << 20, NbdCommandFlags.DontFragment));
        else
            Assert.Equal(NbdError.Invalid, world.Ask(NbdCommand.Read, 0, 512, NbdCommandFlags.DontFragment));
        Assert.Equal(new byte[512], world.Read(0, 512));
    }

    [Fact]
    public void A_read_only_export_refuses_every_change()
    {
        var world = new NbdWorld { IsReadOnly = true };
        world.Enter();
        Assert.Equal(NbdError.Perm, world.Write(0, new byte[4096]));
        Assert.Equal(NbdError.Perm, world.Ask(NbdCommand.Trim, 0, 4096));
        Assert.Equal(NbdError.Perm, world.Ask(NbdCommand.WriteZeroes, 0, 4096));
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.Flush, 0, 0));
    }

    [Theory]
    [InlineData(IoStatus.Corrupt, NbdError.Io)]
    [InlineData(IoStatus.IoError, NbdError.Io)]
    [InlineData(IoStatus.Unavailable, NbdError.Io)]
    [InlineData(IoStatus.NoSpace, NbdError.NoSpace)]
    [InlineData(IoStatus.ShuttingDown, NbdError.Shutdown)]
    public void What_the_device_answers_reaches_the_client(IoStatus status, NbdError error)
    {
        NbdWorld world = new NbdWorld().Enter(NbdReplyMode.Structured);
        world.Device.Fails = status;
        Assert.Equal(error, world.Write(0, new byte[512]));
        Assert.Equal(error, world.Ask(NbdCommand.Read, 0, 512));
        Assert.Equal(error, world.Ask(NbdCommand.Flush, 0, 0));
    }

    [Fact]
    public void Flags_of_changes_reach_the_device_and_ENOTSUP_is_for_fast_zero_only()
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Write(0, Pattern(8192, 1), NbdCommandFlags.Fua);
        Assert.Equal(WriteFlags.Fua, world.Device.LastFlags);
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.WriteZeroes, 0, 4096, NbdCommandFlags.NoHole | NbdCommandFlags.Fua));
        Assert.Equal(WriteFlags.NoHole | WriteFlags.Fua, world.Device.LastFlags);
        world.Device.HasNoFastZero = true;
        Assert.Equal(NbdError.NotSupported, world.Ask(NbdCommand.WriteZeroes, 0, 4096, NbdCommandFlags.FastZero));
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.Trim, 4096, 4096, NbdCommandFlags.Fua));
        Assert.Equal(new byte[8192], world.Read(0, 8192));
    }

    [Theory]
    [InlineData(NbdReplyMode.Structured)]
    [InlineData(NbdReplyMode.Extended)]
    public void Holes_are_sent_as_holes_unless_the_client_forbids_it(NbdReplyMode mode)
    {
        NbdWorld world = new NbdWorld().Enter(mode);
        byte[] data = Pattern(4096, 3);
        world.Write(8192, data);
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.Read, 1000, 20_000, 0, null, chunks));
        Assert.Equal([NbdChunk.OffsetHole, NbdChunk.OffsetData, NbdChunk.OffsetHole], chunks.Select(c => c.Type));
        Assert.Equal(Convert.ToHexString(Join(U64(1000), U32(7192))), Convert.ToHexString(chunks[0].Data));
        Assert.Equal(Join(U64(8192), data), chunks[1].Data);
        chunks.Clear();
        world.Ask(NbdCommand.Read, 1000, 20_000, NbdCommandFlags.DontFragment, null, chunks);
        Assert.Equal(20_008, Assert.Single(chunks).Data.Length);
        for (ulong i = 0; i < 200; i += 2) world.Write(i * 4096, data); // more runs than a sparse reply takes
        Assert.Equal(data, world.Read(0, 100 * 4096)[..4096]);
    }

    [Fact]
    public void Block_status_describes_the_range_exactly()
    {
        NbdWorld world = new NbdWorld().Enter(NbdReplyMode.Structured, context: true);
        world.Write(8192, Pattern(4096, 3));
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 4096, 16384, 0, null, chunks));
        Assert.Equal("00000001" + "0000100000000003" + "0000100000000000" + "0000200000000003",
            Convert.ToHexString(Assert.Single(chunks).Data));
        chunks.Clear();
        world.Ask(NbdCommand.BlockStatus, 4096, 16384, NbdCommandFlags.RequestOne, null, chunks);
        Assert.Equal("000000010000100000000003", Convert.ToHexString(Assert.Single(chunks).Data));
        Assert.Equal(NbdError.Invalid, world.Ask(NbdCommand.BlockStatus, 4096, 0));
    }

    [Fact]
    public void Extended_block_status_takes_a_payload_that_names_contexts()
    {
        NbdWorld world = new NbdWorld().Enter(NbdReplyMode.Extended, context: true);
        var chunks = new List<(NbdChunk Type, byte[] Data)>();
        byte[] wish = Join(U64(Size), U32(1));
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 0, (ulong)wish.Length, 0, wish, chunks));
        Assert.Equal((NbdChunk.BlockStatusExt, "0000000100000001" + "0000000004000000" + "0000000000000003"),
            (chunks[0].Type, Convert.ToHexString(chunks[0].Data)));
        byte[][] bad = [Join(U64(Size), U32(2)), Join(U64(Size), U32(1), U32(1)), Join(U64(Size + 1), U32(1)), [1, 2, 3],
            Join(U64(0), U32(1)), new byte[1000]];
        foreach (byte[] payload in bad)
            Assert.Equal(NbdError.Invalid, world.Ask(NbdCommand.BlockStatus, 0, (ulong)payload.Length, 0, payload));
        byte[] none = U64(4096);
        Assert.Equal(NbdError.None, world.Ask(NbdCommand.BlockStatus, 0, 8, 0, none));
        // A payload where none belongs is consumed.
        Assert.Equal(NbdError.Invalid, world.Ask(NbdCommand.Trim, 0, 100, 0, new byte[100]));
        Assert.Equal(new byte[512], world.Read(0, 512));
    }

    [Fact]
    public void A_wrong_request_magic_closes()
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Send(new byte[28]);
        Assert.Equal("wrong request magic", world.End());
    }

    [Fact]
    public void A_write_of_more_than_64_MiB_closes()
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Send(world.RequestBytes(NbdCommand.Write, 1, 0, (64 << 20) + 1));
        Assert.Equal("a payload is too large", world.End());
    }

    [Theory]
    [InlineData(10)]
    [InlineData(28 + 100)]
    public void Half_a_request_and_30_s_of_silence_close(int bytes)
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Send(world.RequestBytes(NbdCommand.Write, 1, 0, 4096, 0, new byte[4096])[..bytes]);
        ulong before = world.Loop.NowNanos;
        Assert.Equal("half a request, then silence", world.End());
        Assert.InRange(world.Loop.NowNanos - before, 29_900_000_000UL, 30_200_000_000UL);
        Assert.Equal(0, world.Loop.Buffers.LentCount);
    }

    [Fact]
    public void An_idle_client_may_stay_for_ever()
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Read(0, 4096);
        world.Loop.RunToQuiescence();
        Assert.False(world.HasEnded);
        Assert.Equal(new byte[512], world.Read(0, 512));
    }

    [Fact]
    public void A_client_that_does_not_read_is_held_back_and_dropped_after_60_s()
    {
        NbdWorld world = new NbdWorld().Enter();
        for (ulong i = 0; i < 200; i++) world.Client.SendAsync(BatchOf(world.RequestBytes(NbdCommand.Read, i, 0, 1 << 20)));
        Assert.Equal("the client does not read", world.End());
        Assert.True(world.Device.InFlightMax <= 16);
        Assert.Equal(0, world.Loop.Buffers.LentCount);

        SendBatch BatchOf(byte[] bytes)
        {
            world.Loop.RunUntil(() => false, 100);
            var batch = new SendBatch();
            batch.Add(bytes);
            return batch;
        }
    }

    [Fact]
    public void Requests_run_side_by_side_up_to_the_window_and_are_all_answered_at_disconnect()
    {
        NbdWorld world = new NbdWorld().Enter();
        world.Device.IsStuck = true;
        byte[][] requests = [.. Enumerable.Range(0, 100).Select(i => world.RequestBytes(NbdCommand.Read, (ulong)i, 0, 512))];
        world.Send([.. requests, world.RequestBytes(NbdCommand.Disconnect, 0, 0, 0)]);
        world.Loop.RunUntil(() => false, 5000);
        Assert.Equal(64, world.Device.InFlight);
        world.Device.IsStuck = false;
        var cookies = new HashSet<ulong>();
        for (int i = 0; i < 100; i++) cookies.Add(BitConverter.ToUInt64(world.Receive(16 + 512).AsSpan(8, 8)));
        Assert.Equal(100, cookies.Count);
        Assert.Equal("the client left", world.End());
        Assert.Empty(world.Receive(1));
    }

    [Fact]
    public void A_stop_finishes_what_is_in_flight_and_refuses_what_is_new()
    {
        NbdWorld world = new NbdWorld().Enter(NbdReplyMode.Structured);
        world.Device.IsStuck = true;
        world.Send(world.RequestBytes(NbdCommand.Write, 5, 0, 4096, 0, Pattern(4096, 1)));
        world.Loop.RunUntil(() => world.Device.InFlight == 1);
        world.Session.RequestStop();
        Assert.Equal(NbdError.Shutdown, world.Ask(NbdCommand.Write, 0, 512, 0, new byte[512], cookie: 6));
        world.Device.IsStuck = false;
        Assert.Equal(NbdError.None, world.Answer(5, 0));
        Assert.Equal("the server is shutting down", world.End());
    }

    [Fact]
    public void A_cut_connection_frees_everything_and_leaves_other_sessions_alone()
    {
        for (ulong seed = 1; seed <= 30; seed++)
        {
            NbdWorld cut = new NbdWorld(seed).Enter();
            NbdWorld other = new NbdWorld(loop: cut.Loop, device: cut.Device).Enter();
            byte[] write = cut.RequestBytes(NbdCommand.Write, 1, 0, 65536, 0, new byte[65536]);
            cut.Send(write, cut.RequestBytes(NbdCommand.Read, 2, 0, 65536), write[..(int)(seed * 1000)]);
            cut.Client.Close();
            cut.End();
            Assert.Equal(NbdError.None, other.Write(1 << 20, Pattern(4096, 9)));
            Assert.Equal(Pattern(4096, 9), other.Read(1 << 20, 4096));
            Assert.Equal(0, cut.Loop.Buffers.LentCount);
        }
    }

    [Fact]
    public void A_long_turn_sends_its_first_replies_before_it_ends()
    {
        var loop = new SimLoop(1);
        var device = new MemoryDevice(1 << 20);
        var connection = new ScriptedConnection();
        var export = new NbdExport { Name = "x", Device = device, SizeBytes = device.SizeBytes };
        var transmission = new NbdTransmission(
            loop, connection, new NbdNegotiated { Connection = connection, Export = export }, new NbdOptions());
        _ = transmission.RunAsync().AsTask();
        var requests = new byte[15 * 28];
        for (int i = 0; i < 15; i++)
            new NbdRequest(NbdCommand.Read, 0, (ulong)i, 2 << 20, 512).WriteTo(requests.AsSpan(i * 28), NbdReplyMode.Simple);
        connection.Deliver(requests);
        Assert.Equal(3, connection.Sends);
        loop.RunUntil(s_now);
        Assert.Equal(4, connection.Sends);
        Assert.Equal(0, transmission.Counters.InFlight);
    }

    [Fact]
    public void A_request_allocates_nothing_once_warm()
    {
#if !DEBUG
        var loop = new SimLoop(1);
        var device = new MemoryDevice(1 << 20);
        var connection = new ScriptedConnection();
        var export = new NbdExport { Name = "x", Device = device, SizeBytes = device.SizeBytes };
        var transmission = new NbdTransmission(
            loop, connection, new NbdNegotiated { Connection = connection, Export = export }, new NbdOptions());
        Task<string> run = transmission.RunAsync().AsTask();
        var world = new byte[32 * (28 + 4096) + 32 * 28];
        int at = 0;
        for (ulong i = 0; i < 32; i++)
        {
            at += new NbdRequest(NbdCommand.Write, 0, i, i * 4096, 4096).WriteTo(world.AsSpan(at), NbdReplyMode.Simple) + 4096;
            at += new NbdRequest(NbdCommand.Read, 0, i, i * 4096, 4096).WriteTo(world.AsSpan(at), NbdReplyMode.Simple);
        }

        for (int warm = 0; warm < 200; warm++) Round();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int round = 0; round < 100; round++) Round();
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        Assert.Equal(300UL * 32, transmission.Counters.Reads);
        Assert.False(run.IsCompleted);

        void Round()
        {
            connection.Deliver(world);
            loop.RunUntil(s_now);
        }
#endif
    }

    private static readonly Func<bool> s_now = () => true;
}
