using System.Numerics;

namespace BlockServer.Core;

/// <summary>The buckets of every histogram of times: bucket i counts what took less than 2^i microseconds, and at least 2^(i-1).</summary>
public static class LatencyBuckets
{
    /// <summary>How many there are: the last one counts what took longer than all others.</summary>
    public const int Count = 28;

    /// <summary>The bucket of a time.</summary>
    public static int Of(ulong nanos) => Math.Min(Count - 1, 64 - BitOperations.LeadingZeroCount(nanos / 1000));
}
