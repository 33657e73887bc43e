using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of append-only volumes.
internal static partial class ApiRouteTable
{
    private static readonly (int, string) s_notAof = (409, "not-append-only");

    private static ApiRoute[] AofRoutes =>
    [
        new("GET", "aof", "The append-only volumes whose disks serve, by name.", 200, typeof(AofList), null, [], []) { Reach = ApiReach.Seen },
        new("POST", "aof", "Opens an append-only volume, and creates it if there is none of that name.", 200, typeof(AofInfo), typeof(OpenAof), [],
            [s_badName, (400, "invalid-size"), (400, "invalid-description"), (404, "no-disk"), s_notAof, s_quotaBytes, s_quotaVolumes, s_notYours, s_meanwhile, s_noDisk, (507, "no-space"), s_noRoom]) { Reach = ApiReach.Seen },
        new("GET", "volumes/{name}/aof", "Length and state of an append-only volume; waits for it to grow when asked to.", 200, typeof(AofInfo), null,
            [new("beyond", "integer", "Waits until it is longer than this, or sealed."), new("wait", "integer", "Waits at most so many seconds, 0 to 30 (default 0).")],
            [s_badName, s_noVolume, s_notAof, s_badQuery, s_noDisk]),
        new("GET", "volumes/{name}/data", "Bytes of an append-only volume, as many as there are; headers Blockd-Length and Blockd-Sealed say how it is.", 200, typeof(Stream), null,
            [new("offset", "integer", "Where to begin, in bytes (default 0)."), new("length", "integer", "At most so many bytes, 1 to 4 MiB (default 1 MiB)."),
                new("wait", "integer", "When there are none yet: waits for some at most so many seconds, 0 to 30 (default 0).")],
            [s_badName, s_noVolume, s_notAof, s_badQuery, (416, "beyond-end"), (503, "unreadable"), s_noDisk]),
        new("POST", "volumes/{name}/append",
            "Appends the body, whole or not at all, durable when answered; several appends when their lengths are given. Repeated with the same client and sequence it lands once.",
            200, typeof(AppendAnswerInfo), typeof(Stream),
            [new("client", "string", "Identity of the client, a UUID that it drew; without it a repeat is not recognised."),
                new("sequence", "integer", "Number of the first append among the client's; its first is 1, then rising."),
                new("lengths", "string", "Lengths of at most 16 appends, by commas; they have rising numbers and lie in this order (default: all is one).")],
            [s_badName, s_noVolume, s_notAof, s_badQuery, (400, "empty-append"), (411, "length-needed"), (409, "volume-is-sealed"), (409, "sequence-too-old"),
                (409, "client-unknown"), (409, "append-differs"), (507, "volume-full"), (507, "no-space"), (503, "unreadable"), s_noDisk]),
        new("POST", "volumes/{name}/append-stream",
            "Goes on as an append stream (Upgrade: blockd-append/1, docs/api.md): frames of appends, each durable when it is answered; header Blockd-Volume is the number that frames carry.",
            101, null, null, [],
            [s_badName, s_noVolume, s_notAof, (426, "upgrade-needed"), (409, "volume-is-sealed"), (429, "too-many-streams"), s_noDisk]),
        new("POST", "volumes/{name}/rename", "Gives an append-only volume another name, at one moment; a volume that has it can give way.", 200, typeof(AofInfo), typeof(RenameAof), [],
            [s_badName, s_noVolume, s_notAof, s_notYours, (409, "name-taken"), (409, "volume-has-snapshots"), (409, "snapshot-has-clones"), (409, "clone-being-deleted"),
                (409, "volume-is-lun"), (409, "volume-moving"), s_meanwhile, s_noDisk]),
        new("POST", "volumes/{name}/seal", "Seals an append-only volume: it takes nothing more, for ever.", 200, typeof(AofInfo), typeof(SealAof), [],
            [s_badName, s_noVolume, s_notAof, s_meanwhile, s_noDisk]),
    ];
}
