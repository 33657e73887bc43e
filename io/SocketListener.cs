using System.Net;
using System.Net.Sockets;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// A listening TCP or unix socket. Lives on one loop. Owns its descriptor, and the unix path that it made, until
/// <see cref="Close"/>.
/// </summary>
public sealed class SocketListener
{
    private const ulong RetryNanos = 100_000_000;

    private readonly KernelLoop _loop;
    private readonly SocketState _socket;
    private readonly string? _madePath;
    private bool _isAccepting;
    private bool _isClosed;

    private unsafe SocketListener(KernelLoop loop, int fd, string? madePath)
    {
        _loop = loop;
        _socket = new SocketState(fd);
        _madePath = madePath;
        byte* address = stackalloc byte[128];
        int length = 128;
        if (getsockname(fd, address, &length) == 0)
        {
            Address = SocketAddresses.Describe(address, length);
            BoundEndPoint = SocketAddresses.TcpEndPoint(address);
        }

        loop.AddSocket(_socket);
    }

    /// <summary>Where it listens, e.g. <c>127.0.0.1:10809</c> or <c>unix:/run/x.sock</c>.</summary>
    public string Address { get; } = "unknown";

    /// <summary>The TCP address with the port that the kernel chose, if 0 was asked; null for a unix socket.</summary>
    public IPEndPoint? BoundEndPoint { get; }

    /// <summary>Listens on a TCP address (IPv6 addresses take IPv6 only). Throws <see cref="IOException"/>.</summary>
    public static SocketListener ListenTcp(KernelLoop loop, IPEndPoint endPoint, int backlog = 512)
    {
        loop.CheckHere();
        int family = endPoint.AddressFamily == AddressFamily.InterNetworkV6 ? AF_INET6 : AF_INET;
        return new SocketListener(loop, Listen(family, endPoint, endPoint.ToString(), backlog), null);
    }

    /// <summary>Listens on a unix path; a socket file that nobody serves any more is removed first. Throws
    /// <see cref="IOException"/>.</summary>
    public static SocketListener ListenUnix(KernelLoop loop, string path, int backlog = 512)
    {
        loop.CheckHere();
        if (System.Text.Encoding.UTF8.GetByteCount(path) > 107)
            throw new IOException($"unix:{path}: the path is longer than the 107 bytes that a unix socket may have");
        RemoveStale(path);
        int fd = Listen(AF_UNIX, new UnixDomainSocketEndPoint(path), "unix:" + path, backlog);
        return new SocketListener(loop, fd, path);
    }

    /// <summary>Takes over a descriptor that listens already (systemd socket activation). Throws
    /// <see cref="IOException"/> for anything else.</summary>
    public static unsafe SocketListener FromFd(KernelLoop loop, int fd)
    {
        loop.CheckHere();
        int isListening = 0, length = sizeof(int);
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &isListening, &length) != 0)
            throw new IOException($"inherited descriptor {fd}: {Text(Errno)}");
        if (isListening == 0)
            throw new IOException($"inherited descriptor {fd} does not listen; a systemd socket unit needs ListenStream= and Accept=no");
        int flags = fcntl(fd, F_GETFL, 0);
        if (flags < 0) throw new IOException($"inherited descriptor {fd}: {Text(Errno)}");
        // A ring answers EAGAIN for a descriptor that says it does not want to wait.
        _ = fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
        return new SocketListener(loop, fd, null);
    }

    /// <summary>The next connection, on this loop; null when the listener is closed. One call at a time. Passing errors
    /// (no descriptors left, a peer that went) are waited out.</summary>
    public async ValueTask<SocketConnection?> AcceptAsync()
    {
        _loop.CheckHere();
        Check.That(!_isAccepting);
        if (_isClosed) return null;
        _isAccepting = true;
        int fd = -1;
        while (!_isClosed)
        {
            fd = await _loop.AcceptAsync(_socket);
            if (fd >= 0) break;
            if (fd is -EMFILE or -ENFILE or -ENOBUFS or -ENOMEM) await _loop.DelayAsync(RetryNanos);
            else if (fd is not (-EINTR or -EAGAIN or -ECONNABORTED or -EPROTO or -EPERM)) break;
        }

        _isAccepting = false;
        if (_isClosed)
        {
            if (fd >= 0) close(fd);
            CloseNow();
            return null;
        }

        if (fd >= 0) return SocketConnection.Attach(_loop, fd, BoundEndPoint is null ? Address : null);
        throw new IOException($"accept on {Address}: {Text(fd)} (errno {-fd})");
    }

    /// <summary>Ends it: an outstanding accept answers null. On the loop. Idempotent.</summary>
    public void Close()
    {
        _loop.CheckHere();
        if (_isClosed) return;
        _isClosed = true;
        if (_madePath is not null) File.Delete(_madePath);
        _socket.IsShut = true;
        if (_isAccepting) _ = shutdown(_socket.Fd, SHUT_RDWR); // wakes the accept
        else CloseNow();
    }

    private static unsafe int Listen(int family, EndPoint endPoint, string name, int backlog)
    {
        int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) throw new IOException($"cannot listen on {name}: {Text(Errno)} (errno {-Errno})");
        int one = 1;
        _ = setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(int));
        if (family == AF_INET6) _ = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(int));
        byte[] address = SocketAddresses.Serialize(endPoint);
        int result;
        fixed (byte* at = address) result = bind(fd, at, address.Length);
        if (result == 0) result = listen(fd, backlog);
        if (result == 0) return fd;
        int error = Errno;
        close(fd);
        throw new IOException($"cannot listen on {name}: {Text(error)} (errno {-error})", -error);
    }

    private static unsafe void RemoveStale(string path)
    {
        byte* stat = stackalloc byte[256]; // struct statx
        const int NoFollow = 0x100, ModeAt = 28, TypeMask = 0xF000, TypeSocket = 0xC000, CurrentDirectory = -100;
        if (statx(CurrentDirectory, path, NoFollow, 1, stat) != 0) return; // nothing there, or bind will say what is wrong
        if ((*(ushort*)(stat + ModeAt) & TypeMask) != TypeSocket)
            throw new IOException($"cannot listen on unix:{path}: the path exists and is not a socket");
        int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        byte[] address = SocketAddresses.Serialize(new UnixDomainSocketEndPoint(path));
        int error = 0;
        fixed (byte* at = address)
        {
            if (connect(probe, at, address.Length) != 0) error = Errno;
        }

        close(probe);
        if (error == -ECONNREFUSED) File.Delete(path);
        else if (error is 0 or -EAGAIN) throw new IOException($"cannot listen on unix:{path}: another process serves it");
    }

    private void CloseNow()
    {
        _loop.RemoveSocket(_socket);
        close(_socket.Fd);
    }
}
