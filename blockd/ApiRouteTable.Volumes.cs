using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of volumes.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] VolumeRoutes =>
    [
        new("GET", "volumes", "All volumes, by name.", 200, typeof(VolumeList), null, [new("tenant", "string", "Only this tenant's.")], [s_noTenant, s_badQuery]) { Reach = ApiReach.Seen },
        new("POST", "volumes", "Creates a volume. Repeating the request with its idempotencyKey answers the same volume.",
            201, typeof(VolumeInfo), typeof(CreateVolume), [],
            [s_badName, (400, "invalid-size"), (400, "invalid-block-size"), (400, "invalid-nbd-clients"), (400, "invalid-rep-count"), (400, "invalid-idempotency-key"), (400, "invalid-description"),
                (400, "invalid-qos"), (404, "no-disk"), (409, "name-taken"), s_quotaBytes, s_quotaVolumes, s_notYours, (409, "changed-meanwhile"), s_thinThick, (503, "disk-unavailable"), (507, "no-space"), s_noRoom]) { Reach = ApiReach.Seen },
        new("GET", "volumes/{name}", "One volume.", 200, typeof(VolumeInfo), null, [], [s_badName, s_noVolume]),
        new("PATCH", "volumes/{name}", "Changes a volume; what is null stays as it is.", 200, typeof(VolumeInfo), typeof(ChangeVolume), [],
            [s_badName, s_noVolume, (400, "invalid-size"), (400, "invalid-block-size"), (400, "invalid-nbd-clients"), (400, "invalid-description"), (400, "invalid-qos"), (409, "name-taken"), s_quotaBytes, s_quotaVolumes, s_notYours, (409, "data-beyond-size"),
                (409, "shrink-not-confirmed"), s_coming, s_image, (409, "import-running"), (409, "volume-in-use"), (409, "changed-meanwhile"), s_thinThick, (412, "revision-differs"), (503, "disk-unavailable"), s_noRoom]),
        new("DELETE", "volumes/{name}", "Deletes a volume; its id or revision must be named.", 204, null, null,
            [new("id", "integer", "The volume's id."), new("revision", "integer", "The volume's revision."),
                new("force", "boolean", "Also while clients are attached or the disk is away."),
                new("snapshots", "boolean", "Its snapshots go too; those that clones build on are always in the way.")],
            [s_badName, s_noVolume, (409, "volume-has-snapshots"), (409, "snapshot-has-clones"), (409, "clone-being-deleted"), (400, "id-or-revision-needed"), (400, "invalid-query"), (409, "volume-in-use"), (409, "volume-is-lun"), (409, "changed-meanwhile"),
                (412, "id-differs"), (412, "revision-differs"), (503, "disk-unavailable"), (503, "delete-unfinished")]),
        new("POST", "volumes/{name}/scrub", "Begins to read a volume and to verify every checksum.", 202, typeof(TaskInfo), typeof(ScrubRequest), [],
            [s_badName, s_noVolume, (503, "disk-unavailable")]),
        new("POST", "volumes/{name}/move", "Begins to move a volume, and what shares blocks with it, to another disk while clients go on.", 202, typeof(TaskInfo), typeof(MoveVolume), [],
            [s_badName, s_noVolume, (404, "no-disk"), (409, "already-there"), (409, "volume-moving"), (409, "copy-being-deleted"), (409, "clone-being-deleted"),
                s_coming, (409, "volume-flattening"), s_meanwhile, s_noDisk, s_noRoom]) { Role = ApiRole.Admin, Reach = ApiReach.Node },
        new("DELETE", "volumes/{name}/reservations", "Ends every reservation and registration that initiators hold on a volume, damaged ones too.", 204,
            null, null, [], [s_badName, s_noVolume, (503, "disk-unavailable")]),
    ];
}
