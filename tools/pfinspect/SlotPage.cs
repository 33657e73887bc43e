using BlockServer.Storage;

namespace BlockServer.Pfinspect;

/// <summary>What a metadata slot holds: from its newer home, then brought forward by the log.</summary>
public sealed class SlotPage
{
    /// <summary>The slot.</summary>
    public required uint Slot { get; init; }

    /// <summary>What it is.</summary>
    public required MetadataKind Kind { get; set; }

    /// <summary>The volume.</summary>
    public required uint VolumeId { get; init; }

    /// <summary>The extent's index; 0 in a volume's head.</summary>
    public required uint Extent { get; init; }

    /// <summary>The layer that an extent belongs to, or that a snapshot's head is of; 0 in everything else.</summary>
    public uint Layer { get; set; }

    /// <summary>LSN of the last record that it contains.</summary>
    public required ulong PageLsn { get; set; }

    /// <summary>The 256 entries of an extent.</summary>
    public byte[] Entries { get; init; } = [];

    /// <summary>The head of a volume.</summary>
    public VolumeHeadLayout Head { get; set; }

    /// <summary>The head of a snapshot.</summary>
    public SnapshotLayout Snapshot { get; set; }

    /// <summary>Length and clients that a page of an append-only volume holds; null in everything else.</summary>
    public AppendPage? Appends { get; init; }

    /// <summary>The numbers of a page of bad blocks.</summary>
    public SortedSet<uint> BadBlocks { get; init; } = [];
}

/// <summary>Collects problems; keeps the first <see cref="KeptMax"/> and counts all.</summary>
public sealed class ProblemList
{
    /// <summary>How many are kept.</summary>
    public const int KeptMax = 1000;

    private readonly List<Problem> _kept = [];

    /// <summary>Those kept.</summary>
    public IReadOnlyList<Problem> Kept => _kept;

    /// <summary>All that were found.</summary>
    public ulong Count { get; private set; }

    /// <summary>Something is lost or broken.</summary>
    public bool HasErrors { get; private set; }

    /// <summary>Adds something lost or broken.</summary>
    public void Error(string rule, string where, string what)
    {
        HasErrors = true;
        Add(new Problem("error", rule, where, what));
    }

    /// <summary>Adds something that the next open mends.</summary>
    public void Warning(string rule, string where, string what) => Add(new Problem("warning", rule, where, what));

    private void Add(Problem problem)
    {
        Count++;
        if (_kept.Count < KeptMax) _kept.Add(problem);
    }
}
