using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>Sessions that together want more memory than their loop has still all get on: what has memory must not wait for
/// bytes that stand behind somebody who waits for memory.</summary>
public sealed class IscsiMemoryTests
{
    private const int Blocks = 1024;

    [Theory]
    [InlineData("InitialR2T=No", 1 << 20, 0)]
    [InlineData("InitialR2T=No", 64 << 10, 0)] // three Data-Outs behind each command
    [InlineData("InitialR2T=Yes", 1 << 20, 0)]
    [InlineData("InitialR2T=No", 64 << 10, 5)]
    [InlineData("InitialR2T=Yes", 64 << 10, 2)]
    public void Many_long_writes_on_many_sessions_all_end(string key, int segmentBytes, int orderedEvery)
    {
        var world = new IscsiWorld(21, new IscsiOptions { MaxRecvDataSegmentLength = segmentBytes }); // the loop has 64 MiB, the sessions want three times as much
        var writers = new List<Writer>();
        for (uint i = 0; i < 8; i++)
        {
            IscsiClient client = world.Connect();
            client.Isid += i;
            writers.Add(new Writer(orderedEvery, client.Login(key, "ImmediateData=Yes", "FirstBurstLength=262144", "MaxBurstLength=1048576"), world.Loop));
        }

        for (int i = 0; i < 48; i++)
        {
            foreach (Writer writer in writers) writer.Write(Blocks * (i % 32));
        }

        Assert.True(world.Loop.RunUntil(() => writers.TrueForAll(w => w.IsOver)));
        Assert.All(writers, w => Assert.Equal((48, 0, ""), (w.Good, w.Bad, w.EndReason)));
        Assert.True(world.Loop.RunUntil(() => world.Loop.Buffers.LentCount == 0));
    }

    /// <summary>The number that one connection waits for may stand behind data on another one that waits for memory.</summary>
    [Theory]
    [InlineData("InitialR2T=No", 1 << 20, 0)]
    [InlineData("InitialR2T=No", 64 << 10, 5)]
    [InlineData("InitialR2T=Yes", 64 << 10, 3)]
    public void Sessions_of_several_connections_all_get_on(string key, int segmentBytes, int orderedEvery)
    {
        var world = new IscsiWorld(25, new IscsiOptions { MaxRecvDataSegmentLength = segmentBytes });
        string[] keys = [key, "ImmediateData=Yes", "FirstBurstLength=262144", "MaxBurstLength=1048576"];
        var writers = new List<Writer>();
        for (uint i = 0; i < 3; i++)
        {
            IscsiClient leading = world.Connect();
            leading.Isid += i;
            leading.Login([.. keys, "MaxConnections=3"]);
            uint number = leading.CmdSn;
            for (ushort cid = 0; cid < 3; cid++)
            {
                IscsiClient client = leading;
                if (cid > 0)
                {
                    client = world.Connect();
                    (client.Isid, client.Tsih, client.Cid, client.CmdSn, client.Tag) = (leading.Isid, leading.Tsih, (ushort)(10 + cid), number, cid * 100_000u);
                    client.Login();
                    (client.InitialR2T, client.ImmediateData, client.FirstBurst) = (leading.InitialR2T, leading.ImmediateData, leading.FirstBurst);
                }

                writers.Add(new Writer(orderedEvery, client, world.Loop, () => number++));
            }
        }

        for (int i = 0; i < 40; i++)
        {
            foreach (Writer writer in writers) writer.Write(Blocks * (i % 32));
        }

        Assert.True(world.Loop.RunUntil(() => writers.TrueForAll(w => w.IsOver)));
        Assert.All(writers, w => Assert.Equal((40, 0, ""), (w.Good, w.Bad, w.EndReason)));
        Assert.True(world.Loop.RunUntil(() => world.Loop.Buffers.LentCount == 0));
    }

    [Fact]
    public void Sessions_with_one_write_each_wait_for_their_turn_when_others_have_all_memory()
    {
        var world = new IscsiWorld(22);
        var writers = new List<Writer>();
        for (uint i = 0; i < 40; i++)
        {
            IscsiClient client = world.Connect();
            client.Isid += i;
            writers.Add(new Writer(0, client.Login("InitialR2T=No", "ImmediateData=Yes"), world.Loop));
        }

        var hogged = new List<IoBuffer>();
        while (world.Loop.Buffers.TryRent(4096) is { } buffer) hogged.Add(buffer);
        foreach (Writer writer in writers) writer.Write(0);
        Assert.True(world.Loop.RunUntil(() => writers.TrueForAll(w => w.IsOver)));
        Assert.All(writers, w => Assert.Equal((1, 0, 0, ""), (w.Good, w.Bad, w.Repeated, w.EndReason)));
        foreach (IoBuffer buffer in hogged) buffer.Return();
    }

    [Fact]
    public void What_waits_for_an_ordered_command_does_not_take_the_memory_that_this_needs()
    {
        var world = new IscsiWorld(24, new IscsiOptions { MaxRecvDataSegmentLength = 64 << 10 });
        IscsiClient client = world.Connect().Login("InitialR2T=No", "ImmediateData=Yes", "FirstBurstLength=262144", "MaxBurstLength=1048576");
        var writer = new Writer(0, client, world.Loop);
        uint ordered = writer.Begin(TaskAttribute.Ordered, 64 << 10);
        Assert.True(world.Loop.RunUntil(() => world.Loop.Buffers.LentCount > 0));
        var hogged = new List<IoBuffer>();
        while (world.Loop.Buffers.TryRent(4096) is { } buffer) hogged.Add(buffer);
        for (int i = 0; i < 40; i++) writer.Begin(TaskAttribute.Simple, 0);
        writer.EndFirst(ordered, 64 << 10);
        Assert.True(world.Loop.RunUntil(() => writer.IsOver));
        Assert.Equal((41, 0, 0, ""), (writer.Good, writer.Bad, writer.Repeated, writer.EndReason));
        foreach (IoBuffer buffer in hogged) buffer.Return();
    }

    [Fact]
    public void An_echo_does_not_wait_for_memory()
    {
        var world = new IscsiWorld(23);
        IscsiClient client = world.Connect().Login();
        var hogged = new List<IoBuffer>();
        while (world.Loop.Buffers.TryRent(4096) is { } buffer) hogged.Add(buffer);
        byte[] data = IscsiWorld.Pattern(5000, 1);
        client.Send(b => new NopOutPdu(true, 0, 9, IscsiWire.NoTag, client.CmdSn, 0).WriteTo(b, 0), data);
        Assert.Equal(data, client.Receive()!.Data);
        foreach (IoBuffer buffer in hogged) buffer.Return();
    }

    /// <summary>An initiator that sends as fast as the target reads, and answers R2Ts behind what it sends already.</summary>
    private sealed class Writer
    {
        private readonly IscsiClient _client;
        private readonly ILoop _loop;
        private readonly Func<uint> _next; // number of a command, of all connections of the session
        private readonly Dictionary<uint, int> _blocks = [];
        private readonly Queue<byte[]> _out = new();
        private readonly byte[] _data = new byte[Blocks * 512];
        private readonly int _orderedEvery; // every so manieth command is ORDERED; 0: none
        private bool _isSending, _hasEnded;
        private int _asked;

        public Writer(int orderedEvery, IscsiClient client, ILoop loop, Func<uint>? next = null)
        {
            (_orderedEvery, _client, _loop, _next) = (orderedEvery, client, loop, next ?? (() => client.CmdSn++));
            _ = ReceiveAllAsync();
        }

        public int Good { get; private set; }

        public int Bad { get; private set; }

        /// <summary>Commands that were answered TASK SET FULL.</summary>
        public int Repeated { get; private set; }

        /// <summary>Why the target ended the session, or empty.</summary>
        public string EndReason => _hasEnded ? _client.End() : "";

        public bool IsOver => _hasEnded || Good + Bad == _asked;

        public void Write(int block)
        {
            _asked++;
            Send(block);
        }

        /// <summary>A long write with so much immediate data; with some, more unsolicited data follows. Its tag.</summary>
        public uint Begin(TaskAttribute attribute, int immediate)
        {
            _asked++;
            uint tag = _client.Tag++;
            var pdu = new ScsiCommandPdu(false, immediate == 0, false, true, attribute, 0, tag, (uint)_data.Length, _next(), 0);
            Push(_client.Pdu(b => pdu.WriteTo(b, IscsiClient.Cdb10(0x2A, 0, Blocks), 0), _data[..immediate]));
            return tag;
        }

        /// <summary>The rest of its unsolicited data.</summary>
        public void EndFirst(uint tag, int from) => PushData(tag, IscsiWire.NoTag, from, _client.FirstBurst);

        private void Send(int block)
        {
            uint tag = _client.Tag++;
            _blocks[tag] = block;
            bool isOrdered = _orderedEvery > 0 && tag % (uint)_orderedEvery == 0;
            TaskAttribute attribute = isOrdered ? TaskAttribute.Ordered : TaskAttribute.Simple;
            int first = Math.Min(_client.FirstBurst, _data.Length), immediate = Math.Min(first, _client.MaxSegment);
            bool isFinal = _client.InitialR2T || immediate == first;
            var pdu = new ScsiCommandPdu(false, isFinal, false, true, attribute, 0, tag, (uint)_data.Length, _next(), 0);
            Push(_client.Pdu(b => pdu.WriteTo(b, IscsiClient.Cdb10(0x2A, block, Blocks), 0), _data[..immediate]));
            if (!isFinal) PushData(tag, IscsiWire.NoTag, immediate, first);
        }

        /// <summary>As initiators do: a little later.</summary>
        private async Task RepeatAsync(uint tag)
        {
            Repeated++;
            await _loop.DelayAsync(10_000_000);
            Send(_blocks[tag]);
        }

        private void PushData(uint tag, uint transferTag, int from, int to)
        {
            for (uint dataSn = 0; from < to; dataSn++)
            {
                int piece = Math.Min(_client.MaxSegment, to - from);
                var pdu = new DataOutPdu(from + piece == to, 0, tag, transferTag, 0, dataSn, (uint)from);
                Push(_client.Pdu(b => pdu.WriteTo(b, 0), _data[..piece]));
                from += piece;
            }
        }

        private void Push(byte[] pdu)
        {
            _out.Enqueue(pdu);
            if (!_isSending) _ = SendAllAsync();
        }

        private async Task SendAllAsync()
        {
            _isSending = true;
            var batch = new SendBatch();
            while (_out.TryDequeue(out byte[]? pdu))
            {
                batch.Clear();
                batch.Add(pdu);
                if (await _client.Connection.SendAsync(batch) < 0) break;
            }

            _isSending = false;
        }

        private async Task ReceiveAllAsync()
        {
            var bhs = new byte[48];
            while (await _client.Connection.FillAsync(bhs))
            {
                IscsiHeader header = IscsiHeader.Read(bhs);
                if (!await _client.Connection.FillAsync(new byte[header.PaddedDataBytes])) break;
                switch (header.Opcode)
                {
                    case IscsiOpcode.R2T:
                        R2TPdu r2t = R2TPdu.Read(bhs);
                        PushData(r2t.Tag, r2t.TransferTag, (int)r2t.Offset, (int)(r2t.Offset + r2t.LengthBytes));
                        break;
                    case IscsiOpcode.ScsiResponse:
                        ScsiResponsePdu response = ScsiResponsePdu.Read(bhs);
                        if (response.Status == ScsiStatus.Good) Good++;
                        else if (response.Status == ScsiStatus.TaskSetFull) _ = RepeatAsync(response.Tag);
                        else Bad++;
                        break;
                    case IscsiOpcode.NopIn:
                        uint transferTag = NopInPdu.Read(bhs).TransferTag;
                        Push(_client.Pdu(b => new NopOutPdu(true, 0, IscsiWire.NoTag, transferTag, _client.CmdSn, 0).WriteTo(b, 0)));
                        break;
                }
            }

            _hasEnded = true;
        }
    }
}
