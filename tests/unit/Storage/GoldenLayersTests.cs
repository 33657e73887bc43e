using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>The bytes of snapshots, clones and layers, as docs/format.md has them.</summary>
public class GoldenLayersTests
{
    private const string Uuid = "0F0E0D0C0B0A09080706050403020100";

    // Volume 7, layer 3, flags 5, parent (9, 2), zeros, UUID, cut, size, name "monday", seconds.
    private static readonly string Snapshot =
        "07000000" + "03000000" + "05000000" + "09000000" + "02000000" + "00000000" + Uuid
        + "1122334455660700" + "0000400000000000" + "06" + "6D6F6E646179" + new string('0', 2 * 57) + "8877665544332211";

    // Volume 7, flags 4 + 8, UUID, size, epoch, name "v7", layer 5, parent (9, 2), zeros.
    private static readonly string Head =
        "07000000" + "0C000000" + Uuid + "0000400000000000" + "0300000000000000" + "02" + "7637" + new string('0', 2 * 61)
        + "05000000" + "09000000" + "02000000" + "00000000";

    private static readonly SnapshotLayout SnapshotOf = new()
    {
        Id = new LayerId(7, 3), Parent = new LayerId(9, 2), IsDeleting = true, Uuid = new Guid("0f0e0d0c-0b0a-0908-0706-050403020100"),
        Cut = 0x0007665544332211, SizeBytes = 4 * Units.MiB, Name = "monday", UnixSeconds = 0x1122334455667788,
    };

    private static readonly VolumeHeadLayout HeadOf = new()
    {
        Head = new VolumeHead(7, new Guid("0f0e0d0c-0b0a-0908-0706-050403020100"), "v7", 4 * Units.MiB, 3),
        IsFlattening = true, Layer = 5, Parent = new LayerId(9, 2),
    };

    [Fact]
    public void A_snapshot_head_is_128_bytes()
    {
        var bytes = new byte[SnapshotLayout.Size];
        SnapshotOf.WriteTo(bytes);
        Assert.Equal(Snapshot, Convert.ToHexString(bytes));
        Assert.Null(SnapshotLayout.TryRead(bytes, out SnapshotLayout read));
        Assert.Equal(SnapshotOf, read);
        EveryBitCounts(bytes, (byte[] source, byte[] again) =>
        {
            if (SnapshotLayout.TryRead(source, out SnapshotLayout value) is not null) return false;
            value.WriteTo(again);
            return true;
        });
        var plain = new byte[SnapshotLayout.Size];
        (SnapshotOf with { Id = new LayerId(7, 0), Parent = null, IsDeleting = false }).WriteTo(plain);
        Assert.Equal("07000000" + new string('0', 40), Convert.ToHexString(plain.AsSpan(0, 24)));
    }

    [Fact]
    public void A_snapshot_lies_above_its_parent()
    {
        var bytes = new byte[SnapshotLayout.Size];
        foreach (uint below in (uint[])[3, 4])
        {
            (SnapshotOf with { Parent = new LayerId(7, below) }).WriteTo(bytes);
            Assert.Contains("younger", SnapshotLayout.TryRead(bytes, out _), StringComparison.Ordinal);
        }

        (SnapshotOf with { Cut = MetadataPage.VersionMax + 1 }).WriteTo(bytes);
        Assert.Contains("version", SnapshotLayout.TryRead(bytes, out _), StringComparison.Ordinal);
    }

    [Fact]
    public void A_volume_head_with_layers_is_120_bytes_and_one_without_104()
    {
        var bytes = new byte[VolumeHeadLayout.Size];
        HeadOf.WriteTo(bytes);
        Assert.Equal(Head, Convert.ToHexString(bytes));
        Assert.Null(VolumeHeadLayout.TryRead(bytes, out VolumeHeadLayout read));
        Assert.Equal((HeadOf, 120), (read, read.UsedSize));
        EveryBitCounts(bytes, (byte[] source, byte[] again) =>
        {
            if (VolumeHeadLayout.TryRead(source, out VolumeHeadLayout value) is not null) return false;
            value.WriteTo(again);
            return true;
        });
        VolumeHeadLayout plain = HeadOf with { IsFlattening = false, Layer = 0, Parent = null };
        Assert.Equal(104, plain.UsedSize);
        plain.WriteTo(bytes);
        Assert.Equal(Head[..8] + "00000000" + Head[16..208] + new string('0', 32), Convert.ToHexString(bytes));
    }

    [Fact]
    public void Records_of_layers_lie_on_disk_as_they_always_did()
    {
        var bytes = new byte[Units.BlockBytes];
        int length = RedoRecordWriter.Snapshot(bytes, 0x11, SnapshotOf);
        Assert.Equal("0A009800" + "11000000" + "07000000" + "03000000" + "0000000000000000" + Snapshot, Hex(bytes, length, 0x98));
        length = RedoRecordWriter.Volume(bytes, 0x12, HeadOf);
        Assert.Equal("04009000" + "12000000" + "07000000" + "00000000" + "0000000000000000" + Head, Hex(bytes, length, 0x90));
        length = RedoRecordWriter.Volume(bytes, 0x12, HeadOf with { IsFlattening = false, Layer = 0, Parent = null });
        Assert.Equal("04008000", Hex(bytes, length, 0x80)[..8]);
        length = RedoRecordWriter.BeginPage(bytes, 0x13, 7, 9, 5);
        Assert.Equal("0B001C00" + "13000000" + "07000000" + "09000000" + "0000000000000000" + "05000000", Hex(bytes, length, 0x1C));
        length = RedoRecordWriter.Rekey(bytes, 0x13, 7, 9, 0x99, 5);
        Assert.Equal("0C001C00" + "13000000" + "07000000" + "09000000" + "9900000000000000" + "05000000", Hex(bytes, length, 0x1C));
        var entries = new byte[MetadataPage.EntriesBytes];
        MetadataPage.SetEntry(entries, 255, new BlockEntry(1, 2, 3));
        length = RedoRecordWriter.PageImage(bytes, 0x14, 7, 9, entries, 5);
        Assert.Equal(
            "0300200F" + "14000000" + "07000000" + "09000000" + "0000000000000000" + "05000000" + "00000000"
            + Convert.ToHexString(entries), Hex(bytes, length, 0xF20));
        Assert.EndsWith("010000000200000003000000000000", Hex(bytes, length, 0xF20), StringComparison.Ordinal);
    }

    [Fact]
    public void Records_of_layers_say_what_they_need_and_nothing_else()
    {
        var bytes = new byte[Units.BlockBytes];
        int length = RedoRecordWriter.Rekey(bytes, 4, 7, 9, before: 0, 5);
        Assert.Contains("nothing began", RedoRecord.TryRead(bytes, 0, length, out _), StringComparison.Ordinal);
        length = RedoRecordWriter.BeginPage(bytes, 4, 7, 9, 5);
        bytes[16] = 1;
        Assert.Contains("needs no record before", RedoRecord.TryRead(bytes, 0, length, out _), StringComparison.Ordinal);
        length = RedoRecordWriter.Snapshot(bytes, 4, SnapshotOf);
        foreach (byte flags in (byte[])[1, 2, 4])
        {
            bytes[1] = flags;
            Assert.Contains("flags", RedoRecord.TryRead(bytes, 0, length, out _), StringComparison.Ordinal);
        }

        length = RedoRecordWriter.PageImage(bytes, 4, 7, 9, new byte[MetadataPage.EntriesBytes], 5);
        bytes[28] = 1;
        Assert.Contains("reserved", RedoRecord.TryRead(bytes, 0, length, out _), StringComparison.Ordinal);
        // Nothing in between: a head of 112 bytes is none.
        RedoRecordWriter.Volume(bytes, 4, HeadOf);
        bytes[2] = RedoRecord.HeadBytes + 112;
        Assert.NotNull(RedoRecord.TryRead(bytes, 0, RedoRecord.HeadBytes + 112, out _));
    }

    [Fact]
    public void A_page_names_its_layer()
    {
        var page = new byte[Units.BlockBytes];
        new MetadataPageHeader { Kind = MetadataKind.Extent, VolumeId = 7, LayerId = 0x01020304, Extent = 3, Slot = 2, PageLsn = 99 }.WriteTo(page);
        Assert.Equal("0200000007000000" + "04030201" + "0300000002000000", Convert.ToHexString(page.AsSpan(4, 20)));
        new MetadataPageHeader { Kind = MetadataKind.Snapshot, VolumeId = 7, Extent = 3, Slot = 2, PageLsn = 99 }.WriteTo(page);
        Assert.Equal("0500000007000000" + "00000000" + "0300000002000000", Convert.ToHexString(page.AsSpan(4, 20)));
        Assert.Null(MetadataPageHeader.TryRead(page, out MetadataPageHeader read));
        Assert.Equal((MetadataKind.Snapshot, 3u), (read.Kind, read.Extent));
        page[4] = 7;
        Assert.NotNull(MetadataPageHeader.TryRead(page, out _));
    }

    private static string Hex(byte[] bytes, int length, int expected)
    {
        Assert.Equal(expected, length);
        Assert.Null(RedoRecord.TryRead(bytes, 0, length, out RedoRecord record));
        if (record.Kind is RedoKind.BeginPage or RedoKind.Rekey or RedoKind.PageImage) Assert.Equal(5u, record.Layer);
        if (record.Kind == RedoKind.Snapshot)
        {
            Assert.Null(record.TryReadSnapshot(out SnapshotLayout snapshot));
            Assert.Equal(SnapshotOf, snapshot);
        }

        return Convert.ToHexString(bytes.AsSpan(0, length));
    }

    /// <summary>No bit is ignored: flipped, it is refused, or what was read is written again with it.</summary>
    private static void EveryBitCounts(byte[] golden, Func<byte[], byte[], bool> copy)
    {
        var again = new byte[golden.Length];
        for (int bit = 0; bit < golden.Length * 8; bit++)
        {
            golden[bit / 8] ^= (byte)(1 << (bit % 8));
            if (copy(golden, again)) Assert.Equal(golden, again);
            golden[bit / 8] ^= (byte)(1 << (bit % 8));
        }
    }
}
