using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// The checksum that every 4 KiB page of the store begins with: CRC-32C over bytes 4 to 4095, then the page's own
/// address and the store's fold (8 + 4 bytes, not stored), so that a misdirected write and a page of an earlier format
/// of the same medium are noticed.
/// </summary>
public static class Seal
{
    /// <summary>32 bits of a store's UUID.</summary>
    public static uint Fold(Guid storeUuid)
    {
        Span<byte> bytes = stackalloc byte[16];
        storeUuid.TryWriteBytes(bytes, bigEndian: true, out _);
        return Crc32C.Compute(bytes);
    }

    /// <summary>Computes the checksum that belongs at offset 0.</summary>
    public static uint Compute(ReadOnlySpan<byte> page, ulong addressBytes, uint storeFold)
    {
        Span<byte> tail = stackalloc byte[12];
        BinaryPrimitives.WriteUInt64LittleEndian(tail, addressBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(tail[8..], storeFold);
        return Crc32C.Append(Crc32C.Compute(page[4..]), tail);
    }

    /// <summary>Writes the checksum.</summary>
    public static uint Put(Span<byte> page, ulong addressBytes, uint storeFold)
    {
        uint crc = Compute(page, addressBytes, storeFold);
        BinaryPrimitives.WriteUInt32LittleEndian(page, crc);
        return crc;
    }

    /// <summary>True when the checksum matches.</summary>
    public static bool IsGood(ReadOnlySpan<byte> page, ulong addressBytes, uint storeFold) =>
        BinaryPrimitives.ReadUInt32LittleEndian(page) == Compute(page, addressBytes, storeFold);
}
