using System.Buffers;
using System.Net.Security;
using System.Runtime.CompilerServices;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// A TLS session over a plain connection, which it owns. Lives on one loop; <see cref="DetachSocket"/> and
/// <see cref="AttachSocket"/> carry it to another. Back-pressure is that of the plain connection: a send answers when its
/// records were taken, and nothing is received while nobody asks.
/// </summary>
public sealed class TlsConnection : IConnection
{
    // Small parts share a record; larger ones are sealed piece by piece, so that a large reply is on its way while the
    // rest of it is still in the clear.
    private const int StageBytes = 16 << 10;
    private const int PieceBytes = 64 << 10;
    private const int FlushBytes = 128 << 10;
    private const ulong FarewellNanos = 1_000_000_000;

    private readonly TlsTransport _transport;
    private readonly SslStream _ssl;
    private byte[] _stage = [];
    private int _staged;
    private int _inFlight;
    private bool _isSending, _isSendShut, _isFarewell, _isClosed;

    internal TlsConnection(TlsTransport transport, SslStream ssl)
    {
        (_transport, _ssl) = (transport, ssl);
        transport.MoveIn();
    }

    /// <inheritdoc/>
    public string Peer => _transport.Plain.Peer;

    /// <summary>The version that was agreed on, for people: <c>Tls12</c> or <c>Tls13</c>.</summary>
    public string Protocol => _ssl.SslProtocol.ToString();

    /// <inheritdoc/>
    public ValueTask<int> ReceiveAsync(Memory<byte> target)
    {
        _transport.Loop.CheckHere();
        Check.That(!target.IsEmpty);
        if (_isClosed) return new ValueTask<int>(-ECANCELED);
        _inFlight++;
        return ReceiveOpenAsync(target);
    }

    /// <inheritdoc/>
    public ValueTask<int> SendAsync(SendBatch batch)
    {
        _transport.Loop.CheckHere();
        Check.That(!_isSending);
        if (_isClosed) return new ValueTask<int>(-ECANCELED);
        if (_isSendShut) return new ValueTask<int>(-EPIPE);
        if (batch.LengthBytes == 0) return new ValueTask<int>(0);
        _isSending = true;
        _inFlight++;
        return SendOpenAsync(batch);
    }

    /// <inheritdoc/>
    public void ShutdownSend()
    {
        _transport.Loop.CheckHere();
        if (_isClosed || _isSendShut) return;
        _isSendShut = true;
        if (!_isSending) SayFarewell();
    }

    /// <inheritdoc/>
    public void Close()
    {
        _transport.Loop.CheckHere();
        if (_isClosed) return;
        _isClosed = true;
        if (!_isFarewell) CloseNow();
    }

    /// <summary>Gives the plain socket's descriptor away; until <see cref="AttachSocket"/> the session rests and nothing
    /// may be outstanding. Only over a <see cref="SocketConnection"/>.</summary>
    public int DetachSocket()
    {
        Check.That(_inFlight == 0 && !_isFarewell && !_isClosed);
        return ((SocketConnection)_transport.Plain).Detach();
    }

    /// <summary>Goes on over the descriptor on <paramref name="loop"/>, where it lives from now on.</summary>
    public void AttachSocket(KernelLoop loop, int fd, string peer) =>
        _transport.MoveTo(loop, SocketConnection.Attach(loop, fd, peer));

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> ReceiveOpenAsync(Memory<byte> target)
    {
        int result;
        try
        {
            // An empty read first: SslStream then waits without holding its 32 KiB buffer.
            _ = await _ssl.ReadAsync(Memory<byte>.Empty);
            if (!_transport.Loop.IsHere) await new Home(_transport.Loop);
            result = await _ssl.ReadAsync(target);
        }
#pragma warning disable CA1031 // Records that do not open, a peer that breaks the protocol: the connection is over.
        catch (Exception)
#pragma warning restore CA1031
        {
            result = -EPROTO;
        }

        if (!_transport.Loop.IsHere) await new Home(_transport.Loop);
        Leave();
        return _isClosed ? -ECANCELED : result;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> SendOpenAsync(SendBatch batch)
    {
        int result = 0;
        try
        {
            _stage = ArrayPool<byte>.Shared.Rent(StageBytes);
            for (int i = 0; i < batch.Count && result == 0; i++)
            {
                ReadOnlyMemory<byte> part = batch.Parts[i];
                while (!part.IsEmpty && result == 0)
                {
                    if (_staged > 0 || part.Length < StageBytes)
                    {
                        int taken = Stage(part);
                        part = part[taken..];
                        if (_staged == StageBytes) await SealStageAsync();
                    }
                    else
                    {
                        int taken = Math.Min(part.Length, PieceBytes);
                        await SealAsync(part[..taken]);
                        part = part[taken..];
                    }

                    if (_transport.OutBytes >= FlushBytes) result = await _transport.SendOutAsync();
                }
            }

            if (_staged > 0 && result == 0) await SealStageAsync();
            if (result == 0) result = await _transport.SendOutAsync();
        }
#pragma warning disable CA1031 // As in ReceiveOpenAsync.
        catch (Exception)
#pragma warning restore CA1031
        {
            result = -EPROTO;
        }

        if (!_transport.Loop.IsHere) await new Home(_transport.Loop);
        ArrayPool<byte>.Shared.Return(_stage);
        (_stage, _staged) = ([], 0);
        _transport.ReleaseOut();
        _isSending = false;
        if (_isSendShut && !_isClosed) SayFarewell();
        Leave();
        return _isClosed ? -ECANCELED : result;
    }

    private int Stage(ReadOnlyMemory<byte> part)
    {
        int taken = Math.Min(part.Length, StageBytes - _staged);
        part.Span[..taken].CopyTo(_stage.AsSpan(_staged));
        _staged += taken;
        return taken;
    }

    private ValueTask<bool> SealStageAsync()
    {
        int staged = _staged;
        _staged = 0;
        return SealAsync(_stage.AsMemory(0, staged));
    }

    /// <summary>Into the transport's memory; waits only if TLS itself is busy with a handshake of its own.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> SealAsync(ReadOnlyMemory<byte> plain)
    {
        await _ssl.WriteAsync(plain);
        if (!_transport.Loop.IsHere) await new Home(_transport.Loop);
        return true;
    }

    /// <summary>close_notify, then FIN. A close that follows at once waits for it, but not for long: the peer may have
    /// stopped reading.</summary>
    private void SayFarewell()
    {
        _isFarewell = true;
        _inFlight++;
        LoopTimer limit = _transport.Loop.CreateTimer(_transport.Plain.Close);
        limit.Start(FarewellNanos);
        _ = FarewellAsync(limit);
    }

    private async Task FarewellAsync(LoopTimer limit)
    {
        int result = 0;
        try
        {
            await _ssl.ShutdownAsync();
            if (!_transport.Loop.IsHere) await new Home(_transport.Loop);
            result = await _transport.SendOutAsync();
        }
#pragma warning disable CA1031 // As in ReceiveOpenAsync.
        catch (Exception)
#pragma warning restore CA1031
        {
            result = -EPROTO;
        }

        if (!_transport.Loop.IsHere) await new Home(_transport.Loop);
        limit.Stop();
        _transport.ReleaseOut();
        if (result == 0) _transport.Plain.ShutdownSend();
        _isFarewell = false;
        _inFlight--;
        if (_isClosed) CloseNow();
    }

    private void Leave()
    {
        if (--_inFlight == 0 && _isClosed) _ssl.Dispose();
    }

    private void CloseNow()
    {
        _transport.Plain.Close();
        if (_inFlight == 0) _ssl.Dispose();
    }

    /// <summary>Awaited on a foreign thread: goes on, on the loop.</summary>
    private readonly struct Home(ILoop loop) : ICriticalNotifyCompletion
    {
        public bool IsCompleted => false;

        public Home GetAwaiter() => this;

        public void GetResult()
        {
        }

        public void OnCompleted(Action continuation) => loop.PostFromAnywhere(continuation);

        public void UnsafeOnCompleted(Action continuation) => loop.PostFromAnywhere(continuation);
    }
}
