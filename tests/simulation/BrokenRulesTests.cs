using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>
/// Trust in the tests (trust C.6): each rule that the store breaks on purpose must be noticed, by a symptom that the rule
/// explains, in a world in which the same seed finds nothing wrong with the honest store.
/// </summary>
public sealed class BrokenRulesTests(ITestOutputHelper output)
{
    /// <summary>The rules, and what breaking each may look like.</summary>
    public static TheoryData<BrokenRules, ViolationKind[]> Rules => new()
    {
        { BrokenRules.SkipFlushBeforeHome, [ViolationKind.Unreadable, ViolationKind.LostWrite, ViolationKind.TornRequest, ViolationKind.Refused] },
        { BrokenRules.FreeEarly, [ViolationKind.Unreadable, ViolationKind.WrongScrub] },
        { BrokenRules.CompleteBeforeLog, [ViolationKind.LostWrite, ViolationKind.LostVolume, ViolationKind.Refused] },
        { BrokenRules.AckBeforeData, [ViolationKind.LostWrite, ViolationKind.Unreadable] },
        { BrokenRules.NoEndOfRecoveryCheckpoint, [ViolationKind.LostVolume, ViolationKind.LostWrite] },
        { BrokenRules.SkipTailCrc, [ViolationKind.Unreadable] },
        { BrokenRules.SplitRequests, [ViolationKind.TornRequest] },
        { BrokenRules.SkipFlush, [ViolationKind.LostWrite, ViolationKind.LostVolume] },
        { BrokenRules.RetryFlush, [ViolationKind.DiskMisuse] },
        { BrokenRules.FlushTogether, [ViolationKind.DiskMisuse, ViolationKind.Refused] },
        { BrokenRules.AcceptTornLogPage, [ViolationKind.Refused, ViolationKind.LostWrite, ViolationKind.WrongData] },
        { BrokenRules.SuperblockFirst, [ViolationKind.Refused, ViolationKind.LostVolume, ViolationKind.LostWrite] },
        { BrokenRules.TrimLogTooFar, [ViolationKind.LostWrite, ViolationKind.Refused, ViolationKind.LostVolume] },
        { BrokenRules.SkipReadCrc, [ViolationKind.WrongData] },
        { BrokenRules.FreeShared, [ViolationKind.Exception, ViolationKind.Unreadable, ViolationKind.WrongData, ViolationKind.Refused] },
        { BrokenRules.DropSharedBlocks, [ViolationKind.Exception, ViolationKind.Unreadable, ViolationKind.WrongData, ViolationKind.Refused] },
        { BrokenRules.DropLayerFirst, [ViolationKind.Exception, ViolationKind.Refused] },
        { BrokenRules.WriteIntoSnapshot, [ViolationKind.WrongData] },
        { BrokenRules.ForgetBelow, [ViolationKind.LostWrite, ViolationKind.WrongData, ViolationKind.StaleRead, ViolationKind.TornRequest, ViolationKind.Exception] },
        { BrokenRules.IgnoreClones, [ViolationKind.WrongAnswer] },
        { BrokenRules.ReuseUnderRead, [ViolationKind.Unreadable, ViolationKind.WrongScrub] },
        { BrokenRules.FreeRelaidEarly, [ViolationKind.Unreadable, ViolationKind.LostWrite, ViolationKind.WrongScrub, ViolationKind.Refused] },
        { BrokenRules.RelayOverWrite, [ViolationKind.LostWrite, ViolationKind.StaleRead, ViolationKind.WrongData, ViolationKind.Unreadable, ViolationKind.WrongScrub] },
    };

    /// <summary>Looks for the first seed that shows it.</summary>
    [Theory]
    [MemberData(nameof(Rules))]
    public void A_broken_rule_is_noticed_by_its_symptom(BrokenRules broken, ViolationKind[] symptoms)
    {
        var options = new SimulationOptions
        {
            Driver = new StorageDriver(broken),
            CrashStates = 40,
            // Rot is what checksums are for; elsewhere a disk that lies would only offer excuses.
            LyingDisk = broken == BrokenRules.SkipReadCrc,
            // A block that is reused too soon needs a disk on which blocks are reused at once.
            SmallDisk = broken is BrokenRules.ReuseUnderRead or BrokenRules.FreeRelaidEarly ? true : null,
        };
        SeedSweep<SimulationCounters> sweep = StoreSimulation.Sweep(1, (ulong)Settings.BrokenSeeds, options, twice: false, keepGoing: false);
        Assert.True(sweep.First is not null, $"{broken} was not found in {Settings.BrokenSeeds} seeds");
        (ulong seed, Violation found) = sweep.First.Value;
        output.WriteLine($"{broken}: {found}");
        Assert.True(symptoms.Contains(found.Kind), $"not a symptom of {broken}: {found}");
        SeedResult<SimulationCounters> honest = StoreSimulation.Run(seed, options with { Driver = new StorageDriver() });
        Assert.True(honest.Violations.Count == 0, string.Join('\n', honest.Violations));
    }
}
