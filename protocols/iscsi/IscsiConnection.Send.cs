using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <content>What leaves: headers, digests and small data are laid one behind the other into one piece of memory, large data
/// goes from where it is.</content>
public sealed partial class IscsiConnection
{
    // A batch is bounded so that its answer is a sign of progress: 60 s without one drops the initiator.
    private const int BatchBytesMax = 4 << 20;

    private const int ArenaBytes = 16 << 10;

    // The most that one PDU lays into the arena: header, digest, sense or inline data, padding, digest.
    private const int PduRoom = 512;

    // With so much unsent the socket is not read: a peer that asks and does not read is held back.
    private const int QueueMax = 512;

    // A long turn sends its answers in lots of this many: the initiator works on the first ones while the rest is prepared.
    // One that has many to read yet gets larger lots.
    private const int EarlyAnswers = 4, EarlyAnswersOfBusy = 16;

    private readonly Queue<Outgoing> _out = new();
    private readonly Queue<Outgoing> _sending = new();
    private readonly SendBatch _batch = new();
    private readonly TurnEndHook _sendHook;
    private readonly Action _onSent;
    private readonly byte[] _arena = GC.AllocateUninitializedArray<byte>(ArenaBytes, pinned: true);
    private ValueTaskAwaiter<int> _sent;
    private SmallPdu? _freePdus;
    private int _arenaEnd, _runStart, _pduStart;
    private uint _statSn;
    private bool _isSending, _isInSend, _hasSendFailed;

    /// <summary>Another PDU fits the batch.</summary>
    internal bool HasRoom => _batch.Count + 3 <= SendBatch.PartsMax && _arenaEnd + PduRoom <= ArenaBytes
        && (_batch.Count == 0 || _batch.LengthBytes < BatchBytesMax);

    /// <summary>StatSN and the window as they are now.</summary>
    internal IscsiNumbers NextNumbers(bool takesStatSn) =>
        new(takesStatSn ? _statSn++ : _statSn, _session.ExpCmdSn, _session.MaxCmdSn);

    internal void Enqueue(Outgoing outgoing)
    {
        _out.Enqueue(outgoing);
        _loop.CallAtTurnEnd(_sendHook);
    }

    /// <summary>A command has its answer: it leaves with the next few, at the latest at the end of the turn. Sending gives
    /// other tasks back, so this is the last thing that the caller does; within a send it waits for the end of the turn.</summary>
    internal void EnqueueAnswer(Outgoing answer)
    {
        Enqueue(answer);
        if (_out.Count < EarlyAnswers || (IsInitiatorBusy && _out.Count < EarlyAnswersOfBusy)) return;
        if (!_isSending && !_isInSend && !_hasSendFailed && !IsClosed) SendReady();
    }

    internal void EnqueueR2T(in R2TPdu r2t)
    {
        SmallPdu pdu = RentPdu();
        pdu.TakesStatSn = false;
        r2t.WriteTo(pdu.Bytes);
        Enqueue(pdu);
    }

    /// <summary>Room for a header, to be filled completely.</summary>
    internal Span<byte> BeginPdu()
    {
        _pduStart = _arenaEnd;
        _arenaEnd += IscsiWire.BhsSize;
        return _arena.AsSpan(_pduStart, IscsiWire.BhsSize);
    }

    /// <summary>Ends a PDU whose data lies elsewhere and stays there until it was sent.</summary>
    internal void EndPdu(ReadOnlyMemory<byte> data)
    {
        EndHeader();
        if (data.IsEmpty) return;
        FlushRun();
        _batch.Add(data);
        EndData(data.Span);
    }

    /// <summary>Ends a PDU with a little data, which is copied.</summary>
    internal void EndPdu(ReadOnlySpan<byte> data)
    {
        EndHeader();
        data.CopyTo(_arena.AsSpan(_arenaEnd));
        _arenaEnd += data.Length;
        EndData(data);
    }

    internal void Release(SmallPdu pdu)
    {
        pdu.Buffer?.Return();
        (pdu.Buffer, pdu.Data, pdu.Sent, pdu.InlineBytes) = (null, default, null, 0);
        pdu.Next = _freePdus;
        _freePdus = pdu;
    }

    private SmallPdu RentPdu()
    {
        SmallPdu pdu = _freePdus ?? new SmallPdu();
        _freePdus = pdu.Next;
        pdu.Next = null;
        pdu.TakesStatSn = true;
        return pdu;
    }

    private void EndHeader()
    {
        if (!_hasHeaderDigest) return;
        uint digest = Crc32C.Compute(_arena.AsSpan(_pduStart, IscsiWire.BhsSize));
        PutDigest(digest);
    }

    private void EndData(ReadOnlySpan<byte> data)
    {
        int pad = IscsiWire.PadOf(data.Length);
        Span<byte> padding = _arena.AsSpan(_arenaEnd, pad);
        padding.Clear();
        _arenaEnd += pad;
        if (!_hasDataDigest) return;
        uint digest = Crc32C.Compute(data);
        if (pad > 0) digest = Crc32C.Append(digest, padding);
        PutDigest(digest);
    }

    /// <summary>The reflected CRC goes out lowest byte first (RFC 7143, 13.1).</summary>
    private void PutDigest(uint digest)
    {
        System.Buffers.Binary.BinaryPrimitives.WriteUInt32LittleEndian(_arena.AsSpan(_arenaEnd), digest);
        _arenaEnd += IscsiWire.DigestSize;
    }

    private void FlushRun()
    {
        if (_arenaEnd > _runStart)
            _batch.Add(MemoryMarshal.CreateFromPinnedArray(_arena, _runStart, _arenaEnd - _runStart));
        _runStart = _arenaEnd;
    }

    private void SendReady()
    {
        if (_hasSendFailed && !IsClosed) Fail("a send failed");
        if (_isSending) return;
        _isInSend = true;
        Send();
        _isInSend = false;
    }

    private void Send()
    {
        while (IsClosed && _out.TryDequeue(out Outgoing? lost)) lost.OnSent(this);
        while (_out.TryPeek(out Outgoing? next) && next.Emit(this)) _sending.Enqueue(_out.Dequeue());
        FlushRun();
        if (_batch.Count == 0)
        {
            CloseIfStopped();
            if (_room.IsPending) _room.Complete(true);
            return;
        }

        _isSending = true;
        _sendSince = _loop.NowNanos;
#pragma warning disable CA2012 // The awaiter is kept and asked once, in OnSent.
        _sent = _connection.SendAsync(_batch).GetAwaiter();
#pragma warning restore CA2012
        if (_sent.IsCompleted) TakeSent();
        else _sent.UnsafeOnCompleted(_onSent);
    }

    private void OnSent()
    {
        _isInSend = true;
        TakeSent();
        _isInSend = false;
    }

    private void TakeSent()
    {
#pragma warning disable CA2012 // Completed: either seen so, or this is its continuation.
        int answer = _sent.GetResult();
#pragma warning restore CA2012
        _isSending = false;
        _batch.Clear();
        (_arenaEnd, _runStart) = (0, 0);

        // The session is not ended from here: an early send may stand on the stack of one of its tasks.
        _hasSendFailed |= answer < 0;
        while (_sending.TryDequeue(out Outgoing? sent)) sent.OnSent(this);
        if (_out.Count > 0 || _hasSendFailed) _loop.CallAtTurnEnd(_sendHook);
        CloseIfStopped();
        if (_room.IsPending) _room.Complete(true);
    }
}
