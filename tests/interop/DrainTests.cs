using System.Diagnostics;
using System.Globalization;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Disks that are emptied under foreign clients: fio writes and verifies over NBD, and sees no error and no wrong byte,
/// also when the daemon is killed in between.</summary>
public sealed class DrainTests : IDisposable
{
    private readonly Blockd _blockd = new("v0", "16m", "--loops", "2");
    private readonly Pfcli _pfcli;

    public DrainTests() => _pfcli = new Pfcli(_blockd);

    public void Dispose() => _blockd.Dispose();

    private string First => _pfcli.Disks().Single(d => d.Path == _blockd.Store).Name;

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);

    private void AddSecond() => _pfcli.Run("add_disk", Path.Combine(_blockd.Directory, "second.blk"), "-n", "second", "-s", "1g");

    /// <summary>fio on some volumes, which checks every block that it has written, until it is told to end.</summary>
    private Process Fio(int volumes)
    {
        List<string> arguments =
        [
            "--ioengine=nbd", "--rw=randrw", "--bs=4k", "--iodepth=4", "--verify=crc32c", "--verify_backlog=64", "--verify_fatal=1", "--size=16m",
            "--time_based", "--runtime=600", "--rate_iops=200", "--group_reporting", "--minimal",
        ];
        for (int i = 0; i < volumes; i++) arguments.AddRange(["--name=v" + Text(i), $"--uri=nbd+unix:///v{Text(i)}?socket={_blockd.Socket}"]);
        return Process.Start(new ProcessStartInfo("fio", arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
    }

    [Fact]
    public async Task Twenty_volumes_leave_a_disk_under_fio_without_an_error_or_a_wrong_byte()
    {
        const int Volumes = 20;
        for (int i = 1; i < Volumes; i++) _pfcli.Run("create_volume", "-v", "v" + Text(i), "-s", "16m");
        AddSecond();
        using Process fio = Fio(Volumes);
        Task<string> output = fio.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken), error = fio.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken);
        while (_pfcli.Sessions().Count < Volumes && !fio.HasExited) await Task.Delay(100, TestContext.Current.CancellationToken);
        _pfcli.Run("drain_disk", First);
        Assert.False(fio.HasExited, "fio ended before the disk was empty: the test showed nothing");
        DiskInfo old = _pfcli.Disks().Single(d => d.Name == First);
        Assert.Equal((0, true), (old.Volumes, old.Draining));
        _pfcli.Run("remove_disk", First, "--yes");
        Assert.Equal(Volumes, _pfcli.Sessions().Count); // nobody had to come back
        Blockd.Run("/bin/kill", "-TERM", Text(fio.Id));
        await fio.WaitForExitAsync(TestContext.Current.CancellationToken);
        Assert.True(fio.ExitCode == 128, "fio: " + await output + await error); // told to end; one more for each job with an error
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void A_killed_daemon_goes_on_with_its_drain_and_every_volume_is_whole()
    {
        const int Volumes = 8;
        string made = Path.Combine(_blockd.Directory, "content.img");
        for (int i = 0; i < Volumes; i++)
        {
            if (i > 0) _pfcli.Run("create_volume", "-v", "v" + Text(i), "-s", "16m");
            var content = new byte[16 << 20];
            new Random(i).NextBytes(content);
            File.WriteAllBytes(made, content);
            Blockd.Run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", made, $"nbd+unix:///v{Text(i)}?socket={_blockd.Socket}");
        }

        AddSecond();
        var random = new Random(7);
        for (int kill = 0; kill < 8; kill++)
        {
            if (kill == 0) _pfcli.Run("drain_disk", First, "--no-wait");
            Thread.Sleep(random.Next(10, 250));
            _blockd.Kill();
            _blockd.Restart();
            Check(Volumes);
        }

        // What was begun is carried through by itself.
        for (int i = 0; i < 600 && _pfcli.Disks().Single(d => d.Path == _blockd.Store).Volumes > 0; i++) Thread.Sleep(100);
        Assert.Equal(0, _pfcli.Disks().Single(d => d.Path == _blockd.Store).Volumes);
        Check(Volumes);
        Assert.Equal(0, _blockd.Stop());
    }

    private void Check(int volumes)
    {
        string expected = Path.Combine(_blockd.Directory, "content.img");
        for (int i = 0; i < volumes; i++)
        {
            var content = new byte[16 << 20];
            new Random(i).NextBytes(content);
            File.WriteAllBytes(expected, content);
            Blockd.Run("qemu-img", "compare", "-f", "raw", "-F", "raw", expected, $"nbd+unix:///v{Text(i)}?socket={_blockd.Socket}");
        }
    }
}
