using System.Diagnostics;
using System.Text;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>The real daemon on a folder of its own, on free loopback ports, ended by its pid. <see cref="Kill"/> and
/// <see cref="Restart"/> bring it back at the same addresses with the same data.</summary>
internal sealed class Blockd : IDisposable
{
    private readonly string[] _arguments;
    private readonly StringBuilder _said = new();
    private Process _process;

    public Blockd(string volume, string size, params string[] more)
    {
        Directory = System.IO.Directory.CreateTempSubdirectory("blockd-interop-").FullName;
        Port = FreePort.Find();
        string socket = Path.Combine(Directory, "nbd.sock");
        Socket = socket;
        int api = FreePort.Find();
        IscsiPort = FreePort.Find();
        ApiUrl = $"http://127.0.0.1:{api}";
        _arguments =
        [
            "--data-dir", Directory, "--nbd", $"127.0.0.1:{Port}", "--nbd", "unix:" + socket,
            "--iscsi", $"127.0.0.1:{IscsiPort}", "--api", $"127.0.0.1:{api}", "--create-volume", $"{volume}:{size}", .. more,
        ];
        if (!more.Contains("--store-size")) _arguments = [.. _arguments, "--store-size", "1g"];
        // Most tests are about other things than room.
        if (!more.Contains("--provisioning")) _arguments = [.. _arguments, "--provisioning", "thin"];
        Uri = $"nbd://127.0.0.1:{Port}/{volume}";
        UnixUri = $"nbd+unix:///{volume}?socket={socket}";
        _process = Start();
    }

    public static string Program => Path.Combine(Root, "out", "blockd");

    public string Directory { get; }

    public int Port { get; }

    /// <summary>Where iSCSI is served.</summary>
    public int IscsiPort { get; }

    public string Uri { get; }

    public string UnixUri { get; }

    /// <summary>Where the admin API is.</summary>
    public string ApiUrl { get; }

    /// <summary>The path of the NBD unix socket.</summary>
    public string Socket { get; }

    /// <summary>The first store of the daemon.</summary>
    public string Store => Path.Combine(Directory, "store-0.blk");

    /// <summary>All that the daemon has said, over its restarts.</summary>
    public string Said
    {
        get
        {
            lock (_said) return _said.ToString();
        }
    }

    /// <summary>The repository's root.</summary>
    public static string Root
    {
        get
        {
            string at = AppContext.BaseDirectory;
            while (!File.Exists(Path.Combine(at, "BlockServer.sln"))) at = Path.GetDirectoryName(at.TrimEnd('/'))!;
            return at;
        }
    }

    /// <summary>Runs a foreign tool; its output when it ended with 0, else the test fails with all that it said.</summary>
    public static string Run(string tool, params string[] arguments)
    {
        (int code, string output) = Try(tool, arguments);
        Assert.True(code == 0, $"{tool} {string.Join(' ', arguments)} ended with {code}:\n{output}");
        return output;
    }

    /// <summary>Runs a foreign tool under a time limit of two minutes.</summary>
    public static (int Code, string Output) Try(string tool, params string[] arguments)
    {
        using var process = Process.Start(new ProcessStartInfo(tool, arguments)
        {
            RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> error = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit(120_000))
        {
            process.Kill();
            Assert.Fail($"{tool} {string.Join(' ', arguments)} did not end within two minutes");
        }

        return (process.ExitCode, output.Result + error.Result);
    }

    /// <summary>Asks the daemon to stop and answers its exit code; <see cref="Said"/> is whole then, before it a line may still be on its way.</summary>
    public int Stop()
    {
        if (!_process.HasExited) Run("/bin/kill", "-TERM", _process.Id.ToString(System.Globalization.CultureInfo.InvariantCulture));
        Assert.True(_process.WaitForExit(30_000), "blockd did not stop within 30 s:\n" + Said);
        _process.WaitForExit(); // its last lines too: a wait with a limit does not wait for them
        return _process.ExitCode;
    }

    /// <summary>SIGKILL; the process is gone when it answers.</summary>
    public void Kill()
    {
        Assert.False(_process.HasExited, "blockd ended by itself:\n" + Said);
        _process.Kill();
        _process.WaitForExit();
    }

    /// <summary>Starts the ended daemon again.</summary>
    public void Restart()
    {
        Assert.True(_process.HasExited, "blockd still runs");
        _process.Dispose();
        _process = Start();
    }

    public void Dispose()
    {
        if (!_process.HasExited) _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
        System.IO.Directory.Delete(Directory, recursive: true);
    }

    private Process Start()
    {
        Process process = Process.Start(new ProcessStartInfo(Program, _arguments)
        {
            RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        var ready = new ManualResetEventSlim(); // lives as long as the handlers: a line between two of them would be lost
        process.OutputDataReceived += Output;
        process.ErrorDataReceived += Output;
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
        bool isReady = false;
        for (int i = 0; i < 600 && !isReady && !process.HasExited; i++) isReady = ready.Wait(100);
        if (!isReady)
        {
            if (!process.HasExited) process.Kill();
            process.WaitForExit();
            Assert.Fail("blockd did not become ready:\n" + Said);
        }

        return process;

        void Output(object sender, DataReceivedEventArgs line)
        {
            Hear(line.Data);
            if (line.Data == "ready") ready.Set();
        }
    }

    private void Hear(string? line)
    {
        if (line is null) return;
        lock (_said) _said.AppendLine(line);
    }
}
