using System.Collections.Concurrent;
using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>What a session has done.</summary>
internal readonly record struct SessionFigures(ulong Reads, ulong ReadBytes, ulong Writes, ulong WrittenBytes, int InFlight);

/// <summary>What one protocol's session can be told and asked; all on <paramref name="Thread"/>.</summary>
internal sealed record SessionHandle(
    string Protocol, LoopThread Thread, Action<string> Cut, Action RequestStop, Func<SessionFigures> Figures);

/// <summary>A connection that has not negotiated yet; its members are called on <paramref name="Thread"/>.</summary>
internal sealed record Handshake(LoopThread Thread, Action RequestStop, Action<string> Cut, string Peer = "");

/// <summary>A snapshot that is read.</summary>
internal sealed record SnapshotUse(uint VolumeId, Guid Uuid, string Name);

/// <summary>One client that negotiated a volume, or a snapshot.</summary>
internal sealed class Session(
    string id, Func<IReadOnlyList<uint>> volumes, string? target, string peer, string listener, bool isTls, string? identity,
    DateTimeOffset since, SessionHandle handle, Func<IReadOnlyList<SnapshotUse>>? snapshots = null)
{
    public string Id { get; } = id;

    /// <summary>Address and port of the client, or unix:.</summary>
    public string Peer { get; } = peer;

    /// <summary>Name of the iSCSI initiator, or null.</summary>
    public string? Initiator => Target is null ? null : identity?.Split(' ')[0];

    /// <summary>The volumes that it reaches now. Any thread.</summary>
    public IReadOnlyList<uint> Volumes => volumes();

    /// <summary>The snapshots that it reads now; their volumes are not among <see cref="Volumes"/>. Any thread.</summary>
    public IReadOnlyList<SnapshotUse> Snapshots => snapshots?.Invoke() ?? [];

    /// <summary>It reaches one of these volumes, or a snapshot of one.</summary>
    public bool Touches(IReadOnlySet<uint> ids) => Volumes.Any(ids.Contains) || Snapshots.Any(s => ids.Contains(s.VolumeId));

    /// <summary>The iSCSI target, or null.</summary>
    public string? Target { get; } = target;

    /// <summary>Why a session ends whose volume is not for it any more.</summary>
    public const string NotItsVolume = "the volume is not for it any more";

    /// <summary>False for an NBD client that the rules of the volume do not let in.</summary>
    public bool MayUse(VolumeRecord volume) => Protocol != "nbd" || NbdClients.Admits(volume.Export, identity);

    /// <summary>Ends it at once.</summary>
    public void Cut(string reason) => handle.Thread.Post(() => handle.Cut(reason));

    /// <summary>Ends it after what is in flight.</summary>
    public void RequestStop() => handle.Thread.Post(handle.RequestStop);

    /// <summary>The front end: nbd or iscsi.</summary>
    public string Protocol => handle.Protocol;

    /// <summary>The loop that serves it.</summary>
    public LoopThread Thread => handle.Thread;

    /// <summary>As the API shows it; <paramref name="nameOf"/> says a volume's name, or null when it is gone. On the loop.</summary>
    public SessionInfo Describe(Func<uint, string?> nameOf)
    {
        string volume = string.Join(',', Volumes.Select(nameOf)
            .Concat(Snapshots.Select(s => nameOf(s.VolumeId) is { } name ? $"{name}@{s.Name}" : null)).OfType<string>());
        SessionFigures figures = handle.Figures();
        return new SessionInfo(
            Id, handle.Protocol, volume, Peer, listener, isTls, identity, since, figures.Reads, figures.ReadBytes,
            figures.Writes, figures.WrittenBytes, figures.InFlight, Target);
    }
}

/// <summary>How many may be connected (trust.md D.5). Times are nanoseconds of the loop's clock.</summary>
/// <param name="Connections">Connections of the process.</param>
/// <param name="PerAddress">Connections of one address; unix sockets have none.</param>
/// <param name="Handshakes">Connections that have not negotiated yet; the oldest gives way.</param>
/// <param name="Failures">Failed TLS handshakes of one address within <paramref name="FailureNanos"/> that block it.</param>
/// <param name="FailureNanos">How long a failure counts.</param>
/// <param name="BlockNanos">How long an address is blocked.</param>
internal sealed record ConnectionLimits(
    int Connections = 256, int PerAddress = 32, int Handshakes = 64, int Failures = 5, ulong FailureNanos = 10_000_000_000,
    ulong BlockNanos = 30_000_000_000);

/// <summary>Who is connected, and how many may be. Thread-safe.</summary>
internal sealed class Sessions(ConnectionLimits limits)
{
    // Addresses with failures that are remembered; with more, the stalest is forgotten.
    private const int FailingMax = 1024;

    // What the protocols say of a client that did not say farewell; whom the daemon cuts off is not lost.
    private static readonly HashSet<string> s_losses =
    [
        "the connection broke", "the client does not read", "half a request, then silence", "a send failed", "a payload is too large",
        "the initiator left without a logout", "the initiator does not read", "half a PDU, then silence", "a ping was not answered",
    ];

    private readonly Lock _lock = new();
    private readonly Dictionary<string, int> _byAddress = new(StringComparer.Ordinal);
    private readonly Dictionary<string, Failing> _failing = new(StringComparer.Ordinal);
    private readonly LinkedList<Handshake> _handshakes = new();
    private readonly ConcurrentDictionary<string, Session> _sessions = new(StringComparer.Ordinal);
    private int _connections;
    private long _next;

    /// <summary>Who is kept out, or null: nobody.</summary>
    public Denied? Denied { get; init; }

    /// <summary>Cuts sessions and handshakes of those who are denied. How many.</summary>
    public int CutDenied()
    {
        if (Denied is not { } denied) return 0;
        Session[] sessions = [.. _sessions.Values.Where(denied.IsSession)];
        Handshake[] handshakes;
        lock (_lock) handshakes = [.. _handshakes.Where(h => denied.IsPeer(h.Peer))];
        foreach (Session session in sessions) session.Cut("it is denied");
        foreach (Handshake handshake in handshakes) handshake.Thread.Post(() => handshake.Cut("its address is denied"));
        return sessions.Length + handshakes.Length;
    }

    /// <summary>Connections in any phase.</summary>
    public int Connections => Volatile.Read(ref _connections);

    public IReadOnlyList<Session> List() => [.. _sessions.Values.OrderBy(s => s.Id, StringComparer.Ordinal)];

    public int CountOf(uint volumeId) => _sessions.Values.Count(s => s.Volumes.Contains(volumeId));

    /// <summary>Sessions that read a snapshot.</summary>
    public IReadOnlyList<Session> Reading(Guid snapshot) => [.. _sessions.Values.Where(s => s.Snapshots.Any(u => u.Uuid == snapshot))];

    /// <summary>How many sessions each volume has; volumes without one are left out.</summary>
    public Dictionary<uint, int> CountByVolume() =>
        _sessions.Values.SelectMany(s => s.Volumes).GroupBy(v => v).ToDictionary(g => g.Key, g => g.Count());

    /// <summary>Connections to a target.</summary>
    public int CountOf(string target) => _sessions.Values.Count(s => s.Target == target);

    public Session? Find(string id) => _sessions.GetValueOrDefault(id);

    public string NextId() => Interlocked.Increment(ref _next).ToString(CultureInfo.InvariantCulture);

    /// <summary>Told of every session that came or (true) went, by its id. On any thread; must be quick.</summary>
    public Action<string, bool>? Changed { get; set; }

    public void Add(Session session)
    {
        _sessions[session.Id] = session;
        Changed?.Invoke(session.Id, false);
    }

    public void Remove(Session session)
    {
        if (_sessions.TryRemove(session.Id, out _)) Changed?.Invoke(session.Id, true);
    }

    /// <summary>Told of an address at which the kernel accepts no more connections, and why. Any thread; set once.</summary>
    public Action<string, string>? ListenerFailed { get; set; }

    /// <summary>Told of a session that ended without a farewell, and why. Any thread; set once.</summary>
    public Action<Session, string>? Lost { get; set; }

    /// <summary>A session has ended for that reason.</summary>
    public void Ended(Session session, string reason)
    {
        if (s_losses.Contains(reason)) Lost?.Invoke(session, reason);
    }

    /// <summary>Admits a connection: null, or why not. Every admitted one is paired with <see cref="Leave"/>.</summary>
    public string? Enter(string peer, ulong nowNanos, out string address)
    {
        address = AddressOf(peer);
        if (Denied?.IsPeer(peer) == true) return "its address is denied (pfcli list_denied)";
        lock (_lock)
        {
            if (_failing.TryGetValue(address, out Failing? failing) && nowNanos < failing.BlockedUntil)
                return $"{address} is blocked for {limits.BlockNanos / 1_000_000_000} s after {limits.Failures} failed handshakes";
            if (_connections >= limits.Connections) return $"more than {limits.Connections} connections (--connections)";
            int here = _byAddress.GetValueOrDefault(address);
            if (address.Length > 0 && here >= limits.PerAddress) return $"more than {limits.PerAddress} connections of {address} (--connections-per-address)";
            _byAddress[address] = here + 1;
            _connections++;
            return null;
        }
    }

    /// <summary>Counts a client that could not prove itself; too many of one address block it for a while.</summary>
    public void Failed(string address, ulong nowNanos)
    {
        if (address.Length == 0) return; // unix: the file's permissions are the guard
        lock (_lock)
        {
            if (!_failing.TryGetValue(address, out Failing? failing))
            {
                if (_failing.Count >= FailingMax) _failing.Remove(_failing.MinBy(f => f.Value.Since).Key);
                _failing[address] = failing = new Failing();
            }

            if (failing.Count == 0 || nowNanos - failing.Since > limits.FailureNanos) (failing.Since, failing.Count) = (nowNanos, 0);
            if (++failing.Count < limits.Failures) return;
            failing.BlockedUntil = nowNanos + limits.BlockNanos;
            failing.Count = 0;
        }
    }

    public void Leave(string address)
    {
        lock (_lock)
        {
            _connections--;
            if (--_byAddress[address] == 0) _byAddress.Remove(address);
        }
    }

    /// <summary>Counts a handshake; the oldest gives way to the one too many.</summary>
    public LinkedListNode<Handshake> BeginHandshake(Handshake handshake)
    {
        lock (_lock)
        {
            if (_handshakes.Count >= limits.Handshakes && _handshakes.First is { } oldest)
            {
                Handshake dropped = oldest.Value;
                _handshakes.RemoveFirst();
                dropped.Thread.Post(() => dropped.Cut("gave way to newer connections"));
            }

            return _handshakes.AddLast(handshake);
        }
    }

    public void EndHandshake(LinkedListNode<Handshake> node)
    {
        lock (_lock)
        {
            if (node.List is not null) _handshakes.Remove(node);
        }
    }

    /// <summary>Asks everybody to end.</summary>
    public void StopAll()
    {
        lock (_lock)
        {
            foreach (Handshake handshake in _handshakes) handshake.Thread.Post(handshake.RequestStop);
        }

        foreach (Session session in _sessions.Values) session.RequestStop();
    }

    // The address without the port; empty for unix sockets, whose file permissions are the limit.
    private static string AddressOf(string peer)
    {
        if (peer.StartsWith("unix:", StringComparison.Ordinal)) return "";
        int colon = peer.LastIndexOf(':');
        return colon < 0 ? peer : peer[..colon];
    }

    private sealed class Failing
    {
        public ulong Since { get; set; }

        public int Count { get; set; }

        public ulong BlockedUntil { get; set; }
    }
}
