using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Writes and holes of whole blocks of one extent; merging of partial blocks.
public sealed partial class Store
{
    /// <summary>Changes one extent: writes <paramref name="source"/>, or makes holes when it is empty.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<IoStatus> ChangeExtentAsync(
        Volume volume, uint extent, int start, int length, ReadOnlyMemory<byte> source)
    {
        int first = start >> Units.BlockShift;
        int count = ((start + length + Units.BlockBytes - 1) >> Units.BlockShift) - first;
        if (Refusal is { } refusal) return refusal;
        _active++;
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, extent, first, count);
        IoBuffer? merged = null;
        IoStatus status = IoStatus.Ok;
        if (RingOccupancy > 0.8) await WaitForRing();
        if (State != StoreState.Online || volume.IsDeleting)
        {
            status = IoStatus.Unavailable;
        }
        else if (!source.IsEmpty && (start % Units.BlockBytes != 0 || length % Units.BlockBytes != 0))
        {
            merged = await _pool.RentAsync(count * Units.BlockBytes);
            Memory<byte> whole = merged.Slice(0, count * Units.BlockBytes);
            status = await ReadEdgesAsync(volume, extent, first, count, start, length, whole);
            source.CopyTo(whole[(start - first * Units.BlockBytes)..]);
            source = whole;
        }

        if (status == IoStatus.Ok)
        {
            status = source.IsEmpty
                ? await HoleAsync(volume, extent, first, count)
                : await PlaceAsync(volume, extent, first, count, source);
        }

        merged?.Return();
        _locks.Give(held);
        _active--;
        return status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ReadEdgesAsync(
        Volume volume, uint extent, int first, int count, int start, int length, Memory<byte> whole)
    {
        IoStatus status = IoStatus.Ok;
        if (start % Units.BlockBytes != 0)
            status = (await ReadBlocksAsync(volume, extent, first, 1, whole[..Units.BlockBytes])).Status;
        bool tail = (start + length) % Units.BlockBytes != 0;
        if (status == IoStatus.Ok && tail && (count > 1 || start % Units.BlockBytes == 0))
        {
            status = (await ReadBlocksAsync(
                volume, extent, first + count - 1, 1, whole[((count - 1) * Units.BlockBytes)..])).Status;
        }

        return status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> PlaceAsync(
        Volume volume, uint extent, int first, int count, ReadOnlyMemory<byte> source)
    {
        // S10: the reserve is never given to writes. Quarantined blocks come back with a flush, a note and a flush.
        for (int attempt = 0; _blocks.Free < _reserve + (uint)count; attempt++)
        {
            if (attempt == 3 || _quarantined == 0) return IoStatus.NoSpace;
            await MakeSpaceAsync();
            if (State != StoreState.Online) return IoStatus.Unavailable;
        }

        bool isNewPage = !volume.TryGetSlot(extent, out uint slot);
        if (isNewPage)
        {
            if (!_slots.TryTake(MetadataKind.Extent, volume.Head.Id, extent, out slot)) return IoStatus.NoSpace;
            volume.SetSlot(extent, slot);
        }

        Pending record = NewPending(RedoKind.Write, volume, slot);
        record.Version = _nextVersion++;
        record.BlockCount = count;
        for (int done = 0; done < count;)
        {
            uint block = _blocks.TakeRun(count - done, out int got);
            record.Runs[record.RunCount++] = new BlockRun(first + done, got, block);
            done += got;
        }

        Crc32C.ComputeBlocks(source.Span, record.Crcs.AsSpan(0, count));
        Span<byte> target = Append(record, RedoRecord.WriteLength(record.RunCount, count));
        RedoRecordWriter.Write(
            target, slot, volume.Head.Id, extent, isNewPage, record.Version,
            record.Runs.AsSpan(0, record.RunCount), record.Crcs.AsSpan(0, count));
        ValueTask<IoStatus> answer = record.Begin();
        record.DataPending = 1; // held until every run is submitted: an answer may come at once
        for (int i = 0; i < record.RunCount; i++)
        {
            BlockRun run = record.Runs[i];
            StartData(
                record, (ulong)run.Block << Units.BlockShift,
                source.Slice((run.First - first) << Units.BlockShift, run.Count << Units.BlockShift));
        }

        record.DataPending--;
        _volatileBytes += (ulong)count * Units.BlockBytes;
        if (_volatileBytes >= _options.FlushBytes && !_isTidying) _loop.Post(() => _ = TidyAsync());
        if (record.DataPending == 0) Advance();
        return await answer;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> HoleAsync(Volume volume, uint extent, int first, int count)
    {
        if (!volume.TryGetSlot(extent, out uint slot)) return IoStatus.Ok;
        bool any = false;
        for (int i = first; i < first + count && !any; i++) any = MetadataPage.Entry(_slots.Entries(slot), i).Block != 0;
        if (!any) return IoStatus.Ok;
        Pending record = NewPending(RedoKind.Hole, volume, slot);
        record.Version = _nextVersion++;
        record.RunCount = 1;
        record.Runs[0] = new BlockRun(first, count, 0);
        RedoRecordWriter.Hole(Append(record, 30), slot, volume.Head.Id, extent, record.Version, record.Runs.AsSpan(0, 1));
        return await record.Begin();
    }

    /// <summary>Puts a complete record into the pages in RAM.</summary>
    private void Apply(Pending record)
    {
        switch (record.Kind)
        {
            case RedoKind.Write or RedoKind.Hole:
                ApplyBlocks(record);
                break;
            case RedoKind.DropPage:
                ApplyDrop(record);
                break;
            case RedoKind.Volume or RedoKind.VolumeDelete:
                record.Volume!.IsDeleting |= record.Kind == RedoKind.VolumeDelete;
                if (record.Kind == RedoKind.Volume) record.Volume.Head = record.Head.Head;
                Touch(record.Slot, record.Lsn);
                break;
        }
    }

    private void ApplyBlocks(Pending record)
    {
        Span<byte> entries = _slots.Entries(record.Slot);
        int crc = 0, change = 0;
        for (int r = 0; r < record.RunCount; r++)
        {
            BlockRun run = record.Runs[r];
            for (int i = 0; i < run.Count; i++)
            {
                uint old = MetadataPage.Entry(entries, run.First + i).Block;
                if (old is not (0 or MetadataPage.UnknownBlock))
                {
                    Quarantine(record.Lsn, old, 1);
                    change--;
                }

                bool hole = record.Kind == RedoKind.Hole;
                if (!hole) change++;
                MetadataPage.SetEntry(entries, run.First + i, new BlockEntry(
                    hole ? 0 : run.Block + (uint)i, hole ? 0 : record.Crcs[crc++], record.Version));
            }
        }

        record.Volume!.UsedBlocks += (ulong)(long)change;
        _used += (ulong)(long)change;
        ref Slot slot = ref _slots[record.Slot];
        slot.MaxVersion = Math.Max(slot.MaxVersion, record.Version);
        Touch(record.Slot, record.Lsn);
    }

    private void ApplyDrop(Pending record)
    {
        ref Slot slot = ref _slots[record.Slot];
        if (slot.Kind == MetadataKind.Extent)
        {
            Span<byte> entries = _slots.Entries(record.Slot);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                uint block = MetadataPage.Entry(entries, i).Block;
                if (block is 0 or MetadataPage.UnknownBlock) continue;
                Quarantine(record.Lsn, block, 1);
                record.Volume!.UsedBlocks--;
                _used--;
            }

            record.Volume!.SetSlot(slot.Extent, null);
        }

        slot.Kind = MetadataKind.Free;
        Touch(record.Slot, record.Lsn);
    }

    private void Touch(uint slotNumber, ulong lsn)
    {
        ref Slot slot = ref _slots[slotNumber];
        slot.PageLsn = lsn;
        if (slot.IsDirty) return;
        slot.IsDirty = true;
        slot.RecLsn = lsn;
        _dirty.Enqueue(slotNumber);
    }
}
