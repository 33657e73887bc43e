using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>What a broken or hostile initiator may send in full feature phase, and what becomes of it: at most its own
/// session ends, and nothing wrong is written.</summary>
public sealed class IscsiBadInputTests
{
    private static readonly byte[] Write16 = IscsiClient.Cdb10(0x2A, 0, 16);

    public static TheoryData<string, string> WrongDataOut => new()
    {
        { "offset", "Data-Out at a wrong offset" },
        { "too long", "Data-Out beyond its burst" },
        { "no end", "Data-Out without an end" },
        { "early end", "Data-Out ends too early" },
        { "empty", "Data-Out without an end" },
        { "TTT", "Data-Out for no outstanding R2T" },
        { "unsolicited", "Data-Out for no outstanding R2T" },
        { "ITT", "Data-Out for no task" },
        { "finished", "Data-Out for no task" },
    };

    [Theory]
    [MemberData(nameof(WrongDataOut))]
    public void Wrong_solicited_data_ends_the_session_and_writes_nothing(string what, string reason)
    {
        var world = new IscsiWorld(7);
        IscsiClient client = world.Connect().Login("ImmediateData=No", "MaxOutstandingR2T=1");
        if (what == "finished")
        {
            Assert.Equal(ScsiStatus.Good, client.Write(64, new byte[512]).Status);
            Send(client, true, client.Tag - 1, 1, 0, 0, 512);
        }
        else
        {
            uint tag = client.Command(Write16, 0, Pattern(8192, 1));
            R2TPdu r2t = R2TPdu.Read(client.Receive()!.Bhs);
            Assert.Equal(8192u, r2t.LengthBytes);
            uint transferTag = r2t.TransferTag;
            switch (what)
            {
                case "offset": Send(client, false, tag, transferTag, 0, 512, 4096); break;
                case "too long": Send(client, true, tag, transferTag, 0, 0, 8196); break;
                case "no end": Send(client, false, tag, transferTag, 0, 0, 8192); break;
                case "early end": Send(client, true, tag, transferTag, 0, 0, 4096); break;
                case "empty": Send(client, false, tag, transferTag, 0, 0, 0); break;
                case "TTT": Send(client, true, tag, transferTag + 1, 0, 0, 8192); break;
                case "unsolicited": Send(client, true, tag, IscsiWire.NoTag, 0, 0, 8192); break;
                default: Send(client, true, tag + 1, transferTag, 0, 0, 8192); break;
            }
        }

        Assert.Null(client.Receive());
        Assert.Equal(reason, client.End());
        Assert.Equal(new byte[8192], world.Scsi.Disk[..8192]);
        world.CheckClean();
    }

    [Theory]
    [InlineData("No", "27")]
    [InlineData("No", "0 0")]
    [InlineData("No", "1 0")]
    [InlineData("No", "0 2")]
    [InlineData("Yes", "4294967295")]
    [InlineData("Yes", "1 0")]
    [InlineData("Yes", "0 1 1")]
    public void A_wrong_DataSN_fails_the_command_and_the_session_goes_on(string initialR2T, string numbers)
    {
        var world = new IscsiWorld(7);
        IscsiClient client = world.Connect().Login("ImmediateData=No", "MaxOutstandingR2T=1", "InitialR2T=" + initialR2T);
        uint tag = client.Tag++;
        var pdu = new ScsiCommandPdu(false, client.InitialR2T, false, true, TaskAttribute.Simple, 0, tag, 8192, client.CmdSn++, 0);
        client.Send(b => pdu.WriteTo(b, Write16, 0));
        uint transferTag = client.InitialR2T ? R2TPdu.Read(client.Receive()!.Bhs).TransferTag : IscsiWire.NoTag;
        uint[] sent = [.. numbers.Split(' ').Select(n => uint.Parse(n, System.Globalization.CultureInfo.InvariantCulture))];
        int piece = 8192 / 4;
        for (int i = 0; i < sent.Length; i++)
            Send(client, i == sent.Length - 1, tag, transferTag, sent[i], (uint)(i * piece), piece);
        ScsiAnswer answer = client.Finish(tag, null, client.InitialR2T ? 1u : 0u);
        Assert.Equal((ScsiStatus.CheckCondition, 0x0B, 0x47, 0x05), (answer.Status, answer.Sense[2], answer.Sense[12], answer.Sense[13]));
        Assert.Equal(new byte[8192], world.Scsi.Disk[..8192]);
        Assert.Empty(world.Scsi.Executed);
        byte[] data = Pattern(8192, 5);
        Assert.Equal(ScsiStatus.Good, client.Write(0, data).Status);
        Assert.Equal(data, world.Scsi.Disk[..8192]);
        client.Logout();
        world.CheckClean();
    }

    [Theory]
    [InlineData("announced", "unsolicited data was announced without leave", "InitialR2T=Yes")]
    [InlineData("immediate", "immediate data without leave", "ImmediateData=No")]
    [InlineData("too much", "too much immediate data", "FirstBurstLength=512")]
    [InlineData("more than expected", "too much immediate data", "FirstBurstLength=65536")]
    [InlineData("for a read", "immediate data without leave", "InitialR2T=No")]
    [InlineData("F of a read", "unsolicited data was announced without leave", "InitialR2T=No")]
    [InlineData("beyond first burst", "Data-Out beyond its burst", "InitialR2T=No,FirstBurstLength=4096,ImmediateData=No")]
    [InlineData("never ends", "Data-Out without an end", "InitialR2T=No,FirstBurstLength=4096,ImmediateData=No")]
    [InlineData("with TTT", "Data-Out for an R2T that was not sent", "InitialR2T=No,ImmediateData=No")]
    public void Wrong_unsolicited_data_ends_the_session(string what, string reason, string keys)
    {
        var world = new IscsiWorld(7);
        IscsiClient client = world.Connect().Login(keys.Split(','));
        bool isFinal = what is not ("announced" or "F of a read" or "beyond first burst" or "never ends" or "with TTT");
        bool isRead = what is "for a read" or "F of a read";
        var pdu = new ScsiCommandPdu(false, isFinal, isRead, !isRead, TaskAttribute.Simple, 0, 5, 8192, client.CmdSn++, 0);
        int bytes = what switch { "immediate" => 512, "too much" => 516, "more than expected" => 8196, "for a read" => 512, _ => 0 };
        client.Send(b => pdu.WriteTo(b, Write16, 0), new byte[bytes]);
        if (what == "beyond first burst") Send(client, true, 5, IscsiWire.NoTag, 0, 0, 4100);
        if (what == "never ends") Send(client, false, 5, IscsiWire.NoTag, 0, 0, 4096);
        if (what == "with TTT") Send(client, true, 5, 1, 0, 0, 512);
        Assert.Null(client.Receive());
        Assert.Equal(reason, client.End());
        Assert.Empty(world.Scsi.Executed);
        world.CheckClean();
    }

    [Fact]
    public void Unsolicited_data_may_end_early_and_the_rest_is_asked_for()
    {
        var world = new IscsiWorld(7);
        IscsiClient client = world.Connect().Login("InitialR2T=No");
        byte[] data = Pattern(8192, 3);
        var pdu = new ScsiCommandPdu(false, false, false, true, TaskAttribute.Simple, 0, 5, 8192, client.CmdSn++, 0);
        client.Send(b => pdu.WriteTo(b, Write16, 0), data[..1000]);
        client.Send(b => new DataOutPdu(false, 0, 5, IscsiWire.NoTag, 0, 0, 1000).WriteTo(b, 0), data[1000..1500]);
        client.Send(b => new DataOutPdu(true, 0, 5, IscsiWire.NoTag, 0, 1, 1500).WriteTo(b, 0), []);
        Assert.Equal(ScsiStatus.Good, client.Finish(5, data).Status);
        Assert.Equal(data, world.Scsi.Disk[..8192]);
    }

    [Theory]
    [InlineData(4, 17)] // additional headers of 68 bytes
    [InlineData(5, 0x11)] // a data segment of more than 1 MiB
    [InlineData(0, 0x03)] // a login
    [InlineData(0, 0x21)] // a response
    [InlineData(0, 0x3F)] // a reject
    public void Headers_that_cannot_be_close_before_anything_is_kept(int at, byte value)
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        var bhs = new byte[48];
        new NopOutPdu(true, 0, 1, IscsiWire.NoTag, 0, 0).WriteTo(bhs, 0);
        bhs[at] = value;
        long before = world.Loop.Buffers.LentBytes;
        client.SendRaw(bhs);
        Assert.Null(client.Receive());
        client.End();
        Assert.Equal(before, world.Loop.Buffers.LentBytes);
        world.CheckClean();
    }

    [Fact]
    public void What_is_refused_leaves_the_session_alive()
    {
        var world = new IscsiWorld { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient client = world.Connect().Login();
        uint tag = client.Command([0, 0, 0, 0, 0, 0]);
        client.Tag = tag;
        client.Command([0, 0, 0, 0, 0, 0]); // the tag is in use
        Assert.Equal(IscsiRejectReason.TaskInProgress, Refused());
        client.Send(b => new SnackPdu(1, 2, 0, 1).WriteTo(b));
        Assert.Equal(IscsiRejectReason.SnackReject, Refused());
        client.Send(b => b[0] = 0x1C, new byte[700]); // vendor specific
        Assert.Equal(IscsiRejectReason.CommandNotSupported, Refused());
        client.SendRaw(client.Pdu(b => new NopOutPdu(true, 0, 1, IscsiWire.NoTag, 0, 0).WriteTo(b, 0), null, new byte[8]));
        Assert.Equal(IscsiRejectReason.InvalidField, Refused());
        world.Scsi.Gate.Set(true);
        Assert.Equal(ScsiStatus.Good, client.Finish(tag).Status);
        client.Tag = tag + 1;
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command([0, 0, 0, 0, 0, 0])).Status); // the numbers went on
        client.Logout();
        world.CheckClean();

        IscsiRejectReason Refused()
        {
            Received pdu = client.Receive()!;
            Assert.Equal((IscsiOpcode.Reject, 48), (pdu.Opcode, pdu.Data.Length));
            return RejectPdu.Read(pdu.Bhs).Reason;
        }
    }

    [Theory]
    [InlineData(20, "a header digest does not match")]
    [InlineData(50, "a header digest does not match")]
    [InlineData(60, "a data digest does not match")]
    [InlineData(565, "a data digest does not match")]
    public void Any_flipped_bit_under_a_digest_is_noticed(int at, string reason)
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login("HeaderDigest=CRC32C", "DataDigest=CRC32C");
        var pdu = new ScsiCommandPdu(false, true, false, true, TaskAttribute.Simple, 0, 5, 512, client.CmdSn++, 0);
        byte[] bytes = client.Pdu(b => pdu.WriteTo(b, IscsiClient.Cdb10(0x2A, 0, 1), 0), Pattern(512, 1));
        bytes[at] ^= 4;
        client.SendRaw(bytes);
        Assert.Null(client.Receive());
        Assert.Equal(reason, client.End());
        Assert.Empty(world.Scsi.Executed);
        world.CheckClean();
    }

    [Fact]
    public void Half_a_PDU_and_then_silence_ends_the_session()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        uint tag = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, new byte[512]);
        Assert.Equal(ScsiStatus.Good, client.Finish(tag).Status);
        client.SendRaw(new byte[47]);
        ulong began = world.Loop.NowNanos;
        while (client.Receive(answersPings: false) is not null)
        {
        }

        client.End();
        Assert.InRange(world.Loop.NowNanos - began, 14_000_000_000UL, 41_000_000_000UL);
        world.CheckClean();
    }

    [Fact]
    public void Who_does_not_read_is_held_back_and_dropped()
    {
        var world = new IscsiWorld(1, new IscsiOptions { PingAfterNanos = 3_600_000_000_000, PingAnswerNanos = 3_600_000_000_000, WindowBytes = 1 << 20 });
        IscsiClient client = world.Connect(windowBytes: 64 << 10).Login();
        for (int i = 0; i < 100; i++) client.Command(IscsiClient.Cdb10(0x28, 0, 512), 256 << 10);
        world.Loop.Run(world.Loop.DelayAsync(1_000_000_000));
        Assert.InRange(world.Loop.Buffers.LentBytes, 1, 6 << 20); // of the 25 MiB that were asked for
        ulong began = world.Loop.NowNanos;
        Assert.Equal("the initiator does not read", client.End());
        Assert.InRange(world.Loop.NowNanos - began, 50_000_000_000UL, 125_000_000_000UL); // however seldom it is pinged
        world.CheckClean();
    }

    [Fact]
    public void A_flood_of_pings_waits_until_its_echoes_are_read()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect(windowBytes: 64 << 10).Login("MaxRecvDataSegmentLength=262144");
        byte[] ping = client.Pdu(b => new NopOutPdu(true, 0, 9, IscsiWire.NoTag, 0, 0).WriteTo(b, 0), new byte[200_000]);
        var batch = new SendBatch();
        for (int i = 0; i < 40; i++) batch.Add(ping);
        ValueTask<int> sending = client.Connection.SendAsync(batch);
        world.Loop.Run(world.Loop.DelayAsync(4_000_000_000));
        Assert.InRange(world.Loop.Buffers.LentBytes, 1, 4 << 20);
        for (int i = 0; i < 40; i++) Assert.Equal(200_000, client.Receive()!.Data.Length);
        Assert.Equal(0, world.Loop.Run(sending));
    }

    [Fact]
    public void The_connection_may_be_cut_at_every_byte()
    {
        byte[] data = Pattern(1200, 1);
        List<byte> all = [];
        var command = new ScsiCommandPdu(false, false, false, true, TaskAttribute.Simple, 0, 5, 2048, 100, 0);
        var maker = new IscsiWorld().Connect();
        all.AddRange(maker.Pdu(b => command.WriteTo(b, IscsiClient.Cdb10(0x2A, 0, 4), 0), data[..130]));
        all.AddRange(maker.Pdu(b => new DataOutPdu(true, 0, 5, IscsiWire.NoTag, 0, 0, 130).WriteTo(b, 0), data[130..201]));
        var read = new ScsiCommandPdu(false, true, true, false, TaskAttribute.Simple, 0, 6, 2048, 101, 0);
        all.AddRange(maker.Pdu(b => read.WriteTo(b, IscsiClient.Cdb10(0x28, 0, 4), 0)));
        all.AddRange(maker.Pdu(b => new NopOutPdu(false, 0, 7, IscsiWire.NoTag, 102, 0).WriteTo(b, 0), data[..33]));
        all.AddRange(maker.Pdu(b => new TextRequestPdu(false, true, false, 8, IscsiWire.NoTag, 103, 0).WriteTo(b, 0), Text("SendTargets=")));
        all.AddRange(maker.Pdu(b => new TaskManagementRequestPdu(true, TaskFunction.AbortTask, 0, 9, 5, 104, 0, 100).WriteTo(b)));
        all.AddRange(maker.Pdu(b => new LogoutRequestPdu(true, IscsiLogoutReason.CloseSession, 10, 0, 104, 0).WriteTo(b)));
        byte[] bytes = [.. all];
        for (int cut = 0; cut <= bytes.Length; cut++)
        {
            var world = new IscsiWorld((ulong)cut + 1);
            IscsiClient client = world.Connect().Login("InitialR2T=No");
            if (cut > 0) client.SendRaw(bytes[..cut]);
            if (cut % 2 == 0) world.Loop.Run(world.Loop.DelayAsync(200_000));
            client.Connection.Close();
            client.End();
            world.CheckClean();
        }
    }

    private static void Send(IscsiClient client, bool isFinal, uint tag, uint transferTag, uint dataSn, uint offset, int bytes) =>
        client.Send(b => new DataOutPdu(isFinal, 0, tag, transferTag, 0, dataSn, offset).WriteTo(b, 0), Pattern(bytes, 9));
}
