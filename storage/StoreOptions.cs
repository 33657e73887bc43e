using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>How a store is made and opened.</summary>
public sealed record StoreOptions
{
    /// <summary>What an acknowledgement means.</summary>
    public Durability Durability { get; init; }

    /// <summary>Format: size of the redo ring; 0 takes 1/64 of the store between 64 MiB and 1 GiB.</summary>
    public ulong RingBytes { get; init; }

    /// <summary>Format: part of the store that metadata slots take.</summary>
    public double SlotFraction { get; init; } = 0.02;

    /// <summary>Format: identity of the store; empty draws one.</summary>
    public Guid StoreUuid { get; init; }

    /// <summary>Format: the cluster it belongs to. Open: a store of another cluster is refused, one of none joins this
    /// one; empty asks nothing.</summary>
    public Guid ClusterUuid { get; init; }

    /// <summary>Format: overwrite whatever the medium holds.</summary>
    public bool Force { get; init; }

    /// <summary>RAM that metadata pages take at most, in bytes (at least four pages); those beyond it are read from their home
    /// when they are needed.</summary>
    public ulong MetadataBudgetBytes { get; init; } = 256 * Units.MiB;

    /// <summary>The owner promises room anew after every opening, and says so by <see cref="ILayeredStore.ResumeFlattening"/>: until then
    /// flattening and shrinks over snapshots that a restart interrupted wait, for what they take might be what somebody was promised.</summary>
    public bool AwaitsPromises { get; init; }

    /// <summary>Open although something acknowledged is lost; without it such a store is refused.</summary>
    public bool AcceptDataLoss { get; init; }

    /// <summary>The medium is durable by itself (write-through, or power-loss protection declared): fdatasync is skipped.</summary>
    public bool IsWriteThrough { get; init; }

    /// <summary>Longest time that an acknowledged write stays volatile without a flush by the client.</summary>
    public ulong FlushIntervalNanos { get; init; } = 5_000_000_000;

    /// <summary>Most bytes that stay volatile without a flush by the client.</summary>
    public ulong FlushBytes { get; init; } = 64 * Units.MiB;

    /// <summary>Scattered extents are laid out anew in the background, at no more than this many bytes a second; 0: never.
    /// </summary>
    public ulong RelayoutBytesPerSecond { get; init; }

    /// <summary>How long an extent is left alone after its last change before it is laid out anew, at least (and at most
    /// twice as long).</summary>
    public ulong RelayoutColdNanos { get; init; } = 10_000_000_000;

    /// <summary>Fewer cuts than this do not make an extent a scattered one.</summary>
    public int RelayoutCutsMin { get; init; } = 16;

    /// <summary>A scattered extent has at least one cut for this many blocks that hold data.</summary>
    public int RelayoutBlocksPerCut { get; init; } = 4;

    /// <summary>Percent of the data blocks, and of the metadata slots, beyond which nothing begins a new extent that was not
    /// promised room for it; 100: all of them but the reserve.</summary>
    public int ProtectPercent { get; init; } = 100;

    /// <summary>Tests only: blocks that come back are given out first, so that one that comes back too early is noticed.</summary>
    public bool ReusesSoon { get; init; }

    /// <summary>Bytes of waiting appends of which a batch is written while another one is flushed; fewer gather until that is done.</summary>
    public int AppendOverlapBytes { get; init; } = 64 << 10;

    /// <summary>Tests only: rules that the store breaks on purpose, to prove that the simulation notices.</summary>
    public BrokenRules BrokenRules { get; init; }
}

/// <summary>Rules that a test can break, each named by what is done wrong.</summary>
[Flags]
public enum BrokenRules : long
{
    /// <summary>All rules are kept.</summary>
    None = 0,

    /// <summary>Page images are written home before their log is durable (S4).</summary>
    SkipFlushBeforeHome = 1,

    /// <summary>A replaced block is free at once (S3).</summary>
    FreeEarly = 2,

    /// <summary>A write is acknowledged before its log page is complete (S6).</summary>
    CompleteBeforeLog = 4,

    /// <summary>A write is acknowledged before its data is complete (S6).</summary>
    AckBeforeData = 8,

    /// <summary>Recovery serves without its checkpoint and new incarnation (B1.7, step 6).</summary>
    NoEndOfRecoveryCheckpoint = 16,

    /// <summary>Recovery takes log pages of every incarnation (S8).</summary>
    AnyIncarnation = 32,

    /// <summary>Recovery applies records above the durable claim without checking their blocks (B1.7, step 3).</summary>
    SkipTailCrc = 64,

    /// <summary>A replaced block is free when its record is durable, not when a durable page says so (B1.5, 4a).</summary>
    ReuseAtDurable = 128,

    /// <summary>Recovery judges each record of a request by itself (P3).</summary>
    SplitRequests = 256,

    /// <summary>A flush is answered without asking the medium for one.</summary>
    SkipFlush = 512,

    /// <summary>A flush that failed is tried again, and the second answer believed (B1.5).</summary>
    RetryFlush = 1024,

    /// <summary>Recovery takes log pages whose checksum does not match (B1.7, step 3).</summary>
    AcceptTornLogPage = 2048,

    /// <summary>The end of recovery writes the superblock before the pages that it relies on (B1.7, step 6).</summary>
    SuperblockFirst = 4096,

    /// <summary>A checkpoint moves the log's tail past records of pages that became dirty meanwhile (S5).</summary>
    TrimLogTooFar = 8192,

    /// <summary>Reads are answered without looking at the checksum (S11).</summary>
    SkipReadCrc = 16384,

    /// <summary>A replaced block is free although an earlier read is still under way on it (B1.5, 4b).</summary>
    ReuseUnderRead = 32768,

    /// <summary>An overwrite frees a block that the layer below still has (B1.5, 4c).</summary>
    FreeShared = 1 << 23,

    /// <summary>A layer that goes frees the blocks that the layer above still has (B5).</summary>
    DropSharedBlocks = 1 << 24,

    /// <summary>A snapshot is cut while changes are under way: of an append-only volume its length lacks what its pages have (B1.10, B5).</summary>
    CutUnderWrites = 1 << 25,

    /// <summary>A layer's head goes before its pages (B5).</summary>
    DropLayerFirst = 1 << 26,

    /// <summary>The first write after a cut changes the snapshot's page (B5).</summary>
    WriteIntoSnapshot = 1 << 27,

    /// <summary>The first write to an extent of a layer begins an empty page instead of what the layers below show.</summary>
    ForgetBelow = 1 << 28,

    /// <summary>A snapshot that a clone builds on is deleted.</summary>
    IgnoreClones = 1 << 29,

    /// <summary>Changes go on after a cut that is not durable yet, over images of what a power cut may take.</summary>
    ThawEarly = 1 << 19,

    /// <summary>The places that a relaid extent left are free at once, not when its record is claimed (S3).</summary>
    FreeRelaidEarly = 1 << 20,

    /// <summary>An extent is laid out anew although it was written meanwhile.</summary>
    RelayOverWrite = 1 << 21,

    /// <summary>An extent is laid out anew although its last changes are not claimed, so that a power cut may take them and
    /// leave the new layout (P3).</summary>
    RelayUnclaimed = 1 << 22,

    /// <summary>Recovery goes on from a page that is older than the log behind it needs (B1.7, step 3).</summary>
    OlderPage = 1 << 30,

    /// <summary>The length of an append-only volume is said before the data is there (B1.10).</summary>
    LengthBeforeData = 1L << 40,

    /// <summary>An append that has landed is not recognised when it is repeated (B1.10).</summary>
    ForgetAppends = 1L << 41,

    /// <summary>An append is answered before it is durable (B1.10).</summary>
    AnswerAppendEarly = 1L << 42,

    /// <summary>The length of a large append is said while its pieces are not durable (B1.10).</summary>
    LargeAppendUnflushed = 1L << 43,

    /// <summary>A flush is asked for while another is under way, of which it may be the one that hears no error (B1.5).</summary>
    FlushTogether = 1L << 45,

    /// <summary>The volumes of a group are cut one after the other (B5).</summary>
    CutApart = 1L << 46,

    /// <summary>Growth takes what was promised to others (decision 0014).</summary>
    IgnorePromises = 1L << 48,

    /// <summary>What of a promise lies in the log and is not applied yet is counted as not taken, and so kept twice (decision 0014).</summary>
    PromiseTwice = 1L << 49,

    /// <summary>A promise counts on room that a power cut takes back (decision 0014).</summary>
    PromiseEarly = 1L << 50,

    /// <summary>What a relayout holds for a moment is missing from what was promised (decision 0014).</summary>
    RelayTakesPromises = 1L << 51,

    /// <summary>Recovery keeps an append although one in front of it is lost (B1.7, step 3).</summary>
    AppendOverGap = 1L << 44,

    /// <summary>An append that waits behind a refused one of its client is taken all the same.</summary>
    AppendPastRefusal = 1L << 47,
}

/// <summary>What became of opening a store.</summary>
/// <param name="Store">The store, or null.</param>
/// <param name="Refusal">Why it was not opened, a sentence for the operator, or null.</param>
public sealed record StoreOpenResult(IStore? Store, string? Refusal);
