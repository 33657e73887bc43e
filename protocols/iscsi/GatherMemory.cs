using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// The memory into which the commands of one loop, of all its targets and sessions, gather their Data-Out until they are handed
/// to the SCSI target. Lives on the loop.
/// <para>Why no cycle of waits exists. Memory comes from the loop's pool, within a bound that leaves the largest request to
/// what is executed (which therefore never waits for what is gathered), or else from a spare of one largest request.
/// Whoever holds some of the spare ends without more memory: it has all that it needs at once; nothing that is not
/// gathered yet is in order before it; and its session's sockets are read, because a connection's reader waits only
/// here, and only while no other command of its session wants data (<see cref="IscsiSession.MayWaitForMemory"/>), else the
/// command is answered TASK SET FULL. The spare is given in order, so that nothing of a session gets some while a reader of
/// that session waits. So the spare always comes back, and everybody in the queue has his turn.</para>
/// </summary>
internal sealed class GatherMemory
{
    private static readonly ConditionalWeakTable<ILoop, GatherMemory> OfLoops = [];

    private readonly ILoop _loop;
    private readonly BufferPool _spare = new(0); // one largest request
    private readonly List<Waiter> _waiting = [];
    private readonly TurnEndHook _pump;
    private readonly long _bytesMax;
    private long _bytes;

    private GatherMemory(ILoop loop)
    {
        _loop = loop;
        _pump = new TurnEndHook(Pump);
        long limit = loop.Buffers.LimitBytes;
        _bytesMax = limit - Math.Max(limit / 4, BufferPool.CapacityBytesMax);
    }

    /// <summary>The one of this loop.</summary>
    public static GatherMemory Of(ILoop loop) => OfLoops.GetValue(loop, static l => new GatherMemory(l));

    /// <summary>Memory for unsolicited data, or null. Who gets some may want more later.</summary>
    public IoBuffer? TryRentFirst(IscsiTask task, int bytes) => TryRent(task, bytes, _bytesMax);

    /// <summary>Memory for all of the command's Data-Out, in its turn; the reader of its connection waits meanwhile. Null when
    /// the task was dropped.</summary>
    public ValueTask<IoBuffer?> RentWholeAsync(IscsiTask task, int bytes)
    {
        var ready = new LoopEvent<IoBuffer?>();
        _waiting.Add(new Waiter(task, bytes, ready));
        _loop.CallAtTurnEnd(_pump);
        return ready.WaitAsync();
    }

    /// <summary>Memory for all of the command's Data-Out, to be asked for by R2T; null: <see cref="IscsiSession.OnMemory"/> is
    /// told later, at the latest at the end of the turn in which the task was dropped.</summary>
    public IoBuffer? RentSolicited(IscsiTask task, int bytes)
    {
        IoBuffer? buffer = _waiting.Count > 0 ? null : RentWhole(task, bytes);
        if (buffer is not null) return buffer;
        _waiting.Add(new Waiter(task, bytes, null));
        LookAgain(); // those before it may all wait for what this one is in order before
        return null;
    }

    /// <summary>The task was handed over or is gone.</summary>
    public void Settle(IscsiTask task)
    {
        _bytes -= task.GatheredBytes;
        task.GatheredBytes = 0;
        LookAgain();
    }

    /// <summary>Memory came back, or somebody waits in vain.</summary>
    public void LookAgain()
    {
        if (_waiting.Count > 0) _loop.CallAtTurnEnd(_pump);
    }

    // R2Ts wait without harm, unsolicited data does not: half of the memory is left to it.
    private IoBuffer? RentWhole(IscsiTask task, int bytes) =>
        TryRent(task, bytes, _bytesMax / 2) ?? (task.IsNextInOrder ? RentSpare(task, bytes) : null);

    private IoBuffer? RentSpare(IscsiTask task, int bytes)
    {
        if (_spare.TryRent(bytes) is not { } buffer) return null;
        _bytes -= task.GatheredBytes; // the first burst moves over
        task.GatheredBytes = 0;
        return buffer;
    }

    private IoBuffer? TryRent(IscsiTask task, int bytes, long bytesMax)
    {
        int capacity = BufferPool.CapacityOf(bytes);
        if (_bytes + capacity > bytesMax || _loop.Buffers.TryRent(bytes) is not { } buffer) return null;
        _bytes += capacity - task.GatheredBytes; // the first burst moves over
        task.GatheredBytes = capacity;
        return buffer;
    }

    private void Pump()
    {
        for (int i = 0; i < _waiting.Count;)
        {
            Waiter waiter = _waiting[i];
            IscsiTask task = waiter.Task;
            IoBuffer? buffer = task.IsDropped ? null : RentWhole(task, waiter.Bytes);
            if (buffer is null && !task.IsDropped)
            {
                if (task.IsNextInOrder) return;
                i++; // not before what is in order before it
                continue;
            }

            _waiting.RemoveAt(i);
            if (waiter.Ready is not null) waiter.Ready.Set(buffer);
            else task.OnMemory(buffer);
        }
    }

    private readonly record struct Waiter(IscsiTask Task, int Bytes, LoopEvent<IoBuffer?>? Ready);
}
