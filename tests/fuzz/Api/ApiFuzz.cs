using System.Globalization;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Tests.Unit.Daemon;
using Xunit;

namespace BlockServer.Tests.Fuzz.Api;

/// <summary>
/// Long random sequences of calls of the admin API on a running daemon, by administrators, tenants, viewers and strangers, right
/// ones and damaged ones, as the table of routes allows them. Whatever comes: every answer is well-formed, every refusal has a
/// code that the table documents, none tells a secret or another tenant's name, and nothing fails inside. Inputs: a share of
/// BLOCKSERVER_FUZZ_INPUTS.
/// </summary>
public sealed class ApiFuzz
{
    // A call takes thousands of times as long as a decoder's input.
    private static readonly int Calls = Math.Max(1,
        (int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_INPUTS"), CultureInfo.InvariantCulture, out int inputs) ? inputs : 500_000) / 100);

    private static readonly string[] Names =
        ["free", "a.one", "a.two", "b.one", "b.two", "b.three", "s1", "s2", "none", "..", "%2e", "a%2fone", "A.ONE", "a.one@s1", "0", "1", "iqn.2026-11.org.example:a.t", "iqn.2026-11.org.example:b.t", "a", "b"];

    private static readonly string[] Numbers = ["0", "1", "-1", "1048576", "2097152", "1048577", "18446744073709551615", "1e400", "NaN", "null", "\"1\"", "4096", "60"];

    private readonly SeededRandom _random;
    private readonly int _seed;
    private readonly SortedSet<string> _undocumented = new(StringComparer.Ordinal);
    private ApiServer _server = null!;
    private (string Text, string? Tenant)[] _tokens = [];

    public ApiFuzz()
    {
        _seed = int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_SEED"), CultureInfo.InvariantCulture, out int seed) ? seed : 2026;
        _random = new SeededRandom((ulong)_seed);
    }

    [Fact]
    public async Task Sessions_of_calls()
    {
        _server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0");
        await using ApiServer server = _server;
        await BeginAsync();
        int done = 0, refused = 0;
        for (int i = 0; i < Calls; i++)
        {
            (string Text, string? Tenant) token = Pick(_tokens);
            string request = Request(Pick(ApiRouteTable.All), token.Text);
            RawAnswer answer = await SendAsync(request);
            try
            {
                Judge(request, answer, token.Tenant);
            }
            catch (Exception e)
            {
                Assert.Fail($"seed {_seed}, call {i}: {e.Message}\n{request}\n{answer.Head}\n{answer.Body}");
            }

            if (answer.Status is >= 200 and < 300) done++;
            if (answer.Status >= 400) refused++;
        }

        Assert.Empty(_undocumented);
        // It is a fuzz of what the routes do, too, not of their guard alone.
        Assert.True(done > Calls / 20 && refused > Calls / 20, $"{done} done, {refused} refused of {Calls}");
        Assert.Equal(200, (await server.SendAsync("GET", "/v1/node")).Status);
    }

    private async Task BeginAsync()
    {
        await _server.SendAsync("POST", "/v1/tenants", """{"name":"a","bytesMax":8388608}""");
        await _server.SendAsync("POST", "/v1/tenants", """{"name":"b","volumesMax":3}""");
        async Task<string> TokenAsync(string name, string role, string more)
        {
            RawAnswer made = await _server.SendAsync("POST", "/v1/tokens", $$"""{"name":"{{name}}","role":"{{role}}"{{more}}}""");
            return JsonSerializer.Deserialize(made.Body, ApiJson.Default.TokenCreated)!.Token;
        }

        _tokens =
        [
            (_server.Token, null), (await TokenAsync("o", "operator", ""), null), (await TokenAsync("v", "viewer", ""), null),
            (await TokenAsync("ta", "operator", ""","tenant":"a" """), "a"), (await TokenAsync("tb", "operator", ""","tenant":"b" """), "b"), ("none", null),
        ];
    }

    private T Pick<T>(IReadOnlyList<T> from) => from[_random.NextBelow(from.Count)];

    private string Request(ApiRoute route, string token)
    {
        var path = new StringBuilder("/v1/" + string.Join('/', route.Template.Split('/').Select(p => p[0] == '{' ? Pick(Names) : p)));
        char mark = '?';
        foreach (ApiQuery query in route.Queries)
        {
            if (_random.NextChance(0.6)) continue;
            path.Append(mark).Append(query.Name).Append('=').Append(query.Type switch
            {
                "boolean" => Pick(["true", "false", "maybe"]),
                "integer" => Pick(Numbers),
                _ => Pick(Names),
            });
            mark = '&';
        }

        string method = _random.NextChance(0.03) ? Pick(["PUT", "HEAD", "POST", "DELETE", "OPTIONS"]) : route.Method;
        string? body = route.Method is "POST" or "PATCH" || _random.NextChance(0.05) ? Body(route.Body) : null;
        string headers = route.Body == typeof(Stream) ? $"Content-Type: {StreamMedia.Type}\r\n" : "";
        if (_random.NextChance(0.05)) headers += Pick(["Origin: http://evil.example\r\n", "Content-Length: 5\r\n", "Idempotency-Key: k\r\n", "X: y\r\n", "Transfer-Encoding: chunked\r\n"]);
        return _server.Request(method, path.ToString(), body, headers, token);
    }

    /// <summary>JSON of a record's own fields, some missing, some of the wrong kind; or damaged.</summary>
    private string Body(Type? type)
    {
        if (type is null || type == typeof(Stream)) return Pick(["", "{}", "x", "BLKSTREAM"]);
        var fields = new List<string>();
        foreach (System.Reflection.ParameterInfo parameter in type.GetConstructors().MaxBy(c => c.GetParameters().Length)!.GetParameters())
        {
            if (parameter.HasDefaultValue && _random.NextChance(0.6)) continue;
            fields.Add($"\"{JsonNamingPolicy.CamelCase.ConvertName(parameter.Name!)}\":{Value(parameter.ParameterType)}");
        }

        string body = "{" + string.Join(',', fields) + "}";
        if (!_random.NextChance(0.1)) return body;
        byte[] bytes = Encoding.ASCII.GetBytes(body);
        Mutator.Mutate(_random, bytes);
        return Encoding.Latin1.GetString(bytes);
    }

    private string Value(Type type)
    {
        type = Nullable.GetUnderlyingType(type) ?? type;
        if (_random.NextChance(0.03)) return Pick(["null", "[]", "{}", "\"\\u0000\"", "1e999", "[[[[[]]]]]"]);
        if (type == typeof(string)) return $"\"{Pick(Names)}\"";
        if (type == typeof(bool)) return Pick(["true", "false"]);
        if (type == typeof(Guid)) return Pick([$"\"{_server.Test.Daemon.Stores.All[0].StoreId}\"", "\"x\""]);
        if (type.IsPrimitive) return Pick(Numbers);
        if (type.IsAssignableTo(typeof(IEnumerable<string>))) return $"[\"{Pick(Names)}\",\"{Pick(Names)}\"]";
        if (type.IsAssignableTo(typeof(System.Collections.IEnumerable))) return $"[{Pick(Numbers)}]";
        return type.GetConstructors().Length > 0 && type.Namespace == typeof(CreateVolume).Namespace ? Body(type) : "{}";
    }

    private async Task<RawAnswer> SendAsync(string request)
    {
        using Socket socket = await RawHttp.ConnectAsync(_server.Port);
        await RawHttp.SendAllAsync(socket, Encoding.Latin1.GetBytes(request));
        socket.Shutdown(SocketShutdown.Send); // a body that is shorter than it says ends here
        return await RawHttp.ReadAsync(socket);
    }

    private void Judge(string request, RawAnswer answer, string? tenant)
    {
        if (answer.Status == 0) return; // closed: it was no request, or was cut short
        Assert.True(answer.Status is not 500, "it failed inside");
        foreach ((string text, _) in _tokens.Where(t => t.Text.Length > 10)) Assert.DoesNotContain(text, answer.Body, StringComparison.Ordinal);
        Assert.DoesNotContain("   at ", answer.Body, StringComparison.Ordinal);
        if (tenant is not null)
        {
            // What he did not say himself, and is another's, is not told.
            string other = tenant == "a" ? "b." : "a.";
            foreach (string name in new[] { "one", "two", "three", "t" }.Select(n => "\"" + other + n + "\""))
                Assert.DoesNotContain(name, answer.Body, StringComparison.Ordinal);
        }

        if (answer.Status < 400 || answer.Body.Length == 0) return;
        Assert.NotNull(answer.Code);
        string path = request.Split(' ')[1].Split('?')[0], method = request.Split(' ')[0];
        ApiRoute? route = path.Length > 4 ? ApiRouteTable.All.FirstOrDefault(r => r.Method == method && r.Fits(path[4..].Split('/'))) : null;
        var known = ApiRouteTable.CommonCodes.Concat(ApiRouteTable.ChangeCodes).Concat(route?.Codes ?? []).ToHashSet();
        if (!known.Contains((answer.Status, answer.Code))) _undocumented.Add($"{route?.Key ?? path}: {answer.Status} {answer.Code}");
    }
}
