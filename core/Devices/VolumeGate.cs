namespace BlockServer.Core;

/// <summary>What a reservation leaves to clients that cannot take part in reservations.</summary>
public enum Fence
{
    /// <summary>Everything.</summary>
    None,

    /// <summary>Reading.</summary>
    Writes,

    /// <summary>Nothing.</summary>
    All,
}

/// <summary>
/// What every front end of a volume passes. Ranges keep the commands that read, decide and write (COMPARE AND WRITE, ORWRITE,
/// EXTENDED COPY) apart from every other change of the same bytes, by whichever protocol it comes: plain changes share, those
/// exclude; who waits is served in order, so nobody starves. The fence holds back clients that know no reservations. One for
/// each volume, on its loop; allocates nothing once warm.
/// </summary>
public sealed class VolumeGate
{
    private Range? _held, _firstWaiting, _lastWaiting, _free;
    private int _exclusive; // held or waiting

    /// <summary>What the volume's reservation leaves to clients that cannot take part in it.</summary>
    public Fence Fence { get; set; }

    /// <summary>The operator lets such clients pass the fence.</summary>
    public bool IgnoresFence { get; set; }

    /// <summary>The fence forbids it to a client that cannot take part in reservations.</summary>
    public bool Forbids(bool isChange) => Fence != Fence.None && !IgnoresFence && (isChange || Fence == Fence.All);

    /// <summary>Answers when every change that was begun before has ended; later ones wait for it.</summary>
    public async ValueTask DrainAsync()
    {
        Range all = Take(0, ulong.MaxValue, true, out ValueTask<bool> wait);
        await wait;
        Release(all);
    }

    /// <summary>A range in use, until <see cref="Release"/>.</summary>
    public sealed class Range : LoopOperation<bool>
    {
        internal Range()
        {
        }

        internal ulong Start { get; set; }

        internal ulong End { get; set; }

        internal bool IsExclusive { get; set; }

        internal Range? Previous { get; set; }

        internal Range? Next { get; set; }

        internal bool Meets(Range other) =>
            (IsExclusive || other.IsExclusive) && Start < other.End && other.Start < End;
    }

    /// <summary>The range, at once or later: when <see cref="LoopOperation{T}.IsPending"/>, await <paramref name="wait"/>.</summary>
    public Range Take(ulong start, ulong length, bool isExclusive, out ValueTask<bool> wait)
    {
        Range range = _free ?? new Range();
        _free = range.Next;
        (range.Start, range.End, range.IsExclusive) = (start, start + length, isExclusive);
        (range.Previous, range.Next) = (null, null);
        if (isExclusive) _exclusive++;
        if (_exclusive == 0 || !IsBlocked(range, null))
        {
            Hold(range);
            wait = new ValueTask<bool>(true);
            return range;
        }

        range.Previous = _lastWaiting;
        if (_lastWaiting is null) _firstWaiting = range;
        else _lastWaiting.Next = range;
        _lastWaiting = range;
        wait = range.Begin();
        return range;
    }

    /// <summary>Gives a range back; who waited for it goes on inline.</summary>
    public void Release(Range range)
    {
        if (range.Previous is null) _held = range.Next;
        else range.Previous.Next = range.Next;
        if (range.Next is not null) range.Next.Previous = range.Previous;
        if (range.IsExclusive) _exclusive--;
        (range.Previous, range.Next) = (null, _free);
        _free = range;
        if (_firstWaiting is not null) Grant();
    }

    private void Hold(Range range)
    {
        range.Next = _held;
        if (_held is not null) _held.Previous = range;
        _held = range;
    }

    /// <summary>Met by a held range, or by one that waits in front of <paramref name="until"/>.</summary>
    private bool IsBlocked(Range range, Range? until)
    {
        for (Range? held = _held; held is not null; held = held.Next)
        {
            if (held.Meets(range)) return true;
        }

        for (Range? older = _firstWaiting; older != until && older is not null; older = older.Next)
        {
            if (older.Meets(range)) return true;
        }

        return false;
    }

    /// <summary>Completing runs the waiter inline, which may take and release others: begin anew after each.</summary>
    private void Grant()
    {
        while (true)
        {
            Range? next = _firstWaiting;
            while (next is not null && IsBlocked(next, next)) next = next.Next;
            if (next is null) return;
            if (next.Previous is null) _firstWaiting = next.Next;
            else next.Previous.Next = next.Next;
            if (next.Next is null) _lastWaiting = next.Previous;
            else next.Next.Previous = next.Previous;
            (next.Previous, next.Next) = (null, null);
            Hold(next);
            next.Complete(true);
        }
    }
}
