using BlockServer.Core;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>What a build under simulation does wrong on purpose.</summary>
public enum SessionBreakage
{
    /// <summary>Nothing.</summary>
    None,

    /// <summary>Writes are acknowledged before the store has answered.</summary>
    AckBeforeStore,

    /// <summary>Flushes and FUA are answered without one.</summary>
    FlushForgotten,

    /// <summary>Task management is answered before what it aborted has ended.</summary>
    AbortAnsweredEarly,

    /// <summary>Aborted commands are answered all the same.</summary>
    AbortedAnswered,

    /// <summary>Task management does not wait for answers that other connections still have to take.</summary>
    AbortsOvertakeAnswers,

    /// <summary>DataSN is not looked at.</summary>
    DataSnUnchecked,

    /// <summary>Digests are not compared.</summary>
    DigestsUnchecked,

    /// <summary>A command number is taken twice.</summary>
    RepetitionsTaken,

    /// <summary>A session is reinstated before the old one has ended.</summary>
    ReinstatedAtOnce,

    /// <summary>Persistent reservations are not kept over a restart.</summary>
    ReservationsForgotten,

    /// <summary>Reservations are not asked.</summary>
    ReservationsIgnored,

    /// <summary>Unit attentions are told to nobody.</summary>
    AttentionsSwallowed,
}

/// <summary>What to simulate; null: drawn from the seed.</summary>
public sealed record SessionOptions
{
    /// <summary>A deliberately broken build.</summary>
    public SessionBreakage Breakage { get; init; }

    /// <summary>Durability mode of the store.</summary>
    public Durability? Durability { get; init; }

    /// <summary>Processes that live one after another on the medium.</summary>
    public int Lives { get; init; } = 3;

    /// <summary>Initiators and NBD clients of one life at most.</summary>
    public int ClientsMax { get; init; } = 4;

    /// <summary>Told about every PDU that an initiator sends or receives, for people; null for none.</summary>
    public Action<string>? Trace { get; init; }

    /// <summary>Requests of one life at most.</summary>
    public int RequestsPerLife { get; init; } = 250;
}
