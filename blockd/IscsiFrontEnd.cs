using System.Net;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Blockd;

/// <summary>
/// iSCSI as the daemon offers it: one target for each volume, which is its LUN 0. Listeners, logins and discovery live on
/// the first loop; a connection moves to the loop of its volume's store, where the target with all its sessions lives.
/// Lives on the first loop, except where said.
/// </summary>
internal sealed class IscsiFrontEnd : IIscsiTargets
{
    private readonly LoopThread _thread;
    private readonly VolumeDirectory _directory;
    private readonly StoreSet _stores;
    private readonly SharedVolumes _volumes;
    private readonly Sessions _sessions;
    private readonly Meters _meters;
    private readonly Settings _settings;
    private readonly Action<string> _log;
    private readonly IscsiOptions _options = new();
    private readonly IscsiTarget _discovery;
    private readonly List<SocketListener> _listeners = [];
    private readonly Lock _lock = new();
    private readonly Dictionary<uint, VolumeTarget> _targets = [];
    private volatile string[] _addresses = [];
    private bool _isStopping;

    public IscsiFrontEnd(
        LoopThread thread, VolumeDirectory directory, StoreSet stores, SharedVolumes volumes, Sessions sessions, Meters meters, Settings settings,
        IscsiAuthentication? authentication, Action<string> log)
    {
        (_thread, _directory, _stores, _volumes, _sessions, _meters, _settings, _log) = (thread, directory, stores, volumes, sessions, meters, settings, log);
        Discovery = authentication;
        _discovery = new IscsiTarget(thread.Loop, null, this, _options);
    }

    /// <inheritdoc/>
    public IscsiAuthentication? Discovery { get; }

    /// <summary>Listens and accepts until <see cref="StopAcceptingAsync"/>. Any thread. Throws <see cref="IOException"/>.</summary>
    public Task<ListenerInfo> ListenAsync(ListenAddress address) => _thread.InvokeAsync(() =>
    {
        SocketListener listener = SocketListener.ListenTcp(_thread.Loop, address.Tcp!);
        _listeners.Add(listener);

        // One that listens everywhere has no address to tell; without any an initiator uses the one that it asked at.
        bool isAnywhere = _listeners.Any(l => l.BoundEndPoint!.Address.Equals(IPAddress.Any) || l.BoundEndPoint.Address.Equals(IPAddress.IPv6Any));
        _addresses = isAnywhere ? [] : [.. _listeners.Select(l => l.BoundEndPoint + ",1")];
        _ = AcceptAsync(listener);
        bool isOpen = Discovery is null && !IPAddress.IsLoopback(listener.BoundEndPoint!.Address);
        return new ValueTask<ListenerInfo>(new ListenerInfo("iscsi", listener.Address, false, isOpen));
    });

    /// <summary>Closes every listener. Any thread.</summary>
    public Task StopAcceptingAsync() => _thread.InvokeAsync(() =>
    {
        _isStopping = true;
        foreach (SocketListener listener in _listeners) listener.Close();
        return default;
    });

    /// <summary>The volume may have another size: initiators are told. Any thread.</summary>
    public void OnResized(uint volumeId)
    {
        VolumeTarget? target;
        lock (_lock) target = _targets.GetValueOrDefault(volumeId);
        target?.Host.Thread.Post(target.Unit.OnResized);
    }

    /// <inheritdoc/>
    public IscsiLookup Find(string targetName, string initiatorName, string peer)
    {
        if (_isStopping) return new IscsiLookup(IscsiLoginStatus.ServiceUnavailable);
        string head = _settings.IscsiPrefix + ":";
        VolumeRecord? record = targetName.StartsWith(head, StringComparison.Ordinal) ? _directory.Find(targetName[head.Length..]) : null;
        if (record is null || !record.Export.Iscsi) return new IscsiLookup(IscsiLoginStatus.NotFound);
        if (_stores.Find(record.StoreId) is not { } host) return new IscsiLookup(IscsiLoginStatus.ServiceUnavailable);
        var entry = new IscsiTargetEntry
        {
            Name = targetName, Alias = record.Name, Authentication = Discovery, Tag = new TargetTag(record, host),
        };
        return new IscsiLookup(IscsiLoginStatus.Success, entry);
    }

    /// <summary>Any thread.</summary>
    public IReadOnlyList<IscsiListing> List(string initiatorName, string? user, string peer) =>
        [.. _directory.List().Where(v => v.Export.Iscsi).Select(v => new IscsiListing(NameOf(v), _addresses))];

    private string NameOf(VolumeRecord record) => $"{_settings.IscsiPrefix}:{record.Name}";

    private async Task AcceptAsync(SocketListener listener)
    {
        try
        {
            while (await listener.AcceptAsync() is { } connection)
            {
                if (_sessions.Enter(connection.Peer, _thread.Loop.NowNanos, out string address) is { } refusal)
                {
                    _log($"iscsi {connection.Peer}: refused, {refusal}");
                    connection.Close();
                    continue;
                }

                _ = ServeAndLeaveAsync(connection, listener.Address, address);
            }
        }
        catch (IOException e)
        {
            _log($"iscsi: {listener.Address} is not served any more: {e.Message}");
        }
    }

    private async Task ServeAndLeaveAsync(SocketConnection connection, string listener, string address)
    {
        string peer = connection.Peer;
        string reason;
        try
        {
            reason = await ServeAsync(connection, listener, address);
        }
#pragma warning disable CA1031 // A bug ends its session and is told, nothing else.
        catch (Exception bug)
#pragma warning restore CA1031
        {
            reason = "dropped by a bug: " + bug;
        }

        _sessions.Leave(address);
        _log($"iscsi {peer}: {reason}");
    }

    /// <summary>Ends on this loop.</summary>
    private async Task<string> ServeAsync(SocketConnection connection, string listener, string address)
    {
        var login = new IscsiLogin(_thread.Loop, connection, this, _options);
        LinkedListNode<Handshake> waiting = _sessions.BeginHandshake(
            new Handshake(_thread, () => login.Cut("the server is shutting down"), login.Cut));
        try
        {
            IscsiNegotiated? negotiated = await login.RunAsync();
            if (login.WereCredentialsWrong) _sessions.Failed(address, _thread.Loop.NowNanos);
            if (negotiated is null) return login.EndReason ?? "left during login";
            if (negotiated.Login.IsDiscovery) return await _discovery.ServeAsync(negotiated);
            _sessions.EndHandshake(waiting);
            return await MoveAsync(connection, negotiated, listener);
        }
        finally
        {
            _sessions.EndHandshake(waiting);
        }
    }

    private async Task<string> MoveAsync(SocketConnection connection, IscsiNegotiated negotiated, string listener)
    {
        var tag = (TargetTag)negotiated.Login.Target!.Tag!;
        if (tag.Host.Thread == _thread) return await ServeThereAsync(tag, negotiated, listener);
        string peer = connection.Peer;
        int fd = connection.Detach();
        var ended = new LoopEvent<string>();
        tag.Host.Thread.Post(() => _ = RunThereAsync());
        return await ended.WaitAsync();

        async Task RunThereAsync()
        {
            SocketConnection moved = SocketConnection.Attach(tag.Host.Thread.Loop, fd, peer);
            string reason;
            try
            {
                reason = await ServeThereAsync(tag, negotiated with { Connection = moved }, listener);
            }
#pragma warning disable CA1031 // As in ServeAndLeaveAsync.
            catch (Exception bug)
#pragma warning restore CA1031
            {
                reason = "dropped by a bug: " + bug;
            }

            _thread.Post(() => ended.Set(reason));
        }
    }

    /// <summary>On the loop of the volume.</summary>
    private async Task<string> ServeThereAsync(TargetTag tag, IscsiNegotiated negotiated, string listener)
    {
        if (await OpenAsync(tag) is not { } target)
        {
            await IscsiTarget.RefuseAsync(negotiated, IscsiLoginStatus.ServiceUnavailable);
            return $"volume '{tag.Record.Name}' cannot be served: {_volumes.Find(tag.Record.Id)?.Fault ?? "its disk does not serve it"}";
        }

        Session? known = null;
        try
        {
            return await target.Target.ServeAsync(negotiated, session =>
            {
                string identity = session.User is null ? session.InitiatorName : $"{session.InitiatorName} ({session.User})";
                var handle = new SessionHandle(
                    "iscsi", tag.Host.Thread, reason => target.Target.Cut(session.Tsih, reason), target.Target.RequestStop,
                    () => FiguresOf(session.Counters));
                known = new Session(
                    _sessions.NextId(), tag.Record.Id, negotiated.Connection.Peer, listener, false, identity,
                    SystemClock.Instance.UtcNow, handle);
                _sessions.Add(known);
            });
        }
        finally
        {
            if (known is not null) _sessions.Remove(known);
        }
    }

    private static SessionFigures FiguresOf(IscsiCounters counters) =>
        new(counters.Reads, counters.ReadBytes, counters.Writes, counters.WrittenBytes, counters.InFlight);

    /// <summary>The target of a volume: made for the first initiator and kept, since reservations and unit attentions live in
    /// it. On the loop of the volume.</summary>
    private async ValueTask<VolumeTarget?> OpenAsync(TargetTag tag)
    {
        (VolumeRecord record, StoreHost host) = tag;
        if (await _volumes.OpenUnitAsync(record, host) is not { Unit: { } unit }) return null;
        lock (_lock)
        {
            if (_targets.TryGetValue(record.Id, out VolumeTarget? known))
            {
                if (known.Unit == unit) return known;
                if (known.Target.Sessions.Count > 0) return null; // of a disk that was taken away
            }

            foreach (uint gone in _targets.Keys.Except(_directory.List().Select(v => v.Id)).ToArray()) _targets.Remove(gone);
        }

        KernelLoop loop = host.Thread.Loop;
        var scsi = new ScsiTarget(loop, new ScsiTargetOptions { Name = NameOf(record) });
        scsi.SetLun(0, unit);
        var target = new VolumeTarget(host, unit, new IscsiTarget(loop, scsi, this, _options) { Meter = _meters.Of(record.Id) });
        lock (_lock) _targets[record.Id] = target;
        return target;
    }

    private sealed record TargetTag(VolumeRecord Record, StoreHost Host);

    private sealed record VolumeTarget(StoreHost Host, LogicalUnit Unit, IscsiTarget Target);
}
