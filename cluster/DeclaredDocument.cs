using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>What is declared, as the metadata keep it: the value of <c>declared/state</c> for the whole node, and of <c>declared/tenant/NAME</c>.</summary>
/// <param name="State">The state.</param>
/// <param name="Known">Numbers of declared volumes that were seen, by their declared names: one that is gone is not made anew.</param>
public sealed record DeclaredDocument(DeclaredState State, IReadOnlyDictionary<string, uint> Known)
{
    /// <summary>Its key for the whole node, and what those of tenants begin with.</summary>
    public const string Key = "declared/state", TenantKeys = "declared/tenant/";

    /// <summary>Revision of the declaration; what clients compare. It stays when only <see cref="Known"/> grows.</summary>
    public long Declared { get; init; }

    /// <summary>The value of its key.</summary>
    public byte[] Encode() => JsonSerializer.SerializeToUtf8Bytes(this, DeclaredJson.Default.DeclaredDocument);

    /// <summary>The document; throws <see cref="InvalidDataException"/> when it is damaged: half of it must not be reconciled.</summary>
    public static DeclaredDocument Decode(MetaEntry entry)
    {
        try
        {
            return JsonSerializer.Deserialize(entry.Value.Span, DeclaredJson.Default.DeclaredDocument)!;
        }
        catch (Exception e) when (e is JsonException or NullReferenceException)
        {
            throw new InvalidDataException("what was declared is damaged in the metadata", e);
        }
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(DeclaredDocument))]
internal sealed partial class DeclaredJson : JsonSerializerContext;
