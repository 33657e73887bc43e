using System.Runtime.CompilerServices;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// One SCSI command from its header until its status was sent. Pooled by its session; lives on the session's loop. Data-Out
/// fills it in order: what came unsolicited, and then one R2T after the other.
/// </summary>
internal sealed class IscsiTask : Outgoing
{
    /// <summary>R2Ts of one command at once, whatever was agreed.</summary>
    public const int R2TsMax = 8;

    private readonly IscsiSession _session;
    private readonly Action _onDone;
    private readonly (uint Tag, int End)[] _r2ts = new (uint, int)[R2TsMax];
    private readonly AdmissionWaiter _turn;
    private ValueTaskAwaiter<bool> _done;
    private int _r2tFirst;
    private bool _isInside;

    public IscsiTask(IscsiSession session)
    {
        _session = session;
        _onDone = OnDone;
        _turn = new AdmissionWaiter(() =>
        {
            OnInside();
            session.OnAdmitted(this);
        });
        Command = new ScsiCommand { Nexus = session.Nexus! };
    }

    public ScsiCommand Command { get; }

    public IscsiConnection Connection { get; private set; } = null!;

    public ScsiCommandPdu Pdu { get; private set; }

    public ScsiPlan Plan { get; set; }

    public ulong BeganNanos { get; private set; }

    /// <summary>Since when it waits for Data-Out: the first R2T was sent then, or the last data came.</summary>
    public ulong DataSinceNanos { get; set; }

    /// <summary>How long it waited until its volume let it in.</summary>
    public ulong QueuedNanos { get; private set; }

    /// <summary>Its volume has let it in once, or it passes no door.</summary>
    public bool HasEntered { get; private set; }

    /// <summary>It waits until its volume lets it in.</summary>
    public bool AwaitsTurn => _turn.IsWaiting;

    /// <summary>Data-Out to gather: what the CDB wants and the initiator offers.</summary>
    public int Wanted { get; set; }

    /// <summary>Next offset of Data-Out, beyond <see cref="Wanted"/> too.</summary>
    public int OutOffset { get; set; }

    /// <summary>End of what may come unsolicited.</summary>
    public int UnsolicitedEnd { get; set; }

    /// <summary>More unsolicited Data-Out follows.</summary>
    public bool IsUnsolicitedOpen { get; set; }

    /// <summary>DataSN that the next Data-Out must have.</summary>
    public uint DataSn { get; set; }

    /// <summary>R2Ts that wait for their data.</summary>
    public int R2TCount { get; private set; }

    /// <summary>End of what was asked for.</summary>
    public int R2TOffset { get; set; }

    /// <summary>Bytes in the session's window.</summary>
    public int CostBytes { get; set; }

    /// <summary>What of the loop's memory its Data-Out holds until it is handed over (<see cref="GatherMemory"/>), bytes.</summary>
    public int GatheredBytes { get; set; }

    public bool IsDelivered { get; set; }

    public bool IsDispatched { get; set; }

    public bool IsDone { get; private set; }

    /// <summary>Ended by task management or with its connection before it was dispatched.</summary>
    public bool IsDropped { get; set; }

    /// <summary>The connection is receiving into its buffer.</summary>
    public bool IsFilling { get; set; }

    /// <summary>Some of its Data-Out is missing: it fails when the rest has come.</summary>
    public bool IsSpoiled { get; set; }

    /// <summary>There was no memory for its unsolicited data: that is read away, then it is answered TASK SET FULL.</summary>
    public bool IsTurnedAway { get; set; }

    /// <summary>Nothing that is in order before it still gathers its data.</summary>
    public bool IsNextInOrder => _session.IsNextInOrder(this);

    /// <summary>In the queue for the session's window or for memory.</summary>
    public bool IsQueued { get; set; }

    /// <summary>Released before the window counted it.</summary>
    public bool IsAnswered { get; set; }

    public IscsiTask? Next { get; set; }

    public IscsiTask? Previous { get; set; }

    /// <summary>The initiator is to send Data-Out.</summary>
    public bool AwaitsData => (R2TCount > 0 || IsUnsolicitedOpen) && !IsDispatched && !IsDone && !IsDropped;

    /// <summary>All Data-Out is here.</summary>
    public bool IsComplete => !IsUnsolicitedOpen && OutOffset >= Wanted;

    public (uint Tag, int End) FirstR2T => _r2ts[_r2tFirst];

    private int InExpected => Pdu.IsRead ? (int)Math.Min(Pdu.ExpectedBytes, int.MaxValue) : 0;

    private uint _dataInSn;
    private uint _r2tSn;
    private int _inSent;
    private int _burstLeft;

    public void Begin(IscsiConnection connection, in ScsiCommandPdu pdu, ulong nowNanos)
    {
        (Connection, Pdu, BeganNanos) = (connection, pdu, nowNanos);
        DataSinceNanos = nowNanos;
        (Wanted, OutOffset, UnsolicitedEnd, DataSn, R2TCount, R2TOffset, CostBytes) = (0, 0, 0, 0, 0, 0, 0);
        (IsDelivered, IsDispatched, IsDone, IsDropped) = (false, false, false, false);
        (IsFilling, IsSpoiled, IsTurnedAway, IsQueued, IsAnswered) = (false, false, false, false, false);
        (QueuedNanos, HasEntered, _isInside) = (0, false, false);
        (_dataInSn, _r2tSn, _inSent, _burstLeft, _r2tFirst, IsUnsolicitedOpen) = (0, 0, 0, connection.MaxBurst, 0, false);
        ScsiCommand command = Command;
        (command.Lun, command.Attribute, command.Tag) = (pdu.Lun, pdu.Attribute, pdu.Tag);
        (command.OutStart, command.OutLength, command.InStart, command.InLength) = (0, 0, 0, 0);
        command.OutOfferedBytes = pdu.IsWrite ? (int)Math.Min(pdu.ExpectedBytes, int.MaxValue) : 0;
        (command.Status, command.SenseLength, command.IsAborted, command.TargetState) = (ScsiStatus.Good, 0, false, null);
        command.IsSpared = false;
    }

    /// <summary>It goes to its volume's door: true when it is let in at once, else <see cref="IscsiSession.OnAdmitted"/> is told.</summary>
    public bool Enter()
    {
        if (Plan.Admission is not { } door)
        {
            HasEntered = true;
            return true;
        }

        if (!door.Enter(_turn, Plan.ChargedBytes)) return false;
        OnInside();
        return true;
    }

    /// <summary>The device is done with it, or it waits no longer.</summary>
    public void Leave()
    {
        if (_turn.IsWaiting)
        {
            Plan.Admission!.Withdraw(_turn);
            _session.OnWithdrawn();
        }

        if (!_isInside) return;
        _isInside = false;
        Plan.Admission!.Exit(Plan.ChargedBytes);
    }

    private void OnInside()
    {
        (HasEntered, _isInside) = (true, true);
        QueuedNanos = _turn.WaitedNanos;
    }

    public void End()
    {
        Command.OutBuffer?.Return();
        Command.OutBuffer = null;
        Command.InBuffer?.Return();
        Command.InBuffer = null;
        Command.TargetState = null;
    }

    /// <summary>Asks for the next pieces of Data-Out as far as the agreement allows.</summary>
    public void Solicit()
    {
        int max = Math.Min(_session.Parameters.MaxOutstandingR2T, R2TsMax);
        if (R2TCount == 0) DataSinceNanos = _session.NowNanos;
        while (R2TCount < max && R2TOffset < Wanted)
        {
            int length = Math.Min(Connection.MaxBurst, Wanted - R2TOffset);
            uint tag = _session.NextTransferTag();
            _r2ts[(_r2tFirst + R2TCount++) % R2TsMax] = (tag, R2TOffset + length);
            Connection.EnqueueR2T(new R2TPdu(Pdu.Lun, Pdu.Tag, tag, default, _r2tSn++, (uint)R2TOffset, (uint)length));
            R2TOffset += length;
        }
    }

    /// <summary>The oldest R2T has its data.</summary>
    public void EndR2T()
    {
        _r2tFirst = (_r2tFirst + 1) % R2TsMax;
        R2TCount--;
        DataSn = 0;
    }

    /// <summary>Its turn for memory has come; null: it was dropped.</summary>
    public void OnMemory(IoBuffer? buffer) => _session.OnMemory(this, buffer);

    public void Execute()
    {
        IsDispatched = true;
        _session.Memory.Settle(this);
        Command.OutLength = Wanted;
#pragma warning disable CA2012 // The awaiter is kept in the task and asked once, in OnDone.
        _done = _session.Scsi!.ExecuteAsync(Command).GetAwaiter();
#pragma warning restore CA2012
        if (_done.IsCompleted) OnDone();
        else _done.UnsafeOnCompleted(_onDone);
    }

    /// <summary>Ends without having been executed: TASK SET FULL for want of memory, or ABORTED COMMAND, protocol service CRC error (RFC 7143, 11.4.7.2), which
    /// initiators take as a reason to send the command again.</summary>
    public void FailUnexecuted()
    {
        (IsDispatched, IsDone) = (true, true);
        if (IsTurnedAway)
        {
            Command.Status = ScsiStatus.TaskSetFull;
            return;
        }

        Command.Status = ScsiStatus.CheckCondition;
        Command.Sense.AsSpan(0, LostDataSense.Length).Clear();
        LostDataSense.CopyTo(Command.Sense);
        Command.SenseLength = LostDataSense.Length;
    }

    // Fixed format: 0B, ASC 47, ASCQ 05.
    private static ReadOnlySpan<byte> LostDataSense => [0x70, 0, 0x0B, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x47, 0x05, 0, 0, 0, 0];

    private void OnDone()
    {
        bool hasAnswer;
        IsDone = true;
        try
        {
            hasAnswer = _done.GetResult();
        }
#pragma warning disable CA1031 // A bug below must end this session through RunAsync, not the loop.
        catch (Exception bug)
#pragma warning restore CA1031
        {
            _session.OnBug(this, bug);
            return;
        }

        if (!hasAnswer || Command.IsAborted || IsDropped) _session.Forget(this);
        else _session.OnDone(this);
    }

    /// <summary>Data-In in pieces of what the initiator takes, and the status with the last piece or in a response.</summary>
    public override bool Emit(IscsiConnection connection)
    {
        ScsiCommand command = Command;
        int total = command.InBuffer is null ? 0 : Math.Min(command.InLength, InExpected);
        bool collapses = total > 0 && command.SenseLength == 0 && command.Status is ScsiStatus.Good or ScsiStatus.ConditionMet;
        while (_inSent < total)
        {
            if (!connection.HasRoom) return false;
            int piece = Math.Min(Math.Min(total - _inSent, connection.MaxSend), _burstLeft);
            bool isLast = _inSent + piece == total;
            _burstLeft -= piece;
            bool isFinal = isLast || _burstLeft == 0;
            if (_burstLeft == 0) _burstLeft = connection.MaxBurst;
            bool hasStatus = isLast && collapses;
            if (hasStatus) _session.OnAnswered(this);
            Span<byte> bhs = connection.BeginPdu();
            new DataInPdu(
                isFinal, hasStatus, command.Status, Pdu.Tag, connection.NextNumbers(hasStatus), _dataInSn++, (uint)_inSent,
                hasStatus ? ResidualOf() : default).WriteTo(bhs, piece);
            connection.EndPdu(command.InBuffer!.Slice(command.InStart + _inSent, piece));
            _inSent += piece;
            if (hasStatus) return true;
        }

        if (!connection.HasRoom) return false;
        _session.OnAnswered(this);
        Span<byte> response = connection.BeginPdu();
        int sense = command.SenseLength;
        new ScsiResponsePdu(0, command.Status, Pdu.Tag, connection.NextNumbers(true), _dataInSn + _r2tSn, ResidualOf())
            .WriteTo(response, sense > 0 ? 2 + sense : 0);
        if (sense == 0)
        {
            connection.EndPdu(default(ReadOnlyMemory<byte>));
            return true;
        }

        Span<byte> data = stackalloc byte[2 + ScsiCommand.SenseBytesMax];
        (data[0], data[1]) = ((byte)(sense >> 8), (byte)sense);
        command.Sense.AsSpan(0, sense).CopyTo(data[2..]);
        connection.EndPdu(data[..(2 + sense)]);
        return true;
    }

    public override void OnSent(IscsiConnection connection) => _session.Release(this);

    /// <summary>Reads are measured by what there was to give, writes by what the CDB describes, also when they failed; a
    /// command that was refused for its CDB moved nothing.</summary>
    private Residual ResidualOf()
    {
        if (Pdu.IsRead) return Residual.Of(Pdu.ExpectedBytes, (uint)Command.InLength);
        uint offered = Pdu.IsWrite ? Pdu.ExpectedBytes : 0;
        return Residual.Of(offered, Plan.IsRefused ? 0 : (uint)Math.Max(Plan.OutBytes, Command.InLength));
    }
}
