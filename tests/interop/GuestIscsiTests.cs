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

    private static string Port(int port) => port.ToString(CultureInfo.InvariantCulture);
}
