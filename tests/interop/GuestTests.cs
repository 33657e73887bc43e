using System.Globalization;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>
/// A Linux guest's ext4 on a volume: what the guest synced is there with the right checksums, and the file system is clean
/// after its journal was replayed, whether guest and daemon died in the middle of writing or the daemon was killed under it.
/// </summary>
public class GuestTests(ITestOutputHelper output)
{
    [Fact]
    public void A_guest_that_dies_with_the_daemon_finds_what_it_synced()
    {
        Guest.Require();
        using var blockd = new Blockd("demo", "96m");
        Dictionary<string, string> synced;
        using (Guest guest = Guest.BootOn(blockd.Socket, "demo"))
        {
            guest.Run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
            guest.Run("noise & putting f &");
            List<string> lines = guest.WaitFor("synced ", 15);
            lines.AddRange(guest.PullThePlug());
            synced = GuestJudge.SumsOf(lines, "synced");
        }

        blockd.Kill();
        blockd.Restart();
        string image = Path.Combine(blockd.Directory, "crashed.img");
        Blockd.Run("nbdcopy", blockd.UnixUri, image);
        JudgeImage(image);
        using (Guest again = Guest.BootOn(blockd.Socket, "demo"))
        {
            GuestJudge.JudgeFiles(again, synced, "/dev/vda");
            again.PowerOff();
        }

        Assert.Equal(0, blockd.Stop());
        output.WriteLine($"{synced.Count} files were synced before the power went");
    }

    [Theory]
    [InlineData("io_uring")]
    [InlineData("aio")]
    public void A_guest_does_not_notice_that_the_daemon_is_killed_under_it(string engine)
    {
        Guest.Require();
        using var blockd = new Blockd("demo", "96m", "--engine", engine);
        using Guest guest = Guest.BootOn(blockd.Socket, "demo");
        guest.Run("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt");
        List<string> lines = GuestJudge.LoadOverKills(guest, blockd);
        Dictionary<string, string> synced = GuestJudge.End(guest, lines, "/dev/vda");
        guest.PowerOff();
        GuestJudge.JudgeOutside(blockd);
        Assert.Equal(0, blockd.Stop());
        output.WriteLine($"{engine}: {synced.Count} files were synced over four kills of the daemon");
    }

    [Fact]
    public void The_kernels_own_nbd_client_makes_mounts_and_trims_a_file_system()
    {
        Guest.Require();
        using var blockd = new Blockd("demo", "96m");
        using Guest guest = Guest.BootWithNetwork();
        string attach = $"nbd-client 10.0.2.2 {blockd.Port.ToString(CultureInfo.InvariantCulture)} /dev/nbd0 -N demo -C 2 -b 4096";
        guest.Run("modprobe nbd && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0");
        guest.Run(attach);
        Assert.Equal("100663296", guest.Run("blockdev --getsize64 /dev/nbd0").Trim());
        Assert.Equal("0", guest.Run("cat /sys/block/nbd0/ro").Trim());
        Assert.NotEqual("0", guest.Run("cat /sys/block/nbd0/queue/discard_max_bytes").Trim());
        guest.Run("mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt");
        Dictionary<string, string> synced = GuestJudge.SumsOf(guest.Run("for i in 1 2 3 4 5 6 7 8 9; do put f$i $((i * 300)) || break; done").Split('\n'), "synced");
        Assert.Equal(9, synced.Count);
        guest.Run("put big 20000 && rm /mnt/big && sync && fstrim /mnt && umount /mnt");
        guest.Run("nbd-client -d /dev/nbd0");

        // What was trimmed is a hole again: far less than the 20 MB stay allocated.
        long allocated = Blockd.Run("nbdinfo", "--map", blockd.UnixUri).Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Where(word => word[2] == "0").Sum(word => long.Parse(word[1], CultureInfo.InvariantCulture));
        Assert.InRange(allocated, 9L * 300 * 1024, 30L << 20);

        Assert.Equal(0, blockd.Stop());
        blockd.Restart();
        guest.Run(attach);
        GuestJudge.JudgeFiles(guest, synced, "/dev/nbd0");
        guest.Run("nbd-client -d /dev/nbd0");
        Assert.Equal(0, blockd.Stop());
    }

    /// <summary>The host's own look at an image of a crashed file system: journal replayed, then nothing to mend.</summary>
    private static void JudgeImage(string image)
    {
        (int code, string said) = Blockd.Try("/sbin/e2fsck", "-y", "-E", "journal_only", image);
        Assert.True(code is 0 or 1, $"the journal could not be replayed ({code}):\n{said}");
        Blockd.Run("/sbin/e2fsck", "-fn", image);
    }
}
