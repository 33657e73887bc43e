using System.Buffers.Binary;
using System.Text;
using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>
/// What a stream begins with: 512 bytes that say what it holds and what it builds on. docs/stream.md has every byte.
/// </summary>
public sealed record StreamHeader
{
    /// <summary>Bytes of the header.</summary>
    public const int Size = 512;

    /// <summary>The version that is written, and the only one that is read.</summary>
    public const ushort Version = 1;

    /// <summary>Most bytes of content in one frame.</summary>
    public const int DataBytesMax = 1 << 20;

    private const uint FlagIncrement = 1;
    private const int VolumeNameAt = 112, TargetNameAt = 176, RestAt = 240, CrcAt = 508;

    /// <summary>Identity of the stream, not empty: a stream is continued only by its own rest.</summary>
    public required Guid StreamId { get; init; }

    /// <summary>The volume that was exported, or empty when the content is no volume's (a raw file).</summary>
    public Guid VolumeUuid { get; init; }

    /// <summary>Its name then, for people; may be empty.</summary>
    public string VolumeName { get; init; } = "";

    /// <summary>Size of the content, as volumes have.</summary>
    public required ulong SizeBytes { get; init; }

    /// <summary>The snapshot that an increment builds on, or null: the stream holds everything.</summary>
    public Guid? Base { get; init; }

    /// <summary>Size of the base; 0 without one.</summary>
    public ulong BaseSizeBytes { get; init; }

    /// <summary>The snapshot that is the content, or null: nothing can build on it.</summary>
    public Guid? Target { get; init; }

    /// <summary>Name of the target; empty without one.</summary>
    public string TargetName { get; init; } = "";

    /// <summary>When the target was cut, seconds since 1970.</summary>
    public ulong UnixSeconds { get; init; }

    private static ReadOnlySpan<byte> Magic => "BLKSTRM\x1A"u8;

    /// <summary>Writes <see cref="Size"/> bytes.</summary>
    public void WriteTo(Span<byte> target)
    {
        target = target[..Size];
        target.Clear();
        Magic.CopyTo(target);
        BinaryPrimitives.WriteUInt16LittleEndian(target[8..], Version);
        BinaryPrimitives.WriteUInt16LittleEndian(target[10..], Size);
        BinaryPrimitives.WriteUInt32LittleEndian(target[12..], Base is null ? 0 : FlagIncrement);
        Put(target[16..], StreamId);
        Put(target[32..], VolumeUuid);
        BinaryPrimitives.WriteUInt64LittleEndian(target[48..], SizeBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[56..], Units.BlockBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[60..], DataBytesMax);
        Put(target[64..], Base ?? Guid.Empty);
        Put(target[80..], Target ?? Guid.Empty);
        BinaryPrimitives.WriteUInt64LittleEndian(target[96..], UnixSeconds);
        BinaryPrimitives.WriteUInt64LittleEndian(target[104..], BaseSizeBytes);
        PutName(target[VolumeNameAt..], VolumeName);
        PutName(target[TargetNameAt..], TargetName);
        BinaryPrimitives.WriteUInt32LittleEndian(target[CrcAt..], Crc32C.Compute(target[..CrcAt]));
    }

    /// <summary>These bytes begin as a stream does.</summary>
    public static bool Begins(ReadOnlySpan<byte> source) => source.StartsWith(Magic);

    /// <summary>These bytes are a header but for how they begin: a damaged stream, which must not pass for something else.</summary>
    public static bool IsButForItsBegin(ReadOnlySpan<byte> source)
    {
        if (source.Length < Size || Begins(source)) return false;
        Span<byte> mended = stackalloc byte[Size];
        source[..Size].CopyTo(mended);
        Magic.CopyTo(mended);
        return TryRead(mended, out _) is null;
    }

    /// <summary>Reads a header; what is wrong with it, or null.</summary>
    public static string? TryRead(ReadOnlySpan<byte> source, out StreamHeader? header)
    {
        header = null;
        if (source.Length < Size) return "the stream ends within its header";
        source = source[..Size];
        if (!Begins(source)) return "this is no stream of blockd";
        ushort version = BinaryPrimitives.ReadUInt16LittleEndian(source[8..]);
        if (version != Version) return $"the stream has format version {version}; this release reads version {Version}";
        if (BinaryPrimitives.ReadUInt32LittleEndian(source[CrcAt..]) != Crc32C.Compute(source[..CrcAt])) return "the header is damaged (checksum)";
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(source[12..]);
        bool isSane = BinaryPrimitives.ReadUInt16LittleEndian(source[10..]) == Size && (flags & ~FlagIncrement) == 0
            && BinaryPrimitives.ReadUInt32LittleEndian(source[56..]) == Units.BlockBytes
            && BinaryPrimitives.ReadUInt32LittleEndian(source[60..]) == DataBytesMax
            && !source[RestAt..CrcAt].ContainsAnyExcept((byte)0);
        if (!isSane) return "the header asks for what this release does not know";
        var read = new StreamHeader
        {
            StreamId = Take(source[16..]),
            VolumeUuid = Take(source[32..]),
            SizeBytes = BinaryPrimitives.ReadUInt64LittleEndian(source[48..]),
            Base = TakeOptional(source[64..]),
            Target = TakeOptional(source[80..]),
            UnixSeconds = BinaryPrimitives.ReadUInt64LittleEndian(source[96..]),
            BaseSizeBytes = BinaryPrimitives.ReadUInt64LittleEndian(source[104..]),
            VolumeName = TakeName(source[VolumeNameAt..]) ?? "\0",
            TargetName = TakeName(source[TargetNameAt..]) ?? "\0",
        };
        string? fault = read.Fault(flags == FlagIncrement);
        if (fault is null) header = read;
        return fault;
    }

    private string? Fault(bool isIncrement)
    {
        if (StreamId == Guid.Empty) return "the header names no stream";
        if (!IsSize(SizeBytes)) return $"the header claims {SizeBytes} bytes, which no volume has";
        if (isIncrement != Base is not null || (isIncrement ? !IsSize(BaseSizeBytes) : BaseSizeBytes != 0)) return "the header contradicts itself about its base";
        if (VolumeName.Length > 0 && !Core.VolumeName.IsValid(VolumeName, out _)) return "the header names a volume that cannot be";
        if (Target is null) return TargetName.Length == 0 && UnixSeconds == 0 ? null : "the header contradicts itself about its snapshot";
        return Core.VolumeName.IsValid(TargetName, out _) && Target != Base ? null : "the header names a snapshot that cannot be";
    }

    private static bool IsSize(ulong bytes) =>
        bytes is >= Units.VolumeBytesMin and <= Units.VolumeBytesMax && bytes % Units.SectorBytes == 0;

    private static void Put(Span<byte> target, Guid id) => Check.That(id.TryWriteBytes(target, bigEndian: true, out _));

    private static Guid Take(ReadOnlySpan<byte> source) => new(source[..16], bigEndian: true);

    private static Guid? TakeOptional(ReadOnlySpan<byte> source) => Take(source) is var id && id == Guid.Empty ? null : id;

    private static void PutName(Span<byte> target, string name)
    {
        Check.That(name.Length <= Core.VolumeName.LengthMax);
        target[0] = (byte)Encoding.ASCII.GetBytes(name, target[1..]);
    }

    /// <summary>Null when it is no name: one way only to write each.</summary>
    private static string? TakeName(ReadOnlySpan<byte> source)
    {
        int length = source[0];
        if (length > Core.VolumeName.LengthMax || source[(1 + length)..(1 + Core.VolumeName.LengthMax)].ContainsAnyExcept((byte)0)) return null;
        return Encoding.Latin1.GetString(source.Slice(1, length));
    }
}
