using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.AspNetCore.Server.Kestrel.Https;

namespace BlockServer.Blockd;

/// <summary>An answer that is a problem; thrown by routes and written by <see cref="AdminApi"/>.</summary>
internal sealed class ApiException(int status, string code, string detail, string? field = null) : Exception(detail)
{
    public int Status { get; } = status;

    public string Code { get; } = code;

    public string? Field { get; } = field;
}

/// <summary>
/// The admin API over HTTP: the guard (host, token, origin, content type, size, form) and the writing of answers. What the
/// routes do is in <see cref="AdminRoutes"/>. Runs on the ordinary thread pool.
/// </summary>
internal sealed class AdminApi : IAsyncDisposable
{
    private const int SendBufferBytes = 4 << 20;

    private readonly WebApplication _app;
    private readonly IAdminRoutes _routes;
    private readonly ApiTokens _tokens;
    private readonly ApiCalls _calls;
    private readonly Denied? _denied;
    private readonly AuditLog? _audit;
    private readonly TlsFiles? _tls;
    private readonly IdempotencyKeys _keys = new();
    private readonly ApiLimits _limits;
    private readonly AuthThrottle _throttle;
    private readonly Daemon? _daemon; // for its probes

    private AdminApi(WebApplication app, IAdminRoutes routes, ApiTokens tokens, Daemon? daemon, ApiLimits limits, TimeProvider time)
    {
        _app = app;
        _limits = limits;
        _throttle = new AuthThrottle(time);
        _routes = routes;
        _tokens = tokens;
        _calls = daemon?.Calls ?? new ApiCalls();
        _denied = daemon?.Denied;
        _audit = daemon?.Audit;
        _tls = daemon?.Tls;
        _daemon = daemon;
    }

    /// <summary>Where it listens, as URLs.</summary>
    public IReadOnlyList<string> Addresses => [.. _app.Urls];

    /// <summary>Serves the daemon at <paramref name="addresses"/> and enters them in its list of listeners.</summary>
    public static async Task<AdminApi> StartAsync(Daemon daemon, IReadOnlyList<ListenAddress> addresses)
    {
        var routes = new AdminRoutes(daemon);
        AdminApi api = await StartAsync(routes, daemon.ApiTokens, addresses, daemon: daemon);
        await routes.ResumeAsync();
        for (int i = 0; i < addresses.Count; i++)
        {
            string address = addresses[i].Tcp is null ? addresses[i].ToString() : api.Addresses.ElementAtOrDefault(i) ?? "http://" + addresses[i];
            bool isTls = IsTls(addresses[i], daemon);
            daemon.AddListener(new ListenerInfo("api", address, isTls, !isTls && !addresses[i].IsLocal));
            if (!isTls && !addresses[i].IsLocal) daemon.Warn($"the admin API at {address} is not encrypted: whoever listens on the way reads its tokens (--insecure)");
        }

        return api;
    }

    /// <summary>Serves <paramref name="routes"/> to those whose tokens <paramref name="tokens"/> knows. What <paramref name="daemon"/> keeps
    /// of calls is kept there: the audit log, who is denied, what is being answered.</summary>
    public static async Task<AdminApi> StartAsync(
        IAdminRoutes routes, ApiTokens tokens, IReadOnlyList<ListenAddress> addresses, ApiLimits? wanted = null, TimeProvider? time = null,
        Daemon? daemon = null)
    {
        ApiLimits limits = wanted ?? new ApiLimits();
        var perAddress = new AddressLimit(limits.ConnectionsPerAddressMax, daemon?.Denied, limits.StreamsPerAddressMax);
        if (daemon is not null) daemon.CutDeniedApi = perAddress.CutDenied;
        // No arguments and an empty root: the daemon's settings are the only ones.
        WebApplicationBuilder builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions { Args = [] });
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel =>
        {
            kestrel.AddServerHeader = false;
            kestrel.Limits.MaxRequestBodySize = limits.BodyBytesMax;
            // The next batch of an export is packed while this one goes.
            kestrel.Limits.MaxResponseBufferSize = 2 << 20;
            kestrel.Limits.MaxRequestHeadersTotalSize = limits.HeaderBytesMax;
            kestrel.Limits.RequestHeadersTimeout = limits.HeadersTimeout;
            kestrel.Limits.KeepAliveTimeout = limits.IdleTimeout;
            kestrel.Limits.MaxConcurrentConnections = limits.ConnectionsMax;
            kestrel.Limits.MinRequestBodyDataRate = new MinDataRate(limits.BodyBytesPerSecondMin, limits.SlowBodyGrace);
            foreach (ListenAddress address in addresses)
            {
                if (address.Tcp is { } endPoint)
                {
                    kestrel.Listen(endPoint, o =>
                    {
                        o.Protocols = HttpProtocols.Http1;
                        o.Use(perAddress.Guard);
                        if (IsTls(address, daemon))
                        {
                            o.UseHttps(new TlsHandshakeCallbackOptions
                            {
                                HandshakeTimeout = limits.HeadersTimeout,
                                OnConnection = _ => ValueTask.FromResult(daemon!.Tls!.Current.OptionsWithoutClients()),
                            });
                        }
                    });
                }
                else
                {
                    File.Delete(address.UnixPath!);
                    kestrel.ListenUnixSocket(address.UnixPath!, o =>
                    {
                        o.Protocols = HttpProtocols.Http1;
                        o.Use(next => connection =>
                        {
                            // As much as the kernel gives: an export wakes both sides each time it is full.
                            if (connection.Features.Get<IConnectionSocketFeature>() is { } feature) feature.Socket.SendBufferSize = SendBufferBytes;
                            return next(connection);
                        });
                    });
                }
            }
        });
        builder.Services.AddSingleton<IMemoryPoolFactory<byte>>(new ApiMemory());
        WebApplication app = builder.Build();
        var api = new AdminApi(app, routes, tokens, daemon, limits, time ?? TimeProvider.System);
        app.Run(api.HandleAsync);
        await app.StartAsync();
        return api;
    }

    /// <summary>HTTPS is spoken there: beyond loopback wherever there is a certificate, and on this machine if that is asked for.</summary>
    private static bool IsTls(ListenAddress address, Daemon? daemon) =>
        daemon?.Tls is not null && address.Tcp is not null && (!address.IsLocal || daemon.Settings.IsApiAlwaysTls);

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        _daemon?.AppendStreams.StopAll(); // the server would wait for them
        using var patience = new CancellationTokenSource(TimeSpan.FromSeconds(2));
        await _app.StopAsync(patience.Token);
        await _app.DisposeAsync();
    }

    private async Task HandleAsync(HttpContext context)
    {
        context.Response.Headers.CacheControl = "no-store";
        context.Response.Headers.XContentTypeOptions = "nosniff";
        var trail = new AuditTrail(_audit, context);
        try
        {
            await RouteAsync(context, trail);
        }
        catch (ApiException e)
        {
            await WriteProblemAsync(context, e);
        }
        catch (Microsoft.AspNetCore.Http.BadHttpRequestException e)
        {
            await WriteProblemAsync(context, e.StatusCode switch
            {
                413 => new ApiException(413, "body-too-large", "a body has at most 1 MiB"),
                408 => new ApiException(408, "too-slow", "the body came too slowly"),
                _ => new ApiException(e.StatusCode, "bad-request", "the request is not well-formed HTTP"),
            });
        }
        catch (MetaException e)
        {
            await WriteProblemAsync(context, new ApiException(503, "metadata-unavailable", e.Message));
        }
        catch (Exception e) when (e is not OperationCanceledException)
        {
            // The text may hold paths or more; it goes to the log, never to the client.
            await Console.Error.WriteLineAsync($"api {context.Request.Method} {context.Request.Path}: {e}");
            await WriteProblemAsync(context, new ApiException(500, "internal-error", "the daemon failed; its log says more"));
        }
        finally
        {
            trail.End();
        }
    }

    private async Task RouteAsync(HttpContext context, AuditTrail trail)
    {
        HttpRequest request = context.Request;
        // Over TLS the certificate's names are ours as well: no page of another name gets here by DNS.
        bool isNamed = request.IsHttps && _tls?.Current.IsNamed(request.Host.Host) == true;
        if (!isNamed && !IsOurHost(request.Host.Host, context.Connection.LocalIpAddress))
            throw new ApiException(421, "wrong-host", "the Host header does not name this daemon");
        string path = request.Path.Value ?? "";
        if (HttpMethods.IsGet(request.Method) && await Probes.TryAnswerAsync(context, path, _daemon)) return;
        (ApiCaller caller, TokenRecord? token) = CheckToken(context);
        trail.CallerId = caller.Id;
        if (token is not null && _denied?.IsToken(token.Id) == true) throw TokenDenied();
        if (path == "/metrics" && HttpMethods.IsGet(request.Method) && _daemon is not null)
        {
            // They name every volume.
            if (caller.IsConfined) throw new ApiException(403, "whole-node", "metrics are the whole node's; a token of a tenant or of single volumes is not enough");
            await Probes.WriteMetricsAsync(context, _daemon.Metrics);
            return;
        }

        if (request.Method is not ("GET" or "POST" or "PUT" or "PATCH" or "DELETE" or "HEAD"))
        {
            context.Response.Headers.Allow = "GET, POST, PUT, PATCH, DELETE";
            throw new ApiException(405, "wrong-method", "allowed: GET, POST, PUT, PATCH, DELETE");
        }

        bool isChange = !HttpMethods.IsGet(request.Method) && !HttpMethods.IsHead(request.Method);
        if (isChange) CheckChange(request);
        string[] parts = path.Split('/');
        if (parts.Length < 3 || parts[0].Length > 0 || parts[1] != "v1" || IsTrickyPath(context))
            throw new ApiException(404, "no-such-resource", "there is no such resource");
        trail.Call = new ApiCall(context, parts[2..], caller);
        await ServeAsync(context, trail.Call, token);
    }

    /// <summary>Answers a call that may be made; a token that is revoked or expires meanwhile ends it.</summary>
    private async Task ServeAsync(HttpContext context, ApiCall call, TokenRecord? token)
    {
        _calls.Enter(context, call.Caller.Id);
        try
        {
            // Looked at again: who revokes a token looks for its calls afterwards.
            if (token is not null && _tokens.IsRevoked(token)) throw WrongToken(context);
            if (token is not null && _denied?.IsToken(token.Id) == true) throw TokenDenied();
            using ITimer? end = token?.ExpiresAt is { } until ? _tokens.At(until, context.Abort) : null;
            await _keys.ServeAsync(context, call, () => _routes.HandleAsync(call));
        }
        finally
        {
            _calls.Leave(context);
        }
    }

    private (ApiCaller Caller, TokenRecord? Token) CheckToken(HttpContext context)
    {
        const string Scheme = "Bearer ";
        HttpRequest request = context.Request;
        string header = request.Headers.Authorization.Count == 1 ? request.Headers.Authorization[0] ?? "" : "";
        bool isGiven = header.StartsWith(Scheme, StringComparison.OrdinalIgnoreCase);
        if (isGiven)
        {
            if (_tokens.Find(header[Scheme.Length..].Trim()) is { } known) return known;
        }

        string? address = context.Connection.RemoteIpAddress?.ToString();
        if (address is not null && _throttle.BlockedFor(address) is { } wait && wait > TimeSpan.Zero)
        {
            context.Response.Headers.RetryAfter = ((int)Math.Ceiling(wait.TotalSeconds)).ToString(System.Globalization.CultureInfo.InvariantCulture);
            throw new ApiException(429, "too-many-failures", "too many wrong tokens came from this address; wait, then send the right one");
        }

        if (address is not null && isGiven) _throttle.OnFailure(address);
        if (isGiven) throw WrongToken(context);
        context.Response.Headers.WWWAuthenticate = "Bearer";
        throw new ApiException(401, "no-token", "send a token as Authorization: Bearer TOKEN; DIR/admin.token holds the administrator's");
    }

    private static ApiException TokenDenied() => new(403, "denied", "this token is denied; ask the node's administrator");

    private static ApiException WrongToken(HttpContext context)
    {
        context.Response.Headers.WWWAuthenticate = "Bearer";
        return new ApiException(401, "wrong-token", "the token is unknown, has expired or was revoked");
    }

    // A browser that was lured to a name that resolves here sends that name: only this connection's own address and
    // localhost are ours.
    private static bool IsOurHost(string host, System.Net.IPAddress? local)
    {
        if (host.Length == 0 || host.Equals("localhost", StringComparison.OrdinalIgnoreCase)) return true;
        string named = host.Trim('[', ']');
        return local is not null && (named == local.ToString() || (local.IsIPv4MappedToIPv6 && named == local.MapToIPv4().ToString()));
    }

    private void CheckChange(HttpRequest request)
    {
        string? origin = request.Headers.Origin;
        string? site = request.Headers["Sec-Fetch-Site"];
        bool isForeign = (origin is not null && origin != $"{request.Scheme}://{request.Host}")
            || (site is not null && site is not ("same-origin" or "none"));
        if (isForeign) throw new ApiException(403, "cross-origin", "changes from other web pages are refused");
        string type = (request.ContentType ?? "").Split(';')[0].Trim();
        string[] parts = request.Path.Value!.Split('/');
        bool isStream = HttpMethods.IsPost(request.Method) && parts is ["", "v1", "volumes", _, "stream"];
        if (isStream)
        {
            if (type == StreamMedia.Type) return;
            throw new ApiException(415, "wrong-content-type", "send " + StreamMedia.Type);
        }

        if (HttpMethods.IsPost(request.Method) && parts is ["", "v1", "volumes", _, "append"])
        {
            if (type != AppendMedia.Type) throw new ApiException(415, "wrong-content-type", "send " + AppendMedia.Type);
            if (request.ContentLength > Units.RequestBytesMax) throw new ApiException(413, "body-too-large", "one append has at most 32 MiB");
            return;
        }

        if (HttpMethods.IsPost(request.Method) && parts is ["", "v1", "volumes", _, "append-stream"]) return; // an upgrade has no body: the server sees to it
        if (request.ContentLength > _limits.BodyBytesMax) throw new ApiException(413, "body-too-large", "a body has at most 1 MiB");
        bool hasBody = request.ContentLength is > 0 || request.Headers.TransferEncoding.Count > 0;
        bool needsBody = !HttpMethods.IsDelete(request.Method);
        if ((hasBody || needsBody) && !type.Equals("application/json", StringComparison.OrdinalIgnoreCase))
            throw new ApiException(415, "wrong-content-type", "send application/json");
    }

    // What the server would decode or tidy up into another path is no path of ours.
    private static bool IsTrickyPath(HttpContext context)
    {
        string raw = context.Features.Get<Microsoft.AspNetCore.Http.Features.IHttpRequestFeature>()?.RawTarget ?? "";
        int query = raw.IndexOf('?', StringComparison.Ordinal);
        if (query >= 0) raw = raw[..query];
        return raw.Contains("%2f", StringComparison.OrdinalIgnoreCase) || raw.Contains("%5c", StringComparison.OrdinalIgnoreCase)
            || raw.Contains("%2e", StringComparison.OrdinalIgnoreCase) || raw.Contains("%00", StringComparison.Ordinal)
            || raw.Contains('\\', StringComparison.Ordinal) || raw.Contains("..", StringComparison.Ordinal);
    }

    private static async Task WriteProblemAsync(HttpContext context, ApiException problem)
    {
        if (context.Response.HasStarted) return;
        context.Items[AuditTrail.CodeKey] = problem.Code;
        context.Response.StatusCode = problem.Status;
        context.Response.ContentType = "application/problem+json";
        var body = new ApiProblem(
            "urn:blockd:" + problem.Code, Microsoft.AspNetCore.WebUtilities.ReasonPhrases.GetReasonPhrase(problem.Status),
            problem.Status, problem.Code, problem.Message, problem.Field);
        await JsonSerializer.SerializeAsync(context.Response.Body, body, ApiJson.Default.ApiProblem);
    }
}

/// <summary>What the API does, behind its guard.</summary>
internal interface IAdminRoutes
{
    /// <summary>Answers a call that passed the guard; throws <see cref="ApiException"/>.</summary>
    Task HandleAsync(ApiCall call);
}
