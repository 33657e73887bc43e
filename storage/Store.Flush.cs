using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Flush: one fdatasync for all who wait; what it made durable; and when a replaced block is free again.
public sealed partial class Store
{
    private const int ReadGenerations = 1024;
    private readonly TurnEndHook _flushHook;
    private readonly Action _finishFlush;
    private readonly LoopTimer _flushTimer;
    private readonly List<FlushWait> _flushWaiters = [];
    private readonly Queue<FlushWait> _flushTurns = new();
    private readonly Stack<FlushWait> _flushPool = new();
    private readonly Queue<(ulong Lsn, uint Block, uint Count, ulong Generation)> _quarantine = new();
    private readonly int[] _readsIn = new int[ReadGenerations];
    private readonly TurnEndHook _tidyHook;
    private readonly Action _finishTidy;
    private readonly Queue<FlushWait> _spaceWaiters = new();
    private ValueTaskAwaiter<IoStatus> _flushAwaiter;
    private ValueTaskAwaiter<IoStatus> _tidyAwaiter;
    private ulong _durableLsn;
    private ulong _durableVersion;
    private ulong _flushingLsn;
    private ulong _flushingVersion;
    private ulong _volatileBytes;
    private ulong _quarantined;
    private ulong _generation;
    private ulong _oldestGeneration;
    private bool _isFlushing;
    private bool _isFlushUnderWay;
    private bool _isTidying;
    private bool _isMakingSpace;
    private int _background;

    private ValueTask<IoStatus> EnsureDurable(ulong lsn)
    {
        if (State == StoreState.Failed) return new(IoStatus.Unavailable);
        if (_durableLsn >= lsn) return new(IoStatus.Ok);
        FlushWait wait = NewWait(lsn);
        _flushWaiters.Add(wait);
        _loop.CallAtTurnEnd(_flushHook);
        return wait.Begin();
    }

    private void StartFlush()
    {
        if (_isFlushing || _flushWaiters.Count == 0 || _appliedLsn <= _durableLsn || State != StoreState.Online) return;
        _isFlushing = true;
        _flushingLsn = _appliedLsn;
        _flushingVersion = _appliedVersion;
        _volatileBytes = 0;
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
        _flushAwaiter = FlushFilesAsync().GetAwaiter();
#pragma warning restore CA2012
        if (_flushAwaiter.IsCompleted) FinishFlush();
        else _flushAwaiter.UnsafeOnCompleted(_finishFlush);
    }

    private ValueTask<IoStatus> FlushFilesAsync()
    {
        if (State == StoreState.Failed) return new(IoStatus.Unavailable);
        if (_options.IsWriteThrough || Breaks(BrokenRules.SkipFlush)) return new(IoStatus.Ok);
        return FlushInTurnAsync(isLogToo: !ReferenceEquals(_log, _file));
    }

    /// <summary>One at a time: the kernel tells an error once, so that of two flushes under way one fails and the other may
    /// answer that all is well, though what both were to keep is gone. A failed one is never tried again.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> FlushInTurnAsync(bool isLogToo)
    {
        if (_isFlushUnderWay && !Breaks(BrokenRules.FlushTogether))
        {
            FlushWait turn = NewWait(0);
            _flushTurns.Enqueue(turn);
            await turn.Begin();
        }

        _isFlushUnderWay = true;
        // One may have failed: none after it proves anything.
        IoStatus status = State == StoreState.Failed ? IoStatus.Unavailable : await _file.FlushAsync();
        if (status == IoStatus.Ok && isLogToo) status = State == StoreState.Failed ? IoStatus.Unavailable : await _log.FlushAsync();
        if (status != IoStatus.Ok && Breaks(BrokenRules.RetryFlush)) status = await _file.FlushAsync();
        if (status != IoStatus.Ok) Fail($"flush failed: {status}");
        if (_flushTurns.TryDequeue(out FlushWait? next)) next.Complete(IoStatus.Ok);
        else _isFlushUnderWay = false;
        return status;
    }

    private void FinishFlush()
    {
        IoStatus status = _flushAwaiter.GetResult();
        _isFlushing = false;
        if (status == IoStatus.Ok && State == StoreState.Online)
        {
            _durableLsn = Math.Max(_durableLsn, _flushingLsn);
            _durableVersion = Math.Max(_durableVersion, _flushingVersion);
            while (_claims.TryPeek(out (ulong FirstLsn, ulong Durable, ulong Tail) page) && page.FirstLsn <= _durableLsn)
            {
                _claims.Dequeue();
                _claimedLsn = Math.Max(_claimedLsn, page.Durable);
                _claimedTail = Math.Max(_claimedTail, page.Tail);
            }

            if (_generation - _oldestGeneration < ReadGenerations - 1) _generation++;
            Reclaim();
            WakeRingWaiters();
        }

        WakeFlushWaiters();
        if (_flushWaiters.Count > 0) _loop.CallAtTurnEnd(_flushHook);
    }

    private void WakeFlushWaiters()
    {
        // Waiters run inline and may add others or wake again: look anew each time.
        bool found = true;
        while (found)
        {
            found = false;
            for (int i = 0; i < _flushWaiters.Count; i++)
            {
                FlushWait wait = _flushWaiters[i];
                if (State == StoreState.Online && wait.Lsn > _durableLsn) continue;
                _flushWaiters.RemoveAt(i);
                wait.Complete(wait.Lsn <= _durableLsn ? IoStatus.Ok : IoStatus.Unavailable);
                found = true;
                break;
            }
        }
    }

    private void Quarantine(ulong lsn, uint block, uint count)
    {
        if (Breaks(BrokenRules.FreeEarly))
        {
            _blocks.Give(block, count);
            return;
        }

        _quarantine.Enqueue((lsn, block, count, _generation));
        _quarantined += count;
    }

    private void Reclaim()
    {
        while (_oldestGeneration < _generation && _readsIn[_oldestGeneration % ReadGenerations] == 0) _oldestGeneration++;
        ulong limit = Breaks(BrokenRules.ReuseAtDurable) ? _durableLsn : _claimedLsn;
        while (_quarantine.TryPeek(out (ulong Lsn, uint Block, uint Count, ulong Generation) freed)
            && freed.Lsn <= limit && (freed.Generation < _oldestGeneration || Breaks(BrokenRules.ReuseUnderRead)))
        {
            _quarantine.Dequeue();
            _quarantined -= freed.Count;
            _blocks.Give(freed.Block, freed.Count);
        }
    }

    /// <summary>The periodic flush, and what lets quarantined blocks go. Leaves no timer behind when all is durable.</summary>
    private void StartTidy()
    {
        if (_isTidying || State != StoreState.Online || _isClosing) return;
        _isTidying = true;
        _background++;
#pragma warning disable CA2012 // Awaited exactly once, in FinishTidy.
        _tidyAwaiter = TidyAsync().GetAwaiter();
#pragma warning restore CA2012
        if (_tidyAwaiter.IsCompleted) FinishTidy();
        else _tidyAwaiter.UnsafeOnCompleted(_finishTidy);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> TidyAsync()
    {
        IoStatus status = await EnsureDurable(_appliedLsn);
        return status == IoStatus.Ok && _quarantine.Count > 0 ? await ShareSpaceAsync() : status;
    }

    private void FinishTidy()
    {
        _tidyAwaiter.GetResult();
        _background--;
        _isTidying = false;
        _flushTimer.Stop();
        if (_appliedLsn > _durableLsn && State == StoreState.Online) _flushTimer.Start(_options.FlushIntervalNanos);
    }

    /// <summary>Flush, note, flush: afterwards everything superseded before is claimed (B1.5, 4).</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> MakeSpaceAsync()
    {
        IoStatus status = await EnsureDurable(_appliedLsn);
        if (status == IoStatus.Ok) status = await NoteAsync();
        return status == IoStatus.Ok ? await EnsureDurable(_appliedLsn) : status;
    }

    /// <summary><see cref="MakeSpaceAsync"/>, once for all who ask for it meanwhile: each note takes a page of the ring, and
    /// many writers short of space would fill it. So would who asks again and again while a checkpoint waits for a disk: what the
    /// ring keeps back is for the checkpoint.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ShareSpaceAsync()
    {
        if (_isMakingSpace)
        {
            FlushWait wait = NewWait(0);
            _spaceWaiters.Enqueue(wait);
            return await wait.Begin();
        }

        _isMakingSpace = true;
        await WaitForRing();
        IoStatus status = await MakeSpaceAsync();
        _isMakingSpace = false;
        for (int left = _spaceWaiters.Count; left > 0; left--) _spaceWaiters.Dequeue().Complete(status);
        return status;
    }

    private FlushWait NewWait(ulong lsn)
    {
        FlushWait wait = _flushPool.TryPop(out FlushWait? spare) ? spare : new FlushWait(_flushPool);
        wait.Lsn = lsn;
        return wait;
    }
}
