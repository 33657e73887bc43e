using System.Diagnostics;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Tests.Simulation;
using BlockServer.Tests.Simulation.Groups;
using BlockServer.Tests.Simulation.Incoming;
using BlockServer.Tests.Simulation.Sessions;

// The tests of this project, or by hand:
//   dotnet run -c Release -- simulate --seed 7
//   dotnet run -c Release -- simulate --seeds 1..2000
//   dotnet run -c Release -- simulate --hours 3
//   dotnet run -c Release -- simulate --sessions --seed 7
//   dotnet run -c Release -- simulate --imports --seed 7
if (args.Length == 0 || args[0] != "simulate") return await Xunit.Runner.InProc.SystemConsole.ConsoleRunner.Run(args);

string? Value(string name) => Array.IndexOf(args, name) is var at and > 0 && at + 1 < args.Length ? args[at + 1] : null;
ulong Number(string text) => ulong.Parse(text, CultureInfo.InvariantCulture);

ulong from = 1, to = 0;
if (Value("--seed") is { } one) (from, to) = (Number(one), Number(one));
else if (Value("--seeds")?.Split("..") is [var first, var last]) (from, to) = (Number(first), Number(last));
else if (Value("--hours") is not null) (from, to) = (new SeededRandom((ulong)Stopwatch.GetTimestamp()).NextUInt64() >> 16, ulong.MaxValue);
if (to < from)
{
    Console.Error.WriteLine(
        "usage: simulate [--sessions|--imports|--groups] --seed N | --seeds A..B | --hours H [--store log] [--broken RULE] [--lying yes|no] [--small-disk] [--appends] [--promises] [--crash-states N] [--keep-going]");
    return 2;
}

double hours = Value("--hours") is { } limit ? double.Parse(limit, CultureInfo.InvariantCulture) : double.PositiveInfinity;
if (args.Contains("--sessions")) return SessionProgram.Run(from, to, Value("--broken"), hours, args.Contains("--keep-going"), args.Contains("--trace"));
if (args.Contains("--imports"))
{
    BrokenIncoming rule = Value("--broken") is { } name ? BrokenIncoming.Parse(name) : default;
    return SweepProgram.Run(from, to, ImportSimulation.RunnerOf(rule, args.Contains("--trace") ? Console.WriteLine : null), args.Contains("--keep-going"), hours).Failures.Count == 0 ? 0 : 1;
}

if (args.Contains("--groups"))
{
    BrokenGroups rule = Value("--broken") is { } name ? BrokenGroups.Parse(name) : default;
    return SweepProgram.Run(from, to, GroupSimulation.RunnerOf(rule), args.Contains("--keep-going"), hours).Failures.Count == 0 ? 0 : 1;
}

StoreDriver driver = Value("--store") == "log" ? new LogStoreDriver()
    : Value("--broken") is { } broken ? Drivers.Broken(broken) : Drivers.Default();
var options = new SimulationOptions
{
    Driver = driver,
    LyingDisk = Value("--lying") is { } lying ? lying == "yes" : null,
    SmallDisk = args.Contains("--small-disk") ? true : null,
    Appends = args.Contains("--appends"),
    Promises = args.Contains("--promises"),
    CrashStates = Value("--crash-states") is { } states ? int.Parse(states, CultureInfo.InvariantCulture) : Settings.StatesPerSeed,
};
return SweepProgram.Run(from, to, StoreSimulation.RunnerOf(options), args.Contains("--keep-going"), hours).Failures.Count == 0 ? 0 : 1;
