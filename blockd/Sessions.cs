using System.Collections.Concurrent;
using System.Globalization;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>What a session has done. Read while its loop writes it: each number is whole.</summary>
internal readonly record struct SessionFigures(ulong Reads, ulong ReadBytes, ulong Writes, ulong WrittenBytes, int InFlight);

/// <summary>What one protocol's session can be told; its members are called on <paramref name="Thread"/>, except for
/// <paramref name="Figures"/>, which is called from anywhere.</summary>
internal sealed record SessionHandle(
    string Protocol, LoopThread Thread, Action<string> Cut, Action RequestStop, Func<SessionFigures> Figures);

/// <summary>One client that negotiated a volume.</summary>
internal sealed class Session(
    string id, uint volumeId, string peer, string listener, bool isTls, string? identity, DateTimeOffset since,
    SessionHandle handle)
{
    public string Id { get; } = id;

    public uint VolumeId { get; } = volumeId;

    /// <summary>Ends it at once.</summary>
    public void Cut(string reason) => handle.Thread.Post(() => handle.Cut(reason));

    /// <summary>Ends it after what is in flight.</summary>
    public void RequestStop() => handle.Thread.Post(handle.RequestStop);

    /// <summary>As the API shows it.</summary>
    public SessionInfo Describe(string volume)
    {
        SessionFigures figures = handle.Figures();
        return new SessionInfo(
            Id, handle.Protocol, volume, peer, listener, isTls, identity, since, figures.Reads, figures.ReadBytes,
            figures.Writes, figures.WrittenBytes, figures.InFlight);
    }
}

/// <summary>Who is connected, and how many may be. Thread-safe.</summary>
internal sealed class Sessions
{
    /// <summary>Connections of the process.</summary>
    public const int ConnectionsMax = 256;

    /// <summary>Connections of one address.</summary>
    public const int PerAddressMax = 32;

    /// <summary>Connections that have not negotiated yet.</summary>
    public const int UnauthenticatedMax = 64;

    private readonly Lock _lock = new();
    private readonly Dictionary<string, int> _byAddress = new(StringComparer.Ordinal);
    private readonly LinkedList<(LoopThread Thread, Action Stop)> _handshakes = new();
    private readonly ConcurrentDictionary<string, Session> _sessions = new(StringComparer.Ordinal);
    private int _connections;
    private long _next;

    /// <summary>Connections in any phase.</summary>
    public int Connections => Volatile.Read(ref _connections);

    public IReadOnlyList<Session> List() => [.. _sessions.Values.OrderBy(s => s.Id, StringComparer.Ordinal)];

    public int CountOf(uint volumeId) => _sessions.Values.Count(s => s.VolumeId == volumeId);

    /// <summary>How many sessions each volume has; volumes without one are left out.</summary>
    public Dictionary<uint, int> CountByVolume() =>
        _sessions.Values.GroupBy(s => s.VolumeId).ToDictionary(g => g.Key, g => g.Count());

    public Session? Find(string id) => _sessions.GetValueOrDefault(id);

    public string NextId() => Interlocked.Increment(ref _next).ToString(CultureInfo.InvariantCulture);

    public void Add(Session session) => _sessions[session.Id] = session;

    public void Remove(Session session) => _sessions.TryRemove(session.Id, out _);

    /// <summary>Admits a connection: null, or why not. Every admitted one is paired with <see cref="Leave"/>.</summary>
    public string? Enter(string peer, out string address)
    {
        address = AddressOf(peer);
        lock (_lock)
        {
            if (_connections >= ConnectionsMax) return $"more than {ConnectionsMax} connections";
            int here = _byAddress.GetValueOrDefault(address);
            if (address.Length > 0 && here >= PerAddressMax) return $"more than {PerAddressMax} connections of {address}";
            _byAddress[address] = here + 1;
            _connections++;
            return null;
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

    /// <summary>Counts a handshake, which <paramref name="stop"/> ends on its thread; the oldest gives way to the one too many.</summary>
    public LinkedListNode<(LoopThread Thread, Action Stop)> BeginHandshake(LoopThread thread, Action stop)
    {
        lock (_lock)
        {
            if (_handshakes.Count >= UnauthenticatedMax && _handshakes.First is { } oldest)
            {
                (LoopThread Thread, Action Stop) dropped = oldest.Value;
                _handshakes.RemoveFirst();
                dropped.Thread.Post(dropped.Stop);
            }

            return _handshakes.AddLast((thread, stop));
        }
    }

    public void EndHandshake(LinkedListNode<(LoopThread Thread, Action Stop)> node)
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
            foreach ((LoopThread thread, Action stop) in _handshakes) thread.Post(stop);
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
}
