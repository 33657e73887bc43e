using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of streams of volumes.
internal static partial class ApiRouteTable
{
    private static ApiQuery Handed => new("file", "string", "Ticket of a file that was handed over (docs/api.md): it is what is written or read, the connection carries the header alone.");

    private static ApiQuery HandedFormat => new("format", "string", "What such a file is: stream (default) or raw.");

    private static ApiRoute[] StreamRoutes =>
    [
        new("GET", "volumes/{name}/snapshots/{snapshot}/stream", "A snapshot as a stream (docs/stream.md): all of it, or what has changed since an older one.", 200,
            typeof(Stream), null,
            [new("base", "string", "Name of the older snapshot."), new("compress", "string", "lz4 or none (default)."),
                new("cursor", "string", "Goes on behind what the client has already; without the header."), Handed, HandedFormat],
            [s_badName, s_noVolume, (404, "no-such-snapshot"), (409, "wrong-base"), s_coming, (400, "invalid-cursor"), s_badQuery, (404, "no-file"),
                (503, "disk-unavailable"), (503, "no-lz4")]),
        new("POST", "volumes/{name}/stream", "Takes a stream: a full one makes the volume, an increment changes it. Refused with nothing changed, or done.", 201,
            typeof(VolumeInfo), typeof(Stream),
            [new("storeId", "string", "The disk of a new volume."), new("keep", "boolean", "A stream that breaks off is kept and can be resumed."),
                new("resume", "boolean", "Goes on with such a one: the header, then the frames from the import's cursor on."),
                new("thin", "boolean", "The new volume is not promised room for its size; else as the daemon is set up."),
                new("image", "boolean", "The new volume becomes an image, read-only for ever; not with an increment."),
                new("check", "boolean", "Only the header is sent, and looked at: 204 when the stream would be taken."),
                Handed, HandedFormat],
            [s_badName, s_noVolume, (400, "bad-stream"), (400, "truncated-stream"), (400, "interrupted-stream"), s_badQuery, (404, "no-import"), (404, "no-disk"), (404, "no-file"), s_quotaBytes, s_quotaVolumes, (409, "name-taken"),
                (409, "wrong-base"), (409, "volume-being-copied"), (409, "changed-since-base"), (409, "snapshot-exists"), (409, "volume-in-use"), (409, "import-unfinished"), (409, "import-running"),
                (409, "other-stream"), s_image, s_meanwhile, (503, "disk-unavailable"), (507, "no-space"), s_noRoom]),
        new("GET", "volumes/{name}/import", "What comes into a volume, or why the last stream for it was refused.", 200, typeof(ImportInfo), null, [],
            [s_badName, s_noVolume, (404, "no-import"), (400, "bad-stream"), (400, "truncated-stream"), (400, "interrupted-stream"), s_noDisk, (507, "no-space")]),
        new("DELETE", "volumes/{name}/import", "Gives an interrupted import up: a volume that was to be filled goes, an increment leaves nothing.", 204, null, null, [],
            [s_badName, s_noVolume, (404, "no-import"), (409, "import-running"), (503, "disk-unavailable")]),
    ];
}
