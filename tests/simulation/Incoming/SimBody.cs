using BlockServer.Core;
using BlockServer.Tests.Simulated;

namespace BlockServer.Tests.Simulation.Incoming;

/// <summary>A stream as it comes over a connection: in drawn pieces, after drawn times; at its end it is over or, when it
/// <paramref name="breaks"/>, the connection is.</summary>
internal sealed class SimBody(SimLoop loop, SeededRandom random, ReadOnlyMemory<byte> bytes, bool breaks) : Stream
{
    private int _at;

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => false;

    public override long Length => throw new NotSupportedException();

    public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }

    public override async ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (random.NextChance(0.3)) await loop.DelayAsync(random.NextBelow(500_000UL));
        int count = Math.Min(Math.Min(buffer.Length, bytes.Length - _at), 1 + random.NextBelow(256 << 10));
        if (count == 0 && breaks) throw new IOException("the connection broke");
        bytes.Slice(_at, count).CopyTo(buffer);
        _at += count;
        return count;
    }

    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override void Flush() => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();

    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
}
