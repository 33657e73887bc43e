using System.Diagnostics;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>The command <c>simulate --sessions</c>.</summary>
internal static class SessionProgram
{
    /// <summary>Runs the seeds and prints what they did; the exit code.</summary>
    public static int Run(ulong from, ulong to, string? broken, double hours, bool keepGoing, bool traces)
    {
        var options = new SessionOptions
        {
            Breakage = broken is null ? SessionBreakage.None : Enum.Parse<SessionBreakage>(broken),
            Trace = traces ? Console.WriteLine : null,
        };
        var watch = Stopwatch.StartNew();
        TimeSpan told = TimeSpan.Zero;
        SessionSweep sweep = SessionSweep.Run(from, to, options, twice: from == to, keepGoing, soFar =>
        {
            if (from == to || watch.Elapsed - told < TimeSpan.FromMinutes(1)) return watch.Elapsed.TotalHours < hours;
            told = watch.Elapsed;
            Console.WriteLine($"{watch.Elapsed:hh\\:mm\\:ss} {soFar.Runs} seeds: {soFar.Counters}");
            return watch.Elapsed.TotalHours < hours;
        });
        foreach (string failure in sweep.Failures) Console.WriteLine(failure);
        if (from == to) Console.WriteLine($"hash {sweep.LastHash:x16}");
        Console.WriteLine($"{sweep.Runs} seeds from {from}, {sweep.Failures.Count} bad, {watch.Elapsed.TotalSeconds:F1} s: {sweep.Counters}");
        if (sweep.Counters.Missing.Count > 0) Console.WriteLine($"never happened: {string.Join(", ", sweep.Counters.Missing)}");
        return sweep.Failures.Count == 0 ? 0 : 1;
    }
}
