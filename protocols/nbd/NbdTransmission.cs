using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Nbd;

/// <summary>
/// The transmission phase of one connection. Lives on the loop of the export's device. Requests run concurrently and are
/// answered as they finish; replies leave a few at a time, at the latest at the end of the turn. Owns the connection. Nothing
/// that a peer sends makes it throw, and in steady state a request allocates nothing.
/// </summary>
public sealed partial class NbdTransmission
{
    // A batch is bounded so that its answer is a sign of progress: 60 s without one drops the client.
    private const int BatchBytesMax = 4 << 20;

    // A write refused for its length is read away up to this; a client that announces more is not worth it.
    private const ulong DrainBytesMax = 64 << 20;

    // The rest of a payload of at least this is received where it belongs, a smaller one together with what follows it.
    private const int DirectBytesMin = 16 << 10;

    // After so much without a wait the other sessions of the loop have their turn.
    private const int BurstBytesMax = 1 << 20;

    // And after so much when other volumes use the disk: what they wait for is one request of this session, not eight.
    private const int SharedBurstBytesMax = 128 << 10;

    // A long turn sends its replies in lots of this many: the client works on the first ones while the rest is prepared,
    // and so the disk gets its next requests sooner. Fewer cost more system calls than they gain.
    private const int EarlyReplies = 4;

    private readonly ILoop _loop;
    private readonly IConnection _connection;
    private readonly NbdOptions _options;
    private readonly NbdExport _export;
    private readonly IBlockDevice _device;
    private readonly NbdReplyMode _mode;
    private readonly IReadOnlyList<NbdContext> _contexts;
    private readonly bool _hasContext;
    private readonly byte[] _quiet;
    private readonly SendBatch _batch = new();
    private readonly TurnEndHook _sendHook;
    private readonly Action _onSent;
    private readonly DeadlineWatch _watch;
    private readonly LoopTimer _linger;
    private readonly LoopOperation<bool> _room = new();
    private readonly VolumeAdmission? _admission;
    private readonly AdmissionWaiter _turn;
    private readonly LoopOperation<bool> _turnCame = new();
    private readonly Action _giveUpTurn;
    private readonly Queue<Slot> _ready = new();
    private readonly Queue<Slot> _sending = new();

    private ValueTaskAwaiter<int> _sent;
    private Memory<byte> _input; // the quiet buffer, or the borrowed one while a burst lasts
    private IoBuffer? _borrowed;
    private bool _isMoreLikely; // the last receive filled all that it was given
    private int _burstBytes; // taken without waiting
    private Slot? _freeSlots;
    private int _start, _end;
    private int _windowBytes;
    private ulong _sendSince, _halfSince;
    private bool _isSending, _isClosed, _stopping, _isLingerOver;
    private string? _reason;
    private Exception? _bug;

    /// <summary>Prepares; nothing is read before <see cref="RunAsync"/>.</summary>
    public NbdTransmission(ILoop loop, IConnection connection, NbdNegotiated negotiated, NbdOptions options)
    {
        (_loop, _connection, _options) = (loop, connection, options);
        (_export, _mode, _contexts) = (negotiated.Export, negotiated.Mode, negotiated.Contexts);
        _hasContext = _contexts.Count > 0;
        (_device, _admission) = (_export.Device, _export.Admission);
        _turn = new AdmissionWaiter(() => _turnCame.Complete(true));
        _giveUpTurn = GiveUpTurn;
        int size = Math.Max(options.QuietBytes, negotiated.Leftover.Length + NbdRequest.ExtendedSize);
        _quiet = GC.AllocateUninitializedArray<byte>(size, pinned: true);
        _input = _quiet;
        negotiated.Leftover.CopyTo(_quiet, 0);
        _end = negotiated.Leftover.Length;
        _sendHook = new TurnEndHook(SendReady);
        _onSent = OnSent;
        _watch = new DeadlineWatch(loop, NextDeadline, OnWatch);
        _linger = loop.CreateTimer(() =>
        {
            _isLingerOver = true;
            CloseIfStopped();
        });
    }

    /// <summary>Figures so far.</summary>
    public NbdCounters Counters { get; } = new();

    /// <summary>Serves until the client left or was dropped and every request has finished; answers why it ended.</summary>
    public async ValueTask<string> RunAsync()
    {
        bool polite = await ReceiveAllAsync();
        GoQuiet(isOver: true);
        if (!polite) Close("the connection broke");
        while (Counters.InFlight > 0) await _room.Begin();
        if (!_isClosed) _connection.ShutdownSend();
        Close("the client left");
        _watch.Stop();
        _linger.Stop();
        if (_bug is not null) throw new InvalidOperationException("a request met a bug: " + _bug.Message, _bug);
        return _reason!;
    }

    /// <summary>Finishes what is in flight, answers new requests ESHUTDOWN, and closes after the linger time.</summary>
    public void RequestStop()
    {
        if (_stopping) return;
        _stopping = true;
        _linger.Start(_options.StopLingerNanos);
        if (_turn.IsWaiting) _loop.Post(_giveUpTurn);
    }

    /// <summary>Ends the session at once; requests in flight still finish on the device.</summary>
    public void Cut(string reason) => Close(reason);

    private void Close(string reason)
    {
        _reason ??= reason;
        if (_isClosed) return;
        _isClosed = true;
        _connection.Close();
        if (_turn.IsWaiting) _loop.Post(_giveUpTurn);
    }

    /// <summary>Who waits to be let in when the session ends, or is to end, waits no longer.</summary>
    private void GiveUpTurn()
    {
        if (!_turn.IsWaiting) return;
        _admission!.Withdraw(_turn);
        _turnCame.Complete(false);
    }

    private void CloseIfStopped()
    {
        if (_stopping && _isLingerOver && Counters.InFlight == 0) Close("the server is shutting down");
    }

    private void OnWatch()
    {
        ulong now = _loop.NowNanos;
        if (_isSending && now - _sendSince >= _options.SendStallNanos) Close("the client does not read");
        else if (_halfSince != 0 && now - _halfSince >= _options.HalfRequestNanos) Close("half a request, then silence");
    }

    private ulong NextDeadline()
    {
        ulong until = _isSending && !_isClosed ? _sendSince + _options.SendStallNanos : ulong.MaxValue;
        return _halfSince != 0 && !_isClosed ? Math.Min(until, _halfSince + _options.HalfRequestNanos) : until;
    }

    /// <summary>Reads requests until DISC or the end of the stream (true), or until the stream is unusable (false).</summary>
    private async ValueTask<bool> ReceiveAllAsync()
    {
        int headerBytes = NbdRequest.SizeIn(_mode);
        while (true)
        {
            if (_end - _start < headerBytes)
            {
                int had = _end - _start;
                if (!await ReceiveMoreAsync()) return had == 0 && !_isClosed;
                continue;
            }

            string? fault = NbdRequest.TryRead(_input.Span.Slice(_start, headerBytes), _mode, out NbdRequest request);
            if (fault is not null)
            {
                Close(fault);
                return false;
            }

            _start += headerBytes;
            if (request.Command == NbdCommand.Disconnect) return true;
            ValueTask<bool> taken = TakeAsync(request);
            if (!(taken.IsCompletedSuccessfully ? taken.Result : await taken)) return false;
        }
    }

    /// <summary>Waits for room in the window, fetches the payload and starts the request.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeAsync(NbdRequest request)
    {
        ulong payload = request.PayloadBytes(_mode);
        if (payload > DrainBytesMax)
        {
            Close("a payload is too large");
            return false;
        }

        ulong effect = request.Command == NbdCommand.BlockStatus && payload > 0 ? 1 : request.LengthBytes;
        NbdError error = FaultOf(request with { LengthBytes = effect }, payload);
        int dataBytes = error == NbdError.None && request.Command is NbdCommand.Read or NbdCommand.Write
            && request.LengthBytes <= Units.RequestBytesMax ? (int)request.LengthBytes : 0;
        while (Counters.InFlight >= _options.WindowRequests
            || (Counters.InFlight > 0 && _windowBytes + dataBytes > _options.WindowBytes))
        {
            await _room.Begin();
            if (_isClosed) return false;
        }

        // Before it takes memory: a request that waits holds nothing, and the socket is not read meanwhile.
        ulong began = _loop.NowNanos, charge = 0;
        bool isInside = error == NbdError.None && _admission is not null && IsCharged(request, out charge);
        if (isInside && !_admission!.Enter(_turn, charge))
        {
            isInside = await _turnCame.Begin();
            if (_isClosed)
            {
                if (isInside) _admission.Exit(charge);
                return false;
            }

            if (!isInside) (error, dataBytes) = (NbdError.Shutdown, 0);
        }

        Slot slot = RentSlot(request, dataBytes, began);
        if (isInside) slot.OnAdmitted(charge);
        if (error == NbdError.None && dataBytes > 0)
        {
            int lead = (int)(request.OffsetBytes % Units.BlockBytes);
            slot.Lead = lead;
            slot.Buffer = _loop.Buffers.TryRent(lead + dataBytes) ?? await _loop.Buffers.RentAsync(lead + dataBytes);
        }

        if (payload > 0)
        {
            bool received;
            if (error == NbdError.None && request.Command == NbdCommand.Write)
                received = await FillAsync(slot.Buffer!.Slice(slot.Lead, dataBytes));
            else if (error == NbdError.None && payload <= Slot.HeadBytes)
                received = await FillAsync(MemoryMarshal.CreateFromPinnedArray(slot.Head, 0, (int)payload));
            else
                received = await DrainAsync(payload);
            if (!received)
            {
                Release(slot);
                return false;
            }
        }

        if (error != NbdError.None) slot.Refuse(error);
        else slot.Start((int)payload);
        return true;
    }

    /// <summary>It asks the device for something, and for how many bytes. A flush is let in always: what it covers was.</summary>
    private static bool IsCharged(in NbdRequest request, out ulong bytes)
    {
        bool writesZeroes = request.Command == NbdCommand.WriteZeroes && (request.Flags & NbdCommandFlags.NoHole) != 0;
        bytes = request.Command is NbdCommand.Read or NbdCommand.Write || writesZeroes ? request.LengthBytes : 0;
        return request.LengthBytes > 0
            && request.Command is NbdCommand.Read or NbdCommand.Write or NbdCommand.Trim or NbdCommand.WriteZeroes or NbdCommand.Cache;
    }

    private NbdError FaultOf(in NbdRequest request, ulong payload)
    {
        if (_stopping) return NbdError.Shutdown;
        if (payload > Slot.HeadBytes && request.Command == NbdCommand.BlockStatus) return NbdError.Invalid;
        return request.Fault(
            _mode, _device.SizeBytes, _export.IsReadOnly || _device.IsReadOnly, _hasContext, Units.RequestBytesMax, out _);
    }

    private bool MayGoOn => _burstBytes < (_admission is { HasNeighbours: true } ? SharedBurstBytesMax : BurstBytesMax);

    /// <summary>Fills from what was received already, then from the connection.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> FillAsync(Memory<byte> target)
    {
        while (true)
        {
            int here = Math.Min(target.Length, _end - _start);
            _input.Span.Slice(_start, here).CopyTo(target.Span);
            _start += here;
            target = target[here..];
            if (target.IsEmpty) return true;
            if (_isMoreLikely && target.Length < DirectBytesMin && TryReceiveNow()) continue;
            int count = _isMoreLikely && MayGoOn ? _connection.ReceiveNow(target) : 0;
            if (count > 0)
            {
                _burstBytes += count;
            }
            else
            {
                GoQuiet();
                _halfSince = _loop.NowNanos;
                _watch.Look();
                count = await _connection.ReceiveAsync(target);
                _halfSince = 0;
                if (count <= 0) return false;
            }

            _isMoreLikely = count == target.Length;
            target = target[count..];
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> DrainAsync(ulong bytes)
    {
        while (true)
        {
            int here = (int)Math.Min(bytes, (ulong)(_end - _start));
            _start += here;
            bytes -= (ulong)here;
            if (bytes == 0) return true;
            if (!await ReceiveMoreAsync(isInside: true)) return false;
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> ReceiveMoreAsync(bool isInside = false)
    {
        if (_isMoreLikely && TryReceiveNow()) return true;
        GoQuiet();
        if (isInside || _end > 0)
        {
            _halfSince = _loop.NowNanos;
            _watch.Look();
        }

        Memory<byte> target = _input[_end..];
        int count = await _connection.ReceiveAsync(target);
        _halfSince = 0;
        if (count <= 0) return false;
        _end += count;
        _isMoreLikely = count == target.Length;
        return true;
    }

    /// <summary>In a burst: takes what else has arrived, without waiting, into memory that is borrowed for as long as the
    /// burst lasts. So a silent client holds the small buffer only. False when nothing is there, or too little memory.</summary>
    private bool TryReceiveNow()
    {
        if (!MayGoOn) return false;
        if (_borrowed is null)
        {
            BufferPool pool = _loop.Buffers;
            IoBuffer? larger = pool.LentBytes < pool.LimitBytes / 2 ? pool.TryRent(_options.ReceiveBytes) : null;
            if (larger is null)
            {
                _isMoreLikely = false;
                return false;
            }

            MoveTo(larger.Data);
            _borrowed = larger;
        }
        else
        {
            MoveTo(_input);
        }

        Memory<byte> target = _input[_end..];
        int count = _connection.ReceiveNow(target);
        _isMoreLikely = count == target.Length;
        if (count <= 0) return false; // an end or a break is seen by the receive that follows
        _end += count;
        _burstBytes += count;
        return true;
    }

    /// <summary>Before a wait: gives the borrowed memory back; what is left is less than a header.</summary>
    private void GoQuiet(bool isOver = false)
    {
        if (isOver) (_start, _end) = (0, 0);
        _burstBytes = 0;
        MoveTo(_quiet);
        _borrowed?.Return();
        _borrowed = null;
    }

    private void MoveTo(Memory<byte> target)
    {
        if (_start < _end) _input.Span[_start.._end].CopyTo(target.Span);
        (_start, _end) = (0, _end - _start);
        _input = target;
    }

    private Slot RentSlot(in NbdRequest request, int dataBytes, ulong began)
    {
        Slot slot = _freeSlots ?? new Slot(this);
        _freeSlots = slot.Next;
        slot.Next = null;
        slot.Begin(request, dataBytes, began);
        Counters.InFlight++;
        _windowBytes += dataBytes;
        return slot;
    }

    private void Release(Slot slot)
    {
        Counters.InFlight--;
        _windowBytes -= slot.WindowBytes;
        slot.End();
        slot.Next = _freeSlots;
        _freeSlots = slot;
    }

    /// <summary>A request has its reply ready; it leaves with the next few, at the latest at the end of the turn.</summary>
    private void OnReady(Slot slot, NbdError error)
    {
        slot.LeaveDevice();
        Count(slot, error);
        _ready.Enqueue(slot);
        if (_ready.Count >= EarlyReplies && !_isSending) SendReady();
        else _loop.CallAtTurnEnd(_sendHook);
    }

    private void Count(Slot slot, NbdError error)
    {
        ulong bytes = slot.Request.LengthBytes;
        if (error != NbdError.None)
        {
            Counters.Errors++;
        }
        else if (slot.Request.Command == NbdCommand.Read)
        {
            Counters.Reads++;
            Counters.ReadBytes += bytes;
        }
        else if (slot.Request.Command == NbdCommand.Write)
        {
            Counters.Writes++;
            Counters.WrittenBytes += bytes;
        }

        _export.Meter?.OnRequest(slot.Request.Command, bytes, _loop.NowNanos - slot.BeganNanos, slot.QueuedNanos, error);
    }

    private void SendReady()
    {
        if (_isSending) return;
        while (_isClosed && _ready.TryDequeue(out Slot? lost)) Release(lost);
        while (_ready.TryPeek(out Slot? slot)
            && _batch.Count + slot.PartCount <= SendBatch.PartsMax
            && (_batch.Count == 0 || _batch.LengthBytes < BatchBytesMax))
        {
            slot.AddTo(_batch);
            _sending.Enqueue(_ready.Dequeue());
        }

        if (_batch.Count == 0)
        {
            AfterRelease();
            return;
        }

        _isSending = true;
        _sendSince = _loop.NowNanos;
        _watch.Look();
#pragma warning disable CA2012 // The awaiter is kept and asked once, in OnSent.
        _sent = _connection.SendAsync(_batch).GetAwaiter();
#pragma warning restore CA2012
        if (_sent.IsCompleted) OnSent();
        else _sent.UnsafeOnCompleted(_onSent);
    }

    private void OnSent()
    {
#pragma warning disable CA2012 // Completed: either seen so, or this is its continuation.
        int answer = _sent.GetResult();
#pragma warning restore CA2012
        _isSending = false;
        _batch.Clear();
        while (_sending.TryDequeue(out Slot? slot)) Release(slot);
        if (answer < 0) Close("a send failed");
        if (_ready.Count > 0) _loop.CallAtTurnEnd(_sendHook);
        AfterRelease();
    }

    private void AfterRelease()
    {
        if (_stopping) CloseIfStopped();
        if (_room.IsPending) _room.Complete(true);
    }

    private void OnBug(Slot slot, Exception bug)
    {
        _bug ??= bug;
        Close("a request met a bug");
        Release(slot);
        AfterRelease();
    }
}
