using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// PERSISTENT RESERVE OUT (SPC-4, 5.12 and 6.16). One at a time: the new state is made beside the old one, saved if it is
/// to survive, and then takes effect at once, with its unit attentions. If it cannot be saved nothing has changed.
/// </summary>
public sealed partial class LogicalUnit
{
    private const int ListBytes = 24;

    private readonly Queue<LoopEvent<bool>> _reservationTurns = new();
    private bool _isReserving;

    /// <summary>Ends the reservation and every registration, whoever holds them, for the operator; those who are attached are
    /// told (2A/03). Errors: those of the store, and then nothing has changed.</summary>
    public async ValueTask<IoStatus> ClearReservationsAsync()
    {
        await TakeReservationTurnAsync();
        try
        {
            var empty = new PersistentReservations { Generation = _reservations.Generation + 1 };
            if (_store is not null)
            {
                IoStatus saved = await _store.SaveAsync(empty.ToBytes());
                if (saved != IoStatus.Ok) return saved;
            }

            foreach (UnitNexus nexus in _nexuses)
            {
                if (nexus.Registrant is not null || nexus == _reservedBy) nexus.Attend(Attention.ReservationsPreempted);
                nexus.Registrant = null;
            }

            _reservations = empty;
            _reservedBy = null;
            SetFence();
            return IoStatus.Ok;
        }
        finally
        {
            EndReservationTurn();
        }
    }

    private async ValueTask TakeReservationTurnAsync()
    {
        if (_isReserving)
        {
            var turn = new LoopEvent<bool>();
            _reservationTurns.Enqueue(turn);
            await turn.WaitAsync();
        }

        _isReserving = true;
    }

    private void EndReservationTurn()
    {
        _isReserving = false;
        if (_reservationTurns.TryDequeue(out LoopEvent<bool>? next)) next.Set(true);
    }

    private async ValueTask<ScsiResult> PersistentOutAsync(ScsiCommand command, UnitNexus nexus, CommandEntry entry)
    {
        await TakeReservationTurnAsync();
        Fence fence;
        ReservationChange change;
        ScsiResult result;
        try
        {
            if (command.IsAborted) return ScsiResult.Good;
            if (_reservedBy is not null) return ScsiResult.Conflict;
            change = new ReservationChange(_reservations.Copy(), nexus);
            result = Decide(command, entry.Action, change);
            if (!result.IsGood || !change.IsChanged) return result;
            if (_store is not null && (change.State.IsPersistent || _reservations.IsPersistent))
            {
                IoStatus saved = await _store.SaveAsync(change.State.ToBytes());
                if (saved != IoStatus.Ok) return new Sense(SenseKey.IllegalRequest, 0x5504); // insufficient registration resources
            }

            fence = _gate.Fence;
            Apply(change);
        }
        finally
        {
            EndReservationTurn();
        }

        // Behind the turn: a command that is aborted here may itself be waiting for its turn.
        if (change.AbortsPreempted && change.Preempted.Count > 0)
        {
            foreach (UnitNexus gone in change.Preempted) _tasks.Abort(t => t.Nexus == gone && t.Command != command, nexus, _modes.HasTas);
            await _tasks.WaitForAbortedAsync();
        }

        // Who came by another protocol and passed before the fence stood has ended when this is answered.
        if (_gate.Fence > fence) await _gate.DrainAsync();
        return result;
    }

    /// <summary>The state takes the place of the old one. Nexuses may have come and gone while it was saved.</summary>
    private void Apply(ReservationChange change)
    {
        _reservations = change.State;
        foreach (Registrant registrant in _reservations.Registrants) registrant.Nexus = null;
        foreach (UnitNexus nexus in _nexuses) LinkRegistrant(nexus);
        SetFence();
        foreach ((UnitNexus nexus, ushort code) in change.Attentions) nexus.Attend(code);
    }

    private ScsiResult Decide(ScsiCommand command, int action, ReservationChange change)
    {
        byte[] cdb = command.Cdb;
        ReadOnlySpan<byte> list = command.DataOut.Span[..(int)Math.Min(TransferPlan.ListOf(cdb)!.Value, (uint)command.OutLength)];
        if (list.Length < ListBytes) return Sense.ListLength;
        bool mayBeLong = action is 0 or 7;
        if (!mayBeLong && list.Length != ListBytes) return Sense.ListLength;
        ulong key = BinaryPrimitives.ReadUInt64BigEndian(list), other = BinaryPrimitives.ReadUInt64BigEndian(list[8..]);
        if (action is 0 or 6) return Register(change, list, key, other, action == 6);

        Registrant? self = change.Self;
        if (self is null || self.Key != key) return ScsiResult.Conflict;
        if (action == 3) return Clear(change, self);
        if (action == 7) return Move(change, self, list, other);
        if ((cdb[2] >> 4) != 0) return Sense.InCdb(2, 7); // scope: logical unit only
        var type = (ReservationType)(cdb[2] & 0x0F);
        if (type == ReservationType.None || !Enum.IsDefined(type)) return Sense.InCdb(2, 3);
        return action switch
        {
            1 => ReservePersistently(change, self, type),
            2 => ReleasePersistently(change, self, type),
            _ => Preempt(change, self, type, other, abort: action == 5),
        };
    }

    private ScsiResult Register(ReservationChange change, ReadOnlySpan<byte> list, ulong key, ulong newKey, bool ignoresKey)
    {
        bool hasList = (list[20] & 0x08) != 0, isOnAllPorts = (list[20] & 0x04) != 0, isPersistent = (list[20] & 0x01) != 0;
        PersistentReservations state = change.State;
        Registrant? self = change.Self;
        if (isPersistent && _store is null) return Sense.InList(20);
        if (hasList && (ignoresKey || self is not null)) return Sense.InList(20);
        if (!hasList && list.Length != ListBytes) return Sense.ListLength;
        if (!ignoresKey && key != (self?.Key ?? 0)) return ScsiResult.Conflict;

        List<(string Port, ushort Group)> ports = [];
        string own = change.By.Nexus.InitiatorPort;
        AddPorts(ports, change.By, own, isOnAllPorts);
        if (hasList && ReadTransportIds(list, change.By, isOnAllPorts, ports) is { } fault) return fault;
        if (self is null && newKey == 0)
        {
            return ScsiResult.Good; // nothing to take away
        }

        if (newKey == 0)
        {
            foreach ((string port, ushort group) in ports)
            {
                if (state.Find(port, group) is { } gone) Unregister(change, gone);
            }
        }
        else
        {
            foreach ((string port, ushort group) in ports)
            {
                Registrant? registrant = state.Find(port, group);
                if (registrant is null)
                {
                    if (state.Registrants.Count == PersistentReservations.RegistrantsMax)
                        return new Sense(SenseKey.IllegalRequest, 0x5504);
                    state.Registrants.Add(registrant = new Registrant(port, group, newKey));
                }

                registrant.Key = newKey;
                registrant.IsOnAllPorts = isOnAllPorts;
            }
        }

        state.IsPersistent = isPersistent;
        change.Commit(countsUp: true);
        return ScsiResult.Good;
    }

    private static void AddPorts(List<(string Port, ushort Group)> ports, UnitNexus by, string initiatorPort, bool onAll)
    {
        if (!onAll)
        {
            ports.Add((initiatorPort, by.Port));
            return;
        }

        foreach (ushort group in by.Target.Options.PortalGroups) ports.Add((initiatorPort, by.Target.Options.PortOf(group)));
    }

    /// <summary>SPEC_I_PT: length u32 at 24, TransportIDs. One without an ISID stands for every attached port of that name.</summary>
    private Sense? ReadTransportIds(ReadOnlySpan<byte> list, UnitNexus by, bool onAll, List<(string Port, ushort Group)> ports)
    {
        if (list.Length < 28 || BinaryPrimitives.ReadUInt32BigEndian(list[24..]) != (uint)(list.Length - 28)) return Sense.ListLength;
        for (int at = 28; at < list.Length;)
        {
            if (!TransportId.TryRead(list[at..], out string name, out bool hasIsid, out int length)) return Sense.InList(at);
            if (ports.Count > 4 * PersistentReservations.RegistrantsMax) return new Sense(SenseKey.IllegalRequest, 0x5504);
            if (hasIsid)
            {
                AddPorts(ports, by, name, onAll);
            }
            else
            {
                List<UnitNexus> attached = _nexuses.FindAll(n => n.Nexus.InitiatorName.Equals(name, StringComparison.OrdinalIgnoreCase));
                if (attached.Count == 0) return Sense.InList(at);
                foreach (UnitNexus nexus in attached) AddPorts(ports, by, nexus.Nexus.InitiatorPort, onAll);
            }

            at += length;
        }

        return null;
    }

    /// <summary>Others are told when a registrants only reservation ends with its holder.</summary>
    private static void Unregister(ReservationChange change, Registrant gone)
    {
        PersistentReservations state = change.State;
        bool tells = state.IsForRegistrants && !state.IsAll;
        if (state.Remove(gone) && tells) change.AttendRegistrants(Attention.ReservationsReleased);
    }

    private static ScsiResult ReservePersistently(ReservationChange change, Registrant self, ReservationType type)
    {
        PersistentReservations state = change.State;
        if (state.Type == ReservationType.None)
        {
            state.Reserve(type, self);
            change.Commit(countsUp: false);
            return ScsiResult.Good;
        }

        return state.IsHolder(self) && state.Type == type ? ScsiResult.Good : ScsiResult.Conflict;
    }

    private static ScsiResult ReleasePersistently(ReservationChange change, Registrant self, ReservationType type)
    {
        PersistentReservations state = change.State;
        if (!state.IsHolder(self)) return ScsiResult.Good;
        if (state.Type != type) return new Sense(SenseKey.IllegalRequest, 0x2604); // invalid release
        bool tells = state.IsForRegistrants;
        state.Release();
        if (tells) change.AttendRegistrants(Attention.ReservationsReleased);
        change.Commit(countsUp: false);
        return ScsiResult.Good;
    }

    private static ScsiResult Clear(ReservationChange change, Registrant self)
    {
        change.AttendRegistrants(Attention.ReservationsPreempted);
        change.State.Release();
        change.State.Registrants.Clear();
        change.Commit(countsUp: true);
        return ScsiResult.Good;
    }

    private static ScsiResult Preempt(ReservationChange change, Registrant self, ReservationType type, ulong victim, bool abort)
    {
        PersistentReservations state = change.State;
        ReservationType before = state.Type;
        bool takes = state.IsAll ? victim == 0 : state.Holder is not null && state.Holder.Key == victim && victim != 0;
        if (victim == 0 && !takes) return Sense.InList(8);
        bool all = state.IsAll && victim == 0;
        List<Registrant> gone = state.Registrants.FindAll(r => r != self && (all || r.Key == victim));
        if (gone.Count == 0 && !takes && !(self.Key == victim)) return ScsiResult.Conflict;
        bool tellsReleased = takes && before != type && state.IsForRegistrants;
        if (takes) state.Release();
        foreach (Registrant one in gone)
        {
            state.Remove(one);
            if (one.Nexus is null) continue;
            change.Attentions.Add((one.Nexus, Attention.RegistrationsPreempted));
            change.Preempted.Add(one.Nexus);
        }

        if (takes) state.Reserve(type, self);
        if (tellsReleased) change.AttendRegistrants(Attention.ReservationsReleased);
        change.AbortsPreempted = abort;
        change.Commit(countsUp: true);
        return ScsiResult.Good;
    }

    /// <summary>REGISTER AND MOVE: APTPL and UNREG at 17, target port u16 at 18, length u32 at 20, TransportID.</summary>
    private static ScsiResult Move(ReservationChange change, Registrant self, ReadOnlySpan<byte> list, ulong newKey)
    {
        PersistentReservations state = change.State;
        if (!state.IsHolder(self) || state.IsAll) return ScsiResult.Conflict;
        if (newKey == 0) return Sense.InList(8);
        ushort port = BinaryPrimitives.ReadUInt16BigEndian(list[18..]);
        if (BinaryPrimitives.ReadUInt32BigEndian(list[20..]) != (uint)(list.Length - ListBytes)) return Sense.ListLength;
        if (!change.By.Target.Options.PortalGroups.Any(g => change.By.Target.Options.PortOf(g) == port)) return Sense.InList(18);
        if (!TransportId.TryRead(list[ListBytes..], out string name, out bool hasIsid, out _) || !hasIsid) return Sense.InList(ListBytes);
        if (self.Is(name, port)) return Sense.InList(ListBytes);
        Registrant? target = state.Find(name, port);
        if (target is null)
        {
            if (state.Registrants.Count == PersistentReservations.RegistrantsMax) return new Sense(SenseKey.IllegalRequest, 0x5504);
            state.Registrants.Add(target = new Registrant(name, port, newKey));
        }

        target.Key = newKey;
        state.Holder = target;
        if ((list[17] & 0x02) != 0) state.Remove(self);
        state.IsPersistent = (list[17] & 0x01) != 0;
        change.Commit(countsUp: true);
        return ScsiResult.Good;
    }

    /// <summary>A new state in the making, and whom it concerns.</summary>
    private sealed class ReservationChange(PersistentReservations state, UnitNexus by)
    {
        public PersistentReservations State { get; } = state;

        public UnitNexus By { get; } = by;

        public Registrant? Self { get; } = state.Find(by.Nexus.InitiatorPort, by.Port);

        public List<(UnitNexus Nexus, ushort Code)> Attentions { get; } = [];

        public List<UnitNexus> Preempted { get; } = [];

        public bool AbortsPreempted { get; set; }

        public bool IsChanged { get; private set; }

        public void Commit(bool countsUp)
        {
            IsChanged = true;
            if (countsUp) State.Generation++;
        }

        /// <summary>Every attached registrant but the one that asks.</summary>
        public void AttendRegistrants(ushort code)
        {
            foreach (Registrant registrant in State.Registrants)
            {
                if (registrant.Nexus is not null && registrant.Nexus != By) Attentions.Add((registrant.Nexus, code));
            }
        }
    }
}
