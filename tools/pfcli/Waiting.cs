using System.CommandLine;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Pfcli;

/// <summary>Whether a command stays until the task that it began has ended: --wait, --no-wait, or its own habit.</summary>
internal sealed class Waiting
{
    private static readonly TimeSpan LookEvery = TimeSpan.FromMilliseconds(500);

    private readonly Option<bool> _wait = new("--wait");
    private readonly Option<bool> _noWait = new("--no-wait");
    private readonly bool _isHabit;

    /// <summary><paramref name="isHabit"/>: it waits unless it is told otherwise. <paramref name="without"/>: what --no-wait means there.</summary>
    public Waiting(bool isHabit, string? without = null)
    {
        _isHabit = isHabit;
        _wait.Description = "Stay until it is done, and show how far it is" + (isHabit ? " (default)" : "");
        _noWait.Validators.Add(result =>
        {
            if (!result.Implicit && result.GetResult(_wait) is { Implicit: false }) result.AddError("--wait and --no-wait at once; choose one");
        });
        _noWait.Description = without ?? "Only start it; look with query_task" + (isHabit ? "" : " (default)");
    }

    /// <summary>Both.</summary>
    public Option[] Options => [_wait, _noWait];

    /// <summary>What was chosen.</summary>
    public bool IsWanted(CommandContext context) => context.Get(_wait) || (_isHabit && !context.Get(_noWait));

    /// <summary>Follows the task if that was chosen, and shows it; fails when it has.</summary>
    public async Task<int> ConcludeAsync(CommandContext context, TaskInfo task, CancellationToken cancel) =>
        TaskCommands.Conclude(context, IsWanted(context) ? await FollowAsync(context, task, cancel) : task);

    /// <summary>Stays with every task that works on a volume; fails when one has.</summary>
    public static async Task FollowVolumeAsync(CommandContext context, uint volumeId, CancellationToken cancel)
    {
        TaskList list = await context.Client.GetAsync("v1/tasks", ApiJson.Default.TaskList, cancel);
        foreach (TaskInfo open in list.Tasks.Where(t => t.VolumeId == volumeId && TaskStates.IsOpen(t.State)))
        {
            TaskInfo task = await FollowAsync(context, open, cancel);
            if (task.State != TaskStates.Succeeded) throw TaskCommands.Failure(task);
        }
    }

    /// <summary>Stays with a task until it has ended, with a moving line on a terminal and one line per tenth elsewhere.</summary>
    public static async Task<TaskInfo> FollowAsync(CommandContext context, TaskInfo task, CancellationToken cancel)
    {
        int tenth = -1;
        try
        {
            while (TaskStates.IsOpen(task.State))
            {
                if (!context.Printer.Json) tenth = Show(context, task, tenth);
                await context.Host.Delay(LookEvery, cancel);
                task = await context.Client.GetAsync(TaskCommands.PathOf(task.Id), ApiJson.Default.TaskInfo, cancel);
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

    /// <summary>How far a task is: its part, and what it does a second if that is known.</summary>
    public static string Describe(TaskInfo task)
    {
        string rate = task.Rate is not { } units ? "" : task.Unit == "bytes" ? $", {SizeText.Format((ulong)units)}/s"
            : string.Create(CultureInfo.InvariantCulture, $", {units:0.#} {task.Unit}/s");
        string left = task.RemainingSeconds is not { } seconds ? ""
            : string.Create(CultureInfo.InvariantCulture, $", {TimeSpan.FromSeconds(Math.Min(Math.Ceiling(seconds), 31_536_000)):d\\.hh\\:mm\\:ss} left");
        return task.Progress.ToString("P0", CultureInfo.InvariantCulture) + rate + left;
    }

    private static int Show(CommandContext context, TaskInfo task, int shown)
    {
        string text = $"{task.Kind} {task.Target}: {Describe(task)}{(task.State == TaskStates.Cancelling ? ", is being cancelled" : "")}";
        if (context.Host.OutIsTerminal)
        {
            const int BarColumns = 20;
            int full = Math.Clamp((int)(task.Progress * BarColumns), 0, BarColumns);
            string line = Printer.Clean($"{text} [{new string('#', full)}{new string('.', BarColumns - full)}]");
            // A longer line would leave its beginning on the screen.
            context.Host.Out.Write("\r\x1b[K" + (line.Length < context.Host.Width ? line : line[..(context.Host.Width - 1)]));
            context.Host.Out.Flush();
            return shown;
        }

        int tenth = (int)(task.Progress * 10);
        if (tenth > shown) context.Printer.Line(text);
        return Math.Max(tenth, shown);
    }
}
