using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Protocols.Iscsi;

/// <content>The order of commands, the window, and the way of a task to the SCSI target.</content>
public sealed partial class IscsiSession
{
    // Tags of dropped tasks whose Data-Out may still be on its way; it is thrown away instead of ending the session.
    private const int GhostsMax = 256;

    private static readonly object Skip = new();
    private static readonly object Reserved = new(); // its immediate data is still on the way

    private readonly object?[] _ring; // by CmdSN: what came ahead of ExpCmdSN
    private readonly Dictionary<uint, IscsiTask> _tasks = [];
    private readonly HashSet<uint> _ghosts = [];
    private readonly Queue<uint> _ghostOrder = new();
    private readonly Queue<IscsiTask> _waiting = new();
    private readonly List<(uint CmdSn, Action Run)> _held = [];
    private IscsiTask? _firstUndispatched, _lastUndispatched;
    private int _orderedCount, _windowBytes, _inWindow, _immediates;
    private int _atDoors; // tasks that their volumes have not let in yet

    /// <summary>Next command number in order.</summary>
    public uint ExpCmdSn { get; private set; }

    /// <summary>Last command number that may be sent. Never falls: a delivered command moves ExpCmdSN and fills a place.</summary>
    public uint MaxCmdSn => ExpCmdSn + (uint)(_options.WindowCommands - _inWindow) - 1;

    /// <summary>True when a command of this number may be taken: it is in the window and did not come yet.</summary>
    internal bool IsNew(uint cmdSn) =>
        (!IscsiWire.IsBefore(cmdSn, ExpCmdSn) && !IscsiWire.IsBefore(MaxCmdSn, cmdSn) && _ring[SlotOf(cmdSn)] is null)
        || _options.Breaks(IscsiBrokenRules.TakeRepeatedCommands);

    internal bool MayTakeImmediate => _immediates < _options.ImmediateCommandsMax;

    internal IscsiTask? Find(uint tag) => _tasks.GetValueOrDefault(tag);

    /// <summary>A command of the connection has waited for its data since <paramref name="sinceNanos"/> or longer.</summary>
    internal bool AwaitsDataSince(IscsiConnection connection, ulong sinceNanos)
    {
        foreach (IscsiTask task in _tasks.Values)
        {
            if (task.Connection == connection && task.AwaitsData && task.DataSinceNanos <= sinceNanos) return true;
        }

        return false;
    }

    internal bool IsGhost(uint tag) => _ghosts.Contains(tag);

    internal void AddGhost(uint tag)
    {
        if (!_ghosts.Add(tag)) return;
        _ghostOrder.Enqueue(tag);
        while (_ghostOrder.Count > GhostsMax) _ghosts.Remove(_ghostOrder.Dequeue());
    }

    /// <summary>The tag is known from now on.</summary>
    internal void Register(IscsiTask task)
    {
        _ghosts.Remove(task.Pdu.Tag);
        _tasks[task.Pdu.Tag] = task;
        if (task.Pdu.IsImmediate) _immediates++;
        else _ring[SlotOf(task.Pdu.CmdSn)] = Reserved;
    }

    /// <summary>A numbered PDU that is no SCSI command was taken.</summary>
    internal void Pass(uint cmdSn) => Place(cmdSn, Skip);

    /// <summary>Runs <paramref name="action"/> in its place among the numbered commands; an immediate one when all before it
    /// have come.</summary>
    internal void InOrder(uint cmdSn, bool isImmediate, Action action)
    {
        if (!isImmediate)
        {
            Place(cmdSn, action);
            return;
        }

        if (IscsiWire.IsBefore(ExpCmdSn, cmdSn)) _held.Add((cmdSn, action));
        else action();
    }

    /// <summary>The header and what came with it are here.</summary>
    internal void Deliver(IscsiTask task)
    {
        if (task.Pdu.IsImmediate) DeliverNow(task);
        else Place(task.Pdu.CmdSn, task);
    }

    /// <summary>More Data-Out came.</summary>
    internal void OnData(IscsiTask task)
    {
        if (!task.IsDelivered || task.AwaitsTurn) return;
        bool isNext = task.IsComplete || (!task.IsUnsolicitedOpen && task.R2TOffset == 0);
        if (isNext) GoIn(task);
        else if (!task.IsUnsolicitedOpen && !task.IsQueued) task.Solicit();
    }

    /// <summary>Its volume has let it in: on to the fetch of its data, or to the SCSI target.</summary>
    internal void OnAdmitted(IscsiTask task)
    {
        _atDoors--;
        if (task.IsComplete) Dispatch(task);
        else Admit(task);
    }

    /// <summary>It waited for its volume and was dropped.</summary>
    internal void OnWithdrawn() => _atDoors--;

    /// <summary>Takes a command through the door of its volume, once, before its data is fetched. While it waits there it is in order
    /// what a command is whose data has not come yet. Of a session with several units those that wait may not fill the window
    /// of commands: one more is turned away.</summary>
    private void GoIn(IscsiTask task)
    {
        if (task.HasEntered || task.Enter())
        {
            if (task.IsComplete) Dispatch(task);
            else Admit(task);
            return;
        }

        _atDoors++;
        if (!task.Plan.HasOtherUnits || _atDoors <= _options.WindowCommands / 2) return;
        task.Leave();
        task.IsTurnedAway = true;
        FailForLostData(task);
    }

    /// <summary>The SCSI target has answered.</summary>
    internal void OnDone(IscsiTask task)
    {
        task.Leave();
        if (IsDropped || task.Connection.IsClosed)
        {
            Forget(task);
            return;
        }

        ScsiCommand command = task.Command;
        bool hasFailed = command.Status is not (ScsiStatus.Good or ScsiStatus.ConditionMet);
        Counters.Commands++;
        if (task.Pdu.IsRead) Counters.Reads++;
        if (task.Pdu.IsWrite) Counters.Writes++;
        Counters.ReadBytes += (uint)command.InLength;
        Counters.WrittenBytes += (uint)command.OutLength;
        if (hasFailed) Counters.Errors++;
        if (command.Status == ScsiStatus.TaskSetFull) _target.Meter?.OnTaskSetFull(command.Lun);
        ulong bytes = (uint)Math.Max(command.InLength, command.OutLength);
        _target.Meter?.OnCommand(command.Lun, command.Cdb[0], bytes, _loop.NowNanos - task.BeganNanos, task.QueuedNanos, hasFailed);
        task.Connection.EnqueueAnswer(task);
    }

    /// <summary>Its status is about to be sent: the tag is free and the window moves.</summary>
    internal void OnAnswered(IscsiTask task)
    {
        if (task.IsAnswered) return;
        task.IsAnswered = true;
        if (_tasks.TryGetValue(task.Pdu.Tag, out IscsiTask? known) && known == task) _tasks.Remove(task.Pdu.Tag);
        if (task.Pdu.IsImmediate) _immediates--;
        else if (task.IsDelivered) _inWindow--;
    }

    /// <summary>Fails a command whose Data-Out is not all there; the SCSI target never sees it.</summary>
    internal void FailForLostData(IscsiTask task)
    {
        GiveUpPlace(task);
        FailUnexecuted(task);
    }

    /// <summary>No memory for its data, which was all read away.</summary>
    internal void TurnAway(IscsiTask task)
    {
        FailUnexecuted(task); // first, for task management that comes next in order must not drop it
        if (!task.Pdu.IsImmediate) Pass(task.Pdu.CmdSn);
    }

    private void FailUnexecuted(IscsiTask task)
    {
        task.FailUnexecuted();
        if (task.IsTurnedAway) _target.Meter?.OnTaskSetFull(task.Pdu.Lun);
        task.Connection.Enqueue(task);
        UnlinkAndGoOn(task);
    }

    /// <summary>Ends without an answer.</summary>
    internal void Forget(IscsiTask task)
    {
        // Decided first: going on may bring a dropped task to the head of the window's queue, which releases it there.
        bool mayExecute = task.IsDispatched && !task.IsDone;
        bool mayRelease = !task.IsFilling && !task.IsQueued && !mayExecute;
        UnlinkAndGoOn(task);
        OnAnswered(task);
        if (mayRelease) Release(task);
    }

    /// <summary>Drops what the SCSI target has not seen of one connection.</summary>
    internal void DropUndispatchedOf(IscsiConnection connection)
    {
        foreach (IscsiTask task in _tasks.Values.ToArray())
        {
            if (!task.IsDispatched && task.Connection == connection) DropTask(task);
        }

        ReleaseDropped();
    }

    /// <summary>Dropped tasks do not wait for the window: who holds it may wait for them, as a logout waits for the other
    /// connections and reads no data meanwhile.</summary>
    private void ReleaseDropped()
    {
        List<IscsiTask> gone = [];
        for (int i = _waiting.Count; i > 0; i--)
        {
            IscsiTask task = _waiting.Dequeue();
            if (task.IsDropped) gone.Add(task);
            else _waiting.Enqueue(task);
        }

        foreach (IscsiTask task in gone) LeaveQueue(task);
    }

    /// <summary>Drops what the SCSI target has not seen of one logical unit, or of all.</summary>
    internal void DropUndispatched(ulong? lun)
    {
        foreach (IscsiTask task in _tasks.Values.ToArray())
        {
            if (!task.IsDispatched && !task.Command.IsSpared && (lun is null || task.Pdu.Lun == lun)) DropTask(task);
        }
    }

    /// <summary>Task management means the commands before it by number (RFC 7143, 11.5.1), not those that overtook it on
    /// another connection: these are left out until <see cref="SpareNone"/>.</summary>
    internal void SpareBehind(uint cmdSn)
    {
        if (_connections.Count == 1) return; // nothing overtakes
        foreach (IscsiTask task in _tasks.Values)
            task.Command.IsSpared = !task.Pdu.IsImmediate && !IscsiWire.IsBefore(task.Pdu.CmdSn, cmdSn);
    }

    internal void SpareNone()
    {
        if (_connections.Count == 1) return;
        foreach (IscsiTask task in _tasks.Values) task.Command.IsSpared = false;
    }

    /// <summary>Answers when the initiator has taken what was sent on the other connections up to now: the answer to task
    /// management must not overtake the answers of what it ended (RFC 7143, 4.2.3.3).</summary>
    internal async ValueTask WaitTakenAsync(IscsiConnection asking)
    {
        foreach (IscsiConnection connection in _connections.ToArray())
        {
            if (connection != asking) await connection.WaitTakenAsync();
        }
    }

    /// <summary>ABORT TASK as far as the transport has the task (RFC 7143, 11.6.1); null: ask the SCSI target.</summary>
    internal TaskFunctionResponse? AbortHere(in TaskManagementRequestPdu pdu)
    {
        if (_tasks.TryGetValue(pdu.ReferencedTag, out IscsiTask? task))
        {
            if (task.IsDone) return TaskFunctionResponse.NoTask; // its answer goes first
            if (task.IsDispatched) return null;
            DropTask(task);
            return TaskFunctionResponse.Complete;
        }

        // A command that got lost or is still on another connection counts as received and aborted.
        if (!IsNew(pdu.RefCmdSn) || !IscsiWire.IsBefore(pdu.RefCmdSn, pdu.CmdSn)) return TaskFunctionResponse.NoTask;
        Pass(pdu.RefCmdSn);
        return TaskFunctionResponse.Complete;
    }

    private int SlotOf(uint cmdSn) => (int)(cmdSn & (uint)(_ring.Length - 1));

    private void Place(uint cmdSn, object item)
    {
        _ring[SlotOf(cmdSn)] = item;
        while (_ring[SlotOf(ExpCmdSn)] is { } next && next != Reserved)
        {
            _ring[SlotOf(ExpCmdSn)] = null;
            ExpCmdSn++;
            if (next is IscsiTask task)
            {
                _inWindow++;
                DeliverNow(task);
            }
            else if (next is Action action)
            {
                action();
            }
        }

        for (int i = 0; i < _held.Count; i++)
        {
            if (IscsiWire.IsBefore(ExpCmdSn, _held[i].CmdSn)) continue;
            Action run = _held[i].Run;
            _held.RemoveAt(i--);
            run();
        }
    }

    private void DeliverNow(IscsiTask task)
    {
        task.IsDelivered = true;
        task.Previous = _lastUndispatched;
        if (_lastUndispatched is null) _firstUndispatched = task;
        else _lastUndispatched.Next = task;
        _lastUndispatched = task;
        if (task.Pdu.Attribute == TaskAttribute.Ordered) _orderedCount++;
        OnData(task);
    }

    /// <summary>Hands over what is complete, in order around ORDERED commands: their data is gathered here, so the SCSI target
    /// cannot know of the ones before it that still wait for theirs.</summary>
    private void Dispatch(IscsiTask complete)
    {
        if (_orderedCount == 0)
        {
            HandOver(complete);
            return;
        }

        while (NextInOrder() is { } task) HandOver(task);
    }

    private IscsiTask? NextInOrder()
    {
        bool isBlocked = false;
        for (IscsiTask? task = _firstUndispatched; task is not null; task = task.Next)
        {
            TaskAttribute attribute = task.Pdu.Attribute;
            bool isFree = attribute == TaskAttribute.HeadOfQueue
                || (!isBlocked && (attribute != TaskAttribute.Ordered || task == _firstUndispatched));
            if (isFree && task.IsComplete && task.HasEntered) return task;
            isBlocked |= attribute == TaskAttribute.Ordered;
        }

        return null;
    }

    private void HandOver(IscsiTask task)
    {
        Unlink(task);
        if (task.CostBytes > 0) task.Execute(); // its data is in the window already
        else Admit(task);
    }

    private void Unlink(IscsiTask task)
    {
        bool isLinked = task.Previous is not null || _firstUndispatched == task;
        if (!isLinked) return;
        if (task.Previous is null) _firstUndispatched = task.Next;
        else task.Previous.Next = task.Next;
        if (task.Next is null) _lastUndispatched = task.Previous;
        else task.Next.Previous = task.Previous;
        (task.Next, task.Previous) = (null, null);
        if (task.Pdu.Attribute == TaskAttribute.Ordered) _orderedCount--;
    }

    /// <summary>Waits for room in the window and goes on there: with the fetch of Data-Out, or with the execution.</summary>
    private void Admit(IscsiTask task)
    {
        if (task.IsQueued) return;
        task.IsQueued = true;
        _waiting.Enqueue(task);
        PumpWindow();
    }

    private void PumpWindow()
    {
        while (_waiting.TryPeek(out IscsiTask? task))
        {
            if (task.IsDropped)
            {
                _waiting.Dequeue();
                LeaveQueue(task);
                continue;
            }

            int cost = task.IsComplete ? task.Plan.InBytesMax : task.Wanted;

            // With an ORDERED command about, the ones that hold the window may wait for those that wait for it.
            bool isFull = _windowBytes > 0 && _windowBytes + cost > _options.WindowBytes;
            if (isFull && _orderedCount == 0) return;
            _waiting.Dequeue();
            LeaveQueue(task);
            task.CostBytes = cost;
            _windowBytes += cost;
            if (task.IsComplete) task.Execute();
            else Fetch(task);
        }
    }

    /// <summary>It waits no longer, for the window or for memory. Whoever dropped it meanwhile left it to this to release;
    /// unless its connection still receives into it, and then releases it.</summary>
    private void LeaveQueue(IscsiTask task)
    {
        task.IsQueued = false;
        if (task.IsDropped && !task.IsFilling) Release(task);
    }

    private void Fetch(IscsiTask task)
    {
        int bytes = task.Plan.Lead + task.Wanted;
        if (task.Command.OutBuffer is { } had && had.CapacityBytes >= bytes) BeginFetch(task, null);
        else if (Memory.RentSolicited(task, bytes) is { } buffer) BeginFetch(task, buffer);
        else task.IsQueued = true; // not to be released meanwhile
    }

    /// <summary>The memory for which it waited; null: it was dropped.</summary>
    internal void OnMemory(IscsiTask task, IoBuffer? buffer)
    {
        LeaveQueue(task);
        if (buffer is not null) BeginFetch(task, buffer);
    }

    /// <summary>A reader may wait for memory for this command's data: no other command of the session waits for data, which
    /// might stand behind this one, or whose turn may come after this one's.</summary>
    internal bool MayWaitForMemory(IscsiTask asking)
    {
        foreach (IscsiTask task in _tasks.Values)
        {
            if (task != asking && !task.IsDispatched && task.Wanted > 0) return false;
        }

        return true;
    }

    /// <summary>Once it is complete it can be handed over.</summary>
    internal bool IsNextInOrder(IscsiTask task) => _orderedCount == 0 || task == _firstUndispatched || !task.IsDelivered;

    private static void BeginFetch(IscsiTask task, IoBuffer? buffer)
    {
        ScsiCommand command = task.Command;
        if (buffer is not null)
        {
            int lead = task.Plan.Lead;
            if (command.OutBuffer is { } first)
            {
                first.Slice(command.OutStart, task.OutOffset).Span.CopyTo(buffer.Slice(lead, task.OutOffset).Span);
                first.Return();
            }

            (command.OutBuffer, command.OutStart) = (buffer, lead);
        }

        task.DataSn = 0;
        task.R2TOffset = task.OutOffset;
        task.Solicit();
    }

    private void DropTask(IscsiTask task)
    {
        if (task.IsDropped) return;
        task.IsDropped = true;
        GiveUpPlace(task);
        Forget(task);
        Memory.LookAgain();
    }

    /// <summary>Data-Out that is on its way has no task any more, and the number is passed.</summary>
    private void GiveUpPlace(IscsiTask task)
    {
        if (!task.IsComplete) AddGhost(task.Pdu.Tag);
        if (!task.IsDelivered && !task.Pdu.IsImmediate && _ring[SlotOf(task.Pdu.CmdSn)] == task)
            _ring[SlotOf(task.Pdu.CmdSn)] = Skip;
    }

    /// <summary>What waited for an ORDERED command that is gone, or what an ORDERED command waited for, goes on.</summary>
    private void UnlinkAndGoOn(IscsiTask task)
    {
        bool mayHold = _orderedCount > 0;
        Unlink(task);
        while (mayHold && !IsDropped && NextInOrder() is { } next) HandOver(next);
    }
}
