using System.Buffers;
using BlockServer.Core;
using BlockServer.Streams;
using Microsoft.Win32.SafeHandles;

namespace BlockServer.Pfcli;

/// <summary>
/// What an import reads: a stream, sent as it is after every frame was checked, or a raw image, which becomes a stream here: what
/// is zero in it is not sent.
/// </summary>
internal sealed class ImportSource : IDisposable
{
    private readonly Stream _source;
    private readonly byte[] _begun = new byte[StreamHeader.Size];
    private int _begunBytes;
    private bool _isRaw;
    private StreamCursor? _from;
    private StreamInput? _input;
    private StreamEncoder? _encoder;
    private ulong _at; // how far a raw image has become frames

    private ImportSource(Stream source, bool isFile)
    {
        _source = source;
        IsFile = isFile;
    }

    /// <summary>What the daemon of this machine can read by itself, or null.</summary>
    public SafeFileHandle? File => IsFile ? ((FileStream)_source).SafeFileHandle : null;

    /// <summary>A disk image, not a stream. Set by <see cref="BeginAsync"/>.</summary>
    public bool IsRaw => _isRaw;

    /// <summary>It can be read again.</summary>
    public bool IsFile { get; }

    /// <summary>What is sent first. Set by <see cref="BeginAsync"/>.</summary>
    public StreamHeader Header { get; private set; } = null!;

    /// <summary>Why the sending was ended by this side, or null.</summary>
    public string? Fault { get; private set; }

    /// <summary>Opens a file, or standard input for <c>-</c>. Throws <see cref="CliException"/>.</summary>
    public static ImportSource Open(CliHost host, string name)
    {
        if (name == "-") return new ImportSource(host.OpenIn(), isFile: false);
        try
        {
            var file = new FileStream(name, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 0);
            return new ImportSource(file, file.CanSeek && file.Length > 0);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new CliException($"{name}: {e.Message}", inner: e);
        }
    }

    /// <summary>Finds out what it is and goes to where the sending begins. Throws <see cref="CliException"/>.</summary>
    public async Task BeginAsync(string format, ulong sizeBytes, StreamCursor? from, CancellationToken cancel)
    {
        _from = from;
        _begunBytes = await _source.ReadAtLeastAsync(_begun, _begun.Length, false, cancel);
        _isRaw = format == "raw" || (format == "auto" && !StreamHeader.Begins(_begun.AsSpan(0, _begunBytes)));
        if (_isRaw && format == "auto") ForeignFormat.Refuse(_begun.AsSpan(0, _begunBytes));
        if (_isRaw)
        {
            BeginRaw(sizeBytes);
            if (from is not null) await ProveAsync(from, cancel);
            return;
        }

        if (sizeBytes > 0) throw new CliException("a stream knows its size; leave --size out", ExitCode.Usage);
        _input = new StreamInput(_source);
        await _input.ReadHeaderAsync(_begun.AsMemory(0, _begunBytes), cancel);
        Header = _input.Header;
        if (from is null)
        {
            if (IsFile) await CheckEndAsync(cancel);
            return;
        }

        if (from.StreamId != Header.StreamId) throw new CliException("the import that was interrupted is of another stream");
        await SkipAsync((long)from.PositionBytes - StreamHeader.Size, cancel);
        _input.GoOn(Header, from.Copy());
    }

    /// <summary>Sends the header alone.</summary>
    public async Task SendHeaderAsync(Stream target, CancellationToken cancel)
    {
        var bytes = new byte[StreamHeader.Size];
        Header.WriteTo(bytes);
        await target.WriteAsync(bytes, cancel);
    }

    /// <summary>Sends everything; <paramref name="done"/> is told how much of the content.</summary>
    public async Task SendAsync(Stream target, Action<ulong> done, CancellationToken cancel)
    {
        var sender = new AheadSender(target, StreamFrame.Size + StreamHeader.DataBytesMax);
        try
        {
            await SendHeaderAsync(target, cancel);
            await (_isRaw ? SendRawAsync(sender, done, cancel) : SendFramesAsync(sender, done, cancel));
            await sender.FlushAsync();
        }
        catch (CliException e)
        {
            Fault = e.Message;
            throw new IOException(e.Message, e);
        }
        finally
        {
            await sender.EndAsync();
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _source.Dispose();

    private void BeginRaw(ulong sizeBytes)
    {
        ulong length = IsFile ? (ulong)_source.Length : 0;
        if (!IsFile && sizeBytes == 0) throw new CliException("a pipe or an empty file does not say how large the image is: it needs --size", ExitCode.Usage);
        if (IsFile && sizeBytes > 0 && sizeBytes < length) throw new CliException($"the image has {length} bytes, which is more than --size");
        ulong size = Math.Max(Units.VolumeBytesMin, Math.Max(sizeBytes, length) + (Units.SectorBytes - 1)) & ~(ulong)(Units.SectorBytes - 1);
        if (size > Units.VolumeBytesMax) throw new CliException("a volume has at most 64 TiB");
        Header = new StreamHeader { StreamId = _from?.StreamId ?? Guid.NewGuid(), SizeBytes = size };
        _encoder = new StreamEncoder(Header);
        if (IsFile) (_source.Position, _begunBytes) = (0, 0);
    }

    private async Task SkipAsync(long bytes, CancellationToken cancel)
    {
        if (IsFile)
        {
            _source.Position += bytes;
            return;
        }

        var scratch = new byte[1 << 20];
        while (bytes > 0)
        {
            int count = await _source.ReadAsync(scratch.AsMemory(0, (int)Math.Min(bytes, scratch.Length)), cancel);
            if (count == 0) throw new CliException("the pipe ends in front of where the import stood");
            bytes -= count;
        }
    }

    /// <summary>A file that is not whole is refused before anything is sent.</summary>
    private async Task CheckEndAsync(CancellationToken cancel)
    {
        var end = new byte[StreamFrame.Size + StreamEncoder.TotalsBytes];
        long here = _source.Position;
        if (_source.Length >= here + end.Length)
        {
            _source.Position = _source.Length - end.Length;
            await _source.ReadExactlyAsync(end, cancel);
            _source.Position = here;
            if (end.AsSpan(0, 4).SequenceEqual("BFRM"u8) && end[4] == (byte)StreamKind.End) return;
        }

        throw new CliException("the stream is not whole: its end is missing; nothing was sent");
    }

    private async Task SendFramesAsync(AheadSender sender, Action<ulong> done, CancellationToken cancel)
    {
        while (!_input!.IsWhole)
        {
            Memory<byte> room = sender.Buffer.GetMemory(StreamFrame.Size + StreamHeader.DataBytesMax);
            StreamFrame? read = await _input.ReadAsync(room[StreamFrame.Size..], cancel);
            if (read is not { } frame) return; // the daemon says what it makes of a stream that ends early
            _input.FrameBytes.CopyTo(room);
            sender.Buffer.Advance(StreamFrame.Size + frame.PayloadBytes);
            await sender.SendAsync(cancel);
            done(frame.EndBytes);
        }

        if (await _source.ReadAsync(_begun.AsMemory(0, 1), cancel) > 0) throw new CliException("bytes follow the end of the stream; nothing of it was taken");
    }

    private async Task SendRawAsync(AheadSender sender, Action<ulong> done, CancellationToken cancel)
    {
        while (_at < Header.SizeBytes)
        {
            await EncodeAsync(Header.SizeBytes, sender.Buffer, cancel);
            await sender.SendAsync(cancel);
            done(_at);
        }

        if (!IsFile && await _source.ReadAsync(_begun.AsMemory(0, 1), cancel) > 0) throw new CliException("the image is longer than --size");
        sender.Buffer.Advance(_encoder!.End(sender.Buffer.GetSpan(StreamFrame.Size + StreamEncoder.TotalsBytes)));
        await sender.SendAsync(cancel);
    }

    /// <summary>Makes the frames again that were sent before: where they end the same cursor must stand, which holds a hash of all of
    /// them and so of what the image contains. Throws <see cref="CliException"/>.</summary>
    private async Task ProveAsync(StreamCursor from, CancellationToken cancel)
    {
        var known = new ArrayBufferWriter<byte>(StreamFrame.Size + StreamHeader.DataBytesMax);
        while (_at < Math.Min(from.OffsetBytes, Header.SizeBytes))
        {
            known.ResetWrittenCount();
            await EncodeAsync(from.OffsetBytes, known, cancel);
        }

        if (_encoder!.Cursor.ToString() != from.ToString())
            throw new CliException("the image is not the one that the import began with, or was changed since; delete the volume and begin anew");
    }

    /// <summary>The next piece of a raw image becomes frames, the same wherever the sending began: holes are looked for only where
    /// whole frames begin.</summary>
    private async Task EncodeAsync(ulong end, ArrayBufferWriter<byte> target, CancellationToken cancel)
    {
        ulong hole = IsFile && RawImage.MayBeHole(_at)
            ? RawImage.HoleBytes(_at, (ulong)_source.Length, Header.SizeBytes, SparseFile.NextData(((FileStream)_source).SafeFileHandle, _at)) : 0;
        if (hole > 0)
        {
            target.Advance(_encoder!.Empty(StreamKind.Hole, _at, hole, target.GetSpan(StreamFrame.Size)));
            _at += hole;
            _source.Position = (long)Math.Min(_at, (ulong)_source.Length);
            return;
        }

        int wanted = RawImage.PieceBytes(_at, end);
        // It is read to where a frame of all of it has it, so that nothing is copied. With zeros in it frames are moved to the front:
        // a frame more is 64 bytes more, and comes only where zeros leave out many times as much.
        Memory<byte> content = target.GetMemory(StreamFrame.Size + wanted).Slice(StreamFrame.Size, wanted);
        _begun.AsSpan(0, _begunBytes).CopyTo(content.Span);
        int count = _begunBytes + await _source.ReadAtLeastAsync(content[_begunBytes..], wanted - _begunBytes, false, cancel);
        _begunBytes = 0;
        content.Span[count..].Clear(); // behind the end of the image
        BatchEncoder.Write(_encoder!, _at, content.Span, target);
        _at += (ulong)wanted;
    }
}

/// <summary>Where a file has no data.</summary>
internal static class SparseFile
{
    private const int SeekData = 3;

    /// <summary>Where it has data from <paramref name="at"/> on: there, when that is not known; null: nowhere.</summary>
    public static ulong? NextData(SafeFileHandle file, ulong at)
    {
        long data = lseek(file, (long)at, SeekData);
        const int NoMoreData = 6; // ENXIO
        if (data >= 0) return (ulong)data;
        return System.Runtime.InteropServices.Marshal.GetLastPInvokeError() == NoMoreData ? null : at;
    }

    [System.Runtime.InteropServices.DllImport("libc", SetLastError = true)]
    [System.Runtime.InteropServices.DefaultDllImportSearchPaths(System.Runtime.InteropServices.DllImportSearchPath.SafeDirectories)]
    private static extern long lseek(SafeFileHandle file, long offset, int whence);
}
