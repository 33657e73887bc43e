using System.Net;
using System.Net.Sockets;

namespace BlockServer.Tests;

/// <summary>Ports for the daemons of tests. From any thread.</summary>
internal static class FreePort
{
    /// <summary>A loopback port that nobody listens at now.</summary>
    public static int Find()
    {
        // Below the range of outgoing connections, one of which could take it before the daemon does.
        while (true)
        {
            try
            {
                using TcpListener listener = new(IPAddress.Loopback, Random.Shared.Next(15_000, 32_000));
                listener.Start();
                return ((IPEndPoint)listener.LocalEndpoint).Port;
            }
            catch (SocketException)
            {
                // Taken: another one.
            }
        }
    }
}
