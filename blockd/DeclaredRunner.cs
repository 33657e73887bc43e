using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>Runs the reconcilers while the daemon does: at every change of a volume, target or policy, when a try is due, and now and then.</summary>
internal sealed class DeclaredRunner : IAsyncDisposable
{
    // Changes come in bursts, our own among them.
    private static readonly TimeSpan s_gather = TimeSpan.FromMilliseconds(200);
    private static readonly TimeSpan s_lookEvery = TimeSpan.FromSeconds(30);

    private readonly DeclaredStates _states;
    private readonly WatchHub _watch;
    private readonly Action<string> _warn;
    private readonly TimeProvider _time = TimeProvider.System;
    private readonly CancellationTokenSource _stop = new();
    private readonly SemaphoreSlim _wake = new(0);
    private Task _running = Task.CompletedTask;

    public DeclaredRunner(DeclaredStates states, WatchHub watch, Action<string> warn) => (_states, _watch, _warn) = (states, watch, warn);

    /// <summary>Nanoseconds of the clock that tries go by.</summary>
    public long NowNanos => _time.GetElapsedTime(0).Ticks * 100;

    /// <summary>Begins.</summary>
    public void Start() => _running = RunAsync();

    /// <summary>Something else was declared.</summary>
    public void Wake() => _wake.Release();

    /// <inheritdoc/>
    public async ValueTask DisposeAsync()
    {
        await _stop.CancelAsync();
        await _running;
        _stop.Dispose();
        _wake.Dispose();
    }

    private async Task RunAsync()
    {
        while (!_stop.IsCancellationRequested)
        {
            long seen = _watch.Revision;
            TimeSpan sleep = s_lookEvery;
            foreach (DeclaredReconciler reconciler in _states.All)
            {
                try
                {
                    if (await reconciler.StepAsync(NowNanos) is { } nanos) sleep = TimeSpan.FromTicks(Math.Min(nanos / 100 + 1, sleep.Ticks));
                }
#pragma warning disable CA1031 // Whatever stood in the way of one step: the next is tried, and it is told.
                catch (Exception e)
#pragma warning restore CA1031
                {
                    _warn($"what is declared cannot be reconciled: {e.Message}; it goes on in half a minute");
                }
            }

            try
            {
                await SleepAsync(seen, sleep);
                await Task.Delay(s_gather, _stop.Token);
            }
            catch (OperationCanceledException) when (_stop.IsCancellationRequested)
            {
                return;
            }
        }
    }

    private async Task SleepAsync(long seen, TimeSpan sleep)
    {
        using var ends = CancellationTokenSource.CreateLinkedTokenSource(_stop.Token);
        Task woken = _wake.WaitAsync(ends.Token), changed = ChangedAsync(seen, ends.Token), due = Task.Delay(sleep, ends.Token);
        await Task.WhenAny(woken, changed, due);
        await ends.CancelAsync();
        await Task.WhenAll(woken, changed, due).ContinueWith(static _ => { }, TaskScheduler.Default);
        _stop.Token.ThrowIfCancellationRequested();
    }

    private async Task ChangedAsync(long at, CancellationToken cancel)
    {
        while (_watch.After(at) is { } news)
        {
            if (news.Any(n => n.Type is WatchTypes.Volume or WatchTypes.Target or WatchTypes.Policy)) return;
            if (news.Count > 0) at = news[^1].Revision;
            else await _watch.WaitAsync(at, cancel);
        }
    }
}
