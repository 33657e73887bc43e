using System.Net;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>
/// NBD as the daemon offers it: listeners and handshakes on the first loop; a session runs on the loop of its volume's
/// store, to which its socket moves. Lives on the first loop, except where said.
/// </summary>
internal sealed class NbdFrontEnd(
    LoopThread thread, VolumeDirectory directory, StoreSet stores, Sessions sessions, Meters meters, NbdOptions options,
    string? defaultExport, Action<string> log) : INbdExports
{
    private readonly List<SocketListener> _listeners = [];
    private bool _isStopping;

    /// <summary>Listens and accepts until <see cref="StopAcceptingAsync"/>. Any thread. Throws <see cref="IOException"/>.</summary>
    public async Task<ListenerInfo> ListenAsync(ListenAddress address, bool insecure)
    {
        string bound = await thread.InvokeAsync(() =>
        {
            SocketListener listener = address.Tcp is { } endPoint
                ? SocketListener.ListenTcp(thread.Loop, endPoint)
                : SocketListener.ListenUnix(thread.Loop, address.UnixPath!);
            return new ValueTask<string>(Begin(listener));
        });
        return new ListenerInfo("nbd", bound, options.TlsMode != NbdTlsMode.None, insecure && !address.IsLocal);
    }

    /// <summary>Takes over a listening socket of systemd. Any thread. Refused beyond loopback without TLS.</summary>
    public async Task<ListenerInfo> ListenAsync(int fd, bool insecure)
    {
        (string bound, bool isOpen) = await thread.InvokeAsync(() =>
        {
            SocketListener listener = SocketListener.FromFd(thread.Loop, fd);
            bool isBeyond = listener.BoundEndPoint is { } endPoint && !IPAddress.IsLoopback(endPoint.Address);
            if (!isBeyond || insecure || options.TlsMode == NbdTlsMode.Required) return new ValueTask<(string, bool)>((Begin(listener), isBeyond));
            string refused = listener.Address;
            listener.Close();
            throw new IOException($"socket {refused} of systemd is beyond loopback: it needs --tls-cert and --tls-key, or --insecure");
        });
        return new ListenerInfo("nbd", bound, options.TlsMode != NbdTlsMode.None, insecure && isOpen);
    }

    /// <summary>Serves one connected socket to its end; the reason. Any thread.</summary>
    public Task<string> ServeOneAsync(int fd) => thread.InvokeAsync(async () =>
    {
        SocketConnection connection = SocketConnection.Attach(thread.Loop, fd, "stdio");
        return await ServeAsync(connection, "stdio");
    });

    /// <summary>Closes every listener. Any thread.</summary>
    public Task StopAcceptingAsync() => thread.InvokeAsync(() =>
    {
        _isStopping = true;
        foreach (SocketListener listener in _listeners) listener.Close();
        return default;
    });

    /// <inheritdoc/>
    public async ValueTask<NbdExport?> FindAsync(string name, string? identity)
    {
        if (_isStopping) return null;
        VolumeRecord? record = name.Length > 0 ? directory.Find(name) : DefaultVolume();
        if (record is null || !record.Export.Nbd || stores.Find(record.StoreId) is not { } host) return null;
        IBlockDevice? device = await OpenAsync(host, record.Id);
        if (device is null) return null;
        return new NbdExport
        {
            Name = record.Name,
            Description = record.Description ?? "",
            Device = device,
            SizeBytes = record.SizeBytes,
            IsReadOnly = record.Export.ReadOnly,
            Meter = meters.Of(record.Id),
            Tag = new ExportTag(record.Id, host),
        };
    }

    /// <inheritdoc/>
    public IReadOnlyList<NbdListing> List(string? identity) =>
        [.. directory.List().Where(v => v.Export.Nbd).Select(v => new NbdListing(v.Name, v.Description ?? ""))];

    private VolumeRecord? DefaultVolume()
    {
        if (defaultExport is not null) return directory.Find(defaultExport);
        IReadOnlyList<VolumeRecord> all = directory.List();
        return all.Count == 1 ? all[0] : null; // with several, guessing would attach somebody to the wrong disk
    }

    private ValueTask<IBlockDevice?> OpenAsync(StoreHost host, uint id)
    {
        if (host.Thread == thread) return new ValueTask<IBlockDevice?>(host.Store.OpenVolume(id));
        var opened = new LoopEvent<IBlockDevice?>();
        host.Thread.Post(() =>
        {
            IBlockDevice? device = host.Store.OpenVolume(id);
            thread.Post(() => opened.Set(device));
        });
        return opened.WaitAsync();
    }

    private string Begin(SocketListener listener)
    {
        _listeners.Add(listener);
        _ = AcceptAsync(listener);
        return listener.Address;
    }

    private async Task AcceptAsync(SocketListener listener)
    {
        while (await listener.AcceptAsync() is { } connection)
        {
            if (sessions.Enter(connection.Peer, out string address) is { } refusal)
            {
                log($"nbd {connection.Peer}: refused, {refusal}");
                connection.Close();
                continue;
            }

            _ = ServeAndLeaveAsync(connection, listener.Address, address);
        }
    }

    private async Task ServeAndLeaveAsync(SocketConnection connection, string listener, string address)
    {
        string peer = connection.Peer;
        string reason = await ServeAsync(connection, listener);
        sessions.Leave(address);
        log($"nbd {peer}: {reason}");
    }

    /// <summary>Ends on this loop or on the volume's.</summary>
    private async Task<string> ServeAsync(SocketConnection connection, string listener)
    {
        var handshake = new NbdHandshake(thread.Loop, connection, this, options);
        LinkedListNode<(LoopThread, NbdHandshake)> waiting = sessions.BeginHandshake(thread, handshake);
        NbdNegotiated? negotiated = await handshake.RunAsync();
        sessions.EndHandshake(waiting);
        if (negotiated is null) return handshake.EndReason ?? "left during the handshake";

        var tag = (ExportTag)negotiated.Export.Tag!;
        if (tag.Host.Thread == thread)
            return await TransmitAsync(thread, negotiated.Connection, negotiated, tag, connection.Peer, listener);

        // Only plain sockets move; the settings refuse TLS together with several loops.
        string peer = connection.Peer;
        int fd = connection.Detach();
        var ended = new LoopEvent<string>();
        tag.Host.Thread.Post(() => _ = RunThereAsync());
        return await ended.WaitAsync();

        async Task RunThereAsync()
        {
            SocketConnection moved = SocketConnection.Attach(tag.Host.Thread.Loop, fd, peer);
            string reason = await TransmitAsync(tag.Host.Thread, moved, negotiated, tag, peer, listener);
            thread.Post(() => ended.Set(reason));
        }
    }

    /// <summary>On <paramref name="there"/>.</summary>
    private async Task<string> TransmitAsync(
        LoopThread there, IConnection connection, NbdNegotiated negotiated, ExportTag tag, string peer, string listener)
    {
        var transmission = new NbdTransmission(there.Loop, connection, negotiated, options);
        var session = new Session(
            sessions.NextId(), tag.VolumeId, peer, listener, negotiated.IsTls, negotiated.Identity,
            SystemClock.Instance.UtcNow, there, transmission);
        sessions.Add(session);
        try
        {
            return await transmission.RunAsync();
        }
        finally
        {
            sessions.Remove(session);
        }
    }

    private sealed record ExportTag(uint VolumeId, StoreHost Host);
}
