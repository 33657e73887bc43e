using System.CommandLine;
using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>What was done and refused, and who is kept out.</summary>
internal static class AuditCommands
{
    private static readonly string[] AuditHeadings = ["Sequence", "At", "Caller", "From", "Call", "Subject", "Result"];
    private static readonly string[] DeniedHeadings = ["Kind", "Value", "Since", "Reason"];

    public static void AddTo(CommandSet commands)
    {
        AddAudit(commands);
        commands.Add("list_denied", "Lists who is kept out", [], async (context, cancel) =>
        {
            DeniedList list = await context.Client.GetAsync("v1/denied", ApiJson.Default.DeniedList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.DeniedList)) return ExitCode.Done;
            context.Printer.Line($"{list.Denied.Count} denials returned.");
            context.Printer.Table(DeniedHeadings, [.. list.Denied.Select(d => new[] { d.Kind, d.Value, d.CreatedAt.ToString("u", CultureInfo.InvariantCulture), d.Reason ?? "" })]);
            return ExitCode.Done;
        });
        Who denied = new();
        var reason = new Option<string?>("--reason") { Description = "Free text", HelpName = "TEXT" };
        commands.Add("deny", "Keeps an initiator, address or token out: what it has open is cut at once", [.. denied.Options, reason], async (context, cancel) =>
        {
            (string kind, string value) = await denied.ReadAsync(context, cancel);
            context.Confirm($"cutting {kind} {value} off and keeping it out");
            DeniedInfo made = await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/denied", new Deny(kind, value, context.Get(reason)), ApiJson.Default.Deny, ApiJson.Default.DeniedInfo, cancel);
            if (!context.Printer.TryJson(made, ApiJson.Default.DeniedInfo))
                context.Printer.Line($"{made.Kind} {made.Value} is denied; {made.Cut ?? 0} connections were cut.");
            return ExitCode.Done;
        },
        "pfcli deny --initiator iqn.1993-08.org.debian:01:abc --reason 'writes what it should not' --yes",
        "pfcli deny --address 10.0.7.0/24 --yes",
        "pfcli deny --token_name grafana --yes");
        Who allowed = new();
        commands.Add("allow", "Takes a denial back", [.. allowed.Options], async (context, cancel) =>
        {
            (string kind, string value) = await allowed.ReadAsync(context, cancel);
            await context.Client.DeleteAsync($"v1/denied?kind={kind}&value={Uri.EscapeDataString(value)}", cancel);
            context.Printer.Line($"{kind} {value} is not denied any more.");
            return ExitCode.Done;
        });
    }

    private static void AddAudit(CommandSet commands)
    {
        var limit = new Option<int>("--limit", "-n") { Description = "At most so many, up to 1000", HelpName = "N", DefaultValueFactory = _ => 100 };
        var kind = new Option<string>("--kind") { Description = "changes, refused or all", HelpName = "KIND", DefaultValueFactory = _ => "all" };
        kind.AcceptOnlyFromAmong("changes", "refused", "all");
        var before = new Option<long?>("--before") { Description = "Only what came before this sequence", HelpName = "SEQUENCE" };
        commands.Add("list_audit", "Lists what was changed and refused by the admin API, newest first", [limit, kind, before], async (context, cancel) =>
        {
            string path = string.Create(CultureInfo.InvariantCulture, $"v1/audit?limit={context.Get(limit)}&kind={context.Get(kind)}");
            if (context.Get(before) is { } sequence) path += "&before=" + sequence.ToString(CultureInfo.InvariantCulture);
            AuditList list = await context.Client.GetAsync(path, ApiJson.Default.AuditList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.AuditList)) return ExitCode.Done;
            context.Printer.Table(AuditHeadings, [.. list.Entries.Select(Row)]);
            return ExitCode.Done;
        },
        "pfcli list_audit --kind refused -n 20");
    }

    private static string[] Row(AuditEntry e) =>
    [
        e.Sequence.ToString(CultureInfo.InvariantCulture), e.At.ToString("u", CultureInfo.InvariantCulture), e.Caller, e.From, $"{e.Method} {e.Path}",
        e.Subject ?? "", e.Status.ToString(CultureInfo.InvariantCulture) + (e.Code is null ? "" : " " + e.Code),
    ];

    /// <summary>Whom a denial is about: one of three options.</summary>
    private sealed class Who
    {
        private readonly Option<string?> _initiator = new("--initiator") { Description = "Name of an iSCSI initiator; * and ? stand for any", HelpName = "IQN" };
        private readonly Option<string?> _address = new("--address") { Description = "Address, or network as ADDRESS/BITS", HelpName = "ADDRESS" };
        private readonly Option<string?> _token = new("--token_name") { Description = "Name or id of a token", HelpName = "NAME" };

        public IReadOnlyList<Option> Options => [_initiator, _address, _token];

        public async Task<(string Kind, string Value)> ReadAsync(CommandContext context, CancellationToken cancel)
        {
            (string Kind, string? Value)[] given =
                [.. new[] { ("initiator", context.Get(_initiator)), ("address", context.Get(_address)), ("token", context.Get(_token)) }.Where(g => g.Item2 is not null)];
            if (given.Length != 1) throw new CliException("name one of --initiator, --address and --token_name", ExitCode.Usage);
            (string kind, string value) = (given[0].Kind, given[0].Value!);
            if (kind != "token") return (kind, value);
            TokenList tokens = await context.Client.GetAsync("v1/tokens", ApiJson.Default.TokenList, cancel);
            return (kind, tokens.Tokens.FirstOrDefault(t => t.Name == value)?.Id ?? value);
        }
    }
}
