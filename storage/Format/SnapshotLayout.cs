using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>Names a layer of the store: the changes of one volume between two cuts.</summary>
/// <param name="Volume">The volume whose changes they are.</param>
/// <param name="Layer">Rises along the layers of a volume; 0 is its first.</param>
public readonly record struct LayerId(uint Volume, uint Layer)
{
    /// <summary>Reads two u32, which are zero when there is none; says why they cannot be, or null.</summary>
    internal static string? TryRead(ReadOnlySpan<byte> source, bool isThere, out LayerId? value)
    {
        var read = new LayerId(BinaryPrimitives.ReadUInt32LittleEndian(source), BinaryPrimitives.ReadUInt32LittleEndian(source[4..]));
        value = isThere ? read : null;
        return isThere == (read.Volume != 0) && (isThere || read.Layer == 0) ? null : "impossible parent";
    }
}

/// <summary>
/// A snapshot's head, 128 bytes: the layer that a cut ended.
/// <code>
/// 0  u32 volume, 4 u32 layer           24 16 B UUID (big endian)
/// 8  u32 flags: 1 being deleted,       40 u64 cut: the last version of the layer
///    4 has a parent, 8 append-only     48 u64 size of the volume at the cut, in bytes
/// 12 u32 volume, 16 u32 layer          56 u8 name length, 57 63 B name (ASCII, zero padded)
///    of the parent; 20 u32 slack       120 u64 seconds since 1970 at the cut
/// </code>
/// Of an append-only volume the size is its length at the cut rounded up to a block, at least one, and the slack the bytes
/// of the last block that lie behind the length; elsewhere the slack is 0.
/// </summary>
public readonly record struct SnapshotLayout : IFixedLayout<SnapshotLayout>
{
    /// <inheritdoc/>
    public static int Size => 128;

    /// <summary>The layer.</summary>
    public LayerId Id { get; init; }

    /// <summary>The layer below it, or null.</summary>
    public LayerId? Parent { get; init; }

    /// <summary>Its blocks are being given back, or to the layer above; then this page goes.</summary>
    public bool IsDeleting { get; init; }

    /// <summary>Identity for people and peers.</summary>
    public Guid Uuid { get; init; }

    /// <summary>The last version that is in it.</summary>
    public ulong Cut { get; init; }

    /// <summary>Size of the volume at the cut, in bytes.</summary>
    public ulong SizeBytes { get; init; }

    /// <summary>Of an append-only volume; <see cref="SizeBytes"/> is its length rounded up to a block.</summary>
    public bool IsAppendOnly { get; init; }

    /// <summary>Bytes at the end that are behind the length and read as zeros.</summary>
    public uint SlackBytes { get; init; }

    /// <summary>Where its bytes end: its size, but for the slack of an append-only volume's.</summary>
    public ulong LengthBytes => SizeBytes - SlackBytes;

    /// <summary>The operator's name of it.</summary>
    public string Name { get; init; }

    /// <summary>When it was cut, seconds since 1970 as the caller's clock said.</summary>
    public ulong UnixSeconds { get; init; }

    /// <inheritdoc/>
    public void WriteTo(Span<byte> target)
    {
        target[..Size].Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(target, Id.Volume);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], Id.Layer);
        BinaryPrimitives.WriteUInt32LittleEndian(target[8..], (IsDeleting ? 1u : 0) | (Parent is null ? 0u : 4) | (IsAppendOnly ? 8u : 0));
        BinaryPrimitives.WriteUInt32LittleEndian(target[12..], Parent?.Volume ?? 0);
        BinaryPrimitives.WriteUInt32LittleEndian(target[16..], Parent?.Layer ?? 0);
        BinaryPrimitives.WriteUInt32LittleEndian(target[20..], SlackBytes);
        Uuid.TryWriteBytes(target[24..], bigEndian: true, out _);
        BinaryPrimitives.WriteUInt64LittleEndian(target[40..], Cut);
        BinaryPrimitives.WriteUInt64LittleEndian(target[48..], SizeBytes);
        target[56] = (byte)Name.Length;
        for (int i = 0; i < Name.Length; i++) target[57 + i] = (byte)Name[i];
        BinaryPrimitives.WriteUInt64LittleEndian(target[120..], UnixSeconds);
    }

    /// <inheritdoc/>
    public static string? TryRead(ReadOnlySpan<byte> source, out SnapshotLayout value)
    {
        value = default;
        if (source.Length < Size) return "snapshot: cut off";
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(source[8..]);
        if ((flags & ~13u) != 0) return "snapshot: unknown flags";
        var id = new LayerId(BinaryPrimitives.ReadUInt32LittleEndian(source), BinaryPrimitives.ReadUInt32LittleEndian(source[4..]));
        if (id.Volume == 0) return "snapshot: of no volume";
        string? fault = LayerId.TryRead(source[12..20], (flags & 4) != 0, out LayerId? parent);
        bool isAppendOnly = (flags & 8) != 0;
        uint slack = BinaryPrimitives.ReadUInt32LittleEndian(source[20..]);
        if (fault is not null || (!isAppendOnly && slack != 0)) return "snapshot: impossible parent";
        // Layers rise, so nothing can be its own ancestor.
        if (parent is { } below && below.Volume == id.Volume && below.Layer >= id.Layer) return "snapshot: its parent is younger than it is";
        int length = source[56];
        if (length > VolumeName.LengthMax) return "snapshot: impossible name length";
        string name = System.Text.Encoding.ASCII.GetString(source.Slice(57, length));
        if (!VolumeName.IsValid(name, out string? reason)) return "snapshot: " + reason;
        if (source[(57 + length)..120].ContainsAnyExcept((byte)0)) return "snapshot: reserved bytes are not zero";
        ulong cut = BinaryPrimitives.ReadUInt64LittleEndian(source[40..]), size = BinaryPrimitives.ReadUInt64LittleEndian(source[48..]);
        if (cut > MetadataPage.VersionMax) return "snapshot: impossible version";
        bool isSize = isAppendOnly
            ? size is >= Units.BlockBytes and <= Units.VolumeBytesMax && size % Units.BlockBytes == 0 && slack <= Units.BlockBytes
            : VolumeHeadLayout.SizeFault(size) is null;
        if (!isSize) return "snapshot: impossible size";
        value = new SnapshotLayout
        {
            Id = id,
            Parent = parent,
            IsDeleting = (flags & 1) != 0,
            Uuid = new Guid(source.Slice(24, 16), bigEndian: true),
            Cut = cut,
            SizeBytes = size,
            IsAppendOnly = isAppendOnly,
            SlackBytes = slack,
            Name = name,
            UnixSeconds = BinaryPrimitives.ReadUInt64LittleEndian(source[120..]),
        };
        return null;
    }
}
