using System.Buffers.Binary;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// One connection in full feature phase. Lives on its session's loop; owns the connection. Answers leave a few at a
/// time in gathered sends, at the latest at the end of the turn. Nothing that a peer sends makes it throw, and in steady
/// state a command allocates nothing.
/// </summary>
public sealed partial class IscsiConnection
{
    private readonly ILoop _loop;
    private readonly IConnection _connection;
    private readonly IscsiSession _session;
    private readonly IscsiOptions _options;
    private readonly LoopTimer _watch;
    private readonly LoopTimer _linger;
    private readonly LoopOperation<bool> _room = new();
    private readonly List<LoopEvent<bool>> _whenEnded = [];
    private readonly Queue<(uint Tag, LoopEvent<bool> Taken)> _whenTaken = new();
    private readonly bool _hasHeaderDigest, _hasDataDigest;
    private ulong _sendSince, _halfSince, _heard, _pinged, _readSince;
    private uint _pingTag;
    private bool _stopping, _hasSaidFarewell, _isEnded, _isLoggingOut;

    internal IscsiConnection(ILoop loop, IscsiNegotiated negotiated, IscsiSession session, IscsiOptions options)
    {
        (_loop, _connection, _session, _options) = (loop, negotiated.Connection, session, options);
        LoginMachine login = negotiated.Login;
        (Cid, _statSn) = (login.Cid, login.StatSn);
        IscsiParameters own = login.Parameters; // of this connection; the session's are those of the leading one
        (_hasHeaderDigest, _hasDataDigest) = (own.HeaderDigest, own.DataDigest);
        MaxSend = own.InitiatorMaxRecvDataSegmentLength;
        _maxReceive = own.TargetMaxRecvDataSegmentLength;
        MaxBurst = session.Parameters.MaxBurstLength;
        _input = GC.AllocateUninitializedArray<byte>(Math.Max(options.ReceiveBytes, 16 << 10), pinned: true);
        negotiated.Leftover.CopyTo(_input, 0);
        _end = negotiated.Leftover.Length;
        _sendHook = new TurnEndHook(SendReady);
        _onSent = OnSent;
        _watch = loop.CreateTimer(OnWatch);
        _pauseTimer = loop.CreateTimer(() => _pause.Complete(true));
        _acknowledged = _statSn;
        _linger = loop.CreateTimer(() => Close(EndReason ?? "the initiator was slow to leave"));
        (_isSending, _sendSince) = (true, loop.NowNanos); // the last login response is on its way
        session.Add(this);
    }

    /// <summary>Connection id.</summary>
    public ushort Cid { get; }

    /// <summary>Address of the peer.</summary>
    public string Peer => _connection.Peer;

    /// <summary>Why it ended, or null.</summary>
    public string? EndReason { get; private set; }

    internal bool IsClosed { get; private set; }

    internal int TaskCount { get; set; }

    internal int MaxSend { get; private set; }

    internal int MaxBurst { get; }

    /// <summary>Serves until the initiator left or was dropped and every command has ended; answers why it ended. Called
    /// when the login response was sent; <paramref name="isOpen"/>: or could not be.</summary>
    internal async ValueTask<string> RunAsync(bool isOpen)
    {
        _isSending = false;
        _loop.CallAtTurnEnd(_sendHook);
        CloseIfStopped();
        _heard = _readSince = _loop.NowNanos;
        _watch.Start(LookNanos);
        bool isPolite = isOpen && await ReceiveAllAsync();
        if (isPolite && !_session.IsDropped) await LeaveAsync();
        else Fail("the connection broke");
        Close("the initiator left");
        _session.DropUndispatchedOf(this);
        while (TaskCount > 0 || _isSending) await _room.Begin();
        _watch.Stop();
        _linger.Stop();
        _isEnded = true;
        _session.Remove(this);
        foreach (LoopEvent<bool> waiter in _whenEnded) waiter.Set(true);
        if (_session.Bug is { } bug) throw new InvalidOperationException("a command met a bug: " + bug.Message, bug);
        return _session.EndReason ?? EndReason!;
    }

    /// <summary>Ends this connection only, as after a logout.</summary>
    internal void EndOrderly(string reason)
    {
        _isLoggingOut = true;
        Close(reason);
    }

    internal async ValueTask WaitEndedAsync()
    {
        if (_isEnded) return;
        var ended = new LoopEvent<bool>();
        _whenEnded.Add(ended);
        await ended.WaitAsync();
    }

    /// <summary>Takes no more commands, finishes what is in flight, tells the initiator and closes.</summary>
    internal void RequestStop()
    {
        if (_stopping || IsClosed) return;
        _stopping = true;
        _session.DropUndispatchedOf(this);
        _linger.Start(_options.StopLingerNanos);
        CloseIfStopped();
    }

    internal void Close(string reason)
    {
        EndReason ??= reason;
        if (IsClosed) return;
        IsClosed = true;
        _connection.Close();
        while (_whenTaken.TryDequeue(out (uint Tag, LoopEvent<bool> Taken) waiter)) waiter.Taken.Set(false);
        _loop.CallAtTurnEnd(_sendHook); // gives back what waits to be sent
    }

    internal void OnTaskReleased()
    {
        CloseIfStopped();
        if (_room.IsPending) _room.Complete(true);
    }

    /// <summary>Error recovery level 0: the whole session goes.</summary>
    private void Fail(string reason)
    {
        Close(reason);
        if (!_isLoggingOut) _session.Drop(EndReason!);
    }

    private void CloseIfStopped()
    {
        if (!_stopping || IsClosed || TaskCount > 0 || _isSending || _out.Count > 0) return;
        if (_hasSaidFarewell)
        {
            Close("the server is shutting down");
            return;
        }

        _hasSaidFarewell = true;
        SmallPdu pdu = RentPdu();
        new AsyncMessagePdu(IscsiAsyncEvent.SessionDropped, 0, 0, 1, 0, default).WriteTo(pdu.Bytes, 0);
        Enqueue(pdu);
    }

    /// <summary>Sends sense data that nobody asked for, unless the connection leaves or is not read.</summary>
    internal bool TrySendEvent(ulong lun, Sense sense)
    {
        if (IsClosed || _isLoggingOut || _stopping || _out.Count >= QueueMax) return false;
        SmallPdu pdu = RentPdu();
        Span<byte> data = pdu.Bytes.AsSpan(IscsiWire.BhsSize);
        int length = sense.WriteTo(data[2..], asDescriptors: false);
        BinaryPrimitives.WriteUInt16BigEndian(data, (ushort)length);
        pdu.InlineBytes = 2 + length;
        new AsyncMessagePdu(IscsiAsyncEvent.ScsiEvent, lun, 0, 0, 0, default).WriteTo(pdu.Bytes, pdu.InlineBytes);
        Enqueue(pdu);
        return true;
    }

    /// <summary>Asks for a logout within the time of the options.</summary>
    internal void AskToLeave()
    {
        if (IsClosed || _isLoggingOut || _stopping) return;
        SmallPdu pdu = RentPdu();
        ushort seconds = (ushort)Math.Clamp(_options.LogoutNanos / 1_000_000_000, 1, ushort.MaxValue);
        new AsyncMessagePdu(IscsiAsyncEvent.LogoutRequest, 0, 0, 0, seconds, default).WriteTo(pdu.Bytes, 0);
        Enqueue(pdu);
    }

    /// <summary>After a logout: what is in flight ends, its answers and the response leave, then the initiator closes.</summary>
    private async ValueTask LeaveAsync()
    {
        _isLoggingOut = true;
        if (_logout is { } request)
        {
            _session.DropUndispatchedOf(this);
            while ((TaskCount > 0 || _isSending || _out.Count > 0) && !IsClosed) await _room.Begin();
            SmallPdu pdu = RentPdu();
            new LogoutResponsePdu(IscsiLogoutResponse.Success, request.Tag, default).WriteTo(pdu.Bytes);
            Enqueue(pdu);
        }

        while ((TaskCount > 0 || _isSending || _out.Count > 0) && !IsClosed) await _room.Begin();
        if (IsClosed) return;
        _connection.ShutdownSend();
        EndReason ??= "the initiator left";
        _linger.Start(_options.StopLingerNanos);
        _start = _end = 0;
        while (!IsClosed && await ReceiveMoreAsync()) _start = _end = 0;
    }

    /// <summary>One timer serves all waits; it looks every few seconds, so that the hot path never touches it.</summary>
    private void OnWatch()
    {
        if (IsClosed) return;
        ulong now = _loop.NowNanos;
        if (!_isReading) _readSince = now; // the data may be here
        if (_isSending && now - _sendSince >= _options.SendStallNanos) Fail("the initiator does not read");
        else if (_halfSince != 0 && now - _halfSince >= _options.HalfPduNanos) Fail("half a PDU, then silence");
        else if (_session.IsDiscovery && now - _heard >= _options.SendStallNanos) Fail("a discovery session stayed silent");
        else if (now - _readSince >= _options.PingAnswerNanos && _session.AwaitsDataSince(this, now - _options.PingAnswerNanos))
            Fail("data that was asked for did not come");
        else if (_pinged != 0 && now - Math.Max(_pinged, _heard) >= _options.PingAnswerNanos) Fail("a ping was not answered");
        if (IsClosed) return;
        if (_pinged == 0 && now - _heard >= _options.PingAfterNanos && !_isLoggingOut && !_stopping) Ping(now);
        ulong quiet = now - _heard;
        _watch.Start(_pinged == 0 && quiet < LookNanos ? LookNanos - quiet : LookNanos);
    }

    // As often as the shortest of the waits.
    private ulong LookNanos => Math.Min(
        Math.Min(_options.PingAfterNanos, _options.PingAnswerNanos), Math.Min(_options.SendStallNanos, _options.HalfPduNanos));

    /// <summary>Answers when the initiator has taken everything that was queued up to now, or the connection has ended: it
    /// answers a ping in its turn.</summary>
    internal async ValueTask WaitTakenAsync()
    {
        if (_isLoggingOut || _stopping) await WaitEndedAsync(); // it sends what it has and closes, soon
        if (IsClosed) return;
        Ping(_loop.NowNanos);
        var taken = new LoopEvent<bool>();
        _whenTaken.Enqueue((_pingTag, taken));
        await taken.WaitAsync();
    }

    /// <summary>Pings are answered in order, so an answer stands for all before it.</summary>
    private void OnPingAnswered(uint tag)
    {
        if (tag == _pingTag) _pinged = 0;
        foreach ((uint waited, _) in _whenTaken)
        {
            if (waited != tag) continue;
            while (_whenTaken.TryDequeue(out (uint Tag, LoopEvent<bool> Taken) first))
            {
                first.Taken.Set(true);
                if (first.Tag == tag) break;
            }

            return;
        }
    }

    private void Ping(ulong now)
    {
        if (_session.IsDiscovery) return; // not known there; silence ends it
        _pinged = now;
        _pingTag = _session.NextTransferTag();
        SmallPdu pdu = RentPdu();
        pdu.TakesStatSn = false;
        new NopInPdu(0, IscsiWire.NoTag, _pingTag, default).WriteTo(pdu.Bytes, 0);
        Enqueue(pdu);
    }
}
