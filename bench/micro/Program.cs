using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Reports;
using BenchmarkDotNet.Running;
using BlockServer.Bench.Micro;

if (args is ["allocations", ..]) return AllocationTrace.Print(args[1..]);

// BenchmarkDotNet's default job takes minutes per bench; this one is enough to see 0 B and the order of a time.
IConfig config = ManualConfig.Create(DefaultConfig.Instance).WithBuildTimeout(TimeSpan.FromMinutes(10));
if (args.Contains("--quick")) config = config.AddJob(Job.ShortRun);
string[] rest = [.. args.Where(a => a != "--quick")];
if (rest.Length == 0) rest = ["--filter", "*"];
bool hasFailed = false;
foreach (Summary summary in BenchmarkSwitcher.FromAssembly(typeof(AllocationTrace).Assembly).Run(rest, config))
{
    hasFailed |= summary.HasCriticalValidationErrors;
    foreach (BenchmarkReport report in summary.Reports)
    {
        long? bytes = report.GcStats.GetBytesAllocatedPerOperation(report.BenchmarkCase);
        if (report.Success && bytes is 0) continue;
        // Everything that is measured here runs for every request, so it may not allocate.
        Console.Error.WriteLine($"{report.BenchmarkCase.DisplayInfo}: {(report.Success ? $"allocates {bytes} B" : "failed")}");
        hasFailed = true;
    }
}

return hasFailed ? 1 : 0;
