using System.Buffers.Binary;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>As many exports as the product promises, open at once on the real daemon.</summary>
public sealed class PfcliScaleTests
{
    private const int Exports = 1000;

    [Fact]
    public async Task A_thousand_exports_are_open_at_once_and_each_holds_its_own_data()
    {
        using var blockd = new Blockd("demo", "64m", "--connections", "1100");
        var pfcli = new Pfcli(blockd);
        await CreateAsync(blockd);
        var clients = new List<Socket>();
        try
        {
            for (int i = 0; i < Exports; i++) clients.Add(Attach(blockd.Socket, NameOf(i)));
            // The limit of one address is not that of the unix socket.
            Assert.Equal(Exports, pfcli.Sessions().Count);
            for (int i = 0; i < Exports; i++) Send(clients[i], 1, i);
            for (int i = 0; i < Exports; i++) Assert.Equal((0u, (ulong)i), Answer(clients[i]));
            for (int i = 0; i < Exports; i++) Send(clients[i], 0, i);
            for (int i = 0; i < Exports; i++)
            {
                Assert.Equal((0u, (ulong)i), Answer(clients[i]));
                Assert.Equal(Content(i), Receive(clients[i], 4096));
            }

            Assert.All(pfcli.Sessions(), s => Assert.Equal((1UL, 1UL), (s.ReadOps, s.WriteOps)));
            Assert.Equal(Exports + 1, pfcli.Volumes().Count);
        }
        finally
        {
            foreach (Socket client in clients) client.Dispose();
        }

        Assert.Equal(0, blockd.Stop());
    }

    private static string NameOf(int number) => $"v{number}";

    private static byte[] Content(int number)
    {
        var content = new byte[4096];
        for (int at = 0; at < content.Length; at += 4) BinaryPrimitives.WriteInt32BigEndian(content.AsSpan(at), number * 4096 + at);
        return content;
    }

    private static async Task CreateAsync(Blockd blockd)
    {
        using var http = new HttpClient { BaseAddress = new Uri(blockd.ApiUrl) };
        string token = (await File.ReadAllTextAsync(Path.Combine(blockd.Directory, "admin.token"), TestContext.Current.CancellationToken)).Trim();
        http.DefaultRequestHeaders.Authorization = new AuthenticationHeaderValue("Bearer", token);
        for (int i = 0; i < Exports; i++)
        {
            string body = JsonSerializer.Serialize(new CreateVolume(NameOf(i), 1 << 20), ApiJson.Default.CreateVolume);
            using var content = new StringContent(body, Encoding.UTF8, "application/json");
            using HttpResponseMessage answer = await http.PostAsync(new Uri("/v1/volumes", UriKind.Relative), content, TestContext.Current.CancellationToken);
            Assert.Equal(System.Net.HttpStatusCode.Created, answer.StatusCode);
        }
    }

    /// <summary>NBD's handshake with GO, and nothing else agreed: simple replies.</summary>
    private static Socket Attach(string path, string export)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Connect(new UnixDomainSocketEndPoint(path));
        Receive(socket, 18);
        byte[] name = Encoding.ASCII.GetBytes(export);
        var hello = new byte[4 + 16 + 4 + name.Length + 2];
        hello[3] = 3; // fixed newstyle, no zeroes
        "IHAVEOPT"u8.CopyTo(hello.AsSpan(4));
        BinaryPrimitives.WriteUInt32BigEndian(hello.AsSpan(12), 7); // GO
        BinaryPrimitives.WriteInt32BigEndian(hello.AsSpan(16), name.Length + 6);
        BinaryPrimitives.WriteInt32BigEndian(hello.AsSpan(20), name.Length);
        name.CopyTo(hello, 24);
        socket.Send(hello);
        while (true)
        {
            byte[] head = Receive(socket, 20);
            Receive(socket, BinaryPrimitives.ReadInt32BigEndian(head.AsSpan(16)));
            uint kind = BinaryPrimitives.ReadUInt32BigEndian(head.AsSpan(12));
            if (kind == 1) return socket; // ACK
            Assert.Equal(3u, kind); // INFO
        }
    }

    private static void Send(Socket socket, ushort command, int number)
    {
        var request = new byte[28];
        BinaryPrimitives.WriteUInt32BigEndian(request, 0x25609513);
        BinaryPrimitives.WriteUInt16BigEndian(request.AsSpan(6), command);
        BinaryPrimitives.WriteUInt64BigEndian(request.AsSpan(8), (ulong)number);
        BinaryPrimitives.WriteUInt32BigEndian(request.AsSpan(24), 4096);
        socket.Send(request);
        if (command == 1) socket.Send(Content(number));
    }

    private static (uint Error, ulong Cookie) Answer(Socket socket)
    {
        byte[] reply = Receive(socket, 16);
        Assert.Equal(0x67446698u, BinaryPrimitives.ReadUInt32BigEndian(reply));
        return (BinaryPrimitives.ReadUInt32BigEndian(reply.AsSpan(4)), BinaryPrimitives.ReadUInt64BigEndian(reply.AsSpan(8)));
    }

    private static byte[] Receive(Socket socket, int length)
    {
        var content = new byte[length];
        for (int at = 0; at < length;)
        {
            int count = socket.Receive(content.AsSpan(at));
            Assert.True(count > 0, "the daemon closed the connection");
            at += count;
        }

        return content;
    }
}
