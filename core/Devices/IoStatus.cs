namespace BlockServer.Core;

/// <summary>What became of an I/O. Expected outcomes are values; only a bug is an exception.</summary>
public enum IoStatus
{
    /// <summary>Done, as the called method promises.</summary>
    Ok = 0,

    /// <summary>Offset and length are not inside the device.</summary>
    OutOfRange,

    /// <summary>The request itself is malformed (for instance: longer than <see cref="Units.RequestBytesMax"/>).</summary>
    Invalid,

    /// <summary>The device refuses every change.</summary>
    ReadOnly,

    /// <summary>No free blocks or metadata slots (beyond the reserve).</summary>
    NoSpace,

    /// <summary>A checksum did not match and no good copy exists. The content is unknown; zeros are never invented.</summary>
    Corrupt,

    /// <summary>The medium answered with an error.</summary>
    IoError,

    /// <summary>The store stopped (a flush or log write failed), or the device is not attached here.</summary>
    Unavailable,

    /// <summary>The device cannot do this (for instance: FAST_ZERO without a fast way).</summary>
    NotSupported,

    /// <summary>The daemon or the device is shutting down; the request was not started.</summary>
    ShuttingDown,

    /// <summary>A name or id is taken, or a revision does not match.</summary>
    Conflict,

    /// <summary>No such volume, snapshot or disk.</summary>
    NotFound,

    /// <summary>A reservation of another client forbids it.</summary>
    Reserved,
}
