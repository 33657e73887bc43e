using BlockServer.Protocols.Iscsi.Scsi;
using static BlockServer.Protocols.Iscsi.IscsiHeader;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// SCSI Command (RFC 7143, 11.3): flags F 0x80, R 0x40, W 0x20, attribute 0x07; then LUN 8, ITT 16, expected length 20,
/// CmdSN 24, ExpStatSN 28, CDB 32.
/// </summary>
/// <param name="IsImmediate">The I bit.</param>
/// <param name="IsFinal">No unsolicited Data-Out follows.</param>
/// <param name="IsRead">Data-In is expected.</param>
/// <param name="IsWrite">Data-Out is offered.</param>
/// <param name="Attribute">Task attribute.</param>
/// <param name="Lun">LUN field.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="ExpectedBytes">Expected data transfer length.</param>
/// <param name="CmdSn">Command number.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
public readonly record struct ScsiCommandPdu(
    bool IsImmediate, bool IsFinal, bool IsRead, bool IsWrite, TaskAttribute Attribute, ulong Lun, uint Tag,
    uint ExpectedBytes, uint CmdSn, uint ExpStatSn)
{
    /// <summary>Where the CDB stands.</summary>
    public const int CdbOffset = 32;

    /// <summary>Length of the CDB in the header.</summary>
    public const int CdbSize = 16;

    /// <summary>Reads.</summary>
    public static ScsiCommandPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[0] & 0x40) != 0, (bhs[1] & 0x80) != 0, (bhs[1] & 0x40) != 0, (bhs[1] & 0x20) != 0,
        (TaskAttribute)(bhs[1] & 7), U64(bhs, 8), U32(bhs, 16), U32(bhs, 20), U32(bhs, 24), U32(bhs, 28));

    /// <summary>Writes; <paramref name="cdb"/> has at most 16 bytes.</summary>
    public void WriteTo(Span<byte> bhs, ReadOnlySpan<byte> cdb, int dataBytes)
    {
        int flags = (IsFinal ? 0x80 : 0) | (IsRead ? 0x40 : 0) | (IsWrite ? 0x20 : 0) | (int)Attribute;
        Begin(bhs, IscsiOpcode.ScsiCommand, flags, dataBytes);
        if (IsImmediate) bhs[0] |= 0x40;
        Put(bhs, 8, Lun);
        Put(bhs, 16, Tag);
        Put(bhs, 20, ExpectedBytes);
        Put(bhs, 24, CmdSn);
        Put(bhs, 28, ExpStatSn);
        cdb.CopyTo(bhs[CdbOffset..]);
    }
}

/// <summary>What was left over of the expected length (RFC 7143, 11.4.5).</summary>
/// <param name="IsOverflow">More was there than expected.</param>
/// <param name="Bytes">How much; zero: it fits.</param>
public readonly record struct Residual(bool IsOverflow, uint Bytes)
{
    /// <summary>O 0x04, U 0x02, or neither.</summary>
    public int Flags => Bytes == 0 ? 0 : IsOverflow ? 0x04 : 0x02;

    /// <summary>Compares what was there with what was expected.</summary>
    public static Residual Of(uint expectedBytes, uint actualBytes) =>
        actualBytes > expectedBytes ? new(true, actualBytes - expectedBytes) : new(false, expectedBytes - actualBytes);

    internal static Residual Read(int flags, uint bytes) => new((flags & 4) != 0, (flags & 6) != 0 ? bytes : 0);
}

/// <summary>
/// SCSI Response (RFC 7143, 11.4): flags 0x80, O 0x04, U 0x02; response 2, status 3; ITT 16, SNACK tag 20, numbers 24,
/// ExpDataSN 36, bidirectional residual 40, residual 44. The data segment is the sense length u16 and the sense data.
/// </summary>
/// <param name="Response">0: completed at the target, 1: target failure.</param>
/// <param name="Status">SCSI status.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="Numbers">StatSN and window.</param>
/// <param name="ExpDataSn">Data-In and R2T PDUs that were sent for the command.</param>
/// <param name="Residual">Left over.</param>
public readonly record struct ScsiResponsePdu(
    byte Response, ScsiStatus Status, uint Tag, IscsiNumbers Numbers, uint ExpDataSn, Residual Residual)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        BeginAnswer(bhs, IscsiOpcode.ScsiResponse, 0x80 | Residual.Flags, dataBytes, Tag, Numbers);
        bhs[2] = Response;
        bhs[3] = (byte)Status;
        Put(bhs, 36, ExpDataSn);
        Put(bhs, 44, Residual.Bytes);
    }

    /// <summary>Reads.</summary>
    public static ScsiResponsePdu Read(ReadOnlySpan<byte> bhs) => new(
        bhs[2], (ScsiStatus)bhs[3], U32(bhs, 16), IscsiNumbers.Read(bhs), U32(bhs, 36), Residual.Read(bhs[1], U32(bhs, 44)));
}

/// <summary>Task Management Function Request (RFC 7143, 11.5): function 0x7F of byte 1; LUN 8, ITT 16, referenced tag 20,
/// CmdSN 24, ExpStatSN 28, RefCmdSN 32, ExpDataSN 36.</summary>
/// <param name="IsImmediate">The I bit.</param>
/// <param name="Function">What to do.</param>
/// <param name="Lun">LUN field.</param>
/// <param name="Tag">Initiator task tag of this request.</param>
/// <param name="ReferencedTag">Tag of the task to abort.</param>
/// <param name="CmdSn">Command number.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
/// <param name="RefCmdSn">Command number of the task to abort.</param>
public readonly record struct TaskManagementRequestPdu(
    bool IsImmediate, TaskFunction Function, ulong Lun, uint Tag, uint ReferencedTag, uint CmdSn, uint ExpStatSn, uint RefCmdSn)
{
    /// <summary>Reads.</summary>
    public static TaskManagementRequestPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[0] & 0x40) != 0, (TaskFunction)(bhs[1] & 0x7F), U64(bhs, 8), U32(bhs, 16), U32(bhs, 20), U32(bhs, 24),
        U32(bhs, 28), U32(bhs, 32));

    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        Begin(bhs, IscsiOpcode.TaskManagementRequest, 0x80 | (int)Function, 0);
        if (IsImmediate) bhs[0] |= 0x40;
        Put(bhs, 8, Lun);
        Put(bhs, 16, Tag);
        Put(bhs, 20, ReferencedTag);
        Put(bhs, 24, CmdSn);
        Put(bhs, 28, ExpStatSn);
        Put(bhs, 32, RefCmdSn);
    }
}

/// <summary>Task Management Function Response (RFC 7143, 11.6): response 2, ITT 16, numbers 24.</summary>
/// <param name="Response">Outcome.</param>
/// <param name="Tag">Tag of the request.</param>
/// <param name="Numbers">StatSN and window.</param>
public readonly record struct TaskManagementResponsePdu(TaskFunctionResponse Response, uint Tag, IscsiNumbers Numbers)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        BeginAnswer(bhs, IscsiOpcode.TaskManagementResponse, 0x80, 0, Tag, Numbers);
        bhs[2] = (byte)Response;
    }

    /// <summary>Reads.</summary>
    public static TaskManagementResponsePdu Read(ReadOnlySpan<byte> bhs) =>
        new((TaskFunctionResponse)bhs[2], U32(bhs, 16), IscsiNumbers.Read(bhs));
}
