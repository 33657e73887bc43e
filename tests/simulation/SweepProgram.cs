using System.Diagnostics;

namespace BlockServer.Tests.Simulation;

/// <summary>The command <c>simulate</c>: a sweep with a word every minute and the figures at its end.</summary>
internal static class SweepProgram
{
    /// <summary>Runs the seeds, a single one twice, for at most <paramref name="hours"/>, and prints what they did.</summary>
    public static SeedSweep<TCounters> Run<TCounters>(ulong from, ulong to, SeedRunner<TCounters> runner, bool keepGoing, double hours)
        where TCounters : IRunCounters<TCounters>, new()
    {
        var watch = Stopwatch.StartNew();
        TimeSpan told = TimeSpan.Zero;
        SeedSweep<TCounters> sweep = SeedSweep<TCounters>.Run(from, to, runner, twice: from == to, keepGoing, soFar =>
        {
            if (from == to || watch.Elapsed - told < TimeSpan.FromMinutes(1)) return watch.Elapsed.TotalHours < hours;
            told = watch.Elapsed;
            Console.WriteLine($"{watch.Elapsed:hh\\:mm\\:ss} {soFar.Runs} seeds: {soFar.Counters}");
            return watch.Elapsed.TotalHours < hours;
        });
        foreach (string failure in sweep.Failures) Console.WriteLine(failure);
        if (from == to) Console.WriteLine($"hash {sweep.LastHash:x16}");
        Console.WriteLine($"{sweep.Runs} seeds from {from}, {sweep.Failures.Count} bad, {watch.Elapsed.TotalSeconds:F1} s: {sweep.Counters}");
        return sweep;
    }
}
