using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>capacity: what the disks hold, what was promised, and what still fits.</summary>
internal static class CapacityCommand
{
    private static readonly string[] Headings =
        ["Disk", "Raw", "Log", "Metadata", "Reserve", "Usable", "Used", "Free", "Promised", "Thin", "Available", "Overcommit", "Slots"];

    public static void AddTo(CommandSet commands)
    {
        Option<ulong> size = Inputs.Size("--size", "-s", "Say how many more volumes of this size can be promised room", required: false);
        commands.Add("capacity", "Shows what the disks hold, what was promised to volumes, and what still fits", [size], async (context, cancel) =>
        {
            ulong? wanted = context.IsGiven(size) ? context.Get(size) : null;
            string path = wanted is { } bytes ? string.Create(CultureInfo.InvariantCulture, $"v1/capacity?size={bytes}") : "v1/capacity";
            CapacityInfo info = await context.Client.GetAsync(path, ApiJson.Default.CapacityInfo, cancel);
            if (context.Printer.TryJson(info, ApiJson.Default.CapacityInfo)) return ExitCode.Done;
            string[] headings = wanted is { } each ? [.. Headings, "Fits " + SizeText.Format(each)] : Headings;
            var rows = info.Disks.Select(d => Row(d.Draining ? d.Name + ", draining" : d.Name, d.Figures)).ToList();
            rows.Add(Row("all", info.Total));
            context.Printer.Table(headings, rows);
            return ExitCode.Done;
        },
        "pfcli capacity",
        "pfcli capacity -s 100g                       # and how many more volumes of 100 GiB fit");
    }

    private static string[] Row(string name, CapacityFigures c)
    {
        string[] row =
        [
            name, SizeText.Format(c.RawBytes), SizeText.Format(c.LogBytes), SizeText.Format(c.MetadataBytes), SizeText.Format(c.ReserveBytes),
            SizeText.Format(c.UsableBytes), SizeText.Format(c.UsedBytes), SizeText.Format(c.FreeBytes), SizeText.Format(c.PromisedBytes),
            SizeText.Format(c.ThinBytes), SizeText.Format(c.AvailableBytes), c.OvercommitRatio.ToString("0.00", CultureInfo.InvariantCulture),
            (c.MetadataSlots == 0 ? 0 : (double)c.MetadataSlotsUsed / c.MetadataSlots).ToString("P0", CultureInfo.InvariantCulture),
        ];
        return c.Fits is { } fits ? [.. row, fits.ToString(CultureInfo.InvariantCulture)] : row;
    }
}
