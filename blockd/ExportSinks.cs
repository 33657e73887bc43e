using System.Buffers;
using System.IO.Pipelines;
using System.Text;
using BlockServer.Streams;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Blockd;

/// <summary>Where an export goes. One owner, on the thread pool.</summary>
internal interface IExportSink
{
    /// <summary>Comes first; <paramref name="isNew"/>: nothing is there yet.</summary>
    ValueTask BeginAsync(StreamHeader header, bool isNew, CancellationToken cancel);

    /// <summary>Takes a batch, which is the caller's again afterwards. Throws <see cref="IOException"/>.</summary>
    void Put(StreamEncoder encoder, StreamBatch batch);

    /// <summary>All that was put is on its way; throws <see cref="OperationCanceledException"/> when nobody wants it any more.</summary>
    ValueTask FlushAsync(StreamCursor behind, CancellationToken cancel);

    /// <summary>Nothing more comes.</summary>
    ValueTask EndAsync(StreamEncoder encoder, CancellationToken cancel);
}

/// <summary>The bytes of the stream, to whoever asked.</summary>
internal sealed class PipeSink(PipeWriter output) : IExportSink
{
    /// <inheritdoc/>
    public ValueTask BeginAsync(StreamHeader header, bool isNew, CancellationToken cancel)
    {
        if (!isNew) return default;
        header.WriteTo(output.GetSpan(StreamHeader.Size));
        output.Advance(StreamHeader.Size);
        return default;
    }

    /// <inheritdoc/>
    public void Put(StreamEncoder encoder, StreamBatch batch) => BatchEncoder.Write(encoder, batch, output);

    /// <inheritdoc/>
    public async ValueTask FlushAsync(StreamCursor behind, CancellationToken cancel)
    {
        FlushResult flushed = await output.FlushAsync(cancel);
        if (flushed.IsCompleted || flushed.IsCanceled) throw new OperationCanceledException("the client has left");
    }

    /// <inheritdoc/>
    public ValueTask EndAsync(StreamEncoder encoder, CancellationToken cancel)
    {
        output.Advance(encoder.End(output.GetSpan(StreamFrame.Size + StreamEncoder.TotalsBytes)));
        return FlushAsync(encoder.Cursor, cancel);
    }
}

/// <summary>
/// A file that was handed over: the stream itself, or the disk image that it holds. Who asked is told where it stands: the stream's
/// header, then lines of <see cref="Lines"/>. Everything in front of a cursor that was told has been written.
/// </summary>
internal sealed class FileSink(SafeFileHandle file, bool isImage, bool isPacked, PipeWriter said) : IExportSink
{
    private const ulong SayEveryBytes = 64 << 20;

    private readonly ArrayBufferWriter<byte> _packed = new(isPacked ? 4 << 20 : 1);
    private readonly byte[] _headers = GC.AllocateUninitializedArray<byte>(StreamFrame.Size * 1024);
    private readonly List<ReadOnlyMemory<byte>> _gathered = [];
    private ulong _told;

    /// <summary>Words in front of the lines.</summary>
    public static class Lines
    {
        /// <summary>A cursor follows.</summary>
        public const string At = "at ";

        /// <summary>The last cursor follows: all is there.</summary>
        public const string End = "end ";

        /// <summary>A sentence follows: why nothing more comes.</summary>
        public const string Fault = "fault ";
    }

    /// <inheritdoc/>
    public async ValueTask BeginAsync(StreamHeader header, bool isNew, CancellationToken cancel)
    {
        header.WriteTo(said.GetSpan(StreamHeader.Size));
        if (isNew && !isImage) RandomAccess.Write(file, said.GetSpan(StreamHeader.Size)[..StreamHeader.Size], 0);
        said.Advance(StreamHeader.Size);
        await said.FlushAsync(cancel);
    }

    /// <inheritdoc/>
    public void Put(StreamEncoder encoder, StreamBatch batch)
    {
        long at = (long)encoder.Cursor.PositionBytes;
        if (isPacked)
        {
            _packed.ResetWrittenCount();
            BatchEncoder.Write(encoder, batch, _packed);
            RandomAccess.Write(file, _packed.WrittenSpan, at);
            return;
        }

        int headers = 0;
        foreach (StreamPiece piece in batch.Pieces)
        {
            if (piece.Kind != StreamKind.Data) PutEmpty(encoder, piece.Kind, piece.OffsetBytes, piece.LengthBytes, ref headers, ref at);
            else PutData(encoder, piece.OffsetBytes, batch.DataOf(piece), ref headers, ref at);
        }

        Write(ref headers, ref at);
    }

    /// <inheritdoc/>
    public async ValueTask FlushAsync(StreamCursor behind, CancellationToken cancel)
    {
        cancel.ThrowIfCancellationRequested();
        if (behind.OffsetBytes - _told < SayEveryBytes) return;
        _told = behind.OffsetBytes;
        await SayAsync(Lines.At + behind, cancel);
    }

    /// <inheritdoc/>
    public ValueTask EndAsync(StreamEncoder encoder, CancellationToken cancel)
    {
        long at = (long)encoder.Cursor.PositionBytes;
        var end = new byte[StreamFrame.Size + StreamEncoder.TotalsBytes];
        encoder.End(end);
        if (!isImage) RandomAccess.Write(file, end, at);
        return SayAsync(Lines.End + encoder.Cursor, cancel);
    }

    /// <summary>Tells why the export ends here.</summary>
    public ValueTask FailAsync(string reason, CancellationToken cancel) => SayAsync(Lines.Fault + reason.ReplaceLineEndings(" "), cancel);

    private void PutData(StreamEncoder encoder, ulong offsetBytes, ReadOnlyMemory<byte> content, ref int headers, ref long at)
    {
        while (content.Length > 0)
        {
            (int data, int zeros) = BatchEncoder.Split(content.Span);
            if (data > 0)
            {
                if (headers == _headers.Length) Write(ref headers, ref at);
                Memory<byte> header = _headers.AsMemory(headers, StreamFrame.Size);
                // An image's cursor is read by nobody but this side, which does not look at its chain again: no checksum is needed.
                if (isImage) encoder.Pass(offsetBytes, (ulong)data);
                else encoder.Head(offsetBytes, content.Span[..data], header.Span);
                if (isImage) RandomAccess.Write(file, content.Span[..data], (long)offsetBytes);
                else Gather(header, content[..data], ref headers);
            }

            if (zeros > 0) PutEmpty(encoder, StreamKind.Zero, offsetBytes + (ulong)data, (ulong)zeros, ref headers, ref at);
            offsetBytes += (ulong)(data + zeros);
            content = content[(data + zeros)..];
        }
    }

    private void PutEmpty(StreamEncoder encoder, StreamKind kind, ulong offsetBytes, ulong lengthBytes, ref int headers, ref long at)
    {
        if (headers == _headers.Length) Write(ref headers, ref at);
        Memory<byte> header = _headers.AsMemory(headers, StreamFrame.Size);
        encoder.Empty(kind, offsetBytes, lengthBytes, header.Span);
        if (!isImage) Gather(header, default, ref headers);
    }

    private void Gather(ReadOnlyMemory<byte> header, ReadOnlyMemory<byte> content, ref int headers)
    {
        headers += StreamFrame.Size;
        _gathered.Add(header);
        if (content.Length > 0) _gathered.Add(content);
    }

    private void Write(ref int headers, ref long at)
    {
        if (_gathered.Count == 0) return;
        RandomAccess.Write(file, _gathered, at);
        foreach (ReadOnlyMemory<byte> part in _gathered) at += part.Length;
        _gathered.Clear();
        headers = 0;
    }

    private async ValueTask SayAsync(string line, CancellationToken cancel)
    {
        Encoding.UTF8.GetBytes(line + "\n", said);
        FlushResult flushed = await said.FlushAsync(cancel);
        if (flushed.IsCompleted || flushed.IsCanceled) throw new OperationCanceledException("the client has left");
    }
}
