using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi;

/// <content>What arrives: headers through one buffer, data straight to where it belongs.</content>
public sealed partial class IscsiConnection
{
    // With data segments of this size or more only so much is received ahead of a PDU: the data then goes from the socket
    // straight to where the device takes it, and is not copied on the way.
    private const int LargeDataBytes = 16 << 10, LargeAheadBytes = 512;

    // An initiator that writes has at least so many answers to read, each of which costs it more than so long: nothing is lost
    // by looking at the socket that much later, and then at many commands at once. They come in two pieces, header and
    // data, and would else be a wake-up, a turn and a send each, for both sides.
    private const int UnreadMin = 8, UnreadMax = 64;
    private const ulong NanosPerUnread = 2_000;
    private const int WriteDataBytes = 1 << 10;
    private const int ExpStatSnOffset = 28;

    private const int HeadBytesMax = IscsiWire.BhsSize + IscsiWire.AhsBytesMax + IscsiWire.DigestSize;

    private readonly byte[] _input;
    private readonly byte[] _head = new byte[HeadBytesMax];
    private readonly int _maxReceive;
    private int _start, _end;
    private int _typicalData; // moving average over PDUs, bytes
    private uint _crc;
    private uint _acknowledged; // first status that the initiator had not read when it sent what came last
    private readonly LoopOperation<bool> _pause = new();
    private readonly LoopTimer _pauseTimer;

    private int Unread => (int)(_statSn - _acknowledged);

    private bool IsInitiatorBusy => _typicalData >= WriteDataBytes && Unread >= UnreadMin;

    /// <summary>Reads PDUs until a logout or the end of the stream between two of them (true), or until the stream is
    /// unusable (false).</summary>
    private async ValueTask<bool> ReceiveAllAsync()
    {
        while (true)
        {
            while (_out.Count > QueueMax && !IsClosed) await _room.Begin();
            if (IsClosed) return false;
            if (_end - _start < IscsiWire.BhsSize)
            {
                int had = _end - _start;
                bool isPausing = had == 0 && IsInitiatorBusy;
                if (isPausing)
                {
                    _pauseTimer.Start(NanosPerUnread * (ulong)Math.Min(Unread, UnreadMax));
                    await _pause.Begin();
                }

                if (await ReceiveMoreAsync(looksFirst: isPausing)) continue;
                Fail(had == 0 ? "the initiator left without a logout" : "the connection broke");
                return false;
            }

            IscsiHeader header = IscsiHeader.Read(_input.AsSpan(_start));
            if (header.AhsBytes > IscsiWire.AhsBytesMax || header.DataBytes > _maxReceive)
                return Broken("a PDU is longer than agreed");
            int length = IscsiWire.BhsSize + header.AhsBytes + (_hasHeaderDigest ? IscsiWire.DigestSize : 0);
            while (_end - _start < length)
            {
                if (!await ReceiveMoreAsync()) return Broken("the connection broke");
            }

            if (!TakeHead(length)) return Broken("a header digest does not match");
            _acknowledged = BinaryPrimitives.ReadUInt32BigEndian(_head.AsSpan(ExpStatSnOffset));
            _typicalData += (Math.Min(header.DataBytes, 1 << 20) - _typicalData) >> 3;
            ValueTask<bool> taken = TakeAsync(header);
            if (!(taken.IsCompletedSuccessfully ? taken.Result : await taken)) return _logout is not null;
        }
    }

    /// <summary>Ends the session; answers false.</summary>
    private bool Broken(string reason)
    {
        Fail(reason);
        return false;
    }

    private bool TakeHead(int length)
    {
        ReadOnlySpan<byte> head = _input.AsSpan(_start, length);
        head.CopyTo(_head);
        _start += length;
        if (!_hasHeaderDigest) return true;
        int covered = length - IscsiWire.DigestSize;
        return Crc32C.Compute(head[..covered]) == BinaryPrimitives.ReadUInt32LittleEndian(head[covered..])
            || _options.Breaks(IscsiBrokenRules.IgnoreDigests);
    }

    /// <summary>Receives a data segment: its first bytes into <paramref name="keep"/>, the rest away; padding and digest are
    /// checked off. False when the session has ended.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> ReceiveDataAsync(Memory<byte> keep, int dataBytes)
    {
        if (dataBytes == 0) return true;
        _crc = 0;
        if (!keep.IsEmpty)
        {
            if (!await FillAsync(keep)) return Broken("the connection broke");
            if (_hasDataDigest) _crc = Crc32C.Compute(keep.Span);
        }

        int rest = dataBytes - keep.Length + IscsiWire.PadOf(dataBytes);
        if (rest > 0 && !await DrainAsync(rest)) return Broken("the connection broke");
        if (!_hasDataDigest) return true;
        while (_end - _start < IscsiWire.DigestSize)
        {
            if (!await ReceiveMoreAsync(isInside: true)) return Broken("the connection broke");
        }

        uint digest = BinaryPrimitives.ReadUInt32LittleEndian(_input.AsSpan(_start));
        _start += IscsiWire.DigestSize;
        return digest == _crc || _options.Breaks(IscsiBrokenRules.IgnoreDigests) || Broken("a data digest does not match");
    }

    /// <summary>Fills from what was received already, then straight from the connection. Initiators send header and data by
    /// two calls: when the header is here the data mostly is too, and is taken without another turn of the loop.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> FillAsync(Memory<byte> target)
    {
        int here = Math.Min(target.Length, _end - _start);
        _input.AsSpan(_start, here).CopyTo(target.Span);
        _start += here;
        target = target[here..];
        while (!target.IsEmpty)
        {
            if (IsClosed) return false;
            int count = _connection.ReceiveNow(target);
            if (count <= 0)
            {
                _halfSince = _loop.NowNanos;
                count = await _connection.ReceiveAsync(target);
                _halfSince = 0;
                if (count <= 0) return false;
            }

            _heard = _loop.NowNanos;
            target = target[count..];
        }

        return true;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> DrainAsync(int bytes)
    {
        while (true)
        {
            int here = Math.Min(bytes, _end - _start);
            if (_hasDataDigest) _crc = Crc32C.Append(_crc, _input.AsSpan(_start, here));
            _start += here;
            bytes -= here;
            if (bytes == 0) return true;
            if (!await ReceiveMoreAsync(isInside: true)) return false;
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> ReceiveMoreAsync(bool isInside = false, bool looksFirst = false)
    {
        if (IsClosed) return false;
        if (_start > 0)
        {
            _input.AsSpan(_start, _end - _start).CopyTo(_input);
            (_start, _end) = (0, _end - _start);
        }

        if (isInside || _end > 0) _halfSince = _loop.NowNanos;
        int room = _input.Length - _end;
        if (_typicalData >= LargeDataBytes && _end < LargeAheadBytes) room = Math.Min(room, LargeAheadBytes - _end);
        Memory<byte> target = MemoryMarshal.CreateFromPinnedArray(_input, _end, room);
        int count = looksFirst ? _connection.ReceiveNow(target) : 0;
        if (count <= 0) count = await _connection.ReceiveAsync(target);
        _halfSince = 0;
        if (count <= 0) return false;
        _heard = _loop.NowNanos;
        _end += count;
        return true;
    }
}
