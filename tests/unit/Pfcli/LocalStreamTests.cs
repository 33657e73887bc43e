using System.Net;
using System.Net.Sockets;
using BlockServer.Pfcli;
using Xunit;

namespace BlockServer.Tests.Unit.Pfcli;

/// <summary>The connection of pfcli to a daemon of its own machine, whose long calls block.</summary>
public sealed class LocalStreamTests
{
    private static async Task<(Stream Ours, Socket Theirs)> PairAsync(bool isUnix)
    {
        string path = Path.Combine(Path.GetTempPath(), $"local-{Guid.NewGuid():N}.sock");
        using var listener = isUnix ? new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) : new Socket(SocketType.Stream, ProtocolType.Tcp);
        listener.Bind(isUnix ? new UnixDomainSocketEndPoint(path) : new IPEndPoint(IPAddress.Loopback, 0));
        listener.Listen();
        Stream ours = isUnix ? LocalStream.Connect(path)
            : await LocalStream.ConnectAsync(new DnsEndPoint("127.0.0.1", ((IPEndPoint)listener.LocalEndPoint!).Port), TestContext.Current.CancellationToken);
        Socket theirs = await listener.AcceptAsync(TestContext.Current.CancellationToken);
        File.Delete(path);
        return (ours, theirs);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task More_than_the_kernel_holds_goes_both_ways(bool isUnix)
    {
        (Stream ours, Socket theirs) = await PairAsync(isUnix);
        using (theirs)
        await using (ours)
        {
            Assert.IsType<LocalStream>(ours);
            byte[] sent = new byte[24 << 20], came = new byte[sent.Length];
            new Random(5).NextBytes(sent);
            // There and back again at once: each side has its own thread in the kernel.
            Task echo = Task.Run(async () =>
            {
                using var stream = new NetworkStream(theirs);
                await stream.CopyToAsync(stream, 1 << 20);
            }, TestContext.Current.CancellationToken);
            Task sending = Task.Run(() => ours.WriteAsync(sent).AsTask(), TestContext.Current.CancellationToken);
            await ours.ReadExactlyAsync(came.AsMemory(0, 100), TestContext.Current.CancellationToken);
            await ours.ReadExactlyAsync(came.AsMemory(100), TestContext.Current.CancellationToken);
            await sending;
            Assert.Equal(sent, came);
            theirs.Shutdown(SocketShutdown.Both);
            await echo;
        }
    }

    [Theory]
    [InlineData(64)]
    [InlineData(1 << 20)]
    public async Task Its_end_is_an_end_whether_short_or_long_is_asked_for(int bytes)
    {
        (Stream ours, Socket theirs) = await PairAsync(isUnix: true);
        await using (ours)
        {
            ValueTask<int> reading = bytes < 1000 ? ours.ReadAsync(new byte[bytes]) : new ValueTask<int>(Task.Run(() => ours.ReadAsync(new byte[bytes]).AsTask()));
            theirs.Dispose();
            Assert.Equal(0, await reading);
            Exception broken = await Assert.ThrowsAsync<IOException>(async () => await ours.WriteAsync(new byte[1 << 20]));
            Assert.IsType<SocketException>(broken.InnerException);
        }
    }

    [Theory]
    [InlineData(true, 64)]
    [InlineData(true, 1 << 20)]
    [InlineData(false, 1 << 20)]
    public async Task Disposing_ends_a_read_that_waits(bool isUnix, int bytes)
    {
        (Stream ours, Socket theirs) = await PairAsync(isUnix);
        using (theirs)
        {
            var begun = new TaskCompletionSource();
            Task<bool> reading = Task.Run(async () =>
            {
                begun.SetResult();
                try
                {
                    return await ours.ReadAsync(new byte[bytes]) == 0;
                }
                catch (IOException)
                {
                    return true;
                }
            });
            await begun.Task;
            await ours.DisposeAsync();
            Assert.True(await reading);
        }
    }

    [Fact]
    public async Task Nobody_there_is_said_at_once()
    {
        Assert.Throws<SocketException>(() => LocalStream.Connect(Path.Combine(Path.GetTempPath(), $"none-{Guid.NewGuid():N}")));
        using var taken = new Socket(SocketType.Stream, ProtocolType.Tcp);
        taken.Bind(new IPEndPoint(IPAddress.Loopback, 0)); // bound, but nobody listens
        await Assert.ThrowsAsync<SocketException>(async () => await LocalStream.ConnectAsync(
            new DnsEndPoint("127.0.0.1", ((IPEndPoint)taken.LocalEndPoint!).Port), TestContext.Current.CancellationToken));
    }
}
