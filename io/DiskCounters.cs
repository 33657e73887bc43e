using System.Numerics;

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
    /// <summary>Buckets of <see cref="Histogram"/>: the last one counts what took longer than all others.</summary>
    public const int Buckets = 28;

    private readonly ulong[] _histogram = new ulong[Buckets];

    /// <summary>Requests that were answered.</summary>
    public ulong Operations { get; private set; }

    /// <summary>Bytes of those that were answered well.</summary>
    public ulong Bytes { get; private set; }

    /// <summary>Requests that failed.</summary>
    public ulong Errors { get; private set; }

    /// <summary>How long they took together, nanoseconds.</summary>
    public ulong Nanos { get; private set; }

    /// <summary>Bucket i counts requests of less than 2^i microseconds, and at least 2^(i-1).</summary>
    public IReadOnlyList<ulong> Histogram => _histogram;

    internal void Count(int bytes, ulong nanos, bool hasFailed)
    {
        Operations++;
        Nanos += nanos;
        _histogram[Math.Min(Buckets - 1, 64 - BitOperations.LeadingZeroCount(nanos / 1000))]++;
        if (hasFailed) Errors++;
        else Bytes += (uint)bytes;
    }
}
