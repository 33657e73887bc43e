using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The admin API's tasks.</summary>
internal sealed class TaskRoutes(Daemon daemon)
{
    private static readonly string[] s_states =
        [TaskStates.Running, TaskStates.Cancelling, TaskStates.Succeeded, TaskStates.Failed, TaskStates.Cancelled];

    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET tasks"] = ListAsync,
        ["GET tasks/{id}"] = c => c.AnswerAsync(TaskOf(c), ApiJson.Default.TaskInfo),
        ["DELETE tasks/{id}"] = CancelAsync,
    };

    private Task ListAsync(ApiCall call)
    {
        string? state = call.Query("state"), kind = call.Query("kind");
        if (state is not null && !s_states.Contains(state))
            throw new ApiException(400, "invalid-query", "state is one of " + string.Join(", ", s_states), "state");
        return call.AnswerAsync(
            new TaskList([.. daemon.Tasks.List().Where(t => (state is null || t.State == state) && (kind is null || t.Kind == kind) && IsSeen(call, t))]), ApiJson.Default.TaskList);
    }

    /// <summary>The volume by which it is decided who sees a task; null when there is no such task.</summary>
    public string? SeenAs(string id) => Find(id) is { } task ? VolumeOf(task) : null;

    // What works on no volume, or on one that is gone, is for those only who see all: no volume has an empty name. A volume that is
    // being imported has no number yet.
    private string VolumeOf(TaskInfo task) =>
        task.VolumeId is { } id ? daemon.Directory.Find(id)?.Name ?? "" : task.Kind == "import" ? task.Target : "";

    /// <summary>The caller sees a task: what it works on is a volume that he sees.</summary>
    public bool IsSeen(ApiCall call, TaskInfo task) => !call.Caller.IsConfined || call.Sees(VolumeOf(task));

    private TaskInfo? Find(string id) => long.TryParse(id, NumberStyles.None, CultureInfo.InvariantCulture, out long number) ? daemon.Tasks.Find(number) : null;

    private TaskInfo TaskOf(ApiCall call) => Find(call.Parts[1])
        ?? throw new ApiException(404, "no-such-task", $"there is no task '{call.Parts[1]}'");

    private async Task CancelAsync(ApiCall call)
    {
        if (!daemon.Tasks.Cancel(TaskOf(call).Id))
            throw new ApiException(409, "task-goes-on", "this is carried through to its end; the task only shows how far it is");
        await daemon.Tasks.FlushAsync();
        await call.AnswerNothingAsync();
    }
}
