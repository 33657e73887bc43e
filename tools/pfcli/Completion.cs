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
        # bash parts words at : and =, names and addresses hold them: the words are taken from the line, and of what fits only
        # the piece is handed back that bash will replace.
        _pfcli() {
            local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} piece=${COMP_WORDS[COMP_CWORD]} words cur head
            read -ra words <<< "$line"
            [[ $line == *[[:space:]] ]] && words+=("")
            cur=${words[${#words[@]}-1]}
            case $piece in : | =) piece= ;; esac
            head=${cur%"$piece"}
            IFS=$'\n'
            COMPREPLY=($(pfcli __complete "$((${#words[@]} - 1))" "${words[@]}" 2>/dev/null))
            COMPREPLY=("${COMPREPLY[@]#"$head"}")
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
        Option? Named(string word) => options.FirstOrDefault(o => o.Name == word || o.Aliases.Contains(word));
        if (before.Length > 0 && Named(before[^1]) is { } asked && asked.Arity.MinimumNumberOfValues > 0) return await ValuesAsync(asked);
        // --option=value
        if (typed.StartsWith("--", StringComparison.Ordinal) && typed.IndexOf('=', StringComparison.Ordinal) is > 0 and var cut && Named(typed[..cut]) is { } joined)
            return (await ValuesAsync(joined)).Select(v => typed[..(cut + 1)] + v);
        if (typed.StartsWith('-')) return options.SelectMany(o => o.Aliases.Append(o.Name)).Where(n => n.StartsWith("--", StringComparison.Ordinal));
        if (command is null) return root.Subcommands.Where(c => !c.Hidden).Select(c => c.Name);
        if (command.Arguments.Count == 0) return [];
        string[] words = Static(command.Arguments[0]);
        return words.Length > 0 ? words : await LiveAsync(WhatOf(command, command.Arguments[0].Name), general, host, before, cancel);

        async Task<IEnumerable<string>> ValuesAsync(Option option)
        {
            string[] known = Static(option);
            return known.Length > 0 ? known : await LiveAsync(WhatOf(command, option.Name), general, host, before, cancel);
        }
    }

    /// <summary>Kinds of things whose names the daemon tells.</summary>
    private enum Live
    {
        None, Volume, Log, Snapshot, Target, Disk, Task, Policy, Session, Tenant, Token, Node, Initiator,
    }

    // What a word of a command names. New names (rename_volume -n, create_volume -v) are nobody's to offer.
    private static Live WhatOf(Command? command, string word) => (command?.Name, word) switch
    {
        ("create_volume" or "aof_create" or "create_pfs2", "--volume_name") => Live.None,
        ("create_snapshot", "--snapshot_name") => Live.None,
        ("create_target", "--target") or ("create_policy", "--policy_name") or ("create_token", "--token_name") => Live.None,
        ("create_tenant", "--tenant") => Live.None,
        ("watch", "--from") => Live.None,
        ("diff_snapshot", "--from" or "--to") or (_, "--base" or "--snapshot_name") => Live.Snapshot,
        (['a', 'o', 'f', '_', ..], "--volume_name") => Live.Log,
        (_, "--volume_name" or "--from") => Live.Volume,
        (_, "--target") => Live.Target,
        (_, "--disk" or "disk") => Live.Disk,
        (_, "task") => Live.Task,
        (_, "--policy_name") => Live.Policy,
        (_, "session") => Live.Session,
        (_, "--tenant") => Live.Tenant,
        (_, "--token_name") => Live.Token,
        (_, "--node" or "--host_id" or "node") => Live.Node,
        ("deny_initiator", "--initiator") => Live.Initiator,
        _ => Live.None,
    };

    private static string[] Static(Symbol symbol) => [.. symbol.GetCompletions(System.CommandLine.Completions.CompletionContext.Empty).Select(c => c.Label)];

    private static async Task<IEnumerable<string>> LiveAsync(
        Live what, GeneralOptions general, CliHost host, string[] before, CancellationToken cancel)
    {
        if (what == Live.None) return [];
        try
        {
            using var patience = CancellationTokenSource.CreateLinkedTokenSource(cancel);
            patience.CancelAfter(s_patience);
            CancellationToken stop = patience.Token;
            var way = ServerWay.Of(
                After(before, general.Server.Name) ?? GeneralOptions.DefaultServer, After(before, general.CaFile.Name) ?? host.Environment("BLOCKD_CA_FILE"), host);
            using var client = new AdminClient(
                way.Server, AccessToken.Read(After(before, general.TokenFile.Name) ?? AccessToken.DefaultPath(host.Environment)), way.Transport());
            switch (what)
            {
                case Live.Volume:
                    return (await client.GetAsync("v1/volumes", ApiJson.Default.VolumeList, stop)).Volumes.Select(v => v.Name);
                case Live.Log:
                    return (await client.GetAsync("v1/volumes", ApiJson.Default.VolumeList, stop)).Volumes.Where(v => v.AppendOnly).Select(v => v.Name);
                case Live.Snapshot when (After(before, "-v") ?? After(before, "--volume_name")) is { } volume:
                    return (await client.GetAsync(Inputs.PathOf(volume) + "/snapshots", ApiJson.Default.SnapshotList, stop)).Snapshots.Select(s => s.Name);
                case Live.Target:
                    return (await client.GetAsync("v1/targets", ApiJson.Default.TargetList, stop)).Targets.Select(t => t.Name);
                case Live.Disk:
                    return (await client.GetAsync("v1/disks", ApiJson.Default.DiskList, stop)).Disks.Select(d => d.Name);
                case Live.Task:
                    return (await client.GetAsync("v1/tasks", ApiJson.Default.TaskList, stop)).Tasks.Select(t => t.Id.ToString(System.Globalization.CultureInfo.InvariantCulture));
                case Live.Policy:
                    return (await client.GetAsync("v1/policies", ApiJson.Default.PolicyList, stop)).Policies.Select(p => p.Name);
                case Live.Session:
                    return (await client.GetAsync("v1/sessions", ApiJson.Default.SessionList, stop)).Sessions.Select(s => s.Id);
                case Live.Tenant:
                    return (await client.GetAsync("v1/tenants", ApiJson.Default.TenantList, stop)).Tenants.Select(t => t.Name);
                case Live.Token:
                    return (await client.GetAsync("v1/tokens", ApiJson.Default.TokenList, stop)).Tokens.Select(t => t.Name);
                case Live.Node:
                    return [(await client.GetAsync("v1/node", ApiJson.Default.NodeInfo, stop)).Id];
                case Live.Initiator when (After(before, "-t") ?? After(before, "--target")) is { } target:
                    return (await client.GetAsync("v1/targets/" + Uri.EscapeDataString(target), ApiJson.Default.TargetInfo, stop)).Access.Select(a => a.Initiator);
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
        if (words.LastOrDefault(w => w.StartsWith(option + "=", StringComparison.Ordinal)) is { } joined) return joined[(option.Length + 1)..];
        int at = Array.LastIndexOf(words, option);
        return at >= 0 && at + 1 < words.Length ? words[at + 1] : null;
    }
}
