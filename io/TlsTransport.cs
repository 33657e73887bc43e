using System.Buffers;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>
/// The connection under a TLS session, as the stream that <see cref="System.Net.Security.SslStream"/> wants. Two lives:
/// during the handshake it is used by one thread of the pool at a time and carries every call to the loop; after
/// <see cref="MoveIn"/> it lives on the loop, sealed records gather in memory until <see cref="SendOutAsync"/>, and opened
/// ones come from a buffer that is small while the peer is silent.
/// </summary>
internal sealed class TlsTransport(ILoop loop, IConnection plain) : Stream
{
    // While nothing comes, this is all that a session holds here.
    private const int QuietBytes = 2048;
    private const int BusyBytes = 128 << 10;
    private const int FirstOutBytes = 20 << 10;

    private readonly SendBatch _batch = new();
    private byte[] _quiet = [];
    private byte[]? _busy;
    private byte[] _in = [];
    private int _start, _end;
    private byte[] _out = [];
    private bool _isHere;

    public ILoop Loop { get; private set; } = loop;

    public IConnection Plain { get; private set; } = plain;

    /// <summary>Sealed bytes that wait for <see cref="SendOutAsync"/>.</summary>
    public int OutBytes { get; private set; }

    public override bool CanRead => true;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <summary>The handshake is over; from now on everything happens on the loop.</summary>
    public void MoveIn()
    {
        Loop.CheckHere();
        _isHere = true;
        _quiet = new byte[QuietBytes];
    }

    /// <summary>Goes on over another connection on another loop. Nothing may be outstanding.</summary>
    public void MoveTo(ILoop loop, IConnection plain)
    {
        loop.CheckHere();
        (Loop, Plain) = (loop, plain);
    }

    /// <summary>Sends what was sealed: 0, or negative.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<int> SendOutAsync()
    {
        if (OutBytes == 0) return 0;
        _batch.Clear();
        _batch.Add(_out.AsMemory(0, OutBytes));
        int result = await Plain.SendAsync(_batch);
        _batch.Clear();
        OutBytes = 0;
        return result;
    }

    /// <summary>Gives the memory of sealed records back; nothing is outstanding.</summary>
    public void ReleaseOut()
    {
        if (_out.Length > 0) ArrayPool<byte>.Shared.Return(_out);
        _out = [];
        OutBytes = 0;
    }

    /// <summary>Gives the memory of received records back; nothing is outstanding.</summary>
    public void ReleaseIn()
    {
        if (_busy is not null) ArrayPool<byte>.Shared.Return(_busy);
        _busy = null;
        (_in, _start, _end) = ([], 0, 0);
    }

    /// <inheritdoc/>
    public override ValueTask<int> ReadAsync(Memory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (!_isHere) return ReadFromPoolAsync(buffer);
        if (_start < _end) return new ValueTask<int>(Take(buffer));
        return ReadHereAsync(buffer);
    }

    /// <inheritdoc/>
    public override ValueTask WriteAsync(ReadOnlyMemory<byte> buffer, CancellationToken cancellationToken = default)
    {
        if (!_isHere) return WriteFromPoolAsync(buffer);
        if (_out.Length - OutBytes < buffer.Length) GrowOut(buffer.Length);
        buffer.Span.CopyTo(_out.AsSpan(OutBytes));
        OutBytes += buffer.Length;
        return default;
    }

    /// <inheritdoc/>
    public override Task FlushAsync(CancellationToken cancellationToken) => Task.CompletedTask;

    /// <inheritdoc/>
    public override void Flush()
    {
    }

    /// <inheritdoc/>
    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void Write(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    /// <inheritdoc/>
    public override void SetLength(long value) => throw new NotSupportedException();

    private int Take(Memory<byte> target)
    {
        int count = Math.Min(target.Length, _end - _start);
        _in.AsSpan(_start, count).CopyTo(target.Span);
        _start += count;
        if (_start == _end) ReleaseIn();
        return count;
    }

    /// <summary>An empty target means "wait until something comes": then the small buffer waits. Otherwise the peer is
    /// in the middle of a record and the rest of it, and more, is on its way.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> ReadHereAsync(Memory<byte> target)
    {
        if (target.IsEmpty) _in = _quiet;
        else _in = _busy = ArrayPool<byte>.Shared.Rent(BusyBytes);
        int count = await Plain.ReceiveAsync(_in);
        if (count <= 0)
        {
            ReleaseIn();
            return 0; // the owner knows whether it closed; to TLS a broken stream is an ended one
        }

        (_start, _end) = (0, count);
        return Take(target);
    }

    private void GrowOut(int more)
    {
        byte[] larger = ArrayPool<byte>.Shared.Rent(Math.Max(OutBytes + more, _out.Length == 0 ? FirstOutBytes : 2 * _out.Length));
        _out.AsSpan(0, OutBytes).CopyTo(larger);
        if (_out.Length > 0) ArrayPool<byte>.Shared.Return(_out);
        _out = larger;
    }

    private ValueTask<int> ReadFromPoolAsync(Memory<byte> buffer)
    {
        if (buffer.IsEmpty) return new ValueTask<int>(0); // it asks again with room
        var done = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        Loop.PostFromAnywhere(() => _ = CarryAsync(done, async () => Math.Max(0, await Plain.ReceiveAsync(buffer))));
        return new ValueTask<int>(done.Task);
    }

    private ValueTask WriteFromPoolAsync(ReadOnlyMemory<byte> buffer)
    {
        var done = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        Loop.PostFromAnywhere(() => _ = CarryAsync(done, async () =>
        {
            _batch.Clear();
            _batch.Add(buffer);
            int result = await Plain.SendAsync(_batch);
            _batch.Clear();
            return result >= 0 ? result : throw new IOException("the connection broke");
        }));
        return new ValueTask(done.Task);
    }

    /// <summary>On the loop; the answer goes to the pool.</summary>
    private static async Task CarryAsync(TaskCompletionSource<int> done, Func<ValueTask<int>> work)
    {
        try
        {
            done.SetResult(await work());
        }
#pragma warning disable CA1031 // Whatever it is belongs to the handshake.
        catch (Exception e)
#pragma warning restore CA1031
        {
            done.SetException(e);
        }
    }
}
