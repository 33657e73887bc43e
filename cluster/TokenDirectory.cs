using System.Security.Cryptography;
using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>What the metadata say about a token of the admin API; the value of <c>token/ID</c>. The token itself is nowhere.</summary>
/// <param name="Id">16 hexadecimal digits; the part of the token that is no secret.</param>
/// <param name="Name">The operator's name for it, one of its kind.</param>
/// <param name="Hash">SHA-256 of the token, hexadecimal.</param>
/// <param name="Role">viewer, operator or admin.</param>
/// <param name="Tenant">It sees only this tenant's objects; null: no such limit.</param>
/// <param name="Volumes">It sees only these volumes; null: no such limit.</param>
/// <param name="CreatedAt">When it was made.</param>
/// <param name="ExpiresAt">From then on it is worth nothing; null: never.</param>
/// <param name="Description">The operator's words.</param>
public sealed record TokenRecord(
    string Id, string Name, string Hash, string Role, string? Tenant, IReadOnlyList<uint>? Volumes, DateTimeOffset CreatedAt,
    DateTimeOffset? ExpiresAt, string? Description) : IMetaRecord<TokenRecord>
{
    /// <summary>Revision of the transaction that wrote this record.</summary>
    [JsonIgnore]
    public long Revision { get; init; }

    [JsonIgnore]
    string IMetaRecord<TokenRecord>.Key => Id;

    [JsonIgnore]
    bool IMetaRecord<TokenRecord>.IsWhole =>
        Id is { Length: TokenDirectory.IdLength } && Hash is { Length: 64 } && VolumeName.IsValid(Name, out _) && TokenDirectory.Roles.Contains(Role);

    TokenRecord IMetaRecord<TokenRecord>.WithRevision(long revision) => this with { Revision = revision };

    /// <summary>Without the hash, wherever it is written.</summary>
    public override string ToString() => $"{nameof(TokenRecord)} {Id} {Name}";
}

/// <summary>The tokens of the admin API besides the administrator's file. Thread-safe; lookups are free.</summary>
public sealed class TokenDirectory(IMetaStore meta) : IDisposable
{
    /// <summary>Digits of an id.</summary>
    public const int IdLength = 16;

    /// <summary>What a token begins with, so that scanners of leaked secrets know one.</summary>
    public const string Mark = "blockd_";

    private const int TokensMax = 1000, SecretBytes = 32, VolumesMax = 128;

    /// <summary>The words for roles, least first.</summary>
    public static readonly IReadOnlyList<string> Roles = ["viewer", "operator", "admin"];

    private readonly MetaTable<TokenRecord> _table = new(meta, "token/", TokenRecordJson.Default.TokenRecord);

    /// <summary>All, by id.</summary>
    public IReadOnlyList<TokenRecord> List() => _table.List();

    /// <summary>A token by its id, or null.</summary>
    public TokenRecord? Find(string id) => _table.Find(id);

    /// <inheritdoc/>
    public void Dispose() => _table.Dispose();

    /// <summary>As <see cref="MetaTable{T}.LoadAsync"/>.</summary>
    public Task LoadAsync() => _table.LoadAsync();

    /// <summary>SHA-256 of a token in hexadecimal.</summary>
    public static string HashOf(string token) => Convert.ToHexStringLower(SHA256.HashData(System.Text.Encoding.UTF8.GetBytes(token)));

    /// <summary>The id within a token, or null when it cannot be one of ours.</summary>
    public static string? IdOf(string token) =>
        token.StartsWith(Mark, StringComparison.Ordinal) && token.Length == Mark.Length + IdLength + 1 + 2 * SecretBytes
            && token[Mark.Length + IdLength] == '_' ? token.Substring(Mark.Length, IdLength) : null;

    /// <summary>Makes a token of what <paramref name="wanted"/> says; its id and hash are made here. The secret is answered and not kept.</summary>
    public async Task<(TokenRecord? Made, string Secret, DirectoryFault? Fault)> CreateAsync(TokenRecord wanted)
    {
        if (FaultOf(wanted) is { } wrong) return (null, "", wrong);
        TokenRecord? made = null;
        string secret = "";
        DirectoryFault? fault = await _table.AloneAsync(async () =>
        {
            if (_table.List().Any(t => t.Name == wanted.Name))
                return new(IoStatus.Conflict, "token-exists", $"a token '{wanted.Name}' exists; choose another name, or delete it first", "name");
            if (_table.Count >= TokensMax)
                return new(IoStatus.Conflict, "too-many-tokens", $"there are {TokensMax} tokens; delete one first");
            string id = Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(IdLength / 2));
            secret = $"{Mark}{id}_{Convert.ToHexStringLower(RandomNumberGenerator.GetBytes(SecretBytes))}";
            DirectoryFault? refused = await _table.WriteAsync(wanted with { Id = id, Hash = HashOf(secret), Revision = 0 });
            if (refused is null) made = _table.Find(id);
            return refused;
        });
        return (made, fault is null ? secret : "", fault);
    }

    /// <summary>Takes tokens away: from now on they are worth nothing. What was taken.</summary>
    public async Task<(IReadOnlyList<TokenRecord> Gone, DirectoryFault? Fault)> DeleteAsync(Func<TokenRecord, bool> which)
    {
        TokenRecord[] gone = [];
        DirectoryFault? fault = await _table.AloneAsync(() =>
        {
            gone = [.. _table.List().Where(which)];
            return _table.RemoveAsync(gone);
        });
        return fault is null ? (gone, null) : ([], fault);
    }

    private static DirectoryFault? FaultOf(TokenRecord t)
    {
        DirectoryFault Wrong(string code, string detail, string field) => new(IoStatus.Invalid, code, detail, field);
        if (!VolumeName.IsValid(t.Name, out string? reason)) return Wrong("invalid-name", reason, "name");
        if (!Roles.Contains(t.Role)) return Wrong("invalid-role", $"a role is {string.Join(", ", Roles)}", "role");
        bool isConfined = t.Tenant is not null || t.Volumes is not null;
        if (isConfined && t.Role == "admin") return Wrong("invalid-role", "an administrator sees the whole node; a token of a tenant or of single volumes is a viewer or operator", "role");
        if (t.Tenant is not null && t.Volumes is not null) return Wrong("invalid-volumes", "name a tenant or volumes, not both", "volumes");
        if (t.Volumes is { Count: 0 or > VolumesMax }) return Wrong("invalid-volumes", $"name 1 to {VolumesMax} volumes, or leave them out", "volumes");
        if (t.ExpiresAt <= t.CreatedAt) return Wrong("invalid-expiry", "it would have expired already", "expiresSeconds");
        return t.Description is { Length: > 1024 } ? Wrong("invalid-description", "the description is longer than 1,024 characters", "description") : null;
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true, RespectNullableAnnotations = true)]
[JsonSerializable(typeof(TokenRecord))]
internal sealed partial class TokenRecordJson : JsonSerializerContext;
