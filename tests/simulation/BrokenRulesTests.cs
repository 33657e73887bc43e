using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Trust in the tests (trust C.6): each rule that the store breaks on purpose must be noticed.</summary>
public sealed class BrokenRulesTests(ITestOutputHelper output)
{
    /// <summary>Looks for the first seed or crash workload that shows it.</summary>
    [Theory]
    [InlineData(BrokenRules.SkipFlushBeforeHome)]
    [InlineData(BrokenRules.FreeEarly)]
    [InlineData(BrokenRules.CompleteBeforeLog)]
    [InlineData(BrokenRules.AckBeforeData)]
    [InlineData(BrokenRules.NoEndOfRecoveryCheckpoint)]
    [InlineData(BrokenRules.AnyIncarnation)]
    [InlineData(BrokenRules.SkipTailCrc)]
    [InlineData(BrokenRules.ReuseAtDurable)]
    [InlineData(BrokenRules.SplitRequests)]
    public void A_broken_rule_is_noticed(BrokenRules broken)
    {
        for (ulong seed = 1; seed <= (ulong)Settings.BrokenSeeds; seed++)
        {
            var options = new SimulationOptions { Driver = new StorageDriver(broken), CrashStates = 40, LyingDisk = false };
            SimulationResult result = StoreSimulation.Run(seed, options);
            if (result.Violations.Count == 0) continue;
            output.WriteLine($"{broken}: found by seed {seed}: {result.Violations[0]}");
            return;
        }

        Assert.Fail($"{broken} was not found in {Settings.BrokenSeeds} seeds");
    }
}
