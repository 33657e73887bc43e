using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>What a metadata slot's home holds. Numbers are on disk for ever.</summary>
public enum MetadataKind : byte
{
    /// <summary>Nothing: no page that counts says so.</summary>
    Empty = 0,

    /// <summary>A tombstone: the slot is free.</summary>
    Free = 1,

    /// <summary>An extent: 256 entries.</summary>
    Extent = 2,

    /// <summary>A volume's head: name, size, epoch.</summary>
    VolumeHead = 3,

    /// <summary>Numbers of blocks that are not used any more.</summary>
    BadBlocks = 4,

    /// <summary>A snapshot: the head of a layer that is not written to any more.</summary>
    Snapshot = 5,

    /// <summary>Length and clients of an append-only volume.</summary>
    Appends = 6,
}

/// <summary>
/// The first 64 bytes of a metadata page.
/// <code>
/// 0  u32 CRC-32C (Seal: bytes 4..4095, address, fold)   24 u64 pageLsn
/// 4  u8  kind, 5 u8 flags, 6 u16 0                       32 u64 maxVersion
/// 8  u32 volume id                                       40 u64 minVersion
/// 12 u32 layer id (0 in a volume's first layer)          48 16 B zero
/// 16 u32 extent index, 20 u32 slot
/// </code>
/// </summary>
public readonly record struct MetadataPageHeader : IFixedLayout<MetadataPageHeader>
{
    /// <inheritdoc/>
    public static int Size => 64;

    /// <summary>What the page is.</summary>
    public MetadataKind Kind { get; init; }

    /// <summary>Flags; none are defined yet.</summary>
    public byte Flags { get; init; }

    /// <summary>The volume.</summary>
    public uint VolumeId { get; init; }

    /// <summary>The layer between two snapshots.</summary>
    public uint LayerId { get; init; }

    /// <summary>The extent's index in the volume.</summary>
    public uint Extent { get; init; }

    /// <summary>The slot whose home this is.</summary>
    public uint Slot { get; init; }

    /// <summary>LSN of the last record that the page contains.</summary>
    public ulong PageLsn { get; init; }

    /// <summary>Highest version of its entries.</summary>
    public ulong MaxVersion { get; init; }

    /// <summary>Lowest version that is not 0 of its entries, or 0.</summary>
    public ulong MinVersion { get; init; }

    /// <inheritdoc/>
    public void WriteTo(Span<byte> target)
    {
        target[..Size].Clear();
        target[4] = (byte)Kind;
        target[5] = Flags;
        BinaryPrimitives.WriteUInt32LittleEndian(target[8..], VolumeId);
        BinaryPrimitives.WriteUInt32LittleEndian(target[12..], LayerId);
        BinaryPrimitives.WriteUInt32LittleEndian(target[16..], Extent);
        BinaryPrimitives.WriteUInt32LittleEndian(target[20..], Slot);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], PageLsn);
        BinaryPrimitives.WriteUInt64LittleEndian(target[32..], MaxVersion);
        BinaryPrimitives.WriteUInt64LittleEndian(target[40..], MinVersion);
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out MetadataPageHeader value)
    {
        value = default;
        if (source.Length < Size) return "metadata page: shorter than its header";
        if (source[4] > (byte)MetadataKind.Appends) return $"metadata page: unknown kind {source[4]}";
        value = new MetadataPageHeader
        {
            Kind = (MetadataKind)source[4],
            Flags = source[5],
            VolumeId = BinaryPrimitives.ReadUInt32LittleEndian(source[8..]),
            LayerId = BinaryPrimitives.ReadUInt32LittleEndian(source[12..]),
            Extent = BinaryPrimitives.ReadUInt32LittleEndian(source[16..]),
            Slot = BinaryPrimitives.ReadUInt32LittleEndian(source[20..]),
            PageLsn = BinaryPrimitives.ReadUInt64LittleEndian(source[24..]),
            MaxVersion = BinaryPrimitives.ReadUInt64LittleEndian(source[32..]),
            MinVersion = BinaryPrimitives.ReadUInt64LittleEndian(source[40..]),
        };
        return source[6] != 0 || source[7] != 0 || source[48..Size].ContainsAnyExcept((byte)0)
            ? "metadata page: reserved bytes are not zero"
            : null;
    }
}

/// <summary>One entry of an extent page: 15 bytes {u32 block, u32 CRC, 7 B version}.</summary>
/// <param name="Block">Absolute block number; 0 is a hole, <see cref="MetadataPage.UnknownBlock"/> is lost.</param>
/// <param name="Crc">CRC-32C of the block; 0 in a hole.</param>
/// <param name="Version">56-bit version of the last change.</param>
public readonly record struct BlockEntry(uint Block, uint Crc, ulong Version);

/// <summary>
/// A 4 KiB page in a metadata slot: <see cref="MetadataPageHeader"/>, then for an extent 256 entries of 15 bytes at 64,
/// for a volume head its <see cref="VolumeHeadLayout"/> at 64, for a snapshot its <see cref="SnapshotLayout"/>, for bad blocks their numbers, 4 bytes each, for
/// appends an <see cref="AppendPage"/>. The rest
/// is zero.
/// </summary>
public static class MetadataPage
{
    /// <summary>An entry whose content is not known any more.</summary>
    public const uint UnknownBlock = uint.MaxValue;

    /// <summary>Bytes of an entry.</summary>
    public const int EntryBytes = 15;

    /// <summary>Bytes of all entries.</summary>
    public const int EntriesBytes = EntryBytes * Units.BlocksPerExtent;

    /// <summary>Where the entries begin.</summary>
    public const int EntriesOffset = 64;

    /// <summary>Bytes of a page that mean something.</summary>
    public const int UsedBytes = EntriesOffset + EntriesBytes;

    /// <summary>Most bad blocks that a page names.</summary>
    public const int BadBlocksMax = EntriesBytes / sizeof(uint);

    /// <summary>Largest version.</summary>
    public const ulong VersionMax = (1UL << 56) - 1;

    /// <summary>Reads entry <paramref name="index"/> of the 3,840 bytes of entries.</summary>
    public static BlockEntry Entry(ReadOnlySpan<byte> entries, int index)
    {
        ReadOnlySpan<byte> at = entries.Slice(index * EntryBytes, EntryBytes);
        // Bytes 7 to 14 in one load; the lowest byte is the CRC's last.
        ulong version = BinaryPrimitives.ReadUInt64LittleEndian(at[7..]) >> 8;
        return new BlockEntry(
            BinaryPrimitives.ReadUInt32LittleEndian(at), BinaryPrimitives.ReadUInt32LittleEndian(at[4..]), version);
    }

    /// <summary>Reads number <paramref name="index"/> of a page of bad blocks, from what lies at <see cref="EntriesOffset"/>; 0:
    /// none.</summary>
    public static uint BadBlock(ReadOnlySpan<byte> body, int index) => BinaryPrimitives.ReadUInt32LittleEndian(body[(index * sizeof(uint))..]);

    /// <summary>Writes entry <paramref name="index"/>.</summary>
    public static void SetEntry(Span<byte> entries, int index, BlockEntry entry)
    {
        Span<byte> at = entries.Slice(index * EntryBytes, EntryBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(at[7..], entry.Version << 8);
        BinaryPrimitives.WriteUInt32LittleEndian(at, entry.Block);
        BinaryPrimitives.WriteUInt32LittleEndian(at[4..], entry.Crc);
    }

    /// <summary>Reads a home: checksum over the address, store and slot must match. A slot that was never used holds
    /// tombstones of LSN 0, so zeros are damage. Says why not, or null.</summary>
    public static string? TryReadPage(
        ReadOnlySpan<byte> page, ulong addressBytes, uint storeFold, uint slot, out MetadataPageHeader header)
    {
        header = default;
        if (page.Length != Units.BlockBytes) return "metadata page: not 4 KiB";
        if (!Seal.IsGood(page, addressBytes, storeFold)) return "metadata page: checksum does not match";
        string? fault = MetadataPageHeader.TryRead(page, out header);
        if (fault is not null) return fault;
        if (header.Kind == MetadataKind.Empty) return "metadata page: sealed but empty";
        return header.Slot == slot ? null : "metadata page: of another slot";
    }
}

/// <summary>
/// A volume's head, 104 bytes: u32 id, u32 flags (1: being deleted, 2: extents without a page are unknown, 4: has a parent,
/// 8: is being flattened, 16: append-only, its size is the length that it never exceeds, 32: sealed), 16 B UUID (big endian), u64 size, u64 epoch, u8 name length, 63 B name (ASCII, zero padded).
/// With layers it goes on to 120: u32 layer that is written to, u32 volume and u32 layer of its parent (0 without flag 4),
/// u32 zero. Without layers these bytes are zeros, and a log record ends at 104.
/// </summary>
public readonly record struct VolumeHeadLayout : IFixedLayout<VolumeHeadLayout>
{
    /// <summary>Bytes when there are no layers.</summary>
    public const int PlainSize = 104;

    /// <inheritdoc/>
    public static int Size => 120;

    /// <summary>The head.</summary>
    public VolumeHead Head { get; init; }

    /// <summary>The layer that is written to.</summary>
    public uint Layer { get; init; }

    /// <summary>The layer below it, or null.</summary>
    public LayerId? Parent { get; init; }

    /// <summary>What it shares with the layer below is being copied, so that it can let go of it.</summary>
    public bool IsFlattening { get; init; }

    /// <summary>Bytes that say all of it.</summary>
    public int UsedSize => Layer != 0 || Parent is not null ? Size : PlainSize;

    /// <summary>The volume is being deleted: its blocks are given back, then this page goes.</summary>
    public bool IsDeleting { get; init; }

    /// <summary>Data loss was accepted and a page of an unknown extent is gone: an extent without a page is unknown, not a
    /// hole.</summary>
    public bool IsDoubtful { get; init; }

    /// <inheritdoc/>
    public void WriteTo(Span<byte> target)
    {
        target[..Size].Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(target, Head.Id);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], FlagsOf(IsDeleting, 1) | FlagsOf(IsDoubtful, 2) | FlagsOf(Parent is not null, 4) | FlagsOf(IsFlattening, 8)
            | FlagsOf(Head.IsAppendOnly, 16) | FlagsOf(Head.IsSealed, 32));
        Head.Uuid.TryWriteBytes(target[8..], bigEndian: true, out _);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], Head.SizeBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(target[32..], Head.Epoch);
        target[40] = (byte)Head.Name.Length;
        for (int i = 0; i < Head.Name.Length; i++) target[41 + i] = (byte)Head.Name[i];
        BinaryPrimitives.WriteUInt32LittleEndian(target[PlainSize..], Layer);
        BinaryPrimitives.WriteUInt32LittleEndian(target[108..], Parent?.Volume ?? 0);
        BinaryPrimitives.WriteUInt32LittleEndian(target[112..], Parent?.Layer ?? 0);
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out VolumeHeadLayout value)
    {
        value = default;
        if (source.Length < Size) return "volume head: cut off";
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(source[4..]);
        if (flags > 63) return "volume head: unknown flags";
        if ((flags & 48) == 32) return "volume head: sealed, but not append-only";
        string? fault;
        int length = source[40];
        if (length > VolumeName.LengthMax) return "volume head: impossible name length";
        string name = System.Text.Encoding.ASCII.GetString(source.Slice(41, length));
        if (!VolumeName.IsValid(name, out string? reason)) return "volume head: " + reason;
        if (source[(41 + length)..PlainSize].ContainsAnyExcept((byte)0)) return "volume head: reserved bytes are not zero";
        fault = LayerId.TryRead(source[108..116], (flags & 4) != 0, out LayerId? parent);
        if (fault is not null || source[116..Size].ContainsAnyExcept((byte)0)) return "volume head: impossible parent";
        var head = new VolumeHead(
            BinaryPrimitives.ReadUInt32LittleEndian(source), new Guid(source.Slice(8, 16), bigEndian: true), name,
            BinaryPrimitives.ReadUInt64LittleEndian(source[24..]), BinaryPrimitives.ReadUInt64LittleEndian(source[32..]))
        {
            IsAppendOnly = (flags & 16) != 0, IsSealed = (flags & 32) != 0,
        };
        if (head.Id == 0) return "volume head: id 0";
        fault = SizeFault(head.SizeBytes);
        if (fault is not null) return fault;
        value = new VolumeHeadLayout
        {
            Head = head, IsDeleting = (flags & 1) != 0, IsDoubtful = (flags & 2) != 0, IsFlattening = (flags & 8) != 0,
            Layer = BinaryPrimitives.ReadUInt32LittleEndian(source[PlainSize..]), Parent = parent,
        };
        return null;
    }

    private static uint FlagsOf(bool isSet, uint flag) => isSet ? flag : 0;

    /// <summary>Says why a volume cannot have this size, or null.</summary>
    public static string? SizeFault(ulong sizeBytes) =>
        sizeBytes is < Units.VolumeBytesMin or > Units.VolumeBytesMax || sizeBytes % Units.SectorBytes != 0
            ? "volume head: impossible size"
            : null;
}
