namespace BlockServer.Core;

/// <summary>
/// Divides what is in flight at one disk among the volumes that use it at the same time, so that a volume with many large
/// requests does not make the others wait behind all of them. While only one volume is busy, nothing is held back. Lives on the
/// disk's loop.
/// </summary>
public sealed class DiskShare
{
    /// <summary>Bytes in flight at a disk that several volumes use, in equal parts; a volume always has one request.</summary>
    public const ulong InsideBytesMax = 256 << 10;

    // However many volumes are busy: 8 small requests of each keep a disk at work, and no large one needs more.
    private const ulong PartBytesMin = 64 << 10;

    // What a request counts at least, a trim too: a disk is busy with 4 KiB for about as long as with 8 KiB and more.
    private const ulong RequestBytesMin = 8 << 10;

    /// <summary>A volume that waits for its own requests, of which none ends for so long, gets one more: what is in flight may
    /// itself wait for memory that those which wait here hold.</summary>
    internal const ulong StallNanos = 200_000_000;

    // A volume is busy for the rest of the period in which it was used, and one more: 67 to 134 ms.
    private const int PeriodShift = 26;

    private readonly ulong _bytesMax;
    private ulong _period;
    private ulong _busy, _busyBefore; // volumes in this period and in the one before

    /// <summary>Of one disk.</summary>
    public DiskShare(ulong bytesMax = InsideBytesMax) => _bytesMax = bytesMax;

    internal Part Add() => new(this);

    /// <summary>More than one volume used the disk of late.</summary>
    internal bool IsContested(ulong now) => BusyAt(now >> PeriodShift) > 1;

    private ulong BusyAt(ulong period)
    {
        if (period == _period) return Math.Max(_busy, _busyBefore);
        return period == _period + 1 ? _busy : 0;
    }

    private void Mark(ulong period)
    {
        if (period != _period)
        {
            _busyBefore = period == _period + 1 ? _busy : 0;
            (_period, _busy) = (period, 0);
        }

        _busy++;
    }

    /// <summary>One volume of the disk.</summary>
    internal sealed class Part
    {
        private DiskShare _disk;
        private ulong _requests, _bytes, _period, _movedNanos;

        internal Part(DiskShare disk) => _disk = disk;

        /// <summary>It is one of another disk from now on, and what is in flight counts there.</summary>
        internal void MoveTo(DiskShare disk) => (_disk, _period) = (disk, 0);

        internal bool IsContested(ulong now) => _disk.IsContested(now);

        internal bool MayEnter(ulong bytes, ulong now)
        {
            if (_requests == 0) return true;
            ulong busy = _disk.BusyAt(now >> PeriodShift);
            return busy <= 1 || _bytes + CostOf(bytes) <= Math.Max(_disk._bytesMax / busy, PartBytesMin) || now - _movedNanos >= StallNanos;
        }

        internal void Enter(ulong bytes, ulong now)
        {
            _requests++;
            _bytes += CostOf(bytes);
            Move(now);
        }

        internal void Exit(ulong bytes, ulong now)
        {
            _requests--;
            _bytes -= CostOf(bytes);
            Move(now);
        }

        private static ulong CostOf(ulong bytes) => Math.Max(bytes, RequestBytesMin);

        private void Move(ulong now)
        {
            _movedNanos = now;
            ulong period = now >> PeriodShift;
            if (period == _period) return;
            _period = period;
            _disk.Mark(period);
        }
    }
}
