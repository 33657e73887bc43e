using System.CommandLine;
using BlockServer.Client;

namespace BlockServer.Pfcli;

/// <summary>The options that every command takes.</summary>
public sealed class GeneralOptions
{
    /// <summary>Where the daemon listens when nobody says otherwise.</summary>
    public const string DefaultServer = "http://127.0.0.1:49180";

    /// <summary>--server URL.</summary>
    public Option<string> Server { get; } = new("--server")
    {
        Description = "blockd's admin address, or unix:/PATH", HelpName = "URL", Recursive = true, DefaultValueFactory = _ => DefaultServer,
    };

    /// <summary>--token-file FILE.</summary>
    public Option<string?> TokenFile { get; } = new("--token-file")
    {
        Description = "File with blockd's admin token (default: $BLOCKD_TOKEN_FILE, else blockd/admin.token in $XDG_DATA_HOME)",
        HelpName = "FILE",
        Recursive = true,
    };

    /// <summary>--ca-file FILE.</summary>
    public Option<string?> CaFile { get; } = new("--ca-file")
    {
        Description = "Authority (PEM) that signed the certificate of an https server (default: $BLOCKD_CA_FILE, else the system's authorities)",
        HelpName = "FILE",
        Recursive = true,
    };

    /// <summary>--json.</summary>
    public Option<bool> Json { get; } = new("--json") { Description = "Write JSON with stable names, for scripts", Recursive = true };

    /// <summary>--yes.</summary>
    public Option<bool> Yes { get; } = new("--yes", "-y") { Description = "Do not ask before destroying something", Recursive = true };
}

/// <summary>What a running command works with.</summary>
public sealed class CommandContext(CliHost host, ParseResult parsed, AdminClient client, BlockdClient blockd, Printer printer, bool yes, string? filesSocket)
{
    /// <summary>Where the daemon of this machine takes files that are handed over; null: it is not of this machine.</summary>
    public string? FilesSocket => filesSocket;

    /// <summary>The world around.</summary>
    public CliHost Host => host;

    /// <summary>The daemon.</summary>
    public AdminClient Client => client;

    /// <summary>The daemon's append-only volumes.</summary>
    public BlockdClient Blockd => blockd;

    /// <summary>The output.</summary>
    public Printer Printer => printer;

    /// <summary>The value of an option.</summary>
    public T? Get<T>(Option<T> option) => parsed.GetValue(option);

    /// <summary>The value of an argument.</summary>
    public T? Get<T>(Argument<T> argument) => parsed.GetValue(argument);

    /// <summary>True when the option stands on the command line.</summary>
    public bool IsGiven(Option option) => parsed.GetResult(option) is { Implicit: false };

    /// <summary>Asks before something is destroyed; refuses when nobody can be asked and --yes is missing.</summary>
    public void Confirm(string what)
    {
        if (yes) return;
        if (!host.CanAsk) throw new CliException($"{what} needs --yes when nobody can be asked");
        host.Error.Write($"{Printer.Clean(what)}: are you sure? [y/N] ");
        host.Error.Flush();
        string answer = (host.In.ReadLine() ?? "").Trim();
        if (!answer.Equals("y", StringComparison.OrdinalIgnoreCase) && !answer.Equals("yes", StringComparison.OrdinalIgnoreCase))
            throw new CliException("not confirmed, nothing was changed");
    }
}

/// <summary>Collects the commands and gives each its context when it runs.</summary>
public sealed class CommandSet(RootCommand root, CliHost host, GeneralOptions general)
{
    private readonly Dictionary<Command, string[]> _examples = [];

    /// <summary>What the help of a command shows behind its options.</summary>
    public IReadOnlyList<string> ExamplesOf(Command command) => _examples.GetValueOrDefault(command, []);

    /// <summary>Adds a command. <paramref name="run"/> answers the exit code; <paramref name="examples"/> stand in its help.</summary>
    public void Add(
        string name, string description, IReadOnlyList<Symbol> symbols, Func<CommandContext, CancellationToken, Task<int>> run,
        params string[] examples)
    {
        var command = new Command(name, description);
        _examples.Add(command, examples.Length > 0 ? examples : Examples.Of(name));
        foreach (Symbol symbol in symbols)
        {
            if (symbol is Option option) command.Options.Add(option);
            else command.Arguments.Add((Argument)symbol);
        }

        command.SetAction((parsed, cancel) => RunAsync(parsed, run, cancel));
        root.Subcommands.Add(command);
    }

    /// <summary>Adds a command that asks no daemon.</summary>
    public void AddLocal(string name, string description, IReadOnlyList<Symbol> symbols, Func<CliHost, ParseResult, int> run, params string[] examples)
    {
        Add(name, description, symbols, (_, _) => Task.FromResult(ExitCode.Done), examples);
        root.Subcommands.First(c => c.Name == name).SetAction(parsed => run(host, parsed));
    }

    private async Task<int> RunAsync(
        ParseResult parsed, Func<CommandContext, CancellationToken, Task<int>> run, CancellationToken cancel)
    {
        string given = parsed.GetValue(general.Server)!;
        ServerWay way = ServerWay.Of(given, parsed.GetValue(general.CaFile) ?? host.Environment("BLOCKD_CA_FILE"), host);
        string tokenFile = parsed.GetValue(general.TokenFile) ?? AccessToken.DefaultPath(host.Environment);
        string token = AccessToken.Read(tokenFile);
        // The daemon's socket for files lies beside its token.
        string? files = host.HandsFiles && way.Server.IsLoopback && Path.GetDirectoryName(Path.GetFullPath(tokenFile)) is { } folder ? Path.Combine(folder, "files.sock") : null;
        var printer = new Printer(host, parsed.GetValue(general.Json));
        using var client = new AdminClient(way.Server, token, way.Transport(), given);
        using var blockd = new BlockdClient(way.Server, token, way.Transport());
        return await run(new CommandContext(host, parsed, client, blockd, printer, parsed.GetValue(general.Yes), files), cancel);
    }
}
