using System.Globalization;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Linux' own initiator, open-iscsi, in the guest: a file system over a target that is killed under it, and over two
/// portals of which either goes away.</summary>
public sealed class GuestIscsiTests(ITestOutputHelper output)
{
    private const string Target = "iqn.2026-11.org.blockserver:demo";

    [Fact]
    public void Open_iscsi_does_not_notice_that_the_target_is_killed_under_its_file_system()
    {
        Guest.Require();
        using var blockd = new Blockd("demo", "96m");
        using Guest guest = Guest.BootWithNetwork();
        guest.Run("initiator");
        Assert.Contains(Target, guest.Run($"iscsiadm -m discovery -t sendtargets -p 10.0.2.2:{Port(blockd.IscsiPort)}"), StringComparison.Ordinal);
        guest.Run($"login {Target} {Port(blockd.IscsiPort)} && appears /dev/sda");
        Assert.Equal("100663296", guest.Run("blockdev --getsize64 /dev/sda").Trim());
        Assert.Equal("4096", guest.Run("cat /sys/block/sda/queue/physical_block_size").Trim());
        Assert.Contains("write back", guest.Run("cat /sys/block/sda/queue/write_cache"), StringComparison.Ordinal);
        Assert.NotEqual("0", guest.Run("cat /sys/block/sda/queue/discard_max_bytes").Trim());
        guest.Run("mkfs.ext4 -q /dev/sda && mount /dev/sda /mnt");
        List<string> lines = GuestJudge.LoadOverKills(guest, blockd);
        Dictionary<string, string> synced = GuestJudge.End(guest, lines, "/dev/sda");
        guest.Run($"iscsiadm -m node -T {Target} --logout");
        GuestJudge.JudgeOutside(blockd);
        Assert.Equal(0, blockd.Stop());
        output.WriteLine($"{synced.Count} files were synced over four kills of the target");
    }

    [Fact]
    public void Multipath_survives_the_loss_of_either_portal()
    {
        Guest.Require();
        int second = FreePort.Find();
        using var blockd = new Blockd("demo", "96m", "--iscsi", $"127.0.0.1:{second}");
        using var left = new Cable(blockd.IscsiPort);
        using var right = new Cable(second);
        using Guest guest = Guest.BootWithNetwork();
        guest.Run("initiator");
        const string settings = "node.session.timeo.replacement_timeout 2 node.conn[0].iscsi.HeaderDigest CRC32C node.conn[0].iscsi.DataDigest CRC32C";
        guest.Run($"login {Target} {Port(left.Port)} {settings} && appears /dev/sda");
        guest.Run($"login {Target} {Port(right.Port)} {settings} && appears /dev/sdb");
        guest.Run("multipath");
        guest.Run("mkfs.ext4 -q /dev/dm-0 && mount /dev/dm-0 /mnt");
        guest.Run("noise & putting f &");
        List<string> lines = guest.WaitFor("synced ", 4);
        foreach (Cable cable in new[] { left, right })
        {
            cable.Pull();
            lines.AddRange(guest.WaitFor("synced ", 4));
            lines.AddRange(guest.Run("until [ $(paths) = 1 ]; do sleep 0.2; done").Split('\n', StringSplitOptions.TrimEntries));
            lines.AddRange(guest.WaitFor("synced ", 2));
            cable.Plug();
            lines.AddRange(guest.Run("until [ $(paths) = 2 ]; do sleep 0.2; done").Split('\n', StringSplitOptions.TrimEntries));
        }

        lines.AddRange(guest.WaitFor("synced ", 2));
        Dictionary<string, string> synced = GuestJudge.End(guest, lines, "/dev/dm-0", mayFail: true);
        guest.Run($"multipathd disablequeueing maps && dmsetup remove mpatha && iscsiadm -m node -T {Target} --logout");
        GuestJudge.JudgeOutside(blockd);
        Assert.Equal(0, blockd.Stop());
        output.WriteLine($"{synced.Count} files were synced over two paths of which each was lost once");
    }

    /// <summary>sg_xcopy asks either unit for the copy. Their disks are of two loops; what is not of this target is out of reach.</summary>
    [Fact]
    public void Sg_xcopy_copies_between_disks_of_two_loops_and_nowhere_else()
    {
        const string pair = "iqn.2026-11.org.example:pair";
        const int bytes = 24 << 20;
        Guest.Require();
        using var blockd = new Blockd("one", "32m", "--loops", "2");
        var pfcli = new Pfcli(blockd);
        pfcli.Run("add_disk", Path.Combine(blockd.Directory, "second.blk"), "-n", "second", "-s", "1g");
        foreach (string volume in new[] { "two", "demo" }) pfcli.Run("create_volume", "-v", volume, "-s", "32m", "--disk", "second");
        pfcli.Run("create_target", "-t", pair);
        foreach (string volume in new[] { "one", "two" }) pfcli.Run("add_lun", "-t", pair, "-v", volume, "--keep-own-target");
        pfcli.Run("allow_initiator", "-t", pair, "-i", "iqn.2026-11.example:guest");
        using Guest guest = Guest.BootWithNetwork();
        guest.Run("initiator");
        guest.Run($"login {pair} {Port(blockd.IscsiPort)} && appears /dev/sda && appears /dev/sdb");
        guest.Run($"login {Target} {Port(blockd.IscsiPort)} && appears /dev/sdc");
        guest.Run("mkdir -p /dev/block; ln -s ../sda /dev/block/8:0; ln -s ../sdb /dev/block/8:16; ln -s ../sdc /dev/block/8:32"); // as udev has them
        guest.Run($"dd if=/dev/urandom of=/dev/sda bs=1M count={bytes >> 20} conv=fsync 2>/dev/null");
        string sum = Sum(guest, "sda", bytes);
        guest.Run($"sg_xcopy if=/dev/sda of=/dev/sdb bs=512 count={bytes / 512} --on_src");
        Assert.Equal(sum, Sum(guest, "sdb", bytes));
        guest.Run("dd if=/dev/zero of=/dev/sda bs=1M count=24 conv=fsync 2>/dev/null");
        guest.Run($"sg_xcopy if=/dev/sdb of=/dev/sda bs=512 count={bytes / 512} --on_src"); // the far one is asked
        Assert.Equal(sum, Sum(guest, "sda", bytes));
        guest.Run($"sg_xcopy if=/dev/sdb of=/dev/sda bs=512 count={bytes / 512} --on_dst");
        Assert.Equal(sum, Sum(guest, "sda", bytes));
        foreach ((string from, string to) in new[] { ("sda", "sdc"), ("sdb", "sdc"), ("sdc", "sdb") })
        {
            (int code, string said) = guest.Try($"sg_xcopy if=/dev/{from} of=/dev/{to} bs=512 count=8 2>&1");
            Assert.True(code != 0, said);
            Assert.Contains("Copy aborted", said, StringComparison.Ordinal);
        }

        Assert.Equal(sum, Sum(guest, "sdb", bytes));
        guest.Run("cmp -n 4096 /dev/sdc /dev/zero");

        // A LUN that comes under a session is there without anybody asking: the event makes open-iscsi scan.
        pfcli.Run("add_lun", "-t", pair, "-v", "demo", "--keep-own-target");
        guest.Run("appears /dev/sdd");
        foreach (string target in new[] { pair, Target }) guest.Run($"iscsiadm -m node -T {target} --logout");
        Assert.Equal(0, blockd.Stop());
    }

    /// <summary>Past the cache of the guest.</summary>
    private static string Sum(Guest guest, string disk, int bytes) =>
        guest.Run($"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/{disk} bs=1M count={bytes >> 20} 2>/dev/null | md5sum").Trim();

    private static string Port(int port) => port.ToString(CultureInfo.InvariantCulture);
}
