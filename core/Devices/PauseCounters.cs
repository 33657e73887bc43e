using System.Numerics;

namespace BlockServer.Core;

/// <summary>How long changes were held back, each time. Lives on one loop.</summary>
public sealed class PauseCounters
{
    /// <summary>Buckets of <see cref="Histogram"/>: the last one counts what took longer than all others.</summary>
    public const int Buckets = 28;

    private readonly ulong[] _histogram = new ulong[Buckets];

    /// <summary>How long they took together, nanoseconds.</summary>
    public ulong Nanos { get; private set; }

    /// <summary>The longest, nanoseconds.</summary>
    public ulong NanosMax { get; private set; }

    /// <summary>Bucket i counts pauses of less than 2^i microseconds, and at least 2^(i-1).</summary>
    public IReadOnlyList<ulong> Histogram => _histogram;

    /// <summary>Counts one.</summary>
    public void Add(ulong nanos)
    {
        Nanos += nanos;
        NanosMax = Math.Max(NanosMax, nanos);
        _histogram[Math.Min(Buckets - 1, 64 - BitOperations.LeadingZeroCount(nanos / 1000))]++;
    }
}
