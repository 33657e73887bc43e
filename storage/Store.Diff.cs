using BlockServer.Core;

namespace BlockServer.Storage;

// What differs between views of a volume, and what a snapshot takes: from metadata pages alone.
public sealed partial class Store
{
    /// <inheritdoc/>
    public async ValueTask<IoStatus> DiffAsync(
        uint volumeId, Guid? older, Guid? newer, ulong offsetBytes, ulong lengthBytes, int runsMax, List<DiffRun> runs)
    {
        runs.Clear();
        // As a read: a store that failed still knows what it mapped, and may be emptied.
        if (State == StoreState.Closed || _isClosing) return State == StoreState.Closed ? IoStatus.Unavailable : IoStatus.ShuttingDown;
        Layer? one = older is { } first ? Find(volumeId, first) ?? BaseLayer(volumeId, first) : null, two = newer is { } second ? Find(volumeId, second) : null;
        if ((one is null && older is not null) || (two is null && newer is not null)) return IoStatus.NotFound;
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
        Line? before = one is null ? null : new Line(_slots, one), after = two is null ? null : new Line(_slots, two);
        ulong size = Math.Max(one?.Head.SizeBytes ?? EndOf(volume), two?.Head.SizeBytes ?? EndOf(volume));
        if (offsetBytes > size || lengthBytes > size - offsetBytes) return IoStatus.OutOfRange;
        (ulong Begin, ulong End) moved = MovedEnd(volume, one, two);
        return await GatherAsync(
            offsetBytes, lengthBytes, runsMax, runs, at => CompareAsync(volume, before, after, moved, at), static (length, isChanged) => new DiffRun(length, isChanged));
    }

    /// <summary>The blocks between the ends of two views of an append-only volume. Behind its end a view shows nothing, whatever its pages have
    /// there: pieces of an append whose length was not said yet, which the next one shares with it.</summary>
    private static (ulong Begin, ulong End) MovedEnd(Volume volume, Layer? one, Layer? two)
    {
        if (volume.Appends is not { } appends) return default;
        ulong before = LengthOf(one), after = LengthOf(two);
        return before == after ? default : (Math.Min(before, after) & ~(ulong)(Units.BlockBytes - 1), Math.Max(before, after));

        ulong LengthOf(Layer? layer) => layer is null ? appends.LengthBytes : layer.Head.LengthBytes;
    }

    /// <summary>Looks from place to place, and joins pieces with the same answer into runs; the first error ends it.</summary>
    private static async ValueTask<IoStatus> GatherAsync<TAnswer, TRun>(
        ulong offsetBytes, ulong lengthBytes, int runsMax, List<TRun> runs,
        Func<ulong, ValueTask<(IoStatus Status, TAnswer Answer, ulong End)>> look, Func<ulong, TAnswer, TRun> runOf)
        where TAnswer : struct, IEquatable<TAnswer>
    {
        ulong end = offsetBytes + lengthBytes, gathered = 0;
        TAnswer last = default;
        for (ulong at = offsetBytes; at < end;)
        {
            (IoStatus status, TAnswer answer, ulong pieceEnd) = await look(at);
            if (status != IoStatus.Ok) return status;
            ulong length = Math.Min(end, pieceEnd) - at;
            bool isSame = runs.Count > 0 && answer.Equals(last);
            if (!isSame && runs.Count == runsMax) break;
            gathered = isSame ? gathered + length : length;
            if (isSame) runs[^1] = runOf(gathered, answer);
            else runs.Add(runOf(gathered, answer));
            last = answer;
            at += length;
        }

        return IoStatus.Ok;
    }

    /// <summary>The layer that a clone was made from, if it is that snapshot.</summary>
    private Layer? BaseLayer(uint volumeId, Guid snapshot) =>
        _volumes.TryGetValue(volumeId, out Volume? volume) && BaseOf(volume) is { } basis && basis.Head.Uuid == snapshot ? basis : null;

    private async ValueTask<(IoStatus Status, bool IsChanged, ulong End)> CompareAsync(
        Volume volume, Line? before, Line? after, (ulong Begin, ulong End) moved, ulong offset)
    {
        uint extent = (uint)(offset >> Units.ExtentShift);
        ulong start = (ulong)extent << Units.ExtentShift;
        while (true)
        {
            if (State == StoreState.Closed || volume.IsDeleting || before is { IsClosed: true } || after is { IsClosed: true })
                return (IoStatus.Unavailable, false, 0);
            Line old = before ?? volume.Line, now = after ?? volume.Line;
            bool isOld = old.TryGetSlot(extent, out uint one), isNow = now.TryGetSlot(extent, out uint two);
            if (!isOld && !isNow)
            {
                uint next = Math.Min(old.Skip(extent + 1), now.Skip(extent + 1));
                bool isLast = next >= old.ExtentEnd && next >= now.ExtentEnd;
                return (IoStatus.Ok, volume.IsDoubtful, isLast ? ulong.MaxValue : (ulong)next << Units.ExtentShift);
            }

            bool isMoved = start < moved.End && moved.Begin < start + Units.ExtentBytes;
            if (isOld && isNow && one == two && !isMoved) return (IoStatus.Ok, false, start + Units.ExtentBytes);
            if ((!isOld || _slots.IsResident(one)) && (!isNow || _slots.IsResident(two)))
            {
                ReadOnlySpan<byte> left = isOld ? _slots.Entries(one) : default, right = isNow ? _slots.Entries(two) : default;
                int at = (int)(offset % Units.ExtentBytes) >> Units.BlockShift, next = at + 1;
                bool differs = Differs(left, right, start, at, moved);
                while (next < Units.BlocksPerExtent && Differs(left, right, start, next, moved) == differs) next++;
                return (IoStatus.Ok, differs, start + ((ulong)next << Units.BlockShift));
            }

            IoStatus status = isOld && isNow ? await BringBothAsync(volume, extent, before, after) : await BringSlotAsync(isOld ? one : two);
            if (status != IoStatus.Ok) return (status, false, 0);
        }
    }

    /// <summary>What both lines show of an extent is in RAM at this moment, unless one of them has changed or closed meanwhile:
    /// a layer may go while its page waits for the turn, and its slot is another's then.</summary>
    private async ValueTask<IoStatus> BringBothAsync(Volume volume, uint extent, Line? before, Line? after)
    {
        await TakePairAsync();
        IoStatus status = await ReadyAsync(volume, extent, before);
        if (status == IoStatus.Ok && (before ?? volume.Line).TryGetSlot(extent, out uint first))
        {
            _slots.Pin(first);
            status = await ReadyAsync(volume, extent, after);
            _slots.Unpin(first);
        }

        GivePair();
        return status;
    }

    /// <summary>Equal versions mean equal content, and holes are equal whoever made them.</summary>
    private static bool Differs(ReadOnlySpan<byte> left, ReadOnlySpan<byte> right, ulong start, int index, (ulong Begin, ulong End) moved)
    {
        ulong offset = start + ((ulong)index << Units.BlockShift);
        BlockEntry one = left.IsEmpty ? default : MetadataPage.Entry(left, index);
        BlockEntry two = right.IsEmpty ? default : MetadataPage.Entry(right, index);
        bool isMoved = offset >= moved.Begin && offset < moved.End;
        return (one.Version != two.Version || isMoved) && (one.Block != 0 || two.Block != 0);
    }

    /// <inheritdoc/>
    public async ValueTask<(IoStatus Status, SnapshotUsage Usage)> SnapshotUsageAsync(uint volumeId, Guid snapshot)
    {
        if (Refusal is { } refusal) return (refusal, default);
        if (Find(volumeId, snapshot) is not { } layer) return (IoStatus.NotFound, default);
        ulong used = 0, alone = 0;
        var view = new Line(_slots, layer);
        for (uint extent = view.Skip(0); extent < view.ExtentEnd; extent = view.Skip(extent + 1))
        {
            if (view.TryGetSlot(extent, out uint slot)) used += _slots[slot].Mapped;
        }

        var entries = new byte[MetadataPage.EntriesBytes];
        foreach (uint slot in PagesOf(layer))
        {
            if (!IsPageOf(layer, slot)) continue;
            IoStatus status = await BringSlotAsync(slot);
            if (status != IoStatus.Ok) return (status, default);
            if (!IsPageOf(layer, slot)) continue;
            _slots.Entries(slot).CopyTo(entries);
            ulong shared = SharedUpTo(slot);
            status = await LeaveAloneAsync(layer, slot, entries);
            if (status != IoStatus.Ok) return (status, default);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                BlockEntry entry = MetadataPage.Entry(entries, i);
                if (entry.Block is not (0 or MetadataPage.UnknownBlock) && entry.Version > shared) alone++;
            }
        }

        return (IoStatus.Ok, new SnapshotUsage(used << Units.BlockShift, alone << Units.BlockShift));
    }

    /// <summary>Takes out of a page's entries what the layers above show too: everything when one of them has no page of its own.</summary>
    private async ValueTask<IoStatus> LeaveAloneAsync(Layer layer, uint slot, byte[] entries)
    {
        for (int child = 0; child < layer.Children.Count && IsPageOf(layer, slot);)
        {
            uint page = PageAbove(layer.Children[child], _slots[slot].Extent, slot);
            if (page == 0)
            {
                entries.AsSpan().Clear();
                return IoStatus.Ok;
            }

            if (!_slots.IsResident(page - 1))
            {
                IoStatus status = await BringSlotAsync(page - 1);
                if (status != IoStatus.Ok) return status;
                continue; // the layer above may have gone meanwhile, and its page is another's
            }

            ReadOnlySpan<byte> above = _slots.Entries(page - 1);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                if (MetadataPage.Entry(above, i).Block == MetadataPage.Entry(entries, i).Block) MetadataPage.SetEntry(entries, i, default);
            }

            child++;
        }

        return IoStatus.Ok;
    }

    private bool IsPageOf(Layer layer, uint slot) => State != StoreState.Closed
        && _slots[slot].Kind == MetadataKind.Extent && _slots[slot].VolumeId == layer.Volume.Head.Id
        && _slots.Link(slot).Layer == layer.Number;

    private List<uint> PagesOf(Layer layer)
    {
        var pages = new List<uint>();
        if (layer.IsUnlinked)
        {
            for (uint extent = 0; TryNextPage(layer, ref extent, out uint slot); extent++) pages.Add(slot);
            return pages;
        }

        for (uint page = layer.FirstPage; page != 0; page = _slots.Link(page - 1).Next) pages.Add(page - 1);
        return pages;
    }
}
