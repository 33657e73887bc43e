namespace BlockServer.Protocols.Iscsi;

/// <summary>Numbers of iSCSI (RFC 7143); see docs/wire-iscsi.md.</summary>
public static class IscsiWire
{
    /// <summary>Size of a basic header segment, bytes.</summary>
    public const int BhsSize = 48;

    /// <summary>Size of a header or data digest, bytes.</summary>
    public const int DigestSize = 4;

    /// <summary>Tag that stands for none.</summary>
    public const uint NoTag = 0xFFFFFFFF;

    /// <summary>Longest additional header segments that are taken, bytes: a CDB of 76 bytes.</summary>
    public const int AhsBytesMax = 64;

    /// <summary>Longest data segment before full feature phase (the default of MaxRecvDataSegmentLength), bytes.</summary>
    public const int LoginDataBytesMax = 8192;

    /// <summary>Largest value of the length keys.</summary>
    public const int LengthMax = (1 << 24) - 1;

    /// <summary>Bytes from the end of a segment to the next multiple of four.</summary>
    public static int PadOf(int length) => -length & 3;

    /// <summary>Serial number arithmetic (RFC 1982): <paramref name="a"/> is before <paramref name="b"/>.</summary>
    public static bool IsBefore(uint a, uint b) => (int)(a - b) < 0;
}

/// <summary>Opcodes; those of a target have 0x20.</summary>
public enum IscsiOpcode
{
    /// <summary>Ping, or the answer to a ping.</summary>
    NopOut = 0x00,

    /// <summary>A CDB.</summary>
    ScsiCommand = 0x01,

    /// <summary>Task management.</summary>
    TaskManagementRequest = 0x02,

    /// <summary>Login.</summary>
    LoginRequest = 0x03,

    /// <summary>Text negotiation.</summary>
    TextRequest = 0x04,

    /// <summary>Data of a write.</summary>
    DataOut = 0x05,

    /// <summary>Leave.</summary>
    LogoutRequest = 0x06,

    /// <summary>Ask for lost PDUs; never granted at error recovery level 0.</summary>
    Snack = 0x10,

    /// <summary>Ping, or the answer to a ping.</summary>
    NopIn = 0x20,

    /// <summary>Status of a command.</summary>
    ScsiResponse = 0x21,

    /// <summary>Outcome of task management.</summary>
    TaskManagementResponse = 0x22,

    /// <summary>Answer to a login request.</summary>
    LoginResponse = 0x23,

    /// <summary>Answer to a text request.</summary>
    TextResponse = 0x24,

    /// <summary>Data of a read.</summary>
    DataIn = 0x25,

    /// <summary>Answer to a logout request.</summary>
    LogoutResponse = 0x26,

    /// <summary>Ready to transfer.</summary>
    R2T = 0x31,

    /// <summary>Asynchronous message.</summary>
    AsyncMessage = 0x32,

    /// <summary>A PDU was refused.</summary>
    Reject = 0x3F,
}

/// <summary>Stages of a login.</summary>
public enum IscsiStage
{
    /// <summary>Authentication.</summary>
    Security = 0,

    /// <summary>Operational parameters.</summary>
    Operational = 1,

    /// <summary>Full feature phase.</summary>
    FullFeature = 3,
}

/// <summary>Status class and detail of a login response (RFC 7143, 11.13.5).</summary>
public enum IscsiLoginStatus
{
    /// <summary>Goes on.</summary>
    Success = 0x0000,

    /// <summary>The target is elsewhere for now; TargetAddress says where.</summary>
    MovedTemporarily = 0x0101,

    /// <summary>The target is elsewhere for good.</summary>
    MovedPermanently = 0x0102,

    /// <summary>The initiator broke the protocol.</summary>
    InitiatorError = 0x0200,

    /// <summary>Who are you?</summary>
    AuthenticationFailure = 0x0201,

    /// <summary>Not for this initiator.</summary>
    AuthorizationFailure = 0x0202,

    /// <summary>No such target.</summary>
    NotFound = 0x0203,

    /// <summary>The target is gone.</summary>
    TargetRemoved = 0x0204,

    /// <summary>Only version 0 is spoken.</summary>
    UnsupportedVersion = 0x0205,

    /// <summary>MaxConnections, or a limit of sessions.</summary>
    TooManyConnections = 0x0206,

    /// <summary>A name is missing.</summary>
    MissingParameter = 0x0207,

    /// <summary>This connection cannot join that session.</summary>
    CannotInclude = 0x0208,

    /// <summary>Neither Normal nor Discovery.</summary>
    SessionTypeNotSupported = 0x0209,

    /// <summary>No session of that TSIH.</summary>
    SessionDoesNotExist = 0x020A,

    /// <summary>Not a login request.</summary>
    InvalidDuringLogin = 0x020B,

    /// <summary>A fault of the target.</summary>
    TargetError = 0x0300,

    /// <summary>Shutting down.</summary>
    ServiceUnavailable = 0x0301,

    /// <summary>No room.</summary>
    OutOfResources = 0x0302,
}

/// <summary>Reasons of a Reject (RFC 7143, 11.17.1).</summary>
public enum IscsiRejectReason
{
    /// <summary>A data digest does not match.</summary>
    DataDigestError = 0x02,

    /// <summary>SNACK needs a higher error recovery level.</summary>
    SnackReject = 0x03,

    /// <summary>Not legal here.</summary>
    ProtocolError = 0x04,

    /// <summary>Unknown opcode.</summary>
    CommandNotSupported = 0x05,

    /// <summary>Too many immediate commands.</summary>
    TooManyImmediate = 0x06,

    /// <summary>The tag is in use.</summary>
    TaskInProgress = 0x07,

    /// <summary>A field has no meaning.</summary>
    InvalidField = 0x09,

    /// <summary>Too long an exchange, or no room for it.</summary>
    LongOperation = 0x0A,

    /// <summary>After a request for logout.</summary>
    WaitingForLogout = 0x0C,
}

/// <summary>Reasons of a logout.</summary>
public enum IscsiLogoutReason
{
    /// <summary>All connections.</summary>
    CloseSession = 0,

    /// <summary>The connection of the named CID.</summary>
    CloseConnection = 1,

    /// <summary>To recover it elsewhere; needs error recovery level 2.</summary>
    Recovery = 2,
}

/// <summary>Outcomes of a logout.</summary>
public enum IscsiLogoutResponse
{
    /// <summary>Closed.</summary>
    Success = 0,

    /// <summary>No such connection in the session.</summary>
    CidNotFound = 1,

    /// <summary>Recovery is not offered.</summary>
    RecoveryNotSupported = 2,

    /// <summary>It failed.</summary>
    CleanupFailed = 3,
}

/// <summary>Events of an asynchronous message (RFC 7143, 11.9.1).</summary>
public enum IscsiAsyncEvent
{
    /// <summary>Sense data follow.</summary>
    ScsiEvent = 0,

    /// <summary>Please log out.</summary>
    LogoutRequest = 1,

    /// <summary>One connection is dropped.</summary>
    ConnectionDropped = 2,

    /// <summary>All connections of the session are dropped.</summary>
    SessionDropped = 3,

    /// <summary>Please negotiate.</summary>
    NegotiationRequest = 4,
}
