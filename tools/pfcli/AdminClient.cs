using System.Net;
using System.Net.Http.Headers;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Speaks the admin API. Every failure is a <see cref="CliException"/> with a sentence for the operator.</summary>
public sealed class AdminClient : IDisposable
{
    private const long AnswerBytesMax = 64 << 20;
    private readonly HttpClient _http;
    private readonly string _name;

    // For what takes as long as it takes.
    private readonly HttpClient _patient;

    /// <summary>Speaks to <paramref name="server"/>, which messages call <paramref name="name"/>; owns <paramref name="transport"/>.</summary>
    public AdminClient(Uri server, string token, HttpMessageHandler transport, string? name = null)
    {
        (Server, _name) = (server, name ?? server.ToString());
        _patient = new HttpClient(transport, disposeHandler: false) { BaseAddress = server, Timeout = Timeout.InfiniteTimeSpan };
        _patient.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
        _http = new HttpClient(transport)
        {
            BaseAddress = server,
            Timeout = TimeSpan.FromSeconds(60),
            MaxResponseContentBufferSize = AnswerBytesMax,
        };
        _http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
        _http.DefaultRequestHeaders.Accept.Add(new MediaTypeWithQualityHeaderValue("application/json"));
    }

    /// <summary>The daemon that is asked.</summary>
    public Uri Server { get; }

    /// <summary>GET, which changes nothing.</summary>
    public Task<T> GetAsync<T>(string path, JsonTypeInfo<T> type, CancellationToken cancel) =>
        SendAsync(HttpMethod.Get, path, null, type, cancel);

    /// <summary>Sends <paramref name="body"/> and reads the resource that comes back.</summary>
    public Task<T> ChangeAsync<TBody, T>(
        HttpMethod method, string path, TBody body, JsonTypeInfo<TBody> bodyType, JsonTypeInfo<T> type, CancellationToken cancel) =>
        SendAsync(method, path, JsonSerializer.SerializeToUtf8Bytes(body, bodyType), type, cancel);

    /// <summary>DELETE; what comes back is not looked at.</summary>
    public async Task DeleteAsync(string path, CancellationToken cancel) =>
        _ = await ExchangeAsync(HttpMethod.Delete, path, null, cancel);

    /// <summary>DELETE that answers with a resource.</summary>
    public Task<T> DeleteAsync<T>(string path, JsonTypeInfo<T> type, CancellationToken cancel) =>
        SendAsync(HttpMethod.Delete, path, null, type, cancel);

    /// <summary>GET of bytes without end; the caller disposes what comes back. A refusal is thrown.</summary>
    public async Task<Stream> OpenAsync(string path, CancellationToken cancel)
    {
        using var request = new HttpRequestMessage(HttpMethod.Get, path);
        HttpResponseMessage response = await PatientlyAsync(request, cancel);
        if (response.IsSuccessStatusCode) return await response.Content.ReadAsStreamAsync(cancel);
        using (response) throw Refusal(response.StatusCode, await response.Content.ReadAsByteArrayAsync(cancel));
    }

    /// <summary>POST of bytes that <paramref name="write"/> makes while they are sent. What comes back, or the refusal thrown. A
    /// connection that breaks meanwhile is an <see cref="HttpRequestException"/> or <see cref="IOException"/>.</summary>
    public async Task<T?> SendAsync<T>(string path, string type, Func<Stream, CancellationToken, Task> write, JsonTypeInfo<T> answerType, CancellationToken cancel)
        where T : class
    {
        using var request = new HttpRequestMessage(HttpMethod.Post, path) { Content = new WrittenContent(write) };
        request.Content.Headers.ContentType = new MediaTypeHeaderValue(type);
        using HttpResponseMessage response = await _patient.SendAsync(request, cancel);
        byte[] answer = await response.Content.ReadAsByteArrayAsync(cancel);
        if (!response.IsSuccessStatusCode) throw Refusal(response.StatusCode, answer);
        return answer.Length == 0 ? null : JsonSerializer.Deserialize(answer, answerType) ?? throw NotOurs(null);
    }

    private async Task<HttpResponseMessage> PatientlyAsync(HttpRequestMessage request, CancellationToken cancel)
    {
        try
        {
            return await _patient.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, cancel);
        }
        catch (Exception e) when (e is HttpRequestException or IOException)
        {
            throw new CliException(
                $"no connection to blockd at {_name} ({(e.InnerException ?? e).Message}); is it running? Else give --server", inner: e);
        }
    }

    /// <inheritdoc />
    public void Dispose()
    {
        _patient.Dispose();
        _http.Dispose();
    }

    /// <summary>A body that is written by a function.</summary>
    private sealed class WrittenContent(Func<Stream, CancellationToken, Task> write) : HttpContent
    {
        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context) => write(stream, CancellationToken.None);

        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context, CancellationToken cancellationToken) =>
            write(stream, cancellationToken);

        protected override bool TryComputeLength(out long length)
        {
            length = 0;
            return false;
        }
    }

    private async Task<T> SendAsync<T>(HttpMethod method, string path, byte[]? body, JsonTypeInfo<T> type, CancellationToken cancel)
    {
        byte[] answer = await ExchangeAsync(method, path, body, cancel);
        try
        {
            return JsonSerializer.Deserialize(answer, type) ?? throw NotOurs(null);
        }
        catch (JsonException e)
        {
            throw NotOurs(e);
        }
    }

    private async Task<byte[]> ExchangeAsync(HttpMethod method, string path, byte[]? body, CancellationToken cancel)
    {
        using var request = new HttpRequestMessage(method, path);
        if (body is not null)
        {
            request.Content = new ByteArrayContent(body);
            request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
        }

        try
        {
            using HttpResponseMessage response = await _http.SendAsync(request, cancel);
            byte[] answer = await response.Content.ReadAsByteArrayAsync(cancel);
            return response.IsSuccessStatusCode ? answer : throw Refusal(response.StatusCode, answer);
        }
        catch (OperationCanceledException e) when (!cancel.IsCancellationRequested)
        {
            throw new CliException($"blockd at {_name} did not answer in time; look at its log, then repeat", inner: e);
        }
        catch (Exception e) when (e is HttpRequestException or IOException)
        {
            throw new CliException(
                $"no connection to blockd at {_name} ({(e.InnerException ?? e).Message}); is it running? Else give --server", inner: e);
        }
    }

    private CliException Refusal(HttpStatusCode status, byte[] answer)
    {
        int number = (int)status;
        ApiProblem? problem = null;
        try
        {
            problem = JsonSerializer.Deserialize(answer, ApiJson.Default.ApiProblem);
        }
        catch (JsonException)
        {
            // Not blockd's words: the status alone must do.
        }

        string text = problem is { Detail.Length: > 0 } ? problem.Detail
            : problem is { Title.Length: > 0 } ? problem.Title
            : number switch
            {
                404 => "not found",
                >= 300 and < 400 => $"{_name} answers with a redirect; give blockd's own address with --server",
                _ => $"{_name} answered HTTP {number}",
            };
        if (number is 401) text += "; give the --token-file of this daemon";
        if (problem is { Code.Length: > 0 }) text += $" [{problem.Code}]";
        return new CliException(text, ExitCode.Failed, number) { Code = problem?.Code ?? "" };
    }

    private CliException NotOurs(Exception? inner) => new(
        $"what {_name} answers is not blockd's API, or of another version; check --server and use the pfcli of the same release",
        inner: inner);
}
