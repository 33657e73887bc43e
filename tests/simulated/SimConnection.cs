using BlockServer.Core;

namespace BlockServer.Tests.Simulated;

/// <summary>
/// One end of a pipe in RAM on a <see cref="SimLoop"/>. Bytes arrive after a drawn delay in pieces cut anywhere; either
/// end may close at any time, and the network may break at any byte. What was sent is held back while the reader does not
/// read (a socket buffer of <c>windowBytes</c>).
/// </summary>
public sealed class SimConnection : IConnection
{
    private readonly SimLoop _loop;
    private readonly int _windowBytes;
    private byte[] _inbox = [];
    private int _inboxStart, _inboxCount;
    private SimConnection _other = null!;
    private LoopEvent<int>? _receive;
    private Memory<byte> _target;
    private LoopEvent<int>? _send;
    private byte[] _outgoing = [];
    private int _sent;
    private bool _closed, _finSent, _finReceived, _pumping, _delivering, _isBroken, _isDeaf;

    private SimConnection(SimLoop loop, string peer, int windowBytes) =>
        (_loop, Peer, _windowBytes) = (loop, peer, windowBytes);

    /// <summary>Two ends.</summary>
    public static (SimConnection Client, SimConnection Server) Pair(SimLoop loop, int windowBytes = 256 << 10)
    {
        var client = new SimConnection(loop, "sim:server", windowBytes);
        var server = new SimConnection(loop, "sim:client", windowBytes);
        (client._other, server._other) = (server, client);
        return (client, server);
    }

    /// <inheritdoc/>
    public string Peer { get; }

    /// <summary>The other end.</summary>
    public SimConnection Other => _other;

    /// <summary>This end was closed by its owner.</summary>
    public bool IsClosed => _closed;

    /// <summary>How many bytes one delivery carries at most; 0 draws it. 1 delivers byte by byte.</summary>
    public int PieceBytesMax { get; set; }

    /// <summary>Longest delay of a piece, nanoseconds; the shortest is 100.</summary>
    public ulong DelayNanosMax { get; set; } = 10_000;

    /// <summary>The network broke.</summary>
    public bool HasBroken => _isBroken || _isDeaf;

    /// <summary>Bytes that arrived here so far, read or not.</summary>
    public long ArrivedBytes { get; private set; }

    /// <summary>The network breaks when so many bytes have arrived here; what is under way then is lost.</summary>
    public long BreaksAfterBytes { get; set; } = long.MaxValue;

    /// <summary>A break is not told to this end: what it sends goes nowhere and nothing ever comes.</summary>
    public bool HearsNoBreak { get; set; }

    /// <summary>A bit of the byte with this number is flipped on its way here.</summary>
    public long FlipsByte { get; set; } = -1;

    /// <summary>Breaks the connection now. What has arrived can still be read, then both ends meet errors.</summary>
    public void Break()
    {
        BreakHere();
        _other.BreakHere();
    }

    /// <inheritdoc/>
    public ValueTask<int> ReceiveAsync(Memory<byte> target)
    {
        Check.That(_receive is null && !target.IsEmpty);
        if (_closed) return new ValueTask<int>(-9);
        (_receive, _target) = (new LoopEvent<int>(), target);
        ValueTask<int> answer = _receive.WaitAsync();
        Deliver();
        return answer;
    }

    /// <inheritdoc/>
    public int ReceiveNow(Memory<byte> target)
    {
        Check.That(_receive is null && !target.IsEmpty);
        if (_closed) return -9;
        if (_inboxCount == 0) return _isBroken ? -104 : _finReceived ? 0 : -11;
        int count = Math.Min(Piece(_inboxCount), target.Length);
        Take(target.Span[..count]);
        _other.Pump();
        return count;
    }

    /// <inheritdoc/>
    public ValueTask<int> SendAsync(SendBatch batch)
    {
        Check.That(_send is null);
        if (_closed || _finSent) return new ValueTask<int>(-32);
        if (_isBroken) return new ValueTask<int>(-104);
        _outgoing = new byte[batch.LengthBytes];
        int at = 0;
        foreach (ReadOnlyMemory<byte> part in batch.Parts)
        {
            part.Span.CopyTo(_outgoing.AsSpan(at));
            at += part.Length;
        }

        _sent = 0;
        _send = new LoopEvent<int>();
        ValueTask<int> answer = _send.WaitAsync();
        Pump();
        return answer;
    }

    /// <inheritdoc/>
    public void ShutdownSend()
    {
        if (_finSent || _closed) return;
        _finSent = true;
        _loop.Schedule(Math.Max(50_000, DelayNanosMax), () =>
        {
            if (_isBroken || _isDeaf || _other._isDeaf) return;
            _other._finReceived = true;
            _other.Deliver();
        });
    }

    /// <inheritdoc/>
    public void Close()
    {
        if (_closed) return;
        ShutdownSend();
        _closed = true;
        _loop.Post(() =>
        {
            Finish(ref _receive, -9);
            Finish(ref _send, -9);
            _other.Pump();
        });
    }

    private void BreakHere()
    {
        if (HearsNoBreak) _isDeaf = true;
        else _isBroken = true;
        if (_isDeaf) return;
        _loop.Post(() =>
        {
            Finish(ref _send, -104);
            Deliver();
        });
    }

    private void Pump()
    {
        if (_send is null || _pumping || _isDeaf || (_other._inboxCount >= _windowBytes && !_other._closed)) return;
        _pumping = true;
        _loop.Schedule(100 + _loop.Random.NextBelow(DelayNanosMax), () =>
        {
            _pumping = false;
            if (_send is null || _isDeaf) return;
            if (_isBroken)
            {
                Finish(ref _send, -104);
                return;
            }

            if (_closed || _other._closed)
            {
                Finish(ref _send, -32);
                return;
            }

            int room = Math.Min(_outgoing.Length - _sent, _windowBytes - _other._inboxCount);
            int piece = (int)Math.Min(Piece(room), _other.BreaksAfterBytes - _other.ArrivedBytes);
            _other.Arrive(_outgoing.AsSpan(_sent, piece));
            _sent += piece;
            _other.Deliver();
            if (_other.ArrivedBytes == _other.BreaksAfterBytes) Break();
            else if (_sent == _outgoing.Length) Finish(ref _send, 0);
            else Pump();
        });
    }

    private void Arrive(ReadOnlySpan<byte> bytes)
    {
        if (_inboxStart + _inboxCount + bytes.Length > _inbox.Length)
        {
            var larger = new byte[Math.Max(2 * (_inboxCount + bytes.Length), 4096)];
            _inbox.AsSpan(_inboxStart, _inboxCount).CopyTo(larger);
            (_inbox, _inboxStart) = (larger, 0);
        }

        Span<byte> target = _inbox.AsSpan(_inboxStart + _inboxCount, bytes.Length);
        bytes.CopyTo(target);
        if (FlipsByte >= ArrivedBytes && FlipsByte < ArrivedBytes + bytes.Length) target[(int)(FlipsByte - ArrivedBytes)] ^= 0x10;
        _inboxCount += bytes.Length;
        ArrivedBytes += bytes.Length;
    }

    private void Take(Span<byte> target)
    {
        _inbox.AsSpan(_inboxStart, target.Length).CopyTo(target);
        _inboxStart += target.Length;
        _inboxCount -= target.Length;
        if (_inboxCount == 0) _inboxStart = 0;
    }

    private void Deliver()
    {
        if (_receive is null || _delivering || (_inboxCount == 0 && !_finReceived && !_isBroken)) return;
        _delivering = true;
        _loop.Schedule(100 + _loop.Random.NextBelow(DelayNanosMax), () =>
        {
            _delivering = false;
            if (_receive is null) return;
            if (_inboxCount == 0 && _isBroken)
            {
                Finish(ref _receive, -104);
                return;
            }

            int count = Math.Min(Piece(_inboxCount), _target.Length);
            Take(_target.Span[..count]);
            _other.Pump();
            Finish(ref _receive, count);
        });
    }

    private int Piece(int available)
    {
        if (available <= 1) return Math.Max(available, 0);
        if (PieceBytesMax > 0) return Math.Min(available, PieceBytesMax);
        return _loop.Random.NextChance(0.5) ? available : 1 + _loop.Random.NextBelow(available);
    }

    private static void Finish(ref LoopEvent<int>? waiting, int answer)
    {
        LoopEvent<int>? event_ = waiting;
        waiting = null;
        event_?.Set(answer);
    }
}
