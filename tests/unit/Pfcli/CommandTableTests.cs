using System.CommandLine;
using System.Net;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Pfcli;
using Xunit;

namespace BlockServer.Tests.Unit.Pfcli;

/// <summary>The words that people who know PureFlash type: every command and flag under the same name, with its columns; and
/// what holds for all commands.</summary>
public sealed class CommandTableTests
{
    private static readonly DateTimeOffset Then = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);
    private static readonly VolumeInfo Vol = new(
        7, Guid.Parse("11111111-2222-3333-4444-555555555555"), "v1", 128 * Units.GiB, Units.GiB, 1, "online",
        new ExportOptions(), "mail", Guid.Parse("aaaaaaaa-2222-3333-4444-555555555555"), 0, 42, Then);

    private static readonly DiskInfo Disk = new(
        Vol.StoreId, "d1", "/data/d1", "file", "online", Units.TiB, Units.TiB, Units.GiB, Units.TiB - Units.GiB, 100, 1, 4096, 1, 0, 0, 0, 0.1, null, Draining: true, Health: "failing");

    private static readonly NodeInfo Node = new(
        "n1", "0.1", "/var/lib/blockd", "uring", "flush", Then, [new ListenerInfo("nbd", "127.0.0.1:10809", false, false), new ListenerInfo("api", "http://127.0.0.1:49180", false, false)], []);

    private static readonly SnapshotEntry Snap = new("v1", "s1", Guid.Parse("99999999-2222-3333-4444-555555555555"), Units.GiB, Then, "unknown", []);
    private static readonly SessionInfo Busy = new("9", "nbd", "busy", "127.0.0.1:4711", "127.0.0.1:10809", false, null, Then, 1, 1, 1, 1, 0);
    private static readonly TaskInfo Done = new(5, "scrub", "v1", "succeeded", 1, Then, Then, "all good");

    /// <summary>A row: the line as typed, and the headings (or the text) that it must show.</summary>
    public static TheoryData<string, string> Rows => new()
    {
        { "create_volume -v v1 -s 128g", "Id Name Size RepCount Status" },
        { "create_volume -v v1 -s 128GB -r 2", "Id Name Size RepCount Status" },
        { "create_volume -v v1 -s 128GiB --rep_num 3 --host_id n1", "Id Name Size RepCount Status" },
        { "delete_volume -v v1 --yes", "Volume v1 deleted." },
        { "check_volume_exists -v v1", "Volume v1 exists." },
        { "list_volume", "Id Name Size RepCount Status" },
        { "list_store", "Id Management IP Status" },
        { "list_disk", "Store ID Name uuid Status" },
        { "list_disk", "n1 d1 aaaaaaaa-2222-3333-4444-555555555555 online, failing, draining file" },
        { "list_port -i n1", "Name IP Address Store Id Purpose" },
        { "list_port", "nbd-0 127.0.0.1:10809 n1 clients" },
        { "create_snapshot -v v1 -n s1", "Volume Name Size" },
        { "delete_snapshot -v v1 -n s1 --yes", "Id Kind Target State Progress" },
        { "scrub_volume -v v1", "Id Kind Target State Progress" },
        { "deep_scrub_volume -v v1", "Id Kind Target State Progress" },
        { "recovery_volume -v v1", "nothing to recover" },
        { "get_leader_conductor", "127.0.0.1:49180" },
        { "get_pfc", "127.0.0.1:49180 (n1, leader)" },
        { "get_conn_str", "sqlite:/var/lib/blockd/metadata.db" },
        { "list_snapshot", "Volume Name Size" },
        { "clone_volume -v v1 -c v2", "Id Name Size RepCount Status" },
        { "flatten_volume -v v1", "Id Kind Target State Progress" },
        { "resize_volume -v v1 -s 256g", "Id Name Size RepCount Status" },
        { "rename_volume -v v1 -n v2", "Id Name Size RepCount Status" },
        { "show_volume -v v1", "RepCount" },
        { "show_volume -v v1", "Disk d1 (aaaaaaaa-2222-3333-4444-555555555555)" },
        { "show_volume -v v1", "Sessions none" },
        { "show_volume -v busy", "Sessions 1: nbd from 127.0.0.1:4711" },
        { "drain_disk d1 --undo", "Disk d1 is used again." },
        { "list_event --advice", "0 events returned." },
        { "export_volume -v v1", "Volume v1 is offered over: nbd, iscsi." },
        { "list_session", "Id Volume Protocol" },
        { "list_task", "Id Kind Target State Progress Started Result" },
        { "query_task 5", "Id Kind Target State Progress Started Result" },
        { "query_task 5 --wait", "succeeded" },
        { "cancel_task 7", "Task 7 is being cancelled." },
        { "cancel_task 8", "Task 8: cancelled." },
        { "cancel_task 7 --json", "\"state\":\"running\"" },
    };

    [Theory]
    [MemberData(nameof(Rows))]
    public async Task Every_row_does_what_it_says(string line, string shown)
    {
        using StubDaemon daemon = Everything();
        int exit = await daemon.RunAsync(line.Split(' '));
        Assert.True(exit == 0, $"{line}: {exit} {daemon.Error}");
        string said = string.Join(' ', daemon.Out.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries));
        Assert.Contains(shown, said, StringComparison.Ordinal);
        Assert.Equal("", daemon.Error);
    }

    [Theory]
    [InlineData("create_pfs2 -v v1 -s 128g -d shared-1", "no shared devices")]
    [InlineData("list_port -i other", "there is no node 'other'")]
    [InlineData("drain_node other", "there is no node 'other'")]
    [InlineData("drain_node n1", "is the only node, so nothing was moved; pfcli drain_disk")]
    [InlineData("cancel_task 5", "has ended already (succeeded)")]
    [InlineData("top -v nope -c 1", "no volume 'nope'")]
    [InlineData("create_volume -v v1 -s 1g --host_id other", "there is no node 'other'")]
    [InlineData("recovery_volume -v lost", "its disk is missing")]
    [InlineData("delete_volume -v v1", "--yes")]
    [InlineData("query_task 6", "interrupted")]
    [InlineData("query_task 6 --wait", "interrupted")]
    public async Task What_cannot_be_done_is_one_line_and_exit_1(string line, string reason)
    {
        using StubDaemon daemon = Everything();
        Assert.Equal(1, await daemon.RunAsync(line.Split(' ')));
        Assert.Contains(reason, Assert.Single(daemon.Error.TrimEnd('\n').Split('\n')), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("list_volumes", "there is no command 'list_volumes'; did you mean list_volume?; see pfcli --help")]
    [InlineData("create_volme -v v1", "there is no command 'create_volme'; did you mean create_volume?; see pfcli --help")]
    [InlineData("aof", "there is no command 'aof'; did you mean aof_list, aof_read, aof_seal, aof_stat?; see pfcli --help")]
    [InlineData("frobnicate", "there is no command 'frobnicate'; see pfcli --help")]
    [InlineData("--frobnicate", "there is no option '--frobnicate'; see pfcli --help")]
    [InlineData("", "no command was given; see pfcli --help")]
    public async Task A_word_that_is_no_command_is_named_with_those_that_are_near(string line, string said)
    {
        using StubDaemon daemon = Everything();
        Assert.Equal(2, await daemon.RunAsync(line.Split(' ', StringSplitOptions.RemoveEmptyEntries)));
        Assert.Equal("pfcli: " + said, daemon.Error.TrimEnd('\n'));
        Assert.Empty(daemon.Requests);
    }

    [Fact]
    public async Task A_secret_that_was_made_is_shown_in_json_too()
    {
        var target = new TargetInfo("iqn.2026-11.org.example:t", "configured", true, null, [], [], [], "own", ["host1"], null, 0, 3);
        using StubDaemon daemon = new StubDaemon()
            .Answer("POST /v1/targets/iqn.2026-11.org.example%3At/users", target, ApiJson.Default.TargetInfo, HttpStatusCode.Created);
        Assert.Equal(0, await daemon.RunAsync("add_chap_user", "-t", target.Name, "-u", "host1", "--json"));
        using var said = System.Text.Json.JsonDocument.Parse(daemon.Out);
        using var sent = System.Text.Json.JsonDocument.Parse(Assert.Single(daemon.Bodies));
        Assert.Equal(sent.RootElement.GetProperty("secret").GetString(), said.RootElement.GetProperty("secret").GetString());
        Assert.True(said.RootElement.GetProperty("secret").GetString()!.Length >= 16);
        Assert.Equal("host1", said.RootElement.GetProperty("user").GetString());
    }

    [Theory]
    [InlineData("128", 128ul)]
    [InlineData("1k", 1024ul)]
    [InlineData("1kb", 1024ul)]
    [InlineData("1KiB", 1024ul)]
    [InlineData("2m", 2ul << 20)]
    [InlineData("128g", 128ul << 30)]
    [InlineData("128GB", 128ul << 30)]
    [InlineData("128GiB", 128ul << 30)]
    [InlineData("1t", 1ul << 40)]
    [InlineData("0", null)]
    [InlineData("0g", null)]
    [InlineData("-1", null)]
    [InlineData("-1g", null)]
    [InlineData("99999999999t", null)]
    [InlineData("18446744073709551616", null)]
    [InlineData("1q", null)]
    [InlineData("g", null)]
    [InlineData("", null)]
    public void Sizes_are_binary_and_neither_negative_nor_zero_nor_too_large(string text, ulong? bytes)
    {
        Assert.Equal(bytes is not null, SizeText.TryParse(text, out ulong parsed, out string reason));
        if (bytes is { } wanted) Assert.Equal(wanted, parsed);
        else Assert.NotEqual("", reason);
    }

    [Fact]
    public async Task Every_command_has_a_description_and_examples_that_parse()
    {
        using var output = new StringWriter();
        (RootCommand root, CommandSet commands) = CommandLine.Build(Host(output), new GeneralOptions());
        Assert.True(root.Subcommands.Count > 50);
        foreach (Command command in root.Subcommands)
        {
            Assert.False(string.IsNullOrWhiteSpace(command.Description), command.Name);
            IReadOnlyList<string> examples = commands.ExamplesOf(command);
            Assert.True(examples.Count > 0, $"{command.Name} has no example");
            Assert.True(examples.Any(e => e.Contains("pfcli " + command.Name, StringComparison.Ordinal)), $"{command.Name}: no example shows it");
            foreach (string example in examples)
            {
                string[] words = WordsOf(example);
                Assert.True(root.Parse(PrefixExpander.Expand(root, words)).Errors.Count == 0, $"{command.Name}: '{example}' does not parse");
            }

            foreach (Option option in command.Options) Assert.False(string.IsNullOrWhiteSpace(option.Description), $"{command.Name} {option.Name}");
            using var daemon = new StubDaemon();
            Assert.Equal(0, await daemon.RunWithoutTokenAsync(command.Name, "--help"));
            Assert.Contains("Examples:", daemon.Out, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("scrub_volume -v v1 --wait --no-wait")]
    [InlineData("create_volume -v v1 -s 1g --wait --no-wait")]
    public async Task Waiting_and_not_waiting_at_once_is_wrong_usage_before_anything_is_asked(string line)
    {
        using StubDaemon daemon = Everything();
        Assert.Equal(2, await daemon.RunAsync(line.Split(' ')));
        Assert.Empty(daemon.Requests);
    }

    [Fact]
    public async Task Create_volume_waits_for_the_tasks_of_the_volume_and_fails_with_them()
    {
        var copying = new TaskInfo(8, "populate", "v1", "running", 0.25, Then, null, null, Unit: "bytes", Done: 1, Total: 4, Rate: 1 << 20, RemainingSeconds: 65, VolumeId: 7);
        TaskInfo failed = copying with { State = "failed", Code = "no-space", Result = "the disk is full" };
        StubDaemon Daemon(TaskInfo end, string body) => new StubDaemon()
            .Answer("POST /v1/volumes", Vol with { Status = "initializing" }, ApiJson.Default.VolumeInfo, HttpStatusCode.Created)
            .Answer("GET /v1/tasks", new TaskList([copying, copying with { Id = 9, VolumeId = 6 }]), ApiJson.Default.TaskList)
            .Answer("GET /v1/tasks/8", end, ApiJson.Default.TaskInfo)
            .AnswerText("GET /v1/volumes/v1", body);
        string volume = System.Text.Json.JsonSerializer.Serialize(Vol, ApiJson.Default.VolumeInfo);
        using StubDaemon good = Daemon(copying with { State = "succeeded" }, volume), bad = Daemon(failed, volume);
        Assert.Equal(0, await good.RunAsync("create_volume", "-v", "v1", "-s", "1g", "--wait"));
        Assert.Contains("populate v1: 25 %, 1 MiB/s, 0.00:01:05 left", good.Out.Replace('\u00a0', ' '), StringComparison.Ordinal);
        Assert.Contains("online", good.Out, StringComparison.Ordinal);
        Assert.Equal(1, await bad.RunAsync("create_volume", "-v", "v1", "-s", "1g", "--wait"));
        Assert.Contains("failed: the disk is full [no-space]", bad.Error, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Completion_offers_commands_options_words_and_live_names()
    {
        Assert.Equal(new string[] { "list_disk" }, await CompleteAsync(1, "pfcli", "list_di"));
        Assert.Contains("create_volume", await CompleteAsync(1, "pfcli", ""));
        Assert.DoesNotContain(Completion.Verb, await CompleteAsync(1, "pfcli", ""));
        Assert.Contains("--rep_num", await CompleteAsync(2, "pfcli", "create_volume", "--r"));
        Assert.Equal(new string[] { "--json" }, await CompleteAsync(2, "pfcli", "list_volume", "--js"));
        Assert.Equal(new string[] { "busy", "log1", "v1" }, await CompleteAsync(3, "pfcli", "show_volume", "-v", ""));
        Assert.Equal(Array.Empty<string>(), await CompleteAsync(3, "pfcli", "show_volume", "-v", "x"));
        Assert.Equal(new string[] { "s1" }, await CompleteAsync(5, "pfcli", "rollback_snapshot", "-v", "v1", "-n", ""));
        Assert.Equal(new string[] { "5" }, await CompleteAsync(2, "pfcli", "query_task", ""));
        Assert.Equal(new string[] { "d1" }, await CompleteAsync(2, "pfcli", "remove_disk", "d"));
        Assert.Equal(new string[] { "zsh" }, await CompleteAsync(2, "pfcli", "completion", "z"));
        Assert.Equal(new string[] { "lz4" }, await CompleteAsync(3, "pfcli", "export_image", "--compress", "l"));
        Assert.Equal(new string[] { "--volume_name=v1" }, await CompleteAsync(2, "pfcli", "show_volume", "--volume_name=v"));
        Assert.Equal(new string[] { "s1" }, await CompleteAsync(5, "pfcli", "diff_snapshot", "-v", "v1", "--from", ""));
        Assert.Equal(new string[] { "s1" }, await CompleteAsync(5, "pfcli", "export_image", "-v", "v1", "--base", ""));
        Assert.Equal(new string[] { "v1" }, await CompleteAsync(5, "pfcli", "create_volume", "-v", "new", "--from", "v"));
        Assert.Equal(Array.Empty<string>(), await CompleteAsync(3, "pfcli", "create_volume", "-v", ""));
        Assert.Equal(Array.Empty<string>(), await CompleteAsync(3, "pfcli", "watch", "--from", ""));
        Assert.Equal(new string[] { "log1" }, await CompleteAsync(3, "pfcli", "aof_read", "-v", ""));
        Assert.Equal(new string[] { "acme" }, await CompleteAsync(3, "pfcli", "list_volume", "-t", ""));
        Assert.Equal(new string[] { "grafana" }, await CompleteAsync(3, "pfcli", "delete_token", "-n", ""));
        Assert.Equal(new string[] { "n1" }, await CompleteAsync(3, "pfcli", "list_port", "-i", ""));
        Assert.Equal(new string[] { "n1" }, await CompleteAsync(2, "pfcli", "drain_node", ""));
        Assert.Equal(new string[] { "warning" }, await CompleteAsync(3, "pfcli", "list_event", "--severity", "w"));
        Assert.Equal(new string[] { "flatten" }, await CompleteAsync(3, "pfcli", "list_task", "--kind", "f"));
        Assert.Equal(new string[] { "v1" }, await CompleteAsync(5, "pfcli", "--server", "unix:/run/blockd.sock", "show_volume", "-v", "v"));
        using var gone = new StubDaemon { Broken = new HttpRequestException("refused") };
        Assert.Equal(0, await gone.RunCompleteAsync(CompleteArgs(3, "pfcli", "show_volume", "-v", "")));
        Assert.Equal("", gone.Out + gone.Error);
    }

    /// <summary>bash parts <c>iqn...:disks</c> and <c>http://...</c> into pieces, and replaces the last piece only.</summary>
    [Theory]
    [InlineData("pfcli show_volume -v d", "pfcli|show_volume|-v|d", 3, "d", "3 pfcli show_volume -v d", "d-hit")]
    [InlineData("pfcli show_target -t iqn.x:dis", "pfcli|show_target|-t|iqn.x|:|dis", 5, "iqn.x:dis", "3 pfcli show_target -t iqn.x:dis", "dis-hit")]
    [InlineData("pfcli show_target -t iqn.x:", "pfcli|show_target|-t|iqn.x|:", 4, "iqn.x:", "3 pfcli show_target -t iqn.x:", "-hit")]
    [InlineData("pfcli --server http://[::1]:80 list_d", "pfcli|--server|http|:|//[|::|1]|:|80|list_d", 9, "list_d", "3 pfcli --server http://[::1]:80 list_d", "list_d-hit")]
    [InlineData("pfcli show_volume --volume_name=d", "pfcli|show_volume|--volume_name|=|d", 4, "--volume_name=d", "2 pfcli show_volume --volume_name=d", "d-hit")]
    [InlineData("pfcli ", "pfcli|", 1, "", "1 pfcli ", "-hit")]
    public async Task Bash_completes_words_with_colons_whole(string line, string pieces, int at, string typed, string asked, string put)
    {
        using var daemon = new StubDaemon();
        Assert.Equal(0, await daemon.RunWithoutTokenAsync("completion", "bash"));
        string script = daemon.Out + $$"""

            pfcli() { local IFS=' '; shift; echo "$*" > "$asked"; echo '{{typed}}-hit'; }
            COMP_LINE='{{line}}'; COMP_POINT={{line.Length}}; COMP_CWORD={{at}}
            IFS='|' read -ra COMP_WORDS <<< '{{pieces}}'
            [[ $COMP_LINE == *' ' ]] && COMP_WORDS[COMP_CWORD]=
            _pfcli
            printf '%s\n' "${COMPREPLY[@]}"
            """;
        string file = Path.Combine(Path.GetTempPath(), "pfcli-" + Guid.NewGuid().ToString("N"));
        try
        {
            var start = new System.Diagnostics.ProcessStartInfo("bash") { RedirectStandardInput = true, RedirectStandardOutput = true, RedirectStandardError = true };
            start.Environment["asked"] = file;
            using System.Diagnostics.Process bash = System.Diagnostics.Process.Start(start)!;
            await bash.StandardInput.WriteAsync(script);
            bash.StandardInput.Close();
            string said = await bash.StandardOutput.ReadToEndAsync(TestContext.Current.CancellationToken);
            Assert.Equal(put, said.TrimEnd('\n'));
            Assert.Equal(asked, (await File.ReadAllTextAsync(file, TestContext.Current.CancellationToken)).TrimEnd('\n'));
        }
        finally
        {
            File.Delete(file);
        }
    }

    [Theory]
    [InlineData("bash")]
    [InlineData("zsh")]
    [InlineData("fish")]
    public async Task A_completion_script_needs_no_daemon_and_no_token(string shell)
    {
        using var daemon = new StubDaemon();
        Assert.Equal(0, await daemon.RunWithoutTokenAsync("completion", shell));
        Assert.Contains("pfcli __complete", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(2, await daemon.RunWithoutTokenAsync("completion", "csh"));
    }

    private static string[] CompleteArgs(int index, params string[] words) =>
        [Completion.Verb, index.ToString(System.Globalization.CultureInfo.InvariantCulture), .. words];

    private static async Task<string[]> CompleteAsync(int index, params string[] words)
    {
        using StubDaemon daemon = Everything();
        Assert.Equal(0, await daemon.RunCompleteAsync(CompleteArgs(index, words)));
        return daemon.Out.Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    // What a shell would make of it, as far as the examples need.
    private static string[] WordsOf(string example)
    {
        string text = example.Split("  #")[0];
        text = text[text.IndexOf("pfcli ", StringComparison.Ordinal)..]["pfcli ".Length..];
        foreach (string mark in new[] { " | ", " || ", " && ", " > " }) text = text.Split(mark)[0];
        text = text.Replace("0f3a...", new string('0', 64), StringComparison.Ordinal);
        // Every second piece is quoted: its spaces part no words.
        string[] pieces = text.Split('\'');
        for (int i = 1; i < pieces.Length; i += 2) pieces[i] = pieces[i].Replace(' ', '\u00a0');
        return [.. string.Concat(pieces).Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(w => w.Replace('\u00a0', ' '))];
    }

    private static CliHost Host(TextWriter output) => new()
    {
        Out = output, Error = output, In = TextReader.Null, Environment = _ => null, Transport = () => throw new InvalidOperationException(), Delay = Task.Delay,
    };

    private static StubDaemon Everything() => new StubDaemon()
        .Answer("GET /v1/node", Node, ApiJson.Default.NodeInfo)
        .Answer("GET /v1/disks", new DiskList([Disk]), ApiJson.Default.DiskList)
        .Answer("GET /v1/volumes", new VolumeList([Vol, Vol with { Name = "log1", AppendOnly = true }, Vol with { Name = "busy", Sessions = 1 }]), ApiJson.Default.VolumeList)
        .Answer("GET /v1/volumes/busy", Vol with { Name = "busy", Sessions = 1 }, ApiJson.Default.VolumeInfo)
        .Refuse("GET /v1/volumes/nope", HttpStatusCode.NotFound, "no-such-volume", "there is no volume 'nope'")
        .Answer("GET /v1/stats", new StatsInfo(Then, 1, 1, []), ApiJson.Default.StatsInfo)
        .Answer("GET /v1/events?limit=50", new EventList([]), ApiJson.Default.EventList)
        .Answer("GET /v1/tenants", new TenantList([new TenantInfo("acme", null, null, null, null, Then, 0, 0, 0, 1)]), ApiJson.Default.TenantList)
        .Answer("GET /v1/tokens", new TokenList([new TokenInfo("0011223344556677", "grafana", "viewer", null, null, Then, null, false, null)]), ApiJson.Default.TokenList)
        .AnswerText($"DELETE /v1/disks/{Vol.StoreId:D}/drain", "", HttpStatusCode.NoContent)
        .Answer("POST /v1/volumes", Vol, ApiJson.Default.VolumeInfo, HttpStatusCode.Created)
        .Answer("GET /v1/volumes/v1", Vol, ApiJson.Default.VolumeInfo)
        .Answer("GET /v1/volumes/lost", Vol with { Name = "lost", Status = "unavailable", FailReason = "its disk is missing" }, ApiJson.Default.VolumeInfo)
        .Answer("PATCH /v1/volumes/v1", Vol, ApiJson.Default.VolumeInfo)
        .AnswerText("DELETE /v1/volumes/v1?id=7&revision=42", "", HttpStatusCode.NoContent)
        .Answer("POST /v1/volumes/v1/clone", Vol with { Name = "v2" }, ApiJson.Default.VolumeInfo, HttpStatusCode.Created)
        .Answer("POST /v1/volumes/v1/scrub", Done, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
        .Answer("POST /v1/volumes/v1/flatten", Done, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
        .Answer("POST /v1/snapshots", new SnapshotList([Snap]), ApiJson.Default.SnapshotList, HttpStatusCode.Created)
        .Answer("GET /v1/snapshots?usage=true", new SnapshotList([Snap]), ApiJson.Default.SnapshotList)
        .Answer("GET /v1/volumes/v1/snapshots", new SnapshotList([Snap]), ApiJson.Default.SnapshotList)
        .Answer("GET /v1/volumes/v1/snapshots/s1", Snap, ApiJson.Default.SnapshotEntry)
        .Answer($"DELETE /v1/volumes/v1/snapshots/s1?uuid={Snap.Uuid}", Done, ApiJson.Default.TaskInfo, HttpStatusCode.Accepted)
        .Answer("GET /v1/sessions", new SessionList([Busy, Busy with { Volume = "other" }]), ApiJson.Default.SessionList)
        .Answer("GET /v1/tasks", new TaskList([Done]), ApiJson.Default.TaskList)
        .Answer("GET /v1/tasks/5", Done, ApiJson.Default.TaskInfo)
        .Answer("GET /v1/tasks/6", Done with { Id = 6, State = "failed", Code = "interrupted", Result = "the daemon ended" }, ApiJson.Default.TaskInfo)
        .Answer("GET /v1/tasks/7", Done with { Id = 7, State = "running", EndedAt = null }, ApiJson.Default.TaskInfo)
        .AnswerText("DELETE /v1/tasks/7", "", HttpStatusCode.NoContent)
        .Answer("GET /v1/tasks/8", Done with { Id = 8, State = "cancelled" }, ApiJson.Default.TaskInfo)
        .AnswerText("DELETE /v1/tasks/8", "", HttpStatusCode.NoContent);
}
