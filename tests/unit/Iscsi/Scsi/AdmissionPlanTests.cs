using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>Which commands a unit sends through the door of its volume, and what they count there.</summary>
public sealed class AdmissionPlanTests
{
    [Theory]
    [InlineData("28 00 00 00 00 00 00 00 08 00", 4096L)] // READ (10)
    [InlineData("88 00 00 00 00 00 00 00 00 00 00 00 00 10 00 00", 8192L)] // READ (16)
    [InlineData("2A 00 00 00 00 00 00 00 08 00", 4096L)] // WRITE (10)
    [InlineData("2E 00 00 00 00 00 00 00 08 00", 4096L)] // WRITE AND VERIFY (10)
    [InlineData("89 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00", 1024L)] // COMPARE AND WRITE: both halves come
    [InlineData("41 00 00 00 00 00 00 00 08 00", 512L)] // WRITE SAME (10)
    [InlineData("2F 00 00 00 00 00 00 00 08 00", 0L)] // VERIFY (10) without data
    [InlineData("34 00 00 00 00 00 00 00 08 00", 0L)] // PRE-FETCH (10)
    [InlineData("42 00 00 00 00 00 00 00 18 00", 0L)] // UNMAP: its list is no data
    [InlineData("35 00 00 00 00 00 00 00 00 00", -1L)] // SYNCHRONIZE CACHE: what it covers has passed
    [InlineData("00 00 00 00 00 00", -1L)]
    [InlineData("12 00 00 00 FF 00", -1L)]
    [InlineData("25 00 00 00 00 00 00 00 00 00", -1L)]
    [InlineData("5E 00 00 00 00 00 00 00 FF 00", -1L)]
    [InlineData("28 00 FF FF FF FF 00 00 08 00", -1L)] // refused for its address
    [InlineData("D5 00 00 00 00 00", -1L)] // unknown
    public void Only_what_reads_or_changes_the_medium_passes(string cdb, long charged)
    {
        var door = new VolumeAdmission(new SimLoop(1));
        var world = new ScsiWorld(o => o with { Admission = door });
        var command = new ScsiCommand { Nexus = world.A };
        ScsiWorld.Hex(cdb).CopyTo(command.Cdb, 0);
        ScsiPlan plan = world.Target.Plan(command);
        Assert.Equal(charged < 0 ? null : door, plan.Admission);
        Assert.Equal(Math.Max(charged, 0), plan.ChargedBytes);
        Assert.False(plan.HasOtherUnits);
    }

    [Fact]
    public void A_nexus_with_several_units_is_known()
    {
        var world = new ScsiWorld(o => o with { Admission = new VolumeAdmission(new SimLoop(2)) });
        world.Target.SetLun(5, new LogicalUnit(world.Loop, world.Device, new LogicalUnitOptions { Uuid = Guid.NewGuid() }));
        var command = new ScsiCommand { Nexus = world.A };
        ScsiWorld.Hex("28 00 00 00 00 00 00 00 08 00").CopyTo(command.Cdb, 0);
        Assert.True(world.Target.Plan(command).HasOtherUnits);
    }
}
