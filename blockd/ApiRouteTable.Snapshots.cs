using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of snapshots and clones.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] SnapshotRoutes =>
    [
        new("GET", "snapshots", "The snapshots of all volumes whose disks serve.", 200, typeof(SnapshotList), null, [s_usage], [s_badQuery, s_noDisk]) { Reach = ApiReach.Seen },
        new("POST", "snapshots", "Cuts a snapshot of each volume, all at one moment.", 201, typeof(SnapshotList), typeof(CreateSnapshot), [],
            [s_badName, s_noVolume, (400, "invalid-volumes"), (400, "too-many-volumes"), (409, "snapshot-exists"), (503, "cut-too-slow"),
                s_coming, (409, "volume-flattening"), s_meanwhile, s_thinThick, s_noDisk, (507, "no-space"), s_noRoom]) { Reach = ApiReach.Seen },
        new("POST", "snapshots/rollback", "Makes each volume what its snapshot of one name is: all of them, or none. What they were is kept as a group of snapshots.", 200,
            typeof(RollbackTogetherInfo), typeof(RollbackTogether), [],
            [s_badName, s_noVolume, s_noSnapshot, (400, "invalid-volumes"), (400, "too-many-volumes"), (409, "no-group"), (409, "volume-in-use"), (409, "snapshot-exists"), (503, "cut-too-slow"),
                (503, "rollback-unfinished"), s_coming, s_image, (409, "volume-flattening"), s_meanwhile, s_quotaBytes, s_noDisk, (507, "no-space"), s_noRoom]) { Reach = ApiReach.Seen },
        new("GET", "volumes/{name}/snapshots", "The snapshots of a volume, oldest first.", 200, typeof(SnapshotList), null, [s_usage],
            [s_badName, s_noVolume, s_badQuery, s_noDisk]),
        new("GET", "volumes/{name}/snapshots/{snapshot}", "One snapshot, with what it takes.", 200, typeof(SnapshotEntry), null, [],
            [s_badName, s_noVolume, s_noSnapshot, s_noDisk]),
        new("DELETE", "volumes/{name}/snapshots/{snapshot}", "Deletes a snapshot; the task shows its space coming back.", 202, typeof(TaskInfo), null,
            [new("uuid", "string", "Only if it is this one."), new("force", "boolean", "Also while clients read it.")],
            [s_badName, s_noVolume, s_noSnapshot, s_badQuery, (409, "snapshot-in-use"), (409, "snapshot-is-lun"), (409, "snapshot-has-clones"), (409, "clone-being-deleted"), s_meanwhile, s_coming, (412, "uuid-differs"), s_noDisk]),
        new("POST", "volumes/{name}/snapshots/{snapshot}/rollback", "Makes the volume what the snapshot is; what it was is kept as another snapshot.", 200,
            typeof(RollbackInfo), typeof(RollbackSnapshot), [],
            [s_badName, s_noVolume, s_noSnapshot, (409, "volume-in-use"), (409, "snapshot-exists"), s_coming, s_image, (409, "volume-flattening"), s_meanwhile, (412, "revision-differs"), (412, "uuid-differs"), s_quotaBytes, s_noDisk, (507, "no-space"), s_noRoom]),
        new("GET", "volumes/{name}/diff", "What differs between a snapshot and a later one, or what is written now.", 200, typeof(DiffInfo), null,
            [new("from", "string", "Name of the snapshot."), new("to", "string", "Name of the other one; default: what is written now."),
                new("offset", "integer", "Where to begin, in bytes."), new("ranges", "integer", "At most so many ranges, 1 to 10,000 (default).")],
            [s_badName, s_noVolume, s_noSnapshot, s_badQuery, s_meanwhile, s_noDisk]),
        new("POST", "volumes/{name}/clone", "Makes a volume with the content of a snapshot, writable at once; or, full, a copy that is initializing until it is populated. Repeating the request with its idempotencyKey answers the same volume.",
            201, typeof(VolumeInfo), typeof(CloneVolume), [],
            [s_badName, s_noVolume, s_noSnapshot, (400, "invalid-size"), (400, "invalid-block-size"), (400, "invalid-nbd-clients"), (400, "invalid-idempotency-key"), (400, "invalid-description"),
                (409, "name-taken"), s_quotaBytes, s_quotaVolumes, s_notYours, s_coming, (409, "volume-flattening"), s_meanwhile, s_noDisk, (507, "no-space")]),
        new("POST", "volumes/{name}/flatten", "Begins to copy what a clone shares with its base; then it builds on nothing.", 202, typeof(TaskInfo), typeof(FlattenVolume), [],
            [s_badName, s_noVolume, s_coming, (409, "not-a-clone"), (409, "volume-has-snapshots"), s_meanwhile, s_noDisk]),
    ];
}
