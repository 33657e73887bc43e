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
        var world = new IscsiWorld();
        var connection = new ScriptedConnection();
        var machine = new LoginMachine(world, world.Options, world.Loop.Random, "script");
        byte[] text = Text("InitiatorName=" + InitiatorName, "TargetName=" + TargetName);
        var bhs = new byte[48];
        new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, 1, 0, 1, 0, 1, 0).WriteTo(bhs, text.Length);
        Assert.Equal(LoginVerdict.Agreed, machine.OnPdu(bhs, text, new ArrayBufferWriter<byte>()));
        _ = world.Target.ServeAsync(new IscsiNegotiated(machine, connection, [])).AsTask();
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
}
