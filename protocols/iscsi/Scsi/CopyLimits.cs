namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Bounds of EXTENDED COPY; RECEIVE COPY RESULTS and VPD page 8F tell them.</summary>
internal static class CopyLimits
{
    /// <summary>Target descriptors in a list.</summary>
    public const byte TargetsMax = 8;

    /// <summary>Segment descriptors in a list.</summary>
    public const byte SegmentsMax = 32;

    /// <summary>Both lists together, bytes.</summary>
    public const int ListBytesMax = 2048;

    /// <summary>One segment, bytes: long enough to be worth it, short enough for an initiator's patience.</summary>
    public const uint SegmentBytesMax = 128 << 20;

    /// <summary>Copies at a time in one unit.</summary>
    public const byte ConcurrentMax = 4;

    /// <summary>Results kept per nexus; the oldest is forgotten.</summary>
    public const int ResultsMax = 16;
}

/// <summary>What became of a copy.</summary>
internal sealed class CopyResult(byte listId)
{
    public byte ListId { get; } = listId;

    public bool IsDone { get; set; }

    public Sense? Failure { get; set; }

    public ushort SegmentsDone { get; set; }

    public ulong BytesDone { get; set; }
}
