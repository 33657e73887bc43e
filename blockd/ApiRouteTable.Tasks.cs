using BlockServer.Core.Api;

namespace BlockServer.Blockd;

// The routes of tasks, of the watch stream and of the declared state.
internal static partial class ApiRouteTable
{
    private static ApiRoute[] TaskRoutes =>
    [
        new("GET", "tasks", "The tasks that run and the last 200 that have ended, newest first.", 200, typeof(TaskList), null,
            [new("state", "string", "Only those in this state."), new("kind", "string", "Only those of this kind.")], [s_badQuery]) { Reach = ApiReach.Seen },
        new("GET", "tasks/{id}", "One task, with its history.", 200, typeof(TaskInfo), null, [], [(404, "no-such-task")]) { Reach = ApiReach.Task },
        new("DELETE", "tasks/{id}", "Asks a task to end; it is cancelled when its state says so.", 204, null, null, [], [(404, "no-such-task"), (409, "task-goes-on")])
        {
            Reach = ApiReach.Task,
        },
        new("GET", "watch", "Changes as server-sent events, without end (docs/api.md).", 200, typeof(Stream), null,
            [new("from", "integer", "Goes on behind this revision; so does the header Last-Event-ID."),
                new("types", "string", "Only these, with commas: volume, snapshot, target, policy, task, session, event (the last one not with a confined token)."),
                new("initial", "boolean", "Without from: what exists comes first (default), or not.")],
            [s_badQuery, (503, "too-many-watchers")]) { Reach = ApiReach.Seen },
        new("GET", "declared", "What is declared, what is, and what stands between: for a tenant's token what the tenant has declared, else what is for the whole node.", 200, typeof(DeclaredInfo), null, [], []) { Reach = ApiReach.Seen },
        new("PUT", "declared", "Declares a state, which the daemon brings about and keeps. Nothing is deleted but what prune names.", 200,
            typeof(DeclaredInfo), typeof(ApplyDeclared), [new("dryRun", "boolean", "Only says what would be done.")],
            [(400, "invalid-declaration"), s_notYours, s_badQuery, s_meanwhile, (409, "declared-elsewhere"), (412, "revision-differs")]) { Role = ApiRole.Operator, Reach = ApiReach.Seen },
        new("GET", "support", "What somebody who helps needs to know, as tar.gz; without secrets and without the content of volumes.", 200, typeof(Stream), null, [], [])
        {
            Role = ApiRole.Admin,
        },
        new("DELETE", "declared", "Declares nothing any more; everything stays as it is.", 204, null, null,
            [new("revision", "integer", "Only if this one is in force.")], [s_badQuery, s_meanwhile, (412, "revision-differs")]) { Role = ApiRole.Operator, Reach = ApiReach.Seen },
    ];
}
