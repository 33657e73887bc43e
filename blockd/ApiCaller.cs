using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>Who calls the admin API, and what he sees. Unchanged once made.</summary>
/// <param name="id">What the audit log calls him.</param>
/// <param name="role">What he may do.</param>
/// <param name="tenant">He sees only what this tenant has; null: no such limit.</param>
/// <param name="seesVolume">Tells whether he sees a volume; null: he sees all.</param>
internal sealed class ApiCaller(string id, ApiRole role, string? tenant = null, Func<string, bool>? seesVolume = null)
{
    /// <summary>The holder of the file in the data directory.</summary>
    public static readonly ApiCaller Administrator = new("admin", ApiRole.Admin);

    public string Id { get; } = id;

    public ApiRole Role { get; } = role;

    /// <summary>The tenant that he is confined to, or null.</summary>
    public string? Tenant { get; } = tenant;

    /// <summary>He does not see the whole node.</summary>
    public bool IsConfined => Tenant is not null || seesVolume is not null;

    /// <summary>This volume is his to see. Of a tenant's caller the name alone decides, whether there is such a volume or not.</summary>
    public bool Sees(string volume) => seesVolume is null ? Owns(volume) : seesVolume(volume);

    /// <summary>An object of this name, a volume or policy, would be his.</summary>
    public bool Owns(string name) => Tenant is { } own ? TenantDirectory.IsOf(own, name) : seesVolume is null;

    /// <summary>A configured target of this name would be his: what stands behind the last colon decides.</summary>
    public bool OwnsTarget(string iqn) => Owns(iqn[(iqn.LastIndexOf(':') + 1)..]);
}

/// <summary>Who a token of the admin API stands for. Thread-safe.</summary>
/// <param name="adminHash">SHA-256 of the administrator's token, hexadecimal.</param>
/// <param name="tokens">The others; null: there are none.</param>
/// <param name="tenants">The tenants that they may be confined to.</param>
/// <param name="volumes">The volumes that they may be confined to.</param>
/// <param name="time">Tells what has expired.</param>
internal sealed class ApiTokens(string adminHash, TokenDirectory? tokens, TenantDirectory? tenants, VolumeDirectory? volumes, TimeProvider? time = null)
{
    private static readonly byte[] s_none = new byte[32];
    private static readonly TimeSpan s_timerMax = TimeSpan.FromDays(40);

    private readonly byte[] _admin = Convert.FromHexString(adminHash);
    private readonly TimeProvider _time = time ?? TimeProvider.System;

    /// <summary>Whose token this is; null when it is nobody's, or worth nothing any more. Takes the same time for every secret: the
    /// hash is compared whole, and what chooses it is the part of the token that is no secret.</summary>
    public (ApiCaller Caller, TokenRecord? Token)? Find(string text)
    {
        byte[] hash = System.Security.Cryptography.SHA256.HashData(System.Text.Encoding.UTF8.GetBytes(text));
        TokenRecord? known = TokenDirectory.IdOf(text) is { } id ? tokens?.Find(id) : null;
        bool isIts = System.Security.Cryptography.CryptographicOperations.FixedTimeEquals(hash, known is null ? s_none : Convert.FromHexString(known.Hash));
        bool isAdmin = System.Security.Cryptography.CryptographicOperations.FixedTimeEquals(hash, _admin);
        if (isAdmin) return (ApiCaller.Administrator, null);
        return isIts && known is not null && IsGood(known) ? (CallerOf(known), known) : null;
    }

    /// <summary>It has not expired, and its tenant exists.</summary>
    public bool IsGood(TokenRecord token) =>
        !HasExpired(token) && (token.Tenant is not { } tenant || tenants?.Find(tenant) is not null);

    /// <summary>It was deleted since it was found.</summary>
    public bool IsRevoked(TokenRecord token) => tokens?.Find(token.Id) is null;

    /// <summary>Does something when a moment comes; until the timer is disposed.</summary>
    public ITimer At(DateTimeOffset moment, Action what)
    {
        TimeSpan left = moment - _time.GetUtcNow();
        // A timer cannot wait for more than 49 days, and no call is answered for so long.
        return _time.CreateTimer(
            _ => what(), null, left < TimeSpan.Zero ? TimeSpan.Zero : left > s_timerMax ? Timeout.InfiniteTimeSpan : left, Timeout.InfiniteTimeSpan);
    }

    /// <summary>Its time is over.</summary>
    public bool HasExpired(TokenRecord token) => token.ExpiresAt is { } until && _time.GetUtcNow() >= until;

    private ApiCaller CallerOf(TokenRecord token)
    {
        ApiRole role = Enum.Parse<ApiRole>(token.Role, ignoreCase: true);
        if (token.Volumes is not { } ids) return new ApiCaller(token.Id, role, token.Tenant);
        return new ApiCaller(token.Id, role, null, name => volumes?.Find(name) is { } volume && ids.Contains(volume.Id));
    }
}
