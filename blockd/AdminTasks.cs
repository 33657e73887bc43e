using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>Long jobs of the admin API: the last hundred, in RAM. Thread-safe.</summary>
internal sealed class AdminTasks
{
    private const int KeptMax = 100;

    private readonly Lock _lock = new();
    private readonly SortedDictionary<long, (TaskInfo Info, CancellationTokenSource? Cancel)> _tasks = [];
    private long _next;

    public IReadOnlyList<TaskInfo> List()
    {
        lock (_lock) return [.. _tasks.Values.Select(t => t.Info).Reverse()];
    }

    public TaskInfo? Find(long id)
    {
        lock (_lock) return _tasks.TryGetValue(id, out (TaskInfo Info, CancellationTokenSource? Cancel) task) ? task.Info : null;
    }

    /// <summary>Asks a task to end; false when it is of a kind that goes on to its end.</summary>
    public bool Cancel(long id)
    {
        lock (_lock)
        {
            if (!_tasks.TryGetValue(id, out (TaskInfo Info, CancellationTokenSource? Cancel) task)) return true;
            task.Cancel?.Cancel();
            return task.Cancel is not null || task.Info.EndedAt is not null;
        }
    }

    /// <summary>Begins <paramref name="work"/>, whose answer is the result's sentence; an exception's message is the failure's.</summary>
    public TaskInfo Start(string kind, string target, Func<Action<double>, CancellationToken, Task<string>> work) =>
        Start(kind, target, work, new CancellationTokenSource());

    /// <summary>As the other, for what the store carries through whatever anybody wants, restarts included.</summary>
    public TaskInfo Follow(string kind, string target, Func<Action<double>, Task<string>> work) => Start(kind, target, (progress, _) => work(progress), null);

    private TaskInfo Start(string kind, string target, Func<Action<double>, CancellationToken, Task<string>> work, CancellationTokenSource? cancel)
    {
        TaskInfo info;
        lock (_lock)
        {
            info = new TaskInfo(++_next, kind, target, "running", 0, SystemClock.Instance.UtcNow, null, null);
            _tasks.Add(info.Id, (info, cancel));
            foreach (long old in _tasks.Where(t => t.Value.Info.EndedAt is not null).Select(t => t.Key).Take(Math.Max(0, _tasks.Count - KeptMax)).ToArray())
                _tasks.Remove(old);
        }

        _ = RunAsync(info.Id, work, cancel);
        return info;
    }

    private async Task RunAsync(long id, Func<Action<double>, CancellationToken, Task<string>> work, CancellationTokenSource? cancel)
    {
        string state = "succeeded";
        string result;
        try
        {
            result = await work(p => Change(id, t => t with { Progress = p }), cancel?.Token ?? default);
        }
        catch (OperationCanceledException)
        {
            (state, result) = ("cancelled", "cancelled by the administrator");
        }
#pragma warning disable CA1031 // Whatever happened, the task has ended and must say so.
        catch (Exception e)
#pragma warning restore CA1031
        {
            (state, result) = ("failed", e.Message);
        }

        Change(id, t => t with
        {
            State = state, Result = result, EndedAt = SystemClock.Instance.UtcNow, Progress = state == "succeeded" ? 1 : t.Progress,
        });
    }

    private void Change(long id, Func<TaskInfo, TaskInfo> change)
    {
        lock (_lock)
        {
            if (_tasks.TryGetValue(id, out (TaskInfo Info, CancellationTokenSource? Cancel) task)) _tasks[id] = (change(task.Info), task.Cancel);
        }
    }
}
