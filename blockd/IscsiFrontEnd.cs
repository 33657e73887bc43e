using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>
/// iSCSI as the daemon offers it. Listeners, logins and discovery live on the first loop; a connection moves to the loop of
/// its target's units, where the target with all its sessions lives. Lives on the first loop, except where said.
/// </summary>
internal sealed class IscsiFrontEnd
{
    private readonly LoopThread _thread;
    private readonly Sessions _sessions;
    private readonly SharedVolumes _volumes;
    private readonly Settings _settings;
    private readonly Action<string> _log;
    private readonly IscsiOptions _options;
    private readonly List<SocketListener> _listeners = [];
    private bool _isStopping;

    public IscsiFrontEnd(
        LoopThread thread, IscsiCatalog catalog, StoreSet stores, SharedVolumes volumes, Sessions sessions, Meters meters, Settings settings,
        Action<string> log)
    {
        (_thread, Catalog, _sessions, _volumes, _settings, _log) = (thread, catalog, sessions, volumes, settings, log);
        _options = settings.Limits.OfIscsi();
        Targets = new ServedTargets(catalog, stores, volumes, meters, thread, settings, new PortalView(this, null), _options);
    }

    /// <summary>The targets in use.</summary>
    public ServedTargets Targets { get; }

    private IscsiCatalog Catalog { get; }

    /// <summary>Listens and accepts until <see cref="StopAcceptingAsync"/>. Any thread. Throws <see cref="IOException"/>.</summary>
    public Task<ListenerInfo> ListenAsync(ListenAddress address) => _thread.InvokeAsync(() =>
    {
        SocketListener listener = SocketListener.ListenTcp(_thread.Loop, address.Tcp!);
        _listeners.Add(listener);
        var portal = new IscsiPortal(listener.BoundEndPoint!, address.Group);
        Catalog.Add(portal);
        var view = new PortalView(this, portal);
        _ = AcceptAsync(listener, view, new IscsiTarget(_thread.Loop, null, view, _options));
        return new ValueTask<ListenerInfo>(new ListenerInfo("iscsi", listener.Address, false, _settings.Insecure && !portal.IsLocal));
    });

    /// <summary>Closes every listener. Any thread.</summary>
    public Task StopAcceptingAsync() => _thread.InvokeAsync(() =>
    {
        _isStopping = true;
        foreach (SocketListener listener in _listeners) listener.Close();
        return default;
    });

    private async Task AcceptAsync(SocketListener listener, PortalView portal, IscsiTarget discovery)
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

                _ = ServeAndLeaveAsync(connection, listener.Address, address, portal, discovery);
            }
        }
        catch (IOException e)
        {
            _log($"iscsi: {listener.Address} is not served any more: {e.Message}");
            _sessions.ListenerFailed?.Invoke(listener.Address, e.Message);
        }
    }

    private async Task ServeAndLeaveAsync(SocketConnection connection, string listener, string address, PortalView portal, IscsiTarget discovery)
    {
        string peer = connection.Peer;
        string reason;
        try
        {
            reason = await ServeAsync(connection, listener, address, portal, discovery);
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
    private async Task<string> ServeAsync(SocketConnection connection, string listener, string address, PortalView portal, IscsiTarget discovery)
    {
        var login = new IscsiLogin(_thread.Loop, connection, portal, _options);
        LinkedListNode<Handshake> waiting = _sessions.BeginHandshake(
            new Handshake(_thread, () => login.Cut("the server is shutting down"), login.Cut, connection.Peer));
        try
        {
            if (_sessions.Denied?.IsPeer(connection.Peer) == true) login.Cut("its address is denied"); // since it was let in
            IscsiNegotiated? negotiated = await login.RunAsync();
            if (login.WereCredentialsWrong) _sessions.Failed(address, _thread.Loop.NowNanos);
            if (negotiated is null) return login.EndReason ?? "left during login";
            if (negotiated.Login.IsDiscovery) return await discovery.ServeAsync(negotiated);
            _sessions.EndHandshake(waiting);
            ServedTarget target = Targets.Enter((TargetView)negotiated.Login.Target!.Tag!);
            try
            {
                return await MoveAsync(target, connection, negotiated, listener, portal.Place);
            }
            finally
            {
                Targets.Leave(target);
            }
        }
        finally
        {
            _sessions.EndHandshake(waiting);
        }
    }

    private async Task<string> MoveAsync(
        ServedTarget target, SocketConnection connection, IscsiNegotiated negotiated, string listener, PortalPlace portal)
    {
        if (target.Thread == _thread) return await ServeThereAsync(target, negotiated, listener, portal);
        string peer = connection.Peer;
        int fd = connection.Detach();
        var ended = new LoopEvent<string>();
        target.Thread.Post(() => _ = RunThereAsync());
        return await ended.WaitAsync();

        async Task RunThereAsync()
        {
            SocketConnection moved = SocketConnection.Attach(target.Thread.Loop, fd, peer);
            string reason;
            try
            {
                reason = await ServeThereAsync(target, negotiated with { Connection = moved }, listener, portal);
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

    /// <summary>On the loop of the target. What was asked when the login began is asked again: it may have changed meanwhile.</summary>
    private async Task<string> ServeThereAsync(ServedTarget target, IscsiNegotiated negotiated, string listener, PortalPlace portal)
    {
        LoginMachine login = negotiated.Login;
        await Targets.RenewAsync(target);
        if (RefusalOf(target, login, negotiated.Connection.Peer, portal) is { } refusal)
        {
            await IscsiTarget.RefuseAsync(negotiated, refusal.Status);
            return refusal.Why;
        }

        Session? known = null;
        Admission? admission = null;
        try
        {
            string reason = await target.Iscsi.ServeAsync(negotiated, session =>
            {
                admission = new Admission(session, IscsiRules.AddressOf(negotiated.Connection.Peer), portal);
                target.Admissions.Add(admission);
                string identity = session.User is null ? session.InitiatorName : $"{session.InitiatorName} ({session.User})";
                var handle = new SessionHandle(
                    "iscsi", target.Thread, reason => target.Iscsi.Cut(session.Tsih, reason), target.Iscsi.RequestStop,
                    () => FiguresOf(session.Counters));
                known = new Session(
                    _sessions.NextId(), () => target.Volumes, target.Name, negotiated.Connection.Peer, listener, false, identity,
                    SystemClock.Instance.UtcNow, handle, () => target.Snapshots);
                _sessions.Add(known);
                if (_sessions.Denied?.IsSession(known) == true) target.Iscsi.Cut(session.Tsih, "it is denied");
                if (target.Volumes.Any(_volumes.IsClosed)) target.Iscsi.Cut(session.Tsih, "a stream has begun to come into a volume");
            });
            if (known is not null) _sessions.Ended(known, reason);
            return reason;
        }
        finally
        {
            if (admission is not null) target.Admissions.Remove(admission);
            if (known is not null) _sessions.Remove(known);
        }
    }

    private (IscsiLoginStatus Status, string Why)? RefusalOf(ServedTarget target, LoginMachine login, string peer, PortalPlace portal)
    {
        string name = login.Target!.Name;
        if (IsDenied(login.InitiatorName, peer)) return (IscsiLoginStatus.AuthorizationFailure, $"{login.InitiatorName} or its address is denied");
        if (Catalog.Find(name) is not { } view || view.Key != target.Key) return (IscsiLoginStatus.NotFound, $"target {name} is gone");
        IscsiLoginStatus status = IscsiRules.Decide(view, login.InitiatorName, IscsiRules.AddressOf(peer), portal, _settings.Insecure);
        if (status != IscsiLoginStatus.Success) return (status, $"target {name} does not let {login.InitiatorName} in any more");
        if (!IscsiRules.IsProven(view, login.User)) return (IscsiLoginStatus.AuthenticationFailure, $"target {name}: the user is gone");
        if (!view.IsOwn || target.Scsi.Luns.Count > 0) return null;
        if (view.Luns[0].SnapshotName is { } snapshot) return (IscsiLoginStatus.NotFound, $"volume '{view.Luns[0].Volume.Name}' has no snapshot '{snapshot}' that can be served");
        string why = Targets.FaultOf(view.Luns[0]) ?? "its disk does not serve it";
        return (IscsiLoginStatus.ServiceUnavailable, $"volume '{view.Luns[0].Volume.Name}' cannot be served: {why}");
    }

    private bool IsDenied(string initiator, string peer) =>
        _sessions.Denied is { } denied && (denied.IsInitiator(initiator) || denied.IsPeer(peer));

    private static SessionFigures FiguresOf(IscsiCounters counters) =>
        new(counters.Reads, counters.ReadBytes, counters.Writes, counters.WrittenBytes, counters.InFlight);

    /// <summary>What there is to log in to for who comes in at one portal; without a portal, for who is attached already.</summary>
    private sealed class PortalView(IscsiFrontEnd owner, IscsiPortal? portal) : IIscsiTargets
    {
        // Nobody knows a secret of it: beyond this machine nothing is told to who cannot prove himself.
        private static readonly IscsiAuthentication s_nobody = new(new Dictionary<string, byte[]>());

        public PortalPlace Place => portal!.Place;

        public IscsiAuthentication? Discovery =>
            owner.Catalog.Discovery ?? (portal is { IsLocal: false } && !owner._settings.Insecure ? s_nobody : null);

        public IscsiLookup Find(string targetName, string initiatorName, string peer)
        {
            if (owner._isStopping) return new IscsiLookup(IscsiLoginStatus.ServiceUnavailable);
            if (owner.IsDenied(initiatorName, peer)) return new IscsiLookup(IscsiLoginStatus.AuthorizationFailure);
            if (owner.Catalog.Find(targetName) is not { } target) return new IscsiLookup(IscsiLoginStatus.NotFound);
            IscsiLoginStatus status = IscsiRules.Decide(target, initiatorName, IscsiRules.AddressOf(peer), Place, owner._settings.Insecure);
            if (status == IscsiLoginStatus.NotFound && target.Enabled)
            {
                string? elsewhere = owner.Catalog.ElsewhereOf(target, portal!);
                return elsewhere is null ? new IscsiLookup(status) : new IscsiLookup(IscsiLoginStatus.MovedTemporarily, null, elsewhere);
            }

            if (status == IscsiLoginStatus.AuthorizationFailure)
            {
                owner._log(IscsiRules.IsTooOpen(target, Place, owner._settings.Insecure)
                    ? $"iscsi {peer}: target {targetName} has no CHAP users and is not served beyond loopback; pfcli add_chap_user, or --insecure"
                    : $"iscsi {peer}: target {targetName} does not let {initiatorName} in; pfcli allow_initiator");
            }

            if (status != IscsiLoginStatus.Success) return new IscsiLookup(status);
            bool isAway = target.IsOwn && owner.Catalog.ThreadOf(target) is null;
            if (isAway) return new IscsiLookup(IscsiLoginStatus.ServiceUnavailable);
            return new IscsiLookup(IscsiLoginStatus.Success, new IscsiTargetEntry
            {
                Name = targetName, Alias = target.Alias, Authentication = target.Authentication, PortalGroup = Place.Group, Tag = target,
            });
        }

        /// <summary>Any thread.</summary>
        public IReadOnlyList<IscsiListing> List(string initiatorName, string? user, string peer)
        {
            System.Net.IPAddress? address = IscsiRules.AddressOf(peer);
            if (owner.IsDenied(initiatorName, peer)) return [];
            return
            [
                .. owner.Catalog.List()
                    .Where(t => t.Enabled && IscsiRules.IsLetIn(t.Access, initiatorName, address)
                        && (portal is null || !IscsiRules.IsTooOpen(t, portal.Place, owner._settings.Insecure))
                        && owner.Catalog.Portals.Any(p => t.IsAt(p.Group)))
                    .Select(t => new IscsiListing(t.Name, owner.Catalog.AddressesOf(t, portal))),
            ];
        }
    }
}
