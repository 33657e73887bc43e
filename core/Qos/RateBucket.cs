using BlockServer.Core.Api;

namespace BlockServer.Core;

/// <summary>
/// A token bucket for one rate, kept as the time at which nothing is owed. A request is let through while nothing is owed and
/// may then go into debt by its own size, so that a large one passes through a small rate, and the rate holds in the long run
/// exactly. Times are ticks of 1/256 ns, so that rounding costs less than 0.01% of any rate. A mutable struct: never readonly.
/// </summary>
internal struct RateBucket
{
    /// <summary>What idleness saves up when no burst is set: enough that a late timer loses nothing, and 1% of ten seconds.</summary>
    public const ulong BurstNanosMin = 100_000_000;

    /// <summary>Largest amount of one request: the product with the ticks of a second fits 64 bits.</summary>
    public const ulong AmountMax = 32 << 20;

    private const int TickShift = 8;
    private const ulong TicksPerSecond = 1_000_000_000UL << TickShift;

    private ulong _rate, _burstTicks, _freeAt;

    /// <summary>There is a limit.</summary>
    public readonly bool IsSet => _rate != 0;

    /// <summary>What a burst of that many seconds is, nanoseconds.</summary>
    public static ulong BurstNanos(QosLimits limits) => Math.Max(limits.BurstSeconds * 1_000_000_000UL, BurstNanosMin);

    /// <summary>Time as this type counts it.</summary>
    public static ulong Ticks(ulong nanos) => nanos << TickShift;

    /// <summary>How many nanoseconds, rounded up.</summary>
    public static ulong Nanos(ulong ticks) => (ticks + (1 << TickShift) - 1) >> TickShift;

    /// <summary>Ticks that <paramref name="amount"/> takes at <paramref name="rate"/> a second.</summary>
    public static ulong Cost(ulong amount, ulong rate) => Math.Min(amount, AmountMax) * TicksPerSecond / rate;

    /// <summary>From now on so much a second (0: no limit), with nothing owed and nothing saved up.</summary>
    public void Set(ulong rate, ulong burstNanos, ulong nowNanos) =>
        (_rate, _burstTicks, _freeAt) = (rate, Ticks(burstNanos), Ticks(nowNanos));

    /// <summary>Nanoseconds until something is let through; 0: now.</summary>
    public readonly ulong WaitNanos(ulong nowNanos)
    {
        ulong now = Ticks(nowNanos);
        return _rate == 0 || _freeAt <= now ? 0 : Nanos(_freeAt - now);
    }

    /// <summary>Counts what is let through.</summary>
    public void Take(ulong amount, ulong nowNanos)
    {
        if (_rate == 0) return;
        ulong now = Ticks(nowNanos);
        ulong floor = now > _burstTicks ? now - _burstTicks : 0;
        _freeAt = Math.Max(_freeAt, floor) + Cost(amount, _rate);
    }
}
