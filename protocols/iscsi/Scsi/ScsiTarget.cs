using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>What a target is.</summary>
public sealed record ScsiTargetOptions
{
    /// <summary>The target's IQN.</summary>
    public required string Name { get; init; }

    /// <summary>Its portal group tags; each is a target port.</summary>
    public IReadOnlyList<ushort> PortalGroups { get; init; } = [1];

    /// <summary>What is added to a tag to make the relative identifier of its port. Targets that share a unit have bases that
    /// never lead to the same port: a registration belongs to an initiator port and a target port.</summary>
    public ushort PortBase { get; init; }

    /// <summary>Relative identifier of the port of a portal group.</summary>
    public ushort PortOf(ushort portalGroup) => (ushort)(PortBase + portalGroup);

    /// <summary>Which LUNs a nexus may use; null: all. A LUN that it may not use does not exist for it, EXTENDED COPY
    /// included. Asked at login; call <see cref="ScsiTarget.RefreshLuns"/> after a change.</summary>
    public Func<ScsiNexus, ushort, bool>? MayUse { get; init; }

    /// <summary>So many commands of one nexus may wait until the volume of a unit of another loop lets them in; one more is answered
    /// TASK SET FULL, for they hold places in the window of the session.</summary>
    public int AtDoorMax { get; init; } = 64;
}

/// <summary>
/// The SCSI side of one target: the table of LUNs and the nexuses. A logical unit may stand in the tables of several
/// targets if their ports differ (<see cref="ScsiTargetOptions.PortBase"/>); its reservations, task set and unit
/// attentions are its own. Units of other loops are reached by messages (<see cref="UnitRelay"/>). Lives on one loop.
/// </summary>
public sealed class ScsiTarget : IScsiTarget
{
    /// <summary>Largest LUN (flat space addressing).</summary>
    public const int LunMax = 0x3FFF;

    private const ulong WellKnownReportLuns = 0xC101_0000_0000_0000;

    private readonly ILoop _loop;
    private readonly SortedDictionary<ushort, LogicalUnit> _luns = [];
    private readonly HashSet<ushort> _readOnly = [];
    private readonly List<NexusState> _nexuses = [];
    private readonly Dictionary<LogicalUnit, UnitRelay> _relays = []; // of units of other loops
    private readonly byte[] _scratch = new byte[8 + 8 * (LunMax + 2)];

    /// <summary>A target without LUNs.</summary>
    public ScsiTarget(ILoop loop, ScsiTargetOptions options)
    {
        (_loop, Options) = (loop, options);
        Check.That(options.PortalGroups.Count > 0);
    }

    /// <summary>What it is now.</summary>
    public ScsiTargetOptions Options { get; private set; }

    /// <summary>The LUNs, ascending.</summary>
    public IReadOnlyDictionary<ushort, LogicalUnit> Luns => _luns;

    /// <summary>Changes name and portal groups; nexuses stay as they are.</summary>
    public void Configure(ScsiTargetOptions options)
    {
        Check.That(options.PortalGroups.Count > 0);
        Options = options;
    }

    /// <summary>Puts <paramref name="unit"/> at <paramref name="lun"/>, or takes it away (null). Nexuses are told (3F/0E).
    /// <paramref name="isReadOnly"/>: changes that come by this target are refused. <paramref name="meter"/> counts the commands
    /// when the unit is of another loop (<see cref="LivesElsewhere"/>); those of a unit of this loop the transport counts.</summary>
    public void SetLun(ushort lun, LogicalUnit? unit, bool isReadOnly = false, IUnitMeter? meter = null)
    {
        Check.That(lun <= LunMax);
        if (unit is not null && LivesElsewhere(unit))
        {
            if (!_relays.TryGetValue(unit, out UnitRelay? relay)) _relays.Add(unit, relay = new UnitRelay(unit, _loop));
            (relay.Meter, relay.AtDoorMax) = (meter, Options.AtDoorMax);
        }

        bool changesProtection = unit is not null && isReadOnly != _readOnly.Contains(lun);
        if (isReadOnly && unit is not null) _readOnly.Add(lun);
        else _readOnly.Remove(lun);
        if (changesProtection && _luns.GetValueOrDefault(lun) == unit)
        {
            foreach (NexusState state in _nexuses)
            {
                if (!state.Units.TryGetValue(lun, out UnitNexus? nexus)) continue;
                Change(nexus, n =>
                {
                    n.IsReadOnly = isReadOnly;
                    n.Attend(Attention.ModeChanged);
                });
            }
        }

        if (unit is null) _luns.Remove(lun);
        else _luns[lun] = unit;
        RefreshLuns();
        foreach (LogicalUnit gone in _relays.Keys.Except(_luns.Values).ToArray()) _relays.Remove(gone);
    }

    /// <summary>The unit is of another loop.</summary>
    public bool LivesElsewhere(LogicalUnit unit) => unit.Loop != _loop;

    /// <summary>Asks <see cref="ScsiTargetOptions.MayUse"/> anew; every nexus whose LUNs changed is told (3F/0E).</summary>
    public void RefreshLuns()
    {
        foreach (NexusState state in _nexuses)
        {
            bool changed = false;
            foreach (ushort lun in state.Units.Keys.ToArray())
            {
                if (_luns.GetValueOrDefault(lun) == state.Units[lun].Unit && MayUse(state.Nexus, lun)) continue;
                Detach(state.Units[lun]);
                state.Units.Remove(lun);
                changed = true;
            }

            foreach ((ushort lun, LogicalUnit unit) in _luns)
            {
                if (state.Units.ContainsKey(lun) || !MayUse(state.Nexus, lun)) continue;
                state.Units[lun] = Attach(state.Nexus, lun, unit);
                changed = true;
            }

            if (!changed) continue;
            foreach (UnitNexus unit in state.Units.Values) Change(unit, static n => n.Attend(Attention.LunsChanged));
            state.Nexus.OnEvent?.Invoke(0, Attention.LunsChanged); // of the target, so told once
        }
    }

    /// <inheritdoc/>
    public void AddNexus(ScsiNexus nexus)
    {
        var state = new NexusState(nexus);
        nexus.TargetState = state;
        foreach ((ushort lun, LogicalUnit unit) in _luns)
        {
            if (MayUse(nexus, lun)) state.Units[lun] = Attach(nexus, lun, unit);
        }

        _nexuses.Add(state);
    }

    /// <inheritdoc/>
    public void RemoveNexus(ScsiNexus nexus)
    {
        if (nexus.TargetState is not NexusState state) return;
        nexus.TargetState = null;
        _nexuses.Remove(state);
        foreach (UnitNexus unit in state.Units.Values) Detach(unit);
    }

    /// <inheritdoc/>
    public ScsiPlan Plan(ScsiCommand command)
    {
        UnitNexus? unit = Find(command.Nexus, command.Lun);
        if (unit is null) return new ScsiPlan(0, TransferPlan.AllocationOf(command.Cdb), 0, false);
        if (unit.Relay is not null) return unit.Unit.Plan(command); // it passes the door there
        ScsiPlan plan = unit.Unit.PlanAndCharge(command);
        return plan.Admission is null ? plan : plan with { HasOtherUnits = ((NexusState)command.Nexus.TargetState!).Units.Count > 1 };
    }

    /// <inheritdoc/>
    public ValueTask<bool> ExecuteAsync(ScsiCommand command)
    {
        UnitNexus? unit = Find(command.Nexus, command.Lun);
        if (unit?.Relay is not { } relay) return unit is not null ? unit.Unit.ExecuteAsync(command, unit) : ExecuteWithoutUnitAsync(command);
        return command.Cdb[0] switch
        {
            ScsiOp.ReportLuns => ReportLunsThereAsync(command, unit),
            ScsiOp.ExtendedCopy => relay.ExecuteAsync(command, unit, copyUnits: UnitsOf(command.Nexus)),
            _ => relay.ExecuteAsync(command, unit),
        };
    }

    /// <inheritdoc/>
    public async ValueTask<TaskFunctionResponse> ManageAsync(ScsiNexus nexus, TaskFunction function, ulong lun, uint tag)
    {
        if (function is TaskFunction.TargetWarmReset or TaskFunction.TargetColdReset)
        {
            ushort code = function == TaskFunction.TargetWarmReset ? Attention.BusReset : Attention.PowerOn;
            var asking = nexus.TargetState as NexusState;
            ValueTask<TaskFunctionResponse>[] there =
                [.. _relays.Values.Select(r => r.ResetAsync(asking?.Units.Values.FirstOrDefault(u => u.Relay == r), code))];
            LogicalUnit[] units = [.. _luns.Values.Where(u => !LivesElsewhere(u)).Distinct()];
            foreach (LogicalUnit unit in units) unit.Reset(code);
            foreach (LogicalUnit unit in units) await unit.WaitForAbortedAsync();
            foreach (ValueTask<TaskFunctionResponse> reset in there) await reset;
            return TaskFunctionResponse.Complete;
        }

        if (function is < TaskFunction.AbortTask or > TaskFunction.TargetColdReset or TaskFunction.ClearAca)
            return TaskFunctionResponse.NotSupported;
        UnitNexus? state = Find(nexus, lun);
        if (state is null) return TaskFunctionResponse.NoLun;
        return await (state.Relay?.ManageAsync(state, function, tag) ?? state.Unit.ManageAsync(state, function, tag));
    }

    /// <summary>The units that <paramref name="nexus"/> may use, by LUN.</summary>
    internal UnitNexus[] UnitsOf(ScsiNexus nexus)
    {
        _loop.CheckHere();
        return nexus.TargetState is NexusState state ? [.. state.Units.OrderBy(u => u.Key).Select(u => u.Value)] : [];
    }

    /// <summary>REPORT LUNS (SPC-4, 6.31) for a nexus.</summary>
    internal ValueTask<ScsiResult> ReportLuns(ScsiCommand command)
    {
        if (LunListFault(command.Cdb) is { } fault) return new ValueTask<ScsiResult>(fault);
        var state = (NexusState)command.Nexus.TargetState!;
        int length = WriteLuns(_scratch, command.Cdb, LunsOf(state));
        ForgetLunsChanged(state);
        return DataIn.Reply(_loop, command, _scratch, length, TransferPlan.AllocationOf(command.Cdb));
    }

    /// <summary>REPORT LUNS to a unit of another loop, there: what there is was looked up before.</summary>
    internal static ValueTask<ScsiResult> ReportLuns(ILoop loop, ScsiCommand command, ushort[] luns)
    {
        if (LunListFault(command.Cdb) is { } fault) return new ValueTask<ScsiResult>(fault);
        var list = new byte[8 + 8 * (luns.Length + 1)];
        return DataIn.Reply(loop, command, list, WriteLuns(list, command.Cdb, luns), TransferPlan.AllocationOf(command.Cdb));
    }

    private async ValueTask<bool> ReportLunsThereAsync(ScsiCommand command, UnitNexus unit)
    {
        var state = (NexusState)command.Nexus.TargetState!;
        bool hasAnswer = await unit.Relay!.ExecuteAsync(command, unit, [.. LunsOf(state)]);
        if (command.Status == ScsiStatus.Good && !command.IsAborted) ForgetLunsChanged(state);
        return hasAnswer;
    }

    private static Sense? LunListFault(byte[] cdb)
    {
        if (cdb[2] > 2) return Sense.InCdb(2);
        return TransferPlan.AllocationOf(cdb) < 16 ? Sense.InCdb(6) : null;
    }

    private IEnumerable<ushort> LunsOf(NexusState state) => _luns.Keys.Where(state.Units.ContainsKey);

    private static void ForgetLunsChanged(NexusState state)
    {
        foreach (UnitNexus unit in state.Units.Values) Change(unit, static n => n.Forget(Attention.LunsChanged));
    }

    private static int WriteLuns(Span<byte> list, byte[] cdb, IEnumerable<ushort> luns)
    {
        byte select = cdb[2];
        int at = 8;
        if (select != 1)
        {
            foreach (ushort lun in luns)
            {
                BinaryPrimitives.WriteUInt64BigEndian(list[at..], FieldOf(lun));
                at += 8;
            }
        }

        if (select != 0)
        {
            BinaryPrimitives.WriteUInt64BigEndian(list[at..], WellKnownReportLuns);
            at += 8;
        }

        BinaryPrimitives.WriteUInt64BigEndian(list, (ulong)(at - 8) << 32);
        return at;
    }

    private UnitNexus Attach(ScsiNexus nexus, ushort lun, LogicalUnit unit) => _relays.TryGetValue(unit, out UnitRelay? relay)
        ? relay.Attach(nexus, this, FieldOf(lun), _readOnly.Contains(lun)) : unit.Attach(nexus, this, FieldOf(lun), _readOnly.Contains(lun));

    private static void Detach(UnitNexus nexus)
    {
        if (nexus.Relay is { } relay) relay.Detach(nexus);
        else nexus.Unit.Detach(nexus);
    }

    private static void Change(UnitNexus nexus, Action<UnitNexus> change)
    {
        if (nexus.Relay is { } relay) relay.Change(nexus, change);
        else change(nexus);
    }

    private bool MayUse(ScsiNexus nexus, ushort lun) => Options.MayUse?.Invoke(nexus, lun) ?? true;

    private static UnitNexus? Find(ScsiNexus nexus, ulong field) =>
        nexus.TargetState is NexusState state && TryDecode(field, out ushort lun) && state.Units.TryGetValue(lun, out UnitNexus? unit)
            ? unit : null;

    /// <summary>How a LUN is written: peripheral device addressing as far as it reaches, then flat space addressing.</summary>
    private static ulong FieldOf(ushort lun) => (ulong)(lun < 256 ? lun : 0x4000 | lun) << 48;

    /// <summary>Single level LUNs: peripheral device addressing (bus 0) and flat space addressing (SAM-5, 4.6).</summary>
    private static bool TryDecode(ulong field, out ushort lun)
    {
        ushort head = (ushort)(field >> 48);
        lun = (ushort)(head & LunMax);
        if ((field & 0xFFFF_FFFF_FFFF) != 0) return false;
        return head >> 14 == 1 || head < 0x100;
    }

    /// <summary>Well-known LUN of REPORT LUNS, LUN 0 without a unit, and LUNs that do not exist.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> ExecuteWithoutUnitAsync(ScsiCommand command)
    {
        bool isWellKnown = command.Lun == WellKnownReportLuns;
        ScsiResult result = command.Nexus.TargetState is null ? Sense.NoLogicalUnit : await AnswerWithoutUnit(command, isWellKnown);
        DataIn.Finish(command, result, asDescriptors: false);
        return !command.IsAborted;
    }

    private ValueTask<ScsiResult> AnswerWithoutUnit(ScsiCommand command, bool isWellKnown)
    {
        byte[] cdb = command.Cdb;
        int allocation = TransferPlan.AllocationOf(cdb);
        switch (cdb[0])
        {
            case ScsiOp.ReportLuns when isWellKnown || (TryDecode(command.Lun, out ushort lun) && lun == 0):
                return ReportLuns(command);
            case ScsiOp.Inquiry when (cdb[1] & 1) == 0 && cdb[2] == 0:
                byte type = isWellKnown ? (byte)0x1E : (byte)0x7F;
                int length = InquiryData.WriteStandard(_scratch, type, false, 0, "BLOCKD", "", "");
                return DataIn.Reply(_loop, command, _scratch, length, allocation);
            case ScsiOp.Inquiry:
                return new ValueTask<ScsiResult>(Sense.InCdb(2));
            case ScsiOp.RequestSense:
                Sense sense = isWellKnown ? default : Sense.NoLogicalUnit;
                return DataIn.Reply(_loop, command, _scratch, sense.WriteTo(_scratch, (cdb[1] & 1) != 0), allocation);
            case ScsiOp.TestUnitReady when isWellKnown:
                return new ValueTask<ScsiResult>(ScsiResult.Good);
            default:
                return new ValueTask<ScsiResult>(isWellKnown ? Sense.InvalidOpcode : Sense.NoLogicalUnit);
        }
    }

    /// <summary>One nexus: the units that it may use.</summary>
    private sealed class NexusState(ScsiNexus nexus)
    {
        public ScsiNexus Nexus { get; } = nexus;

        public Dictionary<ushort, UnitNexus> Units { get; } = [];
    }
}
