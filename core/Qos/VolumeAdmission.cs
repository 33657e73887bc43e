using BlockServer.Core.Api;

namespace BlockServer.Core;

/// <summary>
/// The door of a volume: every request of every front end passes it before it takes memory or stands in a queue. It holds back
/// what exceeds the limits of the volume, those of its tenant, and the share of its disk while other volumes use that too. Who
/// waits, waits in order, holds nothing of other volumes, and can be withdrawn. Without limits it costs a few branches. Lives on
/// the volume's loop; allocates nothing once made.
/// <para>Call order: <see cref="Enter"/>; when it answers false, the waiter is called later or withdrawn; and for everything
/// that was let in, <see cref="Exit"/> when the device is done with it.</para>
/// </summary>
public sealed class VolumeAdmission
{
    /// <summary>No timer runs more often: what is saved up meanwhile is let in together.</summary>
    internal const ulong WaitNanosMin = 1_000_000;

    // A request of so much costs the loop more time (its bytes are received and checked: about 10 us) than one turn more does.
    private const ulong LongBytes = 32 << 10;

    private readonly ILoop _loop;
    private readonly LoopTimer _timer;
    private readonly SharedLimiter.Part _own;
    private readonly SharedLimiter.Turn _ownTurn, _tenantTurn;
    private SharedLimiter.Part? _tenant;
    private AdmissionWaiter? _first, _last;
    private readonly Action _nextTurn;
    private bool _isPumping, _isTurnAsked;
    private ulong _timerAt;

    /// <summary>A door. <paramref name="disk"/> divides the disk among its volumes; null: nothing does. <paramref name="own"/> is what the
    /// doors of its volume take from together; null: it is the only one, without limits.</summary>
    public VolumeAdmission(ILoop loop, DiskShare? disk = null, SharedLimiter? own = null)
    {
        (_loop, Share, _own) = (loop, disk?.Add(), (own ?? new SharedLimiter()).PartOf(loop));
        (_ownTurn, _tenantTurn) = (new SharedLimiter.Turn(this), new SharedLimiter.Turn(this));
        _timer = loop.CreateTimer(Pump);
        _nextTurn = OnNextTurn;
    }

    /// <summary>Other volumes have used the disk of late: what is large should be done in pieces.</summary>
    public bool HasNeighbours => Share?.IsContested(_loop.NowNanos) == true;

    /// <summary>The limits of its volume that are in force. Any thread.</summary>
    public QosLimits Limits => _own.Owner.Limits;

    /// <summary>The limits of its tenant, or null.</summary>
    public QosLimits? TenantLimits => _tenant?.Owner.Limits;

    /// <summary>Requests that wait.</summary>
    public int Waiting { get; private set; }

    /// <summary>Requests that were let in and are not done.</summary>
    public int Inside { get; private set; }

    /// <summary>Requests that had to wait and were let in.</summary>
    public ulong Throttled { get; private set; }

    /// <summary>How long those waited together, nanoseconds.</summary>
    public ulong ThrottledNanos { get; private set; }

    private DiskShare.Part? Share { get; }

    /// <summary>Sets the limits of the volume, at all of its doors: they hold for who waits too, with nothing owed and nothing saved up.
    /// Setting those in force again changes nothing.</summary>
    public void SetLimits(QosLimits? limits)
    {
        _own.Owner.SetLimits(limits, _loop.NowNanos);
        _own.Pump();
    }

    /// <summary>From now on the volume takes from that limiter too; null: from none.</summary>
    public void SetTenant(SharedLimiter? tenant)
    {
        if (_tenant?.Owner == tenant) return;
        _tenant?.Leave(_tenantTurn);
        _tenant = tenant?.PartOf(_loop);
        Pump();
    }

    /// <summary>The volume lies on another disk: it has its part of that from now on, and what is still inside counts there. Null when
    /// nothing divides the disks.</summary>
    public void SetDisk(DiskShare? disk)
    {
        if (disk is null) return;
        Share?.MoveTo(disk);
        Pump();
    }

    /// <summary>A request of <paramref name="bytes"/> comes: true, it is let in at once. False: <paramref name="waiter"/> is called
    /// when it is.</summary>
    public bool Enter(AdmissionWaiter waiter, ulong bytes)
    {
        ulong now = _loop.NowNanos;
        if (_first is null && MayEnter(bytes, now))
        {
            waiter.WaitedNanos = 0;
            Take(bytes, now);
            return true;
        }

        (waiter.IsWaiting, waiter.Bytes, waiter.SinceNanos) = (true, bytes, now);
        (waiter.Previous, waiter.Next) = (_last, null);
        if (_last is null) _first = waiter;
        else _last.Next = waiter;
        _last = waiter;
        Waiting++;
        if (_first == waiter) Arrange(now);
        return false;
    }

    /// <summary>It waits no longer and will not be let in. Free when it does not wait. Lets nobody else in: what was arranged for it
    /// serves the one behind it.</summary>
    public void Withdraw(AdmissionWaiter waiter)
    {
        if (waiter.IsWaiting) Unlink(waiter);
    }

    /// <summary>The device is done with a request of <paramref name="bytes"/> that was let in.</summary>
    public void Exit(ulong bytes)
    {
        Inside--;
        if (Share is null) return;
        Share.Exit(bytes, _loop.NowNanos);
        if (_first is null || _isTurnAsked) return;
        if (_first.Bytes < LongBytes)
        {
            Pump();
            return;
        }

        _isTurnAsked = true;
        _loop.Post(_nextTurn);
    }

    // Who waits for its part with a large request comes after what the others have ready in this turn: that is read, prepared and handed to the disk
    // before the next request of this volume costs the loop's time.
    private void OnNextTurn()
    {
        _isTurnAsked = false;
        Pump();
    }

    /// <summary>The turn of the door has come at one of its limiters: lets one in; true when more wait for that limiter.</summary>
    internal bool AdmitOne(SharedLimiter.Part limiter, ulong now)
    {
        if (_first is not { } waiter) return false;
        if (!MayEnter(waiter.Bytes, now, limiter))
        {
            Arrange(now, limiter);
            return false;
        }

        LetIn(waiter, now);
        return _first is not null;
    }

    private void Pump()
    {
        if (_isPumping) return; // from inside a request that was just let in
        _isPumping = true;
        try
        {
            ulong now = _loop.NowNanos;
            while (_first is { } waiter && MayEnter(waiter.Bytes, now)) LetIn(waiter, now);
            if (_first is not null) Arrange(now);
            else _timer.Stop();
        }
        finally
        {
            _isPumping = false;
        }
    }

    private void LetIn(AdmissionWaiter waiter, ulong now)
    {
        Unlink(waiter);
        waiter.WaitedNanos = now - waiter.SinceNanos;
        Throttled++;
        ThrottledNanos += waiter.WaitedNanos;
        Take(waiter.Bytes, now);
        waiter.Admit();
    }

    /// <summary>Nothing holds the first one back; <paramref name="asked"/> has been asked already.</summary>
    private bool MayEnter(ulong bytes, ulong now, SharedLimiter.Part? asked = null) =>
        (_own == asked || _own.MayEnter(now)) && Share?.MayEnter(bytes, now) != false && (_tenant is null || _tenant == asked || _tenant.MayEnter(now));

    private void Take(ulong bytes, ulong now)
    {
        Inside++;
        Share?.Enter(bytes, now);
        _own.Take(bytes, now);
        _tenant?.Take(bytes, now);
    }

    /// <summary>Sees to it that the first one is looked at again: by the first thing that holds it back.</summary>
    private void Arrange(ulong now, SharedLimiter.Part? asked = null)
    {
        if (_own != asked && !_own.MayEnter(now)) _own.Join(_ownTurn);
        else if (Share?.MayEnter(_first!.Bytes, now) == false) StartTimer(now, DiskShare.StallNanos); // an exit does it sooner
        else _tenant?.Join(_tenantTurn);
    }

    // Every exit comes here: a timer that elapses soon enough is left alone.
    private void StartTimer(ulong now, ulong nanos)
    {
        if (_timer.IsArmed && _timerAt <= now + nanos) return;
        _timerAt = now + nanos;
        _timer.Start(nanos);
    }

    private void Unlink(AdmissionWaiter waiter)
    {
        if (waiter.Previous is null) _first = waiter.Next;
        else waiter.Previous.Next = waiter.Next;
        if (waiter.Next is null) _last = waiter.Previous;
        else waiter.Next.Previous = waiter.Previous;
        (waiter.Previous, waiter.Next, waiter.IsWaiting) = (null, null, false);
        Waiting--;
    }
}
