using System.Diagnostics;
using System.Globalization;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>tgtd with thin file-backed LUNs, one in each target, at two portals of 127.0.0.1. Ended by its pid.</summary>
internal sealed class Tgt : IDisposable
{
    private const string Prefix = "iqn.2026-11.example.tgt";
    // Numbers of the control socket go up to 32767.
    private readonly string _control = (20_000 + Environment.ProcessId % 10_000).ToString(CultureInfo.InvariantCulture);
    private readonly int[] _ports = [FreePort.Find(), FreePort.Find()];
    private readonly Process _process;

    public Tgt(int targets, long sizeBytes)
    {
        Directory = System.IO.Directory.CreateTempSubdirectory("tgt-interop-").FullName;
        _process = Process.Start(new ProcessStartInfo(
            "tgtd", ["-f", "-C", _control, "--iscsi", $"portal=127.0.0.1:{_ports[0]}"]) { RedirectStandardError = true, RedirectStandardOutput = true })!;
        for (int i = 0; Blockd.Try("tgtadm", "-C", _control, "--lld", "iscsi", "--op", "show", "--mode", "sys").Code != 0; i++)
        {
            Assert.True(i < 100 && !_process.HasExited, "tgtd does not start; it needs root");
            Thread.Sleep(100);
        }

        Admin("--op", "new", "--mode", "portal", "--param", $"portal=127.0.0.1:{_ports[1]}");
        for (int i = 1; i <= targets; i++)
        {
            string tid = i.ToString(CultureInfo.InvariantCulture), file = Path.Combine(Directory, $"lun{i}");
            using (FileStream backing = File.Create(file)) backing.SetLength(sizeBytes);
            Admin("--op", "new", "--mode", "target", "--tid", tid, "-T", $"{Prefix}:{i}");
            Admin("--op", "new", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "-b", file);
            Admin("--op", "update", "--mode", "logicalunit", "--tid", tid, "--lun", "1", "--params", "thin_provisioning=1");
            Admin("--op", "bind", "--mode", "target", "--tid", tid, "-I", "ALL");
        }
    }

    public string Directory { get; }

    /// <summary>The LUN of target <paramref name="target"/> at both portals.</summary>
    public string[] Urls(int target) => [.. _ports.Select(port => $"iscsi://127.0.0.1:{port}/{Prefix}:{target}/1")];

    public void Dispose()
    {
        if (!_process.HasExited) _process.Kill();
        _process.WaitForExit();
        _process.Dispose();
        System.IO.Directory.Delete(Directory, recursive: true);
    }

    private void Admin(params string[] arguments) => Blockd.Run("tgtadm", ["-C", _control, "--lld", "iscsi", .. arguments]);
}
