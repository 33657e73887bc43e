using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// The changes of one volume between two cuts: the pages that they made. The topmost layer of a volume is written to, all
/// others are snapshots. Layers are a tree: a cut puts one on top of another, a clone or a rollback begins a branch. Lives
/// on one loop.
/// </summary>
internal sealed class Layer(Volume volume, uint number, Layer? parent, Line line)
{
    public readonly Volume Volume = volume;
    public readonly uint Number = number;

    /// <summary>The layer below, whose blocks this one shares until it overwrites them.</summary>
    public Layer? Parent = parent;

    /// <summary>The tips of which this is a layer.</summary>
    public Line Line = line;

    /// <summary>Layers whose parent this is.</summary>
    public readonly List<Layer> Children = [];

    /// <summary>Last version of the layer; the largest number while it is written to.</summary>
    public ulong Cut = ulong.MaxValue;

    /// <summary>What a snapshot says; unset while it is written to.</summary>
    public SnapshotLayout Head;

    /// <summary>Slot of the snapshot's head; unset while it is written to.</summary>
    public uint Slot;

    /// <summary>Its blocks are being given back.</summary>
    public bool IsDeleting;

    /// <summary>The background is at it.</summary>
    public bool IsBeingFreed;

    /// <summary>First of its pages, slot + 1, chained through <see cref="SlotLink.Next"/>; of the first layer of a volume
    /// that is no clone the map tells instead.</summary>
    public uint FirstPage;

    public bool IsTop => Volume.Top == this;

    /// <summary>Pages are found through the map, so that a volume without snapshots needs no links.</summary>
    public readonly bool IsUnlinked = number == 0 && parent is null;

    public LayerId Id => new(Volume.Head.Id, Number);
}

/// <summary>
/// Which slot maps an extent, as seen from the top of a branch of layers: the newest page there is. What the branch has no
/// page of is looked up in the layer that it grows from, once: that layer is never written to, and no page that can be
/// seen goes away. A snapshot is read through a line of its own that grows from it and has no layer. Lives on one loop.
/// </summary>
internal sealed class Line(SlotTable slots, Layer? basis)
{
    private const int ChunkExtents = 1024;
    private const uint KnownHole = uint.MaxValue;
    private uint[]?[] _chunks = [];
    private ulong _chunksMade;

    /// <summary>The snapshot that it grows from, or null.</summary>
    public Layer? Base = basis;

    /// <summary>The newest of its layers; null when it is only read.</summary>
    public Layer? Tip;

    /// <summary>Reads of it answer Unavailable: what it shows is being given back.</summary>
    public bool IsClosed => Tip is null && Base is { IsDeleting: true };

    /// <summary>Extents that may have a slot end here.</summary>
    public uint ExtentEnd => Math.Max((uint)_chunks.Length * ChunkExtents, Base?.Line.ExtentEnd ?? 0);

    /// <summary>Bytes of RAM that it takes.</summary>
    public ulong MapBytes => (ulong)_chunks.Length * 8 + _chunksMade * ChunkExtents * sizeof(uint);

    public bool TryGetSlot(uint extent, out uint slot)
    {
        uint[]? chunk = extent / ChunkExtents < (uint)_chunks.Length ? _chunks[extent / ChunkExtents] : null;
        slot = chunk is null ? 0 : chunk[extent % ChunkExtents];
        if (slot == 0 && Base is not null) slot = Resolve(extent);
        return slot-- is not (0 or KnownHole);
    }

    public void SetSlot(uint extent, uint? slot) => Set(extent, slot is null ? 0 : slot.Value + 1);

    /// <summary>The page went away or to another line: what lies below it shows, if it was to be seen.</summary>
    public void Uncover(uint extent, uint slot, uint older)
    {
        uint[]? chunk = extent / ChunkExtents < (uint)_chunks.Length ? _chunks[extent / ChunkExtents] : null;
        if (chunk is not null && chunk[extent % ChunkExtents] == slot + 1) chunk[extent % ChunkExtents] = older;
    }

    /// <summary>The page shows unless one over it is known.</summary>
    public void Cover(uint extent, uint slot)
    {
        uint[]? chunk = extent / ChunkExtents < (uint)_chunks.Length ? _chunks[extent / ChunkExtents] : null;
        if (chunk is null || chunk[extent % ChunkExtents] is 0 or KnownHole) Set(extent, slot + 1);
    }

    /// <summary>Last extent below <paramref name="end"/> that may have a page, or null.</summary>
    public uint? SkipBack(uint end)
    {
        while (end > 0 && !HasChunk((int)((end - 1) / ChunkExtents))) end = (end - 1) / ChunkExtents * ChunkExtents;
        return end == 0 ? null : end - 1;
    }

    /// <summary>First extent from <paramref name="extent"/> on that may have a page; skips empty gibibytes.</summary>
    public uint Skip(uint extent)
    {
        uint end = ExtentEnd;
        while (extent < end && !HasChunk((int)(extent / ChunkExtents))) extent = (extent / ChunkExtents + 1) * ChunkExtents;
        return extent;
    }

    private bool HasChunk(int chunk)
    {
        for (Line? line = this; line is not null; line = line.Base?.Line)
        {
            if (chunk < line._chunks.Length && line._chunks[chunk] is not null) return true;
        }

        return false;
    }

    /// <summary>Walks down from what the line of the base shows to what the base itself shows, and keeps it.</summary>
    private uint Resolve(uint extent)
    {
        Layer basis = Base!;
        uint found = basis.Line.TryGetSlot(extent, out uint slot) ? slot + 1 : 0;
        while (found != 0)
        {
            Slot page = slots[found - 1];
            SlotLink link = slots.Link(found - 1);
            if (page.VolumeId != basis.Volume.Head.Id || link.Layer <= basis.Number) break;
            found = link.Older;
        }

        if (found != 0 || HasChunk((int)(extent / ChunkExtents))) Set(extent, found == 0 ? KnownHole : found);
        return found;
    }

    private void Set(uint extent, uint value)
    {
        int chunk = (int)(extent / ChunkExtents);
        if (chunk >= _chunks.Length)
        {
            // Doubled, so that a volume that grows in order is not copied at every gibibyte.
            long chunks = (long)(Units.VolumeBytesMax >> Units.ExtentShift) / ChunkExtents;
            Array.Resize(ref _chunks, (int)Math.Max(chunk + 1, Math.Min(2L * _chunks.Length, chunks)));
        }

        uint[]? entries = _chunks[chunk];
        if (entries is null)
        {
            if (value == 0) return;
            entries = _chunks[chunk] = new uint[ChunkExtents];
            _chunksMade++;
        }

        entries[extent % ChunkExtents] = value;
    }
}
