using System.Collections.Concurrent;
using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Seeds of <see cref="MoveSimulation"/>.</summary>
public sealed class MoveTests(ITestOutputHelper output)
{
    // Within so many seeds each broken rule is found, and in the same worlds the honest ones are not.
    private const int BrokenSeeds = 60;

    [Fact]
    public void A_volume_that_moves_under_load_loses_nothing_whenever_the_node_dies()
    {
        int seeds = Math.Max(100, Settings.Seeds / 8), moved = 0, deaths = 0, repeats = 0, redirected = 0;
        var failures = new ConcurrentBag<string>();
        Enumerable.Range(1, seeds).AsParallel().ForAll(seed =>
        {
            MoveSimulation run = MoveSimulation.Run((ulong)seed), again = MoveSimulation.Run((ulong)seed);
            if (run.Violation is { } fault) failures.Add($"seed {seed}: {fault}");
            if (run.Hash != again.Hash) failures.Add($"seed {seed} gave other events the second time");
            Interlocked.Add(ref moved, run.Moved);
            Interlocked.Add(ref deaths, run.Deaths);
            Interlocked.Add(ref repeats, run.Repeats);
            Interlocked.Add(ref redirected, run.Redirected);
        });
        output.WriteLine($"{seeds} seeds, {moved} moves, {deaths} deaths in the middle of one, {repeats} repeats of appends, {redirected} that went to a new home");
        Assert.True(failures.IsEmpty, string.Join('\n', failures.Take(10)));
        Assert.True(moved > seeds && deaths > seeds);
        Assert.True(repeats > seeds && redirected > 10, $"{repeats} repeats, {redirected} that went to a new home");
    }

    [Theory]
    [InlineData(nameof(BrokenMoves.SkipCopyFlush), false)]
    [InlineData(nameof(BrokenMoves.SkipHomeFlush), true)]
    [InlineData(nameof(BrokenMoves.SkipHold), false)]
    [InlineData(nameof(BrokenMoves.SkipAhead), false)]
    [InlineData(nameof(BrokenMoves.SkipAppendHold), false)]
    [InlineData(nameof(BrokenMoves.ForgetClients), false)]
    public void Each_broken_rule_of_a_move_is_noticed(string rule, bool aimsAtSwitch)
    {
        BrokenMoves broken = Enum.Parse<BrokenMoves>(rule);
        ulong found = Enumerable.Range(1, BrokenSeeds).Select(s => (ulong)s).FirstOrDefault(seed => MoveSimulation.Run(seed, broken, aimsAtSwitch).Violation is not null);
        output.WriteLine($"{rule}: seed {found}");
        Assert.NotEqual(0UL, found);
    }

    [Fact]
    public void Power_cuts_in_the_last_difference_take_nothing_that_was_promised()
    {
        int deaths = 0;
        for (ulong seed = 1; seed <= BrokenSeeds; seed++)
        {
            MoveSimulation run = MoveSimulation.Run(seed, aimsAtSwitch: true);
            Assert.True(run.Violation is null, $"seed {seed}: {run.Violation}");
            deaths += run.Deaths;
        }

        Assert.True(deaths > BrokenSeeds, $"{deaths} deaths");
    }
}
