using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>Runs the policies while the daemon does: sleeps until one is due, or one is changed.</summary>
internal sealed class PolicyRunner : IDisposable
{
    private static readonly TimeSpan s_sleepMax = TimeSpan.FromHours(1);

    private readonly PolicyEngine _engine;
    private readonly Action<string> _warn;
    private readonly TimeProvider _time = TimeProvider.System;
    private readonly SemaphoreSlim _changed = new(0);
    private readonly CancellationTokenSource _stop;
    private Task _running = Task.CompletedTask;

    public PolicyRunner(PolicyEngine engine, PolicyDirectory policies, CancellationTokenSource stop, Action<string> warn)
    {
        (_engine, _stop, _warn) = (engine, stop, warn);
        policies.Changed = () => _changed.Release();
    }

    /// <summary>Nanoseconds of the clock that policies go by.</summary>
    public long NowNanos => _time.GetElapsedTime(0).Ticks * 100;

    public void Start() => _running = RunAsync();

    /// <summary>Done when nothing of it is under way any more.</summary>
    public async Task StopAsync()
    {
        await _stop.CancelAsync();
        await _running;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _changed.Dispose();
        _stop.Dispose();
    }

    private async Task RunAsync()
    {
        while (!_stop.IsCancellationRequested)
        {
            TimeSpan sleep = s_sleepMax;
            try
            {
                if (await _engine.StepAsync(NowNanos) is { } nanos) sleep = TimeSpan.FromTicks(Math.Min(nanos / 100 + 1, s_sleepMax.Ticks));
            }
#pragma warning disable CA1031 // Whatever stood in the way of one step: the next is tried, and it is told.
            catch (Exception e)
#pragma warning restore CA1031
            {
                _warn($"policies: {e.Message}; they go on in a minute");
                sleep = TimeSpan.FromMinutes(1);
            }

            try
            {
                await _changed.WaitAsync(sleep, _stop.Token);
            }
            catch (OperationCanceledException)
            {
                return;
            }
        }
    }
}
