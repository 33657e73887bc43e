using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Looking changes nothing, a repeated change is one, and what destroys names what it means.</summary>
public sealed class ApiSemanticsTests : IAsyncLifetime
{
    private ApiServer _server = null!;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0");
        await _server.Test.CreateAsync("vol");
        await OkAsync("POST", "/v1/snapshots", """{"name":"one","volumes":["vol"]}""");
        await OkAsync("POST", "/v1/policies", """{"name":"p","volumes":["vol"],"periodSeconds":0}""");
        await OkAsync("POST", "/v1/tenants", """{"name":"t"}""");
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    private async Task<RawAnswer> OkAsync(string method, string path, string? body, string headers = "")
    {
        RawAnswer answer = await _server.SendAsync(method, path, body, headers);
        Assert.True(answer.Status is >= 200 and < 300, $"{method} {path}: {answer.Status} {answer.Body}");
        return answer;
    }

    [Fact]
    public async Task Looking_changes_nothing()
    {
        string before = await StateAsync();
        foreach (ApiRoute route in ApiRouteTable.All.Where(r => r.Method == "GET"))
        {
            string path = "/v1/" + string.Join('/', route.Template.Split('/').Select((p, i) => p switch
            {
                "{name}" => route.Template.StartsWith("volumes", StringComparison.Ordinal) ? "vol" : "t",
                "{snapshot}" => "one",
                "{id}" => "1",
                _ => p,
            }));
            // With whatever would be asked of it, and with a body.
            string query = string.Join('&', route.Queries.Select(q => $"{q.Name}={(q.Type == "boolean" ? "true" : q.Type == "integer" ? "1" : "one")}"));
            if (route.Template == "watch") (path, query) = (path + "?types=none", "initial=true"); // else it has no end
            await _server.SendAsync("GET", $"{path}{(path.Contains('?') ? '&' : '?')}{query}&force=true&delete=true");
            await _server.SendAsync("HEAD", path);
            await _server.SendAsync("GET", path, """{"name":"made","sizeBytes":1048576}""");
        }

        Assert.Equal(before, await StateAsync());
    }

    /// <summary>All keys of the metadata with their revisions: a change anywhere would be seen. Not the tasks: an export is one for
    /// as long as somebody reads it, and remembered.</summary>
    private async Task<string> StateAsync() => string.Join('\n', (await _server.Test.Daemon.MetadataAsync())
        .Where(e => !e.Key.StartsWith("task/", StringComparison.Ordinal) && e.Key != "counter/task").Select(e => $"{e.Key} {e.ModRevision}"));

    [Fact]
    public async Task A_change_with_a_key_is_done_once()
    {
        const string key = "Idempotency-Key: k1\r\n";
        RawAnswer first = await OkAsync("POST", "/v1/volumes/vol/scrub", "{}", key);
        RawAnswer again = await OkAsync("POST", "/v1/volumes/vol/scrub", "{}", key);
        Assert.Equal((first.Status, first.Body), (again.Status, again.Body)); // the same task, not a second one
        Assert.Contains("application/json", again.Head, StringComparison.Ordinal);
        Assert.NotEqual(first.Body, (await OkAsync("POST", "/v1/volumes/vol/scrub", "{}", "Idempotency-Key: k2\r\n")).Body);
        RawAnswer other = await _server.SendAsync("POST", "/v1/volumes/vol/scrub", """{"bytesPerSecond":1}""", key);
        Assert.Equal((409, "idempotency-key-reused"), (other.Status, other.Code));
        Assert.Equal("invalid-idempotency-key", (await _server.SendAsync("POST", "/v1/volumes/vol/scrub", "{}", $"Idempotency-Key: {new string('x', 129)}\r\n")).Code);

        // What was refused may be tried again: nothing was done.
        Assert.Equal("no-such-volume", (await _server.SendAsync("POST", "/v1/volumes/new/scrub", "{}", key)).Code);
        await _server.Test.CreateAsync("new");
        await OkAsync("POST", "/v1/volumes/new/scrub", "{}", key);

        // Another caller's key is another key.
        (_, string token) = await ApiAccessTests.TokenAsync(_server, "ops", "operator");
        Assert.NotEqual(first.Body, (await _server.SendAsAsync(token, "POST", "/v1/volumes/vol/scrub", "{}", key)).Body);
    }

    [Fact]
    public async Task A_deletion_with_a_key_is_answered_again_as_it_was()
    {
        VolumeRecord volume = _server.Test.Daemon.Directory.Find("vol")!;
        string path = $"/v1/volumes/vol?id={volume.Id}&snapshots=true";
        const string key = "Idempotency-Key: k\r\n";
        Assert.Equal(204, (await _server.SendAsync("DELETE", path, null, key)).Status);
        Assert.Equal(204, (await _server.SendAsync("DELETE", path, null, key)).Status);
        Assert.Equal(404, (await _server.SendAsync("DELETE", path)).Status);
    }

    [Fact]
    public async Task No_token_is_kept_for_a_key()
    {
        const string body = """{"name":"x","role":"viewer"}""", key = "Idempotency-Key: k\r\n";
        await OkAsync("POST", "/v1/tokens", body, key);
        Assert.Equal("token-exists", (await _server.SendAsync("POST", "/v1/tokens", body, key)).Code);
    }

    [Fact]
    public async Task What_destroys_names_what_it_means()
    {
        Guid uuid = JsonSerializer.Deserialize((await OkAsync("GET", "/v1/volumes/vol/snapshots/one", null)).Body, ApiJson.Default.SnapshotEntry)!.Uuid;
        long revision = _server.Test.Daemon.Directory.Find("vol")!.Revision;
        foreach ((string method, string path, string? body, string code) in new[]
        {
            ("DELETE", "/v1/volumes/vol?id=999", null, "id-differs"), ("DELETE", "/v1/volumes/vol?revision=999", null, "revision-differs"),
            ("DELETE", $"/v1/volumes/vol/snapshots/one?uuid={Guid.Empty}", null, "uuid-differs"), ("DELETE", "/v1/policies/p?revision=999", null, "revision-differs"),
            ("DELETE", "/v1/tenants/t?revision=999", null, "revision-differs"), ("PATCH", "/v1/volumes/vol", """{"revision":999,"sizeBytes":2097152}""", "revision-differs"),
            ("POST", "/v1/volumes/vol/snapshots/one/rollback", $$"""{"uuid":"{{Guid.Empty}}"}""", "uuid-differs"),
            ("POST", "/v1/volumes/vol/snapshots/one/rollback", """{"revision":999}""", "revision-differs"),
        })
        {
            RawAnswer answer = await _server.SendAsync(method, path, body);
            Assert.True((answer.Status, answer.Code) == (412, code), $"{method} {path}: {answer.Status} {answer.Body}");
        }

        await OkAsync("POST", "/v1/volumes/vol/snapshots/one/rollback", $$"""{"uuid":"{{uuid}}","revision":{{revision}}}""");
    }
}
