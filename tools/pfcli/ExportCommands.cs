using System.CommandLine;
using System.Globalization;
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
        string block = export.BlockBytes == 512 ? "" : $", blocks of {export.BlockBytes.ToString(CultureInfo.InvariantCulture)} bytes";
        return fronts + (export.ReadOnly ? ", read-only" : "") + (export.Thick ? ", thick" : "") + (export.Removable ? ", removable" : "") + block
            + (export.NbdIgnoresReservations ? ", NBD ignores reservations" : "")
            + (export.NbdClients is { } clients ? $", NBD for {clients.Replace(";", " or ", StringComparison.Ordinal)} only" : "");
    }

    /// <summary>How a volume looks, whoever offers it: options of making it and of exporting it.</summary>
    public sealed class Looks
    {
        private readonly Option<bool> _readOnly = new("--read-only") { Description = "Every front end refuses writes; =false allows them again" };
        private readonly Option<bool> _thick = new("--thick")
        {
            Description = "Allocate all blocks, in the background, and give none back; =false lets trims give them back again",
        };

        private readonly Option<bool> _removable = new("--removable") { Description = "Over iSCSI a medium that can be ejected; =false: a fixed disk" };
        private readonly Option<int> _blockBytes = new("--block-size") { Description = "Logical block over iSCSI: 512 or 4096", HelpName = "BYTES" };

        public Looks() => _blockBytes.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && result.Tokens[0].Value is not ("512" or "4096")) result.AddError("--block-size is 512 or 4096");
        });

        public IReadOnlyList<Option> Options => [_readOnly, _thick, _removable, _blockBytes];

        /// <summary>What was said, in place of what was.</summary>
        public ExportOptions Of(CommandContext context, ExportOptions before) => before with
        {
            ReadOnly = context.IsGiven(_readOnly) ? context.Get(_readOnly) : before.ReadOnly,
            Thick = context.IsGiven(_thick) ? context.Get(_thick) : before.Thick,
            Removable = context.IsGiven(_removable) ? context.Get(_removable) : before.Removable,
            BlockBytes = context.IsGiven(_blockBytes) ? context.Get(_blockBytes) : before.BlockBytes,
        };
    }

    private static void AddExport(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var nbd = new Option<bool>("--nbd") { Description = "Offer it over NBD (with neither: over both)" };
        var iscsi = new Option<bool>("--iscsi") { Description = "Offer it over iSCSI" };
        var looks = new Looks();
        var ignores = new Option<bool>("--nbd-ignores-reservations")
        {
            Description = "NBD clients need not heed what is reserved over iSCSI (for backups); =false: they must again",
        };
        var clients = new Option<string[]>("--nbd-clients")
        {
            Description = "Only NBD clients whose certificate has such a subject, for instance 'CN=acme-*'; unix: unix sockets; any: everybody again",
            HelpName = "PATTERN",
            AllowMultipleArgumentsPerToken = true,
        };
        commands.Add("export_volume", "Offers a volume to clients", [name, nbd, iscsi, clients, ignores, .. looks.Options], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            bool both = !context.Get(nbd) && !context.Get(iscsi);
            ExportOptions export = looks.Of(context, volume.Export) with
            {
                Nbd = volume.Export.Nbd || both || context.Get(nbd),
                Iscsi = volume.Export.Iscsi || both || context.Get(iscsi),
                NbdIgnoresReservations = context.IsGiven(ignores) ? context.Get(ignores) : volume.Export.NbdIgnoresReservations,
                NbdClients = context.IsGiven(clients) ? RulesOf(context.Get(clients)!) : volume.Export.NbdClients,
            };
            return await ApplyAsync(context, volume, export, cancel);
        });
    }

    private static string? RulesOf(string[] patterns) => patterns is ["any"] ? null : string.Join(';', patterns);

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
