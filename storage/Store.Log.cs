using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// The log: records of one turn share a page, pages of one turn share a write, data and pages are written in parallel, records are
// applied in order.
public sealed partial class Store
{
    private readonly TurnEndHook _closeHook;
    private readonly Stack<Pending> _pendingPool = new();
    private readonly Stack<LogPage> _pagePool = new();

    // Apart from the pool of requests, and never out of memory: nothing may be awaited between a record and its page, and a
    // request that holds the last of its pool's memory waits for the log. A page in flight carries at least one record, so
    // they are at most as many as the requests in flight, and never more than the ring has.
    private readonly BufferPool _logBuffers = new(long.MaxValue);
    private readonly Stack<LogBuffer> _logBufferPool = new();
    private readonly Stack<LogWrite> _logWritePool = new();
    private readonly Stack<DataWrite> _dataPool = new();
    private readonly Queue<(ulong FirstLsn, ulong Durable, ulong Tail)> _claims = new();
    private readonly Queue<FlushWait> _ringWaiters = new();
    private readonly Action _wakeRing;
    private bool _isWakingRing;
    private LogPage? _open;
    private LogBuffer? _logBuffer;

    // Pages that are full, one behind the other in the ring and in their buffer, and not being written yet.
    private LogPage? _fullFirst, _fullLast;
    private int _fullCount;
    private Pending? _head, _last;
    private ulong _nextPage;
    private uint _previousCrc;
    private ulong _appliedLsn;
    private ulong _appliedVersion;
    private ulong _tailLsn;
    private ulong _claimedTail;
    private ulong _claimedLsn;
    private bool _isAdvancing;

    private double RingOccupancy => (_nextPage - (_claimedTail + 1) / Units.BlockBytes) / (double)_geometry.RingPages;

    private Pending NewPending(RedoKind kind, Volume? volume, uint slot)
    {
        Pending record = _pendingPool.TryPop(out Pending? spare) ? spare : new Pending(_pendingPool);
        record.Kind = kind;
        record.Volume = volume;
        record.Slot = slot;
        if (volume is not null) _slots.Pin(slot); // until it is applied
        record.RunCount = record.BlockCount = record.DataPending = record.Growth = record.Returning = 0;
        record.IsNewPage = record.IsContinued = record.IsRelaid = record.IsSilent = record.IsReset = false;
        record.Layer = null;
        record.Heir = 0;
        record.Source = default;
        record.Version = 0;
        record.Moved = record.Origin = null;
        record.HasBadBlocks = false;
        record.Moves = 0;
        record.First = record;
        record.Next = null;
        return record;
    }

    /// <summary>Room in one page for records of <paramref name="length"/> bytes in all.</summary>
    private void Reserve(int length)
    {
        if (_open is not null && _open.Used + length > Units.BlockBytes) CloseLogPage();
        _open ??= OpenLogPage();
    }

    /// <summary>Room for a record of <paramref name="length"/> bytes; sets the record's page, its LSN and what was before it.
    /// </summary>
    private Span<byte> Append(Pending record, int length)
    {
        Reserve(length);
        LogPage page = _open!;
        record.Page = page;
        record.Lsn = page.Number * Units.BlockBytes + (ulong)page.Used;
        LinkToSlot(record);
        Span<byte> target = page.Bytes.Slice(page.Used, length);
        page.Used += length;
        page.Count++;
        page.Left++;
        if (_last is null) _head = record;
        else _last.Next = record;
        _last = record;
        _loop.CallAtTurnEnd(_closeHook);
        return target;
    }

    /// <summary>The records of one slot are a chain backwards, so that recovery sees when the page that it has in hand is
    /// older than the one that a record was made for.</summary>
    private void LinkToSlot(Pending record)
    {
        record.Before = 0;
        if (record.Kind is RedoKind.Note or RedoKind.Epoch) return;
        ref Slot slot = ref _slots[record.Slot];
        if (!record.IsNewPage && record.Kind is RedoKind.Write or RedoKind.Hole or RedoKind.VolumeDelete or RedoKind.BadBlock or RedoKind.Rekey or RedoKind.Append)
            record.Before = slot.LastLsn;
        slot.LastLsn = record.Lsn;
    }

    private LogPage OpenLogPage()
    {
        // S5: a ring page is overwritten only when all of it lies below the claimed tail.
        Check.That(_nextPage < _geometry.RingPages || PageEnd(_nextPage - _geometry.RingPages) <= _claimedTail);
        if (_logBuffer is null || _logBuffer.Used == LogBuffer.PagesMax)
        {
            WriteFullPages();
            if (!_logBufferPool.TryPop(out _logBuffer)) _logBuffer = new LogBuffer(_logBuffers.TryRent(LogBuffer.PagesMax * Units.BlockBytes)!);
        }

        if (_nextPage % _geometry.RingPages == 0) WriteFullPages(); // it lies at the ring's beginning, they at its end
        if (!_pagePool.TryPop(out LogPage? page)) page = new LogPage();
        page.Buffer = _logBuffer;
        page.Index = _logBuffer.Used++;
        _logBuffer.Held++;
        page.NextInWrite = null;
        page.Number = _nextPage++;
        page.Used = RedoPageHeader.Size;
        page.Count = page.Left = 0;
        page.IsDone = false;
        return page;
    }

    /// <summary>At the end of a turn: what the turn has put into the log goes to the medium.</summary>
    private void WriteLog()
    {
        CloseLogPage();
        WriteFullPages();
    }

    private void CloseLogPage()
    {
        if (_open is not { } page) return;
        _open = null;
        Span<byte> bytes = page.Bytes;
        bytes[page.Used..].Clear();
        var header = new RedoPageHeader
        {
            StoreFold = _fold,
            PreviousCrc = _previousCrc,
            Incarnation = _superblock.Incarnation,
            PageNumber = page.Number,
            Lap = (uint)(page.Number / _geometry.RingPages),
            Count = (ushort)page.Count,
            UsedBytes = (ushort)page.Used,
            DurableLsn = _durableLsn,
            TailLsn = _tailLsn,
            FlushPoint = _durableVersion,
        };
        header.WriteTo(bytes);
        ulong address = _geometry.PageOffset(page.Number);
        _previousCrc = Seal.Put(bytes, address, _fold);
        _claims.Enqueue((header.FirstLsn, header.DurableLsn, header.TailLsn));
        if (_fullLast is null) _fullFirst = page;
        else _fullLast.NextInWrite = page;
        _fullLast = page;
        _fullCount++;
        if (RingOccupancy >= 0.3) KickCheckpoint();
    }

    private void WriteFullPages()
    {
        if (_fullFirst is not { } first) return;
        if (!_logWritePool.TryPop(out LogWrite? write)) write = new LogWrite(this);
        write.First = first;
        int count = _fullCount;
        _fullFirst = _fullLast = null;
        _fullCount = 0;
        write.Start(_log.WriteAsync(_geometry.PageOffset(first.Number), first.Buffer.Pages(first.Index, count)));
    }

    internal void OnLogWritten(LogWrite write, IoStatus status)
    {
        LogPage? page = write.First!;
        write.First = null;
        _logWritePool.Push(write);
        if (status != IoStatus.Ok)
        {
            _ioErrors++;
            Fail($"writing log page {page.Number} failed: {status}");
        }

        while (page is not null)
        {
            LogPage? next = page.NextInWrite;
            page.IsDone = true;
            if (page.Left == 0 && State == StoreState.Online) Release(page); // only a broken rule gets here
            page = next;
        }

        Advance();
    }

    /// <summary>Nothing of the page is needed any more.</summary>
    private void Release(LogPage page)
    {
        LogBuffer buffer = page.Buffer;
        _pagePool.Push(page);
        if (--buffer.Held > 0) return;
        buffer.Used = 0;
        if (buffer != _logBuffer) _logBufferPool.Push(buffer);
    }

    private void StartData(Pending record, ulong offset, ReadOnlyMemory<byte> source)
    {
        if (!_dataPool.TryPop(out DataWrite? write)) write = new DataWrite(this);
        record.DataPending++;
        write.Record = record;
        write.Offset = offset;
        write.Source = source;
        write.IsRetry = false;
        write.Start(_file.WriteAsync(offset, source));
    }

    internal void OnDataWritten(DataWrite write, IoStatus status)
    {
        if (status != IoStatus.Ok)
        {
            _ioErrors++;
            if (!write.IsRetry && State == StoreState.Online)
            {
                RetryByBlock(write);
                return;
            }

            if (status == IoStatus.IoError && State == StoreState.Online) NoteBadBlock(write);
            else Fail($"writing data at {write.Offset} failed twice: {status}");
        }

        Pending record = write.Record;
        record.DataPending--;
        write.Source = default;
        _dataPool.Push(write);
        if (record.First.HasBadBlocks && State == StoreState.Online && !IsDataPending(record.First)) MoveChain(record.First);
        Advance();
    }

    /// <summary>Applies and answers what is complete, in log order (S6), a chain as one (P3).</summary>
    private void Advance()
    {
        if (_isAdvancing) return;
        _isAdvancing = true;
        while (State == StoreState.Online && _head is { } record && IsComplete(record)) ApplyChain(record);
        if (State == StoreState.Failed) FailPending();
        _isAdvancing = false;
        if (_flushWaiters.Count > 0) _loop.CallAtTurnEnd(_flushHook);
        if (_appliedLsn > _durableLsn && !_flushTimer.IsArmed && State == StoreState.Online)
            _flushTimer.Start(_options.FlushIntervalNanos);
    }

    private bool IsComplete(Pending first)
    {
        if (first.Moved is not null) return IsMoveComplete(first);
        if (first.HasBadBlocks) return false;
        if (!first.Page.IsDone && !Breaks(BrokenRules.CompleteBeforeLog)) return false;
        return !IsDataPending(first) || Breaks(BrokenRules.AckBeforeData);
    }

    /// <summary>Data of a chain is still lent to a write.</summary>
    private static bool IsDataPending(Pending first)
    {
        Pending record = first;
        while (record.DataPending == 0 && record.IsContinued) record = record.Next!;
        return record.DataPending != 0;
    }

    /// <summary>Nothing may see a part of a chain: the applied LSN, and with it what is durable, claimed and a tail, moves at
    /// its end only, and no page image is taken in between.</summary>
    private void ApplyChain(Pending record)
    {
        LogPage page = record.Page;
        bool isMoved = record.Moved is not null;
        while (record.IsContinued)
        {
            Pending next = record.Next!;
            Apply(record, isMoved);
            page.Left--;
            record.Retire();
            record = next;
        }

        _head = record.Next;
        if (_head is null) _last = null;
        Apply(record, isMoved);
        page.Left--;
        bool isLast = page.Left == 0 && page != _open;
        _appliedLsn = isLast ? PageEnd(page.Number) : record.Lsn;
        _appliedVersion = Math.Max(_appliedVersion, record.Version);
        Pending? origin = record.Origin;
        if (origin is not null || record.IsSilent) record.Retire();
        if (!isMoved && !record.IsSilent) (origin ?? record).Complete(IoStatus.Ok);
        if (isLast && page.IsDone) Release(page);
    }

    private bool Breaks(BrokenRules rule) => (_options.BrokenRules & rule) != 0;

    /// <summary>Answers all whose memory is not lent any more; the others stay.</summary>
    private void FailPending()
    {
        Pending? first = _head;
        _head = _last = null;
        while (first is not null)
        {
            // What said it again borrows the same memory.
            bool stays = IsDataPending(first);
            for (Pending? moved = first.Moved; moved is not null && !stays; moved = moved.Moved) stays = IsDataPending(moved);
            Pending end = first;
            while (end.IsContinued) end = end.Next!;
            Pending? next = end.Next;
            end.Next = null;
            if (stays)
            {
                if (_last is null) _head = first;
                else _last.Next = first;
                _last = end;
            }
            else if (end.Origin is not null || end.IsSilent)
            {
                end.Retire();
            }
            else
            {
                end.Complete(IoStatus.Unavailable);
            }

            first = next;
        }
    }

    /// <summary>Waits while the ring is fuller than writers may make it; the rest is kept for notes and drops.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> WaitForRing()
    {
        while (IsRingFull)
        {
            FlushWait wait = NewWait(0);
            _ringWaiters.Enqueue(wait);
            KickCheckpoint();
            await wait.Begin();
        }

        return IoStatus.Ok;
    }

    private bool IsRingFull => State == StoreState.Online && RingOccupancy > 0.8;

    private void WakeRingWaiters()
    {
        if (_isWakingRing || _ringWaiters.Count == 0 || IsRingFull) return;
        _isWakingRing = true;
        _loop.Post(_wakeRing);
    }

    /// <summary>One a turn: together they could fill what the ring keeps back.</summary>
    private void WakeOneRingWaiter()
    {
        _isWakingRing = false;
        if (IsRingFull) KickCheckpoint();
        else if (_ringWaiters.TryDequeue(out FlushWait? first)) first.Complete(IoStatus.Ok);
        WakeRingWaiters();
    }

    /// <summary>A page in the log that says what is durable and where replay starts.</summary>
    private ValueTask<IoStatus> NoteAsync()
    {
        Pending record = NewPending(RedoKind.Note, null, 0);
        RedoRecordWriter.Note(Append(record, RedoRecord.NoteLength), _durableVersion, _tailLsn);
        return record.Begin();
    }
}
