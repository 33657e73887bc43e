using BenchmarkDotNet.Attributes;
using BlockServer.Core;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Bench.Micro;

/// <summary>Decoding and judging the header of an NBD request.</summary>
[MemoryDiagnoser]
public class NbdBench
{
    private readonly byte[] _header = new byte[NbdRequest.ExtendedSize];

    [Params(NbdReplyMode.Simple, NbdReplyMode.Extended)]
    public NbdReplyMode Mode { get; set; }

    [GlobalSetup]
    public void Setup() => new NbdRequest(NbdCommand.Read, NbdCommandFlags.None, 42, 1 << 20, Units.BlockBytes).WriteTo(_header, Mode);

    /// <summary>Decode, then check the request against the export. A fault would be a broken bench.</summary>
    [Benchmark]
    public ulong Decode()
    {
        if (NbdRequest.TryRead(_header, Mode, out NbdRequest request) is not null
            || request.Fault(Mode, 1UL << 30, false, false, 32 << 20, out _) != NbdError.None)
            throw new InvalidOperationException("the bench's own request is refused");
        return request.OffsetBytes;
    }
}
