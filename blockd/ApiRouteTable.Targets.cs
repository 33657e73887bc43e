using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of iSCSI targets.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] TargetRoutes =>
    [
        new("GET", "portals", "The addresses at which iSCSI is served.", 200, typeof(PortalList), null, [], []) { Reach = ApiReach.Everybody },
        new("GET", "targets", "All iSCSI targets, the volumes' own among them, by name.", 200, typeof(TargetList), null, [], []) { Reach = ApiReach.Seen },
        new("POST", "targets", "Creates an iSCSI target, into which nobody may log in yet.", 201, typeof(TargetInfo), typeof(CreateTarget), [],
            [(400, "invalid-target-name"), (400, "invalid-portal-group"), (400, "invalid-description"), (409, "target-exists"), s_notYours, (409, "too-many-targets"), s_meanwhile]) { Reach = ApiReach.Seen },
        new("GET", "targets/{name}", "One target.", 200, typeof(TargetInfo), null, [], [s_noTarget]) { Reach = ApiReach.Target },
        new("PATCH", "targets/{name}", "Changes a target; what is null stays as it is. Sessions that may not stay end.", 200, typeof(TargetInfo), typeof(ChangeTarget), [],
            [s_noTarget, s_ownTarget, (400, "invalid-portal-group"), (400, "invalid-description"), (412, "revision-differs"), s_meanwhile]) { Reach = ApiReach.Target },
        new("DELETE", "targets/{name}", "Deletes a target; its volumes stay.", 204, null, null,
            [new("revision", "integer", "The target's revision."), new("force", "boolean", "Also while initiators are attached.")],
            [s_noTarget, s_ownTarget, s_badQuery, (409, "target-in-use"), (412, "revision-differs"), s_meanwhile]) { Reach = ApiReach.Target },
        new("POST", "targets/{name}/luns", "Makes a volume, or a snapshot (VOLUME@SNAPSHOT), a LUN of a target. The volume's own target is withdrawn unless it is kept.", 201,
            typeof(TargetInfo), typeof(AddLun), [],
            [s_noTarget, s_ownTarget, s_noVolume, s_noSnapshot, (400, "invalid-lun"), (409, "lun-taken"), (409, "volume-is-lun"), (409, "volume-in-use"),
                (409, "too-many-luns"), s_meanwhile]) { Reach = ApiReach.Target },
        new("DELETE", "targets/{name}/luns/{id}", "Takes a LUN away from a target; the volume stays.", 204, null, null,
            [new("force", "boolean", "Also while initiators are attached.")],
            [s_noTarget, s_ownTarget, (404, "no-such-lun"), s_badQuery, (409, "target-in-use"), s_meanwhile]) { Reach = ApiReach.Target },
        new("POST", "targets/{name}/access", "Lets initiators log in.", 201, typeof(TargetInfo), typeof(AccessRule), [],
            [s_noTarget, s_ownTarget, (400, "invalid-initiator"), (400, "invalid-address"), (409, "too-many-rules"), s_meanwhile]) { Reach = ApiReach.Target },
        new("DELETE", "targets/{name}/access", "Takes such a rule back; sessions that no other rule lets in end.", 204, null, null,
            [new("initiator", "string", "As in the rule; default: *."), new("address", "string", "As in the rule, if it has one.")],
            [s_noTarget, s_ownTarget, (404, "no-such-rule"), (400, "invalid-initiator"), (400, "invalid-address"), s_badQuery, s_meanwhile]) { Reach = ApiReach.Target },
        new("POST", "targets/{name}/users", "Adds a CHAP user to a target. From the first on, initiators must prove themselves: sessions that have not end.", 201,
            typeof(TargetInfo), typeof(AddChapUser), [],
            [s_noTarget, s_ownTarget, (400, "invalid-user"), (400, "invalid-secret"), (400, "secret-reused"), (409, "user-exists"), (409, "too-many-users"), s_meanwhile]) { Reach = ApiReach.Target },
        new("DELETE", "targets/{name}/users/{id}", "Takes a CHAP user away; its sessions end.", 204, null, null, [s_mutual],
            [s_noTarget, s_ownTarget, (404, "no-such-user"), s_badQuery, s_meanwhile]) { Reach = ApiReach.Target },
        new("GET", "discovery", "Who may discover targets.", 200, typeof(DiscoveryInfo), null, [], []),
        new("POST", "discovery/users", "Adds a CHAP user of discovery.", 201, typeof(DiscoveryInfo), typeof(AddChapUser), [],
            [(400, "invalid-user"), (400, "invalid-secret"), (400, "secret-reused"), (409, "user-exists"), (409, "too-many-users"), s_meanwhile]) { Role = ApiRole.Admin },
        new("DELETE", "discovery/users/{id}", "Takes a CHAP user of discovery away.", 204, null, null, [s_mutual], [(404, "no-such-user"), s_badQuery, s_meanwhile]) { Role = ApiRole.Admin },
    ];
}
