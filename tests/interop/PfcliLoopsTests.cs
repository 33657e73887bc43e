using System.Diagnostics;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>A daemon with several loops: the disks lie on different ones, connections are accepted on the first.</summary>
public sealed class PfcliLoopsTests : IDisposable
{
    private static readonly string[] Volumes = ["demo", "v1", "v2", "v3"];

    private readonly Blockd _blockd;
    private readonly Pfcli _pfcli;

    public PfcliLoopsTests()
    {
        _blockd = new Blockd("demo", "64m", "--loops", "3");
        _pfcli = new Pfcli(_blockd);
        for (int i = 1; i < Volumes.Length; i++)
        {
            _pfcli.Run("add_disk", Path.Combine(_blockd.Directory, $"disk{i}.blk"), "-s", "512m");
            _pfcli.Run("create_volume", "-v", Volumes[i], "-s", "64m", "--disk", $"disk{i}");
        }
    }

    public void Dispose() => _blockd.Dispose();

    private string UriOf(string volume, bool isUnix = false) =>
        isUnix ? $"nbd+unix:///{volume}?socket={_blockd.Socket}" : $"nbd://127.0.0.1:{_blockd.Port}/{volume}";

    [Fact]
    public void Volumes_on_every_loop_are_served_at_once_and_hold_their_own_data()
    {
        string[] images = [.. Volumes.Select(v => Path.Combine(_blockd.Directory, v + ".img"))];
        for (int i = 0; i < images.Length; i++) File.WriteAllBytes(images[i], Random(i, 64 << 20));
        Parallel(i => ["nbdcopy", "--flush", "--connections=4", images[i], UriOf(Volumes[i], isUnix: i % 2 == 0)]);
        Parallel(i => ["nbdcopy", "--connections=4", UriOf(Volumes[i]), images[i] + ".back"]);
        foreach (string image in images) Blockd.Run("cmp", image, image + ".back");
        Assert.Equal(0, _blockd.Stop());
        _blockd.Restart(); // the disks are spread anew
        Parallel(i => ["nbdcopy", "--connections=4", UriOf(Volumes[i], isUnix: i % 2 == 0), images[i] + ".back"]);
        foreach (string image in images) Blockd.Run("cmp", image, image + ".back");
        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Every_change_works_on_a_volume_of_another_loop()
    {
        foreach (string volume in Volumes)
        {
            Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 4 0 1m", "-c", "flush", UriOf(volume));
            _pfcli.Run("resize_volume", "-v", volume, "-s", "128m");
            _pfcli.Run("rename_volume", "-v", volume, "-n", volume + "-new");
            string output = Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 5 100m 1m", "-c", "read -P 4 0 1m", "-c", "read -P 5 100m 1m", UriOf(volume + "-new"));
            Assert.DoesNotContain("failed", output, StringComparison.Ordinal);
            Assert.Contains("512 blocks read, all good", _pfcli.Run("scrub_volume", "-v", volume + "-new"), StringComparison.Ordinal);
            _pfcli.Run("--json", "top", "--count", "1", "--interval", "0.1");
        }

        Assert.Equal(0, _blockd.Stop());
    }

    [Fact]
    public void Sessions_on_every_loop_are_listed_counted_and_end_with_their_volume_or_disk()
    {
        Process[] clients = [.. Volumes.Select(v => Attach(UriOf(v)))];
        Assert.Equal(Volumes, _pfcli.Sessions().Select(s => s.Volume).Order(StringComparer.Ordinal));
        Assert.All(_pfcli.Sessions(), s => Assert.True(s.WriteBytes == 4096, s.ToString()));
        _pfcli.Run("delete_volume", "-v", "v1", "--force", "--yes");
        _pfcli.Run("remove_disk", "disk2", "--force", "--yes");
        _pfcli.Run("drop_session", _pfcli.Sessions().Single(s => s.Volume == "v3").Id, "--yes");
        string[] left = [];
        for (int i = 0; i < 100 && left.Length != 1; i++) left = [.. _pfcli.Sessions().Select(s => s.Volume)];
        Assert.Equal(["demo"], left);
        Assert.Equal(0, _blockd.Stop()); // with one still attached
        foreach (Process client in clients)
        {
            client.StandardInput.Close();
            Assert.True(client.WaitForExit(30_000));
            client.Dispose();
        }
    }

    [Fact]
    public void Killed_under_load_every_loop_recovers_what_was_flushed()
    {
        foreach (string volume in Volumes)
            Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 6 0 4m", "-c", "flush", "-c", "write -P 7 8m 4m", UriOf(volume));
        _blockd.Kill();
        _blockd.Restart();
        foreach (string volume in Volumes)
        {
            string output = Blockd.Run("qemu-io", "-f", "raw", "-c", "read -P 6 0 4m", "-c", "read -P 7 8m 4m", UriOf(volume));
            Assert.DoesNotContain("failed", output, StringComparison.Ordinal);
        }

        Assert.Equal(0, _blockd.Stop());
    }

    private static void Parallel(Func<int, string[]> command) =>
        Task.WaitAll(Enumerable.Range(0, Volumes.Length).Select(i => Task.Run(() => Blockd.Run(command(i)[0], command(i)[1..]))));

    private static byte[] Random(int seed, int length)
    {
        var content = new byte[length];
        new Random(seed).NextBytes(content);
        return content;
    }

    private static Process Attach(string uri)
    {
        Process client = Process.Start(new ProcessStartInfo("qemu-io", ["-f", "raw", uri])
        {
            RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        client.StandardInput.WriteLine("write -P 1 0 4k");
        client.StandardInput.Flush();
        for (string? line; (line = client.StandardOutput.ReadLine()) is not null && !line.Contains("wrote 4096", StringComparison.Ordinal);)
        {
        }

        return client;
    }
}
