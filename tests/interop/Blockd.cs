using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>The real daemon on a folder of its own, on free loopback ports, ended by its pid.</summary>
internal sealed class Blockd : IDisposable
{
    private readonly Process _process;
    private readonly StringBuilder _said = new();

    public Blockd(string volume, string size, params string[] more)
    {
        Directory = System.IO.Directory.CreateTempSubdirectory("blockd-interop-").FullName;
        Port = FreePort();
        string socket = Path.Combine(Directory, "nbd.sock");
        string[] arguments =
        [
            "--data-dir", Directory, "--nbd", $"127.0.0.1:{Port}", "--nbd", "unix:" + socket,
            "--api", $"127.0.0.1:{FreePort()}", "--store-size", "1g", "--create-volume", $"{volume}:{size}", .. more,
        ];
        Uri = $"nbd://127.0.0.1:{Port}/{volume}";
        UnixUri = $"nbd+unix:///{volume}?socket={socket}";
        _process = Process.Start(new ProcessStartInfo(Program, arguments)
        {
            RedirectStandardOutput = true, RedirectStandardError = true,
        })!;
        using var ready = new ManualResetEventSlim();
        _process.OutputDataReceived += (_, line) => Hear(line.Data, ready);
        _process.ErrorDataReceived += (_, line) => Hear(line.Data, ready);
        _process.BeginOutputReadLine();
        _process.BeginErrorReadLine();
        Assert.True(ready.Wait(TimeSpan.FromSeconds(60)), "blockd did not become ready:\n" + _said);
    }

    public static string Program => Path.Combine(Root, "out", "blockd");

    public string Directory { get; }

    public int Port { get; }

    public string Uri { get; }

    public string UnixUri { get; }

    private static string Root
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

    /// <summary>Asks the daemon to stop and answers its exit code.</summary>
    public int Stop()
    {
        if (!_process.HasExited) Run("/bin/kill", "-TERM", _process.Id.ToString(System.Globalization.CultureInfo.InvariantCulture));
        Assert.True(_process.WaitForExit(30_000), "blockd did not stop within 30 s:\n" + _said);
        return _process.ExitCode;
    }

    public void Dispose()
    {
        if (!_process.HasExited) _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
        System.IO.Directory.Delete(Directory, recursive: true);
    }

    private void Hear(string? line, ManualResetEventSlim ready)
    {
        if (line is null) return;
        lock (_said) _said.AppendLine(line);
        if (line == "ready") ready.Set();
    }

    private static int FreePort()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        return ((IPEndPoint)listener.LocalEndpoint).Port;
    }
}
