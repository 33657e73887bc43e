using System.Globalization;
using BlockServer.Pfcli;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>pfcli in this process against a daemon in this process.</summary>
internal static class ApiPfcli
{
    /// <summary>Runs a command that must end well; what it said.</summary>
    public static async Task<string> DoneAsync(this ApiServer server, params string[] arguments)
    {
        (int exit, string said, string error) = await server.RunAsync(arguments);
        Assert.True(exit == 0, $"{string.Join(' ', arguments)}: {exit} {error}");
        return said;
    }

    /// <summary>Runs a command that must be refused with that code.</summary>
    public static async Task RefusedAsync(this ApiServer server, string code, params string[] arguments)
    {
        (int exit, _, string error) = await server.RunAsync(arguments);
        Assert.True(exit == 1 && error.Contains($"[{code}]", StringComparison.Ordinal), $"{string.Join(' ', arguments)}: {exit} {error}");
    }

    /// <summary>Runs a command.</summary>
    public static Task<(int Exit, string Said, string Error)> RunAsync(this ApiServer server, params string[] arguments) =>
        RunAsync("http://127.0.0.1:" + server.Port.ToString(CultureInfo.InvariantCulture), server.Test.Daemon.TokenPath, arguments);

    /// <summary>Runs a command against the daemon at that address.</summary>
    public static async Task<(int Exit, string Said, string Error)> RunAsync(
        string url, string tokenPath, IReadOnlyList<string> arguments, CancellationToken cancel = default)
    {
        using var output = new StringWriter();
        using var error = new StringWriter();
        int exit = await CommandLine.RunAsync(
            ["--server", url, "--token-file", tokenPath, .. arguments],
            new CliHost
            {
                Out = output, Error = error, In = new StringReader(""), Environment = _ => null, Transport = () => new SocketsHttpHandler(), Delay = Task.Delay,
            },
            cancel);
        return (exit, output.ToString(), error.ToString());
    }
}
