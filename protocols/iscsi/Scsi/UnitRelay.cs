using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Counts the commands of one unit. Called on the unit's loop; must not allocate.</summary>
public interface IUnitMeter
{
    /// <summary>A command has ended, <paramref name="durationNanos"/> after it was handed over, of which it waited
    /// <paramref name="queuedNanos"/> to be let in.</summary>
    void OnCommand(byte operationCode, ulong bytes, ulong durationNanos, ulong queuedNanos, bool hasFailed);
}

/// <summary>
/// The way from a target to a logical unit of another loop. Commands, task management and what concerns a nexus go there by
/// messages, in the order in which they were given, and their answers come back by messages. A command is copied, so that each
/// loop touches its own; its Data-Out is lent, and so is memory of the target's loop for its Data-In. Commands allocate nothing
/// once warm. What is called "there" runs on the unit's loop, everything else on the target's.
/// </summary>
internal sealed class UnitRelay(LogicalUnit unit, ILoop here)
{
    // The longest answer that is no data of the medium: REPORT LUNS with all that there may be.
    private const int AnswerBytesMax = 160 << 10;

    private readonly List<Call> _calls = []; // every one that was made
    private readonly List<Call> _atDoor = []; // there: what the volume has not let in yet
    private Call? _free;

    public LogicalUnit Unit => unit;

    /// <summary>Counts the commands there, or null.</summary>
    public IUnitMeter? Meter { get; set; }

    /// <summary>One nexus may have so many commands wait for the volume: they hold places in its session's window.</summary>
    public int AtDoorMax { get; set; } = int.MaxValue;

    private ILoop Here => here;

    private ILoop There => unit.Loop;

    /// <summary>What the unit keeps about the nexus. There it has a nexus of its own, which knows no other unit.</summary>
    public UnitNexus Attach(ScsiNexus nexus, ScsiTarget target, ulong lun, bool isReadOnly)
    {
        var twin = new ScsiNexus
        {
            InitiatorPort = nexus.InitiatorPort, InitiatorName = nexus.InitiatorName, PortalGroup = nexus.PortalGroup,
            OnEvent = nexus.OnEvent is not { } tell ? null : (where, code) => Here.PostFromAnywhere(() => tell(where, code)),
        };
        var state = new UnitNexus(unit, twin, target, lun) { IsReadOnly = isReadOnly, Relay = this };
        twin.TargetState = state;
        There.PostFromAnywhere(() => unit.Enlist(state));
        return state;
    }

    /// <summary>I_T nexus loss.</summary>
    public void Detach(UnitNexus nexus) => There.PostFromAnywhere(() =>
    {
        Withdraw(c => c.Nexus == nexus);
        unit.Detach(nexus);
    });

    /// <summary>Changes what the unit keeps about a nexus.</summary>
    public void Change(UnitNexus nexus, Action<UnitNexus> change) => There.PostFromAnywhere(() => change(nexus));

    /// <summary>As <see cref="IScsiTarget.ExecuteAsync"/>. <paramref name="luns"/>: what REPORT LUNS is to answer;
    /// <paramref name="copyUnits"/>: what EXTENDED COPY may reach.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<bool> ExecuteAsync(ScsiCommand command, UnitNexus nexus, ushort[]? luns = null, UnitNexus[]? copyUnits = null)
    {
        int bytes = Math.Min(unit.InBytesOf(command, out bool isMedium), isMedium ? int.MaxValue : AnswerBytesMax);
        IoBuffer? lent = bytes == 0 ? null : here.Buffers.TryRent(bytes);
        if (bytes > 0 && lent is null)
        {
            // To wait here would let task management overtake it.
            command.Status = ScsiStatus.TaskSetFull;
            return true;
        }

        Call call = Take();
        bool hasAnswer = await call.SendAsync(command, nexus, lent, luns, copyUnits);
        return call.Bug is null ? hasAnswer : throw new InvalidOperationException(call.Bug.Message, call.Bug);
    }

    /// <summary>As <see cref="LogicalUnit.ManageAsync"/>; hits what waits for the volume there too.</summary>
    public ValueTask<TaskFunctionResponse> ManageAsync(UnitNexus by, TaskFunction function, uint tag) => AskAsync(
        by,
        c => function switch
        {
            TaskFunction.AbortTask => c.Nexus == by && c.Tag == tag,
            TaskFunction.AbortTaskSet => c.Nexus == by,
            _ => true,
        },
        hit => hit > 0 && function == TaskFunction.AbortTask ? new(TaskFunctionResponse.Complete) : unit.ManageAsync(by, function, tag));

    /// <summary>As <see cref="LogicalUnit.Reset"/>, and waits for what it ended. <paramref name="by"/>: who asks, or null when the
    /// unit is none of his.</summary>
    public ValueTask<TaskFunctionResponse> ResetAsync(UnitNexus? by, ushort code) => AskAsync(by, static _ => true, async _ =>
    {
        unit.Reset(code);
        await unit.WaitForAbortedAsync();
        return TaskFunctionResponse.Complete;
    });

    /// <summary>The message leaves before this returns, so that it stays in its place among the commands.</summary>
    private ValueTask<TaskFunctionResponse> AskAsync(UnitNexus? by, Func<Call, bool> which, Func<int, ValueTask<TaskFunctionResponse>> ask)
    {
        HashSet<uint> spared = [.. _calls.Where(c => c.Nexus == by && c.Command is { IsSpared: true }).Select(c => c.Command!.Tag)];
        var done = new LoopEvent<(TaskFunctionResponse Response, Exception? Bug)>();
        There.PostFromAnywhere(() => _ = AskThereAsync(by, spared, which, ask, done));
        return EndAsync(done);
    }

    private static async ValueTask<TaskFunctionResponse> EndAsync(LoopEvent<(TaskFunctionResponse Response, Exception? Bug)> done)
    {
        (TaskFunctionResponse response, Exception? bug) = await done.WaitAsync();
        return bug is null ? response : throw new InvalidOperationException(bug.Message, bug);
    }

    private async Task AskThereAsync(
        UnitNexus? by, HashSet<uint> spared, Func<Call, bool> which, Func<int, ValueTask<TaskFunctionResponse>> ask,
        LoopEvent<(TaskFunctionResponse Response, Exception? Bug)> done)
    {
        TaskFunctionResponse response = TaskFunctionResponse.Rejected;
        Exception? bug = null;
        try
        {
            int hit = Withdraw(c => which(c) && !(c.Nexus == by && spared.Contains(c.Tag)));
            unit.Spare(by, spared, true);
            ValueTask<TaskFunctionResponse> asked = ask(hit);
            unit.Spare(by, spared, false);
            response = await asked;
        }
#pragma warning disable CA1031 // It ends the session that asked.
        catch (Exception e)
#pragma warning restore CA1031
        {
            bug = e;
        }

        // What it has ended goes back first: that is done further down on this stack.
        There.Post(() => Here.PostFromAnywhere(() => done.Set((response, bug))));
    }

    /// <summary>There: ends what the volume has not let in, without an answer.</summary>
    private int Withdraw(Func<Call, bool> which)
    {
        Call[] hit = [.. _atDoor.Where(which)];
        foreach (Call call in hit) call.Withdraw();
        return hit.Length;
    }

    /// <summary>There.</summary>
    private int CountAtDoor(UnitNexus nexus)
    {
        int count = 0;
        foreach (Call call in _atDoor) count += call.Nexus == nexus ? 1 : 0;
        return count;
    }

    private Call Take()
    {
        here.CheckHere();
        Call? call = _free;
        if (call is null)
        {
            call = new Call(this);
            _calls.Add(call);
        }

        _free = call.Next;
        return call;
    }

    /// <summary>One command under way. Touched by one loop at a time but for what is said to be of this one: the message hands it
    /// over.</summary>
    private sealed class Call : LoopOperation<bool>
    {
        private readonly UnitRelay _owner;
        private readonly Action _go, _end, _comeBack;
        private readonly AdmissionWaiter _turn;
        private readonly ScsiCommand _twin = new() { Nexus = null! };
        private ValueTaskAwaiter<bool> _running; // mutable struct: never readonly
        private ScsiPlan _plan;
        private IoBuffer? _lent;
        private ulong _sinceNanos, _queuedNanos;
        private bool _isInside, _hasAnswer;

        public Call(UnitRelay owner)
        {
            _owner = owner;
            (_go, _end, _comeBack) = (Go, End, ComeBack);
            _turn = new AdmissionWaiter(() =>
            {
                _owner._atDoor.Remove(this);
                (_isInside, _queuedNanos) = (true, _turn!.WaitedNanos);
                Run();
            });
        }

        /// <summary>Of the target's loop: the command that it stands for; null when it is free.</summary>
        public ScsiCommand? Command { get; private set; }

        public UnitNexus? Nexus { get; private set; }

        public uint Tag => _twin.Tag;

        public Exception? Bug { get; private set; }

        public Call? Next { get; private set; }

        public ValueTask<bool> SendAsync(ScsiCommand command, UnitNexus nexus, IoBuffer? lent, ushort[]? luns, UnitNexus[]? copyUnits)
        {
            (Command, Nexus, _lent, Bug) = (command, nexus, lent, null);
            (_twin.Nexus, _twin.Lun, _twin.Attribute, _twin.Tag) = (nexus.Nexus, command.Lun, command.Attribute, command.Tag);
            command.Cdb.AsSpan().CopyTo(_twin.Cdb);
            _twin.CdbLength = command.CdbLength;
            (_twin.OutBuffer, _twin.OutStart, _twin.OutLength) = (command.OutBuffer, command.OutStart, command.OutLength);
            (_twin.OutOfferedBytes, _twin.Lent, _twin.Luns, _twin.CopyUnits) = (command.OutOfferedBytes, lent, luns, copyUnits);
            (_twin.InBuffer, _twin.InStart, _twin.InLength) = (null, 0, 0);
            (_twin.Status, _twin.SenseLength, _twin.IsAborted, _twin.IsSpared) = (ScsiStatus.Good, 0, false, false);
            ValueTask<bool> answer = Begin();
            _owner.There.PostFromAnywhere(_go);
            return answer;
        }

        /// <summary>There.</summary>
        public void Withdraw()
        {
            _plan.Admission!.Withdraw(_turn);
            _owner._atDoor.Remove(this);
            _twin.IsAborted = true;
            GoBack(false);
        }

        protected override void OnTaken()
        {
            Next = _owner._free;
            _owner._free = this;
        }

        private void Go()
        {
            (_sinceNanos, _queuedNanos, _isInside) = (_owner.There.NowNanos, 0, false);
            _plan = _owner.Unit.PlanAndCharge(_twin);
            if (_plan.Admission is not { } door)
            {
                Run();
            }
            else if (door.Enter(_turn, _plan.ChargedBytes))
            {
                _isInside = true;
                Run();
            }
            else
            {
                _owner._atDoor.Add(this);
                if (_owner.CountAtDoor(Nexus!) <= _owner.AtDoorMax) return;
                door.Withdraw(_turn);
                _owner._atDoor.Remove(this);
                _twin.Status = ScsiStatus.TaskSetFull;
                GoBack(true);
            }
        }

        // No async method: its machine would be of the wrong thread's pool.
        private void Run()
        {
            try
            {
#pragma warning disable CA2012 // Asked once, in End.
                _running = _owner.Unit.ExecuteAsync(_twin, Nexus!).GetAwaiter();
#pragma warning restore CA2012
            }
#pragma warning disable CA1031 // It ends the session of the command, on the other loop.
            catch (Exception bug)
#pragma warning restore CA1031
            {
                Bug = bug;
                GoBack(false);
                return;
            }

            if (_running.IsCompleted) End();
            else _running.UnsafeOnCompleted(_end);
        }

        private void End()
        {
            bool hasAnswer = false;
            try
            {
                hasAnswer = _running.GetResult();
                Check.That(_twin.InBuffer is null || _twin.InBuffer == _lent);
            }
#pragma warning disable CA1031 // As in Run.
            catch (Exception bug)
#pragma warning restore CA1031
            {
                Bug = bug;
            }

            bool hasFailed = _twin.Status is not (ScsiStatus.Good or ScsiStatus.ConditionMet);
            if (hasAnswer)
            {
                _owner.Meter?.OnCommand(
                    _twin.Cdb[0], (uint)Math.Max(_twin.InLength, _twin.OutLength), _owner.There.NowNanos - _sinceNanos, _queuedNanos, hasFailed);
            }

            GoBack(hasAnswer);
        }

        private void GoBack(bool hasAnswer)
        {
            _hasAnswer = hasAnswer;
            if (_isInside) _plan.Admission!.Exit(_plan.ChargedBytes);
            _isInside = false;
            _owner.Here.PostFromAnywhere(_comeBack);
        }

        private void ComeBack()
        {
            ScsiCommand command = Command!;
            (command.Status, command.SenseLength, command.IsAborted) = (_twin.Status, _twin.SenseLength, _twin.IsAborted);
            _twin.Sense.AsSpan(0, _twin.SenseLength).CopyTo(command.Sense);
            if (_twin.InBuffer is not null && Bug is null)
                (command.InBuffer, command.InStart, command.InLength) = (_lent, _twin.InStart, _twin.InLength);
            else
                _lent?.Return();
            (_lent, _twin.Lent, _twin.InBuffer, _twin.OutBuffer) = (null, null, null, null);
            (_twin.Luns, _twin.CopyUnits) = (null, null);
            (Command, Nexus) = (null, null);
            Complete(_hasAnswer);
        }
    }
}
