using System.Diagnostics;

namespace BlockServer.Io;

/// <summary>The clock of this machine that never goes back. Loops show it as their time, which stands still during a turn.
/// From any thread.</summary>
internal static class MonotonicClock
{
    private static readonly double s_tickNanos = 1_000_000_000 / (double)Stopwatch.Frequency;

    /// <summary>Nanoseconds since some moment before the program began.</summary>
    public static ulong ReadNanos() => (ulong)(Stopwatch.GetTimestamp() * s_tickNanos);
}
