namespace BlockServer.Pfcli;

/// <summary>The way to a daemon: its address, and what carries requests there.</summary>
/// <param name="Server">What requests are made for.</param>
/// <param name="Transport">Makes what sends them; the caller owns it.</param>
public sealed record ServerWay(Uri Server, Func<HttpMessageHandler> Transport)
{
    private const string UnixPrefix = "unix:";

    /// <summary>The way to <paramref name="text"/>, an address or unix:/PATH; <paramref name="authority"/> is a file of who signed its
    /// certificate, null or empty: the system's. Throws <see cref="CliException"/>.</summary>
    public static ServerWay Of(string text, string? authority, CliHost host)
    {
        if (text.StartsWith(UnixPrefix, StringComparison.Ordinal))
            return new ServerWay(new Uri("http://localhost/"), () => host.UnixTransport(text[UnixPrefix.Length..]));
        return new ServerWay(AddressOf(text), () => Authority.Trust(host.Transport(), string.IsNullOrEmpty(authority) ? null : authority));
    }

    /// <summary>The daemon's address; throws when it is none, or when the token would go in the clear.</summary>
    public static Uri AddressOf(string text)
    {
        if (!Uri.TryCreate(text, UriKind.Absolute, out Uri? server) || server.Scheme is not ("http" or "https")
            || server.UserInfo.Length > 0 || server.AbsolutePath != "/" || server.Query.Length > 0)
        {
            throw new CliException(
                $"--server wants an address like {GeneralOptions.DefaultServer}, without a path, or unix:/PATH", ExitCode.Usage);
        }

        if (server.Scheme == "http" && !server.IsLoopback)
            throw new CliException($"the admin token is not sent unencrypted to another host; use https://{server.Authority}");
        return server;
    }
}
