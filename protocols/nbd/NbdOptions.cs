using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

/// <summary>Whether sessions are encrypted.</summary>
public enum NbdTlsMode
{
    /// <summary>STARTTLS is refused.</summary>
    None,

    /// <summary>A client may upgrade; exports that require TLS are refused until it does.</summary>
    Optional,

    /// <summary>Nothing but STARTTLS and ABORT before the upgrade.</summary>
    Required,
}

/// <summary>Settings of the NBD front end; the limits are those of trust.md D.5. Times are nanoseconds.</summary>
public sealed record NbdOptions
{
    /// <summary>Whether sessions are encrypted; anything but None needs <see cref="Tls"/>.</summary>
    public NbdTlsMode TlsMode { get; init; }

    /// <summary>Upgrades to TLS, or null.</summary>
    public ITlsUpgrade? Tls { get; init; }

    /// <summary>Who a client is that shows no certificate, for <see cref="INbdExports"/>; null: nobody.</summary>
    public string? DefaultIdentity { get; init; }

    /// <summary>False hides exports: LIST answers ERR_POLICY.</summary>
    public bool AllowList { get; init; } = true;

    /// <summary>From the first byte to GO.</summary>
    public ulong HandshakeNanos { get; init; } = 10_000_000_000;

    /// <summary>Options before GO.</summary>
    public int HandshakeOptionsMax { get; init; } = 32;

    /// <summary>Declared length of one option; a longer one ends the connection.</summary>
    public int OptionBytesMax { get; init; } = 64 << 10;

    /// <summary>Requests between header and reply.</summary>
    public int WindowRequests { get; init; } = 64;

    /// <summary>Data of those requests; one request may exceed it alone.</summary>
    public int WindowBytes { get; init; } = 16 << 20;

    /// <summary>A send that makes no progress for so long ends the session.</summary>
    public ulong SendStallNanos { get; init; } = 60_000_000_000;

    /// <summary>A request that began and then stays silent for so long ends the session.</summary>
    public ulong HalfRequestNanos { get; init; } = 30_000_000_000;

    /// <summary>After a stop request: how long new requests are still answered ESHUTDOWN before the connection closes.</summary>
    public ulong StopLingerNanos { get; init; } = 500_000_000;

    /// <summary>What a session receives into while the client is silent or sends one small request at a time.</summary>
    public int QuietBytes { get; init; } = 8 << 10;

    /// <summary>What it borrows of the loop's memory while more is there than fits that.</summary>
    public int ReceiveBytes { get; init; } = 256 << 10;
}
