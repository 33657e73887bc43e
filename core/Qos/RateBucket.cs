using BlockServer.Core.Api;

namespace BlockServer.Core;

/// <summary>
/// How a rate is counted: as the time at which nothing is owed. A request is let through while nothing is owed and may then go into
/// debt by its own size, so that a large one passes through a small rate, and the rate holds in the long run exactly. Times are ticks
/// of 1/256 ns, so that rounding costs less than 0.01% of any rate.
/// </summary>
internal static class RateBucket
{
    /// <summary>What idleness saves up when no burst is set: enough that a late timer loses nothing, and 1% of ten seconds.</summary>
    public const ulong BurstNanosMin = 100_000_000;

    /// <summary>Largest amount of one request: the product with the ticks of a second fits 64 bits.</summary>
    public const ulong AmountMax = 32 << 20;

    private const int TickShift = 8;
    private const ulong TicksPerSecond = 1_000_000_000UL << TickShift;

    /// <summary>What a burst of that many seconds is, nanoseconds.</summary>
    public static ulong BurstNanos(QosLimits limits) => Math.Max(limits.BurstSeconds * 1_000_000_000UL, BurstNanosMin);

    /// <summary>Time as this type counts it.</summary>
    public static ulong Ticks(ulong nanos) => nanos << TickShift;

    /// <summary>How many nanoseconds, rounded up.</summary>
    public static ulong Nanos(ulong ticks) => (ticks + (1 << TickShift) - 1) >> TickShift;

    /// <summary>Ticks that <paramref name="amount"/> takes at <paramref name="rate"/> a second.</summary>
    public static ulong Cost(ulong amount, ulong rate) => Math.Min(amount, AmountMax) * TicksPerSecond / rate;
}
