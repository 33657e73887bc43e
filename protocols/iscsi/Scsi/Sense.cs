using System.Buffers.Binary;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>Sense keys of SPC-4, 4.5.6.</summary>
public enum SenseKey : byte
{
    /// <summary>Nothing to say.</summary>
    NoSense = 0x0,

    /// <summary>Not now: no medium, stopped, sanitizing.</summary>
    NotReady = 0x2,

    /// <summary>The content cannot be read or written.</summary>
    MediumError = 0x3,

    /// <summary>The store has stopped.</summary>
    HardwareError = 0x4,

    /// <summary>The command is wrong.</summary>
    IllegalRequest = 0x5,

    /// <summary>Something changed since the last command of this nexus.</summary>
    UnitAttention = 0x6,

    /// <summary>Write protected, or no space.</summary>
    DataProtect = 0x7,

    /// <summary>EXTENDED COPY stopped.</summary>
    CopyAborted = 0xA,

    /// <summary>Ended early; the initiator may try again.</summary>
    AbortedCommand = 0xB,

    /// <summary>The data differ.</summary>
    Miscompare = 0xE,
}

/// <summary>
/// What sense data says, and its two formats (SPC-4, 4.5). A value; nothing is allocated.
/// <code>
/// fixed, 18 bytes:   70 | VALID, 0, key, information u32, 0A, 0 u32, asc, ascq, 0, sense key specific (3 bytes)
/// descriptor, 8+n:   72, key, asc, ascq, 0, 0, 0, n; then 00 0A 80 00 information u64; then 02 06 0 0 sks (3 bytes) 0
/// </code>
/// </summary>
/// <param name="Key">Sense key.</param>
/// <param name="Code">Additional sense code (high byte) and qualifier (low byte).</param>
public readonly record struct Sense(SenseKey Key, ushort Code)
{
    /// <summary>INFORMATION field, or null. In the fixed format it is left out when it does not fit 32 bits.</summary>
    public ulong? Information { get; init; }

    /// <summary>Three sense key specific bytes as a number (SKSV is bit 23), or 0 for none.</summary>
    public uint Specific { get; init; }

    /// <summary>05/20/00: the operation code is not known.</summary>
    public static Sense InvalidOpcode => new(SenseKey.IllegalRequest, 0x2000);

    /// <summary>05/25/00: no such logical unit.</summary>
    public static Sense NoLogicalUnit => new(SenseKey.IllegalRequest, 0x2500);

    /// <summary>05/21/00: past the end.</summary>
    public static Sense OutOfRange => new(SenseKey.IllegalRequest, 0x2100);

    /// <summary>05/1A/00: the parameter list has the wrong length.</summary>
    public static Sense ListLength => new(SenseKey.IllegalRequest, 0x1A00);

    /// <summary>05/0E/03: Data-Out ends inside a block.</summary>
    public static Sense PartialBlock => new(SenseKey.IllegalRequest, 0x0E03);

    /// <summary>05/24/00: a field of the CDB is wrong; points at its <paramref name="at"/>th byte.</summary>
    public static Sense InCdb(int at) => new(SenseKey.IllegalRequest, 0x2400) { Specific = 0xC00000u | (uint)at };

    /// <summary>05/24/00, pointing at <paramref name="bit"/> (the highest bit of the field).</summary>
    public static Sense InCdb(int at, int bit) =>
        new(SenseKey.IllegalRequest, 0x2400) { Specific = 0xC80000u | ((uint)bit << 16) | (uint)at };

    /// <summary>05/26/00: a field of the parameter list is wrong; points at its <paramref name="at"/>th byte.</summary>
    public static Sense InList(int at) => new(SenseKey.IllegalRequest, 0x2600) { Specific = 0x800000u | ((uint)at & 0xFFFF) };

    /// <summary>0E/1D/00: the first byte that differs is at <paramref name="at"/>.</summary>
    public static Sense Miscompare(int at) => new(SenseKey.Miscompare, 0x1D00) { Information = (ulong)at };

    /// <summary>How far an operation is, 0 to 65,535.</summary>
    public Sense WithProgress(ushort progress) => this with { Specific = 0x800000u | progress };

    /// <summary>Writes it to <paramref name="target"/> (at least 28 bytes) and answers how many bytes it took.</summary>
    public int WriteTo(Span<byte> target, bool asDescriptors) => asDescriptors ? WriteDescriptors(target) : WriteFixed(target);

    private int WriteFixed(Span<byte> target)
    {
        target[..18].Clear();
        target[0] = 0x70;
        target[2] = (byte)Key;
        target[7] = 10;
        BinaryPrimitives.WriteUInt16BigEndian(target[12..], Code);
        if (Information is <= uint.MaxValue)
        {
            target[0] |= 0x80;
            BinaryPrimitives.WriteUInt32BigEndian(target[3..], (uint)Information.Value);
        }

        WriteSpecific(target[15..]);
        return 18;
    }

    private int WriteDescriptors(Span<byte> target)
    {
        target[..28].Clear();
        target[0] = 0x72;
        target[1] = (byte)Key;
        BinaryPrimitives.WriteUInt16BigEndian(target[2..], Code);
        int at = 8;
        if (Information is not null)
        {
            target[at + 1] = 0x0A;
            target[at + 2] = 0x80;
            BinaryPrimitives.WriteUInt64BigEndian(target[(at + 4)..], Information.Value);
            at += 12;
        }

        if (Specific != 0)
        {
            target[at] = 0x02;
            target[at + 1] = 0x06;
            WriteSpecific(target[(at + 4)..]);
            at += 8;
        }

        target[7] = (byte)(at - 8);
        return at;
    }

    private void WriteSpecific(Span<byte> target)
    {
        target[0] = (byte)(Specific >> 16);
        BinaryPrimitives.WriteUInt16BigEndian(target[1..], (ushort)Specific);
    }
}

/// <summary>How a command ended: a status, and sense data with CHECK CONDITION. Lives on the stack.</summary>
internal readonly record struct ScsiResult(ScsiStatus Status, Sense Sense)
{
    /// <summary>GOOD.</summary>
    public static ScsiResult Good => default;

    /// <summary>RESERVATION CONFLICT.</summary>
    public static ScsiResult Conflict => new(ScsiStatus.ReservationConflict, default);

    /// <summary>True for GOOD.</summary>
    public bool IsGood => Status == ScsiStatus.Good;

    /// <summary>CHECK CONDITION with that sense.</summary>
    public static implicit operator ScsiResult(Sense sense) => new(ScsiStatus.CheckCondition, sense);
}
