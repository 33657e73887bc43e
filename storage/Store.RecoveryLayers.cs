using BlockServer.Core;

namespace BlockServer.Storage;

// Layers at recovery: volumes and snapshots from their heads, bases before what builds on them, then every page under the
// one that the layers below it show.
public sealed partial class Store
{
    private readonly Dictionary<uint, SnapshotLayout> _recoveredSnapshots = [];
    private readonly SortedDictionary<uint, uint> _recoveredHeadOf = []; // slots of heads, by volume

    private void SetLayer(uint slot, uint layer)
    {
        if (layer == 0) _slots.ClearLink(slot);
        else _slots.LinkOf(slot) = new SlotLink { Layer = layer };
    }

    private void TakeSnapshot(uint slot, SnapshotLayout snapshot)
    {
        _recoveredSnapshots[slot] = snapshot;
        // What is written later is above every cut.
        _nextVersion = Math.Max(_nextVersion, snapshot.Cut + 1);
    }

    private void ForgetHeads(uint slot)
    {
        _recoveredHeads.Remove(slot);
        _recoveredSnapshots.Remove(slot);
        ForgetAppends(slot);
    }

    /// <summary>Answers what cannot be, or null.</summary>
    private string? BuildLayers()
    {
        var snapshots = new SortedDictionary<(uint Volume, uint Layer), uint>();
        foreach ((uint slot, SnapshotLayout head) in _recoveredSnapshots)
        {
            if (_slots[slot].Kind != MetadataKind.Snapshot) continue;
            if (!_recoveredHeadOf.ContainsKey(head.Id.Volume)) return $"a snapshot of volume {head.Id.Volume}, which has no head";
            if (!snapshots.TryAdd((head.Id.Volume, head.Id.Layer), slot)) return $"two snapshots of layer {head.Id}";
        }

        // A page that is not there any more would show the one below it, which is wrong data.
        if (_hasLost && snapshots.Count > 0) return "metadata of a store with snapshots is lost, and what it shows would be wrong";
        var pages = new SortedDictionary<(uint Volume, uint Layer), List<uint>>();
        for (uint slot = 0; slot < _slots.Next; slot++)
        {
            Slot page = _slots[slot];
            if (page.Kind != MetadataKind.Extent) continue;
            (uint, uint) key = (page.VolumeId, _slots.Link(slot).Layer);
            if (!pages.TryGetValue(key, out List<uint>? list)) pages.Add(key, list = []);
            list.Add(slot);
        }

        var building = new HashSet<uint>();
        foreach (uint volume in _recoveredHeadOf.Keys)
        {
            if (BuildVolume(volume, snapshots, pages, building) is { } fault) return fault;
        }

        foreach (((uint volumeId, uint layer), List<uint> slots) in pages)
        {
            // Whose head is lost, and that of its layers with it: only what never had layers can be put together again.
            if (layer != 0 || _volumes.ContainsKey(volumeId) || !TryAdopt(volumeId, out Volume? volume))
                return $"slot {slots[0]}: an extent of volume {volumeId}, layer {layer}, which has no head";
            foreach (uint slot in slots) Stretch(volume, _slots[slot].Extent);
            if (PlacePages(volume.Top, slots) is { } fault) return fault;
        }

        return null;
    }

    private string? BuildVolume(
        uint id, SortedDictionary<(uint Volume, uint Layer), uint> snapshots,
        SortedDictionary<(uint Volume, uint Layer), List<uint>> pages, HashSet<uint> building)
    {
        if (_volumes.ContainsKey(id)) return null;
        if (!building.Add(id)) return $"volume {id} builds on itself";
        uint headSlot = _recoveredHeadOf[id];
        VolumeHeadLayout layout = _recoveredHeads[headSlot];
        Volume? volume = null;
        foreach (((uint of, uint number), uint slot) in snapshots)
        {
            if (of != id) continue;
            SnapshotLayout head = _recoveredSnapshots[slot];
            if (number >= layout.Layer) return $"a snapshot of volume {id}, layer {number}, which is not cut yet";
            if (PlaceLayer(ref volume, layout, headSlot, number, head.Parent, snapshots, pages, building) is { } fault) return fault;
            Layer layer = volume!.Top;
            (layer.Cut, layer.Slot, layer.Head, layer.IsDeleting) = (head.Cut, slot, head, head.IsDeleting);
            volume.Note(layer);
        }

        return PlaceLayer(ref volume, layout, headSlot, layout.Layer, layout.Parent, snapshots, pages, building);
    }

    private string? PlaceLayer(
        ref Volume? volume, VolumeHeadLayout layout, uint headSlot, uint number, LayerId? parentId,
        SortedDictionary<(uint Volume, uint Layer), uint> snapshots,
        SortedDictionary<(uint Volume, uint Layer), List<uint>> pages, HashSet<uint> building)
    {
        Layer? parent = null;
        uint id = layout.Head.Id;
        if (parentId is { } below)
        {
            if (below.Volume != id)
            {
                if (!_recoveredHeadOf.ContainsKey(below.Volume)) return $"volume {id} builds on volume {below.Volume}, which is not there";
                if (BuildVolume(below.Volume, snapshots, pages, building) is { } fault) return fault;
            }

            Volume? of = below.Volume == id ? volume : _volumes[below.Volume];
            of?.Layers.TryGetValue(below.Layer, out parent);
            // Of a volume that goes the newest layers go first, and their heads with them.
            if ((parent is null || parent == of!.Top && parent.Slot == 0 && parent.Cut == ulong.MaxValue) && !layout.IsDeleting)
                return $"layer {number} of volume {id} builds on {below}, which is not there";
        }

        if (volume is null)
        {
            volume = new Volume(layout.Head, headSlot, _slots, number, parent)
            {
                IsDeleting = layout.IsDeleting, IsDoubtful = layout.IsDoubtful, IsFlattening = layout.IsFlattening,
            };
            _volumes.Add(id, volume);
        }
        else if (parent is not null)
        {
            AddLayer(volume, number, parent);
        }
        else
        {
            var line = new Line(_slots, null);
            line.Tip = volume.Top = new Layer(volume, number, null, line);
            volume.Layers.Add(number, volume.Top);
        }

        return pages.Remove((id, number), out List<uint>? slots) ? PlacePages(volume.Top, slots) : null;
    }

    private string? PlacePages(Layer layer, List<uint> slots)
    {
        foreach (uint slot in slots)
        {
            uint extent = _slots[slot].Extent;
            uint older = layer.Line.TryGetSlot(extent, out uint below) ? below + 1 : 0;
            if (older != 0 && _slots[below].VolumeId == layer.Volume.Head.Id && _slots.Link(below).Layer == layer.Number)
                return $"extent {extent} of volume {layer.Volume.Head.Id} lies in two slots";
            if (!layer.IsUnlinked) Enlist(layer, slot, older);
            layer.Line.SetSlot(extent, slot);
        }

        return null;
    }

    /// <summary>Parts of a page are lost, so it may have had what another one shares with it.</summary>
    private bool HasUnknown(uint slot)
    {
        for (uint older = _slots.Link(slot).Older; older != 0; older = _slots.Link(older - 1).Older)
        {
            if (!_slots.IsResident(older - 1)) return true; // not worth a read: it is only a check
            ReadOnlySpan<byte> entries = _slots.Entries(older - 1);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                if (MetadataPage.Entry(entries, i).Block == MetadataPage.UnknownBlock) return true;
            }
        }

        return false;
    }
}
