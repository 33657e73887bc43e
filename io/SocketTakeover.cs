using System.Globalization;
using System.Net.Sockets;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// Takes a connected socket of the runtime over, for a loop. The runtime waits for bytes on every socket that it reads; were it told of
/// what arrives it would take it. So the socket is taken out of the runtime's epoll, which then knows nothing of it any more: what it
/// waits for never comes, until it closes its own descriptor.
/// </summary>
public static class SocketTakeover
{
    private const int FDupCloexec = 1030;

    private static volatile int[] s_epolls = [];

    /// <summary>A descriptor of our own for the socket, which blocks, and which the caller owns; -1 when it cannot be had (not Linux's epoll, no
    /// /proc): then the socket is as it was. The runtime may still send by <paramref name="socket"/>, shut it down and dispose of it, and nothing else. Any
    /// thread.</summary>
    public static int Take(Socket socket)
    {
        bool isHeld = false;
        try
        {
            socket.SafeHandle.DangerousAddRef(ref isHeld);
            int fd = (int)socket.SafeHandle.DangerousGetHandle();
            if (!Forget(s_epolls, fd) && !Forget(s_epolls = FindEpolls(), fd)) return -1;
            int own = fcntl(fd, FDupCloexec, 0);
            // A ring answers EAGAIN for a descriptor that says it does not want to wait.
            if (own >= 0) _ = fcntl(own, F_SETFL, fcntl(own, F_GETFL, 0) & ~O_NONBLOCK);
            return own;
        }
        catch (Exception e) when (e is ObjectDisposedException or IOException or UnauthorizedAccessException)
        {
            return -1;
        }
        finally
        {
            if (isHeld) socket.SafeHandle.DangerousRelease();
        }
    }

    /// <summary>Closes a descriptor that <see cref="Take"/> answered and that no loop has taken.</summary>
    public static void Close(int fd) => _ = close(fd);

    private static unsafe bool Forget(int[] epolls, int fd)
    {
        byte* unused = stackalloc byte[16]; // older kernels want one
        foreach (int epoll in epolls)
        {
            if (epoll_ctl(epoll, EPOLL_CTL_DEL, fd, unused) == 0) return true;
        }

        return false;
    }

    private static int[] FindEpolls() =>
    [
        .. Directory.EnumerateFileSystemEntries("/proc/self/fd")
            .Where(path => new FileInfo(path).LinkTarget?.Contains("[eventpoll]", StringComparison.Ordinal) == true)
            .Select(path => int.Parse(Path.GetFileName(path), CultureInfo.InvariantCulture)),
    ];
}
