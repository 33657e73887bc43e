using System.Text.Json.Serialization;

namespace BlockServer.Pfinspect;

/// <summary>Something about a store that is not as it should be.</summary>
/// <param name="Severity">error: data or an invariant is lost. warning: a crash or one bad copy explains it; the next open mends it.</param>
/// <param name="Rule">The invariant of engine.md B1.9 (S1 to S11), or superblock, log, slot, volume, map.</param>
/// <param name="Where">Which copy, page, slot or extent.</param>
/// <param name="What">What is wrong.</param>
public sealed record Problem(string Severity, string Rule, string Where, string What);

/// <summary>One superblock copy; <see cref="Fault"/> is null when it is valid.</summary>
public sealed record SuperblockCopy(int Copy, ulong OffsetBytes, string? Fault, ulong? Sequence, bool Chosen);

/// <summary>The store's root, and how its four copies are.</summary>
public sealed record SuperblockReport(
    string Path, Guid StoreUuid, Guid ClusterUuid, bool Clean, ulong TotalBytes, ulong RingBytes, uint SlotCount, uint SlotHighWater,
    uint DataStart, uint DataEnd, ulong Incarnation, ulong StartLsn, ulong Sequence, IReadOnlyList<SuperblockCopy> Copies);

/// <summary>One record of the log.</summary>
public sealed record LogRecord(ulong Lsn, string Kind, uint Slot, uint VolumeId, uint Extent, string Text, string Fate);

/// <summary>One page of the log.</summary>
public sealed record LogPage(
    ulong PageNumber, ulong Incarnation, uint Lap, ulong DurableLsn, ulong TailLsn, ulong FlushPoint, string? Fault,
    IReadOnlyList<LogRecord> Records);

/// <summary>The log that recovery would replay.</summary>
public sealed record LogReport(
    ulong Incarnation, ulong TailLsn, ulong DurableLsn, ulong EndLsn, int PagesOfThisIncarnation, int PagesOfOthers,
    int PagesUnreadable, IReadOnlyList<LogPage> Pages);

/// <summary>A volume as the store would show it after recovery.</summary>
public sealed record VolumeReport(
    uint Id, Guid Uuid, string Name, ulong SizeBytes, ulong UsedBytes, ulong Extents, ulong Epoch, bool Deleting)
{
    /// <summary>Length of an append-only volume, of which the size is the maximum; else null.</summary>
    public ulong? LengthBytes { get; init; }

    /// <summary>Clients whose appends it remembers; null when it is not append-only.</summary>
    public int? Clients { get; init; }

    /// <summary>It is append-only and takes nothing more.</summary>
    public bool Sealed { get; init; }
}

/// <summary>All volumes, by id.</summary>
public sealed record VolumesReport(IReadOnlyList<VolumeReport> Volumes);

/// <summary>A layer of a volume; a snapshot, or the one that is written to.</summary>
/// <param name="VolumeId">The volume.</param>
/// <param name="Volume">Its name.</param>
/// <param name="Layer">Number in the volume.</param>
/// <param name="ParentVolumeId">Volume of the layer below, or null.</param>
/// <param name="ParentLayer">Its number, or null.</param>
/// <param name="Snapshot">Name of the snapshot, or null in the layer that is written to.</param>
/// <param name="Uuid">Identity of the snapshot, or null.</param>
/// <param name="CutVersion">Last version of the snapshot, or null.</param>
/// <param name="SizeBytes">Size of the volume at the cut, or now.</param>
/// <param name="UnixSeconds">When it was cut, seconds since 1970, or null.</param>
/// <param name="Extents">Metadata pages of its own.</param>
/// <param name="UsedBytes">What it shows that is not a hole, shared or not.</param>
/// <param name="OwnedBytes">What was written in it and is still there.</param>
/// <param name="AloneBytes">What its deletion would free; 0 in the layer that is written to.</param>
/// <param name="Deleting">It is being deleted.</param>
public sealed record LayerReport(
    uint VolumeId, string Volume, uint Layer, uint? ParentVolumeId, uint? ParentLayer, string? Snapshot, Guid? Uuid, ulong? CutVersion,
    ulong SizeBytes, ulong? UnixSeconds, ulong Extents, ulong UsedBytes, ulong OwnedBytes, ulong AloneBytes, bool Deleting);

/// <summary>All layers, by volume and number.</summary>
public sealed record LayersReport(IReadOnlyList<LayerReport> Layers);

/// <summary>A run of a volume's blocks that lie consecutively on the store.</summary>
public sealed record MapRunReport(ulong OffsetBytes, ulong LengthBytes, uint Block, uint Slot, ulong VersionMin, ulong VersionMax);

/// <summary>Where a volume lies.</summary>
public sealed record MapReport(uint VolumeId, string Name, IReadOnlyList<MapRunReport> Runs);

/// <summary>A block that the disk did not take or keep; it is never used again. The volume that still has content there, until
/// it is overwritten, or null.</summary>
public sealed record BadBlockReport(uint Block, uint Slot, uint? VolumeId, ulong? OffsetBytes);

/// <summary>All bad blocks, by number.</summary>
public sealed record BadBlocksReport(IReadOnlyList<BadBlockReport> Blocks);

/// <summary>What a check or verification went through, and what it found.</summary>
public sealed record CheckReport(
    bool Sound, ulong Slots, ulong Extents, ulong BlocksReferenced, ulong BlocksBad, ulong BlocksFree, ulong LogRecordsReplayed, ulong LogRecordsSkipped,
    ulong BlocksRead, ulong ProblemsFound, IReadOnlyList<Problem> Problems);

/// <summary>Source-generated JSON of pfinspect's output.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(SuperblockReport))]
[JsonSerializable(typeof(LogReport))]
[JsonSerializable(typeof(VolumesReport))]
[JsonSerializable(typeof(LayersReport))]
[JsonSerializable(typeof(MapReport))]
[JsonSerializable(typeof(BadBlocksReport))]
[JsonSerializable(typeof(CheckReport))]
internal sealed partial class InspectJson : JsonSerializerContext;
