using System.Text.Json.Serialization;

namespace BlockServer.Cluster;

/// <summary>How far one volume of a move has been copied.</summary>
/// <param name="Id">The volume.</param>
/// <param name="Base">The copy shows this snapshot, and its older ones are there too; null: nothing is copied yet.</param>
/// <param name="Point">The snapshot that is being copied onto it, or null.</param>
/// <param name="OffsetBytes">Of that everything in front of it is durable in the copy.</param>
public sealed record MoveMember(uint Id, Guid? Base = null, Guid? Point = null, ulong OffsetBytes = 0);

/// <summary>
/// Volumes that go from one store to another, the value of <c>move/ID</c> with the number of the first of them. While it is
/// there they live on <paramref name="From"/>, and what lies on <paramref name="To"/> is a copy that nobody is shown. The
/// transaction that removes it says where they live from then on.
/// </summary>
/// <param name="Members">Volumes that share blocks; what others were cloned from comes first.</param>
/// <param name="From">Where they live.</param>
/// <param name="To">Where they go.</param>
/// <param name="Cuts">Snapshots that were cut, or are about to be cut, for copying.</param>
public sealed record MoveRecord(IReadOnlyList<MoveMember> Members, Guid From, Guid To, IReadOnlyList<Guid> Cuts)
{
    /// <summary>What its keys begin with.</summary>
    internal const string Prefix = "move/";

    /// <summary>Revision of the transaction that wrote it.</summary>
    [JsonIgnore]
    public long Revision { get; init; }

    /// <summary>Number of the first volume: the move's name.</summary>
    [JsonIgnore]
    public uint Id => Members[0].Id;
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(MoveRecord))]
internal sealed partial class MoveRecordJson : JsonSerializerContext;
