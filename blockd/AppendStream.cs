using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>What one append stream may take. The defaults are those of docs/security.md; tests shorten the times.</summary>
internal sealed record AppendStreamLimits
{
    /// <summary>Appends between frame and reply; the stream is not read meanwhile.</summary>
    public int WindowAppends { get; init; } = 64;

    /// <summary>Data of those appends; one append may exceed it alone.</summary>
    public int WindowBytes { get; init; } = 4 << 20;

    /// <summary>A stream without a frame for so long is ended.</summary>
    public ulong IdleNanos { get; init; } = 60_000_000_000;

    /// <summary>A frame that has begun has so long, and besides the time of its bytes at <see cref="FrameBytesPerSecond"/>.</summary>
    public ulong FrameNanos { get; init; } = 10_000_000_000;

    /// <summary>Slowest data of a frame.</summary>
    public ulong FrameBytesPerSecond { get; init; } = 64 << 10;

    /// <summary>A client that takes no reply for so long is cut.</summary>
    public ulong SendStallNanos { get; init; } = 60_000_000_000;

    /// <summary>When the stream is ended from here: how long what is still under way may come before it is cut.</summary>
    public ulong LingerNanos { get; init; } = 1_000_000_000;
}

/// <summary>
/// The frames of one append stream and their replies (<see cref="AppendFrame"/>, <see cref="AppendReply"/>). Lives on the loop of the volume's
/// store; owns the connection. All frames of a turn join one batch of the store, all replies of a turn leave in one send. The first refusal ends
/// it: what has begun is finished and answered, what came behind is not begun. Nothing that a peer sends makes it throw, and in steady state an
/// append allocates nothing.
/// </summary>
internal sealed class AppendStream
{
    private const int InputBytes = 64 << 10;

    // The rest of a frame of at least this is received where it belongs, a smaller one together with what follows it.
    private const int DirectBytesMin = 16 << 10;

    private readonly ILoop _loop;
    private readonly IConnection _connection;
    private readonly IAppendStore _store;
    private readonly uint _volumeId;
    private readonly VolumeAdmission? _door;
    private readonly AppendStreamLimits _limits;
    private readonly byte[] _input = GC.AllocateUninitializedArray<byte>(InputBytes, pinned: true);
    private readonly SendBatch _batch = new(1);
    private readonly TurnEndHook _sendHook;
    private readonly Action _onSent, _giveUpTurn;
    private readonly DeadlineWatch _watch;
    private readonly LoopOperation<bool> _room = new(), _turnCame = new();
    private readonly AdmissionWaiter _turn;
    private byte[] _replies, _sending;
    private int _repliesBytes, _start, _end, _inFlight, _windowBytes;
    private ulong _idleSince, _frameUntil, _sendSince, _lingerUntil;
    private ValueTaskAwaiter<int> _sent;
    private Slot? _free;
    private bool _isSending, _isEnding, _isFilling, _isShut, _isClosed;
    private string? _reason;

    /// <summary>Prepares; nothing is read before <see cref="RunAsync"/>. On the loop.</summary>
    public AppendStream(ILoop loop, IConnection connection, IAppendStore store, uint volumeId, VolumeAdmission? door, AppendStreamLimits? limits = null)
    {
        (_loop, _connection, _store, _volumeId, _door) = (loop, connection, store, volumeId, door);
        _limits = limits ?? new AppendStreamLimits();
        // One more than the window: the reply to what is no append.
        _replies = GC.AllocateUninitializedArray<byte>((_limits.WindowAppends + 1) * AppendReply.SizeBytes, pinned: true);
        _sending = GC.AllocateUninitializedArray<byte>(_replies.Length, pinned: true);
        _sendHook = new TurnEndHook(SendReplies);
        (_onSent, _giveUpTurn) = (OnSent, GiveUpTurn);
        _turn = new AdmissionWaiter(() => _turnCame.Complete(true));
        _watch = new DeadlineWatch(loop, NextDeadline, OnWatch);
    }

    /// <summary>Appends that have landed, repeats too.</summary>
    public ulong Appends { get; private set; }

    /// <summary>Their bytes.</summary>
    public ulong Bytes { get; private set; }

    /// <summary>Serves until the stream has ended and every append has finished; answers why it ended.</summary>
    public async ValueTask<string> RunAsync()
    {
        _idleSince = _loop.NowNanos;
        _watch.Look();
        while (!_isEnding && await TakeFrameAsync())
        {
        }

        End("the client left");
        // A connection that is closed with bytes unread takes the last replies with it: so they are read, for a while.
        while (!_isClosed && await _connection.ReceiveAsync(MemoryMarshal.CreateFromPinnedArray(_input, 0, InputBytes)) > 0)
        {
        }

        while (_inFlight > 0 || _isSending || !(_isShut || _isClosed)) await _room.Begin();
        Close("the client left");
        _watch.Stop();
        return _reason!;
    }

    /// <summary>Finishes what has begun, answers it, and ends.</summary>
    public void RequestStop() => End("the daemon or the disk stops");

    /// <summary>Ends at once; what has begun still finishes in the store.</summary>
    public void Cut(string reason) => Close(reason);

    /// <summary>One frame with its data; false when no other one can come.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakeFrameAsync()
    {
        while (_end - _start < AppendFrame.SizeBytes)
        {
            if (_end > _start && _frameUntil == 0) BeginFrame(0);
            if (!await ReceiveMoreAsync()) return false;
        }

        string? fault = AppendFrame.TryRead(_input.AsSpan(_start, AppendFrame.SizeBytes), out AppendFrame frame);
        if (fault is not null) return Refuse(default, AppendCode.BadFrame, fault);
        _start += AppendFrame.SizeBytes;
        if (frame.Volume != _volumeId) return Refuse(frame.Key, AppendCode.WrongVolume, "a frame of another volume");
        if (frame.LengthBytes is 0 or > AppendWire.DataBytesMax || frame.Key.Client == Guid.Empty || frame.Key.Sequence == 0)
            return Refuse(frame.Key, AppendCode.Invalid, "a frame that cannot be");
        int length = (int)frame.LengthBytes;
        _frameUntil = 0; // it is not the client who keeps us waiting now
        while (IsFull || (_inFlight > 0 && _windowBytes + length > _limits.WindowBytes))
        {
            await _room.Begin();
            if (_isEnding) return false;
        }

        // Before it takes memory: who waits holds nothing, and the socket is not read meanwhile.
        if (_door is not null && !_door.Enter(_turn, frame.LengthBytes))
        {
            bool isInside = await _turnCame.Begin();
            if (isInside && _isEnding) _door.Exit(frame.LengthBytes);
            if (!isInside || _isEnding) return false;
        }

        Slot slot = RentSlot(frame);
        slot.Buffer = _loop.Buffers.TryRent(length) ?? await _loop.Buffers.RentAsync(length);
        _isFilling = true;
        if (!_isEnding) BeginFrame(frame.LengthBytes);
        bool isWhole = await FillAsync(slot.Buffer.Slice(0, length));
        _isFilling = false;
        _frameUntil = 0;
        if (!isWhole || _isEnding)
        {
            Release(slot);
            return false;
        }

        if (Crc32C.Compute(slot.Buffer.Slice(0, length).Span) != frame.DataCrc)
        {
            Release(slot);
            return Refuse(frame.Key, AppendCode.DamagedOnTheWay, "an append was damaged on its way");
        }

        slot.Start();
        return true;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> FillAsync(Memory<byte> target)
    {
        while (true)
        {
            int here = Math.Min(target.Length, _end - _start);
            _input.AsSpan(_start, here).CopyTo(target.Span);
            _start += here;
            target = target[here..];
            if (target.IsEmpty) return true;
            if (target.Length < DirectBytesMin)
            {
                if (!await ReceiveMoreAsync()) return false;
                continue;
            }

            int count = await _connection.ReceiveAsync(target);
            if (count <= 0) return false;
            target = target[count..];
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> ReceiveMoreAsync()
    {
        if (_start > 0)
        {
            _input.AsSpan(_start, _end - _start).CopyTo(_input);
            (_start, _end) = (0, _end - _start);
        }

        if (_isClosed) return false;
        int count = await _connection.ReceiveAsync(MemoryMarshal.CreateFromPinnedArray(_input, _end, InputBytes - _end));
        if (count <= 0 || _isEnding) return false;
        _end += count;
        _idleSince = _loop.NowNanos;
        return true;
    }

    private void BeginFrame(uint bytes)
    {
        _frameUntil = _loop.NowNanos + _limits.FrameNanos + bytes * 1_000_000_000UL / _limits.FrameBytesPerSecond;
        _watch.Look();
    }

    /// <summary>Answers what is not begun, and takes nothing more.</summary>
    private bool Refuse(AppendKey key, AppendCode code, string reason)
    {
        Reply(new AppendReply { Key = key, Code = code });
        End(reason);
        return false;
    }

    private Slot RentSlot(in AppendFrame frame)
    {
        Slot slot = _free ?? new Slot(this);
        _free = slot.Next;
        (slot.Key, slot.LengthBytes) = (frame.Key, (int)frame.LengthBytes);
        _inFlight++;
        _windowBytes += slot.LengthBytes;
        return slot;
    }

    private void Release(Slot slot)
    {
        _inFlight--;
        _windowBytes -= slot.LengthBytes;
        _door?.Exit((ulong)slot.LengthBytes);
        slot.Buffer!.Return();
        slot.Buffer = null;
        slot.Next = _free;
        _free = slot;
        _idleSince = _loop.NowNanos;
        if (_isEnding) _loop.CallAtTurnEnd(_sendHook);
    }

    private void OnAppended(Slot slot, AppendResult result)
    {
        bool isDone = result.Outcome == AppendOutcome.Done;
        if (isDone)
        {
            Appends++;
            Bytes += (ulong)slot.LengthBytes;
        }

        var reply = new AppendReply
        {
            Key = slot.Key, Code = CodeOf(result.Outcome), IsRepeat = result.IsRepeat, OffsetBytes = result.OffsetBytes,
            LengthBytes = isDone ? _store.AppendInfoOf(_volumeId)?.LengthBytes ?? 0 : 0,
        };
        Release(slot);
        Reply(reply);
        if (!isDone) End("an append was refused: " + AppendProblem.Of(reply.Code).Code);
        if (_room.IsPending) _room.Complete(true);
    }

    /// <summary>What the client is told: an append that met a volume which has moved is to be sent again, and finds it where it is by then.</summary>
    internal static AppendCode CodeOf(AppendOutcome outcome) => outcome == AppendOutcome.Moved ? AppendCode.Unavailable : (AppendCode)outcome;

    // Replies that wait to be sent count: so a client that reads none is not read either, and the memory for them is fixed.
    private bool IsFull => _repliesBytes + (_inFlight + 1) * AppendReply.SizeBytes > _replies.Length;

    private void Reply(in AppendReply reply)
    {
        if (_isClosed) return;
        reply.WriteTo(_replies.AsSpan(_repliesBytes, AppendReply.SizeBytes));
        _repliesBytes += AppendReply.SizeBytes;
        _loop.CallAtTurnEnd(_sendHook);
    }

    private void SendReplies()
    {
        if (_isSending || _isClosed) return;
        if (_repliesBytes == 0)
        {
            ShutWhenDone();
            return;
        }

        (_sending, _replies) = (_replies, _sending);
        _batch.Clear();
        _batch.Add(MemoryMarshal.CreateFromPinnedArray(_sending, 0, _repliesBytes));
        _repliesBytes = 0;
        _isSending = true;
        _sendSince = _loop.NowNanos;
#pragma warning disable CA2012 // The awaiter is kept and asked once, in OnSent.
        _sent = _connection.SendAsync(_batch).GetAwaiter();
#pragma warning restore CA2012
        if (_sent.IsCompleted)
        {
            OnSent();
            return;
        }

        _watch.Look();
        _sent.UnsafeOnCompleted(_onSent);
    }

    private void OnSent()
    {
#pragma warning disable CA2012 // Completed: either seen so, or this is its continuation.
        int answer = _sent.GetResult();
#pragma warning restore CA2012
        _isSending = false;
        if (answer < 0) Close("a send failed");
        if (_repliesBytes > 0) _loop.CallAtTurnEnd(_sendHook);
        else ShutWhenDone();
        if (_room.IsPending) _room.Complete(true);
    }

    /// <summary>Nothing more is taken; what has begun is finished and answered.</summary>
    private void End(string reason)
    {
        _reason ??= reason;
        if (_isEnding) return;
        _isEnding = true;
        _frameUntil = 0;
        if (_turn.IsWaiting) _loop.Post(_giveUpTurn);
        if (_room.IsPending) _room.Complete(true);
        _loop.CallAtTurnEnd(_sendHook);
    }

    /// <summary>The last reply is out: so says the end of the stream, and what the client is still sending is not kept.</summary>
    private void ShutWhenDone()
    {
        // What is still coming of a frame is not waited for.
        if (!_isEnding || _isShut || _isClosed || _inFlight > (_isFilling ? 1 : 0) || _isSending || _repliesBytes > 0) return;
        _isShut = true;
        _connection.ShutdownSend();
        _lingerUntil = _loop.NowNanos + _limits.LingerNanos;
        _watch.Look();
        if (_room.IsPending) _room.Complete(true);
    }

    private void Close(string reason)
    {
        _reason ??= reason;
        _isEnding = true;
        if (_isClosed) return;
        _isClosed = true;
        _connection.Close();
        if (_turn.IsWaiting) _loop.Post(_giveUpTurn);
        if (_room.IsPending) _room.Complete(true);
    }

    private void GiveUpTurn()
    {
        if (!_turn.IsWaiting) return;
        _door!.Withdraw(_turn);
        _turnCame.Complete(false);
    }

    private ulong NextDeadline()
    {
        if (_isClosed) return ulong.MaxValue;
        ulong until = _lingerUntil != 0 ? _lingerUntil : _idleSince + _limits.IdleNanos;
        if (_isSending) until = Math.Min(until, _sendSince + _limits.SendStallNanos);
        return _frameUntil != 0 ? Math.Min(until, _frameUntil) : until;
    }

    private void OnWatch()
    {
        ulong now = _loop.NowNanos;
        if (_isSending && now - _sendSince >= _limits.SendStallNanos) Close("the client does not read");
        else if (_lingerUntil != 0 && now >= _lingerUntil) Close(_reason!);
        else if (_frameUntil != 0 && now >= _frameUntil) Refuse(default, AppendCode.TooSlow, "half a frame, then silence");
        else if (!_isEnding && _inFlight == 0 && !_turn.IsWaiting && now - _idleSince >= _limits.IdleNanos) End("nothing came for a while");
        else if (now - _idleSince >= _limits.IdleNanos) _idleSince = now;
    }

    /// <summary>One append from its frame to its reply. Pooled by its stream.</summary>
    private sealed class Slot
    {
        private readonly AppendStream _owner;
        private readonly Action _onDone;
        private ValueTaskAwaiter<AppendResult> _done;

        public Slot(AppendStream owner)
        {
            _owner = owner;
            _onDone = OnDone;
        }

        public AppendKey Key { get; set; }

        public int LengthBytes { get; set; }

        public IoBuffer? Buffer { get; set; }

        public Slot? Next { get; set; }

        public void Start()
        {
#pragma warning disable CA2012 // The awaiter is kept in the slot and asked once, in OnDone.
            _done = _owner._store.AppendAsync(_owner._volumeId, Key, Buffer!.Slice(0, LengthBytes)).GetAwaiter();
#pragma warning restore CA2012
            if (_done.IsCompleted) OnDone();
            else _done.UnsafeOnCompleted(_onDone);
        }

        private void OnDone()
        {
#pragma warning disable CA2012 // Completed: either seen so, or this is its continuation.
            _owner.OnAppended(this, _done.GetResult());
#pragma warning restore CA2012
        }
    }
}
