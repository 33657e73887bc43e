namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>Runs many seeds of <see cref="SessionSimulation"/> on all cores. Stops at the first violation (or goes on), and
/// says how to see each again.</summary>
public sealed class SessionSweep
{
    private readonly SortedDictionary<ulong, string> _failures = [];

    /// <summary>Seeds that ran.</summary>
    public long Runs { get; private set; }

    /// <summary>Hash of the seed that ended last.</summary>
    public ulong LastHash { get; private set; }

    /// <summary>The violation of the lowest bad seed.</summary>
    public (ulong Seed, Violation Violation)? First { get; private set; }

    /// <summary>What all runs did.</summary>
    public SessionCounters Counters { get; } = new();

    /// <summary>One text for each bad seed, in the order of seeds: what was wrong and the command that shows it.</summary>
    public IReadOnlyList<string> Failures => [.. _failures.Values];

    /// <summary>Runs the seeds from <paramref name="from"/> to <paramref name="to"/>. <paramref name="twice"/>: each a second
    /// time, which must give the same hash. <paramref name="goOn"/> is asked after every seed, one thread at a time.</summary>
    public static SessionSweep Run(
        ulong from, ulong to, SessionOptions options, bool twice, bool keepGoing, Func<SessionSweep, bool>? goOn = null)
    {
        var sweep = new SessionSweep();
        ulong next = from;
        bool isOver = false;
        int threads = (int)Math.Min((ulong)Environment.ProcessorCount, to - from + 1);
        Thread[] workers = [.. Enumerable.Range(0, threads).Select(_ => new Thread(Work, 16 << 20))];
        foreach (Thread worker in workers) worker.Start();
        foreach (Thread worker in workers) worker.Join();
        return sweep;

        void Work()
        {
            while (true)
            {
                ulong seed;
                lock (sweep)
                {
                    if (isOver || next > to) return;
                    seed = next++;
                }

                SessionResult result = SessionSimulation.Run(seed, options);
                Violation? fault = result.Violations.Count > 0 ? result.Violations[0] : null;
                if (fault is null && twice && SessionSimulation.Run(seed, options).EventHash != result.EventHash)
                    fault = new Violation(ViolationKind.OtherEvents, $"seed {seed} gave other events the second time");
                lock (sweep)
                {
                    sweep.Runs++;
                    sweep.LastHash = result.EventHash;
                    sweep.Counters.Add(result.Counters);
                    if (fault is not null && !(sweep.First?.Seed < seed)) sweep.First = (seed, fault);
                    if (fault is not null) sweep._failures.Add(seed, $"{fault}\n  replay: {Replay(seed, options)}");
                    isOver |= (fault is not null && !keepGoing) || (goOn is not null && !goOn(sweep));
                }
            }
        }
    }

    /// <summary>The command that runs one seed again in the same way.</summary>
    public static string Replay(ulong seed, SessionOptions options) =>
        $"dotnet run -c Release --project tests/simulation -- simulate --sessions --seed {seed}"
            + (options.Breakage == SessionBreakage.None ? "" : $" --broken {options.Breakage}");
}
