using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using BlockServer.Tests.Simulated;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>What a connection costs: little before it has negotiated, little while it is silent, and few receives in a burst.</summary>
public class NbdMemoryTests
{
    [Fact]
    public void A_handshake_costs_less_than_8_KiB_whatever_is_sent()
    {
        var loop = new SimLoop(1);
        Run(); // warm
        long before = GC.GetAllocatedBytesForCurrentThread();
        Run();
        long bytes = GC.GetAllocatedBytesForCurrentThread() - before;
        TestContext.Current.TestOutputHelper?.WriteLine($"{bytes} bytes");
        Assert.InRange(bytes, 1, 8192);

        void Run()
        {
            var connection = new QueueConnection();
            var handshake = new NbdHandshake(loop, connection, new NoExports(), new NbdOptions());
            ValueTask<NbdNegotiated?> run = handshake.RunAsync();
            connection.Deliver(s_greeting);
            // The largest that is kept, all but its last byte; then the largest that is read away.
            connection.Deliver(s_longest);
            connection.Deliver(s_last);
            connection.Deliver(s_tooLong);
            Assert.False(run.IsCompleted);
        }
    }

    [Fact]
    public void A_silent_session_costs_less_than_16_KiB_and_nothing_of_the_loops_memory()
    {
        var loop = new SimLoop(1);
        var device = new MemoryDevice(1 << 20);
        Start();
        long before = GC.GetAllocatedBytesForCurrentThread();
        QueueConnection connection = Start();
        long bytes = GC.GetAllocatedBytesForCurrentThread() - before;
        TestContext.Current.TestOutputHelper?.WriteLine($"{bytes} bytes");
        Assert.InRange(bytes, 1, 16 << 10);
        Assert.Equal(0, loop.Buffers.LentBytes);

        var burst = new byte[1000 * NbdRequest.CompactSize];
        for (int i = 0; i < 1000; i++)
            new NbdRequest(NbdCommand.Read, 0, (ulong)i, 0, 512).WriteTo(burst.AsSpan(i * NbdRequest.CompactSize), NbdReplyMode.Simple);
        connection.Deliver(burst);
        loop.RunUntil(() => connection.Sends > 0 && connection.IsDrained && loop.Buffers.LentCount == 0);
        Assert.Equal(0, loop.Buffers.LentBytes); // small again

        QueueConnection Start()
        {
            var wire = new QueueConnection();
            var export = new NbdExport { Name = "x", Device = device, SizeBytes = device.SizeBytes };
            var transmission = new NbdTransmission(
                loop, wire, new NbdNegotiated { Connection = wire, Export = export }, new NbdOptions());
            _ = transmission.RunAsync();
            return wire;
        }
    }

    [Fact]
    public void A_burst_is_taken_in_few_receives_and_the_loop_gets_its_turn()
    {
        var loop = new SimLoop(1);
        var device = new MemoryDevice(64 << 20);
        var wire = new QueueConnection();
        var export = new NbdExport { Name = "x", Device = device, SizeBytes = device.SizeBytes };
        var transmission = new NbdTransmission(loop, wire, new NbdNegotiated { Connection = wire, Export = export }, new NbdOptions());
        _ = transmission.RunAsync();
        var burst = new byte[32 * (NbdRequest.CompactSize + 4096)];
        for (int i = 0, at = 0; i < 32; i++)
            at += new NbdRequest(NbdCommand.Write, 0, (ulong)i, (ulong)i * 4096, 4096).WriteTo(burst.AsSpan(at), NbdReplyMode.Simple) + 4096;
        wire.Deliver(burst);
        loop.RunUntil(() => transmission.Counters.Writes == 32);
        Assert.True(wire.Receives <= 4, $"{wire.Receives} receives"); // the small buffer, the borrowed one, and a look that finds nothing
        Assert.Equal(0, loop.Buffers.LentBytes);

        // 32 MiB that are refused and so read away: not in one go.
        var head = new byte[NbdRequest.CompactSize];
        new NbdRequest(NbdCommand.Write, 0, 99, 60 << 20, 32 << 20).WriteTo(head, NbdReplyMode.Simple);
        int waits = wire.Waits;
        wire.Deliver(Join(head, new byte[32 << 20]));
        loop.RunUntil(() => transmission.Counters.Errors == 1);
        Assert.True(wire.Waits - waits >= 30);
    }

    [Theory]
    [InlineData(false, 2, 4)]
    [InlineData(true, 8, 40)]
    public void A_burst_leaves_the_loop_to_other_volumes_more_often_than_to_nobody(bool hasNeighbour, int waitsMin, int waitsMax)
    {
        var loop = new SimLoop(1);
        var disk = new DiskShare();
        VolumeAdmission door = new(loop, disk), other = new(loop, disk);
        if (hasNeighbour) Assert.True(other.Enter(new AdmissionWaiter(() => { }), 4096));
        var device = new MemoryDevice(64 << 20);
        var wire = new QueueConnection();
        var export = new NbdExport { Name = "x", Device = device, SizeBytes = device.SizeBytes, Admission = door };
        var transmission = new NbdTransmission(loop, wire, new NbdNegotiated { Connection = wire, Export = export }, new NbdOptions());
        _ = transmission.RunAsync();
        var burst = new byte[512 * (NbdRequest.CompactSize + 4096)];
        for (int i = 0, at = 0; i < 512; i++)
            at += new NbdRequest(NbdCommand.Write, 0, (ulong)i, (ulong)i * 4096, 4096).WriteTo(burst.AsSpan(at), NbdReplyMode.Simple) + 4096;
        int waits = wire.Waits;
        wire.Deliver(burst);
        loop.RunUntil(() => transmission.Counters.Writes == 512);
        Assert.InRange(wire.Waits - waits, waitsMin, waitsMax);
    }

    private static readonly byte[] s_greeting = U32(3);
    private static readonly byte[] s_longest = OptionBytes(NbdOption.Info, Text(new string('x', 4096)), U16(1), U16(2))[..^1];
    private static readonly byte[] s_last = [2];
    private static readonly byte[] s_tooLong = OptionBytes(NbdOption.SetMetaContext, new byte[65_536]);

    private sealed class NoExports : INbdExports
    {
        public ValueTask<NbdExport?> FindAsync(string name, string? identity) => default;

        public IReadOnlyList<NbdListing> List(string? identity) => [];
    }

    /// <summary>Gives what was delivered at once, else waits; takes every send at once.</summary>
    private sealed class QueueConnection : IConnection
    {
        private readonly LoopOperation<int> _wait = new();
        private Memory<byte> _target;
        private ReadOnlyMemory<byte> _inbox;

        public string Peer => "queue";

        public int Receives { get; private set; }

        public int Waits { get; private set; }

        public int Sends { get; private set; }

        public bool IsDrained => _inbox.IsEmpty && _wait.IsPending;

        public void Deliver(ReadOnlyMemory<byte> bytes)
        {
            Assert.True(_inbox.IsEmpty);
            _inbox = bytes;
            if (_wait.IsPending) _wait.Complete(Take(_target));
        }

        public int ReceiveNow(Memory<byte> target)
        {
            Receives++;
            return _inbox.IsEmpty ? -11 : Take(target);
        }

        public ValueTask<int> ReceiveAsync(Memory<byte> target)
        {
            Receives++;
            Waits++;
            if (!_inbox.IsEmpty) return new ValueTask<int>(Take(target));
            _target = target;
            return _wait.Begin();
        }

        public ValueTask<int> SendAsync(SendBatch batch)
        {
            Sends++;
            return new ValueTask<int>(0);
        }

        public void ShutdownSend()
        {
        }

        public void Close()
        {
        }

        private int Take(Memory<byte> target)
        {
            int count = Math.Min(target.Length, _inbox.Length);
            _inbox[..count].CopyTo(target);
            _inbox = _inbox[count..];
            return count;
        }
    }
}
