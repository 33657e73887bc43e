using BlockServer.Core;
using BlockServer.Storage;

namespace BlockServer.Pfinspect;

/// <summary>
/// The invariants of engine B1.9 that a closed store can show: S2 and S9 (each block referenced once, inside the data
/// area), S4, S5 and S8 (homes and log agree; seen while loading), and with the data read, S1 (every checksum).
/// S3, S6, S7, S10 and S11 are about a running store.
/// </summary>
public static class StoreCheck
{
    /// <summary>Checks a loaded store; <paramref name="readData"/> reads every referenced block too.</summary>
    public static CheckReport Run(StoreImage image, bool readData)
    {
        ulong extents = 0, referenced = 0, read = 0;
        var seen = new ulong[(image.Superblock.Geometry.DataBlocks + 63) / 64];
        Dictionary<uint, SlotPage> heads = CheckHeads(image);
        var layers = new LayerTree(image);
        var keys = new Dictionary<(uint Volume, uint Layer, uint Extent), uint>();
        foreach (SlotPage page in image.Slots.Values)
        {
            if (page.Kind != MetadataKind.Extent) continue;
            extents++;
            CheckKey(image, page, heads, keys);
            ulong shared = layers.SharedUpTo(page);
            SlotPage? below = layers.Below(page)?.Page;
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                BlockEntry entry = MetadataPage.Entry(page.Entries, i);
                if (entry.Version <= shared && below is not null)
                {
                    CheckShared(image, page, below, i);
                    continue; // counted, and read, where it is whole
                }

                if (!CheckEntry(image, page, i, entry, seen)) continue;
                referenced++;
                if (!readData) continue;
                read++;
                if (!image.BlockMatches(entry.Block, entry.Crc))
                    image.Problems.Error("S1", Where(heads, page, i), $"block {entry.Block} does not match its checksum");
            }
        }

        ulong bad = CheckBadBlocks(image, seen);
        return new CheckReport(
            !image.Problems.HasErrors, (ulong)image.Slots.Count, extents, referenced, bad,
            image.Superblock.Geometry.DataBlocks - CountOf(seen), image.RecordsReplayed, image.RecordsSkipped, read,
            image.Problems.Count, image.Problems.Kept);
    }

    /// <summary>Counts the bad blocks and marks them as taken; one may still be referenced, until it is overwritten.</summary>
    private static ulong CheckBadBlocks(StoreImage image, ulong[] seen)
    {
        SortedDictionary<uint, uint> bad = image.BadBlocks();
        foreach ((uint block, uint slot) in bad)
        {
            if (!image.IsData(block))
            {
                image.Problems.Error("S9", $"slot {slot}", $"names bad block {block}, outside the data area");
                continue;
            }

            uint bit = block - image.Superblock.Geometry.DataStart;
            seen[bit / 64] |= 1UL << (int)(bit % 64);
        }

        return (ulong)bad.Count;
    }

    private static Dictionary<uint, SlotPage> CheckHeads(StoreImage image)
    {
        var heads = new Dictionary<uint, SlotPage>();
        var names = new HashSet<string>(StringComparer.Ordinal);
        foreach (SlotPage head in image.Heads)
        {
            string where = $"slot {head.Slot}";
            if (head.VolumeId != head.Head.Head.Id)
                image.Problems.Error("volume", where, $"belongs to volume {head.VolumeId} but holds the head of {head.Head.Head.Id}");
            if (!heads.TryAdd(head.VolumeId, head))
                image.Problems.Error("volume", where, $"volume {head.VolumeId} has another head in slot {heads[head.VolumeId].Slot}");
            if (!head.Head.IsDeleting && !names.Add(head.Head.Head.Name))
                image.Problems.Error("volume", where, $"two volumes are named {head.Head.Head.Name}");
        }

        CheckAppends(image, heads);
        return heads;
    }

    /// <summary>An append-only volume says how long it is, no other volume does, and no client is there twice.</summary>
    private static void CheckAppends(StoreImage image, Dictionary<uint, SlotPage> heads)
    {
        foreach (SlotPage page in image.Slots.Values.Where(p => p.Kind == MetadataKind.Appends))
        {
            if (!heads.TryGetValue(page.VolumeId, out SlotPage? head) || !head.Head.Head.IsAppendOnly)
                image.Problems.Error("append", $"slot {page.Slot}", $"appends of volume {page.VolumeId}, which is not append-only");
        }

        foreach (SlotPage head in heads.Values.Where(h => h.Head.Head.IsAppendOnly && !h.Head.IsDeleting))
        {
            string where = $"slot {head.Slot}";
            SlotPage[] pages = [.. image.AppendsOf(head.VolumeId)];
            if (pages.Length == 0) image.Problems.Error("append", where, $"nothing says how long volume {head.Head.Head.Name} is");
            if (pages.DistinctBy(p => p.Extent).Count() != pages.Length) image.Problems.Error("append", where, "two pages of appends have the same number");
            if (image.LengthOf(head.VolumeId) > head.Head.Head.SizeBytes)
                image.Problems.Error("append", where, $"volume {head.Head.Head.Name} is longer than its maximum size");
            Guid[] clients = [.. pages.SelectMany(p => p.Appends!.Clients).Select(c => c.Id)];
            if (clients.Distinct().Count() != clients.Length) image.Problems.Error("append", where, "a client is remembered twice");
        }
    }

    private static void CheckKey(
        StoreImage image, SlotPage page, Dictionary<uint, SlotPage> heads, Dictionary<(uint Volume, uint Layer, uint Extent), uint> keys)
    {
        string where = $"slot {page.Slot}";
        if (!keys.TryAdd((page.VolumeId, page.Layer, page.Extent), page.Slot))
        {
            uint other = keys[(page.VolumeId, page.Layer, page.Extent)];
            string layer = page.Layer == 0 ? "" : $", layer {page.Layer}";
            image.Problems.Error("S2", where, $"extent {page.Extent} of volume {page.VolumeId}{layer} is in slot {other} too");
        }

        if (!heads.TryGetValue(page.VolumeId, out SlotPage? head))
        {
            image.Problems.Error("volume", where, $"extent {page.Extent} of volume {page.VolumeId}, which has no head");
        }
        else if ((ulong)page.Extent << Units.ExtentShift >= head.Head.Head.SizeBytes && !head.Head.IsDeleting
            && page.Layer == head.Head.Layer && !(IsEmpty(page) && head.Head.UsedSize > VolumeHeadLayout.PlainSize))
        {
            // A shrink drops extents one after the other; a crash in between leaves the rest to the next open.
            image.Problems.Warning("volume", where, $"extent {page.Extent} lies beyond the end of volume {head.Head.Head.Name}");
        }
    }

    /// <summary>Over what a layer below has, a page of holes lies beyond the end for ever.</summary>
    private static bool IsEmpty(SlotPage page)
    {
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            if (MetadataPage.Entry(page.Entries, i).Block != 0) return false;
        }

        return true;
    }

    /// <summary>What was not written in its layer is what the layer below has; else one of the two is gone, or was never freed.</summary>
    private static void CheckShared(StoreImage image, SlotPage page, SlotPage below, int index)
    {
        BlockEntry entry = MetadataPage.Entry(page.Entries, index), other = MetadataPage.Entry(below.Entries, index);
        if (entry == other || entry.Block == MetadataPage.UnknownBlock || other.Block == MetadataPage.UnknownBlock) return;
        image.Problems.Error("S2", $"slot {page.Slot} volume {page.VolumeId} layer {page.Layer} extent {page.Extent} block {index}",
            $"shares block {entry.Block} of version {entry.Version} with slot {below.Slot}, which has block {other.Block} of version {other.Version}");
    }

    private static bool CheckEntry(StoreImage image, SlotPage page, int index, BlockEntry entry, ulong[] seen)
    {
        string Here() => $"slot {page.Slot} volume {page.VolumeId} extent {page.Extent} block {index}";
        if (entry.Block == 0)
        {
            if (entry.Crc != 0) image.Problems.Error("map", Here(), "a hole with a checksum");
            return false;
        }

        if (entry.Block == MetadataPage.UnknownBlock)
        {
            image.Problems.Error("S1", Here(), "marked as lost: its content is not known any more");
            return false;
        }

        if (!image.IsData(entry.Block))
        {
            image.Problems.Error("S9", Here(), $"refers to block {entry.Block}, outside the data area");
            return false;
        }

        if (entry.Version == 0) image.Problems.Error("map", Here(), "written but without a version");
        uint bit = entry.Block - image.Superblock.Geometry.DataStart;
        ulong mask = 1UL << (int)(bit % 64);
        if ((seen[bit / 64] & mask) != 0)
            image.Problems.Error("S2", Here(), $"block {entry.Block} is referenced by another entry too");
        seen[bit / 64] |= mask;
        return true;
    }

    private static string Where(Dictionary<uint, SlotPage> heads, SlotPage page, int index)
    {
        string volume = heads.TryGetValue(page.VolumeId, out SlotPage? head) ? head.Head.Head.Name : $"volume {page.VolumeId}";
        ulong offset = ((ulong)page.Extent << Units.ExtentShift) + ((ulong)index << Units.BlockShift);
        return $"{volume} offset {offset}";
    }

    private static ulong CountOf(ulong[] bits)
    {
        ulong count = 0;
        foreach (ulong word in bits) count += ulong.PopCount(word);
        return count;
    }
}
