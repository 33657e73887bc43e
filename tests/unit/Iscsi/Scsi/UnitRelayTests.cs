using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.Scsi.ScsiWorld;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>A unit of another loop than its target: commands and all that concerns them go over by messages.</summary>
public sealed class UnitRelayTests
{
    private const ulong Lun1 = 1UL << 48;

    private static readonly byte[] s_block = Fill(4096, 0x5A);

    [Fact]
    public void Commands_of_a_far_unit_move_their_data_and_give_all_memory_back()
    {
        var world = new ScsiWorld(isFar: true);
        byte[] data = Fill(64 << 10, 0xC3);
        world.Good(world.A, Cdb16(0x8A, 3, 128), data); // in the middle of a block of 4 KiB
        Assert.Equal(data, world.Stored(1536, data.Length));
        Assert.Equal(data, world.Good(world.B, Cdb16(0x88, 3, 128)).Data);
        Assert.Equal(new byte[4096], world.Good(world.B, Cdb16(0x88, 1000, 8)).Data);
        Assert.Equal("BLOCKD  ", System.Text.Encoding.ASCII.GetString(world.Good(world.A, "12 00 00 00 60 00").Data, 8, 8));
        Assert.Equal(8, world.Good(world.A, "25 00 00 00 00 00 00 00 00 00").Data.Length);
        world.Bad(world.A, Cdb16(0x88, 1 << 20, 8), "05/21/00");
        world.Bad(world.A, "FF 00 00 00 00 00", "05/20/00");
        Assert.Equal((0, 0), (world.Loop.Buffers.LentCount, world.UnitLoop.Buffers.LentCount));
    }

    [Fact]
    public void A_near_and_a_far_unit_are_reported_by_both_and_a_new_one_is_told()
    {
        var world = new ScsiWorld(isFar: true);
        world.Target.SetLun(1, new LogicalUnit(world.Loop, new MemoryDevice(1 << 20), new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        foreach (ulong lun in new ulong[] { 0, Lun1 })
        {
            Reply list = world.Send(world.A, "A0 00 00 00 00 00 00 00 01 00 00 00", lun: lun);
            Assert.Equal("00000010" + "00000000" + "0000000000000000" + "0001000000000000", list.Text);
        }

        // B has not read the list yet, and is told by each of its units; A knows.
        world.Bad(world.B, "00 00 00 00 00 00", "06/3F/0E");
        world.Good(world.A, "00 00 00 00 00 00");
        Assert.Equal("06/29/00", world.Send(world.A, "00 00 00 00 00 00", lun: Lun1).Sense);
        world.Target.SetLun(0, null);
        Assert.Equal("05/25/00", world.Send(world.A, "00 00 00 00 00 00").Sense);
        world.Target.SetLun(0, world.Unit, isReadOnly: true);
        world.Bad(world.A, "00 00 00 00 00 00", "06/29/00");
        world.Bad(world.A, "00 00 00 00 00 00", "06/3F/0E");
        world.Bad(world.A, Cdb16(0x8A, 0, 8), "07/27/00", s_block);
    }

    [Theory]
    [InlineData(TaskFunction.AbortTask, true, false, false)]
    [InlineData(TaskFunction.AbortTaskSet, true, true, false)]
    [InlineData(TaskFunction.ClearTaskSet, true, true, true)]
    [InlineData(TaskFunction.LogicalUnitReset, true, true, true)]
    [InlineData(TaskFunction.TargetWarmReset, true, true, true)]
    public void Task_management_ends_what_it_means_there_and_answers_after_it(TaskFunction function, bool endsFirst, bool endsSecond, bool endsOther)
    {
        var world = new ScsiWorld(isSlow: true, isFar: true);
        Reply first = world.Begin(world.A, Cdb16(0x88, 0, 8));
        Reply second = world.Begin(world.A, Cdb16(0x88, 8, 8));
        Reply other = world.Begin(world.B, Cdb16(0x88, 16, 8));
        Task<TaskFunctionResponse> managed = world.Target.ManageAsync(world.A, function, 0, first.Command.Tag).AsTask();
        Reply later = world.Begin(world.A, Cdb16(0x88, 24, 8)); // behind it in the mailbox: not meant
        Assert.False(first.IsDone);
        Assert.True(world.Loop.RunUntil(() => managed.IsCompleted));
        Assert.Equal(TaskFunctionResponse.Complete, managed.Result);
        foreach ((Reply reply, bool ends) in new[] { (first, endsFirst), (second, endsSecond), (other, endsOther) })
        {
            Assert.True(!ends || reply.IsDone); // its tag is free when the answer is there
            Assert.True(world.Loop.RunUntil(() => reply.IsDone));
            Assert.Equal(!ends, reply.IsAnswered);
        }

        Assert.True(world.Loop.RunUntil(() => later.IsDone));
        Assert.True(later.IsAnswered);
        Assert.Equal((0, 0), (world.Loop.Buffers.LentCount, world.UnitLoop.Buffers.LentCount));
    }

    [Fact]
    public void A_tag_that_is_not_there_is_no_task()
    {
        var world = new ScsiWorld(isFar: true);
        Assert.Equal(TaskFunctionResponse.NoTask, world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.AbortTask, 0, 4711)));
        Assert.Equal(TaskFunctionResponse.NoLun, world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, Lun1, 0)));
    }

    /// <summary>What the transport spares, as numbered after the request, is spared there.</summary>
    [Theory]
    [InlineData(TaskFunction.AbortTaskSet)]
    [InlineData(TaskFunction.LogicalUnitReset)]
    [InlineData(TaskFunction.TargetWarmReset)]
    public void What_is_spared_goes_on(TaskFunction function)
    {
        var world = new ScsiWorld(isSlow: true, isFar: true);
        Reply meant = world.Begin(world.A, Cdb16(0x88, 0, 8)), spared = world.Begin(world.A, Cdb16(0x88, 8, 8));
        spared.Command.IsSpared = true;
        Task<TaskFunctionResponse> managed = world.Target.ManageAsync(world.A, function, 0, 0).AsTask();
        spared.Command.IsSpared = false;
        Assert.True(world.Loop.RunUntil(() => managed.IsCompleted && spared.IsDone && meant.IsDone));
        Assert.Equal((false, true), (meant.IsAnswered, spared.IsAnswered));
    }

    [Fact]
    public void A_session_that_ends_gets_its_commands_back_without_answers()
    {
        var world = new ScsiWorld(isSlow: true, isFar: true);
        Reply[] replies = [.. Enumerable.Range(0, 20).Select(i => world.Begin(world.A, Cdb16((byte)(i % 2 == 0 ? 0x88 : 0x8A), (ulong)i * 8, 8), i % 2 == 0 ? null : s_block))];
        world.Target.RemoveNexus(world.A);
        Assert.True(world.Loop.RunUntil(() => replies.All(r => r.IsDone)));
        Assert.All(replies, r => Assert.False(r.IsAnswered));
        world.Good(world.B, Cdb16(0x88, 0, 8));
        Assert.Equal((0, 0), (world.Loop.Buffers.LentCount, world.UnitLoop.Buffers.LentCount));
    }

    [Theory]
    [InlineData(TaskFunction.AbortTask)]
    [InlineData(TaskFunction.AbortTaskSet)]
    [InlineData(TaskFunction.LogicalUnitReset)]
    [InlineData(TaskFunction.TargetWarmReset)]
    public void What_waits_for_its_volume_there_can_be_ended(TaskFunction function)
    {
        (ScsiWorld world, VolumeAdmission door) = Limited();
        Reply waiting = world.Begin(world.A, Cdb16(0x8A, 0, 8), s_block);
        world.Loop.RunUntil(() => door.Waiting == 1);
        Assert.Equal(TaskFunctionResponse.Complete, world.Loop.Run(world.Target.ManageAsync(world.A, function, 0, waiting.Command.Tag)));
        Assert.Equal((true, false, 0), (waiting.IsDone, waiting.IsAnswered, door.Waiting));
        door.SetLimits(null);
        Assert.Equal(new byte[4096], world.Stored(0, 4096));
    }

    [Fact]
    public void A_session_that_ends_waits_for_no_volume_any_more()
    {
        (ScsiWorld world, VolumeAdmission door) = Limited();
        Reply waiting = world.Begin(world.A, Cdb16(0x8A, 0, 8), s_block);
        world.Loop.RunUntil(() => door.Waiting == 1);
        world.Target.RemoveNexus(world.A);
        Assert.True(world.Loop.RunUntil(() => waiting.IsDone));
        Assert.Equal((false, 0), (waiting.IsAnswered, door.Waiting));
    }

    [Fact]
    public void Those_that_wait_for_a_volume_there_may_not_be_all_that_a_session_has()
    {
        (ScsiWorld world, VolumeAdmission door) = Limited();
        Reply[] waiting = [.. Enumerable.Range(0, 65).Select(i => world.Begin(world.A, Cdb16(0x88, (ulong)i, 1)))];
        Assert.True(world.Loop.RunUntil(() => waiting[64].IsDone));
        Assert.Equal(ScsiStatus.TaskSetFull, waiting[64].Status);
        Assert.Equal(64, door.Waiting);
        Reply other = world.Begin(world.B, Cdb16(0x88, 0, 1)); // another session has room of its own
        world.Loop.RunUntil(() => door.Waiting == 65);
        door.SetLimits(null);
        Assert.True(world.Loop.RunUntil(() => waiting.Append(other).All(r => r.IsDone)));
        Assert.All(waiting[..64].Append(other), r => Assert.Equal(ScsiStatus.Good, r.Status));
        Assert.Equal((0, 0), (door.Inside, door.Waiting));
    }

    [Fact]
    public void Without_memory_for_what_it_reads_a_command_is_turned_away()
    {
        var world = new ScsiWorld(isFar: true);
        var taken = new List<IoBuffer>();
        while (world.Loop.Buffers.TryRent(1 << 20) is { } buffer) taken.Add(buffer);
        while (world.Loop.Buffers.TryRent(4096) is { } buffer) taken.Add(buffer);
        Assert.Equal(ScsiStatus.TaskSetFull, world.Send(world.A, Cdb16(0x88, 0, 8)).Status);
        foreach (IoBuffer buffer in taken) buffer.Return();
        world.Good(world.A, Cdb16(0x88, 0, 8));
    }

    /// <summary>A bug of the unit ends the session of the command: its exception comes over.</summary>
    [Fact]
    public void A_bug_there_is_thrown_here()
    {
        var loop = new SimLoop(1);
        var target = new ScsiTarget(loop, new ScsiTargetOptions { Name = "iqn.2024-01.test:a" });
        target.SetLun(0, new LogicalUnit(new SideLoop(loop), new BrokenDevice(), new LogicalUnitOptions { Uuid = Uuid }));
        var nexus = new ScsiNexus { InitiatorName = "iqn.2024-01.test:i", InitiatorPort = "iqn.2024-01.test:i,i,0x1", PortalGroup = 1 };
        target.AddNexus(nexus);
        Assert.True(loop.Run(target.ExecuteAsync(new ScsiCommand { Nexus = nexus, Tag = 1 })));
        var read = new ScsiCommand { Nexus = nexus, Tag = 2 };
        Hex(Cdb16(0x88, 0, 8)).CopyTo(read.Cdb, 0);
        Assert.Contains("broken on purpose", Assert.ThrowsAny<Exception>(() => loop.Run(target.ExecuteAsync(read))).Message, StringComparison.Ordinal);
        Assert.Equal(0, loop.Buffers.LentCount);
    }

    [Fact]
    public void One_unit_behind_targets_of_two_loops_keeps_one_reservation()
    {
        var world = new ScsiWorld(isFar: true, portBase: 0);
        var second = new ScsiTarget(world.UnitLoop, new ScsiTargetOptions { Name = "iqn.2024-01.test:b", PortBase = 64 });
        second.SetLun(0, world.Unit);
        var nexus = new ScsiNexus { InitiatorName = "iqn.2024-01.test:c", InitiatorPort = "iqn.2024-01.test:c,i,0x2", PortalGroup = 1 };
        second.AddNexus(nexus);
        Assert.True(world.Loop.Run(second.ExecuteAsync(new ScsiCommand { Nexus = nexus, Tag = 1 })));
        world.Good(world.A, "16 00 00 00 00 00"); // RESERVE (6), from the far target
        var write = new ScsiCommand { Nexus = nexus, Tag = 2 };
        Hex(Cdb16(0x88, 0, 8)).CopyTo(write.Cdb, 0);
        Assert.True(world.Loop.Run(second.ExecuteAsync(write)));
        Assert.Equal(ScsiStatus.ReservationConflict, write.Status);
        world.Target.RemoveNexus(world.A); // nexus loss lets it go
        world.Good(world.B, Cdb16(0x88, 0, 8));
        Assert.True(world.Loop.Run(second.ExecuteAsync(write)));
        Assert.Equal(ScsiStatus.Good, write.Status);
        write.InBuffer!.Return();
    }

    private static (ScsiWorld World, VolumeAdmission Door) Limited()
    {
        VolumeAdmission? door = null;
        var world = new ScsiWorld(o => o, isFar: true);
        door = new VolumeAdmission(world.UnitLoop);
        var unit = new LogicalUnit(world.UnitLoop, world.Device, new LogicalUnitOptions { Uuid = Uuid, Admission = door });
        world.Target.SetLun(0, unit);
        foreach (ScsiNexus nexus in new[] { world.A, world.B })
        {
            while (world.Send(nexus, "00 00 00 00 00 00").Status != ScsiStatus.Good)
            {
            }
        }

        door.SetLimits(new QosLimits(Iops: 1, BytesPerSecond: 1));
        while (door.Waiting == 0) Burn(world, door);
        world.Target.RemoveNexus(world.B);
        world.Loop.RunUntil(() => door.Waiting == 0);
        world.Target.AddNexus(world.B);
        while (world.Send(world.B, "00 00 00 00 00 00").Status != ScsiStatus.Good)
        {
        }

        return (world, door);
    }

    /// <summary>Uses up what the limit lets through at once.</summary>
    private static void Burn(ScsiWorld world, VolumeAdmission door)
    {
        int inside = door.Inside;
        Reply reply = world.Begin(world.B, Cdb16(0x88, 0, 8));
        world.Loop.RunUntil(() => reply.IsDone || door.Waiting > 0);
        Assert.Equal(inside, door.Inside);
    }

    private sealed class BrokenDevice : IBlockDevice
    {
        public ulong SizeBytes => 1 << 20;

        public bool IsReadOnly => false;

        public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => throw new InvalidOperationException("broken on purpose");

        public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) => throw new InvalidOperationException();

        public ValueTask<IoStatus> FlushAsync() => throw new InvalidOperationException();

        public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) => throw new InvalidOperationException();

        public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) => throw new InvalidOperationException();

        public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => throw new InvalidOperationException();

        public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) => throw new InvalidOperationException();
    }
}
