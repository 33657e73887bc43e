using System.Globalization;
using Microsoft.Diagnostics.Tracing;

namespace BlockServer.Bench.Micro;

/// <summary>Reads an event trace of the runtime for bench/load/profile.sh and prints what was allocated, by type.</summary>
internal static class AllocationTrace
{
    /// <summary>FILE, begin and end in milliseconds since 1970, number of I/Os in that time.</summary>
    public static int Print(string[] args)
    {
        long[] numbers = [.. args[1..].Select(a => long.Parse(a, CultureInfo.InvariantCulture))];
        (long begin, long end, long ios) = (numbers[0], numbers[1], numbers[2]);
        var types = new Dictionary<string, long>();
        int collections = 0;
        using var source = new EventPipeEventSource(args[0]);
        source.Clr.GCAllocationTick += tick =>
        {
            if (!IsInside(tick)) return;
            string type = tick.TypeName.Length > 0 ? tick.TypeName : "(unknown)";
            types[type] = types.GetValueOrDefault(type) + tick.AllocationAmount64;
        };
        source.Clr.GCStart += start => collections += IsInside(start) ? 1 : 0;
        source.Process();

        long bytes = types.Values.Sum();
        Console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{bytes} B = {(double)bytes / ios:F3} B per I/O, {bytes / 1024.0 / 1024 / ((end - begin) / 1000.0):F2} MiB/s, {collections} collections"));
        foreach ((string type, long amount) in types.OrderByDescending(t => t.Value).Take(20))
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{amount,12} B  {type}"));
        return 0;

        bool IsInside(TraceEvent e)
        {
            long at = new DateTimeOffset(e.TimeStamp.ToUniversalTime()).ToUnixTimeMilliseconds();
            return at >= begin && at <= end;
        }
    }
}
