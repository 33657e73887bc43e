namespace BlockServer.Tests.Simulated.Disk;

/// <summary>What a simulated disk can do to its user; each is counted.</summary>
public enum DiskEvent
{
    /// <summary>An answer came 10 to 1,000 times later than usual.</summary>
    Slow,

    /// <summary>A request was never answered.</summary>
    Hang,

    /// <summary>A read failed once.</summary>
    ReadError,

    /// <summary>A write failed with EIO.</summary>
    WriteError,

    /// <summary>A write met a page that takes none, ever: EIO.</summary>
    BadPage,

    /// <summary>A write failed with ENOSPC.</summary>
    NoSpace,

    /// <summary>A flush failed, what it covered is gone in part.</summary>
    FlushError,

    /// <summary>A page became unreadable.</summary>
    LatentReadError,

    /// <summary>A bit of a page changed.</summary>
    BitRot,

    /// <summary>A write was answered and not done.</summary>
    LostWrite,

    /// <summary>A write was answered and done elsewhere.</summary>
    MisdirectedWrite,

    /// <summary>A crash left a part of a write.</summary>
    TornWrite,

    /// <summary>A crash left nothing of a write.</summary>
    DroppedWrite,

    /// <summary>A crash left a write, but not an earlier one.</summary>
    ReorderedWrite,
}
