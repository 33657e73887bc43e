namespace BlockServer.Pfcli;

internal static class Program
{
    private static async Task<int> Main(string[] args)
    {
        using var interrupted = new CancellationTokenSource();
        Console.CancelKeyPress += (_, pressed) =>
        {
            // The first Ctrl-C ends the command in order; a second one ends the process.
            pressed.Cancel = !interrupted.IsCancellationRequested;
            interrupted.Cancel();
        };
        return await CommandLine.RunAsync(args, CliHost.OfProcess(), interrupted.Token);
    }
}
