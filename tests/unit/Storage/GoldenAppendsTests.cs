using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

/// <summary>The bytes of append-only volumes, as docs/format.md has them.</summary>
public class GoldenAppendsTests
{
    private static readonly Guid Client = new("0f0e0d0c-0b0a-0908-0706-050403020100");
    private const string ClientHex = "0F0E0D0C0B0A09080706050403020100";

    [Fact]
    public void A_begin_of_appends_is_32_bytes()
    {
        var bytes = new byte[64];
        Assert.Equal(32, RedoRecordWriter.BeginAppends(bytes, 4, 7, 3, 0x1234));
        Assert.Equal(
            "0D00200004000000" + "0700000003000000" + "0000000000000000" + "3412000000000000", Convert.ToHexString(bytes.AsSpan(0, 32)));
        Assert.Null(RedoRecord.TryRead(bytes, 0, 32, out RedoRecord record));
        Assert.Equal((RedoKind.BeginAppends, 0x1234UL, 3u), (record.Kind, record.AppendedBytes, record.Extent));
        bytes[12] = 8;
        Assert.NotNull(RedoRecord.TryRead(bytes, 0, 32, out _));
    }

    [Fact]
    public void An_append_is_72_bytes()
    {
        var entry = new AppendEntry(5, Client, 0x11, 0x2233, 0x44, 0x55);
        var bytes = new byte[96];
        Assert.Equal(72, RedoRecordWriter.Append(bytes, 4, 7, 3, 0x66, entry, isContinued: true));
        Assert.Equal(
            "0E02480004000000" + "0700000003000000" + "6600000000000000" + "5500000000000000" // version
            + "3322000000000000" + "44000000" + "05000000" + "1100000000000000" + ClientHex, Convert.ToHexString(bytes.AsSpan(0, 72)));
        Assert.Null(RedoRecord.TryRead(bytes, 0, 72, out RedoRecord record));
        Assert.Equal((entry, true), (record.AppendEntry, record.IsContinued));
        foreach (AppendEntry wrong in new[]
                 {
                     entry with { LengthBytes = 0 }, entry with { LengthBytes = Units.RequestBytesMax + 1 }, entry with { OffsetBytes = Units.VolumeBytesMax },
                     entry with { Place = AppendPage.PlacesMax }, entry with { Place = AppendPage.NoPlace }, entry with { Sequence = 0 },
                     entry with { Client = Guid.Empty }, entry with { Version = MetadataPage.VersionMax + 1 },
                 })
        {
            RedoRecordWriter.Append(bytes, 4, 7, 3, 0x66, wrong);
            Assert.NotNull(RedoRecord.TryRead(bytes, 0, 72, out _));
        }

        RedoRecordWriter.Append(bytes, 4, 7, 3, 0, entry);
        Assert.NotNull(RedoRecord.TryRead(bytes, 0, 72, out _));
        RedoRecordWriter.Append(bytes, 4, 7, 3, 1, entry);
        bytes[1] = RedoRecord.NewPageFlag;
        Assert.NotNull(RedoRecord.TryRead(bytes, 0, 72, out _));
    }

    [Fact]
    public void A_page_of_appends_is_3536_bytes()
    {
        var page = new AppendPage();
        page.Take(new AppendEntry(1, Client, 7, 0x100, 0x20, 9));
        page.Take(new AppendEntry(AppendPage.NoPlace, default, 0, 0x120, 1, 10));
        var bytes = new byte[AppendPage.Size];
        page.WriteTo(bytes);
        Assert.Equal(3536, bytes.Length);
        Assert.Equal(
            "2101000000000000" + "01000000" + "00000000" + new string('0', 2 * 352)
            + ClientHex + "0000000000000000" + "0900000000000000" + "0700000000000000" + "0001000000000000" + "20000000",
            Convert.ToHexString(bytes.AsSpan(0, 16 + 352 + 32 + 20)));
        Assert.False(bytes.AsSpan(16 + 352 + 32 + 20).ContainsAnyExcept((byte)0));
        Assert.Null(AppendPage.TryRead(bytes, out AppendPage? read));
        Assert.Equal((0x121UL, 7UL), (read!.LengthBytes, read[1]!.Memories[0].Sequence));
        for (int bit = 0; bit < bytes.Length * 8; bit++)
        {
            bytes[bit / 8] ^= (byte)(1 << bit % 8);
            if (AppendPage.TryRead(bytes, out read) is null)
            {
                var again = new byte[AppendPage.Size];
                read!.WriteTo(again);
                Assert.Equal(bytes, again);
            }

            bytes[bit / 8] ^= (byte)(1 << bit % 8);
        }
    }

    [Fact]
    public void Heads_say_that_a_volume_is_append_only_and_sealed()
    {
        var head = new VolumeHeadLayout { Head = new VolumeHead(7, Client, "v7", 4 * Units.MiB, 3) { IsAppendOnly = true, IsSealed = true } };
        var bytes = new byte[VolumeHeadLayout.Size];
        head.WriteTo(bytes);
        Assert.Equal(48, bytes[4]);
        Assert.Null(VolumeHeadLayout.TryRead(bytes, out VolumeHeadLayout read));
        Assert.Equal(head, read);
        bytes[4] = 32;
        Assert.Contains("not append-only", VolumeHeadLayout.TryRead(bytes, out _), StringComparison.Ordinal);
        bytes[4] = 64;
        Assert.NotNull(VolumeHeadLayout.TryRead(bytes, out _));
    }

    [Fact]
    public void A_snapshot_says_how_much_of_its_last_block_is_behind_the_length()
    {
        var head = new SnapshotLayout
        {
            Id = new LayerId(7, 0), Uuid = Client, Cut = 5, SizeBytes = 8192, IsAppendOnly = true, SlackBytes = 4000, Name = "s", UnixSeconds = 1,
        };
        var bytes = new byte[SnapshotLayout.Size];
        head.WriteTo(bytes);
        Assert.Equal("08000000" + "0000000000000000" + "A00F0000", Convert.ToHexString(bytes.AsSpan(8, 16)));
        Assert.Null(SnapshotLayout.TryRead(bytes, out SnapshotLayout read));
        Assert.Equal(head, read);
        foreach (SnapshotLayout wrong in new[] { head with { SlackBytes = 4097 }, head with { SizeBytes = 0 }, head with { SizeBytes = 8191 }, head with { IsAppendOnly = false } })
        {
            wrong.WriteTo(bytes);
            Assert.NotNull(SnapshotLayout.TryRead(bytes, out _));
        }
    }
}
