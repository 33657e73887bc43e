using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>What a log record says. Numbers are on disk for ever.</summary>
public enum RedoKind : byte
{
    /// <summary>Blocks of an extent lie at new places.</summary>
    Write = 1,

    /// <summary>Blocks of an extent are holes.</summary>
    Hole = 2,

    /// <summary>All 256 entries of an extent page.</summary>
    PageImage = 3,

    /// <summary>A volume's head, new or changed.</summary>
    Volume = 4,

    /// <summary>A volume is being deleted.</summary>
    VolumeDelete = 5,

    /// <summary>A metadata page is dropped; its slot becomes free.</summary>
    DropPage = 6,

    /// <summary>A block must not be used again.</summary>
    BadBlock = 7,

    /// <summary>Carries only what the page header claims.</summary>
    Note = 8,

    /// <summary>A leader's epoch.</summary>
    Epoch = 9,

    /// <summary>A snapshot's head, new or changed.</summary>
    Snapshot = 10,

    /// <summary>The slot begins as the empty page of an extent in a layer.</summary>
    BeginPage = 11,

    /// <summary>A metadata page belongs to another layer of its volume from now on.</summary>
    Rekey = 12,
}

/// <summary>Consecutive blocks of an extent that lie consecutively on the store.</summary>
/// <param name="First">Index in the extent, 0 to 255.</param>
/// <param name="Count">1 to 256.</param>
/// <param name="Block">Absolute block number of the first; 0 in a hole.</param>
public readonly record struct BlockRun(int First, int Count, uint Block);

/// <summary>
/// One record of a log page, as a view of the page. Every record begins with kind (u8), flags (u8), length (u16, header
/// included), then slot (u32), volume (u32), extent (u32), and for
/// <code>
/// Write       16 u64 version, 24 u16 runs, 26 u16 blocks, 28: per run u8 first, u8 count-1, u32 block; then u32 CRC per block
/// Hole        16 u64 version, 24 u16 runs, 26 u16 0,      28: per run u8 first, u8 count-1
/// PageImage   16 u32 layer, 20 u32 0; 24: 256 entries of 15 bytes
/// Volume      16: volume head, 104 bytes, with layers 120 (VolumeHeadLayout)
/// VolumeDelete, DropPage: nothing more
/// BadBlock    16 u32 block
/// Note        16 u64 F, 24 u64 tailLsn
/// Epoch       16 u64 epoch, 24 16 B leader
/// Snapshot    16: snapshot head, 128 bytes (SnapshotLayout)
/// BeginPage, Rekey  16 u32 layer
/// </code>
/// Flag 1 (NewPage) of a Write: the slot begins as the empty page of this extent; structural, applied even when the
/// data part is not. Flag 2 (Continued) of a Write or Hole: the next record of the page belongs to the same request; such
/// a chain lies in one page, has one version, and its data parts count all or none.
/// </summary>
public readonly ref struct RedoRecord
{
    /// <summary>Bytes in front of what differs by kind.</summary>
    public const int HeadBytes = 16;

    /// <summary>The bit of <see cref="Flags"/> that begins a page.</summary>
    public const byte NewPageFlag = 1;

    /// <summary>The bit of <see cref="Flags"/> that links a record to the next one.</summary>
    public const byte ContinuedFlag = 2;

    private readonly ReadOnlySpan<byte> _bytes;

    private RedoRecord(ReadOnlySpan<byte> bytes) => _bytes = bytes;

    /// <summary>What it says.</summary>
    public RedoKind Kind => (RedoKind)_bytes[0];

    /// <summary>Flags of the kind.</summary>
    public byte Flags => _bytes[1];

    /// <summary>Length in bytes.</summary>
    public int Length => BinaryPrimitives.ReadUInt16LittleEndian(_bytes[2..]);

    /// <summary>The slot it changes.</summary>
    public uint Slot => U32(4);

    /// <summary>The volume.</summary>
    public uint VolumeId => U32(8);

    /// <summary>The extent's index in the volume.</summary>
    public uint Extent => U32(12);

    /// <summary>The slot begins anew.</summary>
    public bool IsNewPage => (Flags & NewPageFlag) != 0;

    /// <summary>The next record of the page belongs to the same request.</summary>
    public bool IsContinued => (Flags & ContinuedFlag) != 0;

    /// <summary>It changes or begins an extent's page.</summary>
    public bool IsOfPage =>
        Kind is RedoKind.Write or RedoKind.Hole or RedoKind.PageImage or RedoKind.BeginPage or RedoKind.Rekey;

    /// <summary>The page is what this record says, whatever the slot held before.</summary>
    public bool BeginsPage => IsNewPage || Kind is RedoKind.PageImage or RedoKind.BeginPage;

    /// <summary>Block version; Write and Hole.</summary>
    public ulong Version => U64(16);

    /// <summary>Runs; Write and Hole.</summary>
    public int RunCount => BinaryPrimitives.ReadUInt16LittleEndian(_bytes[24..]);

    /// <summary>Blocks; Write.</summary>
    public int BlockCount => BinaryPrimitives.ReadUInt16LittleEndian(_bytes[26..]);

    /// <summary>The 256 entries of a PageImage.</summary>
    public ReadOnlySpan<byte> Entries => _bytes.Slice(24, MetadataPage.EntriesBytes);

    /// <summary>Block of a BadBlock.</summary>
    public uint BadBlock => U32(16);

    /// <summary>Flush point of a Note.</summary>
    public ulong FlushPoint => U64(16);

    /// <summary>Tail of a Note.</summary>
    public ulong TailLsn => U64(24);

    /// <summary>Epoch of an Epoch.</summary>
    public ulong Epoch => U64(16);

    /// <summary>Leader of an Epoch.</summary>
    public Guid Leader => new(_bytes.Slice(24, 16), bigEndian: true);

    /// <summary>The layer of a PageImage, BeginPage or Rekey.</summary>
    public uint Layer => U32(16);

    /// <summary>Reads the head of a Volume; says why it is none, or null.</summary>
    public string? TryReadHead(out VolumeHeadLayout head)
    {
        // A record without layers is shorter: what is not there is zero.
        Span<byte> whole = stackalloc byte[VolumeHeadLayout.Size];
        whole.Clear();
        _bytes[16..].CopyTo(whole);
        return VolumeHeadLayout.TryRead(whole, out head);
    }

    /// <summary>Reads the head of a Snapshot; says why it is none, or null.</summary>
    public string? TryReadSnapshot(out SnapshotLayout head) => SnapshotLayout.TryRead(_bytes[16..], out head);

    /// <summary>Run <paramref name="index"/> of a Write or Hole.</summary>
    public BlockRun Run(int index)
    {
        if (Kind == RedoKind.Hole) return new BlockRun(_bytes[28 + 2 * index], _bytes[29 + 2 * index] + 1, 0);
        int at = 28 + 6 * index;
        return new BlockRun(_bytes[at], _bytes[at + 1] + 1, U32(at + 2));
    }

    /// <summary>CRC of the n-th block that a Write names, counted through all runs.</summary>
    public uint CrcOf(int index) => U32(28 + 6 * RunCount + 4 * index);

    /// <summary>Length of a Write record.</summary>
    public static int WriteLength(int runs, int blocks) => 28 + 6 * runs + 4 * blocks;

    /// <summary>Length of a Hole record.</summary>
    public static int HoleLength(int runs) => 28 + 2 * runs;

    /// <summary>Reads the record at <paramref name="offset"/> of a page of <paramref name="usedBytes"/>; says why it is
    /// none, or null. Everything that an accessor touches has been checked.</summary>
    public static string? TryRead(ReadOnlySpan<byte> page, int offset, int usedBytes, out RedoRecord record)
    {
        record = default;
        if (usedBytes > page.Length || offset < 0 || offset + HeadBytes > usedBytes) return "record: cut off";
        ReadOnlySpan<byte> rest = page[offset..usedBytes];
        int length = BinaryPrimitives.ReadUInt16LittleEndian(rest[2..]);
        if (length < HeadBytes || length > rest.Length) return "record: impossible length";
        var read = new RedoRecord(rest[..length]);
        string? fault = read.Fault();
        if (fault is null) record = read;
        return fault;
    }

    private string? Fault()
    {
        int least = Kind switch
        {
            RedoKind.Write or RedoKind.Hole => 28,
            RedoKind.PageImage => 24 + MetadataPage.EntriesBytes,
            RedoKind.Volume => 16 + VolumeHeadLayout.PlainSize,
            RedoKind.Snapshot => 16 + SnapshotLayout.Size,
            RedoKind.BeginPage or RedoKind.Rekey => 20,
            RedoKind.VolumeDelete or RedoKind.DropPage => HeadBytes,
            RedoKind.BadBlock => 20,
            RedoKind.Note => 32,
            RedoKind.Epoch => 40,
            _ => int.MaxValue,
        };
        if (least == int.MaxValue) return $"record: unknown kind {(byte)Kind}";
        if (_bytes.Length < least) return $"record: too short for {Kind}";
        int flags = Kind == RedoKind.Write ? NewPageFlag | ContinuedFlag : Kind == RedoKind.Hole ? ContinuedFlag : 0;
        if ((Flags & ~flags) != 0) return $"record: flags 0x{Flags:x2} mean nothing for {Kind}";
        if (Kind == RedoKind.Volume && _bytes.Length == 16 + VolumeHeadLayout.Size) return null;
        if (Kind == RedoKind.PageImage && U32(20) != 0) return "record: reserved bytes are not zero";
        if (Kind is not (RedoKind.Write or RedoKind.Hole)) return _bytes.Length == least ? null : $"record: too long for {Kind}";
        int expected = Kind == RedoKind.Hole ? HoleLength(RunCount) : WriteLength(RunCount, BlockCount);
        if (_bytes.Length != expected) return $"record: length of {Kind} does not fit its runs";
        int next = 0, blocks = 0;
        for (int i = 0; i < RunCount; i++)
        {
            BlockRun run = Run(i);
            if (run.First < next || run.First + run.Count > Units.BlocksPerExtent) return "record: runs out of order";
            if (Kind == RedoKind.Write && (run.Block == 0 || run.Block > uint.MaxValue - 256)) return "record: no such block";
            next = run.First + run.Count;
            blocks += run.Count;
        }

        return Kind == RedoKind.Write && blocks != BlockCount ? "record: block count differs from its runs" : null;
    }

    private uint U32(int at) => BinaryPrimitives.ReadUInt32LittleEndian(_bytes[at..]);

    private ulong U64(int at) => BinaryPrimitives.ReadUInt64LittleEndian(_bytes[at..]);
}

/// <summary>Writes log records; every method answers the record's length.</summary>
public static class RedoRecordWriter
{
    /// <summary>A Write; <paramref name="crcs"/> holds one CRC per block, through all runs.</summary>
    public static int Write(
        Span<byte> target, uint slot, uint volumeId, uint extent, bool isNewPage, ulong version,
        ReadOnlySpan<BlockRun> runs, ReadOnlySpan<uint> crcs, bool isContinued = false)
    {
        int length = RedoRecord.WriteLength(runs.Length, crcs.Length);
        int flags = (isNewPage ? RedoRecord.NewPageFlag : 0) | (isContinued ? RedoRecord.ContinuedFlag : 0);
        Head(target, RedoKind.Write, (byte)flags, length, slot, volumeId, extent);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], version);
        BinaryPrimitives.WriteUInt16LittleEndian(target[24..], (ushort)runs.Length);
        BinaryPrimitives.WriteUInt16LittleEndian(target[26..], (ushort)crcs.Length);
        int at = 28;
        foreach (BlockRun run in runs)
        {
            target[at] = (byte)run.First;
            target[at + 1] = (byte)(run.Count - 1);
            BinaryPrimitives.WriteUInt32LittleEndian(target[(at + 2)..], run.Block);
            at += 6;
        }

        foreach (uint crc in crcs)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(target[at..], crc);
            at += 4;
        }

        return length;
    }

    /// <summary>A Hole.</summary>
    public static int Hole(
        Span<byte> target, uint slot, uint volumeId, uint extent, ulong version, ReadOnlySpan<BlockRun> runs,
        bool isContinued = false)
    {
        int length = RedoRecord.HoleLength(runs.Length);
        Head(target, RedoKind.Hole, isContinued ? RedoRecord.ContinuedFlag : (byte)0, length, slot, volumeId, extent);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], version);
        BinaryPrimitives.WriteUInt16LittleEndian(target[24..], (ushort)runs.Length);
        BinaryPrimitives.WriteUInt16LittleEndian(target[26..], 0);
        for (int i = 0; i < runs.Length; i++)
        {
            target[28 + 2 * i] = (byte)runs[i].First;
            target[29 + 2 * i] = (byte)(runs[i].Count - 1);
        }

        return length;
    }

    /// <summary>A PageImage.</summary>
    public static int PageImage(
        Span<byte> target, uint slot, uint volumeId, uint extent, ReadOnlySpan<byte> entries, uint layer = 0)
    {
        int length = 24 + MetadataPage.EntriesBytes;
        Head(target, RedoKind.PageImage, 0, length, slot, volumeId, extent);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], layer);
        entries[..MetadataPage.EntriesBytes].CopyTo(target[24..]);
        return length;
    }

    /// <summary>A Volume.</summary>
    public static int Volume(Span<byte> target, uint slot, VolumeHeadLayout head)
    {
        int length = 16 + head.UsedSize;
        Head(target, RedoKind.Volume, 0, length, slot, head.Head.Id, 0);
        Span<byte> whole = stackalloc byte[VolumeHeadLayout.Size];
        head.WriteTo(whole);
        whole[..head.UsedSize].CopyTo(target[16..]);
        return length;
    }

    /// <summary>A Snapshot.</summary>
    public static int Snapshot(Span<byte> target, uint slot, SnapshotLayout head)
    {
        int length = 16 + SnapshotLayout.Size;
        Head(target, RedoKind.Snapshot, 0, length, slot, head.Id.Volume, head.Id.Layer);
        head.WriteTo(target[16..]);
        return length;
    }

    /// <summary>A BeginPage or Rekey.</summary>
    public static int OfLayer(Span<byte> target, RedoKind kind, uint slot, uint volumeId, uint extent, uint layer)
    {
        Head(target, kind, 0, 20, slot, volumeId, extent);
        BinaryPrimitives.WriteUInt32LittleEndian(target[16..], layer);
        return 20;
    }

    /// <summary>A VolumeDelete or DropPage.</summary>
    public static int Plain(Span<byte> target, RedoKind kind, uint slot, uint volumeId, uint extent)
    {
        Head(target, kind, 0, RedoRecord.HeadBytes, slot, volumeId, extent);
        return RedoRecord.HeadBytes;
    }

    /// <summary>A BadBlock.</summary>
    public static int BadBlock(Span<byte> target, uint slot, uint block)
    {
        Head(target, RedoKind.BadBlock, 0, 20, slot, 0, 0);
        BinaryPrimitives.WriteUInt32LittleEndian(target[16..], block);
        return 20;
    }

    /// <summary>A Note.</summary>
    public static int Note(Span<byte> target, ulong flushPoint, ulong tailLsn)
    {
        Head(target, RedoKind.Note, 0, 32, 0, 0, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], flushPoint);
        BinaryPrimitives.WriteUInt64LittleEndian(target[24..], tailLsn);
        return 32;
    }

    /// <summary>An Epoch.</summary>
    public static int Epoch(Span<byte> target, uint volumeId, ulong epoch, Guid leader)
    {
        Head(target, RedoKind.Epoch, 0, 40, 0, volumeId, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], epoch);
        leader.TryWriteBytes(target[24..], bigEndian: true, out _);
        return 40;
    }

    private static void Head(Span<byte> target, RedoKind kind, byte flags, int length, uint slot, uint volume, uint extent)
    {
        target[0] = (byte)kind;
        target[1] = flags;
        BinaryPrimitives.WriteUInt16LittleEndian(target[2..], (ushort)length);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], slot);
        BinaryPrimitives.WriteUInt32LittleEndian(target[8..], volume);
        BinaryPrimitives.WriteUInt32LittleEndian(target[12..], extent);
    }
}
