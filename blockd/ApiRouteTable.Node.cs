using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of the node itself and the clients that are attached.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] NodeRoutes =>
    [
        new("GET", "version", "Which daemon answers.", 200, typeof(VersionInfo), null, [], []) { Reach = ApiReach.Everybody },
        new("GET", "node", "The node: where it listens, what it runs on, what it warns of.", 200, typeof(NodeInfo), null, [], []),
        new("GET", "sessions", "The clients that are attached.", 200, typeof(SessionList), null, [], []) { Reach = ApiReach.Seen },
        new("DELETE", "sessions/{id}", "Cuts a client off.", 204, null, null, [], [(404, "no-such-session")]) { Reach = ApiReach.Session },
        new("GET", "stats", "Counters of the volumes that were attached since the start.", 200, typeof(StatsInfo), null, [], []) { Reach = ApiReach.Seen },
        new("GET", "openapi.json", "This document.", 200, null, null, [], []) { Reach = ApiReach.Everybody },
    ];
}
