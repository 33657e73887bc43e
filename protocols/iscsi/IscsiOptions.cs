namespace BlockServer.Protocols.Iscsi;

/// <summary>Settings of the iSCSI front end; times are nanoseconds, lengths bytes.</summary>
public sealed record IscsiOptions
{
    /// <summary>From the first byte to full feature phase.</summary>
    public ulong LoginNanos { get; init; } = 10_000_000_000;

    /// <summary>Requests of one login.</summary>
    public int LoginPdusMax { get; init; } = 16;

    /// <summary>Text of one exchange, over all its continued PDUs.</summary>
    public int TextBytesMax { get; init; } = 64 << 10;

    /// <summary>A login that is refused for its credentials is answered so much later.</summary>
    public ulong AuthenticationFailureNanos { get; init; } = 1_000_000_000;

    /// <summary>Offer of the HeaderDigest and DataDigest keys: without it only None is agreed to.</summary>
    public bool AllowDigests { get; init; } = true;

    /// <summary>Largest data segment that is taken, 512 to 2^24-1.</summary>
    public int MaxRecvDataSegmentLength { get; init; } = 1 << 20;

    /// <summary>Our bound of MaxBurstLength.</summary>
    public int MaxBurstLength { get; init; } = IscsiWire.LengthMax;

    /// <summary>Our bound of FirstBurstLength. A session may make the target hold so much for every command in its window.</summary>
    public int FirstBurstLength { get; init; } = 256 << 10;

    /// <summary>Our wish for InitialR2T; Yes wins.</summary>
    public bool InitialR2T { get; init; }

    /// <summary>Our wish for ImmediateData; No wins.</summary>
    public bool ImmediateData { get; init; } = true;

    /// <summary>Our bound of MaxOutstandingR2T.</summary>
    public int MaxOutstandingR2T { get; init; } = 8;

    /// <summary>Our bound of MaxConnections.</summary>
    public int MaxConnections { get; init; } = 8;

    /// <summary>Least time before an initiator comes back after a drop, seconds.</summary>
    public int DefaultTime2Wait { get; init; }

    /// <summary>Commands between delivery and status in one session: the window of CmdSN.</summary>
    public int WindowCommands { get; init; } = 128;

    /// <summary>Data of those commands; one command may exceed it alone.</summary>
    public int WindowBytes { get; init; } = 16 << 20;

    /// <summary>SCSI commands beyond the window by their immediate bit.</summary>
    public int ImmediateCommandsMax { get; init; } = 16;

    /// <summary>Sessions of one target.</summary>
    public int SessionsMax { get; init; } = 64;

    /// <summary>Silence after which the initiator is pinged.</summary>
    public ulong PingAfterNanos { get; init; } = 5_000_000_000;

    /// <summary>A ping unanswered for so long ends the session, and so does Data-Out that was asked for or announced and does not
    /// come. Long, because a client may work in one thread that answers
    /// nothing while it sleeps or computes (libiscsi's synchronous calls; its test suite sleeps for 60 s), and losing its
    /// session loses it what belongs to the nexus. A dead initiator does no harm meanwhile: when it comes back by its name, its
    /// login takes the old session's place at once.</summary>
    public ulong PingAnswerNanos { get; init; } = 90_000_000_000;

    /// <summary>A send that makes no progress for so long ends the session.</summary>
    public ulong SendStallNanos { get; init; } = 60_000_000_000;

    /// <summary>A PDU that began and then stays silent for so long ends the session.</summary>
    public ulong HalfPduNanos { get; init; } = 30_000_000_000;

    /// <summary>After a stop request or a logout: how long a connection may stay.</summary>
    public ulong StopLingerNanos { get; init; } = 500_000_000;

    /// <summary>How long an initiator that was asked to log out may stay.</summary>
    public ulong LogoutNanos { get; init; } = 10_000_000_000;

    /// <summary>Size of a connection's receive buffer after login.</summary>
    public int ReceiveBytes { get; init; } = 256 << 10;

    /// <summary>For the simulation only: see <see cref="IscsiBrokenRules"/>.</summary>
    public IscsiBrokenRules BrokenRules { get; init; }

    internal bool Breaks(IscsiBrokenRules rule) => (BrokenRules & rule) != 0;
}
