using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>The part that keeps tasks in the metadata store.</summary>
internal sealed partial class TaskRegistry
{
    // One transaction; a longer list takes several.
    private const int WriteMax = 64;

    private static readonly TimeSpan s_retryAfter = TimeSpan.FromSeconds(5);

    private readonly SemaphoreSlim _writing = new(1, 1);
    private readonly SortedSet<long> _dirty = [];
    private bool _isRetrying, _hasWarned;
    private long _counterKept;

    /// <summary>Reads what earlier runs of the daemon left. Throws <see cref="MetaException"/>.</summary>
    public async Task LoadAsync()
    {
        long last = TaskRecord.DecodeCounter(await meta.GetAsync(TaskRecord.CounterKey));
        foreach (MetaEntry entry in await meta.RangeAsync(TaskRecord.Prefix))
        {
            if (TaskRecord.TryDecode(entry) is not { } record)
            {
                warn($"the record {entry.Key} of a task is damaged and is forgotten");
                await meta.TransactAsync([], [new MetaChange(entry.Key, null)]);
                continue;
            }

            last = Math.Max(last, record.Id);
            var known = new Entry(record);
            if (!known.IsOpen) known.Ended.TrySetResult();
            else known.Record = Noted(record, "the daemon ended");
            lock (_lock) _tasks[record.Id] = known;
        }

        lock (_lock)
        {
            _last = _counterKept = last;
            Forget();
        }
    }

    /// <summary>What nobody has taken up after a restart has failed.</summary>
    public async Task FailInterrupted()
    {
        Entry[] left;
        lock (_lock)
        {
            left = [.. _tasks.Values.Where(e => e.Run is null && e.IsOpen)];
            foreach (Entry entry in left)
            {
                // Who had asked for its end has got it.
                bool isWanted = entry.Record.State == TaskStates.Cancelling;
                entry.Record = Noted(entry.Record with
                {
                    State = isWanted ? TaskStates.Cancelled : TaskStates.Failed,
                    Code = isWanted ? null : "interrupted",
                    Result = isWanted ? "cancelled by the administrator"
                        : "interrupted: the daemon ended before it was done, and this kind cannot go on; start it again",
                    EndedAt = clock.UtcNow,
                }, isWanted ? TaskStates.Cancelled : "interrupted");
                _dirty.Add(entry.Record.Id);
            }
        }

        await FlushAsync();
        foreach (Entry entry in left)
        {
            entry.Ended.TrySetResult();
            Changed?.Invoke(entry.Record.Id);
        }
    }

    /// <summary>Returns when all that was said so far is durable, or the metadata failed: then it is tried again by itself.</summary>
    public async Task FlushAsync()
    {
        await _writing.WaitAsync();
        try
        {
            while (TakeDirty() is { Count: > 0 } ids)
            {
                if (await WriteAsync(ids)) continue;
                lock (_lock) _dirty.UnionWith(ids);
                RetryLater();
                return;
            }
        }
        finally
        {
            _writing.Release();
        }
    }

    private List<long> TakeDirty()
    {
        lock (_lock)
        {
            if (_isClosed) return [];
            List<long> ids = [.. _dirty.Take(WriteMax)];
            _dirty.ExceptWith(ids);
            return ids;
        }
    }

    private async Task<bool> WriteAsync(List<long> ids)
    {
        var changes = new List<MetaChange>();
        long last;
        lock (_lock)
        {
            last = _last;
            foreach (long id in ids)
            {
                // Not one expression: a null array would become an empty value.
                ReadOnlyMemory<byte>? value = null;
                if (_tasks.TryGetValue(id, out Entry? entry)) value = entry.Record.Encode();
                changes.Add(new MetaChange(TaskRecord.KeyOf(id), value));
            }
        }

        // The counter goes first into the same transaction: a number that was told is never given again.
        if (last != _counterKept) changes.Insert(0, new MetaChange(TaskRecord.CounterKey, TaskRecord.EncodeCounter(last)));
        MetaResult result = await meta.TransactAsync([], changes);
        if (result.Outcome != MetaOutcome.Committed) return false;
        _counterKept = last;
        return true;
    }

    private void KeepSoon() => _ = Task.Run(FlushAsync);

    private void RetryLater()
    {
        lock (_lock)
        {
            if (_isRetrying || _isStopping) return;
            _isRetrying = true;
            if (!_hasWarned) warn("tasks cannot be recorded in the metadata database; they go on, and a restart may not know them");
            _hasWarned = true;
        }

        _ = Task.Run(async () =>
        {
            await Task.Delay(s_retryAfter);
            lock (_lock) _isRetrying = false;
            await FlushAsync();
        });
    }

    // Under the lock.
    private void Forget()
    {
        int over = _tasks.Values.Count(e => !e.IsOpen) - EndedMax;
        if (over <= 0) return;
        foreach (long id in _tasks.Where(t => !t.Value.IsOpen).Select(t => t.Key).Take(over).ToArray())
        {
            _tasks.Remove(id);
            _dirty.Add(id);
        }
    }
}
