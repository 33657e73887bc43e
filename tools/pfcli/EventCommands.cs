using System.CommandLine;
using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>What an operator should know.</summary>
internal static class EventCommands
{
    private static readonly string[] Headings = ["Id", "Raised", "Severity", "Code", "Subject", "State", "Detail"];

    private static readonly string[] Severities = ["info", "warning", "error", "critical"];

    public static void AddTo(CommandSet commands)
    {
        var open = new Option<bool>("--open") { Description = "Only faults that are not over" };
        var advice = new Option<bool>("--advice") { Description = "Say of each what leads to it and what to do" };
        var severity = new Option<string?>("--severity") { Description = "Only this and worse: info, warning, error, critical", HelpName = "SEVERITY" };
        severity.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && !Severities.Contains(result.Tokens[0].Value)) result.AddError("--severity is " + string.Join(", ", Severities));
        });
        severity.CompletionSources.Add(Severities);
        var limit = new Option<int>("--limit", "-c") { Description = "At most so many", HelpName = "N", DefaultValueFactory = _ => 50 };
        limit.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && int.TryParse(result.Tokens[0].Value, CultureInfo.InvariantCulture, out int n) && n is < 1 or > 1000)
                result.AddError("--limit is 1 to 1000");
        });
        commands.Add("list_event", "Lists faults and other events, newest first", [open, advice, severity, limit], async (context, cancel) =>
        {
            string query = string.Create(CultureInfo.InvariantCulture, $"v1/events?limit={context.Get(limit)}");
            if (context.Get(open)) query += "&open=true";
            if (context.Get(severity) is { } least) query += "&severity=" + least;
            EventList list = await context.Client.GetAsync(query, ApiJson.Default.EventList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.EventList)) return ExitCode.Done;
            context.Printer.Line($"{list.Events.Count} events returned.");
            if (context.Get(advice))
            {
                foreach (EventInfo e in list.Events)
                {
                    context.Printer.Pairs([("Id", Number(e.Id)), ("Event", $"{e.Code}, {e.Severity}, {State(e)}"), ("Subject", e.Subject),
                        ("Detail", e.Detail), ("Cause", e.Cause), ("Advice", e.Advice)]);
                    context.Printer.Line("");
                }

                return ExitCode.Done;
            }

            context.Printer.Table(Headings, [.. list.Events.Select(e => new[]
            {
                Number(e.Id), e.RaisedAt.ToString("u", CultureInfo.InvariantCulture), e.Severity, e.Code, e.Subject, State(e), e.Detail,
            })]);
            return ExitCode.Done;
        },
        "pfcli list_event --open                 # what is wrong now",
        "pfcli list_event --open --advice        # and what to do");
    }

    private static string Number(long id) => id.ToString(CultureInfo.InvariantCulture);

    private static string State(EventInfo e) =>
        !e.Fault ? "noted" : e.ClearedAt is { } over ? "over " + over.ToString("u", CultureInfo.InvariantCulture) : "open";
}
