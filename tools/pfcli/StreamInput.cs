using BlockServer.Streams;

namespace BlockServer.Pfcli;

/// <summary>Reads a stream frame by frame from a file, a pipe or a connection, and checks every frame. Disposes nothing.</summary>
internal sealed class StreamInput(Stream source)
{
    private readonly byte[] _frame = new byte[StreamFrame.Size];
    private StreamDecoder? _decoder;

    /// <summary>What the stream says of itself. Set by <see cref="ReadHeaderAsync"/> or <see cref="GoOn"/>.</summary>
    public StreamHeader Header { get; private set; } = null!;

    /// <summary>Behind the last frame that was read.</summary>
    public StreamCursor Cursor => _decoder!.Cursor;

    /// <summary>The end has been read.</summary>
    public bool IsWhole => _decoder!.IsWhole;

    /// <summary>The header of the last frame, as it came.</summary>
    public ReadOnlyMemory<byte> FrameBytes => _frame;

    /// <summary>Reads the header. Throws <see cref="CliException"/>.</summary>
    public async Task ReadHeaderAsync(ReadOnlyMemory<byte> begun, CancellationToken cancel)
    {
        var bytes = new byte[StreamHeader.Size];
        begun.CopyTo(bytes);
        int count = begun.Length + await source.ReadAtLeastAsync(bytes.AsMemory(begun.Length), bytes.Length - begun.Length, false, cancel);
        if (StreamHeader.TryRead(bytes.AsSpan(0, count), out StreamHeader? header) is { } fault) throw new CliException(fault);
        GoOn(header!, null);
    }

    /// <summary>Frames follow from <paramref name="from"/> on.</summary>
    public void GoOn(StreamHeader header, StreamCursor? from)
    {
        Header = header;
        _decoder = new StreamDecoder(header, null, from);
    }

    /// <summary>Reads a frame and its payload into <paramref name="payload"/>; null when the source has ended in front of it or
    /// within it. Throws <see cref="CliException"/> when it is damaged.</summary>
    public async Task<StreamFrame?> ReadAsync(Memory<byte> payload, CancellationToken cancel)
    {
        if (await source.ReadAtLeastAsync(_frame, _frame.Length, false, cancel) < _frame.Length) return null;
        if (_decoder!.ReadFrame(_frame, out StreamFrame frame) is { } fault) throw new CliException(fault);
        Memory<byte> target = payload[..frame.PayloadBytes];
        if (await source.ReadAtLeastAsync(target, target.Length, false, cancel) < target.Length) return null;
        return _decoder.Pass(frame, target.Span) is { } broken ? throw new CliException(broken) : frame;
    }
}
