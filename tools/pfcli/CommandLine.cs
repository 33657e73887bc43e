using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;

namespace BlockServer.Pfcli;

/// <summary>The whole command line: its options, its commands, and what becomes of their failures.</summary>
public static class CommandLine
{
    /// <summary>Runs one command line; the result is the process's exit code. Throws nothing.</summary>
    public static async Task<int> RunAsync(IReadOnlyList<string> args, CliHost host, CancellationToken cancel = default)
    {
        try
        {
            var general = new GeneralOptions();
            (RootCommand root, _) = Build(host, general);
            if (args is [Completion.Verb, ..]) return await Completion.RunAsync(root, general, host, [.. args.Skip(1)], cancel);
            // An argument that begins with @ is a name like any other, not a file to read arguments from.
            ParseResult parsed = root.Parse(
                PrefixExpander.Expand(root, args), new ParserConfiguration { ResponseFileTokenReplacer = null });
            if (parsed.Action is ParseErrorAction or null)
            {
                throw new CliException(ErrorOf(root, parsed) + "; see " + HelpOf(root, parsed), ExitCode.Usage);
            }

            int code = await parsed.InvokeAsync(
                new InvocationConfiguration
                {
                    Output = host.Out,
                    Error = host.Error,
                    EnableDefaultExceptionHandler = false,
                    ProcessTerminationTimeout = null,
                },
                cancel);
            await host.Out.FlushAsync(CancellationToken.None);
            return code;
        }
        catch (CliException e)
        {
            return Fail(host, e.Message, e.Exit);
        }
        catch (OperationCanceledException)
        {
            return Fail(host, "interrupted", ExitCode.Failed);
        }
        catch (IOException)
        {
            // Whoever read our output has gone (pfcli list_volume | head): there is nobody to tell.
            return ExitCode.Failed;
        }
#pragma warning disable CA1031 // Whatever went wrong, an operator gets one line and an exit code, never a stack trace.
        catch (Exception e)
#pragma warning restore CA1031
        {
            return Fail(host, $"a fault in pfcli itself ({e.GetType().Name}: {e.Message}); please report it", ExitCode.Failed);
        }
    }

    /// <summary>All commands, with the examples of each.</summary>
    public static (RootCommand Root, CommandSet Commands) Build(CliHost host, GeneralOptions general)
    {
        var root = new RootCommand("Administers blockd, the block storage server.");
        root.Options.Add(general.Server);
        root.Options.Add(general.TokenFile);
        root.Options.Add(general.CaFile);
        root.Options.Add(general.Json);
        root.Options.Add(general.Yes);
        var commands = new CommandSet(root, host, general);
        VolumeCommands.AddTo(commands);
        SnapshotCommands.AddTo(commands);
        CloneCommands.AddTo(commands);
        AofCommands.AddTo(commands);
        ImageCommands.AddTo(commands);
        PolicyCommands.AddTo(commands);
        ExportImageCommand.AddTo(commands);
        ImportImageCommand.AddTo(commands);
        ExportCommands.AddTo(commands);
        DiskCommands.AddTo(commands);
        CapacityCommand.AddTo(commands);
        MoveCommands.AddTo(commands);
        ScrubCommands.AddTo(commands);
        SessionCommands.AddTo(commands);
        TargetCommands.AddTo(commands);
        ReservationCommands.AddTo(commands);
        TaskCommands.AddTo(commands);
        NodeCommands.AddTo(commands);
        WatchCommand.AddTo(commands);
        DeclaredCommands.AddTo(commands);
        SupportCommand.AddTo(commands);
        Completion.AddTo(commands);
        TokenCommands.AddTo(commands);
        TenantCommands.AddTo(commands);
        AuditCommands.AddTo(commands);
        TopCommand.AddTo(commands);
        QosCommands.AddTo(commands);
        EventCommands.AddTo(commands);
        foreach (HelpOption option in root.Options.OfType<HelpOption>())
            option.Action = new HelpWithExamples((SynchronousCommandLineAction)option.Action!, commands, host);
        return (root, commands);
    }

    private static string ErrorOf(RootCommand root, ParseResult parsed)
    {
        if (!ReferenceEquals(parsed.CommandResult.Command, root))
            return parsed.Errors.Count > 0 ? parsed.Errors[0].Message.TrimEnd('.') : "that is not a whole command";
        if (parsed.UnmatchedTokens.Count == 0) return "no command was given";
        string typed = parsed.UnmatchedTokens[0];
        if (typed.StartsWith('-')) return $"there is no option '{typed}'";
        string[] near = [.. root.Subcommands.Where(c => !c.Hidden).Select(c => (c.Name, Distance: Distance(typed, c.Name)))
            .Where(c => c.Distance <= Math.Min(NearMax, typed.Length / 3) || c.Name.StartsWith(typed, StringComparison.Ordinal))
            .OrderBy(c => c.Distance).ThenBy(c => c.Name, StringComparer.Ordinal).Take(NamesMax).Select(c => c.Name)];
        return $"there is no command '{typed}'" + (near.Length == 0 ? "" : "; did you mean " + string.Join(", ", near) + "?");
    }

    // So many letters may be wrong, and so many names are offered: one line is all that is read.
    private const int NearMax = 3, NamesMax = 4;

    // Letters to put in, take out or change.
    private static int Distance(string typed, string name)
    {
        if (typed.Length > name.Length + NearMax) return int.MaxValue;
        int[] row = [.. Enumerable.Range(0, name.Length + 1)];
        for (int i = 1; i <= typed.Length; i++)
        {
            int corner = row[0];
            row[0] = i;
            for (int j = 1; j <= name.Length; j++)
            {
                int changed = corner + (typed[i - 1] == name[j - 1] ? 0 : 1);
                corner = row[j];
                row[j] = Math.Min(changed, Math.Min(row[j], row[j - 1]) + 1);
            }
        }

        return row[name.Length];
    }

    private static string HelpOf(RootCommand root, ParseResult parsed) =>
        ReferenceEquals(parsed.CommandResult.Command, root) ? "pfcli --help" : $"pfcli {parsed.CommandResult.Command.Name} --help";

    private static int Fail(CliHost host, string message, int code)
    {
        try
        {
            host.Error.WriteLine("pfcli: " + Printer.Clean(message));
        }
        catch (IOException)
        {
            // Standard error is closed too; the exit code still says it.
        }

        return code;
    }
}
