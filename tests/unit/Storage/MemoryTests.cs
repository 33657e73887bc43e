using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>What docs/performance.md says about RAM, counted by the size of the arrays.</summary>
public class MemoryTests(ITestOutputHelper output)
{
    [Fact]
    public void The_bitmap_takes_33_MiB_for_a_TiB_of_disk()
    {
        var blocks = new BlockAllocator(1000, (uint)(Units.TiB >> Units.BlockShift));
        output.WriteLine($"{blocks.Bytes / (double)Units.MiB:F2} MiB");
        Assert.InRange(blocks.Bytes, 32 * Units.MiB, 33 * Units.MiB + Units.MiB / 8);
    }

    [Fact]
    public void A_written_TiB_takes_60_MiB_of_tables_and_as_many_pages_as_the_budget_allows()
    {
        // 16 GiB of extents in a table as large as 1 TiB needs; the rest follows by proportion.
        const uint extents = 16 * 1024;
        const uint perTiB = (uint)(Units.TiB >> Units.ExtentShift);
        var slots = new SlotTable(extents, ulong.MaxValue);
        var volume = new Volume(StoreWorld.HeadOf(1, Units.VolumeBytesMax), 0, slots);
        for (uint extent = 0; extent < extents; extent++)
        {
            Assert.True(slots.TryTake(MetadataKind.Extent, 1, extent, out uint slot));
            volume.Line.SetSlot(extent, slot);
        }

        double tables = (slots.TableBytes + volume.Line.MapBytes) * (double)(perTiB / extents) / Units.MiB;
        double pages = slots.ResidentBytes * (double)(perTiB / extents) / Units.GiB;
        output.WriteLine($"tables {tables:F1} MiB, pages {pages:F2} GiB per TiB");
        Assert.InRange(tables, 55, 61);
        Assert.InRange(pages, 3.7, 3.8);
        Assert.Equal(0UL, slots.Evictions);
    }

    [Fact]
    public void A_budget_is_kept()
    {
        var slots = new SlotTable(100_000, 10 * Units.MiB);
        for (uint extent = 0; extent < 50_000; extent++) Assert.True(slots.TryTake(MetadataKind.Extent, 1, extent, out _));
        Assert.InRange(slots.ResidentBytes, 9 * Units.MiB, 10 * Units.MiB);
        Assert.Equal(50_000UL - slots.FramesMax, slots.Evictions);
    }

    [Fact]
    public void The_page_that_was_looked_at_for_longest_goes_first_and_a_pinned_one_never()
    {
        var slots = new SlotTable(100, 8 * MetadataPage.EntriesBytes);
        for (uint extent = 0; extent < 8; extent++)
        {
            Assert.True(slots.TryTake(MetadataKind.Extent, 1, extent, out uint slot));
            slots.Entries(slot)[0] = (byte)extent;
        }

        for (uint slot = 0; slot < 4; slot++) slots.Pin(slot);
        Assert.True(slots.TryTake(MetadataKind.Extent, 1, 8, out uint next)); // clears every mark, takes slot 4
        Assert.False(slots.IsResident(4));
        slots.Entries(5);
        Assert.True(slots.TryTake(MetadataKind.Extent, 1, 9, out _));
        Assert.True(slots.IsResident(5)); // was looked at
        Assert.False(slots.IsResident(6));
        for (uint slot = 0; slot < 4; slot++) Assert.Equal((byte)slot, slots.Entries(slot)[0]);
        slots.Pin(5);
        slots.Pin(7);
        slots.Pin(next);
        slots.Pin(9);
        Assert.False(slots.TrySpare(1));
        bool isRelieved = false;
        slots.Relieved = () => isRelieved = true;
        slots.Unpin(2);
        Assert.True(isRelieved && slots.TrySpare(1));
        Assert.False(slots.IsResident(2));
    }
}
