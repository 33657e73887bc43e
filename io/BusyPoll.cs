namespace BlockServer.Io;

/// <summary>
/// Decides when a loop looks at its ring for a moment before it sleeps. To put a processor to sleep and wake it again costs
/// tens of microseconds, in a virtual machine more than a request in memory takes. It pays only where the next request comes
/// sooner than that: so it is tried while the waits for clients have been short of late and no disk was asked between them,
/// and an idle loop sleeps at once. Beside a disk it costs more than it gains: what has to run on this processor for the
/// client and the disk waits for the look to end (measured in docs/performance.md). Lives on one loop.
/// </summary>
/// <param name="limitNanos">The longest look, in nanoseconds; 0: never.</param>
public sealed class BusyPoll(ulong limitNanos)
{
    // One wait of this many limits is enough to end the looking, many short ones are needed to begin it.
    private const ulong LongestLimits = 16;

    private ulong _meanNanos = limitNanos * LongestLimits;

    /// <summary>The longest look, in nanoseconds; 0: never.</summary>
    public ulong LimitNanos => limitNanos;

    /// <summary>The waits of late were shorter than the longest look.</summary>
    public bool IsWorthwhile => _meanNanos < limitNanos;

    /// <summary>Notes that a disk is at work: looking has to be earned again by short waits.</summary>
    public void OnDiskAsked() => _meanNanos = limitNanos * LongestLimits;

    /// <summary>Notes how long a wait for clients was.</summary>
    public void OnWaited(ulong nanos) => _meanNanos = (_meanNanos * 7 + Math.Min(nanos, limitNanos * LongestLimits)) / 8;
}
