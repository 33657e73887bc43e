using System.Globalization;
using System.Net.Http.Headers;
using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The watch stream: everything that changes is told in order, and who was away misses nothing or is told so.</summary>
public sealed class WatchTests
{
    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public void The_hub_keeps_the_last_changes_and_knows_what_it_has_forgotten()
    {
        var hub = new WatchHub(kept: 4, firstRevision: 100);
        Assert.Equal(100, hub.Revision);
        Assert.Empty(hub.After(100)!);
        Assert.Null(hub.After(99));
        Assert.Null(hub.After(101)); // of a clock that went back, or made up
        for (int i = 1; i <= 6; i++) hub.Publish("task", i.ToString(CultureInfo.InvariantCulture), "t", false);
        Assert.Equal(106, hub.Revision);
        Assert.Null(hub.After(101));
        Assert.Equal(["3", "4", "5", "6"], hub.After(102)!.Select(n => n.Key));
        Assert.Equal([103, 104], hub.After(102, 2)!.Select(n => n.Revision));
        Assert.Empty(hub.After(106)!);
    }

    [Fact]
    public void A_reader_at_any_pace_sees_every_change_or_a_gap()
    {
        for (int seed = 0; seed < 200; seed++)
        {
            var random = new SeededRandom((ulong)seed);
            int kept = 1 + (int)(random.NextUInt64() % 20);
            var hub = new WatchHub(kept, firstRevision: (long)(random.NextUInt64() % 1000));
            long at = hub.Revision;
            int published = 0, seen = 0;
            for (int step = 0; step < 100; step++)
            {
                int count = (int)(random.NextUInt64() % 12);
                for (int i = 0; i < count; i++) hub.Publish("task", (published++).ToString(CultureInfo.InvariantCulture), "", false);
                if (random.NextUInt64() % 2 == 0) continue;
                IReadOnlyList<WatchNotice>? news = hub.After(at, 1 + (int)(random.NextUInt64() % 8));
                if (news is null)
                {
                    Assert.True(published - seen > kept, $"seed {seed}: a gap where {published - seen} of {kept} are behind");
                    (seen, at) = (published, hub.Revision);
                    continue;
                }

                foreach (WatchNotice n in news)
                {
                    Assert.Equal((seen++).ToString(CultureInfo.InvariantCulture), n.Key);
                    Assert.Equal(++at, n.Revision);
                }
            }
        }
    }

    [Fact]
    public async Task What_exists_comes_first_and_then_what_changes()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.DoneAsync("create_volume", "-v", "old", "-s", "1m");
        await using Watch watch = await Watch.OpenAsync(server, "");
        WatchEvent first = await watch.NextAsync();
        Assert.Equal(("resync", "start"), (first.Action, first.Reason));
        WatchEvent old = await watch.NextAsync(e => e is { Type: "volume" });
        Assert.Equal(("changed", "old"), (old.Action, old.Name));
        WatchEvent synced = await watch.NextAsync(e => e.Action == "synced");
        Assert.Equal(first.Revision, synced.Revision);

        await server.DoneAsync("create_volume", "-v", "new", "-s", "1m");
        WatchEvent made = await watch.NextAsync(e => e is { Type: "volume", Name: "new" });
        VolumeInfo volume = made.Value!.Value.Deserialize(ApiJson.Default.VolumeInfo)!;
        Assert.Equal(("changed", "new", Units.MiB, volume.Id.ToString(CultureInfo.InvariantCulture)), (made.Action, volume.Name, volume.SizeBytes, made.Key));
        Assert.True(made.Revision > synced.Revision);
        await server.DoneAsync("rename_volume", "-v", "new", "-n", "newer");
        Assert.Equal(made.Key, (await watch.NextAsync(e => e is { Type: "volume", Name: "newer" })).Key);
        await server.DoneAsync("create_snapshot", "-v", "newer", "-n", "s");
        WatchEvent cut = await watch.NextAsync(e => e is { Type: "snapshot" });
        Assert.Equal("newer@s", cut.Name);
        Assert.Equal("s", cut.Value!.Value.GetProperty("name").GetString());
        await server.DoneAsync("delete_snapshot", "-v", "newer", "-n", "s", "--yes");
        Assert.Equal(("deleted", cut.Key), ((await watch.NextAsync(e => e is { Type: "snapshot", Action: "deleted" })).Action, cut.Key));
        await watch.NextAsync(e => e is { Type: "task", Action: "changed" } && e.Value!.Value.GetProperty("state").GetString() == "succeeded");
        await server.DoneAsync("create_target", "-t", "iqn.2026-11.org.example:t");
        Assert.Equal("iqn.2026-11.org.example:t", (await watch.NextAsync(e => e is { Type: "target" })).Name);
        await server.DoneAsync("create_policy", "-p", "hourly", "-v", "newer", "--period", "1h");
        Assert.Equal("hourly", (await watch.NextAsync(e => e is { Type: "policy" })).Value!.Value.GetProperty("name").GetString());
        server.Test.Daemon.Events.Raise(EventCatalogue.StoreLow, "store-0", "little is left");
        WatchEvent low = await watch.NextAsync(e => e is { Type: "event" } && e.Value!.Value.GetProperty("subject").GetString() == "store-0");
        Assert.Equal(EventCatalogue.StoreLow, low.Value!.Value.GetProperty("code").GetString());
        await server.DoneAsync("delete_policy", "-p", "hourly", "--yes");
        await watch.NextAsync(e => e is { Type: "policy", Action: "deleted" });
        await server.DoneAsync("delete_volume", "-v", "newer", "--snapshots", "--yes");
        Assert.Equal(made.Key, (await watch.NextAsync(e => e is { Type: "volume", Action: "deleted" })).Key);
    }

    [Fact]
    public async Task Who_comes_again_goes_on_without_a_gap_also_by_the_header()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        long at;
        await using (Watch watch = await Watch.OpenAsync(server, "?types=volume&initial=false")) at = (await watch.NextAsync()).Revision;
        await server.DoneAsync("create_volume", "-v", "a", "-s", "1m");
        await server.DoneAsync("create_volume", "-v", "b", "-s", "1m");
        await server.DoneAsync("delete_volume", "-v", "a", "--yes");
        foreach (bool byHeader in new[] { false, true })
        {
            await using Watch again = byHeader
                ? await Watch.OpenAsync(server, "?types=volume", lastEventId: at) : await Watch.OpenAsync(server, $"?types=volume&from={at}");
            WatchEvent[] told = [await again.NextAsync(), await again.NextAsync()];
            Assert.Equal([("b", "changed"), ("a", "deleted")], told.Select(e => (e.Name, e.Action)).OrderByDescending(e => e.Name));
            Assert.True(told[1].Revision > told[0].Revision && told[0].Revision > at);
        }
    }

    [Fact]
    public async Task A_revision_of_the_past_or_of_nowhere_is_a_gap_and_everything_comes()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        long before = server.Test.Daemon.Watch.Revision;
        await server.DoneAsync("create_volume", "-v", "v", "-s", "1m");
        await server.RestartAsync();
        Assert.True(server.Test.Daemon.Watch.Revision > before);
        foreach (long from in new[] { before, 1, long.MaxValue })
        {
            await using Watch watch = await Watch.OpenAsync(server, $"?types=volume&from={from}");
            WatchEvent first = await watch.NextAsync();
            Assert.Equal(("resync", "gap"), (first.Action, first.Reason));
            Assert.Equal("v", (await watch.NextAsync()).Name);
            Assert.Equal("synced", (await watch.NextAsync()).Action);
        }
    }

    [Fact]
    public async Task A_quiet_stream_has_a_heartbeat_with_its_revision()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        server.Test.Daemon.Watch.HeartbeatEvery = TimeSpan.FromMilliseconds(20);
        await using Watch watch = await Watch.OpenAsync(server, "?initial=false");
        long at = (await watch.NextAsync()).Revision;
        for (int i = 0; i < 3; i++)
        {
            WatchEvent beat = await watch.NextAsync();
            Assert.Equal(("heartbeat", at), (beat.Action, beat.Revision));
        }
    }

    [Fact]
    public async Task Who_does_not_read_is_cut_off()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        TaskRegistry tasks = server.Test.Daemon.Tasks;
        string large = new('x', 200_000);
        const int Count = 100; // 20 MB, more than all buffers on the way
        for (int i = 0; i < Count; i++) await tasks.EndedAsync(tasks.Start(new TaskSpec("test", "t"), _ => Task.FromResult(large)).Id, Stop);
        server.Test.Daemon.Watch.StuckAfter = TimeSpan.FromMilliseconds(100);
        using System.Net.Sockets.Socket socket = await RawHttp.ConnectAsync(server.Port);
        await RawHttp.SendAllAsync(socket, System.Text.Encoding.ASCII.GetBytes(server.Request("GET", "/v1/watch", null)));
        await Task.Delay(500, Stop);
        long read = 0;
        var buffer = new byte[1 << 20];
        try
        {
            while (await socket.ReceiveAsync(buffer, Stop) is > 0 and int count) read += count;
        }
        catch (System.Net.Sockets.SocketException)
        {
            // Cut off is what it is to be.
        }

        Assert.True(read < Count * 200_000L, $"{read} bytes came of a stream that nobody read for longer than is allowed");
    }

    [Theory]
    [InlineData("?types=volume,nonsense", "invalid-query")]
    [InlineData("?types=", "invalid-query")]
    [InlineData("?from=-1", "invalid-query")]
    [InlineData("?from=x", "invalid-query")]
    [InlineData("?initial=maybe", "invalid-query")]
    [InlineData("?from=1&from=2", "invalid-query")]
    public async Task A_wrong_question_is_refused(string query, string code)
    {
        await using ApiServer server = await ApiServer.StartAsync();
        RawAnswer answer = await server.SendAsync("GET", "/v1/watch" + query);
        Assert.Equal((400, code), (answer.Status, answer.Code));
    }

    [Fact]
    public async Task Watchers_are_limited()
    {
        await using ApiServer server = await ApiServer.StartAsync(new ApiLimits { ConnectionsPerAddressMax = 100 });
        var open = new List<Watch>();
        try
        {
            for (int i = 0; i < 32; i++)
            {
                open.Add(await Watch.OpenAsync(server, "?initial=false"));
                await open[^1].NextAsync();
            }

            RawAnswer answer = await server.SendAsync("GET", "/v1/watch");
            Assert.Equal((503, "too-many-watchers"), (answer.Status, answer.Code));
        }
        finally
        {
            foreach (Watch one in open) await one.DisposeAsync();
        }
    }

    [Fact]
    public async Task Pfcli_watch_shows_changes_and_goes_on_after_a_restart()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        long at = server.Test.Daemon.Watch.Revision;
        await server.DoneAsync("create_volume", "-v", "a", "-s", "1m");
        string said = await server.DoneAsync("watch", "--type", "volume", "--from", at.ToString(CultureInfo.InvariantCulture), "--count", "1");
        Assert.Contains("volume a changed: online", said, StringComparison.Ordinal);
        string json = await server.DoneAsync("watch", "--type", "volume", "--all", "--count", "1", "--json");
        Assert.Equal(["resync", "changed"], json.TrimEnd().Split('\n').Select(l => JsonSerializer.Deserialize(l, ApiJson.Default.WatchEvent)!.Action));
        await server.RestartAsync();
        Assert.StartsWith("gap", await server.DoneAsync("watch", "--type", "volume", "--from", at.ToString(CultureInfo.InvariantCulture), "--count", "1"), StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_tenant_watches_what_it_has_and_nothing_else()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        foreach (string tenant in new[] { "a", "b" }) Assert.Equal(201, (await server.SendAsync("POST", "/v1/tenants", $$"""{"name":"{{tenant}}"}""")).Status);
        string token = (await ApiAccessTests.TokenAsync(server, "a-view", "viewer", ""","tenant":"a" """)).Token;
        foreach (string volume in new[] { "a.old", "b.old", "plain" }) await server.DoneAsync("create_volume", "-v", volume, "-s", "1m");
        await using Watch watch = await Watch.OpenAsync(server, "", token: token);
        var told = new List<WatchEvent>();
        await UntilAsync(e => e.Action == "synced");
        Assert.Equal(["a.old"], told.Where(e => e.Action == "changed").Select(e => e.Name));

        // The same happens to all three; of two of them not a word comes.
        await server.DoneAsync("create_target", "-t", "iqn.2026-11.org.example:b.t");
        foreach (string volume in new[] { "b.old", "plain", "a.old" })
        {
            await server.DoneAsync("create_snapshot", "-v", volume, "-n", "cut");
            await server.DoneAsync("scrub_volume", "-v", volume);
            string policy = volume.Replace("old", "hourly", StringComparison.Ordinal);
            await server.DoneAsync("create_policy", "-p", policy, "-v", volume, "--period", "1h");
            await server.DoneAsync("delete_policy", "-p", policy, "--yes");
            await server.DoneAsync("delete_snapshot", "-v", volume, "-n", "cut", "--yes");
            await server.DoneAsync("delete_volume", "-v", volume, "--snapshots", "--yes");
        }

        server.Test.Daemon.Events.Raise(EventCatalogue.StoreLow, "store-0", "little is left");
        told.Clear();
        await server.DoneAsync("create_volume", "-v", "a.last", "-s", "1m");
        await UntilAsync(e => e is { Name: "a.last", Type: "volume" });
        Assert.All(told, e => Assert.True(e.Name.StartsWith("a.", StringComparison.Ordinal) || e.Type == "task", e.ToString()));
        Assert.DoesNotContain(told, e => e.Value?.GetRawText() is { } text && (text.Contains("b.", StringComparison.Ordinal) || text.Contains("plain", StringComparison.Ordinal)));
        Assert.Contains(told, e => e is { Type: "volume", Name: "a.old", Action: "deleted" });
        Assert.Contains(told, e => e is { Type: "volume", Name: "a.last", Action: "changed" });

        async Task UntilAsync(Func<WatchEvent, bool> isLast)
        {
            do told.Add(await watch.NextAsync()); while (!isLast(told[^1]));
        }
    }

    [Fact]
    public async Task A_token_of_one_volume_is_told_when_that_is_renamed_and_deleted_and_when_it_comes_again()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.DoneAsync("create_volume", "-v", "mine", "-s", "1m");
        await server.DoneAsync("create_volume", "-v", "other", "-s", "1m");
        string token = (await ApiAccessTests.TokenAsync(server, "one", "viewer", ""","volumes":["mine"]""")).Token;
        await using (Watch watch = await Watch.OpenAsync(server, "?initial=false&types=volume,snapshot", token: token))
        {
            Assert.Equal("synced", (await watch.NextAsync()).Action);
            await server.DoneAsync("rename_volume", "-v", "mine", "-n", "still-mine");
            Assert.Equal(("changed", "still-mine"), Said(await watch.NextAsync()));
            await server.DoneAsync("delete_volume", "-v", "other", "--yes");
            await server.DoneAsync("create_volume", "-v", "mine", "-s", "1m"); // the name only, not the volume
            await server.DoneAsync("create_snapshot", "-v", "still-mine", "-n", "s");
            WatchEvent cut = await watch.NextAsync(e => e.Name != "still-mine");
            Assert.Equal(("changed", "still-mine@s"), Said(cut));
        }

        long before = server.Test.Daemon.Watch.Revision;
        await server.DoneAsync("delete_volume", "-v", "still-mine", "--snapshots", "--yes");
        await using Watch again = await Watch.OpenAsync(server, $"?types=volume&from={before}", token: token);
        WatchEvent gap = await again.NextAsync();
        Assert.Equal(("resync", "gap"), (gap.Action, gap.Reason));
        Assert.Equal("synced", (await again.NextAsync()).Action); // nothing is left
    }

    [Fact]
    public async Task Who_is_confined_hears_of_a_deletion_also_when_he_came_again_at_the_last_revision()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        await server.DoneAsync("create_volume", "-v", "mine", "-s", "1m");
        string token = (await ApiAccessTests.TokenAsync(server, "one", "viewer", ""","volumes":["mine"]""")).Token;
        server.Test.Daemon.Watch.HeartbeatEvery = TimeSpan.FromMilliseconds(20);
        await using Watch watch = await Watch.OpenAsync(server, $"?types=volume&from={server.Test.Daemon.Watch.Revision}", token: token);
        Assert.Equal("heartbeat", (await watch.NextAsync()).Action);
        await server.DoneAsync("delete_volume", "-v", "mine", "--yes");
        Assert.Equal("mine", (await watch.NextAsync(e => e.Action == "deleted")).Name);
    }

    [Fact]
    public async Task Who_is_confined_gets_no_events_and_leaves_room_for_others()
    {
        await using ApiServer server = await ApiServer.StartAsync(new ApiLimits { ConnectionsPerAddressMax = 100 });
        server.Test.Daemon.Watch.HeartbeatEvery = TimeSpan.FromMilliseconds(100); // who has left is noticed by then
        await server.DoneAsync("create_volume", "-v", "mine", "-s", "1m");
        var tokens = new List<string>();
        for (int i = 0; i < 7; i++) tokens.Add((await ApiAccessTests.TokenAsync(server, $"one-{i}", "viewer", ""","volumes":["mine"]""")).Token);
        RawAnswer events = await server.SendAsAsync(tokens[0], "GET", "/v1/watch?types=volume,event");
        Assert.Equal((403, "whole-node", "types"), (events.Status, events.Code, events.Field));
        var open = new List<Watch>();
        try
        {
            foreach (string token in tokens.Take(6))
            {
                for (int i = 0; i < 4; i++)
                {
                    open.Add(await Watch.OpenAsync(server, "?initial=false", token: token));
                    await open[^1].NextAsync();
                }

                RawAnswer fifth = await server.SendAsAsync(token, "GET", "/v1/watch");
                Assert.Equal((503, "too-many-watchers"), (fifth.Status, fifth.Code));
            }

            Assert.Equal("too-many-watchers", (await server.SendAsAsync(tokens[6], "GET", "/v1/watch")).Code);
            open.Add(await Watch.OpenAsync(server, "?initial=false")); // the operator of the node
            Assert.Equal("synced", (await open[^1].NextAsync()).Action);
            await open[0].DisposeAsync();
            open.RemoveAt(0);
            open.Add(await EventuallyAsync(() => Watch.OpenAsync(server, "?initial=false", token: tokens[0])));
        }
        finally
        {
            foreach (Watch one in open) await one.DisposeAsync();
        }
    }

    private static (string, string) Said(WatchEvent e) => (e.Action, e.Name);

    /// <summary>The daemon notices a client that has left a moment later.</summary>
    private static async Task<Watch> EventuallyAsync(Func<Task<Watch>> open)
    {
        for (int attempt = 0; ; attempt++)
        {
            try
            {
                return await open();
            }
            catch (Exception e) when (e is Xunit.Sdk.XunitException or HttpRequestException && attempt < 1000) // as many connections as there may be
            {
                await Task.Delay(20, Stop);
            }
        }
    }

    /// <summary>A client of the stream.</summary>
    private sealed class Watch(HttpClient http, StreamReader reader) : IAsyncDisposable
    {
        public static async Task<Watch> OpenAsync(ApiServer server, string query, long? lastEventId = null, string? token = null)
        {
            var http = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{server.Port}") };
            http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token ?? server.Token);
            if (lastEventId is { } id) http.DefaultRequestHeaders.Add("Last-Event-ID", id.ToString(CultureInfo.InvariantCulture));
            HttpResponseMessage answer = await http.GetAsync("/v1/watch" + query, HttpCompletionOption.ResponseHeadersRead, Stop);
            if (answer.Content.Headers.ContentType?.MediaType != "text/event-stream") http.Dispose();
            Assert.Equal("text/event-stream", answer.Content.Headers.ContentType?.MediaType);
            return new Watch(http, new StreamReader(await answer.Content.ReadAsStreamAsync(Stop)));
        }

        public async Task<WatchEvent> NextAsync(Func<WatchEvent, bool>? isWanted = null)
        {
            using var patience = CancellationTokenSource.CreateLinkedTokenSource(Stop);
            patience.CancelAfter(TimeSpan.FromSeconds(60));
            while (true)
            {
                string line = await reader.ReadLineAsync(patience.Token) ?? throw new EndOfStreamException();
                if (!line.StartsWith("data: ", StringComparison.Ordinal)) continue;
                WatchEvent told = JsonSerializer.Deserialize(line[6..], ApiJson.Default.WatchEvent)!;
                if (isWanted?.Invoke(told) ?? true) return told;
            }
        }

        public ValueTask DisposeAsync()
        {
            reader.Dispose();
            http.Dispose();
            return default;
        }
    }
}
