using System.Diagnostics;
using System.Globalization;
using System.Runtime.CompilerServices;
using Xunit;

namespace BlockServer.Tests.Running;

/// <summary>
/// A real daemon from <c>out/blockd</c> on a data folder and on free loopback ports. It is only ever ended by its own
/// process id. Disposing kills it.
/// </summary>
internal sealed class DaemonProcess : IDisposable
{
    private static readonly TimeSpan StartLimit = TimeSpan.FromSeconds(30);
    private readonly Process _process;
    private readonly List<string> _output = [];
    private readonly ManualResetEventSlim _ready = new();

    private DaemonProcess(Process process, int port, int iscsiPort, string socket)
    {
        _process = process;
        Port = port;
        IscsiPort = iscsiPort;
        Socket = socket;
    }

    /// <summary>The repository's root.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>The TCP port of the NBD server on 127.0.0.1.</summary>
    public int Port { get; }

    /// <summary>The TCP port of iSCSI on 127.0.0.1.</summary>
    public int IscsiPort { get; }

    /// <summary>The TCP port of the admin API on 127.0.0.1.</summary>
    public int ApiPort { get; private init; }

    /// <summary>The path of the NBD server's unix socket.</summary>
    public string Socket { get; }

    /// <summary>The NBD URI of a volume over TCP.</summary>
    public string Tcp(string volume) => $"nbd://127.0.0.1:{Port}/{volume}";

    /// <summary>The NBD URI of a volume over the unix socket.</summary>
    public string Unix(string volume) => $"nbd+unix:///{volume}?socket={Socket}";

    /// <summary>What the daemon printed until now.</summary>
    public string Output
    {
        get
        {
            lock (_output)
            {
                return string.Join('\n', _output);
            }
        }
    }

    /// <summary>Skips the running test in a tree that has no daemon yet; fails when there should be one.</summary>
    public static void Require()
    {
        Assert.SkipUnless(File.Exists(Path.Combine(Root, "start.sh")), "this tree has no start.sh, so no daemon to test");
        Assert.True(File.Exists(Program), "out/blockd is missing: run ./start.sh --build");
    }

    /// <summary>Starts the daemon and waits for its line <c>ready</c>.</summary>
    public static DaemonProcess Start(string folder, string engine, string durability, string storeSize, params string[] volumes)
    {
        DaemonProcess daemon = Launch(folder, engine, durability, storeSize, volumes);
        long deadline = Environment.TickCount64 + (long)StartLimit.TotalMilliseconds;
        while (!daemon._ready.Wait(50))
        {
            if (daemon._process.HasExited || Environment.TickCount64 > deadline)
            {
                string output = daemon.Output;
                daemon.Dispose();
                Assert.Fail($"the daemon did not become ready:\n{output}");
            }
        }

        return daemon;
    }

    /// <summary>Starts the daemon and does not wait for anything.</summary>
    public static DaemonProcess Launch(string folder, string engine, string durability, string storeSize, params string[] volumes)
    {
        int port = FreePort.Find(), iscsiPort = FreePort.Find(), apiPort = FreePort.Find();
        string socket = Path.Combine(folder, "nbd.sock");
        ProcessStartInfo start = new(Program) { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = folder };
        List<string> arguments =
        [
            "--data-dir", Path.Combine(folder, "data"), "--nbd", $"127.0.0.1:{port}", "--nbd", $"unix:{socket}",
            "--iscsi", $"127.0.0.1:{iscsiPort}",
            "--api", $"127.0.0.1:{apiPort}", "--store-size", storeSize, "--provisioning", "thin", "--durability", durability, "--engine", engine,
        ];
        foreach (string volume in volumes)
        {
            arguments.AddRange(["--create-volume", volume]);
        }

        arguments.ForEach(start.ArgumentList.Add);
        File.Delete(socket);
        DaemonProcess daemon = new(new Process { StartInfo = start }, port, iscsiPort, socket) { ApiPort = apiPort };
        daemon._process.OutputDataReceived += daemon.Take;
        daemon._process.ErrorDataReceived += daemon.Take;
        daemon._process.Start();
        daemon._process.BeginOutputReadLine();
        daemon._process.BeginErrorReadLine();
        return daemon;
    }

    /// <summary>The first store of a daemon in <paramref name="folder"/>.</summary>
    public static string StoreIn(string folder) => Path.Combine(folder, "data", "store-0.blk");

    /// <summary>Waits until the daemon has its store open, which it then recovers; false when it serves or ended before that was seen.</summary>
    public bool WaitUntilItOpensItsStore()
    {
        string descriptors = $"/proc/{_process.Id}/fd";
        while (!_process.HasExited && !_ready.IsSet)
        {
            try
            {
                if (Directory.EnumerateFiles(descriptors).Any(fd => new FileInfo(fd).LinkTarget?.EndsWith("store-0.blk", StringComparison.Ordinal) == true))
                    return true;
            }
            catch (IOException)
            {
                // A descriptor was closed, or the process ended, while it was looked at.
            }
        }

        return false;
    }

    /// <summary>True once it printed <c>ready</c>.</summary>
    public bool IsReady => _ready.IsSet;

    /// <summary>Sends a signal by its name, as kill(1) knows it.</summary>
    public void Signal(string name) => Run("kill", "-" + name, _process.Id.ToString(CultureInfo.InvariantCulture));

    /// <summary>Waits for its end by itself; its exit code.</summary>
    public int WaitForExit()
    {
        if (!_process.WaitForExit(60_000)) Assert.Fail($"the daemon did not end within a minute; its threads:\n{Threads()}\nit said:\n{Output}");
        return _process.ExitCode;
    }

    // Which thread runs and which waits for what in the kernel: the evidence of a daemon that hangs.
    private string Threads()
    {
        var text = new System.Text.StringBuilder();
        foreach (string task in Directory.EnumerateDirectories($"/proc/{_process.Id}/task"))
        {
            try
            {
                string stat = File.ReadAllText(Path.Combine(task, "stat"));
                string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
                text.AppendLine(CultureInfo.InvariantCulture,
                    $"  {File.ReadAllText(Path.Combine(task, "comm")).Trim()} {fields[0]} {File.ReadAllText(Path.Combine(task, "wchan"))} "
                    + $"user {fields[11]} system {fields[12]} syscall {File.ReadAllText(Path.Combine(task, "syscall")).Trim()}");
            }
            catch (IOException)
            {
                // The thread ended while it was looked at.
            }
        }

        return text.ToString();
    }

    /// <summary>SIGKILL, and waits until the process is gone.</summary>
    public void Kill()
    {
        Assert.False(_process.HasExited, $"the daemon ended by itself:\n{Output}");
        _process.Kill();
        _process.WaitForExit();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (!_process.HasExited)
        {
            _process.Kill();
            _process.WaitForExit();
        }

        _process.Dispose();
        _ready.Dispose();
    }

    /// <summary>Runs a program to its end; returns its exit code and what it printed on both streams.</summary>
    public static (int Code, string Text) Try(string program, params string[] arguments)
    {
        ProcessStartInfo start = new(program) { RedirectStandardOutput = true, RedirectStandardError = true };
        Array.ForEach(arguments, start.ArgumentList.Add);
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string text = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        return (process.ExitCode, text + errors.GetAwaiter().GetResult());
    }

    /// <summary>Runs a program that must end with 0; returns what it printed.</summary>
    public static string Run(string program, params string[] arguments)
    {
        (int code, string text) = Try(program, arguments);
        Assert.True(code == 0, $"{program} {string.Join(' ', arguments)} ended with {code}:\n{text}");
        return text;
    }

    private static string Program => Path.Combine(Root, "out", "blockd");

    private void Take(object sender, DataReceivedEventArgs line)
    {
        if (line.Data is null)
        {
            return;
        }

        lock (_output)
        {
            _output.Add(line.Data);
        }

        if (line.Data.Trim() == "ready")
        {
            _ready.Set();
        }
    }

    private static string FindRoot([CallerFilePath] string here = "")
    {
        DirectoryInfo? folder = new(Path.GetDirectoryName(here)!);
        while (folder is not null && !File.Exists(Path.Combine(folder.FullName, "BlockServer.sln")))
        {
            folder = folder.Parent;
        }

        return folder?.FullName ?? throw new InvalidOperationException("BlockServer.sln is not above the tests");
    }
}

/// <summary>A folder for one test, removed with everything in it.</summary>
internal sealed class ScratchFolder : IDisposable
{
    public string Path { get; } = Directory.CreateTempSubdirectory("blockserver-").FullName;

    /// <summary>The path of a file in the folder.</summary>
    public string File(string name) => System.IO.Path.Combine(Path, name);

    public void Dispose() => Directory.Delete(Path, recursive: true);
}
