using System.Net.Sockets;
using System.Text;

namespace BlockServer.Blockd;

/// <summary>Tells systemd (Type=notify) how far the daemon is: sd_notify's protocol, one datagram to the socket that
/// <c>$NOTIFY_SOCKET</c> names. Without that variable it does nothing.</summary>
internal static class SystemdNotify
{
    /// <summary>It serves.</summary>
    public const string Ready = "READY=1";

    /// <summary>It is about to end.</summary>
    public const string Stopping = "STOPPING=1";

    /// <summary>Sends <paramref name="state"/> to the socket at <paramref name="path"/> (an abstract one begins with @). Null, or what
    /// went wrong: never a reason to stop.</summary>
    public static string? Send(string state, string? path)
    {
        if (string.IsNullOrEmpty(path)) return null;
        if (path[0] is not ('/' or '@')) return $"NOTIFY_SOCKET is '{path}', which is neither a path nor an abstract name";
        try
        {
            using var socket = new Socket(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
            socket.SendTo(Encoding.UTF8.GetBytes(state), new UnixDomainSocketEndPoint(path[0] == '@' ? "\0" + path[1..] : path));
            return null;
        }
        catch (Exception e) when (e is SocketException or ArgumentException)
        {
            return $"systemd at {path} was not told {state}: {e.Message}";
        }
    }
}
