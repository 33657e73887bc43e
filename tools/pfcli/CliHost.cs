namespace BlockServer.Pfcli;

/// <summary>What a command sees of the world around it, so that a test can be that world.</summary>
public sealed class CliHost
{
    /// <summary>Standard output.</summary>
    public required TextWriter Out { get; init; }

    /// <summary>Standard error.</summary>
    public required TextWriter Error { get; init; }

    /// <summary>Standard input, read only to ask for a confirmation.</summary>
    public required TextReader In { get; init; }

    /// <summary>Standard output is a terminal: draw tables and progress there.</summary>
    public bool OutIsTerminal { get; init; }

    /// <summary>Somebody can be asked: standard input and error are a terminal.</summary>
    public bool CanAsk { get; init; }

    /// <summary>Standard error is a terminal: progress moves there.</summary>
    public bool ErrorIsTerminal { get; init; }

    /// <summary>Standard output as bytes, for a pipe.</summary>
    public Func<Stream> OpenOut { get; init; } = Console.OpenStandardOutput;

    /// <summary>Standard input as bytes, for a pipe.</summary>
    public Func<Stream> OpenIn { get; init; } = Console.OpenStandardInput;

    /// <summary>Makes what fetches images from other servers; without the token, and redirects are followed.</summary>
    public Func<HttpMessageHandler> FetchTransport { get; init; } = static () => new SocketsHttpHandler { UseCookies = false };

    /// <summary>Columns of the terminal.</summary>
    public int Width { get; init; } = 80;

    /// <summary>Reads an environment variable.</summary>
    public required Func<string, string?> Environment { get; init; }

    /// <summary>Makes what carries the HTTP requests; the client owns and disposes it.</summary>
    public required Func<HttpMessageHandler> Transport { get; init; }

    /// <summary>The same for a daemon that is reached by a unix socket.</summary>
    public Func<string, HttpMessageHandler> UnixTransport { get; init; } = static path => new SocketsHttpHandler
    {
        AllowAutoRedirect = false,
        UseProxy = false,
        UseCookies = false,
        ConnectCallback = (_, _) => new ValueTask<Stream>(LocalStream.Connect(path)),
    };

    /// <summary>Files are handed over to a daemon of this machine; else all goes through the admin API.</summary>
    public bool HandsFiles { get; init; } = true;

    /// <summary>Waits between two looks at the daemon.</summary>
    public required Func<TimeSpan, CancellationToken, Task> Delay { get; init; }

    /// <summary>The clock that progress and remaining time are counted by.</summary>
    public TimeProvider Clock { get; init; } = TimeProvider.System;

    /// <summary>The host of a real process.</summary>
    public static CliHost OfProcess() => new()
    {
        Out = Console.Out,
        Error = Console.Error,
        In = Console.In,
        OutIsTerminal = !Console.IsOutputRedirected,
        ErrorIsTerminal = !Console.IsErrorRedirected,
        CanAsk = !Console.IsInputRedirected && !Console.IsErrorRedirected,
        Width = WidthOfConsole(),
        Environment = System.Environment.GetEnvironmentVariable,
        // No proxy and no redirect: the token goes to the named server or nowhere.
        Transport = () => new SocketsHttpHandler
        {
            AllowAutoRedirect = false, UseProxy = false, UseCookies = false,
            ConnectCallback = static (context, cancel) => LocalStream.ConnectAsync(context.DnsEndPoint, cancel),
        },
        Delay = Task.Delay,
    };

    private static int WidthOfConsole()
    {
        try
        {
            return Console.IsOutputRedirected || Console.WindowWidth < 40 ? 80 : Console.WindowWidth;
        }
        catch (IOException)
        {
            return 80;
        }
    }
}
