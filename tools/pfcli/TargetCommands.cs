using System.CommandLine;
using System.Globalization;
using System.Security.Cryptography;
using System.Text.Json.Serialization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>iSCSI targets: what they offer, where, and to whom.</summary>
internal static class TargetCommands
{
    private const int SecretBytes = 24, SecretFileBytesMax = 4096;
    private static readonly string[] Headings = ["Name", "Kind", "Enabled", "Luns", "Portals", "Access", "CHAP", "Sessions"];

    public static void AddTo(CommandSet commands)
    {
        AddList(commands);
        AddCreate(commands);
        AddSwitches(commands);
        AddLuns(commands);
        AddAccess(commands);
        AddUsers(commands);
    }

    private static Option<string> Target() => new("--target", "-t") { Description = "Name of the target (IQN)", HelpName = "IQN", Required = true };

    private static Option<int[]> Groups(bool required) => new("--portal_group", "-g")
    {
        Description = "Tag of a portal group that offers it, 1 to 63; repeatable. Default: all (see list_portal)", HelpName = "N", Required = required,
        AllowMultipleArgumentsPerToken = false,
    };

    private static string PathOf(string target) => "v1/targets/" + Uri.EscapeDataString(target);

    private static Task<TargetInfo> GetAsync(CommandContext context, string target, CancellationToken cancel) =>
        context.Client.GetAsync(PathOf(target), ApiJson.Default.TargetInfo, cancel);

    private static int Show(CommandContext context, TargetInfo target, string? done = null)
    {
        if (context.Printer.TryJson(target, ApiJson.Default.TargetInfo)) return ExitCode.Done;
        if (done is not null) context.Printer.Line(done);
        else context.Printer.Table(Headings, [Row(target)]);
        if (target.Kind == "configured" && target.Access.Count == 0)
            context.Printer.Line($"Nobody may log in yet: pfcli allow_initiator -t {target.Name} -i '*', or a name instead of *");
        return ExitCode.Done;
    }

    private static string[] Row(TargetInfo t) =>
    [
        t.Name, t.Kind, t.Enabled ? "yes" : "no", Number(t.Luns.Count), PortalsOf(t),
        t.Access.Count == 0 ? "nobody" : string.Join(' ', t.Access.Select(Word)), t.Authentication, Number(t.Sessions),
    ];

    private static string PortalsOf(TargetInfo t) => t.PortalGroups.Count == 0 ? "all" : string.Join(',', t.PortalGroups.Select(Number));

    private static string Word(AccessRule rule) => rule.Address is null ? rule.Initiator : $"{rule.Initiator}@{rule.Address}";

    private static string Number(int number) => number.ToString(CultureInfo.InvariantCulture);

    private static void AddList(CommandSet commands)
    {
        commands.Add("list_target", "Lists the iSCSI targets, the volumes' own among them", [], async (context, cancel) =>
        {
            TargetList list = await context.Client.GetAsync("v1/targets", ApiJson.Default.TargetList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.TargetList)) return ExitCode.Done;
            context.Printer.Line($"{list.Targets.Count} targets returned.");
            context.Printer.Table(Headings, [.. list.Targets.Select(Row)]);
            return ExitCode.Done;
        });
        Option<string> name = Target();
        commands.Add("show_target", "Shows everything about one target", [name], async (context, cancel) =>
        {
            TargetInfo t = await GetAsync(context, context.Get(name)!, cancel);
            if (context.Printer.TryJson(t, ApiJson.Default.TargetInfo)) return ExitCode.Done;
            context.Printer.Pairs(
            [
                ("Name", t.Name),
                ("Kind", t.Kind == "own" ? "own target of a volume" : t.Kind),
                ("Description", t.Description ?? ""),
                ("Enabled", t.Enabled ? "yes" : "no"),
                ("Portal groups", PortalsOf(t)),
                ("CHAP", t.Authentication),
                ("CHAP users", t.Users.Count == 0 ? "none of its own" : string.Join(' ', t.Users)),
                ("Proves itself as", t.MutualUser ?? "-"),
                ("Sessions", Number(t.Sessions)),
                ("Revision", t.Revision.ToString(CultureInfo.InvariantCulture)),
            ]);
            context.Printer.Line("Who may log in:");
            context.Printer.Table(["Initiator", "Address"], [.. t.Access.Select(a => new[] { a.Initiator, a.Address ?? "any" })]);
            context.Printer.Line("What they get:");
            context.Printer.Table(["Lun", "Volume", "Mode", "Status"], [.. t.Luns.Select(l => new[] { Number(l.Lun), l.Volume, l.ReadOnly ? "read-only" : "read-write", l.Fault ?? "online" })]);
            return ExitCode.Done;
        });
        commands.Add("list_portal", "Lists the addresses at which iSCSI is served", [], async (context, cancel) =>
        {
            PortalList list = await context.Client.GetAsync("v1/portals", ApiJson.Default.PortalList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.PortalList)) return ExitCode.Done;
            context.Printer.Line($"{list.Portals.Count} portals returned.");
            context.Printer.Table(["Address", "Group", "Reach"], [.. list.Portals.Select(p => new[] { p.Address, Number(p.Group), p.Local ? "this machine" : "network" })]);
            return ExitCode.Done;
        });
    }

    private static void AddCreate(CommandSet commands)
    {
        Option<string> name = Target(), gone = Target();
        Option<int[]> groups = Groups(required: false);
        var description = new Option<string?>("--description") { Description = "Free text", HelpName = "TEXT" };
        commands.Add("create_target", "Makes an iSCSI target; add_lun and allow_initiator come next", [name, groups, description], async (context, cancel) =>
        {
            var request = new CreateTarget(context.Get(name)!, context.Get(description), context.Get(groups));
            return Show(context, await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/targets", request, ApiJson.Default.CreateTarget, ApiJson.Default.TargetInfo, cancel));
        });
        var force = new Option<bool>("--force") { Description = "Also while initiators are attached" };
        commands.Add("delete_target", "Deletes a target; its volumes and their data stay", [gone, force], async (context, cancel) =>
        {
            TargetInfo target = await GetAsync(context, context.Get(gone)!, cancel);
            context.Confirm($"deleting target {target.Name} ({target.Luns.Count} LUNs, {target.Sessions} initiators attached)");
            string query = string.Create(CultureInfo.InvariantCulture, $"?revision={target.Revision}{(context.Get(force) ? "&force=true" : "")}");
            await context.Client.DeleteAsync(PathOf(target.Name) + query, cancel);
            context.Printer.Line($"Target {target.Name} deleted.");
            return ExitCode.Done;
        });
    }

    private static void AddSwitches(CommandSet commands)
    {
        Option<string> on = Target(), off = Target(), moved = Target();
        Option<int[]> groups = Groups(required: false);
        var all = new Option<bool>("--all") { Description = "At every portal" };
        commands.Add("enable_target", "Lets initiators log in to a target again", [on], (context, cancel) => SwitchAsync(context, on, true, cancel));
        commands.Add("disable_target", "Ends the sessions of a target and lets nobody log in", [off], async (context, cancel) =>
        {
            TargetInfo target = await GetAsync(context, context.Get(off)!, cancel);
            if (target.Sessions > 0) context.Confirm($"disabling target {target.Name} with {target.Sessions} attached initiators");
            return await SwitchAsync(context, off, false, cancel);
        });
        commands.Add("move_target", "Offers a target at other portal groups; sessions elsewhere end and are told where to go", [moved, groups, all], async (context, cancel) =>
        {
            int[] wanted = context.Get(groups) ?? [];
            if (wanted.Length == 0 == !context.Get(all)) throw new CliException("name portal groups with -g, or say --all", ExitCode.Usage);
            TargetInfo target = await GetAsync(context, context.Get(moved)!, cancel);
            return await ChangeAsync(context, target, new ChangeTarget(target.Revision, PortalGroups: wanted), cancel);
        });
    }

    private static async Task<int> SwitchAsync(CommandContext context, Option<string> name, bool enabled, CancellationToken cancel)
    {
        TargetInfo target = await GetAsync(context, context.Get(name)!, cancel);
        return await ChangeAsync(context, target, new ChangeTarget(target.Revision, Enabled: enabled), cancel);
    }

    private static async Task<int> ChangeAsync(CommandContext context, TargetInfo target, ChangeTarget change, CancellationToken cancel) =>
        Show(context, await context.Client.ChangeAsync(
            HttpMethod.Patch, PathOf(target.Name), change, ApiJson.Default.ChangeTarget, ApiJson.Default.TargetInfo, cancel));

    private static void AddLuns(CommandSet commands)
    {
        Option<string> name = Target(), from = Target(), volume = Inputs.Volume();
        var lun = new Option<int?>("--lun", "-l") { Description = "Number of the LUN, 0 to 16383. Default: the first that is free", HelpName = "N" };
        var gone = new Option<int>("--lun", "-l") { Description = "Number of the LUN", HelpName = "N", Required = true };
        var readOnly = new Option<bool>("--read-only") { Description = "Refuse changes that come by this target" };
        var keep = new Option<bool>("--keep-own-target") { Description = "Keep the volume's own target, which everybody may use, beside this one" };
        var force = new Option<bool>("--force") { Description = "Also while initiators are attached" };
        var remove = new Option<bool>("--force") { Description = "Also while initiators are attached to the target" };
        Option<string> snapshot = SnapshotCommands.Snapshot("This snapshot of it, write-protected; the volume's own target stays", required: false);
        commands.Add("add_lun", "Makes a volume a LUN of a target and withdraws the volume's own target", [name, volume, snapshot, lun, readOnly, keep, force], async (context, cancel) =>
        {
            string shown = context.Get(snapshot) is { } one ? $"{context.Get(volume)}@{one}" : context.Get(volume)!;
            var request = new AddLun(shown, context.Get(lun), context.Get(readOnly), context.Get(keep), context.Get(force));
            TargetInfo target = await context.Client.ChangeAsync(
                HttpMethod.Post, PathOf(context.Get(name)!) + "/luns", request, ApiJson.Default.AddLun, ApiJson.Default.TargetInfo, cancel);
            return Show(context, target, $"Volume {request.Volume} is LUN {target.Luns.First(l => l.Volume == request.Volume).Lun} of {target.Name}.");
        },
        "pfcli add_lun -t iqn.2026-11.org.example:disks -v db",
        "pfcli add_lun -t iqn.2026-11.org.example:disks -v db -n monday -l 8");
        commands.Add("remove_lun", "Takes a LUN away from a target; the volume and its data stay", [from, gone, remove], async (context, cancel) =>
        {
            string target = context.Get(from)!, number = Number(context.Get(gone));
            context.Confirm($"taking LUN {number} away from {target}");
            await context.Client.DeleteAsync($"{PathOf(target)}/luns/{number}{(context.Get(remove) ? "?force=true" : "")}", cancel);
            context.Printer.Line($"LUN {number} of {target} removed. Its volume has no target of its own unless pfcli export_volume --iscsi makes one.");
            return ExitCode.Done;
        });
    }

    private static void AddAccess(CommandSet commands)
    {
        Option<string> name = Target(), from = Target();
        Option<string> initiator = Initiator(), gone = Initiator();
        Option<string?> address = Address(), goneAddress = Address();
        commands.Add("allow_initiator", "Lets initiators log in to a target", [name, initiator, address], async (context, cancel) =>
        {
            var rule = new AccessRule(context.Get(initiator)!, context.Get(address));
            TargetInfo target = await context.Client.ChangeAsync(
                HttpMethod.Post, PathOf(context.Get(name)!) + "/access", rule, ApiJson.Default.AccessRule, ApiJson.Default.TargetInfo, cancel);
            return Show(context, target);
        });
        commands.Add("deny_initiator", "Takes such a rule back; sessions that no other rule lets in end", [from, gone, goneAddress], async (context, cancel) =>
        {
            string target = context.Get(from)!, query = "?initiator=" + Uri.EscapeDataString(context.Get(gone)!);
            if (context.Get(goneAddress) is { } network) query += "&address=" + Uri.EscapeDataString(network);
            await context.Client.DeleteAsync(PathOf(target) + "/access" + query, cancel);
            return Show(context, await GetAsync(context, target, cancel));
        });

        static Option<string> Initiator() => new("--initiator", "-i")
        {
            Description = "Name of the initiator; * and ? are wildcards", HelpName = "IQN", Required = true,
        };

        static Option<string?> Address() => new("--address", "-a") { Description = "Address or network that it must come from, for instance 10.0.0.0/24", HelpName = "CIDR" };
    }

    private static void AddUsers(CommandSet commands)
    {
        var name = new Option<string?>("--target", "-t") { Description = "Name of the target (IQN)", HelpName = "IQN" };
        var from = new Option<string?>("--target", "-t") { Description = "Name of the target (IQN)", HelpName = "IQN" };
        Option<bool> discovery = Discovery(), fromDiscovery = Discovery(), mutual = Mutual(), goneMutual = Mutual();
        Option<string> user = User(), gone = User();
        var file = new Option<string?>("--secret-file")
        {
            Description = "File with the secret, 12 to 255 characters (- reads it from standard input). Default: one is made and shown once", HelpName = "FILE",
        };
        commands.Add("add_chap_user", "Adds a user of CHAP to a target, or to discovery", [name, discovery, user, mutual, file], async (context, cancel) =>
        {
            string path = UsersOf(context, name, discovery);
            string secret = context.Get(file) is { } source ? ReadSecret(context, source) : Convert.ToBase64String(RandomNumberGenerator.GetBytes(SecretBytes)).Replace('/', '_').Replace('+', '-');
            var request = new AddChapUser(context.Get(user)!, secret, context.Get(mutual));
            bool isTarget = context.Get(name) is not null;
            if (isTarget) await context.Client.ChangeAsync(HttpMethod.Post, path, request, ApiJson.Default.AddChapUser, ApiJson.Default.TargetInfo, cancel);
            else await context.Client.ChangeAsync(HttpMethod.Post, path, request, ApiJson.Default.AddChapUser, ApiJson.Default.DiscoveryInfo, cancel);
            // A secret that was made is shown whatever the form of the output is: nobody could ask for it again.
            var shown = new ChapUserMade(request.User, context.Get(file) is null ? secret : null, request.Mutual);
            if (context.Printer.TryJson(shown, TargetJson.Default.ChapUserMade)) return ExitCode.Done;
            context.Printer.Line(context.Get(file) is null
                ? $"Secret of {request.User}, shown only now: {secret}" : $"User {request.User} added.");
            return ExitCode.Done;
        });
        commands.Add("remove_chap_user", "Takes a user of CHAP away; its sessions end", [from, fromDiscovery, gone, goneMutual], async (context, cancel) =>
        {
            string path = UsersOf(context, from, fromDiscovery);
            await context.Client.DeleteAsync(
                $"{path}/{Uri.EscapeDataString(context.Get(gone)!)}{(context.Get(goneMutual) ? "?mutual=true" : "")}", cancel);
            context.Printer.Line($"User {context.Get(gone)} removed.");
            string? open = context.Get(from) is { } target ? (await GetAsync(context, target, cancel)).Authentication
                : (await context.Client.GetAsync("v1/discovery", ApiJson.Default.DiscoveryInfo, cancel)).Authentication;
            if (open == "none") context.Printer.Line("There is no user left: initiators need not prove themselves.");
            return ExitCode.Done;
        });
        commands.Add("show_discovery", "Shows who may discover targets", [], async (context, cancel) =>
        {
            DiscoveryInfo info = await context.Client.GetAsync("v1/discovery", ApiJson.Default.DiscoveryInfo, cancel);
            if (context.Printer.TryJson(info, ApiJson.Default.DiscoveryInfo)) return ExitCode.Done;
            context.Printer.Pairs(
            [
                ("CHAP", info.Authentication), ("CHAP users", info.Users.Count == 0 ? "none of its own" : string.Join(' ', info.Users)),
                ("Proves itself as", info.MutualUser ?? "-"),
            ]);
            return ExitCode.Done;
        });

        static Option<bool> Discovery() => new("--discovery") { Description = "Of discovery instead of a target" };

        static Option<bool> Mutual() => new("--mutual") { Description = "The name by which the target proves itself to initiators" };

        static Option<string> User() => new("--user", "-u") { Description = "Name of the user", HelpName = "NAME", Required = true };
    }

    private static string UsersOf(CommandContext context, Option<string?> target, Option<bool> discovery)
    {
        string? name = context.Get(target);
        if (name is null == !context.Get(discovery)) throw new CliException("name a target with -t, or say --discovery", ExitCode.Usage);
        return (name is null ? "v1/discovery" : PathOf(name)) + "/users";
    }

    // Never an argument: those are seen by everybody on the machine.
    private static string ReadSecret(CommandContext context, string source)
    {
        if (source == "-") return (context.Host.In.ReadLine() ?? "").Trim();
        try
        {
            var file = new FileInfo(source);
            if (file.Exists && file.Length > SecretFileBytesMax) throw new CliException($"'{source}' is too long for a secret");
            return File.ReadAllText(source).Trim();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"the secret file '{source}' cannot be read ({e.Message})", inner: e);
        }
    }
}

/// <summary>What <c>add_chap_user --json</c> writes.</summary>
/// <param name="User">Name of the user.</param>
/// <param name="Secret">The secret that was made, which is shown only now; null when it came from a file.</param>
/// <param name="Mutual">It is the name by which the target proves itself.</param>
internal sealed record ChapUserMade(string User, string? Secret, bool Mutual)
{
    /// <summary>Without the secret, wherever it is written.</summary>
    public override string ToString() => $"{nameof(ChapUserMade)} {User}";
}

/// <summary>Source-generated JSON of what only pfcli says of targets.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(ChapUserMade))]
internal sealed partial class TargetJson : JsonSerializerContext;
