namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>What a run did and judged; every one must have happened in a run of the default seeds, or a promise was not
/// looked at.</summary>
public enum SessionDid
{
    /// <summary>Sessions in full feature phase.</summary>
    Logins,

    /// <summary>Connections that joined a session.</summary>
    Joins,

    /// <summary>Sessions with header digests.</summary>
    HeaderDigests,

    /// <summary>Sessions with data digests.</summary>
    DataDigests,

    /// <summary>Sessions that sent immediate and unsolicited data.</summary>
    ImmediateUnsolicited,

    /// <summary>Sessions with immediate data, the rest asked for.</summary>
    ImmediateSolicited,

    /// <summary>Sessions with unsolicited data in PDUs of its own only.</summary>
    UnsolicitedOnly,

    /// <summary>Sessions in which all data is asked for.</summary>
    SolicitedOnly,

    /// <summary>R2Ts that came while another one of their command was open.</summary>
    ParallelR2Ts,

    /// <summary>Commands of SCSI answered.</summary>
    Commands,

    /// <summary>Reads judged.</summary>
    ReadsJudged,

    /// <summary>Writes acknowledged.</summary>
    Writes,

    /// <summary>UNMAP and WRITE SAME acknowledged.</summary>
    Zeroes,

    /// <summary>Allocation answers judged.</summary>
    MapsJudged,

    /// <summary>EXTENDED COPY acknowledged.</summary>
    Copies,

    /// <summary>EXTENDED COPY between units of different loops acknowledged.</summary>
    FarCopies,

    /// <summary>Synchronize cache acknowledged.</summary>
    Flushes,

    /// <summary>COMPARE AND WRITE that won.</summary>
    Exchanges,

    /// <summary>COMPARE AND WRITE that lost.</summary>
    Miscompares,

    /// <summary>Commands sent twice with one number.</summary>
    Repetitions,

    /// <summary>Data-Out with a hole in its numbers, refused.</summary>
    LostData,

    /// <summary>ABORT TASK that ended its task.</summary>
    Aborts,

    /// <summary>Functions that ended whole task sets.</summary>
    SetAborts,

    /// <summary>Tasks that ended because another session asked for it.</summary>
    Vanished,

    /// <summary>Connections cut at a drawn byte.</summary>
    Cuts,

    /// <summary>Connections that died without the target being told.</summary>
    SilentCuts,

    /// <summary>Bits that the network flipped under digests.</summary>
    Flips,

    /// <summary>Sessions that took the place of one that was alive.</summary>
    Reinstatements,

    /// <summary>Connections that took the place of one that was alive.</summary>
    ConnectionReinstatements,

    /// <summary>Sessions logged out.</summary>
    Logouts,

    /// <summary>Connections logged out of a session that went on.</summary>
    ConnectionLogouts,

    /// <summary>Unit attentions taken.</summary>
    Attentions,

    /// <summary>Events that were told to sessions which had not asked.</summary>
    Events,

    /// <summary>Reservations that held.</summary>
    Reservations,

    /// <summary>Commands that a reservation refused.</summary>
    Conflicts,

    /// <summary>Reservations preempted.</summary>
    Preemptions,

    /// <summary>Reservations that were there after a restart.</summary>
    KeptReservations,

    /// <summary>NBD sessions.</summary>
    NbdSessions,

    /// <summary>NBD requests answered.</summary>
    NbdRequests,

    /// <summary>NBD connections cut at a drawn byte.</summary>
    NbdCuts,

    /// <summary>Kills under load.</summary>
    Kills,

    /// <summary>Power cuts under load.</summary>
    PowerCuts,

    /// <summary>Orderly stops under load.</summary>
    Stops,

    /// <summary>Lives after which everything had to be given back.</summary>
    CleanEnds,
}

/// <summary>Plain counts of a run, or of many.</summary>
public sealed class SessionCounters : IRunCounters<SessionCounters>
{
    private readonly long[] _did = new long[Enum.GetValues<SessionDid>().Length];

    /// <summary>How often.</summary>
    public long this[SessionDid what]
    {
        get => _did[(int)what];
        set => _did[(int)what] = value;
    }

    /// <summary>Everything that never happened.</summary>
    public IReadOnlyList<string> Missing => [.. Enum.GetValues<SessionDid>().Where(what => this[what] == 0).Select(what => what.ToString())];

    /// <summary>Adds another run's counts.</summary>
    public void Add(SessionCounters other)
    {
        for (int i = 0; i < _did.Length; i++) _did[i] += other._did[i];
    }

    /// <inheritdoc/>
    public override string ToString() => string.Join(", ", Enum.GetValues<SessionDid>().Select(what => $"{what} {this[what]}"));
}
