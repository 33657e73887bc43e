using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using BlockServer.Bench.Initiator;

// bench/load/iscsi.py's third client: `initiator HOST PORT TARGET LUN read|write BLOCK DEPTH SECONDS SEED none|crc32c`
// prints one line of JSON. Debian's clients have no data digests and tell no latencies.
if (args.Length != 10)
{
    Console.Error.WriteLine("usage: initiator HOST PORT TARGET LUN read|write BLOCK DEPTH SECONDS SEED none|crc32c");
    return 2;
}

int At(int index) => int.Parse(args[index], CultureInfo.InvariantCulture);
double seconds = double.Parse(args[7], CultureInfo.InvariantCulture);
try
{
    using var session = new Session(args[0], At(1), args[2], At(3), args[9] == "crc32c");
    ulong volumeBytes = session.Open();
    var load = new Load(session, volumeBytes, args[4] == "write", At(5), At(6), At(8));
    load.Run(Math.Min(0.5, seconds / 2)); // the compiler and the caches of both sides
    using var self = Process.GetCurrentProcess();
    double before = self.TotalProcessorTime.TotalSeconds;
    Console.WriteLine("measuring");
    load.Run(seconds);
    self.Refresh();
    Console.WriteLine(JsonSerializer.Serialize(new
    {
        ios = load.Count,
        seconds = load.Seconds,
        p50_us = load.Percentile(0.50),
        p99_us = load.Percentile(0.99),
        client_cpu_s = self.TotalProcessorTime.TotalSeconds - before,
        digests = session.HasDigests,
    }));
    return 0;
}
catch (Exception e) when (e is IOException or InvalidDataException or System.Net.Sockets.SocketException)
{
    Console.Error.WriteLine(e.Message);
    return 1;
}
