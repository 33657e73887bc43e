namespace BlockServer.Tests.Simulated.Disk;

/// <summary>A write that the medium has not made durable yet.</summary>
public sealed class PendingWrite(int view, ulong ordinal, ulong firstPage, byte[][] pages)
{
    /// <summary>Which view of the disk it came through; a flush covers only its own view's writes.</summary>
    public int View { get; } = view;

    /// <summary>Counts the writes of the disk.</summary>
    public ulong Ordinal { get; } = ordinal;

    /// <summary>Where it goes.</summary>
    public ulong FirstPage { get; internal set; } = firstPage;

    /// <summary>What it writes.</summary>
    public IReadOnlyList<byte[]> Pages { get; } = pages;

    /// <summary>It was answered (or failed); false while it is in flight.</summary>
    public bool IsAnswered { get; internal set; }

    /// <summary>512 B sectors that reached the cache, one mask for every page; null: all.</summary>
    internal byte[]? Masks { get; set; }

    internal byte MaskOf(int page) => Masks is null ? byte.MaxValue : Masks[page];
}
