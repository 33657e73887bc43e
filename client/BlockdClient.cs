using System.Globalization;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Client;

/// <summary>Bytes of an append-only volume, and how it was when they were read.</summary>
/// <param name="Bytes">The bytes; empty when there are none behind the offset.</param>
/// <param name="LengthBytes">Length of the volume.</param>
/// <param name="IsSealed">It never grows any more.</param>
public readonly record struct AofChunk(ReadOnlyMemory<byte> Bytes, ulong LengthBytes, bool IsSealed);

/// <summary>
/// Speaks to the admin API of one blockd over HTTP/1.1, whose connections are kept: by TCP or by a unix socket. Thread-safe. Every failure
/// is a <see cref="BlockdException"/>; nothing is repeated here (<see cref="AofWriter"/> repeats appends).
/// <code>
/// using var blockd = new BlockdClient(new Uri("http://127.0.0.1:49180"), File.ReadAllText("admin.token").Trim());
/// await blockd.OpenAofAsync("events");
/// await using var writer = new AofWriter(blockd, "events");
/// ulong offset = await writer.AppendAsync("one event\n"u8.ToArray());
/// await foreach (AofChunk chunk in blockd.FollowAofAsync("events", 0)) Console.WriteLine(chunk.Bytes.Length);
/// </code>
/// </summary>
public sealed class BlockdClient : IDisposable
{
    // Longer than the daemon lets a request wait.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(100);
    private readonly HttpClient _http;

    /// <summary>Speaks to <paramref name="server"/> with <paramref name="token"/>; nothing is sent yet.</summary>
    /// <param name="server">Address without a path, for instance http://127.0.0.1:49180; by a unix socket only its host is used.</param>
    /// <param name="token">The token of the daemon's token file.</param>
    /// <param name="unixSocket">Path of the daemon's unix socket, or null for TCP.</param>
    public BlockdClient(Uri server, string token, string? unixSocket = null)
        : this(server, token, TransportTo(unixSocket))
    {
    }

    /// <summary>Speaks through <paramref name="transport"/>, which it owns.</summary>
    public BlockdClient(Uri server, string token, HttpMessageHandler transport)
    {
        _http = new HttpClient(transport) { BaseAddress = server, Timeout = s_patience, DefaultRequestVersion = HttpVersion.Version11 };
        _http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
    }

    /// <summary>Opens an append-only volume, and creates it if there is none of that name.</summary>
    public Task<AofInfo> OpenAofAsync(string name, ulong? sizeBytesMax = null, CancellationToken cancel = default) => SendAsync(
        HttpMethod.Post, "v1/aof", Json(new OpenAof(name, sizeBytesMax), ApiJson.Default.OpenAof), ApiJson.Default.AofInfo, cancel);

    /// <summary>All append-only volumes, by name.</summary>
    public async Task<IReadOnlyList<AofInfo>> ListAofAsync(CancellationToken cancel = default) =>
        (await SendAsync(HttpMethod.Get, "v1/aof", null, ApiJson.Default.AofList, cancel)).Volumes;

    /// <summary>Length and state of an append-only volume.</summary>
    public Task<AofInfo> StatAofAsync(string name, CancellationToken cancel = default) =>
        SendAsync(HttpMethod.Get, PathOf(name) + "/aof", null, ApiJson.Default.AofInfo, cancel);

    /// <summary>True when there is an append-only volume of that name.</summary>
    public async Task<bool> AofExistsAsync(string name, CancellationToken cancel = default)
    {
        try
        {
            await StatAofAsync(name, cancel);
            return true;
        }
        catch (BlockdException e) when (e.Code is "no-such-volume" or "not-append-only")
        {
            return false;
        }
    }

    /// <summary>Gives it another name. With <paramref name="replace"/> an append-only volume that has the name gives way at the same
    /// moment: whoever opens the name sees the one or the other, and what was replaced is freed in the background.</summary>
    public Task<AofInfo> RenameAofAsync(string name, string newName, bool replace = false, CancellationToken cancel = default) => SendAsync(
        HttpMethod.Post, PathOf(name) + "/rename", Json(new RenameAof(newName, replace), ApiJson.Default.RenameAof), ApiJson.Default.AofInfo, cancel);

    /// <summary>Seals it: it takes nothing more, for ever.</summary>
    public Task<AofInfo> SealAofAsync(string name, CancellationToken cancel = default) =>
        SendAsync(HttpMethod.Post, PathOf(name) + "/seal", Json(new SealAof(), ApiJson.Default.SealAof), ApiJson.Default.AofInfo, cancel);

    /// <summary>Deletes it, if it is still the volume with that number.</summary>
    public async Task DeleteAofAsync(string name, uint id, CancellationToken cancel = default)
    {
        using HttpResponseMessage answer = await ExchangeAsync(
            HttpMethod.Delete, $"{PathOf(name)}?id={id.ToString(CultureInfo.InvariantCulture)}", null, cancel);
    }

    /// <summary>Reads from <paramref name="offset"/> on, at most <paramref name="length"/> bytes (4 MiB); when there are none yet, waits
    /// up to <paramref name="waitSeconds"/> (30) for some. All that was answered to an append is seen.</summary>
    public async Task<AofChunk> ReadAofAsync(string name, ulong offset, int length = 1 << 20, int waitSeconds = 0, CancellationToken cancel = default)
    {
        string path = string.Create(CultureInfo.InvariantCulture, $"{PathOf(name)}/data?offset={offset}&length={length}&wait={waitSeconds}");
        using HttpResponseMessage answer = await ExchangeAsync(HttpMethod.Get, path, null, cancel);
        byte[] bytes = await BytesOfAsync(answer, cancel);
        return ulong.TryParse(HeaderOf(answer, AppendMedia.LengthHeader), NumberStyles.None, CultureInfo.InvariantCulture, out ulong now)
            ? new AofChunk(bytes, now, HeaderOf(answer, AppendMedia.SealedHeader) == "true")
            : throw NotOurs(null);
    }

    /// <summary>Reads from <paramref name="offset"/> on and then what is appended, as it becomes durable; ends when the volume is
    /// sealed and read to its end.</summary>
    public async IAsyncEnumerable<AofChunk> FollowAofAsync(
        string name, ulong offset, [System.Runtime.CompilerServices.EnumeratorCancellation] CancellationToken cancel = default)
    {
        while (true)
        {
            AofChunk chunk = await ReadAofAsync(name, offset, waitSeconds: 20, cancel: cancel);
            offset += (ulong)chunk.Bytes.Length;
            if (chunk.Bytes.Length > 0) yield return chunk;
            if (chunk.IsSealed && offset >= chunk.LengthBytes) yield break;
        }
    }

    /// <summary>Appends <paramref name="appends"/>, at most 16, in this order: each whole or not at all, durable when answered. The same
    /// request again, with the same <paramref name="client"/> and <paramref name="sequence"/>, lands once. Use <see cref="AofWriter"/>, which
    /// counts and repeats.</summary>
    /// <param name="name">The volume.</param>
    /// <param name="client">Identity of the client; empty: a repeat is not recognised.</param>
    /// <param name="sequence">Number of the first one; 1 for the client's first append.</param>
    /// <param name="appends">The bytes, borrowed until the answer.</param>
    /// <param name="joined">They are one append, of any number of pieces.</param>
    /// <param name="cancel">Gives up waiting; the appends may land all the same.</param>
    public async Task<AppendAnswerInfo> AppendAsync(
        string name, Guid client, ulong sequence, IReadOnlyList<ReadOnlyMemory<byte>> appends, bool joined = false, CancellationToken cancel = default)
    {
        string path = PathOf(name) + "/append";
        string mark = "?";
        if (client != Guid.Empty)
        {
            path += string.Create(CultureInfo.InvariantCulture, $"?client={client}&sequence={sequence}");
            mark = "&";
        }

        if (appends.Count > 1 && !joined) path += mark + "lengths=" + string.Join(',', appends.Select(a => a.Length));
        return await SendAsync(HttpMethod.Post, path, new PiecesContent(appends), ApiJson.Default.AppendAnswerInfo, cancel);
    }

    /// <summary>Opens an append stream to a volume; it has a connection of its own.</summary>
    internal async Task<AofStream> OpenStreamAsync(string name, CancellationToken cancel)
    {
        using var request = new HttpRequestMessage(HttpMethod.Post, PathOf(name) + "/append-stream");
        request.Headers.Connection.Add("Upgrade");
        request.Headers.Upgrade.ParseAdd(AppendWire.Protocol);
        HttpResponseMessage answer;
        try
        {
            answer = await _http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, cancel);
            if (await AofStream.TakeAsync(answer) is { } stream) return stream;
        }
        catch (Exception e) when (IsBreak(e, cancel))
        {
            throw Away(e);
        }

        using (answer) throw answer.IsSuccessStatusCode ? NotOurs(null) : Refusal((int)answer.StatusCode, await BytesOfAsync(answer, cancel));
    }

    /// <summary>The failure of a stream that broke and that nobody can be reached by any more.</summary>
    internal BlockdException Broken(Exception e) => Away(e);

    /// <inheritdoc/>
    public void Dispose() => _http.Dispose();

    private static string PathOf(string name) => "v1/volumes/" + Uri.EscapeDataString(name);

    private static string? HeaderOf(HttpResponseMessage answer, string name) =>
        answer.Headers.TryGetValues(name, out IEnumerable<string>? values) ? values.FirstOrDefault() : null;

    private static ByteArrayContent Json<T>(T value, JsonTypeInfo<T> type) => new(JsonSerializer.SerializeToUtf8Bytes(value, type))
    {
        Headers = { ContentType = new MediaTypeHeaderValue("application/json") },
    };

    private static SocketsHttpHandler TransportTo(string? unixSocket)
    {
        var transport = new SocketsHttpHandler { UseProxy = false, AllowAutoRedirect = false, PooledConnectionIdleTimeout = TimeSpan.FromSeconds(50) };
        if (unixSocket is null) return transport;
        transport.ConnectCallback = async (_, cancel) =>
        {
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            try
            {
                await socket.ConnectAsync(new UnixDomainSocketEndPoint(unixSocket), cancel);
                return new NetworkStream(socket, ownsSocket: true);
            }
            catch
            {
                socket.Dispose();
                throw;
            }
        };
        return transport;
    }

    private async Task<T> SendAsync<T>(HttpMethod method, string path, HttpContent? content, JsonTypeInfo<T> type, CancellationToken cancel)
    {
        using HttpResponseMessage answer = await ExchangeAsync(method, path, content, cancel);
        try
        {
            return JsonSerializer.Deserialize(await BytesOfAsync(answer, cancel), type) ?? throw NotOurs(null);
        }
        catch (JsonException e)
        {
            throw NotOurs(e);
        }
    }

    private async Task<HttpResponseMessage> ExchangeAsync(HttpMethod method, string path, HttpContent? content, CancellationToken cancel)
    {
        using var request = new HttpRequestMessage(method, path) { Content = content };
        HttpResponseMessage answer;
        try
        {
            answer = await _http.SendAsync(request, HttpCompletionOption.ResponseHeadersRead, cancel);
        }
        catch (Exception e) when (IsBreak(e, cancel))
        {
            throw Away(e);
        }

        if (answer.IsSuccessStatusCode) return answer;
        using (answer) throw Refusal((int)answer.StatusCode, await BytesOfAsync(answer, cancel));
    }

    private async Task<byte[]> BytesOfAsync(HttpResponseMessage answer, CancellationToken cancel)
    {
        try
        {
            return await answer.Content.ReadAsByteArrayAsync(cancel);
        }
        catch (Exception e) when (IsBreak(e, cancel))
        {
            throw Away(e);
        }
    }

    private static bool IsBreak(Exception e, CancellationToken cancel) =>
        e is HttpRequestException or IOException || (e is OperationCanceledException && !cancel.IsCancellationRequested);

    private BlockdException Away(Exception e) => new(
        BlockdException.Unreachable, 0, $"no answer from blockd at {_http.BaseAddress} ({(e.InnerException ?? e).Message}); is it running?", e);

    private static BlockdException Refusal(int status, byte[] answer)
    {
        try
        {
            if (JsonSerializer.Deserialize(answer, ApiJson.Default.ApiProblem) is { Code.Length: > 0 } problem)
                return new BlockdException(problem.Code, status, problem.Detail ?? problem.Code);
        }
        catch (JsonException)
        {
            // Not blockd's words: the status alone must do.
        }

        return new BlockdException("http-" + status.ToString(CultureInfo.InvariantCulture), status, $"the server answered HTTP {status}");
    }

    private static BlockdException NotOurs(Exception? e) => new("not-blockd", 0, "what answers is not blockd, or of another version", e);

    /// <summary>Several pieces, sent one after another without being copied together.</summary>
    private sealed class PiecesContent : HttpContent
    {
        private readonly IReadOnlyList<ReadOnlyMemory<byte>> _pieces;

        public PiecesContent(IReadOnlyList<ReadOnlyMemory<byte>> pieces)
        {
            _pieces = pieces;
            Headers.ContentType = new MediaTypeHeaderValue(AppendMedia.Type);
        }

        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context) => SerializeToStreamAsync(stream, context, default);

        protected override async Task SerializeToStreamAsync(Stream stream, TransportContext? context, CancellationToken cancellationToken)
        {
            foreach (ReadOnlyMemory<byte> piece in _pieces) await stream.WriteAsync(piece, cancellationToken);
        }

        protected override bool TryComputeLength(out long length)
        {
            length = _pieces.Sum(piece => (long)piece.Length);
            return true;
        }
    }
}
