using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>LUNs, unit attentions, sense formats, task sets and task management.</summary>
public class FrameTests
{
    private const string Ready = "000000000000";

    [Fact]
    public void Sense_data_has_these_bytes()
    {
        var target = new byte[252];
        Assert.Equal(18, Sense.InCdb(2, 7).WriteTo(target, false));
        Assert.Equal("70000500000000" + "0A00000000" + "2400" + "00" + "CF0002", Convert.ToHexString(target.AsSpan(0, 18)));
        Assert.Equal(16, Sense.InCdb(2).WriteTo(target, true));
        Assert.Equal("7205240000000008" + "0206" + "0000" + "C00002" + "00", Convert.ToHexString(target.AsSpan(0, 16)));
        Assert.Equal(18, Sense.Miscompare(258).WriteTo(target, false));
        Assert.Equal("F0000E000001020A000000001D0000000000", Convert.ToHexString(target.AsSpan(0, 18)));
        Assert.Equal(20, Sense.Miscompare(258).WriteTo(target, true));
        Assert.Equal("720E1D000000000C" + "000A8000" + "0000000000000102", Convert.ToHexString(target.AsSpan(0, 20)));
        Assert.Equal(8, Sense.NoLogicalUnit.WriteTo(target, true));
        Assert.Equal("7205250000000000", Convert.ToHexString(target.AsSpan(0, 8)));
    }

    [Fact]
    public void Luns_are_reported_in_both_addressings()
    {
        var world = new ScsiWorld();
        world.Target.SetLun(5, new LogicalUnit(world.Loop, world.Device, new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        world.Target.SetLun(300, new LogicalUnit(world.Loop, world.Device, new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        string luns = "0000000000000000" + "0005000000000000" + "412C000000000000";
        Assert.Equal("0000001800000000" + luns, world.Send(world.A, "A00000000000000001000000").Text);
        Assert.Equal("0000000800000000" + "C101000000000000", world.Send(world.A, "A00001000000000001000000").Text);
        Assert.Equal("0000002000000000" + luns + "C101000000000000", world.Send(world.A, "A00002000000000001000000").Text);
        Assert.Equal("0000001800000000" + "0000000000000000", world.Send(world.A, "A00000000000000000100000").Text);
        Assert.Equal("05/24/00", world.Send(world.A, "A00003000000000001000000").Sense);
        Assert.Equal("05/24/00", world.Send(world.A, "A000000000000000000F0000").Sense);
        Assert.Equal(ScsiStatus.Good, world.Send(world.A, "12000000FF00", lun: 0x412C_0000_0000_0000).Status);
        Assert.Equal(0, world.Send(world.A, "12000000FF00", lun: 0x412C_0000_0000_0000).Data[0]);
        Assert.Equal(0x1E, world.Send(world.A, "12000000FF00", lun: 0xC101_0000_0000_0000).Data[0]);
    }

    [Theory]
    [InlineData(0x0001_0000_0000_0000UL)] // not there
    [InlineData(0x0000_0001_0000_0000UL)] // second level
    [InlineData(0x0100_0000_0000_0000UL)] // bus 1
    [InlineData(0xC102_0000_0000_0000UL)] // another well-known one
    [InlineData(0x8000_0000_0000_0000UL)] // logical unit addressing
    public void A_missing_lun_answers_inquiry_and_request_sense_only(ulong lun)
    {
        var world = new ScsiWorld();
        Reply inquiry = world.Send(world.A, "12000000FF00", lun: lun);
        Assert.Equal(ScsiStatus.Good, inquiry.Status);
        Assert.Equal("7F000612", inquiry.Text[..8]);
        Assert.Equal("70000500000000" + "0A00000000" + "2500" + "00000000", world.Send(world.A, "030000001200", lun: lun).Text);
        Assert.Equal("05/25/00", world.Send(world.A, Ready, lun: lun).Sense);
        Assert.Equal("05/25/00", world.Send(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), new byte[512], lun: lun).Sense);
        Assert.Equal("05/25/00", world.Send(world.A, "A00000000000000001000000", lun: lun).Sense);
    }

    [Fact]
    public void A_nexus_sees_only_its_luns()
    {
        var loop = new SimLoop(1);
        var target = new ScsiTarget(loop, new ScsiTargetOptions { Name = "iqn.t", MayUse = (nexus, lun) => lun == 0 || nexus.InitiatorName == "b" });
        for (ushort lun = 0; lun < 2; lun++)
            target.SetLun(lun, new LogicalUnit(loop, new MemoryDevice(1 << 20), new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        var a = new ScsiNexus { InitiatorName = "a", InitiatorPort = "a,i,0x1", PortalGroup = 1 };
        target.AddNexus(a);
        var command = new ScsiCommand { Nexus = a };
        ScsiWorld.Hex("A00000000000000001000000").CopyTo(command.Cdb, 0);
        Assert.True(loop.Run(target.ExecuteAsync(command)));
        Assert.Equal(16, command.InLength);
        command.Lun = 0x0001_0000_0000_0000;
        new byte[6].CopyTo(command.Cdb, 0);
        Assert.True(loop.Run(target.ExecuteAsync(command)));
        Assert.Equal(0x25, command.Sense[12]);
    }

    [Fact]
    public void Unit_attentions_come_once_to_every_nexus_resets_first()
    {
        var world = new ScsiWorld();
        world.Device.SizeBytes = 8 << 20;
        world.Unit.OnResized();
        world.Unit.OnResized();
        world.Unit.OnLowSpace();
        world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0));
        foreach (ScsiNexus nexus in new[] { world.A, world.B })
        {
            Assert.Equal(ScsiStatus.Good, world.Send(nexus, "12000000FF00").Status); // INQUIRY leaves them alone
            world.Bad(nexus, Ready, "06/29/03");
            world.Bad(nexus, ScsiWorld.Cdb16(0x88, 0, 1), "06/2A/09");
            Assert.Equal("70000600000000" + "0A00000000" + "3807" + "00000000", world.Send(nexus, "030000001200").Text);
            world.Good(nexus, Ready);
        }

        ScsiNexus fresh = world.Login("c", 1, clears: false);
        world.Bad(fresh, Ready, "06/29/00");
        world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0));
        world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.TargetWarmReset, 0, 0));
        world.Bad(fresh, Ready, "06/29/02"); // the stronger one swallowed the weaker
        world.Good(fresh, Ready);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Events_are_told_at_once_and_not_again_until_the_attention_was_taken(bool isFar)
    {
        var world = new ScsiWorld(isFar: isFar);
        world.Target.SetLun(300, world.Unit);
        var told = new List<(ulong Lun, ushort Code)>();
        ScsiNexus nexus = world.Login("c", 1, clears: false, (lun, code) => told.Add((lun, code)));
        world.Good(nexus, "A00000000000000001000000");
        world.Bad(nexus, Ready, "06/29/00");
        world.Device.SizeBytes = 8 << 20;
        world.Unit.OnResized();
        world.Device.SizeBytes = 6 << 20;
        world.Unit.OnResized();
        world.Unit.OnLowSpace();
        world.Loop.RunUntil(() => told.Count >= 4);
        Assert.Equal([(0UL, 0x2A09), (0x412C_0000_0000_0000UL, 0x2A09), (0UL, 0x3807), (0x412C_0000_0000_0000UL, 0x3807)], told.Select(t => (t.Lun, (int)t.Code)));
        told.Clear();
        world.Bad(nexus, Ready, "06/2A/09");
        world.Device.SizeBytes = 8 << 20;
        world.Unit.OnResized();
        world.Unit.OnLowSpace(); // waits still
        world.Target.SetLun(300, null);
        world.Loop.RunUntil(() => told.Count >= 2);
        world.Bad(nexus, Ready, "06/38/07");
        Assert.Equal([(0UL, 0x2A09), (0UL, 0x3F0E)], told.Select(t => (t.Lun, (int)t.Code)).Order());
        world.Target.RemoveNexus(nexus);
        world.Device.SizeBytes = 4 << 20;
        world.Unit.OnResized();
        world.Good(world.Login("d", 1), Ready);
        Assert.Equal(2, told.Count);
    }

    [Fact]
    public void A_changed_table_of_luns_is_told_and_report_luns_clears_it()
    {
        var world = new ScsiWorld();
        world.Target.SetLun(1, new LogicalUnit(world.Loop, world.Device, new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        world.Bad(world.A, Ready, "06/3F/0E");
        world.Good(world.A, Ready);
        world.Good(world.B, "A00000000000000001000000");
        world.Good(world.B, Ready);
    }

    [Fact]
    public void An_unknown_opcode_is_refused_behind_the_unit_attention()
    {
        var world = new ScsiWorld();
        world.Bad(world.A, "FF0000000000", "05/20/00");
        Reply action = world.Bad(world.A, "9E1F0000000000000000000000000000", "05/24/00");
        Assert.Equal("CC0001", Convert.ToHexString(action.SenseBytes.AsSpan(15)));
        world.Bad(world.A, "000000000004", "05/24/00"); // NACA
        world.Unit.OnLowSpace();
        world.Bad(world.A, "FF0000000000", "06/38/07");
        Assert.True(world.Send(world.A, "FF0000000000").Plan.IsRefused);
    }

    [Fact]
    public void Ordered_commands_wait_for_older_ones_and_hold_back_younger()
    {
        var world = new ScsiWorld(isSlow: true);
        world.Device.IsStuck = true;
        Reply first = world.Begin(world.A, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 1));
        Reply ordered = world.Begin(world.B, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 2), attribute: TaskAttribute.Ordered);
        Reply last = world.Begin(world.A, ScsiWorld.Cdb16(0x88, 0, 8));
        Assert.Equal(1, world.Device.InFlight);
        Reply head = world.Begin(world.A, ScsiWorld.Cdb16(0x88, 8, 8), attribute: TaskAttribute.HeadOfQueue);
        Assert.Equal(2, world.Device.InFlight);
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => last.IsDone));
        Assert.True(first.IsDone && ordered.IsDone && head.IsDone);
        Assert.Equal(ScsiWorld.Fill(4096, 2), last.Data);
        Assert.Equal(0, world.Unit.TaskCount);
        Assert.Equal(0, world.Loop.Buffers.LentCount);
    }

    [Fact]
    public void An_aborted_command_is_not_answered_and_the_function_waits_for_it()
    {
        var world = new ScsiWorld(isSlow: true);
        world.Device.IsStuck = true;
        Reply running = world.Begin(world.A, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 1));
        Reply waiting = world.Begin(world.A, ScsiWorld.Cdb16(0x8A, 8, 8), ScsiWorld.Fill(4096, 1), attribute: TaskAttribute.Ordered);
        Task<TaskFunctionResponse> one = world.Target.ManageAsync(world.A, TaskFunction.AbortTask, 0, waiting.Command.Tag).AsTask();
        Assert.True(waiting.IsDone && !waiting.IsAnswered && one.IsCompleted);
        Task<TaskFunctionResponse> set = world.Target.ManageAsync(world.A, TaskFunction.AbortTaskSet, 0, 0).AsTask();
        world.Loop.RunUntil(() => false, 50);
        Assert.False(set.IsCompleted);
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => set.IsCompleted));
        Assert.True(running.IsDone && !running.IsAnswered);
        Assert.Equal(new byte[4096], world.Stored(4096, 4096)); // the waiting write never ran
        Assert.Equal(TaskFunctionResponse.NoTask, world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.AbortTask, 0, 999)));
        Assert.Equal(TaskFunctionResponse.NotSupported, world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.ClearAca, 0, 0)));
        Assert.Equal(TaskFunctionResponse.NoLun, world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.AbortTaskSet, 7UL << 48, 0)));
    }

    [Fact]
    public void An_abort_of_what_a_reset_is_ending_waits_for_its_end()
    {
        var world = new ScsiWorld(isSlow: true);
        world.Device.IsStuck = true;
        Reply running = world.Begin(world.A, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(4096, 1));
        Task<TaskFunctionResponse> reset = world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0).AsTask();
        Task<TaskFunctionResponse> abort = world.Target.ManageAsync(world.A, TaskFunction.AbortTask, 0, running.Command.Tag).AsTask();
        world.Loop.RunUntil(() => false, 50);
        Assert.False(abort.IsCompleted || reset.IsCompleted); // the write is still on its way to the device
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => abort.IsCompleted && reset.IsCompleted));
        Assert.True(running.IsDone && !running.IsAnswered);
        Assert.Equal(TaskFunctionResponse.Complete, abort.Result);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Clearing_the_task_set_tells_the_others(bool tas)
    {
        var world = new ScsiWorld(isSlow: true);
        if (tas)
        {
            world.Good(world.B, "151000001000", ScsiWorld.Hex("00000000" + "0A0A0010" + "0040" + "0000FFFF0000"));
            world.Bad(world.A, Ready, "06/2A/01");
        }

        world.Device.IsStuck = true;
        Reply mine = world.Begin(world.A, ScsiWorld.Cdb16(0x88, 0, 8));
        Reply other = world.Begin(world.B, ScsiWorld.Cdb16(0x88, 0, 8));
        Task<TaskFunctionResponse> clear = world.Target.ManageAsync(world.A, TaskFunction.ClearTaskSet, 0, 0).AsTask();
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => clear.IsCompleted && mine.IsDone && other.IsDone));
        Assert.False(mine.IsAnswered);
        Assert.Equal(tas, other.IsAnswered);
        if (tas) Assert.Equal(ScsiStatus.TaskAborted, other.Status);
        else world.Bad(world.B, Ready, "06/2F/00");
        world.Good(world.A, Ready);
        world.Good(world.B, Ready);
    }

    [Fact]
    public void A_lost_nexus_takes_its_commands_along()
    {
        var world = new ScsiWorld(isSlow: true);
        world.Device.IsStuck = true;
        Reply lost = world.Begin(world.A, ScsiWorld.Cdb16(0x88, 0, 8));
        world.Good(world.A, "160000000000"); // RESERVE (6)
        world.Target.RemoveNexus(world.A);
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => lost.IsDone));
        Assert.False(lost.IsAnswered);
        world.Good(world.B, Ready);
        Assert.Equal("05/25/00", world.Send(world.A, Ready).Sense);
    }

    [Fact]
    public void One_command_too_many_is_told_so()
    {
        var world = new ScsiWorld(o => o with { TasksMax = 2 }, isSlow: true);
        world.Device.IsStuck = true;
        Reply one = world.Begin(world.A, ScsiWorld.Cdb16(0x88, 0, 8)), two = world.Begin(world.A, ScsiWorld.Cdb16(0x88, 0, 8));
        Assert.Equal(ScsiStatus.TaskSetFull, world.Send(world.A, Ready).Status);
        world.Device.IsStuck = false;
        Assert.True(world.Loop.RunUntil(() => one.IsDone && two.IsDone));
    }
}
