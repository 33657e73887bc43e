using System.Globalization;
using System.Net.Sockets;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// Takes a connected socket of the runtime over, for a loop. The runtime reads ahead on every socket that it serves, at moments that cannot be
/// known, and would take what is meant for us. So its descriptor gets another socket in the place of the connection, one end of a pair, on which
/// nothing ever arrives; what the runtime sends from then on comes out of the pair's other end, and so does the end, when it closes the connection.
/// </summary>
public static class SocketTakeover
{
    private const int FDupCloexec = 1030;

    private static volatile int[] s_epolls = [];

    /// <summary>The connection, and the pair's other end; both block and are the caller's. Null when it cannot be had: then the socket is as
    /// it was. Nothing that the runtime was given to send may be on its way. Any thread.</summary>
    public static unsafe (int Connection, int Runtime)? Take(Socket socket)
    {
        bool isHeld = false;
        int* pair = stackalloc int[2] { -1, -1 };
        try
        {
            socket.SafeHandle.DangerousAddRef(ref isHeld);
            int fd = (int)socket.SafeHandle.DangerousGetHandle();
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) return null;
            _ = fcntl(pair[0], F_SETFL, fcntl(pair[0], F_GETFL, 0) | O_NONBLOCK); // as the runtime has it
            int own = fcntl(fd, FDupCloexec, 0);
            if (own < 0)
            {
                _ = close(pair[1]);
                return null;
            }

            // Or else every packet would wake the runtime, for nothing.
            if (!Forget(s_epolls, fd)) _ = Forget(s_epolls = FindEpolls(), fd);
            Check.That(dup3(pair[0], fd, O_CLOEXEC) == fd);

            // A ring answers EAGAIN for a descriptor that says it does not want to wait.
            _ = fcntl(own, F_SETFL, fcntl(own, F_GETFL, 0) & ~O_NONBLOCK);
            return (own, pair[1]);
        }
        catch (ObjectDisposedException)
        {
            return null;
        }
        finally
        {
            if (pair[0] >= 0) _ = close(pair[0]);
            if (isHeld) socket.SafeHandle.DangerousRelease();
        }
    }

    /// <summary>Closes what <see cref="Take"/> answered and no loop has taken.</summary>
    public static void Close((int Connection, int Runtime) taken)
    {
        _ = close(taken.Connection);
        _ = close(taken.Runtime);
    }

    private static unsafe bool Forget(int[] epolls, int fd)
    {
        byte* unused = stackalloc byte[16]; // older kernels want one
        foreach (int epoll in epolls)
        {
            if (epoll_ctl(epoll, EPOLL_CTL_DEL, fd, unused) == 0) return true;
        }

        return false;
    }

    private static int[] FindEpolls()
    {
        try
        {
            return
            [
                .. Directory.EnumerateFileSystemEntries("/proc/self/fd")
                    .Where(path => new FileInfo(path).LinkTarget?.Contains("[eventpoll]", StringComparison.Ordinal) == true)
                    .Select(path => int.Parse(Path.GetFileName(path), CultureInfo.InvariantCulture)),
            ];
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }
}
