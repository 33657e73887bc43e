using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>What of a store is for data, told from its geometry alone: what a capacity planner needs before a store is made.</summary>
/// <param name="ReserveBlocks">Blocks that nothing grows into, so that overwriting, trimming and deleting go on (S10).</param>
/// <param name="KeptBlocks">Blocks that new extents keep free; never fewer than the reserve.</param>
/// <param name="KeptSlots">Metadata slots that new extents keep free.</param>
/// <param name="UsableBytes">Bytes of data that can be stored, when extents are filled.</param>
public readonly record struct StoreCapacity(uint ReserveBlocks, uint KeptBlocks, uint KeptSlots, ulong UsableBytes)
{
    /// <summary>The capacity of a store of this geometry in which new extents end at <paramref name="protectPercent"/> of blocks
    /// and slots.</summary>
    public static StoreCapacity Of(StoreGeometry geometry, int protectPercent)
    {
        // 1 %, and of a small store so much that a whole extent can be overwritten at once.
        uint reserve = Math.Max(Math.Max(4, geometry.DataBlocks / 100), Math.Min(384, geometry.DataBlocks / 20));
        uint kept = Math.Max(reserve, (uint)((ulong)geometry.DataBlocks * (ulong)(100 - protectPercent) / 100));
        uint slots = (uint)((ulong)geometry.SlotCount * (ulong)(100 - protectPercent) / 100);
        ulong blocks = geometry.DataBlocks > kept ? geometry.DataBlocks - kept : 0;
        // One slot at least is a volume's head.
        ulong mapped = (ulong)(geometry.SlotCount - slots - 1) * Units.BlocksPerExtent;
        return new StoreCapacity(reserve, kept, slots, Math.Min(blocks, mapped) * Units.BlockBytes);
    }
}
