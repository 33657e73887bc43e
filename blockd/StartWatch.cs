namespace BlockServer.Blockd;

/// <summary>Which disk a start is busy with, for whoever gives it up. Thread-safe.</summary>
internal sealed class StartWatch
{
    private volatile string? _path;

    /// <summary>The file or device that is being looked at or opened, or null.</summary>
    public string? DiskPath
    {
        get => _path;
        set => _path = value;
    }
}
