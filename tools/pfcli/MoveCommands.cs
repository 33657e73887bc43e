using System.CommandLine;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Volumes on their way between disks.</summary>
internal static class MoveCommands
{
    public static void AddTo(CommandSet commands)
    {
        AddMove(commands);
        AddDrain(commands);
        AddReplace(commands);
        var waiting = new Waiting(isHabit: true);
        commands.Add("rebalance", "Moves volumes until all disks are used alike", [.. waiting.Options], (context, cancel) =>
            TaskCommands.BeginAsync(context, waiting, "v1/rebalance", new Rebalance(), ApiJson.Default.Rebalance, cancel),
        "pfcli rebalance",
        "pfcli rebalance --no-wait");
    }

    private static void AddMove(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var disk = new Option<string>("--disk", "-d") { Description = "Name or id of the disk that it goes to", HelpName = "DISK", Required = true };
        var waiting = new Waiting(isHabit: true);
        commands.Add("move_volume", "Moves a volume, its snapshots and what is cloned from them to another disk while clients go on", [name, disk, .. waiting.Options], async (context, cancel) =>
        {
            DiskInfo target = await Inputs.DiskAsync(context, context.Get(disk)!, cancel);
            return await TaskCommands.BeginAsync(
                context, waiting, Inputs.PathOf(context.Get(name)!) + "/move", new MoveVolume(target.Id), ApiJson.Default.MoveVolume, cancel);
        },
        "pfcli move_volume -v db -d nvme1",
        "pfcli move_volume -v db -d nvme1 --no-wait",
        "pfcli move_volume -v events -d nvme1            # an append-only one: its writers go on");
    }

    private static void AddDrain(CommandSet commands)
    {
        var which = new Argument<string>("disk") { Description = "Name or id of the disk" };
        var undo = new Option<bool>("--undo") { Description = "Use the disk again: what still drains it ends, and new volumes may be placed there; what was moved stays where it is" };
        var waiting = new Waiting(isHabit: true);
        commands.Add("drain_disk", "Moves every volume off a disk while clients go on; nothing new is placed there", [which, undo, .. waiting.Options], async (context, cancel) =>
        {
            DiskInfo disk = await Inputs.DiskAsync(context, context.Get(which)!, cancel);
            if (context.Get(undo))
            {
                await context.Client.DeleteAsync($"v1/disks/{disk.Id:D}/drain", cancel);
                context.Printer.Line($"Disk {disk.Name} is used again.");
                return ExitCode.Done;
            }

            return await TaskCommands.BeginAsync(
                context, waiting, $"v1/disks/{disk.Id:D}/drain", new DrainDisk(), ApiJson.Default.DrainDisk, cancel);
        },
        "pfcli drain_disk nvme0",
        "pfcli drain_disk nvme0 --no-wait",
        "pfcli drain_disk nvme0 --undo                             # use it again, during the drain or after it");
    }

    private static void AddReplace(CommandSet commands)
    {
        var which = new Argument<string>("disk") { Description = "Name or id of the disk that goes" };
        var path = new Argument<string>("path") { Description = "Absolute path of the file or raw device that comes" };
        var name = new Option<string>("--name", "-n") { Description = "Name of the new disk (default: made from the path)", HelpName = "NAME" };
        Inputs.CheckName(name);
        Option<ulong> size = Inputs.Size("--size", "-s", "How large to make a file that does not exist yet", required: false);
        var waiting = new Waiting(isHabit: true);
        commands.Add("replace_disk", "Adds a disk, moves everything from an old one to it, and takes the old one out of service", [which, path, name, size, .. waiting.Options], async (context, cancel) =>
        {
            DiskInfo disk = await Inputs.DiskAsync(context, context.Get(which)!, cancel);
            context.Confirm($"replacing disk {disk.Name} ({disk.Path}) by {context.Get(path)}");
            var request = new AddDisk(context.Get(path)!, context.Get(name), context.IsGiven(size) ? context.Get(size) : null);
            return await TaskCommands.BeginAsync(context, waiting, $"v1/disks/{disk.Id:D}/replace", request, ApiJson.Default.AddDisk, cancel);
        },
        "pfcli replace_disk nvme0 /dev/nvme2n1 --yes");
    }
}
