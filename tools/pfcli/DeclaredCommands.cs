using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using System.Text.Json.Nodes;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>The declared state: one file says what is to be there, and the daemon sees to it.</summary>
internal static class DeclaredCommands
{
    private const long FileBytesMax = 1 << 20;

    private static readonly string[] Headings = ["Kind", "Name", "Status", "Difference", "Reason"];
    private static readonly TimeSpan LookEvery = TimeSpan.FromMilliseconds(250);
    private static readonly JsonDocumentOptions Lenient = new() { CommentHandling = JsonCommentHandling.Skip, AllowTrailingCommas = true };

    public static void AddTo(CommandSet commands)
    {
        AddApply(commands);
        commands.Add("show_declared", "Shows what is declared, what differs from it, and why", [], async (context, cancel) =>
        {
            DeclaredInfo info = await context.Client.GetAsync("v1/declared", ApiJson.Default.DeclaredInfo, cancel);
            if (context.Printer.TryJson(info, ApiJson.Default.DeclaredInfo)) return ExitCode.Done;
            context.Printer.Line(info.Revision == 0 ? "Nothing is declared." : info.Converged ? "Everything is as it is declared." : "Not everything is as it is declared.");
            if (info.Items.Count > 0) context.Printer.Table(Headings, [.. info.Items.Select(Row)]);
            return ExitCode.Done;
        },
        "pfcli show_declared",
        "pfcli show_declared --json                                # desired and current, side by side");
        commands.Add("forget_declared", "Declares nothing any more; everything stays as it is", [], async (context, cancel) =>
        {
            context.Confirm("forgetting what is declared (drift is not repaired any more)");
            await context.Client.DeleteAsync("v1/declared", cancel);
            context.Printer.Line("Nothing is declared any more.");
            return ExitCode.Done;
        },
        "pfcli forget_declared");
    }

    private static void AddApply(CommandSet commands)
    {
        var file = new Option<string>("--file", "-f") { Description = "JSON file with volumes, targets and policies (docs/operating.md); - is standard input", HelpName = "FILE", Required = true };
        var dryRun = new Option<bool>("--dry-run") { Description = "Only show what would be done" };
        var prune = new Option<bool>("--prune") { Description = "Delete volumes, targets and policies that the file does not name; asks first" };
        var timeout = new Option<int>("--timeout") { Description = "Wait at most so many seconds until everything is as declared", HelpName = "SECONDS", DefaultValueFactory = _ => 60 };
        var waiting = new Waiting(isHabit: true, "Only declare it; look with show_declared");
        commands.Add("apply", "Declares what is to be there; the daemon brings it about and keeps it so", [file, dryRun, prune, timeout, .. waiting.Options], async (context, cancel) =>
        {
            DeclaredState state = Read(context, context.Get(file)!);
            var request = new ApplyDeclared(state);
            DeclaredInfo first = await PutAsync(context, request, "?dryRun=true", cancel);
            IReadOnlyList<DeclaredName> gone = context.Get(prune) ? first.Undeclared : [];
            if (!context.Printer.Json)
            {
                foreach (DeclaredItem item in first.Items.Where(i => i.Status != "current"))
                {
                    foreach (string text in item.Differences)
                        context.Printer.Line($"{(item.Current is null ? '+' : '~')} {item.Kind} {item.Name}: {text}{(item.Status == "impossible" ? $" - impossible: {item.Reason}" : "")}");
                }

                foreach (DeclaredName one in gone) context.Printer.Line($"- {one.Kind} {one.Name}: delete it, with all its data");
            }

            if (context.Get(dryRun))
            {
                if (context.Printer.TryJson(first, ApiJson.Default.DeclaredInfo)) return ExitCode.Done;
                if (first.Converged && gone.Count == 0) context.Printer.Line("Everything is as the file says; nothing would be done.");
                return ExitCode.Done;
            }

            if (gone.Count > 0) context.Confirm($"deleting {string.Join(", ", gone.Select(g => $"{g.Kind} {g.Name}"))}, which the file does not name");
            DeclaredInfo now = await PutAsync(context, request with { Revision = first.Revision, Prune = gone }, "", cancel);
            DeclaredItem[] pruned = [.. now.Items.Where(i => i.Status is "pruned" or "refused")];
            if (waiting.IsWanted(context)) now = await FollowAsync(context, now, TimeSpan.FromSeconds(context.Get(timeout)), cancel);
            return Conclude(context, now, pruned, waiting.IsWanted(context));
        },
        "pfcli apply -f cluster.json --dry-run",
        "pfcli apply -f cluster.json",
        "pfcli apply -f cluster.json --prune                       # and delete what it does not name");
    }

    private static Task<DeclaredInfo> PutAsync(CommandContext context, ApplyDeclared request, string query, CancellationToken cancel) =>
        context.Client.ChangeAsync(HttpMethod.Put, "v1/declared" + query, request, ApiJson.Default.ApplyDeclared, ApiJson.Default.DeclaredInfo, cancel);

    // Until nothing is left that could still come about by itself.
    private static async Task<DeclaredInfo> FollowAsync(CommandContext context, DeclaredInfo now, TimeSpan patience, CancellationToken cancel)
    {
        long begun = context.Host.Clock.GetTimestamp();
        while (now.Items.Any(i => i.Status is "differs" or "waiting") && context.Host.Clock.GetElapsedTime(begun) < patience)
        {
            await context.Host.Delay(LookEvery, cancel);
            now = await context.Client.GetAsync("v1/declared", ApiJson.Default.DeclaredInfo, cancel);
        }

        return now;
    }

    private static int Conclude(CommandContext context, DeclaredInfo now, DeclaredItem[] pruned, bool hasWaited)
    {
        bool hasRefused = pruned.Any(p => p.Status == "refused");
        DeclaredItem[] left = [.. now.Items.Where(i => i.Status is not ("current" or "pruned" or "refused")), .. pruned.Where(p => p.Status == "refused")];
        if (!context.Printer.TryJson(now, ApiJson.Default.DeclaredInfo) && left.Length > 0) context.Printer.Table(Headings, [.. left.Select(Row)]);
        bool isImpossible = left.Any(i => i.Status is "impossible" or "waiting");
        if (hasRefused || isImpossible || (hasWaited && left.Length > 0))
        {
            DeclaredItem one = left.FirstOrDefault(i => i.Reason is not null) ?? left[0];
            throw new CliException(string.Create(CultureInfo.InvariantCulture,
                $"{left.Length} of the declared things are not so, the first: {one.Kind} {one.Name}: {one.Reason ?? one.Status}; see pfcli show_declared"));
        }

        context.Printer.Line(left.Length == 0 ? "Everything is as the file says." : "Declared; see pfcli show_declared.");
        return ExitCode.Done;
    }

    private static string[] Row(DeclaredItem i) => [i.Kind, i.Name, i.Status, string.Join("; ", i.Differences), i.Reason ?? ""];

    /// <summary>The file: the API's words, with comments, and <c>"size": "128g"</c> instead of <c>sizeBytes</c> where one likes.</summary>
    private static DeclaredState Read(CommandContext context, string path)
    {
        try
        {
            string text = path == "-" ? context.Host.In.ReadToEnd() : TextOf(path);
            if (JsonNode.Parse(text, null, Lenient) is not JsonObject root) throw new CliException($"'{path}' holds no JSON object");
            foreach (JsonObject volume in (root["volumes"] as JsonArray ?? []).OfType<JsonObject>())
            {
                if (volume["size"] is not { } size) continue;
                if (size.GetValueKind() != JsonValueKind.String || !SizeText.TryParse(size.GetValue<string>(), out ulong bytes, out string reason))
                    throw new CliException($"'{path}': a size is a text like \"128g\", and {size.ToJsonString()} is none");
                volume.Remove("size");
                volume["sizeBytes"] = bytes;
            }

            return root.Deserialize(ApiJson.Default.DeclaredState) ?? throw new CliException($"'{path}' declares nothing");
        }
        catch (JsonException e)
        {
            string where = e.Path is { Length: > 1 } at ? $" at {at}" : e.LineNumber is { } line ? $" in line {line + 1}" : "";
            throw new CliException($"'{path}' is not what can be declared{where}; docs/operating.md shows the form", inner: e);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"'{path}' cannot be read ({e.Message})", inner: e);
        }
    }

    private static string TextOf(string path)
    {
        var file = new FileInfo(path);
        return !file.Exists || file.Length <= FileBytesMax ? File.ReadAllText(path) : throw new CliException($"'{path}' is too long; at most 1 MiB is declared at once");
    }
}
