using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Disks (each holds one store) and the node that they are in.</summary>
internal static class DiskCommands
{
    private static readonly string[] Headings =
        ["Store ID", "Name", "uuid", "Status", "Kind", "Size", "Used", "Free", "Volumes", "Errors", "Bad blocks", "Path"];

    public static void AddTo(CommandSet commands)
    {
        commands.Add("list_disk", "Lists the disks", [], ListDisksAsync);
        commands.Add("list_store", "Lists the storage nodes", [], ListNodesAsync);
        AddAdd(commands);
        AddRemove(commands);
    }

    private static string[] Row(string node, DiskInfo d) =>
    [
        node, d.Name, d.Id.ToString(), StatusOf(d), d.Kind,
        SizeText.Format(d.SizeBytes), SizeText.Format(d.UsedBytes), SizeText.Format(d.FreeBytes),
        d.Volumes.ToString(CultureInfo.InvariantCulture),
        (d.ChecksumErrors + d.IoErrors).ToString(CultureInfo.InvariantCulture), d.BlocksBad.ToString(CultureInfo.InvariantCulture), d.Path,
    ];

    // Empty because it was emptied, and kept so, is not what "online" alone would say.
    private static string StatusOf(DiskInfo d) => d.Status
        + (d.Health is "good" or "" || d.Health == d.Status ? "" : ", " + d.Health)
        + (!d.Draining ? "" : d.Volumes == 0 ? ", drained" : ", draining")
        + (d.FailReason is { Length: > 0 } ? ": " + d.FailReason : "");

    // The disk is shown whatever becomes of this: it may have been added already.
    private static async Task<string> NodeIdAsync(CommandContext context, CancellationToken cancel)
    {
        try
        {
            return (await NodeAsync(context, cancel)).Id;
        }
        catch (CliException)
        {
            return "-";
        }
    }

    private static Task<NodeInfo> NodeAsync(CommandContext context, CancellationToken cancel) =>
        context.Client.GetAsync("v1/node", ApiJson.Default.NodeInfo, cancel);

    private static async Task<int> ListDisksAsync(CommandContext context, CancellationToken cancel)
    {
        DiskList list = await context.Client.GetAsync("v1/disks", ApiJson.Default.DiskList, cancel);
        if (context.Printer.TryJson(list, ApiJson.Default.DiskList)) return ExitCode.Done;
        context.Printer.Line($"{list.Disks.Count} disks returned.");
        string node = await NodeIdAsync(context, cancel);
        context.Printer.Table(Headings, [.. list.Disks.Select(d => Row(node, d))]);
        return ExitCode.Done;
    }

    private static async Task<int> ListNodesAsync(CommandContext context, CancellationToken cancel)
    {
        NodeInfo node = await NodeAsync(context, cancel);
        if (context.Printer.TryJson(node, ApiJson.Default.NodeInfo)) return ExitCode.Done;
        // The node has answered at this very address.
        context.Printer.Table(["Id", "Management IP", "Status"], [[node.Id, context.Client.Server.Authority, "OK"]]);
        foreach (string warning in node.Warnings) context.Printer.Line("Warning: " + warning);
        return ExitCode.Done;
    }

    private static void AddAdd(CommandSet commands)
    {
        var path = new Argument<string>("path") { Description = "Absolute path of the file or raw device" };
        path.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && !result.Tokens[0].Value.StartsWith('/'))
                result.AddError($"'{result.Tokens[0].Value}' is not an absolute path");
        });
        var name = new Option<string>("--name", "-n") { Description = "Name of the disk (default: made from the path)", HelpName = "NAME" };
        Inputs.CheckName(name);
        Option<ulong> size = Inputs.Size("--size", "-s", "How large to make a file that does not exist yet", required: false);
        var force = new Option<bool>("--force") { Description = "Overwrite whatever the device holds" };
        commands.Add("add_disk", "Adds a file or raw device as a disk; one that was a disk here comes back with its volumes", [path, name, size, force], async (context, cancel) =>
        {
            string wanted = context.Get(path)!;
            bool overwrite = context.Get(force);
            if (overwrite) context.Confirm($"overwriting whatever {wanted} holds");
            var request = new AddDisk(wanted, context.Get(name), context.IsGiven(size) ? context.Get(size) : null, overwrite);
            DiskInfo disk = await context.Client.ChangeAsync(
                HttpMethod.Post, "v1/disks", request, ApiJson.Default.AddDisk, ApiJson.Default.DiskInfo, cancel);
            if (!context.Printer.TryJson(disk, ApiJson.Default.DiskInfo)) context.Printer.Table(Headings, [Row(await NodeIdAsync(context, cancel), disk)]);
            return ExitCode.Done;
        });
    }

    private static void AddRemove(CommandSet commands)
    {
        var which = new Argument<string>("disk") { Description = "Name or id of the disk" };
        var force = new Option<bool>("--force") { Description = "Also with volumes on it: they are unavailable until the disk is added again" };
        commands.Add("remove_disk", "Takes a disk out of service; what lies on it stays", [which, force], async (context, cancel) =>
        {
            DiskInfo disk = await Inputs.DiskAsync(context, context.Get(which)!, cancel);
            bool isForced = context.Get(force);
            context.Confirm($"removing disk {disk.Name} ({disk.Path})" + (isForced && disk.Volumes > 0 ? $" with {disk.Volumes} volumes" : ""));
            await context.Client.DeleteAsync("v1/disks/" + disk.Id.ToString("D") + (isForced ? "?force=true" : ""), cancel);
            context.Printer.Line($"Disk {disk.Name} removed.");
            return ExitCode.Done;
        });
    }
}
