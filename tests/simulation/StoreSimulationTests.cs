using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Seeds of <see cref="StoreSimulation"/>. <see cref="Settings"/> says how many.</summary>
public sealed class StoreSimulationTests(ITestOutputHelper output)
{
    /// <summary>The oracle is content with a store that is right; the seeds are as many as a few seconds allow.</summary>
    [Fact]
    public void The_simplest_right_store_passes()
    {
        var options = new SimulationOptions { Driver = new LogStoreDriver(), CrashStates = 10 };
        SeedSweep<SimulationCounters> sweep = StoreSimulation.Sweep(1, 60, options, twice: false, keepGoing: true);
        Assert.True(sweep.Failures.Count == 0, string.Join('\n', sweep.Failures));
    }

    /// <summary>The oracle finds a store that is wrong, and says in which way.</summary>
    [Theory]
    [InlineData(LogStore.Breakage.AckEarly)]
    [InlineData(LogStore.Breakage.NoFlush)]
    [InlineData(LogStore.Breakage.NoCrc)]
    public void A_simple_store_that_is_wrong_is_caught(LogStore.Breakage broken)
    {
        var options = new SimulationOptions { Driver = new LogStoreDriver(broken), CrashStates = 10, LyingDisk = false };
        SeedSweep<SimulationCounters> sweep = StoreSimulation.Sweep(1, 60, options, twice: false, keepGoing: false);
        Assert.True(sweep.First is not null, $"{broken} was not found");
        output.WriteLine($"{broken}: {sweep.First.Value.Violation}");
        SeedSweep<SimulationCounters> honest = StoreSimulation.Sweep(
            sweep.First.Value.Seed, sweep.First.Value.Seed, options with { Driver = new LogStoreDriver() }, twice: false, keepGoing: true);
        Assert.True(honest.Failures.Count == 0, string.Join('\n', honest.Failures));
    }

    /// <summary>Every seed runs twice: nothing may depend on anything but the seed. With the default seeds every fault must
    /// have happened and every promise must have been judged.</summary>
    [Fact]
    public void Every_seed_gives_the_same_events_twice_and_no_violation()
    {
        var options = new SimulationOptions { Driver = Drivers.Default(), CrashStates = Settings.StatesPerSeed };
        SeedSweep<SimulationCounters> sweep = StoreSimulation.Sweep(1, (ulong)Settings.Seeds, options, twice: true, keepGoing: true);
        output.WriteLine($"{sweep.Runs} seeds: {sweep.Counters}");
        Assert.True(sweep.Failures.Count == 0, string.Join('\n', sweep.Failures));
        if (Settings.Seeds < 1_000) return; // too few for the rarest
        Assert.Empty(sweep.Counters.Missing);
        Assert.True(sweep.Counters[Did.CrashStates] >= Settings.CrashStates / 2);
    }
}
