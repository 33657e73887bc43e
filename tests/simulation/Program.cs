using System.Diagnostics;
using System.Globalization;
using BlockServer.Tests.Simulation;

// The tests of this project, or by hand:
//   dotnet run -c Release -- simulate --seed 7
//   dotnet run -c Release -- simulate --seeds 1..2000
if (args.Length == 0 || args[0] != "simulate") return await Xunit.Runner.InProc.SystemConsole.ConsoleRunner.Run(args);

(ulong from, ulong to) = args switch
{
    [_, "--seed", var one, ..] => (ulong.Parse(one, CultureInfo.InvariantCulture), ulong.Parse(one, CultureInfo.InvariantCulture)),
    [_, "--seeds", var range, ..] when range.Split("..") is [var first, var last] =>
        (ulong.Parse(first, CultureInfo.InvariantCulture), ulong.Parse(last, CultureInfo.InvariantCulture)),
    _ => (1UL, 0UL),
};
if (to < from)
{
    Console.Error.WriteLine("usage: simulate --seed N | --seeds A..B [--store log] [--broken RULE] [--crash-states N] [--keep-going]");
    return 2;
}

StoreDriver driver = args.Contains("log") ? new LogStoreDriver()
    : Array.IndexOf(args, "--broken") is var brokenAt and > 0 ? Drivers.Broken(args[brokenAt + 1]) : Drivers.Default();
int statesAt = Array.IndexOf(args, "--crash-states");
int crashStates = statesAt > 0 ? int.Parse(args[statesAt + 1], CultureInfo.InvariantCulture) : 10;
var sum = new SimulationCounters();
int bad = 0;
var watch = Stopwatch.StartNew();
for (ulong seed = from; seed <= to; seed++)
{
    SimulationResult result = StoreSimulation.Run(seed, new SimulationOptions { Driver = driver, CrashStates = crashStates });
    sum.Add(result.Counters);
    if (from == to) Console.WriteLine($"hash {result.EventHash:x16}");
    if (result.Violations.Count == 0) continue;
    bad++;
    Console.WriteLine($"seed {seed}: {result.Violations[0]}");
    if (!args.Contains("--keep-going")) break;
}

Console.WriteLine($"{to - from + 1} seeds, {bad} bad, {watch.Elapsed.TotalSeconds:F1} s: {sum}");
return bad == 0 ? 0 : 1;
