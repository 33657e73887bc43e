using System.CommandLine;
using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Policies: snapshots that are cut and deleted by themselves.</summary>
internal static class PolicyCommands
{
    private static readonly string[] Headings = ["Name", "Volumes", "Period", "Keep", "KeepFor", "Next", "LastResult"];

    public static void AddTo(CommandSet commands)
    {
        AddCreate(commands);
        AddSet(commands);
        commands.Add("list_policy", "Lists the policies and what came of them", [], async (context, cancel) =>
        {
            PolicyList list = await context.Client.GetAsync("v1/policies", ApiJson.Default.PolicyList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.PolicyList)) return ExitCode.Done;
            context.Printer.Line($"{list.Policies.Count} policies returned.");
            context.Printer.Table(Headings, [.. list.Policies.Select(Row)]);
            return ExitCode.Done;
        });
        Option<string> gone = Name();
        commands.Add("delete_policy", "Deletes a policy; its snapshots stay", [gone], async (context, cancel) =>
        {
            context.Confirm($"deleting policy {context.Get(gone)} (its snapshots stay)");
            await context.Client.DeleteAsync(PathOf(context.Get(gone)!), cancel);
            context.Printer.Line($"Policy {context.Get(gone)} deleted.");
            return ExitCode.Done;
        });
    }

    /// <summary>Seconds of a number with s, m, h or d behind it, or null.</summary>
    public static long? SecondsOf(string text)
    {
        if (text == "0") return 0;
        long unit = text.Length == 0 ? 0 : text[^1] switch { 's' => 1, 'm' => 60, 'h' => 3600, 'd' => 86_400, _ => 0 };
        bool isNumber = long.TryParse(unit == 0 ? "" : text[..^1], NumberStyles.None, CultureInfo.InvariantCulture, out long number);
        return isNumber && number <= long.MaxValue / 86_400 ? number * unit : null;
    }

    private static Option<string> Name()
    {
        var option = new Option<string>("--policy_name", "-p") { Description = "Name of the policy", HelpName = "NAME", Required = true };
        Inputs.CheckName(option);
        return option;
    }

    private static Option<string[]> Volumes(bool required) => new("--volume_name", "-v")
    {
        Description = "Name of a volume; several are cut at one moment", HelpName = "NAME", Required = required, Arity = required ? ArgumentArity.OneOrMore : ArgumentArity.ZeroOrMore,
    };

    internal static Option<long?> Time(string name, string description, bool required = false) => new(name)
    {
        Description = description,
        HelpName = "TIME",
        Required = required,
        CustomParser = result =>
        {
            long? seconds = result.Tokens.Count == 1 ? SecondsOf(result.Tokens[0].Value) : null;
            if (seconds is null) result.AddError("a time is a number with s, m, h or d behind it, for instance 15m, or 0");
            return seconds;
        },
    };

    private static string PathOf(string policy) => "v1/policies/" + Uri.EscapeDataString(policy);

    private static string[] Row(PolicyInfo p) =>
    [
        p.Name, string.Join(", ", p.Volumes), p.PeriodSeconds == 0 ? "rests" : Text(p.PeriodSeconds), p.KeepCount?.ToString(CultureInfo.InvariantCulture) ?? "all",
        p.KeepSeconds is { } seconds ? Text(seconds) : "ever", p.NextAt?.ToString("u", CultureInfo.InvariantCulture) ?? "", p.LastResult ?? "",
    ];

    private static string Text(long seconds) => seconds switch
    {
        _ when seconds % 86_400 == 0 => string.Create(CultureInfo.InvariantCulture, $"{seconds / 86_400}d"),
        _ when seconds % 3600 == 0 => string.Create(CultureInfo.InvariantCulture, $"{seconds / 3600}h"),
        _ when seconds % 60 == 0 => string.Create(CultureInfo.InvariantCulture, $"{seconds / 60}m"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{seconds}s"),
    };

    private static int Show(CommandContext context, PolicyInfo policy)
    {
        if (!context.Printer.TryJson(policy, ApiJson.Default.PolicyInfo)) context.Printer.Table(Headings, [Row(policy)]);
        return ExitCode.Done;
    }

    private static Option<int?> Keep() => new("--keep") { Description = "Keep at most so many of each volume (set_policy: 0 for any number)", HelpName = "N" };

    private static Option<string?> Hook(string moment, string does) => new($"--{moment}_hook")
    {
        Description = $"Program in the folder hooks of the data directory that {does}", HelpName = "FILE",
    };

    private static void AddCreate(CommandSet commands)
    {
        Option<string> name = Name();
        Option<string[]> volumes = Volumes(required: true);
        Option<long?> period = Time("--period", "From one snapshot to the next, for instance 15m; 0: it rests", required: true);
        Option<int?> keep = Keep();
        Option<long?> keepFor = Time("--keep_for", "Keep none longer, but the newest, for instance 30d");
        Option<string?> pre = Hook("pre", "brings what uses the volumes to rest; only then snapshots are labelled clean"), post = Hook("post", "lets it go on");
        Option<long?> limit = Time("--hook_timeout", "How long a hook may take (default: 30s)");
        commands.Add("create_policy", "Lets snapshots be cut and deleted by themselves", [name, volumes, period, keep, keepFor, pre, post, limit], async (context, cancel) =>
        {
            var request = new CreatePolicy(
                context.Get(name)!, context.Get(volumes)!, context.Get(period)!.Value, context.Get(keep), context.Get(keepFor), context.Get(pre), context.Get(post),
                (int)Math.Min(context.Get(limit) ?? 30, int.MaxValue));
            return Show(context, await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/policies", request, ApiJson.Default.CreatePolicy, ApiJson.Default.PolicyInfo, cancel));
        },
        "pfcli create_policy -p hourly -v db -v journal --period 1h --keep 24",
        "pfcli create_policy -p nightly -v db --period 1d --keep_for 30d --pre_hook freeze-db --post_hook thaw-db");
    }

    private static void AddSet(CommandSet commands)
    {
        Option<string> name = Name();
        Option<string[]> volumes = Volumes(required: false);
        Option<long?> period = Time("--period", "From one snapshot to the next; 0: it rests");
        Option<int?> keep = Keep();
        Option<long?> keepFor = Time("--keep_for", "Keep none longer, but the newest; 0: for ever");
        Option<string?> pre = Hook("pre", "brings what uses the volumes to rest; an empty string: none"), post = Hook("post", "lets it go on; an empty string: none");
        Option<long?> limit = Time("--hook_timeout", "How long a hook may take");
        commands.Add("set_policy", "Changes a policy at once; what is not named stays", [name, volumes, period, keep, keepFor, pre, post, limit], async (context, cancel) =>
        {
            string[]? members = context.Get(volumes) is { Length: > 0 } named ? named : null;
            var change = new ChangePolicy(
                null, members, context.Get(period), context.Get(keep), context.Get(keepFor), context.Get(pre), context.Get(post),
                context.Get(limit) is { } seconds ? (int)Math.Min(seconds, int.MaxValue) : null);
            return Show(context, await context.Client.ChangeAsync(
                HttpMethod.Patch, PathOf(context.Get(name)!), change, ApiJson.Default.ChangePolicy, ApiJson.Default.PolicyInfo, cancel));
        },
        "pfcli set_policy -p hourly --period 15m --keep 96",
        "pfcli set_policy -p hourly --period 0                      # it rests");
    }
}
