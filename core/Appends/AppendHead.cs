using System.Buffers.Binary;

namespace BlockServer.Core;

/// <summary>What the heads of frames and replies of an append stream have in common, little-endian: their magic at 0, whose append it is at 8,
/// and a CRC-32C of all in front of it in the last 4 bytes.</summary>
internal static class AppendHead
{
    /// <summary>Writes the magic and the key.</summary>
    public static void Begin(Span<byte> target, uint magic, AppendKey key)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(target, magic);
        BinaryPrimitives.WriteUInt64LittleEndian(target[8..], key.Sequence);
        Check.That(key.Client.TryWriteBytes(target[16..32], bigEndian: true, out _));
    }

    /// <summary>Writes the checksum of what <paramref name="head"/> holds; it is all of the head.</summary>
    public static void End(Span<byte> head) => BinaryPrimitives.WriteUInt32LittleEndian(head[^4..], Crc32C.Compute(head[..^4]));

    /// <summary>Why <paramref name="head"/> is none: <paramref name="isNone"/>, or <paramref name="isDamaged"/>; null when it is one.</summary>
    public static string? FaultOf(ReadOnlySpan<byte> head, uint magic, string isNone, string isDamaged)
    {
        if (BinaryPrimitives.ReadUInt32LittleEndian(head) != magic) return isNone;
        return BinaryPrimitives.ReadUInt32LittleEndian(head[^4..]) == Crc32C.Compute(head[..^4]) ? null : isDamaged;
    }

    /// <summary>Whose append it is.</summary>
    public static AppendKey KeyOf(ReadOnlySpan<byte> head) =>
        new(new Guid(head[16..32], bigEndian: true), BinaryPrimitives.ReadUInt64LittleEndian(head[8..]));
}
