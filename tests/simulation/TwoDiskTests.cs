using System.Collections.Concurrent;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Seeds of <see cref="TwoDiskSimulation"/>.</summary>
public sealed class TwoDiskTests(ITestOutputHelper output)
{
    /// <summary>One disk may do what it will: the volumes on the other one are untouched.</summary>
    [Fact]
    public void What_one_disk_does_never_touches_the_volumes_on_the_other()
    {
        int seeds = Math.Max(60, Settings.Seeds / 10);
        var failures = new ConcurrentBag<string>();
        var fates = new ConcurrentDictionary<DiskFate, int>();
        long beside = 0;
        Enumerable.Range(1, seeds).AsParallel().ForAll(seed =>
        {
            TwoDiskSimulation run = TwoDiskSimulation.Run((ulong)seed), again = TwoDiskSimulation.Run((ulong)seed);
            if (run.Violation is { } fault) failures.Add($"seed {seed}: {fault}");
            if (run.Hash != again.Hash) failures.Add($"seed {seed} gave other events the second time");
            fates.AddOrUpdate(run.Fate, 1, (_, count) => count + 1);
            Interlocked.Add(ref beside, run.RequestsBeside);
        });
        output.WriteLine($"{seeds} seeds, {beside} requests beside a disk that was out of service; {string.Join(", ", fates.OrderBy(f => f.Key))}");
        Assert.True(failures.IsEmpty, string.Join('\n', failures));
        Assert.Equal(5, fates.Count);
        Assert.True(beside > seeds);
    }
}
