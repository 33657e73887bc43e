using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>
/// Writes a stream: <see cref="StreamHeader.WriteTo"/>, then <see cref="Data"/> and <see cref="Empty"/> in the order of the
/// content, then <see cref="End(Span{byte})"/>. Pure: bytes go where the caller says. Not thread-safe.
/// </summary>
public sealed class StreamEncoder
{
    /// <summary>Bytes of the end frame's payload.</summary>
    public const int TotalsBytes = 64;

    private readonly StreamHeader _header;
    private readonly ICompressor? _compressor;

    /// <summary>Begins behind the header of <paramref name="header"/>, or goes on at <paramref name="from"/>, which it then
    /// owns. Data is packed by <paramref name="compressor"/> where that saves an eighth.</summary>
    public StreamEncoder(StreamHeader header, ICompressor? compressor = null, StreamCursor? from = null)
    {
        _header = header;
        _compressor = compressor;
        Cursor = from ?? StreamCursor.AtStart(header);
        Check.That(Cursor.StreamId == header.StreamId);
    }

    /// <summary>How far it has come.</summary>
    public StreamCursor Cursor { get; }

    /// <summary>Writes a data frame; at most <see cref="StreamFrame.Size"/> more bytes than the content has. How many.</summary>
    public int Data(ulong offsetBytes, ReadOnlySpan<byte> content, Span<byte> target)
    {
        Span<byte> room = target.Slice(StreamFrame.Size, content.Length);
        int packed = _compressor?.Compress(content, room[..(content.Length - content.Length / 8)]) ?? 0;
        if (packed == 0) content.CopyTo(room);
        int payload = packed == 0 ? content.Length : packed;
        return Put(
            new StreamFrame
            {
                Kind = StreamKind.Data,
                Encoding = packed == 0 ? StreamEncoding.Raw : StreamEncoding.Lz4,
                Sequence = Cursor.Sequence,
                OffsetBytes = offsetBytes,
                LengthBytes = (ulong)content.Length,
                PayloadBytes = payload,
                PayloadCrc = Crc32C.Compute(room[..payload]),
            },
            target);
    }

    /// <summary>As <see cref="Data"/> without packing, for content that stays where it lies: writes the frame's header alone, behind
    /// which <paramref name="content"/> belongs.</summary>
    public void Head(ulong offsetBytes, ReadOnlySpan<byte> content, Span<byte> header) => Put(
        new StreamFrame
        {
            Kind = StreamKind.Data,
            Sequence = Cursor.Sequence,
            OffsetBytes = offsetBytes,
            LengthBytes = (ulong)content.Length,
            PayloadBytes = content.Length,
            PayloadCrc = Crc32C.Compute(content),
        },
        header);

    /// <summary>Goes behind a data frame of which nobody will see the checksum: what follows fits to no stream but one that passes it as
    /// well.</summary>
    public void Pass(ulong offsetBytes, ulong lengthBytes)
    {
        Span<byte> header = stackalloc byte[StreamFrame.Size];
        Put(new StreamFrame { Kind = StreamKind.Data, Sequence = Cursor.Sequence, OffsetBytes = offsetBytes, LengthBytes = lengthBytes, PayloadBytes = (int)lengthBytes }, header);
    }

    /// <summary>Goes behind the end frame, which nobody asks for the bytes of.</summary>
    public void End()
    {
        Span<byte> end = stackalloc byte[StreamFrame.Size + TotalsBytes];
        End(end);
    }

    /// <summary>Writes a frame of zeros or a hole; how many bytes.</summary>
    public int Empty(StreamKind kind, ulong offsetBytes, ulong lengthBytes, Span<byte> target)
    {
        Check.That(kind is StreamKind.Zero or StreamKind.Hole);
        return Put(
            new StreamFrame { Kind = kind, Sequence = Cursor.Sequence, OffsetBytes = offsetBytes, LengthBytes = lengthBytes }, target);
    }

    /// <summary>Writes the last frame; how many bytes.</summary>
    public int End(Span<byte> target)
    {
        Span<byte> totals = target.Slice(StreamFrame.Size, TotalsBytes);
        WriteTotals(Cursor, totals);
        return Put(
            new StreamFrame
            {
                Kind = StreamKind.End,
                Sequence = Cursor.Sequence,
                OffsetBytes = _header.SizeBytes,
                LengthBytes = 0,
                PayloadBytes = TotalsBytes,
                PayloadCrc = Crc32C.Compute(totals),
            },
            target);
    }

    /// <summary>What the end frame carries behind <paramref name="cursor"/>.</summary>
    internal static void WriteTotals(StreamCursor cursor, Span<byte> totals)
    {
        ReadOnlySpan<ulong> numbers = [cursor.Sequence, cursor.DataBytes, cursor.ZeroBytes, cursor.HoleBytes];
        for (int i = 0; i < numbers.Length; i++) System.Buffers.Binary.BinaryPrimitives.WriteUInt64LittleEndian(totals[(8 * i)..], numbers[i]);
        cursor.Chain.CopyTo(totals[32..]);
    }

    private int Put(in StreamFrame frame, Span<byte> target)
    {
        Check.That(frame.OffsetBytes >= Cursor.OffsetBytes && frame.EndBytes <= _header.SizeBytes);
        Span<byte> chain = stackalloc byte[32];
        frame.WriteTo(target);
        Cursor.NextChain(target, chain);
        StreamFrame.Seal(target, chain);
        Cursor.Pass(frame, chain);
        return StreamFrame.Size + frame.PayloadBytes;
    }
}
