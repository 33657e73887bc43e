using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core.Api;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Tenants see nothing of each other, tried over every route of the table, and stay within their quotas.</summary>
public sealed class TenantTests : IAsyncLifetime
{
    private const string Target = "iqn.2026-11.org.example:a.secrettarget", NoTarget = "iqn.2026-11.org.example:a.missingtarget";

    private ApiServer _server = null!;
    private string _a = "", _b = "", _tokenId = "", _taskId = "";
    private int _cuts;

    public async ValueTask InitializeAsync()
    {
        _server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0");
        await OkAsync("POST", "/v1/tenants", """{"name":"a"}""");
        await OkAsync("POST", "/v1/tenants", """{"name":"b"}""");
        (_tokenId, _a) = await ApiAccessTests.TokenAsync(_server, "a-ops", "operator", ""","tenant":"a" """);
        (_, _b) = await ApiAccessTests.TokenAsync(_server, "b-ops", "operator", ""","tenant":"b" """);
        await OkAsync("POST", "/v1/volumes", """{"name":"a.secretvolume","sizeBytes":1048576,"description":"secretwords"}""", _a);
        await OkAsync("POST", "/v1/volumes", """{"name":"b.own","sizeBytes":1048576}""", _b);
        await OkAsync("POST", "/v1/aof", """{"name":"a.secretlog","sizeBytesMax":1048576,"description":"secretwords"}""", _a);
        await OkAsync("POST", "/v1/snapshots", """{"name":"secretsnapshot","volumes":["a.secretvolume"]}""", _a);
        await OkAsync("POST", "/v1/volumes/a.secretvolume/clone", """{"name":"a.secretclone","snapshot":"secretsnapshot"}""", _a);
        await OkAsync("POST", "/v1/policies", """{"name":"a.secretpolicy","volumes":["a.secretvolume"],"periodSeconds":0}""", _a);
        await OkAsync("POST", "/v1/targets", $$"""{"name":"{{Target}}","description":"secretwords"}""", _a);
        await OkAsync("POST", $"/v1/targets/{Target}/luns", """{"volume":"a.secretvolume","keepOwnTarget":true}""", _a);
        await OkAsync("POST", $"/v1/targets/{Target}/access", """{"initiator":"iqn.2026-11.org.example:secretclient"}""", _a);
        await OkAsync("POST", $"/v1/targets/{Target}/users", """{"user":"secretuser","secret":"0123456789abcdef"}""", _a);
        RawAnswer task = await OkAsync("POST", "/v1/volumes/a.secretvolume/scrub", "{}", _a);
        _taskId = TestDaemon.Text(JsonDocument.Parse(task.Body).RootElement.GetProperty("id").GetInt64());
        VolumeRecord volume = _server.Test.Daemon.Directory.Find("a.secretvolume")!;
        LoopThread thread = _server.Test.Daemon.Stores.All[0].Thread;
        _server.Test.Daemon.Sessions.Add(new Session(
            "77", () => [volume.Id], null, "127.0.0.1:5", "secretlistener", false, "secretclient", DateTimeOffset.UnixEpoch,
            new SessionHandle("nbd", thread, _ => _cuts++, () => { }, () => default)));
    }

    public ValueTask DisposeAsync() => _server.DisposeAsync();

    private async Task<RawAnswer> OkAsync(string method, string path, string? body, string? token = null)
    {
        RawAnswer answer = await _server.SendAsAsync(token ?? _server.Token, method, path, body);
        Assert.True(answer.Status is >= 200 and < 300, $"{method} {path}: {answer.Status} {answer.Body}");
        return answer;
    }

    /// <summary>What stands in a path for a parameter: what A has, and what nobody has. A new parameter must be told here.</summary>
    private (string Real, string Missing) ValueOf(string template, string parameter) => (template.Split('/')[0], parameter) switch
    {
        ("volumes", "{name}") when template.Split('/')[^1] is "aof" or "data" or "append" or "rename" or "seal" => ("a.secretlog", "a.missinglog"),
        ("volumes", "{name}") => ("a.secretvolume", "a.missingvolume"),
        ("volumes", "{snapshot}") => ("secretsnapshot", "missingsnapshot"),
        ("policies", "{name}") => ("a.secretpolicy", "a.missingpolicy"),
        ("targets", "{name}") => (Target, NoTarget),
        ("targets", "{id}") => template.Contains("/luns/", StringComparison.Ordinal) ? ("0", "1") : ("secretuser", "missinguser"),
        ("tenants", "{name}") => ("a", "z"),
        ("tasks", "{id}") => (_taskId, "999"),
        ("sessions", "{id}") => ("77", "78"),
        ("tokens", "{id}") => (_tokenId, "0123456789abcdef"),
        ("disks", "{id}") => (_server.Test.Daemon.Stores.All[0].StoreId.ToString(), Guid.Empty.ToString()),
        ("discovery", "{id}") => ("secretuser", "missinguser"),
        _ => OtherValueOf(template, parameter),
    };

    private static (string Real, string Missing) OtherValueOf(string template, string parameter) =>
        throw new InvalidOperationException($"say in {nameof(ValueOf)} what stands for {parameter} of {template}");

    /// <summary>What a change that names no object in its path is sent: about what A has, and about what nobody has.</summary>
    private static (string Real, string Missing) BodyOf(ApiRoute route) => route.Key switch
    {
        "POST volumes" => ("""{"name":"a.secretvolume","sizeBytes":1048576}""", """{"name":"a.missingvolume","sizeBytes":1048576}"""),
        "POST aof" => ("""{"name":"a.secretlog"}""", """{"name":"a.missinglog"}"""),
        "POST snapshots" => ("""{"name":"x","volumes":["b.own","a.secretvolume"]}""", """{"name":"x","volumes":["b.own","a.missingvolume"]}"""),
        "POST snapshots/rollback" => ("""{"snapshot":"secretsnapshot","volumes":["b.own","a.secretvolume"]}""", """{"snapshot":"secretsnapshot","volumes":["b.own","a.missingvolume"]}"""),
        "POST policies" => ("""{"name":"b.x","volumes":["a.secretvolume"],"periodSeconds":0}""", """{"name":"b.x","volumes":["a.missingvolume"],"periodSeconds":0}"""),
        "POST targets" => ($$"""{"name":"{{Target}}"}""", $$"""{"name":"{{NoTarget}}"}"""),
        "PUT declared" => (
            """{"state":{"volumes":[{"name":"a.secretvolume","sizeBytes":1048576}]},"prune":[{"kind":"volume","name":"a.secretclone"}]}""",
            """{"state":{"volumes":[{"name":"a.missingvolume","sizeBytes":1048576}]},"prune":[{"kind":"volume","name":"a.missingclone"}]}"""),
        _ => throw new InvalidOperationException($"say in {nameof(BodyOf)} what {route.Key} is sent"),
    };

    private static string Blur(string text, params string[] names) => names.OrderByDescending(n => n.Length).Aggregate(text, (t, n) =>
    {
        t = t.Replace($"\\u0027{n}\\u0027", "NAME", StringComparison.OrdinalIgnoreCase); // as JSON writes its quotes
        return n.Length > 3 ? t.Replace(n, "NAME", StringComparison.OrdinalIgnoreCase) : t;
    });

    /// <summary>An append-only volume takes no name of another tenant, also not by replacing what has it.</summary>
    [Fact]
    public async Task An_append_only_volume_stays_within_its_tenant()
    {
        await OkAsync("POST", "/v1/aof", """{"name":"a.log","sizeBytesMax":1048576}""", _a);
        await OkAsync("POST", "/v1/aof", """{"name":"b.log","sizeBytesMax":1048576}""", _b);
        foreach (string body in new[] { """{"newName":"a.log","replace":true}""", """{"newName":"a.new"}""", """{"newName":"plain"}""" })
            Assert.Equal("not-yours", (await _server.SendAsAsync(_b, "POST", "/v1/volumes/b.log/rename", body)).Code);
        Assert.Equal("no-such-volume", (await _server.SendAsAsync(_b, "POST", "/v1/volumes/a.log/seal", "{}")).Code);
        Assert.Equal("no-such-volume", (await _server.SendAsAsync(_b, "GET", "/v1/volumes/a.log/data", null)).Code);
        Assert.DoesNotContain("a.log", (await OkAsync("GET", "/v1/aof", null, _b)).Body, StringComparison.Ordinal);
        await OkAsync("POST", "/v1/volumes/b.log/rename", """{"newName":"b.new"}""", _b);
    }

    [Fact]
    public async Task No_route_tells_one_tenant_anything_of_another()
    {
        string before = await AllOfAAsync();
        string viewer = (await ApiAccessTests.TokenAsync(_server, "b-view", "viewer", ""","tenant":"b" """)).Token;
        string single = (await ApiAccessTests.TokenAsync(_server, "b-one", "operator", ""","volumes":["b.own"]""")).Token;
        foreach (string token in new[] { _b, viewer, single })
        {
            // The stream without end has its own: WatchTests.A_tenant_watches_what_it_has_and_nothing_else.
            foreach (ApiRoute route in ApiRouteTable.All.Where(r => r.Key != "GET watch")) await TryAsync(token, route);
        }

        Assert.Equal(before, await AllOfAAsync());
        Assert.Equal(0, _cuts);
    }

    private async Task TryAsync(string token, ApiRoute route)
    {
        string[] parts = route.Template.Split('/'), parameters = [.. parts.Where(p => p[0] == '{')];
        string PathOf(bool real) => "/v1/" + string.Join('/', parts.Select(p => p[0] != '{' ? p : real ? ValueOf(route.Template, p).Real : ValueOf(route.Template, p).Missing));
        bool isChange = route.Method is "POST" or "PUT" or "PATCH", isFree = parameters.Length == 0 && isChange && route.Reach == ApiReach.Seen && route.Role < ApiRole.Admin;
        (string body, string otherBody) = isFree ? BodyOf(route) : ("{}", "{}");
        string headers = route.Body == typeof(Stream) ? $"Content-Type: {ApiAccessTests.MediaOf(route)}\r\n" : "";
        RawAnswer real = await _server.SendAsAsync(token, route.Method, PathOf(true), isChange ? body : null, headers);
        RawAnswer missing = await _server.SendAsAsync(token, route.Method, PathOf(false), isChange ? otherBody : null, headers);
        string said = $"{route.Key}: {real.Status} {real.Body} / {missing.Status} {missing.Body}";
        Assert.DoesNotContain("secretwords", real.Body, StringComparison.Ordinal);
        if (route.Key == "DELETE declared")
        {
            // The caller's own declaration, not A's: see DeclaredTenantTests.
            Assert.True(real.Status is 204 or 403, said);
            return;
        }

        if (parameters.Length == 0 && !isChange)
        {
            // A list, or what is everybody's: nothing of A is in it, and what is the whole node's is refused.
            foreach (string name in new[] { "a.secret", "secretsnapshot", "secretuser", "secretclient", "secretlistener", "secretwords" })
                Assert.False(real.Body.Contains(name, StringComparison.OrdinalIgnoreCase), said);
            // A token of single volumes has no declaration: that it has none is all that it hears.
            bool isNobodys = route.Template == "declared" && real.Code == "whole-node";
            Assert.True(isNobodys || (route.Reach == ApiReach.Node || route.Role == ApiRole.Admin ? real.Status == 403 : real.Status == 200), said);
            return;
        }

        Assert.True(real.Status is 403 or 404, said);
        Assert.True(route.Reach is ApiReach.Node or ApiReach.Seen || real.Status == 404 || real.Code == "wrong-role", said);
        string[] names = [.. parameters.SelectMany(p => new[] { ValueOf(route.Template, p).Real, ValueOf(route.Template, p).Missing }), "a.secretvolume", "a.missingvolume"];
        Assert.True((real.Status, Blur(real.Body, names)) == (missing.Status, Blur(missing.Body, names)), said);
    }

    /// <summary>What A sees itself, by every route that only looks; that is also the proof that the paths are right.</summary>
    private async Task<string> AllOfAAsync()
    {
        var seen = new List<string>();
        foreach (ApiRoute route in ApiRouteTable.All.Where(r => r.Method == "GET" && r.Reach is not (ApiReach.Node or ApiReach.Everybody) && r.Role < ApiRole.Admin && r.Answer != typeof(Stream)))
        {
            string path = "/v1/" + string.Join('/', route.Template.Split('/').Select(p => p[0] == '{' ? ValueOf(route.Template, p).Real : p));
            if (route.Template.EndsWith("/diff", StringComparison.Ordinal)) path += "?from=secretsnapshot";
            RawAnswer answer = await _server.SendAsAsync(_a, "GET", path);
            Assert.True(answer.Status == 200 || answer.Code is "no-import" or "not-append-only", $"{path}: {answer.Status} {answer.Body}");
            bool moves = route.Template is "stats" or "tasks" or "tasks/{id}"; // clocks and progress
            if (!moves) seen.Add($"{path} {answer.Body}");
        }

        string all = string.Join('\n', seen);
        foreach (string name in new[] { "a.secretvolume", "a.secretclone", "secretsnapshot", "a.secretpolicy", "a.secrettarget", "secretuser", "secretclient", "secretlistener" })
            Assert.Contains(name, all, StringComparison.Ordinal);
        return all;
    }

    [Fact]
    public async Task A_tenant_makes_and_renames_only_within_its_own_names()
    {
        foreach ((string method, string path, string body) in new[]
        {
            ("POST", "/v1/aof", """{"name":"x"}"""), ("POST", "/v1/aof", """{"name":"a.secretvolume"}"""),
            ("POST", "/v1/volumes", """{"name":"x","sizeBytes":1048576}"""), ("POST", "/v1/volumes", """{"name":"bb.x","sizeBytes":1048576}"""),
            ("POST", "/v1/volumes", """{"name":"b.","sizeBytes":1048576}"""), ("PATCH", "/v1/volumes/b.own", """{"name":"a.taken"}"""),
            ("POST", "/v1/volumes/b.own/clone", """{"name":"a.clone"}"""), ("POST", "/v1/policies", """{"name":"x","volumes":["b.own"],"periodSeconds":0}"""),
            ("POST", "/v1/targets", """{"name":"iqn.2026-11.org.example:x"}"""),
        })
        {
            RawAnswer answer = await _server.SendAsAsync(_b, method, path, body);
            Assert.True((answer.Status, answer.Code, answer.Field) == (403, "not-yours", "name"), $"{body}: {answer.Body}");
        }

        await OkAsync("POST", "/v1/aof", """{"name":"b.log","sizeBytesMax":1048576}""", _b);
        foreach (string name in new[] { "a.secretvolume", "a.log" })
        {
            RawAnswer moved = await _server.SendAsAsync(_b, "POST", "/v1/volumes/b.log/rename", $$"""{"newName":"{{name}}","replace":true}""");
            Assert.Equal((403, "not-yours", "newName"), (moved.Status, moved.Code, moved.Field));
        }

        RawAnswer hook = await _server.SendAsAsync(_b, "POST", "/v1/policies", """{"name":"b.p","volumes":["b.own"],"periodSeconds":0,"preHook":"run"}""");
        Assert.Equal((403, "whole-node", "preHook"), (hook.Status, hook.Code, hook.Field));
        await OkAsync("PATCH", "/v1/volumes/b.own", """{"name":"b.renamed"}""", _b);
        await OkAsync("PATCH", "/v1/volumes/b.renamed", """{"name":"a.given"}"""); // the node's operators may give it to another
        Assert.Equal("no-such-volume", (await _server.SendAsAsync(_b, "GET", "/v1/volumes/a.given")).Code);
        Assert.Equal(200, (await _server.SendAsAsync(_a, "GET", "/v1/volumes/a.given")).Status);
    }

    [Fact]
    public async Task A_clone_across_tenants_names_neither_to_the_other()
    {
        await OkAsync("POST", "/v1/volumes/a.secretvolume/clone", """{"name":"b.clone","snapshot":"secretsnapshot"}""");
        RawAnswer clone = await OkAsync("GET", "/v1/volumes/b.clone", null, _b);
        Assert.DoesNotContain("secret", clone.Body, StringComparison.Ordinal);
        Assert.DoesNotContain("b.clone", (await OkAsync("GET", "/v1/snapshots", null, _a)).Body, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_quota_holds_at_create_resize_clone_rename_and_import()
    {
        await OkAsync("PATCH", "/v1/tenants/b", """{"bytesMax":4194304,"volumesMax":3}""");
        async Task RefusedAsync(string code, string method, string path, string body, string? token = null)
        {
            RawAnswer answer = await _server.SendAsAsync(token ?? _b, method, path, body);
            Assert.True((answer.Status, answer.Code) == (409, code), $"{path} {body}: {answer.Status} {answer.Body}");
        }

        await RefusedAsync("quota-bytes", "POST", "/v1/volumes", """{"name":"b.large","sizeBytes":4194304}""");
        await RefusedAsync("quota-bytes", "POST", "/v1/volumes", """{"name":"b.large","sizeBytes":4194304}""", _server.Token); // nobody makes it larger for him
        await RefusedAsync("quota-bytes", "PATCH", "/v1/volumes/b.own", """{"sizeBytes":5242880}""");
        await OkAsync("PATCH", "/v1/volumes/b.own", """{"sizeBytes":2097152}""", _b);
        await OkAsync("POST", "/v1/volumes", """{"name":"b.two","sizeBytes":1048576}""", _b);
        await RefusedAsync("quota-bytes", "POST", "/v1/volumes/b.own/clone", """{"name":"b.clone"}""");
        await OkAsync("POST", "/v1/volumes/b.two/clone", """{"name":"b.clone"}""", _b);
        await RefusedAsync("quota-volumes", "POST", "/v1/volumes", """{"name":"b.four","sizeBytes":1048576}""");
        await OkAsync("POST", "/v1/volumes", """{"name":"free","sizeBytes":1048576}""");
        await RefusedAsync("quota-volumes", "PATCH", "/v1/volumes/free", """{"name":"b.four"}""", _server.Token);
        TenantInfo now = JsonSerializer.Deserialize((await OkAsync("GET", "/v1/tenants/b", null, _b)).Body, ApiJson.Default.TenantInfo)!;
        Assert.Equal((3, 4UL << 20, (ulong?)(4UL << 20), 3), (now.Volumes, now.ProvisionedBytes, now.BytesMax, now.VolumesMax));

        // Less than it has takes nothing away; whatever does not grow goes on.
        await OkAsync("PATCH", "/v1/tenants/b", """{"bytesMax":1048576,"volumesMax":1}""");
        await OkAsync("PATCH", "/v1/volumes/b.own", """{"description":"still mine"}""", _b);
        await OkAsync("PATCH", "/v1/volumes/b.own", """{"name":"b.renamed"}""", _b);
        await OkAsync("PATCH", "/v1/tenants/b", """{"unlimited":["bytesMax","volumesMax"]}""");
        await OkAsync("POST", "/v1/volumes", """{"name":"b.four","sizeBytes":8388608}""", _b);
    }

    [Fact]
    public async Task Two_creations_at_once_do_not_exceed_a_quota_together()
    {
        await OkAsync("PATCH", "/v1/tenants/b", """{"bytesMax":3145728}""");
        RawAnswer[] answers = await Task.WhenAll(Enumerable.Range(0, 8).Select(i =>
            _server.SendAsAsync(_b, "POST", "/v1/volumes", $$"""{"name":"b.v{{i}}","sizeBytes":1048576}""")));
        Assert.Equal(2, answers.Count(a => a.Status == 201));
        Assert.Equal(6, answers.Count(a => a.Code == "quota-bytes"));
    }

    [Fact]
    public async Task The_operations_of_a_tenant_are_limited_now_and_after_a_restart()
    {
        QosDoors Doors() => _server.Test.Daemon.Volumes.Doors;
        await OkAsync("PATCH", "/v1/tenants/b", """{"iopsMax":500}""");
        Assert.Equal(new QosLimits(500), Doors().LimitsOf("b"));
        Assert.Equal("b", Doors().TenantOf(_server.Test.Daemon.Directory.Find("b.own")!));
        await _server.RestartAsync();
        Assert.Equal(new QosLimits(500), Doors().LimitsOf("b"));
        Assert.Equal("b", Doors().TenantOf(_server.Test.Daemon.Directory.Find("b.own")!));
        await OkAsync("PATCH", "/v1/tenants/b", """{"unlimited":["iopsMax"]}""");
        Assert.Equal(QosLimits.None, Doors().LimitsOf("b"));
    }

    [Fact]
    public async Task A_tenant_goes_when_it_has_nothing_and_its_tokens_with_it()
    {
        TenantInfo tenant = JsonSerializer.Deserialize((await OkAsync("GET", "/v1/tenants/b", null)).Body, ApiJson.Default.TenantInfo)!;
        string path = $"/v1/tenants/b?revision={tenant.Revision}";
        Assert.Equal("id-or-revision-needed", (await _server.SendAsync("DELETE", "/v1/tenants/b")).Code);
        RawAnswer differs = await _server.SendAsync("DELETE", "/v1/tenants/b?revision=1");
        Assert.Equal((412, "revision-differs"), (differs.Status, differs.Code));
        Assert.Equal("tenant-in-use", (await _server.SendAsync("DELETE", path)).Code);
        VolumeRecord own = _server.Test.Daemon.Directory.Find("b.own")!;
        await OkAsync("DELETE", $"/v1/volumes/b.own?id={own.Id}", null, _b);
        await OkAsync("DELETE", path, null);
        Assert.Equal("wrong-token", (await _server.SendAsAsync(_b, "GET", "/v1/volumes")).Code);
        await _server.Test.CreateAsync("b.later");
        Assert.Equal("tenant-would-adopt", (await _server.SendAsync("POST", "/v1/tenants", """{"name":"b"}""")).Code);
        await OkAsync("POST", "/v1/tenants", """{"name":"b","adopt":true}""");
        Assert.Equal(401, (await _server.SendAsAsync(_b, "GET", "/v1/volumes")).Status); // the old token is not the new tenant's
    }

    [Theory]
    [InlineData("""{"name":"with.dot"}""", "invalid-name", "name")]
    [InlineData("""{"name":"abcdefghijklmnopqrstuvwxy"}""", "invalid-name", "name")]
    [InlineData("""{"name":"x","volumesMax":-1}""", "invalid-quota", "volumesMax")]
    [InlineData("""{"name":"x","iopsMax":0}""", "invalid-quota", "iopsMax")]
    [InlineData("""{"name":"x","bytesMax":-1}""", "invalid-json", "bytesMax")]
    public async Task A_tenant_that_cannot_be_is_refused(string body, string code, string field)
    {
        RawAnswer answer = await _server.SendAsync("POST", "/v1/tenants", body);
        Assert.Equal((400, code, field), (answer.Status, answer.Code, answer.Field));
    }
}
