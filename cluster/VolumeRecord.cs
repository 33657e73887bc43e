using System.Text.Json.Serialization;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>Where a volume is in its life. A change is written to the metadata first, then done on the store, then
/// written as done; whoever starts next finishes or undoes what is in between.</summary>
[JsonConverter(typeof(VolumeStateJson))]
public enum VolumeState
{
    /// <summary>Named in the metadata, perhaps not on its store yet. Undone at start: nobody was told that it exists.</summary>
    Creating,

    /// <summary>On its store, as the record says.</summary>
    Ready,

    /// <summary>Name or size differ on the store, perhaps. Finished at start.</summary>
    Changing,

    /// <summary>Going. Finished at start.</summary>
    Deleting,

    /// <summary>Going back to a snapshot, perhaps: at start the store's word on its size holds.</summary>
    RollingBack,
}

/// <summary>What the metadata say about a volume; the value of <c>vol/ID</c>.</summary>
/// <param name="Id">Never reused.</param>
/// <param name="Uuid">Identity for clients.</param>
/// <param name="Name">The operator's name.</param>
/// <param name="SizeBytes">Size in bytes.</param>
/// <param name="State">Life cycle.</param>
/// <param name="Export">How it is offered.</param>
/// <param name="Description">The operator's words.</param>
/// <param name="StoreId">The store that holds it.</param>
/// <param name="CreatedAt">Wall clock at creation.</param>
/// <param name="IdempotencyKey">Key of the request that created it.</param>
/// <param name="Import">The stream that comes into it, or null.</param>
/// <param name="IsImage">Its content never changes again; <see cref="ExportOptions.ReadOnly"/> is set and stays.</param>
/// <param name="IsPopulating">It is a clone that becomes a copy: nobody may attach it before it shares nothing any more.</param>
/// <param name="Epoch">Counts its homes, from 1: without this record the store with the higher one in its head is believed.</param>
/// <param name="IsAppendOnly">Bytes are only added at its end; its size is the length that it never exceeds.</param>
/// <param name="IsSealed">It is append-only and takes nothing more, for ever.</param>
/// <param name="Qos">Its limits; null: none.</param>
/// <param name="IsReserved">It was promised room for its size; otherwise it is thin, unless all of it is allocated.</param>
public sealed record VolumeRecord(
    uint Id, Guid Uuid, string Name, ulong SizeBytes, VolumeState State, ExportOptions Export, string? Description,
    Guid StoreId, DateTimeOffset CreatedAt, string? IdempotencyKey, ImportRecord? Import = null, bool IsImage = false, bool IsPopulating = false,
    ulong Epoch = 1, bool IsAppendOnly = false, bool IsSealed = false,
    QosLimits? Qos = null, bool IsReserved = false)
{
    /// <summary>Revision of the transaction that wrote this record; what clients compare.</summary>
    [JsonIgnore]
    public long Revision { get; init; }

    /// <summary>What its store keeps for it, bytes; 0: it is thin.</summary>
    [JsonIgnore]
    public ulong PromisedBytes => IsReserved || Export.Thick ? SizeBytes : 0;
}

/// <summary>States by their names only: a number would be a state by accident.</summary>
internal sealed class VolumeStateJson() : JsonStringEnumConverter<VolumeState>(null, allowIntegerValues: false);

// Without its state a record would say Creating, and the next start would delete the volume.
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(VolumeRecord))]
[JsonSerializable(typeof(uint))]
internal sealed partial class VolumeRecordJson : JsonSerializerContext;
