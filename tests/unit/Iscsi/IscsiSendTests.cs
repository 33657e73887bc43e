using System.Buffers;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>When answers leave, and what belongs to them until then.</summary>
public sealed class IscsiSendTests
{
    private static readonly Func<bool> s_now = () => true;

    [Fact]
    public void A_long_turn_sends_its_first_answers_before_it_ends()
    {
        (IscsiWorld world, ScriptedConnection connection, _) = Serve();
        int before = connection.Sends;
        var pdus = new byte[15 * 48];
        for (uint i = 0; i < 15; i++)
        {
            new ScsiCommandPdu(false, true, true, false, TaskAttribute.Simple, 0, i, 4096, 1 + i, 0)
                .WriteTo(pdus.AsSpan((int)i * 48), IscsiClient.Cdb10(0x28, (int)i * 8, 8), 0);
        }

        connection.Deliver(pdus);
        Assert.Equal(3, connection.Sends - before);
        world.Loop.RunUntil(s_now);
        Assert.Equal(4, connection.Sends - before);
        Assert.Equal(0, world.Loop.Buffers.LentCount);
    }

    /// <summary>The number of the last status that it has read, in each of its commands, says how much it has to read yet.</summary>
    [Theory]
    [InlineData(0x2A, 7, false)]
    [InlineData(0x2A, 8, true)]
    [InlineData(0x2A, 40, true)]
    [InlineData(0x28, 40, false)] // reads come in one piece
    public void Who_writes_and_has_many_answers_to_read_is_left_alone_for_a_moment(int opcode, int unread, bool isLeftAlone)
    {
        (IscsiWorld world, ScriptedConnection connection, uint statSn) = Serve();
        byte[] data = Pattern(4096, 1);
        for (uint i = 0; i < 60; i++)
        {
            // So many answers were sent and are unread when this one comes.
            int behind = Math.Min(unread, (int)i);
            connection.Deliver(Command((byte)opcode, i, statSn + i - (uint)behind, data));
            bool isPause = isLeftAlone && behind >= 8;
            Assert.Equal(isPause, !connection.IsReceiving);
            ulong since = world.Loop.NowNanos;
            world.Loop.RunUntil(() => connection.IsReceiving);
            Assert.True(connection.IsReceiving);
            Assert.Equal(isPause ? (ulong)behind * 2000 : 0, world.Loop.NowNanos - since);
        }

        Assert.Equal(60UL, world.Target.Sessions[1].Counters.Commands);
    }

    /// <summary>What an initiator says of what it has read is not to be trusted.</summary>
    [Theory]
    [InlineData(1_000_000_000)]
    [InlineData(-1_000_000_000)]
    [InlineData(int.MaxValue)]
    [InlineData(int.MinValue)]
    public void A_wrong_number_of_the_last_status_read_delays_nobody_for_long(int off)
    {
        (IscsiWorld world, ScriptedConnection connection, uint statSn) = Serve();
        byte[] data = Pattern(4096, 1);
        for (uint i = 0; i < 40; i++)
        {
            connection.Deliver(Command(0x2A, i, statSn + i - (uint)off, data));
            ulong since = world.Loop.NowNanos;
            world.Loop.RunUntil(() => connection.IsReceiving);
            Assert.InRange(world.Loop.NowNanos - since, 0UL, 128_000UL);
        }

        Assert.Equal(40UL, world.Target.Sessions[1].Counters.Commands);
    }

    /// <summary>Each answer that was sent lets a waiting command run, whose own answer must not be taken for sent with it:
    /// its memory would be another's while the slow connection still sends it.</summary>
    [Fact]
    public void What_runs_when_an_answer_was_sent_keeps_its_data_until_its_own_was()
    {
        const int Reads = 100;
        for (ulong seed = 1; seed <= 20; seed++)
        {
            var world = new IscsiWorld(seed, new IscsiOptions { WindowBytes = 8 * 4096 });
            byte[] disk = Pattern(Reads * 4096, (int)seed);
            disk.CopyTo(world.Scsi.Disk, 0);
            IscsiClient client = world.Connect(windowBytes: 5000).Login("MaxRecvDataSegmentLength=8192");
            var tags = new uint[Reads];
            for (int i = 0; i < Reads; i++) tags[i] = client.Command(IscsiClient.Cdb10(0x28, i * 8, 8), 4096);
            for (int i = 0; i < Reads; i++)
                Assert.True(disk.AsSpan(i * 4096, 4096).SequenceEqual(client.Finish(tags[i]).DataIn), $"read {i}, seed {seed}");
            Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
            client.End();
            world.CheckClean();
        }
    }

    private static (IscsiWorld World, ScriptedConnection Connection, uint StatSn) Serve()
    {
        var world = new IscsiWorld();
        var connection = new ScriptedConnection();
        var machine = new LoginMachine(world, world.Options, world.Loop.Random, "script");
        byte[] text = Text("InitiatorName=" + InitiatorName, "TargetName=" + TargetName);
        var bhs = new byte[48];
        new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, text.Length);
        Assert.Equal(LoginVerdict.Agreed, machine.OnPdu(bhs, text, new ArrayBufferWriter<byte>()));
        _ = world.Target.ServeAsync(new IscsiNegotiated(machine, connection, [])).AsTask();
        return (world, connection, machine.StatSn);
    }

    /// <summary>A read or write of 4 KiB, with its data.</summary>
    private static byte[] Command(byte opcode, uint index, uint expStatSn, byte[] data)
    {
        bool isWrite = opcode == 0x2A;
        var bhs = new byte[48];
        new ScsiCommandPdu(false, true, !isWrite, isWrite, TaskAttribute.Simple, 0, index, 4096, 1 + index, expStatSn)
            .WriteTo(bhs, IscsiClient.Cdb10(opcode, (int)index * 8, 8), isWrite ? data.Length : 0);
        return isWrite ? [.. bhs, .. data] : bhs;
    }
}
