using System.Net;
using System.Text.Json;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Pfcli;

public class CommandTests
{
    private static readonly DateTimeOffset Then = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);
    private static readonly VolumeInfo Vol = new(
        7, Guid.Parse("11111111-2222-3333-4444-555555555555"), "v1", 128 * Units.GiB, Units.GiB, 1, "ok",
        new ExportOptions(), "mail", Guid.Parse("aaaaaaaa-2222-3333-4444-555555555555"), 0, 42, Then);

    private static readonly DiskInfo Disk = new(
        Vol.StoreId, "d1", "/data/d1", "file", "ok", Units.TiB, Units.TiB, Units.GiB, Units.TiB - Units.GiB, 100, 1, 4096, 1, 0, 0, 321, 0.1, null);

    private static readonly SessionInfo Session = new("s-1", "nbd", "v1", "127.0.0.1:5000", "127.0.0.1:10809", false, null, Then, 1, 4096, 2, 8192, 3);
    private static readonly TaskInfo Running = new(5, "scrub", "v1", "running", 0.5, Then, null, null);
    private static readonly TaskInfo Succeeded = Running with { State = "succeeded", Progress = 1, EndedAt = Then, Result = "no errors" };

    private static StubDaemon WithVolume(VolumeInfo? volume = null) =>
        new StubDaemon().Answer("GET /v1/volumes/v1", volume ?? Vol, ApiJson.Default.VolumeInfo);

    private static StubDaemon WithChange(VolumeInfo? volume = null) =>
        WithVolume(volume).Answer("PATCH /v1/volumes/v1", volume ?? Vol, ApiJson.Default.VolumeInfo);

    private static ChangeVolume Change(StubDaemon daemon) =>
        JsonSerializer.Deserialize(daemon.Bodies[^1], ApiJson.Default.ChangeVolume)!;

    [Fact]
    public async Task Create_volume_sends_what_was_asked_with_a_key_and_the_token()
    {
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/volumes", Vol, ApiJson.Default.VolumeInfo, HttpStatusCode.Created);
        Assert.Equal(0, await daemon.RunAsync("create_volume", "-v", "v1", "-s", "128GiB", "--rep", "2", "--read"));
        CreateVolume sent = JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CreateVolume)!;
        Assert.Equal(("v1", 128 * Units.GiB, 2, true), (sent.Name, sent.SizeBytes, sent.RepCount, sent.Export!.ReadOnly));
        Assert.Equal(32, sent.IdempotencyKey!.Length);
        Assert.Equal("Bearer secret-token", daemon.Authorization);
        Assert.Equal("Id  Name  Size     RepCount  Status\n7   v1    128 GiB  1         ok\n", daemon.Out);
        Assert.Equal("", daemon.Error);
    }

    [Fact]
    public async Task Create_volume_checks_the_node_and_finds_the_disk()
    {
        StubDaemon daemon = new StubDaemon()
            .Answer("GET /v1/node", new NodeInfo("n1", "0.1", "/d", "uring", "flush", Then, [], []), ApiJson.Default.NodeInfo)
            .Answer("GET /v1/disks", new DiskList([Disk]), ApiJson.Default.DiskList)
            .Answer("POST /v1/volumes", Vol, ApiJson.Default.VolumeInfo, HttpStatusCode.Created);
        Assert.Equal(0, await daemon.RunAsync("create_volume", "-v", "v1", "-s", "1g", "--host_id", "n1", "--disk", "d1"));
        Assert.Equal(Disk.Id, JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CreateVolume)!.StoreId);
        Assert.Equal(1, await daemon.RunAsync("create_volume", "-v", "v1", "-s", "1g", "--host_id", "n2"));
        Assert.Equal(1, await daemon.RunAsync("create_volume", "-v", "v1", "-s", "1g", "--disk", "d2"));
        Assert.Single(daemon.Bodies);
    }

    [Fact]
    public async Task A_refusal_is_one_line_and_exit_1()
    {
        StubDaemon daemon = new StubDaemon().Refuse("POST /v1/volumes", HttpStatusCode.Conflict, "name_taken", "v1 exists;\u001b[31m take another name");
        Assert.Equal(1, await daemon.RunAsync("create_volume", "-v", "v1", "-s", "1g"));
        Assert.Equal("pfcli: v1 exists; [31m take another name [name_taken]\n", daemon.Error);
        Assert.Equal("", daemon.Out);
    }

    [Fact]
    public async Task Delete_volume_names_id_and_revision_and_needs_consent()
    {
        StubDaemon daemon = WithVolume().AnswerText("DELETE /v1/volumes/v1?id=7&revision=42", "", HttpStatusCode.NoContent)
            .AnswerText("DELETE /v1/volumes/v1?id=7&revision=42&force=true", "", HttpStatusCode.NoContent);
        Assert.Equal(1, await daemon.RunAsync("delete_volume", "-v", "v1"));
        Assert.Contains("--yes", daemon.Error, StringComparison.Ordinal);
        Assert.Equal(0, await daemon.RunAsync("delete_volume", "-v", "v1", "--yes"));
        Assert.Equal(0, await daemon.RunAsync("--yes", "delete_volume", "-v", "v1", "--force"));
        daemon.Terminal = true;
        daemon.Typed = "n\n";
        int sent = daemon.Requests.Count(r => r.StartsWith("DELETE", StringComparison.Ordinal));
        Assert.Equal(1, await daemon.RunAsync("delete_volume", "-v", "v1"));
        Assert.Equal(sent, daemon.Requests.Count(r => r.StartsWith("DELETE", StringComparison.Ordinal)));
        daemon.Typed = "y\n";
        Assert.Equal(0, await daemon.RunAsync("delete_volume", "-v", "v1"));
    }

    [Fact]
    public async Task Check_volume_exists_exits_0_or_1()
    {
        Assert.Equal(0, await WithVolume().RunAsync("check_volume_exists", "-v", "v1"));
        StubDaemon none = new StubDaemon().Refuse("GET /v1/volumes/v1", HttpStatusCode.NotFound, "no_volume", "none");
        Assert.Equal(1, await none.RunAsync("check_volume_exists", "-v", "v1"));
        Assert.Equal("pfcli: volume v1 does not exist\n", none.Error);
    }

    [Fact]
    public async Task List_volume_is_plain_drawn_or_json()
    {
        StubDaemon daemon = new StubDaemon().Answer("GET /v1/volumes", new VolumeList([Vol]), ApiJson.Default.VolumeList);
        Assert.Equal(0, await daemon.RunAsync("list_volume"));
        Assert.StartsWith("1 volumes returned.\nId  Name", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(0, await daemon.RunAsync("list_volume", "--json"));
        Assert.Equal("v1", JsonSerializer.Deserialize(daemon.Out, ApiJson.Default.VolumeList)!.Volumes[0].Name);
        daemon.Terminal = true;
        Assert.Equal(0, await daemon.RunAsync("list_volume"));
        Assert.Contains("│", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(1, await daemon.RunAsync("list_volume", "-t", "acme"));
    }

    [Fact]
    public async Task Show_volume_shows_all()
    {
        StubDaemon daemon = WithVolume();
        Assert.Equal(0, await daemon.RunAsync("show_volume", "-v", "v1"));
        foreach (string word in new[] { "137438953472 bytes", "nbd, iscsi", "mail", "42", Vol.Uuid.ToString() })
            Assert.Contains(word, daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Show_volume_says_why_it_is_unavailable()
    {
        StubDaemon daemon = WithVolume(Vol with { Status = "unavailable", FailReason = "its disk two is missing" });
        Assert.Equal(0, await daemon.RunAsync("show_volume", "-v", "v1"));
        Assert.Contains("unavailable: its disk two is missing", daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Resize_volume_grows_at_once_and_shrinks_with_consent()
    {
        StubDaemon daemon = WithChange();
        Assert.Equal(0, await daemon.RunAsync("resize_volume", "-v", "v1", "-s", "256g"));
        Assert.Equal(new ChangeVolume(42, null, 256 * Units.GiB), Change(daemon));
        Assert.Equal(1, await daemon.RunAsync("resize_volume", "-v", "v1", "-s", "64g"));
        Assert.Equal(0, await daemon.RunAsync("resize_volume", "-v", "v1", "-s", "64g", "--yes"));
        Assert.Equal(new ChangeVolume(42, null, 64 * Units.GiB, Force: true), Change(daemon));
    }

    [Fact]
    public async Task Rename_volume_carries_the_revision()
    {
        StubDaemon daemon = WithChange();
        Assert.Equal(0, await daemon.RunAsync("rename_volume", "-v", "v1", "-n", "v2"));
        Assert.Equal(new ChangeVolume(42, "v2"), Change(daemon));
        Assert.Equal(2, await daemon.RunAsync("rename_volume", "-v", "v1", "-n", "V2/.."));
    }

    [Fact]
    public async Task Export_and_unexport_change_only_what_was_named()
    {
        StubDaemon none = WithChange(Vol with { Export = new ExportOptions(false, false) });
        Assert.Equal(0, await none.RunAsync("export_volume", "-v", "v1", "--nbd", "--read-only"));
        Assert.Equal(new ExportOptions(true, false, true), Change(none).Export);
        Assert.Equal(0, await none.RunAsync("export_volume", "-v", "v1"));
        Assert.Equal(new ExportOptions(), Change(none).Export);
        StubDaemon both = WithChange(Vol with { Export = new ExportOptions(true, true, true) });
        Assert.Equal(0, await both.RunAsync("export_volume", "-v", "v1", "--read-only=false"));
        Assert.Equal(new ExportOptions(), Change(both).Export);
        Assert.Equal(0, await both.RunAsync("unexport_volume", "-v", "v1", "--iscsi"));
        Assert.Equal(new ExportOptions(true, false, true), Change(both).Export);
        Assert.Equal(0, await both.RunAsync("unexport_volume", "-v", "v1"));
        Assert.Equal(new ExportOptions(false, false, true), Change(both).Export);
        Assert.Equal(1, await WithChange(Vol with { Sessions = 1 }).RunAsync("unexport_volume", "-v", "v1"));
    }

    [Fact]
    public async Task How_a_volume_looks_is_said_when_it_is_made_or_exported()
    {
        string[] looks = ["--thick", "--removable", "--block-size", "4096"];
        StubDaemon made = new StubDaemon().Answer("POST /v1/volumes", Vol, ApiJson.Default.VolumeInfo, HttpStatusCode.Created);
        Assert.Equal(0, await made.RunAsync(["create_volume", "-v", "v1", "-s", "1g", .. looks]));
        Assert.Equal(
            new ExportOptions(Removable: true, Thick: true, BlockBytes: 4096),
            JsonSerializer.Deserialize(made.Bodies[0], ApiJson.Default.CreateVolume)!.Export);
        StubDaemon changed = WithChange(Vol with { Export = new ExportOptions(ReadOnly: true, Removable: true, BlockBytes: 4096) });
        Assert.Equal(0, await changed.RunAsync("export_volume", "-v", "v1", "--thick", "--removable=false"));
        Assert.Equal(new ExportOptions(ReadOnly: true, Thick: true, BlockBytes: 4096), Change(changed).Export);
        Assert.Equal(2, await changed.RunAsync("export_volume", "-v", "v1", "--block-size", "1024"));
        StubDaemon shown = WithVolume(Vol with { Export = new ExportOptions(true, true, true, true, true, 4096) });
        Assert.Equal(0, await shown.RunAsync("show_volume", "-v", "v1"));
        Assert.Contains("nbd, iscsi, read-only, thick, removable, blocks of 4096 bytes\n", shown.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Disks_are_listed_added_and_removed()
    {
        StubDaemon daemon = new StubDaemon()
            .Answer("GET /v1/disks", new DiskList([Disk]), ApiJson.Default.DiskList)
            .Answer("POST /v1/disks", Disk, ApiJson.Default.DiskInfo, HttpStatusCode.Created)
            .AnswerText($"DELETE /v1/disks/{Disk.Id}", "", HttpStatusCode.NoContent);
        Assert.Equal(0, await daemon.RunAsync("list_disk"));
        Assert.Contains("/data/d1", daemon.Out, StringComparison.Ordinal);
        Assert.Contains("Bad blocks", daemon.Out, StringComparison.Ordinal);
        Assert.Contains("321", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(0, await daemon.RunAsync("add_disk", "/data/d1", "-s", "1t", "-n", "d1"));
        Assert.Equal(new AddDisk("/data/d1", "d1", Units.TiB), JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.AddDisk));
        Assert.Equal(1, await daemon.RunAsync("add_disk", "/data/d1", "--force"));
        Assert.Equal(0, await daemon.RunAsync("add_disk", "/data/d1", "--force", "--yes"));
        Assert.Equal(new AddDisk("/data/d1", Force: true), JsonSerializer.Deserialize(daemon.Bodies[1], ApiJson.Default.AddDisk));
        Assert.Equal(2, await daemon.RunAsync("add_disk", "data"));
        Assert.Equal(1, await daemon.RunAsync("remove_disk", "d1"));
        Assert.Equal(0, await daemon.RunAsync("remove_disk", "d1", "--yes"));
        Assert.Equal(0, await daemon.RunAsync("remove_disk", Disk.Id.ToString(), "--yes"));
        Assert.Equal(1, await daemon.RunAsync("remove_disk", "d2", "--yes"));
    }

    [Fact]
    public async Task List_store_shows_the_node_and_its_warnings()
    {
        StubDaemon daemon = new StubDaemon().Answer(
            "GET /v1/node", new NodeInfo("n1", "0.1", "/d", "uring", "flush", Then, [], ["no TLS"]), ApiJson.Default.NodeInfo);
        Assert.Equal(0, await daemon.RunAsync("list_store"));
        Assert.Contains("n1  127.0.0.1:49180", daemon.Out, StringComparison.Ordinal);
        Assert.Contains("Warning: no TLS", daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Sessions_are_listed_and_cut()
    {
        StubDaemon daemon = new StubDaemon()
            .Answer("GET /v1/sessions", new SessionList([Session, Session with { Id = "s-2", Volume = "v2" }]), ApiJson.Default.SessionList)
            .AnswerText("DELETE /v1/sessions/s-1", "", HttpStatusCode.NoContent);
        Assert.Equal(0, await daemon.RunAsync("list_session", "-v", "v1"));
        Assert.Contains("1 sessions returned.", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(1, await daemon.RunAsync("drop_session", "s-1"));
        Assert.Equal(0, await daemon.RunAsync("drop_session", "s-1", "-y"));
    }

    [Theory]
    [InlineData("succeeded", 0)]
    [InlineData("failed", 1)]
    [InlineData("cancelled", 1)]
    public async Task Scrub_volume_follows_its_task_to_the_end(string state, int exit)
    {
        foreach (bool terminal in new[] { false, true })
        {
            StubDaemon daemon = new StubDaemon { Terminal = terminal }
                .Answer("POST /v1/volumes/v1/scrub", Running with { Progress = 0 }, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
                .Answer("GET /v1/tasks/5", Running, ApiJson.Default.TaskInfo)
                .Answer("GET /v1/tasks/5", Succeeded with { State = state }, ApiJson.Default.TaskInfo);
            Assert.Equal(exit, await daemon.RunAsync("scrub_volume", "-v", "v1", "--rate", "20m"));
            Assert.Contains("scrub v1: 50", daemon.Out, StringComparison.Ordinal);
            Assert.Equal("{\"bytesPerSecond\":20971520}", daemon.Bodies[0]);
            Assert.Equal(exit == 0, daemon.Error.Length == 0);
        }
    }

    [Fact]
    public async Task Tasks_are_listed_queried_and_cancelled()
    {
        StubDaemon daemon = new StubDaemon()
            .Answer("POST /v1/volumes/v1/scrub", Running, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
            .Answer("GET /v1/tasks", new TaskList([Running]), ApiJson.Default.TaskList)
            .Answer("GET /v1/tasks/5", Running, ApiJson.Default.TaskInfo)
            .Answer("GET /v1/tasks/6", Succeeded with { Id = 6, State = "failed" }, ApiJson.Default.TaskInfo)
            .Answer("GET /v1/tasks/7", Running with { Id = 7 }, ApiJson.Default.TaskInfo)
            .Answer("GET /v1/tasks/7", Succeeded with { Id = 7 }, ApiJson.Default.TaskInfo)
            .AnswerText("DELETE /v1/tasks/5", "", HttpStatusCode.NoContent);
        Assert.Equal(0, await daemon.RunAsync("scrub_volume", "-v", "v1", "--no-wait"));
        Assert.Equal(0, await daemon.RunAsync("list_task"));
        Assert.Equal(0, await daemon.RunAsync("query_task", "5"));
        Assert.Equal(1, await daemon.RunAsync("query_task", "6"));
        Assert.Equal(0, await daemon.RunAsync("query_task", "7", "--wait"));
        Assert.Equal(0, await daemon.RunAsync("cancel_task", "5"));
        Assert.Equal(2, await daemon.RunAsync("cancel_task", "five"));
    }

    [Fact]
    public async Task Top_shows_rates_between_two_readings()
    {
        var first = new VolumeStats("v1", 100, 409600, 0, 0, 0, 0, 0, 0, 0, [100, 0, 0, 0, 0], [0, 0, 0, 0, 0]);
        VolumeStats second = first with { ReadOps = 300, ReadBytes = 409600 + 4 * Units.MiB, ReadHistogram = [100, 0, 0, 198, 2] };
        StubDaemon daemon = new StubDaemon()
            .Answer("GET /v1/stats", new StatsInfo(Then, 10, 1, [first]), ApiJson.Default.StatsInfo)
            .Answer("GET /v1/stats", new StatsInfo(Then, 12, 2, [second]), ApiJson.Default.StatsInfo);
        Assert.Equal(0, await daemon.RunAsync("top", "--count", "1"));
        Assert.Contains("CPU 50.0 %", daemon.Out, StringComparison.Ordinal);
        Assert.Contains("v1      100     2 MiB/s  6 us   8 us", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(0, await daemon.RunAsync("top", "--count", "2", "--json"));
        Assert.Equal(2, daemon.Out.TrimEnd().Split('\n').Length);
        Assert.Equal(2, await daemon.RunAsync("top", "--count", "0"));
        Assert.Equal(2, await daemon.RunAsync("top", "--interval", "0"));
    }
}
