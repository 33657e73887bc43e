using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>That something changed; what it is now is looked up when it is told.</summary>
/// <param name="Revision">Its place in the order of all changes.</param>
/// <param name="Type">One of <see cref="Core.Api.WatchTypes"/>.</param>
/// <param name="Key">Which one.</param>
/// <param name="Name">What it was called then.</param>
/// <param name="IsGone">It was deleted.</param>
internal readonly record struct WatchNotice(long Revision, string Type, string Key, string Name, bool IsGone);

/// <summary>
/// The last changes of everything that is watched, in one order, for any number of watchers, each of which reads at its own pace:
/// memory is the same for none and for many, and whoever falls behind further than is kept is told that there is a gap.
/// Revisions begin at the clock's microseconds, so that those of an earlier run are always behind. Thread-safe; publishing
/// never waits.
/// </summary>
internal sealed class WatchHub(int kept = 16_384, long? firstRevision = null)
{
    private readonly Lock _lock = new();
    private readonly WatchNotice[] _ring = new WatchNotice[kept];
    private readonly long _first = firstRevision ?? SystemClock.Instance.UtcNow.ToUnixTimeMilliseconds() * 1000;
    private long _count;
    private TaskCompletionSource _more = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>A heartbeat comes when nothing else has for so long.</summary>
    public TimeSpan HeartbeatEvery { get; set; } = TimeSpan.FromSeconds(15);

    /// <summary>A watcher may leave its buffer full for so long.</summary>
    public TimeSpan StuckAfter { get; set; } = TimeSpan.FromSeconds(30);

    /// <summary>Revision of the last change.</summary>
    public long Revision
    {
        get
        {
            lock (_lock) return _first + _count;
        }
    }

    /// <summary>Something came or changed, or (<paramref name="isGone"/>) went; what is told of it must be so already.</summary>
    public void Publish(string type, string key, string name, bool isGone)
    {
        TaskCompletionSource waiters;
        lock (_lock)
        {
            _count++;
            _ring[_count % kept] = new WatchNotice(_first + _count, type, key, name, isGone);
            waiters = _more;
            _more = new(TaskCreationOptions.RunContinuationsAsynchronously);
        }

        waiters.SetResult();
    }

    /// <summary>The changes after a revision, at most <paramref name="max"/>; null when they are not all known.</summary>
    public IReadOnlyList<WatchNotice>? After(long revision, int max = 512)
    {
        lock (_lock)
        {
            long behind = _first + _count - revision;
            if (behind < 0 || behind > Math.Min(_count, kept)) return null;
            var found = new WatchNotice[Math.Min(behind, max)];
            for (int i = 0; i < found.Length; i++) found[i] = _ring[(revision - _first + 1 + i) % kept];
            return found;
        }
    }

    /// <summary>Returns when there is something after <paramref name="revision"/>.</summary>
    public Task WaitAsync(long revision, CancellationToken cancel)
    {
        lock (_lock) return _first + _count != revision ? Task.CompletedTask : _more.Task.WaitAsync(cancel);
    }
}
