using System.Net;
using System.Net.Sockets;

namespace BlockServer.Tests.Interop;

/// <summary>A loopback port that leads to another one as long as it is plugged in. Pulled, its connections break and new ones
/// are refused. Copies on threads of its own.</summary>
internal sealed class Cable : IDisposable
{
    private readonly int _target;
    private readonly Lock _lock = new();
    private readonly List<Socket> _sockets = [];
    private TcpListener? _listener;

    public Cable(int target)
    {
        _target = target;
        Port = FreePort.Find();
        Plug();
    }

    /// <summary>Where to connect.</summary>
    public int Port { get; }

    public void Plug()
    {
        var listener = new TcpListener(IPAddress.Loopback, Port);
        listener.Server.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.ReuseAddress, true);
        listener.Start();
        _listener = listener;
        Begin(() =>
        {
            while (true) Join(listener.AcceptSocket());
        });
    }

    public void Pull()
    {
        _listener?.Stop();
        lock (_lock)
        {
            foreach (Socket socket in _sockets) socket.Close(0); // a reset, not an end
            _sockets.Clear();
        }
    }

    public void Dispose() => Pull();

    private void Join(Socket client)
    {
        var server = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        client.NoDelay = true;
        lock (_lock) _sockets.AddRange([client, server]);
        Begin(() =>
        {
            server.Connect(IPAddress.Loopback, _target);
            Begin(() => Copy(server, client));
            Copy(client, server);
        });
    }

    private static void Copy(Socket from, Socket to)
    {
        byte[] buffer = new byte[256 << 10];
        while (from.Receive(buffer) is > 0 and int got)
        {
            for (int sent = 0; sent < got;) sent += to.Send(buffer.AsSpan(sent, got - sent));
        }

        to.Shutdown(SocketShutdown.Send);
    }

    private static void Begin(Action work) => new Thread(() =>
    {
        try
        {
            work();
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException or InvalidOperationException)
        {
            // Pulled, or one of the ends went away.
        }
    }) { IsBackground = true }.Start();
}
