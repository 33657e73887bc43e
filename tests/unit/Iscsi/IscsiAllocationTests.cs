using System.Buffers;
using System.Buffers.Binary;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>In steady state a command allocates nothing, whatever way its data travels.</summary>
public sealed class IscsiAllocationTests
{
    private const int Commands = 32;
    private static readonly Func<bool> s_now = () => true;

    [Theory]
    [InlineData("None")]
    [InlineData("CRC32C")]
    public void A_command_allocates_nothing_once_warm(string digest)
    {
#if !DEBUG
        var world = new IscsiWorld(1, new IscsiOptions { PingAfterNanos = ulong.MaxValue / 4 });
        var connection = new ScriptedConnection();
        var machine = new LoginMachine(world, world.Options, world.Loop.Random, "script");
        byte[] text = Text(
            "InitiatorName=" + InitiatorName, "TargetName=" + TargetName, "InitialR2T=No", "MaxRecvDataSegmentLength=8192",
            "HeaderDigest=" + digest, "DataDigest=" + digest);
        var bhs = new byte[48];
        new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, text.Length);
        Assert.Equal(LoginVerdict.Agreed, machine.OnPdu(bhs, text, new ArrayBufferWriter<byte>()));
        Task<string> run = world.Target.ServeAsync(new IscsiNegotiated(machine, connection, [])).AsTask();
        bool hasDigest = digest == "CRC32C";

        // A write with immediate data, a write with an R2T (the tag of the answer is counted along) and a read of 16 KiB.
        List<(byte[] Pdu, int Kind)> script = [];
        for (uint i = 0; i < Commands; i++)
        {
            script.Add((Pdu(new ScsiCommandPdu(false, true, false, true, TaskAttribute.Simple, 0, i, 4096, 0, 0), 0x2A, (int)i * 8, 8, 4096), 1));
            script.Add((Pdu(new ScsiCommandPdu(false, true, false, true, TaskAttribute.Simple, 0, 1000 + i, 8192, 0, 0), 0x2A, (int)i * 8, 16, 0), 1));
            var data = new byte[48];
            new DataOutPdu(true, 0, 1000 + i, 0, 0, 0, 0).WriteTo(data, 8192);
            script.Add(([.. data, .. hasDigest ? new byte[4] : [], .. new byte[8192], .. hasDigest ? IscsiClient.Digest(new byte[8192]) : []], 2));
            script.Add((Pdu(new ScsiCommandPdu(false, true, true, false, TaskAttribute.Simple, 0, 2000 + i, 16384, 0, 0), 0x28, (int)i * 8, 32, 0), 1));
        }

        uint cmdSn = 1, transferTag = 1, statSn = machine.StatSn;
        for (int warm = 0; warm < 200; warm++) Round();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int round = 0; round < 100; round++) Round();
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        Assert.Equal(300UL * 3 * Commands, world.Target.Sessions[1].Counters.Commands);
        Assert.Equal(0, world.Loop.Buffers.LentCount);
        Assert.False(run.IsCompleted);

        void Round()
        {
            foreach ((byte[] pdu, int kind) in script)
            {
                BinaryPrimitives.WriteUInt32BigEndian(pdu.AsSpan(28), statSn); // it reads what it is sent: nobody waits for it
                if (kind == 1) BinaryPrimitives.WriteUInt32BigEndian(pdu.AsSpan(24), cmdSn++);
                else BinaryPrimitives.WriteUInt32BigEndian(pdu.AsSpan(20), transferTag++);
                if (hasDigest) BinaryPrimitives.WriteUInt32LittleEndian(pdu.AsSpan(48), Crc32C.Compute(pdu.AsSpan(0, 48)));
                connection.Deliver(pdu);
                statSn = machine.StatSn + cmdSn - 1;
            }

            world.Loop.RunUntil(s_now);
        }

        byte[] Pdu(ScsiCommandPdu pdu, byte opcode, int block, int blocks, int dataBytes)
        {
            var head = new byte[48];
            pdu.WriteTo(head, IscsiClient.Cdb10(opcode, block, blocks), dataBytes);
            byte[] data = new byte[dataBytes];
            return [.. head, .. hasDigest ? new byte[4] : [], .. data, .. hasDigest && dataBytes > 0 ? IscsiClient.Digest(data) : []];
        }
#endif
    }
}
