using System.Buffers;
using BlockServer.Core;
using BlockServer.Io;
using BlockServer.Storage;
using BlockServer.Streams;
using BlockServer.Tests.Unit.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Streams;

/// <summary>From a store into another one: everything, then what has changed.</summary>
public class StreamStoreTests
{
    private const ulong VolumeBytes = 6 * Units.MiB + 512 * 3;
    private const int Blocks = (int)(VolumeBytes / Units.BlockBytes);

    private static StoreWorld World(ulong seed) =>
        new(seed, 96 * Units.MiB, VolumeBytes, new StoreOptions { RingBytes = Units.MiB, SlotFraction = 0.05 });

    private static Guid Id(int n) => new(n, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1);

    private static void Cut(StoreWorld world, int n) => Assert.Equal(
        IoStatus.Ok, world.Loop.Run(((ILayeredStore)world.Store).CreateSnapshotsAsync([new SnapshotRequest(7, Id(n), $"s{n}", 1)])));

    private static byte[] Content(StoreWorld world) => world.Read(0, (int)VolumeBytes);

    /// <summary>The stream of a snapshot; with <paramref name="stops"/> the reader and the encoder are made anew at each.</summary>
    private static byte[] Export(StoreWorld world, int? basis, int target, int capacity = 1 << 20, bool stops = false)
    {
        var store = (ILayeredStore)world.Store;
        StreamHeader header = StreamBytes.Full(VolumeBytes) with
        {
            Base = basis is { } b ? Id(b) : null, BaseSizeBytes = basis is null ? 0 : VolumeBytes, Target = Id(target),
        };
        var output = new ArrayBufferWriter<byte>();
        header.WriteTo(output.GetSpan(StreamHeader.Size));
        output.Advance(StreamHeader.Size);
        var encoder = new StreamEncoder(header, Lz4.Instance);
        SnapshotReader reader = SnapshotReader.Open(store, 7, header.Base, Id(target), 0)!;
        var batch = new StreamBatch(capacity);
        while (true)
        {
            Assert.Equal(IoStatus.Ok, world.Loop.Run(reader.FillAsync(batch)));
            if (batch.Pieces.Count == 0) break;
            BatchEncoder.Write(encoder, batch, output);
            if (!stops) continue;
            encoder = new StreamEncoder(header, Lz4.Instance, StreamCursor.TryParse(encoder.Cursor.ToString()));
            reader = SnapshotReader.Open(store, 7, header.Base, Id(target), encoder.Cursor.OffsetBytes)!;
        }

        output.Advance(encoder.End(output.GetSpan(256)));
        return output.WrittenSpan.ToArray();
    }

    private static void Import(StoreWorld world, byte[] stream)
    {
        StreamHeader.TryRead(stream, out StreamHeader? header);
        var batch = new StreamBatch(4 << 20);
        Assert.Null(StreamBytes.Read(stream, Lz4.Instance, (frame, bytes) =>
        {
            if (!batch.HasRoom((ulong)bytes.Length) || frame.Kind == StreamKind.End) Apply();
            if (frame.Kind == StreamKind.End) return;
            batch.Add(frame.Kind, frame.OffsetBytes, frame.LengthBytes);
            if (bytes.Length > 0) bytes.CopyTo(batch.DataOf(batch.Pieces[^1]));
        }));

        void Apply()
        {
            Assert.Equal(IoStatus.Ok, world.Loop.Run(BatchWriter.ApplyAsync(world.Device, batch, header!.Base is null)));
            batch.Clear();
        }
    }

    private static void Change(StoreWorld world, SeededRandom random, int changes)
    {
        for (int i = 0; i < changes; i++)
        {
            ulong at = (ulong)random.NextBelow(Blocks - 70) * Units.BlockBytes;
            int length = (1 + random.NextBelow(random.NextChance(0.2) ? 64 : 4)) * Units.BlockBytes;
            IoStatus status = random.NextBelow(6) switch
            {
                0 => world.Loop.Run(world.Device.TrimAsync(at, (ulong)length, WriteFlags.None)),
                1 => world.Loop.Run(world.Device.WriteZeroesAsync(at, (ulong)length, WriteFlags.NoHole)),
                2 => world.Loop.Run(world.Device.WriteAsync(VolumeBytes - 700, StoreWorld.Pattern((ulong)i, 700), WriteFlags.None)),
                _ => world.Loop.Run(world.Device.WriteAsync(at + 100, StoreWorld.Pattern(random.NextUInt64(), length), WriteFlags.None)),
            };
            Assert.Equal(IoStatus.Ok, status);
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public void Everything_and_increments_restore_byte_for_byte(ulong seed)
    {
        StoreWorld from = World(seed), to = World(seed + 100);
        var random = new SeededRandom(seed);
        Change(from, random, 60);
        Cut(from, 1);
        Import(to, Export(from, null, 1, stops: seed % 2 == 0));
        Assert.Equal(Content(from), Content(to));
        Assert.True(to.Store.UsedBytes(7) <= from.Store.UsedBytes(7));
        for (int n = 2; n <= 8; n++)
        {
            Cut(to, n);
            Change(from, random, n % 3 == 0 ? 0 : 20);
            Cut(from, n);
            byte[] expected = Content(from);
            Change(from, random, 5); // of the time after the cut nothing is in the stream
            Import(to, Export(from, n - 1, n, stops: n % 2 == 0));
            Assert.Equal(expected, Content(to));
            Assert.Equal(IoStatus.Ok, from.Loop.Run(((ILayeredStore)from.Store).RollBackAsync(Id(n), new SnapshotRequest(7, Id(100 + n), $"t{n}", 1))));
        }
    }

    [Fact]
    public void An_increment_is_as_long_as_the_change()
    {
        StoreWorld from = World(9);
        from.Write(0, StoreWorld.Pattern(1, 4 << 20));
        Cut(from, 1);
        from.Write(Units.MiB + 8192, StoreWorld.Pattern(2, 8192));
        Cut(from, 2);
        Assert.InRange(Export(from, null, 2).Length, 4 << 20, 5 << 20);
        Assert.InRange(Export(from, 1, 2).Length, 8192, 12_000);
        Cut(from, 3);
        Assert.Equal(StreamHeader.Size + 128, Export(from, 2, 3).Length);
    }

    [Fact]
    public void A_snapshot_that_goes_ends_the_reading()
    {
        StoreWorld from = World(10);
        from.Write(0, StoreWorld.Pattern(1, 4 << 20));
        Cut(from, 1);
        from.Write(0, StoreWorld.Pattern(2, 4 << 20));
        Cut(from, 2);
        var store = (ILayeredStore)from.Store;
        Assert.Null(SnapshotReader.Open(store, 7, null, Id(9), 0));
        SnapshotReader full = SnapshotReader.Open(store, 7, null, Id(1), 0)!, rest = SnapshotReader.Open(store, 7, Id(1), Id(2), 0)!;
        var batch = new StreamBatch(1 << 20);
        Assert.Equal(IoStatus.Ok, from.Loop.Run(full.FillAsync(batch)));
        Assert.Equal(IoStatus.Ok, from.Loop.Run(store.DeleteSnapshotAsync(7, Id(1))));
        Assert.NotEqual(IoStatus.Ok, from.Loop.Run(full.FillAsync(batch)));
        Assert.Equal(IoStatus.NotFound, from.Loop.Run(rest.FillAsync(batch)));
    }
}
