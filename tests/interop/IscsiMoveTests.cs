using System.Diagnostics;
using System.Globalization;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Volumes that move, and disks that are emptied, under foreign initiators: libiscsi in qemu, with fio behind it, which checks
/// all that it has written, and the kernel's own with a file system. Nobody sees an error or a wrong byte, and nobody is cut off.</summary>
public sealed class IscsiMoveTests(ITestOutputHelper output) : IDisposable
{
    private const string Prefix = "iqn.2026-11.org.blockserver", Pair = "iqn.2026-11.org.example:pair";

    private readonly Blockd _blockd = new("v0", "48m", "--loops", "2");
    private readonly List<Process> _bridges = [];

    public void Dispose()
    {
        foreach (Process bridge in _bridges)
        {
            if (!bridge.HasExited) bridge.Kill();
            bridge.WaitForExit();
            bridge.Dispose();
        }

        _blockd.Dispose();
    }

    [Fact]
    public async Task Libiscsi_sees_no_error_and_no_wrong_byte_while_volumes_move_and_their_disk_is_emptied()
    {
        var pfcli = new Pfcli(_blockd);
        string first = pfcli.Disks().Single(d => d.Path == _blockd.Store).Name;
        pfcli.Run("add_disk", Path.Combine(_blockd.Directory, "second.blk"), "-n", "second", "-s", "1g");
        for (int i = 1; i < 5; i++) pfcli.Run("create_volume", "-v", $"v{i}", "-s", "48m", "--disk", first);
        pfcli.Run("create_volume", "-v", "v5", "-s", "48m", "--disk", "second");
        // A target over disks of both loops: what moves there becomes far from its target, or near.
        pfcli.Run("create_target", "-t", Pair);
        foreach (string volume in new[] { "v3", "v4", "v5" }) pfcli.Run("add_lun", "-t", Pair, "-v", volume, "--keep-own-target");
        pfcli.Run("allow_initiator", "-t", Pair, "-i", "*");
        string[] exports =
        [
            Bridge(0, $"{Prefix}:v0", 0, "none"), Bridge(1, $"{Prefix}:v1", 0, "crc32c"), Bridge(2, $"{Prefix}:v2", 0, "crc32c"),
            Bridge(3, Pair, 0, "none"), Bridge(4, Pair, 1, "crc32c"), Bridge(5, Pair, 2, "none"),
        ];
        using Process fio = Fio(exports);
        Task<string> said = fio.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken), complained = fio.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        await Task.Delay(1000, TestContext.Current.CancellationToken); // they write before anything moves
        string[] sessions = SessionsOf(pfcli);
        Assert.Equal(exports.Length, sessions.Length);
        foreach (string volume in new[] { "v0", "v3", "v0", "v4" })
        {
            pfcli.Run("move_volume", "-v", volume, "-d", "second", "--wait");
            pfcli.Run("move_volume", "-v", volume, "-d", first, "--wait");
        }

        pfcli.Run("move_volume", "-v", "v5", "-d", first, "--wait");
        pfcli.Run("drain_disk", first);
        Assert.False(fio.HasExited, "fio ended before the disk was empty: the test showed nothing\n" + (fio.HasExited ? await said + await complained : ""));
        DiskInfo emptied = pfcli.Disks().Single(d => d.Name == first);
        Assert.Equal((0, true), (emptied.Volumes, emptied.Draining));
        pfcli.Run("remove_disk", first, "--yes");
        Assert.Equal(sessions, SessionsOf(pfcli)); // nobody had to come back
        Blockd.Run("/bin/kill", "-TERM", Text(fio.Id));
        await fio.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.True(fio.ExitCode == 128, "fio: " + await said + await complained); // told to end; one more for each job with an error
        foreach (SessionInfo session in pfcli.Sessions()) output.WriteLine($"{session.Volume} {session.ReadOps} reads, {session.WriteOps} writes");
        for (int i = 0; i < exports.Length; i++)
            Blockd.Run("qemu-img", "compare", "-f", "raw", "-F", "raw", exports[i], $"nbd+unix:///v{Text(i)}?socket={_blockd.Socket}");
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Open_iscsi_does_not_notice_that_the_disk_under_its_file_system_is_emptied()
    {
        Guest.Require();
        var pfcli = new Pfcli(_blockd);
        string first = pfcli.Disks().Single(d => d.Path == _blockd.Store).Name;
        pfcli.Run("add_disk", Path.Combine(_blockd.Directory, "second.blk"), "-n", "second", "-s", "1g");
        pfcli.Run("create_volume", "-v", "demo", "-s", "96m", "--disk", first);
        using Guest guest = Guest.BootWithNetwork();
        guest.Run("initiator");
        guest.Run($"login {Prefix}:demo {Text(_blockd.IscsiPort)} && appears /dev/sda");
        guest.Run("mkfs.ext4 -q /dev/sda && mount /dev/sda /mnt");
        guest.Run("noise & putting f &");
        List<string> lines = guest.WaitFor("synced ", 3);
        string[] sessions = SessionsOf(pfcli);
        foreach (string disk in new[] { "second", first })
        {
            pfcli.Run("move_volume", "-v", "demo", "-d", disk, "--wait");
            lines.AddRange(guest.WaitFor("synced ", 2));
        }

        pfcli.Run("drain_disk", first);
        lines.AddRange(guest.WaitFor("synced ", 2));
        Assert.Equal(sessions, SessionsOf(pfcli));
        Dictionary<string, string> synced = GuestJudge.End(guest, lines, "/dev/sda");
        guest.Run($"iscsiadm -m node -T {Prefix}:demo --logout");
        string image = Path.Combine(_blockd.Directory, "end.img");
        Blockd.Run("nbdcopy", $"nbd+unix:///demo?socket={_blockd.Socket}", image);
        Blockd.Run("/sbin/e2fsck", "-fn", image);
        Assert.Equal(0, _blockd.Stop());
        output.WriteLine($"{synced.Count} files were synced");
    }

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);

    private static string[] SessionsOf(Pfcli pfcli) => [.. pfcli.Sessions().Where(s => s.Protocol == "iscsi").Select(s => s.Id).Order(StringComparer.Ordinal)];

    /// <summary>qemu as an initiator of one LUN, which it shows over NBD; the address.</summary>
    private string Bridge(int number, string target, int lun, string digest)
    {
        string socket = Path.Combine(_blockd.Directory, $"bridge-{Text(number)}.sock");
        string disk = $"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:{Text(_blockd.IscsiPort)},file.target={target},"
            + $"file.lun={Text(lun)},file.header-digest={digest},file.initiator-name=iqn.2026-11.org.example:bridge{Text(number)}";
        _bridges.Add(Process.Start("qemu-nbd", ["--persistent", "--shared=0", "--socket", socket, "--image-opts", disk]));
        for (int i = 0; i < 200 && !File.Exists(socket); i++) Thread.Sleep(50);
        Assert.True(File.Exists(socket), "qemu-nbd does not serve " + disk);
        return "nbd+unix:///?socket=" + socket;
    }

    /// <summary>fio on every export, which checks every block that it has written, until it is told to end.</summary>
    private static Process Fio(string[] exports)
    {
        List<string> arguments =
        [
            "--ioengine=nbd", "--rw=randrw", "--bsrange=512-16k", "--blockalign=4k", "--iodepth=4", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1",
            "--size=48m", "--time_based", "--runtime=600", "--rate_iops=1500", "--group_reporting", "--minimal",
        ];
        foreach (string export in exports) arguments.AddRange(["--name=" + export.Split('/')[^1], "--uri=" + export]);
        return Process.Start(new ProcessStartInfo("fio", arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
    }
}
