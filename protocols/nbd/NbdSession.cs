using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

/// <summary>One client from greeting to farewell, both phases on one loop.</summary>
public sealed class NbdSession(ILoop loop, IConnection connection, INbdExports exports, NbdOptions options)
{
    private readonly NbdHandshake _handshake = new(loop, connection, exports, options);
    private NbdTransmission? _transmission;
    private bool _stopping;

    /// <summary>What the handshake agreed on; null before.</summary>
    public NbdNegotiated? Negotiated { get; private set; }

    /// <summary>Figures of the transmission phase; null before.</summary>
    public NbdCounters? Counters => _transmission?.Counters;

    /// <summary>Serves until the client left or was dropped, and answers why.</summary>
    public async ValueTask<string> RunAsync()
    {
        Negotiated = await _handshake.RunAsync();
        if (Negotiated is null) return _handshake.EndReason ?? "";
        _transmission = new NbdTransmission(loop, Negotiated.Connection, Negotiated, options);
        if (_stopping) _transmission.RequestStop();
        return await _transmission.RunAsync();
    }

    /// <summary>Finishes what is in flight, refuses what is new, then closes.</summary>
    public void RequestStop()
    {
        _stopping = true;
        _handshake.RequestStop();
        _transmission?.RequestStop();
    }

    /// <summary>Ends the session at once.</summary>
    public void Cut(string reason)
    {
        if (_transmission is null) _handshake.Cut(reason);
        else _transmission.Cut(reason);
    }
}
