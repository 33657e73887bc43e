using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// Where everything lies on a store (engine B1.3): superblock copies 0 and 1, redo ring, metadata slots (two homes
/// each), data blocks, superblock copies 2 and 3. Offsets are bytes from the start of the store.
/// </summary>
/// <param name="TotalBytes">Size of the store, a multiple of 4096.</param>
/// <param name="RingPages">Pages of 4 KiB in the redo ring.</param>
/// <param name="SlotCount">Metadata slots.</param>
public readonly record struct StoreGeometry(ulong TotalBytes, uint RingPages, uint SlotCount)
{
    /// <summary>Fewest pages of a redo ring. Small rings are for tests; they lap often.</summary>
    public const uint RingPagesMin = 32;

    /// <summary>Where the redo ring begins.</summary>
#pragma warning disable CA1822 // Reads better beside the offsets that depend on the geometry.
    public ulong RingOffset => 2 * Units.BlockBytes;

#pragma warning restore CA1822

    /// <summary>Where the metadata slots begin.</summary>
    public ulong SlotsOffset => RingOffset + (ulong)RingPages * Units.BlockBytes;

    /// <summary>First data block, as an absolute block number; never 0, which means a hole.</summary>
    public uint DataStart => (uint)((SlotsOffset >> Units.BlockShift) + 2UL * SlotCount);

    /// <summary>First block behind the data, as an absolute block number: superblock copy 2.</summary>
    public uint DataEnd => (uint)((TotalBytes >> Units.BlockShift) - 2);

    /// <summary>Data blocks in all.</summary>
    public uint DataBlocks => DataEnd - DataStart;

    /// <summary>Offset of home A (0) or B (1) of a slot.</summary>
    public ulong HomeOffset(uint slot, int home) => SlotsOffset + (2UL * slot + (uint)home) * Units.BlockBytes;

    /// <summary>Offset in the ring of a log page, by its number since the format.</summary>
    public ulong PageOffset(ulong pageNumber) => RingOffset + pageNumber % RingPages * Units.BlockBytes;

    /// <summary>Offset of superblock copy 0 to 3.</summary>
    public ulong SuperblockOffset(int copy) =>
        copy < 2 ? (ulong)copy * Units.BlockBytes : TotalBytes - (ulong)(4 - copy) * Units.BlockBytes;

    /// <summary>Plans a store.</summary>
    /// <param name="totalBytes">Size of the medium; rounded down to 4 KiB.</param>
    /// <param name="ringBytes">Size of the redo ring; 0 takes 1/64 of the store, between 64 MiB and 1 GiB.</param>
    /// <param name="slotFraction">Part of the store that metadata slots take; at least 0.8% to map a full store.</param>
    /// <param name="geometry">The plan.</param>
    /// <returns>Why it cannot be, or null.</returns>
    public static string? Plan(ulong totalBytes, ulong ringBytes, double slotFraction, out StoreGeometry geometry)
    {
        geometry = default;
        totalBytes &= ~(ulong)(Units.BlockBytes - 1);
        if (totalBytes > 16 * Units.TiB - Units.MiB)
            return "a store holds at most 16 TiB; cut the device into several stores";
        if (ringBytes == 0) ringBytes = Math.Clamp(totalBytes / 64, 64 * Units.MiB, Units.GiB);
        ulong ringPages = ringBytes >> Units.BlockShift;
        ulong slots = Math.Max(16, (ulong)(totalBytes * slotFraction) / (2 * Units.BlockBytes));
        ulong overhead = (4 + ringPages + 2 * slots) * Units.BlockBytes;
        if (ringPages < RingPagesMin || ringPages > uint.MaxValue)
            return $"the redo ring needs at least {RingPagesMin} pages of 4 KiB";
        if (overhead + Units.MiB > totalBytes)
            return $"a store of {SizeText.Format(totalBytes)} is too small: log and metadata alone take {SizeText.Format(overhead)}";
        geometry = new StoreGeometry(totalBytes, (uint)ringPages, (uint)slots);
        return null;
    }

    /// <summary>Says what is impossible about a geometry read from a medium of <paramref name="fileBytes"/>, or null.</summary>
    public string? Fault(ulong fileBytes)
    {
        if (TotalBytes % Units.BlockBytes != 0 || TotalBytes > 16 * Units.TiB) return "geometry: impossible size";
        if (TotalBytes > fileBytes) return "geometry: the medium is smaller than the store on it";
        if (RingPages < RingPagesMin || SlotCount == 0) return "geometry: no ring or no slots";
        ulong overhead = (4UL + RingPages + 2UL * SlotCount) * Units.BlockBytes;
        return overhead >= TotalBytes ? "geometry: log and metadata exceed the store" : null;
    }
}
