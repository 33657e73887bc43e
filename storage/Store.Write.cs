using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Changes of at most 1 MiB: locks, merging of partial blocks, room, and the chain of records that makes a request whole.
public sealed partial class Store
{
    // Bytes that a request within the promise of P3 may have; with a block cut at both ends it touches two extents.
    internal const int AtomicBytes = Units.ExtentBytes;
    private readonly Pending?[] _chain = new Pending?[4 + AppendsAtOnce];
    private int _chainCount;

    /// <summary>Changes one extent for the store itself, beyond the volume's end too: writes <paramref name="source"/>, or
    /// makes a hole of whole blocks when it is empty.</summary>
    internal ValueTask<IoStatus> ChangeExtentAsync(
        Volume volume, uint extent, int start, int length, ReadOnlyMemory<byte> source)
    {
        ulong offset = ((ulong)extent << Units.ExtentShift) + (ulong)start;
        return source.IsEmpty
            ? ZeroAsync(volume, offset, length, isBounded: false)
            : WriteAsync(volume, offset, source, isBounded: false);
    }

    /// <summary>Writes at most <see cref="AtomicBytes"/>, merging the blocks at both ends with what they hold. With
    /// <paramref name="isBounded"/> it is refused when the volume has become too short meanwhile; with
    /// <paramref name="resets"/> (Conflict) when an append-only volume went back meanwhile.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<IoStatus> WriteAsync(
        Volume volume, ulong offset, ReadOnlyMemory<byte> source, bool isBounded = true, uint? resets = null)
    {
        if (Refusal is { } refusal) return refusal;
        int length = source.Length, count = BlocksOf(offset, length);
        ulong first = offset >> Units.BlockShift;
        int low = LowBlocks(first, count);
        _active++;
        _requests++;
        RangeLock held = await TakeLowAsync(volume, first, low);
        RangeLock? heldHigh = low < count ? await TakeLowAsync(volume, first + (ulong)low, count - low) : null;
        IoBuffer? merged = null;
        IoStatus status = IoStatus.Ok;
        if (offset % Units.BlockBytes != 0 || length % Units.BlockBytes != 0)
        {
            merged = await _pool.RentAsync(count * Units.BlockBytes);
            Memory<byte> whole = merged.Slice(0, count * Units.BlockBytes);
            int start = (int)(offset % Units.BlockBytes), end = (start + length) % Units.BlockBytes;
            if (start != 0) status = await ReadBlockAsync(volume, first, whole[..Units.BlockBytes]);
            if (status == IoStatus.Ok && end != 0 && (count > 1 || start == 0))
                status = await ReadBlockAsync(volume, first + (ulong)count - 1, whole[((count - 1) * Units.BlockBytes)..]);
            source.CopyTo(whole[start..]);
            source = whole;
        }

        if (status == IoStatus.Ok) status = await MakeRoomAsync(volume, first, count, count, begins: true);
        if (status == IoStatus.Ok) status = Reach(volume, offset, length, isBounded);
        // From here to the end of the chain nothing is awaited.
        if (status == IoStatus.Ok && resets is { } known && volume.Appends!.Resets != known) status = IoStatus.Conflict;
        if (status == IoStatus.Ok && IsDoubtfulPart(volume, first, count)) status = IoStatus.Corrupt;
        if (status == IoStatus.Ok && !HasSlots(volume, first, count, begins: true)) status = IoStatus.NoSpace;
        if (status == IoStatus.Ok)
        {
            ChainWrite(volume, first, source[..(low << Units.BlockShift)]);
            if (low < count) ChainWrite(volume, first + (ulong)low, source[(low << Units.BlockShift)..]);
            volume.InFlight++;
            status = await StartChain();
            EndFlight(volume);
        }

        merged?.Return();
        if (heldHigh is not null) _locks.Give(heldHigh);
        _locks.Give(held);
        _active--;
        return status;
    }

    /// <summary>Zeros at most <see cref="AtomicBytes"/>: whole blocks become holes, blocks cut at an end are merged.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<IoStatus> ZeroAsync(Volume volume, ulong offset, int length, bool isBounded = true)
    {
        if (Refusal is { } refusal) return refusal;
        int count = BlocksOf(offset, length);
        ulong first = offset >> Units.BlockShift, last = first + (ulong)count - 1;
        int low = LowBlocks(first, count);
        _active++;
        _requests++;
        RangeLock held = await TakeLowAsync(volume, first, low);
        RangeLock? heldHigh = low < count ? await TakeLowAsync(volume, first + (ulong)low, count - low) : null;
        IoBuffer? edges = null;
        IoStatus status = IoStatus.Ok;
        int start = (int)(offset % Units.BlockBytes), end = (int)((offset + (ulong)length) % Units.BlockBytes);
        // A block that is a hole already is zero at its edge too.
        bool cutsFirst = start != 0 || (count == 1 && end != 0), cutsLast = end != 0 && count > 1;
        if (cutsFirst)
        {
            status = await ReadyAsync(volume, ExtentOf(first));
            cutsFirst = status == IoStatus.Ok && !IsHoleAt(volume, first);
        }

        if (status == IoStatus.Ok && cutsLast)
        {
            status = await ReadyAsync(volume, ExtentOf(last));
            cutsLast = status == IoStatus.Ok && !IsHoleAt(volume, last);
        }

        if (status == IoStatus.Ok && (cutsFirst || cutsLast))
        {
            edges = await _pool.RentAsync(2 * Units.BlockBytes);
            if (cutsFirst) status = await ReadBlockAsync(volume, first, edges.Slice(0, Units.BlockBytes));
            if (status == IoStatus.Ok && cutsLast)
                status = await ReadBlockAsync(volume, last, edges.Slice(Units.BlockBytes, Units.BlockBytes));
            if (cutsFirst) edges.Slice(start, Math.Min(length, Units.BlockBytes - start)).Span.Clear();
            if (cutsLast) edges.Slice(Units.BlockBytes, end).Span.Clear();
        }

        int written = (cutsFirst ? 1 : 0) + (cutsLast ? 1 : 0);
        if (status == IoStatus.Ok) status = await MakeRoomAsync(volume, first, count, written, begins: volume.IsDoubtful);
        if (status == IoStatus.Ok) status = Reach(volume, offset, length, isBounded);
        if (status == IoStatus.Ok && IsDoubtfulPart(volume, first, count)) status = IoStatus.Corrupt;
        if (status == IoStatus.Ok && !HasSlots(volume, first, count, volume.IsDoubtful)) status = IoStatus.NoSpace;
        if (status == IoStatus.Ok)
        {
            // From here to the end of the chain nothing is awaited.
            ulong inner = first + (start != 0 ? 1UL : 0), innerEnd = (offset + (ulong)length) >> Units.BlockShift;
            ulong border = Math.Clamp(first + (ulong)low, inner, Math.Max(inner, innerEnd));
            if (cutsFirst) ChainWrite(volume, first, edges!.Slice(0, Units.BlockBytes));
            if (border > inner) ChainHole(volume, inner, (int)(border - inner));
            if (innerEnd > border) ChainHole(volume, border, (int)(innerEnd - border));
            if (cutsLast) ChainWrite(volume, last, edges!.Slice(Units.BlockBytes, Units.BlockBytes));
            if (_chainCount > 0)
            {
                volume.InFlight++;
                status = await StartChain();
                EndFlight(volume);
            }
        }

        edges?.Return();
        if (heldHigh is not null) _locks.Give(heldHigh);
        _locks.Give(held);
        _active--;
        return status;
    }

    private static int BlocksOf(ulong offset, int length) =>
        (int)(((offset + (ulong)length + Units.BlockBytes - 1) >> Units.BlockShift) - (offset >> Units.BlockShift));

    /// <summary>How many of the blocks lie in the extent of the first one.</summary>
    private static int LowBlocks(ulong first, int count) =>
        Math.Min(count, Units.BlocksPerExtent - (int)(first % Units.BlocksPerExtent));

    private static uint ExtentOf(ulong block) => (uint)(block / Units.BlocksPerExtent);

    private static int IndexOf(ulong block) => (int)(block % Units.BlocksPerExtent);

    /// <summary>Locks blocks of one extent. A request that needs two takes the lower first, so nobody waits in a circle.</summary>
    private ValueTask<RangeLock> TakeLowAsync(Volume volume, ulong first, int count) =>
        _locks.TakeAsync(volume.Head.Id, ExtentOf(first), IndexOf(first), count);

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ReadBlockAsync(Volume volume, ulong block, Memory<byte> target) =>
        (await ReadBlocksAsync(volume, ExtentOf(block), IndexOf(block), 1, target)).Status;

    private bool IsHoleAt(Volume volume, ulong block) =>
        !volume.Line.TryGetSlot(ExtentOf(block), out uint slot)
        || MetadataPage.Entry(_slots.Entries(slot), IndexOf(block)).Block == 0;

    /// <summary>What a wait may have changed: the store stopped, the volume is going, its end is nearer.</summary>
    private IoStatus Reach(Volume volume, ulong offset, int length, bool isBounded)
    {
        if (State != StoreState.Online || volume.IsDeleting) return IoStatus.Unavailable;
        return isBounded && offset + (ulong)length > volume.Head.SizeBytes ? IoStatus.OutOfRange : IoStatus.Ok;
    }

    /// <summary>Waits for room in the ring, for <paramref name="blocks"/> free blocks and for the pages of the extents, all at
    /// one moment: the caller takes them before it waits for anything else. With <paramref name="begins"/> an extent without
    /// a page gets room for one. Quarantined blocks come back with a flush, a note and a flush.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> MakeRoomAsync(Volume volume, ulong first, int count, int blocks, bool begins)
    {
        uint low = ExtentOf(first), high = ExtentOf(first + (ulong)count - 1);
        for (int attempt = 0, slotWaits = 0; State == StoreState.Online;)
        {
            if (volume.Freezes > 0)
            {
                FlushWait thaw = NewWait(0);
                volume.Held.Enqueue(thaw);
                await thaw.Begin();
                continue;
            }

            if (RingOccupancy > 0.8)
            {
                await WaitForRing();
                continue;
            }

            bool isTight = blocks != 0 && !IsRoomy(blocks);
            if (isTight && !HasBlocks(blocks))
            {
                // What others began before may not cover what this request could get: that is no attempt.
                if (!WillHaveBlocks(blocks) || (!_isMakingSpace && attempt++ == SpaceWaitsMax)) return IoStatus.NoSpace;
                await ShareSpaceAsync();
                continue;
            }

            if (!HasSlots(volume, first, count, begins))
            {
                // Dropped slots come back when their tombstones are home.
                bool willCome = WillHaveSlots(volume, first, count, begins);
                if (!MayWaitForSlots(willCome, slotWaits)) return IoStatus.NoSpace;
                if (await WaitForCheckpoint() || !willCome) slotWaits++;
                continue;
            }

            if (HasPages(volume, low, high, begins)) return isTight && !MayGrow(volume, first, count, blocks) ? IoStatus.NoSpace : IoStatus.Ok;
            IoStatus status = await BringPagesAsync(volume, low, high, begins);
            if (status != IoStatus.Ok) return status;
        }

        return IoStatus.Unavailable;
    }

    /// <summary>Adds a write of whole blocks of one extent to the chain; there is room for all that it takes.</summary>
    private void ChainWrite(Volume volume, ulong first, ReadOnlyMemory<byte> source)
    {
        uint extent = ExtentOf(first);
        uint slot = OwnPage(volume, extent, out bool isNewPage);
        Pending record = NewPending(RedoKind.Write, volume, slot);
        int count = source.Length >> Units.BlockShift;
        record.Extent = extent;
        record.IsNewPage = isNewPage;
        record.Source = source;
        record.BlockCount = count;
        for (int done = 0; done < count;)
        {
            uint block = _blocks.TakeRun(count - done, out int got);
            record.Runs[record.RunCount++] = new BlockRun(IndexOf(first) + done, got, block);
            done += got;
        }

        Crc32C.ComputeBlocks(source.Span, record.Crcs.AsSpan(0, count));
        NoteGrowth(record, isNewPage ? 0 : OwnBlocks(slot, IndexOf(first), count));
        _chain[_chainCount++] = record;
    }

    /// <summary>Adds a hole of whole blocks of one extent to the chain, unless all of them are holes.</summary>
    private void ChainHole(Volume volume, ulong first, int count)
    {
        if (!volume.Line.TryGetSlot(ExtentOf(first), out uint slot))
        {
            // Where a lost page may have been the whole extent becomes one of holes.
            if (volume.IsDoubtful) ChainWrite(volume, first, default);
            return;
        }

        if (count == Units.BlocksPerExtent && !volume.IsDoubtful && IsOwn(volume, slot) && _slots.Link(slot).Older == 0)
        {
            // The whole extent: its page goes too, so that trimmed space costs no slot. The request is this one record.
            Check.That(_chainCount == 0);
            _chain[_chainCount++] = NewPending(RedoKind.DropPage, volume, slot);
            _chain[0]!.Extent = ExtentOf(first);
            return;
        }

        ReadOnlySpan<byte> entries = _slots.Entries(slot);
        bool any = false;
        for (int i = IndexOf(first); i < IndexOf(first) + count && !any; i++) any = MetadataPage.Entry(entries, i).Block != 0;
        if (!any) return;
        Pending record = NewPending(RedoKind.Hole, volume, OwnPage(volume, ExtentOf(first), out _));
        record.Extent = ExtentOf(first);
        record.RunCount = 1;
        record.Runs[0] = new BlockRun(IndexOf(first), count, 0);
        _chain[_chainCount++] = record;
    }

    /// <summary>Puts the chain into one log page, starts its data, and answers when all of it is complete.</summary>
    private ValueTask<IoStatus> StartChain()
    {
        Span<Pending?> chain = _chain.AsSpan(0, _chainCount);
        _chainCount = 0;
        ulong version = _nextVersion++;
        int length = 0;
        foreach (Pending? record in chain) length += LengthOf(record!);
        Reserve(length);
        for (int i = 0; i < chain.Length; i++)
        {
            Pending record = chain[i]!;
            record.Version = version;
            record.IsContinued = i < chain.Length - 1;
            record.First = chain[0]!;
            record.DataPending = 1; // held until every run is submitted: an answer may come at once
            AppendBlocks(record);
        }

        ValueTask<IoStatus> answer = chain[^1]!.Begin();
        foreach (Pending? record in chain) StartData(record!);
        // The hold goes last: until then no record of the chain is complete, so none is in other hands.
        foreach (Pending? record in chain) record!.DataPending--;
        bool isDone = !IsDataPending(chain[0]!);
        if (isDone && chain[0]!.HasBadBlocks) MoveChain(chain[0]!);
        chain.Clear();
        if (_volatileBytes >= _options.FlushBytes && !_isTidying) _loop.CallAtTurnEnd(_tidyHook);
        if (isDone) Advance();
        return answer;
    }

    private static int LengthOf(Pending record) => record.Kind switch
    {
        RedoKind.DropPage => RedoRecord.HeadBytes,
        RedoKind.Hole => RedoRecord.HoleLength(record.RunCount),
        RedoKind.Append => RedoRecord.AppendLength,
        _ => RedoRecord.WriteLength(record.RunCount, record.BlockCount),
    };

    private void AppendBlocks(Pending record)
    {
        Span<byte> target = Append(record, LengthOf(record));
        ReadOnlySpan<BlockRun> runs = record.Runs.AsSpan(0, record.RunCount);
        uint volume = record.Volume!.Head.Id;
        if (record.Kind == RedoKind.DropPage)
        {
            RedoRecordWriter.DropPage(target, record.Slot, volume, record.Extent);
            return;
        }

        if (record.Kind == RedoKind.Append)
        {
            record.Entry = record.Entry with { Version = record.Version };
            RedoRecordWriter.Append(target, record.Slot, volume, record.Extent, record.Before, record.Entry, record.IsContinued);
            return;
        }

        if (record.Kind == RedoKind.Hole)
        {
            RedoRecordWriter.Hole(
                target, record.Slot, volume, record.Extent, record.Before, record.Version, runs, record.IsContinued);
            return;
        }

        RedoRecordWriter.Write(
            target, record.Slot, volume, record.Extent, record.Before, record.IsNewPage, record.Version, runs,
            record.Crcs.AsSpan(0, record.BlockCount), record.IsContinued, record.IsRelaid);
    }

    private void StartData(Pending record)
    {
        if (record.Kind != RedoKind.Write) return;
        int done = 0;
        for (int i = 0; i < record.RunCount; i++)
        {
            BlockRun run = record.Runs[i];
            int length = run.Count << Units.BlockShift;
            StartData(record, (ulong)run.Block << Units.BlockShift, record.Source.Slice(done, length));
            done += length;
        }

        _volatileBytes += (ulong)done;
    }

    /// <summary>Puts a complete record into the pages in RAM.</summary>
    private void Apply(Pending record, bool isMoved)
    {
        // Of a moved record only the page that it begins counts: the later one brings the blocks. But the later one names it as
        // the record before it, so the log keeps it as long as the page is not home.
        if (!isMoved) ApplyKind(record);
        else Touch(record.Slot, record.Lsn);
        if (record.Volume is not null)
        {
            _slots.Unpin(record.Slot);
            EndGrowth(record);
        }

        if (record.Heir != 0) _slots.Unpin(record.Heir - 1);
    }

    private void ApplyKind(Pending record)
    {
        switch (record.Kind)
        {
            case RedoKind.Write or RedoKind.Hole:
                ApplyBlocks(record);
                break;
            case RedoKind.DropPage:
                ApplyDrop(record);
                break;
            case RedoKind.BadBlock:
                AddBadBlock(record.Slot, record.Runs[0].Block);
                Touch(record.Slot, record.Lsn);
                break;
            case RedoKind.Volume or RedoKind.VolumeDelete:
                record.Volume!.IsDeleting |= record.Kind == RedoKind.VolumeDelete;
                if (record.Kind == RedoKind.Volume) ApplyHead(record.Volume, record.Head);
                Touch(record.Slot, record.Lsn);
                break;
            case RedoKind.PageImage or RedoKind.BeginPage:
                Touch(record.Slot, record.Lsn);
                break;
            case RedoKind.Snapshot:
                ApplySnapshot(record);
                break;
            case RedoKind.Rekey:
                ApplyRekey(record);
                break;
            case RedoKind.BeginAppends:
                ApplyBeginAppends(record);
                break;
            case RedoKind.Append:
                ApplyAppend(record);
                break;
        }
    }

    private void ApplyBlocks(Pending record)
    {
        Span<byte> entries = _slots.Entries(record.Slot);
        int crc = 0, change = 0, mapped = 0, cuts = _slots[record.Slot].Cuts;
        ulong shared = SharedUpTo(record.Slot);
        if (record.IsRelaid) _relaying = 0; // what it left goes into quarantine below
        for (int r = 0; r < record.RunCount; r++)
        {
            BlockRun run = record.Runs[r];
            if (cuts > 0) cuts -= CutsAround(entries, run);
            for (int i = 0; i < run.Count; i++)
            {
                (uint old, _, ulong version) = MetadataPage.Entry(entries, run.First + i);
                if (old != 0) mapped--;
                if (old is not (0 or MetadataPage.UnknownBlock) && version > shared)
                {
                    if (record.IsRelaid && Breaks(BrokenRules.FreeRelaidEarly)) _blocks.Give(old, 1);
                    else Quarantine(record.Lsn, old, 1);
                    change--;
                }

                bool hole = record.Kind == RedoKind.Hole;
                if (!hole) change++;
                if (!hole) mapped++;
                MetadataPage.SetEntry(entries, run.First + i, new BlockEntry(
                    hole ? 0 : run.Block + (uint)i, hole ? 0 : record.Crcs[crc++], record.IsRelaid ? version : record.Version));
            }

            cuts += CutsAtEnds(entries, run);
        }

        record.Volume!.UsedBlocks += (ulong)(long)change;
        _used += (ulong)(long)change;
        ref Slot slot = ref _slots[record.Slot];
        slot.MaxVersion = Math.Max(slot.MaxVersion, record.Version);
        slot.Mapped = (ushort)(slot.Mapped + mapped);
        NoteCuts(record.Slot, cuts);
        Touch(record.Slot, record.Lsn);
        if (!record.IsRelaid) NoteClientBlocks(record.Kind == RedoKind.Write ? record.BlockCount : 0);
    }

    private void ApplyDrop(Pending record)
    {
        ref Slot slot = ref _slots[record.Slot];
        if (slot.Kind == MetadataKind.Extent) ApplyDropOfExtent(record);
        else if (slot.Kind == MetadataKind.Snapshot) RemoveLayer(record.Volume!.Layers[slot.Extent]);
        else if (slot.Kind == MetadataKind.Appends) record.Volume!.Appends!.Drop(slot.Extent);
        else if (slot.Kind == MetadataKind.VolumeHead) RemoveLayer(record.Volume!.Top);
        _slots.Drop(record.Slot);
        Touch(record.Slot, record.Lsn);
        NoteClientBlocks(0);
    }

    private void Touch(uint slotNumber, ulong lsn)
    {
        ref Slot slot = ref _slots[slotNumber];
        slot.PageLsn = lsn;
        slot.LastLsn = Math.Max(slot.LastLsn, lsn); // recovery appends nothing
        if (slot.IsDirty) return;
        slot.IsDirty = true;
        slot.RecLsn = lsn;
        _dirty.Enqueue(slotNumber);
        _slots.Pin(slotNumber); // until its image is home
        if (IsPressed) KickCheckpoint();
    }
}
