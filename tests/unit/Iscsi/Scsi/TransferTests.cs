using System.Runtime.CompilerServices;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>READ, WRITE, VERIFY and the commands that compare.</summary>
public class TransferTests
{
    public static TheoryData<string, string, int> Shapes => new()
    {
        { "0A00000502" + "00", "0800000502" + "00", 2 },
        { ScsiWorld.Cdb10(0x2A, 5, 2), ScsiWorld.Cdb10(0x28, 5, 2), 2 },
        { "AA000000000500000002" + "0000", "A8000000000500000002" + "0000", 2 },
        { ScsiWorld.Cdb16(0x8A, 5, 2), ScsiWorld.Cdb16(0x88, 5, 2), 2 },
        { "9C0000000000000000050000" + "0002" + "0000", ScsiWorld.Cdb16(0x88, 5, 2), 2 },
        { ScsiWorld.Cdb10(0x2E, 5, 2, 0x02), ScsiWorld.Cdb10(0x28, 5, 2, 0x18), 2 },
    };

    [Theory]
    [MemberData(nameof(Shapes))]
    public void What_was_written_is_read_in_every_shape(string write, string read, int blocks)
    {
        foreach (int block in new[] { 512, 4096 })
        {
            var world = new ScsiWorld(o => o with { BlockBytes = block });
            var data = new byte[blocks * block];
            world.Loop.Random.Fill(data);
            Reply written = world.Good(world.A, write, data);
            Assert.Equal(data.Length, written.Plan.OutBytes);
            Assert.Equal(5 * block % 4096, written.Plan.Lead);
            Reply back = world.Good(world.B, read);
            Assert.Equal(data.Length, back.Plan.InBytesMax);
            Assert.Equal(data, back.Data);
            Assert.Equal(data, world.Stored(5 * (ulong)block, data.Length));
            Assert.Equal(0, world.Loop.Buffers.LentCount);
        }
    }

    [Theory]
    [InlineData(0x28)]
    [InlineData(0x2A)]
    [InlineData(0x2E)]
    [InlineData(0x2F)]
    [InlineData(0x34)]
    [InlineData(0x35)]
    [InlineData(0x41)]
    public void Ten_byte_commands_stay_inside(byte opcode)
    {
        var world = new ScsiWorld();
        byte[] data = new byte[1024];
        world.Bad(world.A, ScsiWorld.Cdb10(opcode, 8192, 1), "05/21/00", data);
        world.Bad(world.A, ScsiWorld.Cdb10(opcode, 8191, 2), "05/21/00", data);
        world.Bad(world.A, ScsiWorld.Cdb10(opcode, 8193, 0), "05/21/00", data);
        world.Bad(world.A, ScsiWorld.Cdb10(opcode, 0xFFFFFFFF, 1), "05/21/00", data);
        world.Bad(world.A, ScsiWorld.Cdb10(opcode, 0xFFFFFFFF, 0), "05/21/00", data);
        if (opcode is 0x34 or 0x35) return;
        Reply protect = world.Bad(world.A, ScsiWorld.Cdb10(opcode, 0, 1, 0x20), "05/24/00", data);
        Assert.Equal("CF0001", Convert.ToHexString(protect.SenseBytes.AsSpan(15)));
    }

    [Theory]
    [InlineData(0x88)]
    [InlineData(0x89)]
    [InlineData(0x8A)]
    [InlineData(0x8B)]
    [InlineData(0x8E)]
    [InlineData(0x8F)]
    [InlineData(0x90)]
    [InlineData(0x91)]
    [InlineData(0x93)]
    [InlineData(0x9C)]
    public void Sixteen_byte_commands_stay_inside(byte opcode)
    {
        var world = new ScsiWorld();
        foreach (ulong lba in new[] { 8192UL, 1UL << 63, ulong.MaxValue, ulong.MaxValue >> 9 })
        {
            string cdb = $"{opcode:X2}00{ScsiWorld.U64(lba)}" + (opcode is 0x89 or 0x9C ? "00000001" : "00000001") + "0000";
            Reply reply = world.Bad(world.A, cdb, "05/21/00", new byte[1024]);
            Assert.True(reply.Plan.OutBytes == 0 && reply.Plan.InBytesMax == 0);
        }
    }

    [Fact]
    public void Limits_of_the_block_limits_page_hold()
    {
        var world = new ScsiWorld(sizeBytes: 2UL << 30);
        Assert.Equal(65536 * 512, world.Good(world.A, ScsiWorld.Cdb16(0x88, 0, 65536)).Data.Length);
        foreach (byte opcode in new byte[] { 0x88, 0x8A, 0x8B, 0x8E })
        {
            Reply reply = world.Bad(world.A, ScsiWorld.Cdb16(opcode, 0, 65537), "05/24/00", new byte[512]);
            Assert.Equal("C0000A", Convert.ToHexString(reply.SenseBytes.AsSpan(15)));
        }

        world.Bad(world.A, "9C00000000000000000000000801" + "0000", "05/24/00");
        world.Bad(world.A, "9C00000000000000000000010001" + "0000", "05/24/00", new byte[512]);
        world.Bad(world.A, "8900000000000000000000000002" + "0000", "05/24/00", new byte[2048]);
        world.Bad(world.A, ScsiWorld.Cdb16(0x93, 0, (1 << 21) + 1), "05/24/00", new byte[512]);
    }

    [Fact]
    public void Nothing_moves_when_zero_blocks_are_asked_for()
    {
        var world = new ScsiWorld();
        foreach (string cdb in new[]
        {
            ScsiWorld.Cdb10(0x28, 0, 0), ScsiWorld.Cdb10(0x2A, 0, 0), ScsiWorld.Cdb10(0x2F, 0, 0, 2), ScsiWorld.Cdb16(0x8B, 0, 0),
            ScsiWorld.Cdb16(0x8E, 0, 0), ScsiWorld.Cdb16(0x9C, 0, 0), ScsiWorld.Cdb16(0x89, 0, 0), ScsiWorld.Cdb10(0x34, 0, 0),
        })
        {
            Assert.Empty(world.Good(world.A, cdb).Data);
        }

        Assert.Equal(256 * 512, world.Good(world.A, "080000000000").Data.Length); // READ (6): zero is 256
    }

    [Fact]
    public void Writes_of_less_than_was_said_take_what_came()
    {
        var world = new ScsiWorld();
        world.Good(world.A, ScsiWorld.Cdb10(0x2A, 0, 2), ScsiWorld.Fill(1024, 0xAA));
        world.Good(world.A, ScsiWorld.Cdb10(0x2A, 0, 2), ScsiWorld.Fill(512, 0xBB));
        Assert.Equal([.. ScsiWorld.Fill(512, 0xBB), .. ScsiWorld.Fill(512, 0xAA)], world.Stored(0, 1024));
        world.Good(world.A, ScsiWorld.Cdb10(0x2A, 1, 1), ScsiWorld.Fill(200, 0xCC));
        world.Good(world.A, ScsiWorld.Cdb10(0x2E, 1, 1, 0x02), ScsiWorld.Fill(100, 0xDD));
        byte[] expected = [.. ScsiWorld.Fill(512, 0xBB), .. ScsiWorld.Fill(100, 0xDD), .. ScsiWorld.Fill(100, 0xCC), .. ScsiWorld.Fill(312, 0xAA)];
        Assert.Equal(expected, world.Stored(0, 1024));
        world.Good(world.A, ScsiWorld.Cdb10(0x2A, 0, 2));
        world.Bad(world.A, "9C00000000000000000000000002" + "0000", "05/0E/03", ScsiWorld.Fill(512, 0xCC)); // all or nothing
        world.Bad(world.A, "9C00000000000000000000000002" + "0000", "05/0E/03");
        world.Bad(world.A, ScsiWorld.Cdb16(0x8B, 0, 2), "05/0E/03", ScsiWorld.Fill(700, 0xFF));
        world.Bad(world.A, ScsiWorld.Cdb16(0x8F, 0, 2, 0x02), "05/0E/03", ScsiWorld.Fill(700, 0xFF));
        Assert.Equal(expected, world.Stored(0, 1024));
    }

    [Fact]
    public void Fua_and_flush_reach_the_device()
    {
        var world = new ScsiWorld();
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), new byte[512]);
        Assert.Equal(WriteFlags.None, world.Device.LastFlags);
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 1, 0x18), new byte[512]);
        Assert.Equal(WriteFlags.Fua, world.Device.LastFlags);
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), new byte[512]);
        world.Good(world.A, ScsiWorld.Cdb16(0x8E, 0, 1), new byte[512]);
        Assert.Equal(WriteFlags.Fua, world.Device.LastFlags);
        world.Good(world.A, ScsiWorld.Cdb10(0x35, 0, 0));
        world.Good(world.A, ScsiWorld.Cdb16(0x91, 5, 9, 0x02));
        Assert.Equal(2, world.Device.Flushes);
        world.Good(world.A, ScsiWorld.Cdb10(0x34, 5, 9, 0x02));
        world.Good(world.A, ScsiWorld.Cdb16(0x90, 5, 9));
    }

    [Theory]
    [InlineData(IoStatus.NoSpace, "07/27/07")]
    [InlineData(IoStatus.ReadOnly, "07/27/00")]
    [InlineData(IoStatus.IoError, "03/0C/00")]
    [InlineData(IoStatus.Corrupt, "03/0C/00")]
    [InlineData(IoStatus.Unavailable, "02/04/03")]
    [InlineData(IoStatus.ShuttingDown, "Busy")]
    [InlineData(IoStatus.Invalid, "04/44/00")]
    public void Failures_of_the_device_have_their_sense(IoStatus status, string sense)
    {
        var world = new ScsiWorld();
        world.Device.Fails = status;
        foreach (string cdb in new[] { ScsiWorld.Cdb16(0x8A, 0, 1), ScsiWorld.Cdb16(0x93, 0, 1), ScsiWorld.Cdb16(0x8E, 0, 1) })
            Assert.Equal(sense, world.Send(world.A, cdb, ScsiWorld.Fill(512, 1)).Sense);
        string read = sense.StartsWith("03", StringComparison.Ordinal) ? "03/11/00" : sense;
        foreach (string cdb in new[] { ScsiWorld.Cdb16(0x88, 0, 1), ScsiWorld.Cdb16(0x8F, 0, 1), ScsiWorld.Cdb16(0x8B, 0, 1), ScsiWorld.Cdb16(0x90, 0, 1) })
            Assert.Equal(read, world.Send(world.A, cdb, ScsiWorld.Fill(512, 1)).Sense);
        Assert.Equal(0, world.Loop.Buffers.LentCount);
    }

    [Theory]
    [InlineData(0x2F, 10)]
    [InlineData(0xAF, 12)]
    [InlineData(0x8F, 16)]
    public void Verify_finds_the_first_byte_that_differs(byte opcode, int length)
    {
        var world = new ScsiWorld(sizeBytes: 8 << 20);
        int blocks = 4096, at = (1 << 20) + 700; // more than one piece of work
        var data = new byte[blocks * 512];
        world.Loop.Random.Fill(data);
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 3, (ulong)blocks), data);
        string Cdb(byte check) => length switch
        {
            10 => ScsiWorld.Cdb10(opcode, 3, (ulong)blocks, (byte)(check << 1)),
            12 => $"{opcode:X2}{check << 1:X2}00000003{ScsiWorld.U32((ulong)blocks)}0000",
            _ => ScsiWorld.Cdb16(opcode, 3, (ulong)blocks, (byte)(check << 1)),
        };
        Assert.Equal(data.Length, world.Good(world.A, Cdb(1), data).Plan.OutBytes);
        Assert.Equal(0, world.Good(world.A, Cdb(0)).Plan.OutBytes);
        data[at] ^= 1;
        Reply reply = world.Bad(world.A, Cdb(1), "0E/1D/00", data);
        Assert.Equal("F0000E" + ScsiWorld.U32((ulong)at), Convert.ToHexString(reply.SenseBytes.AsSpan(0, 7)));
        world.Bad(world.A, Cdb(2), "05/24/00", data);
        world.Bad(world.A, Cdb(3), "0E/1D/00", data[..512]);
        world.Good(world.A, ScsiWorld.Cdb16(0x93, 3, (ulong)blocks), data[..512]);
        Assert.Equal(512, world.Good(world.A, Cdb(3), data[..512]).Plan.OutBytes);
    }

    [Fact]
    public void Orwrite_sets_bits()
    {
        var world = new ScsiWorld(sizeBytes: 8 << 20);
        int blocks = 5000;
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 1, (ulong)blocks), ScsiWorld.Fill(blocks * 512, 0x0A));
        world.Good(world.A, ScsiWorld.Cdb16(0x8B, 1, (ulong)blocks), ScsiWorld.Fill(blocks * 512, 0x90));
        Assert.Equal(ScsiWorld.Fill(blocks * 512, 0x9A), world.Stored(512, blocks * 512));
    }

    [Fact]
    public void Compare_and_write_tells_where_it_differs()
    {
        var world = new ScsiWorld();
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 7, 1), ScsiWorld.Fill(512, 1));
        string cdb = "8900" + ScsiWorld.U64(7) + "000000010000";
        byte[] data = [.. ScsiWorld.Fill(512, 1), .. ScsiWorld.Fill(512, 2)];
        data[300] = 9;
        Reply reply = world.Bad(world.A, cdb, "0E/1D/00", data);
        Assert.Equal("F0000E0000012C0A", Convert.ToHexString(reply.SenseBytes.AsSpan(0, 8)));
        Assert.Equal(ScsiWorld.Fill(512, 1), world.Stored(7 * 512, 512));
        data[300] = 1;
        reply = world.Good(world.A, cdb, data);
        Assert.Equal((1024, 3072), (reply.Plan.OutBytes, reply.Plan.Lead));
        Assert.Equal(ScsiWorld.Fill(512, 2), world.Stored(7 * 512, 512));
        world.Bad(world.A, cdb, "05/24/00", data[..512]);
        world.Bad(world.A, cdb, "05/24/00", [.. data, .. data]); // more than it takes
        world.Bad(world.A, "8900" + ScsiWorld.U64(7) + "000000000000", "05/24/00", data); // zero blocks, but data
        Assert.Equal(ScsiWorld.Fill(512, 2), world.Stored(7 * 512, 512));
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    [InlineData(5)]
    public void Compare_and_write_counts_without_losing_one(int seed)
    {
        // Eight loops of "read n, compare n and write n + 1" over two nexuses on a disk that answers in any order: every
        // success must have added exactly one. Plain writes to the neighbouring block go on all the while.
        var world = new ScsiWorld(isSlow: true);
        for (int i = 0; i < seed; i++) world.Loop.Random.NextUInt64();
        int successes = 0, running = 8;
        for (int i = 0; i < 8; i++) Count(i % 2 == 0 ? world.A : world.B);
        Assert.True(world.Loop.RunUntil(() => running == 0));
        Assert.Equal(80, successes);
        Assert.Equal(80, world.Stored(0, 1)[0]);

        async void Count(ScsiNexus nexus)
        {
            for (int done = 0; done < 10;)
            {
                Reply read = await SendAsync(world, nexus, ScsiWorld.Cdb16(0x88, 0, 1), null);
                byte value = read.Data[0];
                await SendAsync(world, nexus, ScsiWorld.Cdb16(0x8A, 1, 1), ScsiWorld.Fill(512, value));
                byte[] data = [.. ScsiWorld.Fill(512, value), .. ScsiWorld.Fill(512, (byte)(value + 1))];
                Reply swap = await SendAsync(world, nexus, "890000000000000000000000000100" + "00", data);
                if (swap.Status == ScsiStatus.Good)
                {
                    successes++;
                    done++;
                }
                else
                {
                    Assert.Equal("0E/1D/00", swap.Sense);
                }
            }

            running--;
        }
    }

    [Fact]
    public void Reads_and_writes_allocate_nothing_once_warm()
    {
#if !DEBUG
        var loop = new SimLoop(1);
        var target = new ScsiTarget(loop, new ScsiTargetOptions { Name = "iqn.t" });
        var device = new Delaying();
        target.SetLun(0, new LogicalUnit(loop, device, new LogicalUnitOptions { Uuid = ScsiWorld.Uuid }));
        var nexus = new ScsiNexus { InitiatorName = "i", InitiatorPort = "i,i,0x1", PortalGroup = 1 };
        target.AddNexus(nexus);
        var slots = new Slot[32];
        for (int i = 0; i < slots.Length; i++) slots[i] = new Slot(loop, target, nexus, isWrite: i % 2 == 0);
        for (int warm = 0; warm < 50; warm++) Round(slots, device);
        long least = long.MaxValue; // while the runtime recompiles what is hot, early batches may allocate
        for (int batch = 0; batch < 10; batch++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int round = 0; round < 100; round++) Round(slots, device);
            least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
        }

        Assert.Equal(0, least);
        Assert.All(slots, s => Assert.Equal(1050, s.Answers));
#endif
    }

    private static async ValueTask<Reply> SendAsync(ScsiWorld world, ScsiNexus nexus, string cdb, byte[]? data)
    {
        Reply reply = world.Begin(nexus, cdb, data);
        while (!reply.IsDone) await world.Loop.DelayAsync(5_000);
        return reply;
    }

    private static void Round(Slot[] slots, Delaying device)
    {
        foreach (Slot slot in slots) slot.Begin();
        device.CompleteAll();
    }

    /// <summary>One command in flight again and again, as the transport keeps it.</summary>
    private sealed class Slot
    {
        private readonly SimLoop _loop;
        private readonly ScsiTarget _target;
        private readonly ScsiCommand _command;
        private readonly Action _finish;
        private ValueTaskAwaiter<bool> _awaiter;

        public Slot(SimLoop loop, ScsiTarget target, ScsiNexus nexus, bool isWrite)
        {
            (_loop, _target, _finish) = (loop, target, Finish);
            _command = new ScsiCommand { Nexus = nexus };
            _command.Cdb[0] = isWrite ? (byte)0x8A : (byte)0x88;
            _command.Cdb[13] = 8;
        }

        public int Answers { get; private set; }

        public void Begin()
        {
            ScsiPlan plan = _target.Plan(_command);
            if (plan.OutBytes > 0) _command.OutBuffer = _loop.Buffers.TryRent(plan.OutBytes);
            _command.OutLength = plan.OutBytes;
            _awaiter = _target.ExecuteAsync(_command).GetAwaiter();
            if (_awaiter.IsCompleted) Finish();
            else _awaiter.UnsafeOnCompleted(_finish);
        }

        private void Finish()
        {
            if (_awaiter.GetResult() && _command.Status == ScsiStatus.Good) Answers++;
            else if (_command.Sense[2] == 6) Begin(); // the first one after the login
            _command.InBuffer?.Return();
            _command.OutBuffer?.Return();
            (_command.InBuffer, _command.OutBuffer) = (null, null);
        }
    }

    /// <summary>Answers when told to, from operations that it keeps.</summary>
    private sealed class Delaying : IBlockDevice
    {
        private readonly Queue<LoopOperation<ReadResult>> _reads = new(), _freeReads = new();
        private readonly Queue<LoopOperation<IoStatus>> _writes = new(), _freeWrites = new();

        public ulong SizeBytes => 1 << 20;

        public bool IsReadOnly => false;

        public void CompleteAll()
        {
            while (_reads.TryDequeue(out LoopOperation<ReadResult>? read))
            {
                read.Complete(new ReadResult(IoStatus.Ok));
                _freeReads.Enqueue(read);
            }

            while (_writes.TryDequeue(out LoopOperation<IoStatus>? write))
            {
                write.Complete(IoStatus.Ok);
                _freeWrites.Enqueue(write);
            }
        }

        public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
        {
            LoopOperation<ReadResult> operation = _freeReads.TryDequeue(out LoopOperation<ReadResult>? free) ? free : new();
            _reads.Enqueue(operation);
            return operation.Begin();
        }

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
        {
            LoopOperation<IoStatus> operation = _freeWrites.TryDequeue(out LoopOperation<IoStatus>? free) ? free : new();
            _writes.Enqueue(operation);
            return operation.Begin();
        }

        public ValueTask<IoStatus> FlushAsync() => new(IoStatus.Ok);

        public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) => new(IoStatus.Ok);

        public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) => new(IoStatus.Ok);

        public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.Ok);

        public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) => new(IoStatus.Ok);
    }
}
