using BlockServer.Core.Api;

namespace BlockServer.Core;

/// <summary>
/// Limits that several doors take from together, on whatever loops they live: those of a volume, which has a door on each loop
/// where it is used, and those of a tenant. Thread-safe; the hot path is one compare-and-swap for each limit that is set. The rate
/// holds exactly however many loops take from it; doors that wait take turns on their loop, and loops on which somebody waits get
/// equal parts.
/// </summary>
public sealed class SharedLimiter
{
    private Part[] _parts = []; // one for each loop; replaced, never changed
    private Rates _rates = new(QosLimits.None);
    private ulong _opsFreeAt, _bytesFreeAt; // ticks of RateBucket
    private int _waitingParts;

    /// <summary>The limits in force. Any thread.</summary>
    public QosLimits Limits => Volatile.Read(ref _rates).Limits;

    /// <summary>Sets limits, which hold for who waits too. What was saved up since <paramref name="sinceNanos"/> is there at once, to the
    /// burst; 0: all of it. Setting those in force again changes nothing. Any thread, one at a time.</summary>
    public void SetLimits(QosLimits? limits, ulong sinceNanos = 0)
    {
        limits ??= QosLimits.None;
        if (limits == Limits) return;
        Volatile.Write(ref _rates, new Rates(limits));
        Volatile.Write(ref _opsFreeAt, RateBucket.Ticks(sinceNanos));
        Volatile.Write(ref _bytesFreeAt, RateBucket.Ticks(sinceNanos));
        foreach (Part part in Volatile.Read(ref _parts)) part.LookAgain();
    }

    /// <summary>What the doors of a loop see of it. On that loop.</summary>
    internal Part PartOf(ILoop loop)
    {
        Part? made = null;
        while (true)
        {
            Part[] parts = Volatile.Read(ref _parts);
            foreach (Part part in parts)
            {
                if (part.Loop == loop) return part;
            }

            made ??= new Part(this, loop);
            if (Interlocked.CompareExchange(ref _parts, [.. parts, made], parts) == parts) return made;
        }
    }

    private ulong WaitNanos(ulong now)
    {
        Rates rates = Volatile.Read(ref _rates);
        if (!rates.IsSet) return 0;
        ulong ticks = RateBucket.Ticks(now), free = 0;
        if (rates.Ops != 0) free = Volatile.Read(ref _opsFreeAt);
        if (rates.Bytes != 0) free = Math.Max(free, Volatile.Read(ref _bytesFreeAt));
        return free <= ticks ? 0 : RateBucket.Nanos(free - ticks);
    }

    /// <summary>Counts a request; the ticks that it cost at the limit that it strained most.</summary>
    private ulong Take(ulong bytes, ulong now)
    {
        Rates rates = Volatile.Read(ref _rates);
        if (!rates.IsSet) return 0;
        ulong ticks = RateBucket.Ticks(now), floor = ticks > rates.BurstTicks ? ticks - rates.BurstTicks : 0, most = 0;
        if (rates.Ops != 0) Advance(ref _opsFreeAt, floor, most = RateBucket.Cost(1, rates.Ops));
        if (rates.Bytes == 0) return most;
        ulong cost = RateBucket.Cost(bytes, rates.Bytes);
        Advance(ref _bytesFreeAt, floor, cost);
        return Math.Max(most, cost);
    }

    private static void Advance(ref ulong freeAt, ulong floor, ulong cost)
    {
        while (true)
        {
            ulong seen = Volatile.Read(ref freeAt);
            if (Interlocked.CompareExchange(ref freeAt, Math.Max(seen, floor) + cost, seen) == seen) return;
        }
    }

    private sealed record Rates(QosLimits Limits)
    {
        public ulong Ops { get; } = Limits.Iops;

        public ulong Bytes { get; } = Limits.BytesPerSecond;

        public bool IsSet { get; } = Limits.Iops != 0 || Limits.BytesPerSecond != 0;

        public ulong BurstTicks { get; } = RateBucket.Ticks(RateBucket.BurstNanos(Limits));
    }

    /// <summary>The place of a door in the ring of a limiter. Lives on the door's loop.</summary>
    internal sealed class Turn
    {
        internal Turn(VolumeAdmission door) => (Door, Node) = (door, new LinkedListNode<Turn>(this));

        internal VolumeAdmission Door { get; }

        internal LinkedListNode<Turn> Node { get; }

        /// <summary>The door waits for this limiter.</summary>
        internal bool IsInRing { get; set; }
    }

    /// <summary>What the doors of one loop see of it. Lives on that loop, except where said.</summary>
    internal sealed class Part
    {
        private readonly LoopTimer _timer;
        private readonly LinkedList<Turn> _ring = new(); // of doors that wait; whose turn it is, first
        private readonly Action _look;
        private bool _isWaiting;
        private ulong _paceAt; // ticks; while other loops wait too, this one takes its part only

        internal Part(SharedLimiter owner, ILoop loop)
        {
            (Owner, Loop, _look) = (owner, loop, Pump);
            _timer = loop.CreateTimer(Pump);
        }

        internal SharedLimiter Owner { get; }

        internal ILoop Loop { get; }

        internal bool MayEnter(ulong now) => _ring.Count == 0 && Owner.WaitNanos(now) == 0;

        internal void Take(ulong bytes, ulong now)
        {
            ulong cost = Owner.Take(bytes, now);
            int others = Volatile.Read(ref Owner._waitingParts);
            if (others > 1) _paceAt = Math.Max(_paceAt, RateBucket.Ticks(now - Math.Min(now, RateBucket.BurstNanosMin))) + cost * (ulong)others;
        }

        /// <summary>The door waits for its turn. Free when it does already.</summary>
        internal void Join(Turn turn)
        {
            if (turn.IsInRing) return;
            turn.IsInRing = true;
            _ring.AddLast(turn.Node);
            if (!_isWaiting) Rearm();
        }

        /// <summary>The door waits no longer.</summary>
        internal void Leave(Turn turn)
        {
            if (!turn.IsInRing) return;
            turn.IsInRing = false;
            if (turn.Node.List is null) return; // its turn has just come, and Pump goes on
            _ring.Remove(turn.Node);
            if (_ring.Count == 0) Rearm();
        }

        /// <summary>The limits have changed. Any thread.</summary>
        internal void LookAgain() => Loop.PostFromAnywhere(_look);

        private ulong WaitNanos(ulong now)
        {
            if (!Volatile.Read(ref Owner._rates).IsSet) return 0; // nor is there a part to keep to
            ulong wait = Owner.WaitNanos(now), ticks = RateBucket.Ticks(now);
            bool isPaced = Volatile.Read(ref Owner._waitingParts) > 1 && _paceAt > ticks;
            return isPaced ? Math.Max(wait, RateBucket.Nanos(_paceAt - ticks)) : wait;
        }

        /// <summary>Lets in whose turn has come.</summary>
        internal void Pump()
        {
            ulong now = Loop.NowNanos;
            while (_ring.First is { } node && WaitNanos(now) == 0)
            {
                Turn turn = node.Value;
                _ring.RemoveFirst();
                bool waitsOn = turn.Door.AdmitOne(this, now);
                if (!turn.IsInRing) continue; // it left meanwhile
                if (waitsOn) _ring.AddLast(node);
                else turn.IsInRing = false;
            }

            Rearm();
        }

        /// <summary>The timer runs and this loop counts among those that wait, while somebody does.</summary>
        private void Rearm()
        {
            bool isWaiting = _ring.Count > 0;
            if (isWaiting != _isWaiting)
            {
                _isWaiting = isWaiting;
                Interlocked.Add(ref Owner._waitingParts, isWaiting ? 1 : -1);
                _paceAt = RateBucket.Ticks(Loop.NowNanos);
            }

            if (isWaiting) _timer.Start(Math.Max(WaitNanos(Loop.NowNanos), VolumeAdmission.WaitNanosMin));
            else _timer.Stop();
        }
    }
}
