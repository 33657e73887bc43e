using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// The root of a store: which store this is, how it is cut, and from where its log counts. 4 KiB, four copies.
/// <code>
/// 0   u32  CRC-32C of bytes 8..4095          64  u64 total bytes
/// 4   u32  copy number (outside the CRC)     72  u32 ring pages
/// 8   8 B  magic "BLKSTORE"                  76  u32 slot count
/// 16  u32  format version                    80  u64 incarnation
/// 20  u32  flags (1: clean)                  88  u64 startLsn
/// 24  u32  compat features                   96  u64 sequence
/// 28  u32  incompat features                 104 u32 slot high-water mark
/// 32  16 B cluster UUID (big endian)         108 u32 read-only-compat features
/// 48  16 B store UUID (big endian)           112.. zero
/// </code>
/// </summary>
public readonly record struct Superblock : IFixedLayout<Superblock>
{
    /// <summary>The version that this program writes and the only one it reads. 1 had no LSN of the record before in its
    /// records and zeros in slots that were never used; it was never released.</summary>
    public const uint VersionNow = 2;

    internal const ulong Magic = 0x45524F54534B4C42; // "BLKSTORE"

    /// <inheritdoc/>
    public static int Size => Units.BlockBytes;

    /// <summary>Which of the four copies this one was read from or goes to.</summary>
    public int Copy { get; init; }

    /// <summary>Closed cleanly: every page is home and the log is empty.</summary>
    public bool IsClean { get; init; }

    /// <summary>Features that any program may ignore.</summary>
    public uint CompatFeatures { get; init; }

    /// <summary>Features without which the store must not be opened.</summary>
    public uint IncompatFeatures { get; init; }

    /// <summary>Features without which the store must not be written.</summary>
    public uint ReadOnlyCompatFeatures { get; init; }

    /// <summary>The cluster it belongs to.</summary>
    public Guid ClusterUuid { get; init; }

    /// <summary>Its own identity.</summary>
    public Guid StoreUuid { get; init; }

    /// <summary>How it is cut.</summary>
    public StoreGeometry Geometry { get; init; }

    /// <summary>Only log pages of this incarnation count (S8).</summary>
    public ulong Incarnation { get; init; }

    /// <summary>The log of this incarnation begins behind this LSN.</summary>
    public ulong StartLsn { get; init; }

    /// <summary>Counts the updates; the highest wins.</summary>
    public ulong Sequence { get; init; }

    /// <summary>Slots from here on were never used and are not read.</summary>
    public uint SlotHighWater { get; init; }

    /// <inheritdoc/>
    public void WriteTo(Span<byte> target)
    {
        target[..Size].Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], (uint)Copy);
        BinaryPrimitives.WriteUInt64LittleEndian(target[8..], Magic);
        BinaryPrimitives.WriteUInt32LittleEndian(target[16..], VersionNow);
        BinaryPrimitives.WriteUInt32LittleEndian(target[20..], IsClean ? 1u : 0u);
        BinaryPrimitives.WriteUInt32LittleEndian(target[24..], CompatFeatures);
        BinaryPrimitives.WriteUInt32LittleEndian(target[28..], IncompatFeatures);
        ClusterUuid.TryWriteBytes(target[32..], bigEndian: true, out _);
        StoreUuid.TryWriteBytes(target[48..], bigEndian: true, out _);
        BinaryPrimitives.WriteUInt64LittleEndian(target[64..], Geometry.TotalBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[72..], Geometry.RingPages);
        BinaryPrimitives.WriteUInt32LittleEndian(target[76..], Geometry.SlotCount);
        BinaryPrimitives.WriteUInt64LittleEndian(target[80..], Incarnation);
        BinaryPrimitives.WriteUInt64LittleEndian(target[88..], StartLsn);
        BinaryPrimitives.WriteUInt64LittleEndian(target[96..], Sequence);
        BinaryPrimitives.WriteUInt32LittleEndian(target[104..], SlotHighWater);
        BinaryPrimitives.WriteUInt32LittleEndian(target[108..], ReadOnlyCompatFeatures);
        BinaryPrimitives.WriteUInt32LittleEndian(target, Crc32C.Compute(target[8..Size]));
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out Superblock value)
    {
        value = default;
        if (source.Length < Size) return "superblock: shorter than 4 KiB";
        source = source[..Size];
        if (BinaryPrimitives.ReadUInt64LittleEndian(source[8..]) != Magic) return "superblock: no magic, not a store";
        if (BinaryPrimitives.ReadUInt32LittleEndian(source) != Crc32C.Compute(source[8..]))
            return "superblock: checksum does not match";
        uint version = BinaryPrimitives.ReadUInt32LittleEndian(source[16..]);
        if (version != VersionNow) return $"superblock: format version {version}, this program reads {VersionNow}";
        uint copy = BinaryPrimitives.ReadUInt32LittleEndian(source[4..]);
        if (copy > 3) return "superblock: copy number beyond 3";
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(source[20..]);
        if (flags > 1) return "superblock: unknown flags";
        uint incompat = BinaryPrimitives.ReadUInt32LittleEndian(source[28..]);
        if (incompat != 0) return $"superblock: features 0x{incompat:x} are needed that this program does not have";
        if (source[112..].ContainsAnyExcept((byte)0)) return "superblock: reserved bytes are not zero";
        value = new Superblock
        {
            Copy = (int)copy,
            IsClean = flags == 1,
            CompatFeatures = BinaryPrimitives.ReadUInt32LittleEndian(source[24..]),
            IncompatFeatures = incompat,
            ReadOnlyCompatFeatures = BinaryPrimitives.ReadUInt32LittleEndian(source[108..]),
            ClusterUuid = new Guid(source.Slice(32, 16), bigEndian: true),
            StoreUuid = new Guid(source.Slice(48, 16), bigEndian: true),
            Geometry = new StoreGeometry(
                BinaryPrimitives.ReadUInt64LittleEndian(source[64..]),
                BinaryPrimitives.ReadUInt32LittleEndian(source[72..]),
                BinaryPrimitives.ReadUInt32LittleEndian(source[76..])),
            Incarnation = BinaryPrimitives.ReadUInt64LittleEndian(source[80..]),
            StartLsn = BinaryPrimitives.ReadUInt64LittleEndian(source[88..]),
            Sequence = BinaryPrimitives.ReadUInt64LittleEndian(source[96..]),
            SlotHighWater = BinaryPrimitives.ReadUInt32LittleEndian(source[104..]),
        };
        return value.SlotHighWater > value.Geometry.SlotCount ? "superblock: high-water mark beyond the slots" : null;
    }
}
