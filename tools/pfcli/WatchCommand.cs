using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>watch: what changes, as it changes.</summary>
internal static class WatchCommand
{
    private const int LineMax = 16 << 20;

    private static readonly TimeSpan AgainAfter = TimeSpan.FromSeconds(1);

    public static void AddTo(CommandSet commands)
    {
        var types = new Option<string[]>("--type", "-t")
        {
            Description = "Only these: " + string.Join(", ", WatchTypes.All), HelpName = "TYPE", AllowMultipleArgumentsPerToken = true,
        };
        types.AcceptOnlyFromAmong([.. WatchTypes.All]);
        var from = new Option<long?>("--from") { Description = "Go on behind this revision (the last one that was shown)", HelpName = "REVISION" };
        var all = new Option<bool>("--all") { Description = "Show what exists first" };
        var count = new Option<int?>("--count", "-c") { Description = "End after so many changes (default: when interrupted)", HelpName = "N" };
        commands.Add("watch", "Shows what changes, as it changes; goes on by itself when the connection breaks", [types, from, all, count], async (context, cancel) =>
        {
            string path = "v1/watch?" + (context.Get(types) is { Length: > 0 } some ? $"types={string.Join(',', some)}&" : "");
            long? at = context.Get(from);
            int left = context.Get(count) ?? int.MaxValue;
            bool withAll = context.Get(all), isAgain = false;
            while (left > 0)
            {
                string query = at is { } revision ? string.Create(CultureInfo.InvariantCulture, $"from={revision}") : withAll ? "initial=true" : "initial=false";
                try
                {
                    using Stream stream = await context.Client.OpenAsync(path + query, cancel);
                    using var reader = new StreamReader(stream);
                    isAgain = true;
                    while (left > 0 && await reader.ReadLineAsync(cancel) is { } line)
                    {
                        if (!line.StartsWith("data: ", StringComparison.Ordinal) || line.Length > LineMax) continue;
                        WatchEvent told = JsonSerializer.Deserialize(line["data: ".Length..], ApiJson.Default.WatchEvent)!;
                        if (told.Action is not WatchActions.Resync && (at is not null || told.Action is WatchActions.Synced)) at = told.Revision;
                        if (Show(context, told, line)) left--;
                    }
                }
                catch (OperationCanceledException) when (cancel.IsCancellationRequested)
                {
                    return ExitCode.Done; // that is how it ends
                }
                catch (JsonException e)
                {
                    throw new CliException($"what {context.Client.Server} answers is not blockd's watch stream; use the pfcli of the same release", inner: e);
                }
                catch (Exception e) when (isAgain && e is IOException or HttpRequestException or CliException { Status: 0 })
                {
                    // The daemon was restarted, perhaps: it knows where we were, or says that there is a gap.
                }

                if (left > 0) await context.Host.Delay(AgainAfter, cancel);
            }

            return ExitCode.Done;
        },
        "pfcli watch",
        "pfcli watch --type task --type volume --json               # one line of JSON per change",
        "pfcli watch --from 1764000000000000                        # what came after that revision");
    }

    private static bool Show(CommandContext context, WatchEvent told, string line)
    {
        bool isChange = told.Action is WatchActions.Changed or WatchActions.Deleted;
        if (context.Printer.Json)
        {
            if (told.Action != WatchActions.Heartbeat) context.Host.Out.WriteLine(line["data: ".Length..]);
        }
        else if (isChange)
        {
            string state = told.Value is { ValueKind: JsonValueKind.Object } now ? Summary(now) : "";
            context.Printer.Line(string.Create(CultureInfo.InvariantCulture, $"{told.Revision}  {told.Type} {told.Name} {told.Action}{state}"));
        }
        else if (told.Reason == "gap")
        {
            context.Printer.Line("gap: not everything that happened is known; what exists now follows");
        }

        context.Host.Out.Flush();
        return isChange;
    }

    private static string Summary(JsonElement now)
    {
        foreach (string name in new[] { "state", "status", "severity" })
        {
            if (!now.TryGetProperty(name, out JsonElement value) || value.ValueKind != JsonValueKind.String) continue;
            string part = name == "state" && now.TryGetProperty("progress", out JsonElement progress) ? $" {progress.GetDouble().ToString("P0", CultureInfo.InvariantCulture)}" : "";
            return $": {value.GetString()}{part}";
        }

        return "";
    }
}
