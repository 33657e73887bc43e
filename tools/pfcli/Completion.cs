using System.CommandLine;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>
/// Shell completion: the scripts, and what they ask for while somebody types: <c>pfcli __complete INDEX WORD...</c>, where the
/// words are the whole line and INDEX is the one that is being typed. It never fails and never says anything else.
/// </summary>
public static class Completion
{
    /// <summary>The hidden first word.</summary>
    public const string Verb = "__complete";

    // Who presses a key does not wait longer for the daemon.
    private static readonly TimeSpan s_patience = TimeSpan.FromMilliseconds(700);

    private const string Bash = """
        # pfcli for bash: source <(pfcli completion bash)
        _pfcli() {
            local IFS=$'\n'
            COMPREPLY=($(pfcli __complete "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null))
        }
        complete -o default -F _pfcli pfcli
        """;

    private const string Zsh = """
        #compdef pfcli
        # pfcli for zsh: source <(pfcli completion zsh)
        _pfcli() {
            local -a found
            found=(${(f)"$(pfcli __complete $((CURRENT - 1)) "${words[@]}" 2>/dev/null)"})
            if (( ${#found} )); then compadd -a found; else _files; fi
        }
        compdef _pfcli pfcli
        """;

    private const string Fish = """
        # pfcli for fish: pfcli completion fish | source
        function __pfcli_complete
            set -l before (commandline -opc)
            pfcli __complete (count $before) $before (commandline -ct) 2>/dev/null
        end
        complete -c pfcli -a '(__pfcli_complete)'
        """;

    internal static void AddTo(CommandSet commands)
    {
        var shell = new Argument<string>("shell") { Description = "bash, zsh or fish" };
        shell.AcceptOnlyFromAmong("bash", "zsh", "fish");
        commands.AddLocal("completion", "Writes what completes pfcli's words in a shell", [shell], (host, parsed) =>
        {
            host.Out.WriteLine(parsed.GetValue(shell) switch { "bash" => Bash, "zsh" => Zsh, _ => Fish });
            return ExitCode.Done;
        },
        "pfcli completion bash > ~/.local/share/bash-completion/completions/pfcli",
        "pfcli completion zsh > ~/.zfunc/_pfcli",
        "pfcli completion fish > ~/.config/fish/completions/pfcli.fish");
    }

    /// <summary>Writes the words that fit, one a line.</summary>
    public static async Task<int> RunAsync(RootCommand root, GeneralOptions general, CliHost host, string[] args, CancellationToken cancel)
    {
        if (args.Length < 2 || !int.TryParse(args[0], out int index) || index < 1) return ExitCode.Done;
        string[] line = args[1..];
        string typed = index < line.Length ? line[index] : "";
        string[] before = line[1..Math.Min(index, line.Length)];
        IEnumerable<string> words = await WordsAsync(root, general, host, before, typed, cancel);
        foreach (string word in words.Where(w => w.StartsWith(typed, StringComparison.Ordinal)).Distinct().Order(StringComparer.Ordinal))
            host.Out.WriteLine(Printer.Clean(word));
        return ExitCode.Done;
    }

    private static async Task<IEnumerable<string>> WordsAsync(
        RootCommand root, GeneralOptions general, CliHost host, string[] before, string typed, CancellationToken cancel)
    {
        Command? command = before.Select(w => root.Subcommands.FirstOrDefault(c => c.Name == w)).FirstOrDefault(c => c is not null);
        IEnumerable<Option> options = (command?.Options ?? []).Concat(root.Options.Where(o => command is null || o.Recursive)).Where(o => !o.Hidden);
        Option? asked = before.Length == 0 ? null : options.FirstOrDefault(o => o.Name == before[^1] || o.Aliases.Contains(before[^1]));
        if (asked is not null && asked.Arity.MinimumNumberOfValues > 0)
        {
            string[] known = Static(asked);
            return known.Length > 0 ? known : await LiveAsync(asked.Name, general, host, before, cancel);
        }

        if (typed.StartsWith('-')) return options.SelectMany(o => o.Aliases.Append(o.Name)).Where(n => n.StartsWith("--", StringComparison.Ordinal));
        if (command is null) return root.Subcommands.Where(c => !c.Hidden).Select(c => c.Name);
        if (command.Arguments.Count == 0) return [];
        string[] words = Static(command.Arguments[0]);
        return words.Length > 0 ? words : await LiveAsync(command.Arguments[0].Name, general, host, before, cancel);
    }

    private static string[] Static(Symbol symbol) => [.. symbol.GetCompletions(System.CommandLine.Completions.CompletionContext.Empty).Select(c => c.Label)];

    private static async Task<IEnumerable<string>> LiveAsync(
        string what, GeneralOptions general, CliHost host, string[] before, CancellationToken cancel)
    {
        if (what is not ("--volume_name" or "--from" or "--snapshot_name" or "--target" or "--disk" or "disk" or "task" or "--policy_name" or "session")) return [];
        try
        {
            using var patience = CancellationTokenSource.CreateLinkedTokenSource(cancel);
            patience.CancelAfter(s_patience);
            CancellationToken stop = patience.Token;
            using var client = new AdminClient(
                CommandSet.ServerOf(After(before, general.Server.Name) ?? GeneralOptions.DefaultServer),
                AccessToken.Read(After(before, general.TokenFile.Name) ?? AccessToken.DefaultPath(host.Environment)), host.Transport());
            switch (what)
            {
                case "--volume_name" or "--from":
                    return (await client.GetAsync("v1/volumes", ApiJson.Default.VolumeList, stop)).Volumes.Select(v => v.Name);
                case "--snapshot_name" when (After(before, "-v") ?? After(before, "--volume_name")) is { } volume:
                    return (await client.GetAsync(Inputs.PathOf(volume) + "/snapshots", ApiJson.Default.SnapshotList, stop)).Snapshots.Select(s => s.Name);
                case "--target":
                    return (await client.GetAsync("v1/targets", ApiJson.Default.TargetList, stop)).Targets.Select(t => t.Name);
                case "--disk" or "disk":
                    return (await client.GetAsync("v1/disks", ApiJson.Default.DiskList, stop)).Disks.Select(d => d.Name);
                case "task":
                    return (await client.GetAsync("v1/tasks", ApiJson.Default.TaskList, stop)).Tasks.Select(t => t.Id.ToString(System.Globalization.CultureInfo.InvariantCulture));
                case "--policy_name":
                    return (await client.GetAsync("v1/policies", ApiJson.Default.PolicyList, stop)).Policies.Select(p => p.Name);
                case "session":
                    return (await client.GetAsync("v1/sessions", ApiJson.Default.SessionList, stop)).Sessions.Select(s => s.Id);
                default:
                    return [];
            }
        }
        catch (Exception e) when (e is CliException or OperationCanceledException)
        {
            return []; // a shell shows nothing, rather than a reason in the middle of a line
        }
    }

    private static string? After(string[] words, string option)
    {
        int at = Array.LastIndexOf(words, option);
        return at >= 0 && at + 1 < words.Length ? words[at + 1] : null;
    }
}
