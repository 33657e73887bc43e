using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>The metadata store in RAM: for tests, the simulation and volumes that need not outlive the process.
/// Thread-safe.</summary>
public sealed class MemoryMetaStore : IMetaStore
{
    private readonly Lock _lock = new();
    private readonly SortedDictionary<string, (MetaEntry Entry, long Lease)> _entries = new(StringComparer.Ordinal);
    private readonly MetaHistory _history = new(0);
    private readonly MetaLeases _leases;
    private long _revision;

    /// <summary>An empty store; <paramref name="time"/> measures leases.</summary>
    public MemoryMetaStore(TimeProvider? time = null) => _leases = new MetaLeases(time ?? TimeProvider.System);

    /// <inheritdoc/>
    public ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default)
    {
        lock (_lock)
        {
            Expire();
            return new(_entries.TryGetValue(key, out (MetaEntry Entry, long Lease) found) ? found.Entry : null);
        }
    }

    /// <inheritdoc/>
    public ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default)
    {
        lock (_lock)
        {
            Expire();
            IReadOnlyList<MetaEntry> found =
                [.. _entries.Values.Select(e => e.Entry).Where(e => e.Key.StartsWith(prefix, StringComparison.Ordinal))];
            return new(found);
        }
    }

    /// <inheritdoc/>
    public ValueTask<MetaResult> TransactAsync(
        IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default)
    {
        lock (_lock)
        {
            Expire();
            foreach (MetaCompare compare in compares)
            {
                long actual = _entries.TryGetValue(compare.Key, out (MetaEntry Entry, long Lease) found)
                    ? found.Entry.ModRevision : 0;
                if (actual != compare.ModRevision) return new(new MetaResult(MetaOutcome.Failed, _revision));
            }

            if (changes.Any(c => c.Value is not null && c.LeaseId != 0 && !_leases.IsAlive(c.LeaseId)))
                return new(new MetaResult(MetaOutcome.Failed, _revision));
            Apply(changes);
            return new(new MetaResult(MetaOutcome.Committed, _revision));
        }
    }

    /// <inheritdoc/>
    public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default)
    {
        lock (_lock) return new(_leases.Grant(timeToLive));
    }

    /// <inheritdoc/>
    public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default)
    {
        lock (_lock)
        {
            Expire();
            return new(_leases.KeepAlive(leaseId));
        }
    }

    /// <inheritdoc/>
    public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) =>
        _history.WatchAsync(prefix, fromRevision, cancel);

    /// <inheritdoc/>
    public ValueTask DisposeAsync() => default;

    private void Expire()
    {
        foreach (long lease in _leases.TakeExpired())
        {
            MetaChange[] gone =
                [.. _entries.Where(e => e.Value.Lease == lease).Select(e => new MetaChange(e.Key, null))];
            if (gone.Length > 0) Apply(gone);
        }
    }

    private void Apply(IReadOnlyList<MetaChange> changes)
    {
        _revision++;
        var events = new List<MetaEvent>(changes.Count);
        foreach (MetaChange change in changes)
        {
            if (change.Value is { } value)
            {
                byte[] kept = value.ToArray(); // the caller keeps its memory
                long created = _entries.TryGetValue(change.Key, out (MetaEntry Entry, long Lease) old)
                    ? old.Entry.CreateRevision : _revision;
                _entries[change.Key] = (new MetaEntry(change.Key, kept, created, _revision), change.LeaseId);
                events.Add(new MetaEvent(change.Key, kept, _revision));
            }
            else if (_entries.Remove(change.Key))
            {
                events.Add(new MetaEvent(change.Key, null, _revision));
            }
        }

        _history.Add(events);
    }
}

/// <summary>Leases of one metadata store. Not thread-safe: the store's lock guards it.</summary>
internal sealed class MetaLeases(TimeProvider time)
{
    private readonly Dictionary<long, (TimeSpan TimeToLive, long RenewedAt)> _leases = [];
    private readonly List<long> _unfinished = [];
    private long _next = 1;

    public long Grant(TimeSpan timeToLive)
    {
        long id = _next++;
        _leases[id] = (timeToLive, time.GetTimestamp());
        return id;
    }

    public bool IsAlive(long id) => _leases.ContainsKey(id);

    public bool KeepAlive(long id)
    {
        if (!_leases.TryGetValue(id, out (TimeSpan TimeToLive, long RenewedAt) lease)) return false;
        _leases[id] = (lease.TimeToLive, time.GetTimestamp());
        return true;
    }

    public long[] TakeExpired()
    {
        if (_leases.Count == 0 && _unfinished.Count == 0) return [];
        long[] expired =
        [
            .. _leases.Where(l => time.GetElapsedTime(l.Value.RenewedAt) > l.Value.TimeToLive).Select(l => l.Key)
                .Concat(_unfinished).Order(),
        ];
        foreach (long id in expired) _leases.Remove(id);
        _unfinished.Clear();
        return expired;
    }

    /// <summary>The keys of an expired lease could not be removed: the next look tries again.</summary>
    public void ExpireAgain(long id) => _unfinished.Add(id);
}

/// <summary>The changes since the store was opened, as far as they are kept, and those who wait for more. Thread-safe.</summary>
internal sealed class MetaHistory(long openedAtRevision)
{
    private const int EventsMax = 20_000;

    private readonly Lock _lock = new();
    private readonly List<MetaEvent> _events = [];
    private TaskCompletionSource _more = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private long _first = openedAtRevision; // changes up to and including this one are not kept

    public void Add(IReadOnlyList<MetaEvent> events)
    {
        TaskCompletionSource waiters;
        lock (_lock)
        {
            _events.AddRange(events);
            if (_events.Count > EventsMax)
            {
                // A transaction is dropped as a whole, or a watcher could see a part of it.
                int drop = EventsMax / 2;
                while (drop < _events.Count && _events[drop].Revision == _events[drop - 1].Revision) drop++;
                _first = _events[drop - 1].Revision;
                _events.RemoveRange(0, drop);
            }

            waiters = _more;
            _more = new(TaskCreationOptions.RunContinuationsAsynchronously);
        }

        waiters.SetResult();
    }

    public async IAsyncEnumerable<MetaEvent> WatchAsync(
        string prefix, long fromRevision, [EnumeratorCancellation] CancellationToken cancel)
    {
        long seen = fromRevision;
        while (true)
        {
            MetaEvent[] news;
            Task more;
            lock (_lock)
            {
                if (seen < _first)
                    throw new InvalidOperationException($"changes before revision {_first} are not kept; list anew");
                news = [.. _events.Where(e => e.Revision > seen)];
                more = _more.Task;
            }

            foreach (MetaEvent change in news)
            {
                if (change.Key.StartsWith(prefix, StringComparison.Ordinal)) yield return change;
                seen = change.Revision;
            }

            if (news.Length == 0) await more.WaitAsync(cancel);
        }
    }
}
