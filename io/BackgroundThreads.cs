using System.Globalization;

namespace BlockServer.Io;

/// <summary>
/// Puts every thread of the process but its loops a little behind them, by their nice value: the just-in-time compiler, which works
/// hardest in the first minutes, the pool, the collector. Where processors are short each of them takes a loop's for one tick of the
/// system's clock (4 ms at 250 Hz) or several, and all clients of that loop wait. The other way, loops in front, is slower by a third
/// to two thirds: such a loop runs before its own client too, at each request that comes. One thread at a time.
/// </summary>
/// <param name="loops">What stays as it is: all loops of the process.</param>
/// <param name="nice">How much behind them, 1 to 19.</param>
public sealed class BackgroundThreads(IReadOnlyList<LoopThread> loops, int nice)
{
    private readonly HashSet<int> _loops = [.. loops.Select(l => l.SystemId)];
    private readonly int _nice = Math.Min(19, Native.NiceOf(loops[0].SystemId) + nice);
    private HashSet<int> _known = [];

    /// <summary>Why a thread runs beside the loops though it was to run behind them, once that was refused.</summary>
    public string? Refusal { get; private set; }

    /// <summary>Looks for threads that have begun since the last look. A thread begins with the value of the one that starts it, and any
    /// may start one of the pool, a loop too: so look again now and then. An ended thread is no failure.</summary>
    public void Look()
    {
        var there = new HashSet<int>();
        foreach (string path in Directory.EnumerateDirectories("/proc/self/task"))
        {
            int thread = int.Parse(Path.GetFileName(path.AsSpan()), NumberStyles.None, CultureInfo.InvariantCulture);
            there.Add(thread);
            if (_known.Contains(thread) || _loops.Contains(thread) || Native.NiceOf(thread) >= _nice || WorksForRing(path)) continue;
            if (Native.SetNice(thread, _nice) is { } refusal) Refusal = refusal;
        }

        _known = there;
    }

    /// <summary>The kernel's own workers of an io_uring are threads of the process too, and carry out what its loop asked for.</summary>
    private static bool WorksForRing(string path)
    {
        try
        {
            return File.ReadAllText(Path.Combine(path, "comm")).StartsWith("iou-", StringComparison.Ordinal);
        }
        catch (IOException)
        {
            return true; // it has ended
        }
    }
}
