using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Protocols.Iscsi;

/// <summary>A session's figures; read on its loop.</summary>
public sealed class IscsiCounters
{
    /// <summary>Commands answered.</summary>
    public ulong Commands { get; internal set; }

    /// <summary>Answered commands with Data-In.</summary>
    public ulong Reads { get; internal set; }

    /// <summary>Answered commands with Data-Out.</summary>
    public ulong Writes { get; internal set; }

    /// <summary>Data-In sent, bytes.</summary>
    public ulong ReadBytes { get; internal set; }

    /// <summary>Data-Out of answered commands, bytes.</summary>
    public ulong WrittenBytes { get; internal set; }

    /// <summary>Commands answered with something else than GOOD.</summary>
    public ulong Errors { get; internal set; }

    /// <summary>Commands between header and status.</summary>
    public int InFlight { get; internal set; }
}

/// <summary>Counts commands of a target. Called on the target's loop; must not allocate.</summary>
public interface IIscsiMeter
{
    /// <summary>A command's answer was queued, <paramref name="durationNanos"/> after its header was read, of which it waited
    /// <paramref name="queuedNanos"/> to be let in. <paramref name="lun"/> is the field of the header.</summary>
    void OnCommand(ulong lun, byte operationCode, ulong bytes, ulong durationNanos, ulong queuedNanos, bool hasFailed);

    /// <summary>A command was answered TASK SET FULL.</summary>
    void OnTaskSetFull(ulong lun);
}

/// <summary>
/// One session in full feature phase (RFC 7143, section 4): its connections, the window of command numbers, the tasks.
/// Lives on its target's loop. Error recovery level 0: whatever breaks ends the session.
/// </summary>
public sealed partial class IscsiSession
{
    private readonly IscsiTarget _target;
    private readonly ILoop _loop;
    private readonly IscsiOptions _options;
    private readonly List<IscsiConnection> _connections = [];
    private readonly List<LoopEvent<bool>> _whenEnded = [];
    private IscsiTask? _free;
    private LoopTimer? _leave;
    private uint _transferTag;
    private bool _isEnded, _isRemoved;

    internal IscsiSession(IscsiTarget target, LoginMachine login, ushort tsih)
    {
        (_target, _loop, _options) = (target, target.Loop, target.Options);
        Memory = GatherMemory.Of(_loop);
        (Tsih, Isid, Parameters) = (tsih, login.Isid, login.Parameters);
        (InitiatorName, User, IsDiscovery, Entry) = (login.InitiatorName, login.User, login.IsDiscovery, login.Target);
        ExpCmdSn = login.CmdSn;
        int size = (int)System.Numerics.BitOperations.RoundUpToPowerOf2((uint)_options.WindowCommands);
        _ring = new object?[size];
        if (login.IsDiscovery || target.Scsi is null) return;
        Scsi = target.Scsi;
        Nexus = new ScsiNexus
        {
            InitiatorPort = IscsiTarget.PortOf(login), InitiatorName = login.InitiatorName, PortalGroup = PortalGroup, OnEvent = Tell,
        };
        Scsi.AddNexus(Nexus);
    }

    /// <summary>Target session identifying handle.</summary>
    public ushort Tsih { get; }

    /// <summary>Initiator's part of the session id.</summary>
    public ulong Isid { get; }

    /// <summary>Initiator's IQN.</summary>
    public string InitiatorName { get; }

    /// <summary>CHAP name, or null.</summary>
    public string? User { get; }

    /// <summary>SendTargets and nothing else.</summary>
    public bool IsDiscovery { get; }

    /// <summary>The target of a normal session.</summary>
    public IscsiTargetEntry? Entry { get; }

    /// <summary>Portal group that was reached.</summary>
    public ushort PortalGroup => Entry?.PortalGroup ?? 0;

    /// <summary>What was agreed on with the leading connection.</summary>
    public IscsiParameters Parameters { get; }

    /// <summary>Figures so far.</summary>
    public IscsiCounters Counters { get; } = new();

    /// <summary>Open connections.</summary>
    public int ConnectionCount => _connections.Count;

    /// <summary>It is ending.</summary>
    public bool IsDropped { get; private set; }

    /// <summary>The initiator logs out: no connection may join.</summary>
    internal bool IsLeaving { get; private set; }

    /// <summary>Why it ended, or null.</summary>
    public string? EndReason { get; private set; }

    internal ScsiNexus? Nexus { get; }

    internal IScsiTarget? Scsi { get; }

    internal IscsiTarget Target => _target;

    internal GatherMemory Memory { get; }

    internal Exception? Bug { get; private set; }

    internal ulong NowNanos => _loop.NowNanos;

    internal uint NextTransferTag()
    {
        if (++_transferTag == IscsiWire.NoTag) _transferTag = 1;
        return _transferTag;
    }

    internal IscsiConnection? FindConnection(ushort cid) => _connections.Find(c => c.Cid == cid);

    internal void Add(IscsiConnection connection) => _connections.Add(connection);

    /// <summary>A connection has ended and its tasks are gone; the last one ends the session.</summary>
    internal void Remove(IscsiConnection connection)
    {
        _connections.Remove(connection);
        if (_connections.Count > 0 || _isEnded) return;
        Drop(connection.EndReason ?? "the initiator left");
        _isEnded = true;
        _leave?.Stop();
        _target.Remove(this);
        foreach (LoopEvent<bool> waiter in _whenEnded) waiter.Set(true);
    }

    internal async ValueTask WaitEndedAsync()
    {
        if (_isEnded) return;
        var ended = new LoopEvent<bool>();
        _whenEnded.Add(ended);
        await ended.WaitAsync();
    }

    /// <summary>Ends all connections at once; commands in flight still finish on the device.</summary>
    internal void Drop(string reason)
    {
        EndReason ??= reason;
        IsDropped = true;
        foreach (IscsiConnection connection in _connections.ToArray()) connection.Close(reason);
        if (_isRemoved) return;
        _isRemoved = true;
        DropUndispatched(lun: null);
        if (Nexus is not null) Scsi!.RemoveNexus(Nexus);
    }

    /// <summary>Asks the initiator to log out (and in again, where the target is now); a session that is still there after
    /// <see cref="IscsiOptions.LogoutNanos"/> is ended.</summary>
    internal void AskToLeave(string reason)
    {
        if (IsDropped || _leave is not null) return;
        foreach (IscsiConnection connection in _connections) connection.AskToLeave();
        _leave = _loop.CreateTimer(() => Drop(reason));
        _leave.Start(_options.LogoutNanos);
    }

    /// <summary>An event of a logical unit or of the target, for which the initiator need not have asked: on one connection.</summary>
    private void Tell(ulong lun, ushort code)
    {
        foreach (IscsiConnection connection in _connections)
        {
            if (connection.TrySendEvent(lun, new Sense(SenseKey.UnitAttention, code))) return;
        }
    }

    internal void RequestStop()
    {
        foreach (IscsiConnection connection in _connections.ToArray()) connection.RequestStop();
    }

    internal void OnBug(IscsiTask task, Exception bug)
    {
        Bug ??= bug;
        Forget(task);
        Drop("a command met a bug");
    }

    internal void OnBug(Exception bug)
    {
        Bug ??= bug;
        Drop("task management met a bug");
    }

    /// <summary>Closes all connections but one, for its logout; answers when their commands have ended.</summary>
    internal async ValueTask EndOthersAsync(IscsiConnection last)
    {
        IsLeaving = true;
        foreach (IscsiConnection connection in _connections.ToArray())
        {
            if (connection == last) continue;
            connection.EndOrderly("the initiator closed the session");
            await connection.WaitEndedAsync();
        }
    }

    internal IscsiTask Rent(IscsiConnection connection, in ScsiCommandPdu pdu)
    {
        IscsiTask task = _free ?? new IscsiTask(this);
        _free = task.Next;
        task.Next = null;
        task.Begin(connection, pdu, _loop.NowNanos);
        connection.TaskCount++;
        Counters.InFlight++;
        return task;
    }

    /// <summary>Its status was sent, or nobody wants it any more.</summary>
    internal void Release(IscsiTask task)
    {
        OnAnswered(task);
        task.Leave();
        _windowBytes -= task.CostBytes;
        task.CostBytes = 0;
        task.End();
        Memory.Settle(task);
        Counters.InFlight--;
        IscsiConnection connection = task.Connection;
        connection.TaskCount--;
        task.Next = _free;
        _free = task;
        PumpWindow();
        connection.OnTaskReleased();
    }
}
