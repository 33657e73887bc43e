using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Core;
using Microsoft.AspNetCore.Connections.Features;

namespace BlockServer.Blockd;

/// <summary>One call that passed the guard.</summary>
internal sealed class ApiCall(HttpContext context, string[] parts, ApiCaller caller)
{
    /// <summary>Nobody's call, for what the daemon itself wants to know; it sees all.</summary>
    public static ApiCall OfDaemon => new(new DefaultHttpContext(), [], ApiCaller.Administrator);

    /// <summary>The path behind /v1, by its slashes.</summary>
    public IReadOnlyList<string> Parts { get; } = parts;

    public string Method => context.Request.Method;

    /// <summary>Who calls.</summary>
    public ApiCaller Caller { get; } = caller;

    /// <summary>The address that he calls from; null for a unix socket.</summary>
    public System.Net.IPAddress? Address => context.Connection.RemoteIpAddress;

    /// <summary>The other end of the connection, for logs.</summary>
    public string Peer => Address is { } from ? new System.Net.IPEndPoint(from, context.Connection.RemotePort).ToString() : "unix";

    /// <summary>What the body names, for the audit log; never a secret.</summary>
    public string? Subject { get; private set; }

    /// <summary>The caller may not do it: that goes to the audit log, whatever he is answered.</summary>
    public bool WasRefused { get; set; }

    /// <summary>Says what the body names, for the audit log.</summary>
    public void About(string name) => Subject = name;

    /// <summary>The caller sees this volume: it is of nobody else. What is not seen is answered as what does not exist.</summary>
    public bool Sees(string volume) => Caller.Sees(volume);

    /// <summary>Throws unless a new volume or policy of this name would be the caller's.</summary>
    public void MustOwn(string name, string field = "name")
    {
        About(name);
        if (!Caller.Owns(name)) throw NotYours(field);
    }

    /// <summary>403: a new object of that name would not be the caller's.</summary>
    public ApiException NotYours(string field) => Caller.Tenant is { } tenant
        ? new ApiException(403, "not-yours", $"the names of what you have begin with '{tenant}.'; choose such a name", field)
        : new ApiException(403, "not-yours", "a token of single volumes makes nothing new and renames nothing", field);

    public CancellationToken Aborted => context.RequestAborted;

    /// <summary>A header, or null; once only.</summary>
    public string? Header(string name)
    {
        Microsoft.Extensions.Primitives.StringValues values = context.Request.Headers[name];
        return values.Count <= 1 ? values : throw new ApiException(400, "bad-request", $"{name} is given more than once", name);
    }

    /// <summary>A parameter of the query, or null; once only.</summary>
    public string? Query(string name)
    {
        Microsoft.Extensions.Primitives.StringValues values = context.Request.Query[name];
        return values.Count <= 1 ? values : throw new ApiException(400, "invalid-query", $"{name} is given more than once", name);
    }

    /// <summary>A flag in the query: true, false, or absent for false.</summary>
    public bool QueryFlag(string name) => Query(name) switch
    {
        null or "false" => false,
        "true" => true,
        _ => throw new ApiException(400, "invalid-query", $"{name} must be true or false", name),
    };

    /// <summary>A number in the query, or null.</summary>
    public long? QueryNumber(string name)
    {
        string? text = Query(name);
        if (text is null) return null;
        return long.TryParse(text, System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out long number)
            ? number : throw new ApiException(400, "invalid-query", $"{name} must be a whole number", name);
    }

    /// <summary>The body. Every fault is a 400 that names the field.</summary>
    public async Task<T> ReadAsync<T>(JsonTypeInfo<T> type)
    {
        try
        {
            return await JsonSerializer.DeserializeAsync(context.Request.Body, type, context.RequestAborted)
                ?? throw new ApiException(400, "invalid-json", "the body is null");
        }
        catch (JsonException e)
        {
            throw new ApiException(400, "invalid-json", "the body is not what this resource takes", FieldOf(e));
        }
    }

    // The path of the wrong value; a field that is missing or doubled has none and is named in the message only.
    private static string? FieldOf(JsonException e)
    {
        if (e.Path is { Length: > 2 } path && path.StartsWith("$.", StringComparison.Ordinal)) return path[2..];
        foreach (string mark in new[] { "including: '", "property '" })
        {
            int at = e.Message.IndexOf(mark, StringComparison.Ordinal);
            if (at < 0) continue;
            string rest = e.Message[(at + mark.Length)..];
            int end = rest.IndexOf('\'', StringComparison.Ordinal);
            if (end > 0 && end <= 64) return rest[..end];
        }

        return null;
    }

    public Task AnswerAsync<T>(T value, JsonTypeInfo<T> type, int status = 200)
    {
        context.Response.StatusCode = status;
        context.Response.ContentType = "application/json";
        return JsonSerializer.SerializeAsync(context.Response.Body, value, type);
    }

    public Task AnswerAsync(byte[] json)
    {
        context.Response.ContentType = "application/json";
        context.Response.ContentLength = json.Length;
        return context.Response.Body.WriteAsync(json).AsTask();
    }

    public Task AnswerNothingAsync()
    {
        context.Response.StatusCode = 204;
        return Task.CompletedTask;
    }

    /// <summary>The body of an append, which must say its length: at most <see cref="Units.RequestBytesMax"/>. The array is the
    /// pool's and goes back to it.</summary>
    public async Task<byte[]> BytesAsync()
    {
        if (context.Request.ContentLength is not { } length) throw new ApiException(411, "length-needed", "say how long the bytes are (Content-Length)");
        if (context.Features.Get<Microsoft.AspNetCore.Http.Features.IHttpMaxRequestBodySizeFeature>() is { } size) size.MaxRequestBodySize = Units.RequestBytesMax;
        byte[] bytes = System.Buffers.ArrayPool<byte>.Shared.Rent((int)length);
        try
        {
            await context.Request.Body.ReadExactlyAsync(bytes.AsMemory(0, (int)length), context.RequestAborted);
            return bytes;
        }
        catch
        {
            System.Buffers.ArrayPool<byte>.Shared.Return(bytes);
            throw;
        }
    }

    /// <summary>Length of the body, or null.</summary>
    public long? BodyLength => context.Request.ContentLength;

    /// <summary>Sets a header of the answer.</summary>
    public void Say(string header, string value) => context.Response.Headers[header] = value;

    /// <summary>Answers with bytes.</summary>
    public Task AnswerAsync(string type, ReadOnlyMemory<byte> bytes)
    {
        context.Response.ContentType = type;
        context.Response.ContentLength = bytes.Length;
        return context.Response.Body.WriteAsync(bytes, context.RequestAborted).AsTask();
    }

    /// <summary>The body, however long it is and however slowly it comes: for what is taken in pieces.</summary>
    public Stream LongBody()
    {
        if (context.Features.Get<Microsoft.AspNetCore.Http.Features.IHttpMaxRequestBodySizeFeature>() is { } size) size.MaxRequestBodySize = null;
        if (context.Features.Get<Microsoft.AspNetCore.Server.Kestrel.Core.Features.IHttpMinRequestBodyDataRateFeature>() is { } rate) rate.MinDataRate = null;
        return context.Request.Body;
    }

    /// <summary>Answers with bytes that are sent as they are made. When <paramref name="send"/> fails, the connection is cut: what
    /// has been sent must not look whole.</summary>
    public async Task SendAsync(string type, Func<System.IO.Pipelines.PipeWriter, Task> send, long? lengthBytes = null)
    {
        if (context.Features.Get<Microsoft.AspNetCore.Server.Kestrel.Core.Features.IHttpMinResponseDataRateFeature>() is { } rate) rate.MinDataRate = null;
        context.Response.ContentType = type;
        context.Response.ContentLength = lengthBytes;
        try
        {
            await send(context.Response.BodyWriter);
        }
        catch (Exception e) when (context.Response.HasStarted)
        {
            if (e is not OperationCanceledException) await Console.Error.WriteLineAsync($"api {context.Request.Path}: {e.Message}");
            context.Abort();
        }
    }

    /// <summary>The call wants to go on with another protocol, in the header Upgrade.</summary>
    public bool WantsUpgrade(string protocol) =>
        context.Features.Get<Microsoft.AspNetCore.Http.Features.IHttpUpgradeFeature>()?.IsUpgradableRequest == true
        && string.Equals(context.Request.Headers.Upgrade, protocol, StringComparison.OrdinalIgnoreCase);

    /// <summary>The connection does not count as one of the API any more, but as a stream; false when its address has as many as it may.</summary>
    public bool TryBecomeStream() => context.Features.Get<AddressSeat>()?.TryBecomeStream() != false;

    /// <summary>Ends the connection at once. Any thread.</summary>
    public void Abort() => context.Abort();

    /// <summary>Answers 101. The connection itself when it can be had, and then the answer comes out of its other descriptor (<see cref="Io.SocketTakeover"/>), the
    /// caller's both; else null, and the bytes that come are in the stream.</summary>
    public async Task<((int Connection, int Runtime)? Taken, Stream Stream)> UpgradeAsync(string protocol)
    {
        (int, int)? taken = context.Request.IsHttps || context.Features.Get<IConnectionSocketFeature>() is not { } feature
            ? null : Io.SocketTakeover.Take(feature.Socket);
        try
        {
            context.Response.Headers.Upgrade = protocol;
            return (taken, await context.Features.Get<Microsoft.AspNetCore.Http.Features.IHttpUpgradeFeature>()!.UpgradeAsync());
        }
        catch
        {
            if (taken is { } ours) Io.SocketTakeover.Close(ours);
            throw;
        }
    }

    /// <summary>405 with the methods that would do.</summary>
    public ApiException WrongMethod(string allowed)
    {
        context.Response.Headers.Allow = allowed;
        return new ApiException(405, "wrong-method", "allowed here: " + allowed);
    }
}
