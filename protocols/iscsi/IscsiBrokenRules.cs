namespace BlockServer.Protocols.Iscsi;

/// <summary>Rules that this front end breaks on purpose, so that the simulation can prove that it would notice. Never set
/// by the daemon.</summary>
[Flags]
public enum IscsiBrokenRules
{
    /// <summary>None: the product.</summary>
    None = 0,

    /// <summary>Data-Out is taken whatever its DataSN: a lost piece goes unnoticed.</summary>
    IgnoreDataSn = 1,

    /// <summary>Digests are not compared.</summary>
    IgnoreDigests = 2,

    /// <summary>A command number that came before is taken again.</summary>
    TakeRepeatedCommands = 4,

    /// <summary>A reinstated session is answered before the commands of the old one have ended.</summary>
    ReinstateAtOnce = 8,

    /// <summary>The answer to task management does not wait for answers that other connections still have to take.</summary>
    AnswerAbortsAtOnce = 16,
}
