using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Tests.Simulated;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>EXTENDED COPY and RECEIVE COPY RESULTS.</summary>
public class CopyTests
{
    private const int Mark = 8 * 512;

    [Theory]
    [InlineData(0)]
    [InlineData(2)]
    public void Blocks_are_copied_between_units_by_each_of_their_names(int designator)
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits();
        byte[] data = Pattern(world, 0, 5000 * 512);
        byte[] list = List(1, [Target(world, 0, designator), Target(world, 1, designator)], [Blocks(0, 1, 5000, 0, 100)]);
        world.Good(world.A, Cdb(list), list);
        Assert.Equal(data, Read(world, other, 100 * 512, 5000 * 512));
        Assert.Equal(new byte[512], Read(world, other, 99 * 512, 512));
        string status = world.Good(world.A, "84000100000000000000000001000000").Text;
        Assert.Equal("00000008" + "01" + "0001" + "00" + ScsiWorld.U32(5000 * 512), status);
        world.Bad(world.A, "84000100000000000000000001000000", "05/24/00"); // it is told once
        world.Bad(world.B, "84000100000000000000000001000000", "05/24/00"); // and only to who asked for the copy
    }

    [Theory]
    [InlineData(0UL, 3UL)]
    [InlineData(3UL, 0UL)]
    [InlineData(5UL, 5UL)]
    public void Overlapping_ranges_are_copied_as_if_through_a_buffer(ulong from, ulong to)
    {
        (ScsiWorld world, _) = TwoUnits(16 << 20);
        byte[] data = Pattern(world, from * 512, 6000 * 512);
        byte[] list = List(1, [Target(world, 0, 0)], [Blocks(0, 0, 6000, from, to)]);
        world.Good(world.A, Cdb(list), list);
        Assert.Equal(data, world.Stored(to * 512, data.Length));
    }

    [Fact]
    public void Byte_offsets_are_kept()
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits();
        byte[] data = Pattern(world, 0, 9000);
        string segment = "0A00001C" + "00000001" + ScsiWorld.U32(7777) + ScsiWorld.U64(1) + ScsiWorld.U64(2) + "0007" + "01FF";
        byte[] list = List(0, [Target(world, 0, 0), Target(world, 1, 0)], [ScsiWorld.Hex(segment)], usage: 3);
        world.Good(world.A, Cdb(list), list);
        Assert.Equal(data[519..(519 + 7777)], Read(world, other, 1024 + 511, 7777));
    }

    [Fact]
    public void A_copy_reaches_nothing_that_the_nexus_may_not_use()
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits(hidesSecondFrom: "iqn.2024-01.test:b");
        Pattern(world, 0, Mark);
        byte[] second = Target(world, 1, 0);
        byte[] into = List(1, [Target(world, 0, 0), second], [Blocks(0, 1, 8, 0, 0)]);
        byte[] from = List(1, [Target(world, 0, 0), second], [Blocks(1, 0, 8, 0, 0)]);
        byte[] before = world.Stored(0, Mark);
        world.Bad(world.B, Cdb(into), "0A/0D/02", into);
        world.Bad(world.B, Cdb(from), "0A/0D/02", from);
        Assert.Equal(new byte[Mark], Read(world, other, 0, Mark));
        Assert.Equal(before, world.Stored(0, Mark));
        byte[] partly = List(2, [Target(world, 0, 0), second], [Blocks(0, 0, 8, 0, 64), Blocks(0, 1, 8, 0, 0)]);
        world.Bad(world.B, Cdb(partly), "0A/0D/02", partly);
        Assert.Equal("00000008" + "02" + "0001" + "00" + ScsiWorld.U32(Mark), world.Good(world.B, "84000200000000000000000001000000").Text);
        world.Good(world.A, Cdb(into), into); // A may
    }

    [Fact]
    public void Reservations_of_either_unit_stop_a_copy()
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits();
        Pattern(world, 0, Mark);
        byte[] list = List(1, [Target(world, 0, 0), Target(world, 1, 0)], [Blocks(0, 1, 8, 0, 0)]);
        Assert.Equal(ScsiStatus.Good, world.Send(world.B, "160000000000", lun: 1UL << 48).Status);
        world.Bad(world.A, Cdb(list), "0A/0D/02", list);
        Assert.Equal(ScsiStatus.Good, world.Send(world.B, "170000000000", lun: 1UL << 48).Status);
        byte[] key = ScsiWorld.Hex(ScsiWorld.U64(0) + ScsiWorld.U64(1) + "0000000000000000"), own = ScsiWorld.Hex(ScsiWorld.U64(1) + ScsiWorld.U64(0) + "0000000000000000");
        Assert.Equal(ScsiStatus.Good, world.Send(world.B, "5F000000000000001800", key, 1UL << 48).Status);
        Assert.Equal(ScsiStatus.Good, world.Send(world.B, "5F010100000000001800", own, 1UL << 48).Status); // write exclusive
        world.Bad(world.A, Cdb(list), "0A/0D/02", list);
        Assert.Equal(new byte[Mark], Read(world, other, 0, Mark));
        byte[] back = List(1, [Target(world, 0, 0), Target(world, 1, 0)], [Blocks(1, 0, 8, 0, 0)]);
        world.Good(world.A, Cdb(back), back); // reading it is allowed
    }

    [Fact]
    public void Lists_are_checked_before_anything_is_copied()
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits();
        Pattern(world, 0, Mark);
        byte[] one = Target(world, 0, 0), two = Target(world, 1, 0), good = Blocks(0, 1, 8, 0, 0);
        void Bad(byte[] list, string sense, int cut = 0) => world.Bad(world.A, Cdb(list, list.Length - cut), sense, list);
        world.Good(world.A, "83000000000000000000000000000000");
        byte[] right = List(1, [one, two], [good]);
        Bad(right, "05/1A/00", 1);
        Bad(right, "05/1A/00", 28);
        Bad(right, "05/1A/00", right.Length - 15);
        Bad(List(1, [.. Enumerable.Repeat(one, 9)], [good]), "05/26/06");
        Bad(List(1, [one, two], [.. Enumerable.Repeat(good, 33)]), "05/26/08");
        Bad(List(1, [.. Enumerable.Repeat(one, 9)], [.. Enumerable.Repeat(good, 64)]), "05/1A/00");
        Bad(List(1, [[0xE0, .. one[1..]], two], [good]), "05/26/07");
        Bad(List(1, [one, two], [good, [0x03, .. good[1..]]]), "05/26/09");
        Bad(List(1, [one, two], [[2, 0, 0, 0x17, .. good[4..]]]), "05/26/00");
        Bad(List(1, [one, two], [Blocks(0, 2, 8, 0, 0)]), "0A/08/04");
        Bad(List(1, [one, two], [Blocks(0, 1, 8, 0, 8185)]), "0A/0D/02");
        Bad(List(1, [one, two], [Blocks(0, 1, 8, ulong.MaxValue, 0)]), "0A/0D/02");
        Bad(List(1, [[.. one[..29], 0, 0x10, 0], two], [good]), "05/26/00"); // wrong block length
        Bad(List(1, [[.. one[..8], (byte)(one[8] ^ 1), .. one[9..]], two], [good]), "0A/0D/02"); // nobody's name
        Bad([.. right[..12], 0, 0, 0, 4, .. right[16..], 0, 0, 0, 0], "05/26/0B");
        Assert.Equal(new byte[Mark], Read(world, other, 0, Mark));
        byte[] any = List(1, [[.. one[..1], 0xC0, .. one[2..]], two], [good]); // LU ID type is ignored
        world.Good(world.A, Cdb(any), any);
        Assert.Equal("0000002B" + "01000000" + "0008" + "0020" + "00000800" + "08000000" + new string('0', 30), world.Good(world.A, "84030000000000000000000001000000").Text[..70]);
        Assert.Equal("000404" + "090000" + "000000" + "03" + "020AE4", world.Good(world.A, "84030000000000000000000001000000").Text[68..]);
        world.Bad(world.A, "84000900000000000000000001000000", "05/24/00");
    }

    [Fact]
    public void Failed_segments_can_be_asked_for()
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits();
        Pattern(world, 0, Mark);
        byte[] list = List(5, [Target(world, 0, 0), Target(world, 1, 0)], [Blocks(0, 1, 8, 0, 0)]);
        other.Fails = IoStatus.IoError;
        world.Bad(world.A, Cdb(list), "0A/0D/01", list);
        byte[] details = world.Good(world.A, "84040500000000000000000001000000").Data;
        Assert.Equal("0000004A", Convert.ToHexString(details.AsSpan(0, 4)));
        Assert.Equal("02000012" + "70000A00000000" + "0A00000000" + "0D01", Convert.ToHexString(details.AsSpan(56, 18)));
        other.IsReadOnly = true;
        other.Fails = null;
        world.Bad(world.A, Cdb(list), "07/27/00", list);
    }

    [Fact]
    public void Holes_stay_holes()
    {
        (ScsiWorld world, MemoryDevice other) = TwoUnits();
        Assert.Equal(ScsiStatus.Good, world.Send(world.A, ScsiWorld.Cdb16(0x8A, 0, 8), ScsiWorld.Fill(Mark, 9), 1UL << 48).Status);
        byte[] list = List(1, [Target(world, 0, 0), Target(world, 1, 0)], [Blocks(0, 1, 8, 0, 0)]);
        world.Good(world.A, Cdb(list), list);
        var runs = new List<MapRun>();
        Assert.Equal(IoStatus.Ok, world.Loop.Run(other.MapAsync(0, Mark, 8, runs)));
        Assert.Equal([new MapRun(Mark, true)], runs);
    }

    private static (ScsiWorld World, MemoryDevice Other) TwoUnits(ulong sizeBytes = 4 << 20, string? hidesSecondFrom = null)
    {
        var world = new ScsiWorld(sizeBytes: sizeBytes, mayUse: (nexus, lun) => lun == 0 || nexus.InitiatorName != hidesSecondFrom);
        var other = new MemoryDevice(4 << 20);
        world.Target.SetLun(1, new LogicalUnit(world.Loop, other, new LogicalUnitOptions { Uuid = new Guid("aa112233-4455-4677-8899-aabbccddeeff") }));
        foreach (ScsiNexus nexus in new[] { world.A, world.B })
        {
            while (world.Send(nexus, "000000000000").Status != ScsiStatus.Good) { }
            while (world.Send(nexus, "000000000000", lun: 1UL << 48) is { Sense: "06/29/00" or "06/3F/0E" }) { }
        }

        return (world, other);
    }

    private static byte[] Pattern(ScsiWorld world, ulong offset, int length)
    {
        var data = new byte[length];
        world.Loop.Random.Fill(data);
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.WriteAsync(offset, data, WriteFlags.None)));
        return data;
    }

    private static byte[] Read(ScsiWorld world, MemoryDevice device, ulong offset, int length)
    {
        var data = new byte[length];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(device.ReadAsync(offset, data)).Status);
        return data;
    }

    private static string Cdb(byte[] list, int length = -1) => $"83000000000000000000{(length < 0 ? list.Length : length):X8}0000";

    /// <summary>An identification descriptor with the n-th designator of page 83; the T10 one (1) is too long for it.</summary>
    private static byte[] Target(ScsiWorld world, int lun, int designator)
    {
        byte[] page = world.Send(world.A, "120183010000", lun: (ulong)lun << 48).Data;
        int at = 4;
        for (int i = 0; i < designator; i++) at += 4 + page[at + 3];
        var target = new byte[32];
        target[0] = 0xE4;
        page.AsSpan(at, 4 + page[at + 3]).CopyTo(target.AsSpan(4));
        target[30] = 2;
        return target;
    }

    private static byte[] Blocks(int source, int target, int blocks, ulong from, ulong to) =>
        ScsiWorld.Hex($"02000018{source:X4}{target:X4}0000{blocks:X4}" + ScsiWorld.U64(from) + ScsiWorld.U64(to));

    private static byte[] List(byte id, byte[][] targets, byte[][] segments, int usage = 0)
    {
        byte[] all = [.. targets.SelectMany(t => t)], parts = [.. segments.SelectMany(s => s)];
        return [.. ScsiWorld.Hex($"{id:X2}{usage << 3:X2}{all.Length:X4}00000000{parts.Length:X8}00000000"), .. all, .. parts];
    }
}
