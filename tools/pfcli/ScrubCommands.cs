using System.CommandLine;
using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Reading and verifying what lies on the disks.</summary>
internal static class ScrubCommands
{
    public static void AddTo(CommandSet commands)
    {
        var which = new Argument<string>("disk") { Description = "Name or id of the disk" };
        Option<ulong> rate = Inputs.Size("--rate", null, "Read at most this much a second (default: as fast as clients allow)", required: false);
        var waiting = new Waiting(isHabit: true);
        commands.Add("scrub_disk", "Reads everything on a disk and verifies every checksum", [which, rate, .. waiting.Options], async (context, cancel) =>
        {
            DiskInfo disk = await Inputs.DiskAsync(context, context.Get(which)!, cancel);
            return await TaskCommands.BeginAsync(
                context, waiting, $"v1/disks/{disk.Id:D}/scrub", new ScrubRequest(context.Get(rate)), ApiJson.Default.ScrubRequest, cancel);
        },
        "pfcli scrub_disk nvme0",
        "pfcli scrub_disk nvme0 --rate 50m --no-wait");
        commands.Add("list_bad_block", "Lists the blocks that scrubs could not read right", [], async (context, cancel) =>
        {
            BadBlockList list = await context.Client.GetAsync("v1/bad-blocks", ApiJson.Default.BadBlockList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.BadBlockList)) return ExitCode.Done;
            context.Printer.Line($"{list.Blocks.Count} bad blocks returned.");
            context.Printer.Table(
                ["Volume", "Offset", "Reason", "Snapshot", "Found"],
                [.. list.Blocks.Select(b => new[]
                {
                    b.Volume, b.OffsetBytes.ToString(CultureInfo.InvariantCulture), b.Reason, b.Snapshot?.ToString() ?? "",
                    b.FoundAt.ToString("u", CultureInfo.InvariantCulture),
                })]);
            return ExitCode.Done;
        },
        "pfcli list_bad_block");
    }
}
