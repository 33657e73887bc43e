using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of tokens and tenants.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] AccessRoutes =>
    [
        new("GET", "tokens", "All tokens but the administrator's of the data directory.", 200, typeof(TokenList), null, [], []) { Role = ApiRole.Admin },
        new("POST", "tokens", "Makes a token, which is shown this once.", 201, typeof(TokenCreated), typeof(CreateToken), [],
            [s_badName, (400, "invalid-role"), (400, "invalid-volumes"), (400, "invalid-expiry"), (400, "invalid-description"), (404, "no-such-tenant"), s_noVolume,
                (409, "token-exists"), (409, "too-many-tokens"), s_meanwhile]) { Role = ApiRole.Admin },
        new("DELETE", "tokens/{id}", "Revokes a token: it is worth nothing from now on, and its calls are cut off.", 204, null, null, [],
            [(404, "no-such-token"), s_meanwhile]) { Role = ApiRole.Admin },
        new("GET", "tenants", "The tenants with what they may have and what they have; a tenant sees itself.", 200, typeof(TenantList), null, [], []) { Reach = ApiReach.Seen },
        new("POST", "tenants", "Makes a tenant, to whom belongs whatever is named TENANT.NAME.", 201, typeof(TenantInfo), typeof(CreateTenant), [],
            [s_badName, (400, "invalid-quota"), (400, "invalid-description"), (409, "tenant-exists"), (409, "tenant-would-adopt"), (409, "too-many-tenants"), s_meanwhile])
            { Role = ApiRole.Admin },
        new("GET", "tenants/{name}", "One tenant.", 200, typeof(TenantInfo), null, [], [s_noTenant]) { Reach = ApiReach.Tenant },
        new("PATCH", "tenants/{name}", "Changes a tenant; what is null stays as it is.", 200, typeof(TenantInfo), typeof(ChangeTenant), [],
            [s_noTenant, (400, "invalid-quota"), (400, "invalid-description"), (412, "revision-differs"), s_meanwhile]) { Role = ApiRole.Admin },
        new("DELETE", "tenants/{name}", "Deletes a tenant that has nothing any more; its tokens are revoked.", 204, null, null,
            [new("revision", "integer", "The tenant's revision.")],
            [s_noTenant, (400, "id-or-revision-needed"), s_badQuery, (409, "tenant-in-use"), (412, "revision-differs"), s_meanwhile]) { Role = ApiRole.Admin },
    ];
}
