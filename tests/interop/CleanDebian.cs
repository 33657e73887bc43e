using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>A Debian 12 with nothing on it, in a folder of its own: what a user installs the package on. Needs root (or sudo
/// without a password) and tests/package/tree.sh's tree. Programs run in it by chroot in a mount namespace of their own, or, after
/// <see cref="Boot"/>, beside its systemd. Nothing of it outlives the object but what hangs on the kernel.</summary>
internal sealed partial class CleanDebian : IDisposable
{
    // The mounts go with the namespace: a deletion of the folder never reaches the machine's own /proc.
    private const string Enter = "mount -t proc proc \"$0/proc\" && exec chroot \"$@\"";

    private static readonly string[] s_root = Environment.UserName == "root" ? [] : ["sudo", "-n"];

    private readonly string _folder;
    private Process? _machine;
    private string _leader = "";

    public CleanDebian()
    {
        string script = Path.Combine(Blockd.Root, "tests", "package", "tree.sh");
        string tar = Root(TimeSpan.FromMinutes(8), script).Trim();
        _folder = Directory.CreateTempSubdirectory("blockd-debian-").FullName;
        Folder = Path.Combine(_folder, "root");
        Directory.CreateDirectory(Folder);
        Root("tar", "-x", "-f", tar, "-C", Folder);
    }

    /// <summary>Its root, as a path of this machine.</summary>
    public string Folder { get; }

    /// <summary>Runs a program of this machine as root; its output when it ended with 0, else the test fails.</summary>
    public static string Root(params string[] command) => Root(TimeSpan.FromMinutes(2), command);

    private static string Root(TimeSpan most, params string[] command)
    {
        string[] line = ["timeout", most.TotalSeconds.ToString(CultureInfo.InvariantCulture), .. command];
        (int code, string output) = Try([.. s_root, .. line], most + TimeSpan.FromSeconds(5));
        Assert.True(code == 0, $"{string.Join(' ', command)} ended with {code}:\n{output}");
        return output;
    }

    /// <summary>Runs a program in it; its output when it ended with 0, else the test fails.</summary>
    public string Run(params string[] command) => Root(Inside(command));

    /// <summary>Runs a program in it; its exit code and output.</summary>
    public (int Code, string Output) Try(params string[] command) => Try([.. s_root, .. Inside(command)], TimeSpan.FromMinutes(2));

    /// <summary>Begins a program in it by chroot, as the service's user.</summary>
    public Process Begin(params string[] command)
    {
        string[] line = [.. s_root, "unshare", "--mount", "sh", "-c", Enter, Folder, "--userspec=blockd:blockd", Folder, .. command];
        return Process.Start(new ProcessStartInfo(line[0], line[1..]) { RedirectStandardOutput = true })!;
    }

    /// <summary>Copies a file of this machine into it.</summary>
    public void Bring(string file, string to) => Root("cp", file, Folder + to);

    /// <summary>Replaces a file in it.</summary>
    public void Write(string path, string text)
    {
        string mine = Path.Combine(_folder, "text");
        File.WriteAllText(mine, text);
        Root("cp", mine, Folder + path);
    }

    /// <summary>Installs a package file; what it depends on comes from what tree.sh has fetched.</summary>
    public string Install(string package)
    {
        Bring(package, "/var/tmp/" + Path.GetFileName(package));
        return Apt("install", "/var/tmp/" + Path.GetFileName(package));
    }

    /// <summary>Runs apt-get without questions; tree.sh has fetched what it asks for.</summary>
    public string Apt(params string[] arguments) => Run(
        ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--no-install-recommends", "-y", "-q", .. arguments]);

    /// <summary>Starts it as a machine with systemd, on a network that has nothing but its own loopback.</summary>
    public void Boot()
    {
        string[] line =
        [
            .. s_root, "systemd-nspawn", "-q", "--register=no", "--keep-unit", "--private-network", "--console=pipe",
            "--link-journal=no", "-D", Folder, "-b", "systemd.unit=multi-user.target",
        ];
        _machine = Process.Start(new ProcessStartInfo(line[0], line[1..])
        {
            RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = true,
        })!;
        var said = new System.Text.StringBuilder();
        _machine.OutputDataReceived += (_, e) => Hear(e.Data);
        _machine.ErrorDataReceived += (_, e) => Hear(e.Data);
        _machine.BeginOutputReadLine();
        _machine.BeginErrorReadLine();
        var began = Stopwatch.StartNew();
        while (true)
        {
            bool isOver = _machine.HasExited || began.Elapsed > TimeSpan.FromMinutes(2);
            if (_leader.Length == 0) _leader = Leader();
            if (_leader.Length > 0 && Try("systemctl", "is-system-running", "--wait").Output.Trim() is "running" or "degraded") return;
            Assert.False(isOver, "systemd did not start:\n" + Said());
            Thread.Sleep(100);
        }

        void Hear(string? text)
        {
            lock (said) said.AppendLine(text);
        }

        string Said()
        {
            lock (said) return said.ToString();
        }
    }

    /// <summary>Runs a program of this machine, with its files, on the network of the one that <see cref="Boot"/> started.</summary>
    public string Beside(params string[] command) => Root(["nsenter", "--target", _leader, "--net", .. command]);

    /// <summary>A path in it that is there only while it runs, as a path of this machine.</summary>
    public string Live(string path) => $"/proc/{_leader}/root{path}";

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_machine is { HasExited: false })
        {
            // Its first process ends, and everything in its namespaces with it.
            if (_leader.Length > 0) Try([.. s_root, "kill", "-KILL", _leader], TimeSpan.FromSeconds(10));
            if (!_machine.WaitForExit(20_000)) _machine.Kill(entireProcessTree: true);
            _machine.WaitForExit();
        }

        _machine?.Dispose();
        Root("rm", "-rf", "--one-file-system", _folder);
    }

    // Its systemd: number 1 of a namespace, and a descendant of the systemd-nspawn that we began. Empty before there is one.
    private string Leader()
    {
        Dictionary<int, (int Parent, bool IsFirst)> processes = [];
        foreach (string folder in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(folder), NumberStyles.None, CultureInfo.InvariantCulture, out int id)) continue;
            try
            {
                string status = File.ReadAllText(Path.Combine(folder, "status"));
                int parent = int.Parse(ParentLine().Match(status).Groups[1].Value, CultureInfo.InvariantCulture);
                processes[id] = (parent, FirstOfNamespace().IsMatch(status));
            }
            catch (Exception e) when (e is IOException or FormatException)
            {
                // It has ended meanwhile.
            }
        }

        return processes.Where(p => p.Value.IsFirst && IsOurs(p.Key)).Select(p => p.Key.ToString(CultureInfo.InvariantCulture)).FirstOrDefault("");

        bool IsOurs(int id)
        {
            while (id != _machine!.Id && processes.TryGetValue(id, out (int Parent, bool IsFirst) process)) id = process.Parent;
            return id == _machine.Id;
        }
    }

    private string[] Inside(string[] command) => _leader.Length > 0
        ? ["nsenter", "--target", _leader, "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", .. command]
        : ["unshare", "--mount", "sh", "-c", Enter, Folder, Folder, .. command];

    private static (int Code, string Output) Try(string[] line, TimeSpan most)
    {
        using var process = Process.Start(new ProcessStartInfo(line[0], line[1..]) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> error = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit((int)most.TotalMilliseconds))
        {
            process.Kill(entireProcessTree: true);
            Assert.Fail($"{string.Join(' ', line)} did not end within {most}");
        }

        return (process.ExitCode, output.Result + error.Result);
    }

    [GeneratedRegex(@"^PPid:\s+(\d+)$", RegexOptions.Multiline)]
    private static partial Regex ParentLine();

    [GeneratedRegex(@"^NSpid:(\s+\d+)+\s+1$", RegexOptions.Multiline)]
    private static partial Regex FirstOfNamespace();
}
