using static BlockServer.Protocols.Iscsi.IscsiHeader;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// Login Request (RFC 7143, 11.12): T 0x80, C 0x40, CSG 0x0C, NSG 0x03; version max 2, min 3; ISID 8 (6 bytes), TSIH 14,
/// ITT 16, CID 20, CmdSN 24, ExpStatSN 28. The data segment is text.
/// </summary>
/// <param name="IsTransit">T: to the next stage, please.</param>
/// <param name="IsContinued">C: the text goes on in the next request.</param>
/// <param name="Current">Current stage; may be a reserved number.</param>
/// <param name="Next">Next stage; may be a reserved number.</param>
/// <param name="VersionMin">Lowest version that is spoken.</param>
/// <param name="Isid">Initiator's part of the session id, 48 bits.</param>
/// <param name="Tsih">Target's part; 0 for a new session.</param>
/// <param name="Tag">Initiator task tag, the same through the login.</param>
/// <param name="Cid">Connection id.</param>
/// <param name="CmdSn">First command number.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
public readonly record struct LoginRequestPdu(
    bool IsTransit, bool IsContinued, IscsiStage Current, IscsiStage Next, byte VersionMin, ulong Isid, ushort Tsih,
    uint Tag, ushort Cid, uint CmdSn, uint ExpStatSn)
{
    /// <summary>Reads.</summary>
    public static LoginRequestPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[1] & 0x80) != 0, (bhs[1] & 0x40) != 0, (IscsiStage)((bhs[1] >> 2) & 3), (IscsiStage)(bhs[1] & 3), bhs[3],
        U64(bhs, 8) >> 16, (ushort)U64(bhs, 8), U32(bhs, 16), (ushort)(U32(bhs, 20) >> 16), U32(bhs, 24), U32(bhs, 28));

    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        int flags = (IsTransit ? 0x80 : 0) | (IsContinued ? 0x40 : 0) | ((int)Current << 2) | (IsTransit ? (int)Next : 0);
        Begin(bhs, IscsiOpcode.LoginRequest, flags, dataBytes);
        bhs[0] |= 0x40;
        bhs[3] = VersionMin;
        Put(bhs, 8, Isid << 16 | Tsih);
        Put(bhs, 16, Tag);
        Put(bhs, 20, (uint)Cid << 16);
        Put(bhs, 24, CmdSn);
        Put(bhs, 28, ExpStatSn);
    }
}

/// <summary>Login Response (RFC 7143, 11.13): flags as in the request, versions 2 and 3, ISID 8, TSIH 14, ITT 16,
/// numbers 24, status 36.</summary>
/// <param name="IsTransit">T: the next stage begins.</param>
/// <param name="IsContinued">C: the text goes on.</param>
/// <param name="Current">Stage of the request.</param>
/// <param name="Next">Stage that begins.</param>
/// <param name="Isid">As in the request.</param>
/// <param name="Tsih">Session handle in the last response, else as in the request.</param>
/// <param name="Tag">As in the request.</param>
/// <param name="Numbers">StatSN and window.</param>
/// <param name="Status">Outcome.</param>
public readonly record struct LoginResponsePdu(
    bool IsTransit, bool IsContinued, IscsiStage Current, IscsiStage Next, ulong Isid, ushort Tsih, uint Tag,
    IscsiNumbers Numbers, IscsiLoginStatus Status)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        int flags = (IsTransit ? 0x80 : 0) | (IsContinued ? 0x40 : 0) | ((int)Current << 2) | (IsTransit ? (int)Next : 0);
        BeginAnswer(bhs, IscsiOpcode.LoginResponse, flags, dataBytes, Tag, Numbers);
        Put(bhs, 8, Isid << 16 | Tsih);
        bhs[36] = (byte)((int)Status >> 8);
        bhs[37] = (byte)Status;
    }

    /// <summary>Reads.</summary>
    public static LoginResponsePdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[1] & 0x80) != 0, (bhs[1] & 0x40) != 0, (IscsiStage)((bhs[1] >> 2) & 3), (IscsiStage)(bhs[1] & 3),
        U64(bhs, 8) >> 16, (ushort)U64(bhs, 8), U32(bhs, 16), IscsiNumbers.Read(bhs),
        (IscsiLoginStatus)(bhs[36] << 8 | bhs[37]));
}

/// <summary>Text Request (RFC 7143, 11.10): F 0x80, C 0x40; LUN 8, ITT 16, TTT 20, CmdSN 24, ExpStatSN 28.</summary>
/// <param name="IsImmediate">The I bit.</param>
/// <param name="IsFinal">The initiator has no more to say.</param>
/// <param name="IsContinued">The text goes on in the next request.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="TransferTag">None at the start of an exchange, else that of the last response.</param>
/// <param name="CmdSn">Command number.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
public readonly record struct TextRequestPdu(
    bool IsImmediate, bool IsFinal, bool IsContinued, uint Tag, uint TransferTag, uint CmdSn, uint ExpStatSn)
{
    /// <summary>Reads.</summary>
    public static TextRequestPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[0] & 0x40) != 0, (bhs[1] & 0x80) != 0, (bhs[1] & 0x40) != 0, U32(bhs, 16), U32(bhs, 20), U32(bhs, 24), U32(bhs, 28));

    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        Begin(bhs, IscsiOpcode.TextRequest, (IsFinal ? 0x80 : 0) | (IsContinued ? 0x40 : 0), dataBytes);
        if (IsImmediate) bhs[0] |= 0x40;
        Put(bhs, 16, Tag);
        Put(bhs, 20, TransferTag);
        Put(bhs, 24, CmdSn);
        Put(bhs, 28, ExpStatSn);
    }
}

/// <summary>Text Response (RFC 7143, 11.11): F 0x80, C 0x40; LUN 8, ITT 16, TTT 20, numbers 24.</summary>
/// <param name="IsFinal">The exchange is over.</param>
/// <param name="IsContinued">The text goes on in the next response.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="TransferTag">None when it is over.</param>
/// <param name="Numbers">StatSN and window.</param>
public readonly record struct TextResponsePdu(
    bool IsFinal, bool IsContinued, uint Tag, uint TransferTag, IscsiNumbers Numbers)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        BeginAnswer(bhs, IscsiOpcode.TextResponse, (IsFinal ? 0x80 : 0) | (IsContinued ? 0x40 : 0), dataBytes, Tag, Numbers);
        Put(bhs, 20, TransferTag);
    }

    /// <summary>Reads.</summary>
    public static TextResponsePdu Read(ReadOnlySpan<byte> bhs) =>
        new((bhs[1] & 0x80) != 0, (bhs[1] & 0x40) != 0, U32(bhs, 16), U32(bhs, 20), IscsiNumbers.Read(bhs));
}

/// <summary>Logout Request (RFC 7143, 11.14): reason 0x7F of byte 1; ITT 16, CID 20, CmdSN 24, ExpStatSN 28.</summary>
/// <param name="IsImmediate">The I bit.</param>
/// <param name="Reason">What to close.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="Cid">Which connection.</param>
/// <param name="CmdSn">Command number.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
public readonly record struct LogoutRequestPdu(
    bool IsImmediate, IscsiLogoutReason Reason, uint Tag, ushort Cid, uint CmdSn, uint ExpStatSn)
{
    /// <summary>Reads.</summary>
    public static LogoutRequestPdu Read(ReadOnlySpan<byte> bhs) => new(
        (bhs[0] & 0x40) != 0, (IscsiLogoutReason)(bhs[1] & 0x7F), U32(bhs, 16), (ushort)(U32(bhs, 20) >> 16), U32(bhs, 24),
        U32(bhs, 28));

    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        Begin(bhs, IscsiOpcode.LogoutRequest, 0x80 | (int)Reason, 0);
        if (IsImmediate) bhs[0] |= 0x40;
        Put(bhs, 16, Tag);
        Put(bhs, 20, (uint)Cid << 16);
        Put(bhs, 24, CmdSn);
        Put(bhs, 28, ExpStatSn);
    }
}

/// <summary>Logout Response (RFC 7143, 11.15): response 2, ITT 16, numbers 24, Time2Wait 40, Time2Retain 42.</summary>
/// <param name="Response">Outcome.</param>
/// <param name="Tag">Tag of the request.</param>
/// <param name="Numbers">StatSN and window.</param>
public readonly record struct LogoutResponsePdu(IscsiLogoutResponse Response, uint Tag, IscsiNumbers Numbers)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        BeginAnswer(bhs, IscsiOpcode.LogoutResponse, 0x80, 0, Tag, Numbers);
        bhs[2] = (byte)Response;
    }

    /// <summary>Reads.</summary>
    public static LogoutResponsePdu Read(ReadOnlySpan<byte> bhs) =>
        new((IscsiLogoutResponse)bhs[2], U32(bhs, 16), IscsiNumbers.Read(bhs));
}

/// <summary>SNACK Request (RFC 7143, 11.16): type 0x0F of byte 1; ITT 16, TTT 20, ExpStatSN 28, begin 40, run 44. Read by
/// nobody: at error recovery level 0 every one is refused.</summary>
/// <param name="Type">0 Data or R2T, 1 status, 2 acknowledgement, 3 R-Data.</param>
/// <param name="Tag">Initiator task tag.</param>
/// <param name="Begin">First number missed.</param>
/// <param name="Run">How many.</param>
public readonly record struct SnackPdu(byte Type, uint Tag, uint Begin, uint Run)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        IscsiHeader.Begin(bhs, IscsiOpcode.Snack, 0x80 | Type, 0);
        Put(bhs, 16, Tag);
        Put(bhs, 20, IscsiWire.NoTag);
        Put(bhs, 40, Begin);
        Put(bhs, 44, Run);
    }

    /// <summary>Reads.</summary>
    public static SnackPdu Read(ReadOnlySpan<byte> bhs) => new((byte)(bhs[1] & 15), U32(bhs, 16), U32(bhs, 40), U32(bhs, 44));
}

/// <summary>NOP-Out (RFC 7143, 11.18): LUN 8, ITT 16, TTT 20, CmdSN 24, ExpStatSN 28.</summary>
/// <param name="IsImmediate">The I bit.</param>
/// <param name="Lun">LUN field.</param>
/// <param name="Tag">Tag of a ping, or none.</param>
/// <param name="TransferTag">Tag of the ping that is answered, or none.</param>
/// <param name="CmdSn">Command number.</param>
/// <param name="ExpStatSn">Acknowledges statuses before it.</param>
public readonly record struct NopOutPdu(bool IsImmediate, ulong Lun, uint Tag, uint TransferTag, uint CmdSn, uint ExpStatSn)
{
    /// <summary>Reads.</summary>
    public static NopOutPdu Read(ReadOnlySpan<byte> bhs) =>
        new((bhs[0] & 0x40) != 0, U64(bhs, 8), U32(bhs, 16), U32(bhs, 20), U32(bhs, 24), U32(bhs, 28));

    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        Begin(bhs, IscsiOpcode.NopOut, 0x80, dataBytes);
        if (IsImmediate) bhs[0] |= 0x40;
        Put(bhs, 8, Lun);
        Put(bhs, 16, Tag);
        Put(bhs, 20, TransferTag);
        Put(bhs, 24, CmdSn);
        Put(bhs, 28, ExpStatSn);
    }
}

/// <summary>NOP-In (RFC 7143, 11.19): LUN 8, ITT 16, TTT 20, numbers 24.</summary>
/// <param name="Lun">LUN field.</param>
/// <param name="Tag">Tag of the ping that is answered, or none.</param>
/// <param name="TransferTag">Tag of a ping, or none.</param>
/// <param name="Numbers">StatSN and window.</param>
public readonly record struct NopInPdu(ulong Lun, uint Tag, uint TransferTag, IscsiNumbers Numbers)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        BeginAnswer(bhs, IscsiOpcode.NopIn, 0x80, dataBytes, Tag, Numbers);
        Put(bhs, 8, Lun);
        Put(bhs, 20, TransferTag);
    }

    /// <summary>Reads.</summary>
    public static NopInPdu Read(ReadOnlySpan<byte> bhs) =>
        new(U64(bhs, 8), U32(bhs, 16), U32(bhs, 20), IscsiNumbers.Read(bhs));
}

/// <summary>Asynchronous Message (RFC 7143, 11.9): LUN 8, 0xFFFFFFFF 16, numbers 24, event 36, vendor code 37, three
/// parameters u16 38, 40, 42.</summary>
/// <param name="Event">What happened.</param>
/// <param name="Lun">LUN field.</param>
/// <param name="Parameter1">CID with a dropped connection.</param>
/// <param name="Parameter2">Time2Wait with a drop, seconds.</param>
/// <param name="Parameter3">Time2Retain with a drop, time to log out with a request, seconds.</param>
/// <param name="Numbers">StatSN and window.</param>
public readonly record struct AsyncMessagePdu(
    IscsiAsyncEvent Event, ulong Lun, ushort Parameter1, ushort Parameter2, ushort Parameter3, IscsiNumbers Numbers)
{
    /// <summary>Writes.</summary>
    public void WriteTo(Span<byte> bhs, int dataBytes)
    {
        BeginAnswer(bhs, IscsiOpcode.AsyncMessage, 0x80, dataBytes, IscsiWire.NoTag, Numbers);
        Put(bhs, 8, Lun);
        bhs[36] = (byte)Event;
        Put(bhs, 38, (uint)Parameter1 << 16 | Parameter2);
        Put(bhs, 42, (uint)Parameter3 << 16);
    }

    /// <summary>Reads.</summary>
    public static AsyncMessagePdu Read(ReadOnlySpan<byte> bhs) => new(
        (IscsiAsyncEvent)bhs[36], U64(bhs, 8), (ushort)(U32(bhs, 38) >> 16), (ushort)U32(bhs, 38), (ushort)(U32(bhs, 42) >> 16),
        IscsiNumbers.Read(bhs));
}

/// <summary>Reject (RFC 7143, 11.17): reason 2, 0xFFFFFFFF 16, numbers 24, DataSN 36. The data segment is the refused
/// header.</summary>
/// <param name="Reason">Why.</param>
/// <param name="Numbers">StatSN and window.</param>
public readonly record struct RejectPdu(IscsiRejectReason Reason, IscsiNumbers Numbers)
{
    /// <summary>Writes; the refused header follows.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        BeginAnswer(bhs, IscsiOpcode.Reject, 0x80, IscsiWire.BhsSize, IscsiWire.NoTag, Numbers);
        bhs[2] = (byte)Reason;
    }

    /// <summary>Reads.</summary>
    public static RejectPdu Read(ReadOnlySpan<byte> bhs) => new((IscsiRejectReason)bhs[2], IscsiNumbers.Read(bhs));
}
