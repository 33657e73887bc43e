using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>Somebody who waits for a page, or for frames. Lives on one loop.</summary>
internal sealed class PageWait(Stack<PageWait> home) : LoopOperation<IoStatus>
{
    public int Frames;

    protected override void OnTaken() => home.Push(this);
}

// Metadata pages under a budget: what is not in RAM is read from its home when it is needed.
//
// Pins: a page stays in RAM while it is dirty, while its image is on the way home, and while a record in flight names it.
// All of these end without needing a frame, so whoever waits for one gets it: nobody holds a pin while waiting, but for
// the one request at a time that has the turn of those that need two pages.
public sealed partial class Store
{
    // Apart from the pool of requests, so that neither a load nor a checkpoint waits for somebody who waits for a page.
    private readonly BufferPool _pageBuffers = new(0);
    private readonly Dictionary<uint, List<PageWait>> _loads = [];
    private readonly Stack<List<PageWait>> _waitLists = new();
    private readonly Stack<PageWait> _pageWaits = new();
    private readonly Queue<PageWait> _frameWaiters = new();
    private readonly Queue<PageWait> _pairWaiters = new();
    private readonly TurnEndHook _frameHook;
    private bool _isPairHeld;
    private bool _isServing; // a frame waiter goes on: what was spared is its
    private ulong _pageLoads;

    /// <summary>More pages are dirty than leaves room for others: a checkpoint is due. Never when all of them fit.</summary>
    private bool IsPressed => _dirty.Count > 0 && (_frameWaiters.Count > 0
        || (_slots.FramesMax < _geometry.SlotCount && _dirty.Count > _slots.FramesMax / 2));

    /// <summary>The extent's page is in RAM, or it has none; true until the caller waits for something.</summary>
    private bool IsReady(Volume volume, uint extent) => !volume.Line.TryGetSlot(extent, out uint slot) || _slots.IsResident(slot);

    /// <summary>Answers Ok when the extent's page is in RAM (or it has none): true at this moment, until the caller waits for
    /// something else. Errors: Corrupt, IoError (its home cannot be read), Unavailable.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ReadyAsync(Volume volume, uint extent, Line? view = null)
    {
        while (view is not { IsClosed: true } && (view ?? volume.Line).TryGetSlot(extent, out uint slot) && !_slots.IsResident(slot))
        {
            // Nobody keeps the layers below a volume that goes: what its line names may be another page by now.
            if (volume.IsDeleting) return IoStatus.Unavailable;
            IoStatus status = await LoadAsync(slot);
            if (volume.IsDeleting) return IoStatus.Unavailable;
            if (status != IoStatus.Ok) return status;
        }

        return IoStatus.Ok;
    }

    /// <summary>What a change of these blocks needs is there: the pages that exist, and frames for those that begin.</summary>
    private bool HasPages(Volume volume, uint low, uint high, bool begins)
    {
        bool isLow = volume.Line.TryGetSlot(low, out uint lowSlot), isHigh = volume.Line.TryGetSlot(high, out uint highSlot);
        if ((isLow && !_slots.IsResident(lowSlot)) || (isHigh && !_slots.IsResident(highSlot))) return false;
        int missing = PagesToBegin(volume, low, high, begins);
        if (missing == 0) return true;
        if (isLow) _slots.Pin(lowSlot);
        if (isHigh) _slots.Pin(highSlot);
        bool has = (_frameWaiters.Count == 0 || _isServing) && _slots.TrySpare(missing);
        if (isLow) _slots.Unpin(lowSlot);
        if (isHigh) _slots.Unpin(highSlot);
        return has;
    }

    /// <summary>Brings one step nearer what <see cref="HasPages"/> asks for. For two extents one request at a time gets both:
    /// holding one page while waiting for the other is for the one that has the turn.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> BringPagesAsync(Volume volume, uint low, uint high, bool begins)
    {
        if (low == high)
        {
            bool isThere = volume.Line.TryGetSlot(low, out uint slot);
            if (isThere && IsOwn(volume, slot)) return await ReadyAsync(volume, low);
            if (!isThere) return !begins || await FramesAsync(1) ? IoStatus.Ok : IoStatus.Unavailable;
        }

        await TakePairAsync();
        IoStatus status = await ReadyAsync(volume, low);
        if (status == IoStatus.Ok)
        {
            bool isLow = volume.Line.TryGetSlot(low, out uint lowSlot);
            if (isLow) _slots.Pin(lowSlot);
            status = await ReadyAsync(volume, high);
            if (status == IoStatus.Ok)
            {
                bool isHigh = volume.Line.TryGetSlot(high, out uint highSlot);
                if (isHigh) _slots.Pin(highSlot);
                int missing = PagesToBegin(volume, low, high, begins);
                if (missing > 0 && !await FramesAsync(missing)) status = IoStatus.Unavailable;
                if (isHigh) _slots.Unpin(highSlot);
            }

            if (isLow) _slots.Unpin(lowSlot);
        }

        GivePair();
        return status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> TakePairAsync()
    {
        if (_isPairHeld)
        {
            PageWait turn = NewPageWait();
            _pairWaiters.Enqueue(turn);
            await turn.Begin();
        }

        return _isPairHeld = true;
    }

    private void GivePair()
    {
        _isPairHeld = _pairWaiters.TryDequeue(out PageWait? next);
        // In a turn of its own: the caller goes on at once and uses what it waited for.
        if (next is not null) _loop.Post(() => next.Complete(IoStatus.Ok));
    }

    /// <summary>The pages of two slots that nobody can drop meanwhile are in RAM at this moment. Errors as
    /// <see cref="ReadyAsync"/>.</summary>
    private async ValueTask<IoStatus> BringSlotsAsync(uint one, uint two)
    {
        await TakePairAsync();
        IoStatus status = await BringSlotAsync(one);
        if (status == IoStatus.Ok)
        {
            _slots.Pin(one);
            status = await BringSlotAsync(two);
            _slots.Unpin(one);
        }

        GivePair();
        return status;
    }

    private async ValueTask<IoStatus> BringSlotAsync(uint slot)
    {
        while (!_slots.IsResident(slot))
        {
            IoStatus status = await LoadAsync(slot);
            if (status != IoStatus.Ok) return status;
        }

        return IoStatus.Ok;
    }

    /// <summary>Extents of these two (or one) that need a page in the layer that is written to: those that only a layer below
    /// has one of, and with <paramref name="begins"/> those that none has.</summary>
    private int PagesToBegin(Volume volume, uint low, uint high, bool begins) =>
        (IsToBegin(volume, low, begins) ? 1 : 0) + (high != low && IsToBegin(volume, high, begins) ? 1 : 0);

    private bool IsToBegin(Volume volume, uint extent, bool begins) =>
        volume.Line.TryGetSlot(extent, out uint slot) ? !IsOwn(volume, slot) : begins;

    /// <summary>Waits until <paramref name="count"/> frames can be had, in order; false when the store stopped. The caller
    /// takes them at once.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<bool> FramesAsync(int count)
    {
        if (State != StoreState.Online) return false; // nobody would wake it any more
        if (_frameWaiters.Count == 0 && _slots.TrySpare(count)) return true;
        PageWait wait = NewPageWait();
        wait.Frames = count;
        _frameWaiters.Enqueue(wait);
        if (IsPressed) KickCheckpoint();
        await wait.Begin();
        return State == StoreState.Online;
    }

    private void OnFramesRelieved()
    {
        if (_frameWaiters.Count > 0) _loop.CallAtTurnEnd(_frameHook);
    }

    /// <summary>The first in the queue first: the others wait behind it, however little they need.</summary>
    private void WakeFrameWaiters()
    {
        while (_frameWaiters.TryPeek(out PageWait? first) && (State != StoreState.Online || _slots.TrySpare(first.Frames)))
        {
            _frameWaiters.Dequeue();
            _isServing = true;
            first.Complete(IoStatus.Ok);
            _isServing = false;
        }
    }

    private PageWait NewPageWait() => _pageWaits.TryPop(out PageWait? spare) ? spare : new PageWait(_pageWaits);

    /// <summary>Reads a page from its home; all who miss one page share one read.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> LoadAsync(uint slot)
    {
        if (_loads.TryGetValue(slot, out List<PageWait>? others))
        {
            PageWait wait = NewPageWait();
            others.Add(wait);
            return await wait.Begin();
        }

        if (!_waitLists.TryPop(out others)) others = [];
        _loads.Add(slot, others);
        IoStatus status = await ReadHomeAsync(slot);
        _loads.Remove(slot);
        // Kept until all of them have used it.
        if (status == IoStatus.Ok) _slots.Pin(slot);
        foreach (PageWait wait in others) wait.Complete(status);
        if (status == IoStatus.Ok) _slots.Unpin(slot);
        others.Clear();
        _waitLists.Push(others);
        return status;
    }

    /// <summary>Reads, verifies (checksum, address, store, slot, and that it is the image that was written last) and puts
    /// into a frame.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ReadHomeAsync(uint slot)
    {
        if (State != StoreState.Online) return IoStatus.Unavailable;
        IoBuffer buffer = await _pageBuffers.RentAsync(Units.BlockBytes);
        Memory<byte> page = buffer.Slice(0, Units.BlockBytes);
        ulong address = _geometry.HomeOffset(slot, 1 - _slots[slot].NextHome);
        IoStatus status = IoStatus.Ok;
        for (int attempt = 0; attempt < 2; attempt++)
        {
            status = await _file.ReadAsync(address, page);
            if (status == IoStatus.Ok && !IsImageOf(slot, page.Span, address)) status = IoStatus.Corrupt;
            if (status is not (IoStatus.Corrupt or IoStatus.IoError)) break;
        }

        // After a failed flush the medium may have gone back to what it held before.
        if (status is (IoStatus.Corrupt or IoStatus.IoError) && State == StoreState.Failed) status = IoStatus.Unavailable;
        if (status == IoStatus.Corrupt) _checksumErrors++;
        else if (status == IoStatus.IoError) _ioErrors++;
        if (status == IoStatus.Ok && !_isRecovering && !await FramesAsync(1)) status = IoStatus.Unavailable;
        if (status == IoStatus.Ok)
        {
            Check.That(_slots.TryAttach(slot));
            page.Span.Slice(MetadataPage.EntriesOffset, MetadataPage.EntriesBytes).CopyTo(_slots.Entries(slot));
            _pageLoads++;
        }

        buffer.Return();
        return status;
    }

    private bool IsImageOf(uint number, ReadOnlySpan<byte> page, ulong address)
    {
        Slot slot = _slots[number];
        return MetadataPage.TryReadPage(page, address, _fold, number, out MetadataPageHeader header) is null
            && header.Kind == slot.Kind && header.VolumeId == slot.VolumeId && header.Extent == slot.Extent
            && header.PageLsn == slot.PageLsn;
    }
}
