using System.Collections.Concurrent;
using System.Net;
using Microsoft.AspNetCore.Connections;

namespace BlockServer.Blockd;

/// <summary>What one client of the admin API may take. The defaults are those of the design; tests shorten the times.</summary>
internal sealed record ApiLimits
{
    /// <summary>Longest body, bytes.</summary>
    public int BodyBytesMax { get; init; } = 1 << 20;

    /// <summary>All headers of a request, bytes.</summary>
    public int HeaderBytesMax { get; init; } = 16 << 10;

    /// <summary>From the first byte of a request to the end of its headers.</summary>
    public TimeSpan HeadersTimeout { get; init; } = TimeSpan.FromSeconds(10);

    /// <summary>An idle connection is closed after this.</summary>
    public TimeSpan IdleTimeout { get; init; } = TimeSpan.FromSeconds(60);

    /// <summary>A body slower than <see cref="BodyBytesPerSecondMin"/> for this long is dropped. More than a second.</summary>
    public TimeSpan SlowBodyGrace { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>Slowest body, bytes per second.</summary>
    public double BodyBytesPerSecondMin { get; init; } = 240;

    /// <summary>Connections of the process.</summary>
    public int ConnectionsMax { get; init; } = 128;

    /// <summary>Connections of one address; unix sockets are limited by their file's mode.</summary>
    public int ConnectionsPerAddressMax { get; init; } = 16;

    /// <summary>Append streams of one address; they do not count as connections.</summary>
    public int StreamsPerAddressMax { get; init; } = 64;
}

/// <summary>Counts connections by address and drops those beyond the limit, and of denied addresses. Thread-safe.</summary>
internal sealed class AddressLimit(int perAddressMax, Denied? denied = null, int streamsPerAddressMax = int.MaxValue)
{
    private readonly Lock _lock = new();
    private readonly ConcurrentDictionary<ConnectionContext, IPAddress> _connections = [];
    private readonly Dictionary<IPAddress, int> _open = [], _streams = [];

    /// <summary>The middleware of one listener.</summary>
    public ConnectionDelegate Guard(ConnectionDelegate next) => async connection =>
    {
        IPAddress? address = (connection.RemoteEndPoint as IPEndPoint)?.Address;
        if (address is null)
        {
            await next(connection);
            return;
        }

        if (!TryEnter(address))
        {
            connection.Abort();
            return;
        }

        _connections[connection] = address;
        var seat = new AddressSeat(this, address);
        connection.Features.Set(seat);
        try
        {
            if (denied?.IsAddress(address) == true) connection.Abort();
            else await next(connection);
        }
        finally
        {
            _connections.TryRemove(connection, out _);
            Leave(seat.IsStream ? _streams : _open, address);
        }
    };

    /// <summary>Cuts the connections of addresses that are denied. How many.</summary>
    public int CutDenied()
    {
        int cut = 0;
        foreach ((ConnectionContext connection, IPAddress address) in _connections)
        {
            if (denied?.IsAddress(address) != true) continue;
            connection.Abort();
            cut++;
        }

        return cut;
    }

    private bool TryEnter(IPAddress address)
    {
        lock (_lock)
        {
            int open = _open.GetValueOrDefault(address);
            if (open >= perAddressMax) return false;
            _open[address] = open + 1;
            return true;
        }
    }

    /// <summary>A connection counts as a stream from now on; false when the address has as many as it may.</summary>
    internal bool TryMoveToStreams(IPAddress address)
    {
        lock (_lock)
        {
            int streams = _streams.GetValueOrDefault(address);
            if (streams >= streamsPerAddressMax) return false;
            _streams[address] = streams + 1;
        }

        Leave(_open, address);
        return true;
    }

    private void Leave(Dictionary<IPAddress, int> counts, IPAddress address)
    {
        lock (_lock)
        {
            if (--counts[address] == 0) counts.Remove(address);
        }
    }
}

/// <summary>As what a connection counts for its address. One request at a time uses it.</summary>
internal sealed class AddressSeat(AddressLimit limit, IPAddress address)
{
    /// <summary>It counts as a stream.</summary>
    public bool IsStream { get; private set; }

    /// <summary>It counts as a stream from now on; false when there are too many of its address.</summary>
    public bool TryBecomeStream() => IsStream || (IsStream = limit.TryMoveToStreams(address));
}

/// <summary>
/// Slows down those who guess tokens: after 5 wrong ones within 10 s an address is answered 429 for 30 s. The right token
/// passes all the same: it is not a guess (256 random bits), and one script with an old token must not lock out the
/// administrator of the same machine. Thread-safe.
/// </summary>
internal sealed class AuthThrottle(TimeProvider time)
{
    /// <summary>Wrong tokens before the block.</summary>
    public const int FailuresMax = 5;

    // Addresses remembered; the oldest goes, so that nobody fills the memory by changing addresses.
    private const int AddressesMax = 1024;

    /// <summary>Within which the failures count.</summary>
    public static readonly TimeSpan Window = TimeSpan.FromSeconds(10);

    /// <summary>How long an address is blocked.</summary>
    public static readonly TimeSpan Block = TimeSpan.FromSeconds(30);

    private readonly Lock _lock = new();
    private readonly Dictionary<string, (long Since, int Count, long BlockedAt)> _failures = new(StringComparer.Ordinal);
    private readonly Queue<string> _order = new();

    /// <summary>How long the address stays blocked; zero when it is not.</summary>
    public TimeSpan BlockedFor(string address)
    {
        lock (_lock)
        {
            if (!_failures.TryGetValue(address, out var entry) || entry.BlockedAt == 0) return TimeSpan.Zero;
            TimeSpan left = Block - time.GetElapsedTime(entry.BlockedAt);
            return left > TimeSpan.Zero ? left : TimeSpan.Zero;
        }
    }

    /// <summary>Counts a wrong token.</summary>
    public void OnFailure(string address)
    {
        lock (_lock)
        {
            if (!_failures.TryGetValue(address, out var entry))
            {
                if (_order.Count == AddressesMax) _failures.Remove(_order.Dequeue());
                _order.Enqueue(address);
                entry = (time.GetTimestamp(), 0, 0);
            }

            bool isOver = time.GetElapsedTime(entry.Since) > Window;
            if (isOver) entry = (time.GetTimestamp(), 0, entry.BlockedAt);
            entry.Count++;
            if (entry.Count >= FailuresMax) entry = (time.GetTimestamp(), 0, time.GetTimestamp());
            _failures[address] = entry;
        }
    }
}
