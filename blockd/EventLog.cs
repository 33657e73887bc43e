using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>A fault that somebody sees now.</summary>
internal readonly record struct SeenFault(string Code, string Subject, string Detail);

/// <summary>
/// What an operator should know: faults that are open or over, and notes. The one place where events are published: what wants to
/// hear of them subscribes to <see cref="Published"/>. Keeps the last thousand in a file that it compacts by itself; an open fault is
/// never forgotten. Thread-safe.
/// </summary>
internal sealed class EventLog : IDisposable
{
    /// <summary>Events that are kept.</summary>
    public const int KeptMax = 1000;

    // A client that comes back every second must not push everything else out.
    private static readonly TimeSpan s_noteEvery = TimeSpan.FromMinutes(1);

    private readonly Lock _lock = new();
    private readonly IWallClock _clock;
    private readonly EventFile? _file;
    private readonly SortedDictionary<long, EventInfo> _events = [];
    private readonly Dictionary<(string Code, string Subject), long> _open = [];
    private readonly Dictionary<(string Code, string Subject), DateTimeOffset> _noted = [];
    private long _nextId = 1, _change;

    /// <summary>A log in the file at <paramref name="path"/>; null: in memory only. What is damaged in the file is left out.</summary>
    public EventLog(IWallClock clock, string? path)
    {
        _clock = clock;
        if (path is null) return;
        _file = new EventFile(path);
        foreach (EventInfo known in _file.Read()) Place(known);
        Forget();
    }

    /// <summary>Told of every event and every change of one, in order, inside a lock: be quick, and call nothing of this class.</summary>
    public event Action<EventInfo>? Published;

    /// <summary>A fault is there. One that is open already only takes the new detail.</summary>
    public void Raise(string code, string subject, string detail)
    {
        lock (_lock)
        {
            if (!_open.TryGetValue((code, subject), out long id)) Add(code, subject, detail);
            else if (_events[id].Detail != detail) Publish(_events[id] with { Detail = detail });
        }
    }

    /// <summary>A fault is over. Free when it was not open.</summary>
    public void Clear(string code, string subject)
    {
        lock (_lock)
        {
            if (_open.TryGetValue((code, subject), out long id)) Publish(_events[id] with { ClearedAt = _clock.UtcNow });
        }
    }

    /// <summary>Exactly these faults of these codes are there now: the others are over.</summary>
    public void Reconcile(IReadOnlySet<string> codes, IReadOnlyCollection<SeenFault> seen)
    {
        lock (_lock)
        {
            var now = seen.Select(f => (f.Code, f.Subject)).ToHashSet();
            foreach ((string code, string subject) in _open.Keys.Where(k => codes.Contains(k.Code) && !now.Contains(k)).ToArray()) Clear(code, subject);
            foreach (SeenFault fault in seen) Raise(fault.Code, fault.Subject, fault.Detail);
        }
    }

    /// <summary>Something has happened; the same of the same subject once a minute only.</summary>
    public void Note(string code, string subject, string detail)
    {
        lock (_lock)
        {
            DateTimeOffset now = _clock.UtcNow;
            foreach ((string, string) old in _noted.Where(n => now - n.Value >= s_noteEvery).Select(n => n.Key).ToArray()) _noted.Remove(old);
            if (_noted.Count < KeptMax && _noted.TryAdd((code, subject), now)) Add(code, subject, detail);
        }
    }

    /// <summary>Newest first: only open faults, only what changed after <paramref name="since"/>, only this severity and worse.</summary>
    public IReadOnlyList<EventInfo> List(bool onlyOpen = false, long since = 0, string? severity = null, int limit = KeptMax)
    {
        int least = severity is null ? 0 : RankOf(severity);
        lock (_lock)
        {
            return
            [
                .. _events.Values.Reverse()
                    .Where(e => (!onlyOpen || e.IsOpen) && e.Change > since && RankOf(e.Severity) >= least).Take(limit),
            ];
        }
    }

    /// <summary>Open faults of a severity.</summary>
    public int Open(string severity)
    {
        lock (_lock) return _open.Values.Count(id => _events[id].Severity == severity);
    }

    /// <summary>It is open.</summary>
    public bool IsOpen(string code, string subject)
    {
        lock (_lock) return _open.ContainsKey((code, subject));
    }

    /// <inheritdoc/>
    public void Dispose() => _file?.Dispose();

    private static int RankOf(string severity)
    {
        for (int i = 0; i < EventCatalogue.Severities.Count; i++)
        {
            if (EventCatalogue.Severities[i] == severity) return i;
        }

        return 0;
    }

    private void Add(string code, string subject, string detail)
    {
        EventKind? kind = EventCatalogue.Find(code);
        Check.That(kind is not null);
        Publish(new EventInfo(_nextId, 0, code, kind!.Severity, subject, detail, _clock.UtcNow, null, kind.IsFault, kind.Cause, kind.Advice));
        Forget();
    }

    private void Publish(EventInfo changed)
    {
        EventInfo info = changed with { Change = _change + 1 };
        Place(info);
        _file?.Append(info);
        Published?.Invoke(info);
    }

    private void Place(EventInfo info)
    {
        _events[info.Id] = info;
        if (info.IsOpen) _open[(info.Code, info.Subject)] = info.Id;
        else if (info.Fault) _open.Remove((info.Code, info.Subject));
        _nextId = Math.Max(_nextId, info.Id + 1);
        _change = Math.Max(_change, info.Change);
    }

    private void Forget()
    {
        if (_events.Count <= KeptMax) return;
        foreach (long old in _events.Values.Where(e => !e.IsOpen).Select(e => e.Id).Take(_events.Count - KeptMax).ToArray()) _events.Remove(old);
        _file?.CompactWhenLarge(() => [.. _events.Values]);
    }
}
