using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using BlockServer.Core;
using BlockServer.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Io;

/// <summary>TLS over real loops and sockets, judged by the runtime's own client.</summary>
public sealed class TlsTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("blockserver-tls-").FullName;
    private readonly TestCertificates _ours;
    private readonly X509Certificate2 _good;

    public TlsTests()
    {
        _ours = new TestCertificates(_directory, "ours");
        _ours.Sign("server", TestCertificates.ForServers);
        _good = _ours.Sign("client", TestCertificates.ForClients);
    }

    public static TheoryData<string, SslProtocols> Ways =>
        new() { { "io_uring", SslProtocols.Tls13 }, { "aio", SslProtocols.Tls13 }, { "io_uring", SslProtocols.Tls12 } };

    public void Dispose()
    {
        _good.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    [Theory]
    [MemberData(nameof(Ways))]
    public async Task What_is_sent_arrives_both_ways_in_any_portions(string engine, SslProtocols version)
    {
        await using World world = await World.StartAsync(this, engine, TlsClients.None);
        await world.ShakeAsync(version);
        Assert.Equal(version.ToString(), world.Server!.Protocol);
        var random = new SeededRandom(3);
        var up = new byte[3_000_001];
        random.Fill(up);
        Task<byte[]> heard = world.On(() => world.ReceiveAsync(up.Length));
        int at = 0;
        while (at < up.Length)
        {
            int count = Math.Min(up.Length - at, 1 + random.NextBelow(100_000));
            await world.Client.WriteAsync(up.AsMemory(at, count));
            at += count;
        }

        Assert.Equal(up, await heard);

        // Headers and data of all sizes, so that parts share records, fill them exactly and span many.
        byte[][] parts = [.. Enumerable.Range(0, 100).Select(i => up[..(i % 7 == 0 ? 16 : i % 5 == 0 ? 16384 : i * i * 30)])];
        byte[] down = [.. parts.SelectMany(p => p)];
        Task<int> sent = world.On(() => world.SendAsync(parts));
        var got = new byte[down.Length];
        await world.Client.ReadExactlyAsync(got);
        Assert.Equal(0, await sent);
        Assert.True(down.AsSpan().SequenceEqual(got));
    }

    [Fact]
    public async Task A_session_moves_to_another_loop()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        await world.ShakeAsync();
        using LoopThread other = LoopFactory.Create("io_uring", "other");
        int fd = await world.On(() => new ValueTask<int>(world.Server!.DetachSocket()));
        world.HasMoved = true;
        byte[] word = "from the other loop"u8.ToArray();
        await other.InvokeAsync(async () =>
        {
            world.Server!.AttachSocket(other.Loop, fd, "moved");
            Assert.Equal(0, await world.SendAsync(word));
        });
        var got = new byte[word.Length];
        await world.Client.ReadExactlyAsync(got);
        Assert.Equal(word, got);
        Task<byte[]> heard = other.InvokeAsync(() => world.ReceiveAsync(word.Length));
        await world.Client.WriteAsync(word);
        Assert.Equal(word, await heard);
        await other.InvokeAsync(() =>
        {
            world.Server!.Close();
            return default;
        });
    }

    [Theory]
    [InlineData(TlsClients.None, "no", true, null)]
    [InlineData(TlsClients.Optional, "no", true, null)]
    [InlineData(TlsClients.Optional, "client", true, "CN=client")]
    [InlineData(TlsClients.Optional, "strange", false, null)]
    [InlineData(TlsClients.Required, "client", true, "CN=client")]
    [InlineData(TlsClients.Required, "plainuse", true, "CN=plainuse")]
    [InlineData(TlsClients.Required, "no", false, null)]
    [InlineData(TlsClients.Required, "strange", false, null)]
    [InlineData(TlsClients.Required, "expired", false, null)]
    [InlineData(TlsClients.Required, "early", false, null)]
    [InlineData(TlsClients.Required, "foruse", false, null)]
    public async Task A_client_is_taken_for_what_its_certificate_proves(TlsClients asked, string shown, bool isTaken, string? subject)
    {
        using X509Certificate2? certificate = shown switch
        {
            "no" => null,
            "client" => _ours.Sign("client", TestCertificates.ForClients),
            "plainuse" => _ours.Sign("plainuse", null),
            "strange" => new TestCertificates(_directory, "theirs").Sign("strange", TestCertificates.ForClients),
            "expired" => _ours.Sign("expired", TestCertificates.ForClients, -30, -1),
            "early" => _ours.Sign("early", TestCertificates.ForClients, 2, 30),
            _ => _ours.Sign("foruse", TestCertificates.ForServers),
        };
        await using World world = await World.StartAsync(this, "io_uring", asked);
        Exception? clientsFault = await Record.ExceptionAsync(() => world.ClientShakeAsync(SslProtocols.Tls13, certificate));
        TlsResult result = await world.Upgraded;
        Assert.Equal((isTaken, subject), (result.Connection is not null, result.PeerSubject));
        Assert.Equal(isTaken, result.Failure is null);
        if (isTaken) Assert.Null(clientsFault);
    }

    [Fact]
    public async Task Tls_1_1_is_refused_by_alert()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        // ClientHello of TLS 1.1 with ECDHE-RSA-AES128-SHA and nothing else.
        byte[] body = [3, 2, .. new byte[32], 0, 0, 2, 0xC0, 0x13, 1, 0];
        byte[] hello = [1, 0, 0, (byte)body.Length, .. body];
        await world.Raw.WriteAsync((byte[])[22, 3, 1, 0, (byte)hello.Length, .. hello]);
        var alert = new byte[7];
        await world.Raw.ReadExactlyAsync(alert);
        Assert.Equal((21, 70), (alert[0], alert[6])); // alert, protocol_version
        Assert.NotNull((await world.Upgraded).Failure);
    }

    [Fact]
    public async Task A_handshake_that_stalls_ends_when_its_connection_is_closed()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        await world.Raw.WriteAsync((byte[])[22, 3, 1, 2]);
        Assert.False(world.Upgraded.IsCompleted);
        await world.On(() =>
        {
            world.Plain!.Close();
            return new ValueTask<int>(0);
        });
        Assert.NotNull((await world.Upgraded).Failure);
    }

    [Theory]
    [InlineData(1)]
    [InlineData(20_000)]
    public async Task Plain_bytes_where_TLS_should_be_are_never_taken_for_it(int bytes)
    {
        await using World before = await World.StartAsync(this, "io_uring", TlsClients.None);
        await before.Raw.WriteAsync(new byte[bytes]);
        before.Socket.Shutdown(SocketShutdown.Send);
        Assert.NotNull((await before.Upgraded).Failure);

        await using World after = await World.StartAsync(this, "io_uring", TlsClients.None);
        await after.ShakeAsync();
        await after.Raw.WriteAsync(new byte[bytes]);
        after.Socket.Shutdown(SocketShutdown.Send);
        Assert.True(await after.On(() => after.Server!.ReceiveAsync(new byte[100])) < 0);
    }

    [Fact]
    public async Task A_client_that_does_not_read_holds_the_sender_back_and_loses_nothing()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        await world.ShakeAsync();
        var data = new byte[32 << 20];
        new SeededRandom(5).Fill(data);
        Task<int> sent = world.On(() => world.SendAsync(data));
        // The loop is free for others, and the send cannot be over: no socket buffer takes 32 MiB.
        for (int i = 0; i < 100; i++) await world.On(() => new ValueTask<int>(i));
        Assert.False(sent.IsCompleted);
        var got = new byte[data.Length];
        await world.Client.ReadExactlyAsync(got);
        Assert.Equal(0, await sent);
        Assert.True(data.AsSpan().SequenceEqual(got));
    }

    [Fact]
    public async Task A_close_answers_whatever_is_outstanding()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        await world.ShakeAsync();
        Task<int> received = world.On(() => world.Server!.ReceiveAsync(new byte[10]));
        Task<int> sent = world.On(() => world.SendAsync(new byte[32 << 20]));
        await world.On(() =>
        {
            world.Server!.Close();
            return new ValueTask<int>(0);
        });
        Assert.True(await received < 0);
        Assert.True(await sent < 0);
        Assert.True(await world.On(() => world.Server!.ReceiveAsync(new byte[10])) < 0);
    }

    [Fact]
    public async Task A_farewell_arrives_though_the_close_follows_at_once()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        await world.ShakeAsync(SslProtocols.Tls12);
        Task<int> sent = world.On(async () =>
        {
            int result = await world.SendAsync("last words"u8.ToArray());
            world.Server!.ShutdownSend();
            world.Server.Close();
            return result;
        });
        using var all = new MemoryStream();
        await world.Raw.CopyToAsync(all);
        Assert.Equal(0, await sent);
        byte[] records = all.ToArray();
        int last = 0;
        for (int at = 0; at < records.Length; at += 5 + (records[at + 3] << 8) + records[at + 4]) last = at;
        Assert.Equal(21, records[last]); // an alert: close_notify
    }

    [Fact]
    public async Task A_warm_session_allocates_little()
    {
        await using World world = await World.StartAsync(this, "io_uring", TlsClients.None);
        await world.ShakeAsync();
        Task<long> measured = world.On(async () =>
        {
            var buffer = new byte[64 << 10];
            var batch = new SendBatch();
            long least = long.MaxValue;
            for (int round = 0; round < 6; round++)
            {
                long before = GC.GetAllocatedBytesForCurrentThread();
                for (int i = 0; i < 200; i++)
                {
                    int have = 0;
                    while (have < 5000) have += await world.Server!.ReceiveAsync(buffer.AsMemory(have));
                    batch.Clear();
                    batch.Add(buffer.AsMemory(0, 16));
                    batch.Add(buffer.AsMemory(0, have - 16));
                    Assert.Equal(0, await world.Server!.SendAsync(batch));
                }

                least = Math.Min(least, GC.GetAllocatedBytesForCurrentThread() - before);
            }

            return least;
        });
        var message = new byte[5000];
        for (int i = 0; i < 1200; i++)
        {
            await world.Client.WriteAsync(message);
            await world.Client.ReadExactlyAsync(message);
        }

        long allocated = await measured;
        TestContext.Current.TestOutputHelper?.WriteLine($"{allocated / 200.0} bytes per request and reply");
#if !DEBUG
        Assert.InRange(allocated / 200, 0, 1000); // all of it inside SslStream
#endif
    }

    [Fact]
    public void Wrong_files_are_refused_by_name()
    {
        string server = _ours.CertificateOf("server"), key = _ours.KeyOf("server"), other = _ours.KeyOf("client");
        string none = Path.Combine(_directory, "none.pem"), text = Path.Combine(_directory, "text.pem");
        string locked = Path.Combine(_directory, "locked.key");
        File.WriteAllText(text, "hello");
        using (var secret = ECDsa.Create(ECCurve.NamedCurves.nistP256))
            File.WriteAllText(locked, secret.ExportEncryptedPkcs8PrivateKeyPem("word", new PbeParameters(PbeEncryptionAlgorithm.Aes256Cbc, HashAlgorithmName.SHA256, 10)));
        _ours.Sign("old", TestCertificates.ForServers, -30, -1);
        _ours.Sign("young", TestCertificates.ForServers, 2, 30);
        (string Certificate, string Key, string? Authority, string File, string Word)[] cases =
        [
            (none, key, null, none, "Could not find"),
            (text, key, null, text, "no certificate"),
            (key, key, null, key, "no certificate"),
            (server, none, null, none, "Could not find"),
            (server, text, null, text, "not the private key"),
            (server, other, null, other, "not the private key"),
            (server, locked, null, locked, "encrypted"),
            (server, key, none, none, "Could not find"),
            (server, key, text, text, "no certificate"),
            (_ours.CertificateOf("old"), _ours.KeyOf("old"), null, _ours.CertificateOf("old"), "expired"),
            (_ours.CertificateOf("young"), _ours.KeyOf("young"), null, _ours.CertificateOf("young"), "not valid before"),
            (_ours.CertificateOf("client"), other, null, _ours.CertificateOf("client"), "not made for servers"),
            (server, key, _ours.CertificateOf("old"), _ours.CertificateOf("old"), "expired"),
        ];
        foreach ((string certificate, string keyPath, string? authority, string file, string word) in cases)
        {
            IOException refusal = Assert.Throws<IOException>(() => TlsIdentity.Load(
                certificate, keyPath, authority, authority is null ? TlsClients.None : TlsClients.Required, SystemClock.Instance));
            Assert.StartsWith(file + ": ", refusal.Message, StringComparison.Ordinal);
            Assert.Contains(word, refusal.Message, StringComparison.Ordinal);
        }
    }

    /// <summary>A server's loop that upgrades one connection, and the runtime's client at the other end.</summary>
    private sealed class World : IAsyncDisposable
    {
        private readonly LoopThread _thread;
        private bool _isAccepted;

        private World(LoopThread thread, Socket socket)
        {
            _thread = thread;
            Socket = socket;
            Raw = new NetworkStream(socket);
            Client = new SslStream(Raw);
        }

        public Socket Socket { get; }

        public NetworkStream Raw { get; }

        public SslStream Client { get; }

        public SocketConnection? Plain { get; private set; }

        public TlsConnection? Server { get; private set; }

        /// <summary>The session lives on another loop, which closes it.</summary>
        public bool HasMoved { get; set; }

        public Task<TlsResult> Upgraded { get; private set; } = null!;

        public static async Task<World> StartAsync(TlsTests tests, string engine, TlsClients clients)
        {
            TlsIdentity identity = TlsIdentity.Load(
                tests._ours.CertificateOf("server"), tests._ours.KeyOf("server"),
                clients == TlsClients.None ? null : tests._ours.Path, clients, SystemClock.Instance);
            LoopThread thread = LoopFactory.Create(engine, "test");
            SocketListener listener = await thread.InvokeAsync(() =>
                new ValueTask<SocketListener>(SocketListener.ListenTcp(thread.Loop, new IPEndPoint(IPAddress.Loopback, 0))));
            var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
            await socket.ConnectAsync(listener.BoundEndPoint!); // the backlog takes it
            var world = new World(thread, socket);
            Task<TlsResult> upgraded = thread.InvokeAsync(async () =>
            {
                world.Plain = await listener.AcceptAsync();
                listener.Close();
                return await new TlsUpgrade(thread.Loop, identity).UpgradeAsync(world.Plain!);
            });
            world.Upgraded = upgraded;
            while (!world._isAccepted) world._isAccepted = await thread.InvokeAsync(() => new ValueTask<bool>(world.Plain is not null));
            return world;
        }

        public Task<T> On<T>(Func<ValueTask<T>> work) => _thread.InvokeAsync(work);

        public Task ClientShakeAsync(SslProtocols version, X509Certificate2? certificate) => Client.AuthenticateAsClientAsync(
            new SslClientAuthenticationOptions
            {
                TargetHost = "localhost",
                EnabledSslProtocols = version,
                ClientCertificates = certificate is null ? null : [certificate],
                RemoteCertificateValidationCallback = (_, shown, _, _) => shown is not null && shown.Subject == "CN=server",
            });

        public async Task ShakeAsync(SslProtocols version = SslProtocols.Tls13)
        {
            await ClientShakeAsync(version, null);
            TlsResult result = await Upgraded;
            Assert.Null(result.Failure);
            Server = (TlsConnection)result.Connection!;
        }

        /// <summary>On the loop.</summary>
        public async ValueTask<byte[]> ReceiveAsync(int count)
        {
            var target = new byte[count];
            int have = 0;
            while (have < count)
            {
                int got = await Server!.ReceiveAsync(target.AsMemory(have));
                Assert.True(got > 0);
                have += got;
            }

            return target;
        }

        /// <summary>On the loop.</summary>
        public async ValueTask<int> SendAsync(params byte[][] parts)
        {
            var batch = new SendBatch();
            foreach (byte[] part in parts) batch.Add(part);
            return await Server!.SendAsync(batch);
        }

        public async ValueTask DisposeAsync()
        {
            await Client.DisposeAsync();
            Socket.Dispose();
            await _thread.InvokeAsync(() =>
            {
                if (!HasMoved) Server?.Close();
                return default;
            });
            _thread.Dispose();
        }
    }
}
