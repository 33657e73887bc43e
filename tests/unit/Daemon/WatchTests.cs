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

    /// <summary>A client of the stream.</summary>
    private sealed class Watch(HttpClient http, StreamReader reader) : IAsyncDisposable
    {
        public static async Task<Watch> OpenAsync(ApiServer server, string query, long? lastEventId = null)
        {
            var http = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{server.Port}") };
            http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", server.Token);
            if (lastEventId is { } id) http.DefaultRequestHeaders.Add("Last-Event-ID", id.ToString(CultureInfo.InvariantCulture));
            HttpResponseMessage answer = await http.GetAsync("/v1/watch" + query, HttpCompletionOption.ResponseHeadersRead, Stop);
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
