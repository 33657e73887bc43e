namespace BlockServer.Core;

/// <summary>How an acknowledged write survives (engine B2.6).</summary>
public enum Durability
{
    /// <summary>Like a disk with a cache: an ack survives the death of the daemon, FLUSH and FUA make it survive power loss.</summary>
    Flush,

    /// <summary>Every ack is durable on the medium.</summary>
    Ack,
}

/// <summary>What a store keeps about a volume, so that a lost metadata database can be rebuilt from disks.</summary>
/// <param name="Id">Number of the volume, unique in the cluster and never reused; not 0.</param>
/// <param name="Uuid">Identity for clients (NAA, unique in the world).</param>
/// <param name="Name">The operator's name, <see cref="VolumeName"/> rules.</param>
/// <param name="SizeBytes">Size, a multiple of 512, between <see cref="Units.VolumeBytesMin"/> and <see cref="Units.VolumeBytesMax"/>.</param>
/// <param name="Epoch">Leader epoch (B2.3); 1 until there is replication.</param>
public sealed record VolumeHead(uint Id, Guid Uuid, string Name, ulong SizeBytes, ulong Epoch)
{
    /// <summary>Bytes are only added at its end (<see cref="IAppendStore"/>); <see cref="SizeBytes"/> is the length that it never
    /// exceeds. Never changes.</summary>
    public bool IsAppendOnly { get; init; }

    /// <summary>Nothing is added any more either. Never taken back.</summary>
    public bool IsSealed { get; init; }
}

/// <summary>Why a store is where it is.</summary>
public enum StoreState
{
    /// <summary>Serving.</summary>
    Online,

    /// <summary>A flush, log or metadata write failed: every request is answered Unavailable until it is opened anew.</summary>
    Failed,

    /// <summary>Closed cleanly.</summary>
    Closed,
}

/// <summary>A store's figures; plain counters read on the store's loop. Times are nanoseconds.</summary>
public sealed record StoreStats
{
    /// <summary>Blocks that data may use in all.</summary>
    public required ulong BlocksTotal { get; init; }

    /// <summary>Blocks that live mappings reference.</summary>
    public required ulong BlocksUsed { get; init; }

    /// <summary>Blocks freed but not reusable yet.</summary>
    public required ulong BlocksQuarantined { get; init; }

    /// <summary>Blocks never given to writes, so that trim, delete and overwrite always progress (S10).</summary>
    public required ulong BlocksReserved { get; init; }

    /// <summary>Blocks that new extents keep free, the reserve included.</summary>
    public ulong BlocksKept { get; init; }

    /// <summary>Blocks that are free when all that is under way has ended.</summary>
    public ulong BlocksFreeSoon { get; init; }

    /// <summary>Blocks that were promised to volumes and not taken yet.</summary>
    public ulong BlocksPromised { get; init; }

    /// <summary>Metadata slots that new extents keep free.</summary>
    public ulong SlotsKept { get; init; }

    /// <summary>Metadata slots that were promised to volumes and not taken yet.</summary>
    public ulong SlotsPromised { get; init; }

    /// <summary>Bytes of the redo ring.</summary>
    public ulong LogBytes { get; init; }

    /// <summary>Bytes of the whole store.</summary>
    public ulong MediumBytes { get; init; }

    /// <summary>Metadata slots in all.</summary>
    public required ulong SlotsTotal { get; init; }

    /// <summary>Metadata slots in use, those that are coming back included.</summary>
    public required ulong SlotsUsed { get; init; }

    /// <summary>Of <see cref="SlotsUsed"/>, slots that hold nothing any more: the next checkpoints give them back. Whoever needs one
    /// waits for those, and an idle store makes none.</summary>
    public ulong SlotsReturning { get; init; }

    /// <summary>Metadata slots that hold something: what levels and figures of room go by.</summary>
    public ulong SlotsHeld => SlotsUsed - SlotsReturning;

    /// <summary>Metadata pages in RAM, in bytes.</summary>
    public required ulong MetadataResidentBytes { get; init; }

    /// <summary>RAM budget for metadata pages, in bytes.</summary>
    public required ulong MetadataBudgetBytes { get; init; }

    /// <summary>RAM that says where metadata pages are (slots, extents of volumes), in bytes; not part of the budget.</summary>
    public ulong MetadataTableBytes { get; init; }

    /// <summary>Metadata pages read from their home since open, because they were not in RAM.</summary>
    public ulong MetadataLoads { get; init; }

    /// <summary>Metadata pages put out of RAM for others since open.</summary>
    public ulong MetadataEvictions { get; init; }

    /// <summary>RAM of the allocation bitmap, in bytes.</summary>
    public ulong BitmapBytes { get; init; }

    /// <summary>Blocks taken out of use because the medium did not take or keep what was written there.</summary>
    public ulong BlocksBad { get; init; }

    /// <summary>Blocks that are free at this moment, the reserve included.</summary>
    public ulong BlocksFree { get; init; }

    /// <summary>Extents that are to be laid out anew because reads in order find them in too many places.</summary>
    public ulong ExtentsScattered { get; init; }

    /// <summary>Blocks written anew by relayout since open.</summary>
    public ulong BlocksRelaid { get; init; }

    /// <summary>Extents that were written by a client while they were laid out anew, since open: what was done for them is
    /// void.</summary>
    public ulong RelayoutsLost { get; init; }

    /// <summary>Extents left as they are since open, because a block or the page of them cannot be read.</summary>
    public ulong RelayoutsSkipped { get; init; }

    /// <summary>Part of the redo ring that is in use, 0 to 1.</summary>
    public required double RingOccupancy { get; init; }

    /// <summary>Completed checkpoint cycles since open.</summary>
    public required ulong Checkpoints { get; init; }

    /// <summary>Bytes of metadata pages that checkpoints wrote since open.</summary>
    public ulong CheckpointBytes { get; init; }

    /// <summary>How long ago the last cycle ended, while changed metadata pages wait for the next; 0: none does.</summary>
    public ulong CheckpointAgeNanos { get; init; }

    /// <summary>Blocks whose checksum did not match, since open.</summary>
    public required ulong ChecksumErrors { get; init; }

    /// <summary>Medium errors since open.</summary>
    public required ulong IoErrors { get; init; }

    /// <summary>Why the store failed, or null.</summary>
    public required string? FailReason { get; init; }
}

/// <summary>What a scrub found so far.</summary>
/// <param name="BlocksRead">Blocks read and verified.</param>
/// <param name="BlocksTotal">Blocks to read in this pass.</param>
/// <param name="Bad">Each bad block: volume, byte offset, reason. At most 1,000 are kept.</param>
/// <param name="Finished">The pass is through.</param>
/// <param name="Position">Where another pass over the same goes on, also after a restart: what lies in front of it was read.</param>
public sealed record ScrubReport(ulong BlocksRead, ulong BlocksTotal, IReadOnlyList<BadBlock> Bad, bool Finished, ulong Position = 0);

/// <summary>One block that could not be read right. What several snapshots, clones and volumes show is named once, where it
/// was written.</summary>
/// <param name="VolumeId">The volume.</param>
/// <param name="OffsetBytes">Where in it, or the start of an extent of which nothing can be found.</param>
/// <param name="Reason">Corrupt or IoError.</param>
public readonly record struct BadBlock(uint VolumeId, ulong OffsetBytes, IoStatus Reason)
{
    /// <summary>Only snapshots show it, and this is the oldest of them that does; null when the volume does.</summary>
    public Guid? Snapshot { get; init; }
}

/// <summary>
/// A store: one file or raw device that holds volumes. Lives on one loop; every member is called on that loop's thread
/// and answers there. Opened by the storage room, wired by blockd, and seen by everybody else only through this face.
/// </summary>
public interface IStore
{
    /// <summary>Identity of this store, from its superblock.</summary>
    Guid StoreUuid { get; }

    /// <summary>Whether it serves.</summary>
    StoreState State { get; }

    /// <summary>Current figures; allocates, so not for the hot path.</summary>
    StoreStats GetStats();

    /// <summary>Every volume that has a head here, ordered by id.</summary>
    IReadOnlyList<VolumeHead> Volumes { get; }

    /// <summary>Creates an empty volume; durable when Ok. Errors: Conflict (id exists), NoSpace (no slot), Invalid, Unavailable.</summary>
    ValueTask<IoStatus> CreateVolumeAsync(VolumeHead head);

    /// <summary>Deletes a volume: durable when Ok, its blocks are freed in the background (resumed after a restart).
    /// Open devices answer Unavailable from then on. Errors: NotFound, Unavailable.</summary>
    ValueTask<IoStatus> DeleteVolumeAsync(uint volumeId);

    /// <summary>Replaces the head (rename, resize, epoch). Shrinking drops what lies beyond the new end and never lets it
    /// come back. Open devices see the new size. Durable when Ok.</summary>
    ValueTask<IoStatus> UpdateVolumeAsync(VolumeHead head);

    /// <summary>The device of a volume, or null when there is no such volume. Devices are cheap and need no disposal; all
    /// devices of one volume are coherent.</summary>
    IBlockDevice? OpenVolume(uint volumeId);

    /// <summary>Allocated bytes of a volume (whole blocks).</summary>
    ulong UsedBytes(uint volumeId);

    /// <summary>First byte behind the last allocated block of a volume, 0 when it is empty; for refusing a shrink.</summary>
    ValueTask<ulong> HighestUsedByteAsync(uint volumeId);

    /// <summary>Makes everything acknowledged durable.</summary>
    ValueTask<IoStatus> FlushAsync();

    /// <summary>Reads and verifies every allocated block of one volume, or of all when <paramref name="volumeId"/> is null,
    /// at no more than <paramref name="bytesPerSecond"/> (0: unlimited), and with rests while clients ask for something;
    /// <paramref name="progress"/> is called on the loop about once a second, at every 32 MiB and at the end. Goes on at
    /// <paramref name="position"/> of an earlier report; 0: from the begin. Cancelled between blocks.</summary>
    ValueTask<ScrubReport> ScrubAsync(
        uint? volumeId, ulong bytesPerSecond, Action<ScrubReport>? progress, CancellationToken cancel, ulong position = 0);

    /// <summary>Finishes what is in flight, checkpoints, sets the clean flag. New requests answer ShuttingDown.</summary>
    ValueTask<IoStatus> CloseAsync();
}
