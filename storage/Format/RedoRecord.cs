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

    /// <summary>The slot begins as a page of lengths and clients of an append-only volume.</summary>
    BeginAppends = 13,

    /// <summary>Bytes were appended: the volume's new length and whose append it was.</summary>
    Append = 14,
}

/// <summary>Consecutive blocks of an extent that lie consecutively on the store.</summary>
/// <param name="First">Index in the extent, 0 to 255.</param>
/// <param name="Count">1 to 256.</param>
/// <param name="Block">Absolute block number of the first; 0 in a hole.</param>
public readonly record struct BlockRun(int First, int Count, uint Block);

/// <summary>
/// One record of a log page, as a view of the page. Every record begins with kind (u8), flags (u8), length (u16, header
/// included), slot (u32), volume (u32), extent (u32), before (u64), and for
/// <code>
/// Write       24 u64 version, 32 u16 runs, 34 u16 blocks, 36: per run u8 first, u8 count-1, u32 block; then u32 CRC per block
/// Hole        24 u64 version, 32 u16 runs, 34 u16 0,      36: per run u8 first, u8 count-1
/// PageImage   24 u32 layer, 28 u32 0; 32: 256 entries of 15 bytes
/// Volume      24: volume head, 104 bytes, with layers 120 (VolumeHeadLayout)
/// VolumeDelete, DropPage: nothing more
/// BadBlock    24 u32 block
/// Note        24 u64 F, 32 u64 tailLsn
/// Epoch       24 u64 epoch, 32 16 B leader
/// Snapshot    24: snapshot head, 128 bytes (SnapshotLayout)
/// BeginPage, Rekey  24 u32 layer
/// BeginAppends      24 u64 length
/// Append      24 u64 version, 32 u64 offset, 40 u32 bytes, 44 u32 place of the client, all ones: none, 48 u64 sequence, 56 16 B client
/// </code>
/// Before is the LSN of the record in front of this one that names the same slot: what this one changes must hold that
/// record, else recovery has an older page in hand than the one that the record was made for. It is 0 when the record says
/// all that the slot holds (a new page, an image, a head, a drop, the first bad block of a slot) or names none.
/// Flag 1 (NewPage) of a Write: the slot begins as the empty page of this extent; structural, applied even when the
/// data part is not. Flag 2 (Continued) of a Write, Hole or Append: the next record of the page belongs to the same request; such
/// a chain lies in one page, has one version, and its data parts count all or none. Flag 4 (Relaid) of a Write, alone: the
/// blocks lie at other places now and hold what they held, so each keeps the version that its page says; the record's
/// version is the highest of the page.
/// </summary>
public readonly ref struct RedoRecord
{
    /// <summary>Bytes in front of what differs by kind.</summary>
    public const int HeadBytes = 24;

    /// <summary>Where the runs of a Write or Hole begin.</summary>
    public const int RunsOffset = HeadBytes + 12;

    /// <summary>Length of a PageImage.</summary>
    public const int PageImageLength = HeadBytes + 8 + MetadataPage.EntriesBytes;

    /// <summary>Length of a BeginPage or Rekey.</summary>
    public const int LayerLength = HeadBytes + 4;

    /// <summary>Length of a BeginAppends.</summary>
    public const int BeginAppendsLength = HeadBytes + 8;

    /// <summary>Length of an Append.</summary>
    public const int AppendLength = HeadBytes + 48;

    /// <summary>Length of a Snapshot.</summary>
    public static readonly int SnapshotLength = HeadBytes + SnapshotLayout.Size;

    /// <summary>Length of a BadBlock.</summary>
    public const int BadBlockLength = HeadBytes + 4;

    /// <summary>Length of a Note.</summary>
    public const int NoteLength = HeadBytes + 16;

    /// <summary>Length of an Epoch.</summary>
    public const int EpochLength = HeadBytes + 24;

    /// <summary>Length of a Volume that says this.</summary>
    public static int VolumeLength(in VolumeHeadLayout head) => HeadBytes + head.UsedSize;

    /// <summary>The bit of <see cref="Flags"/> that begins a page.</summary>
    public const byte NewPageFlag = 1;

    /// <summary>The bit of <see cref="Flags"/> that links a record to the next one.</summary>
    public const byte ContinuedFlag = 2;

    /// <summary>The bit of <see cref="Flags"/> that leaves every block its version.</summary>
    public const byte RelaidFlag = 4;

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

    /// <summary>LSN that the page of the slot must have reached; 0 when nothing of it is needed.</summary>
    public ulong Before => U64(16);

    /// <summary>The slot begins anew.</summary>
    public bool IsNewPage => (Flags & NewPageFlag) != 0;

    /// <summary>The next record of the page belongs to the same request.</summary>
    public bool IsContinued => (Flags & ContinuedFlag) != 0;

    /// <summary>It changes or begins an extent's page.</summary>
    public bool IsOfPage =>
        Kind is RedoKind.Write or RedoKind.Hole or RedoKind.PageImage or RedoKind.BeginPage or RedoKind.Rekey;

    /// <summary>The page is what this record says, whatever the slot held before.</summary>
    public bool BeginsPage => IsNewPage || Kind is RedoKind.PageImage or RedoKind.BeginPage;

    /// <summary>The blocks were laid out anew: same content, same versions, other places.</summary>
    public bool IsRelaid => (Flags & RelaidFlag) != 0;

    /// <summary>Length that a BeginAppends begins with.</summary>
    public ulong AppendedBytes => U64(HeadBytes);

    /// <summary>What an Append says.</summary>
    public AppendEntry AppendEntry => new(
        U32(HeadBytes + 20), new Guid(_bytes.Slice(HeadBytes + 32, 16), bigEndian: true), U64(HeadBytes + 24), U64(HeadBytes + 8),
        U32(HeadBytes + 16), Version);

    /// <summary>Block version; Write, Hole and Append.</summary>
    public ulong Version => U64(24);

    /// <summary>Runs; Write and Hole.</summary>
    public int RunCount => BinaryPrimitives.ReadUInt16LittleEndian(_bytes[32..]);

    /// <summary>Blocks; Write.</summary>
    public int BlockCount => BinaryPrimitives.ReadUInt16LittleEndian(_bytes[34..]);

    /// <summary>The 256 entries of a PageImage.</summary>
    public ReadOnlySpan<byte> Entries => _bytes.Slice(HeadBytes + 8, MetadataPage.EntriesBytes);

    /// <summary>Block of a BadBlock.</summary>
    public uint BadBlock => U32(24);

    /// <summary>Flush point of a Note.</summary>
    public ulong FlushPoint => U64(24);

    /// <summary>Tail of a Note.</summary>
    public ulong TailLsn => U64(32);

    /// <summary>Epoch of an Epoch.</summary>
    public ulong Epoch => U64(24);

    /// <summary>Leader of an Epoch.</summary>
    public Guid Leader => new(_bytes.Slice(32, 16), bigEndian: true);

    /// <summary>The layer of a PageImage, BeginPage or Rekey.</summary>
    public uint Layer => U32(HeadBytes);

    /// <summary>Reads the head of a Volume; says why it is none, or null.</summary>
    public string? TryReadHead(out VolumeHeadLayout head)
    {
        // A record without layers is shorter: what is not there is zero.
        Span<byte> whole = stackalloc byte[VolumeHeadLayout.Size];
        whole.Clear();
        _bytes[HeadBytes..].CopyTo(whole);
        return VolumeHeadLayout.TryRead(whole, out head);
    }

    /// <summary>Reads the head of a Snapshot; says why it is none, or null.</summary>
    public string? TryReadSnapshot(out SnapshotLayout head) => SnapshotLayout.TryRead(_bytes[HeadBytes..], out head);

    /// <summary>Run <paramref name="index"/> of a Write or Hole.</summary>
    public BlockRun Run(int index)
    {
        if (Kind == RedoKind.Hole) return new BlockRun(_bytes[RunsOffset + 2 * index], _bytes[RunsOffset + 1 + 2 * index] + 1, 0);
        int at = RunsOffset + 6 * index;
        return new BlockRun(_bytes[at], _bytes[at + 1] + 1, U32(at + 2));
    }

    /// <summary>CRC of the n-th block that a Write names, counted through all runs.</summary>
    public uint CrcOf(int index) => U32(RunsOffset + 6 * RunCount + 4 * index);

    /// <summary>Length of a Write record.</summary>
    public static int WriteLength(int runs, int blocks) => RunsOffset + 6 * runs + 4 * blocks;

    /// <summary>Length of a Hole record.</summary>
    public static int HoleLength(int runs) => RunsOffset + 2 * runs;

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
            RedoKind.Write or RedoKind.Hole => RunsOffset,
            RedoKind.PageImage => PageImageLength,
            RedoKind.Volume => HeadBytes + VolumeHeadLayout.PlainSize,
            RedoKind.Snapshot => SnapshotLength,
            RedoKind.BeginPage or RedoKind.Rekey => LayerLength,
            RedoKind.VolumeDelete or RedoKind.DropPage => HeadBytes,
            RedoKind.BadBlock => BadBlockLength,
            RedoKind.Note => NoteLength,
            RedoKind.Epoch => EpochLength,
            RedoKind.BeginAppends => BeginAppendsLength,
            RedoKind.Append => AppendLength,
            _ => int.MaxValue,
        };
        if (least == int.MaxValue) return $"record: unknown kind {(byte)Kind}";
        if (_bytes.Length < least) return $"record: too short for {Kind}";
        int flags = Kind == RedoKind.Write ? IsRelaid ? RelaidFlag : NewPageFlag | ContinuedFlag
            : Kind is RedoKind.Hole or RedoKind.Append ? ContinuedFlag : 0;
        if ((Flags & ~flags) != 0) return $"record: flags 0x{Flags:x2} mean nothing for {Kind}";
        bool changes = Kind is RedoKind.Write or RedoKind.Hole or RedoKind.VolumeDelete or RedoKind.Rekey or RedoKind.Append && !IsNewPage;
        if (Kind != RedoKind.BadBlock && changes != (Before != 0))
            return changes ? $"record: {Kind} of a page that nothing began" : $"record: {Kind} needs no record before it";
        if (Kind == RedoKind.Volume && _bytes.Length == HeadBytes + VolumeHeadLayout.Size) return null;
        if (Kind == RedoKind.PageImage && U32(HeadBytes + 4) != 0) return "record: reserved bytes are not zero";
        if (Kind == RedoKind.BeginAppends && (AppendedBytes > Units.VolumeBytesMax || Extent >= AppendPage.PagesMax)) return "record: impossible length of a volume";
        if (Kind == RedoKind.Append && (Extent >= AppendPage.PagesMax || !AppendEntry.IsPossible)) return "record: impossible append";
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

/// <summary>Writes log records; every method answers the record's length. <c>before</c> is
/// <see cref="RedoRecord.Before"/>.</summary>
public static class RedoRecordWriter
{
    /// <summary>A Write; <paramref name="crcs"/> holds one CRC per block, through all runs.</summary>
    public static int Write(
        Span<byte> target, uint slot, uint volumeId, uint extent, ulong before, bool isNewPage, ulong version,
        ReadOnlySpan<BlockRun> runs, ReadOnlySpan<uint> crcs, bool isContinued = false, bool isRelaid = false)
    {
        int length = RedoRecord.WriteLength(runs.Length, crcs.Length);
        int flags = (isNewPage ? RedoRecord.NewPageFlag : 0) | (isContinued ? RedoRecord.ContinuedFlag : 0)
            | (isRelaid ? RedoRecord.RelaidFlag : 0);
        Head(target, RedoKind.Write, (byte)flags, length, slot, volumeId, extent, before);
        BlocksHead(target, version, runs.Length, crcs.Length);
        int at = RedoRecord.RunsOffset;
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
        Span<byte> target, uint slot, uint volumeId, uint extent, ulong before, ulong version, ReadOnlySpan<BlockRun> runs,
        bool isContinued = false)
    {
        int length = RedoRecord.HoleLength(runs.Length);
        Head(target, RedoKind.Hole, isContinued ? RedoRecord.ContinuedFlag : (byte)0, length, slot, volumeId, extent, before);
        BlocksHead(target, version, runs.Length, 0);
        for (int i = 0; i < runs.Length; i++)
        {
            target[RedoRecord.RunsOffset + 2 * i] = (byte)runs[i].First;
            target[RedoRecord.RunsOffset + 1 + 2 * i] = (byte)(runs[i].Count - 1);
        }

        return length;
    }

    /// <summary>A PageImage.</summary>
    public static int PageImage(
        Span<byte> target, uint slot, uint volumeId, uint extent, ReadOnlySpan<byte> entries, uint layer = 0)
    {
        Head(target, RedoKind.PageImage, 0, RedoRecord.PageImageLength, slot, volumeId, extent, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(target[RedoRecord.HeadBytes..], layer);
        entries[..MetadataPage.EntriesBytes].CopyTo(target[(RedoRecord.HeadBytes + 8)..]);
        return RedoRecord.PageImageLength;
    }

    /// <summary>A Volume.</summary>
    public static int Volume(Span<byte> target, uint slot, VolumeHeadLayout head)
    {
        int length = RedoRecord.VolumeLength(head);
        Head(target, RedoKind.Volume, 0, length, slot, head.Head.Id, 0, 0);
        Span<byte> whole = stackalloc byte[VolumeHeadLayout.Size];
        head.WriteTo(whole);
        whole[..head.UsedSize].CopyTo(target[RedoRecord.HeadBytes..]);
        return length;
    }

    /// <summary>A Snapshot.</summary>
    public static int Snapshot(Span<byte> target, uint slot, SnapshotLayout head)
    {
        Head(target, RedoKind.Snapshot, 0, RedoRecord.SnapshotLength, slot, head.Id.Volume, head.Id.Layer, 0);
        head.WriteTo(target[RedoRecord.HeadBytes..]);
        return RedoRecord.SnapshotLength;
    }

    /// <summary>A BeginPage: the page is empty.</summary>
    public static int BeginPage(Span<byte> target, uint slot, uint volumeId, uint extent, uint layer) =>
        OfLayer(target, RedoKind.BeginPage, slot, volumeId, extent, 0, layer);

    /// <summary>A Rekey: the page is another layer's.</summary>
    public static int Rekey(Span<byte> target, uint slot, uint volumeId, uint extent, ulong before, uint layer) =>
        OfLayer(target, RedoKind.Rekey, slot, volumeId, extent, before, layer);

    private static int OfLayer(Span<byte> target, RedoKind kind, uint slot, uint volumeId, uint extent, ulong before, uint layer)
    {
        Head(target, kind, 0, RedoRecord.LayerLength, slot, volumeId, extent, before);
        BinaryPrimitives.WriteUInt32LittleEndian(target[RedoRecord.HeadBytes..], layer);
        return RedoRecord.LayerLength;
    }

    /// <summary>A BeginAppends: the page has that length and no clients.</summary>
    public static int BeginAppends(Span<byte> target, uint slot, uint volumeId, uint index, ulong lengthBytes)
    {
        Head(target, RedoKind.BeginAppends, 0, RedoRecord.BeginAppendsLength, slot, volumeId, index, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(target[RedoRecord.HeadBytes..], lengthBytes);
        return RedoRecord.BeginAppendsLength;
    }

    /// <summary>An Append.</summary>
    public static int Append(
        Span<byte> target, uint slot, uint volumeId, uint index, ulong before, in AppendEntry entry, bool isContinued = false)
    {
        Head(target, RedoKind.Append, isContinued ? RedoRecord.ContinuedFlag : (byte)0, RedoRecord.AppendLength, slot, volumeId, index, before);
        BinaryPrimitives.WriteUInt64LittleEndian(target[RedoRecord.HeadBytes..], entry.Version);
        BinaryPrimitives.WriteUInt64LittleEndian(target[(RedoRecord.HeadBytes + 8)..], entry.OffsetBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[(RedoRecord.HeadBytes + 16)..], entry.LengthBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(target[(RedoRecord.HeadBytes + 20)..], entry.Place);
        BinaryPrimitives.WriteUInt64LittleEndian(target[(RedoRecord.HeadBytes + 24)..], entry.Sequence);
        entry.Client.TryWriteBytes(target[(RedoRecord.HeadBytes + 32)..], bigEndian: true, out _);
        return RedoRecord.AppendLength;
    }

    /// <summary>A VolumeDelete.</summary>
    public static int VolumeDelete(Span<byte> target, uint slot, uint volumeId, ulong before)
    {
        Head(target, RedoKind.VolumeDelete, 0, RedoRecord.HeadBytes, slot, volumeId, 0, before);
        return RedoRecord.HeadBytes;
    }

    /// <summary>A DropPage.</summary>
    public static int DropPage(Span<byte> target, uint slot, uint volumeId, uint extent)
    {
        Head(target, RedoKind.DropPage, 0, RedoRecord.HeadBytes, slot, volumeId, extent, 0);
        return RedoRecord.HeadBytes;
    }

    /// <summary>A BadBlock; the first one of a slot has nothing before it.</summary>
    public static int BadBlock(Span<byte> target, uint slot, ulong before, uint block)
    {
        Head(target, RedoKind.BadBlock, 0, RedoRecord.BadBlockLength, slot, 0, 0, before);
        BinaryPrimitives.WriteUInt32LittleEndian(target[RedoRecord.HeadBytes..], block);
        return RedoRecord.BadBlockLength;
    }

    /// <summary>A Note.</summary>
    public static int Note(Span<byte> target, ulong flushPoint, ulong tailLsn)
    {
        Head(target, RedoKind.Note, 0, RedoRecord.NoteLength, 0, 0, 0, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(target[RedoRecord.HeadBytes..], flushPoint);
        BinaryPrimitives.WriteUInt64LittleEndian(target[(RedoRecord.HeadBytes + 8)..], tailLsn);
        return RedoRecord.NoteLength;
    }

    /// <summary>An Epoch.</summary>
    public static int Epoch(Span<byte> target, uint volumeId, ulong epoch, Guid leader)
    {
        Head(target, RedoKind.Epoch, 0, RedoRecord.EpochLength, 0, volumeId, 0, 0);
        BinaryPrimitives.WriteUInt64LittleEndian(target[RedoRecord.HeadBytes..], epoch);
        leader.TryWriteBytes(target[(RedoRecord.HeadBytes + 8)..], bigEndian: true, out _);
        return RedoRecord.EpochLength;
    }

    private static void Head(
        Span<byte> target, RedoKind kind, byte flags, int length, uint slot, uint volume, uint extent, ulong before)
    {
        target[0] = (byte)kind;
        target[1] = flags;
        BinaryPrimitives.WriteUInt16LittleEndian(target[2..], (ushort)length);
        BinaryPrimitives.WriteUInt32LittleEndian(target[4..], slot);
        BinaryPrimitives.WriteUInt32LittleEndian(target[8..], volume);
        BinaryPrimitives.WriteUInt32LittleEndian(target[12..], extent);
        BinaryPrimitives.WriteUInt64LittleEndian(target[16..], before);
    }

    private static void BlocksHead(Span<byte> target, ulong version, int runs, int blocks)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(target[RedoRecord.HeadBytes..], version);
        BinaryPrimitives.WriteUInt16LittleEndian(target[(RedoRecord.HeadBytes + 8)..], (ushort)runs);
        BinaryPrimitives.WriteUInt16LittleEndian(target[(RedoRecord.HeadBytes + 10)..], (ushort)blocks);
    }
}
