using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>
/// Reads a stream: <see cref="StreamHeader.TryRead"/>, then for each frame <see cref="ReadFrame"/> with its 64 bytes and
/// <see cref="Accept"/> with its payload, until <see cref="IsWhole"/>. Pure: it is handed bytes, and answers what is wrong with
/// them in a sentence. Keeps nothing that grows with what the bytes claim. After a fault it must not be used any more. Not
/// thread-safe.
/// </summary>
public sealed class StreamDecoder
{
    private readonly StreamHeader _header;
    private readonly ICompressor? _compressor;
    private readonly byte[] _chain = new byte[32];

    /// <summary>Begins behind the header, or goes on at <paramref name="from"/>, which it then owns.</summary>
    public StreamDecoder(StreamHeader header, ICompressor? compressor = null, StreamCursor? from = null)
    {
        _header = header;
        _compressor = compressor;
        Cursor = from ?? StreamCursor.AtStart(header);
        Check.That(Cursor.StreamId == header.StreamId);
    }

    /// <summary>Behind the last frame that was accepted.</summary>
    public StreamCursor Cursor { get; }

    /// <summary>The end frame was accepted: everything has come, and as it was sent.</summary>
    public bool IsWhole { get; private set; }

    /// <summary>What to say when no more bytes come and <see cref="IsWhole"/> is false.</summary>
    public string Truncated => $"the stream ends at byte {Cursor.PositionBytes} (frame {Cursor.Sequence}) and is not whole";

    /// <summary>Looks at the next frame's header, <see cref="StreamFrame.Size"/> bytes; what is wrong with it, or null.</summary>
    public string? ReadFrame(ReadOnlySpan<byte> source, out StreamFrame frame)
    {
        Check.That(!IsWhole);
        string? fault = StreamFrame.TryRead(source[..StreamFrame.Size], out frame) ?? Fault(frame);
        if (fault is null)
        {
            Cursor.NextChain(source, _chain);
            if (!source.Slice(StreamFrame.ChainedBytes, StreamFrame.MarkBytes).SequenceEqual(_chain.AsSpan(0, StreamFrame.MarkBytes)))
                fault = "the frame does not follow those before it (digest)";
        }

        return fault is null ? null : At(fault);
    }

    /// <summary>Takes the frame that <see cref="ReadFrame"/> answered last, with its payload. Packed bytes are unpacked into
    /// <paramref name="content"/>, which then has the frame's length; otherwise the payload is the content.</summary>
    public string? Accept(in StreamFrame frame, ReadOnlySpan<byte> payload, Span<byte> content)
    {
        string? fault = Verify(frame, payload);
        if (fault is null && frame.Encoding == StreamEncoding.Lz4)
        {
            if (_compressor is null) fault = At("the stream is packed by LZ4, which is not to be had here; install liblz4");
            else if (!_compressor.Decompress(payload, content[..(int)frame.LengthBytes])) fault = At("the frame's content is damaged (LZ4)");
        }

        if (fault is null) Go(frame);
        return fault;
    }

    /// <summary>As <see cref="Accept"/>, for who only passes the stream on: what is packed stays so.</summary>
    public string? Pass(in StreamFrame frame, ReadOnlySpan<byte> payload)
    {
        string? fault = Verify(frame, payload);
        if (fault is null) Go(frame);
        return fault;
    }

    private string? Verify(in StreamFrame frame, ReadOnlySpan<byte> payload)
    {
        Check.That(payload.Length == frame.PayloadBytes && frame.Sequence == Cursor.Sequence);
        if (payload.Length > 0 && Crc32C.Compute(payload) != frame.PayloadCrc) return At("the frame's content is damaged (checksum)");
        if (frame.Kind != StreamKind.End) return null;
        Span<byte> totals = stackalloc byte[StreamEncoder.TotalsBytes];
        StreamEncoder.WriteTotals(Cursor, totals);
        return payload.SequenceEqual(totals) ? null : At("the totals of the stream are not those of its frames");
    }

    private void Go(in StreamFrame frame)
    {
        IsWhole = frame.Kind == StreamKind.End;
        Cursor.Pass(frame, _chain);
    }

    private string? Fault(in StreamFrame frame)
    {
        if (frame.Sequence != Cursor.Sequence) return $"frame {Cursor.Sequence} is missing, frame {frame.Sequence} comes in its place";
        if (frame.OffsetBytes < Cursor.OffsetBytes) return "the frame covers what an earlier one has covered";
        // A stream without base says everything: what it left out would be neither data nor a hole.
        if (_header.Base is null && frame.OffsetBytes != Cursor.OffsetBytes) return "a part of the content is missing";
        ulong size = _header.SizeBytes;
        if (frame.OffsetBytes > size || frame.LengthBytes > size - frame.OffsetBytes) return "the frame lies beyond the end of the content";
        if (frame.Kind == StreamKind.End)
        {
            bool isEnd = frame is { LengthBytes: 0, PayloadBytes: StreamEncoder.TotalsBytes, Encoding: StreamEncoding.Raw } && frame.OffsetBytes == size;
            return isEnd ? null : "the end frame is not as it must be";
        }

        bool isInBlocks = frame.OffsetBytes % Units.BlockBytes == 0 && (frame.LengthBytes % Units.BlockBytes == 0 || frame.EndBytes == size);
        if (!isInBlocks || frame.LengthBytes == 0) return "the frame does not cover whole blocks";
        if (frame.Kind is StreamKind.Zero or StreamKind.Hole)
            return frame is { PayloadBytes: 0, PayloadCrc: 0, Encoding: StreamEncoding.Raw } ? null : "the frame carries bytes that it must not";
        if (frame.Kind != StreamKind.Data || frame.LengthBytes > StreamHeader.DataBytesMax) return "the frame asks for what this release does not know";
        return frame.Encoding switch
        {
            StreamEncoding.Raw when (ulong)frame.PayloadBytes == frame.LengthBytes => null,
            StreamEncoding.Lz4 when frame.PayloadBytes > 0 && (ulong)frame.PayloadBytes < frame.LengthBytes => null,
            _ => "the frame's length contradicts its content",
        };
    }

    private string At(string fault) => $"frame {Cursor.Sequence} at byte {Cursor.PositionBytes} of the stream: {fault}";
}
