using System.CommandLine;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Which front ends offer a volume.</summary>
internal static class ExportCommands
{
    public static void AddTo(CommandSet commands)
    {
        AddExport(commands);
        AddUnexport(commands);
    }

    public static string Describe(ExportOptions export)
    {
        string fronts = (export.Nbd, export.Iscsi) switch
        {
            (true, true) => "nbd, iscsi",
            (true, false) => "nbd",
            (false, true) => "iscsi",
            _ => "none",
        };
        return fronts + (export.ReadOnly ? ", read-only" : "") + (export.NbdIgnoresReservations ? ", NBD ignores reservations" : "");
    }

    private static void AddExport(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var nbd = new Option<bool>("--nbd") { Description = "Offer it over NBD (with neither: over both)" };
        var iscsi = new Option<bool>("--iscsi") { Description = "Offer it over iSCSI" };
        var readOnly = new Option<bool>("--read-only") { Description = "Refuse writes; --read-only=false allows them again" };
        var ignores = new Option<bool>("--nbd-ignores-reservations")
        {
            Description = "NBD clients need not heed what is reserved over iSCSI (for backups); =false: they must again",
        };
        commands.Add("export_volume", "Offers a volume to clients", [name, nbd, iscsi, readOnly, ignores], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            bool both = !context.Get(nbd) && !context.Get(iscsi);
            ExportOptions export = new(
                volume.Export.Nbd || both || context.Get(nbd),
                volume.Export.Iscsi || both || context.Get(iscsi),
                context.IsGiven(readOnly) ? context.Get(readOnly) : volume.Export.ReadOnly,
                context.IsGiven(ignores) ? context.Get(ignores) : volume.Export.NbdIgnoresReservations);
            return await ApplyAsync(context, volume, export, cancel);
        });
    }

    private static void AddUnexport(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var nbd = new Option<bool>("--nbd") { Description = "Withdraw it from NBD (with neither: from both)" };
        var iscsi = new Option<bool>("--iscsi") { Description = "Withdraw it from iSCSI" };
        commands.Add("unexport_volume", "Withdraws a volume from clients; its data stays", [name, nbd, iscsi], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            bool both = !context.Get(nbd) && !context.Get(iscsi);
            if (volume.Sessions > 0)
                context.Confirm($"withdrawing volume {volume.Name} from {volume.Sessions} attached clients");
            ExportOptions export = volume.Export with
            {
                Nbd = volume.Export.Nbd && !both && !context.Get(nbd),
                Iscsi = volume.Export.Iscsi && !both && !context.Get(iscsi),
            };
            return await ApplyAsync(context, volume, export, cancel);
        });
    }

    private static async Task<int> ApplyAsync(
        CommandContext context, VolumeInfo volume, ExportOptions export, CancellationToken cancel)
    {
        VolumeInfo changed = await context.Client.ChangeAsync(
            HttpMethod.Patch, Inputs.PathOf(volume.Name), new ChangeVolume(volume.Revision, Export: export),
            ApiJson.Default.ChangeVolume, ApiJson.Default.VolumeInfo, cancel);
        if (!context.Printer.TryJson(changed, ApiJson.Default.VolumeInfo))
            context.Printer.Line($"Volume {changed.Name} is offered over: {Describe(changed.Export)}.");
        return ExitCode.Done;
    }
}
