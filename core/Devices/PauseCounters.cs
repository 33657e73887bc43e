namespace BlockServer.Core;

/// <summary>How long changes were held back, each time. Lives on one loop.</summary>
public sealed class PauseCounters
{
    private readonly ulong[] _histogram = new ulong[LatencyBuckets.Count];

    /// <summary>How long they took together, nanoseconds.</summary>
    public ulong Nanos { get; private set; }

    /// <summary>The longest, nanoseconds.</summary>
    public ulong NanosMax { get; private set; }

    /// <summary>Pauses by <see cref="LatencyBuckets"/>.</summary>
    public IReadOnlyList<ulong> Histogram => _histogram;

    /// <summary>Counts one.</summary>
    public void Add(ulong nanos)
    {
        Nanos += nanos;
        NanosMax = Math.Max(NanosMax, nanos);
        _histogram[LatencyBuckets.Of(nanos)]++;
    }
}
