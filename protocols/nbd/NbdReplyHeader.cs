using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

/// <summary>
/// Headers of replies, big-endian; each method answers how many bytes it wrote.
/// <code>
/// simple (16)      0 magic u32 | 4 error u32 | 8 cookie u64
/// structured (20)  0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 payload length u32
/// extended (32)    0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 request offset u64 | 24 payload length u64
/// </code>
/// </summary>
public static class NbdReplyHeader
{
    /// <summary>Bytes of a simple reply.</summary>
    public const int SimpleSize = 16;

    /// <summary>Most bytes that any header with the offset of a data or hole chunk takes.</summary>
    public const int SizeMax = 48;

    /// <summary>Bytes of a chunk header in <paramref name="mode"/>.</summary>
    public static int ChunkSize(NbdReplyMode mode) => mode == NbdReplyMode.Extended ? 32 : 20;

    /// <summary>Bytes in front of the data of a successful READ that answers in one piece.</summary>
    public static int ReadSize(NbdReplyMode mode) => mode == NbdReplyMode.Simple ? SimpleSize : ChunkSize(mode) + 8;

    /// <summary>A simple reply.</summary>
    public static int WriteSimple(Span<byte> target, NbdError error, ulong cookie)
    {
        BinaryPrimitives.WriteUInt32BigEndian(target, NbdWire.SimpleReplyMagic);
        BinaryPrimitives.WriteUInt32BigEndian(target[4..], (uint)error);
        BinaryPrimitives.WriteUInt64BigEndian(target[8..], cookie);
        return SimpleSize;
    }

    /// <summary>The header of a structured or extended chunk.</summary>
    public static int WriteChunk(
        Span<byte> target, NbdReplyMode mode, bool isLast, NbdChunk type, in NbdRequest request, int payloadBytes)
    {
        bool extended = mode == NbdReplyMode.Extended;
        uint magic = extended ? NbdWire.ExtendedReplyMagic : NbdWire.StructuredReplyMagic;
        BinaryPrimitives.WriteUInt32BigEndian(target, magic);
        BinaryPrimitives.WriteUInt16BigEndian(target[4..], (ushort)(isLast ? 1 : 0));
        BinaryPrimitives.WriteUInt16BigEndian(target[6..], (ushort)type);
        BinaryPrimitives.WriteUInt64BigEndian(target[8..], request.Cookie);
        if (!extended)
        {
            BinaryPrimitives.WriteUInt32BigEndian(target[16..], (uint)payloadBytes);
            return 20;
        }

        BinaryPrimitives.WriteUInt64BigEndian(target[16..], request.OffsetBytes);
        BinaryPrimitives.WriteUInt64BigEndian(target[24..], (ulong)payloadBytes);
        return 32;
    }

    /// <summary>Chunk header and offset of a data chunk; <paramref name="dataBytes"/> of data follow.</summary>
    public static int WriteData(
        Span<byte> target, NbdReplyMode mode, bool isLast, in NbdRequest request, ulong offsetBytes, int dataBytes)
    {
        int size = WriteChunk(target, mode, isLast, NbdChunk.OffsetData, request, dataBytes + 8);
        BinaryPrimitives.WriteUInt64BigEndian(target[size..], offsetBytes);
        return size + 8;
    }

    /// <summary>A whole hole chunk.</summary>
    public static int WriteHole(
        Span<byte> target, NbdReplyMode mode, bool isLast, in NbdRequest request, ulong offsetBytes, uint holeBytes)
    {
        int size = WriteChunk(target, mode, isLast, NbdChunk.OffsetHole, request, 12);
        BinaryPrimitives.WriteUInt64BigEndian(target[size..], offsetBytes);
        BinaryPrimitives.WriteUInt32BigEndian(target[(size + 8)..], holeBytes);
        return size + 12;
    }

    /// <summary>A whole reply without data: success or an error, the latter with a text where the mode has room for one.</summary>
    public static int WriteAnswer(
        Span<byte> target, NbdReplyMode mode, in NbdRequest request, NbdError error, ReadOnlySpan<byte> why)
    {
        // Structured mode may answer the success of all but READ and BLOCK_STATUS simply, which is 4 bytes shorter.
        bool mustChunk = mode == NbdReplyMode.Extended
            || (mode == NbdReplyMode.Structured
                && (error != NbdError.None || request.Command is NbdCommand.Read or NbdCommand.BlockStatus));
        if (!mustChunk) return WriteSimple(target, error, request.Cookie);
        if (error == NbdError.None) return WriteChunk(target, mode, true, NbdChunk.None, request, 0);

        int size = WriteChunk(target, mode, true, NbdChunk.Error, request, 6 + why.Length);
        BinaryPrimitives.WriteUInt32BigEndian(target[size..], (uint)error);
        BinaryPrimitives.WriteUInt16BigEndian(target[(size + 4)..], (ushort)why.Length);
        why.CopyTo(target[(size + 6)..]);
        return size + 6 + why.Length;
    }

    /// <summary>What a device's answer is called on the wire.</summary>
    public static NbdError ErrorOf(IoStatus status, out ReadOnlySpan<byte> why)
    {
        switch (status)
        {
            case IoStatus.Ok:
                why = default;
                return NbdError.None;
            case IoStatus.OutOfRange:
                why = "past the end of the export"u8;
                return NbdError.Invalid;
            case IoStatus.Invalid:
                why = "invalid request"u8;
                return NbdError.Invalid;
            case IoStatus.ReadOnly:
                why = "the export is read-only"u8;
                return NbdError.Perm;
            case IoStatus.Reserved:
                why = "the volume is reserved over iSCSI"u8;
                return NbdError.Perm;
            case IoStatus.NoSpace:
                why = "the store is full"u8;
                return NbdError.NoSpace;
            case IoStatus.Corrupt:
                why = "checksum mismatch, no good copy"u8;
                return NbdError.Io;
            case IoStatus.NotSupported:
                why = "no fast way to zero this range"u8;
                return NbdError.NotSupported;
            case IoStatus.ShuttingDown:
                why = "the server is shutting down"u8;
                return NbdError.Shutdown;
            case IoStatus.Unavailable:
                why = "the store has stopped"u8;
                return NbdError.Io;
            default:
                why = "I/O error"u8;
                return NbdError.Io;
        }
    }
}
