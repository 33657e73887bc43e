using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Status bytes of SAM-5, 5.3.1.</summary>
public enum ScsiStatus : byte
{
    /// <summary>Done.</summary>
    Good = 0x00,

    /// <summary>Sense data says what happened.</summary>
    CheckCondition = 0x02,

    /// <summary>PRE-FETCH: it fits.</summary>
    ConditionMet = 0x04,

    /// <summary>Try again.</summary>
    Busy = 0x08,

    /// <summary>Another nexus holds a reservation.</summary>
    ReservationConflict = 0x18,

    /// <summary>Too many commands.</summary>
    TaskSetFull = 0x28,

    /// <summary>Ended by a task management function of another nexus (TAS = 1).</summary>
    TaskAborted = 0x40,
}

/// <summary>Task attributes of SAM-5, 8.9, with the values of RFC 7143, 11.3.1.</summary>
public enum TaskAttribute : byte
{
    /// <summary>Untagged: as simple.</summary>
    Untagged = 0,

    /// <summary>In any order.</summary>
    Simple = 1,

    /// <summary>After all older ones and before all younger ones.</summary>
    Ordered = 2,

    /// <summary>Before all others.</summary>
    HeadOfQueue = 3,

    /// <summary>Auto contingent allegiance.</summary>
    Aca = 4,
}

/// <summary>What a CDB asks to be transferred, known before any data is.</summary>
/// <param name="OutBytes">Data-Out that the CDB describes, bytes; beyond <see cref="Units.RequestBytesMax"/> never.</param>
/// <param name="InBytesMax">Most Data-In that the CDB allows (allocation or transfer length), bytes.</param>
/// <param name="Lead">Where the data should begin in its buffer (device offset modulo 4096), so that no copy is made.</param>
/// <param name="IsRefused">The CDB is refused whatever the data: the transport discards Data-Out and calls
/// <see cref="IScsiTarget.ExecuteAsync"/>, which answers with the reason.</param>
public readonly record struct ScsiPlan(int OutBytes, int InBytesMax, int Lead, bool IsRefused)
{
    /// <summary>The door of the volume that the transport takes the command through before it fetches data for it or hands it over;
    /// null: it need not pass any.</summary>
    public VolumeAdmission? Admission { get; init; }

    /// <summary>What the command counts there, bytes.</summary>
    public uint ChargedBytes { get; init; }

    /// <summary>The nexus may use other units too.</summary>
    public bool HasOtherUnits { get; init; }
}

/// <summary>
/// One command on its way through a target. Pooled and owned by the transport, filled in by both sides; lives on the
/// target's loop. The transport sets what the initiator sent, gathers Data-Out completely and calls
/// <see cref="IScsiTarget.ExecuteAsync"/>; afterwards <see cref="Status"/>, <see cref="Sense"/> and Data-In are the answer.
/// </summary>
public sealed class ScsiCommand
{
    /// <summary>Longest CDB that is taken (variable length CDBs), bytes.</summary>
    public const int CdbBytesMax = 260;

    /// <summary>Longest sense data, bytes (SPC-4, 4.5.1).</summary>
    public const int SenseBytesMax = 252;

    /// <summary>Who sent it.</summary>
    public required ScsiNexus Nexus { get; set; }

    /// <summary>The eight bytes of the LUN field, big endian.</summary>
    public ulong Lun { get; set; }

    /// <summary>The CDB; valid are <see cref="CdbLength"/> bytes (at least 16, padded with zeros).</summary>
    public byte[] Cdb { get; } = new byte[CdbBytesMax];

    /// <summary>Bytes of <see cref="Cdb"/>.</summary>
    public int CdbLength { get; set; } = 16;

    /// <summary>Its place in the task set.</summary>
    public TaskAttribute Attribute { get; set; }

    /// <summary>Initiator task tag, unique in its nexus while the command lives; for task management.</summary>
    public uint Tag { get; set; }

    /// <summary>Memory of the Data-Out, owned by the transport; null when there is none.</summary>
    public IoBuffer? OutBuffer { get; set; }

    /// <summary>Where Data-Out begins in <see cref="OutBuffer"/>.</summary>
    public int OutStart { get; set; }

    /// <summary>Data-Out that arrived, bytes; less than the plan's when the initiator offered less.</summary>
    public int OutLength { get; set; }

    /// <summary>Data-Out that the initiator announced (Expected Data Transfer Length with the W bit), bytes; may be more
    /// than what was asked for and arrived. -1 when the transport does not say. WRITE SAME and COMPARE AND WRITE refuse
    /// data of another size than they take.</summary>
    public int OutOfferedBytes { get; set; } = -1;

    /// <summary>Data-Out.</summary>
    public ReadOnlyMemory<byte> DataOut => OutBuffer is null ? default : OutBuffer.Slice(OutStart, OutLength);

    /// <summary>Memory of the Data-In, rented from the loop's pool by the target, returned by the transport after it was
    /// sent; null when there is none.</summary>
    public IoBuffer? InBuffer { get; set; }

    /// <summary>Where Data-In begins in <see cref="InBuffer"/>.</summary>
    public int InStart { get; set; }

    /// <summary>Data-In, bytes. The transport cuts it to what the initiator expects and reports the residual.</summary>
    public int InLength { get; set; }

    /// <summary>The answer.</summary>
    public ScsiStatus Status { get; set; }

    /// <summary>Sense data with <see cref="ScsiStatus.CheckCondition"/>; valid are <see cref="SenseLength"/> bytes.</summary>
    public byte[] Sense { get; } = new byte[SenseBytesMax];

    /// <summary>Bytes of <see cref="Sense"/>.</summary>
    public int SenseLength { get; set; }

    /// <summary>Set by task management: nothing may be changed any more, the answer is dropped by the transport. A change
    /// under way is let finish.</summary>
    public bool IsAborted { get; set; }

    /// <summary>Set by the transport while it asks for task management: the command was numbered after the request and is not
    /// meant by it, though it came earlier on another connection.</summary>
    public bool IsSpared { get; set; }

    /// <summary>For the target: its own state of the command.</summary>
    public object? TargetState { get; set; }

    /// <summary>For the target: memory in which Data-In is to lie, when the unit is of another loop; null: the unit rents.</summary>
    internal IoBuffer? Lent { get; set; }

    /// <summary>For the target: what REPORT LUNS is to answer when the unit is of another loop.</summary>
    internal ushort[]? Luns { get; set; }

    /// <summary>For the target: what EXTENDED COPY may reach when the unit is of another loop.</summary>
    internal UnitNexus[]? CopyUnits { get; set; }
}

/// <summary>
/// An I_T nexus (SAM-5, 4.7): one initiator port (IQN and ISID) at one target port (portal group). One iSCSI session is one
/// nexus. Made by the transport at login, removed at the session's end; lives on the target's loop.
/// </summary>
public sealed class ScsiNexus
{
    /// <summary>Initiator port name: <c>IQN,i,0xISID</c> (RFC 7143, 4.2.7.1).</summary>
    public required string InitiatorPort { get; init; }

    /// <summary>Initiator's IQN.</summary>
    public required string InitiatorName { get; init; }

    /// <summary>Portal group tag: the relative target port is derived from it.</summary>
    public required ushort PortalGroup { get; init; }

    /// <summary>Told at once what an initiator that sends no command would learn late, by LUN field and by ASC and ASCQ: capacity
    /// changed, LUNs changed, space runs low. The unit attention that says so waits for its next command all the same. Null: such a
    /// transport has no way to say it. On the target's loop.</summary>
    public Action<ulong, ushort>? OnEvent { get; init; }

    /// <summary>For the target: its own state of the nexus (unit attentions, registrations).</summary>
    public object? TargetState { get; set; }
}

/// <summary>Task management functions (RFC 7143, 11.5.1; SAM-5, 7).</summary>
public enum TaskFunction : byte
{
    /// <summary>One task of the nexus.</summary>
    AbortTask = 1,

    /// <summary>All tasks of the nexus in one logical unit.</summary>
    AbortTaskSet = 2,

    /// <summary>Ends ACA; answered as not supported.</summary>
    ClearAca = 3,

    /// <summary>All tasks of all nexuses in one logical unit.</summary>
    ClearTaskSet = 4,

    /// <summary>Resets one logical unit.</summary>
    LogicalUnitReset = 5,

    /// <summary>Resets all logical units of the target.</summary>
    TargetWarmReset = 6,

    /// <summary>As warm, and all sessions end.</summary>
    TargetColdReset = 7,
}

/// <summary>Outcome of a task management function (RFC 7143, 11.6.1).</summary>
public enum TaskFunctionResponse : byte
{
    /// <summary>Done.</summary>
    Complete = 0,

    /// <summary>No such task.</summary>
    NoTask = 1,

    /// <summary>No such logical unit.</summary>
    NoLun = 2,

    /// <summary>Not supported.</summary>
    NotSupported = 5,

    /// <summary>Refused.</summary>
    Rejected = 255,
}

/// <summary>
/// The SCSI side of one target: its logical units, task sets, unit attentions, reservations. Lives on one loop (the
/// target's); the transport calls it there only. Nothing that an initiator sends makes it throw.
/// </summary>
public interface IScsiTarget
{
    /// <summary>A session logged in: unit attentions (power on or reset) are queued for it.</summary>
    void AddNexus(ScsiNexus nexus);

    /// <summary>A session ended (I_T nexus loss): its commands are aborted, RESERVE(6) is released; persistent
    /// registrations stay.</summary>
    void RemoveNexus(ScsiNexus nexus);

    /// <summary>What the command will transfer. Pure; called before Data-Out is fetched. Of <paramref name="command"/> nexus,
    /// LUN and CDB are set.</summary>
    ScsiPlan Plan(ScsiCommand command);

    /// <summary>Executes; true when <see cref="ScsiCommand.Status"/> and the rest of the answer are set, false when it was
    /// aborted and no answer may be sent. Data-In memory then still belongs to the transport. Runs concurrently with other commands, ordered by
    /// <see cref="ScsiCommand.Attribute"/>.</summary>
    ValueTask<bool> ExecuteAsync(ScsiCommand command);

    /// <summary>Runs a task management function; answers when the affected commands have ended. <paramref name="tag"/> names
    /// the task of <see cref="TaskFunction.AbortTask"/>.</summary>
    ValueTask<TaskFunctionResponse> ManageAsync(ScsiNexus nexus, TaskFunction function, ulong lun, uint tag);
}
