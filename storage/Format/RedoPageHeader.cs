using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// The first 64 bytes of a log page. LSN = page number * 4096 + offset in the page, so a record's LSN is where it lies.
/// <code>
/// 0  u32 CRC-32C (Seal: bytes 4..4095, address, fold)   32 u32 lap of the ring
/// 4  u32 magic "RDPG"                                    36 u16 records
/// 8  u32 fold of the store UUID                          38 u16 bytes used, header included
/// 12 u32 CRC of the previous page (0: first one)         40 u64 durableLsn
/// 16 u64 incarnation                                     48 u64 tailLsn
/// 24 u64 page number since the format                    56 u64 flush point F
/// </code>
/// </summary>
public readonly record struct RedoPageHeader : IFixedLayout<RedoPageHeader>
{
    private const uint Magic = 0x47504452; // "RDPG"

    /// <inheritdoc/>
    public static int Size => 64;

    /// <summary>Checksum of the page; set by <see cref="Seal.Put"/>, known after reading.</summary>
    public uint Crc { get; init; }

    /// <summary><see cref="Seal.Fold"/> of the store.</summary>
    public uint StoreFold { get; init; }

    /// <summary>Checksum of the page before it: the chain.</summary>
    public uint PreviousCrc { get; init; }

    /// <summary>Which incarnation wrote it.</summary>
    public ulong Incarnation { get; init; }

    /// <summary>Number since the format, without gaps.</summary>
    public ulong PageNumber { get; init; }

    /// <summary>How often the ring had been written round.</summary>
    public uint Lap { get; init; }

    /// <summary>Records in the page.</summary>
    public ushort Count { get; init; }

    /// <summary>Bytes used, this header included.</summary>
    public ushort UsedBytes { get; init; }

    /// <summary>Highest LSN up to which log and data were known durable when the page was built.</summary>
    public ulong DurableLsn { get; init; }

    /// <summary>Replay starts behind this LSN.</summary>
    public ulong TailLsn { get; init; }

    /// <summary>Highest block version of the durable prefix (B2.5).</summary>
    public ulong FlushPoint { get; init; }

    /// <summary>LSN of the first record.</summary>
    public ulong FirstLsn => PageNumber * Units.BlockBytes + (ulong)Size;

    /// <summary>Last LSN that belongs to the page.</summary>
    public ulong EndLsn => PageNumber * Units.BlockBytes + Units.BlockBytes - 1;

    /// <inheritdoc/>
    public void WriteTo(Span<byte> target)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(target, Crc);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], Magic);
        BinaryPrimitives.WriteUInt32LittleEndian(target[8..], StoreFold);
        BinaryPrimitives.WriteUInt32LittleEndian(target[12..], PreviousCrc);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], Incarnation);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], PageNumber);
        BinaryPrimitives.WriteUInt32LittleEndian(target[32..], Lap);
        BinaryPrimitives.WriteUInt16LittleEndian(target[36..], Count);
        BinaryPrimitives.WriteUInt16LittleEndian(target[38..], UsedBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(target[40..], DurableLsn);
        BinaryPrimitives.WriteUInt64LittleEndian(target[48..], TailLsn);
        BinaryPrimitives.WriteUInt64LittleEndian(target[56..], FlushPoint);
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out RedoPageHeader value)
    {
        value = default;
        if (source.Length < Size) return "log page: shorter than its header";
        if (BinaryPrimitives.ReadUInt32LittleEndian(source[4..]) != Magic) return "log page: no magic";
        value = new RedoPageHeader
        {
            Crc = BinaryPrimitives.ReadUInt32LittleEndian(source),
            StoreFold = BinaryPrimitives.ReadUInt32LittleEndian(source[8..]),
            PreviousCrc = BinaryPrimitives.ReadUInt32LittleEndian(source[12..]),
            Incarnation = BinaryPrimitives.ReadUInt64LittleEndian(source[16..]),
            PageNumber = BinaryPrimitives.ReadUInt64LittleEndian(source[24..]),
            Lap = BinaryPrimitives.ReadUInt32LittleEndian(source[32..]),
            Count = BinaryPrimitives.ReadUInt16LittleEndian(source[36..]),
            UsedBytes = BinaryPrimitives.ReadUInt16LittleEndian(source[38..]),
            DurableLsn = BinaryPrimitives.ReadUInt64LittleEndian(source[40..]),
            TailLsn = BinaryPrimitives.ReadUInt64LittleEndian(source[48..]),
            FlushPoint = BinaryPrimitives.ReadUInt64LittleEndian(source[56..]),
        };
        return value.UsedBytes < Size || value.UsedBytes > Units.BlockBytes ? "log page: impossible length" : null;
    }

    /// <summary>Reads a whole log page: header, checksum over its address, and store. Says why not, or null.</summary>
    public static string? TryReadPage(
        ReadOnlySpan<byte> page, ulong addressBytes, uint storeFold, out RedoPageHeader value)
    {
        string? fault = TryRead(page, out value);
        if (fault is not null) return fault;
        if (value.StoreFold != storeFold) return "log page: of another store";
        return Seal.IsGood(page, addressBytes, storeFold) ? null : "log page: checksum does not match";
    }
}
