using System.Buffers.Binary;

namespace BlockServer.Core;

/// <summary>
/// What became of one append of a stream, server to client, little-endian.
/// <code>
/// offset size field
///      0    4 magic "BAR1"
///      4    2 code: <see cref="AppendCode"/>
///      6    2 flags: 1 it had landed before, by an earlier frame
///      8    8 sequence of the append
///     16   16 client
///     32    8 offset at which its bytes lie; 0 unless it has landed
///     40    8 durable length of the volume
///     48    4 reserved, zero
///     52    4 CRC-32C of bytes 0 to 51
/// </code>
/// </summary>
public struct AppendReply : IFixedLayout<AppendReply>
{
    /// <summary>How many bytes.</summary>
    public const int SizeBytes = 56;

    private const uint Magic = 0x31524142;

    /// <inheritdoc/>
    public static int Size => SizeBytes;

    /// <summary>What became of it.</summary>
    public AppendCode Code { get; set; }

    /// <summary>It had landed before.</summary>
    public bool IsRepeat { get; set; }

    /// <summary>Which append.</summary>
    public AppendKey Key { get; set; }

    /// <summary>Where its bytes lie.</summary>
    public ulong OffsetBytes { get; set; }

    /// <summary>Durable length of the volume.</summary>
    public ulong LengthBytes { get; set; }

    /// <inheritdoc/>
    public readonly void WriteTo(Span<byte> target)
    {
        AppendHead.Begin(target, Magic, Key);
        BinaryPrimitives.WriteUInt16LittleEndian(target[4..], (ushort)Code);
        BinaryPrimitives.WriteUInt16LittleEndian(target[6..], (ushort)(IsRepeat ? 1 : 0));
        BinaryPrimitives.WriteUInt64LittleEndian(target[32..], OffsetBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(target[40..], LengthBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[48..], 0);
        AppendHead.End(target[..SizeBytes]);
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out AppendReply value)
    {
        value = default;
        if (AppendHead.FaultOf(source[..SizeBytes], Magic, "no reply to an append", "damaged reply to an append") is { } fault) return fault;
        ushort flags = BinaryPrimitives.ReadUInt16LittleEndian(source[6..]);
        if (flags > 1 || BinaryPrimitives.ReadUInt32LittleEndian(source[48..]) != 0) return "reserved bits of a reply are not zero";
        value = new AppendReply
        {
            Code = (AppendCode)BinaryPrimitives.ReadUInt16LittleEndian(source[4..]),
            IsRepeat = flags == 1,
            Key = AppendHead.KeyOf(source),
            OffsetBytes = BinaryPrimitives.ReadUInt64LittleEndian(source[32..]),
            LengthBytes = BinaryPrimitives.ReadUInt64LittleEndian(source[40..]),
        };
        return null;
    }
}
