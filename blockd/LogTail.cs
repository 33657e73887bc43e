namespace BlockServer.Blockd;

/// <summary>The last lines that the daemon wrote to its log. Thread-safe.</summary>
internal sealed class LogTail
{
    private const int LinesMax = 2000, LineCharactersMax = 4000;

    private readonly Lock _lock = new();
    private readonly Queue<string> _lines = new();

    /// <summary>The daemon's own.</summary>
    public static LogTail Instance { get; } = new();

    /// <summary>Oldest first.</summary>
    public IReadOnlyList<string> Lines
    {
        get
        {
            lock (_lock) return [.. _lines];
        }
    }

    /// <summary>Keeps a line with the time.</summary>
    public void Add(DateTimeOffset at, string line)
    {
        lock (_lock)
        {
            _lines.Enqueue($"{at:O} {(line.Length > LineCharactersMax ? line[..LineCharactersMax] : line)}");
            if (_lines.Count > LinesMax) _lines.Dequeue();
        }
    }
}
