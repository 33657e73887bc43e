using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Tenants declare what is theirs, and see and change nothing else by it.</summary>
public sealed class DeclaredTenantTests : IAsyncLifetime
{
    private const string Iqn = "iqn.2026-11.org.example:";
    private const string Own = """
        {"state":{"volumes":[{"name":"a.db","sizeBytes":4194304,"export":{"nbd":true,"iscsi":false}}],
          "targets":[{"name":"iqn.2026-11.org.example:a.disks","luns":[{"lun":1,"volume":"a.db"}],"access":[{"initiator":"iqn.2026-11.org.example:*"}]}],
          "policies":[{"name":"a.hourly","volumes":["a.db"],"periodSeconds":3600,"keepCount":2}]}}
        """;

    private ApiServer _server = null!;
    private string _a = "", _b = "";

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0");
        await OkAsync(_server.Token, "POST", "/v1/tenants", """{"name":"a","volumesMax":2}""");
        await OkAsync(_server.Token, "POST", "/v1/tenants", """{"name":"b"}""");
        (_, _a) = await ApiAccessTests.TokenAsync(_server, "a-ops", "operator", ""","tenant":"a" """);
        (_, _b) = await ApiAccessTests.TokenAsync(_server, "b-ops", "operator", ""","tenant":"b" """);
        // What others have, of every kind.
        await OkAsync(_server.Token, "POST", "/v1/volumes", """{"name":"nodes","sizeBytes":1048576}""");
        await OkAsync(_b, "POST", "/v1/volumes", """{"name":"b.secret","sizeBytes":1048576}""");
        await OkAsync(_b, "POST", "/v1/policies", """{"name":"b.secretpolicy","volumes":["b.secret"],"periodSeconds":0}""");
        await OkAsync(_b, "POST", "/v1/targets", $$"""{"name":"{{Iqn}}b.secrettarget"}""");
        await OkAsync(_b, "POST", $"/v1/targets/{Iqn}b.secrettarget/luns", """{"volume":"b.secret","lun":3}""");
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    [Fact]
    public async Task A_tenant_declares_what_is_its_own_and_it_is_kept_over_a_restart()
    {
        DeclaredInfo made = await PutAsync(_a, Own);
        Assert.True(made.Converged, string.Join("; ", made.Items.Select(i => i.Reason)));
        Assert.Equal(["a.db", "a.hourly", Iqn + "a.disks"], made.Items.Select(i => i.Name).Order(StringComparer.Ordinal));
        Assert.Empty(made.Undeclared);
        await DeletePolicyAsync();
        await ThereAsync();
        await _server.RestartAsync();
        await DeletePolicyAsync();
        await ThereAsync();

        // The node's declaration is another one: empty, and what it could prune is everybody's.
        DeclaredInfo node = await GetAsync(_server.Token);
        Assert.Equal((0L, 0), (node.Revision, node.Items.Count));

        async Task DeletePolicyAsync()
        {
            using JsonDocument policies = JsonDocument.Parse((await OkAsync(_a, "GET", "/v1/policies", null)).Body);
            long revision = policies.RootElement.GetProperty("policies")[0].GetProperty("revision").GetInt64();
            await OkAsync(_a, "DELETE", $"/v1/policies/a.hourly?revision={TestDaemon.Text(revision)}", null);
        }

        async Task ThereAsync()
        {
            using var patience = CancellationTokenSource.CreateLinkedTokenSource(Stop);
            patience.CancelAfter(TimeSpan.FromSeconds(60));
            while (!(await OkAsync(_a, "GET", "/v1/policies", null)).Body.Contains("a.hourly", StringComparison.Ordinal)) await Task.Delay(50, patience.Token);
        }
    }

    [Fact]
    public async Task A_tenant_sees_and_prunes_nothing_of_others()
    {
        await PutAsync(_b, """{"state":{"volumes":[{"name":"b.secret","sizeBytes":1048576}]}}""");
        await PutAsync(_server.Token, """{"state":{"volumes":[{"name":"nodes","sizeBytes":1048576}]}}""");
        await OkAsync(_a, "POST", "/v1/volumes", """{"name":"a.extra","sizeBytes":1048576}""");
        string all = """[{"kind":"volume","name":"b.secret"},{"kind":"volume","name":"nodes"},{"kind":"policy","name":"b.secretpolicy"},{"kind":"target","name":"iqn.2026-11.org.example:b.secrettarget"},{"kind":"volume","name":"a.extra"}]""";
        foreach (string query in new[] { "?dryRun=true", "" })
        {
            DeclaredInfo info = await PutAsync(_a, $$"""{"state":{},"prune":{{all}}}""", query);
            Assert.Equal(["a.extra"], info.Items.Select(i => i.Name));
            Assert.DoesNotContain(info.Undeclared, u => !u.Name.Contains("a.", StringComparison.Ordinal) || u.Name.Contains("secret", StringComparison.Ordinal));
        }

        string seen = (await OkAsync(_a, "GET", "/v1/declared", null)).Body;
        Assert.DoesNotContain("secret", seen, StringComparison.Ordinal);
        Assert.DoesNotContain("nodes", seen, StringComparison.Ordinal);
        string left = (await OkAsync(_server.Token, "GET", "/v1/volumes", null)).Body;
        Assert.Contains("b.secret", left, StringComparison.Ordinal);
        Assert.Contains("\"nodes\"", left, StringComparison.Ordinal);
        Assert.DoesNotContain("a.extra", left, StringComparison.Ordinal);
        Assert.Contains("b.secretpolicy", (await OkAsync(_b, "GET", "/v1/policies", null)).Body, StringComparison.Ordinal);
        Assert.Contains("b.secrettarget", (await OkAsync(_b, "GET", "/v1/targets", null)).Body, StringComparison.Ordinal);
        // Its own going leaves the others'.
        await OkAsync(_a, "DELETE", "/v1/declared", null);
        Assert.NotEqual(0, (await GetAsync(_b)).Revision);
        Assert.NotEqual(0, (await GetAsync(_server.Token)).Revision);
    }

    [Theory]
    [InlineData("""{"volumes":[{"name":"nodes","sizeBytes":8388608}]}""", "volumes.name")]
    [InlineData("""{"volumes":[{"name":"b.secret","sizeBytes":8388608}]}""", "volumes.name")]
    [InlineData("""{"volumes":[{"name":"missing","sizeBytes":8388608}]}""", "volumes.name")]
    [InlineData("""{"targets":[{"name":"iqn.2026-11.org.example:b.secrettarget"}]}""", "targets.name")]
    [InlineData("""{"targets":[{"name":"iqn.2026-11.org.example:a.t","luns":[{"lun":0,"volume":"b.secret"}]}]}""", "targets.luns.volume")]
    [InlineData("""{"targets":[{"name":"iqn.2026-11.org.example:a.t","luns":[{"lun":0,"volume":"b.missing"}]}]}""", "targets.luns.volume")]
    [InlineData("""{"policies":[{"name":"b.secretpolicy","volumes":[],"periodSeconds":60}]}""", "policies.name")]
    [InlineData("""{"policies":[{"name":"a.p","volumes":["b.secret"],"periodSeconds":60}]}""", "policies.volumes")]
    public async Task What_would_be_of_others_is_refused_by_its_name_whether_it_is_there_or_not(string state, string field)
    {
        RawAnswer refused = await _server.SendAsAsync(_a, "PUT", "/v1/declared", $$"""{"state":{{state}}}""");
        Assert.Equal((403, "not-yours"), (refused.Status, refused.Code));
        Assert.Contains(field, refused.Body, StringComparison.Ordinal);
        Assert.Equal(0, (await GetAsync(_a)).Revision);
    }

    [Fact]
    public async Task A_declaration_reaches_no_further_than_a_request_by_hand()
    {
        // The quota: two volumes.
        DeclaredInfo much = await PutAsync(_a, """{"state":{"volumes":[{"name":"a.1","sizeBytes":1048576},{"name":"a.2","sizeBytes":1048576},{"name":"a.3","sizeBytes":1048576}]}}""");
        Assert.Contains("quota-volumes", Assert.Single(much.Items, i => i.Status == "waiting").Reason, StringComparison.Ordinal);

        (_, string looks) = await ApiAccessTests.TokenAsync(_server, "a-looks", "viewer", ""","tenant":"a" """);
        (_, string single) = await ApiAccessTests.TokenAsync(_server, "one", "operator", ""","volumes":["a.1"] """);
        (_, string nodes) = await ApiAccessTests.TokenAsync(_server, "node-ops", "operator", "");
        Assert.Equal("wrong-role", (await _server.SendAsAsync(looks, "PUT", "/v1/declared", Own)).Code);
        Assert.Equal("wrong-role", (await _server.SendAsAsync(nodes, "PUT", "/v1/declared", """{"state":{}}""")).Code);
        Assert.Equal("wrong-role", (await _server.SendAsAsync(nodes, "DELETE", "/v1/declared", null)).Code);
        foreach (string method in new[] { "GET", "PUT", "DELETE" })
            Assert.Equal("whole-node", (await _server.SendAsAsync(single, method, "/v1/declared", method == "PUT" ? """{"state":{}}""" : null)).Code);
        Assert.Equal(3, (await GetAsync(looks)).Items.Count);
    }

    [Fact]
    public async Task Nothing_is_declared_twice_and_a_tenant_that_goes_takes_its_declaration_along()
    {
        await PutAsync(_a, """{"state":{"volumes":[{"name":"a.db","sizeBytes":1048576}]}}""");
        RawAnswer twice = await _server.SendAsAsync(_server.Token, "PUT", "/v1/declared", """{"state":{"volumes":[{"name":"a.db","sizeBytes":2097152}]}}""");
        Assert.Equal((409, "declared-elsewhere"), (twice.Status, twice.Code));
        await PutAsync(_a, """{"state":{},"prune":[{"kind":"volume","name":"a.db"}]}""");
        await PutAsync(_server.Token, """{"state":{"volumes":[{"name":"a.db","sizeBytes":1048576}]}}""");
        Assert.Equal("declared-elsewhere", (await _server.SendAsAsync(_a, "PUT", "/v1/declared", """{"state":{"volumes":[{"name":"a.db","sizeBytes":1048576}]}}""")).Code);
        await PutAsync(_server.Token, """{"state":{},"prune":[{"kind":"volume","name":"a.db"}]}""");

        // It waits for a volume that its quota does not allow; then the tenant goes, and comes again without that quota.
        await OkAsync(_server.Token, "PATCH", "/v1/tenants/a", """{"volumesMax":0}""");
        DeclaredInfo waits = await PutAsync(_a, """{"state":{"volumes":[{"name":"a.late","sizeBytes":1048576}]}}""");
        Assert.Equal("waiting", Assert.Single(waits.Items).Status);
        using (JsonDocument tenant = JsonDocument.Parse((await OkAsync(_server.Token, "GET", "/v1/tenants/a", null)).Body))
            await OkAsync(_server.Token, "DELETE", $"/v1/tenants/a?revision={TestDaemon.Text(tenant.RootElement.GetProperty("revision").GetInt64())}", null);
        await OkAsync(_server.Token, "POST", "/v1/tenants", """{"name":"a"}""");
        (_, string again) = await ApiAccessTests.TokenAsync(_server, "a-again", "operator", ""","tenant":"a" """);
        Assert.Equal((0L, 0), ((await GetAsync(again)).Revision, (await GetAsync(again)).Items.Count));
        await _server.RestartAsync();
        Assert.Equal(0, (await GetAsync(again)).Revision);
        Assert.DoesNotContain("a.late", (await OkAsync(_server.Token, "GET", "/v1/volumes", null)).Body, StringComparison.Ordinal);
    }

    private async Task<RawAnswer> OkAsync(string token, string method, string path, string? body)
    {
        RawAnswer answer = await _server.SendAsAsync(token, method, path, body);
        Assert.True(answer.Status is >= 200 and < 300, $"{method} {path}: {answer.Status} {answer.Body}");
        return answer;
    }

    private async Task<DeclaredInfo> PutAsync(string token, string body, string query = "") =>
        JsonSerializer.Deserialize((await OkAsync(token, "PUT", "/v1/declared" + query, body)).Body, ApiJson.Default.DeclaredInfo)!;

    private async Task<DeclaredInfo> GetAsync(string token) =>
        JsonSerializer.Deserialize((await OkAsync(token, "GET", "/v1/declared", null)).Body, ApiJson.Default.DeclaredInfo)!;
}
