using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using BlockServer.Tests.Running;
using Xunit;

namespace BlockServer.Tests.Recovery;

/// <summary>What the kill tests of layers ask of a daemon.</summary>
internal static class LayerApi
{
    /// <summary>Bytes of a volume that a test writes each time as a whole.</summary>
    public const int SideBytes = 2 << 20;

    /// <summary>A client of the admin API, as the administrator.</summary>
    public static HttpClient Open(ScratchFolder folder, DaemonProcess daemon)
    {
        var api = new HttpClient { BaseAddress = new Uri($"http://127.0.0.1:{daemon.ApiPort}/"), Timeout = TimeSpan.FromSeconds(60) };
        string token = File.ReadAllText(Path.Combine(folder.Path, "data", "admin.token")).Trim();
        api.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
        return api;
    }

    /// <summary>True when it was answered that it is done; false when the daemon died before the answer.</summary>
    public static async Task<bool> SendAsync(HttpClient api, string method, string path, string? body)
    {
        try
        {
            await MustAsync(api, method, path, body);
            return true;
        }
        catch (Exception e) when (e is HttpRequestException or IOException)
        {
            return false;
        }
    }

    /// <summary>The answer; anything but success fails the test.</summary>
    public static async Task<string> MustAsync(HttpClient api, string method, string path, string? body)
    {
        using var request = new HttpRequestMessage(new HttpMethod(method), path);
        if (body is not null) request.Content = new StringContent(body, Encoding.UTF8, "application/json");
        using HttpResponseMessage answer = await api.SendAsync(request);
        string text = await answer.Content.ReadAsStringAsync();
        Assert.True(answer.IsSuccessStatusCode, $"{method} {path}: {(int)answer.StatusCode} {text}");
        return text;
    }

    /// <summary>The digest of all that an export shows, or null when there is none.</summary>
    public static string? DigestOf(DaemonProcess daemon, string export)
    {
        NbdClient client;
        try
        {
            client = new NbdClient(Connected(daemon), export);
        }
        catch (InvalidDataException)
        {
            return null;
        }

        using (client)
        using (IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256))
        {
            for (long at = 0; at < client.Size; at += 1 << 20)
            {
                int length = (int)Math.Min(1 << 20, client.Size - at);
                Assert.True(client.TryReadRange(at, length, out byte[] data, out uint error), $"{export} at {at}: error {error}");
                hash.AppendData(data);
            }

            return Convert.ToHexString(hash.GetHashAndReset());
        }
    }

    /// <summary>Overwrites the first <see cref="SideBytes"/> of an export.</summary>
    public static void Fill(DaemonProcess daemon, string export, byte value)
    {
        using var client = new NbdClient(Connected(daemon), export);
        var data = new byte[1 << 20];
        data.AsSpan().Fill(value);
        for (int at = 0; at < SideBytes; at += data.Length)
        {
            client.Send(DiskCommand.Write, false, false, 1, at, data.Length, data);
            Assert.Equal(0u, client.Receive().Error);
        }
    }

    private static Socket Connected(DaemonProcess daemon)
    {
        var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        socket.Connect(IPAddress.Loopback, daemon.Port);
        return socket;
    }
}
