using BlockServer.Io;
using BlockServer.Streams;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Blockd;

/// <summary>What comes into a volume, piece by piece, on the thread pool. One owner, one use; what it cannot give is an
/// <see cref="ImportException"/>.</summary>
internal interface IImportSource
{
    /// <summary>Everything in front of it was given.</summary>
    ulong OffsetBytes { get; }

    /// <summary>From where an import that was interrupted now would go on: the text of a cursor.</summary>
    string Place { get; }

    /// <summary>All was given, and found good.</summary>
    bool IsWhole { get; }

    /// <summary>Adds what comes next to <paramref name="batch"/>, which has room for <see cref="StreamHeader.DataBytesMax"/>.</summary>
    Task TakeAsync(StreamBatch batch, CancellationToken cancel);

    /// <summary>All was written: nothing may follow.</summary>
    Task EndAsync(CancellationToken cancel);
}

/// <summary>The frames of a stream. Nothing of one is given before the whole frame was found good.</summary>
internal sealed class FrameSource(Stream body, StreamDecoder decoder, TimeSpan patience) : IImportSource
{
    private readonly byte[] _frame = new byte[StreamFrame.Size];
    private readonly byte[] _payload = GC.AllocateUninitializedArray<byte>(StreamHeader.DataBytesMax);
    private string _inFrontOfEnd = "";

    /// <inheritdoc/>
    public ulong OffsetBytes => decoder.Cursor.OffsetBytes;

    /// <summary>Behind the end nothing comes with which an import could go on.</summary>
    public string Place => IsWhole ? _inFrontOfEnd : decoder.Cursor.ToString();

    /// <inheritdoc/>
    public bool IsWhole => decoder.IsWhole;

    /// <inheritdoc/>
    public async Task TakeAsync(StreamBatch batch, CancellationToken cancel)
    {
        await FillAsync(_frame, cancel);
        if (decoder.ReadFrame(_frame, out StreamFrame frame) is { } fault) throw Bad(fault);
        bool isData = frame.Kind == StreamKind.Data, isRaw = frame.Encoding == StreamEncoding.Raw;
        Memory<byte> content = isData ? batch.Room((int)frame.LengthBytes) : default;
        Memory<byte> payload = isData && isRaw ? content : _payload.AsMemory(0, frame.PayloadBytes);
        await FillAsync(payload, cancel);
        if (frame.Kind == StreamKind.End) _inFrontOfEnd = decoder.Cursor.ToString();
        if (decoder.Accept(frame, payload.Span, content.Span) is { } broken) throw Bad(broken);
        if (frame.Kind != StreamKind.End) batch.Add(frame.Kind, frame.OffsetBytes, frame.LengthBytes);
    }

    private async Task FillAsync(Memory<byte> target, CancellationToken cancel)
    {
        while (target.Length > 0)
        {
            int count = await ReadAsync(target, cancel);
            if (count == 0) throw new ImportException(true, 400, "truncated-stream", decoder.Truncated);
            target = target[count..];
        }
    }

    private async Task<int> ReadAsync(Memory<byte> target, CancellationToken cancel)
    {
        ValueTask<int> reading = body.ReadAsync(target, cancel);
        if (reading.IsCompletedSuccessfully) return reading.Result;
        try
        {
            return await reading.AsTask().WaitAsync(patience, cancel);
        }
        catch (Exception e) when (e is IOException or OperationCanceledException or TimeoutException or BadHttpRequestException)
        {
            throw new ImportException(true, 400, "interrupted-stream", "the connection broke before the stream was whole");
        }
    }

    /// <inheritdoc/>
    public async Task EndAsync(CancellationToken cancel)
    {
        if (await ReadAsync(_frame.AsMemory(0, 1), cancel) > 0)
            throw new ImportException(false, 400, "bad-stream", "bytes follow the end of the stream; nothing of it was taken");
    }

    private static ImportException Bad(string fault) => new(false, 400, "bad-stream", fault + "; nothing of the stream was taken");
}

/// <summary>A disk image that lies in a file: read to where it is written from, what is zero in it or was never written left out. Its
/// places are those of the stream that the image would be.</summary>
internal sealed class ImageSource(SafeFileHandle file, StreamHeader header, StreamCursor? from) : IImportSource
{
    private readonly StreamEncoder _encoder = new(header, null, from);
    private string _inFrontOfEnd = "";

    /// <inheritdoc/>
    public ulong OffsetBytes => _encoder.Cursor.OffsetBytes;

    /// <inheritdoc/>
    public string Place => IsWhole ? _inFrontOfEnd : _encoder.Cursor.ToString();

    /// <inheritdoc/>
    public bool IsWhole { get; private set; }

    /// <inheritdoc/>
    public Task TakeAsync(StreamBatch batch, CancellationToken cancel)
    {
        if (cancel.IsCancellationRequested) throw new ImportException(true, 400, "interrupted-stream", "whoever asked for the import has left");
        ulong at = OffsetBytes;
        if (at == header.SizeBytes)
        {
            _inFrontOfEnd = Place;
            _encoder.End();
            IsWhole = true;
            return Task.CompletedTask;
        }

        try
        {
            Take(batch, at);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ImportException(true, 400, "interrupted-stream", $"the image cannot be read: {e.Message}");
        }

        return Task.CompletedTask;
    }

    /// <inheritdoc/>
    public Task EndAsync(CancellationToken cancel) => Task.CompletedTask;

    private void Take(StreamBatch batch, ulong at)
    {
        ulong hole = RawImage.MayBeHole(at)
            ? RawImage.HoleBytes(at, (ulong)RandomAccess.GetLength(file), header.SizeBytes, HandedFile.NextData(file, at)) : 0;
        if (hole > 0)
        {
            Span<byte> frame = stackalloc byte[StreamFrame.Size];
            _encoder.Empty(StreamKind.Hole, at, hole, frame);
            batch.Add(StreamKind.Hole, at, hole);
            return;
        }

        int wanted = RawImage.PieceBytes(at, header.SizeBytes);
        Span<byte> room = batch.Room(wanted).Span;
        int count = 0;
        while (count < wanted && RandomAccess.Read(file, room[count..], (long)at + count) is > 0 and int more) count += more;
        room[count..].Clear(); // behind the end of the image
        BatchEncoder.Take(_encoder, at, batch, wanted);
    }
}

/// <summary>A file as a body that comes from a place on: reads answer at once.</summary>
internal sealed class HandedStream(SafeFileHandle file, long position) : Stream
{
    private long _position = position;

    /// <inheritdoc/>
    public override bool CanRead => true;

    /// <inheritdoc/>
    public override bool CanWrite => false;

    /// <inheritdoc/>
    public override bool CanSeek => false;

    /// <inheritdoc/>
    public override long Length => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Position
    {
        get => _position;
        set => throw new NotSupportedException();
    }

    /// <inheritdoc/>
    public override int Read(Span<byte> buffer)
    {
        int count = RandomAccess.Read(file, buffer, _position);
        _position += count;
        return count;
    }

    /// <inheritdoc/>
    public override int Read(byte[] buffer, int offset, int count) => Read(buffer.AsSpan(offset, count));

    /// <inheritdoc/>
    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (cancellationToken.IsCancellationRequested) return ValueTask.FromCanceled<int>(cancellationToken);
        try
        {
            return new(Read(buffer.Span));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return ValueTask.FromException<int>(e as IOException ?? new IOException(e.Message, e));
        }
    }

    /// <inheritdoc/>
    public override void Flush()
    {
    }

    /// <inheritdoc/>
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void SetLength(long value) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();
}
