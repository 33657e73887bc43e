using System.Buffers;
using System.Net;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// A connected TCP or unix socket. Owns its descriptor until <see cref="Close"/> or <see cref="Detach"/>. Lives on one
/// loop; <see cref="Detach"/> and <see cref="Attach"/> carry it to another.
/// </summary>
public sealed class SocketConnection : IConnection
{
    // Room for the parts of a send grows with the first send that needs it: a silent connection costs little.
    private const int FirstParts = 4;

    private readonly KernelLoop _loop;
    private MemoryHandle[] _sendPins = new MemoryHandle[FirstParts];
    private readonly SocketState _socket;
    private unsafe MessageHeader* _message; // and its vectors behind it; freed with the descriptor
    private int _inFlight;
    private bool _isReceiving;
    private bool _isSending;
    private bool _isSendShut;
    private bool _isClosed;
    private bool _isGone;

    private unsafe SocketConnection(KernelLoop loop, int fd, string? peer)
    {
        _loop = loop;
        _socket = new SocketState(fd);
        byte* address = stackalloc byte[128];
        int length = 128;
        int found = getpeername(fd, address, &length);
        IsUnix = found == 0 && *(ushort*)address == AF_UNIX;
        Peer = peer ?? (found == 0 ? SocketAddresses.Describe(address, length) : "unknown");
        if (!IsUnix)
        {
            int one = 1;
            _ = setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(int));
        }

        _message = (MessageHeader*)NativeMemory.AllocZeroed(
            (nuint)(sizeof(MessageHeader) + FirstParts * sizeof(IoVector)));
        loop.AddSocket(_socket);
    }

    /// <inheritdoc/>
    public string Peer { get; }

    /// <summary>A unix socket rather than TCP.</summary>
    public bool IsUnix { get; }

    private unsafe IoVector* Vectors => (IoVector*)(_message + 1);

    /// <summary>Takes over the connected descriptor <paramref name="fd"/>. On <paramref name="loop"/>.</summary>
    public static SocketConnection Attach(KernelLoop loop, int fd, string? peer = null)
    {
        loop.CheckHere();
        return new SocketConnection(loop, fd, peer);
    }

    /// <summary>Gives the descriptor away, for <see cref="Attach"/> on another loop; this object is then closed.
    /// Nothing may be outstanding.</summary>
    public int Detach()
    {
        _loop.CheckHere();
        Check.That(!_isClosed && _inFlight == 0);
        _isClosed = true;
        int fd = _socket.Fd;
        LetGo();
        return fd;
    }

    /// <inheritdoc/>
    public ValueTask<int> ReceiveAsync(Memory<byte> target)
    {
        _loop.CheckHere();
        Check.That(!_isReceiving && !target.IsEmpty);
        if (_isClosed) return new ValueTask<int>(-ECANCELED);
        _isReceiving = true;
        _inFlight++;
        return ReceiveOpenAsync(target);
    }

    /// <inheritdoc/>
    public unsafe int ReceiveNow(Memory<byte> target)
    {
        _loop.CheckHere();
        Check.That(!_isReceiving && !target.IsEmpty);
        if (_isClosed) return -ECANCELED;
        MemoryHandle pin = target.Pin();
        nint count = recv(_socket.Fd, pin.Pointer, (nuint)target.Length, MSG_DONTWAIT);
        int result = count >= 0 ? (int)count : Errno;
        pin.Dispose();
        return result;
    }

    /// <inheritdoc/>
    public ValueTask<int> SendAsync(SendBatch batch)
    {
        _loop.CheckHere();
        Check.That(!_isSending);
        if (_isClosed) return new ValueTask<int>(-ECANCELED);
        if (batch.LengthBytes == 0) return new ValueTask<int>(0);
        int parts = Gather(batch);
        int sent = SendNow(parts);
        if (sent == batch.LengthBytes)
        {
            Unpin(parts);
            return new ValueTask<int>(0);
        }

        _isSending = true;
        _inFlight++;
        return SendOpenAsync(parts, batch.LengthBytes, Math.Max(sent, 0));
    }

    /// <inheritdoc/>
    public void ShutdownSend()
    {
        _loop.CheckHere();
        if (_isClosed || _isSendShut) return;
        _isSendShut = true;
        if (!_isSending) _ = shutdown(_socket.Fd, SHUT_WR);
    }

    /// <inheritdoc/>
    public void Close()
    {
        _loop.CheckHere();
        if (_isClosed) return;
        _isClosed = true;
        // Wakes what is outstanding: a receive ends, a send fails. The descriptor goes when both have answered, so that
        // its number is not reused under an operation of ours.
        if (_inFlight > 0) _ = shutdown(_socket.Fd, SHUT_RDWR);
        else CloseNow();
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> ReceiveOpenAsync(Memory<byte> target)
    {
        MemoryHandle pin = target.Pin();
        int result;
        do result = await _loop.ReceiveAsync(_socket, AddressOf(pin), target.Length);
        while (result is -EINTR or -EAGAIN && !_isClosed);
        pin.Dispose();
        _isReceiving = false;
        Leave();
        return _isClosed ? -ECANCELED : result;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> SendOpenAsync(int parts, int lengthBytes, int sent)
    {
        int left = lengthBytes - sent, first = Advance(0, sent), result = 0;
        while (left > 0)
        {
            result = await SendGathered(first, parts - first);
            if (result is -EINTR or -EAGAIN && !_isClosed) continue;
            if (result <= 0) break;
            left -= result;
            first = Advance(first, result);
            result = 0;
        }

        Unpin(parts);
        _isSending = false;
        if (_isSendShut && !_isClosed) _ = shutdown(_socket.Fd, SHUT_WR);
        Leave();
        return _isClosed ? -ECANCELED : left == 0 ? 0 : result < 0 ? result : -EPIPE;
    }

    private static unsafe nint AddressOf(in MemoryHandle pin) => (nint)pin.Pointer;

    private unsafe int Gather(SendBatch batch)
    {
        ReadOnlySpan<ReadOnlyMemory<byte>> parts = batch.Parts;
        if (parts.Length > _sendPins.Length)
        {
            int room = Math.Max(parts.Length, Math.Min(2 * parts.Length, SendBatch.PartsMax));
            _sendPins = new MemoryHandle[room];
            _message = (MessageHeader*)NativeMemory.Realloc(_message, (nuint)(sizeof(MessageHeader) + room * sizeof(IoVector)));
        }

        for (int i = 0; i < parts.Length; i++)
        {
            _sendPins[i] = parts[i].Pin();
            Vectors[i] = new IoVector { Base = (nint)_sendPins[i].Pointer, Length = (nuint)parts[i].Length };
        }

        return parts.Length;
    }

    private void Unpin(int parts)
    {
        for (int i = 0; i < parts; i++) _sendPins[i].Dispose();
    }

    /// <summary>Sends what the socket takes at once: most replies need no more, and the client has them before the turn
    /// ends. The count or -errno; an error is met again by the send that waits.</summary>
    private unsafe int SendNow(int parts)
    {
        *_message = new MessageHeader { Vectors = (nint)Vectors, VectorCount = (nuint)parts };
        nint count = sendmsg(_socket.Fd, _message, MSG_DONTWAIT | MSG_NOSIGNAL);
        return count >= 0 ? (int)count : Errno;
    }

    private unsafe ValueTask<int> SendGathered(int first, int count)
    {
        *_message = new MessageHeader { Vectors = (nint)(Vectors + first), VectorCount = (nuint)count };
        return _loop.SendAsync(_socket, (nint)_message);
    }

    /// <summary>Skips what was sent; the first part that has something left.</summary>
    private unsafe int Advance(int first, int sent)
    {
        while (sent > 0)
        {
            nuint length = Vectors[first].Length;
            if ((nuint)sent < length)
            {
                Vectors[first].Base += sent;
                Vectors[first].Length -= (nuint)sent;
                break;
            }

            sent -= (int)length;
            first++;
        }

        return first;
    }

    private void Leave()
    {
        if (--_inFlight == 0 && _isClosed) CloseNow();
    }

    private void CloseNow()
    {
        int fd = _socket.Fd;
        LetGo();
        close(fd);
    }

    private unsafe void LetGo()
    {
        Check.That(!_isGone);
        _isGone = true;
        _loop.RemoveSocket(_socket);
        NativeMemory.Free(_message);
        _message = null;
    }
}

/// <summary>Socket addresses as the kernel writes them.</summary>
internal static unsafe class SocketAddresses
{
    /// <summary>For logs: <c>127.0.0.1:5</c>, <c>[::1]:5</c>, <c>unix:/path</c>, <c>unix</c> for an unnamed end.</summary>
    public static string Describe(byte* address, int length)
    {
        if (*(ushort*)address == AF_UNIX)
        {
            int end = 2;
            while (end < length && address[end] != 0) end++;
            return end == 2 ? "unix" : "unix:" + Marshal.PtrToStringUTF8((nint)(address + 2), end - 2);
        }

        return TcpEndPoint(address)?.ToString() ?? "unknown";
    }

    /// <summary>The TCP address; null for another family.</summary>
    public static IPEndPoint? TcpEndPoint(byte* address)
    {
        int port = (address[2] << 8) | address[3];
        return *(ushort*)address switch
        {
            AF_INET => new IPEndPoint(new IPAddress(new ReadOnlySpan<byte>(address + 4, 4)), port),
            AF_INET6 => new IPEndPoint(new IPAddress(new ReadOnlySpan<byte>(address + 8, 16), *(uint*)(address + 24)), port),
            _ => null,
        };
    }

    /// <summary>As the kernel wants it.</summary>
    public static byte[] Serialize(EndPoint endPoint)
    {
        SocketAddress address = endPoint.Serialize();
        return address.Buffer[..address.Size].ToArray();
    }
}
