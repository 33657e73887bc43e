using System.Diagnostics;
using System.Globalization;
using BlockServer.Client;

// append SERVER TOKENFILE NAME WRITERS BYTES SECONDS shared|own DEPTH WARMUP
// So many writers append durably, DEPTH appends each at a time, for so long; what came of it as one line of JSON. "shared": all through one
// AofWriter, as the threads of one program do; "own": each with one of its own, as programs of their own do. WARMUP seconds go before it and are not counted: client and daemon compile their code while it runs.
if (args.Length != 9)
{
    Console.Error.WriteLine("append SERVER TOKENFILE NAME WRITERS BYTES SECONDS shared|own DEPTH WARMUP");
    return 2;
}

int writers = int.Parse(args[3], CultureInfo.InvariantCulture), bytes = int.Parse(args[4], CultureInfo.InvariantCulture);
double seconds = double.Parse(args[5], CultureInfo.InvariantCulture), warmUp = double.Parse(args[8], CultureInfo.InvariantCulture);
string token = (await File.ReadAllTextAsync(args[1])).Trim();
using var blockd = new BlockdClient(new Uri(args[0]), token);
await blockd.OpenAofAsync(args[2]);
AofWriter[] appenders = [.. Enumerable.Range(0, args[6] == "shared" ? 1 : writers).Select(_ => new AofWriter(blockd, args[2], new AofWriterOptions { Joins = args[6] == "shared" }))];
int depth = int.Parse(args[7], CultureInfo.InvariantCulture);
var data = new byte[bytes];
Random.Shared.NextBytes(data);
await Task.WhenAll(appenders.Select(a => a.AppendAsync(data))); // connections are made
var took = new List<double>[writers * depth];
long start = Stopwatch.GetTimestamp();
if (warmUp > 0) await Task.WhenAll(Enumerable.Range(0, writers * depth).Select(i => Task.Run(() => RunAsync(i, warmUp))));
start = Stopwatch.GetTimestamp();
await Task.WhenAll(Enumerable.Range(0, writers * depth).Select(i => Task.Run(() => RunAsync(i, seconds))));
double ran = Stopwatch.GetElapsedTime(start).TotalSeconds;
foreach (AofWriter appender in appenders) await appender.DisposeAsync();
double[] all = [.. took.SelectMany(t => t).Order()];
Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
    $"{{\"appends_per_s\":{all.Length / ran:f1},\"p50_us\":{all[all.Length / 2]:f0},\"p99_us\":{all[all.Length * 99 / 100]:f0}}}"));
return 0;

async Task RunAsync(int index, double lasts)
{
    List<double> mine = took[index] = [];
    AofWriter appender = appenders[index % appenders.Length];
    while (Stopwatch.GetElapsedTime(start).TotalSeconds < lasts)
    {
        long begin = Stopwatch.GetTimestamp();
        await appender.AppendAsync(data);
        mine.Add(Stopwatch.GetElapsedTime(begin).TotalMicroseconds);
    }
}
