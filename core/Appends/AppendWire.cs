namespace BlockServer.Core;

/// <summary>An append stream (docs/api.md, "Append stream"): one HTTP request that was upgraded, then frames of appends one way and
/// replies the other way. What both ends agree on.</summary>
public static class AppendWire
{
    /// <summary>The protocol's name in the Upgrade header; its number changes with the frames.</summary>
    public const string Protocol = "blockd-append/1";

    /// <summary>Header of the 101 answer: the number of the volume, which every frame repeats.</summary>
    public const string VolumeHeader = "Blockd-Volume";

    /// <summary>Bytes of one append, at most.</summary>
    public const int DataBytesMax = Units.RequestBytesMax;

    /// <summary>Appends of one client that may be without a reply: as many as a volume remembers of it, so that all of them can be
    /// sent again by another stream.</summary>
    public const int ClientWindow = 16;
}

/// <summary>What a reply says of an append. The numbers are the wire's and never change.</summary>
public enum AppendCode : ushort
{
    /// <summary>It has landed and is durable.</summary>
    Done = 0,

    /// <summary>No client, no sequence, or a length that cannot be. Ends the stream.</summary>
    Invalid = 1,

    /// <summary>The volume was deleted. From here to <see cref="Unavailable"/> as <see cref="AppendOutcome"/>; each ends the stream.</summary>
    NotFound = 2,

    /// <summary>See <see cref="AppendOutcome.Sealed"/>.</summary>
    Sealed = 3,

    /// <summary>See <see cref="AppendOutcome.Full"/>.</summary>
    Full = 4,

    /// <summary>See <see cref="AppendOutcome.StaleSequence"/>.</summary>
    StaleSequence = 5,

    /// <summary>See <see cref="AppendOutcome.UnknownClient"/>.</summary>
    UnknownClient = 6,

    /// <summary>See <see cref="AppendOutcome.Differs"/>.</summary>
    Differs = 7,

    /// <summary>See <see cref="AppendOutcome.NoSpace"/>.</summary>
    NoSpace = 8,

    /// <summary>See <see cref="AppendOutcome.Damaged"/>.</summary>
    Damaged = 9,

    /// <summary>See <see cref="AppendOutcome.Unavailable"/>; send it again by another stream.</summary>
    Unavailable = 10,

    /// <summary>What came is no frame. Client and sequence are zeros. Ends the stream.</summary>
    BadFrame = 32,

    /// <summary>The bytes are not those that the frame's checksum was made of; send them again by another stream.</summary>
    DamagedOnTheWay = 33,

    /// <summary>The frame names another volume than the stream's. Ends the stream.</summary>
    WrongVolume = 34,

    /// <summary>The rest of a frame came too slowly. Ends the stream.</summary>
    TooSlow = 35,
}
