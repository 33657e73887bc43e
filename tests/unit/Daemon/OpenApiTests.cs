using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Schema;
using BlockServer.Blockd;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>docs/openapi.json is what the routes are, and what is served.</summary>
public sealed class OpenApiTests
{
    private static readonly JsonSerializerOptions Indented = new() { WriteIndented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping };

    [Fact]
    public async Task The_document_is_written_from_the_routes()
    {
        string path = Path.Combine(Root, "docs", "openapi.json");
        string made = Document().ToJsonString(Indented) + "\n";
        if (Environment.GetEnvironmentVariable("BLOCKSERVER_WRITE_DOCS") == "1") await File.WriteAllTextAsync(path, made, TestContext.Current.CancellationToken);
        Assert.True(
            made == await File.ReadAllTextAsync(path, TestContext.Current.CancellationToken),
            "docs/openapi.json differs from the routes: run the unit tests with BLOCKSERVER_WRITE_DOCS=1, then build again");
    }

    [Fact]
    public async Task The_daemon_serves_the_document_and_every_route_in_it()
    {
        await using ApiServer server = await ApiServer.StartAsync();
        RawAnswer served = await server.SendAsync("GET", "/v1/openapi.json");
        Assert.Equal(await File.ReadAllTextAsync(Path.Combine(Root, "docs", "openapi.json"), TestContext.Current.CancellationToken), served.Body);
        JsonObject paths = JsonNode.Parse(served.Body)!["paths"]!.AsObject();
        int count = 0;
        foreach ((string path, JsonNode? methods) in paths)
        {
            foreach ((string method, _) in methods!.AsObject())
            {
                string real = path.Replace("{name}", "none", StringComparison.Ordinal).Replace("{id}", "none", StringComparison.Ordinal).Replace("{snapshot}", "none", StringComparison.Ordinal);
                if (real == "/v1/watch") real += "?types=none"; // else it has no end
                RawAnswer answer = await server.SendAsync(method.ToUpperInvariant(), real, method is "post" or "put" or "patch" ? "{" : null);
                // There is a route: it answers, or misses its object or a body; it never says that the path or method is unknown.
                Assert.True(answer.Code is null or "no-such-volume" or "no-such-disk" or "no-such-session" or "no-such-task" or "no-such-target" or "no-such-user" or "no-import" or "no-such-policy" or "no-such-token" or "invalid-kind" or "no-such-tenant" or "invalid-json" or "wrong-content-type" || (path == "/v1/watch" && answer.Code == "invalid-query"), $"{method} {path}: {answer.Code}");
                count++;
            }
        }

        Assert.Equal(ApiRouteTable.All.Length, count);
    }

    internal static string Root
    {
        get
        {
            string at = AppContext.BaseDirectory;
            while (!File.Exists(Path.Combine(at, "BlockServer.sln"))) at = Path.GetDirectoryName(at.TrimEnd('/'))!;
            return at;
        }
    }

    private static JsonObject Document()
    {
        var schemas = new SortedDictionary<string, JsonNode>(StringComparer.Ordinal);
        JsonObject ReferTo(Type type)
        {
            if (!schemas.ContainsKey(type.Name)) schemas.Add(type.Name, ApiJson.Default.Options.GetJsonSchemaAsNode(type));
            return new JsonObject { ["$ref"] = "#/components/schemas/" + type.Name };
        }

        var paths = new JsonObject();
        foreach (IGrouping<string, ApiRoute> same in ApiRouteTable.All.GroupBy(r => r.Template))
        {
            var methods = new JsonObject();
            foreach (ApiRoute route in same) methods.Add(route.Method.ToLowerInvariant(), Operation(route, ReferTo));
            paths.Add("/v1/" + same.Key, methods);
        }

        ReferTo(typeof(ApiProblem));
        return new JsonObject
        {
            ["openapi"] = "3.1.0",
            ["info"] = new JsonObject
            {
                ["title"] = "blockd admin API",
                ["version"] = "v1",
                ["description"] = "Sizes are bytes, times ISO 8601 in UTC. Every refusal is application/problem+json (RFC 9457) with a stable code; "
                    + "the codes that any call may get are " + Codes(ApiRouteTable.CommonCodes) + "; any change besides: " + Codes(ApiRouteTable.ChangeCodes) + ".",
            },
            ["security"] = new JsonArray(new JsonObject { ["token"] = new JsonArray() }),
            ["paths"] = paths,
            ["components"] = new JsonObject
            {
                ["securitySchemes"] = new JsonObject { ["token"] = new JsonObject { ["type"] = "http", ["scheme"] = "bearer" } },
                ["schemas"] = new JsonObject(schemas.Select(s => KeyValuePair.Create(s.Key, (JsonNode?)s.Value))),
            },
        };
    }

    private static JsonObject Operation(ApiRoute route, Func<Type, JsonObject> referTo)
    {
        var parameters = new JsonArray();
        foreach (string part in route.Template.Split('/').Where(p => p[0] == '{'))
        {
            parameters.Add(new JsonObject
            {
                ["name"] = part.Trim('{', '}'), ["in"] = "path", ["required"] = true, ["schema"] = new JsonObject { ["type"] = "string" },
            });
        }

        foreach (ApiQuery query in route.Queries)
        {
            parameters.Add(new JsonObject
            {
                ["name"] = query.Name, ["in"] = "query", ["description"] = query.Help, ["schema"] = new JsonObject { ["type"] = query.Type },
            });
        }

        var done = new JsonObject { ["description"] = "Done." };
        if (route.Answer == typeof(Stream)) done["content"] = Content(StreamMedia.Type, []);
        else if (route.Answer is not null) done["content"] = Content("application/json", referTo(route.Answer));
        var responses = new JsonObject { [TestDaemon.Text(route.Status)] = done };
        foreach (IGrouping<int, (int Status, string Code)> same in route.Codes.GroupBy(c => c.Status).OrderBy(g => g.Key))
            responses.Add(TestDaemon.Text(same.Key), Problem(Codes(same), referTo));
        responses.Add("default", Problem("Any other refusal.", referTo));
        var operation = new JsonObject { ["summary"] = route.Summary, ["x-role"] = route.Role.ToString().ToLowerInvariant() };
        if (parameters.Count > 0) operation["parameters"] = parameters;
        if (route.Body == typeof(Stream))
            operation["requestBody"] = new JsonObject { ["required"] = true, ["content"] = Content(StreamMedia.Type, []) };
        else if (route.Body is not null)
            operation["requestBody"] = new JsonObject { ["required"] = true, ["content"] = Content("application/json", referTo(route.Body)) };
        operation["responses"] = responses;
        return operation;
    }

    private static JsonObject Content(string type, JsonObject schema) => new() { [type] = new JsonObject { ["schema"] = schema } };

    private static JsonObject Problem(string description, Func<Type, JsonObject> referTo) =>
        new() { ["description"] = description, ["content"] = Content("application/problem+json", referTo(typeof(ApiProblem))) };

    private static string Codes(IEnumerable<(int Status, string Code)> codes) => string.Join(", ", codes.Select(c => c.Code).Distinct());
}
