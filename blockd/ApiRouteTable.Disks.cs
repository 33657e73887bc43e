using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of disks.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] DiskRoutes =>
    [
        new("GET", "disks", "All disks of the node, also those that are not in service.", 200, typeof(DiskList), null, [], []),
        new("POST", "disks", "Puts a file or device into service.", 201, typeof(DiskInfo), typeof(AddDisk), [],
            [(400, "invalid-path"), s_badName, (400, "invalid-size"), (409, "disk-in-service"), (409, "disk-is-a-copy"), (409, "disk-refused"),
                (409, "damaged-store"), (409, "name-taken"), (409, "no-such-file"), (409, "not-a-disk"), (409, "not-blank"),
                (409, "other-cluster"), (409, "size-differs")]) { Role = ApiRole.Admin },
        new("DELETE", "disks/{id}", "Takes a disk out of service; its content stays.", 204, null, null, [s_force],
            [(404, "no-such-disk"), (409, "disk-in-use"), (400, "invalid-query")]) { Role = ApiRole.Admin },
    ];
}
