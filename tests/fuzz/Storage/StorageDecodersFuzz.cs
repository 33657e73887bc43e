using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Fuzz.Storage;

/// <summary>
/// Damaged pages of a store through every decoder: an answer, never an exception, in bounded time. Half of the inputs are
/// sealed again after the damage, so that the checks behind the checksum are reached too. What is accepted must
/// be written again as the same bytes. Inputs per decoder: BLOCKSERVER_FUZZ_INPUTS (default 500,000).
/// </summary>
public sealed class StorageDecodersFuzz
{
    private const ulong Address = 40 * Units.BlockBytes;
    private static readonly Guid Store = new("0f0e0d0c-0b0a-0908-0706-050403020100");
    private static readonly uint Fold = Seal.Fold(Store);

    private static readonly int Inputs =
        int.TryParse(Environment.GetEnvironmentVariable("BLOCKSERVER_FUZZ_INPUTS"), CultureInfo.InvariantCulture, out int inputs)
            ? inputs : 500_000;

    private delegate bool Decode(byte[] page);

    [Fact]
    public void Superblocks()
    {
        Assert.Null(StoreGeometry.Plan(64 * Units.MiB, 4 * Units.MiB, 0.02, out StoreGeometry geometry));
        var golden = new byte[Units.BlockBytes];
        new Superblock { Copy = 1, StoreUuid = Store, Geometry = geometry, Incarnation = 3, StartLsn = 4095, Sequence = 9 }.WriteTo(golden);
        Assert.Null(Superblock.TryRead(golden, out _));
        var again = new byte[Units.BlockBytes];
        Run(golden, page => BinaryPrimitives.WriteUInt32LittleEndian(page, Crc32C.Compute(page.AsSpan(8))), page =>
        {
            if (Superblock.TryRead(page, out Superblock read) is not null) return false;
            read.Geometry.Fault(64 * Units.MiB);
            read.WriteTo(again);
            Assert.Equal(page, again);
            return true;
        });
    }

    [Fact]
    public void LogPagesAndTheirRecords()
    {
        byte[] golden = LogPage();
        Assert.Null(RedoPageHeader.TryReadPage(golden, Address, Fold, out _));
        Assert.Equal(12, Walk(golden, golden.Length));
        Run(golden, page => Seal.Put(page, Address, Fold), page =>
        {
            bool isGood = RedoPageHeader.TryReadPage(page, Address, Fold, out RedoPageHeader header) is null;
            Walk(page, isGood ? header.UsedBytes : Units.BlockBytes);
            return isGood;
        });
    }

    [Fact]
    public void MetadataPages()
    {
        var golden = new byte[Units.BlockBytes];
        new MetadataPageHeader { Kind = (MetadataKind)1, VolumeId = 7, Extent = 5, Slot = 11, PageLsn = 99, MaxVersion = 6 }.WriteTo(golden);
        for (int i = 0; i < Units.BlocksPerExtent; i++)
            MetadataPage.SetEntry(golden.AsSpan(MetadataPage.EntriesOffset), i, new BlockEntry((uint)i, (uint)i * 3, (ulong)i));
        Seal.Put(golden, Address, Fold);
        Assert.Null(MetadataPage.TryReadPage(golden, Address, Fold, 11, out _));
        Run(golden, page => Seal.Put(page, Address, Fold), page =>
        {
            if (MetadataPage.TryReadPage(page, Address, Fold, 11, out _) is not null) return false;
            for (int i = 0; i < Units.BlocksPerExtent; i++)
                Assert.True(MetadataPage.Entry(page.AsSpan(MetadataPage.EntriesOffset), i).Version <= MetadataPage.VersionMax);
            return true;
        });
    }

    [Fact]
    public void VolumeHeads()
    {
        var golden = new byte[VolumeHeadLayout.Size];
        new VolumeHeadLayout { Head = new VolumeHead(3, Store, "disk-3", 8 * Units.MiB, 2) }.WriteTo(golden);
        Assert.Null(VolumeHeadLayout.TryRead(golden, out _));
        var again = new byte[golden.Length];
        Run(golden, _ => { }, page =>
        {
            if (VolumeHeadLayout.TryRead(page, out VolumeHeadLayout read) is not null) return false;
            read.WriteTo(again);
            Assert.Equal(page, again);
            return true;
        });
    }

    [Fact]
    public void VolumeHeadsWithLayers()
    {
        var golden = new byte[VolumeHeadLayout.Size];
        new VolumeHeadLayout
        {
            Head = new VolumeHead(3, Store, "disk-3", 8 * Units.MiB, 2), Layer = 6, Parent = new LayerId(2, 1), IsFlattening = true,
        }.WriteTo(golden);
        Assert.Null(VolumeHeadLayout.TryRead(golden, out _));
        var again = new byte[golden.Length];
        Run(golden, _ => { }, page =>
        {
            if (VolumeHeadLayout.TryRead(page, out VolumeHeadLayout read) is not null) return false;
            read.WriteTo(again);
            Assert.Equal(page, again);
            return true;
        });
    }

    [Fact]
    public void PagesOfAppends()
    {
        var page = new AppendPage();
        for (ulong i = 1; i <= 20; i++) page.Take(new AppendEntry((uint)(i % 3), Store, i, i * 10, 10, i));
        for (ulong i = 1; i <= 20; i++) page.Take(new AppendEntry(9, Store, i, 500 + i, 1, i));
        var golden = new byte[AppendPage.Size];
        page.WriteTo(golden);
        Assert.Null(AppendPage.TryRead(golden, out _));
        var again = new byte[golden.Length];
        Run(golden, _ => { }, bytes =>
        {
            if (AppendPage.TryRead(bytes, out AppendPage? read) is not null) return false;
            read!.WriteTo(again);
            Assert.Equal(bytes, again);
            return true;
        });
    }

    [Fact]
    public void SnapshotHeads()
    {
        var golden = new byte[SnapshotLayout.Size];
        Snapshot.WriteTo(golden);
        Assert.Null(SnapshotLayout.TryRead(golden, out _));
        var again = new byte[golden.Length];
        Run(golden, _ => { }, page =>
        {
            if (SnapshotLayout.TryRead(page, out SnapshotLayout read) is not null) return false;
            Assert.False(read.Parent is { } below && below.Volume == read.Id.Volume && below.Layer >= read.Id.Layer);
            read.WriteTo(again);
            Assert.Equal(page, again);
            return true;
        });
    }

    /// <summary>Records of layers, a page image among them; each that is accepted is written again as the same bytes.</summary>
    [Fact]
    public void LogPagesOfLayers()
    {
        byte[] golden = LayersPage(RedoRecordWriter.Snapshot), other = LayersPage(Image);
        Assert.Equal(4, Walk(golden, golden.Length));
        Assert.Equal(1, Walk(other, other.Length));
        foreach (byte[] one in new[] { golden, other })
        {
            Run(one, page => Seal.Put(page, Address, Fold), page =>
            {
                bool isGood = RedoPageHeader.TryReadPage(page, Address, Fold, out RedoPageHeader header) is null;
                Walk(page, isGood ? header.UsedBytes : Units.BlockBytes);
                return isGood;
            });
        }

        static int Image(Span<byte> target, uint slot, SnapshotLayout _)
        {
            var entries = new byte[MetadataPage.EntriesBytes];
            for (int i = 0; i < Units.BlocksPerExtent; i++) MetadataPage.SetEntry(entries, i, new BlockEntry((uint)i, 7, (ulong)i));
            return RedoRecordWriter.PageImage(target, slot, 7, 2, entries, 3);
        }
    }

    [Fact]
    public void Cut_inputs_are_refused()
    {
        byte[] log = LogPage();
        for (int length = 0; length < 200; length++)
        {
            Assert.NotNull(Superblock.TryRead(log.AsSpan(0, length), out _));
            Assert.NotNull(MetadataPage.TryReadPage(log.AsSpan(0, length), Address, Fold, 0, out _));
            Assert.NotNull(RedoPageHeader.TryReadPage(log.AsSpan(0, length), Address, Fold, out _));
            if (length < SnapshotLayout.Size) Assert.NotNull(SnapshotLayout.TryRead(log.AsSpan(0, length), out _));
            if (length < VolumeHeadLayout.Size) Assert.NotNull(VolumeHeadLayout.TryRead(log.AsSpan(0, length), out _));
        }
    }

    private static byte[] LogPage()
    {
        var page = new byte[Units.BlockBytes];
        int at = RedoPageHeader.Size;
        Span<byte> rest = page;
        at += RedoRecordWriter.Write(rest[at..], 4, 7, 2, 0, true, 77, [new BlockRun(0, 3, 900), new BlockRun(200, 2, 800)], [1, 2, 3, 4, 5]);
        at += RedoRecordWriter.Write(rest[at..], 6, 7, 4, 95, false, 77, [new BlockRun(3, 2, 920)], [7, 8], isRelaid: true);
        at += RedoRecordWriter.Write(rest[at..], 5, 7, 3, 99, false, 77, [new BlockRun(0, 1, 910)], [6], isContinued: true);
        at += RedoRecordWriter.Hole(rest[at..], 4, 7, 2, 98, 78, [new BlockRun(1, 2, 0), new BlockRun(255, 1, 0)]);
        at += RedoRecordWriter.Volume(rest[at..], 9, new VolumeHeadLayout { Head = new VolumeHead(7, Store, "v7", Units.MiB, 1) });
        at += RedoRecordWriter.VolumeDelete(rest[at..], 9, 7, 97);
        at += RedoRecordWriter.DropPage(rest[at..], 4, 7, 2);
        at += RedoRecordWriter.BadBlock(rest[at..], 3, 96, 1234);
        at += RedoRecordWriter.BeginAppends(rest[at..], 8, 7, 1, 4096);
        at += RedoRecordWriter.Append(rest[at..], 8, 7, 1, 94, new AppendEntry(3, Store, 12, 4096, 100, 79));
        at += RedoRecordWriter.Note(rest[at..], 5, 6);
        at += RedoRecordWriter.Epoch(rest[at..], 7, 2, Store);
        new RedoPageHeader
        {
            StoreFold = Fold, Incarnation = 2, PageNumber = 30, Count = 12, UsedBytes = (ushort)at, DurableLsn = 100, TailLsn = 50,
        }.WriteTo(page);
        Seal.Put(page, Address, Fold);
        return page;
    }

    private delegate int WriteRecord(Span<byte> target, uint slot, SnapshotLayout snapshot);

    private static SnapshotLayout Snapshot => new()
    {
        Id = new LayerId(7, 3), Parent = new LayerId(7, 2), Uuid = Store, Cut = 99, SizeBytes = Units.MiB, Name = "s3", UnixSeconds = 5,
    };

    /// <summary>A page that begins with one record; the small ones of layers follow when there is room.</summary>
    private static byte[] LayersPage(WriteRecord first)
    {
        var page = new byte[Units.BlockBytes];
        int at = RedoPageHeader.Size;
        Span<byte> rest = page;
        at += first(rest[at..], 9, Snapshot);
        ushort count = 1;
        if (at < 1000)
        {
            var head = new VolumeHeadLayout { Head = new VolumeHead(7, Store, "v7", Units.MiB, 1), Layer = 4, Parent = new LayerId(7, 3) };
            at += RedoRecordWriter.Volume(rest[at..], 8, head);
            at += RedoRecordWriter.BeginPage(rest[at..], 10, 7, 5, 4);
            at += RedoRecordWriter.Rekey(rest[at..], 11, 7, 6, 95, 4);
            count = 4;
        }

        new RedoPageHeader { StoreFold = Fold, Incarnation = 2, PageNumber = 30, Count = count, UsedBytes = (ushort)at, DurableLsn = 100, TailLsn = 50 }
            .WriteTo(page);
        Seal.Put(page, Address, Fold);
        return page;
    }

    /// <summary>Reads records one after another and touches everything each offers; how many there were.</summary>
    private static int Walk(byte[] page, int usedBytes)
    {
        int count = 0;
        for (int at = RedoPageHeader.Size; RedoRecord.TryRead(page, at, usedBytes, out RedoRecord record) is null; count++)
        {
            Assert.True(record.Length >= RedoRecord.HeadBytes);
            Assert.True(record.Kind is RedoKind.Write or RedoKind.Hole or RedoKind.Append || !record.IsContinued);
            Touch(record);
            at += record.Length;
        }

        return count;
    }

    private static void Touch(RedoRecord record)
    {
        switch (record.Kind)
        {
            case RedoKind.Write or RedoKind.Hole:
                int blocks = 0;
                for (int i = 0; i < record.RunCount; i++)
                {
                    BlockRun run = record.Run(i);
                    Assert.InRange(run.First + run.Count, 1, Units.BlocksPerExtent);
                    blocks += run.Count;
                }

                for (int i = 0; record.Kind == RedoKind.Write && i < blocks; i++) record.CrcOf(i);
                break;
            case RedoKind.Snapshot:
                if (record.TryReadSnapshot(out SnapshotLayout snapshot) is not null) break;
                var snapshotAgain = new byte[SnapshotLayout.Size];
                snapshot.WriteTo(snapshotAgain);
                Assert.Null(SnapshotLayout.TryRead(snapshotAgain, out SnapshotLayout same));
                Assert.Equal(snapshot, same);
                break;
            case RedoKind.BeginPage or RedoKind.Rekey:
                _ = record.Layer;
                break;
            case RedoKind.PageImage:
                _ = record.Layer;
                MetadataPage.Entry(record.Entries, Units.BlocksPerExtent - 1);
                break;
            case RedoKind.Volume:
                record.TryReadHead(out _);
                break;
            case RedoKind.BeginAppends:
                Assert.True(record.AppendedBytes <= Units.VolumeBytesMax);
                break;
            case RedoKind.Append:
                new AppendPage().Take(record.AppendEntry);
                Assert.True(record.AppendEntry.EndBytes <= Units.VolumeBytesMax);
                break;
            case RedoKind.BadBlock:
                _ = record.BadBlock;
                break;
            case RedoKind.Note:
                _ = record.FlushPoint + record.TailLsn;
                break;
            case RedoKind.Epoch:
                _ = record.Leader;
                break;
        }
    }

    private static void Run(byte[] golden, Action<byte[]> seal, Decode decode)
    {
        var random = new SeededRandom(2026);
        var page = new byte[golden.Length];
        int accepted = 0;
        long slowest = 0;
        for (int i = 0; i < Inputs; i++)
        {
            golden.CopyTo(page, 0);
            Mutator.Mutate(random, page);
            if (random.NextChance(0.5)) seal(page);
            long start = Stopwatch.GetTimestamp();
            if (decode(page)) accepted++;
            slowest = Math.Max(slowest, Stopwatch.GetTimestamp() - start);
        }

        Assert.InRange(accepted, 1, Inputs - 1);
        // 10 ms is the aim; the bound leaves room for a machine that is busy with something else.
        Assert.True(Stopwatch.GetElapsedTime(0, slowest).TotalMilliseconds < 1_000);
    }
}
