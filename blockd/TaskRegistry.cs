using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>
/// Long jobs as resources: number, state, progress, history, cancellation. They are kept in the metadata store, so that a restart
/// of the daemon loses none. Thread-safe; nothing here waits for a disk but what says so.
/// </summary>
/// <remarks>
/// In order: <see cref="LoadAsync"/> once the metadata are open; <see cref="Start"/> for every job, also for those that go on
/// after a restart: an interrupted task of the same kind and subject is taken up under its number, and
/// <see cref="Interrupted"/> lists them with their parameters and checkpoints; <see cref="FailInterrupted"/> when everybody has
/// taken up theirs; <see cref="StopAsync"/> before what the jobs work on is closed.
/// A job: <c>tasks.Start(new TaskSpec("drain", disk), async run => { ... run.Report(done, total); run.Cancel... ; return "done"; })</c>.
/// What it returns is the task's result; a <see cref="TaskException"/> is a failure with a code, any other exception one with the
/// code <c>failed</c>. The work begins when the task is durable.
/// </remarks>
#pragma warning disable CA1001 // The semaphore has no handle; runs that are late when the daemon stops may still ask for it.
internal sealed partial class TaskRegistry(IMetaStore meta, IWallClock clock, Action<string> warn, TimeProvider? time = null)
#pragma warning restore CA1001
{
    /// <summary>Tasks that have ended and are remembered.</summary>
    public const int EndedMax = 200;

    /// <summary>Notes of one task that are kept: the first and the last ones.</summary>
    public const int NotesMax = 32;

    private const int ParametersMax = 64 << 10;

    private static readonly TimeSpan s_stopWait = TimeSpan.FromSeconds(2);

    // Followers of changes are told of progress at most this often, and so often it is written down.
    private static readonly TimeSpan s_tellEvery = TimeSpan.FromMilliseconds(500);
    private static readonly TimeSpan s_keepEvery = TimeSpan.FromSeconds(10);

    private readonly TimeProvider _time = time ?? TimeProvider.System;
    private readonly Lock _lock = new();
    private readonly SortedDictionary<long, Entry> _tasks = [];
    private long _last;
    private bool _isStopping, _isClosed;

    /// <summary>Told of every change of a task by its number; for the watch stream. Called on any thread, not under a lock.</summary>
    public event Action<long>? Changed;

    /// <summary>Every task that is known, newest first, without history.</summary>
    public IReadOnlyList<TaskInfo> List()
    {
        lock (_lock) return [.. _tasks.Values.Select(e => Describe(e, false)).Reverse()];
    }

    /// <summary>A task with its history, or null.</summary>
    public TaskInfo? Find(long id)
    {
        lock (_lock) return _tasks.TryGetValue(id, out Entry? entry) ? Describe(entry, true) : null;
    }

    /// <summary>Tasks of a kind that an earlier run of the daemon left and that nobody has taken up yet.</summary>
    public IReadOnlyList<TaskRecord> Interrupted(string kind)
    {
        lock (_lock) return [.. _tasks.Values.Where(e => e.Run is null && e.IsOpen && e.Record.Kind == kind).Select(e => e.Record)];
    }

    /// <summary>Begins a job, or goes on with an interrupted one of the same kind and subject. The answer is not durable yet:
    /// <see cref="FlushAsync"/> before somebody is told.</summary>
    public TaskInfo Start(TaskSpec spec, Func<TaskRun, Task<string>> work)
    {
        Check.That(spec.Parameters is null || spec.Parameters.Length <= ParametersMax);
        Entry entry;
        TaskInfo info;
        lock (_lock)
        {
            Entry? known = _tasks.Values.FirstOrDefault(e => e.Run is null && e.IsOpen && e.Record.Kind == spec.Kind
                && e.Record.Subject == spec.Subject && e.Record.VolumeId == spec.VolumeId);
            DateTimeOffset now = clock.UtcNow;
            if (known is null)
            {
                var record = new TaskRecord(
                    ++_last, spec.Kind, spec.Subject, spec.VolumeId, spec.Unit, spec.Cancellable, TaskStates.Running, 0, 0, 0, now, null, null, null,
                    spec.Parameters, null, [new TaskNote(now, "begun")]);
                entry = new Entry(record);
                _tasks.Add(record.Id, entry);
                Forget();
            }
            else
            {
                entry = known;
                entry.Record = Noted(entry.Record with { State = TaskStates.Running, Parameters = spec.Parameters ?? entry.Record.Parameters },
                    "goes on after the restart");
            }

            entry.Run = new TaskRun(this, entry.Record, known is not null, entry.Cancel.Token);
            entry.Begin(_time.GetTimestamp());
            _dirty.Add(entry.Record.Id);
            info = Describe(entry, true);
        }

        entry.Running = Task.Run(() => RunAsync(entry, work));
        Changed?.Invoke(info.Id);
        return info;
    }

    /// <summary>As <see cref="Start"/>, and durable when it answers.</summary>
    public async Task<TaskInfo> StartAsync(TaskSpec spec, Func<TaskRun, Task<string>> work)
    {
        TaskInfo info = Start(spec, work);
        await FlushAsync();
        return info;
    }

    /// <summary>A job that its caller waits for, for instance a transfer over the caller's own connection: a task for everybody
    /// else. Answers and throws what <paramref name="work"/> does; its token fires when the caller leaves, too.</summary>
    public async Task<T> TrackAsync<T>(
        TaskSpec spec, Func<TaskRun, CancellationToken, Task<T>> work, Func<T, string> describe, CancellationToken caller)
    {
        var ended = new TaskCompletionSource<T>(TaskCreationOptions.RunContinuationsAsynchronously);
        Start(spec, async run =>
        {
            using var either = CancellationTokenSource.CreateLinkedTokenSource(run.Cancel, caller);
            try
            {
                T result = await work(run, either.Token);
                ended.SetResult(result);
                return describe(result);
            }
            catch (OperationCanceledException) when (caller.IsCancellationRequested)
            {
                ended.SetCanceled(caller);
                throw new TaskException("client-left", "the client that carried it has left");
            }
            catch (OperationCanceledException e)
            {
                ended.SetException(new ApiException(409, "task-cancelled", "the administrator has cancelled this task"));
                throw new OperationCanceledException(e.Message, e, run.Cancel);
            }
            catch (Exception e)
            {
                ended.SetException(e);
                throw e switch
                {
                    ApiException a => new TaskException(a.Code, a.Message, a),
                    ImportException i => new TaskException(i.Code, i.Message, i),
                    _ => new TaskException("failed", e.Message, e),
                };
            }
        });
        return await ended.Task;
    }

    /// <summary>Asks a task to end; false when it is of a kind that goes on to its end. One that has ended already is left alone.</summary>
    public bool Cancel(long id)
    {
        Entry? entry;
        lock (_lock)
        {
            if (!_tasks.TryGetValue(id, out entry) || !entry.IsOpen) return true;
            if (!entry.Record.Cancellable) return false;
            if (entry.Record.State == TaskStates.Running)
                entry.Record = Noted(entry.Record with { State = TaskStates.Cancelling }, "asked to end");
            _dirty.Add(id);
        }

        entry.Cancel.Cancel();
        KeepSoon();
        Changed?.Invoke(id);
        return true;
    }

    /// <summary>The task when it has ended, or null when there is none.</summary>
    public async Task<TaskInfo?> EndedAsync(long id, CancellationToken cancel = default)
    {
        Entry? entry;
        lock (_lock)
        {
            if (!_tasks.TryGetValue(id, out entry)) return null;
        }

        await entry.Ended.Task.WaitAsync(cancel);
        return Describe(entry, true);
    }

    /// <summary>Ends every run without ending its task: the next run of the daemon goes on with them. Returns when the works have
    /// returned, or after two seconds.</summary>
    public async Task StopAsync()
    {
        Entry[] open;
        lock (_lock)
        {
            _isStopping = true;
            open = [.. _tasks.Values.Where(e => e.IsOpen)];
        }

        foreach (Entry entry in open) await entry.Cancel.CancelAsync();
        await Task.WhenAny(Task.WhenAll(open.Select(e => e.Running)), Task.Delay(s_stopWait));
        await FlushAsync();
        lock (_lock) _isClosed = true;
    }

    internal void Report(long id, ulong? done, ulong? total, double part)
    {
        bool isTold = false, isKept = false;
        lock (_lock)
        {
            if (!_tasks.TryGetValue(id, out Entry? entry) || !entry.IsOpen) return;
            entry.Record = entry.Record with { Done = done ?? entry.Record.Done, Total = total ?? entry.Record.Total, Progress = part };
            long now = _time.GetTimestamp();
            entry.Meter.Add(_time, now, done is { } units ? units : part);
            if (_time.GetElapsedTime(entry.ToldAt, now) >= s_tellEvery) (isTold, entry.ToldAt) = (true, now);
            if (_time.GetElapsedTime(entry.KeptAt, now) >= s_keepEvery)
            {
                (isKept, entry.KeptAt) = (true, now);
                _dirty.Add(id);
            }
        }

        if (isKept) KeepSoon();
        if (isTold) Changed?.Invoke(id);
    }

    internal Task SaveCheckpointAsync(long id, string checkpoint)
    {
        lock (_lock)
        {
            if (!_tasks.TryGetValue(id, out Entry? entry) || !entry.IsOpen) return Task.CompletedTask;
            entry.Record = entry.Record with { Checkpoint = checkpoint };
            _dirty.Add(id);
        }

        return FlushAsync();
    }

    internal void Note(long id, string text)
    {
        lock (_lock)
        {
            if (!_tasks.TryGetValue(id, out Entry? entry)) return;
            entry.Record = Noted(entry.Record, text);
            _dirty.Add(id);
        }

        KeepSoon();
        Changed?.Invoke(id);
    }

    private async Task RunAsync(Entry entry, Func<TaskRun, Task<string>> work)
    {
        await FlushAsync();
        (string state, string result, string? code) = (TaskStates.Succeeded, "", null);
        try
        {
            result = await work(entry.Run!);
        }
        catch (OperationCanceledException) when (entry.Cancel.IsCancellationRequested)
        {
            (state, result) = (TaskStates.Cancelled, "cancelled by the administrator");
        }
        catch (TaskException e)
        {
            (state, result, code) = (TaskStates.Failed, e.Message, e.Code);
        }
#pragma warning disable CA1031 // Whatever happened, the task has ended and must say so.
        catch (Exception e)
#pragma warning restore CA1031
        {
            (state, result, code) = (TaskStates.Failed, e.Message, "failed");
        }

        lock (_lock)
        {
            // It was stopped with the daemon: in the metadata it is open, and the next run goes on with it.
            if (_isStopping && state != TaskStates.Succeeded) return;
            TaskRecord record = entry.Record;
            bool isDone = state == TaskStates.Succeeded;
            entry.Record = Noted(record with
            {
                State = state, Result = result, Code = code, EndedAt = clock.UtcNow, Progress = isDone ? 1 : record.Progress,
                Done = isDone ? record.Total : record.Done, Checkpoint = null,
            }, state);
            _dirty.Add(record.Id);
            Forget();
        }

        await FlushAsync();
        entry.Ended.TrySetResult();
        Changed?.Invoke(entry.Record.Id);
    }

    private TaskRecord Noted(TaskRecord record, string text)
    {
        List<TaskNote> notes = [.. record.History, new TaskNote(clock.UtcNow, text.Length > 500 ? text[..500] : text)];
        if (notes.Count > NotesMax) notes.RemoveAt(1); // how it began stays
        return record with { History = notes };
    }

    private static TaskInfo Describe(Entry entry, bool withHistory)
    {
        TaskRecord r = entry.Record;
        double? rate = entry.IsOpen ? entry.Meter.PerSecond : null;
        double left = r.Total > 0 ? r.Total - (double)r.Done : 1 - r.Progress;
        return new TaskInfo(
            r.Id, r.Kind, r.Subject, r.State, r.Progress, r.StartedAt, r.EndedAt, r.Result, r.Code, r.Unit, r.Done, r.Total,
            r.Total > 0 ? rate : null, rate is > 0 ? Math.Max(0, left / rate.Value) : null, r.Cancellable, r.VolumeId, withHistory ? r.History : null);
    }

    /// <summary>One task in RAM. Guarded by the registry's lock.</summary>
    private sealed class Entry(TaskRecord record)
    {
        public TaskRecord Record { get; set; } = record;

        public TaskRun? Run { get; set; }

        public Task Running { get; set; } = Task.CompletedTask;

        public CancellationTokenSource Cancel { get; } = new();

        public TaskCompletionSource Ended { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public RateMeter Meter { get; } = new();

        public long ToldAt { get; set; }

        public long KeptAt { get; set; }

        public bool IsOpen => TaskStates.IsOpen(Record.State);

        public void Begin(long now) => (ToldAt, KeptAt) = (now, now);
    }

    /// <summary>Units a second over the last five to ten seconds.</summary>
    private sealed class RateMeter
    {
        private static readonly TimeSpan s_window = TimeSpan.FromSeconds(5);

        private (long At, double Done)? _older, _newer;

        public double? PerSecond { get; private set; }

        public void Add(TimeProvider time, long now, double done)
        {
            if (_older is not { } older || done < older.Done) // it begins, or begins anew
            {
                (_older, _newer, PerSecond) = ((now, done), null, null);
                return;
            }

            double seconds = time.GetElapsedTime(older.At, now).TotalSeconds;
            if (seconds >= 0.5) PerSecond = (done - older.Done) / seconds;
            if (time.GetElapsedTime((_newer ?? older).At, now) < s_window) return;
            (_older, _newer) = (_newer ?? older, (now, done));
        }
    }
}
