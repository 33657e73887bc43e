using System.Collections.Concurrent;
using BlockServer.Core.Api;

namespace BlockServer.Core;

/// <summary>
/// Limits that several volumes take from together, on whatever loops they live: those of a tenant. Thread-safe; the hot path
/// is one compare-and-swap for each limit that is set. The rate holds exactly however many loops take from it; volumes that
/// wait take turns on their loop, and loops on which somebody waits get equal parts.
/// </summary>
public sealed class SharedLimiter
{
    private readonly ConcurrentDictionary<ILoop, Part> _parts = [];
    private Rates _rates = new(QosLimits.None);
    private ulong _opsFreeAt, _bytesFreeAt; // ticks of RateBucket
    private int _waitingParts;

    /// <summary>The limits in force. Any thread.</summary>
    public QosLimits Limits => Volatile.Read(ref _rates).Limits;

    /// <summary>Sets limits, with a burst saved up; they hold for who waits too. Setting those in force again changes nothing. Any
    /// thread.</summary>
    public void SetLimits(QosLimits? limits)
    {
        limits ??= QosLimits.None;
        if (limits == Limits) return;
        Volatile.Write(ref _rates, new Rates(limits));
        Volatile.Write(ref _opsFreeAt, 0);
        Volatile.Write(ref _bytesFreeAt, 0);
        foreach (Part part in _parts.Values) part.LookAgain();
    }

    internal Part PartOf(ILoop loop) => _parts.GetOrAdd(loop, static (l, owner) => new Part(owner, l), this);

    private ulong WaitNanos(ulong now)
    {
        Rates rates = Volatile.Read(ref _rates);
        ulong ticks = RateBucket.Ticks(now), free = 0;
        if (rates.Ops != 0) free = Volatile.Read(ref _opsFreeAt);
        if (rates.Bytes != 0) free = Math.Max(free, Volatile.Read(ref _bytesFreeAt));
        return free <= ticks ? 0 : RateBucket.Nanos(free - ticks);
    }

    /// <summary>Counts a request; the ticks that it cost at the limit that it strained most.</summary>
    private ulong Take(ulong bytes, ulong now)
    {
        Rates rates = Volatile.Read(ref _rates);
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

        public ulong BurstTicks { get; } = RateBucket.Ticks(RateBucket.BurstNanos(Limits));
    }

    /// <summary>What the volumes of one loop see of it. Lives on that loop, except where said.</summary>
    internal sealed class Part
    {
        private readonly ILoop _loop;
        private readonly LoopTimer _timer;
        private readonly LinkedList<VolumeAdmission> _ring = new(); // of volumes that wait; whose turn it is, first
        private readonly Action _look;
        private bool _isWaiting;
        private ulong _paceAt; // ticks; while other loops wait too, this one takes its part only

        internal Part(SharedLimiter owner, ILoop loop)
        {
            (Owner, _loop, _look) = (owner, loop, Pump);
            _timer = loop.CreateTimer(Pump);
        }

        internal SharedLimiter Owner { get; }

        internal bool MayEnter(ulong now) => _ring.Count == 0 && Owner.WaitNanos(now) == 0;

        internal void Take(ulong bytes, ulong now)
        {
            ulong cost = Owner.Take(bytes, now);
            int others = Volatile.Read(ref Owner._waitingParts);
            if (others > 1) _paceAt = Math.Max(_paceAt, RateBucket.Ticks(now - Math.Min(now, RateBucket.BurstNanosMin))) + cost * (ulong)others;
        }

        /// <summary>The volume waits for its turn. Free when it does already.</summary>
        internal void Join(VolumeAdmission volume)
        {
            if (volume.IsInRing) return;
            volume.IsInRing = true;
            _ring.AddLast(volume.Turn);
            if (!_isWaiting) Rearm();
        }

        /// <summary>The volume waits no longer.</summary>
        internal void Leave(VolumeAdmission volume)
        {
            if (!volume.IsInRing) return;
            volume.IsInRing = false;
            if (volume.Turn.List is null) return; // its turn has just come, and Pump goes on
            _ring.Remove(volume.Turn);
            if (_ring.Count == 0) Rearm();
        }

        /// <summary>The limits have changed. Any thread.</summary>
        internal void LookAgain() => _loop.PostFromAnywhere(_look);

        private ulong WaitNanos(ulong now)
        {
            ulong wait = Owner.WaitNanos(now), ticks = RateBucket.Ticks(now);
            bool isPaced = Volatile.Read(ref Owner._waitingParts) > 1 && _paceAt > ticks;
            return isPaced ? Math.Max(wait, RateBucket.Nanos(_paceAt - ticks)) : wait;
        }

        private void Pump()
        {
            ulong now = _loop.NowNanos;
            while (_ring.First is { } turn && WaitNanos(now) == 0)
            {
                VolumeAdmission volume = turn.Value;
                _ring.RemoveFirst();
                bool waitsOn = volume.AdmitOne(now);
                if (!volume.IsInRing) continue; // it left meanwhile
                if (waitsOn) _ring.AddLast(turn);
                else volume.IsInRing = false;
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
                _paceAt = RateBucket.Ticks(_loop.NowNanos);
            }

            if (isWaiting) _timer.Start(Math.Max(WaitNanos(_loop.NowNanos), VolumeAdmission.WaitNanosMin));
            else _timer.Stop();
        }
    }
}
