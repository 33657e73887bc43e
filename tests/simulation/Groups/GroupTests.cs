using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Simulation.Groups;

/// <summary>Seeds of <see cref="GroupSimulation"/>.</summary>
public sealed class GroupTests(ITestOutputHelper output)
{
    [Fact]
    public void Every_group_over_two_disks_shows_a_moment_of_the_counter_whenever_the_node_dies()
    {
        int seeds = Math.Max(80, Settings.Seeds / 16);
        SeedSweep<GroupCounters> sweep = SeedSweep<GroupCounters>.Run(1, (ulong)seeds, GroupSimulation.RunnerOf(default), twice: true, keepGoing: true, goOn: null);
        output.WriteLine($"{seeds} seeds: {sweep.Counters}");
        Assert.True(sweep.Failures.Count == 0, string.Join('\n', sweep.Failures.Take(10)));
        Assert.Empty(sweep.Counters.Missing);
    }

    [Theory]
    [InlineData(nameof(BrokenCuts.ReleaseEarly), ViolationKind.WrongData)]
    [InlineData(nameof(BrokenCuts.HoldFirst), ViolationKind.WrongData)]
    [InlineData(nameof(BrokenGroups.ForgetsHalf), ViolationKind.LostVolume)]
    public void Each_broken_rule_of_a_group_is_noticed(string rule, params ViolationKind[] symptoms)
    {
        SeedSweep<GroupCounters> sweep = SeedSweep<GroupCounters>.Run(
            1, (ulong)Settings.BrokenSeeds, GroupSimulation.RunnerOf(BrokenGroups.Parse(rule)), twice: false, keepGoing: false, goOn: null);
        Assert.True(sweep.First is not null, $"{rule} was not found in {Settings.BrokenSeeds} seeds");
        output.WriteLine($"{rule}: seed {sweep.First.Value.Seed}: {sweep.First.Value.Violation}");
        Assert.Contains(sweep.First.Value.Violation.Kind, symptoms);
    }
}
