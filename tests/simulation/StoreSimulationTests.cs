using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Seeds of <see cref="StoreSimulation"/>. <see cref="Settings"/> says how many.</summary>
public sealed class StoreSimulationTests(ITestOutputHelper output)
{
    /// <summary>The oracle is content with a store that is right; the seeds are as many as a few seconds allow.</summary>
    [Fact]
    public void The_simplest_right_store_passes()
    {
        for (ulong seed = 1; seed <= 60; seed++)
        {
            SimulationResult result = StoreSimulation.Run(seed, new SimulationOptions { Driver = new LogStoreDriver(), CrashStates = 10 });
            Assert.True(result.Violations.Count == 0, string.Join('\n', result.Violations));
        }
    }

    /// <summary>The oracle finds a store that is wrong.</summary>
    [Theory]
    [InlineData(LogStore.Breakage.AckEarly)]
    [InlineData(LogStore.Breakage.NoFlush)]
    [InlineData(LogStore.Breakage.NoCrc)]
    public void A_simple_store_that_is_wrong_is_caught(LogStore.Breakage broken)
    {
        for (ulong seed = 1; seed <= 60; seed++)
        {
            var options = new SimulationOptions { Driver = new LogStoreDriver(broken), CrashStates = 10, LyingDisk = false };
            SimulationResult result = StoreSimulation.Run(seed, options);
            if (result.Violations.Count == 0) continue;
            output.WriteLine($"{broken}: found by seed {seed}: {result.Violations[0]}");
            return;
        }

        Assert.Fail($"{broken} was not found");
    }

    /// <summary>Every seed runs twice: nothing may depend on anything but the seed.</summary>
    [Fact]
    public void Every_seed_gives_the_same_events_twice_and_no_violation()
    {
        int seeds = Settings.Seeds;
        int states = Settings.CrashStates / 2;
        var sum = new SimulationCounters();
        for (ulong seed = 1; seed <= (ulong)seeds; seed++)
        {
            var options = new SimulationOptions { Driver = Drivers.Default(), CrashStates = (states + seeds - 1) / seeds };
            SimulationResult first = StoreSimulation.Run(seed, options);
            Assert.True(first.Violations.Count == 0, string.Join('\n', first.Violations));
            Assert.Equal(first.EventHash, StoreSimulation.Run(seed, options).EventHash);
            sum.Add(first.Counters);
        }

        output.WriteLine($"{seeds} seeds: {sum}");
    }
}
