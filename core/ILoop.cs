namespace BlockServer.Core;

/// <summary>
/// A loop as the code on it sees it: the clock, the timers, the dice and the buffers. In production a thread with an
/// io_uring (or aio and epoll); in the simulation a queue of events driven by one seed. Unless a member says otherwise
/// it is called on the loop's own thread only.
/// </summary>
public interface ILoop
{
    /// <summary>Monotonic time in nanoseconds since an arbitrary start. Production reads it once a turn.</summary>
    ulong NowNanos { get; }

    /// <summary>True on the loop's thread.</summary>
    bool IsHere { get; }

    /// <summary>Dice of this loop.</summary>
    IRandom Random { get; }

    /// <summary>I/O memory of this loop.</summary>
    BufferPool Buffers { get; }

    /// <summary>Runs <paramref name="action"/> in the next turn. From the loop's thread only.</summary>
    void Post(Action action);

    /// <summary>Runs <paramref name="action"/> on the loop soon. From any thread.</summary>
    void PostFromAnywhere(Action action);

    /// <summary>
    /// Calls <paramref name="hook"/> once, after everything that completed in this turn has run and before the turn's
    /// I/O is submitted: the place to close a batch (group commit, gathered send). Asking again before it ran is free.
    /// A hook may ask for I/O; hooks asked for during hooks run in the same turn.
    /// </summary>
    void CallAtTurnEnd(TurnEndHook hook);

    /// <summary>A timer that calls <paramref name="elapsed"/> on the loop; not started yet.</summary>
    LoopTimer CreateTimer(Action elapsed);
}

/// <summary>A reusable end-of-turn callback; one object per owner, so that asking allocates nothing.</summary>
public sealed class TurnEndHook(Action run)
{
    /// <summary>What to run.</summary>
    public Action Run { get; } = run;

    /// <summary>Kept by the loop: the hook is already in this turn's list.</summary>
    public bool IsAsked { get; set; }
}

/// <summary>A one-shot timer of a loop. Restartable; lives on its loop.</summary>
public abstract class LoopTimer
{
    /// <summary>True between <see cref="Start"/> and the call or <see cref="Stop"/>.</summary>
    public abstract bool IsArmed { get; }

    /// <summary>Arms it to elapse once, <paramref name="delayNanos"/> from now; an armed timer is moved.</summary>
    public abstract void Start(ulong delayNanos);

    /// <summary>Disarms it; afterwards it is not called.</summary>
    public abstract void Stop();
}

/// <summary>Randomness as a seam. In production from the system's generator, in the simulation from the seed.</summary>
public interface IRandom
{
    /// <summary>64 random bits.</summary>
    ulong NextUInt64();

    /// <summary>Fills with random bytes fit for identities (not necessarily for secrets).</summary>
    void Fill(Span<byte> target);
}

/// <summary>What a person's watch says; for timestamps shown to people only, never for decisions.</summary>
public interface IWallClock
{
    /// <summary>Now, in UTC.</summary>
    DateTimeOffset UtcNow { get; }
}

/// <summary>Conveniences over the seams.</summary>
public static class LoopExtensions
{
    /// <summary>Stops the process when a type that lives on the loop is touched from elsewhere.</summary>
    public static void CheckHere(this ILoop loop) => Check.That(loop.IsHere);

    /// <summary>A number from 0 to <paramref name="bound"/> - 1.</summary>
    public static ulong NextBelow(this IRandom random, ulong bound)
    {
        Check.That(bound > 0);
        return (ulong)(((UInt128)random.NextUInt64() * bound) >> 64);
    }

    /// <summary>A number from 0 to <paramref name="bound"/> - 1.</summary>
    public static int NextBelow(this IRandom random, int bound) => (int)random.NextBelow((ulong)bound);

    /// <summary>True with the given probability.</summary>
    public static bool NextChance(this IRandom random, double probability) =>
        (random.NextUInt64() >> 11) * (1.0 / (1UL << 53)) < probability;

    /// <summary>A random (version 4) UUID.</summary>
    public static Guid NextGuid(this IRandom random)
    {
        Span<byte> bytes = stackalloc byte[16];
        random.Fill(bytes);
        bytes[6] = (byte)((bytes[6] & 0x0F) | 0x40);
        bytes[8] = (byte)((bytes[8] & 0x3F) | 0x80);
        return new Guid(bytes, bigEndian: true);
    }

    /// <summary>Answers after <paramref name="delayNanos"/> on the loop. Allocates; not for the hot path.</summary>
    public static ValueTask DelayAsync(this ILoop loop, ulong delayNanos)
    {
        var done = new LoopEvent<bool>();
        loop.CreateTimer(() => done.Set(true)).Start(delayNanos);
        return Discard(done.WaitAsync());

        static async ValueTask Discard(ValueTask<bool> wait) => await wait;
    }
}
