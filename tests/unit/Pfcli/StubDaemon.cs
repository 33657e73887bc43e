using System.Net;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Core.Api;
using BlockServer.Pfcli;

namespace BlockServer.Tests.Unit.Pfcli;

/// <summary>A daemon of canned answers, and pfcli run against it with everything it wrote.</summary>
internal sealed class StubDaemon : HttpMessageHandler
{
    private readonly Dictionary<string, Queue<(HttpStatusCode Status, string Body)>> _answers = [];
    private readonly string _tokenFile = Path.Combine(Path.GetTempPath(), $"pfcli-{Guid.NewGuid():N}.token");

    private bool _isTokenKnown;

    public List<string> Requests { get; } = [];
    public List<string> Bodies { get; } = [];
    public string? Authorization { get; private set; }
    public string Out { get; private set; } = "";
    public string Error { get; private set; } = "";
    public bool Terminal { get; set; }
    public string Typed { get; set; } = "";
    public Exception? Broken { get; set; }

    public StubDaemon Answer<T>(string request, T body, JsonTypeInfo<T> type, HttpStatusCode status = HttpStatusCode.OK) =>
        AnswerText(request, JsonSerializer.Serialize(body, type), status);

    public StubDaemon Refuse(string request, HttpStatusCode status, string code, string detail) =>
        Answer(request, new ApiProblem("about:blank", "Refused", (int)status, code, detail, null), ApiJson.Default.ApiProblem, status);

    /// <summary>Answers in turn; the last answer stays.</summary>
    public StubDaemon AnswerText(string request, string body, HttpStatusCode status = HttpStatusCode.OK)
    {
        if (!_answers.TryGetValue(request, out var queue)) _answers[request] = queue = [];
        queue.Enqueue((status, body));
        return this;
    }

    public async Task<int> RunAsync(params string[] args)
    {
        await File.WriteAllTextAsync(_tokenFile, "secret-token\n");
        try
        {
            return await RunWithoutTokenAsync(["--token-file", _tokenFile, .. args]);
        }
        finally
        {
            File.Delete(_tokenFile);
        }
    }

    /// <summary>As a shell asks while somebody types: the hidden word comes first, the token by the environment.</summary>
    public async Task<int> RunCompleteAsync(params string[] args)
    {
        await File.WriteAllTextAsync(_tokenFile, "secret-token\n");
        try
        {
            _isTokenKnown = true;
            return await RunWithoutTokenAsync(args);
        }
        finally
        {
            _isTokenKnown = false;
            File.Delete(_tokenFile);
        }
    }

    public async Task<int> RunWithoutTokenAsync(params string[] args)
    {
        using var output = new StringWriter();
        using var error = new StringWriter();
        int code = await CommandLine.RunAsync(args, new CliHost
        {
            Out = output,
            Error = error,
            In = new StringReader(Typed),
            OutIsTerminal = Terminal,
            CanAsk = Terminal,
            Width = 120,
            Environment = name => name == "HOME" ? "/nonexistent" : name == "BLOCKD_TOKEN_FILE" && _isTokenKnown ? _tokenFile : null,
            Transport = () => this,
            UnixTransport = _ => this,
            Delay = (_, cancel) => cancel.IsCancellationRequested ? Task.FromCanceled(cancel) : Task.CompletedTask,
        });
        Out = output.ToString();
        Error = error.ToString();
        return code;
    }

    protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        if (Broken is not null) throw Broken;
        string name = $"{request.Method} {request.RequestUri!.PathAndQuery}";
        Requests.Add(name);
        Authorization = request.Headers.Authorization?.ToString();
        if (request.Content is not null) Bodies.Add(await request.Content.ReadAsStringAsync(cancellationToken));
        if (!_answers.TryGetValue(name, out var queue))
            return new HttpResponseMessage(HttpStatusCode.NotImplemented) { Content = new StringContent($"no answer for {name}") };
        var (status, body) = queue.Count > 1 ? queue.Dequeue() : queue.Peek();
        return new HttpResponseMessage(status) { Content = new StringContent(body, Encoding.UTF8, "application/json") };
    }
}
