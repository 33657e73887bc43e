namespace BlockServer.Core.Api;

// Snapshots and clones in the admin API:
//
//   GET    /v1/snapshots?usage=true                       SnapshotList, of all volumes
//   POST   /v1/snapshots                                  CreateSnapshot -> 201 SnapshotList
//   GET    /v1/volumes/{name}/snapshots?usage=true        SnapshotList, oldest first
//   GET    /v1/volumes/{name}/snapshots/{snapshot}        SnapshotEntry with what it takes
//   DELETE /v1/volumes/{name}/snapshots/{snapshot}        202 TaskInfo (409 while a clone builds on it)
//   POST   /v1/volumes/{name}/snapshots/{snapshot}/rollback   RollbackSnapshot -> RollbackInfo
//   POST   /v1/snapshots/rollback                         RollbackTogether -> RollbackTogetherInfo
//   GET    /v1/volumes/{name}/diff?from=..&to=..          DiffInfo
//   POST   /v1/volumes/{name}/clone                       CloneVolume -> 201 VolumeInfo
//   POST   /v1/volumes/{name}/flatten                     FlattenVolume -> 202 TaskInfo

/// <summary>A snapshot.</summary>
/// <param name="Volume">Name of the volume that it was cut from.</param>
/// <param name="Name">Name within the volume; it is read as <c>VOLUME@NAME</c>.</param>
/// <param name="Uuid">Identity.</param>
/// <param name="SizeBytes">Size of the volume when it was cut.</param>
/// <param name="CreatedAt">When.</param>
/// <param name="Label"><c>clean</c>: whoever asked for it had brought what uses the volume to rest. <c>unknown</c>: as after a
/// power failure.</param>
/// <param name="Clones">Volumes that build on it and are in the way of its deletion, by name.</param>
/// <param name="Group">The cut of several volumes that it is part of, or null.</param>
/// <param name="Policy">The policy that asked for it, or null.</param>
/// <param name="UsedBytes">What it shows that is not a hole; null unless it was asked for.</param>
/// <param name="ExclusiveBytes">What its deletion would free; null unless it was asked for.</param>
public sealed record SnapshotEntry(
    string Volume, string Name, Guid Uuid, ulong SizeBytes, DateTimeOffset CreatedAt, string Label, IReadOnlyList<string> Clones,
    Guid? Group = null, string? Policy = null, ulong? UsedBytes = null, ulong? ExclusiveBytes = null);

/// <summary>Snapshots, by volume and age.</summary>
public sealed record SnapshotList(IReadOnlyList<SnapshotEntry> Snapshots);

/// <summary>Asks for a snapshot of each volume, all at one moment and under one name.</summary>
/// <param name="Name">Name, not in use by another snapshot of one of the volumes.</param>
/// <param name="Volumes">Names of the volumes.</param>
/// <param name="Clean">The caller has brought what uses the volumes to rest: it is labelled clean.</param>
public sealed record CreateSnapshot(string Name, IReadOnlyList<string> Volumes, bool Clean = false);

/// <summary>Asks for a volume to become what its snapshot is.</summary>
/// <param name="SafetyName">Name of the snapshot that keeps what the volume was; null: one is made up.</param>
/// <param name="Force">Also while clients are attached; they are cut off.</param>
/// <param name="Uuid">When given, it is refused (412) unless the snapshot is this one.</param>
/// <param name="Revision">When given, it is refused (412) unless the volume still has this revision.</param>
public sealed record RollbackSnapshot(string? SafetyName = null, bool Force = false, Guid? Uuid = null, long? Revision = null);

/// <summary>The volume after a rollback, and the snapshot that keeps what it was.</summary>
public sealed record RollbackInfo(VolumeInfo Volume, SnapshotEntry Safety);

/// <summary>Asks for volumes to become what their snapshots of one name are: all of them, or none.</summary>
/// <param name="Snapshot">Name of the snapshots.</param>
/// <param name="Volumes">Names of the volumes.</param>
/// <param name="Group">Every volume of the group that the snapshot of the one volume that is named is part of.</param>
/// <param name="SafetyName">Name of the group of snapshots that keeps what the volumes were; null: one is made up.</param>
/// <param name="Force">Also while clients are attached; they are cut off.</param>
public sealed record RollbackTogether(
    string Snapshot, IReadOnlyList<string> Volumes, bool Group = false, string? SafetyName = null, bool Force = false);

/// <summary>The volumes after a rollback, and the snapshots that keep what they were, one of each.</summary>
public sealed record RollbackTogetherInfo(IReadOnlyList<VolumeInfo> Volumes, IReadOnlyList<SnapshotEntry> Safety);

/// <summary>Asks for a volume with the content of a snapshot.</summary>
/// <param name="Name">Name of the clone.</param>
/// <param name="Snapshot">The snapshot; null: one is cut first, named <c>clone-NAME</c>.</param>
/// <param name="SizeBytes">Size, at least the snapshot's; null: the snapshot's.</param>
/// <param name="Export">How it is offered; null: as the volume, but thin and writable.</param>
/// <param name="Description">Free text.</param>
/// <param name="IdempotencyKey">Repeating the same request with the same key answers the same volume instead of a conflict.</param>
/// <param name="Full">A copy that builds on nothing: it is <c>initializing</c>, and cannot be attached, until everything is copied.
/// What is cut for it is named <c>copy-NAME</c> and goes by itself.</param>
/// <param name="Thin">It is not promised room for its size; null: as what it is made from.</param>
public sealed record CloneVolume(
    string Name, string? Snapshot = null, ulong? SizeBytes = null, ExportOptions? Export = null, string? Description = null,
    string? IdempotencyKey = null, bool Full = false, bool? Thin = null);

/// <summary>Asks for a clone to build on nothing; an empty object.</summary>
public sealed record FlattenVolume;

/// <summary>A stretch of a volume.</summary>
public sealed record DiffRange(ulong OffsetBytes, ulong LengthBytes);

/// <summary>What was written or zeroed between two views of a volume, in whole blocks of 4 KiB.</summary>
/// <param name="Ranges">In order.</param>
/// <param name="ChangedBytes">Their lengths together.</param>
/// <param name="NextOffsetBytes">Where to go on, or null at the end.</param>
public sealed record DiffInfo(IReadOnlyList<DiffRange> Ranges, ulong ChangedBytes, ulong? NextOffsetBytes);
