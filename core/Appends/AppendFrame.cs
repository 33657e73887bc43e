using System.Buffers.Binary;

namespace BlockServer.Core;

/// <summary>
/// The head of one append in an append stream, client to server, little-endian; its bytes follow.
/// <code>
/// offset size field
///      0    4 magic "BAP1"
///      4    4 number of the volume, as the 101 answer said
///      8    8 sequence of the append
///     16   16 client, bytes of the UUID as it is written
///     32    4 length of the data, bytes
///     36    4 CRC-32C of the data
///     40    4 reserved, zero
///     44    4 CRC-32C of bytes 0 to 43
/// </code>
/// </summary>
public struct AppendFrame : IFixedLayout<AppendFrame>
{
    /// <summary>How many bytes.</summary>
    public const int SizeBytes = 48;

    private const uint Magic = 0x31504142;

    /// <inheritdoc/>
    public static int Size => SizeBytes;

    /// <summary>Number of the volume.</summary>
    public uint Volume { get; set; }

    /// <summary>Who appends, and the how-manieth it is.</summary>
    public AppendKey Key { get; set; }

    /// <summary>Length of the data.</summary>
    public uint LengthBytes { get; set; }

    /// <summary>CRC-32C of the data.</summary>
    public uint DataCrc { get; set; }

    /// <inheritdoc/>
    public readonly void WriteTo(Span<byte> target)
    {
        AppendHead.Begin(target, Magic, Key);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], Volume);
        BinaryPrimitives.WriteUInt32LittleEndian(target[32..], LengthBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[36..], DataCrc);
        BinaryPrimitives.WriteUInt32LittleEndian(target[40..], 0);
        AppendHead.End(target[..SizeBytes]);
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out AppendFrame value)
    {
        value = default;
        if (AppendHead.FaultOf(source[..SizeBytes], Magic, "no append frame", "damaged head of a frame") is { } fault) return fault;
        if (BinaryPrimitives.ReadUInt32LittleEndian(source[40..]) != 0) return "reserved bytes of a frame are not zero";
        value = new AppendFrame
        {
            Volume = BinaryPrimitives.ReadUInt32LittleEndian(source[4..]),
            Key = AppendHead.KeyOf(source),
            LengthBytes = BinaryPrimitives.ReadUInt32LittleEndian(source[32..]),
            DataCrc = BinaryPrimitives.ReadUInt32LittleEndian(source[36..]),
        };
        return null;
    }
}
