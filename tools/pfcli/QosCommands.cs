using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Limits of volumes.</summary>
internal static class QosCommands
{
    public static void AddTo(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var limits = new Limits();
        commands.Add("set_qos", "Limits what a volume may be asked for; holds at once for who is attached", [name, .. limits.Options], async (context, cancel) =>
        {
            if (!limits.IsAnyGiven(context)) throw new CliException("say --iops, --bandwidth or --burst; 0 takes a limit away", ExitCode.Usage);
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            QosLimits wanted = limits.Of(context, volume.Qos ?? QosLimits.None);
            VolumeInfo changed = await context.Client.ChangeAsync(
                HttpMethod.Patch, Inputs.PathOf(volume.Name), new ChangeVolume(volume.Revision, Qos: wanted), ApiJson.Default.ChangeVolume,
                ApiJson.Default.VolumeInfo, cancel);
            if (!context.Printer.TryJson(changed, ApiJson.Default.VolumeInfo)) context.Printer.Line($"Volume {changed.Name}: {Describe(changed.Qos)}.");
            return ExitCode.Done;
        },
        "pfcli set_qos -v db --iops 5000 --bandwidth 200m",
        "pfcli set_qos -v db --iops 500 --burst 60       # after a quiet minute 30,000 at once",
        "pfcli set_qos -v db --iops 0 --bandwidth 0      # no limits any more");
    }

    /// <summary>Limits in words.</summary>
    public static string Describe(QosLimits? limits)
    {
        if (limits is null || (limits.Iops == 0 && limits.BytesPerSecond == 0)) return "no limits";
        var parts = new List<string>();
        if (limits.Iops > 0) parts.Add(limits.Iops.ToString(CultureInfo.InvariantCulture) + " IOPS");
        if (limits.BytesPerSecond > 0) parts.Add(SizeText.Format(limits.BytesPerSecond) + "/s");
        if (limits.BurstSeconds > 0) parts.Add($"burst of {limits.BurstSeconds.ToString(CultureInfo.InvariantCulture)} s");
        return string.Join(", ", parts);
    }

    /// <summary>The options that set limits.</summary>
    internal sealed class Limits
    {
        private readonly Option<ulong> _iops = new("--iops")
        {
            Description = "Most operations a second; 0: no limit", HelpName = "N",
            CustomParser = result => Parse(result, text => ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ulong n) ? n : null),
        };

        private readonly Option<ulong> _bandwidth = new("--bandwidth")
        {
            Description = "Most bytes read and written a second, for instance 200m; 0: no limit", HelpName = "SIZE",
            CustomParser = result => Parse(result, text => text == "0" ? 0 : SizeText.TryParse(text, out ulong bytes, out _) ? bytes : null),
        };

        private readonly Option<ulong> _burst = new("--burst")
        {
            Description = "What an idle volume saves up, in seconds of its limits (default: a tenth of one)", HelpName = "SECONDS",
            CustomParser = result => Parse(result, text => uint.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out uint n) ? n : null),
        };

        public IReadOnlyList<Option> Options => [_iops, _bandwidth, _burst];

        public bool IsAnyGiven(CommandContext context) => Options.Any(context.IsGiven);

        /// <summary>What stands on the command line, the rest as it was.</summary>
        public QosLimits Of(CommandContext context, QosLimits old)
        {
            var wanted = new QosLimits(
                context.IsGiven(_iops) ? context.Get(_iops) : old.Iops,
                context.IsGiven(_bandwidth) ? context.Get(_bandwidth) : old.BytesPerSecond,
                context.IsGiven(_burst) ? (uint)context.Get(_burst) : old.BurstSeconds);
            return wanted.Fault() is { } fault ? throw new CliException(fault.Detail, ExitCode.Usage) : wanted;
        }

        private static ulong Parse(System.CommandLine.Parsing.ArgumentResult result, Func<string, ulong?> read)
        {
            string text = result.Tokens.Count == 1 ? result.Tokens[0].Value : "";
            if (read(text) is { } number) return number;
            result.AddError($"'{text}' is not a number that this option takes");
            return 0;
        }
    }
}
