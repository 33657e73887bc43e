using System.Text;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;
using Xunit;

namespace BlockServer.Tests.Unit.Iscsi.Scsi;

/// <summary>INQUIRY, capacity, mode and log pages: exact bytes.</summary>
public class InquiryTests
{
    private static readonly string Serial = Convert.ToHexString(Encoding.ASCII.GetBytes(ScsiWorld.Uuid.ToString("N")));

    [Fact]
    public void Standard_data_has_these_bytes()
    {
        var world = new ScsiWorld(o => o with { IsRemovable = true });
        string head = "00" + "80" + "06" + "12" + "5B" + "18" + "10" + "02";
        string names = Text("BLOCKD  ") + Text("volume          ") + Text("0001");
        string versions = "00A0" + "0960" + "0460" + "04C0" + new string('0', 16);
        string all = head + names + new string('0', 44) + versions + new string('0', 44);
        Assert.Equal(192, all.Length);
        Assert.Equal(all, world.Good(world.A, "120000020000").Text);
        Assert.Equal(all[..10], world.Good(world.A, "120000000500").Text);
        Assert.Equal("", world.Good(world.A, "120000000000").Text);
        var solid = new ScsiWorld();
        Assert.Equal("00000612", solid.Good(solid.A, "120000020000").Text[..8]);
        world.Bad(world.A, "120001010000", "05/24/00");
        world.Bad(world.A, "120200010000", "05/24/00");
        world.Bad(world.A, "120199010000", "05/24/00");
    }

    [Theory]
    [InlineData("00", "0000000B" + "00808385868788" + "8FB0B1B2")]
    [InlineData("85", "00850000")]
    [InlineData("86", "0086003C" + "00070101" + "0000000000" + "FC")]
    [InlineData("87", "00870004" + "3FFF0000")]
    [InlineData("B1", "00B1003C" + "00010040" + "00000000")]
    [InlineData("B2", "00B20004" + "0BE40200")]
    [InlineData("B0", "00B0003C" + "01010008" + "00010000" + "00000800" + "00000000" + "00100000" + "00000100" + "00000008" + "80000000"
        + "0000000000200000" + "00000800" + "00000000" + "00000000" + "00000000" + "00000000")]
    public void Pages_begin_with_these_bytes(string page, string expected)
    {
        var world = new ScsiWorld();
        Reply reply = world.Good(world.A, $"1201{page}040000");
        Assert.Equal(expected, reply.Text[..expected.Length]);
        Assert.Equal(4 + (reply.Data[2] << 8 | reply.Data[3]), reply.Data.Length);
    }

    [Fact]
    public void A_thick_unit_of_large_blocks_promises_less()
    {
        var world = new ScsiWorld(o => o with { IsThin = false, BlockBytes = 4096, Durability = Durability.Ack });
        Assert.Equal("0000000A00808385868788" + "8FB0B1", world.Good(world.A, "120100010000").Text);
        Assert.Equal("00B0003C" + "01010001" + "00002000" + "00000100" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000"
            + "0000000000008000" + "00000100", world.Good(world.A, "1201B0010000").Text[..96]);
        Assert.Equal("00B1003C" + "00010000", world.Good(world.A, "1201B1010000").Text[..16]);
        Assert.Equal("0086003C" + "00070001", world.Good(world.A, "120186010000").Text[..16]);
        world.Bad(world.A, "1201B2010000", "05/24/00");
    }

    [Fact]
    public void The_unit_is_named_the_same_on_every_port()
    {
        var world = new ScsiWorld();
        Assert.Equal("00800020" + Serial, world.Good(world.A, "120180010000").Text);
        string unit = "01030008" + Naa() + "02010028" + Text("BLOCKD  ") + Serial + "010A0012" + "1000" + "00112233445546778899AABBCCDDEEFF";
        string a = world.Good(world.A, "120183010000").Text, b = world.Good(world.B, "120183010000").Text;
        Assert.Equal(unit, a[8..(8 + unit.Length)]);
        Assert.Equal(unit, b[8..(8 + unit.Length)]);
        Assert.Equal("51940004" + "00000002" + "51950004" + "00000001" + "5398001C" + Text("iqn.2024-01.test:a,t,0x0002") + "00"
            + "53A80014" + Text("iqn.2024-01.test:a") + "0000", b[(8 + unit.Length)..]);
        string ports = world.Good(world.A, "120188010000").Text;
        Assert.Equal("00880058" + "00000001" + "00000000" + "00000020" + "5398001C" + Text("iqn.2024-01.test:a,t,0x0001") + "00"
            + "00000002", ports[..104]);
    }

    [Fact]
    public void Third_party_copy_tells_commands_and_limits()
    {
        var world = new ScsiWorld();
        string page = world.Good(world.A, "12018F010000").Text;
        Assert.Equal("008F005C" + "0001000C" + "08" + "830100" + "840300" + "0304" + "000000", page[..40]);
        Assert.Equal("0004001C" + "00000000" + "00080020" + "00000800", page[40..72]);
        Assert.Equal("00080004" + "03020AE4" + "80010020" + "00000004" + "04", page[104..138]);
    }

    [Fact]
    public void Capacity_is_told_with_physical_blocks_and_provisioning()
    {
        var world = new ScsiWorld();
        Assert.Equal("00001FFF" + "00000200", world.Good(world.A, "25000000000000000000").Text);
        string all = "0000000000001FFF" + "00000200" + "00" + "03" + "C000" + new string('0', 32);
        Assert.Equal(all, world.Good(world.A, "9E100000000000000000000000200000").Text);
        Assert.Equal(all[..24], world.Good(world.A, "9E1000000000000000000000000C0000").Text);
        world.Bad(world.A, "25000000000100000000", "05/24/00");
        var big = new ScsiWorld(o => o with { BlockBytes = 4096, IsThin = false }, 3UL << 40);
        Assert.Equal("2FFFFFFF" + "00001000", big.Good(big.A, "25000000000000000000").Text);
        Assert.Equal("000000002FFFFFFF" + "00001000" + "00" + "00" + "0000", big.Good(big.A, "9E100000000000000000000000200000").Text[..32]);
        var huge = new ScsiWorld(sizeBytes: 3UL << 40);
        Assert.Equal("FFFFFFFF" + "00000200", huge.Good(huge.A, "25000000000000000000").Text);
    }

    [Fact]
    public void Mode_pages_have_these_bytes()
    {
        var world = new ScsiWorld();
        string descriptor = "00002000" + "00000200";
        string recovery = "010A" + new string('0', 20), caching = "0812" + "04" + new string('0', 34);
        string control = "0A0A" + "0010000000" + "00FFFF0000", extension = "4A01001C" + "0000FC" + new string('0', 50);
        string exceptions = "1C0A" + "08" + new string('0', 18);
        Assert.Equal("43" + "00" + "10" + "08" + descriptor + recovery + caching + control + exceptions, world.Good(world.A, "1A003F00FF00").Text);
        Assert.Equal("5B001000" + recovery + caching + control + extension + exceptions, world.Good(world.A, "1A083FFFFF00").Text);
        Assert.Equal("0F001000" + control, world.Good(world.A, "1A080A00FF00").Text);
        Assert.Equal("23001000" + extension, world.Good(world.A, "1A080A01FF00").Text);
        Assert.Equal("17001000" + "0812" + "04" + new string('0', 34), world.Good(world.A, "1A084800FF00").Text); // changeable
        Assert.Equal("0F001000" + "0A0A" + "0400084000" + "0000000000", world.Good(world.A, "1A084A00FF00").Text);
        Assert.Equal("17001000" + caching, world.Good(world.A, "1A088800FF00").Text); // default
        world.Bad(world.A, "1A08CA00FF00", "05/39/00"); // saved
        world.Bad(world.A, "1A083000FF00", "05/24/00");
        Assert.Equal("001A" + "00100000" + "0008" + descriptor + control, world.Good(world.A, "5A000A00000000010000").Text);
        Assert.Equal("0022" + "00100100" + "0010" + "0000000000002000" + "0000000000000200" + control, world.Good(world.A, "5A100A00000000010000").Text);
        Assert.Equal("43001008", world.Good(world.A, "1A003F000400").Text);
    }

    [Fact]
    public void Mode_select_changes_what_is_changeable_and_nothing_else()
    {
        var world = new ScsiWorld();
        string list = "00000000" + "0812" + "00" + new string('0', 34);
        world.Good(world.A, "151000001800", ScsiWorld.Hex(list)); // WCE off
        Assert.Equal(1, world.Device.Flushes); // and what was in the cache is written
        world.Bad(world.B, "000000000000", "06/2A/01");
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), new byte[512]);
        Assert.Equal(WriteFlags.Fua, world.Device.LastFlags);
        world.Good(world.A, "151000001800", ScsiWorld.Hex(list)); // the same again: nobody is told
        world.Good(world.B, "000000000000");
        Reply bad = world.Bad(world.A, "151000001800", "05/26/00", ScsiWorld.Hex("00000000" + "0812" + "01" + new string('0', 34)));
        Assert.Equal("800006", Convert.ToHexString(bad.SenseBytes.AsSpan(15)));
        world.Bad(world.A, "151000001700", "05/1A/00", ScsiWorld.Hex(list[..46]));
        world.Bad(world.A, "151000001800", "05/1A/00", ScsiWorld.Hex(list[..40])); // less came than was said
        world.Bad(world.A, "151000000600", "05/26/00", ScsiWorld.Hex("000000003000"));
        world.Bad(world.A, "151100001800", "05/24/00", ScsiWorld.Hex(list));
        world.Bad(world.A, "150000001800", "05/24/00", ScsiWorld.Hex(list));
        world.Good(world.A, "151000000000");
        // Two pages, the second wrong: the first is not applied either.
        world.Bad(world.A, "151000002400", "05/26/00", ScsiWorld.Hex("00000000" + "0A0A" + "0410000000" + "00FFFF0000" + "0812" + "05" + new string('0', 34)));
        Assert.Equal("70", Convert.ToHexString(world.Send(world.A, "FF0000000000").SenseBytes.AsSpan(0, 1)));
        // D_SENSE with MODE SELECT (10) and a right block descriptor.
        world.Good(world.A, "55100000000000001C00", ScsiWorld.Hex("0000000000000008" + "00002000" + "00000200" + "0A0A" + "0410000000" + "00FFFF0000"));
        Assert.Equal("7205200000000000", Convert.ToHexString(world.Send(world.A, "FF0000000000").SenseBytes));
        world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.LogicalUnitReset, 0, 0));
        Assert.Equal("700006", Convert.ToHexString(world.Send(world.A, "FF0000000000").SenseBytes)[..6]); // defaults again
    }

    [Fact]
    public void Durable_units_have_no_cache_to_switch()
    {
        var world = new ScsiWorld(o => o with { Durability = Durability.Ack });
        Assert.Equal("17001000" + "0812" + "00", world.Good(world.A, "1A080800FF00").Text[..14]);
        world.Bad(world.A, "151000001800", "05/26/00", ScsiWorld.Hex("00000000" + "0812" + "04" + new string('0', 34)));
        world.Good(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), new byte[512]);
        Assert.Equal(WriteFlags.None, world.Device.LastFlags);
    }

    [Fact]
    public void Software_write_protect_refuses_changes()
    {
        var world = new ScsiWorld();
        world.Good(world.A, "151000001000", ScsiWorld.Hex("00000000" + "0A0A" + "0010080000" + "00FFFF0000"));
        world.Bad(world.A, ScsiWorld.Cdb16(0x8A, 0, 1), "07/27/02", new byte[512]);
        Assert.Equal("0F009000", world.Good(world.A, "1A080A00FF00").Text[..8]);
        var readOnly = new ScsiWorld(o => o with { IsReadOnly = true });
        readOnly.Bad(readOnly.A, ScsiWorld.Cdb16(0x8A, 0, 1), "07/27/00", new byte[512]);
        readOnly.Bad(readOnly.A, ScsiWorld.Cdb10(0x41, 0, 1), "07/27/00", new byte[512]);
        readOnly.Bad(readOnly.A, "42000000000000001800", "07/27/00", new byte[24]);
        readOnly.Bad(readOnly.A, "890000000000000000000000000100" + "00", "07/27/00", new byte[1024]);
        readOnly.Bad(readOnly.A, "48020000000000000000", "07/27/00");
        readOnly.Good(readOnly.A, ScsiWorld.Cdb16(0x88, 0, 1));
    }

    [Fact]
    public void Removable_media_come_and_go()
    {
        var world = new ScsiWorld(o => o with { IsRemovable = true });
        world.Good(world.B, "1E0000000100"); // PREVENT
        world.Bad(world.A, "1B0000000200", "05/53/02");
        world.Good(world.A, "000000000000");
        world.Good(world.B, "1E0000000000");
        world.Good(world.A, "1B0000000200");
        Assert.Equal(1, world.Device.Flushes);
        world.Bad(world.A, "000000000000", "02/3A/00");
        world.Bad(world.A, ScsiWorld.Cdb16(0x88, 0, 1), "02/3A/00");
        world.Bad(world.A, ScsiWorld.Cdb10(0x35, 0, 1), "02/3A/00");
        world.Good(world.A, "1B0000000200");
        world.Good(world.B, "1E0000000100");
        world.Bad(world.A, "1B0000000300", "05/53/02");
        world.Loop.Run(world.Target.ManageAsync(world.A, TaskFunction.TargetColdReset, 0, 0));
        world.Bad(world.A, "000000000000", "06/29/01");
        world.Good(world.A, "1B0000000300");
        world.Good(world.A, "000000000000");
        world.Good(world.A, "1B0000000000"); // stop: nothing to stop
        world.Good(world.A, "000000000000");
        world.Good(world.A, "1B0100003200"); // a power condition
        world.Good(world.A, "000000000000");
        var solid = new ScsiWorld();
        solid.Bad(solid.A, "1B0000000200", "05/24/00");
        solid.Good(solid.A, "1B0000000000");
    }

    [Fact]
    public void Logs_diagnostics_defects_and_groups()
    {
        var world = new ScsiWorld(o => o with { Usage = () => new ThinUsage(5 << 20, 3 << 20) });
        Assert.Equal("00000002" + "000C", world.Good(world.A, "4D000000000000010000").Text);
        Assert.Equal("40FF0004" + "00000C00", world.Good(world.A, "4D0000FF000000010000").Text);
        Assert.Equal("0C000018" + "000103080000000502000000" + "000203080000000301000000", world.Good(world.A, "4D004C00000000010000").Text);
        world.Bad(world.A, "4D000D00000000010000", "05/24/00");
        var unknown = new ScsiWorld();
        Assert.Equal("00000001" + "00", unknown.Good(unknown.A, "4D000000000000010000").Text);
        unknown.Bad(unknown.A, "4D000C00000000010000", "05/24/00");
        world.Good(world.A, "1D0400000000");
        world.Bad(world.A, "1D0400000400", "05/24/00", new byte[4]);
        world.Bad(world.A, "1D4000000000", "05/24/00");
        Assert.Equal("000D0000", world.Good(world.A, "37000D00000000010000").Text);
        Assert.Equal("000D000000000000", world.Good(world.A, "B70D00000000000001000000").Text);
        Assert.Equal("00000010" + "80010001" + "00000002" + "00000001" + "00000002", world.Good(world.A, "A30A00000000000001000000").Text);
        Assert.Equal("00000014" + "10000000" + "80010001", world.Good(world.A, "A32A00000000000001000000").Text[..24]);
        world.Bad(world.A, "A40A00000000000000080000", "05/24/00", new byte[8]);
        Assert.Equal("DA000000", world.Good(world.A, "A30D00000000000000040000").Text);
        Assert.Equal("DA00000C" + new string('0', 24), world.Good(world.A, "A30D80000000000000400000").Text);
    }

    [Fact]
    public void Every_supported_command_is_listed_and_can_be_asked_for()
    {
        var world = new ScsiWorld();
        byte[] all = world.Good(world.A, "A30C00000000000100000000").Data;
        Assert.Equal(0, (all.Length - 4) % 8);
        for (int at = 4; at < all.Length; at += 8)
        {
            string code = $"{all[at]:X2}", action = $"{all[at + 2]:X2}{all[at + 3]:X2}";
            bool hasAction = (all[at + 5] & 1) != 0;
            byte[] one = world.Good(world.A, $"A30C{(hasAction ? "02" : "01")}{code}{action}000010000000").Data;
            Assert.Equal(3, one[1]);
            Assert.Equal(all[at + 7], one[3]);
            Assert.Equal(4 + one[3], one.Length);
            Assert.Equal(all[at], one[4]);
            world.Bad(world.A, $"A30C{(hasAction ? "01" : "02")}{code}{action}000010000000", "05/24/00");
        }

        Assert.Equal("0003000A" + "28" + "18FFFFFFFF1FFFFF00", world.Good(world.A, "A30C01280000000010000000").Text);
        Assert.Equal("0083000A" + "28" + "18FFFFFFFF1FFFFF00" + "000A" + new string('0', 20), world.Good(world.A, "A30C81280000000010000000").Text);
        Assert.Equal("0003000A" + "48" + "A2" + "0000000000FFFF00", world.Good(world.A, "A30C02480002000010000000").Text);
        Assert.Equal("00010000", world.Good(world.A, "A30C01EE0000000010000000").Text);
        Assert.Equal("00010000", world.Good(world.A, "A30C02480005000010000000").Text);
        byte[] timed = world.Good(world.A, "A30C80000000000100000000").Data;
        Assert.Equal((all.Length - 4) / 8 * 20 + 4, timed.Length);
        Assert.Equal("0000000000020006" + "000A" + new string('0', 20), Convert.ToHexString(timed.AsSpan(4, 20)));
    }

    private static string Text(string ascii) => Convert.ToHexString(Encoding.ASCII.GetBytes(ascii));

    private static string Naa()
    {
        byte[] uuid = ScsiWorld.Uuid.ToByteArray(bigEndian: true);
        for (int i = 0; i < 8; i++) uuid[i] ^= uuid[8 + i];
        uuid[0] = (byte)(0x30 | (uuid[0] & 0x0F));
        return Convert.ToHexString(uuid.AsSpan(0, 8));
    }
}
