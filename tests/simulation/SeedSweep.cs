namespace BlockServer.Tests.Simulation;

/// <summary>Runs many seeds on all cores. Stops at the first violation (or goes on), and says how to see each again.</summary>
public sealed class SeedSweep
{
    private readonly SortedDictionary<ulong, string> _failures = [];

    /// <summary>Seeds that ran.</summary>
    public long Runs { get; private set; }

    /// <summary>Hash of the seed that ended last.</summary>
    public ulong LastHash { get; private set; }

    /// <summary>The violation of the lowest bad seed.</summary>
    public (ulong Seed, Violation Violation)? First { get; private set; }

    /// <summary>What all runs did.</summary>
    public SimulationCounters Counters { get; } = new();

    /// <summary>One text for each bad seed, in the order of seeds: what was wrong and the command that shows it.</summary>
    public IReadOnlyList<string> Failures => [.. _failures.Values];

    /// <summary>Runs the seeds from <paramref name="from"/> to <paramref name="to"/>. <paramref name="twice"/>: each a second
    /// time, which must give the same hash. <paramref name="goOn"/> is asked after every seed, one thread at a time.</summary>
    public static SeedSweep Run(
        ulong from, ulong to, SimulationOptions options, bool twice, bool keepGoing, Func<SeedSweep, bool>? goOn = null)
    {
        var sweep = new SeedSweep();
        ulong next = from;
        bool isOver = false;
        Thread[] workers = [.. Enumerable.Range(0, (int)Math.Min((ulong)Environment.ProcessorCount, to - from + 1)).Select(_ => new Thread(Work))];
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

                SimulationResult result = StoreSimulation.Run(seed, options);
                Violation? fault = result.Violations.Count > 0 ? result.Violations[0] : null;
                if (fault is null && twice && StoreSimulation.Run(seed, options).EventHash != result.EventHash)
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
    public static string Replay(ulong seed, SimulationOptions options) =>
        $"dotnet run -c Release --project tests/simulation -- simulate --seed {seed} --crash-states {options.CrashStates}"
            + (options.LyingDisk is { } lying ? $" --lying {(lying ? "yes" : "no")}" : "")
            + (options.SmallDisk == true ? " --small-disk" : "")
            + options.Driver.Arguments;
}
