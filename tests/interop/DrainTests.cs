using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
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

    /// <summary>Four writers append line after line while their volume's disk is emptied, and the daemon is killed in the midst of that: they
    /// wait, go on by themselves, and every line is there once and in its order.</summary>
    [Fact]
    public async Task Writers_append_while_a_disk_is_emptied_and_the_daemon_is_killed()
    {
        const int Writers = 4, LinesAtStart = 2_000;
        _pfcli.Run("aof_create", "-v", "log");
        AddSecond();
        Process[] writers = [.. Enumerable.Range(0, Writers).Select(_ => Appender())];
        Task<string>[] errors = [.. writers.Select(w => w.StandardError.ReadToEndAsync(TestContext.Current.CancellationToken))];
        Task<string>[] outputs = [.. writers.Select(w => w.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken))];
        int goal = LinesAtStart;
        bool isOver = false;
        Task<int>[] feeding = [.. writers.Select((w, i) => Task.Run(() => FeedAsync(w, i)))];
        var random = new Random(11);
        AofLength(atLeast: 200_000);
        _pfcli.Run("drain_disk", First, "--no-wait");
        for (int kill = 0; kill < 3; kill++)
        {
            Thread.Sleep(random.Next(5, 200));
            _blockd.Kill();
            _blockd.Restart();
        }

        Volatile.Write(ref goal, Volatile.Read(ref goal) + 1_000);
        for (int i = 0; i < 600 && _pfcli.Disks().Single(d => d.Path == _blockd.Store).Volumes > 0; i++) Thread.Sleep(100);
        Assert.Equal(0, _pfcli.Disks().Single(d => d.Path == _blockd.Store).Volumes);
        AofLength(atLeast: AofLength(atLeast: 0) + 1); // they are at work in the new home
        Volatile.Write(ref isOver, true);
        int[] lines = await Task.WhenAll(feeding);
        for (int i = 0; i < Writers; i++)
        {
            await writers[i].WaitForExitAsync(TestContext.Current.CancellationToken);
            Assert.True(writers[i].ExitCode == 0, await outputs[i] + await errors[i]);
            writers[i].Dispose();
        }

        var seen = new int[Writers];
        foreach (string line in _pfcli.Run("aof_read", "-v", "log").TrimEnd('\n').Split('\n'))
        {
            int writer = line[0] - '0';
            Assert.Equal(LineOf(writer, seen[writer]++), line);
        }

        Assert.Equal(lines, seen);
        Assert.Equal(0, _blockd.Stop());

        // As fast as they are taken, up to the goal; a line now and then besides, so that there is always somebody at work.
        async Task<int> FeedAsync(Process writer, int index)
        {
            int line = 0;
            while (!Volatile.Read(ref isOver))
            {
                await writer.StandardInput.WriteLineAsync(LineOf(index, line++));
                if (line <= Volatile.Read(ref goal)) continue;
                await writer.StandardInput.FlushAsync(TestContext.Current.CancellationToken);
                await Task.Delay(2, TestContext.Current.CancellationToken);
            }

            writer.StandardInput.Close();
            return line;
        }
    }

    private static string LineOf(int writer, int number) => $"{writer} {Text(number)} {new string('x', number * 37 % 300)}";

    private Process Appender() => Process.Start(new ProcessStartInfo(
        Pfcli.Program, ["--server", _blockd.ApiUrl, "--token-file", Path.Combine(_blockd.Directory, "admin.token"), "aof_append", "-v", "log", "--lines"])
    {
        RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true,
    })!;

    private ulong AofLength(ulong atLeast)
    {
        for (int i = 0; ; i++)
        {
            ulong length = JsonSerializer.Deserialize(_pfcli.Run("--json", "aof_stat", "-v", "log"), ApiJson.Default.AofInfo)!.LengthBytes;
            if (length >= atLeast) return length;
            Assert.True(i < 300, $"{length} bytes, and {atLeast} are waited for");
            Thread.Sleep(50);
        }
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
