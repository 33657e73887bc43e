namespace BlockServer.Core.Api;

//   GET    /v1/capacity?size=                  CapacityInfo

/// <summary>What there is room for, of a disk or of all; sizes are bytes.</summary>
/// <param name="RawBytes">All of the medium that the store has.</param>
/// <param name="LogBytes">Of it the redo ring.</param>
/// <param name="MetadataBytes">Of it metadata slots and superblocks.</param>
/// <param name="ReserveBytes">Kept free of new extents, so that what exists can always be overwritten, trimmed and deleted.</param>
/// <param name="BadBytes">Blocks that the medium did not take or keep.</param>
/// <param name="UsableBytes">What is left for data.</param>
/// <param name="UsedBytes">What data takes.</param>
/// <param name="FreeBytes">What is not used.</param>
/// <param name="PromisedBytes">Sizes of the volumes that were promised room, together.</param>
/// <param name="PromisedLeftBytes">What of that they have not taken yet.</param>
/// <param name="ThinBytes">What thin volumes could still ask for; append-only ones, whose size is a limit, not counted.</param>
/// <param name="AvailableBytes">What can be promised to more volumes.</param>
/// <param name="OvercommitRatio">Used, promised and what thin volumes could ask for, by what is usable: above 1 the disks are too small
/// for all that may be written.</param>
/// <param name="MetadataSlots">Metadata slots: one for each MiB of a volume that holds data, and a few more.</param>
/// <param name="MetadataSlotsUsed">Of them in use; those of what is gone are not, though a checkpoint is yet to give them back.</param>
/// <param name="Fits">How many volumes of the size that was asked for can be promised room; null: none was.</param>
public sealed record CapacityFigures(
    ulong RawBytes, ulong LogBytes, ulong MetadataBytes, ulong ReserveBytes, ulong BadBytes, ulong UsableBytes, ulong UsedBytes, ulong FreeBytes,
    ulong PromisedBytes, ulong PromisedLeftBytes, ulong ThinBytes, ulong AvailableBytes, double OvercommitRatio, ulong MetadataSlots, ulong MetadataSlotsUsed,
    long? Fits = null);

/// <summary>What there is room for on one disk. Nothing new is placed on one that is being emptied.</summary>
public sealed record DiskCapacity(Guid Id, string Name, bool Draining, CapacityFigures Figures);

/// <summary>What there is room for: on all disks in service that take changes, and on each. Beyond <paramref name="WriteProtectPercent"/> of a disk
/// new extents need a promise.</summary>
public sealed record CapacityInfo(CapacityFigures Total, IReadOnlyList<DiskCapacity> Disks, int WriteProtectPercent);
