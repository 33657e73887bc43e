using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// A volume as a SCSI direct access block device (SBC-3): one task set, one set of mode pages and reservations for all
/// its nexuses. Lives on the volume's loop; does not own the device. Nothing that an initiator sends makes it throw.
/// </summary>
public sealed partial class LogicalUnit
{
    private readonly ILoop _loop;
    private readonly IBlockDevice _device;
    private readonly LogicalUnitOptions _options;
    private readonly TaskSet _tasks = new();
    private readonly VolumeGate _gate;
    private readonly List<UnitNexus> _nexuses = [];
    private readonly byte[] _scratch = new byte[TransferPlan.ListBytesMax];
    private readonly int _blockBytes;
    private readonly int _blockShift;

    private ulong _announcedBytes;
    private bool _isEjected, _isReadOnly;

    /// <summary>A unit over <paramref name="device"/>; persistent reservations are lost with it when
    /// <paramref name="reservations"/> is null. <paramref name="gate"/> is that of the volume, null when nobody else serves it.
    /// Call <see cref="LoadAsync"/> before it is used.</summary>
    public LogicalUnit(
        ILoop loop, IBlockDevice device, LogicalUnitOptions options, IReservationStore? reservations = null, VolumeGate? gate = null)
    {
        Check.That(options.BlockBytes is 512 or Units.BlockBytes);
        (_loop, _device, _options, _blockBytes) = (loop, device, options, options.BlockBytes);
        _blockShift = options.BlockBytes == 512 ? 9 : 12;
        _announcedBytes = device.SizeBytes;
        _isReadOnly = options.IsReadOnly;
        _store = reservations;
        _gate = gate ?? new VolumeGate();
        _designators = InquiryData.UnitDesignators(options);
        _modes = new ModePages(options);
    }

    /// <summary>What it was made from.</summary>
    public LogicalUnitOptions Options => _options;

    /// <summary>Every change is refused, also when the device would take it. Whoever is attached is told of a change (2A/01).</summary>
    public bool IsReadOnly
    {
        get => _isReadOnly;
        set
        {
            if (_isReadOnly == value) return;
            _isReadOnly = value;
            AttendAll(Attention.ModeChanged, null);
        }
    }

    /// <summary>Commands that have not ended.</summary>
    public int TaskCount => _tasks.Count;

    /// <summary>Buffers of its own that commands use now.</summary>
    public int WorkLentCount => _work.LentCount;

    /// <summary>The loop on which it lives. Any thread.</summary>
    internal ILoop Loop => _loop;

    private ulong CapacityBlocks => _device.SizeBytes >> _blockShift;

    private bool IsProtected(UnitNexus nexus) => IsReadOnlyFor(nexus) || _modes.IsSoftwareProtected;

    private bool IsReadOnlyFor(UnitNexus nexus) => IsReadOnly || nexus.IsReadOnly || _device.IsReadOnly;

    private uint TransferBlocksMax => (uint)(Units.RequestBytesMax >> _blockShift);

    /// <summary>Brings back persistent reservations. Errors: those of the store, and Corrupt; the unit must not be served
    /// then, since it would let a fenced initiator in.</summary>
    public ValueTask<IoStatus> LoadAsync() => LoadReservationsAsync();

    /// <summary>The volume grew or shrank: every nexus is told (2A/09). Free when it did not.</summary>
    public void OnResized()
    {
        if (_device.SizeBytes == _announcedBytes) return;
        _announcedBytes = _device.SizeBytes;
        foreach (UnitNexus nexus in _nexuses) nexus.Announce(Attention.CapacityChanged);
    }

    /// <summary>The store runs low: every nexus is told (38/07, thin provisioning soft threshold reached).</summary>
    public void OnLowSpace()
    {
        if (!_options.IsThin) return;
        foreach (UnitNexus nexus in _nexuses) nexus.Announce(Attention.ThinThreshold);
    }

    internal UnitNexus Attach(ScsiNexus nexus, ScsiTarget target, ulong lun, bool isReadOnly)
    {
        var state = new UnitNexus(this, nexus, target, lun) { IsReadOnly = isReadOnly };
        Enlist(state);
        return state;
    }

    /// <summary>Takes in a nexus that was made elsewhere.</summary>
    internal void Enlist(UnitNexus state)
    {
        state.Attend(Attention.PowerOnOrReset);
        _nexuses.Add(state);
        LinkRegistrant(state);
    }

    /// <summary>As <see cref="TaskSet.Spare"/>.</summary>
    internal void Spare(UnitNexus? nexus, HashSet<uint> tags, bool isSpared) => _tasks.Spare(nexus, tags, isSpared);

    /// <summary>I_T nexus loss: its commands end, RESERVE (6) and PREVENT go with it, registrations stay.</summary>
    internal void Detach(UnitNexus state)
    {
        _nexuses.Remove(state);
        _tasks.Abort(t => t.Nexus == state, state, false);
        if (_reservedBy == state) _reservedBy = null;
        SetFence();
        if (state.Registrant is not null) state.Registrant.Nexus = null;
    }

    internal ValueTask<bool> WaitForAbortedAsync() => _tasks.WaitForAbortedAsync();

    /// <summary>A reset: all commands end, mode pages, RESERVE (6) and PREVENT are as after power on; persistent
    /// reservations and a running sanitize stay (SAM-5, 6.3.3).</summary>
    internal void Reset(ushort code)
    {
        _tasks.Abort(static _ => true, null, false);
        _reservedBy = null;
        SetFence();
        _modes.Reset();
        foreach (UnitNexus nexus in _nexuses)
        {
            nexus.Prevents = false;
            nexus.Attend(code);
        }
    }

    internal async ValueTask<TaskFunctionResponse> ManageAsync(UnitNexus by, TaskFunction function, uint tag)
    {
        switch (function)
        {
            case TaskFunction.AbortTask:
                // One that something else aborted before is there until it has left: it may still write.
                if (_tasks.Find(t => t.Nexus == by && t.Command.Tag == tag) is null) return TaskFunctionResponse.NoTask;
                _tasks.Abort(t => t.Nexus == by && t.Command.Tag == tag, by, false);
                break;
            case TaskFunction.AbortTaskSet:
                _tasks.Abort(t => t.Nexus == by, by, false);
                break;
            case TaskFunction.ClearTaskSet:
                foreach (UnitNexus nexus in _nexuses)
                {
                    bool hit = _tasks.Find(t => t.Nexus == nexus && !t.Command.IsAborted) is not null;
                    if (hit && nexus != by && !_modes.HasTas) nexus.Attend(Attention.CommandsCleared);
                }

                _tasks.Abort(static _ => true, by, _modes.HasTas);
                break;
            default:
                Reset(Attention.UnitReset);
                break;
        }

        await _tasks.WaitForAbortedAsync();
        return TaskFunctionResponse.Complete;
    }

    /// <summary>One command from start to answer; see <see cref="IScsiTarget.ExecuteAsync"/>.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<bool> ExecuteAsync(ScsiCommand command, UnitNexus nexus)
    {
        if (_tasks.Count >= _options.TasksMax)
        {
            command.Status = ScsiStatus.TaskSetFull;
            return true;
        }

        ScsiTask task = _tasks.Enter(command, nexus);
        command.TargetState = task;
        bool saysAborted;
        try
        {
            if (!task.IsStarted) await task.Begin();
            if (!command.IsAborted) DataIn.Finish(command, await Run(command, nexus), _modes.HasDescriptorSense);
        }
        finally
        {
            saysAborted = task.SaysAborted;
            _tasks.Leave(task);
        }

        if (!command.IsAborted) return true;
        command.Status = ScsiStatus.TaskAborted;
        command.SenseLength = 0;
        return saysAborted;
    }

    private void AttendAll(ushort code, UnitNexus? except)
    {
        foreach (UnitNexus nexus in _nexuses)
        {
            if (nexus != except) nexus.Attend(code);
        }
    }

    /// <summary>The unit offers the command: options decide about a few.</summary>
    private bool IsOffered(CommandEntry entry) =>
        (_options.IsThin || !entry.Has(Traits.Thin)) && (_options.HasSanitize || !entry.Has(Traits.Sanitize));

    private CommandEntry? Find(byte opcode, byte second)
    {
        CommandEntry? entry = CommandTable.Find(opcode, second);
        return entry is not null && IsOffered(entry) ? entry : null;
    }

    private bool HasOfferedActions(byte opcode)
    {
        if (!CommandTable.HasActions(opcode)) return false;
        for (int action = 0; action < 32; action++)
        {
            if (CommandTable.FindExact(opcode, action) is { } entry && IsOffered(entry)) return true;
        }

        return false;
    }

    /// <summary>What every command is asked first, in the order of SAM-5, 5.3.3 and SPC-4, 4.5: reservations, unit
    /// attention, the code itself, then the state of the unit.</summary>
    private ValueTask<ScsiResult> Run(ScsiCommand command, UnitNexus nexus)
    {
        byte[] cdb = command.Cdb;
        CommandEntry? entry = Find(cdb[0], cdb[1]);
        if (entry is not null && IsInConflict(entry, nexus, cdb)) return new(ScsiResult.Conflict);
        if (nexus.HasAttention && (entry is null || !entry.Has(Traits.Always))) return new(nexus.TakeAttention());
        if (entry is null) return new(HasOfferedActions(cdb[0]) ? Sense.InCdb(1, 4) : Sense.InvalidOpcode);

        int last = entry.Mask.Length - 1;
        if ((cdb[last] & 0x04) != 0) return new(Sense.InCdb(last, 2)); // NACA
        if (entry.Has(Traits.Strict) && FirstUnused(entry.Mask, cdb) is >= 0 and int at) return new(Sense.InCdb(at));
        if (!entry.Has(Traits.Always) && SanitizeState(entry) is { } busy) return new(busy);
        if (entry.Has(Traits.Medium) && _isEjected) return new(NoMedium);
        if (entry.Has(Traits.Changes) && IsProtected(nexus)) return new(WriteProtected(nexus));
        if (TransferPlan.ListOf(cdb) > (uint)command.OutLength && cdb[0] is not (ScsiOp.Sanitize or ScsiOp.ExtendedCopy or ScsiOp.MaintenanceOut))
            return new(Sense.ListLength);
        return Dispatch(command, nexus, entry);
    }

    private static Sense NoMedium => new(SenseKey.NotReady, 0x3A00);

    private Sense WriteProtected(UnitNexus nexus) =>
        new(SenseKey.DataProtect, (ushort)(IsReadOnlyFor(nexus) ? 0x2700 : 0x2702));

    private static int FirstUnused(byte[] mask, byte[] cdb)
    {
        for (int i = 1; i < mask.Length; i++)
        {
            if ((cdb[i] & ~mask[i]) != 0) return i;
        }

        return -1;
    }

    private ValueTask<ScsiResult> Dispatch(ScsiCommand command, UnitNexus nexus, CommandEntry entry)
    {
        switch (entry.Opcode)
        {
            case ScsiOp.Read6 or ScsiOp.Read10 or ScsiOp.Read12 or ScsiOp.Read16:
                return ReadAsync(command);
            case ScsiOp.Write6 or ScsiOp.Write10 or ScsiOp.Write12 or ScsiOp.Write16 or ScsiOp.WriteAtomic16:
                return WriteAsync(command);
            case ScsiOp.TestUnitReady:
                return new(_isEjected ? NoMedium : ScsiResult.Good);
            case ScsiOp.RequestSense:
                return RequestSense(command, nexus);
            case ScsiOp.Inquiry:
                return Inquiry(command, nexus);
            case ScsiOp.ReportLuns:
                return command.Luns is { } luns ? ScsiTarget.ReportLuns(_loop, command, luns) : nexus.Target.ReportLuns(command);
            case ScsiOp.ReadCapacity10:
                return ReadCapacity10(command);
            case ScsiOp.ServiceIn16:
                return entry.Action == ScsiOp.ReadCapacity16 ? ReadCapacity16(command) : GetLbaStatusAsync(command);
            case ScsiOp.ModeSense6 or ScsiOp.ModeSense10:
                return ModeSense(command, nexus);
            case ScsiOp.ModeSelect6 or ScsiOp.ModeSelect10:
                return ModeSelectAsync(command, nexus);
            case ScsiOp.StartStopUnit:
                return StartStopAsync(command, nexus);
            case ScsiOp.PreventAllow:
                return new(PreventAllow(command, nexus));
            case ScsiOp.LogSense:
                return LogSense(command);
            case ScsiOp.SendDiagnostic:
                return new(SendDiagnostic(command));
            case ScsiOp.ReadDefects10 or ScsiOp.ReadDefects12:
                return ReadDefects(command);
            case ScsiOp.MaintenanceIn:
                return MaintenanceIn(command, nexus, entry);
            case ScsiOp.MaintenanceOut:
                return new(SetPortGroups());
            case ScsiOp.Verify10 or ScsiOp.Verify12 or ScsiOp.Verify16:
                return VerifyAsync(command);
            case ScsiOp.WriteVerify10 or ScsiOp.WriteVerify12 or ScsiOp.WriteVerify16:
                return WriteVerifyAsync(command);
            case ScsiOp.SyncCache10 or ScsiOp.SyncCache16:
                return SyncCacheAsync(command, nexus);
            case ScsiOp.Prefetch10 or ScsiOp.Prefetch16:
                return PrefetchAsync(command);
            case ScsiOp.OrWrite:
                return OrWriteAsync(command);
            case ScsiOp.CompareAndWrite:
                return CompareAndWriteAsync(command);
            case ScsiOp.Unmap:
                return UnmapAsync(command);
            case ScsiOp.WriteSame10 or ScsiOp.WriteSame16:
                return WriteSameAsync(command);
            case ScsiOp.Sanitize:
                return SanitizeAsync(command, entry);
            case ScsiOp.Reserve6 or ScsiOp.Reserve10:
                return Reserve(nexus);
            case ScsiOp.Release6 or ScsiOp.Release10:
                return new(Release(nexus));
            case ScsiOp.PersistentIn:
                return PersistentIn(command, entry);
            case ScsiOp.PersistentOut:
                return PersistentOutAsync(command, nexus, entry);
            case ScsiOp.ExtendedCopy:
                return ExtendedCopyAsync(command, nexus);
            case ScsiOp.ReceiveCopy:
                return ReceiveCopy(command, nexus, entry);
            default:
                return new(Sense.InvalidOpcode);
        }
    }
}
