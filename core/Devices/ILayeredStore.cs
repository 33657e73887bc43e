namespace BlockServer.Core;

/// <summary>What to cut: a snapshot that does not exist yet.</summary>
/// <param name="VolumeId">The volume.</param>
/// <param name="Uuid">Identity of the snapshot, not empty.</param>
/// <param name="Name">Name within the volume, <see cref="VolumeName"/> rules.</param>
/// <param name="UnixSeconds">Time to show, seconds since 1970.</param>
public sealed record SnapshotRequest(uint VolumeId, Guid Uuid, string Name, ulong UnixSeconds);

/// <summary>A snapshot as the store knows it.</summary>
/// <param name="VolumeId">The volume that it was cut from.</param>
/// <param name="Uuid">Identity.</param>
/// <param name="Name">Name within the volume.</param>
/// <param name="SizeBytes">Size of the volume at the cut.</param>
/// <param name="UnixSeconds">When, seconds since 1970, as the request said.</param>
/// <param name="CutVersion">The last version that it contains.</param>
/// <param name="Clones">Volumes that build on it and are in the way of its deletion.</param>
public sealed record SnapshotInfo(
    uint VolumeId, Guid Uuid, string Name, ulong SizeBytes, ulong UnixSeconds, ulong CutVersion, IReadOnlyList<uint> Clones)
{
    /// <summary>Length at the cut, of an append-only volume; what is behind it up to the size reads as zeros.</summary>
    public ulong? LengthBytes { get; init; }
}

/// <summary>What a snapshot takes.</summary>
/// <param name="UsedBytes">What it shows that is not a hole; shared or not.</param>
/// <param name="ExclusiveBytes">What its deletion would free.</param>
public readonly record struct SnapshotUsage(ulong UsedBytes, ulong ExclusiveBytes);

/// <summary>A stretch of a volume that two views of it agree on, or do not.</summary>
/// <param name="LengthBytes">Length.</param>
/// <param name="IsChanged">It was written or zeroed in between; the content may be the same all the same.</param>
public readonly record struct DiffRun(ulong LengthBytes, bool IsChanged);

/// <summary>A stretch of a volume and how many layers down what it shows was written.</summary>
/// <param name="LengthBytes">Length.</param>
/// <param name="Depth">0: a hole. 1: written since the newest snapshot (of a snapshot: since the one before it); 2: in front of
/// that one; and so on, through what a clone is a clone of.</param>
public readonly record struct DepthRun(ulong LengthBytes, uint Depth);

/// <summary>A deleted snapshot whose blocks are given back.</summary>
/// <param name="PagesLeft">Metadata pages to go.</param>
/// <param name="Waits">Several layers build on it: it goes when one of them is left.</param>
public readonly record struct FreeingState(long PagesLeft, bool Waits);

/// <summary>
/// A store with snapshots and clones. All of it lives on the store's loop. Snapshots are named by volume and UUID; one that
/// is being deleted is not there any more. Errors of all: Unavailable (the store stopped), ShuttingDown, NotFound.
/// </summary>
public interface ILayeredStore : IStore
{
    /// <summary>How long each cut since the start held changes back, from the moment at which they stop until they go on, by the
    /// clock of the loop, which is read once a turn.</summary>
    PauseCounters CutPauses { get; }

    /// <summary>Snapshots of a volume, oldest first.</summary>
    IReadOnlyList<SnapshotInfo> Snapshots(uint volumeId);

    /// <summary>The snapshot of that name, or null. As quick among ten thousand as alone.</summary>
    SnapshotInfo? FindSnapshot(uint volumeId, string name);

    /// <summary>The snapshot of that identity, or null. As quick.</summary>
    SnapshotInfo? FindSnapshot(uint volumeId, Guid snapshot);

    /// <summary>How many snapshots a volume has. As quick.</summary>
    int SnapshotCount(uint volumeId);

    /// <summary>The snapshot that a volume was cloned from, or null.</summary>
    (uint VolumeId, Guid Snapshot)? BaseOf(uint volumeId);

    /// <summary>Cuts one snapshot of each volume, all at one moment: what was answered before is in them, what is asked for
    /// after the answer is not. Changes wait meanwhile. Durable when Ok. Errors: Invalid (a name, no or more than
    /// 13 volumes), Conflict (the UUID or name is taken, the volume is being flattened), NoSpace (no metadata slot).</summary>
    ValueTask<IoStatus> CreateSnapshotsAsync(IReadOnlyList<SnapshotRequest> requests);

    /// <summary>Deletes a snapshot: durable when Ok, what only it needs is freed in the background (resumed after a restart).
    /// Errors: Conflict (a clone builds on it, see <see cref="SnapshotInfo.Clones"/>).</summary>
    ValueTask<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot);

    /// <summary>How far the background is with a deleted snapshot; null when nothing is left of it.</summary>
    FreeingState? FreeingOf(uint volumeId, Guid snapshot);

    /// <summary>Makes the volume what the snapshot is, its size too, at one moment; what it was is kept as the snapshot
    /// <paramref name="safety"/>. Errors as <see cref="CreateSnapshotsAsync"/>.</summary>
    ValueTask<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety);

    /// <summary>Creates a volume with the content of a snapshot. It can be written at once; nothing is copied. Its size is
    /// the snapshot's or larger. Errors: as <see cref="IStore.CreateVolumeAsync"/>.</summary>
    ValueTask<IoStatus> CreateCloneAsync(VolumeHead head, uint volumeId, Guid snapshot);

    /// <summary>Begins to copy what a clone shares with its base, in the background (resumed after a restart); then it builds
    /// on nothing. Ok when that is durable, or when it builds on nothing. Errors: Conflict (it has snapshots).</summary>
    ValueTask<IoStatus> FlattenAsync(uint volumeId);

    /// <summary>Whoever was promised room has been promised it anew since the store was opened: flattening that a restart interrupted goes
    /// on, and shrinks over snapshots. Needed where the store was opened to wait for that.</summary>
    void ResumeFlattening();

    /// <summary>The volume is being flattened, or that it is done is not durable yet.</summary>
    bool IsFlattening(uint volumeId);

    /// <summary>Promises a volume that it, with all its snapshots, may take <paramref name="bytes"/> whatever others do, and the
    /// metadata for extents of that size; 0 takes the promise back. It lasts until the store is closed. NoSpace, and nothing
    /// changed: what is free is promised to others, or kept; never with <paramref name="isForced"/>. Ok is said when the room
    /// that it counts on is there after a power cut too. Errors: NotFound, Unavailable.</summary>
    ValueTask<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced);

    /// <summary>Which part of its allocated blocks a volume shares with no base, 0 to 1.</summary>
    double OwnPart(uint volumeId);

    /// <summary>A snapshot as a read-only device, or null. It answers Unavailable once the snapshot is deleted.</summary>
    IBlockDevice? OpenSnapshot(uint volumeId, Guid snapshot);

    /// <summary>Reads what a snapshot takes; looks at all of its metadata pages. Errors: Corrupt, IoError.</summary>
    ValueTask<(IoStatus Status, SnapshotUsage Usage)> SnapshotUsageAsync(uint volumeId, Guid snapshot);

    /// <summary>What differs between two snapshots of a volume (the older one may be what it was cloned from), or (null) what is
    /// written now; also of a store that has failed. At most
    /// <paramref name="runsMax"/> runs from <paramref name="offsetBytes"/> on. Behind the end of one of them everything is
    /// zeros.</summary>
    ValueTask<IoStatus> DiffAsync(
        uint volumeId, Guid? older, Guid? newer, ulong offsetBytes, ulong lengthBytes, int runsMax, List<DiffRun> runs);

    /// <summary>How deep what a volume shows (or a snapshot of it) was written; at most <paramref name="runsMax"/> runs from
    /// <paramref name="offsetBytes"/> on. Errors: Corrupt, IoError, OutOfRange.</summary>
    ValueTask<IoStatus> DepthAsync(uint volumeId, Guid? snapshot, ulong offsetBytes, ulong lengthBytes, int runsMax, List<DepthRun> runs);
}
