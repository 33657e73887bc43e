using System.Globalization;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The admin API's tasks.</summary>
internal sealed class TaskRoutes(TaskRegistry tasks, Func<uint, string?> volumeName)
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
            new TaskList([.. tasks.List().Where(t => (state is null || t.State == state) && (kind is null || t.Kind == kind) && IsSeen(call, t))]), ApiJson.Default.TaskList);
    }

    // What works on no volume, or on one that is gone, is for those only who see all: no volume has an empty name. A volume that is
    // being imported has no number yet.
    private bool IsSeen(ApiCall call, TaskInfo task) => call.Sees(
        task.VolumeId is { } id ? volumeName(id) ?? "" : task.Kind == "import" ? task.Target : "");

    private TaskInfo TaskOf(ApiCall call)
    {
        string id = call.Parts[1];
        TaskInfo? task = long.TryParse(id, NumberStyles.None, CultureInfo.InvariantCulture, out long number) ? tasks.Find(number) : null;
        if (task is not null && !IsSeen(call, task)) task = null;
        return task ?? throw new ApiException(404, "no-such-task", $"there is no task '{id}'; the last {TaskRegistry.EndedMax} are remembered");
    }

    private async Task CancelAsync(ApiCall call)
    {
        if (!tasks.Cancel(TaskOf(call).Id))
            throw new ApiException(409, "task-goes-on", "this is carried through to its end; the task only shows how far it is");
        await tasks.FlushAsync();
        await call.AnswerNothingAsync();
    }
}
