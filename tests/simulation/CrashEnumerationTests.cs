using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Bounded exhaustive crash workloads: all pairs of steps, and drawn longer ones.</summary>
public sealed class CrashEnumerationTests(ITestOutputHelper output)
{
    private static readonly CrashStep[] All = [.. Enum.GetValues<CrashStep>().Where(step => step < CrashStep.Snapshot)];

    /// <summary>Workloads with layers: together they have every step of layers after every kind of change.</summary>
    public static TheoryData<CrashStep[]> OfLayers => new(
        [CrashStep.Write, CrashStep.Snapshot, CrashStep.Overlap, CrashStep.DeleteOldest, CrashStep.Rest, CrashStep.Write],
        [CrashStep.Large, CrashStep.Snapshot, CrashStep.Overlap, CrashStep.Snapshot, CrashStep.Trim, CrashStep.DeleteNewest, CrashStep.Rest, CrashStep.DeleteOldest, CrashStep.Rest],
        [CrashStep.Large, CrashStep.Snapshot, CrashStep.Fua, CrashStep.Snapshot, CrashStep.Zero, CrashStep.DeleteOldest, CrashStep.Rest, CrashStep.Overlap],
        [CrashStep.Overlap, CrashStep.Snapshot, CrashStep.Clone, CrashStep.Write, CrashStep.Flatten, CrashStep.Rest, CrashStep.DeleteOldest, CrashStep.Rest, CrashStep.DeleteVolume, CrashStep.Rest],
        [CrashStep.Large, CrashStep.Snapshot, CrashStep.Clone, CrashStep.Trim, CrashStep.DeleteVolume, CrashStep.Rest, CrashStep.DeleteNewest, CrashStep.Rest],
        [CrashStep.Write, CrashStep.Snapshot, CrashStep.Overlap, CrashStep.Fua, CrashStep.RollBack, CrashStep.Write, CrashStep.DeleteNewest, CrashStep.Rest, CrashStep.DeleteOldest, CrashStep.Rest],
        [CrashStep.Overlap, CrashStep.Snapshot, CrashStep.Trim, CrashStep.Snapshot, CrashStep.RollBack, CrashStep.Large, CrashStep.DeleteOldest, CrashStep.DeleteOldest, CrashStep.Rest],
        [CrashStep.Large, CrashStep.Snapshot, CrashStep.Clone, CrashStep.Overlap, CrashStep.Group, CrashStep.Write, CrashStep.Group, CrashStep.DeleteNewest, CrashStep.Rest, CrashStep.DeleteVolume, CrashStep.Rest]);

    /// <summary>Every pair of steps in both modes.</summary>
    [Theory]
    [InlineData(Durability.Flush)]
    [InlineData(Durability.Ack)]
    public void All_pairs_of_steps_survive_every_power_cut(Durability durability)
    {
        int statesEach = Math.Max(10, Settings.CrashStates / 4 / (All.Length * All.Length));
        IEnumerable<CrashStep[]> pairs = All.SelectMany(_ => All, (first, second) => new[] { first, second });
        int states = pairs.AsParallel().Sum(steps => Judge(durability, steps, statesEach));
        output.WriteLine($"{durability}: {states} crash states");
    }

    /// <summary>Cut at every event of snapshots, clones, rollbacks, flattening and deletions: each layer is what it was, and no
    /// block is lost or given out twice.</summary>
    [Theory]
    [MemberData(nameof(OfLayers))]
    public void Layers_survive_every_power_cut(CrashStep[] steps)
    {
        int states = new[] { Durability.Flush, Durability.Ack }.AsParallel().Sum(durability => Judge(durability, steps, Settings.CrashStates / 16));
        Assert.True(states > 10);
        output.WriteLine($"{states} crash states");
    }

    /// <summary>The oracle notices a group whose volumes are cut one after the other.</summary>
    [Fact]
    public void A_group_that_is_cut_apart_is_caught()
    {
        CrashStep[] steps = [CrashStep.Write, CrashStep.Snapshot, CrashStep.Clone, CrashStep.Group];
        var run = new CrashEnumeration(new StorageDriver(BrokenRules.CutApart), Durability.Flush, 1);
        run.Run(steps, 10_000);
        Assert.Equal(ViolationKind.LostVolume, run.Violation?.Kind);
        Judge(Durability.Flush, steps, 10_000);
    }

    /// <summary>Longer workloads, drawn.</summary>
    [Fact]
    public void Drawn_workloads_of_six_steps_survive_every_power_cut()
    {
        var random = new SeededRandom(6);
        int states = 0;
        for (int round = 0; round < 50 && states < Settings.CrashStates / 2; round++)
        {
            CrashStep[][] workloads = [.. Enumerable.Range(0, 20).Select(_ => Enumerable.Range(0, 6).Select(_ => All[random.NextBelow(All.Length)]).ToArray())];
            states += workloads.AsParallel().Select((steps, i) => (steps, i))
                .Sum(one => Judge(one.i % 2 == 0 ? Durability.Flush : Durability.Ack, one.steps, 500));
        }

        Assert.True(states >= Settings.CrashStates / 2);
        output.WriteLine($"{states} crash states");
    }

    /// <summary>The oracle notices a store whose flush does nothing.</summary>
    [Fact]
    public void A_flush_that_does_nothing_is_caught()
    {
        var run = new CrashEnumeration(new LogStoreDriver(LogStore.Breakage.NoFlush), Durability.Flush, 1);
        run.Run([CrashStep.Write, CrashStep.Flush, CrashStep.Write, CrashStep.Write], 10_000);
        Assert.NotNull(run.Violation);
    }

    private static int Judge(Durability durability, CrashStep[] steps, int statesMax)
    {
        var run = new CrashEnumeration(Drivers.Default(), durability, 1);
        run.Run(steps, statesMax);
        Assert.True(run.Violation is null, run.Violation?.ToString());
        return run.States;
    }
}
