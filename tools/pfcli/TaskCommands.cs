using System.CommandLine;
using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Long jobs: start, look at, wait for, cancel.</summary>
internal static class TaskCommands
{
    private static readonly string[] Headings = ["Id", "Kind", "Target", "State", "Progress", "Started", "Result"];
    private static readonly TimeSpan LookEvery = TimeSpan.FromMilliseconds(500);

    public static void AddTo(CommandSet commands)
    {
        AddScrub(commands);
        commands.Add("list_task", "Lists the tasks, newest first", [], async (context, cancel) =>
        {
            TaskList list = await context.Client.GetAsync("v1/tasks", ApiJson.Default.TaskList, cancel);
            if (context.Printer.TryJson(list, ApiJson.Default.TaskList)) return ExitCode.Done;
            context.Printer.Line($"{list.Tasks.Count} tasks returned.");
            context.Printer.Table(Headings, [.. list.Tasks.Select(Row)]);
            return ExitCode.Done;
        });
        var queried = new Argument<long>("task") { Description = "Number of the task" };
        var wait = new Option<bool>("--wait") { Description = "Stay until the task has ended" };
        commands.Add("query_task", "Shows a task; exits 1 when it failed or was cancelled", [queried, wait], async (context, cancel) =>
        {
            TaskInfo task = await context.Client.GetAsync(PathOf(context.Get(queried)), ApiJson.Default.TaskInfo, cancel);
            if (context.Get(wait)) task = await FollowAsync(context, task, cancel);
            return Conclude(context, task);
        });
        var cancelled = new Argument<long>("task") { Description = "Number of the task" };
        commands.Add("cancel_task", "Cancels a running task", [cancelled], async (context, cancel) =>
        {
            long id = context.Get(cancelled);
            await context.Client.DeleteAsync(PathOf(id), cancel);
            context.Printer.Line(string.Create(CultureInfo.InvariantCulture, $"Task {id} is being cancelled."));
            return ExitCode.Done;
        });
    }

    private static void AddScrub(CommandSet commands)
    {
        Option<string> name = Inputs.Volume();
        Option<ulong> rate = Inputs.Size("--rate", null, "Read at most this much a second (default: as fast as clients allow)", required: false);
        var noWait = new Option<bool>("--no-wait") { Description = "Only start it; look with query_task" };
        commands.Add("scrub_volume", "Reads a volume and verifies every checksum", [name, rate, noWait], async (context, cancel) =>
        {
            TaskInfo task = await context.Client.ChangeAsync(
                HttpMethod.Post, Inputs.PathOf(context.Get(name)!) + "/scrub", new ScrubRequest(context.Get(rate)),
                ApiJson.Default.ScrubRequest, ApiJson.Default.TaskInfo, cancel);
            if (!context.Get(noWait)) task = await FollowAsync(context, task, cancel);
            return Conclude(context, task);
        });
    }

    /// <summary>Begins a long job, and stays until it has ended unless told otherwise.</summary>
    public static async Task<int> BeginAsync<T>(
        CommandContext context, Option<bool> noWait, string path, T request, System.Text.Json.Serialization.Metadata.JsonTypeInfo<T> type, CancellationToken cancel)
    {
        TaskInfo task = await context.Client.ChangeAsync(HttpMethod.Post, path, request, type, ApiJson.Default.TaskInfo, cancel);
        if (!context.Get(noWait)) task = await FollowAsync(context, task, cancel);
        return Conclude(context, task);
    }

    /// <summary>The option not to stay.</summary>
    public static Option<bool> NoWait() => new("--no-wait") { Description = "Only start it; look with query_task" };

    private static string PathOf(long id) => "v1/tasks/" + id.ToString(CultureInfo.InvariantCulture);

    private static string[] Row(TaskInfo t) =>
    [
        t.Id.ToString(CultureInfo.InvariantCulture), t.Kind, t.Target, t.State, Percent(t.Progress),
        t.StartedAt.ToString("u", CultureInfo.InvariantCulture), t.Result ?? "",
    ];

    private static string Percent(double progress) => progress.ToString("P0", CultureInfo.InvariantCulture);

    /// <summary>Shows a task; throws when it failed.</summary>
    public static int Conclude(CommandContext context, TaskInfo task)
    {
        if (!context.Printer.TryJson(task, ApiJson.Default.TaskInfo)) context.Printer.Table(Headings, [Row(task)]);
        return task.State is "running" or "succeeded"
            ? ExitCode.Done
            : throw new CliException($"task {task.Id} ({task.Kind} of {task.Target}) {task.State}: {task.Result ?? "no reason given"}");
    }

    /// <summary>Stays with a task until it has ended, with a moving line on a terminal and one line per tenth elsewhere.</summary>
    public static async Task<TaskInfo> FollowAsync(CommandContext context, TaskInfo task, CancellationToken cancel)
    {
        long begun = context.Host.Clock.GetTimestamp();
        double first = task.Progress;
        int tenth = -1;
        try
        {
            while (task.State == "running")
            {
                if (!context.Printer.Json) tenth = ShowProgress(context, task, first, context.Host.Clock.GetElapsedTime(begun), tenth);
                await context.Host.Delay(LookEvery, cancel);
                task = await context.Client.GetAsync(PathOf(task.Id), ApiJson.Default.TaskInfo, cancel);
            }
        }
        catch (OperationCanceledException e)
        {
            throw new CliException(
                $"interrupted; the task goes on, look with pfcli query_task {task.Id}, end it with pfcli cancel_task {task.Id}", inner: e);
        }

        if (context.Host.OutIsTerminal && !context.Printer.Json) context.Host.Out.Write("\r\x1b[K");
        return task;
    }

    private static int ShowProgress(CommandContext context, TaskInfo task, double first, TimeSpan elapsed, int shown)
    {
        string text = $"{task.Kind} {task.Target}: {Percent(task.Progress)}{Forecast(task.Progress - first, 1 - task.Progress, elapsed)}";
        if (context.Host.OutIsTerminal)
        {
            context.Host.Out.Write("\r\x1b[K" + Printer.Clean(text));
            context.Host.Out.Flush();
            return shown;
        }

        int tenth = (int)(task.Progress * 10);
        if (tenth > shown) context.Printer.Line(text);
        return Math.Max(tenth, shown);
    }

    private static string Forecast(double done, double left, TimeSpan elapsed)
    {
        if (done <= 0 || elapsed < TimeSpan.FromSeconds(1)) return "";
        double perSecond = done / elapsed.TotalSeconds;
        TimeSpan remaining = TimeSpan.FromSeconds(Math.Min(left / perSecond, TimeSpan.FromDays(365).TotalSeconds));
        return string.Create(CultureInfo.InvariantCulture, $", {perSecond * 100:0.##} %/s, {remaining:d\\.hh\\:mm\\:ss} left");
    }
}
