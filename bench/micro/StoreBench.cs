using BenchmarkDotNet.Attributes;
using BlockServer.Core;
using BlockServer.Storage;

namespace BlockServer.Bench.Micro;

/// <summary>What the store does in RAM for a 4 KiB request: find the entry of a block, encode the record of a write.</summary>
[MemoryDiagnoser]
public class StoreBench
{
    private const int Pages = 4096; // 4 GiB of volume; 15 MiB of entries, more than a core's own caches hold

    private readonly byte[] _entries = new byte[Pages * MetadataPage.EntriesBytes];
    private readonly int[] _order = new int[4096];
    private readonly byte[] _page = new byte[Units.BlockBytes];
    private readonly BlockRun[] _run = [new BlockRun(17, 1, 4711)];
    private readonly BlockRun[] _runs = [new BlockRun(0, 16, 5000), new BlockRun(16, 16, 9000)];
    private readonly uint[] _crc = [0x12345678];
    private readonly uint[] _crcs = new uint[32];
    private int _next;

    [GlobalSetup]
    public void Setup()
    {
        var random = new SeededRandom(1);
        random.Fill(_entries);
        for (int i = 0; i < _order.Length; i++) _order[i] = (int)(random.NextUInt64() % (Pages * (ulong)Units.BlocksPerExtent));
    }

    /// <summary>The entry of a random block.</summary>
    [Benchmark]
    public BlockEntry PageLookup()
    {
        int block = _order[_next++ & (_order.Length - 1)];
        ReadOnlySpan<byte> page = _entries.AsSpan(block / Units.BlocksPerExtent * MetadataPage.EntriesBytes, MetadataPage.EntriesBytes);
        return MetadataPage.Entry(page, block % Units.BlocksPerExtent);
    }

    /// <summary>The record of a 4 KiB write.</summary>
    [Benchmark]
    public int EncodeWrite4K() => RedoRecordWriter.Write(_page, 7, 1, 3, 98, false, 99, _run, _crc);

    /// <summary>The record of a 128 KiB write in two runs.</summary>
    [Benchmark]
    public int EncodeWrite128K() => RedoRecordWriter.Write(_page, 7, 1, 3, 98, false, 99, _runs, _crcs);
}
