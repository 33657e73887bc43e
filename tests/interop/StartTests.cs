using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>What a new user meets: start.sh, what it prints, Ctrl-C, the second start, and each reason not to start.</summary>
public sealed partial class StartTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("blockd-start-").FullName;
    private readonly List<Process> _processes = [];
    private readonly int _port = FreePort.Find(), _api = FreePort.Find(), _iscsi = FreePort.Find();

    private string Data => Path.Combine(_folder, "data");

    [Fact]
    public void Everything_that_start_sh_prints_can_be_typed_and_a_restart_keeps_it()
    {
        (Process first, List<string> said) = Start("start.sh", StartArguments("--store-size", "256m"));
        Assert.Contains(said, line => line.StartsWith("  volume   demo, 1 GiB", StringComparison.Ordinal));
        Assert.Contains(said, line => line == $"  nbd      127.0.0.1:{_port}");
        Assert.Equal("ready", said[^1]);

        // The images that the lines speak of are the user's own; here they are small ones.
        Blockd.Run("qemu-img", "create", "-q", "-f", "raw", Path.Combine(_folder, "disk.img"), "8m");
        Blockd.Run("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1m 64k", Path.Combine(_folder, "disk.img"));
        Blockd.Run("qemu-img", "convert", "-O", "qcow2", Path.Combine(_folder, "disk.img"), Path.Combine(_folder, "disk.qcow2"));
        string[] lines = [.. said.SkipWhile(line => !line.StartsWith("Type next", StringComparison.Ordinal)).Skip(1).SkipLast(1)];
        Assert.Equal(["nbdinfo", "nbdcopy", "nbdcopy", "qemu-img", "qemu-system-x86_64", "fio", "sudo", "iscsi-ls", "qemu-img", "sudo",
                $"'{Path.Combine(Blockd.Root, "out", "pfcli")}'"],
            lines.Select(line => line.Trim().Split(' ')[0]));
        foreach (string line in lines)
        {
            // A machine that boots a disk without a system never ends, and an attached kernel device needs a kernel that has
            // them: both are typed in the guest tests.
            if (line.Contains("qemu-system", StringComparison.Ordinal) || line.Contains("sudo ", StringComparison.Ordinal)) continue;
            string typed = line.Contains("fio ", StringComparison.Ordinal) ? line + " --size=4m" : line;
            (int code, string output) = Blockd.Try("env", "-C", _folder, "sh", "-c", typed);
            Assert.True(code == 0, $"{typed} ended with {code}:\n{output}");
        }

        Signal(first, "INT");
        Assert.Equal(0, Ended(first));
        (Process second, said) = Start("start.sh", StartArguments());
        Blockd.Run("qemu-io", "-f", "raw", "-r", "-c", "read -P 0x5a 1m 64k", $"nbd://127.0.0.1:{_port}/demo");
        Pfcli("rename_volume", "-v", "demo", "-n", "mine");
        Signal(second, "TERM");
        Assert.Equal(0, Ended(second));

        // The volume of the first start is not made again behind the user's back.
        (Process third, said) = Start("start.sh", StartArguments());
        Assert.Contains(said, line => line.StartsWith("  volume   mine,", StringComparison.Ordinal));
        Assert.DoesNotContain(said, line => line.Contains("demo", StringComparison.Ordinal));
        Signal(third, "INT");
        Assert.Equal(0, Ended(third));
    }

    [Fact]
    public void A_second_daemon_on_the_same_data_or_the_same_address_is_refused_by_name()
    {
        string socket = Path.Combine(_folder, "nbd.sock");
        Start("out/blockd", ["--data-dir", Data, "--nbd", $"127.0.0.1:{_port}", "--nbd", "unix:" + socket, "--api", $"127.0.0.1:{_api}", "--store-size", "80m"]);
        string other = Path.Combine(_folder, "other");
        Refused($"{Data} is in use by another blockd", "--data-dir", Data, "--nbd", "none", "--api", "none");
        Refused($"127.0.0.1:{_port}", "--data-dir", other, "--nbd", $"127.0.0.1:{_port}", "--api", "none", "--store-size", "80m");
        Refused($"cannot listen on unix:{socket}: another process serves it", "--data-dir", other, "--nbd", "unix:" + socket, "--api", "none");
        Refused($"127.0.0.1:{_api}", "--data-dir", other, "--nbd", "none", "--api", $"127.0.0.1:{_api}");
        (int code, string output) = Blockd.Try(Program("pfinspect"), "check", Path.Combine(Data, "store-0.blk"));
        Assert.Equal(1, code);
        Assert.Contains("is held by a running daemon; stop it first", output, StringComparison.Ordinal);

        // The refused ones left nothing that keeps a later start from working, and nothing that harmed the running one.
        Start("out/blockd", ["--data-dir", other, "--nbd", "none", "--api", "none"]);
        Blockd.Run("nbdinfo", "--list", $"nbd://127.0.0.1:{_port}");
    }

    [Fact]
    public void A_full_small_or_forbidden_disk_is_refused_in_one_line()
    {
        string file = Path.Combine(_folder, "file");
        File.WriteAllText(file, "");
        Refused($"the data directory {file} cannot be made: it is a file", "--data-dir", file, "--nbd", "none", "--api", "none");
        Refused("the data directory /proc/blockd cannot be made", "--data-dir", "/proc/blockd", "--nbd", "none", "--api", "none");
        Assert.SkipUnless(Blockd.Try("unshare", "-rm", "true").Code == 0, "no mount namespaces here: the rest needs a small disk");
        string disk = Path.Combine(_folder, "disk");
        Directory.CreateDirectory(disk);
        RefusedOn("size=100m", disk, "No space left on device", "--store-size", "150m");
        RefusedOn("size=100m", disk, "is too small: log and metadata alone take");
        RefusedOn("size=100m,ro", disk, "cannot be made", "--store-size", "80m");
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (Process process in _processes)
        {
            if (!process.HasExited) process.Kill();
            process.WaitForExit();
            process.Dispose();
        }

        Directory.Delete(_folder, recursive: true);
    }

    private string[] StartArguments(params string[] more) =>
        ["--data-dir", Data, "--nbd", $"127.0.0.1:{_port}", "--iscsi", $"127.0.0.1:{_iscsi}", "--api", $"127.0.0.1:{_api}", .. more];

    private void Pfcli(params string[] arguments) => Blockd.Run(
        Program("pfcli"), ["--server", $"http://127.0.0.1:{_api}", "--token-file", Path.Combine(Data, "admin.token"), .. arguments]);

    private (Process Process, List<string> Said) Start(string program, string[] arguments)
    {
        // A test run in the background of a shell hands down an ignored SIGINT, which would stay ignored.
        var process = Process.Start(new ProcessStartInfo("env", ["--default-signal=INT", Path.Combine(Blockd.Root, program), .. arguments])
        {
            RedirectStandardOutput = true, WorkingDirectory = _folder,
        })!;
        _processes.Add(process);
        var said = new List<string>();
        while (process.StandardOutput.ReadLine() is { } line)
        {
            said.Add(line);
            if (line == "ready") return (process, said);
        }

        Assert.Fail($"{program} did not become ready:\n{string.Join('\n', said)}");
        return default;
    }

    private static void Signal(Process process, string name) =>
        Blockd.Run("/bin/kill", "-" + name, process.Id.ToString(CultureInfo.InvariantCulture));

    private static int Ended(Process process)
    {
        Assert.True(process.WaitForExit(60_000), "the daemon did not stop within a minute");
        Assert.Equal("stopped", process.StandardOutput.ReadToEnd().Trim());
        return process.ExitCode;
    }

    private static void Refused(string why, params string[] arguments) => MustRefuse(why, Blockd.Try(Program("blockd"), arguments));

    // The daemon on a small disk of its own, which goes with it.
    private static void RefusedOn(string options, string disk, string why, params string[] more) => MustRefuse(why, Blockd.Try(
        "unshare",
        ["-rm", "sh", "-c", "mount -t tmpfs -o \"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"", "sh", options, disk,
            Program("blockd"), "--data-dir", disk + "/data", "--nbd", "none", "--api", "none", .. more]));

    private static void MustRefuse(string why, (int Code, string Output) answer)
    {
        Assert.Equal(1, answer.Code);
        Assert.Contains(why, answer.Output, StringComparison.Ordinal);
        Assert.Matches(OneLine(), answer.Output);
    }

    private static string Program(string name) => Path.Combine(Blockd.Root, "out", name);

    [GeneratedRegex(@"\Ablockd: [^\n]+\n\z")]
    private static partial Regex OneLine();
}
