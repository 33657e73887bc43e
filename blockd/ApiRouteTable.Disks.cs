using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of disks.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] DiskRoutes =>
    [
        new("GET", "disks", "All disks of the node, also those that are not in service.", 200, typeof(DiskList), null, [], []),
        new("GET", "capacity", "What the disks hold, what was promised to volumes, and what still fits.", 200, typeof(CapacityInfo), null,
            [new("size", "integer", "How many more volumes of so many bytes can be promised room.")], [s_badQuery]),
        new("POST", "disks", "Puts a file or device into service.", 201, typeof(DiskInfo), typeof(AddDisk), [],
            [(400, "invalid-path"), s_badName, (400, "invalid-size"), (409, "disk-in-service"), (409, "disk-is-a-copy"), (409, "disk-refused"),
                (409, "damaged-store"), (409, "name-taken"), (409, "no-such-file"), (409, "not-a-disk"), (409, "not-blank"),
                (409, "other-cluster"), (409, "size-differs")]) { Role = ApiRole.Admin },
        new("DELETE", "disks/{id}", "Takes a disk out of service; its content stays.", 204, null, null, [s_force],
            [(404, "no-such-disk"), (409, "disk-in-use"), (400, "invalid-query")]) { Role = ApiRole.Admin },
        new("POST", "disks/{id}/drain", "Begins to move every volume off a disk; nothing new is placed there.", 202, typeof(TaskInfo), typeof(DrainDisk), [],
            [(404, "no-such-disk"), (409, "no-other-disk")]) { Role = ApiRole.Admin },
        new("DELETE", "disks/{id}/drain", "Lets a disk be used again: what still drains it ends, and new volumes may be placed there. What was moved stays where it is.", 204, null, null, [],
            [(404, "no-such-disk"), (409, "not-draining")]) { Role = ApiRole.Admin },
        new("POST", "disks/{id}/replace", "Puts another disk into service, moves everything to it, and takes the old one out.", 202, typeof(TaskInfo), typeof(AddDisk), [],
            [(404, "no-such-disk"), (400, "invalid-path"), s_badName, (400, "invalid-size"), (409, "disk-in-service"), (409, "disk-is-a-copy"), (409, "disk-refused"),
                (409, "damaged-store"), (409, "name-taken"), (409, "no-such-file"), (409, "not-a-disk"), (409, "not-blank"),
                (409, "other-cluster"), (409, "size-differs")]) { Role = ApiRole.Admin },
        new("POST", "disks/{id}/scrub", "Begins to read everything on a disk and to verify every checksum.", 202, typeof(TaskInfo), typeof(ScrubRequest), [],
            [(404, "no-such-disk")]),
        new("GET", "bad-blocks", "The blocks that scrubs could not read right, by volume and offset.", 200, typeof(BadBlockList), null, [], []),
        new("POST", "rebalance", "Begins to move volumes until all disks are used alike.", 202, typeof(TaskInfo), typeof(Rebalance), [], []) { Role = ApiRole.Admin },
    ];
}
