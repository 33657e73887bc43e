namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// What one logical unit keeps about one I_T nexus: its unit attentions, whether it prevents removal, its persistent
/// registration and the results of its copies. Lives on one loop.
/// </summary>
internal sealed class UnitNexus(LogicalUnit unit, ScsiNexus nexus, ScsiTarget target, ulong lun)
{
    /// <summary>More than this many different conditions wait for nobody; a further one is dropped.</summary>
    private const int AttentionsMax = 16;

    private readonly List<ushort> _attentions = new(4);

    public LogicalUnit Unit { get; } = unit;

    public ScsiNexus Nexus { get; } = nexus;

    public ScsiTarget Target { get; } = target;

    /// <summary>Its LUN field.</summary>
    public ulong Lun => lun;

    /// <summary>Relative identifier of the target port.</summary>
    public ushort Port => Target.Options.PortOf(Nexus.PortalGroup);

    /// <summary>The way to the unit when it is of another loop than the target, else null.</summary>
    public UnitRelay? Relay { get; init; }

    /// <summary>The LUN is read-only by this target, whatever the unit is.</summary>
    public bool IsReadOnly { get; set; }

    /// <summary>PREVENT ALLOW MEDIUM REMOVAL is in force.</summary>
    public bool Prevents { get; set; }

    /// <summary>Its persistent registration, or null.</summary>
    public Registrant? Registrant { get; set; }

    /// <summary>Results of EXTENDED COPY, newest last; null until there is one.</summary>
    public List<CopyResult>? Copies { get; set; }

    public bool HasAttention => _attentions.Count > 0;

    /// <summary>Queues a unit attention (ASC and ASCQ). Resets come before everything else, and a stronger one swallows
    /// the weaker (SAM-5, 5.14); the rest keep their order, each condition once. True when it did not wait already.</summary>
    public bool Attend(ushort code)
    {
        if (IsReset(code))
        {
            if (_attentions.Count > 0 && IsReset(_attentions[0]))
            {
                if (Rank(_attentions[0]) <= Rank(code)) return false;
                _attentions.RemoveAt(0);
            }

            _attentions.Insert(0, code);
            return true;
        }

        if (_attentions.Contains(code) || _attentions.Count >= AttentionsMax) return false;
        _attentions.Add(code);
        return true;
    }

    /// <summary>As <see cref="Attend"/>, and the transport is told: once until the initiator has taken the condition.</summary>
    public void Announce(ushort code)
    {
        if (Attend(code)) Nexus.OnEvent?.Invoke(Lun, code);
    }

    /// <summary>Takes the first one.</summary>
    public Sense TakeAttention()
    {
        ushort code = _attentions[0];
        _attentions.RemoveAt(0);
        return new Sense(SenseKey.UnitAttention, code);
    }

    /// <summary>Forgets one condition (REPORT LUNS data was read).</summary>
    public void Forget(ushort code) => _attentions.Remove(code);

    private static bool IsReset(ushort code) => code >> 8 == 0x29;

    /// <summary>Power on, power on or reset, then hard reset, bus reset, LU reset, nexus loss.</summary>
    private static int Rank(ushort code) => (code & 0xFF) switch { 1 => 0, 0 => 1, 4 => 2, 2 => 3, 3 => 4, _ => 5 };
}

/// <summary>Unit attention conditions: ASC and ASCQ.</summary>
internal static class Attention
{
    public const ushort PowerOnOrReset = 0x2900;
    public const ushort PowerOn = 0x2901;
    public const ushort BusReset = 0x2902;
    public const ushort UnitReset = 0x2903;
    public const ushort MediumMayHaveChanged = 0x2800;
    public const ushort ModeChanged = 0x2A01;
    public const ushort ReservationsPreempted = 0x2A03;
    public const ushort ReservationsReleased = 0x2A04;
    public const ushort RegistrationsPreempted = 0x2A05;
    public const ushort CapacityChanged = 0x2A09;
    public const ushort CommandsCleared = 0x2F00;
    public const ushort ThinThreshold = 0x3807;
    public const ushort LunsChanged = 0x3F0E;
}
