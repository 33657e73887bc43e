using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>What a server answered: the status (0: it closed without a word), the head and the body.</summary>
internal sealed record RawAnswer(int Status, string Head, string Body)
{
    /// <summary>The stable code of a problem document, or null.</summary>
    public string? Code => Problem?.GetProperty("code").GetString();

    public string? Field => Problem?.GetProperty("field").GetString();

    private JsonElement? Problem => Head.Contains("application/problem+json", StringComparison.Ordinal) ? JsonDocument.Parse(Body).RootElement : null;
}

/// <summary>HTTP by hand, so that a request can be wrong in every way.</summary>
internal static class RawHttp
{
    public static async Task<Socket> ConnectAsync(int port)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        await socket.ConnectAsync(IPAddress.Loopback, port);
        return socket;
    }

    /// <summary>Sends <paramref name="request"/> as it is and reads to the end of the stream.</summary>
    public static async Task<RawAnswer> SendAsync(int port, string request)
    {
        Socket connected;
        try
        {
            connected = await ConnectAsync(port);
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionReset)
        {
            return new RawAnswer(0, "", ""); // it was faster in closing than this side in looking
        }

        using Socket socket = connected;
        try
        {
            await SendAllAsync(socket, Encoding.UTF8.GetBytes(request));
        }
        catch (SocketException)
        {
            // Refused before all was sent: the answer may be there all the same.
        }

        return await ReadAsync(socket);
    }

    public static async Task SendAllAsync(Socket socket, byte[] bytes)
    {
        for (int sent = 0; sent < bytes.Length;) sent += await socket.SendAsync(bytes.AsMemory(sent));
    }

    /// <summary>Reads to the end of the stream.</summary>
    public static async Task<RawAnswer> ReadAsync(Socket socket)
    {
        var all = new MemoryStream();
        var chunk = new byte[65536];
        try
        {
            for (int count; (count = await socket.ReceiveAsync(chunk.AsMemory())) > 0;) all.Write(chunk, 0, count);
        }
        catch (SocketException)
        {
            // A reset after the answer, because we had more to say.
        }

        // One character a byte, until the pieces are together: their lengths count bytes.
        string text = Encoding.Latin1.GetString(all.ToArray());
        int head = text.IndexOf("\r\n\r\n", StringComparison.Ordinal);
        if (head < 0) return new RawAnswer(0, "", text);
        string body = text[(head + 4)..];
        if (text[..head].Contains("chunked", StringComparison.OrdinalIgnoreCase)) body = Unchunk(body);
        body = Encoding.UTF8.GetString(Encoding.Latin1.GetBytes(body));
        return new RawAnswer(int.Parse(text.Split(' ')[1], null), text[..head], body);
    }

    private static string Unchunk(string body)
    {
        var whole = new StringBuilder();
        while (body.IndexOf("\r\n", StringComparison.Ordinal) is var end and > 0)
        {
            int length = Convert.ToInt32(body[..end], 16);
            if (length == 0) break;
            whole.Append(body, end + 2, length);
            body = body[(end + 4 + length)..];
        }

        return whole.ToString();
    }
}
