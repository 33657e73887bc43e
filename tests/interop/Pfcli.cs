using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>The built pfcli against a running daemon.</summary>
internal sealed class Pfcli(Blockd daemon)
{
    public static string Program => Path.Combine(Path.GetDirectoryName(Blockd.Program)!, "pfcli");

    /// <summary>Runs a command; its exit code and everything that it said.</summary>
    public (int Code, string Output) Try(params string[] arguments) =>
        Blockd.Try(Program, ["--server", daemon.ApiUrl, "--token-file", Path.Combine(daemon.Directory, "admin.token"), .. arguments]);

    /// <summary>Runs a command that must succeed.</summary>
    public string Run(params string[] arguments)
    {
        (int code, string output) = Try(arguments);
        Assert.True(code == 0, $"pfcli {string.Join(' ', arguments)} ended with {code}:\n{output}");
        return output;
    }

    /// <summary>Runs a command that must be refused with exit code 1 and one line of complaint that holds
    /// <paramref name="code"/>.</summary>
    public void Refused(string code, params string[] arguments)
    {
        (int exit, string output) = Try(arguments);
        Assert.True(exit == 1, $"pfcli {string.Join(' ', arguments)} ended with {exit}:\n{output}");
        string complaint = Assert.Single(output.TrimEnd('\n').Split('\n'), l => l.StartsWith("pfcli: ", StringComparison.Ordinal));
        Assert.Contains(code, complaint, StringComparison.Ordinal);
    }

    public VolumeInfo Volume(string name) => JsonSerializer.Deserialize(Run("--json", "show_volume", "-v", name), ApiJson.Default.VolumeInfo)!;

    public IReadOnlyList<VolumeInfo> Volumes() => JsonSerializer.Deserialize(Run("--json", "list_volume"), ApiJson.Default.VolumeList)!.Volumes;

    public IReadOnlyList<DiskInfo> Disks() => JsonSerializer.Deserialize(Run("--json", "list_disk"), ApiJson.Default.DiskList)!.Disks;

    public IReadOnlyList<SessionInfo> Sessions() => JsonSerializer.Deserialize(Run("--json", "list_session"), ApiJson.Default.SessionList)!.Sessions;
}
