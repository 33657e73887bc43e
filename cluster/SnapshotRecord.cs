using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>
/// What the metadata add to a snapshot, that exists by the word of its store alone; the value of <c>snap/VOLUME/UUID</c>. It is
/// written after the cut and removed after the deletion, so a crash in between leaves a snapshot that is labelled unknown, or
/// a record of nothing that the next start removes.
/// </summary>
/// <param name="VolumeId">The volume.</param>
/// <param name="Uuid">The snapshot.</param>
/// <param name="Clean">Whoever asked for it had brought what uses the volume to rest.</param>
/// <param name="Group">The cut of several volumes that it is part of, or null.</param>
/// <param name="Policy">The policy that asked for it, or null.</param>
/// <param name="IsForCopy">It was cut for a copy and goes when nothing builds on it. Written before the cut, so that none stays.</param>
public sealed record SnapshotRecord(uint VolumeId, Guid Uuid, bool Clean, Guid? Group, string? Policy, bool IsForCopy = false)
{
    internal const string Prefix = "snap/";

    internal static string PrefixOf(uint volumeId) => string.Create(System.Globalization.CultureInfo.InvariantCulture, $"{Prefix}{volumeId}/");

    internal string Key => PrefixOf(VolumeId) + Uuid.ToString("N");

    internal byte[] Encode() => JsonSerializer.SerializeToUtf8Bytes(this, SnapshotRecordJson.Default.SnapshotRecord);

    /// <summary>The record, or null when it is damaged: then its snapshot counts as labelled unknown.</summary>
    internal static SnapshotRecord? TryDecode(MetaEntry entry)
    {
        try
        {
            SnapshotRecord? record = JsonSerializer.Deserialize(entry.Value.Span, SnapshotRecordJson.Default.SnapshotRecord);
            return record?.Key == entry.Key ? record : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }
}

/// <summary>A snapshot as the store and the metadata know it.</summary>
/// <param name="Volume">The volume that it was cut from.</param>
/// <param name="Info">What the store says.</param>
/// <param name="Record">What the metadata add, or null.</param>
public sealed record VolumeSnapshot(VolumeRecord Volume, SnapshotInfo Info, SnapshotRecord? Record);

/// <summary>What became of a question or a change that concerns snapshots.</summary>
/// <param name="Snapshots">The answer; empty when it was refused.</param>
/// <param name="Fault">Why not.</param>
public sealed record SnapshotResult(IReadOnlyList<VolumeSnapshot> Snapshots, DirectoryFault? Fault)
{
    /// <summary>It was refused.</summary>
    public static implicit operator SnapshotResult(DirectoryFault fault) => new([], fault);
}

/// <summary>The layers of a volume.</summary>
/// <param name="Snapshots">Oldest first.</param>
/// <param name="Base">The snapshot that it was cloned from and shares blocks with, or null.</param>
/// <param name="IsFlattening">They are being copied.</param>
public sealed record VolumeLayers(
    IReadOnlyList<SnapshotInfo> Snapshots, (uint VolumeId, Guid Snapshot)? Base, bool IsFlattening);

/// <summary>What a cut asks of the layers of a volume.</summary>
/// <param name="Snapshot">The snapshot of the name that was asked for, or null.</param>
/// <param name="IsFlattening">See <see cref="VolumeLayers"/>.</param>
public sealed record CutSight(SnapshotInfo? Snapshot, bool IsFlattening);

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(SnapshotRecord))]
internal sealed partial class SnapshotRecordJson : JsonSerializerContext;

/// <summary>A snapshot of a cut over several stores.</summary>
internal sealed record CutMember(uint VolumeId, Guid StoreId, Guid Uuid);

/// <summary>A cut over several stores that is not known to be whole; the value of <c>cut/UUID</c>.</summary>
internal sealed record CutRecord(IReadOnlyList<CutMember> Members);

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(CutRecord))]
internal sealed partial class CutRecordJson : JsonSerializerContext;
