using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Policies through the admin API, and hooks as real processes.</summary>
public sealed class PolicyApiTests
{
    [Fact]
    public async Task A_policy_is_made_runs_is_changed_and_deleted_and_its_snapshots_stay()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.Test.CreateAsync("v");
        string hooks = Path.Combine(server.Test.DataDir, "hooks");
        Script(hooks, "freeze", "echo \"$@\" > said");
        RawAnswer made = await server.SendAsync(
            "POST", "/v1/policies", "{\"name\":\"p\",\"volumes\":[\"v\"],\"periodSeconds\":3600,\"keepCount\":3,\"preHook\":\"freeze\"}");
        Assert.True(made.Status == 201, made.Body);
        PolicyInfo policy;
        do
        {
            await Task.Delay(20, TestContext.Current.CancellationToken);
            policy = JsonSerializer.Deserialize((await server.SendAsync("GET", "/v1/policies")).Body, ApiJson.Default.PolicyList)!.Policies[0];
        }
        while (policy.LastResult is null);
        SnapshotEntry snapshot = Assert.Single(JsonSerializer.Deserialize((await server.SendAsync("GET", "/v1/volumes/v/snapshots")).Body, ApiJson.Default.SnapshotList)!.Snapshots);
        Assert.Equal(("p", "clean", $"{snapshot.Name} was cut, clean"), (snapshot.Policy, snapshot.Label, policy.LastResult));
        Assert.Equal($"pre p {snapshot.Name} v\n", await File.ReadAllTextAsync(Path.Combine(hooks, "said"), TestContext.Current.CancellationToken));
        Assert.NotNull(policy.NextAt);

        RawAnswer changed = await server.SendAsync("PATCH", "/v1/policies/p", "{\"periodSeconds\":0,\"keepCount\":0,\"preHook\":\"\"}");
        policy = JsonSerializer.Deserialize(changed.Body, ApiJson.Default.PolicyInfo)!;
        Assert.Equal((0, null, null, null), (policy.PeriodSeconds, policy.KeepCount, policy.PreHook, policy.NextAt));
        (string Method, string Path, string? Body, int Status, string Code)[] refused =
        [
            ("POST", "/v1/policies", "{\"name\":\"p\",\"volumes\":[\"v\"],\"periodSeconds\":1}", 409, "policy-exists"),
            ("POST", "/v1/policies", "{\"name\":\"q\",\"volumes\":[\"w\"],\"periodSeconds\":1}", 404, "no-such-volume"),
            ("POST", "/v1/policies", "{\"name\":\"q\",\"volumes\":[null],\"periodSeconds\":1}", 404, "no-such-volume"),
            ("POST", "/v1/policies", "{\"name\":\"q\",\"volumes\":[],\"periodSeconds\":1}", 400, "invalid-volumes"),
            ("POST", "/v1/policies", "{\"name\":\"q\",\"volumes\":[\"v\"],\"periodSeconds\":-1}", 400, "invalid-period"),
            ("POST", "/v1/policies", "{\"name\":\"q\",\"volumes\":[\"v\"],\"periodSeconds\":1,\"preHook\":\"../freeze\"}", 400, "invalid-hook"),
            ("PATCH", "/v1/policies/q", "{}", 404, "no-such-policy"),
            ("PATCH", "/v1/policies/p", "{\"revision\":1}", 412, "revision-differs"),
            ("DELETE", "/v1/policies/q", null, 404, "no-such-policy"),
        ];
        foreach ((string method, string path, string? body, int status, string code) in refused)
        {
            RawAnswer answer = await server.SendAsync(method, path, body);
            Assert.True((answer.Status, answer.Code) == (status, code), $"{method} {path} {body}: {answer.Status} {answer.Body}");
        }

        await server.Test.RestartAsync();
        Assert.Equal(0, server.Test.Daemon.Policies.Find("p")!.PeriodSeconds);
        Assert.Null((await server.Test.Daemon.Policies.DeleteAsync("p", null)).Fault);
        Assert.Single((await server.Test.Daemon.Directory.SnapshotsAsync(server.Test.Daemon.Directory.Find("v")!)).Snapshots);
    }

    [Fact]
    public async Task A_hook_that_fails_hangs_or_is_not_there_is_said_to()
    {
        string folder = Directory.CreateTempSubdirectory("hooks-").FullName;
        try
        {
            using var stop = new CancellationTokenSource();
            var hooks = new PolicyHooks(folder, stop.Token);
            var policy = new PolicyRecord("p", [1], 1, null, null, null, null, 1);
            Script(folder, "well", "cat > /dev/null; yes | head -c 1000000; exit 0");
            Script(folder, "bad", "exit 7");
            Script(folder, "hangs", "sleep 100 & echo $! > child; wait");
            Task<string?> RunAsync(string hook, string moment = "pre") => hooks.RunAsync(policy, hook, moment, "s", ["v"]);
            Assert.Null(await RunAsync("well"));
            Assert.EndsWith("ended with 7", await RunAsync("bad"), StringComparison.Ordinal);
            Assert.Contains("cannot be run", await RunAsync("none"), StringComparison.Ordinal);
            Assert.Contains("longer than 1 s", await RunAsync("hangs"), StringComparison.Ordinal);
            string child = (await File.ReadAllTextAsync(Path.Combine(folder, "child"), TestContext.Current.CancellationToken)).Trim();
            for (int i = 0; i < 200 && IsRunning(child); i++) await Task.Delay(20, TestContext.Current.CancellationToken);
            Assert.False(IsRunning(child), "a child of the hook goes on");
            await stop.CancelAsync();
            Assert.Contains("daemon stops", await hooks.RunAsync(policy with { HookSeconds = 3600 }, "hangs", "pre", "s", ["v"]), StringComparison.Ordinal);
            Assert.Null(await RunAsync("well", "post")); // what lets users go on runs all the same
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static bool IsRunning(string pid) =>
        File.Exists($"/proc/{pid}/stat") && !File.ReadAllText($"/proc/{pid}/stat").Contains(") Z", StringComparison.Ordinal);

    private static void Script(string folder, string name, string text)
    {
        Directory.CreateDirectory(folder);
        string path = Path.Combine(folder, name);
        File.WriteAllText(path, "#!/bin/sh\n" + text + "\n");
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }
}
