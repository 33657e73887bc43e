using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>SCSI and NBD on one volume: what reads, decides and writes is atomic against both, and a reservation holds back
/// who comes by a protocol without reservations.</summary>
public class GateTests
{
    [Theory]
    [InlineData("89")] // COMPARE AND WRITE
    [InlineData("8B")] // ORWRITE
    public void A_write_from_outside_is_never_lost_between_the_read_and_the_write_of_a_command(string opcode)
    {
        bool isCompare = opcode == "89";
        var outcomes = new HashSet<string>();
        for (int steps = 0; steps < 12; steps++)
        {
            var world = new ScsiWorld(isSlow: true);
            world.Loop.Run(world.Device.WriteAsync(0, ScsiWorld.Fill(512, 0x01), WriteFlags.None));
            byte[] data = isCompare ? [.. ScsiWorld.Fill(512, 0x01), .. ScsiWorld.Fill(512, 0x03)] : ScsiWorld.Fill(512, 0x03);
            string cdb = isCompare ? "89000000000000000000000000010000" : ScsiWorld.Cdb16(0x8B, 0, 1);

            // The other write is begun at every moment of the command, before it too.
            ValueTask<IoStatus> early = default;
            if (steps == 0) early = world.Outside.WriteAsync(0, ScsiWorld.Fill(512, 0x40), WriteFlags.None);
            Reply reply = world.Begin(world.A, cdb, data);
            for (int i = 1; i < steps; i++) world.Loop.RunUntil(() => false, 1);
            if (steps > 0) early = world.Outside.WriteAsync(0, ScsiWorld.Fill(512, 0x40), WriteFlags.None);
            Assert.Equal(IoStatus.Ok, world.Loop.Run(early));
            Check.That(world.Loop.RunUntil(() => reply.IsDone));

            // One after the other: the write first, and the command saw it, or the write last.
            byte stored = world.Stored(0, 1)[0];
            outcomes.Add($"{reply.Sense} {stored:X2}");
            if (isCompare) Assert.Equal(0x40, stored);
            else Assert.Contains(stored, new byte[] { 0x40, 0x43 });
        }

        Assert.Contains("Good 40", outcomes);
        Assert.Contains(isCompare ? "0E/1D/00 40" : "Good 43", outcomes);
    }

    [Theory]
    [InlineData(0, "rw")]
    [InlineData(1, "r-")]
    [InlineData(3, "--")]
    [InlineData(5, "r-")]
    [InlineData(6, "--")]
    [InlineData(7, "r-")]
    [InlineData(8, "--")]
    public void Who_comes_from_outside_counts_as_not_registered(int type, string access)
    {
        var world = new ScsiWorld();
        world.Good(world.A, "5F000000000000001800", List(0, 0xA));
        if (type != 0) world.Good(world.A, $"5F01{type:X2}00000000001800", List(0xA, 0));
        Assert.Equal(access, Access(world));
        world.Gate.IgnoresFence = true;
        Assert.Equal("rw", Access(world));
        world.Gate.IgnoresFence = false;
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Outside.FlushAsync()));
        if (type != 0) world.Good(world.A, $"5F02{type:X2}00000000001800", List(0xA, 0));
        Assert.Equal("rw", Access(world));
    }

    [Fact]
    public void Reserve_6_holds_everybody_else_back_until_it_ends()
    {
        var world = new ScsiWorld();
        world.Good(world.A, "160000000000");
        Assert.Equal("--", Access(world));
        world.Good(world.A, "170000000000");
        Assert.Equal("rw", Access(world));
        world.Good(world.A, "160000000000");
        world.Target.RemoveNexus(world.A);
        Assert.Equal("rw", Access(world));
        world.Good(world.B, "160000000000");
        world.Loop.Run(world.Target.ManageAsync(world.B, TaskFunction.LogicalUnitReset, 0, 0));
        Assert.Equal("rw", Access(world));
    }

    [Theory]
    [InlineData("160000000000", null)]
    [InlineData("5F010300000000001800", "A")]
    public void A_reservation_is_answered_when_the_writes_from_outside_have_ended(string cdb, string? key)
    {
        var world = new ScsiWorld(isSlow: true);
        if (key is not null) world.Good(world.A, "5F000000000000001800", List(0, 0xA));
        ValueTask<IoStatus> write = world.Outside.WriteAsync(4096, new byte[4096], WriteFlags.None);
        Reply reply = world.Begin(world.A, cdb, key is null ? null : List(0xA, 0));
        Assert.False(reply.IsDone);
        ValueTask<IoStatus> late = world.Outside.WriteAsync(8192, new byte[4096], WriteFlags.None);
        Check.That(world.Loop.RunUntil(() => reply.IsDone));
        Assert.True(write.IsCompleted);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(write));
        Assert.Equal(IoStatus.Reserved, world.Loop.Run(late));
    }

    [Fact]
    public void The_operator_can_end_every_reservation_and_those_who_held_one_are_told()
    {
        var world = new ScsiWorld();
        world.Good(world.A, "5F000000000000001800", List(0, 0xA));
        world.Good(world.A, "5F010300000000001800", List(0xA, 0));
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Unit.ClearReservationsAsync()));
        Assert.Empty(world.Unit.Registrations);
        Assert.Equal("rw", Access(world));
        world.Bad(world.A, "000000000000", "06/2A/03");
        world.Good(world.B, "000000000000");
    }

    [Fact]
    public void Ports_of_targets_that_share_a_unit_are_told_apart()
    {
        var world = new ScsiWorld(portBase: 64);
        world.Good(world.A, "5F000000000000001800", List(0, 0xA));
        var other = new ScsiTarget(world.Loop, new ScsiTargetOptions { Name = "iqn.2024-01.test:other", PortalGroups = [1], PortBase = 128 });
        other.SetLun(7, world.Unit, isReadOnly: true);
        var nexus = new ScsiNexus { InitiatorName = world.A.InitiatorName, InitiatorPort = world.A.InitiatorPort, PortalGroup = 1 };
        other.AddNexus(nexus);
        RegistrationView registration = Assert.Single(world.Unit.Registrations);
        Assert.Equal((65, true), (registration.PortalGroup, registration.IsAttached));
        other.RemoveNexus(nexus);
        Assert.True(Assert.Single(world.Unit.Registrations).IsAttached); // the same initiator by another target is another nexus
    }

    [Fact]
    public void A_lun_is_read_only_by_one_target_and_not_by_another()
    {
        var world = new ScsiWorld();
        world.Target.SetLun(0, world.Unit, isReadOnly: true);
        world.Bad(world.A, "000000000000", "06/2A/01");
        world.Bad(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), "07/27/00", new byte[512]);
        world.Target.SetLun(0, world.Unit);
        world.Bad(world.A, "000000000000", "06/2A/01");
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), new byte[512]);
        world.Unit.IsReadOnly = true;
        world.Bad(world.A, "000000000000", "06/2A/01");
        world.Bad(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), "07/27/00", new byte[512]);
    }

    private static byte[] List(ulong key, ulong newKey) => ScsiWorld.Hex(ScsiWorld.U64(key) + ScsiWorld.U64(newKey) + "0000000000000000");

    private static string Access(ScsiWorld world)
    {
        IoStatus read = world.Loop.Run(world.Outside.ReadAsync(0, new byte[512])).Status;
        IoStatus write = world.Loop.Run(world.Outside.WriteAsync(0, new byte[512], WriteFlags.None));
        Assert.Equal(write, world.Loop.Run(world.Outside.TrimAsync(0, 4096, WriteFlags.None)));
        Assert.Equal(write, world.Loop.Run(world.Outside.WriteZeroesAsync(0, 4096, WriteFlags.None)));
        Assert.Equal(read, world.Loop.Run(world.Outside.PrefetchAsync(0, 512)));
        Assert.Equal(read, world.Loop.Run(world.Outside.MapAsync(0, 4096, 4, [])));
        return (read == IoStatus.Ok ? "r" : "-") + (write == IoStatus.Ok ? "w" : "-");
    }
}
