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
        SeedSweep<SessionCounters> sweep = SweepProgram.Run(from, to, SessionSimulation.RunnerOf(options), keepGoing, hours);
        if (sweep.Counters.Missing.Count > 0) Console.WriteLine($"never happened: {string.Join(", ", sweep.Counters.Missing)}");
        return sweep.Failures.Count == 0 ? 0 : 1;
    }
}
