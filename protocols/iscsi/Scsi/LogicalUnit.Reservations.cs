using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>What is reserved, for people.</summary>
/// <param name="InitiatorPort">Who: initiator port name.</param>
/// <param name="PortalGroup">At which target port.</param>
/// <param name="Key">Its reservation key.</param>
/// <param name="IsHolder">Holds the reservation.</param>
/// <param name="IsAttached">Is logged in.</param>
public readonly record struct RegistrationView(string InitiatorPort, ushort PortalGroup, ulong Key, bool IsHolder, bool IsAttached);

/// <summary>RESERVE and RELEASE (SPC-2), who may do what, and PERSISTENT RESERVE IN (SPC-4, 5.12 and 6.15).</summary>
public sealed partial class LogicalUnit
{
    private readonly IReservationStore? _store;
    private PersistentReservations _reservations = new();
    private UnitNexus? _reservedBy;

    /// <summary>Initiator port that holds RESERVE (6), or null.</summary>
    public string? ReservedBy => _reservedBy?.Nexus.InitiatorPort;

    /// <summary>Type of the persistent reservation.</summary>
    public ReservationType ReservationType => _reservations.Type;

    /// <summary>Counts changes of the registrations.</summary>
    public uint ReservationGeneration => _reservations.Generation;

    /// <summary>The reservation survives a restart.</summary>
    public bool IsReservationPersistent => _reservations.IsPersistent;

    /// <summary>The persistent registrations; allocates.</summary>
    public IReadOnlyList<RegistrationView> Registrations =>
        _reservations.Registrants.ConvertAll(r =>
            new RegistrationView(r.InitiatorPort, r.PortalGroup, r.Key, _reservations.IsHolder(r), r.Nexus is not null));

    private async ValueTask<IoStatus> LoadReservationsAsync()
    {
        if (_store is null) return IoStatus.Ok;
        (IoStatus status, ReadOnlyMemory<byte> bytes) = await _store.LoadAsync();
        if (status != IoStatus.Ok) return status;
        if (PersistentReservations.TryRead(bytes.Span, out PersistentReservations state) is not null) return IoStatus.Corrupt;
        state.Generation = 0; // counts from power on (SPC-4, 6.15.2)
        _reservations = state;
        SetFence();
        foreach (UnitNexus nexus in _nexuses) LinkRegistrant(nexus);
        return IoStatus.Ok;
    }

    /// <summary>Who comes by a protocol without reservations counts as an initiator that is not registered.</summary>
    private void SetFence() => _gate.Fence =
        _reservedBy is not null ? Fence.All
        : _reservations.Type == ReservationType.None ? Fence.None
        : _reservations.IsWriteExclusive ? Fence.Writes : Fence.All;

    private void LinkRegistrant(UnitNexus nexus)
    {
        Registrant? registrant = _reservations.Find(nexus.Nexus.InitiatorPort, nexus.Port);
        nexus.Registrant = registrant;
        if (registrant is not null) registrant.Nexus = nexus;
    }

    /// <summary>True when a reservation of another nexus forbids the command.</summary>
    private bool IsInConflict(CommandEntry entry, UnitNexus nexus, byte[] cdb)
    {
        if (_reservedBy is not null && _reservedBy != nexus) return !IsAllowedPastReserve(entry, cdb);
        if (_reservations.Type == ReservationType.None || _reservations.IsHolder(nexus.Registrant)) return false;
        if (_reservations.IsForRegistrants && nexus.Registrant is not null) return false;
        return IsForbidden(entry.Access, cdb);
    }

    private static bool IsAllowedPastReserve(CommandEntry entry, byte[] cdb) =>
        entry.Has(Traits.Always)
        || (entry.Has(Traits.PastReserve) && (entry.Access != Access.Prevent || (cdb[4] & 3) == 0));

    private bool IsForbidden(Access access, byte[] cdb) => access switch
    {
        Access.Read => !_reservations.IsWriteExclusive,
        Access.Write => true,
        Access.StartStop => (cdb[4] & 0xF1) != 0x01,
        Access.Prevent => (cdb[4] & 3) != 0,
        _ => false,
    };

    /// <summary>EXTENDED COPY asks for both of its units.</summary>
    private bool MayCopy(UnitNexus nexus, bool isDestination)
    {
        if (_reservedBy is not null && _reservedBy != nexus) return false;
        if (_reservations.Type == ReservationType.None || _reservations.IsHolder(nexus.Registrant)) return true;
        if (_reservations.IsForRegistrants && nexus.Registrant is not null) return true;
        return !isDestination && _reservations.IsWriteExclusive;
    }

    private ValueTask<ScsiResult> Reserve(UnitNexus nexus)
    {
        if (_reservations.Registrants.Count > 0) return new(ScsiResult.Conflict);
        _reservedBy = nexus;
        return DrainBehindFenceAsync();
    }

    /// <summary>A reservation is answered when what others began without knowing of it has ended.</summary>
    private async ValueTask<ScsiResult> DrainBehindFenceAsync()
    {
        SetFence();
        await _gate.DrainAsync();
        return ScsiResult.Good;
    }

    private ScsiResult Release(UnitNexus nexus)
    {
        if (_reservations.Registrants.Count > 0) return ScsiResult.Conflict;
        if (_reservedBy == nexus) _reservedBy = null;
        SetFence();
        return ScsiResult.Good;
    }

    private ValueTask<ScsiResult> PersistentIn(ScsiCommand command, CommandEntry entry)
    {
        Span<byte> data = _scratch;
        data[..32].Clear();
        BinaryPrimitives.WriteUInt32BigEndian(data, _reservations.Generation);
        int at = 8;
        switch (entry.Action)
        {
            case 0:
                foreach (Registrant registrant in _reservations.Registrants)
                {
                    BinaryPrimitives.WriteUInt64BigEndian(data[at..], registrant.Key);
                    at += 8;
                }

                break;
            case 1 when _reservations.Type != ReservationType.None:
                BinaryPrimitives.WriteUInt64BigEndian(data[8..], _reservations.Holder?.Key ?? 0);
                data[21] = (byte)_reservations.Type;
                at = 24;
                break;
            case 2:
                // Length 8; SIP_C, ATP_C, PTPL_C; TMV, allow commands 0, PTPL_A; all six types.
                data[..8].Clear();
                data[1] = 8;
                data[2] = (byte)(0x0C | (_store is null ? 0 : 1));
                data[3] = (byte)(0x80 | (_reservations.IsPersistent ? 1 : 0));
                data[4] = 0xEA;
                data[5] = 0x01;
                return DataIn.Reply(_loop, command, _scratch, 8, TransferPlan.AllocationOf(command.Cdb));
            case 3:
                foreach (Registrant registrant in _reservations.Registrants) at += WriteFullStatus(data[at..], registrant);
                break;
        }

        BinaryPrimitives.WriteUInt32BigEndian(data[4..], (uint)(at - 8));
        return DataIn.Reply(_loop, command, _scratch, at, TransferPlan.AllocationOf(command.Cdb));
    }

    private int WriteFullStatus(Span<byte> target, Registrant registrant)
    {
        target[..24].Clear();
        BinaryPrimitives.WriteUInt64BigEndian(target, registrant.Key);
        if (registrant.IsOnAllPorts) target[12] |= 0x02;
        if (_reservations.IsHolder(registrant))
        {
            target[12] |= 0x01;
            target[13] = (byte)_reservations.Type;
        }

        BinaryPrimitives.WriteUInt16BigEndian(target[18..], registrant.PortalGroup);
        int length = TransportId.Write(target[24..], registrant.InitiatorPort);
        BinaryPrimitives.WriteUInt32BigEndian(target[20..], (uint)length);
        return 24 + length;
    }
}
