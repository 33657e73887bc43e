using BlockServer.Core;

namespace BlockServer.Storage;

// Layers (engine B1.3, B5): which page belongs to which, who owns a block, and what records of layers change in RAM.
//
// A page of a layer begins as a copy of what the layers below show of its extent (a record says all of it, so replay
// depends on no other page); no data is copied. From then on the two differ by version alone: an entry whose version is not
// above the cut of the layer that has the next older page is that page's, and shared; one above it was written here, and
// its block is freed with it. So no block has a counter, and nothing else must be looked at to overwrite one.
public sealed partial class Store
{
    /// <summary>The page belongs to the layer that is written to.</summary>
    private bool IsOwn(Volume volume, uint slot) =>
        (volume.Top.IsUnlinked || _slots.Link(slot).Layer == volume.Top.Number) && _slots[slot].VolumeId == volume.Head.Id;

    /// <summary>Entries of the page with versions up to this one are shared with the page below; 0 when there is none.</summary>
    private ulong SharedUpTo(uint slot)
    {
        uint older = _slots.Link(slot).Older;
        return older == 0 || Breaks(BrokenRules.FreeShared) ? 0 : LayerOf(older - 1).Cut;
    }

    private Layer LayerOf(uint slot) => _volumes[_slots[slot].VolumeId].Layers[_slots.Link(slot).Layer];

    /// <summary>The extent's page in the layer that is written to. Without one it begins, as what the layers below show, in
    /// the log in front of the change; the caller made sure of a slot and of frames, and that what they show is in RAM.
    /// <paramref name="isNewPage"/>: it is empty, and the change's own record shall say so.</summary>
    private uint OwnPage(Volume volume, uint extent, out bool isNewPage)
    {
        Layer top = volume.Top;
        isNewPage = false;
        bool isThere = volume.Line.TryGetSlot(extent, out uint seen);
        if (isThere && (IsOwn(volume, seen) || Breaks(BrokenRules.WriteIntoSnapshot))) return seen;
        if (Breaks(BrokenRules.ForgetBelow)) isThere = false;
        if (isThere) _slots.Pin(seen);
        Check.That(_slots.TryTake(MetadataKind.Extent, volume.Head.Id, extent, out uint slot));
        volume.Pages++;
        if (volume.PromisedSlots != 0) NotePromise(volume); // whoever asks before this is applied must not have the same slot again
        if (!top.IsUnlinked) Enlist(top, slot, isThere ? seen + 1 : 0);
        volume.Line.SetSlot(extent, slot);
        isNewPage = !isThere && top.IsUnlinked;
        if (isNewPage) return slot;
        Pending begin = NewPending(isThere ? RedoKind.PageImage : RedoKind.BeginPage, volume, slot);
        begin.Extent = extent;
        begin.IsSilent = true;
        if (isThere)
        {
            _slots.Entries(seen).CopyTo(_slots.Entries(slot));
            (_slots[slot].Mapped, _slots[slot].MaxVersion) = (_slots[seen].Mapped, _slots[seen].MaxVersion);
            NoteCuts(slot, _slots[seen].Cuts);
            _slots.Unpin(seen);
            RedoRecordWriter.PageImage(
                Append(begin, RedoRecord.PageImageLength), slot, volume.Head.Id, extent, _slots.Entries(slot), top.Number);
        }
        else
        {
            RedoRecordWriter.BeginPage(Append(begin, RedoRecord.LayerLength), slot, volume.Head.Id, extent, top.Number);
        }

        return slot;
    }

    /// <summary>Puts a page into its layer's list; <paramref name="older"/> is the page below, slot + 1.</summary>
    private void Enlist(Layer layer, uint slot, uint older)
    {
        _slots.LinkOf(slot) = new SlotLink { Layer = layer.Number, Older = older, Next = layer.FirstPage };
        if (layer.FirstPage != 0) _slots.LinkOf(layer.FirstPage - 1).Previous = slot + 1;
        layer.FirstPage = slot + 1;
    }

    private void Unlist(Layer layer, uint slot)
    {
        if (layer.IsUnlinked) return;
        SlotLink link = _slots.Link(slot);
        if (link.Previous == 0) layer.FirstPage = link.Next;
        else _slots.LinkOf(link.Previous - 1).Next = link.Next;
        if (link.Next != 0) _slots.LinkOf(link.Next - 1).Previous = link.Previous;
    }

    private static VolumeHeadLayout LayoutOf(Volume volume) => new()
    {
        Head = volume.Head,
        IsDeleting = volume.IsDeleting,
        IsDoubtful = volume.IsDoubtful,
        IsFlattening = volume.IsFlattening,
        Layer = volume.Top.Number,
        Parent = volume.Top.Parent?.Id,
    };

    private void ApplyHead(Volume volume, VolumeHeadLayout head)
    {
        volume.Head = head.Head;
        volume.IsFlattening = head.IsFlattening;
        Layer? parent = head.Parent is { } id ? _volumes[id.Volume].Layers[id.Layer] : null;
        bool isCut = parent is null && volume.Top.Parent is { } basis && basis.Volume != volume;
        if (head.Layer == volume.Top.Number) SetParent(volume.Top, parent);
        else AddLayer(volume, head.Layer, parent!);
        if (isCut) CutTie(volume);
    }

    /// <summary>A layer on top of <paramref name="parent"/>: it goes on with its line, or begins a branch.</summary>
    private Layer AddLayer(Volume volume, uint number, Layer parent)
    {
        Line line = parent.Volume == volume && parent.Line.Tip == parent ? parent.Line : new Line(_slots, parent);
        var layer = new Layer(volume, number, parent, line);
        line.Tip = layer;
        parent.Children.Add(layer);
        volume.Layers.Add(number, layer);
        volume.Top = layer;
        return layer;
    }

    private static void SetParent(Layer layer, Layer? parent)
    {
        Layer? before = layer.Parent;
        if (before == parent) return;
        before?.Children.Remove(layer);
        parent?.Children.Add(layer);
        layer.Parent = parent;
        if (layer.Line.Base == before) layer.Line.Base = parent;
    }

    private static void RemoveLayer(Layer layer)
    {
        layer.Volume.Layers.Remove(layer.Number);
        layer.Parent?.Children.Remove(layer);
        if (layer.Line.Tip == layer) layer.Line.Tip = layer.Parent?.Line == layer.Line ? layer.Parent : null;
    }

    private void ApplySnapshot(Pending record)
    {
        Layer layer = record.Layer!;
        layer.Head = record.Snapshot;
        layer.Slot = record.Slot;
        layer.Cut = record.Snapshot.Cut;
        layer.IsDeleting = record.Snapshot.IsDeleting;
        layer.Volume.Note(layer);
        SetParent(layer, record.Snapshot.Parent is { } id ? _volumes[id.Volume].Layers[id.Layer] : null);
        Touch(record.Slot, record.Lsn);
    }

    /// <summary>The page goes over to the layer above, which had none.</summary>
    private void ApplyRekey(Pending record)
    {
        Layer from = LayerOf(record.Slot), to = record.Layer!;
        uint older = _slots.Link(record.Slot).Older;
        Unlist(from, record.Slot);
        Enlist(to, record.Slot, older);
        if (from.Line != to.Line)
        {
            to.Line.Cover(record.Extent, record.Slot);
            from.Line.Uncover(record.Extent, record.Slot, older);
        }

        Touch(record.Slot, record.Lsn);
    }

    /// <summary>Frees what the page alone has: not what the page below has too, nor what the page above goes on with.</summary>
    private void ApplyDropOfExtent(Pending record)
    {
        Volume volume = record.Volume!;
        ulong shared = SharedUpTo(record.Slot);
        ReadOnlySpan<byte> entries = _slots.Entries(record.Slot);
        ReadOnlySpan<byte> heir = record.Heir != 0 && !Breaks(BrokenRules.DropSharedBlocks) ? _slots.Entries(record.Heir - 1) : default;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            BlockEntry entry = MetadataPage.Entry(entries, i);
            if (entry.Block is 0 or MetadataPage.UnknownBlock || entry.Version <= shared) continue;
            if (!heir.IsEmpty && MetadataPage.Entry(heir, i).Block == entry.Block) continue;
            Quarantine(record.Lsn, entry.Block, 1);
            volume.UsedBlocks--;
            _used--;
        }

        volume.Pages--;
        Layer layer = LayerOf(record.Slot);
        SlotLink link = _slots.Link(record.Slot);
        if (record.Heir != 0) _slots.LinkOf(record.Heir - 1).Older = link.Older;
        layer.Line.Uncover(_slots[record.Slot].Extent, record.Slot, link.Older);
        Unlist(layer, record.Slot);
        NoteCuts(record.Slot, 0);
        _slots.Detach(record.Slot);
    }

    /// <summary>The changes of a frozen volume that are in the log are answered when it returns.</summary>
    private ValueTask<bool> DrainAsync(Volume volume)
    {
        if (volume.InFlight == 0 || Breaks(BrokenRules.CutUnderWrites)) return new(true);
        volume.Drained ??= new LoopEvent<bool>();
        return volume.Drained.WaitAsync();
    }

    private static void Thaw(Volume volume)
    {
        if (--volume.Freezes == 0) LetHeldGo(volume);
    }

    private static void LetHeldGo(Volume volume)
    {
        // Each looks at everything anew, and may wait again.
        for (int left = volume.Held.Count; left > 0 && volume.Held.TryDequeue(out FlushWait? held); left--) held.Complete(IoStatus.Ok);
    }

    private void EndFlight(Volume volume)
    {
        if (--volume.InFlight == 0 && volume.Drained is not null) EndDrain(volume);
    }

    /// <summary>Apart, because what it captures would cost every change an object.</summary>
    private void EndDrain(Volume volume)
    {
        LoopEvent<bool> drained = volume.Drained!;
        volume.Drained = null;
        _loop.Post(() => drained.Set(true));
    }
}
