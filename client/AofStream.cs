using System.Buffers;
using System.Globalization;
using BlockServer.Core;

namespace BlockServer.Client;

/// <summary>One append stream to one volume (docs/api.md): frames out, replies in. One writer and one reader at a time.</summary>
internal sealed class AofStream : IAsyncDisposable
{
    // Replies that are read at once.
    private const int RepliesAtOnce = 64;

    private readonly HttpResponseMessage _answer;
    private readonly Stream _stream;
    private readonly uint _volume;
    private readonly byte[] _replies = new byte[RepliesAtOnce * AppendReply.SizeBytes];
    private byte[] _frames = ArrayPool<byte>.Shared.Rent(16 << 10);
    private int _framesBytes, _start, _end;

    private AofStream(HttpResponseMessage answer, Stream stream, uint volume) => (_answer, _stream, _volume) = (answer, stream, volume);

    /// <summary>Takes over an answer of 101; null when it is none of ours.</summary>
    public static async Task<AofStream?> TakeAsync(HttpResponseMessage answer)
    {
        bool isOurs = answer.StatusCode == System.Net.HttpStatusCode.SwitchingProtocols
            && answer.Headers.TryGetValues(AppendWire.VolumeHeader, out IEnumerable<string>? values)
            && uint.TryParse(values.First(), NumberStyles.None, CultureInfo.InvariantCulture, out _);
        if (!isOurs) return null;
        uint volume = uint.Parse(answer.Headers.GetValues(AppendWire.VolumeHeader).First(), CultureInfo.InvariantCulture);
        return new AofStream(answer, await answer.Content.ReadAsStreamAsync(), volume);
    }

    /// <summary>Adds a frame to what <see cref="SendAsync"/> sends.</summary>
    public void Add(AppendKey key, IReadOnlyList<ReadOnlyMemory<byte>> pieces)
    {
        int length = 0;
        foreach (ReadOnlyMemory<byte> piece in pieces) length += piece.Length;
        Reserve(AppendFrame.SizeBytes + length);
        int head = _framesBytes, at = head + AppendFrame.SizeBytes;
        foreach (ReadOnlyMemory<byte> piece in pieces)
        {
            piece.Span.CopyTo(_frames.AsSpan(at));
            at += piece.Length;
        }

        var frame = new AppendFrame
        {
            Volume = _volume, Key = key, LengthBytes = (uint)length, DataCrc = Crc32C.Compute(_frames.AsSpan(head + AppendFrame.SizeBytes, length)),
        };
        frame.WriteTo(_frames.AsSpan(head));
        _framesBytes = at;
    }

    /// <summary>Sends what was added. Throws as the stream does.</summary>
    public async ValueTask SendAsync()
    {
        int length = _framesBytes;
        _framesBytes = 0;
        await _stream.WriteAsync(_frames.AsMemory(0, length));
    }

    /// <summary>Another reply is here already.</summary>
    public bool HasReply => _end - _start >= AppendReply.SizeBytes;

    /// <summary>The next reply; null at the end of the stream. Throws <see cref="IOException"/> when it broke.</summary>
    public async ValueTask<AppendReply?> ReceiveAsync()
    {
        while (_end - _start < AppendReply.SizeBytes)
        {
            _replies.AsSpan(_start, _end - _start).CopyTo(_replies);
            (_start, _end) = (0, _end - _start);
            int got = await _stream.ReadAsync(_replies.AsMemory(_end));
            if (got == 0) return null;
            _end += got;
        }

        string? fault = AppendReply.TryRead(_replies.AsSpan(_start), out AppendReply reply);
        _start += AppendReply.SizeBytes;
        return fault is null ? reply : throw new IOException(fault);
    }

    /// <inheritdoc/>
    public ValueTask DisposeAsync()
    {
        _answer.Dispose(); // and with it the connection
        return default;
    }

    private void Reserve(int bytes)
    {
        if (_frames.Length - _framesBytes >= bytes) return;
        byte[] larger = ArrayPool<byte>.Shared.Rent(Math.Max(2 * _frames.Length, _framesBytes + bytes));
        _frames.AsSpan(0, _framesBytes).CopyTo(larger);
        ArrayPool<byte>.Shared.Return(_frames);
        _frames = larger;
    }
}
