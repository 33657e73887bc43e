using BlockServer.Cluster;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The admin API's tokens.</summary>
internal sealed class TokenRoutes(Daemon daemon)
{
    private const long SecondsMax = 10L * 366 * 86_400;

    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET tokens"] = c => c.AnswerAsync(new TokenList([.. daemon.Tokens.List().Select(Describe)]), ApiJson.Default.TokenList),
        ["POST tokens"] = CreateAsync,
        ["DELETE tokens/{id}"] = DeleteAsync,
    };

    private async Task CreateAsync(ApiCall call)
    {
        CreateToken r = await call.ReadAsync(ApiJson.Default.CreateToken);
        call.About($"{r.Name}, {r.Role}");
        if (r.ExpiresSeconds is < 1 or > SecondsMax)
            throw new ApiException(400, "invalid-expiry", "a token expires after 1 second to ten years, or never", "expiresSeconds");
        if (r.Tenant is { } tenant && daemon.Tenants.Find(tenant) is null) throw TenantRoutes.NoTenant(tenant, "tenant");
        uint[]? volumes = r.Volumes is null ? null : [.. r.Volumes.Distinct().Select(n => (daemon.Directory.Find(n) ?? throw AdminRoutes.NoVolume(n, "volumes")).Id)];
        DateTimeOffset now = daemon.ApiClock.GetUtcNow();
        var wanted = new TokenRecord(
            "", r.Name, "", r.Role, r.Tenant, volumes, now, r.ExpiresSeconds is { } seconds ? now.AddSeconds(seconds) : null, r.Description);
        (TokenRecord? made, string secret, DirectoryFault? fault) = await daemon.Tokens.CreateAsync(wanted);
        if (fault is not null) throw AdminRoutes.Refusal(fault);
        await call.AnswerAsync(new TokenCreated(Describe(made!), secret), ApiJson.Default.TokenCreated, 201);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        string id = call.Parts[1];
        (IReadOnlyList<TokenRecord> gone, DirectoryFault? fault) = await daemon.Tokens.DeleteAsync(t => t.Id == id);
        if (fault is not null) throw AdminRoutes.Refusal(fault);
        if (gone.Count == 0) throw new ApiException(404, "no-such-token", $"there is no token '{id}'; pfcli list_token shows their ids");
        daemon.Calls.Cut(id);
        await call.AnswerNothingAsync();
    }

    private TokenInfo Describe(TokenRecord t) => new(
        t.Id, t.Name, t.Role, t.Tenant, t.Volumes?.Select(id => daemon.Directory.Find(id)?.Name ?? "(deleted)").ToArray(), t.CreatedAt, t.ExpiresAt,
        t.ExpiresAt is { } until && daemon.ApiClock.GetUtcNow() >= until, t.Description);
}

/// <summary>The admin API's tenants.</summary>
internal sealed class TenantRoutes(Daemon daemon, Func<string, Task> forgetDeclared)
{
    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET tenants"] = ListAsync,
        ["POST tenants"] = CreateAsync,
        ["GET tenants/{name}"] = async c => await c.AnswerAsync((await DescribeAsync([Named(c)]))[0], ApiJson.Default.TenantInfo),
        ["PATCH tenants/{name}"] = ChangeAsync,
        ["DELETE tenants/{name}"] = DeleteAsync,
    };

    /// <summary>What is answered when there is no such tenant, or none that the caller sees.</summary>
    public static ApiException NoTenant(string name, string? field = null) => new(404, "no-such-tenant", $"there is no tenant '{name}'", field);

    private async Task ListAsync(ApiCall call) => await call.AnswerAsync(
        new TenantList(await DescribeAsync([.. daemon.Tenants.List().Where(t => !call.Caller.IsConfined || call.Caller.Tenant == t.Name)])),
        ApiJson.Default.TenantList);

    private async Task CreateAsync(ApiCall call)
    {
        CreateTenant r = await call.ReadAsync(ApiJson.Default.CreateTenant);
        call.About(r.Name);
        if (!r.Adopt && UseOf(r.Name) is { } there)
            throw new ApiException(409, "tenant-would-adopt", $"{there} would become the tenant's; rename that, choose another name, or say adopt", "name");
        // What an earlier tenant of the name had declared, should that be left, is not the new one's.
        if (daemon.Tenants.Find(r.Name) is null && TenantDirectory.IsName(r.Name)) await forgetDeclared(r.Name);
        Must(await daemon.Tenants.CreateAsync(new TenantRecord(r.Name, r.BytesMax, r.VolumesMax, r.IopsMax, r.Description, daemon.ApiClock.GetUtcNow())));
        daemon.ApplyLimits(r.Name);
        await call.AnswerAsync((await DescribeAsync([daemon.Tenants.Find(r.Name)!]))[0], ApiJson.Default.TenantInfo, 201);
    }

    private async Task ChangeAsync(ApiCall call)
    {
        string name = Named(call).Name;
        ChangeTenant c = await call.ReadAsync(ApiJson.Default.ChangeTenant);
        IReadOnlyList<string> gone = c.Unlimited ?? [];
        if (gone.Any(g => g is not ("bytesMax" or "volumesMax" or "iopsMax")))
            throw new ApiException(400, "invalid-quota", "limits are bytesMax, volumesMax and iopsMax", "unlimited");
        Must(await daemon.Tenants.ChangeAsync(name, c.Revision, old => old with
        {
            BytesMax = gone.Contains("bytesMax") ? null : c.BytesMax ?? old.BytesMax,
            VolumesMax = gone.Contains("volumesMax") ? null : c.VolumesMax ?? old.VolumesMax,
            IopsMax = gone.Contains("iopsMax") ? null : c.IopsMax ?? old.IopsMax,
            Description = c.Description ?? old.Description,
        }));
        daemon.ApplyLimits(name);
        await call.AnswerAsync((await DescribeAsync([daemon.Tenants.Find(name)!]))[0], ApiJson.Default.TenantInfo);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        TenantRecord tenant = Named(call);
        long revision = call.QueryNumber("revision")
            ?? throw new ApiException(400, "id-or-revision-needed", "name the tenant's revision, so that no other one is deleted", "revision");
        if (revision != tenant.Revision)
            throw new ApiException(412, "revision-differs", $"the tenant has revision {tenant.Revision} now; read it again", "revision");
        if (UseOf(tenant.Name) is { } there)
            throw new ApiException(409, "tenant-in-use", $"the tenant still has {there}; delete or rename that first");
        Must(await daemon.Tenants.DeleteAsync(tenant.Name, revision));
        await forgetDeclared(tenant.Name);
        daemon.ApplyLimits(tenant.Name);
        // Worth nothing from here on, whatever becomes of their records: a token of a tenant that is gone is nobody's.
        (IReadOnlyList<TokenRecord> gone, DirectoryFault? fault) = await daemon.Tokens.DeleteAsync(t => t.Tenant == tenant.Name);
        foreach (TokenRecord token in gone) daemon.Calls.Cut(token.Id);
        Must(fault);
        await call.AnswerNothingAsync();
    }

    private TenantRecord Named(ApiCall call) => daemon.Tenants.Find(call.Parts[1]) ?? throw NoTenant(call.Parts[1]);

    /// <summary>What has names of a tenant, for people; null: nothing.</summary>
    private string? UseOf(string tenant)
    {
        string[] named =
        [
            .. daemon.Directory.List().Where(v => TenantDirectory.IsOf(tenant, v.Name)).Select(v => $"volume '{v.Name}'"),
            .. daemon.Policies.List().Where(p => TenantDirectory.IsOf(tenant, p.Name)).Select(p => $"policy '{p.Name}'"),
            .. daemon.Targets.List().Where(t => TenantDirectory.IsOf(tenant, t.Name[(t.Name.LastIndexOf(':') + 1)..])).Select(t => $"target '{t.Name}'"),
        ];
        return named.Length == 0 ? null : named.Length == 1 ? named[0] : $"{named[0]} and {named.Length - 1} more";
    }

    private async Task<IReadOnlyList<TenantInfo>> DescribeAsync(IReadOnlyList<TenantRecord> tenants)
    {
        var used = new Dictionary<uint, ulong>();
        ILookup<string, VolumeRecord> owned = daemon.Directory.List()
            .Select(v => (Volume: v, Owner: daemon.Tenants.OwnerOf(v.Name)?.Name)).Where(o => o.Owner is not null).ToLookup(o => o.Owner!, o => o.Volume);
        foreach (IGrouping<Guid, VolumeRecord> there in tenants.SelectMany(t => owned[t.Name]).GroupBy(v => v.StoreId))
        {
            if (daemon.Stores.Find(there.Key) is not { } host) continue;
            foreach ((uint id, ulong bytes) in await host.UsedBytesAsync([.. there.Select(v => v.Id)])) used[id] = bytes;
        }

        return
        [
            .. tenants.Select(t => new TenantInfo(
                t.Name, t.BytesMax, t.VolumesMax, t.IopsMax, t.Description, t.CreatedAt, owned[t.Name].Count(),
                owned[t.Name].Aggregate(0UL, (sum, v) => sum + v.SizeBytes), owned[t.Name].Aggregate(0UL, (sum, v) => sum + used.GetValueOrDefault(v.Id)), t.Revision)),
        ];
    }

    private static void Must(DirectoryFault? fault)
    {
        if (fault is not null) throw AdminRoutes.Refusal(fault);
    }
}
