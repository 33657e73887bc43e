using System.Buffers;
using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>Turns content into frames; zeros in it become frames of zeros.</summary>
public static class BatchEncoder
{
    // Shorter runs of zeros stay among the data: a frame of their own would cost more than it saves.
    private const int ZeroBytesMin = 4 * Units.BlockBytes;

    /// <summary>Writes the frames of a batch.</summary>
    public static void Write(StreamEncoder encoder, StreamBatch batch, IBufferWriter<byte> target)
    {
        foreach (StreamPiece piece in batch.Pieces)
        {
            if (piece.Kind == StreamKind.Data) Write(encoder, piece.OffsetBytes, batch.DataOf(piece).Span, target);
            else target.Advance(encoder.Empty(piece.Kind, piece.OffsetBytes, piece.LengthBytes, target.GetSpan(StreamFrame.Size)));
        }
    }

    /// <summary>Writes the frames of at most <see cref="StreamHeader.DataBytesMax"/> of content that begins on a block. Without
    /// compression the content may lie in <paramref name="target"/>, <see cref="StreamFrame.Size"/> behind where the next byte goes.</summary>
    public static void Write(StreamEncoder encoder, ulong offsetBytes, ReadOnlySpan<byte> content, IBufferWriter<byte> target)
    {
        while (content.Length > 0)
        {
            (int data, int zeros) = Split(content);
            if (data > 0) target.Advance(encoder.Data(offsetBytes, content[..data], target.GetSpan(StreamFrame.Size + data)));
            if (zeros > 0)
                target.Advance(encoder.Empty(StreamKind.Zero, offsetBytes + (ulong)data, (ulong)zeros, target.GetSpan(StreamFrame.Size)));
            offsetBytes += (ulong)(data + zeros);
            content = content[(data + zeros)..];
        }
    }

    /// <summary>Content that begins on a block and was put into <see cref="StreamBatch.Room"/> becomes pieces of the batch, the same as
    /// <see cref="Write(StreamEncoder, ulong, ReadOnlySpan{byte}, IBufferWriter{byte})"/> makes frames of it without compression;
    /// <paramref name="encoder"/> goes behind them.</summary>
    public static void Take(StreamEncoder encoder, ulong offsetBytes, StreamBatch batch, int lengthBytes)
    {
        Span<byte> header = stackalloc byte[StreamFrame.Size];
        while (lengthBytes > 0)
        {
            ReadOnlySpan<byte> content = batch.Room(lengthBytes).Span;
            (int data, int zeros) = Split(content);
            if (data > 0)
            {
                encoder.Head(offsetBytes, content[..data], header);
                batch.Add(StreamKind.Data, offsetBytes, (ulong)data);
            }

            if (zeros > 0)
            {
                encoder.Empty(StreamKind.Zero, offsetBytes + (ulong)data, (ulong)zeros, header);
                batch.Add(StreamKind.Zero, offsetBytes + (ulong)data, (ulong)zeros);
                // The zeros lie in the room as well, in front of the data that follows.
                if (zeros < lengthBytes - data) batch.Leave(zeros);
            }

            offsetBytes += (ulong)(data + zeros);
            lengthBytes -= data + zeros;
        }
    }

    /// <summary>How much data comes first, and how many zeros behind it.</summary>
    public static (int Data, int Zeros) Split(ReadOnlySpan<byte> content)
    {
        int zeroStart = 0;
        for (int at = 0; at < content.Length;)
        {
            int block = Math.Min(Units.BlockBytes, content.Length - at);
            bool isZero = !content.Slice(at, block).ContainsAnyExcept((byte)0);
            at += block;
            if (isZero) continue;
            int run = at - block - zeroStart;
            if (run >= ZeroBytesMin) return (zeroStart, run);
            zeroStart = at;
        }

        int rest = content.Length - zeroStart;
        return zeroStart == 0 || rest >= ZeroBytesMin ? (zeroStart, rest) : (content.Length, 0);
    }
}
