using System.Buffers.Binary;
using System.Security.Cryptography;
using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>
/// How far a stream has been written or read: all that is needed to go on behind a frame, on either side. Mutable; owned by
/// its encoder or decoder.
/// </summary>
public sealed class StreamCursor
{
    private const int ChainBytes = SHA256.HashSizeInBytes;
    private const int Bytes = 16 + 6 * 8 + ChainBytes + 4;

    private readonly byte[] _chain = new byte[ChainBytes];

    private StreamCursor()
    {
    }

    /// <summary>The stream.</summary>
    public Guid StreamId { get; private init; }

    /// <summary>Number of the next frame.</summary>
    public ulong Sequence { get; private set; }

    /// <summary>First byte of the content that no frame has covered yet.</summary>
    public ulong OffsetBytes { get; private set; }

    /// <summary>Where in the stream the next frame begins, bytes.</summary>
    public ulong PositionBytes { get; private set; }

    /// <summary>Bytes of content in data frames so far.</summary>
    public ulong DataBytes { get; private set; }

    /// <summary>Bytes covered by frames of zeros so far.</summary>
    public ulong ZeroBytes { get; private set; }

    /// <summary>Bytes covered by holes so far.</summary>
    public ulong HoleBytes { get; private set; }

    internal ReadOnlySpan<byte> Chain => _chain;

    /// <summary>In front of the first frame.</summary>
    public static StreamCursor AtStart(StreamHeader header)
    {
        Span<byte> bytes = stackalloc byte[StreamHeader.Size];
        header.WriteTo(bytes);
        var cursor = new StreamCursor { StreamId = header.StreamId, PositionBytes = StreamHeader.Size };
        SHA256.HashData(bytes, cursor._chain);
        return cursor;
    }

    /// <summary>The cursor as text, to be kept by whoever goes on later.</summary>
    public override string ToString()
    {
        Span<byte> bytes = stackalloc byte[Bytes];
        Check.That(StreamId.TryWriteBytes(bytes, bigEndian: true, out _));
        ReadOnlySpan<ulong> numbers = [Sequence, OffsetBytes, PositionBytes, DataBytes, ZeroBytes, HoleBytes];
        for (int i = 0; i < numbers.Length; i++) BinaryPrimitives.WriteUInt64LittleEndian(bytes[(16 + 8 * i)..], numbers[i]);
        _chain.CopyTo(bytes[64..]);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes[^4..], Crc32C.Compute(bytes[..^4]));
        return Convert.ToHexStringLower(bytes);
    }

    /// <summary>A cursor from its text, or null when it is none. It is not proven to be of any stream: the next frame is.</summary>
    public static StreamCursor? TryParse(string? text)
    {
        Span<byte> bytes = stackalloc byte[Bytes];
        if (text is not { Length: 2 * Bytes } || Convert.FromHexString(text, bytes, out _, out _) != System.Buffers.OperationStatus.Done) return null;
        if (BinaryPrimitives.ReadUInt32LittleEndian(bytes[^4..]) != Crc32C.Compute(bytes[..^4])) return null;
        var cursor = new StreamCursor
        {
            StreamId = new Guid(bytes[..16], bigEndian: true),
            Sequence = BinaryPrimitives.ReadUInt64LittleEndian(bytes[16..]),
            OffsetBytes = BinaryPrimitives.ReadUInt64LittleEndian(bytes[24..]),
            PositionBytes = BinaryPrimitives.ReadUInt64LittleEndian(bytes[32..]),
            DataBytes = BinaryPrimitives.ReadUInt64LittleEndian(bytes[40..]),
            ZeroBytes = BinaryPrimitives.ReadUInt64LittleEndian(bytes[48..]),
            HoleBytes = BinaryPrimitives.ReadUInt64LittleEndian(bytes[56..]),
        };
        bytes.Slice(64, ChainBytes).CopyTo(cursor._chain);
        bool isSane = cursor.OffsetBytes <= Units.VolumeBytesMax && cursor.PositionBytes is >= StreamHeader.Size and <= long.MaxValue
            && cursor.Sequence < long.MaxValue && cursor.DataBytes <= cursor.OffsetBytes && cursor.ZeroBytes <= cursor.OffsetBytes
            && cursor.HoleBytes <= cursor.OffsetBytes;
        return isSane ? cursor : null;
    }

    /// <summary>The same place, not moved by its owner.</summary>
    public StreamCursor Copy() => TryParse(ToString())!;

    /// <summary>The chain's value behind a frame whose header begins with <paramref name="header"/>.</summary>
    internal void NextChain(ReadOnlySpan<byte> header, Span<byte> next)
    {
        Span<byte> bytes = stackalloc byte[ChainBytes + StreamFrame.ChainedBytes];
        _chain.CopyTo(bytes);
        header[..StreamFrame.ChainedBytes].CopyTo(bytes[ChainBytes..]);
        SHA256.HashData(bytes, next);
    }

    /// <summary>Goes behind a frame.</summary>
    internal void Pass(in StreamFrame frame, ReadOnlySpan<byte> chain)
    {
        chain.CopyTo(_chain);
        Sequence++;
        OffsetBytes = frame.EndBytes;
        PositionBytes += (ulong)(StreamFrame.Size + frame.PayloadBytes);
        if (frame.Kind == StreamKind.Data) DataBytes += frame.LengthBytes;
        else if (frame.Kind == StreamKind.Zero) ZeroBytes += frame.LengthBytes;
        else if (frame.Kind == StreamKind.Hole) HoleBytes += frame.LengthBytes;
    }
}
