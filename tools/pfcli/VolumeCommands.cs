using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Volumes: make, look at, change, delete.</summary>
internal static class VolumeCommands
{
    private static readonly string[] Headings = ["Id", "Name", "Size", "RepCount", "Status"];

    public static void AddTo(CommandSet commands)
    {
        AddCreate(commands);
        AddDelete(commands);
        AddExists(commands);
        AddList(commands);
        AddShow(commands);
        AddResize(commands);
        AddRename(commands);
    }

    public static int Show(CommandContext context, VolumeInfo volume)
    {
        if (!context.Printer.TryJson(volume, ApiJson.Default.VolumeInfo)) context.Printer.Table(Headings, [Row(volume)]);
        return ExitCode.Done;
    }

    private static string[] Row(VolumeInfo v) =>
    [
        v.Id.ToString(CultureInfo.InvariantCulture), v.Name, SizeText.Format(v.SizeBytes),
        v.RepCount.ToString(CultureInfo.InvariantCulture), v.Image ? v.Status + ", image" : v.Status,
    ];

    private static void AddCreate(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        Option<ulong> size = Inputs.Size("--size", "-s", "Size, for instance 128g (default: that of --from)", required: false);
        var from = new Option<string?>("--from")
        {
            Description = "Copy this image, volume or snapshot; nobody may attach the new one until it is populated", HelpName = "NAME[@SNAPSHOT]",
        };
        var copies = new Option<int>("--rep_num", "-r") { Description = "How many replicas", HelpName = "N", DefaultValueFactory = _ => 1 };
        copies.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && int.TryParse(result.Tokens[0].Value, CultureInfo.InvariantCulture, out int n) && n is < 1 or > 3)
                result.AddError("--rep_num is 1, 2 or 3");
        });
        var host = new Option<string?>("--host_id") { Description = "Node that the volume must lie on", HelpName = "ID" };
        var disk = new Option<string?>("--disk") { Description = "Disk that the volume must lie on", HelpName = "NAME|ID" };
        var description = new Option<string?>("--description") { Description = "Free text", HelpName = "TEXT" };
        var looks = new ExportCommands.Looks();
        var limits = new QosCommands.Limits();
        var key = new Option<string?>("--idempotency-key")
        {
            Description = "Repeating the same request with the same key answers the same volume", HelpName = "KEY",
        };
        Option<bool> thin = Inputs.Thin();
        var waiting = new Waiting(isHabit: false);
        commands.Add("create_volume", "Makes a volume", [name, size, from, thin, copies, host, disk, description, .. looks.Options, .. limits.Options, key, .. waiting.Options], async (context, cancel) =>
        {
            if (context.Get(host) is { } node) await CheckHostAsync(context, node, cancel);
            if (context.Get(from) is { } source)
            {
                if (limits.IsAnyGiven(context)) throw new CliException("a copy has no limits at first; set them with set_qos", ExitCode.Usage);
                if (context.IsGiven(disk)) throw new CliException("a copy lies on the disk of what it is made from; leave --disk out", ExitCode.Usage);
                return await ConcludeAsync(context, waiting, await CopyAsync(context, source, context.Get(name)!, context.IsGiven(size) ? context.Get(size) : null, looks, context.Get(description), context.Get(key), context.IsGiven(thin) ? context.Get(thin) : null, cancel), cancel);
            }

            if (!context.IsGiven(size)) throw new CliException("--size is missing, or --from", ExitCode.Usage);
            Guid? store = context.Get(disk) is { } wanted ? (await Inputs.DiskAsync(context, wanted, cancel)).Id : null;
            var request = new CreateVolume(
                context.Get(name)!, context.Get(size), context.Get(copies), looks.Of(context, new ExportOptions()),
                context.Get(description), store, context.Get(key) ?? Guid.NewGuid().ToString("N"),
                Qos: limits.IsAnyGiven(context) ? limits.Of(context, QosLimits.None) : null, Thin: context.IsGiven(thin) ? context.Get(thin) : null);
            return await ConcludeAsync(context, waiting, await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/volumes", request, ApiJson.Default.CreateVolume, ApiJson.Default.VolumeInfo, cancel), cancel);
        },
        "pfcli create_volume -v db -s 128g",
        "pfcli create_volume -v scratch -s 2t --thin              # takes what is written, as long as there is room",
        "pfcli create_volume -v log -s 20g --iops 500 --bandwidth 50m",
        "pfcli create_volume -v vm1 --from debian-12             # a copy; status initializing until it is populated",
        "pfcli create_volume -v vm1 --from debian-12 -s 40g      # and larger",
        "pfcli create_volume -v vm1 --from debian-12 --wait      # until it may be attached");
    }

    // What is still to be done for a new volume (populating, allocating) are tasks of it.
    private static async Task<int> ConcludeAsync(CommandContext context, Waiting waiting, VolumeInfo made, CancellationToken cancel)
    {
        if (!waiting.IsWanted(context)) return Show(context, made);
        await Waiting.FollowVolumeAsync(context, made.Id, cancel);
        return Show(context, await Inputs.VolumeAsync(context, made.Name, cancel));
    }

    private static async Task<VolumeInfo> CopyAsync(
        CommandContext context, string source, string name, ulong? size, ExportCommands.Looks looks, string? description, string? key, bool? thin, CancellationToken cancel)
    {
        string[] parts = source.Split('@', 2);
        VolumeInfo from = await Inputs.VolumeAsync(context, parts[0], cancel);
        ExportOptions export = looks.Of(context, from.Export with { ReadOnly = false, Thick = false });
        var request = new CloneVolume(name, parts.Length > 1 ? parts[1] : null, size, export, description, key ?? Guid.NewGuid().ToString("N"), Full: true, Thin: thin);
        return await context.Client.ChangeAsync(
            HttpMethod.Post, Inputs.PathOf(parts[0]) + "/clone", request, ApiJson.Default.CloneVolume, ApiJson.Default.VolumeInfo, cancel);
    }

    private static async Task CheckHostAsync(CommandContext context, string node, CancellationToken cancel)
    {
        NodeInfo info = await context.Client.GetAsync("v1/node", ApiJson.Default.NodeInfo, cancel);
        if (info.Id != node)
            throw new CliException($"there is no node '{node}' here; this daemon is '{info.Id}', or leave --host_id out");
    }

    private static void AddDelete(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var force = new Option<bool>("--force") { Description = "Also while clients are attached" };
        var snapshots = new Option<bool>("--snapshots") { Description = "Its snapshots go too, unless clones build on them" };
        commands.Add("delete_volume", "Deletes a volume and all its data", [name, force, snapshots], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            string attached = volume.Sessions == 0 ? "" : $", {volume.Sessions} clients attached";
            string cut = volume.Snapshots == 0 || !context.Get(snapshots) ? "" : $", {volume.Snapshots} snapshots";
            context.Confirm($"deleting volume {volume.Name} ({SizeText.Format(volume.SizeBytes)}, "
                + $"{SizeText.Format(volume.UsedBytes)} used{attached}{cut})");
            // Id and revision: what is deleted is what was shown, not another volume that took the name meanwhile.
            string query = string.Create(
                CultureInfo.InvariantCulture,
                $"?id={volume.Id}&revision={volume.Revision}{(context.Get(force) ? "&force=true" : "")}{(context.Get(snapshots) ? "&snapshots=true" : "")}");
            await context.Client.DeleteAsync(Inputs.PathOf(volume.Name) + query, cancel);
            context.Printer.Line($"Volume {volume.Name} deleted.");
            return ExitCode.Done;
        });
    }

    private static void AddExists(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        commands.Add("check_volume_exists", "Exits 0 when the volume exists, 1 when not", [name], async (context, cancel) =>
        {
            string wanted = context.Get(name)!;
            try
            {
                VolumeInfo volume = await Inputs.VolumeAsync(context, wanted, cancel);
                if (!context.Printer.TryJson(volume, ApiJson.Default.VolumeInfo)) context.Printer.Line($"Volume {wanted} exists.");
                return ExitCode.Done;
            }
            catch (CliException e) when (e.Status == 404)
            {
                throw new CliException($"volume {wanted} does not exist", status: e.Status, inner: e);
            }
        });
    }

    private static void AddList(CommandSet commands)
    {
        var tenant = new Option<string?>("--tenant", "-t") { Description = "Only this tenant's", HelpName = "TENANT" };
        commands.Add("list_volume", "Lists the volumes", [tenant], async (context, cancel) =>
        {
            string path = context.Get(tenant) is { } only ? "v1/volumes?tenant=" + Uri.EscapeDataString(only) : "v1/volumes";
            VolumeList list = await context.Client.GetAsync(path, ApiJson.Default.VolumeList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.VolumeList)) return ExitCode.Done;
            context.Printer.Line($"{list.Volumes.Count} volumes returned.");
            context.Printer.Table(Headings, [.. list.Volumes.Select(Row)]);
            return ExitCode.Done;
        });
    }

    private static void AddShow(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        commands.Add("show_volume", "Shows everything about one volume", [name], async (context, cancel) =>
        {
            VolumeInfo v = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            if (context.Printer.TryJson(v, ApiJson.Default.VolumeInfo)) return ExitCode.Done;
            SessionInfo[] here = v.Sessions == 0 ? [] : await SessionsOfAsync(context, v, cancel);
            context.Printer.Pairs(
            [
                ("Id", v.Id.ToString(CultureInfo.InvariantCulture)),
                ("Uuid", v.Uuid.ToString()),
                ("Name", v.Name),
                ("Description", v.Description ?? ""),
                ("Size", $"{SizeText.Format(v.SizeBytes)} ({v.SizeBytes.ToString(CultureInfo.InvariantCulture)} bytes)"),
                ("Used", SizeText.Format(v.UsedBytes)),
                ("Room", v.Thin ? "thin: as long as there is some" : "promised"),
                ("RepCount", v.RepCount.ToString(CultureInfo.InvariantCulture)),
                ("Status", v.FailReason is null ? v.Status : $"{v.Status}: {v.FailReason}"),
                ("Image", v.Image ? "yes, it never changes" : "no"),
                ("Exports", ExportCommands.Describe(v.Export)),
                ("Qos", QosCommands.Describe(v.Qos)),
                ("Reservation", ReservationCommands.Describe(v.Reservation)),
                ("Sessions", v.Sessions == 0 ? "none" : string.Create(CultureInfo.InvariantCulture, $"{v.Sessions}: ")
                    + string.Join(", ", here.Take(SessionsMax).Select(s => $"{s.Protocol} from {s.Peer}")) + (here.Length > SessionsMax ? ", ..." : "")),
                ("Snapshots", v.Snapshots.ToString(CultureInfo.InvariantCulture)),
                ("Base", v.Base is null ? "" : v.Flattening ? v.Base + ", being flattened" : v.Base),
                ("Disk", await DiskOfAsync(context, v.StoreId, cancel)),
                ("Revision", v.Revision.ToString(CultureInfo.InvariantCulture)),
                ("Created", v.CreatedAt.ToString("u", CultureInfo.InvariantCulture)),
            ]);
            return ExitCode.Done;
        });
    }

    // More are for list_session.
    private const int SessionsMax = 5;

    // What follows is a courtesy: the volume is shown whatever becomes of it.
    private static async Task<SessionInfo[]> SessionsOfAsync(CommandContext context, VolumeInfo volume, CancellationToken cancel)
    {
        try
        {
            SessionList list = await context.Client.GetAsync("v1/sessions", ApiJson.Default.SessionList, cancel);
            return [.. list.Sessions.Where(s => s.Volume == volume.Name)];
        }
        catch (CliException)
        {
            return [];
        }
    }

    // Who is confined to volumes sees no disks.
    private static async Task<string> DiskOfAsync(CommandContext context, Guid id, CancellationToken cancel)
    {
        try
        {
            DiskList list = await context.Client.GetAsync("v1/disks", ApiJson.Default.DiskList, cancel);
            return list.Disks.FirstOrDefault(d => d.Id == id) is { } disk ? $"{disk.Name} ({id})" : id.ToString();
        }
        catch (CliException)
        {
            return id.ToString();
        }
    }

    private static void AddResize(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        Option<ulong> size = Inputs.Size("--size", "-s", "The new size, for instance 256g", required: true);
        Option<bool> thin = Inputs.Thin();
        commands.Add("resize_volume", "Grows a volume; shrinks one that holds nothing beyond its new end", [name, size, thin], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            ulong wanted = context.Get(size);
            bool shrinks = wanted < volume.SizeBytes;
            if (shrinks)
                context.Confirm($"shrinking volume {volume.Name} from {SizeText.Format(volume.SizeBytes)} to {SizeText.Format(wanted)}");
            return await ChangeAsync(context, volume, new ChangeVolume(volume.Revision, SizeBytes: wanted, Force: shrinks, Thin: context.IsGiven(thin) ? context.Get(thin) : null), cancel);
        });
    }

    private static void AddRename(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var target = new Option<string>("--new_name", "-n") { Description = "The new name", HelpName = "NAME", Required = true };
        Inputs.CheckName(target);
        commands.Add("rename_volume", "Gives a volume another name; never replaces an existing volume", [name, target], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            return await ChangeAsync(context, volume, new ChangeVolume(volume.Revision, Name: context.Get(target)), cancel);
        });
    }

    public static async Task<int> ChangeAsync(
        CommandContext context, VolumeInfo volume, ChangeVolume change, CancellationToken cancel) =>
        Show(context, await context.Client.ChangeAsync(
            HttpMethod.Patch, Inputs.PathOf(volume.Name), change, ApiJson.Default.ChangeVolume, ApiJson.Default.VolumeInfo, cancel));
}
