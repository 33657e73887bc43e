using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>pfcli apply against a daemon: brought about, kept, shown, and nothing deleted that nobody confirmed.</summary>
public sealed class DeclaredApiTests
{
    private const string File = """
        {
          // two volumes and who reaches them
          "volumes": [ { "name": "db", "size": "64m", "export": { "iscsi": false } }, { "name": "log", "sizeBytes": 1048576 }, ],
          "targets": [ { "name": "iqn.2026-11.org.example:t", "luns": [ { "lun": 2, "volume": "log" } ], "access": [ { "initiator": "iqn.2026-11.org.example:*", "address": "10.0.0.0/8" } ] } ],
          "policies": [ { "name": "hourly", "volumes": ["db"], "periodSeconds": 3600, "keepCount": 24 } ]
        }
        """;

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public async Task A_file_is_brought_about_shown_kept_over_a_restart_and_repaired()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        string file = await WriteAsync(File);
        string shown = await server.DoneAsync("apply", "-f", file, "--dry-run");
        Assert.Contains("+ volume db: make it", shown, StringComparison.Ordinal);
        Assert.Contains("+ policy hourly: make it", shown, StringComparison.Ordinal);
        Assert.Equal("0 volumes returned.", (await server.DoneAsync("list_volume")).Split('\n')[0]);
        Assert.Contains("Nothing is declared.", await server.DoneAsync("show_declared"), StringComparison.Ordinal);

        Assert.Contains("Everything is as the file says.", await server.DoneAsync("apply", "-f", file), StringComparison.Ordinal);
        Assert.Contains("nothing would be done", await server.DoneAsync("apply", "-f", file, "--dry-run"), StringComparison.Ordinal);
        DeclaredInfo info = await InfoAsync(server);
        Assert.True(info.Converged && info.Revision > 0);
        Assert.Equal(4, info.Items.Count);
        Assert.All(info.Items, i => Assert.True(i.Status == "current" && i.Desired is not null && i.Current is not null));
        TargetInfo target = JsonSerializer.Deserialize(await server.DoneAsync("show_target", "-t", "iqn.2026-11.org.example:t", "--json"), ApiJson.Default.TargetInfo)!;
        Assert.Equal((2, "log"), (target.Luns[0].Lun, target.Luns[0].Volume));

        // By hand, each thing that is no data: it comes back.
        await server.DoneAsync("export_volume", "-v", "db", "--iscsi");
        await server.DoneAsync("delete_policy", "-p", "hourly", "--yes");
        await server.DoneAsync("delete_target", "-t", "iqn.2026-11.org.example:t", "--yes");
        await server.DoneAsync("rename_volume", "-v", "log", "-n", "journal");
        await ConvergedAsync(server);
        Assert.Contains("hourly", await server.DoneAsync("list_policy"), StringComparison.Ordinal);
        Assert.Contains("log", await server.DoneAsync("list_volume"), StringComparison.Ordinal);

        await server.RestartAsync();
        await server.DoneAsync("delete_policy", "-p", "hourly", "--yes");
        await ConvergedAsync(server);
        await server.DoneAsync("forget_declared", "--yes");
        await server.DoneAsync("delete_policy", "-p", "hourly", "--yes");
        Assert.Equal(0, (await InfoAsync(server)).Revision);
    }

    [Fact]
    public async Task A_volume_is_never_deleted_or_emptied_unless_pruned_by_name_and_confirmed()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.DoneAsync("create_volume", "-v", "kept", "-s", "1m");
        await server.DoneAsync("create_volume", "-v", "snapped", "-s", "1m");
        await server.DoneAsync("create_snapshot", "-v", "snapped", "-n", "s");
        string file = await WriteAsync("""{ "volumes": [ { "name": "db", "size": "4m" } ] }""");
        await server.DoneAsync("apply", "-f", file);
        Assert.Equal("3 volumes returned.", (await server.DoneAsync("list_volume")).Split('\n')[0]);
        Assert.Contains("- volume kept: delete it, with all its data", await server.DoneAsync("apply", "-f", file, "--prune", "--dry-run"), StringComparison.Ordinal);
        (int exit, _, string error) = await server.RunAsync("apply", "-f", file, "--prune");
        Assert.True(exit == 1 && error.Contains("--yes", StringComparison.Ordinal), error);
        Assert.Equal("3 volumes returned.", (await server.DoneAsync("list_volume")).Split('\n')[0]);

        // What has snapshots is refused and told; the other one goes.
        (exit, string said, error) = await server.RunAsync("apply", "-f", file, "--prune", "--yes");
        Assert.True(exit == 1 && error.Contains("snapped", StringComparison.Ordinal) && error.Contains("volume-has-snapshots", StringComparison.Ordinal), said + error);
        Assert.Equal(["db", "snapped"], (await VolumesAsync(server)).Select(v => v.Name));

        // Gone by hand: no empty disk takes its place unless somebody says so.
        await server.DoneAsync("delete_volume", "-v", "db", "--yes");
        DeclaredItem gone;
        do gone = (await InfoAsync(server)).Items[0];
        while (gone.Status != "impossible");
        Assert.Contains("deleted by hand", gone.Reason, StringComparison.Ordinal);
        Assert.Null(gone.Current);
        Assert.Equal(["snapped"], (await VolumesAsync(server)).Select(v => v.Name));
        await server.DoneAsync("apply", "-f", file);
        Assert.Equal(["db", "snapped"], (await VolumesAsync(server)).Select(v => v.Name));
    }

    [Fact]
    public async Task What_cannot_come_about_says_why_and_exits_1()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.DoneAsync("create_volume", "-v", "db", "-s", "8m");
        (int exit, string said, string error) = await server.RunAsync("apply", "-f", await WriteAsync("""{ "volumes": [ { "name": "db", "size": "1m" } ] }"""));
        Assert.True(exit == 1 && said.Contains("impossible", StringComparison.Ordinal) && error.Contains("never shrunk", StringComparison.Ordinal), said + error);
        (exit, _, error) = await server.RunAsync("apply", "--timeout", "0", "-f", await WriteAsync(
            """{ "policies": [ { "name": "p", "volumes": ["none"], "periodSeconds": 60 } ] }"""));
        Assert.True(exit == 1 && error.Contains("no-such-volume", StringComparison.Ordinal), error);
        DeclaredItem waiting = Assert.Single((await InfoAsync(server)).Items);
        Assert.True(waiting is { Status: "waiting", NextTryAt: not null }, waiting.ToString());
    }

    [Theory]
    [InlineData("", "is not what can be declared")]
    [InlineData("[]", "no JSON object")]
    [InlineData("{ \"volumes\": 1 }", "is not what can be declared")]
    [InlineData("{ \"volume\": [] }", "is not what can be declared")]
    [InlineData("{ \"volumes\": [ { \"name\": \"db\", \"size\": 5 } ] }", "size is a text")]
    [InlineData("{ \"volumes\": [ { \"name\": \"db\", \"size\": \"-5g\" } ] }", "size is a text")]
    [InlineData("{ \"volumes\": [ { \"name\": \"db\" } ] }", "is not what can be declared")]
    [InlineData("{ \"volumes\": [ { \"name\": \"D B\", \"size\": \"1g\" } ] }", "[invalid-declaration]")]
    [InlineData("{ \"volumes\": [ { \"name\": \"db\", \"size\": \"1k\" } ] }", "[invalid-declaration]")]
    [InlineData("{ \"volumes\": [ { \"name\": \"a\", \"size\": \"1g\" }, { \"name\": \"a\", \"size\": \"1g\" } ] }", "declared more than once")]
    [InlineData("{ \"targets\": [ { \"name\": \"nonsense\" } ] }", "[invalid-declaration]")]
    [InlineData("{ \"targets\": [ { \"name\": \"iqn.2026-11.org.example:t\", \"access\": [ { \"initiator\": \"\" } ] } ] }", "[invalid-declaration]")]
    public async Task A_wrong_file_changes_nothing_and_is_one_line(string content, string reason)
    {
        await using ApiServer server = await ApiServer.StartAsync();
        (int exit, _, string error) = await server.RunAsync("apply", "-f", await WriteAsync(content));
        Assert.True(exit == 1 && error.Contains(reason, StringComparison.Ordinal), $"{exit} {error}");
        Assert.Single(error.TrimEnd('\n').Split('\n'));
        Assert.Equal(0, (await InfoAsync(server)).Revision);
    }

    private static async Task ConvergedAsync(ApiServer server)
    {
        using var patience = CancellationTokenSource.CreateLinkedTokenSource(Stop);
        patience.CancelAfter(TimeSpan.FromSeconds(60));
        // The difference is known when the runner has looked: ask for what is there, not for what it thinks.
        while (!(await server.DoneAsync("apply", "-f", await WriteAsync(File), "--dry-run")).Contains("nothing would be done", StringComparison.Ordinal))
            await Task.Delay(50, patience.Token);
    }

    private static async Task<DeclaredInfo> InfoAsync(ApiServer server) =>
        JsonSerializer.Deserialize(await server.DoneAsync("show_declared", "--json"), ApiJson.Default.DeclaredInfo)!;

    private static async Task<IReadOnlyList<VolumeInfo>> VolumesAsync(ApiServer server) =>
        JsonSerializer.Deserialize(await server.DoneAsync("list_volume", "--json"), ApiJson.Default.VolumeList)!.Volumes;

    private static async Task<string> WriteAsync(string content)
    {
        string path = Path.Combine(Path.GetTempPath(), $"declared-{Guid.NewGuid():N}.json");
        await System.IO.File.WriteAllTextAsync(path, content, Stop);
        return path;
    }
}
