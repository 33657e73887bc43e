namespace BlockServer.Core.Api;

// Volumes on their way between disks:
//   POST   /v1/volumes/{name}/move             MoveVolume -> 202 TaskInfo
//   POST   /v1/disks/{id}/drain                DrainDisk -> 202 TaskInfo
//   POST   /v1/disks/{id}/replace              AddDisk -> 202 TaskInfo
//   POST   /v1/rebalance                       Rebalance -> 202 TaskInfo

// Scrubs:
//   POST   /v1/disks/{id}/scrub                ScrubRequest -> 202 TaskInfo
//   GET    /v1/bad-blocks                      BadBlockList

/// <summary>A block that a scrub could not read right: an error of the medium (<c>io-error</c>) or content that is not what was
/// written (<c>corrupt</c>). It stays in the list until a later scrub of the volume finds it good, overwritten or trimmed.</summary>
/// <param name="Volume">Name of the volume.</param>
/// <param name="OffsetBytes">Where in it.</param>
/// <param name="Reason">What was found.</param>
/// <param name="Snapshot">Only snapshots show it, and this is the oldest of them that does; null when the volume does.</param>
/// <param name="FoundAt">When.</param>
public sealed record BadBlockInfo(string Volume, ulong OffsetBytes, string Reason, Guid? Snapshot, DateTimeOffset FoundAt);

/// <summary>All that are known.</summary>
public sealed record BadBlockList(IReadOnlyList<BadBlockInfo> Blocks);

/// <summary>Asks for a volume, with all that share blocks with it, to go to another disk.</summary>
/// <param name="StoreId">The disk.</param>
public sealed record MoveVolume(Guid StoreId);

/// <summary>Asks for a disk to be emptied; an empty object.</summary>
public sealed record DrainDisk;

/// <summary>Asks for the disks to be evened out; an empty object.</summary>
public sealed record Rebalance;
