using System.Globalization;
using System.CommandLine;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Who has reserved volumes over iSCSI.</summary>
internal static class ReservationCommands
{
    private static readonly string[] Headings = ["Volume", "Type", "Initiator", "Port", "Key", "Holder", "Attached", "Persistent"];

    public static void AddTo(CommandSet commands)
    {
        commands.Add("list_reservation", "Lists who has reserved volumes over iSCSI, or is registered to", [], async (context, cancel) =>
        {
            VolumeList list = await context.Client.GetAsync("v1/volumes", ApiJson.Default.VolumeList, cancel);
            list = new VolumeList([.. list.Volumes.Where(v => v.Reservation is not null)]);
            if (context.Printer.TryJson(list, ApiJson.Default.VolumeList)) return ExitCode.Done;
            context.Printer.Line($"{list.Volumes.Count} volumes returned.");
            context.Printer.Table(Headings, [.. list.Volumes.SelectMany(v => Rows(v.Name, v.Reservation!))]);
            return ExitCode.Done;
        });
        Option<string> name = Inputs.Volume();
        commands.Add("clear_reservation", "Ends every reservation and registration of a volume, damaged ones too", [name], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            if (volume.Reservation is { } reservation)
                context.Confirm($"ending the reservation of volume {volume.Name} ({Describe(reservation)}), which may keep initiators from writing at once");
            await context.Client.DeleteAsync(Inputs.PathOf(volume.Name) + "/reservations", cancel);
            context.Printer.Line($"Volume {volume.Name} is reserved by nobody.");
            return ExitCode.Done;
        });
    }

    /// <summary>In one line.</summary>
    public static string Describe(ReservationInfo? reservation)
    {
        if (reservation is null) return "none";
        if (reservation.Fault is { } fault) return "unknown: " + fault;
        string holder = reservation.Holder is { } port ? " by " + port : reservation.Type == "none" ? "" : " by all registrants";
        return string.Create(
            CultureInfo.InvariantCulture,
            $"{reservation.Type}{holder}, {reservation.Registrants.Count} registered{(reservation.Persistent ? ", survives a restart" : "")}");
    }

    private static IEnumerable<string[]> Rows(string volume, ReservationInfo r)
    {
        if (r.Registrants.Count == 0) return [[volume, r.Type, r.Holder ?? "-", "-", "-", r.Holder is null ? "-" : "yes", "-", Word(r.Persistent)]];
        return r.Registrants.Select(one => new[]
        {
            volume, r.Type, one.Initiator, one.Port.ToString(CultureInfo.InvariantCulture), one.Key, Word(one.Holder), Word(one.Attached), Word(r.Persistent),
        });
    }

    private static string Word(bool isSo) => isSo ? "yes" : "no";
}
