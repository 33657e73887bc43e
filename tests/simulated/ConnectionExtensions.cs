using BlockServer.Core;

namespace BlockServer.Tests.Simulated;

/// <summary>What clients of tests do with a connection. On its loop.</summary>
public static class ConnectionExtensions
{
    /// <summary>Receives until <paramref name="target"/> is full; false when the stream ended or broke before.</summary>
    public static async Task<bool> FillAsync(this IConnection connection, Memory<byte> target)
    {
        while (!target.IsEmpty)
        {
            int count = await connection.ReceiveAsync(target);
            if (count <= 0) return false;
            target = target[count..];
        }

        return true;
    }
}
