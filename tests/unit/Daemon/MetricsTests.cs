using System.Globalization;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>/metrics, the probes, limits and events through the admin API and pfcli; and that what deploy/monitoring/ names exists.</summary>
public sealed class MetricsTests
{
    private static readonly Regex s_sample = new("^([a-z_]+)(\\{[^}]*\\})? (-?[0-9.E+-]+|\\+Inf|NaN)$");

    [Fact]
    public async Task Every_family_is_told_once_with_all_its_samples_and_counts_what_was_done()
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "nbd=unix:/tmp/blockd-metrics-" + Guid.NewGuid().ToString("N") + ".sock");
        await UseAsync(server);
        Assert.Equal(201, (await server.SendAsync("POST", "/v1/snapshots", """{"name":"s","volumes":["v"]}""")).Status);
        RawAnswer answer = await server.SendAsync("GET", "/metrics");
        Assert.Equal(200, answer.Status);
        Dictionary<string, double> samples = Read(answer.Body, out Dictionary<string, string> types);
        Assert.Equal(1, samples["blockd_volume_operations_total{volume=\"v\",id=\"1\",kind=\"read\"}"]);
        Assert.Equal(8192, samples["blockd_volume_bytes_total{volume=\"v\",id=\"1\",kind=\"write\"}"]);
        Assert.Equal(1, samples["blockd_volume_device_seconds_count{volume=\"v\",id=\"1\",kind=\"read\"}"]);
        Assert.Equal(1, samples["blockd_volume_queue_seconds_bucket{volume=\"v\",id=\"1\",kind=\"read\",le=\"0.000016\"}"]);
        Assert.Equal(5000, samples["blockd_volume_limit_iops{volume=\"v\",id=\"1\"}"]);
        Assert.Equal(0, samples["blockd_volume_waiting{volume=\"v\",id=\"1\"}"]);
        Assert.Equal(1, samples["blockd_disk_up{disk=\"store-0\"}"]);
        Assert.True(samples["blockd_disk_free_bytes{disk=\"store-0\"}"] > 0);
        Assert.True(samples["blockd_disk_operations_total{disk=\"store-0\",kind=\"write\"}"] > 0);
        Assert.Equal(1, samples["blockd_disk_cut_pause_seconds_count{disk=\"store-0\"}"]);
        Assert.Equal(
            samples["blockd_disk_cut_pause_seconds_sum{disk=\"store-0\"}"], samples["blockd_disk_cut_pause_max_seconds{disk=\"store-0\"}"], 9);
        Assert.Equal(2, samples["blockd_frontend_operations_total{protocol=\"nbd\"}"]);
        Assert.Equal(0, samples["blockd_faults{severity=\"critical\"}"]);
        Assert.Equal("histogram", types["blockd_disk_latency_seconds"]);
        Assert.All(types.Where(t => t.Value == "counter"), t => Assert.EndsWith("_total", t.Key, StringComparison.Ordinal));
    }

    [Fact]
    public async Task OpenMetrics_is_given_to_who_asks_for_it_and_nothing_without_a_token()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        RawAnswer open = await server.SendAsync("GET", "/metrics", headers: "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
        Assert.EndsWith("# EOF\n", open.Body, StringComparison.Ordinal);
        Assert.Contains("# TYPE blockd_disk_checkpoints counter\n", open.Body, StringComparison.Ordinal);
        Assert.Contains("\nblockd_disk_checkpoints_total{disk=\"store-0\"} ", open.Body, StringComparison.Ordinal);
        Assert.DoesNotContain("# EOF", (await server.SendAsync("GET", "/metrics")).Body, StringComparison.Ordinal);
        Assert.Equal(401, (await RawHttp.SendAsync(server.Port, $"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{server.Port}\r\nConnection: close\r\n\r\n")).Status);
        Assert.NotEqual(200, (await server.SendAsync("POST", "/metrics", "{}")).Status);
    }

    [Fact]
    public async Task The_probes_need_no_token_and_say_only_what_kind_of_thing_is_wrong()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        foreach (string path in new[] { "/healthz", "/readyz" }) Assert.Equal((200, "ok"), await ProbeAsync(path));
        server.Test.Daemon.Events.Raise(EventCatalogue.DiskFailed, "secret-name", "secret detail");
        Assert.Equal((200, "ok"), await ProbeAsync("/healthz"));
        Assert.Equal((503, "disk"), await ProbeAsync("/readyz"));
        server.Test.Daemon.Events.Clear(EventCatalogue.DiskFailed, "secret-name");
        Assert.Equal((200, "ok"), await ProbeAsync("/readyz"));

        async Task<(int, string)> ProbeAsync(string path)
        {
            RawAnswer answer = await RawHttp.SendAsync(server.Port, $"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.Port}\r\nConnection: close\r\n\r\n");
            return (answer.Status, answer.Body);
        }
    }

    [Fact]
    public async Task Everything_that_monitoring_names_is_there()
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "nbd=unix:/tmp/blockd-metrics-" + Guid.NewGuid().ToString("N") + ".sock");
        await UseAsync(server);
        Read((await server.SendAsync("GET", "/metrics")).Body, out Dictionary<string, string> types);
        string folder = Path.Combine(OpenApiTests.Root, "deploy", "monitoring");
        string dashboard = await File.ReadAllTextAsync(Path.Combine(folder, "grafana-dashboard.json"), TestContext.Current.CancellationToken);
        string[] queries = [.. Expressions(JsonNode.Parse(dashboard)!)];
        string rules = await File.ReadAllTextAsync(Path.Combine(folder, "prometheus-rules.yml"), TestContext.Current.CancellationToken);
        Assert.True(queries.Length >= 15);
        string[] named = [.. Regex.Matches(string.Join('\n', queries) + rules, "blockd_[a-z_]+").Select(m => m.Value).Distinct()];
        Assert.True(named.Length >= 20);
        Assert.All(named, name => Assert.True(
            types.ContainsKey(name) || types.GetValueOrDefault(Regex.Replace(name, "_(bucket|sum|count)$", "")) == "histogram", name + " does not exist"));
    }

    [Fact]
    public async Task Limits_are_set_shown_kept_and_refused_by_the_api_and_pfcli()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.DoneAsync("create_volume", "-v", "a", "-s", "8m", "--iops", "500", "--burst", "2");
        Assert.Contains("500 IOPS, burst of 2 s", await server.DoneAsync("show_volume", "-v", "a"), StringComparison.Ordinal);
        Assert.Contains("500 IOPS, 50 MiB/s, burst of 2 s", await server.DoneAsync("set_qos", "-v", "a", "--bandwidth", "50m"), StringComparison.Ordinal);
        await server.RestartAsync();
        Assert.Equal(new QosLimits(500, 50 << 20, 2), server.Test.Daemon.Directory.Find("a")!.Qos);
        Assert.Contains("no limits", await server.DoneAsync("set_qos", "-v", "a", "--iops", "0", "--bandwidth", "0"), StringComparison.Ordinal);
        Assert.Null(server.Test.Daemon.Directory.Find("a")!.Qos);
        foreach ((string body, string field) in new[]
        {
            ("{\"qos\":{\"iops\":100000001}}", "qos.iops"), ("{\"qos\":{\"bytesPerSecond\":65535}}", "qos.bytesPerSecond"),
            ("{\"qos\":{\"burstSeconds\":3601}}", "qos.burstSeconds"),
        })
        {
            RawAnswer answer = await server.SendAsync("PATCH", "/v1/volumes/a", body);
            Assert.Equal(400, answer.Status);
            Assert.Contains("\"invalid-qos\"", answer.Body, StringComparison.Ordinal);
            Assert.Contains($"\"{field}\"", answer.Body, StringComparison.Ordinal);
        }

        foreach (string wrong in new[] { "{\"qos\":{\"iops\":-1}}", "{\"qos\":{\"iops\":1.5}}", "{\"qos\":{\"iops\":1,\"more\":2}}" })
            Assert.Equal(400, (await server.SendAsync("PATCH", "/v1/volumes/a", wrong)).Status);
        Assert.Equal(2, (await server.RunAsync("set_qos", "-v", "a")).Exit);
        Assert.Equal(2, (await server.RunAsync("set_qos", "-v", "a", "--iops", "many")).Exit);
    }

    [Fact]
    public async Task Limits_hold_at_once_for_a_client_that_is_attached()
    {
        string socket = "/tmp/blockd-metrics-" + Guid.NewGuid().ToString("N") + ".sock";
        await using ApiServer server = await ApiServer.StartAsync(null, null, "nbd=unix:" + socket);
        await UseAsync(server);
        VolumeAdmission door = Assert.Single(server.Test.Daemon.Volumes.Doors.Find(1));
        Assert.Equal(5000UL, door.Limits.Iops);
        await server.DoneAsync("set_qos", "-v", "v", "--iops", "70");
        for (int i = 0; i < 500 && door.Limits.Iops != 70; i++) await Task.Delay(10); // on the volume's loop
        Assert.Equal(70UL, door.Limits.Iops);
    }

    [Fact]
    public async Task What_a_tenant_may_be_asked_for_holds_for_all_its_volumes()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        Assert.Equal(201, (await server.SendAsync("POST", "/v1/tenants", "{\"name\":\"acme\",\"iopsMax\":100}")).Status);
        VolumeAdmission[] doors = [await DoorAsync("acme.a"), await DoorAsync("acme.b"), await DoorAsync("other")];
        Assert.Equal([100UL, 100UL, null], doors.Select(d => d.TenantLimits?.Iops));
        Assert.Equal(200, (await server.SendAsync("PATCH", "/v1/tenants/acme", "{\"iopsMax\":50}")).Status);
        Assert.Equal([50UL, 50UL, null], doors.Select(d => d.TenantLimits?.Iops));

        async Task<VolumeAdmission> DoorAsync(string name)
        {
            var record = await server.Test.CreateAsync(name);
            StoreHost host = server.Test.Daemon.Stores.Find(record.StoreId)!;
            return (await host.Thread.InvokeAsync(() => server.Test.Daemon.Volumes.OpenAsync(record, host.Thread)))!.Door;
        }
    }

    [Fact]
    public async Task Events_are_listed_by_the_api_and_pfcli()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        server.Test.Daemon.Events.Note(EventCatalogue.SessionLost, "127.0.0.1:9", "gone");
        server.Test.Daemon.Events.Raise(EventCatalogue.TaskFailed, "t", "a task");
        string table = await server.DoneAsync("list_event");
        foreach (string word in new[] { "session-lost", "daemon-started", "task-failed", "noted" }) Assert.Contains(word, table, StringComparison.Ordinal);
        Assert.DoesNotContain("session-lost", await server.DoneAsync("list_event", "--severity", "error"), StringComparison.Ordinal);
        Assert.Contains("pfcli query_task", await server.DoneAsync("list_event", "--advice"), StringComparison.Ordinal);
        Assert.Equal(2, (await server.RunAsync("list_event", "--severity", "bad")).Exit);
        long last = server.Test.Daemon.Events.List()[0].Change;
        Assert.Equal("{\"events\":[]}", (await server.SendAsync("GET", "/v1/events?since=" + TestDaemon.Text(last))).Body);
        foreach (string query in new[] { "?limit=0", "?limit=1001", "?severity=bad", "?open=maybe" })
            Assert.Equal(400, (await server.SendAsync("GET", "/v1/events" + query)).Status);
    }

    /// <summary>Makes volume v with limits, and reads and writes it over NBD once.</summary>
    private static async Task UseAsync(ApiServer server)
    {
        await server.DoneAsync("create_volume", "-v", "v", "-s", "8m", "--iops", "5000");
        string socket = server.Test.Daemon.Listeners.First(l => l.Protocol == "nbd").Address["unix:".Length..];
        using var client = new RawNbd(socket, "v");
        client.Write(0, new byte[8192]);
        client.Read(0, 4096);
    }

    private static IEnumerable<string> Expressions(JsonNode node)
    {
        if (node is JsonObject map)
        {
            foreach ((string name, JsonNode? value) in map)
            {
                if (name is "expr" or "query" && value is JsonValue text && text.TryGetValue(out string? expression)) yield return expression;
                else if (value is not null) foreach (string inner in Expressions(value)) yield return inner;
            }
        }
        else if (node is JsonArray list)
        {
            foreach (JsonNode? item in list)
            {
                if (item is not null) foreach (string inner in Expressions(item)) yield return inner;
            }
        }
    }

    /// <summary>Samples by name and labels, and the types; checks the form.</summary>
    private static Dictionary<string, double> Read(string text, out Dictionary<string, string> types)
    {
        var samples = new Dictionary<string, double>(StringComparer.Ordinal);
        types = new Dictionary<string, string>(StringComparer.Ordinal);
        string family = "";
        foreach (string line in text.Split('\n', StringSplitOptions.RemoveEmptyEntries))
        {
            if (line.StartsWith("# TYPE ", StringComparison.Ordinal))
            {
                string[] parts = line.Split(' ');
                family = parts[2];
                types.Add(family, parts[3]); // twice is an error
            }
            else if (!line.StartsWith('#'))
            {
                Match match = s_sample.Match(line);
                Assert.True(match.Success, line);
                string name = match.Groups[1].Value;
                Assert.Equal(family, types[family] == "histogram" ? Regex.Replace(name, "_(bucket|sum|count)$", "") : name);
                samples.Add(name + match.Groups[2].Value, double.Parse(match.Groups[3].Value, CultureInfo.InvariantCulture));
            }
        }

        return samples;
    }
}
