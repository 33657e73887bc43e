using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>Keeps the threads that do not serve clients behind those that do, from its making until it is disposed. Of the whole process, so
/// that it belongs to the program and not to a <see cref="Daemon"/>. Runs on the ordinary thread pool.</summary>
internal sealed class ThreadOrder : IAsyncDisposable
{
    // The compiler's thread ends when it had nothing to do for 4 s, those of the pool after 20 s; others come in their place. A daemon
    // that used less than a fiftieth of a processor is at rest: there a look each second would be half of all that it uses.
    private static readonly TimeSpan s_every = TimeSpan.FromSeconds(1), s_everyAtRest = TimeSpan.FromSeconds(10);
    private const int RestShare = 50;

    private readonly BackgroundThreads _threads;
    private readonly Action<string> _log;
    private readonly CancellationTokenSource _stop = new();
    private readonly Task _running;

    public ThreadOrder(BackgroundThreads threads, Action<string> log)
    {
        (_threads, _log) = (threads, log);
        _running = RunAsync();
    }

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _running;
        _stop.Dispose();
    }

    private async Task RunAsync()
    {
        TimeSpan wait = s_every, used = Environment.CpuUsage.TotalTime;
        try
        {
            while (true)
            {
                _threads.Look();
                if (_threads.Refusal is { } refusal)
                {
                    _log("threads in the background run beside those that serve: " + refusal);
                    return; // it will be refused again
                }

                await Task.Delay(wait, _stop.Token);
                TimeSpan now = Environment.CpuUsage.TotalTime;
                wait = now - used > wait / RestShare ? s_every : s_everyAtRest;
                used = now;
            }
        }
        catch (OperationCanceledException)
        {
            // The program ends.
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            _log("threads in the background run beside those that serve: " + e.Message);
        }
    }
}
