using System.Text.Json.Serialization;

namespace BlockServer.Cluster;

/// <summary>A volume as a logical unit of a target.</summary>
/// <param name="Lun">Its number, 0 to 16383.</param>
/// <param name="VolumeId">The volume.</param>
/// <param name="ReadOnly">Changes that come by this target are refused.</param>
/// <param name="Snapshot">The snapshot of the volume that is meant, or null: the volume itself.</param>
/// <param name="SnapshotName">Its name.</param>
public sealed record TargetLun(ushort Lun, uint VolumeId, bool ReadOnly, Guid? Snapshot = null, string? SnapshotName = null);

/// <summary>Who may log in.</summary>
/// <param name="Initiator">Name of an initiator, with * and ? as wildcards.</param>
/// <param name="Address">Network in CIDR form that it must come from; null: any.</param>
public sealed record TargetAccess(string Initiator, string? Address);

/// <summary>A user of CHAP with its secret. Never shown.</summary>
public sealed class ChapUserSecret(string user, string secret, bool mutual)
{
    /// <summary>Name.</summary>
    public string User { get; } = user;

    /// <summary>Secret.</summary>
    public string Secret { get; } = secret;

    /// <summary>By it the target proves itself to initiators; else initiators prove themselves by it.</summary>
    public bool Mutual { get; } = mutual;
}

/// <summary>What the metadata say about a target; the value of <c>target/NAME</c>. The secrets of its users lie apart, in
/// <c>chap/NAME</c>.</summary>
/// <param name="Name">IQN in lower case.</param>
/// <param name="Number">1 to 1023; the relative identifiers of its ports are made from it.</param>
/// <param name="Enabled">Initiators may log in.</param>
/// <param name="Description">The operator's words.</param>
/// <param name="Luns">Its units, by number.</param>
/// <param name="PortalGroups">Tags of the portal groups that offer it; empty: all.</param>
/// <param name="Access">Who may log in; empty: nobody.</param>
/// <param name="Users">CHAP names by which initiators prove themselves.</param>
/// <param name="MutualUser">CHAP name by which the target proves itself, or null.</param>
public sealed record TargetRecord(
    string Name, ushort Number, bool Enabled, string? Description, IReadOnlyList<TargetLun> Luns, IReadOnlyList<ushort> PortalGroups,
    IReadOnlyList<TargetAccess> Access, IReadOnlyList<string> Users, string? MutualUser)
{
    /// <summary>Revision of the transaction that wrote this record; what clients compare.</summary>
    [JsonIgnore]
    public long Revision { get; init; }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(TargetRecord))]
[JsonSerializable(typeof(ChapUserSecret[]))]
[JsonSerializable(typeof(uint))]
internal sealed partial class TargetRecordJson : JsonSerializerContext;
