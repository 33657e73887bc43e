using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>Data in both directions, however it was agreed to travel.</summary>
public sealed class IscsiTransferTests
{
    public static TheoryData<string, string, string, string> Agreements
    {
        get
        {
            var data = new TheoryData<string, string, string, string>();
            foreach (string r2t in new[] { "Yes", "No" })
            {
                foreach (string immediate in new[] { "Yes", "No" })
                {
                    foreach (string outstanding in new[] { "1", "4" })
                    {
                        foreach (string digest in new[] { "CRC32C", "None" }) data.Add(r2t, immediate, outstanding, digest);
                    }
                }
            }

            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Agreements))]
    public void What_was_written_is_read_back_however_it_travels(string r2t, string immediate, string outstanding, string digest)
    {
        for (ulong seed = 1; seed <= 3; seed++)
        {
            var world = new IscsiWorld(seed, new IscsiOptions { MaxRecvDataSegmentLength = 12_288 });
            IscsiClient client = world.Connect().Login(
                "InitialR2T=" + r2t, "ImmediateData=" + immediate, "MaxOutstandingR2T=" + outstanding, "HeaderDigest=" + digest,
                "DataDigest=" + digest, "MaxRecvDataSegmentLength=5000", "MaxBurstLength=32768", "FirstBurstLength=20000");
            Assert.Equal((r2t, immediate, outstanding), (client.Agreed["InitialR2T"], client.Agreed["ImmediateData"], client.Agreed["MaxOutstandingR2T"]));
            int block = 3;
            foreach (int blocks in new[] { 1, 8, 39, 40, 64, 500 })
            {
                byte[] data = Pattern(blocks * 512, blocks);
                Assert.Equal(ScsiStatus.Good, client.Write(block, data).Status);
                ScsiAnswer read = client.Read(block, blocks);
                Assert.Equal((ScsiStatus.Good, default), (read.Status, read.Residual));
                Assert.Equal(data, read.DataIn);
                block += blocks;
            }

            client.PieceMax = 1001; // odd pieces are padded
            byte[] odd = Pattern(30 * 512, 77);
            Assert.Equal(ScsiStatus.Good, client.Write(1000, odd).Status);
            Assert.Equal(odd, client.Read(1000, 30).DataIn);
            Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
            Assert.Equal("the initiator left", client.End());
            world.CheckClean();
        }
    }

    [Fact]
    public void Many_writes_larger_than_the_window_share_it()
    {
        var world = new IscsiWorld(5, new IscsiOptions { WindowBytes = 300_000 });
        IscsiClient client = world.Connect().Login("InitialR2T=No", "MaxOutstandingR2T=8", "FirstBurstLength=4096", "MaxBurstLength=16384");
        var written = new Dictionary<uint, (int Block, byte[] Data)>();
        for (int i = 0; i < 24; i++)
        {
            byte[] data = Pattern(200 * 512, i);
            written.Add(client.Command(IscsiClient.Cdb10(0x2A, i * 200, 200), 0, data), (i * 200, data));
        }

        var open = new HashSet<uint>(written.Keys);
        while (open.Count > 0)
        {
            Received pdu = client.Receive()!;
            uint tag = IscsiHeader.Read(pdu.Bhs).InitiatorTaskTag;
            if (pdu.Opcode == IscsiOpcode.R2T)
            {
                R2TPdu r2t = R2TPdu.Read(pdu.Bhs);
                client.DataOut(tag, r2t.TransferTag, written[tag].Data, (int)r2t.Offset, (int)(r2t.Offset + r2t.LengthBytes));
            }
            else
            {
                Assert.Equal(ScsiStatus.Good, ScsiResponsePdu.Read(pdu.Bhs).Status);
                open.Remove(tag);
            }
        }

        foreach ((int block, byte[] data) in written.Values)
            Assert.Equal(data, world.Scsi.Disk.AsSpan(block * 512, data.Length).ToArray());
        client.Logout();
        world.CheckClean();
    }

    [Theory]
    [InlineData(2, 2, 2, 0, 0)] // as expected
    [InlineData(2, 1, 1, 4, 512)] // the CDB wants more than was offered
    [InlineData(1, 3, 1, 2, 1024)] // the CDB wants less
    [InlineData(1, 0, 0, 4, 512)] // nothing was offered
    public void Residuals_tell_both_directions(int blocks, int offered, int moved, int flags, uint residual)
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        byte[] data = Pattern(offered * 512, 1);
        ScsiAnswer write = client.Write(10, data, blocks);
        Assert.Equal((ScsiStatus.Good, flags, residual), (write.Status, write.Residual.Flags, write.Residual.Bytes));
        Assert.Equal(moved * 512, world.Scsi.OutLengths[^1]);
        Assert.Equal(new byte[512], world.Scsi.Disk.AsSpan((10 + moved) * 512, 512).ToArray());

        ScsiAnswer read = client.Read(10, blocks, offered * 512);
        Assert.Equal((ScsiStatus.Good, flags, residual), (read.Status, read.Residual.Flags, read.Residual.Bytes));
        Assert.Equal(data[..(moved * 512)], read.DataIn);
    }

    [Fact]
    public void Sense_and_short_data_reach_the_initiator()
    {
        IscsiClient client = new IscsiWorld().Connect().Login();
        ScsiAnswer beyond = client.Read(1 << 30, 1);
        Assert.Equal((ScsiStatus.CheckCondition, 2, 512u), (beyond.Status, beyond.Residual.Flags, beyond.Residual.Bytes));
        Assert.Equal((5, 0x21), (beyond.Sense[2] & 15, beyond.Sense[12]));
        ScsiAnswer unknown = client.Finish(client.Command([0xFF, 0, 0, 0, 0, 0], 0, new byte[3000]), new byte[3000]);
        Assert.Equal((ScsiStatus.CheckCondition, 5, 0x20), (unknown.Status, unknown.Sense[2] & 15, unknown.Sense[12]));
        ScsiAnswer writeBeyond = client.Write(1 << 30, new byte[200], 1);
        Assert.Equal((ScsiStatus.CheckCondition, 4, 312u), (writeBeyond.Status, writeBeyond.Residual.Flags, writeBeyond.Residual.Bytes));
        ScsiAnswer inquiry = client.Finish(client.Command([0x12, 0, 0, 0, 255, 0], 255));
        Assert.Equal((ScsiStatus.Good, 36, 2, 219u), (inquiry.Status, inquiry.DataIn.Length, inquiry.Residual.Flags, inquiry.Residual.Bytes));
    }

    [Fact]
    public void The_initiator_may_ask_for_data_in_pieces_of_one_burst()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login("MaxRecvDataSegmentLength=4096", "MaxBurstLength=10000");
        Pattern(64 * 512, 9).CopyTo(world.Scsi.Disk, 0);
        uint tag = client.Command(IscsiClient.Cdb10(0x28, 0, 64), 64 * 512);
        int burst = 0;
        int total = 0;
        while (true)
        {
            Received pdu = client.Receive()!;
            DataInPdu piece = DataInPdu.Read(pdu.Bhs);
            Assert.Equal(tag, piece.Tag);
            Assert.InRange(pdu.Data.Length, 1, 4096);
            burst += pdu.Data.Length;
            total += pdu.Data.Length;
            Assert.InRange(burst, 1, 10000);
            Assert.Equal(burst == 10000 || total == 64 * 512, piece.IsFinal);
            if (piece.IsFinal) burst = 0;
            if (piece.HasStatus) break;
        }

        Assert.Equal(64 * 512, total);
    }

    [Fact]
    public void A_long_CDB_arrives_whole_and_a_bidirectional_one_is_refused()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        byte[] ahs = [0, 17, 1, 0, .. Enumerable.Range(1, 16).Select(i => (byte)i)];
        var pdu = new ScsiCommandPdu(false, true, false, false, TaskAttribute.Simple, 0, 50, 0, client.CmdSn++, 0);
        client.SendRaw(client.Pdu(b => pdu.WriteTo(b, [0x7F], 0), null, ahs));
        ScsiAnswer answer = client.Finish(50);
        Assert.Equal((ScsiStatus.CheckCondition, 0x20), (answer.Status, answer.Sense[12]));

        foreach (byte[] wrong in new byte[][] { [0, 5, 2, 0, 0, 0, 2, 0], [0, 1, 1, 0], [0, 200, 1, 0], [255, 255, 1, 0], [0, 5, 9, 0, 0, 0, 0, 0] })
        {
            pdu = pdu with { Tag = pdu.Tag + 1, CmdSn = client.CmdSn++ };
            client.SendRaw(client.Pdu(b => pdu.WriteTo(b, [0x7F], 0), null, wrong));
            Received refused = client.Receive()!;
            Assert.Equal((IscsiOpcode.Reject, IscsiRejectReason.InvalidField), (refused.Opcode, RejectPdu.Read(refused.Bhs).Reason));
        }

        pdu = pdu with { Tag = 90, CmdSn = client.CmdSn++, IsRead = true, IsWrite = true };
        client.Send(b => pdu.WriteTo(b, [0x7F], 0));
        Assert.Equal(IscsiRejectReason.InvalidField, RejectPdu.Read(client.Receive()!.Bhs).Reason);
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command([0, 0, 0, 0, 0, 0])).Status);
    }
}
