using System.Net;
using System.Text.Json;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Pfcli;

public sealed class SnapshotCommandTests
{
    private static readonly DateTimeOffset Then = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);
    private static readonly SnapshotEntry Snap = new(
        "v1", "s1", Guid.Parse("11111111-2222-3333-4444-555555555555"), Units.GiB, Then, "clean", ["c1"], null, null, 3 * Units.MiB, Units.MiB);

    private static readonly VolumeInfo Vol = new(
        7, Guid.NewGuid(), "v1", Units.GiB, Units.MiB, 1, "online", new ExportOptions(), null, Guid.NewGuid(), 0, 42, Then,
        Base: "v0@s0", Snapshots: 2);

    private static readonly TaskInfo Done = new(5, "delete-snapshot", "v1@s1", "succeeded", 1, Then, Then, "deleted");

    [Fact]
    public async Task Create_snapshot_cuts_several_volumes_under_one_name()
    {
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/snapshots", new SnapshotList([Snap]), ApiJson.Default.SnapshotList, HttpStatusCode.Created);
        Assert.Equal(0, await daemon.RunAsync("create_snapshot", "-v", "v1", "-v", "v2", "-n", "s1", "--clean"));
        CreateSnapshot sent = JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CreateSnapshot)!;
        Assert.Equal(("s1", "v1 v2", true), (sent.Name, string.Join(' ', sent.Volumes), sent.Clean));
        Assert.Equal("Volume  Name  Size   Used   Exclusive  Created               Label  Clones\nv1      s1    1 GiB  3 MiB  1 MiB      2026-01-02 03:04:05Z  clean  c1\n", daemon.Out);
        Assert.Equal(2, await daemon.RunAsync("create_snapshot", "-v", "v1", "-n", "a@b"));
        Assert.Equal(2, await daemon.RunAsync("create_snapshot", "-v", "v1", "-v", "../x", "-n", "s"));
        Assert.Equal(2, await daemon.RunAsync("create_snapshot", "-n", "s"));
    }

    [Fact]
    public async Task List_snapshot_asks_for_usage_unless_quick()
    {
        StubDaemon daemon = new StubDaemon()
            .Answer("GET /v1/snapshots?usage=true", new SnapshotList([Snap]), ApiJson.Default.SnapshotList)
            .Answer("GET /v1/volumes/v1/snapshots", new SnapshotList([Snap with { UsedBytes = null }]), ApiJson.Default.SnapshotList);
        Assert.Equal(0, await daemon.RunAsync("list_snapshot"));
        Assert.StartsWith("1 snapshots returned.\n", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(0, await daemon.RunAsync("list_snapshot", "-v", "v1", "--quick", "--json"));
        Assert.Equal("s1", JsonSerializer.Deserialize(daemon.Out, ApiJson.Default.SnapshotList)!.Snapshots[0].Name);
    }

    [Fact]
    public async Task Delete_snapshot_needs_consent_names_the_uuid_and_follows_the_task()
    {
        string path = $"DELETE /v1/volumes/v1/snapshots/s1?uuid={Snap.Uuid}";
        StubDaemon daemon = new StubDaemon().Answer("GET /v1/volumes/v1/snapshots/s1", Snap, ApiJson.Default.SnapshotEntry)
            .Answer(path, Done with { State = "running", Progress = 0.5, EndedAt = null, Result = null }, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
            .Answer("GET /v1/tasks/5", Done, ApiJson.Default.TaskInfo);
        Assert.Equal(1, await daemon.RunAsync("delete_snapshot", "-v", "v1", "-n", "s1"));
        Assert.Contains("frees 1 MiB", daemon.Error, StringComparison.Ordinal);
        Assert.DoesNotContain(path, daemon.Requests);
        Assert.Equal(0, await daemon.RunAsync("delete_snapshot", "-v", "v1", "-n", "s1", "--yes"));
        Assert.Contains("GET /v1/tasks/5", daemon.Requests);
        Assert.Contains("succeeded", daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Rollback_needs_consent_and_tells_the_safety_snapshot()
    {
        StubDaemon daemon = new StubDaemon().Answer(
            "POST /v1/volumes/v1/snapshots/s1/rollback", new RollbackInfo(Vol, Snap with { Name = "before" }), ApiJson.Default.RollbackInfo);
        Assert.Equal(1, await daemon.RunAsync("rollback_snapshot", "-v", "v1", "-n", "s1"));
        Assert.Empty(daemon.Requests);
        Assert.Equal(0, await daemon.RunAsync("rollback_snapshot", "-v", "v1", "-n", "s1", "--safety", "before", "--force", "--yes"));
        Assert.Equal(new RollbackSnapshot("before", true), JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.RollbackSnapshot));
        Assert.Equal("Volume v1 is what s1 was; what it was is kept as before.\n", daemon.Out);
    }

    [Fact]
    public async Task Volumes_go_back_together_when_several_are_named_or_their_group()
    {
        StubDaemon daemon = new StubDaemon().Answer(
            "POST /v1/snapshots/rollback", new RollbackTogetherInfo([Vol, Vol with { Name = "v2" }], [Snap with { Name = "before" }, Snap]), ApiJson.Default.RollbackTogetherInfo);
        Assert.Equal(1, await daemon.RunAsync("rollback_snapshot", "-v", "v1", "-v", "v2", "-n", "s1"));
        Assert.Contains("volumes v1, v2", daemon.Error, StringComparison.Ordinal);
        Assert.Empty(daemon.Requests);
        Assert.Equal(0, await daemon.RunAsync("rollback_snapshot", "-v", "v1", "-v", "v2", "-n", "s1", "--yes"));
        Assert.Equal("Volumes v1, v2 are what s1 was; what they were is kept as before.\n", daemon.Out);
        Assert.Equal(0, await daemon.RunAsync("rollback_snapshot", "-v", "v1", "-n", "s1", "--group", "--safety", "before", "--force", "--yes"));
        RollbackTogether request = JsonSerializer.Deserialize(daemon.Bodies[^1], ApiJson.Default.RollbackTogether)!;
        Assert.Equal(("s1", true, "before", true, "v1"), (request.Snapshot, request.Group, request.SafetyName, request.Force, request.Volumes.Single()));
    }

    [Fact]
    public async Task Diff_goes_on_where_an_answer_ended()
    {
        StubDaemon daemon = new StubDaemon()
            .Answer("GET /v1/volumes/v1/diff?from=a&to=b&offset=0", new DiffInfo([new DiffRange(0, 4096)], 4096, 8192), ApiJson.Default.DiffInfo)
            .Answer("GET /v1/volumes/v1/diff?from=a&to=b&offset=8192", new DiffInfo([new DiffRange(8192, 4096)], 4096, null), ApiJson.Default.DiffInfo);
        Assert.Equal(0, await daemon.RunAsync("diff_snapshot", "-v", "v1", "--from", "a", "--to", "b"));
        Assert.Equal("2 ranges, 8 KiB changed.\nOffset  Length\n0       4096\n8192    4096\n", daemon.Out);
    }

    [Fact]
    public async Task Clone_and_flatten()
    {
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/volumes/v0/clone", Vol, ApiJson.Default.VolumeInfo, HttpStatusCode.Created)
            .Answer("POST /v1/volumes/v1/flatten", Done with { Kind = "flatten", Target = "v1" }, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
            .Answer("GET /v1/volumes/v1", Vol, ApiJson.Default.VolumeInfo);
        Assert.Equal(0, await daemon.RunAsync("clone_volume", "-v", "v0", "-c", "v1"));
        CloneVolume sent = JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CloneVolume)!;
        Assert.Equal(("v1", null, null, 32), (sent.Name, sent.Snapshot, sent.SizeBytes, sent.IdempotencyKey!.Length));
        Assert.Equal(0, await daemon.RunAsync("clone_volume", "-v", "v0", "-n", "s0", "-c", "v1", "-s", "2g"));
        sent = JsonSerializer.Deserialize(daemon.Bodies[1], ApiJson.Default.CloneVolume)!;
        Assert.Equal(("s0", 2 * Units.GiB), (sent.Snapshot, sent.SizeBytes!.Value));
        Assert.Equal(0, await daemon.RunAsync("flatten_volume", "-v", "v1"));
        Assert.Equal(0, await daemon.RunAsync("show_volume", "-v", "v1"));
        Assert.Contains("v0@s0", daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Policies_take_times_and_send_only_what_is_named()
    {
        var policy = new PolicyInfo("p", ["v1", "v2"], 900, 24, 2_592_000, null, null, 30, 3, null, "cut", null);
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/policies", policy, ApiJson.Default.PolicyInfo, HttpStatusCode.Created)
            .Answer("PATCH /v1/policies/p", policy, ApiJson.Default.PolicyInfo)
            .Answer("GET /v1/policies", new PolicyList([policy with { PeriodSeconds = 0, KeepCount = null, KeepSeconds = null }]), ApiJson.Default.PolicyList)
            .AnswerText("DELETE /v1/policies/p", "", HttpStatusCode.NoContent);
        Assert.Equal(0, await daemon.RunAsync("create_policy", "-p", "p", "-v", "v1", "-v", "v2", "--period", "15m", "--keep", "24", "--keep_for", "30d", "--pre_hook", "freeze", "--hook_timeout", "90s"));
        CreatePolicy sent = JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CreatePolicy)!;
        Assert.Equal(("p", "v1 v2", 900L, 24, 2_592_000L, "freeze", null, 90), (sent.Name, string.Join(' ', sent.Volumes), sent.PeriodSeconds, sent.KeepCount, sent.KeepSeconds, sent.PreHook, sent.PostHook, sent.HookSeconds));
        Assert.Equal("Name  Volumes  Period  Keep  KeepFor  Next  LastResult\np     v1, v2   15m     24    30d            cut\n", daemon.Out);
        Assert.Equal(0, await daemon.RunAsync("set_policy", "-p", "p", "--period", "0"));
        Assert.Equal(new ChangePolicy(PeriodSeconds: 0), JsonSerializer.Deserialize(daemon.Bodies[1], ApiJson.Default.ChangePolicy));
        Assert.Equal(0, await daemon.RunAsync("list_policy"));
        Assert.Contains("rests   all   ever", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(1, await daemon.RunAsync("delete_policy", "-p", "p"));
        Assert.Equal(0, await daemon.RunAsync("delete_policy", "-p", "p", "--yes"));
        foreach (string wrong in new[] { "", "5", "m", "-5m", "1.5h", "99999999999999999999d", "5x" })
            Assert.Equal(2, await daemon.RunAsync("set_policy", "-p", "p", "--period", wrong));
    }

    [Fact]
    public async Task Help_shows_examples()
    {
        var daemon = new StubDaemon();
        Assert.Equal(0, await daemon.RunAsync("create_snapshot", "--help"));
        Assert.Contains("Examples:\n  pfcli create_snapshot -v db -n before-upgrade\n", daemon.Out, StringComparison.Ordinal);
    }
}
