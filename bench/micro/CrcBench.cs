using BenchmarkDotNet.Attributes;
using BlockServer.Core;

namespace BlockServer.Bench.Micro;

/// <summary>The checksum of every block that is read or written.</summary>
[MemoryDiagnoser]
public class CrcBench
{
    private readonly uint[] _crcs = new uint[16];
    private byte[] _data = [];

    [Params(4 << 10, 64 << 10)]
    public int Bytes { get; set; }

    [GlobalSetup]
    public void Setup()
    {
        _data = new byte[Bytes];
        new SeededRandom(1).Fill(_data);
    }

    /// <summary>One sum over everything.</summary>
    [Benchmark]
    public uint Compute() => Crc32C.Compute(_data);

    /// <summary>One sum per 4 KiB block, as the store needs them.</summary>
    [Benchmark]
    public uint ComputeBlocks()
    {
        Crc32C.ComputeBlocks(_data, _crcs.AsSpan(0, Bytes / Units.BlockBytes));
        return _crcs[0];
    }
}
