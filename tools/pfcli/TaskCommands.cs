using System.CommandLine;
using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Long jobs: start, look at, wait for, cancel.</summary>
internal static class TaskCommands
{
    private static readonly string[] Headings = ["Id", "Kind", "Target", "State", "Progress", "Started", "Result"];

    public static void AddTo(CommandSet commands)
    {
        AddScrub(commands, "scrub_volume", "Reads a volume and verifies every checksum");
        AddScrub(commands, "deep_scrub_volume", "Reads every replica of a volume, verifies every checksum and compares them; with one replica as scrub_volume");
        AddRecover(commands);
        Option<string?> state = new("--state") { Description = "Only those in this state", HelpName = "STATE" };
        state.AcceptOnlyFromAmong(TaskStates.Running, TaskStates.Cancelling, TaskStates.Succeeded, TaskStates.Failed, TaskStates.Cancelled);
        var kind = new Option<string?>("--kind") { Description = "Only those of this kind: scrub, import, flatten, ...", HelpName = "KIND" };
        kind.CompletionSources.Add("allocate", "delete-snapshot", "drain", "export", "flatten", "import", "move", "populate", "rebalance", "replace", "scrub", "scrub-disk");
        commands.Add("list_task", "Lists the tasks that run and the last ones that have ended, newest first", [state, kind], async (context, cancel) =>
        {
            string[] query = [.. new[] { ("state", context.Get(state)), ("kind", context.Get(kind)) }
                .Where(q => q.Item2 is not null).Select(q => $"{q.Item1}={Uri.EscapeDataString(q.Item2!)}")];
            TaskList list = await context.Client.GetAsync(
                "v1/tasks" + (query.Length == 0 ? "" : "?" + string.Join('&', query)), ApiJson.Default.TaskList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.TaskList)) return ExitCode.Done;
            context.Printer.Line($"{list.Tasks.Count} tasks returned.");
            context.Printer.Table(Headings, [.. list.Tasks.Select(Row)]);
            return ExitCode.Done;
        },
        "pfcli list_task",
        "pfcli list_task --state running --json");
        var queried = new Argument<long>("task") { Description = "Number of the task" };
        var waiting = new Waiting(isHabit: false, "Only look (default)");
        commands.Add("query_task", "Shows a task and its history; exits 1 when it failed or was cancelled", [queried, .. waiting.Options], async (context, cancel) =>
        {
            TaskInfo task = await context.Client.GetAsync(PathOf(context.Get(queried)), ApiJson.Default.TaskInfo, cancel);
            if (waiting.IsWanted(context)) task = await Waiting.FollowAsync(context, task, cancel);
            foreach (TaskNote note in task.History ?? [])
                context.Printer.Line($"{note.At.ToString("u", CultureInfo.InvariantCulture)}  {note.Text}");
            return Conclude(context, task);
        },
        "pfcli query_task 17",
        "pfcli query_task 17 --wait && echo done");
        var cancelled = new Argument<long>("task") { Description = "Number of the task" };
        var ending = new Waiting(isHabit: false, "Only ask; look with query_task (default)");
        commands.Add("cancel_task", "Asks a running task to end", [cancelled, .. ending.Options], async (context, cancel) =>
        {
            long id = context.Get(cancelled);
            TaskInfo task = await context.Client.GetAsync(PathOf(id), ApiJson.Default.TaskInfo, cancel);
            if (!TaskStates.IsOpen(task.State) && task.State != TaskStates.Cancelled)
                throw new CliException($"task {id} has ended already ({task.State}); there is nothing left to cancel");
            await context.Client.DeleteAsync(PathOf(id), cancel);
            task = await context.Client.GetAsync(PathOf(id), ApiJson.Default.TaskInfo, cancel);
            if (ending.IsWanted(context)) task = await Waiting.FollowAsync(context, task, cancel);
            if (context.Printer.TryJson(task, ApiJson.Default.TaskInfo)) return ExitCode.Done;
            context.Printer.Line(TaskStates.IsOpen(task.State) ? $"Task {id} is being cancelled." : $"Task {id}: {task.State}.");
            return ExitCode.Done;
        },
        "pfcli cancel_task 17",
        "pfcli cancel_task 17 --wait                                # until it has ended");
    }

    private static void AddScrub(CommandSet commands, string verb, string description)
    {
        Option<string> name = Inputs.Volume();
        Option<ulong> rate = Inputs.Size("--rate", null, "Read at most this much a second (default: as fast as clients allow)", required: false);
        var waiting = new Waiting(isHabit: true);
        commands.Add(verb, description, [name, rate, .. waiting.Options], async (context, cancel) =>
        {
            TaskInfo task = await context.Client.ChangeAsync(
                HttpMethod.Post, Inputs.PathOf(context.Get(name)!) + "/scrub", new ScrubRequest(context.Get(rate)),
                ApiJson.Default.ScrubRequest, ApiJson.Default.TaskInfo, cancel);
            return await waiting.ConcludeAsync(context, task, cancel);
        },
        $"pfcli {verb} -v db",
        $"pfcli {verb} -v db --rate 50m --no-wait");
    }

    /// <summary>Begins a long job, and stays until it has ended unless told otherwise.</summary>
    public static async Task<int> BeginAsync<T>(
        CommandContext context, Waiting waiting, string path, T request, System.Text.Json.Serialization.Metadata.JsonTypeInfo<T> type, CancellationToken cancel) =>
        await waiting.ConcludeAsync(context, await context.Client.ChangeAsync(HttpMethod.Post, path, request, type, ApiJson.Default.TaskInfo, cancel), cancel);

    // With one replica there is nothing to copy from: what can be done is to go on with a copy that has stopped.
    private static void AddRecover(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        var waiting = new Waiting(isHabit: true);
        commands.Add("recovery_volume", "Brings a volume back to all its replicas, or goes on with populating one", [name, .. waiting.Options], async (context, cancel) =>
        {
            VolumeInfo volume = await Inputs.VolumeAsync(context, context.Get(name)!, cancel);
            if (volume is { Status: "initializing", Import: null })
            {
                TaskInfo task = await context.Client.ChangeAsync(
                    HttpMethod.Post, Inputs.PathOf(volume.Name) + "/flatten", new FlattenVolume(), ApiJson.Default.FlattenVolume, ApiJson.Default.TaskInfo, cancel);
                return await waiting.ConcludeAsync(context, task, cancel);
            }

            if (volume.Import is not null)
                throw new CliException($"a stream for {volume.Name} was interrupted; go on with pfcli import_image --resume");
            if (volume.Status != "online")
                throw new CliException($"volume {volume.Name} is {volume.Status}: {volume.FailReason ?? "no reason given"}; its only replica must come back, see pfcli list_disk");
            if (!context.Printer.TryJson(volume, ApiJson.Default.VolumeInfo))
                context.Printer.Line($"Volume {volume.Name} is online with all its replicas ({volume.RepCount}); there is nothing to recover.");
            return ExitCode.Done;
        },
        "pfcli recovery_volume -v db");
    }

    /// <summary>The task's resource.</summary>
    public static string PathOf(long id) => "v1/tasks/" + id.ToString(CultureInfo.InvariantCulture);

    private static string[] Row(TaskInfo t) =>
    [
        t.Id.ToString(CultureInfo.InvariantCulture), t.Kind, t.Target, t.State, Waiting.Describe(t),
        t.StartedAt.ToString("u", CultureInfo.InvariantCulture), t.Result ?? "",
    ];

    /// <summary>Shows a task; throws when it failed.</summary>
    public static int Conclude(CommandContext context, TaskInfo task)
    {
        if (!context.Printer.TryJson(task, ApiJson.Default.TaskInfo)) context.Printer.Table(Headings, [Row(task)]);
        return TaskStates.IsOpen(task.State) || task.State == TaskStates.Succeeded ? ExitCode.Done : throw Failure(task);
    }

    /// <summary>Why a task did not succeed.</summary>
    public static CliException Failure(TaskInfo task) => new(
        $"task {task.Id} ({task.Kind} of {task.Target}) {task.State}: {task.Result ?? "no reason given"}{(task.Code is null ? "" : $" [{task.Code}]")}");
}
