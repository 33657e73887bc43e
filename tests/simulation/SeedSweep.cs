namespace BlockServer.Tests.Simulation;

/// <summary>Plain counts of a run, or of many.</summary>
public interface IRunCounters<TSelf> where TSelf : IRunCounters<TSelf>
{
    /// <summary>Everything that never happened.</summary>
    IReadOnlyList<string> Missing { get; }

    /// <summary>Adds another run's counts.</summary>
    void Add(TSelf other);
}

/// <summary>What a run gave: equal seeds give equal hashes; no violations is the aim.</summary>
public sealed record SeedResult<TCounters>(ulong Seed, ulong EventHash, IReadOnlyList<Violation> Violations, TCounters Counters);

/// <summary>How one seed of a simulation is run, and the command that runs it again in the same way.</summary>
public sealed record SeedRunner<TCounters>(Func<ulong, SeedResult<TCounters>> Run, Func<ulong, string> Replay);

/// <summary>Runs many seeds on all cores. Stops at the first violation (or goes on), and says how to see each again.</summary>
public sealed class SeedSweep<TCounters> where TCounters : IRunCounters<TCounters>, new()
{
    // Simulated worlds run deep: an answer given at once goes on inside the call.
    private const int StackBytes = 16 << 20;

    private readonly SortedDictionary<ulong, string> _failures = [];

    /// <summary>Seeds that ran.</summary>
    public long Runs { get; private set; }

    /// <summary>Hash of the seed that ended last.</summary>
    public ulong LastHash { get; private set; }

    /// <summary>The violation of the lowest bad seed.</summary>
    public (ulong Seed, Violation Violation)? First { get; private set; }

    /// <summary>What all runs did.</summary>
    public TCounters Counters { get; } = new();

    /// <summary>One text for each bad seed, in the order of seeds: what was wrong and the command that shows it.</summary>
    public IReadOnlyList<string> Failures => [.. _failures.Values];

    /// <summary>Runs the seeds from <paramref name="from"/> to <paramref name="to"/>. <paramref name="twice"/>: each a second
    /// time, which must give the same hash. <paramref name="goOn"/> is asked after every seed, one thread at a time.</summary>
    internal static SeedSweep<TCounters> Run(
        ulong from, ulong to, SeedRunner<TCounters> runner, bool twice, bool keepGoing, Func<SeedSweep<TCounters>, bool>? goOn)
    {
        var sweep = new SeedSweep<TCounters>();
        ulong next = from;
        bool isOver = false;
        int threads = (int)Math.Min((ulong)Environment.ProcessorCount, to - from + 1);
        Thread[] workers = [.. Enumerable.Range(0, threads).Select(_ => new Thread(Work, StackBytes))];
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

                SeedResult<TCounters> result = runner.Run(seed);
                Violation? fault = result.Violations.Count > 0 ? result.Violations[0] : null;
                if (fault is null && twice && runner.Run(seed).EventHash != result.EventHash)
                    fault = new Violation(ViolationKind.OtherEvents, $"seed {seed} gave other events the second time");
                lock (sweep)
                {
                    sweep.Runs++;
                    sweep.LastHash = result.EventHash;
                    sweep.Counters.Add(result.Counters);
                    if (fault is not null && !(sweep.First?.Seed < seed)) sweep.First = (seed, fault);
                    if (fault is not null) sweep._failures.Add(seed, $"{fault}\n  replay: {runner.Replay(seed)}");
                    isOver |= (fault is not null && !keepGoing) || (goOn is not null && !goOn(sweep));
                }
            }
        }
    }
}
