using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>What a frame says about its stretch of the content.</summary>
public enum StreamKind : byte
{
    /// <summary>Bytes, which follow.</summary>
    Data = 1,

    /// <summary>Written zeros.</summary>
    Zero = 2,

    /// <summary>Nothing was ever written, or it was trimmed: reads as zeros.</summary>
    Hole = 3,

    /// <summary>The stream is whole; totals follow.</summary>
    End = 4,
}

/// <summary>How the bytes of a data frame are written.</summary>
public enum StreamEncoding : byte
{
    /// <summary>As they are.</summary>
    Raw = 0,

    /// <summary>As one LZ4 block.</summary>
    Lz4 = 1,
}

/// <summary>The 64 bytes in front of each frame's payload. docs/stream.md has every byte.</summary>
public readonly record struct StreamFrame
{
    /// <summary>Bytes of the frame's header.</summary>
    public const int Size = 64;

    /// <summary>What of the header the chain covers.</summary>
    internal const int ChainedBytes = 40;

    /// <summary>How much of the chain's value a header carries.</summary>
    internal const int MarkBytes = 16;

    private const uint Magic = 0x4D524642; // "BFRM"
    private const int CrcAt = 60;

    /// <summary>What it says.</summary>
    public required StreamKind Kind { get; init; }

    /// <summary>How its payload is written.</summary>
    public StreamEncoding Encoding { get; init; }

    /// <summary>Number of the frame, from 0.</summary>
    public required ulong Sequence { get; init; }

    /// <summary>Where in the content it begins, bytes.</summary>
    public required ulong OffsetBytes { get; init; }

    /// <summary>How much of the content it covers, bytes.</summary>
    public required ulong LengthBytes { get; init; }

    /// <summary>Bytes that follow the header.</summary>
    public int PayloadBytes { get; init; }

    /// <summary>CRC-32C of the payload; 0 without one.</summary>
    public uint PayloadCrc { get; init; }

    /// <summary>First byte behind it.</summary>
    public ulong EndBytes => OffsetBytes + LengthBytes;

    /// <summary>Writes all but the chain's mark and the checksum.</summary>
    internal void WriteTo(Span<byte> target)
    {
        target[..Size].Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(target, Magic);
        target[4] = (byte)Kind;
        target[5] = (byte)Encoding;
        BinaryPrimitives.WriteUInt64LittleEndian(target[8..], Sequence);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], OffsetBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], LengthBytes);
        BinaryPrimitives.WriteInt32LittleEndian(target[32..], PayloadBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[36..], PayloadCrc);
    }

    /// <summary>Enters the chain's value and the checksum.</summary>
    internal static void Seal(Span<byte> target, ReadOnlySpan<byte> chain)
    {
        chain[..MarkBytes].CopyTo(target[ChainedBytes..]);
        BinaryPrimitives.WriteUInt32LittleEndian(target[CrcAt..], Crc32C.Compute(target[..CrcAt]));
    }

    /// <summary>Reads a header by itself; what is wrong with it, or null. Its payload is at most
    /// <see cref="StreamHeader.DataBytesMax"/>, whatever the bytes say.</summary>
    internal static string? TryRead(ReadOnlySpan<byte> source, out StreamFrame frame)
    {
        frame = default;
        if (BinaryPrimitives.ReadUInt32LittleEndian(source) != Magic) return "there is no frame where one must begin";
        if (BinaryPrimitives.ReadUInt32LittleEndian(source[CrcAt..]) != Crc32C.Compute(source[..CrcAt])) return "the frame's header is damaged (checksum)";
        uint payload = BinaryPrimitives.ReadUInt32LittleEndian(source[32..]);
        if (source[6] != 0 || source[7] != 0 || source[56..CrcAt].ContainsAnyExcept((byte)0) || payload > StreamHeader.DataBytesMax)
            return "the frame asks for what this release does not know";
        frame = new StreamFrame
        {
            Kind = (StreamKind)source[4],
            Encoding = (StreamEncoding)source[5],
            Sequence = BinaryPrimitives.ReadUInt64LittleEndian(source[8..]),
            OffsetBytes = BinaryPrimitives.ReadUInt64LittleEndian(source[16..]),
            LengthBytes = BinaryPrimitives.ReadUInt64LittleEndian(source[24..]),
            PayloadBytes = (int)payload,
            PayloadCrc = BinaryPrimitives.ReadUInt32LittleEndian(source[36..]),
        };
        return null;
    }
}
