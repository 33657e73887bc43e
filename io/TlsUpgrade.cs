using System.Net.Security;
using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>
/// TLS over a loop's connections. The handshake computes on the runtime's thread pool, because a signature takes as long
/// as dozens of requests and a client's certificate may make the runtime look into files; its bytes still go through the
/// loop. Records are sealed and opened on the loop itself: at about 3 GB/s that is cheaper than a hop to another thread.
/// Lives on one loop. Has no deadline of its own: whoever asks closes the plain connection, and the handshake fails.
/// </summary>
public sealed class TlsUpgrade(ILoop loop, Func<TlsIdentity> identity) : ITlsUpgrade
{
    /// <summary>With one identity for ever.</summary>
    public TlsUpgrade(ILoop loop, TlsIdentity identity)
        : this(loop, () => identity)
    {
    }

    /// <inheritdoc/>
    public ValueTask<TlsResult> UpgradeAsync(IConnection plain)
    {
        loop.CheckHere();
        var done = new LoopEvent<TlsResult>();
        var transport = new TlsTransport(loop, plain);
        ThreadPool.UnsafeQueueUserWorkItem(_ => _ = ShakeAsync(transport, done), null);
        return done.WaitAsync();
    }

    /// <summary>On the thread pool.</summary>
    private async Task ShakeAsync(TlsTransport transport, LoopEvent<TlsResult> done)
    {
        var ssl = new SslStream(transport, leaveInnerStreamOpen: true);
        string? subject = null, failure = null;
        try
        {
            await ssl.AuthenticateAsServerAsync(identity().Options(), CancellationToken.None);
            subject = ssl.RemoteCertificate?.Subject;
        }
#pragma warning disable CA1031 // Whatever a peer provokes is its own end, not the daemon's.
        catch (Exception e)
#pragma warning restore CA1031
        {
            failure = (e.InnerException is { } inner ? $"{e.Message} {inner.Message}" : e.Message).ReplaceLineEndings(" ");
            await ssl.DisposeAsync();
        }

        loop.PostFromAnywhere(() => done.Set(failure is null
            ? new TlsResult(new TlsConnection(transport, ssl), subject, null)
            : new TlsResult(null, null, failure)));
    }
}
