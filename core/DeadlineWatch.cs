namespace BlockServer.Core;

/// <summary>
/// All deadlines of one connection by one timer, which is moved when it elapses or when a deadline comes to lie in front of it, so that the
/// hot path hardly touches it. Lives on one loop; made once for a connection.
/// </summary>
public sealed class DeadlineWatch
{
    // A deadline that has passed is looked at in a moment, not in circles.
    private const ulong LeastNanos = 1_000_000;

    private readonly ILoop _loop;
    private readonly Func<ulong> _next;
    private readonly LoopTimer _timer;
    private ulong _at;

    /// <summary>Prepares; nothing is armed before <see cref="Look"/>.</summary>
    /// <param name="loop">The connection's loop.</param>
    /// <param name="next">The nearest deadline, as the loop's time in nanoseconds; the largest number when there is none.</param>
    /// <param name="elapsed">Called when a deadline may have passed: does what is due. It is looked again afterwards.</param>
    public DeadlineWatch(ILoop loop, Func<ulong> next, Action elapsed)
    {
        (_loop, _next) = (loop, next);
        _timer = loop.CreateTimer(() =>
        {
            elapsed();
            Look();
        });
    }

    /// <summary>A deadline was set: the timer elapses in time for it. Deadlines that were put off or taken back need not be said.</summary>
    public void Look()
    {
        ulong until = _next();
        if (until == ulong.MaxValue || (_timer.IsArmed && _at <= until)) return;
        ulong now = _loop.NowNanos;
        _at = Math.Max(until, now + LeastNanos);
        _timer.Start(_at - now);
    }

    /// <summary>The connection is over.</summary>
    public void Stop() => _timer.Stop();
}
