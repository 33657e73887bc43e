using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Simulation.Incoming;

/// <summary>Seeds of <see cref="ImportSimulation"/>.</summary>
public sealed class ImportTests(ITestOutputHelper output)
{
    [Fact]
    public void What_comes_into_volumes_is_whole_or_closed_whenever_the_node_dies()
    {
        int seeds = Math.Max(60, Settings.Seeds / 12);
        SeedSweep<ImportCounters> sweep = SeedSweep<ImportCounters>.Run(1, (ulong)seeds, ImportSimulation.RunnerOf(default), twice: true, keepGoing: true, goOn: null);
        output.WriteLine($"{seeds} seeds: {sweep.Counters}");
        Assert.True(sweep.Failures.Count == 0, string.Join('\n', sweep.Failures.Take(10)));
        Assert.Empty(sweep.Counters.Missing);
    }

    /// <summary>Seed 8100127: a copy of a snapshot that stays was waited for. 8200461: power went while a broken increment, which had made its
    /// volume larger, was put aside; the next start put the base aside in its place, and the rest of the stream was written onto that.</summary>
    [Theory]
    [InlineData(8100127)]
    [InlineData(8200461)]
    public void A_seed_that_showed_a_fault_shows_none(ulong seed)
    {
        SeedSweep<ImportCounters> sweep = SeedSweep<ImportCounters>.Run(seed, 1, ImportSimulation.RunnerOf(default), twice: false, keepGoing: true, goOn: null);
        Assert.True(sweep.Failures.Count == 0, string.Join('\n', sweep.Failures));
    }

    [Theory]
    [InlineData(nameof(BrokenImports.OpenEarly), ViolationKind.WrongData, ViolationKind.LostVolume)]
    [InlineData(nameof(BrokenImports.KeepEarly), ViolationKind.WrongData)]
    [InlineData(nameof(BrokenImports.LeavePart), ViolationKind.WrongData, ViolationKind.WrongAnswer)]
    [InlineData(nameof(BrokenImports.IgnoreClients), ViolationKind.WrongData)]
    [InlineData(nameof(BrokenImports.KeepParts), ViolationKind.Leak, ViolationKind.WrongData)]
    [InlineData(nameof(BrokenIncoming.SaysCopied), ViolationKind.WrongAnswer)]
    public void Each_broken_rule_of_what_comes_is_noticed(string rule, params ViolationKind[] symptoms)
    {
        SeedSweep<ImportCounters> sweep = SeedSweep<ImportCounters>.Run(
            1, (ulong)Settings.BrokenSeeds, ImportSimulation.RunnerOf(BrokenIncoming.Parse(rule)), twice: false, keepGoing: false, goOn: null);
        Assert.True(sweep.First is not null, $"{rule} was not found in {Settings.BrokenSeeds} seeds");
        output.WriteLine($"{rule}: seed {sweep.First.Value.Seed}: {sweep.First.Value.Violation}");
        Assert.Contains(sweep.First.Value.Violation.Kind, symptoms);
    }
}
