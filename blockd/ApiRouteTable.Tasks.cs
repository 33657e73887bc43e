using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of tasks.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] TaskRoutes =>
    [
        new("GET", "tasks", "The last hundred tasks, newest first.", 200, typeof(TaskList), null, [], []) { Reach = ApiReach.Seen },
        new("GET", "tasks/{id}", "One task.", 200, typeof(TaskInfo), null, [], [(404, "no-such-task")]) { Reach = ApiReach.Task },
        new("DELETE", "tasks/{id}", "Cancels a task.", 204, null, null, [], [(404, "no-such-task"), (409, "task-goes-on")]) { Reach = ApiReach.Task },
    ];
}
