using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>A parameter of a query.</summary>
/// <param name="Name">As in the URL.</param>
/// <param name="Type">OpenAPI's word: boolean or integer.</param>
/// <param name="Help">What it does.</param>
internal sealed record ApiQuery(string Name, string Type, string Help);

/// <summary>One thing that the admin API can do.</summary>
/// <param name="Method">HTTP method.</param>
/// <param name="Template">Path behind <c>/v1/</c>; a part in braces is a parameter.</param>
/// <param name="Summary">What it does, for people.</param>
/// <param name="Status">The answer when it is done.</param>
/// <param name="Answer">The record that is answered, or null.</param>
/// <param name="Body">The record that is taken, or null.</param>
/// <param name="Queries">Parameters of the query.</param>
/// <param name="Codes">Refusals besides those that every call may get: status and stable code.</param>
internal sealed record ApiRoute(
    string Method, string Template, string Summary, int Status, Type? Answer, Type? Body, ApiQuery[] Queries, (int Status, string Code)[] Codes)
{
    private readonly string[] _parts = Template.Split('/');

    /// <summary>Method and template, as handlers are keyed.</summary>
    public string Key => Method + " " + Template;

    /// <summary>The path has this form.</summary>
    public bool Fits(IReadOnlyList<string> parts)
    {
        if (parts.Count != _parts.Length) return false;
        for (int i = 0; i < _parts.Length; i++)
        {
            if (_parts[i][0] != '{' && _parts[i] != parts[i]) return false;
        }

        return true;
    }
}

/// <summary>All that the admin API can do: calls are dispatched by this table, and docs/openapi.json is written from it.</summary>
internal static class ApiRouteTable
{
    /// <summary>Refusals that every call may get.</summary>
    public static readonly (int Status, string Code)[] CommonCodes =
    [
        (400, "bad-request"), (401, "no-token"), (401, "wrong-token"), (404, "no-such-resource"), (405, "wrong-method"),
        (421, "wrong-host"), (429, "too-many-failures"), (500, "internal-error"), (503, "metadata-unavailable"),
    ];

    /// <summary>Refusals that every change may get besides.</summary>
    public static readonly (int Status, string Code)[] ChangeCodes =
        [(400, "invalid-json"), (403, "cross-origin"), (413, "body-too-large"), (415, "wrong-content-type")];

    private static readonly (int, string) s_noVolume = (404, "no-such-volume");
    private static readonly (int, string) s_badName = (400, "invalid-name");
    private static readonly (int, string) s_noTarget = (404, "no-such-target");
    private static readonly (int, string) s_ownTarget = (409, "own-target");
    private static readonly (int, string) s_meanwhile = (409, "changed-meanwhile");
    private static readonly (int, string) s_badQuery = (400, "invalid-query");
    private static readonly (int, string) s_coming = (409, "volume-initializing");
    private static readonly (int, string) s_image = (409, "volume-is-image");
    private static readonly (int, string) s_noPolicy = (404, "no-such-policy");
    private static readonly (int, string) s_noSnapshot = (404, "no-such-snapshot");
    private static readonly (int, string) s_noDisk = (503, "disk-unavailable");
    private static readonly ApiQuery s_usage = new("usage", "boolean", "With what each takes; reads all its metadata.");
    private static readonly ApiQuery s_mutual = new("mutual", "boolean", "The user by which we prove ourselves.");
    private static readonly ApiQuery s_force = new("force", "boolean", "Confirms what would be refused otherwise.");

    /// <summary>Every route.</summary>
    public static readonly ApiRoute[] All =
    [
        new("GET", "version", "Which daemon answers.", 200, typeof(VersionInfo), null, [], []),
        new("GET", "node", "The node: where it listens, what it runs on, what it warns of.", 200, typeof(NodeInfo), null, [], []),
        new("GET", "volumes", "All volumes, by name.", 200, typeof(VolumeList), null, [], []),
        new("POST", "volumes", "Creates a volume. Repeating the request with its idempotencyKey answers the same volume.",
            201, typeof(VolumeInfo), typeof(CreateVolume), [],
            [s_badName, (400, "invalid-size"), (400, "invalid-block-size"), (400, "invalid-rep-count"), (400, "invalid-idempotency-key"), (400, "invalid-description"),
                (404, "no-disk"), (409, "name-taken"), (409, "changed-meanwhile"), (503, "disk-unavailable"), (507, "no-space")]),
        new("GET", "volumes/{name}", "One volume.", 200, typeof(VolumeInfo), null, [], [s_badName, s_noVolume]),
        new("PATCH", "volumes/{name}", "Changes a volume; what is null stays as it is.", 200, typeof(VolumeInfo), typeof(ChangeVolume), [],
            [s_badName, s_noVolume, (400, "invalid-size"), (400, "invalid-block-size"), (400, "invalid-description"), (409, "name-taken"), (409, "data-beyond-size"),
                (409, "shrink-not-confirmed"), s_coming, s_image, (409, "import-running"), (409, "volume-in-use"), (409, "changed-meanwhile"), (412, "revision-differs"), (503, "disk-unavailable")]),
        new("DELETE", "volumes/{name}", "Deletes a volume; its id or revision must be named.", 204, null, null,
            [new("id", "integer", "The volume's id."), new("revision", "integer", "The volume's revision."),
                new("force", "boolean", "Also while clients are attached or the disk is away."),
                new("snapshots", "boolean", "Its snapshots go too; those that clones build on are always in the way.")],
            [s_badName, s_noVolume, (409, "volume-has-snapshots"), (409, "snapshot-has-clones"), (409, "clone-being-deleted"), (400, "id-or-revision-needed"), (400, "invalid-query"), (409, "volume-in-use"), (409, "volume-is-lun"), (409, "changed-meanwhile"),
                (412, "id-differs"), (412, "revision-differs"), (503, "disk-unavailable"), (503, "delete-unfinished")]),
        new("POST", "volumes/{name}/scrub", "Begins to read a volume and to verify every checksum.", 202, typeof(TaskInfo), typeof(ScrubRequest), [],
            [s_badName, s_noVolume, (503, "disk-unavailable")]),
        new("DELETE", "volumes/{name}/reservations", "Ends every reservation and registration that initiators hold on a volume, damaged ones too.", 204,
            null, null, [], [s_badName, s_noVolume, (503, "disk-unavailable")]),
        new("GET", "snapshots", "The snapshots of all volumes whose disks serve.", 200, typeof(SnapshotList), null, [s_usage], [s_badQuery, s_noDisk]),
        new("POST", "snapshots", "Cuts a snapshot of each volume, all at one moment.", 201, typeof(SnapshotList), typeof(CreateSnapshot), [],
            [s_badName, s_noVolume, (400, "invalid-volumes"), (400, "too-many-volumes"), (409, "snapshot-exists"), (503, "cut-too-slow"),
                s_coming, (409, "volume-flattening"), s_meanwhile, s_noDisk, (507, "no-space")]),
        new("GET", "volumes/{name}/snapshots", "The snapshots of a volume, oldest first.", 200, typeof(SnapshotList), null, [s_usage],
            [s_badName, s_noVolume, s_badQuery, s_noDisk]),
        new("GET", "volumes/{name}/snapshots/{snapshot}", "One snapshot, with what it takes.", 200, typeof(SnapshotEntry), null, [],
            [s_badName, s_noVolume, s_noSnapshot, s_noDisk]),
        new("DELETE", "volumes/{name}/snapshots/{snapshot}", "Deletes a snapshot; the task shows its space coming back.", 202, typeof(TaskInfo), null,
            [new("uuid", "string", "Only if it is this one."), new("force", "boolean", "Also while clients read it.")],
            [s_badName, s_noVolume, s_noSnapshot, s_badQuery, (409, "snapshot-in-use"), (409, "snapshot-is-lun"), (409, "snapshot-has-clones"), (409, "clone-being-deleted"), s_meanwhile, s_coming, (412, "uuid-differs"), s_noDisk]),
        new("POST", "volumes/{name}/snapshots/{snapshot}/rollback", "Makes the volume what the snapshot is; what it was is kept as another snapshot.", 200,
            typeof(RollbackInfo), typeof(RollbackSnapshot), [],
            [s_badName, s_noVolume, s_noSnapshot, (409, "volume-in-use"), (409, "snapshot-exists"), s_coming, s_image, (409, "volume-flattening"), s_meanwhile, s_noDisk, (507, "no-space")]),
        new("GET", "volumes/{name}/diff", "What differs between a snapshot and a later one, or what is written now.", 200, typeof(DiffInfo), null,
            [new("from", "string", "Name of the snapshot."), new("to", "string", "Name of the other one; default: what is written now."),
                new("offset", "integer", "Where to begin, in bytes."), new("ranges", "integer", "At most so many ranges, 1 to 10,000 (default).")],
            [s_badName, s_noVolume, s_noSnapshot, s_badQuery, s_meanwhile, s_noDisk]),
        new("POST", "volumes/{name}/clone", "Makes a volume with the content of a snapshot, writable at once; or, full, a copy that is initializing until it is populated. Repeating the request with its idempotencyKey answers the same volume.",
            201, typeof(VolumeInfo), typeof(CloneVolume), [],
            [s_badName, s_noVolume, s_noSnapshot, (400, "invalid-size"), (400, "invalid-block-size"), (400, "invalid-idempotency-key"), (400, "invalid-description"),
                (409, "name-taken"), s_coming, (409, "volume-flattening"), s_meanwhile, s_noDisk, (507, "no-space")]),
        new("POST", "volumes/{name}/flatten", "Begins to copy what a clone shares with its base; then it builds on nothing.", 202, typeof(TaskInfo), typeof(FlattenVolume), [],
            [s_badName, s_noVolume, s_coming, (409, "not-a-clone"), (409, "volume-has-snapshots"), s_meanwhile, s_noDisk]),
        new("GET", "volumes/{name}/snapshots/{snapshot}/stream", "A snapshot as a stream (docs/stream.md): all of it, or what has changed since an older one.", 200,
            typeof(Stream), null,
            [new("base", "string", "Name of the older snapshot."), new("compress", "string", "lz4 or none (default)."),
                new("cursor", "string", "Goes on behind what the client has already; without the header.")],
            [s_badName, s_noVolume, (404, "no-such-snapshot"), (409, "wrong-base"), s_coming, (400, "invalid-cursor"), s_badQuery,
                (503, "disk-unavailable"), (503, "no-lz4")]),
        new("POST", "volumes/{name}/stream", "Takes a stream: a full one makes the volume, an increment changes it. Refused with nothing changed, or done.", 201,
            typeof(VolumeInfo), typeof(Stream),
            [new("storeId", "string", "The disk of a new volume."), new("keep", "boolean", "A stream that breaks off is kept and can be resumed."),
                new("resume", "boolean", "Goes on with such a one: the header, then the frames from the import's cursor on."),
                new("image", "boolean", "The new volume becomes an image, read-only for ever; not with an increment."),
                new("check", "boolean", "Only the header is sent, and looked at: 204 when the stream would be taken.")],
            [s_badName, (400, "bad-stream"), (400, "truncated-stream"), (400, "interrupted-stream"), s_badQuery, (404, "no-import"), (404, "no-disk"), (409, "name-taken"),
                (409, "wrong-base"), (409, "changed-since-base"), (409, "snapshot-exists"), (409, "volume-in-use"), (409, "import-unfinished"), (409, "import-running"),
                (409, "other-stream"), s_image, s_meanwhile, (503, "disk-unavailable"), (507, "no-space")]),
        new("GET", "volumes/{name}/import", "What comes into a volume, or why the last stream for it was refused.", 200, typeof(ImportInfo), null, [],
            [s_badName, (404, "no-import"), (400, "bad-stream"), (400, "truncated-stream"), (400, "interrupted-stream"), s_noDisk, (507, "no-space")]),
        new("DELETE", "volumes/{name}/import", "Gives an interrupted import up: a volume that was to be filled goes, an increment leaves nothing.", 204, null, null, [],
            [s_badName, s_noVolume, (404, "no-import"), (409, "import-running"), (503, "disk-unavailable")]),
        new("GET", "policies", "All policies, by name.", 200, typeof(PolicyList), null, [], []),
        new("POST", "policies", "Makes a policy, which cuts and deletes snapshots by itself.", 201, typeof(PolicyInfo), typeof(CreatePolicy), [],
            [s_badName, s_noVolume, (400, "invalid-volumes"), (400, "invalid-period"), (400, "invalid-retention"), (400, "invalid-hook"), (409, "policy-exists"),
                (409, "too-many-policies"), s_meanwhile]),
        new("PATCH", "policies/{name}", "Changes a policy at once; what is null stays as it is.", 200, typeof(PolicyInfo), typeof(ChangePolicy), [],
            [s_noPolicy, s_noVolume, (400, "invalid-volumes"), (400, "invalid-period"), (400, "invalid-retention"), (400, "invalid-hook"), (412, "revision-differs"), s_meanwhile]),
        new("DELETE", "policies/{name}", "Deletes a policy; its snapshots stay.", 204, null, null, [new("revision", "integer", "The policy's revision.")],
            [s_noPolicy, s_badQuery, (412, "revision-differs"), s_meanwhile]),
        new("GET", "disks", "All disks of the node, also those that are not in service.", 200, typeof(DiskList), null, [], []),
        new("POST", "disks", "Puts a file or device into service.", 201, typeof(DiskInfo), typeof(AddDisk), [],
            [(400, "invalid-path"), s_badName, (400, "invalid-size"), (409, "disk-in-service"), (409, "disk-is-a-copy"), (409, "disk-refused"),
                (409, "damaged-store"), (409, "name-taken"), (409, "no-such-file"), (409, "not-a-disk"), (409, "not-blank"),
                (409, "other-cluster"), (409, "size-differs")]),
        new("DELETE", "disks/{id}", "Takes a disk out of service; its content stays.", 204, null, null, [s_force],
            [(404, "no-such-disk"), (409, "disk-in-use"), (400, "invalid-query")]),
        new("GET", "sessions", "The clients that are attached.", 200, typeof(SessionList), null, [], []),
        new("DELETE", "sessions/{id}", "Cuts a client off.", 204, null, null, [], [(404, "no-such-session")]),
        new("GET", "portals", "The addresses at which iSCSI is served.", 200, typeof(PortalList), null, [], []),
        new("GET", "targets", "All iSCSI targets, the volumes' own among them, by name.", 200, typeof(TargetList), null, [], []),
        new("POST", "targets", "Creates an iSCSI target, into which nobody may log in yet.", 201, typeof(TargetInfo), typeof(CreateTarget), [],
            [(400, "invalid-target-name"), (400, "invalid-portal-group"), (400, "invalid-description"), (409, "target-exists"), (409, "too-many-targets"), s_meanwhile]),
        new("GET", "targets/{name}", "One target.", 200, typeof(TargetInfo), null, [], [s_noTarget]),
        new("PATCH", "targets/{name}", "Changes a target; what is null stays as it is. Sessions that may not stay end.", 200, typeof(TargetInfo), typeof(ChangeTarget), [],
            [s_noTarget, s_ownTarget, (400, "invalid-portal-group"), (400, "invalid-description"), (412, "revision-differs"), s_meanwhile]),
        new("DELETE", "targets/{name}", "Deletes a target; its volumes stay.", 204, null, null,
            [new("revision", "integer", "The target's revision."), new("force", "boolean", "Also while initiators are attached.")],
            [s_noTarget, s_ownTarget, s_badQuery, (409, "target-in-use"), (412, "revision-differs"), s_meanwhile]),
        new("POST", "targets/{name}/luns", "Makes a volume, or a snapshot (VOLUME@SNAPSHOT), a LUN of a target. The volume's own target is withdrawn unless it is kept.", 201,
            typeof(TargetInfo), typeof(AddLun), [],
            [s_noTarget, s_ownTarget, s_noVolume, s_noSnapshot, (400, "invalid-lun"), (409, "lun-taken"), (409, "volume-is-lun"), (409, "volume-in-use"),
                (409, "lun-on-other-loop"), (409, "too-many-luns"), s_meanwhile]),
        new("DELETE", "targets/{name}/luns/{id}", "Takes a LUN away from a target; the volume stays.", 204, null, null,
            [new("force", "boolean", "Also while initiators are attached.")],
            [s_noTarget, s_ownTarget, (404, "no-such-lun"), s_badQuery, (409, "target-in-use"), s_meanwhile]),
        new("POST", "targets/{name}/access", "Lets initiators log in.", 201, typeof(TargetInfo), typeof(AccessRule), [],
            [s_noTarget, s_ownTarget, (400, "invalid-initiator"), (400, "invalid-address"), (409, "too-many-rules"), s_meanwhile]),
        new("DELETE", "targets/{name}/access", "Takes such a rule back; sessions that no other rule lets in end.", 204, null, null,
            [new("initiator", "string", "As in the rule; default: *."), new("address", "string", "As in the rule, if it has one.")],
            [s_noTarget, s_ownTarget, (404, "no-such-rule"), (400, "invalid-initiator"), (400, "invalid-address"), s_badQuery, s_meanwhile]),
        new("POST", "targets/{name}/users", "Adds a CHAP user to a target. From the first on, initiators must prove themselves: sessions that have not end.", 201,
            typeof(TargetInfo), typeof(AddChapUser), [],
            [s_noTarget, s_ownTarget, (400, "invalid-user"), (400, "invalid-secret"), (400, "secret-reused"), (409, "user-exists"), (409, "too-many-users"), s_meanwhile]),
        new("DELETE", "targets/{name}/users/{id}", "Takes a CHAP user away; its sessions end.", 204, null, null, [s_mutual],
            [s_noTarget, s_ownTarget, (404, "no-such-user"), s_badQuery, s_meanwhile]),
        new("GET", "discovery", "Who may discover targets.", 200, typeof(DiscoveryInfo), null, [], []),
        new("POST", "discovery/users", "Adds a CHAP user of discovery.", 201, typeof(DiscoveryInfo), typeof(AddChapUser), [],
            [(400, "invalid-user"), (400, "invalid-secret"), (400, "secret-reused"), (409, "user-exists"), (409, "too-many-users"), s_meanwhile]),
        new("DELETE", "discovery/users/{id}", "Takes a CHAP user of discovery away.", 204, null, null, [s_mutual], [(404, "no-such-user"), s_badQuery, s_meanwhile]),
        new("GET", "stats", "Counters of the volumes that were attached since the start.", 200, typeof(StatsInfo), null, [], []),
        new("GET", "watch", "Changes as server-sent events, without end (docs/api.md).", 200, typeof(Stream), null,
            [new("from", "integer", "Goes on behind this revision; so does the header Last-Event-ID."),
                new("types", "string", "Only these, with commas: volume, snapshot, target, policy, task, session, event."),
                new("initial", "boolean", "Without from: what exists comes first (default), or not.")],
            [s_badQuery, (503, "too-many-watchers")]),
        new("GET", "tasks", "The tasks that run and the last 200 that have ended, newest first.", 200, typeof(TaskList), null,
            [new("state", "string", "Only those in this state."), new("kind", "string", "Only those of this kind.")], [s_badQuery]),
        new("GET", "tasks/{id}", "One task, with its history.", 200, typeof(TaskInfo), null, [], [(404, "no-such-task")]),
        new("DELETE", "tasks/{id}", "Asks a task to end; it is cancelled when its state says so.", 204, null, null, [], [(404, "no-such-task"), (409, "task-goes-on")]),
        new("GET", "openapi.json", "This document.", 200, null, null, [], []),
    ];

    /// <summary>The route of a call; throws 404 or, with the methods that would do, 405.</summary>
    public static ApiRoute Find(ApiCall call)
    {
        ApiRoute[] here = [.. All.Where(r => r.Fits(call.Parts))];
        if (here.Length == 0) throw new ApiException(404, "no-such-resource", "there is no such resource");
        return here.FirstOrDefault(r => r.Method == call.Method) ?? throw call.WrongMethod(string.Join(", ", here.Select(r => r.Method)));
    }
}
