using System.Buffers.Binary;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// What every basic header segment shares (RFC 7143, 11.2.1). Big endian.
/// <code>
/// off  0               1            4              5                   8     16    20          48
///      +---------------+------------+--------------+-------------------+-----+-----+-----------+
///      | . I opcode(6) | F specific | TotalAHSLen  | DataSegmentLength | LUN | ITT | specific  |
///      |               |            | 4-byte words | 24 bits           |     |     |           |
///      +---------------+------------+--------------+-------------------+-----+-----+-----------+
/// </code>
/// </summary>
/// <param name="Opcode">Which PDU.</param>
/// <param name="IsImmediate">The I bit.</param>
/// <param name="Flags">Byte 1.</param>
/// <param name="AhsBytes">Length of the additional header segments.</param>
/// <param name="DataBytes">Length of the data segment without padding.</param>
/// <param name="InitiatorTaskTag">The initiator's tag.</param>
public readonly record struct IscsiHeader(
    IscsiOpcode Opcode, bool IsImmediate, byte Flags, int AhsBytes, int DataBytes, uint InitiatorTaskTag)
{
    /// <summary>The F bit.</summary>
    public bool IsFinal => (Flags & 0x80) != 0;

    /// <summary>Data segment and its padding, bytes.</summary>
    public int PaddedDataBytes => DataBytes + IscsiWire.PadOf(DataBytes);

    /// <summary>Reads what is common of 48 bytes; any bytes are readable.</summary>
    public static IscsiHeader Read(ReadOnlySpan<byte> bhs) => new(
        (IscsiOpcode)(bhs[0] & 0x3F), (bhs[0] & 0x40) != 0, bhs[1], bhs[4] * 4,
        bhs[5] << 16 | bhs[6] << 8 | bhs[7], BinaryPrimitives.ReadUInt32BigEndian(bhs[16..]));

    /// <summary>Clears 48 bytes and writes opcode, flags and lengths.</summary>
    public static void Begin(Span<byte> bhs, IscsiOpcode opcode, int flags, int dataBytes)
    {
        bhs[..IscsiWire.BhsSize].Clear();
        bhs[0] = (byte)opcode;
        bhs[1] = (byte)flags;
        SetDataBytes(bhs, dataBytes);
    }

    /// <summary>Begins what only targets send: the tag and the three numbers stand at the same place in all of them.</summary>
    internal static void BeginAnswer(
        Span<byte> bhs, IscsiOpcode opcode, int flags, int dataBytes, uint tag, in IscsiNumbers numbers)
    {
        Begin(bhs, opcode, flags, dataBytes);
        Put(bhs, 16, tag);
        numbers.WriteTo(bhs);
    }

    /// <summary>Sets DataSegmentLength.</summary>
    public static void SetDataBytes(Span<byte> bhs, int dataBytes)
    {
        bhs[5] = (byte)(dataBytes >> 16);
        bhs[6] = (byte)(dataBytes >> 8);
        bhs[7] = (byte)dataBytes;
    }

    internal static uint U32(ReadOnlySpan<byte> bhs, int at) => BinaryPrimitives.ReadUInt32BigEndian(bhs[at..]);

    internal static ulong U64(ReadOnlySpan<byte> bhs, int at) => BinaryPrimitives.ReadUInt64BigEndian(bhs[at..]);

    internal static void Put(Span<byte> bhs, int at, uint value) => BinaryPrimitives.WriteUInt32BigEndian(bhs[at..], value);

    internal static void Put(Span<byte> bhs, int at, ulong value) => BinaryPrimitives.WriteUInt64BigEndian(bhs[at..], value);
}

/// <summary>The three numbers at 24, 28 and 32 of nearly everything that a target sends.</summary>
/// <param name="StatSn">Number of this status, or of the next.</param>
/// <param name="ExpCmdSn">Next command expected.</param>
/// <param name="MaxCmdSn">Last command that may be sent.</param>
public readonly record struct IscsiNumbers(uint StatSn, uint ExpCmdSn, uint MaxCmdSn)
{
    /// <summary>Writes them.</summary>
    public void WriteTo(Span<byte> bhs)
    {
        IscsiHeader.Put(bhs, 24, StatSn);
        IscsiHeader.Put(bhs, 28, ExpCmdSn);
        IscsiHeader.Put(bhs, 32, MaxCmdSn);
    }

    /// <summary>Reads them.</summary>
    public static IscsiNumbers Read(ReadOnlySpan<byte> bhs) =>
        new(IscsiHeader.U32(bhs, 24), IscsiHeader.U32(bhs, 28), IscsiHeader.U32(bhs, 32));
}
