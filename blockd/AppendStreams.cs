using System.Collections.Concurrent;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>The append streams of the daemon. Thread-safe.</summary>
internal sealed class AppendStreams
{
    /// <summary>Streams of the process: each holds 72 KiB while it is silent.</summary>
    public const int StreamsMax = 256;

    private readonly ConcurrentDictionary<AppendStream, (LoopThread Thread, uint VolumeId)> _streams = [];
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

    /// <summary>A stream to a volume begins, on <paramref name="thread"/>.</summary>
    public void Add(AppendStream stream, LoopThread thread, uint volumeId) => _streams[stream] = (thread, volumeId);

    /// <summary>It has ended.</summary>
    public void Remove(AppendStream stream) => _streams.TryRemove(stream, out _);

    /// <summary>Every stream finishes what has begun, answers it, and ends: its client comes again.</summary>
    public void StopAll() => Stop(static _ => true);

    /// <summary>As <see cref="StopAll"/>, those of one volume: it has another home.</summary>
    public void StopVolume(uint volumeId) => Stop(id => id == volumeId);

    private void Stop(Func<uint, bool> which)
    {
        foreach ((AppendStream stream, (LoopThread thread, uint volumeId)) in _streams)
        {
            if (which(volumeId)) thread.Post(stream.RequestStop);
        }
    }
}
