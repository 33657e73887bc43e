using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>What clients may take of this daemon, beside their number: the settings of docs/operating.md, "Limits of clients".</summary>
internal sealed record ClientLimits
{
    /// <summary>Connections that have not negotiated or logged in; the oldest gives way.</summary>
    public required int Negotiating { get; init; }

    /// <summary>From the first byte to the end of the negotiation or login, seconds.</summary>
    public required int NegotiationSeconds { get; init; }

    /// <summary>A client that takes nothing of what is sent to it is closed after so long, seconds.</summary>
    public required int StallSeconds { get; init; }

    /// <summary>I/O memory of each loop, bytes.</summary>
    public required ulong LoopBytes { get; init; }

    /// <summary>iSCSI sessions of one target.</summary>
    public required int IscsiSessions { get; init; }

    /// <summary>Commands in flight in an iSCSI session.</summary>
    public required int IscsiCommands { get; init; }

    /// <summary>Data of those commands, bytes.</summary>
    public required ulong IscsiWindowBytes { get; init; }

    /// <summary>Silence after which an iSCSI initiator is pinged, seconds.</summary>
    public required int IscsiPingSeconds { get; init; }

    /// <summary>How long a ping may stay unanswered, seconds.</summary>
    public required int IscsiPingWaitSeconds { get; init; }

    /// <summary>How many may be connected, of the process and of one address.</summary>
    public ConnectionLimits OfConnections(int connections, int perAddress) => new(connections, perAddress, Handshakes: Negotiating);

    /// <summary>As the iSCSI front end takes them.</summary>
    public IscsiOptions OfIscsi() => new()
    {
        LoginNanos = NanosOf(NegotiationSeconds),
        SendStallNanos = NanosOf(StallSeconds),
        SessionsMax = IscsiSessions,
        WindowCommands = IscsiCommands,
        WindowBytes = (int)IscsiWindowBytes,
        PingAfterNanos = NanosOf(IscsiPingSeconds),
        PingAnswerNanos = NanosOf(IscsiPingWaitSeconds),
    };

    /// <summary>As the NBD front end takes them.</summary>
    public NbdOptions OfNbd() => new() { HandshakeNanos = NanosOf(NegotiationSeconds), SendStallNanos = NanosOf(StallSeconds) };

    private static ulong NanosOf(int seconds) => (ulong)seconds * 1_000_000_000;
}
