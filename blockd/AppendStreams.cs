using System.Collections.Concurrent;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>The append streams of the daemon. Thread-safe.</summary>
internal sealed class AppendStreams
{
    /// <summary>Streams of the process: each holds 72 KiB while it is silent.</summary>
    public const int StreamsMax = 256;

    private readonly ConcurrentDictionary<AppendStream, LoopThread> _streams = [];
    private int _count;

    /// <summary>One more; false when there are too many. Whoever entered leaves.</summary>
    public bool TryEnter()
    {
        if (Interlocked.Increment(ref _count) <= StreamsMax) return true;
        Leave();
        return false;
    }

    /// <summary>One less.</summary>
    public void Leave() => Interlocked.Decrement(ref _count);

    /// <summary>A stream begins, on <paramref name="thread"/>.</summary>
    public void Add(AppendStream stream, LoopThread thread) => _streams[stream] = thread;

    /// <summary>It has ended.</summary>
    public void Remove(AppendStream stream) => _streams.TryRemove(stream, out _);

    /// <summary>Every stream finishes what has begun, answers it, and ends: its client comes again.</summary>
    public void StopAll()
    {
        foreach ((AppendStream stream, LoopThread thread) in _streams) thread.Post(stream.RequestStop);
    }
}
