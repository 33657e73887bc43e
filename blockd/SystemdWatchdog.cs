using System.Globalization;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>Tells systemd that the daemon lives (<c>WatchdogSec=</c>), as long as every loop answers: when one does not, systemd is
/// told nothing, and kills and restarts the daemon. A disk that hangs keeps no loop from answering. Runs on the ordinary thread
/// pool, which so has to work too; wakes each loop three times in systemd's time, and never without systemd.</summary>
internal sealed class SystemdWatchdog(IReadOnlyList<LoopThread> threads, TimeSpan every, Func<string, string?> send, Action<string> log) : IAsyncDisposable
{
    /// <summary>It lives.</summary>
    public const string Alive = "WATCHDOG=1";

    private readonly CancellationTokenSource _stop = new();
    private Task[] _asked = [];
    private bool _isLate;
    private Task _running = Task.CompletedTask;

    /// <summary>How often systemd is to be told, from its variables; null: it does not ask for it, or asks another process.</summary>
    public static TimeSpan? EveryOf(string? micros, string? pid, int ownPid)
    {
        if (!ulong.TryParse(micros, NumberStyles.None, CultureInfo.InvariantCulture, out ulong limit) || limit is 0 or > long.MaxValue / 10) return null;
        if (!string.IsNullOrEmpty(pid) && pid != ownPid.ToString(CultureInfo.InvariantCulture)) return null;
        return TimeSpan.FromMicroseconds(limit / 3.0);
    }

    /// <summary>Begins to tell.</summary>
    public void Start() => _running = RunAsync();

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _running;
        _stop.Dispose();
    }

    /// <summary>Asks every loop, waits for <paramref name="patience"/>, and tells systemd if all have answered. A loop that has not
    /// answered is not asked again before it has.</summary>
    public async Task<bool> TellAsync(TimeSpan patience)
    {
        if (_asked.All(a => a.IsCompleted)) _asked = [.. threads.Select(t => t.InvokeAsync(() => default(ValueTask)))];
        Task all = Task.WhenAll(_asked);
        bool isAlive = await Task.WhenAny(all, Task.Delay(patience, _stop.Token)) == all && all.IsCompletedSuccessfully;
        if (_stop.IsCancellationRequested) return false;
        if (isAlive)
        {
            if (send(Alive) is { } trouble) log(trouble);
        }
        else if (!_isLate)
        {
            string late = string.Join(", ", threads.Where((_, i) => !_asked[i].IsCompletedSuccessfully).Select(t => t.Name));
            log($"loop {late} does not answer; systemd is told nothing until it does, and restarts the daemon");
        }

        _isLate = !isAlive;
        return isAlive;
    }

    private async Task RunAsync()
    {
        using var timer = new PeriodicTimer(every);
        try
        {
            do await TellAsync(every);
            while (await timer.WaitForNextTickAsync(_stop.Token));
        }
        catch (OperationCanceledException)
        {
            // The daemon stops.
        }
    }
}
