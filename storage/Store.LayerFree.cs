using BlockServer.Core;

namespace BlockServer.Storage;

// A layer goes (engine B5). Page by page: one that the layer above has no page of goes over to it; of the others what
// neither neighbour has is freed. The layer's head goes last, so that a crash at any point resumes. A layer that several
// build on waits until one is left.
public sealed partial class Store
{
    private async Task FreeLayerAsync(Layer layer)
    {
        _background++;
        RangeLock held = await _locks.TakeAsync(layer.Volume.Head.Id, FreeingLock, 0, 1);
        bool isDone = false;
        if (layer.IsDeleting && layer.Volume.Layers.GetValueOrDefault(layer.Number) == layer && layer.Children.Count <= 1)
            isDone = await FreePagesAsync(layer) && await FreeLayerHeadAsync(layer);
        _locks.Give(held);
        _background--;
        if (!isDone) return;
        // What waited for this one to go.
        if (layer.Parent is { IsDeleting: true } below) StartBackground(() => FreeLayerAsync(below));
    }

    /// <summary>Begins it in a turn of its own. Nobody awaits it, so a broken promise in it stops the store.</summary>
    private void StartBackground(Func<Task> work)
    {
        async Task WatchAsync()
        {
            try
            {
                await work();
            }
            catch (Exception broken) when (broken is not OutOfMemoryException)
            {
                Fail("in the background: " + broken);
            }
        }

        _loop.Post(() => _ = WatchAsync());
    }

    private bool IsFreeing(Volume volume) => State == StoreState.Online && !_isClosing && !volume.IsDeleting;

    private async ValueTask<bool> FreePagesAsync(Layer layer)
    {
        if (Breaks(BrokenRules.DropLayerFirst)) return true;
        Layer? heir = layer.Children.Count == 1 ? layer.Children[0] : null;
        uint extent = 0;
        while (IsFreeing(layer.Volume) && TryNextPage(layer, ref extent, out uint slot))
        {
            IoStatus status = await FreePageAsync(layer, heir, slot);
            if (status != IoStatus.Ok) return false; // the next opening tries again
        }

        return IsFreeing(layer.Volume);
    }

    /// <summary>A page of the layer. Of one without a list it is looked for from <paramref name="extent"/> on.</summary>
    private bool TryNextPage(Layer layer, ref uint extent, out uint slot)
    {
        if (!layer.IsUnlinked)
        {
            slot = layer.FirstPage - 1;
            return layer.FirstPage != 0;
        }

        Line line = layer.Line;
        for (extent = line.Skip(extent); extent < line.ExtentEnd; extent = line.Skip(extent + 1))
        {
            if (!line.TryGetSlot(extent, out slot)) continue;
            while (_slots.Link(slot).Older is not 0 and var older) slot = older - 1;
            if (_slots.Link(slot).Layer == layer.Number) return true;
        }

        slot = 0;
        return false;
    }

    private async ValueTask<IoStatus> FreePageAsync(Layer layer, Layer? heir, uint slot)
    {
        Volume volume = layer.Volume;
        uint extent = _slots[slot].Extent;
        // A change of the extent begins a page in the heir: before this or after it.
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, extent, 0, Units.BlocksPerExtent);
        IoStatus status = IoStatus.Ok;
        uint above = 0;
        while (State == StoreState.Online && status == IoStatus.Ok)
        {
            await WaitForRing();
            above = heir is null ? 0 : PageAbove(heir, extent, slot);
            if (_slots.IsResident(slot) && (above == 0 || _slots.IsResident(above - 1))) break;
            status = above == 0 ? await BringSlotAsync(slot) : await BringSlotsAsync(slot, above - 1);
        }

        if (status == IoStatus.Ok)
        {
            status = State != StoreState.Online ? IoStatus.Unavailable
                : heir is not null && above == 0 ? await RekeyAsync(heir, slot, extent)
                : await DropSlotAsync(volume, slot, extent, above);
        }

        _locks.Give(held);
        return status;
    }

    /// <summary>The heir's own page over this one, slot + 1, or 0: then whatever lies over it is of layers above the heir.</summary>
    private uint PageAbove(Layer heir, uint extent, uint slot)
    {
        Check.That(heir.Line.TryGetSlot(extent, out uint at));
        if (at == slot) return 0;
        while (_slots.Link(at).Older != slot + 1) at = _slots.Link(at).Older - 1;
        return _slots.Link(at).Layer == heir.Number && _slots[at].VolumeId == heir.Volume.Head.Id ? at + 1 : 0;
    }

    private ValueTask<IoStatus> RekeyAsync(Layer heir, uint slot, uint extent)
    {
        Pending record = NewPending(RedoKind.Rekey, heir.Volume, slot);
        record.Layer = heir;
        record.Extent = extent;
        RedoRecordWriter.Rekey(Append(record, RedoRecord.LayerLength), slot, heir.Volume.Head.Id, extent, record.Before, heir.Number);
        return record.Begin();
    }

    /// <summary>The layer above is told what lies below it now, and the head goes, in one log page.</summary>
    private async ValueTask<bool> FreeLayerHeadAsync(Layer layer)
    {
        Volume volume = layer.Volume;
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, StructureLock, 0, 1);
        await WaitForRing();
        bool isDone = false;
        if (IsFreeing(volume) && layer.Children.Count <= 1)
        {
            Layer? heir = layer.Children.Count == 1 ? layer.Children[0] : null;
            Reserve(2 * RedoRecord.HeadBytes + SnapshotLayout.Size);
            if (heir is not null)
            {
                Pending told = heir.IsTop ? AppendHead(heir.Volume, LayoutOf(heir.Volume) with { Parent = layer.Parent?.Id })
                    : AppendSnapshot(heir, heir.Head with { Parent = layer.Parent?.Id });
                told.IsContinued = true;
            }

            isDone = await DropSlotAsync(volume, layer.Slot, 0) == IoStatus.Ok;
        }

        _locks.Give(held);
        return isDone;
    }

    private Pending AppendHead(Volume volume, VolumeHeadLayout head)
    {
        Pending record = NewPending(RedoKind.Volume, volume, volume.Slot);
        record.Head = head;
        RedoRecordWriter.Volume(Append(record, RedoRecord.VolumeLength(head)), volume.Slot, head);
        return record;
    }

    /// <summary>Gives a deleted volume's blocks back, the newest layer first, then its head.</summary>
    private async Task FreeVolumeAsync(Volume volume)
    {
        _background++;
        RangeLock held = await _locks.TakeAsync(volume.Head.Id, FreeingLock, 0, 1);
        // Whoever is about to write down one of the layers does so before they go.
        RangeLock structure = await _locks.TakeAsync(volume.Head.Id, StructureLock, 0, 1);
        IoStatus status = IoStatus.Ok;
        foreach (Layer layer in volume.Layers.Values.Reverse().ToArray())
        {
            uint extent = 0;
            while (State == StoreState.Online && !_isClosing && status == IoStatus.Ok && TryNextPage(layer, ref extent, out uint slot))
                status = await FreePageAsync(layer, null, slot);
            if (_isClosing || State != StoreState.Online || status != IoStatus.Ok) break;
            if (!layer.IsTop) status = await DropSlotAsync(volume, layer.Slot, 0);
        }

        if (!_isClosing && State == StoreState.Online && status == IoStatus.Ok) status = await DropAppendsAsync(volume);
        if (!_isClosing && State == StoreState.Online && status == IoStatus.Ok
            && await DropSlotAsync(volume, volume.Slot, 0) == IoStatus.Ok) _volumes.Remove(volume.Head.Id);
        _locks.Give(structure);
        _locks.Give(held);
        _background--;
    }
}
