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

    /// <summary>Extents that may have a slot end here.</summary>
    public uint ExtentEnd => (uint)_chunks.Length * ChunkExtents;

    public bool TryGetSlot(uint extent, out uint slot)
    {
        uint[]? chunk = extent / ChunkExtents < (uint)_chunks.Length ? _chunks[extent / ChunkExtents] : null;
        slot = chunk is null ? 0 : chunk[extent % ChunkExtents];
        return slot-- != 0;
    }

    public void SetSlot(uint extent, uint? slot)
    {
        int chunk = (int)(extent / ChunkExtents);
        if (chunk >= _chunks.Length) Array.Resize(ref _chunks, chunk + 1);
        (_chunks[chunk] ??= new uint[ChunkExtents])[extent % ChunkExtents] = slot is null ? 0 : slot.Value + 1;
    }

    /// <summary>First extent from <paramref name="extent"/> on whose chunk exists; skips empty gibibytes.</summary>
    public uint Skip(uint extent)
    {
        while (extent < ExtentEnd && _chunks[extent / ChunkExtents] is null) extent = (extent / ChunkExtents + 1) * ChunkExtents;
        return extent;
    }
}
