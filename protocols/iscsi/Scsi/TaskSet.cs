using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>One command in a task set; pooled by the set. Awaited by its command while it waits.</summary>
internal sealed class ScsiTask : LoopOperation<bool>
{
    public ScsiCommand Command { get; set; } = null!;

    public UnitNexus Nexus { get; set; } = null!;

    public ScsiTask? Previous { get; set; }

    public ScsiTask? Next { get; set; }

    public ulong Sequence { get; set; }

    /// <summary>May run: nothing older holds it back.</summary>
    public bool IsStarted { get; set; }

    /// <summary>Aborted by another nexus while TAS was set: the answer is TASK ABORTED.</summary>
    public bool SaysAborted { get; set; }

    public bool IsHead => Command.Attribute == TaskAttribute.HeadOfQueue;

    public bool IsOrdered => Command.Attribute is TaskAttribute.Ordered or TaskAttribute.Aca;
}

/// <summary>
/// The commands of one logical unit that have not ended (SAM-5, 8). Simple ones run at once unless an ordered or a head
/// of queue one is there; an ordered one waits for all older ones and holds back all younger. Lives on one loop and
/// allocates nothing once warm.
/// </summary>
internal sealed class TaskSet
{
    private readonly List<(ulong Below, LoopEvent<bool> Done)> _barriers = [];
    private ScsiTask? _first, _last, _free;
    private ulong _sequence;
    private int _ordered, _heads, _waiting;

    public int Count { get; private set; }

    /// <summary>Takes a command in; when the task is not started, await it: true means run, false aborted.</summary>
    public ScsiTask Enter(ScsiCommand command, UnitNexus nexus)
    {
        ScsiTask task = Add(command, nexus);
        bool isAlone = Count == 1;
        task.IsStarted = task.IsHead || (task.IsOrdered ? isAlone : _ordered == 0 && _heads == 0);
        if (task.IsHead) _heads++;
        else if (task.IsOrdered) _ordered++;
        if (!task.IsStarted) _waiting++;
        return task;
    }

    /// <summary>Takes in what a copy does here for a command of another task set, or of this one: it waits for nobody, since its
    /// command has waited. The attribute is to be SIMPLE.</summary>
    public ScsiTask Join(ScsiCommand command, UnitNexus nexus)
    {
        ScsiTask task = Add(command, nexus);
        task.IsStarted = true;
        return task;
    }

    private ScsiTask Add(ScsiCommand command, UnitNexus nexus)
    {
        ScsiTask task = _free ?? new ScsiTask();
        _free = task.Next;
        (task.Command, task.Nexus, task.Sequence, task.SaysAborted) = (command, nexus, ++_sequence, false);
        (task.Previous, task.Next) = (_last, null);
        if (_last is null) _first = task;
        else _last.Next = task;
        _last = task;
        Count++;
        return task;
    }

    /// <summary>The command ended; what it held back starts.</summary>
    public void Leave(ScsiTask task)
    {
        if (task.Previous is null) _first = task.Next;
        else task.Previous.Next = task.Next;
        if (task.Next is null) _last = task.Previous;
        else task.Next.Previous = task.Previous;
        Count--;
        if (task.IsHead) _heads--;
        else if (task.IsOrdered) _ordered--;
        if (!task.IsStarted) _waiting--;
        task.Command.TargetState = null;
        (task.Command, task.Nexus) = (null!, null!);
        (task.Previous, task.Next) = (null, _free);
        _free = task;
        if (_waiting > 0) StartWaiting();
        if (_barriers.Count > 0) CheckBarriers();
    }

    /// <summary>Marks the tasks for which <paramref name="which"/> holds, wakes those that wait, and answers how many.</summary>
    public int Abort(Func<ScsiTask, bool> which, UnitNexus? by, bool says, ScsiTask? except = null)
    {
        var hit = new List<ScsiTask>();
        for (ScsiTask? task = _first; task is not null; task = task.Next)
        {
            if (task != except && !task.Command.IsAborted && !task.Command.IsSpared && which(task)) hit.Add(task);
        }

        foreach (ScsiTask task in hit)
        {
            task.Command.IsAborted = true;
            task.SaysAborted = says && task.Nexus != by;
        }

        foreach (ScsiTask task in hit)
        {
            if (task.IsPending) task.Complete(false);
        }

        return hit.Count;
    }

    /// <summary>Answers when every task that is marked as aborted now has left.</summary>
    public ValueTask<bool> WaitForAbortedAsync()
    {
        if (!HasAborted(_sequence)) return new ValueTask<bool>(true);
        var done = new LoopEvent<bool>();
        _barriers.Add((_sequence, done));
        return done.WaitAsync();
    }

    /// <summary>The commands of a nexus with those tags are not meant by what is asked next, or (false) they are again.</summary>
    public void Spare(UnitNexus? nexus, HashSet<uint> tags, bool isSpared)
    {
        if (tags.Count == 0) return;
        for (ScsiTask? task = _first; task is not null; task = task.Next)
        {
            if (task.Nexus == nexus && tags.Contains(task.Command.Tag)) task.Command.IsSpared = isSpared;
        }
    }

    public ScsiTask? Find(Func<ScsiTask, bool> which)
    {
        for (ScsiTask? task = _first; task is not null; task = task.Next)
        {
            if (which(task)) return task;
        }

        return null;
    }

    private bool HasAborted(ulong below)
    {
        for (ScsiTask? task = _first; task is not null && task.Sequence <= below; task = task.Next)
        {
            if (task.Command.IsAborted) return true;
        }

        return false;
    }

    private void CheckBarriers()
    {
        for (int i = _barriers.Count - 1; i >= 0; i--)
        {
            (ulong below, LoopEvent<bool> done) = _barriers[i];
            if (HasAborted(below)) continue;
            _barriers.RemoveAt(i);
            done.Set(true);
        }
    }

    /// <summary>Starting runs a command inline, which may leave the set at once: begin anew after each.</summary>
    private void StartWaiting()
    {
        while (_waiting > 0 && NextToStart() is { } task)
        {
            task.IsStarted = true;
            _waiting--;
            if (task.IsPending) task.Complete(true);
        }
    }

    private ScsiTask? NextToStart()
    {
        if (_heads > 0) return null;
        bool isOldest = true;
        for (ScsiTask? task = _first; task is not null; task = task.Next)
        {
            if (task.IsOrdered) return isOldest && !task.IsStarted ? task : null;
            if (!task.IsStarted) return task;
            isOldest = false;
        }

        return null;
    }
}
