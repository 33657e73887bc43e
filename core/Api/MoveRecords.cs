namespace BlockServer.Core.Api;

// Volumes on their way between disks:
//   POST   /v1/volumes/{name}/move             MoveVolume -> 202 TaskInfo
//   POST   /v1/disks/{id}/drain                DrainDisk -> 202 TaskInfo
//   POST   /v1/disks/{id}/replace              AddDisk -> 202 TaskInfo
//   POST   /v1/rebalance                       Rebalance -> 202 TaskInfo

/// <summary>Asks for a volume, with all that share blocks with it, to go to another disk.</summary>
/// <param name="StoreId">The disk.</param>
public sealed record MoveVolume(Guid StoreId);

/// <summary>Asks for a disk to be emptied; an empty object.</summary>
public sealed record DrainDisk;

/// <summary>Asks for the disks to be evened out; an empty object.</summary>
public sealed record Rebalance;
