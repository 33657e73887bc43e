using System.CommandLine;
using System.Globalization;
using System.Text.Json.Serialization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Live rates and latencies, computed from two readings of the daemon's counters.</summary>
internal static class TopCommand
{
    private static readonly string[] Headings =
        ["Volume", "R IOPS", "R rate", "R p50", "R p99", "R queue", "R device", "W IOPS", "W rate", "W p50", "W p99", "W queue", "W device", "Errors"];

    public static void AddTo(CommandSet commands)
    {
        var count = new Option<int?>("--count", "-c") { Description = "How many samples to take (default: until interrupted)", HelpName = "N" };
        count.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && int.TryParse(result.Tokens[0].Value, CultureInfo.InvariantCulture, out int n) && n < 1)
                result.AddError("--count is at least 1");
        });
        var interval = new Option<double>("--interval", "-i")
        {
            Description = "Seconds between samples", HelpName = "SECONDS", DefaultValueFactory = _ => 1,
        };
        interval.Validators.Add(result =>
        {
            if (result.Tokens.Count == 1 && double.TryParse(result.Tokens[0].Value, CultureInfo.InvariantCulture, out double s)
                && !(s >= 0.1 && s <= 3600))
                result.AddError("--interval is between 0.1 and 3600 seconds");
        });
        var volume = new Option<string>("--volume_name", "-v") { Description = "Only this volume", HelpName = "NAME" };
        Inputs.CheckName(volume);
        commands.Add("top", "Shows live rates and latencies of the volumes that have been used since the daemon started", [count, interval, volume], async (context, cancel) =>
        {
            TimeSpan every = TimeSpan.FromSeconds(context.Get(interval));
            // One that nobody has used is empty, and one that does not exist a mistake.
            if (context.Get(volume) is { } only) await Inputs.VolumeAsync(context, only, cancel);
            StatsInfo before = await context.Client.GetAsync("v1/stats", ApiJson.Default.StatsInfo, cancel);
            for (int taken = 0; context.Get(count) is not { } last || taken < last; taken++)
            {
                try
                {
                    await context.Host.Delay(every, cancel);
                }
                catch (OperationCanceledException) when (context.Get(count) is null)
                {
                    break; // Ctrl-C is how an endless top is meant to end.
                }

                StatsInfo after = await context.Client.GetAsync("v1/stats", ApiJson.Default.StatsInfo, cancel);
                Print(context, TopSample.Between(before, after, context.Get(volume)));
                before = after;
            }

            return ExitCode.Done;
        });
    }

    private static void Print(CommandContext context, TopSample sample)
    {
        if (context.Printer.TryJson(sample, TopJson.Default.TopSample)) return;
        if (context.Host.OutIsTerminal) context.Host.Out.Write("\x1b[H\x1b[J");
        context.Printer.Line(string.Create(
            CultureInfo.InvariantCulture, $"{sample.At:u}  CPU {sample.CpuPercent:0.0} %  {sample.Volumes.Count} volumes"));
        context.Printer.Table(Headings, [.. sample.Volumes.Select(Row)]);
        context.Host.Out.Flush();
    }

    private static string[] Row(TopVolume v) =>
    [
        v.Volume, Number(v.ReadIops), SizeText.Format((ulong)v.ReadBytesPerSecond) + "/s", Micros(v.ReadP50Micros), Micros(v.ReadP99Micros),
        Micros(v.ReadQueueMicros), Micros(v.ReadDeviceMicros),
        Number(v.WriteIops), SizeText.Format((ulong)v.WriteBytesPerSecond) + "/s", Micros(v.WriteP50Micros), Micros(v.WriteP99Micros),
        Micros(v.WriteQueueMicros), Micros(v.WriteDeviceMicros),
        v.Errors.ToString(CultureInfo.InvariantCulture),
    ];

    private static string Number(double value) => value.ToString("0", CultureInfo.InvariantCulture);

    private static string Micros(double? micros) => micros switch
    {
        null => "-",
        < 1000 => string.Create(CultureInfo.InvariantCulture, $"{micros:0} us"),
        < 1_000_000 => string.Create(CultureInfo.InvariantCulture, $"{micros / 1000:0.0} ms"),
        _ => string.Create(CultureInfo.InvariantCulture, $"{micros / 1_000_000:0.0} s"),
    };
}

/// <summary>Rates of one volume. Latencies are microseconds, null when nothing was done; what a request waited to be let in (queue) and
/// took from then on (device) are means.</summary>
public sealed record TopVolume(
    string Volume, double ReadIops, double ReadBytesPerSecond, double? ReadP50Micros, double? ReadP99Micros,
    double WriteIops, double WriteBytesPerSecond, double? WriteP50Micros, double? WriteP99Micros, ulong Errors,
    double? ReadQueueMicros = null, double? ReadDeviceMicros = null, double? WriteQueueMicros = null, double? WriteDeviceMicros = null);

/// <summary>What happened between two readings of the counters.</summary>
public sealed record TopSample(DateTimeOffset At, double Seconds, double CpuPercent, IReadOnlyList<TopVolume> Volumes)
{
    /// <summary>Rates between two readings; a daemon or volume restarted in between counts from zero.</summary>
    public static TopSample Between(StatsInfo before, StatsInfo after, string? only = null)
    {
        // The daemon's own uptime, not our clock: the answer may have been slow to come.
        bool restarted = after.UptimeSeconds < before.UptimeSeconds;
        double seconds = Math.Max(restarted ? after.UptimeSeconds : after.UptimeSeconds - before.UptimeSeconds, 1e-3);
        double cpu = restarted ? after.CpuSeconds : after.CpuSeconds - before.CpuSeconds;
        var old = restarted ? [] : before.Volumes.ToDictionary(v => v.Volume, StringComparer.Ordinal);
        return new TopSample(after.At, seconds, 100 * cpu / seconds,
        [
            .. after.Volumes.Where(v => only is null || v.Volume == only)
                .Select(v => Rates(old.GetValueOrDefault(v.Volume), v, seconds)),
        ]);
    }

    private static TopVolume Rates(VolumeStats? before, VolumeStats after, double seconds)
    {
        // Counters that went back are those of a volume opened anew.
        if (before is not null && (before.ReadOps > after.ReadOps || before.WriteOps > after.WriteOps || before.Errors > after.Errors))
            before = null;
        ulong[] reads = LatencyHistogram.Difference(before?.ReadHistogram, after.ReadHistogram);
        ulong[] writes = LatencyHistogram.Difference(before?.WriteHistogram, after.WriteHistogram);
        return new TopVolume(
            after.Volume,
            (after.ReadOps - (before?.ReadOps ?? 0)) / seconds, Less(after.ReadBytes, before?.ReadBytes) / seconds,
            LatencyHistogram.Quantile(reads, 0.50), LatencyHistogram.Quantile(reads, 0.99),
            (after.WriteOps - (before?.WriteOps ?? 0)) / seconds, Less(after.WriteBytes, before?.WriteBytes) / seconds,
            LatencyHistogram.Quantile(writes, 0.50), LatencyHistogram.Quantile(writes, 0.99),
            after.Errors - (before?.Errors ?? 0),
            Mean(after.ReadQueueNanos, before?.ReadQueueNanos, after.ReadOps, before?.ReadOps),
            Mean(after.ReadNanos - after.ReadQueueNanos, before?.ReadNanos - before?.ReadQueueNanos, after.ReadOps, before?.ReadOps),
            Mean(after.WriteQueueNanos, before?.WriteQueueNanos, after.WriteOps, before?.WriteOps),
            Mean(after.WriteNanos - after.WriteQueueNanos, before?.WriteNanos - before?.WriteQueueNanos, after.WriteOps, before?.WriteOps));
    }

    private static double? Mean(ulong nanos, ulong? nanosBefore, ulong ops, ulong? opsBefore) =>
        ops > (opsBefore ?? 0) ? Less(nanos, nanosBefore) / 1000 / (ops - (opsBefore ?? 0)) : null;

    private static double Less(ulong after, ulong? before) => after >= (before ?? 0) ? after - (before ?? 0) : 0;
}

/// <summary>Latency histograms: bucket i counts operations of less than 2^i and at least 2^(i-1) microseconds.</summary>
public static class LatencyHistogram
{
    /// <summary>What was counted since <paramref name="before"/>.</summary>
    public static ulong[] Difference(IReadOnlyList<ulong>? before, IReadOnlyList<ulong> after)
    {
        var counts = new ulong[after.Count];
        for (int i = 0; i < counts.Length; i++)
        {
            ulong old = before is not null && i < before.Count ? before[i] : 0;
            counts[i] = after[i] >= old ? after[i] - old : after[i];
        }

        return counts;
    }

    /// <summary>Microseconds that the given part of the operations stayed below, by straight line inside a bucket; null
    /// when there were none.</summary>
    public static double? Quantile(IReadOnlyList<ulong> counts, double part)
    {
        double total = 0;
        foreach (ulong count in counts) total += count;
        if (total == 0) return null;
        double wanted = total * part, seen = 0;
        for (int i = 0; i < counts.Count; i++)
        {
            if (counts[i] > 0 && seen + counts[i] >= wanted)
            {
                double low = i == 0 ? 0 : Math.Pow(2, i - 1);
                return low + (Math.Pow(2, i) - low) * (wanted - seen) / counts[i];
            }

            seen += counts[i];
        }

        return Math.Pow(2, counts.Count - 1);
    }
}

/// <summary>Source-generated JSON of pfcli's own output.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(TopSample))]
internal sealed partial class TopJson : JsonSerializerContext;
