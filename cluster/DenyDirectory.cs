using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>Who is kept out; the value of <c>deny/KIND/VALUE</c>. What the value may be is checked by the caller, who knows the protocols.</summary>
/// <param name="Kind">initiator, address or token.</param>
/// <param name="Value">Pattern of initiator names, network in CIDR form, or id of a token.</param>
/// <param name="Reason">The operator's words.</param>
/// <param name="CreatedAt">Since when.</param>
public sealed record DenyRecord(string Kind, string Value, string? Reason, DateTimeOffset CreatedAt) : IMetaRecord<DenyRecord>
{
    /// <summary>Revision of the transaction that wrote this record.</summary>
    [JsonIgnore]
    public long Revision { get; init; }

    [JsonIgnore]
    string IMetaRecord<DenyRecord>.Key => DenyDirectory.KeyOf(Kind, Value);

    [JsonIgnore]
    bool IMetaRecord<DenyRecord>.IsWhole => DenyDirectory.Kinds.Contains(Kind) && Value is { Length: > 0 };

    DenyRecord IMetaRecord<DenyRecord>.WithRevision(long revision) => this with { Revision = revision };
}

/// <summary>The black list. Thread-safe; lookups are free.</summary>
public sealed class DenyDirectory(IMetaStore meta) : IDisposable
{
    private const int DeniedMax = 1000;

    /// <summary>The words for what can be denied.</summary>
    public static readonly IReadOnlyList<string> Kinds = ["initiator", "address", "token"];

    private readonly MetaTable<DenyRecord> _table = new(meta, "deny/", DenyRecordJson.Default.DenyRecord);

    /// <summary>All.</summary>
    public IReadOnlyList<DenyRecord> List() => _table.List();

    /// <inheritdoc/>
    public void Dispose() => _table.Dispose();

    /// <summary>As <see cref="MetaTable{T}.LoadAsync"/>.</summary>
    public Task LoadAsync() => _table.LoadAsync();

    /// <summary>Denies; what is denied already stays so.</summary>
    public Task<DirectoryFault?> DenyAsync(DenyRecord record) => _table.AloneAsync(async () =>
    {
        if (record.Reason is { Length: > 1024 }) return new DirectoryFault(IoStatus.Invalid, "invalid-reason", "the reason is longer than 1,024 characters", "reason");
        if (_table.Find(KeyOf(record.Kind, record.Value)) is not null) return null;
        if (_table.Count >= DeniedMax) return new DirectoryFault(IoStatus.Conflict, "too-many-denied", $"{DeniedMax} are denied; allow one first, or deny a network");
        return await _table.WriteAsync(record with { Revision = 0 });
    });

    /// <summary>Takes a denial back.</summary>
    public Task<DirectoryFault?> AllowAsync(string kind, string value) => _table.AloneAsync(async () =>
        _table.Find(KeyOf(kind, value)) is { } known ? await _table.RemoveAsync(known)
            : new DirectoryFault(IoStatus.NotFound, "not-denied", "that is not denied; pfcli list_denied shows what is"));

    internal static string KeyOf(string kind, string value) => kind + "/" + value;
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true, RespectNullableAnnotations = true)]
[JsonSerializable(typeof(DenyRecord))]
internal sealed partial class DenyRecordJson : JsonSerializerContext;
