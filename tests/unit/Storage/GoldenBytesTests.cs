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
            bytes, 0x01020304, 7, 9, before: 0, isNewPage: true, 0x11, [new BlockRun(3, 2, 0xAABBCCDD)], [0x55667788, 0x99AABBCC]);
        Assert.Equal(
            "01013200040302010700000009000000" + "0000000000000000" + "1100000000000000" + "01000200" + "0301DDCCBBAA" + "88776655CCBBAA99",
            Convert.ToHexString(bytes.AsSpan(0, length)));
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out RedoRecord record));
        Assert.Equal(new BlockRun(3, 2, 0xAABBCCDD), record.Run(0));
        Assert.Equal(0x99AABBCCu, record.CrcOf(1));
    }

    [Fact]
    public void A_record_that_is_continued_says_so_in_its_flags()
    {
        var bytes = new byte[64];
        int length = RedoRecordWriter.Write(bytes, 4, 7, 9, 0x22, false, 0x11, [new BlockRun(255, 1, 5)], [6], isContinued: true);
        Assert.Equal(
            "01022E00040000000700000009000000" + "2200000000000000" + "1100000000000000" + "01000100" + "FF0005000000" + "06000000",
            Convert.ToHexString(bytes.AsSpan(0, length)));
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out RedoRecord record));
        Assert.True(record is { IsContinued: true, IsNewPage: false });
        length = RedoRecordWriter.Hole(bytes, 4, 7, 9, 0x22, 0x11, [new BlockRun(0, 2, 0)], isContinued: true);
        Assert.Equal("02022600040000000700000009000000" + "2200000000000000" + "1100000000000000" + "01000000" + "0001", Convert.ToHexString(bytes.AsSpan(0, length)));
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out record));
        Assert.True(record.IsContinued);
    }

    [Fact]
    public void A_relaid_record_is_a_write_with_a_flag_of_its_own()
    {
        var bytes = new byte[64];
        int length = RedoRecordWriter.Write(bytes, 4, 7, 9, 3, false, 0x11, [new BlockRun(0, 1, 5)], [6], isRelaid: true);
        Assert.Equal(0x04, bytes[1]);
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out RedoRecord record));
        Assert.True(record is { IsRelaid: true, IsNewPage: false, IsContinued: false, Version: 0x11 });
        foreach (byte flags in (byte[])[5, 6, 7, 12])
        {
            bytes[1] = flags;
            Assert.NotNull(RedoRecord.TryRead(bytes, 0, length, out _));
        }
    }

    [Theory]
    [InlineData(RedoKind.Write, 8)]
    [InlineData(RedoKind.Hole, 4)]
    [InlineData(RedoKind.Hole, 1)]
    [InlineData(RedoKind.DropPage, 2)]
    public void A_flag_that_means_nothing_is_refused(RedoKind kind, byte flags)
    {
        var bytes = new byte[64];
        int length = kind switch
        {
            RedoKind.Write => RedoRecordWriter.Write(bytes, 4, 7, 9, 5, false, 1, [new BlockRun(0, 1, 5)], [6]),
            RedoKind.Hole => RedoRecordWriter.Hole(bytes, 4, 7, 9, 5, 1, [new BlockRun(0, 1, 0)]),
            _ => RedoRecordWriter.DropPage(bytes, 4, 7, 9),
        };
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out _));
        bytes[1] = flags;
        Assert.NotNull(RedoRecord.TryRead(bytes, 0, length, out _));
    }

    /// <summary>What a page must hold for the record: named by every record that changes one, and by no other.</summary>
    [Fact]
    public void A_record_that_changes_a_page_names_the_one_before_it()
    {
        var bytes = new byte[64];
        int[] lengths =
        [
            RedoRecordWriter.Write(bytes, 4, 7, 9, 0, false, 1, [new BlockRun(0, 1, 5)], [6]),
            RedoRecordWriter.Write(bytes, 4, 7, 9, 5, true, 1, [new BlockRun(0, 1, 5)], [6]),
            RedoRecordWriter.Hole(bytes, 4, 7, 9, 0, 1, [new BlockRun(0, 1, 0)]),
            RedoRecordWriter.VolumeDelete(bytes, 4, 7, 0),
        ];
        Assert.Null(RedoRecord.TryRead(bytes, 0, RedoRecordWriter.VolumeDelete(bytes, 4, 7, 0x33), out RedoRecord delete));
        Assert.Equal(0x33UL, delete.Before);
        Assert.Equal(0x33, bytes[16]);
        RedoRecordWriter.Write(bytes, 4, 7, 9, 0, false, 1, [new BlockRun(0, 1, 5)], [6]);
        Assert.Contains("nothing began", RedoRecord.TryRead(bytes, 0, lengths[0], out _), StringComparison.Ordinal);
        RedoRecordWriter.Write(bytes, 4, 7, 9, 5, true, 1, [new BlockRun(0, 1, 5)], [6]);
        Assert.Contains("needs no record before it", RedoRecord.TryRead(bytes, 0, lengths[1], out _), StringComparison.Ordinal);
        RedoRecordWriter.Hole(bytes, 4, 7, 9, 0, 1, [new BlockRun(0, 1, 0)]);
        Assert.Contains("nothing began", RedoRecord.TryRead(bytes, 0, lengths[2], out _), StringComparison.Ordinal);
        RedoRecordWriter.VolumeDelete(bytes, 4, 7, 0);
        Assert.Contains("nothing began", RedoRecord.TryRead(bytes, 0, lengths[3], out _), StringComparison.Ordinal);
        // The first bad block of a slot has none, every further one has.
        Assert.Null(RedoRecord.TryRead(bytes, 0, RedoRecordWriter.BadBlock(bytes, 4, 0, 77), out _));
        Assert.Null(RedoRecord.TryRead(bytes, 0, RedoRecordWriter.BadBlock(bytes, 4, 0x44, 77), out RedoRecord bad));
        Assert.Equal((0x44UL, 77u), (bad.Before, bad.BadBlock));
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
