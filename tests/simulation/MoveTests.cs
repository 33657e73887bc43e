using System.Collections.Concurrent;
using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Seeds of <see cref="MoveSimulation"/>.</summary>
public sealed class MoveTests(ITestOutputHelper output)
{
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
    [InlineData(nameof(BrokenMoves.SkipCopyFlush))]
    [InlineData(nameof(BrokenMoves.SkipHomeFlush))]
    [InlineData(nameof(BrokenMoves.SkipHold))]
    [InlineData(nameof(BrokenMoves.SkipAhead))]
    [InlineData(nameof(BrokenMoves.SkipAppendHold))]
    [InlineData(nameof(BrokenMoves.ForgetClients))]
    public void Each_broken_rule_of_a_move_is_noticed(string rule)
    {
        BrokenMoves broken = Enum.Parse<BrokenMoves>(rule);
        ulong found = Enumerable.Range(1, Settings.BrokenSeeds).Select(s => (ulong)s).FirstOrDefault(seed => MoveSimulation.Run(seed, broken).Violation is not null);
        output.WriteLine($"{rule}: seed {found}");
        Assert.NotEqual(0UL, found);
    }
}
