namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>One persistent reservation in model time.</summary>
internal sealed class Reservation(string holder, ulong key, int type, ulong maybeFrom)
{
    /// <summary>Initiator port.</summary>
    public string Holder { get; } = holder;

    public ulong Key { get; } = key;

    /// <summary>1 write exclusive, 3 exclusive access, 5 and 6 the same for registrants.</summary>
    public int Type { get; } = type;

    /// <summary>It was asked for.</summary>
    public ulong MaybeFrom { get; } = maybeFrom;

    /// <summary>It was answered; the largest number until then.</summary>
    public ulong FirmFrom { get; set; } = ulong.MaxValue;

    /// <summary>Its end was asked for.</summary>
    public ulong EndingFrom { get; set; } = ulong.MaxValue;

    /// <summary>It is certainly gone.</summary>
    public ulong GoneFrom { get; set; } = ulong.MaxValue;

    public bool IsFirm => FirmFrom != ulong.MaxValue && EndingFrom == ulong.MaxValue;

    public bool IsGone => GoneFrom != ulong.MaxValue;

    private bool IsForRegistrants => Type >= 5;

    private bool IsWriteExclusive => Type is 1 or 5;

    /// <summary>The command must have been refused: the reservation held from before it began until after its answer.</summary>
    public bool Forbids(string port, bool isRegistered, bool isWrite, ulong start, ulong end) =>
        FirmFrom < start && end < EndingFrom && Holder != port && !(IsForRegistrants && isRegistered) && (isWrite || !IsWriteExclusive);

    /// <summary>It may have been there at some time in between.</summary>
    public bool MayMeet(ulong start, ulong end) => MaybeFrom < end && start < GoneFrom;
}

/// <summary>Who holds a unit, as far as it can be known. One initiator at a time plays with it, so the order is known.</summary>
internal sealed class ReservationOracle
{
    private readonly List<Reservation> _all = [];

    /// <summary>Somebody is at it.</summary>
    public bool IsPlaying { get; set; }

    /// <summary>Ports that may be registered.</summary>
    public HashSet<string> Registered { get; } = new(StringComparer.Ordinal);

    /// <summary>The one that is, or may be, in force.</summary>
    public Reservation? Current => _all.Count > 0 && !_all[^1].IsGone ? _all[^1] : null;

    public void Begin(Reservation reservation) => _all.Add(reservation);

    public bool MustRefuse(string port, bool isWrite, ulong start, ulong end) =>
        _all.Exists(r => r.Forbids(port, Registered.Contains(port), isWrite, start, end));

    public bool MayRefuse(ulong start, ulong end) => _all.Exists(r => r.MayMeet(start, end));

    /// <summary>What is left after a restart without persistence.</summary>
    public void Forget(ulong now)
    {
        foreach (Reservation reservation in _all)
        {
            reservation.EndingFrom = Math.Min(reservation.EndingFrom, now);
            reservation.GoneFrom = Math.Min(reservation.GoneFrom, now);
        }

        Registered.Clear();
    }
}
