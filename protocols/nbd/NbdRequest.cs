using System.Buffers.Binary;

namespace BlockServer.Protocols.Nbd;

/// <summary>
/// The header of a request, big-endian.
/// <code>
/// compact (28)   0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 offset u64 | 24 length u32
/// extended (32)  the same with its own magic and length u64
/// </code>
/// </summary>
public readonly record struct NbdRequest(
    NbdCommand Command, NbdCommandFlags Flags, ulong Cookie, ulong OffsetBytes, ulong LengthBytes)
{
    /// <summary>Bytes of a compact header.</summary>
    public const int CompactSize = 28;

    /// <summary>Bytes of an extended header.</summary>
    public const int ExtendedSize = 32;

    /// <summary>Bytes of a header in <paramref name="mode"/>.</summary>
    public static int SizeIn(NbdReplyMode mode) => mode == NbdReplyMode.Extended ? ExtendedSize : CompactSize;

    /// <summary>Reads a header of <see cref="SizeIn"/> bytes; says why it is none, or null.</summary>
    public static string? TryRead(ReadOnlySpan<byte> source, NbdReplyMode mode, out NbdRequest request)
    {
        request = default;
        bool extended = mode == NbdReplyMode.Extended;
        if (source.Length < SizeIn(mode)) return "the request header is cut short";
        uint magic = extended ? NbdWire.ExtendedRequestMagic : NbdWire.RequestMagic;
        if (BinaryPrimitives.ReadUInt32BigEndian(source) != magic) return "wrong request magic";
        request = new NbdRequest(
            (NbdCommand)BinaryPrimitives.ReadUInt16BigEndian(source[6..]),
            (NbdCommandFlags)BinaryPrimitives.ReadUInt16BigEndian(source[4..]),
            BinaryPrimitives.ReadUInt64BigEndian(source[8..]),
            BinaryPrimitives.ReadUInt64BigEndian(source[16..]),
            extended
                ? BinaryPrimitives.ReadUInt64BigEndian(source[24..])
                : BinaryPrimitives.ReadUInt32BigEndian(source[24..]));
        return null;
    }

    /// <summary>Writes the header as a client would; answers its size.</summary>
    public int WriteTo(Span<byte> target, NbdReplyMode mode)
    {
        bool extended = mode == NbdReplyMode.Extended;
        BinaryPrimitives.WriteUInt32BigEndian(target, extended ? NbdWire.ExtendedRequestMagic : NbdWire.RequestMagic);
        BinaryPrimitives.WriteUInt16BigEndian(target[4..], (ushort)Flags);
        BinaryPrimitives.WriteUInt16BigEndian(target[6..], (ushort)Command);
        BinaryPrimitives.WriteUInt64BigEndian(target[8..], Cookie);
        BinaryPrimitives.WriteUInt64BigEndian(target[16..], OffsetBytes);
        if (extended) BinaryPrimitives.WriteUInt64BigEndian(target[24..], LengthBytes);
        else BinaryPrimitives.WriteUInt32BigEndian(target[24..], checked((uint)LengthBytes));
        return SizeIn(mode);
    }

    /// <summary>Bytes that follow the header on the wire: those of a write, and in extended mode whatever is announced.</summary>
    public ulong PayloadBytes(NbdReplyMode mode) =>
        Command == NbdCommand.Write
        || (mode == NbdReplyMode.Extended && (Flags & NbdCommandFlags.PayloadLength) != 0)
            ? LengthBytes : 0;

    /// <summary>
    /// The error that this request earns before it reaches the device, or None. <paramref name="sizeBytes"/> is the
    /// device's current size. A BLOCK_STATUS with payload is checked with the effect length in place of the length.
    /// </summary>
    public NbdError Fault(
        NbdReplyMode mode, ulong sizeBytes, bool isReadOnly, bool hasContext, int payloadMax, out ReadOnlySpan<byte> why)
    {
        NbdCommandFlags legal = NbdCommandFlags.Fua;
        bool isChange = false;
        bool isBounded = false;
        switch (Command)
        {
            case NbdCommand.Read:
                if (mode != NbdReplyMode.Simple) legal |= NbdCommandFlags.DontFragment;
                isBounded = true;
                break;
            case NbdCommand.Write:
                if (mode == NbdReplyMode.Extended) legal |= NbdCommandFlags.PayloadLength;
                isChange = isBounded = true;
                break;
            case NbdCommand.WriteZeroes:
                legal |= NbdCommandFlags.NoHole | NbdCommandFlags.FastZero;
                isChange = true;
                break;
            case NbdCommand.Trim:
                isChange = true;
                break;
            case NbdCommand.BlockStatus:
                legal |= NbdCommandFlags.RequestOne;
                if (mode == NbdReplyMode.Extended) legal |= NbdCommandFlags.PayloadLength;
                break;
            case NbdCommand.Flush or NbdCommand.Cache or NbdCommand.Disconnect:
                break;
            default:
                why = "unknown command"u8;
                return NbdError.Invalid;
        }

        if ((Flags & ~legal) != 0)
        {
            why = "flag not allowed with this command"u8;
            return NbdError.Invalid;
        }

        if (isChange && isReadOnly)
        {
            why = "the export is read-only"u8;
            return NbdError.Perm;
        }

        if (Command == NbdCommand.Flush)
        {
            why = "offset and length of a flush must be 0"u8;
            return OffsetBytes == 0 && LengthBytes == 0 ? NbdError.None : NbdError.Invalid;
        }

        if (isBounded && LengthBytes > (ulong)payloadMax)
        {
            why = "longer than the largest payload"u8;
            return (Flags & NbdCommandFlags.DontFragment) != 0 ? NbdError.Overflow : NbdError.Invalid;
        }

        if (Command == NbdCommand.BlockStatus && (!hasContext || LengthBytes == 0))
        {
            why = hasContext ? "length 0"u8 : "no metadata context was negotiated"u8;
            return NbdError.Invalid;
        }

        if (OffsetBytes > sizeBytes || LengthBytes > sizeBytes - OffsetBytes)
        {
            why = "past the end of the export"u8;
            return Command is NbdCommand.Write or NbdCommand.WriteZeroes ? NbdError.NoSpace : NbdError.Invalid;
        }

        why = default;
        return NbdError.None;
    }
}
