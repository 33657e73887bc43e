namespace BlockServer.Protocols.Nbd;

/// <summary>Numbers of the NBD protocol (doc/proto.md of the NBD project); see docs/wire-nbd.md.</summary>
public static class NbdWire
{
    /// <summary>First 8 bytes of a server's greeting, "NBDMAGIC".</summary>
    public const ulong Magic = 0x4e42444d41474943;

    /// <summary>"IHAVEOPT": second half of the greeting and start of every option.</summary>
    public const ulong OptionMagic = 0x49484156454F5054;

    /// <summary>Start of every option reply.</summary>
    public const ulong OptionReplyMagic = 0x0003e889045565a9;

    /// <summary>Start of a compact request.</summary>
    public const uint RequestMagic = 0x25609513;

    /// <summary>Start of an extended request.</summary>
    public const uint ExtendedRequestMagic = 0x21e41c71;

    /// <summary>Start of a simple reply.</summary>
    public const uint SimpleReplyMagic = 0x67446698;

    /// <summary>Start of a structured reply chunk.</summary>
    public const uint StructuredReplyMagic = 0x668e33ef;

    /// <summary>Start of an extended reply chunk.</summary>
    public const uint ExtendedReplyMagic = 0x6e8a278c;

    /// <summary>The metadata context that every export has.</summary>
    public const string BaseAllocation = "base:allocation";

    /// <summary>Id of the first metadata context that was chosen.</summary>
    public const uint FirstContextId = 1;
}

/// <summary>Options of the handshake.</summary>
public enum NbdOption
{
    /// <summary>Old way into transmission.</summary>
    ExportName = 1,

    /// <summary>The client leaves.</summary>
    Abort = 2,

    /// <summary>List exports.</summary>
    List = 3,

    /// <summary>Upgrade to TLS.</summary>
    StartTls = 5,

    /// <summary>Describe an export.</summary>
    Info = 6,

    /// <summary>Describe an export and enter transmission.</summary>
    Go = 7,

    /// <summary>Use structured replies.</summary>
    StructuredReply = 8,

    /// <summary>List metadata contexts.</summary>
    ListMetaContext = 9,

    /// <summary>Choose metadata contexts.</summary>
    SetMetaContext = 10,

    /// <summary>Use 64-bit requests and replies.</summary>
    ExtendedHeaders = 11,
}

/// <summary>Types of option replies; errors have the top bit.</summary>
public enum NbdReply : uint
{
    /// <summary>Done.</summary>
    Ack = 1,

    /// <summary>An export of a list.</summary>
    Server = 2,

    /// <summary>A piece of information about an export.</summary>
    Info = 3,

    /// <summary>A metadata context.</summary>
    MetaContext = 4,

    /// <summary>Unknown option.</summary>
    ErrUnsup = 0x80000001,

    /// <summary>Forbidden here.</summary>
    ErrPolicy = 0x80000002,

    /// <summary>Malformed option.</summary>
    ErrInvalid = 0x80000003,

    /// <summary>TLS first.</summary>
    ErrTlsReqd = 0x80000005,

    /// <summary>No such export.</summary>
    ErrUnknown = 0x80000006,

    /// <summary>The server is shutting down.</summary>
    ErrShutdown = 0x80000007,

    /// <summary>The option is too long.</summary>
    ErrTooBig = 0x80000009,

    /// <summary>Extended headers are already in use.</summary>
    ErrExtHeaderReqd = 0x8000000A,
}

/// <summary>Commands of the transmission phase.</summary>
public enum NbdCommand
{
    /// <summary>Read.</summary>
    Read = 0,

    /// <summary>Write.</summary>
    Write = 1,

    /// <summary>The client leaves; no reply.</summary>
    Disconnect = 2,

    /// <summary>Make answered changes durable.</summary>
    Flush = 3,

    /// <summary>Give blocks back.</summary>
    Trim = 4,

    /// <summary>Prefetch.</summary>
    Cache = 5,

    /// <summary>Zero a range.</summary>
    WriteZeroes = 6,

    /// <summary>Describe a range.</summary>
    BlockStatus = 7,
}

/// <summary>Flags of a request.</summary>
[Flags]
public enum NbdCommandFlags
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>Durable before the reply.</summary>
    Fua = 1,

    /// <summary>WRITE_ZEROES: allocate.</summary>
    NoHole = 2,

    /// <summary>READ: one data chunk.</summary>
    DontFragment = 4,

    /// <summary>BLOCK_STATUS: one extent.</summary>
    RequestOne = 8,

    /// <summary>WRITE_ZEROES: only if fast.</summary>
    FastZero = 16,

    /// <summary>Extended headers: the length is that of a payload.</summary>
    PayloadLength = 32,
}

/// <summary>Flags of an export.</summary>
[Flags]
public enum NbdTransmissionFlags
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>Always set.</summary>
    HasFlags = 1,

    /// <summary>No changes.</summary>
    ReadOnly = 2,

    /// <summary>FLUSH works.</summary>
    SendFlush = 4,

    /// <summary>FUA works.</summary>
    SendFua = 8,

    /// <summary>A rotating disk.</summary>
    Rotational = 16,

    /// <summary>TRIM works.</summary>
    SendTrim = 32,

    /// <summary>WRITE_ZEROES works.</summary>
    SendWriteZeroes = 64,

    /// <summary>DF works.</summary>
    SendDontFragment = 128,

    /// <summary>Several connections are coherent.</summary>
    CanMultiConn = 256,

    /// <summary>CACHE works.</summary>
    SendCache = 1024,

    /// <summary>FAST_ZERO works.</summary>
    SendFastZero = 2048,

    /// <summary>BLOCK_STATUS may carry a list of contexts.</summary>
    BlockStatusPayload = 4096,
}

/// <summary>Types of reply chunks.</summary>
public enum NbdChunk
{
    /// <summary>Nothing; ends a reply.</summary>
    None = 0,

    /// <summary>Data at an offset.</summary>
    OffsetData = 1,

    /// <summary>Zeros at an offset.</summary>
    OffsetHole = 2,

    /// <summary>Extents with 32-bit lengths.</summary>
    BlockStatus = 5,

    /// <summary>Extents with 64-bit lengths.</summary>
    BlockStatusExt = 6,

    /// <summary>The request failed.</summary>
    Error = 32769,
}

/// <summary>Errors of the wire.</summary>
public enum NbdError
{
    /// <summary>No error.</summary>
    None = 0,

    /// <summary>Not permitted: the export is read-only.</summary>
    Perm = 1,

    /// <summary>I/O error.</summary>
    Io = 5,

    /// <summary>Malformed request.</summary>
    Invalid = 22,

    /// <summary>No space, or past the end.</summary>
    NoSpace = 28,

    /// <summary>The reply would be too large for one chunk.</summary>
    Overflow = 75,

    /// <summary>FAST_ZERO is not possible here.</summary>
    NotSupported = 95,

    /// <summary>The server is shutting down.</summary>
    Shutdown = 108,
}

/// <summary>Which headers the transmission phase uses.</summary>
public enum NbdReplyMode
{
    /// <summary>Compact requests, simple replies.</summary>
    Simple,

    /// <summary>Compact requests, structured replies.</summary>
    Structured,

    /// <summary>Extended requests and replies.</summary>
    Extended,
}
