using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Snapshots and clones of the real daemon, by the real pfcli, judged by foreign clients.</summary>
public sealed class SnapshotTests : IDisposable
{
    private readonly Blockd _blockd = new("demo", "64m");
    private readonly Pfcli _pfcli;

    public SnapshotTests() => _pfcli = new Pfcli(_blockd);

    public void Dispose() => _blockd.Dispose();

    private string UriOf(string export) => $"nbd://127.0.0.1:{_blockd.Port}/{export}";

    [Fact]
    public void Snapshots_clones_rollback_and_deletion_hold_what_they_promise()
    {
        Io("demo", "write -P 1 0 8m", "flush");
        _pfcli.Run("create_snapshot", "-v", "demo", "-n", "one", "--clean");
        Io("demo", "write -P 2 4m 8m", "flush");
        SnapshotEntry one = Assert.Single(Snapshots());
        Assert.Equal(("clean", 8UL << 20, 4UL << 20), (one.Label, one.UsedBytes!.Value, one.ExclusiveBytes!.Value));
        Assert.Contains("1 ranges, 8 MiB changed.", _pfcli.Run("diff_snapshot", "-v", "demo", "--from", "one"), StringComparison.Ordinal);
        _pfcli.Refused("snapshot-exists", "create_snapshot", "-v", "demo", "-n", "one");

        _pfcli.Run("clone_volume", "-v", "demo", "-n", "one", "-c", "copy", "-s", "128m");
        Io("copy", "read -P 1 0 8m", "read -P 0 8m 8m", "write -P 3 0 1m", "write -P 3 100m 1m");
        Io("demo", "read -P 1 0 4m", "read -P 2 4m 8m");
        Assert.Equal("demo@one", _pfcli.Volume("copy").Base);
        _pfcli.Refused("copy is a clone of 'demo@one'", "delete_snapshot", "-v", "demo", "-n", "one", "--yes");
        _pfcli.Refused("snapshot-has-clones", "delete_volume", "-v", "demo", "--snapshots", "--yes");
        Assert.Contains("succeeded", _pfcli.Run("flatten_volume", "-v", "copy"), StringComparison.Ordinal);

        _pfcli.Refused("--yes", "rollback_snapshot", "-v", "demo", "-n", "one");
        _pfcli.Run("rollback_snapshot", "-v", "demo", "-n", "one", "--safety", "later", "--yes");
        Io("demo", "read -P 1 0 8m", "read -P 0 8m 8m");
        _pfcli.Run("rollback_snapshot", "-v", "demo", "-n", "later", "--yes");
        Io("demo", "read -P 1 0 4m", "read -P 2 4m 8m");

        _blockd.Kill();
        _blockd.Restart();
        Assert.Equal(3, Snapshots().Count);
        Assert.Equal("clean", Snapshots()[0].Label);
        Io("copy", "read -P 3 0 1m", "read -P 1 1m 7m", "read -P 3 100m 1m");
        foreach (SnapshotEntry snapshot in Snapshots())
            Assert.Contains("succeeded", _pfcli.Run("delete_snapshot", "-v", "demo", "-n", snapshot.Name, "--yes"), StringComparison.Ordinal);
        Io("demo", "read -P 1 0 4m", "read -P 2 4m 8m");
        _pfcli.Run("delete_volume", "-v", "demo", "--yes");
        Io("copy", "read -P 3 0 1m", "read -P 1 1m 7m");
        Assert.Equal(0, _blockd.Stop());
        Blockd.Run(Path.Combine(Path.GetDirectoryName(Blockd.Program)!, "pfinspect"), "verify", _blockd.Store);
    }

    private IReadOnlyList<SnapshotEntry> Snapshots() =>
        JsonSerializer.Deserialize(_pfcli.Run("--json", "list_snapshot", "-v", "demo"), ApiJson.Default.SnapshotList)!.Snapshots;

    private void Io(string export, params string[] commands)
    {
        string output = Blockd.Run("qemu-io", ["-f", "raw", .. commands.SelectMany(c => new[] { "-c", c }), UriOf(export)]);
        Assert.DoesNotContain("failed", output, StringComparison.Ordinal);
    }
}
