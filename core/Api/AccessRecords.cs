namespace BlockServer.Core.Api;

// Who may use the admin API, and what belongs to whom:
//
//   GET  /v1/tokens, POST /v1/tokens, DELETE /v1/tokens/{id}                TokenList; CreateToken -> 201 TokenCreated
//   GET  /v1/tenants, POST /v1/tenants                                      TenantList; CreateTenant -> 201 TenantInfo
//   GET, PATCH, DELETE /v1/tenants/{name}                                   TenantInfo; ChangeTenant

/// <summary>A token of the admin API. The token itself is shown once, when it is made.</summary>
/// <param name="Id">What the audit log calls it.</param>
/// <param name="Name">The operator's name.</param>
/// <param name="Role">viewer, operator or admin.</param>
/// <param name="Tenant">It sees only what this tenant has; null: no such limit.</param>
/// <param name="Volumes">It sees only these volumes, by their names now; null: no such limit.</param>
/// <param name="CreatedAt">When it was made.</param>
/// <param name="ExpiresAt">From then on it is worth nothing; null: never.</param>
/// <param name="Expired">It is worth nothing any more.</param>
/// <param name="Description">The operator's words.</param>
public sealed record TokenInfo(
    string Id, string Name, string Role, string? Tenant, IReadOnlyList<string>? Volumes, DateTimeOffset CreatedAt, DateTimeOffset? ExpiresAt,
    bool Expired, string? Description);

/// <summary>All tokens but the administrator's of the data directory.</summary>
public sealed record TokenList(IReadOnlyList<TokenInfo> Tokens);

/// <summary>Asks for a token.</summary>
/// <param name="Name">One of its kind: repeating the request is refused instead of making another.</param>
/// <param name="Role">viewer looks, operator changes volumes and what belongs to them, admin changes the node.</param>
/// <param name="Tenant">Confines it to a tenant.</param>
/// <param name="Volumes">Confines it to volumes, by name; it goes on with them when they are renamed.</param>
/// <param name="ExpiresSeconds">It expires so many seconds from now, up to ten years; null: never.</param>
/// <param name="Description">Free text.</param>
public sealed record CreateToken(
    string Name, string Role, string? Tenant = null, IReadOnlyList<string>? Volumes = null, long? ExpiresSeconds = null, string? Description = null);

/// <summary>A token that was made.</summary>
/// <param name="Info">What is known of it.</param>
/// <param name="Token">The secret; nobody can show it again.</param>
public sealed record TokenCreated(TokenInfo Info, string Token)
{
    /// <summary>Without the secret, wherever it is written.</summary>
    public override string ToString() => $"{nameof(TokenCreated)} {Info.Id}";
}

/// <summary>A tenant, with what it may have and what it has.</summary>
/// <param name="Name">What the names of its volumes, policies and targets begin with, before a dot.</param>
/// <param name="BytesMax">Sum of the sizes of its volumes, at most; null: no limit.</param>
/// <param name="VolumesMax">Its volumes, at most; null: no limit.</param>
/// <param name="IopsMax">Operations a second of its volumes together; null: no limit.</param>
/// <param name="Description">The operator's words.</param>
/// <param name="CreatedAt">When it was made.</param>
/// <param name="Volumes">How many it has.</param>
/// <param name="ProvisionedBytes">The sum of their sizes.</param>
/// <param name="UsedBytes">What they take on the disks that are in service.</param>
/// <param name="Revision">For changes.</param>
public sealed record TenantInfo(
    string Name, ulong? BytesMax, int? VolumesMax, ulong? IopsMax, string? Description, DateTimeOffset CreatedAt, int Volumes,
    ulong ProvisionedBytes, ulong UsedBytes, long Revision);

/// <summary>Tenants, by name.</summary>
public sealed record TenantList(IReadOnlyList<TenantInfo> Tenants);

/// <summary>Asks for a tenant.</summary>
/// <param name="Name">At most 24 characters, and no dot.</param>
/// <param name="BytesMax">Sum of the sizes of its volumes, at most; null: no limit.</param>
/// <param name="VolumesMax">Its volumes, at most; null: no limit.</param>
/// <param name="IopsMax">Operations a second of its volumes together; null: no limit.</param>
/// <param name="Description">Free text.</param>
/// <param name="Adopt">Confirms that what has such names already becomes the tenant's.</param>
public sealed record CreateTenant(
    string Name, ulong? BytesMax = null, int? VolumesMax = null, ulong? IopsMax = null, string? Description = null, bool Adopt = false);

/// <summary>Changes a tenant; null leaves as it is. Less than it has takes nothing away, and lets nothing grow.</summary>
/// <param name="Revision">When given, the change is refused (412) unless the tenant still has this revision.</param>
/// <param name="BytesMax">New limit.</param>
/// <param name="VolumesMax">New limit.</param>
/// <param name="IopsMax">New limit.</param>
/// <param name="Description">New description.</param>
/// <param name="Unlimited">Names of limits that go: bytesMax, volumesMax, iopsMax.</param>
public sealed record ChangeTenant(
    long? Revision = null, ulong? BytesMax = null, int? VolumesMax = null, ulong? IopsMax = null, string? Description = null,
    IReadOnlyList<string>? Unlimited = null);
