using System.CommandLine;

namespace BlockServer.Pfcli;

/// <summary>Completes unique prefixes of long options ("--rep" for "--rep_num") before the line is parsed.</summary>
public static class PrefixExpander
{
    /// <summary>Expands <paramref name="args"/>; an ambiguous prefix is a usage error, an unknown one is left to the parser.</summary>
    public static string[] Expand(RootCommand root, IReadOnlyList<string> args)
    {
        var expanded = new List<string>(args.Count);
        Command command = root;
        for (int i = 0; i < args.Count; i++)
        {
            string arg = args[i];
            if (arg == "--")
            {
                expanded.AddRange(args.Skip(i));
                break;
            }

            if (!arg.StartsWith('-'))
            {
                if (ReferenceEquals(command, root))
                    command = root.Subcommands.FirstOrDefault(c => c.Name == arg) ?? command;
                expanded.Add(arg);
                continue;
            }

            string full = arg.StartsWith("--", StringComparison.Ordinal) ? ExpandOne(root, command, arg) : arg;
            expanded.Add(full);
            // The word after an option that takes one is a value, whatever it looks like.
            Option? option = OptionsOf(root, command).FirstOrDefault(o => o.Name == full || o.Aliases.Contains(full));
            if (option is not null && option.Arity.MinimumNumberOfValues > 0 && i + 1 < args.Count) expanded.Add(args[++i]);
        }

        return [.. expanded];
    }

    private static string ExpandOne(RootCommand root, Command command, string arg)
    {
        int cut = arg.IndexOf('=', StringComparison.Ordinal);
        string name = cut < 0 ? arg : arg[..cut];
        var names = OptionsOf(root, command).SelectMany(o => o.Aliases.Append(o.Name))
            .Where(n => n.StartsWith("--", StringComparison.Ordinal)).Distinct().ToArray();
        if (names.Contains(name)) return arg;
        string[] found = [.. names.Where(n => n.StartsWith(name, StringComparison.Ordinal)).Order(StringComparer.Ordinal)];
        return found.Length switch
        {
            0 => arg,
            1 => found[0] + (cut < 0 ? "" : arg[cut..]),
            _ => throw new CliException($"option {name} is ambiguous: {string.Join(", ", found)}", ExitCode.Usage),
        };
    }

    private static IEnumerable<Option> OptionsOf(RootCommand root, Command command) =>
        ReferenceEquals(root, command) ? root.Options : command.Options.Concat(root.Options.Where(o => o.Recursive));
}
