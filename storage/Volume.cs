using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>A volume in RAM: its head and where the slot of each extent is. Lives on one loop.</summary>
internal sealed class Volume(VolumeHead head, uint slot)
{
    private const int ChunkExtents = 1024;
    private uint[]?[] _chunks = [];

    public VolumeHead Head = head;
    public readonly uint Slot = slot;
    public bool IsDeleting;
    public bool IsChanging;
    public ulong UsedBlocks;

    /// <summary>A page was lost and nobody knows which (accepted data loss): an extent without one may have had one, so it
    /// is unknown, not a hole.</summary>
    public bool IsDoubtful;

    /// <summary>Extents that may have a slot end here.</summary>
    public uint ExtentEnd => (uint)_chunks.Length * ChunkExtents;

    /// <summary>Bytes of RAM that say where its extents' slots are.</summary>
    public ulong MapBytes => (ulong)_chunks.Length * 8 + _chunksMade * ChunkExtents * sizeof(uint);

    private ulong _chunksMade;

    public bool TryGetSlot(uint extent, out uint slot)
    {
        uint[]? chunk = extent / ChunkExtents < (uint)_chunks.Length ? _chunks[extent / ChunkExtents] : null;
        slot = chunk is null ? 0 : chunk[extent % ChunkExtents];
        return slot-- != 0;
    }

    public void SetSlot(uint extent, uint? slot)
    {
        int chunk = (int)(extent / ChunkExtents);
        if (chunk >= _chunks.Length)
        {
            // Doubled, so that a volume that grows in order is not copied at every gibibyte.
            long chunks = (long)(Units.VolumeBytesMax >> Units.ExtentShift) / ChunkExtents;
            Array.Resize(ref _chunks, (int)Math.Max(chunk + 1, Math.Min(2L * _chunks.Length, chunks)));
        }

        uint[]? slots = _chunks[chunk];
        if (slots is null)
        {
            slots = _chunks[chunk] = new uint[ChunkExtents];
            _chunksMade++;
        }

        slots[extent % ChunkExtents] = slot is null ? 0 : slot.Value + 1;
    }

    /// <summary>Last extent below <paramref name="end"/> whose chunk exists, or null.</summary>
    public uint? SkipBack(uint end)
    {
        while (end > 0 && _chunks[(end - 1) / ChunkExtents] is null) end = (end - 1) / ChunkExtents * ChunkExtents;
        return end == 0 ? null : end - 1;
    }

    /// <summary>First extent from <paramref name="extent"/> on whose chunk exists; skips empty gibibytes.</summary>
    public uint Skip(uint extent)
    {
        while (extent < ExtentEnd && _chunks[extent / ChunkExtents] is null) extent = (extent / ChunkExtents + 1) * ChunkExtents;
        return extent;
    }
}
