using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Protocols.Iscsi;

/// <content>What each PDU of an initiator does.</content>
public sealed partial class IscsiConnection
{
    private const int ExtendedCdb = 1;

    private LogoutRequestPdu? _logout;

    /// <summary>Takes one PDU whose header is in <see cref="_head"/>; false when no more may be read.</summary>
    private ValueTask<bool> TakeAsync(IscsiHeader header)
    {
        if (header.AhsBytes > 0 && header.Opcode != IscsiOpcode.ScsiCommand) return RefuseAsync(header, IscsiRejectReason.InvalidField);
        if (_session.IsDiscovery && header.Opcode is not (IscsiOpcode.TextRequest or IscsiOpcode.LogoutRequest or IscsiOpcode.NopOut))
            return RefuseAsync(header, IscsiRejectReason.ProtocolError);
        switch (header.Opcode)
        {
            case IscsiOpcode.ScsiCommand:
                return TakeCommandAsync(header);
            case IscsiOpcode.DataOut:
                return TakeDataOutAsync(header);
            case IscsiOpcode.NopOut:
                return TakeNopAsync(header);
            case IscsiOpcode.TaskManagementRequest:
                return TakeTaskManagementAsync(header);
            case IscsiOpcode.TextRequest when header.DataBytes > _options.TextBytesMax:
                return RefuseAsync(header, IscsiRejectReason.LongOperation); // before memory is taken for it
            case IscsiOpcode.TextRequest:
                return TakeTextAsync(header);
            case IscsiOpcode.LogoutRequest:
                return TakeLogoutAsync(header);
            case IscsiOpcode.Snack:
                return RefuseAsync(header, IscsiRejectReason.SnackReject);
            case IscsiOpcode.LoginRequest:
                return new ValueTask<bool>(Broken("a login request in full feature phase"));
            default:
                bool isTargets = ((int)header.Opcode & 0x20) != 0;
                if (isTargets) return new ValueTask<bool>(Broken("a PDU that only targets send"));
                return RefuseAsync(header, IscsiRejectReason.CommandNotSupported);
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> RefuseAsync(IscsiHeader header, IscsiRejectReason reason)
    {
        Reject(reason);
        return await ReceiveDataAsync(default, header.DataBytes);
    }

    private void Reject(IscsiRejectReason reason)
    {
        SmallPdu pdu = RentPdu();
        new RejectPdu(reason, default).WriteTo(pdu.Bytes);
        _head.AsSpan(0, IscsiWire.BhsSize).CopyTo(pdu.Bytes.AsSpan(IscsiWire.BhsSize));
        pdu.InlineBytes = IscsiWire.BhsSize;
        Enqueue(pdu);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeCommandAsync(IscsiHeader header)
    {
        ScsiCommandPdu pdu = ScsiCommandPdu.Read(_head);
        if (!pdu.IsImmediate && !_session.IsNew(pdu.CmdSn))
        {
            // Outside the window or a repetition: as if it had never come (RFC 7143, 4.2.2.1).
            if (pdu.IsWrite && !pdu.IsFinal && _session.Find(pdu.Tag) is null) _session.AddGhost(pdu.Tag);
            return await ReceiveDataAsync(default, header.DataBytes);
        }

        if (_stopping) return await ReceiveDataAsync(default, header.DataBytes);
        IscsiRejectReason? refusal = RefusalOf(pdu, header);
        if (refusal is not null)
        {
            Reject(refusal.Value);
            if (pdu.IsWrite && !pdu.IsFinal && _session.Find(pdu.Tag) is null) _session.AddGhost(pdu.Tag);
            if (!pdu.IsImmediate) _session.Pass(pdu.CmdSn);
            return await ReceiveDataAsync(default, header.DataBytes);
        }

        if (FaultOf(pdu, header) is { } fault) return Broken(fault);
        IscsiTask task = _session.Rent(this, pdu);
        ReadCdb(task.Command, header.AhsBytes);
        PlanFor(task, header.DataBytes);
        _session.Register(task);
        if (header.DataBytes > 0)
        {
            task.IsFilling = true;
            int first = Math.Min(task.Wanted, task.UnsolicitedEnd);
            int keep = Math.Min(header.DataBytes, task.Wanted);
            if (keep > 0 && !await RentFirstAsync(task, first)) keep = 0;
            bool isGood = await ReceiveDataAsync(keep > 0 ? task.Command.OutBuffer!.Slice(task.Command.OutStart, keep) : default, header.DataBytes);
            task.IsFilling = false;
            task.OutOffset = header.DataBytes;
            if (task.IsDropped || !isGood) return EndDropped(task, isGood);
            if (task.IsTurnedAway && pdu.IsFinal)
            {
                _session.TurnAway(task);
                return true;
            }
        }

        _session.Deliver(task);
        return true;
    }

    /// <summary>A task that was dropped while its immediate data came, or whose connection ended then.</summary>
    private bool EndDropped(IscsiTask task, bool isGood)
    {
        if (!task.Pdu.IsImmediate) _session.Pass(task.Pdu.CmdSn);
        _session.Forget(task);
        return isGood;
    }

    private IscsiRejectReason? RefusalOf(in ScsiCommandPdu pdu, IscsiHeader header)
    {
        if (pdu.IsRead && pdu.IsWrite) return IscsiRejectReason.InvalidField; // bidirectional commands do not exist here
        if (pdu.ExpectedBytes > int.MaxValue || !IsAhsGood(header.AhsBytes)) return IscsiRejectReason.InvalidField;
        if (_session.Find(pdu.Tag) is not null) return IscsiRejectReason.TaskInProgress;
        return pdu.IsImmediate && !_session.MayTakeImmediate ? IscsiRejectReason.TooManyImmediate : null;
    }

    private string? FaultOf(in ScsiCommandPdu pdu, IscsiHeader header)
    {
        IscsiParameters agreed = _session.Parameters;
        if (!pdu.IsFinal && (!pdu.IsWrite || agreed.InitialR2T)) return "unsolicited data was announced without leave";
        if (header.DataBytes == 0) return null;
        if (!pdu.IsWrite || !agreed.ImmediateData) return "immediate data without leave";
        return header.DataBytes > Math.Min(agreed.FirstBurstLength, (int)pdu.ExpectedBytes) ? "too much immediate data" : null;
    }

    /// <summary>Only extended CDBs; the lengths must add up.</summary>
    private bool IsAhsGood(int ahsBytes)
    {
        ReadOnlySpan<byte> ahs = _head.AsSpan(IscsiWire.BhsSize, ahsBytes);
        int cdbs = 0;
        while (!ahs.IsEmpty)
        {
            int length = BinaryPrimitives.ReadUInt16BigEndian(ahs);
            int whole = 3 + length + IscsiWire.PadOf(3 + length);
            if (ahs[2] != ExtendedCdb || length < 2 || whole > ahs.Length || ++cdbs > 1) return false;
            ahs = ahs[whole..];
        }

        return true;
    }

    private void ReadCdb(ScsiCommand command, int ahsBytes)
    {
        command.Cdb.AsSpan().Clear();
        _head.AsSpan(ScsiCommandPdu.CdbOffset, ScsiCommandPdu.CdbSize).CopyTo(command.Cdb);
        command.CdbLength = ScsiCommandPdu.CdbSize;
        if (ahsBytes == 0) return;
        int more = BinaryPrimitives.ReadUInt16BigEndian(_head.AsSpan(IscsiWire.BhsSize)) - 1;
        _head.AsSpan(IscsiWire.BhsSize + 4, more).CopyTo(command.Cdb.AsSpan(ScsiCommandPdu.CdbSize));
        command.CdbLength += more;
    }

    private void PlanFor(IscsiTask task, int immediateBytes)
    {
        ScsiCommandPdu pdu = task.Pdu;
        task.Plan = _session.Scsi!.Plan(task.Command);
        int offered = pdu.IsWrite ? (int)pdu.ExpectedBytes : 0;
        task.Wanted = task.Plan.IsRefused ? 0 : Math.Min(Math.Min(offered, task.Plan.OutBytes), Units.RequestBytesMax);
        task.UnsolicitedEnd = pdu.IsFinal ? immediateBytes : Math.Min(offered, _session.Parameters.FirstBurstLength);
        task.IsUnsolicitedOpen = !pdu.IsFinal;
    }

    /// <summary>Memory for unsolicited data: of the whole command when that is all or little more, else of the first burst,
    /// so that a command that waits for its turn holds little. False when there is none and waiting for it might stand in the
    /// way of data for which others wait (<see cref="GatherMemory"/>): the command is turned away. False too when it was
    /// dropped.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> RentFirstAsync(IscsiTask task, int firstBytes)
    {
        int bytes = task.Wanted <= _session.Parameters.FirstBurstLength ? task.Wanted : firstBytes;
        int lead = task.Plan.Lead;
        ScsiCommand command = task.Command;
        command.OutStart = lead;
        command.OutBuffer = _session.Memory.TryRentFirst(task, lead + bytes);
        if (command.OutBuffer is not null) return true;
        if (_session.MayWaitForMemory(task)) command.OutBuffer = await _session.Memory.RentWholeAsync(task, lead + task.Wanted);
        else (task.IsSpoiled, task.IsTurnedAway) = (true, true);
        return command.OutBuffer is not null;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeDataOutAsync(IscsiHeader header)
    {
        DataOutPdu pdu = DataOutPdu.Read(_head);
        IscsiTask? task = _session.Find(pdu.Tag);
        if (task is null || task.IsDropped || task.IsDone) // gone, or failed for lost data with its answer still to leave
        {
            if (_stopping || _session.IsGhost(pdu.Tag)) return await ReceiveDataAsync(default, header.DataBytes);
            return Broken("Data-Out for no task");
        }

        if (TransferFaultOf(task, pdu) is { } stray) return Broken(stray);
        task.DataSinceNanos = _loop.NowNanos;
        if (task.IsSpoiled || (pdu.DataSn != task.DataSn && !_options.Breaks(IscsiBrokenRules.IgnoreDataSn)))
        {
            // A PDU is missing or came twice. What is left of the sequence is read away, then the command fails
            // (RFC 7143, 7.9): the disk sees none of it, and the session goes on.
            task.IsSpoiled = true;
            task.IsFilling = true;
            bool isRead = await ReceiveDataAsync(default, header.DataBytes);
            task.IsFilling = false;
            if (task.IsDropped) _session.Forget(task);
            else if (isRead && pdu.IsFinal) _session.FailForLostData(task);
            return isRead;
        }

        if (FaultOf(task, pdu, header.DataBytes) is { } fault) return Broken(fault);
        int offset = task.OutOffset;
        int keep = Math.Clamp(task.Wanted - offset, 0, header.DataBytes);
        task.IsFilling = true;
        bool isFirst = keep > 0 && task.Command.OutBuffer is null;
        if (isFirst && !await RentFirstAsync(task, Math.Min(task.Wanted, task.UnsolicitedEnd))) keep = 0;
        Memory<byte> target = keep > 0 ? task.Command.OutBuffer!.Slice(task.Command.OutStart + offset, keep) : default;
        bool isGood = await ReceiveDataAsync(target, header.DataBytes);
        task.IsFilling = false;
        if (task.IsDropped || !isGood)
        {
            if (task.IsDropped) _session.Forget(task);
            return isGood;
        }

        if (task.IsTurnedAway)
        {
            if (pdu.IsFinal) _session.FailForLostData(task);
            return true;
        }

        task.OutOffset = offset + header.DataBytes;
        task.DataSn++;
        if (pdu.IsFinal)
        {
            if (task.IsUnsolicitedOpen) task.IsUnsolicitedOpen = false;
            else task.EndR2T();
            task.DataSn = 0;
        }

        if (pdu.IsFinal) _session.OnData(task);
        return true;
    }

    private string? TransferFaultOf(IscsiTask task, in DataOutPdu pdu)
    {
        if (task.Connection != this) return "Data-Out on another connection than its command";
        if (task.IsUnsolicitedOpen) return pdu.TransferTag == IscsiWire.NoTag ? null : "Data-Out for an R2T that was not sent";
        return task.R2TCount > 0 && pdu.TransferTag == task.FirstR2T.Tag ? null : "Data-Out for no outstanding R2T";
    }

    /// <summary>Everything in its place and nothing beyond what was asked for.</summary>
    private static string? FaultOf(IscsiTask task, in DataOutPdu pdu, int dataBytes)
    {
        int end = task.IsUnsolicitedOpen ? task.UnsolicitedEnd : task.FirstR2T.End;
        if (pdu.Offset != (uint)task.OutOffset) return "Data-Out at a wrong offset";
        if (dataBytes > end - task.OutOffset) return "Data-Out beyond its burst";
        bool isEnd = task.OutOffset + dataBytes == end;
        if (pdu.IsFinal) return isEnd || task.IsUnsolicitedOpen ? null : "Data-Out ends too early";
        return isEnd || dataBytes == 0 ? "Data-Out without an end" : null;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeNopAsync(IscsiHeader header)
    {
        NopOutPdu pdu = NopOutPdu.Read(_head);
        if (!pdu.IsImmediate && !TakeNumber(pdu.CmdSn)) return await ReceiveDataAsync(default, header.DataBytes);
        if (pdu.TransferTag != IscsiWire.NoTag) OnPingAnswered(pdu.TransferTag);
        if (pdu.Tag == IscsiWire.NoTag) return await ReceiveDataAsync(default, header.DataBytes);

        int keep = Math.Min(header.DataBytes, MaxSend);
        SmallPdu answer = RentPdu();
        new NopInPdu(pdu.Lun, pdu.Tag, IscsiWire.NoTag, default).WriteTo(answer.Bytes, keep);
        if (keep > 0)
        {
            // Never waits for memory: Data-Out may stand behind it. What is beyond the pool, PingBytesMax bounds.
            answer.Buffer = _loop.Buffers.TryRent(keep);
            Memory<byte> data = answer.Buffer?.Slice(0, keep)
                ?? MemoryMarshal.CreateFromPinnedArray(GC.AllocateUninitializedArray<byte>(keep, pinned: true), 0, keep);
            if (!await ReceiveDataAsync(data, header.DataBytes))
            {
                Release(answer);
                return false;
            }

            answer.Data = data;
            _pingBytes += keep;
            answer.Sent = () => _pingBytes -= keep;
        }

        Enqueue(answer);
        while (_pingBytes > PingBytesMax && !IsClosed) await _room.Begin();
        return true;
    }

    // Echoes that wait to be sent; beyond it the socket is not read.
    private const int PingBytesMax = 1 << 20;

    private int _pingBytes;

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeTaskManagementAsync(IscsiHeader header)
    {
        TaskManagementRequestPdu pdu = TaskManagementRequestPdu.Read(_head);
        if (!pdu.IsImmediate && !_session.IsNew(pdu.CmdSn)) return await ReceiveDataAsync(default, header.DataBytes);
        _managing++;

        // An immediate ABORT TASK goes at once: the command that is missing may be the one that it aborts.
        if (pdu.IsImmediate && pdu.Function == TaskFunction.AbortTask) _ = ManageAsync(pdu);
        else _session.InOrder(pdu.CmdSn, pdu.IsImmediate, () => _ = ManageAsync(pdu));
        if (!await ReceiveDataAsync(default, header.DataBytes)) return false;
        while (_managing > ManagingMax && !IsClosed) await _room.Begin();
        return true;
    }

    // Task management under way; a peer that asks for more is not read.
    private const int ManagingMax = 16;

    private int _managing;

    private async Task ManageAsync(TaskManagementRequestPdu pdu)
    {
        TaskFunctionResponse response;
        bool isForAll = pdu.Function is TaskFunction.ClearTaskSet or TaskFunction.LogicalUnitReset or TaskFunction.TargetWarmReset
            or TaskFunction.TargetColdReset;
        try
        {
            response = await AskAsync(pdu, isForAll);
        }
#pragma warning disable CA1031 // A bug below must end this session through RunAsync, not the loop.
        catch (Exception bug)
#pragma warning restore CA1031
        {
            _session.OnBug(bug);
            response = TaskFunctionResponse.Rejected;
        }

        _managing--;
        if (_room.IsPending) _room.Complete(true);
        if (IsClosed) return;
        SmallPdu answer = RentPdu();
        new TaskManagementResponsePdu(response, pdu.Tag, default).WriteTo(answer.Bytes);
        bool endsAll = pdu.Function == TaskFunction.TargetColdReset && response == TaskFunctionResponse.Complete;
        if (endsAll) answer.Sent = () => _session.Target.CutAll("the target was reset");
        Enqueue(answer);
    }

    private async ValueTask<TaskFunctionResponse> AskAsync(TaskManagementRequestPdu pdu, bool isForAll)
    {
        if (pdu.Function == (TaskFunction)8) return (TaskFunctionResponse)4; // no allegiance moves at level 0
        if (pdu.Function is < TaskFunction.AbortTask or > TaskFunction.TargetColdReset) return TaskFunctionResponse.NotSupported;
        if (pdu.Function == TaskFunction.AbortTask)
        {
            if (_session.AbortHere(pdu) is { } known) return known;
        }
        else if (pdu.Function != TaskFunction.ClearAca)
        {
            ulong? lun = pdu.Function is TaskFunction.TargetWarmReset or TaskFunction.TargetColdReset ? null : pdu.Lun;
            _session.SpareBehind(pdu.CmdSn);
            if (!isForAll) _session.DropUndispatched(lun);
            else foreach (IscsiSession session in _session.Target.All()) session.DropUndispatched(lun);
        }

        ValueTask<TaskFunctionResponse> managed =
            _session.Scsi!.ManageAsync(_session.Nexus!, pdu.Function, pdu.Lun, pdu.ReferencedTag);
        _session.SpareNone();
        TaskFunctionResponse response = await managed;
        bool isOvertaking = _options.Breaks(IscsiBrokenRules.AnswerAbortsAtOnce);
        if (pdu.Function != TaskFunction.AbortTask && !isOvertaking) await _session.WaitTakenAsync(this);
        return response;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeLogoutAsync(IscsiHeader header)
    {
        LogoutRequestPdu pdu = LogoutRequestPdu.Read(_head);
        if (!await ReceiveDataAsync(default, header.DataBytes)) return false;
        if (!pdu.IsImmediate && !TakeNumber(pdu.CmdSn)) return true;
        if (pdu.Reason == IscsiLogoutReason.CloseSession || (pdu.Reason == IscsiLogoutReason.CloseConnection && pdu.Cid == Cid))
        {
            _logout = pdu;
            _isLoggingOut = true;
            _session.DropUndispatchedOf(this); // no more data is read for them, and others may wait for what they hold
            if (pdu.Reason == IscsiLogoutReason.CloseSession) await _session.EndOthersAsync(this);
            return false;
        }

        if (pdu.Reason == IscsiLogoutReason.CloseConnection && _session.FindConnection(pdu.Cid) is { } other)
        {
            _ = EndOtherAsync(other, pdu.Tag); // meanwhile this one is read on: the other's end may wait for its commands
            return true;
        }

        bool isClose = pdu.Reason == IscsiLogoutReason.CloseConnection;
        AnswerLogout(pdu.Tag, isClose ? IscsiLogoutResponse.CidNotFound : IscsiLogoutResponse.RecoveryNotSupported);
        return true;
    }

    private async Task EndOtherAsync(IscsiConnection other, uint tag)
    {
        other.EndOrderly("the initiator closed it");
        await other.WaitEndedAsync();
        if (!IsClosed) AnswerLogout(tag, IscsiLogoutResponse.Success);
    }

    private void AnswerLogout(uint tag, IscsiLogoutResponse response)
    {
        SmallPdu answer = RentPdu();
        new LogoutResponsePdu(response, tag, default).WriteTo(answer.Bytes);
        Enqueue(answer);
    }

    /// <summary>Takes the number of a command that is run at once; false when it is outside the window.</summary>
    private bool TakeNumber(uint cmdSn)
    {
        if (!_session.IsNew(cmdSn)) return false;
        _session.Pass(cmdSn);
        return true;
    }
}
