using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Unit.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>What must not overtake what: on several connections of a session, and around the last answer of a login. All
/// of it was found by the session simulation.</summary>
public sealed class IscsiOrderTests
{
    private static readonly byte[] TestUnitReady = [0, 0, 0, 0, 0, 0];

    [Fact]
    public void The_answer_to_a_reset_waits_until_other_connections_have_taken_theirs()
    {
        var world = new IscsiWorld(6);
        (IscsiClient one, IscsiClient two) = Pair(world);
        uint tag = one.Command(TestUnitReady); // its answer is on the way, and one does not read
        world.Loop.Run(world.Loop.DelayAsync(50_000_000));
        two.CmdSn = one.CmdSn;
        two.Send(b => new TaskManagementRequestPdu(true, TaskFunction.LogicalUnitReset, 0, 900, 0, two.CmdSn, 0, 0).WriteTo(b));
        Task<int> early = two.Connection.ReceiveAsync(new byte[48]).AsTask();
        world.Loop.Run(world.Loop.DelayAsync(2_000_000_000));
        Assert.False(early.IsCompleted);
        Assert.Equal(ScsiStatus.Good, one.Finish(tag).Status);
        one.AnswerPing();
        Assert.True(world.Loop.RunUntil(() => early.IsCompleted));
    }

    [Fact]
    public void A_connection_that_never_takes_its_answers_ends_the_session_and_not_the_wait()
    {
        var world = new IscsiWorld(6);
        (IscsiClient one, IscsiClient two) = Pair(world);
        two.Send(b => new TaskManagementRequestPdu(true, TaskFunction.LogicalUnitReset, 0, 900, 0, two.CmdSn, 0, 0).WriteTo(b));
        Assert.Null(two.Receive());
        Assert.Equal("a ping was not answered", one.End());
        world.CheckClean();
    }

    [Theory]
    [InlineData(TaskFunction.AbortTaskSet)]
    [InlineData(TaskFunction.ClearTaskSet)]
    [InlineData(TaskFunction.LogicalUnitReset)]
    public void A_command_numbered_after_task_management_is_not_meant_by_it(TaskFunction function)
    {
        var world = new IscsiWorld(7) { Scsi = { Gate = new LoopEvent<bool>() } };
        (IscsiClient one, IscsiClient two) = Pair(world, "ImmediateData=No");
        uint before = one.Command(TestUnitReady);
        uint number = one.CmdSn;
        uint after = one.Command(TestUnitReady); // overtakes the request on the other connection
        byte[] data = Pattern(512, 3);
        uint waiting = one.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, data);
        world.Loop.Run(world.Loop.DelayAsync(50_000_000));
        two.Send(b => new TaskManagementRequestPdu(true, function, 0, 900, 0, number, 0, 0).WriteTo(b));
        world.Loop.Run(world.Loop.DelayAsync(50_000_000));

        R2TPdu r2t = R2TPdu.Read(one.Receive()!.Bhs);
        Assert.Equal(waiting, r2t.Tag);
        one.DataOut(waiting, r2t.TransferTag, data, 0, 512);
        uint[] answered = [Answer(), Answer()];
        Assert.Equal([after, waiting], answered.Order());
        Assert.DoesNotContain(before, answered);
        Assert.Equal(data, world.Scsi.Disk[..512]);

        uint Answer()
        {
            while (true)
            {
                Received pdu = one.Receive()!;
                if (pdu.Opcode == IscsiOpcode.ScsiResponse) return ScsiResponsePdu.Read(pdu.Bhs).Tag;
            }
        }
    }

    [Fact]
    public void A_logical_unit_spares_what_the_transport_marks()
    {
        var world = new ScsiWorld(isSlow: true);
        Reply meant = world.Begin(world.A, ScsiWorld.Cdb10(0x28, 0, 8));
        Reply spared = world.Begin(world.A, ScsiWorld.Cdb10(0x28, 0, 8));
        spared.Command.IsSpared = true;
        ValueTask<TaskFunctionResponse> managed = world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0);
        spared.Command.IsSpared = false;
        Assert.Equal(TaskFunctionResponse.Complete, world.Loop.Run(managed));
        Assert.True(world.Loop.RunUntil(() => meant.IsDone && spared.IsDone));
        Assert.False(meant.IsAnswered);
        Assert.True(spared.IsAnswered);
    }

    [Fact]
    public void A_stop_while_the_login_is_being_answered_waits_for_that_send()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect(windowBytes: 16); // the answer takes many turns
        client.Send(
            b => new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, client.Isid, 0, 7, 0, 100, 0).WriteTo(b, 0),
            Text("InitiatorName=" + InitiatorName, "TargetName=" + TargetName));
        Assert.True(world.Loop.RunUntil(() => world.Target.Sessions.Count == 1));
        world.Target.RequestStop();
        Assert.Equal(IscsiOpcode.LoginResponse, client.Receive()!.Opcode);
        Assert.Equal(IscsiOpcode.AsyncMessage, client.Receive()!.Opcode);
        Assert.Null(client.Receive());
        Assert.Equal("the server is shutting down", client.End());
        world.CheckClean();
    }

    [Fact]
    public void Who_never_takes_the_answer_to_a_login_holds_no_session()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect(windowBytes: 16);
        client.Send(
            b => new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, client.Isid, 0, 7, 0, 100, 0).WriteTo(b, 0),
            Text("InitiatorName=" + InitiatorName, "TargetName=" + TargetName));
        Assert.True(world.Loop.RunUntil(() => world.Target.Sessions.Count == 1));
        Assert.Equal("the initiator did not take the login response", client.End());
        Assert.InRange(world.Loop.NowNanos, 10_000_000_000UL, 13_000_000_000UL);
        world.CheckClean();
    }

    [Fact]
    public void Who_never_takes_a_refusal_is_closed()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect(windowBytes: 16);
        client.Send(
            b => new LoginRequestPdu(true, false, IscsiStage.Operational, IscsiStage.FullFeature, 0, client.Isid, 77, 7, 0, 100, 0).WriteTo(b, 0),
            Text("InitiatorName=" + InitiatorName, "TargetName=" + TargetName)); // no such session
        Assert.Equal("login refused: SessionDoesNotExist", client.End());
        world.CheckClean();
    }

    [Theory]
    [InlineData(IscsiLogoutReason.CloseSession)]
    [InlineData(IscsiLogoutReason.CloseConnection)]
    public void A_logout_does_not_wait_for_commands_that_wait_for_its_own(IscsiLogoutReason reason)
    {
        var world = new IscsiWorld(9, new IscsiOptions { WindowBytes = 4096 });
        (IscsiClient one, IscsiClient two) = Pair(world, "ImmediateData=No");
        byte[] data = Pattern(4096, 1);
        uint holder = one.Command(IscsiClient.Cdb10(0x2A, 0, 8), 0, data);
        R2TPdu r2t = R2TPdu.Read(one.Receive()!.Bhs); // it has the window, its data does not come
        (two.CmdSn, two.ImmediateData) = (one.CmdSn, false);
        two.Command(IscsiClient.Cdb10(0x2A, 8, 8), 0, data); // waits for the window
        world.Loop.Run(world.Loop.DelayAsync(50_000_000));
        one.CmdSn = two.CmdSn;
        Assert.Equal(IscsiLogoutResponse.Success, one.Logout(reason, two.Cid));
        Assert.Null(two.Receive());
        if (reason == IscsiLogoutReason.CloseConnection)
        {
            one.DataOut(holder, r2t.TransferTag, data, 0, 4096);
            Assert.Equal(ScsiStatus.Good, one.Finish(holder, data, 1).Status);
            Assert.Equal(IscsiLogoutResponse.Success, one.Logout());
        }

        world.CheckClean();
    }

    [Fact]
    public void A_peer_that_has_not_logged_in_costs_at_most_16_KiB()
    {
        const int peers = 64;
        var world = new IscsiWorld();
        new IscsiLogin(world.Loop, new ScriptedConnection(), world, world.Options).RunAsync().AsTask(); // types are made once
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < peers; i++) _ = new IscsiLogin(world.Loop, new ScriptedConnection(), world, world.Options).RunAsync();
        Assert.InRange((GC.GetAllocatedBytesForCurrentThread() - before) / peers, 1, 16 << 10);
        Assert.Equal(0, world.Loop.Buffers.LentBytes);
    }

    private static (IscsiClient One, IscsiClient Two) Pair(IscsiWorld world, params string[] keys)
    {
        IscsiClient one = world.Connect().Login(["MaxConnections=4", .. keys]);
        IscsiClient two = world.Connect();
        (two.Tsih, two.Cid, two.CmdSn, two.Tag) = (one.Tsih, 1, one.CmdSn, 1000); // tags are unique in the session
        Assert.Equal(IscsiLoginStatus.Success, two.TryLogin().Status);
        return (one, two);
    }
}
