using System.Buffers;
using BlockServer.Core;
using BlockServer.Streams;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation.Incoming;

/// <summary>The streams that come: a volume on a store elsewhere that is written to and cut several times, each cut in full and
/// as the increment on the one before; and what each cut holds.</summary>
internal sealed class SourceStreams
{
    public const int Versions = 4;

    private const uint Id = 9;

    private readonly SimLoop _loop;
    private readonly SeededRandom _random;
    private readonly ILayeredStore _store;

    public SourceStreams(SeededRandom random)
    {
        _random = random;
        _loop = new SimLoop(random.NextUInt64());
        var driver = new StorageDriver();
        var disk = new SimDisk(_loop, driver.MediumBytes, random.NextUInt64());
        Check.That(_loop.Run(driver.FormatAsync(_loop, disk, 1)) is null);
        _store = (ILayeredStore)_loop.Run(driver.OpenAsync(_loop, disk, null, Durability.Flush)).Store!;
        var head = new VolumeHead(Id, random.NextGuid(), "source", 2 * Units.MiB, 1);
        Must(_store.CreateVolumeAsync(head));
        for (int v = 0; v < Versions; v++)
        {
            if (v > 0 && random.NextChance(0.4))
            {
                head = head with { SizeBytes = (1 + random.NextBelow(5UL)) * (Units.MiB / 2) + Units.MiB / 2 };
                Must(_store.UpdateVolumeAsync(head));
            }

            Change(head.SizeBytes, v == 0 ? 12 : 5);
            Snapshots[v] = random.NextGuid();
            Must(_store.CreateSnapshotsAsync([new SnapshotRequest(Id, Snapshots[v], NameOf(v), 1)]));
            Contents[v] = new byte[head.SizeBytes];
            Check.That(_loop.Run(_store.OpenSnapshot(Id, Snapshots[v])!.ReadAsync(0, Contents[v])).Status == IoStatus.Ok);
        }

        for (int v = 0; v < Versions; v++)
        {
            Full[v] = Export(v, null);
            if (v > 0) Increment[v] = Export(v, v - 1);
        }
    }

    public Guid[] Snapshots { get; } = new Guid[Versions];

    public byte[][] Contents { get; } = new byte[Versions][];

    public byte[][] Full { get; } = new byte[Versions][];

    /// <summary>By what it brings; none of the first.</summary>
    public byte[][] Increment { get; } = new byte[Versions][];

    public static string NameOf(int version) => $"s{version}";

    private void Change(ulong size, int changes)
    {
        IBlockDevice device = _store.OpenVolume(Id)!;
        for (int i = 0; i < changes; i++)
        {
            ulong length = Units.SectorBytes * (1 + _random.NextBelow(_random.NextChance(0.3) ? 800UL : 64UL));
            ulong at = _random.NextBelow((size - length) / Units.SectorBytes + 1) * Units.SectorBytes;
            var data = new byte[length];
            _random.Fill(data);
            if (_random.NextChance(0.2)) Must(device.WriteZeroesAsync(at, length, WriteFlags.None));
            else Must(device.WriteAsync(at, data, WriteFlags.None));
        }
    }

    private byte[] Export(int version, int? basis)
    {
        var header = new StreamHeader
        {
            StreamId = _random.NextGuid(),
            VolumeUuid = _random.NextGuid(),
            VolumeName = "source",
            SizeBytes = (ulong)Contents[version].Length,
            Base = basis is { } b ? Snapshots[b] : null,
            BaseSizeBytes = basis is { } c ? (ulong)Contents[c].Length : 0,
            Target = Snapshots[version],
            TargetName = NameOf(version),
            UnixSeconds = 1,
        };
        var stream = new ArrayBufferWriter<byte>();
        header.WriteTo(stream.GetSpan(StreamHeader.Size));
        stream.Advance(StreamHeader.Size);
        var encoder = new StreamEncoder(header);
        var batch = new StreamBatch(StreamHeader.DataBytesMax);
        SnapshotReader reader = SnapshotReader.Open(_store, Id, header.Base, header.Target.Value, 0)!;
        while (true)
        {
            Must(reader.FillAsync(batch));
            if (batch.Pieces.Count == 0) break;
            BatchEncoder.Write(encoder, batch, stream);
        }

        stream.Advance(encoder.End(stream.GetSpan(StreamFrame.Size + StreamEncoder.TotalsBytes)));
        return stream.WrittenSpan.ToArray();
    }

    private void Must(ValueTask<IoStatus> asked) => Check.That(_loop.Run(asked) == IoStatus.Ok);
}
