using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Core.Api;
using BlockServer.Tests.Unit.Cluster;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Tokens and their roles, over every route of the table.</summary>
public sealed class ApiAccessTests : IAsyncLifetime
{
    private readonly ManualTime _time = new();
    private ApiServer _server = null!;

    public async ValueTask InitializeAsync() => _server = await ApiServer.StartAsync(null, _time);

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    /// <summary>Makes a token by the API: its id and itself.</summary>
    internal static async Task<(string Id, string Token)> TokenAsync(ApiServer server, string name, string role, string more = "")
    {
        RawAnswer made = await server.SendAsync("POST", "/v1/tokens", $$"""{"name":"{{name}}","role":"{{role}}"{{more}}}""");
        Assert.True(made.Status == 201, made.Body);
        TokenCreated created = JsonSerializer.Deserialize(made.Body, ApiJson.Default.TokenCreated)!;
        return (created.Info.Id, created.Token);
    }

    /// <summary>A route's path with nothing behind its names.</summary>
    private static string EmptyPath(ApiRoute route) => "/v1/" + string.Join('/', route.Template.Split('/').Select(p => p[0] == '{' ? "none" : p));

    private static (string? Body, string Headers) BodyOf(ApiRoute route) => route.Method is "GET" or "DELETE" ? (null, "")
        : route.Body == typeof(Stream) ? ("x", $"Content-Type: {MediaOf(route)}\r\n") : ("{", "");

    /// <summary>What a route takes that takes no JSON.</summary>
    internal static string MediaOf(ApiRoute route) => route.Template.EndsWith("/append", StringComparison.Ordinal) ? AppendMedia.Type : StreamMedia.Type;

    [Fact]
    public async Task Every_route_lets_in_its_role_and_those_above_and_nobody_else()
    {
        (string? Token, ApiRole? Role)[] callers =
        [
            (null, null), ((await TokenAsync(_server, "v", "viewer")).Token, ApiRole.Viewer), ((await TokenAsync(_server, "o", "operator")).Token, ApiRole.Operator),
            ((await TokenAsync(_server, "a", "admin")).Token, ApiRole.Admin), (_server.Token, ApiRole.Admin),
        ];
        int refused = 0;
        foreach (ApiRoute route in ApiRouteTable.All)
        {
            foreach ((string? token, ApiRole? role) in callers)
            {
                (string? body, string headers) = BodyOf(route);
                RawAnswer answer = await _server.SendAsAsync(
                    token, route.Method, EmptyPath(route) + (route.Template == "watch" ? "?types=none" : ""), body, headers); // else it has no end
                string said = $"{role} {route.Key}: {answer.Status} {answer.Body}";
                if (role is null) Assert.True((answer.Status, answer.Code) == (401, "no-token"), said);
                else if (role < route.Role) Assert.True((answer.Status, answer.Code) == (403, "wrong-role"), said);
                // An operator of a tenant may declare, one of the node may not: DeclaredTenantTests.
                else if (role == ApiRole.Operator && route.Template == "declared" && route.Method != "GET") Assert.True((answer.Status, answer.Code) == (403, "wrong-role"), said);
                else Assert.True(answer.Status is not (0 or 401 or 403 or >= 500), said);
                if (answer.Status == 403) refused++;
            }
        }

        Assert.True(refused > ApiRouteTable.All.Count(r => r.Role > ApiRole.Viewer)); // of viewers at least
        Assert.Contains(ApiRouteTable.All, r => r.Role == ApiRole.Admin);
        Assert.DoesNotContain(ApiRouteTable.All, r => r.Method != "GET" && r.Role == ApiRole.Viewer);
    }

    [Fact]
    public async Task A_token_is_shown_once_and_kept_nowhere()
    {
        (string id, string token) = await TokenAsync(_server, "once", "operator", ""","description":"for backups" """);
        Assert.StartsWith($"blockd_{id}_", token, StringComparison.Ordinal);
        string secret = token[^64..];
        RawAnswer listed = await _server.SendAsync("GET", "/v1/tokens");
        TokenInfo info = Assert.Single(JsonSerializer.Deserialize(listed.Body, ApiJson.Default.TokenList)!.Tokens);
        Assert.Equal((id, "once", "operator", "for backups", false), (info.Id, info.Name, info.Role, info.Description, info.Expired));
        Assert.DoesNotContain(secret, listed.Body, StringComparison.Ordinal);
        await _server.RestartAsync(); // and so everything is in the files
        foreach (string file in Directory.EnumerateFiles(_server.Test.DataDir, "*", SearchOption.AllDirectories).Where(f => !f.EndsWith(".blk", StringComparison.Ordinal) && !f.EndsWith("lock", StringComparison.Ordinal) && !f.EndsWith(".sock", StringComparison.Ordinal)))
        {
            using var reader = new StreamReader(new FileStream(file, FileMode.Open, FileAccess.Read, FileShare.ReadWrite), System.Text.Encoding.Latin1);
            Assert.DoesNotContain(secret, await reader.ReadToEndAsync(TestContext.Current.CancellationToken), StringComparison.Ordinal);
        }

        Assert.Equal(200, (await _server.SendAsAsync(token, "GET", "/v1/volumes")).Status); // after the restart too
        RawAnswer again = await _server.SendAsync("POST", "/v1/tokens", """{"name":"once","role":"admin"}""");
        Assert.Equal((409, "token-exists"), (again.Status, again.Code));
    }

    [Fact]
    public async Task A_wrong_secret_under_a_right_id_is_nobody()
    {
        (string id, string token) = await TokenAsync(_server, "a", "admin");
        string other = token[..^1] + (token[^1] == '0' ? '1' : '0');
        foreach (string wrong in new[] { other, token[..^1], token + "0", token.ToUpperInvariant(), $"blockd_{id}_", id, token.Replace(id, new string('0', 16), StringComparison.Ordinal) })
        {
            RawAnswer answer = await _server.SendAsAsync(wrong, "GET", "/v1/volumes");
            Assert.True(answer.Status is 401 or 429, wrong);
        }

        Assert.Equal(200, (await _server.SendAsAsync(token, "GET", "/v1/tokens")).Status);
    }

    [Fact]
    public async Task A_token_ends_when_it_expires_or_is_revoked()
    {
        (_, string brief) = await TokenAsync(_server, "brief", "viewer", ""","expiresSeconds":60""");
        (string id, string lasting) = await TokenAsync(_server, "lasting", "viewer");
        _time.Move(TimeSpan.FromSeconds(59));
        Assert.Equal(200, (await _server.SendAsAsync(brief, "GET", "/v1/volumes")).Status);
        _time.Move(TimeSpan.FromSeconds(1));
        RawAnswer over = await _server.SendAsAsync(brief, "GET", "/v1/volumes");
        Assert.Equal((401, "wrong-token"), (over.Status, over.Code));
        Assert.Contains("\"expired\":true", (await _server.SendAsync("GET", "/v1/tokens")).Body, StringComparison.Ordinal);
        Assert.Equal(200, (await _server.SendAsAsync(lasting, "GET", "/v1/volumes")).Status);
        Assert.Equal(204, (await _server.SendAsync("DELETE", "/v1/tokens/" + id)).Status);
        Assert.Equal(401, (await _server.SendAsAsync(lasting, "GET", "/v1/volumes")).Status);
        Assert.Equal("no-such-token", (await _server.SendAsync("DELETE", "/v1/tokens/" + id)).Code);
    }

    [Theory]
    [InlineData("""{"name":"A","role":"viewer"}""", 400, "invalid-name", "name")]
    [InlineData("""{"name":"a","role":"root"}""", 400, "invalid-role", "role")]
    [InlineData("""{"name":"a","role":"admin","tenant":"t"}""", 400, "invalid-role", "role")]
    [InlineData("""{"name":"a","role":"viewer","tenant":"none"}""", 404, "no-such-tenant", "tenant")]
    [InlineData("""{"name":"a","role":"viewer","volumes":[]}""", 400, "invalid-volumes", "volumes")]
    [InlineData("""{"name":"a","role":"viewer","volumes":["none"]}""", 404, "no-such-volume", "volumes")]
    [InlineData("""{"name":"a","role":"viewer","expiresSeconds":0}""", 400, "invalid-expiry", "expiresSeconds")]
    [InlineData("""{"name":"a","role":"viewer","expiresSeconds":9223372036854775807}""", 400, "invalid-expiry", "expiresSeconds")]
    public async Task A_token_that_cannot_be_is_refused(string body, int status, string code, string field)
    {
        Assert.Equal(201, (await _server.SendAsync("POST", "/v1/tenants", """{"name":"t"}""")).Status);
        RawAnswer answer = await _server.SendAsync("POST", "/v1/tokens", body);
        Assert.Equal((status, code, field), (answer.Status, answer.Code, answer.Field));
        Assert.Empty(_server.Test.Daemon.Tokens.List());
    }

    [Fact]
    public async Task A_token_of_one_volume_reaches_that_one_also_renamed_and_makes_nothing()
    {
        await _server.Test.CreateAsync("db");
        await _server.Test.CreateAsync("other");
        (_, string token) = await TokenAsync(_server, "one", "operator", ""","volumes":["db"]""");
        Assert.Equal(200, (await _server.SendAsAsync(token, "PATCH", "/v1/volumes/db", """{"description":"mine"}""")).Status);
        Assert.Equal("no-such-volume", (await _server.SendAsAsync(token, "PATCH", "/v1/volumes/other", """{"description":"mine"}""")).Code);
        Assert.Equal("not-yours", (await _server.SendAsAsync(token, "POST", "/v1/volumes", """{"name":"x","sizeBytes":1048576}""")).Code);
        Assert.Equal("not-yours", (await _server.SendAsAsync(token, "POST", "/v1/volumes/db/clone", """{"name":"x"}""")).Code);
        Assert.Equal("not-yours", (await _server.SendAsAsync(token, "PATCH", "/v1/volumes/db", """{"name":"x"}""")).Code);
        Assert.Equal(201, (await _server.SendAsAsync(token, "POST", "/v1/snapshots", """{"name":"s","volumes":["db"]}""")).Status);
        Assert.Equal("no-such-volume", (await _server.SendAsAsync(token, "POST", "/v1/snapshots", """{"name":"s","volumes":["db","other"]}""")).Code);
        Assert.Equal(200, (await _server.SendAsync("PATCH", "/v1/volumes/db", """{"name":"renamed"}""")).Status);
        string listed = (await _server.SendAsAsync(token, "GET", "/v1/volumes")).Body;
        Assert.Equal("renamed", Assert.Single(JsonSerializer.Deserialize(listed, ApiJson.Default.VolumeList)!.Volumes).Name);
        await _server.Test.CreateAsync("db"); // another of the old name is not his
        Assert.Equal("no-such-volume", (await _server.SendAsAsync(token, "GET", "/v1/volumes/db")).Code);
    }
}
