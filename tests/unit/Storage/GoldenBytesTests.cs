using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

public class GoldenBytesTests
{
    [Fact]
    public void A_write_record_lies_on_disk_as_it_always_did()
    {
        var bytes = new byte[64];
        int length = RedoRecordWriter.Write(
            bytes, 0x01020304, 7, 9, isNewPage: true, 0x11, [new BlockRun(3, 2, 0xAABBCCDD)], [0x55667788, 0x99AABBCC]);
        Assert.Equal(
            "01012A00040302010700000009000000" + "1100000000000000" + "01000200" + "0301DDCCBBAA" + "88776655CCBBAA99",
            Convert.ToHexString(bytes.AsSpan(0, length)));
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out RedoRecord record));
        Assert.Equal(new BlockRun(3, 2, 0xAABBCCDD), record.Run(0));
        Assert.Equal(0x99AABBCCu, record.CrcOf(1));
    }

    [Fact]
    public void An_entry_is_block_checksum_and_seven_bytes_of_version()
    {
        var entries = new byte[MetadataPage.EntriesBytes];
        var entry = new BlockEntry(0x01020304, 0x05060708, 0x0A0B0C0D0E0F10);
        MetadataPage.SetEntry(entries, 1, entry);
        Assert.Equal("0403020108070605100F0E0D0C0B0A", Convert.ToHexString(entries.AsSpan(15, 15)));
        Assert.Equal(entry, MetadataPage.Entry(entries, 1));
    }

    [Fact]
    public void Any_flipped_bit_of_a_superblock_is_noticed()
    {
        var page = new byte[Superblock.Size];
        Assert.Null(StoreGeometry.Plan(64 << 20, 256 << 10, 0.02, out StoreGeometry geometry));
        new Superblock { StoreUuid = new Guid(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), Geometry = geometry, Sequence = 5 }.WriteTo(page);
        Assert.Null(Superblock.TryRead(page, out Superblock read));
        Assert.Equal(geometry, read.Geometry);
        for (int bit = 0; bit < page.Length * 8; bit++)
        {
            if (bit / 8 is >= 4 and < 8) continue; // the copy number lies outside the checksum
            page[bit / 8] ^= (byte)(1 << (bit % 8));
            Assert.NotNull(Superblock.TryRead(page, out _));
            page[bit / 8] ^= (byte)(1 << (bit % 8));
        }
    }

    [Fact]
    public void A_page_read_from_another_address_or_store_is_refused()
    {
        var page = new byte[Units.BlockBytes];
        new MetadataPageHeader { Kind = MetadataKind.Extent, VolumeId = 7, Extent = 3, Slot = 2, PageLsn = 99 }.WriteTo(page);
        Seal.Put(page, 8192, 77);
        Assert.Null(MetadataPage.TryReadPage(page, 8192, 77, 2, out MetadataPageHeader header));
        Assert.Equal(99UL, header.PageLsn);
        Assert.NotNull(MetadataPage.TryReadPage(page, 12288, 77, 2, out _));
        Assert.NotNull(MetadataPage.TryReadPage(page, 8192, 78, 2, out _));
        Assert.NotNull(MetadataPage.TryReadPage(page, 8192, 77, 3, out _));
    }
}
