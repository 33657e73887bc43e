using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of policies.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] PolicyRoutes =>
    [
        new("GET", "policies", "All policies, by name.", 200, typeof(PolicyList), null, [], []) { Reach = ApiReach.Seen },
        new("POST", "policies", "Makes a policy, which cuts and deletes snapshots by itself.", 201, typeof(PolicyInfo), typeof(CreatePolicy), [],
            [s_badName, s_noVolume, (400, "invalid-volumes"), (400, "invalid-period"), (400, "invalid-retention"), (400, "invalid-hook"), (409, "policy-exists"),
                s_notYours, (409, "too-many-policies"), s_meanwhile]) { Reach = ApiReach.Seen },
        new("PATCH", "policies/{name}", "Changes a policy at once; what is null stays as it is.", 200, typeof(PolicyInfo), typeof(ChangePolicy), [],
            [s_noPolicy, s_noVolume, (400, "invalid-volumes"), (400, "invalid-period"), (400, "invalid-retention"), (400, "invalid-hook"), (412, "revision-differs"), s_meanwhile]) { Reach = ApiReach.Policy },
        new("DELETE", "policies/{name}", "Deletes a policy; its snapshots stay.", 204, null, null, [new("revision", "integer", "The policy's revision.")],
            [s_noPolicy, s_badQuery, (412, "revision-differs"), s_meanwhile]) { Reach = ApiReach.Policy },
    ];
}
