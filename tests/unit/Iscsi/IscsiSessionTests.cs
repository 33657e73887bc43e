using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>Sessions in full feature phase: order, windows, pings, task management, connections, ends.</summary>
public sealed class IscsiSessionTests
{
    private static readonly byte[] TestUnitReady = [0, 0, 0, 0, 0, 0];

    [Fact]
    public void Commands_outside_the_window_and_repetitions_are_as_if_they_never_came()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        uint next = client.CmdSn;
        foreach (uint cmdSn in new[] { next - 1, next + 128, next - 100, next + 0x7FFFFFFF })
        {
            client.CmdSn = cmdSn;
            client.Command(TestUnitReady);
        }

        client.CmdSn = next;
        byte[] data = Pattern(9000, 1);
        uint tag = client.Command(IscsiClient.Cdb10(0x2A, 0, 18), 0, data[..(9000 - 9000 % 512)]);
        Assert.Equal(ScsiStatus.Good, client.Finish(tag, data).Status);
        client.CmdSn = next; // once more
        client.Command(TestUnitReady);
        client.CmdSn = next + 1;
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command(TestUnitReady)).Status);
        Assert.Equal([0x2A, 0x00], world.Scsi.Executed);
    }

    [Fact]
    public void The_window_closes_with_unanswered_commands_and_immediate_ones_have_their_own_bound()
    {
        var world = new IscsiWorld(1, new IscsiOptions { WindowCommands = 8, ImmediateCommandsMax = 2 }) { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient client = world.Connect().Login();
        for (int i = 0; i < 8; i++) client.Command(TestUnitReady);
        for (int i = 0; i < 3; i++) client.Command(TestUnitReady, isImmediate: true);
        Received refused = client.Receive()!;
        Assert.Equal(IscsiRejectReason.TooManyImmediate, RejectPdu.Read(refused.Bhs).Reason);
        Assert.Equal(client.ExpCmdSn - 1, client.MaxCmdSn); // closed
        client.Command(TestUnitReady); // ignored
        world.Scsi.Gate.Set(true);
        for (int i = 0; i < 10; i++) Assert.Equal(IscsiOpcode.ScsiResponse, client.Receive()!.Opcode);
        Assert.Equal(client.ExpCmdSn + 7, client.MaxCmdSn); // open again
        client.CmdSn = client.ExpCmdSn;
        client.Logout();
        world.CheckClean();
    }

    [Fact]
    public void Pings_are_echoed_and_a_silent_initiator_is_pinged_and_dropped()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login("MaxRecvDataSegmentLength=1024");
        byte[] data = Pattern(3001, 4);
        client.Send(b => new NopOutPdu(true, 7UL << 48, 33, IscsiWire.NoTag, client.CmdSn, 0).WriteTo(b, 0), data);
        Received echo = client.Receive()!;
        Assert.Equal((IscsiOpcode.NopIn, 33u), (echo.Opcode, NopInPdu.Read(echo.Bhs).Tag));
        Assert.Equal(data[..1024], echo.Data);
        client.Send(b => new NopOutPdu(false, 0, 34, IscsiWire.NoTag, client.CmdSn++, 0).WriteTo(b, 0));
        Assert.Equal(34u, NopInPdu.Read(client.Receive()!.Bhs).Tag);

        ulong began = world.Loop.NowNanos;
        Received ping = client.Receive(answersPings: false)!;
        NopInPdu asked = NopInPdu.Read(ping.Bhs);
        Assert.Equal((IscsiWire.NoTag, true), (asked.Tag, asked.TransferTag != IscsiWire.NoTag));
        client.Send(b => new NopOutPdu(true, 0, IscsiWire.NoTag, asked.TransferTag, client.CmdSn, 0).WriteTo(b, 0));
        Assert.NotNull(client.Receive(answersPings: false)); // the next ping
        Assert.Null(client.Receive(answersPings: false));
        Assert.Equal("a ping was not answered", client.End());
        Assert.InRange(world.Loop.NowNanos - began, 98_000_000_000UL, 111_000_000_000UL);
        world.CheckClean();
    }

    /// <summary>An initiator that lives, answers pings and works on, but never sends what one command waits for.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Data_that_was_asked_for_or_announced_and_never_comes_ends_the_session(bool isUnsolicited)
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login("ImmediateData=No", isUnsolicited ? "InitialR2T=No" : "InitialR2T=Yes");
        ulong began = world.Loop.NowNanos;
        uint tag = client.Tag++;
        client.Send(b => new ScsiCommandPdu(false, !isUnsolicited, false, true, TaskAttribute.Simple, 0, tag, 4096, client.CmdSn++, 0)
            .WriteTo(b, IscsiClient.Cdb10(0x2A, 0, 8), 0));
        if (!isUnsolicited) Assert.Equal(tag, R2TPdu.Read(client.Receive()!.Bhs).Tag);
        int others = 0;
        while (world.Loop.NowNanos - began < 80_000_000_000)
        {
            client.AnswerPing();
            Assert.Equal(ScsiStatus.Good, client.Finish(client.Command(TestUnitReady)).Status);
            others++;
        }

        Assert.True(others > 10);
        Assert.Null(client.Receive());
        Assert.Equal("data that was asked for did not come", client.End());
        Assert.InRange(world.Loop.NowNanos - began, 90_000_000_000UL, 96_000_000_000UL);
        Assert.DoesNotContain((byte)0x2A, world.Scsi.Executed);
        world.CheckClean();
    }

    [Fact]
    public void Data_that_comes_slowly_is_waited_for()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login("ImmediateData=No", "InitialR2T=Yes");
        byte[] data = Pattern(4096, 5);
        uint tag = client.Command(IscsiClient.Cdb10(0x2A, 0, 8), 0, data);
        uint transferTag = R2TPdu.Read(client.Receive()!.Bhs).TransferTag;
        for (int i = 0; i < 4; i++)
        {
            ulong since = world.Loop.NowNanos;
            while (world.Loop.NowNanos - since < 80_000_000_000) client.AnswerPing();
            int piece = i;
            client.Send(b => new DataOutPdu(piece == 3, 0, tag, transferTag, 0, (uint)piece, (uint)piece * 1024).WriteTo(b, 0), data[(i * 1024)..((i + 1) * 1024)]);
        }

        Assert.Equal(ScsiStatus.Good, ScsiResponsePdu.Read(client.Receive()!.Bhs).Status);
        Assert.Equal(data, world.Scsi.Disk[..4096]);
        Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
        client.End();
        world.CheckClean();
    }

    [Fact]
    public void Ordered_commands_wait_for_the_data_of_older_ones_and_hold_younger_ones_back()
    {
        var world = new IscsiWorld(3);
        IscsiClient client = world.Connect().Login("ImmediateData=No");
        byte[] first = Pattern(512, 1), second = Pattern(512, 2);
        uint slow = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, first);
        uint ordered = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, second, attribute: TaskAttribute.Ordered);
        uint younger = client.Command(TestUnitReady);
        uint urgent = client.Command([0x12, 0, 0, 0, 36, 0], 36, attribute: TaskAttribute.HeadOfQueue);
        R2TPdu one = R2TPdu.Read(client.Receive()!.Bhs);
        R2TPdu two = R2TPdu.Read(client.Receive()!.Bhs);
        Assert.Equal((slow, ordered), (one.Tag, two.Tag));
        Received head = client.Receive()!;
        Assert.Equal(urgent, IscsiHeader.Read(head.Bhs).InitiatorTaskTag);
        client.DataOut(ordered, two.TransferTag, second, 0, 512);
        client.DataOut(slow, one.TransferTag, first, 0, 512);
        var answered = new List<uint>();
        for (int i = 0; i < 3; i++) answered.Add(IscsiHeader.Read(client.Receive()!.Bhs).InitiatorTaskTag);
        Assert.Equal([slow, ordered, younger], answered);
        Assert.Equal(second, world.Scsi.Disk[..512]);
    }

    [Fact]
    public void What_waits_around_an_ordered_command_goes_on_when_one_of_them_is_aborted()
    {
        foreach (bool abortsOrdered in new[] { false, true })
        {
            var world = new IscsiWorld(3);
            IscsiClient client = world.Connect().Login("ImmediateData=No");
            byte[] data = Pattern(512, 1);
            uint slow = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, data);
            uint ordered = client.Command(IscsiClient.Cdb10(0x2A, 1, 1), 0, data, attribute: TaskAttribute.Ordered);
            uint younger = client.Command(TestUnitReady);
            R2TPdu one = R2TPdu.Read(client.Receive()!.Bhs);
            R2TPdu two = R2TPdu.Read(client.Receive()!.Bhs);
            if (abortsOrdered) client.DataOut(slow, one.TransferTag, data, 0, 512);
            else client.DataOut(ordered, two.TransferTag, data, 0, 512);
            uint last = abortsOrdered ? slow : ordered;
            uint aborted = abortsOrdered ? ordered : slow;
            client.Send(b => new TaskManagementRequestPdu(true, TaskFunction.AbortTask, 0, 900, aborted, client.CmdSn, 0, 0).WriteTo(b));
            var answered = new List<uint>();
            for (int i = 0; i < 3; i++) answered.Add(IscsiHeader.Read(client.Receive()!.Bhs).InitiatorTaskTag);
            Assert.Equal(new[] { last, younger, 900u }.Order(), answered.Order());
            client.Logout();
            world.CheckClean();
        }
    }

    [Fact]
    public void Task_management_reaches_what_waits_here_and_what_runs_there()
    {
        var world = new IscsiWorld(3) { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient client = world.Connect().Login("ImmediateData=No");
        uint running = client.Command(TestUnitReady);
        byte[] data = Pattern(512, 1);
        uint waiting = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, data);
        R2TPdu r2t = R2TPdu.Read(client.Receive()!.Bhs);
        Assert.Equal(TaskFunctionResponse.Complete, client.Manage(TaskFunction.AbortTask, waiting));
        client.DataOut(waiting, r2t.TransferTag, data, 0, 512); // was on its way: thrown away
        Assert.Equal(TaskFunctionResponse.Complete, client.Manage(TaskFunction.AbortTask, running));
        Assert.Equal([(TaskFunction.AbortTask, running)], world.Scsi.Managed);
        Assert.Equal(TaskFunctionResponse.NoTask, client.Manage(TaskFunction.AbortTask, 999, client.CmdSn - 5));
        Assert.Equal(TaskFunctionResponse.NoTask, client.Manage(TaskFunction.AbortTask, 999, client.CmdSn + 5));
        Assert.Equal(TaskFunctionResponse.NotSupported, client.Manage(TaskFunction.ClearAca));
        Assert.Equal((TaskFunctionResponse)4, client.Manage((TaskFunction)8));
        Assert.Equal(TaskFunctionResponse.NotSupported, client.Manage((TaskFunction)9));
        Assert.Equal(TaskFunctionResponse.NoLun, client.Manage(TaskFunction.LogicalUnitReset, lun: 9UL << 48));
        Assert.Equal(new byte[512], world.Scsi.Disk[..512]);

        world.Scsi.Gate = null;
        Assert.Equal(ScsiStatus.Good, client.Write(0, data).Status); // the session and its window are whole
        uint pending = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, Pattern(512, 5));
        Assert.Equal(IscsiOpcode.R2T, client.Receive()!.Opcode);
        foreach (TaskFunction function in new[] { TaskFunction.AbortTaskSet, TaskFunction.ClearTaskSet, TaskFunction.LogicalUnitReset, TaskFunction.TargetWarmReset })
            Assert.Equal(TaskFunctionResponse.Complete, client.Manage(function));
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command(TestUnitReady)).Status);
        Assert.Equal(data, world.Scsi.Disk[..512]);
        Assert.NotEqual(0u, pending);
        client.Logout();
        world.CheckClean();
    }

    [Fact]
    public void A_reset_drops_the_commands_of_other_sessions_and_a_cold_one_the_sessions_too()
    {
        var world = new IscsiWorld(4);
        IscsiClient one = world.Connect().Login("ImmediateData=No");
        IscsiClient two = world.Connect();
        two.Isid = 0x00023D000002;
        two.Login("ImmediateData=No");
        uint pending = two.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, new byte[512]);
        R2TPdu r2t = R2TPdu.Read(two.Receive()!.Bhs);
        Assert.Equal(TaskFunctionResponse.Complete, one.Manage(TaskFunction.LogicalUnitReset));
        two.DataOut(pending, r2t.TransferTag, Pattern(512, 1), 0, 512);
        Assert.Equal(ScsiStatus.Good, two.Finish(two.Command(TestUnitReady)).Status);
        Assert.Equal(new byte[512], world.Scsi.Disk[..512]);
        Assert.Equal(TaskFunctionResponse.Complete, one.Manage(TaskFunction.TargetColdReset));
        Assert.Null(two.Receive());
        Assert.Equal("the target was reset", two.End());
        Assert.Equal("the target was reset", one.End());
        world.CheckClean();
    }

    [Fact]
    public void Commands_of_two_connections_run_in_the_order_of_their_numbers()
    {
        var world = new IscsiWorld(6);
        IscsiClient one = world.Connect().Login("MaxConnections=4");
        IscsiClient two = world.Connect();
        (two.Tsih, two.Cid, two.CmdSn, two.Tag) = (one.Tsih, 1, one.CmdSn, 1000); // tags are unique in the session
        Assert.Equal(IscsiLoginStatus.Success, two.TryLogin("MaxRecvDataSegmentLength=512").Status);
        Assert.Equal(2, world.Target.Sessions[one.Tsih].ConnectionCount);
        Assert.Single(world.Scsi.Nexuses);

        uint first = one.CmdSn;
        two.CmdSn = first + 1;
        uint late = two.Command(IscsiClient.Cdb10(0x28, 0, 1), 512);
        uint held = two.Tag++;
        two.Send(b => new TaskManagementRequestPdu(true, TaskFunction.AbortTaskSet, 0, held, 0, first + 2, 0, 0).WriteTo(b));
        world.Loop.Run(world.Loop.DelayAsync(100_000_000));
        Assert.Empty(world.Scsi.Executed);
        Assert.Empty(world.Scsi.Managed);
        one.Command(TestUnitReady);
        Assert.Equal(IscsiOpcode.ScsiResponse, one.Receive()!.Opcode);
        Assert.Equal(ScsiStatus.Good, two.Finish(late).Status);
        one.AnswerPing();
        Assert.Equal(held, TaskManagementResponsePdu.Read(two.Receive()!.Bhs).Tag);
        Assert.Equal([0x00, 0x28], world.Scsi.Executed);

        // The number of a command that never came is given up by aborting it.
        one.CmdSn = first + 3;
        uint behind = one.Command(TestUnitReady);
        one.Send(b => new TaskManagementRequestPdu(true, TaskFunction.AbortTask, 0, 800, 77, one.CmdSn, 0, first + 2).WriteTo(b));
        Received[] answers = [one.Receive()!, one.Receive()!];
        Received outcome = answers.Single(a => a.Opcode == IscsiOpcode.TaskManagementResponse);
        Assert.Equal(TaskFunctionResponse.Complete, TaskManagementResponsePdu.Read(outcome.Bhs).Response);
        Assert.Equal(behind, ScsiResponsePdu.Read(answers.Single(a => a != outcome).Bhs).Tag);

        // One connection leaves, the session goes on; then the other one closes it.
        two.CmdSn = one.CmdSn;
        Assert.Equal(IscsiLogoutResponse.CidNotFound, one.Logout(IscsiLogoutReason.CloseConnection, 9));
        Assert.Equal(IscsiLogoutResponse.RecoveryNotSupported, one.Logout(IscsiLogoutReason.Recovery, 1));
        Assert.Equal(IscsiLogoutResponse.Success, one.Logout(IscsiLogoutReason.CloseConnection, 1));
        Assert.Null(two.Receive());
        Assert.Equal(ScsiStatus.Good, one.Finish(one.Command(TestUnitReady)).Status);
        Assert.Equal(IscsiLogoutResponse.Success, one.Logout(IscsiLogoutReason.CloseConnection, 0));
        world.CheckClean();
    }

    [Fact]
    public void A_connection_joins_only_its_own_session_and_within_its_bound()
    {
        var world = new IscsiWorld();
        IscsiClient one = world.Connect().Login("MaxConnections=2");
        Assert.Equal(IscsiLoginStatus.SessionDoesNotExist, Join(one.Tsih + 1, 1, one.Isid).Status);
        Assert.Equal(IscsiLoginStatus.SessionDoesNotExist, Join(one.Tsih, 1, one.Isid + 1).Status);
        Assert.Equal(IscsiLoginStatus.Success, Join(one.Tsih, 1, one.Isid).Status);
        Assert.Equal(IscsiLoginStatus.TooManyConnections, Join(one.Tsih, 2, one.Isid).Status);
        Assert.Equal(IscsiLoginStatus.Success, Join(one.Tsih, 1, one.Isid).Status); // in place of the one with its id
        Assert.Equal(2, world.Target.Sessions[one.Tsih].ConnectionCount);
        Assert.Equal(ScsiStatus.Good, one.Finish(one.Command(TestUnitReady)).Status);

        LoginResponsePdu Join(int tsih, ushort cid, ulong isid)
        {
            IscsiClient client = world.Connect();
            (client.Tsih, client.Cid, client.Isid, client.CmdSn) = ((ushort)tsih, cid, isid, one.CmdSn);
            return client.TryLogin();
        }
    }

    [Fact]
    public void Reinstatement_waits_for_the_writes_of_the_session_that_it_replaces()
    {
        var world = new IscsiWorld(2) { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient old = world.Connect().Login();
        old.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, Pattern(512, 1));
        world.Loop.Run(world.Loop.DelayAsync(50_000_000));
        Assert.Single(world.Scsi.Executed);
        IscsiClient client = world.Connect();
        world.Loop.Schedule(2_000_000_000, () => world.Scsi.Gate.Set(true));
        ulong began = world.Loop.NowNanos;
        client.Login();
        Assert.InRange(world.Loop.NowNanos - began, 1_900_000_000UL, 3_000_000_000UL);
        Assert.Equal("the session was reinstated", old.End());
        Assert.NotEqual(old.Tsih, client.Tsih);
        Assert.Single(world.Target.Sessions);
        Assert.Single(world.Scsi.Nexuses);
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command(TestUnitReady)).Status);
        client.Logout();
        world.CheckClean();
    }

    [Fact]
    public void Sessions_are_bounded()
    {
        var world = new IscsiWorld(1, new IscsiOptions { SessionsMax = 1 });
        world.Connect().Login();
        IscsiClient two = world.Connect();
        two.Isid++;
        Assert.Equal(IscsiLoginStatus.OutOfResources, two.TryLogin().Status);
    }

    [Fact]
    public void Discovery_lists_targets_in_as_many_pieces_as_it_takes_and_nothing_else()
    {
        var world = new IscsiWorld { TargetCount = 400 };
        IscsiClient client = world.Connect().Login("SessionType=Discovery", "MaxRecvDataSegmentLength=512");
        string all = client.TextExchange(Text("SendTargets=All"));
        Assert.Equal(400, all.Split('\0').Count(l => l.StartsWith("TargetName=", StringComparison.Ordinal)));
        Assert.Equal($"TargetName={TargetName}\0TargetAddress=127.0.0.1:3260,1\0", client.TextExchange(Text("SendTargets=" + TargetName)));
        Assert.Equal("", client.TextExchange(Text("SendTargets=iqn.2026-11.org.example:nobody")));
        client.Command(TestUnitReady);
        Assert.Equal(IscsiRejectReason.ProtocolError, RejectPdu.Read(client.Receive()!.Bhs).Reason);
        Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
        Assert.Equal("the initiator left", client.End());
    }

    [Fact]
    public void Text_in_full_feature_phase()
    {
        var world = new IscsiWorld { TargetCount = 3 };
        IscsiClient client = world.Connect().Login();
        Assert.Equal($"TargetName={TargetName}\0TargetAddress=127.0.0.1:3260,1\0", client.TextExchange(Text("SendTargets=")));
        Assert.Equal("SendTargets=Reject\0", client.TextExchange(Text("SendTargets=All")));
        Assert.Equal("Unknown=NotUnderstood\0MaxBurstLength=Reject\0", client.TextExchange(Text("Unknown=1", "MaxBurstLength=512", "MaxRecvDataSegmentLength=512")));
        Assert.Equal(1024, client.Read(0, 2).DataIn.Length); // in pieces of 512: the new length holds
        Assert.Equal("Reject ProtocolError", client.TextExchange("NoEnd=1"u8.ToArray()));
        Assert.Equal("Reject ProtocolError", client.TextExchange(Text("A=1", "A=1")));

        // Continued for ever.
        uint transferTag = IscsiWire.NoTag;
        for (int i = 0; ; i++)
        {
            client.Send(b => new TextRequestPdu(true, false, true, 600, transferTag, client.CmdSn, 0).WriteTo(b, 0), Text("A=1"));
            Received answer = client.Receive()!;
            if (answer.Opcode == IscsiOpcode.Reject)
            {
                Assert.Equal((16, IscsiRejectReason.LongOperation), (i, RejectPdu.Read(answer.Bhs).Reason));
                break;
            }

            TextResponsePdu response = TextResponsePdu.Read(answer.Bhs);
            Assert.Equal((false, false, 0), (response.IsFinal, response.IsContinued, answer.Data.Length));
            transferTag = response.TransferTag;
        }

        client.Send(b => new TextRequestPdu(true, true, false, 602, IscsiWire.NoTag, client.CmdSn, 0).WriteTo(b, 0), new byte[(64 << 10) + 1]);
        Assert.Equal(IscsiRejectReason.LongOperation, RejectPdu.Read(client.Receive()!.Bhs).Reason);
        client.Send(b => new TextRequestPdu(true, true, false, 601, 12345, client.CmdSn, 0).WriteTo(b, 0), Text("A=1"));
        Assert.Equal(IscsiRejectReason.ProtocolError, RejectPdu.Read(client.Receive()!.Bhs).Reason);
    }

    [Fact]
    public void A_logout_lets_what_is_in_flight_finish_and_answer()
    {
        var world = new IscsiWorld(8) { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient client = world.Connect().Login();
        client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, Pattern(512, 1));
        client.Send(b => new LogoutRequestPdu(false, IscsiLogoutReason.CloseSession, 900, 0, client.CmdSn++, 0).WriteTo(b));
        world.Loop.Schedule(1_000_000_000, () => world.Scsi.Gate.Set(true));
        Assert.Equal(IscsiOpcode.ScsiResponse, client.Receive()!.Opcode);
        Received answer = client.Receive()!;
        Assert.Equal((IscsiLogoutResponse.Success, 900u), (LogoutResponsePdu.Read(answer.Bhs).Response, LogoutResponsePdu.Read(answer.Bhs).Tag));
        Assert.Null(client.Receive());
        Assert.Equal(Pattern(512, 1), world.Scsi.Disk[..512]);
        world.CheckClean();
    }

    [Fact]
    public void A_stop_finishes_what_runs_takes_nothing_new_and_says_farewell()
    {
        var world = new IscsiWorld(8) { Scsi = { Gate = new LoopEvent<bool>() } };
        IscsiClient client = world.Connect().Login();
        client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, Pattern(512, 1));
        world.Loop.Run(world.Loop.DelayAsync(50_000_000));
        world.Target.RequestStop();
        client.Command(IscsiClient.Cdb10(0x2A, 1, 1), 0, Pattern(512, 2)); // will be sent again elsewhere or later
        world.Loop.Schedule(100_000_000, () => world.Scsi.Gate.Set(true));
        Assert.Equal(IscsiOpcode.ScsiResponse, client.Receive()!.Opcode);
        Received farewell = client.Receive()!;
        Assert.Equal((IscsiOpcode.AsyncMessage, IscsiAsyncEvent.SessionDropped), (farewell.Opcode, AsyncMessagePdu.Read(farewell.Bhs).Event));
        Assert.Null(client.Receive());
        Assert.Equal("the server is shutting down", client.End());
        Assert.Equal(new byte[512], world.Scsi.Disk.AsSpan(512, 512).ToArray());
        world.CheckClean();
    }

    [Theory]
    [InlineData("HeaderDigest=None")]
    [InlineData("HeaderDigest=CRC32C", "DataDigest=CRC32C")]
    public void An_event_carries_its_lun_and_sense_data_to_one_connection(params string[] keys)
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login([.. keys, "MaxConnections=2"]);
        world.Scsi.Nexuses[0].OnEvent!(0x0007_0000_0000_0000, 0x2A09);
        Received told = client.Receive()!;
        AsyncMessagePdu message = AsyncMessagePdu.Read(told.Bhs);
        Assert.Equal((IscsiOpcode.AsyncMessage, IscsiAsyncEvent.ScsiEvent, 0x0007_0000_0000_0000UL), (told.Opcode, message.Event, message.Lun));
        Assert.Equal("0012" + "70000600000000" + "0A00000000" + "2A09" + "00000000", Convert.ToHexString(told.Data));
        Assert.Equal(ScsiStatus.Good, client.Write(0, Pattern(512, 1)).Status); // its StatSN was counted
        client.Logout();
        Assert.Equal("the initiator left", client.End());
        world.CheckClean();
    }

    [Fact]
    public void Events_wait_for_nobody_who_does_not_read()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect(windowBytes: 4096).Login();
        Action<ulong, ushort> tell = world.Scsi.Nexuses[0].OnEvent!;
        for (int i = 0; i < 100; i++)
        {
            for (int j = 0; j < 100; j++) tell(0, 0x3F0E);
            world.Loop.Run(world.Loop.DelayAsync(1_000_000));
        }

        int events = 0;
        client.Command(IscsiClient.Cdb10(0x28, 0, 1), 512);
        while (client.Receive()!.Opcode == IscsiOpcode.AsyncMessage) events++;
        Assert.InRange(events, 100, 1500);
    }

    [Fact]
    public void Who_is_asked_to_leave_is_served_until_it_logs_out()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        world.Target.AskToLeave(world.Target.Sessions.Keys.Single(), "it moved");
        world.Target.AskToLeave(world.Target.Sessions.Keys.Single(), "it moved"); // asked once
        AsyncMessagePdu asked = AsyncMessagePdu.Read(client.Receive()!.Bhs);
        Assert.Equal((IscsiAsyncEvent.LogoutRequest, 10), (asked.Event, asked.Parameter3));
        world.Loop.Run(world.Loop.DelayAsync(9_000_000_000));
        Assert.Equal(ScsiStatus.Good, client.Write(0, Pattern(512, 1)).Status);
        Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
        Assert.Equal("the initiator left", client.End());
        world.CheckClean();
    }

    [Fact]
    public void Who_was_asked_to_leave_and_stays_is_ended()
    {
        var world = new IscsiWorld();
        IscsiClient client = world.Connect().Login();
        world.Target.AskToLeave(world.Target.Sessions.Keys.Single(), "it moved");
        ulong since = world.Loop.NowNanos;
        Assert.Equal(IscsiOpcode.AsyncMessage, client.Receive()!.Opcode);
        Assert.Null(client.Receive());
        Assert.InRange(world.Loop.NowNanos - since, 10_000_000_000UL, 11_000_000_000UL);
        Assert.Equal("it moved", client.End());
        world.CheckClean();
    }

    [Fact]
    public void A_bug_of_the_target_ends_the_session_and_is_told()
    {
        var world = new IscsiWorld { Scsi = { IsBroken = true } };
        IscsiClient client = world.Connect().Login();
        client.Command(TestUnitReady);
        Assert.Null(client.Receive());
        Assert.Throws<InvalidOperationException>(client.End);
        world.CheckClean();
    }
}
