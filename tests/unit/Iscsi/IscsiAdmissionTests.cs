using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;
using static BlockServer.Tests.Unit.Iscsi.IscsiWorld;

namespace BlockServer.Tests.Unit.Iscsi;

/// <summary>Commands that wait at the door of their volume, over iSCSI. What is answered is counted against the simulated clock.</summary>
public sealed class IscsiAdmissionTests
{
    private const ulong Second = 1_000_000_000;
    private const ulong Other = 1UL << 48;

    private static readonly byte[] TestUnitReady = [0, 0, 0, 0, 0, 0];

    [Fact]
    public void A_limit_holds_for_a_session_with_many_commands()
    {
        (IscsiWorld world, IscsiClient client, VolumeAdmission door) = Limited(1, new QosLimits(Iops: 50));
        for (int i = 0; i < 100; i++) client.Command(IscsiClient.Cdb10(0x28, i, 1), 512);
        Wait(world, Second);
        Assert.InRange(world.Scsi.Executed.Count, 47, 56);
        Wait(world, 5 * Second);
        Assert.Equal(100, world.Scsi.Executed.Count);
        Assert.Equal((0, 0), (door.Inside, door.Waiting));
    }

    [Fact]
    public void Writes_wait_before_their_data_is_asked_for_and_lose_nothing()
    {
        (IscsiWorld world, IscsiClient client, VolumeAdmission door) = Limited(2, QosLimits.None, "ImmediateData=No");
        Close(door);
        byte[] data = Pattern(4096, 1);
        uint tag = client.Command(IscsiClient.Cdb10(0x2A, 8, 8), 0, data);
        Wait(world, Second);
        Assert.Equal((1, 0), (door.Waiting, world.Loop.Buffers.LentCount));
        door.SetLimits(null);
        Assert.Equal(ScsiStatus.Good, client.Finish(tag, data).Status);
        Assert.Equal(data, world.Scsi.Disk[4096..8192]);
        Assert.Equal(data, client.Read(8, 8).DataIn);
        Assert.Equal((0, 0), (door.Inside, door.Waiting));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_command_that_waits_can_be_aborted_and_is_never_executed(bool isReset)
    {
        (IscsiWorld world, IscsiClient client, VolumeAdmission door) = Limited(3, QosLimits.None);
        Close(door);
        byte[] data = Pattern(512, 2);
        uint number = client.CmdSn;
        uint tag = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, data);
        Wait(world, Second / 10);
        Assert.Equal(1, door.Waiting);
        TaskFunctionResponse response = isReset
            ? client.Manage(TaskFunction.LogicalUnitReset) : client.Manage(TaskFunction.AbortTask, tag, number);
        Assert.Equal(TaskFunctionResponse.Complete, response);
        Assert.Equal(0, door.Waiting);
        door.SetLimits(null);
        Wait(world, Second / 10);
        Assert.Equal(new byte[512], world.Scsi.Disk[..512]);
        Assert.Equal(ScsiStatus.Good, client.Write(0, data).Status);
        client.Logout();
        world.CheckClean();
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void A_session_that_ends_takes_its_waiting_commands_with_it(int how)
    {
        (IscsiWorld world, IscsiClient client, VolumeAdmission door) = Limited(4, QosLimits.None);
        Close(door);
        for (int i = 0; i < 20; i++) client.Command(IscsiClient.Cdb10(0x2A, i, 1), 0, Pattern(512, i));
        Wait(world, Second / 10);
        Assert.Equal(20, door.Waiting);
        if (how == 0) client.Connection.Break();
        else if (how == 1) world.Target.RequestStop();
        else Assert.Equal(IscsiLogoutResponse.Success, client.Logout());
        Assert.True(world.Loop.RunUntil(() => world.Target.Sessions.Count == 0 && world.Loop.Buffers.LentCount == 0));
        Assert.Equal((0, 0), (door.Waiting, door.Inside));
        Assert.Empty(world.Scsi.Executed);
    }

    [Fact]
    public void Other_units_of_a_session_go_on_and_have_room_in_its_window()
    {
        (IscsiWorld world, IscsiClient client, VolumeAdmission door) = Limited(5, QosLimits.None);
        var free = new VolumeAdmission(world.Loop);
        world.Scsi.Doors[Other] = free;
        Close(door);
        int half = world.Options.WindowCommands / 2;
        for (int i = 0; i < half; i++) client.Command(IscsiClient.Cdb10(0x28, i, 1), 512);
        Wait(world, Second / 10);
        Assert.Equal(half, door.Waiting);
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command(IscsiClient.Cdb10(0x28, 0, 1), 512, lun: Other)).Status);
        Assert.Equal(ScsiStatus.TaskSetFull, client.Read(0, 1).Status); // one too many
        byte[] data = Pattern(512, 3);
        Assert.Equal(ScsiStatus.TaskSetFull, client.Write(0, data).Status);
        Assert.Equal(ScsiStatus.Good, client.Finish(client.Command(TestUnitReady)).Status); // asks nothing of the medium
        Assert.Equal(half, door.Waiting);
        Assert.Equal(0, free.Inside);
    }

    [Fact]
    public void An_ordered_command_keeps_its_place_behind_those_that_wait()
    {
        (IscsiWorld world, IscsiClient client, VolumeAdmission door) = Limited(6, QosLimits.None);
        Close(door);
        uint write = client.Command(IscsiClient.Cdb10(0x2A, 0, 1), 0, Pattern(512, 4));
        uint ordered = client.Command(TestUnitReady, attribute: TaskAttribute.Ordered);
        uint simple = client.Command(TestUnitReady);
        Wait(world, Second);
        Assert.Empty(world.Scsi.Executed);
        door.SetLimits(null);
        foreach (uint tag in new[] { write, ordered, simple }) Assert.Equal(ScsiStatus.Good, client.Finish(tag).Status);
        Assert.Equal(new byte[] { 0x2A, 0, 0 }, world.Scsi.Executed);
    }

    private static (IscsiWorld World, IscsiClient Client, VolumeAdmission Door) Limited(ulong seed, QosLimits limits, params string[] keys)
    {
        var world = new IscsiWorld(seed);
        var door = new VolumeAdmission(world.Loop);
        door.SetLimits(limits);
        world.Scsi.Doors[0] = door;
        return (world, world.Connect().Login(keys), door);
    }

    /// <summary>Nothing is let in for eight minutes.</summary>
    private static void Close(VolumeAdmission door)
    {
        door.SetLimits(new QosLimits(BytesPerSecond: QosLimits.BytesPerSecondMin));
        Check.That(door.Enter(new AdmissionWaiter(() => { }), 32 << 20));
        door.Exit(32 << 20);
    }

    private static void Wait(IscsiWorld world, ulong nanos) => world.Loop.Run(world.Loop.DelayAsync(nanos));
}
