using System.CommandLine;
using System.CommandLine.Invocation;

namespace BlockServer.Pfcli;

/// <summary>The help of a command with its examples behind it.</summary>
internal sealed class HelpWithExamples(SynchronousCommandLineAction plain, CommandSet commands, CliHost host) : SynchronousCommandLineAction
{
    /// <inheritdoc/>
    public override bool ClearsParseErrors => plain.ClearsParseErrors;

    /// <inheritdoc/>
    public override int Invoke(ParseResult parseResult)
    {
        int code = plain.Invoke(parseResult);
        IReadOnlyList<string> examples = commands.ExamplesOf(parseResult.CommandResult.Command);
        if (examples.Count == 0) return code;
        host.Out.WriteLine("Examples:");
        foreach (string example in examples) host.Out.WriteLine("  " + example);
        host.Out.WriteLine();
        return code;
    }
}
