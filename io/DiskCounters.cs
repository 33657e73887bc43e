using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>What was asked of a medium since it was opened. Lives on the loop of its file.</summary>
public sealed class DiskCounters
{
    /// <summary>Reads.</summary>
    public RequestCounters Reads { get; } = new();

    /// <summary>Writes.</summary>
    public RequestCounters Writes { get; } = new();

    /// <summary>Flushes.</summary>
    public RequestCounters Flushes { get; } = new();
}

/// <summary>Requests of one kind, and how long the medium took. Lives on one loop.</summary>
public sealed class RequestCounters
{
    private readonly ulong[] _histogram = new ulong[LatencyBuckets.Count];

    /// <summary>Requests that were answered.</summary>
    public ulong Operations { get; private set; }

    /// <summary>Bytes of those that were answered well.</summary>
    public ulong Bytes { get; private set; }

    /// <summary>Requests that failed.</summary>
    public ulong Errors { get; private set; }

    /// <summary>How long they took together, nanoseconds.</summary>
    public ulong Nanos { get; private set; }

    /// <summary>Requests by <see cref="LatencyBuckets"/>.</summary>
    public IReadOnlyList<ulong> Histogram => _histogram;

    internal void Count(int bytes, ulong nanos, bool hasFailed)
    {
        Operations++;
        Nanos += nanos;
        _histogram[LatencyBuckets.Of(nanos)]++;
        if (hasFailed) Errors++;
        else Bytes += (uint)bytes;
    }
}
