namespace BlockServer.Tests.Simulation;

/// <summary>In which way a promise was broken.</summary>
public enum ViolationKind
{
    /// <summary>Something acknowledged that had to survive is not there (P1).</summary>
    LostWrite,

    /// <summary>A read went back behind something that was over (P2).</summary>
    StaleRead,

    /// <summary>Content that cannot be there: damaged, of another place, or a block that no change left (P4).</summary>
    WrongData,

    /// <summary>A part of a request is there after a crash (P3).</summary>
    TornRequest,

    /// <summary>Data of an honest disk cannot be read: its block was overwritten or never written.</summary>
    Unreadable,

    /// <summary>A store on an honest disk does not open.</summary>
    Refused,

    /// <summary>A volume is gone.</summary>
    LostVolume,

    /// <summary>A volume that must not be there is, or with a head it cannot have (P8).</summary>
    WrongVolume,

    /// <summary>A request failed on a disk that gave no reason for it.</summary>
    WrongAnswer,

    /// <summary>The allocation that was answered cannot be (holes over data, gaps).</summary>
    WrongMap,

    /// <summary>A scrub found what is not bad, or not what is.</summary>
    WrongScrub,

    /// <summary>Blocks or buffers are neither used nor free (S9).</summary>
    Leak,

    /// <summary>Something never ended.</summary>
    Hang,

    /// <summary>A seed gave other events the second time: something depends on more than the seed.</summary>
    OtherEvents,

    /// <summary>An exception, or an invariant that the store checks itself.</summary>
    Exception,

    /// <summary>The disk was used against its rules: a flush after a failed one, lent memory changed, misalignment.</summary>
    DiskMisuse,

    /// <summary>A volume did not get the room that it was promised.</summary>
    BrokenPromise,

    /// <summary>A peer of a session sent what its protocol does not allow: numbers, windows, lengths, order.</summary>
    WrongProtocol,

    /// <summary>A task was answered after its abort was.</summary>
    AnswerAfterAbort,

    /// <summary>A command took effect more than once.</summary>
    ExecutedTwice,

    /// <summary>A reservation let somebody through, or kept somebody out when there was none.</summary>
    WrongReservation,

    /// <summary>A unit attention was missing, told twice or told without a cause.</summary>
    WrongAttention,
}

/// <summary>A broken promise: its kind, and a sentence with what is needed to understand it.</summary>
public sealed record Violation(ViolationKind Kind, string Text)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Kind}: {Text}";
}
