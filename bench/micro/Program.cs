using BenchmarkDotNet.Configs;
using BenchmarkDotNet.Jobs;
using BenchmarkDotNet.Running;
using BlockServer.Bench.Micro;

if (args is ["allocations", ..]) return AllocationTrace.Print(args[1..]);

// BenchmarkDotNet's default job takes minutes per bench; this one is enough to see 0 B and the order of a time.
IConfig? config = args.Contains("--quick") ? DefaultConfig.Instance.AddJob(Job.ShortRun) : null;
string[] rest = [.. args.Where(a => a != "--quick")];
if (rest.Length == 0) rest = ["--filter", "*"];
bool hasFailed = BenchmarkSwitcher.FromAssembly(typeof(AllocationTrace).Assembly).Run(rest, config)
    .Any(summary => summary.HasCriticalValidationErrors || summary.Reports.Any(report => !report.Success));
return hasFailed ? 1 : 0;
