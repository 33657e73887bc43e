using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>
/// One session of a simulated initiator (RFC 7143): its connections, the window, its tasks, and everything that a target
/// must not do to them. A second state machine, written against the RFC and not against the product.
/// </summary>
internal sealed class SimSession(SessionSimulation world, string initiatorName, ulong isid, SessionKeys keys)
{
    private const ulong PatienceNanos = 90_000_000_000;

    private readonly List<SimLink> _links = [];
    private readonly Dictionary<uint, SimTask> _tasks = [];
    private readonly List<SimTask> _lost = []; // with a connection that the session outlived
    private readonly Dictionary<uint, string> _abortedBy = [];
    private readonly Dictionary<uint, (SimLink Link, LoopEvent<byte[]?> Answered)> _requests = []; // task management, logout
    private readonly Queue<LoopEvent<bool>> _windowWaiters = new();
    private uint _cmdSn, _expCmdSn, _maxCmdSn;
    private uint _tag = 1;
    private ushort _nextCid = 1;

    public string InitiatorName { get; } = initiatorName;

    public ulong Isid { get; } = isid;

    public SessionKeys Keys { get; } = keys;

    public ushort Tsih { get; private set; }

    public bool IsDead { get; private set; }

    public IReadOnlyList<SimLink> Links => _links;

    /// <summary>Changes whose end the initiator does not know: they may happen until the target has let go of the connection.</summary>
    public List<(SimLink? Link, VolumeModel Volume, ModelWrite Write)> Unsettled { get; } = [];

    /// <summary>What the target owes to this nexus.</summary>
    public Dictionary<ulong, AttentionOracle> Attentions { get; } = [];

    /// <summary>Events that the target may tell yet, by LUN.</summary>
    public Dictionary<ulong, int> Events { get; } = [];

    /// <summary>Logs in; false when it was refused or broke.</summary>
    public async Task<bool> OpenAsync()
    {
        _cmdSn = world.Dice.NextChance(0.2) ? 0xFFFFFFF0 : (uint)world.Dice.NextUInt64(); // also around the wrap
        (_expCmdSn, _maxCmdSn) = (_cmdSn, _cmdSn);
        var link = new SimLink(world, this, world.Connect(), _nextCid++);
        LoginResponsePdu? response = await link.LoginAsync(0, _cmdSn, isLeading: true);
        if (response is not { Status: IscsiLoginStatus.Success })
        {
            link.Die();
            IsDead = true;
            return false;
        }

        Tsih = response.Value.Tsih;
        NoteWindow(response.Value.Numbers);
        _links.Add(link);
        world.Spawn(link.ServeAsync);
        return true;
    }

    /// <summary>Adds a connection; <paramref name="instead"/> gives up its place to it.</summary>
    public async Task<bool> JoinAsync(SimLink? instead = null)
    {
        var link = new SimLink(world, this, world.Connect(), instead?.Cid ?? _nextCid++);
        if (instead is not null) instead.IsLeaving = true;
        LoginResponsePdu? response = await link.LoginAsync(Tsih, _cmdSn, isLeading: false);
        if (response is not { Status: IscsiLoginStatus.Success } || IsDead)
        {
            link.Die();
            instead?.Die(); // whether it is still served nobody knows, and nothing more is sent on it
            return false;
        }

        if (instead is not null)
        {
            // The target answers when the commands of the old one have ended.
            instead.Die();
            world.Settle(this, instead);
            world.Spawn(() => PlugAsync(instead));
            world.Counters[SessionDid.ConnectionReinstatements]++;
        }

        world.Counters[SessionDid.Joins]++;
        if (response.Value.Tsih != Tsih) Wrong($"a connection joined session {response.Value.Tsih} instead of {Tsih}");
        _links.Add(link);
        world.Spawn(link.ServeAsync);
        return true;
    }

    /// <summary>Runs a SCSI command to its end. <paramref name="started"/> is told about the task.</summary>
    public async Task<TaskAnswer> RunAsync(
        ulong lun, byte[] cdb, int expectedIn = 0, byte[]? dataOut = null, Action<SimTask>? started = null,
        TaskAttribute attribute = TaskAttribute.Simple, SimLink? on = null)
    {
        while (!IsDead && IscsiWire.IsBefore(_maxCmdSn, _cmdSn))
        {
            var waiter = new LoopEvent<bool>();
            _windowWaiters.Enqueue(waiter);
            await waiter.WaitAsync();
        }

        if (IsDead || PickLink(on) is not { } link) return Lost;
        var task = new SimTask(_tag++, _cmdSn++, lun, link, dataOut, dataOut?.Length ?? expectedIn);
        _tasks.Add(task.Tag, task);
        SendCommand(task, cdb, attribute);
        started?.Invoke(task);
        LoopTimer patience = world.Loop.CreateTimer(() => world.Spawn(() => AskAfterAsync(task)));
        patience.Start(PatienceNanos);
        TaskAnswer answer = await task.Done.WaitAsync();
        patience.Stop();
        return answer;
    }

    /// <summary>A task management function; null when its connection ended. What it ended is finished as aborted.</summary>
    public async Task<TaskFunctionResponse?> ManageAsync(TaskFunction function, ulong lun, SimTask? task = null)
    {
        if (IsDead || PickLink(task?.Link) is not { } link) return null;
        uint tag = _tag++, cmdSn = _cmdSn;
        bool isSet = function != TaskFunction.AbortTask;
        bool isTarget = function is TaskFunction.TargetWarmReset or TaskFunction.TargetColdReset;
        SimTask[] hit =
            [.. _tasks.Values.Where(t => isSet ? (isTarget || t.Lun == lun) && IscsiWire.IsBefore(t.CmdSn, cmdSn) : t == task)];
        if (isSet)
        {
            foreach (SimTask one in hit) one.MayVanish = true; // another function may find them gone already
        }

        var pdu = new TaskManagementRequestPdu(
            true, function, lun, tag, task?.Tag ?? IscsiWire.NoTag, cmdSn, link.ExpStatSn, task?.CmdSn ?? 0);
        var answered = new LoopEvent<byte[]?>();
        _requests.Add(tag, (link, answered));
        link.Send(b => pdu.WriteTo(b));
        byte[]? bhs = await answered.WaitAsync();
        if (bhs is null) return null;
        TaskFunctionResponse response = TaskManagementResponsePdu.Read(bhs).Response;
        if (response == TaskFunctionResponse.Complete)
        {
            foreach (SimTask gone in hit) Abort(gone, $"{function} on connection {link.Cid}");
        }
        else if (response == TaskFunctionResponse.NoTask && task is { IsFinished: false })
        {
            // Nothing is known of it there, and its answer would have come first on this connection; unless the target is about
            // to stop, which drops what has not begun.
            if (!task.MayVanish && !world.IsStopping) world.Violate(ViolationKind.Hang, $"{InitiatorName}: task {task.Tag} was never answered and is gone");
            Abort(task, $"{function}, NoTask");
        }

        return response;
    }

    /// <summary>Logs a connection or the whole session out; null when the connection ended first.</summary>
    public async Task<IscsiLogoutResponse?> LogoutAsync(IscsiLogoutReason reason, SimLink on, ushort cid)
    {
        uint tag = _tag++;
        var answered = new LoopEvent<byte[]?>();
        _requests.Add(tag, (on, answered));
        bool isWhole = reason == IscsiLogoutReason.CloseSession;
        foreach (SimLink link in _links) link.IsLeaving |= isWhole || link.Cid == cid;
        var pdu = new LogoutRequestPdu(true, reason, tag, cid, _cmdSn, on.ExpStatSn);
        on.Send(b => pdu.WriteTo(b));
        byte[]? bhs = await answered.WaitAsync();
        return bhs is null ? null : LogoutResponsePdu.Read(bhs).Response;
    }

    /// <summary>Gives up the numbers of commands that went down with a connection, or those behind would wait for them.</summary>
    public async Task PlugAsync(SimLink gone)
    {
        foreach (SimTask task in _lost.Where(t => t.Link == gone).ToArray())
        {
            if (IsDead || PickLink(null) is not { } link) return;
            _lost.Remove(task);
            if (IscsiWire.IsBefore(task.CmdSn, _expCmdSn)) continue;
            uint tag = _tag++;
            var answered = new LoopEvent<byte[]?>();
            _requests.Add(tag, (link, answered));
            var pdu = new TaskManagementRequestPdu(
                true, TaskFunction.AbortTask, task.Lun, tag, task.Tag, _cmdSn, link.ExpStatSn, task.CmdSn);
            link.Send(b => pdu.WriteTo(b));
            if (await answered.WaitAsync() is not { } bhs) return;
            TaskFunctionResponse response = TaskManagementResponsePdu.Read(bhs).Response;
            if (response is not (TaskFunctionResponse.Complete or TaskFunctionResponse.NoTask)) Wrong($"giving up a number was answered {response}");
        }
    }

    /// <summary>Leaves without a word.</summary>
    public void Abandon()
    {
        foreach (SimLink link in _links.ToArray()) link.Die();
    }

    /// <summary>Another session asked for the end of tasks of this unit.</summary>
    public void OnForeignAbort(ulong? lun)
    {
        foreach (SimTask task in _tasks.Values) task.MayVanish |= lun is null || task.Lun == lun;
    }

    private void TakeEvent(ulong lun, byte[] data)
    {
        world.Counters[SessionDid.Events]++;
        bool isSense = data.Length == 20 && data is [0, 18, 0x70, ..] && (data[4] & 0x0F) == 6;
        int code = isSense ? data[14] << 8 | data[15] : 0;
        int left = Events.GetValueOrDefault(lun);
        Events[lun] = left - 1;
        if (code != SimUnit.LowSpace || left <= 0)
            world.Violate(ViolationKind.WrongAttention, $"{InitiatorName}: LUN field {lun:x} told the event {code:x4} without a cause");
    }

    /// <summary>Whatever a connection received.</summary>
    public void Take(SimLink link, byte[] bhs, byte[] data)
    {
        uint tag = IscsiHeader.Read(bhs).InitiatorTaskTag;
        IscsiOpcode opcode = IscsiHeader.Read(bhs).Opcode;
        switch (opcode)
        {
            case IscsiOpcode.NopIn when tag == IscsiWire.NoTag:
                uint transferTag = NopInPdu.Read(bhs).TransferTag;
                var answer = new NopOutPdu(true, 0, IscsiWire.NoTag, transferTag, _cmdSn, link.ExpStatSn);
                if (transferTag != IscsiWire.NoTag) link.Send(b => answer.WriteTo(b, 0));
                return;
            case IscsiOpcode.TaskManagementResponse or IscsiOpcode.LogoutResponse:
                if (_requests.Remove(tag, out (SimLink Link, LoopEvent<byte[]?> Answered) waiter)) waiter.Answered.Set(bhs);
                else Wrong($"{opcode} for tag {tag}, which nobody sent");
                return;
            case IscsiOpcode.AsyncMessage when AsyncMessagePdu.Read(bhs).Event == IscsiAsyncEvent.ScsiEvent:
                TakeEvent(AsyncMessagePdu.Read(bhs).Lun, data);
                return;
            case IscsiOpcode.AsyncMessage:
                // The target leaves: what it has not begun it drops.
                foreach (SimLink one in _links) one.IsLeaving = true;
                foreach (SimTask left in _tasks.Values) left.MayVanish = true;
                return;
            case IscsiOpcode.R2T or IscsiOpcode.DataIn or IscsiOpcode.ScsiResponse:
                break;
            default:
                Wrong($"{opcode} out of nothing{(opcode == IscsiOpcode.Reject ? $": {RejectPdu.Read(bhs).Reason} {(IscsiOpcode)(data[0] & 0x3F)}" : "")}");
                return;
        }

        if (!_tasks.TryGetValue(tag, out SimTask? task))
        {
            if (link.IsLeaving) return; // a logout does not wait for what the network still carries on other connections
            bool isAborted = _abortedBy.ContainsKey(tag);
            world.Violate(
                isAborted ? ViolationKind.AnswerAfterAbort : ViolationKind.WrongProtocol,
                $"{InitiatorName}: {opcode} for task {tag} on connection {link.Cid} of {_nextCid - 1}, "
                    + (isAborted ? $"after the answer to its abort by {_abortedBy[tag]}" : "which has none"));
            return;
        }

        if (task.Link != link) Wrong($"task {tag} was answered on connection {link.Cid}, sent on {task.Link.Cid}");
        if (opcode == IscsiOpcode.R2T) TakeR2T(task, R2TPdu.Read(bhs));
        else if (opcode == IscsiOpcode.DataIn) TakeDataIn(task, DataInPdu.Read(bhs), data);
        else TakeResponse(task, ScsiResponsePdu.Read(bhs), data);
    }

    /// <summary>ExpCmdSN is never ahead of what was sent, the window never wider than it may be; of several connections the
    /// newest counts.</summary>
    public void NoteWindow(IscsiNumbers numbers)
    {
        if (IscsiWire.IsBefore(_cmdSn, numbers.ExpCmdSn)) Wrong($"ExpCmdSN {numbers.ExpCmdSn} is ahead of CmdSN {_cmdSn}");
        if (numbers.MaxCmdSn - numbers.ExpCmdSn + 1 > 128) Wrong($"the window is {numbers.ExpCmdSn} to {numbers.MaxCmdSn}");
        if (IscsiWire.IsBefore(_expCmdSn, numbers.ExpCmdSn)) _expCmdSn = numbers.ExpCmdSn;
        if (IscsiWire.IsBefore(_maxCmdSn, numbers.MaxCmdSn)) _maxCmdSn = numbers.MaxCmdSn;
        int room = (int)(_maxCmdSn - _cmdSn) + 1;
        while (room-- > 0 && _windowWaiters.TryDequeue(out LoopEvent<bool>? waiter)) waiter.Set(true);
    }

    /// <summary>A connection ended. At error recovery level 0 the session goes with it, unless it was to leave.</summary>
    public void OnDead(SimLink link)
    {
        if (!_links.Remove(link)) return; // it never joined
        foreach (SimTask task in _tasks.Values.Where(t => t.Link == link).ToArray())
        {
            _tasks.Remove(task.Tag);
            _lost.Add(task);
            task.Finish(Lost);
        }

        foreach (uint tag in _requests.Where(r => r.Value.Link == link).Select(r => r.Key).ToArray())
        {
            if (_requests.Remove(tag, out (SimLink Link, LoopEvent<byte[]?> Answered) request)) request.Answered.Set(null);
        }

        if (link.IsLeaving && _links.Count > 0) return;
        IsDead = true;
        Abandon();
        if (_links.Count > 0) return;
        while (_windowWaiters.TryDequeue(out LoopEvent<bool>? waiter)) waiter.Set(false);
    }

    private static TaskAnswer Lost { get; } = new(TaskEnd.Lost, ScsiStatus.Good, [], []);

    private SimLink? PickLink(SimLink? wanted)
    {
        if (wanted is { IsDead: false, IsLeaving: false }) return wanted;
        SimLink[] open = [.. _links.Where(l => !l.IsDead && !l.IsLeaving)];
        return wanted is not null || open.Length == 0 ? null : open[world.Dice.NextBelow(open.Length)];
    }

    private void SendCommand(SimTask task, byte[] cdb, TaskAttribute attribute)
    {
        int length = task.DataOut?.Length ?? 0;
        int immediate = Keys.ImmediateData ? Math.Min(Math.Min(length, Keys.FirstBurst), Keys.MaxSend) : 0;
        if (immediate > 0 && !Keys.InitialR2T && world.Dice.NextChance(0.2)) immediate = immediate / 512 / 2 * 512;
        int unsolicited = Keys.InitialR2T ? immediate : Math.Min(length, Keys.FirstBurst);
        bool isFinal = unsolicited == immediate;
        task.R2TOffset = unsolicited;
        var pdu = new ScsiCommandPdu(
            false, isFinal, task.DataOut is null && task.Expected > 0, task.DataOut is not null, attribute, task.Lun, task.Tag,
            (uint)task.Expected, task.CmdSn, task.Link.ExpStatSn);
        bool isTwice = isFinal && world.Dice.NextChance(0.03);
        if (isTwice)
        {
            world.Counters[SessionDid.Repetitions]++;
            task.Link.SendTwice(b => pdu.WriteTo(b, cdb, 0), task.DataOut.AsSpan(0, immediate));
        }
        else
        {
            task.Link.Send(b => pdu.WriteTo(b, cdb, 0), task.DataOut.AsSpan(0, immediate));
        }

        if (!isFinal) SendBurst(task, IscsiWire.NoTag, immediate, unsolicited);
    }

    private void SendBurst(SimTask task, uint transferTag, int from, int to)
    {
        task.Bursts.Enqueue((transferTag, from, to));
        if (!task.IsSending) world.Spawn(() => SendBurstsAsync(task));
    }

    /// <summary>One burst after the other, in pieces of drawn lengths, other traffic in between.</summary>
    private async Task SendBurstsAsync(SimTask task)
    {
        task.IsSending = true;
        while (task.Bursts.TryDequeue(out (uint TransferTag, int From, int To) burst))
        {
            bool isSpoiled = world.Dice.NextChance(0.01);
            int hole = isSpoiled ? world.Dice.NextBelow(3) : -1;
            uint dataSn = 0;
            for (int at = burst.From; at < burst.To && !task.Link.IsDead;)
            {
                if (task.IsFinished && _abortedBy.ContainsKey(task.Tag)) return; // nothing more after the answer to an abort
                if (hole-- == 0 || (isSpoiled && hole >= 0 && burst.To - at <= 512))
                {
                    (hole, isSpoiled) = (-1, false);
                    task.IsSpoiled = true;
                    dataSn++;
                }

                int most = Math.Min(Keys.MaxSend, burst.To - at);
                int piece = world.Dice.NextChance(0.5) ? most : Math.Max(1, most / 512 * 512 / (1 + world.Dice.NextBelow(3)));
                var pdu = new DataOutPdu(
                    at + piece == burst.To, 0, task.Tag, burst.TransferTag, task.Link.ExpStatSn, dataSn++, (uint)at);
                task.Link.Send(b => pdu.WriteTo(b, 0), task.DataOut.AsSpan(at, piece));
                at += piece;
                if (world.Dice.NextChance(0.3)) await world.Loop.DelayAsync(1 + world.Dice.NextBelow(100_000UL));
            }
        }

        task.IsSending = false;
    }

    private void TakeR2T(SimTask task, in R2TPdu r2t)
    {
        if (task.DataOut is null || r2t.R2TSn != task.R2TSn++ || r2t.Offset != (uint)task.R2TOffset || r2t.LengthBytes == 0
            || r2t.LengthBytes > (uint)Keys.MaxBurst || r2t.Offset + r2t.LengthBytes > (uint)task.DataOut.Length)
        {
            Wrong($"{r2t} for task {task.Tag}, of which {task.R2TOffset} bytes were asked for");
            return;
        }

        int open = task.Bursts.Count + (task.IsSending ? 1 : 0);
        if (open > 0) world.Counters[SessionDid.ParallelR2Ts]++;
        if (open >= Keys.MaxOutstandingR2T + 1) Wrong($"{open + 1} R2Ts of task {task.Tag} at once");
        task.R2TOffset += (int)r2t.LengthBytes;
        SendBurst(task, r2t.TransferTag, (int)r2t.Offset, task.R2TOffset);
    }

    private void TakeDataIn(SimTask task, in DataInPdu pdu, byte[] data)
    {
        task.BurstBytes += data.Length;
        bool fits = task.DataOut is null && pdu.DataSn == task.DataInSn++ && pdu.Offset == task.DataIn.Length
            && task.DataIn.Length + data.Length <= task.Expected && task.BurstBytes <= Keys.MaxBurst && data.Length <= Keys.MaxReceive;
        if (!fits) Wrong($"{pdu} with {data.Length} bytes for task {task.Tag}, of which {task.DataIn.Length} of {task.Expected} have come");
        task.DataIn.Write(data);
        if (pdu.IsFinal) task.BurstBytes = 0;
        if (pdu.HasStatus) Answer(task, pdu.Status, [], pdu.Residual);
    }

    private void TakeResponse(SimTask task, in ScsiResponsePdu pdu, byte[] data)
    {
        if (pdu.Response != 0) Wrong($"response {pdu.Response} for task {task.Tag}");
        if (pdu.ExpDataSn != task.DataInSn + task.R2TSn) Wrong($"ExpDataSN {pdu.ExpDataSn} for task {task.Tag}");
        if (data.Length is 1 or > 0 && data.Length != 2 + (data[0] << 8 | data[1])) Wrong("the sense segment does not fit its length");
        Answer(task, pdu.Status, data.Length > 2 ? data[2..] : [], pdu.Residual);
    }

    private void Answer(SimTask task, ScsiStatus status, byte[] sense, Residual residual)
    {
        _tasks.Remove(task.Tag);
        bool isGood = status == ScsiStatus.Good;
        if (isGood && task.DataOut is null && residual != Residual.Of((uint)task.Expected, (uint)task.DataIn.Length))
            Wrong($"{residual} of task {task.Tag}, of which {task.DataIn.Length} of {task.Expected} have come");
        if (isGood && task.DataOut is not null && residual.Bytes != 0) Wrong($"{residual} of write {task.Tag}");
        if (isGood && task.IsSpoiled) world.Violate(ViolationKind.WrongAnswer, $"{InitiatorName}: task {task.Tag} is GOOD with a hole in its DataSN");
        var answer = new TaskAnswer(TaskEnd.Answered, status, task.DataIn.ToArray(), sense);
        if (task.IsSpoiled && answer is { Key: 0x0B, Code: 0x4705 }) world.Counters[SessionDid.LostData]++;
        world.Counters[SessionDid.Commands]++;
        task.Finish(answer);
    }

    private void Abort(SimTask task, string by)
    {
        if (task.IsFinished) return;
        _tasks.Remove(task.Tag);
        _abortedBy.Add(task.Tag, by);
        task.Finish(new TaskAnswer(TaskEnd.Aborted, ScsiStatus.Good, [], []));
    }

    /// <summary>What an initiator does with a command that takes too long: it aborts it.</summary>
    private async Task AskAfterAsync(SimTask task)
    {
        if (task.IsFinished || IsDead) return;
        if (task.MayVanish) world.Counters[SessionDid.Vanished]++;
        else world.Violate(ViolationKind.Hang, $"{InitiatorName}: task {task.Tag} has no answer after {PatienceNanos / 1_000_000_000} s");
        if (await ManageAsync(TaskFunction.AbortTask, task.Lun, task) is null) return; // lost with its connection
    }

    private void Wrong(string what) => world.Violate(ViolationKind.WrongProtocol, $"{InitiatorName}: {what}");
}
