using BlockServer.Core;

namespace BlockServer.Storage;

// The books of a store against what its pages say; for tests.
public sealed partial class Store
{
    /// <summary>Tests only, at rest: reads every page and answers the first thing that contradicts S2 or S9, or null.</summary>
    internal async ValueTask<string?> AuditAsync()
    {
        var owned = new Dictionary<uint, uint>();
        var below = new byte[MetadataPage.EntriesBytes];
        for (uint slot = 0; slot < _slots.Next; slot++)
        {
            if (_slots[slot].Kind != MetadataKind.Extent) continue;
            uint older = _slots.Link(slot).Older;
            below.AsSpan().Clear();
            if (older != 0)
            {
                if (await BringSlotAsync(older - 1) != IoStatus.Ok) return null; // nothing to compare with
                _slots.Entries(older - 1).CopyTo(below);
            }

            if (await BringSlotAsync(slot) != IoStatus.Ok) return null;
            ulong shared = SharedUpTo(slot);
            for (int i = 0; i < Units.BlocksPerExtent; i++)
            {
                BlockEntry entry = MetadataPage.Entry(_slots.Entries(slot), i);
                if (entry.Block is 0 or MetadataPage.UnknownBlock) continue;
                string where = $"slot {slot} (volume {_slots[slot].VolumeId}, layer {_slots.Link(slot).Layer}, extent {_slots[slot].Extent}) entry {i}";
                if (entry.Version > shared && !owned.TryAdd(entry.Block, slot)) return $"S2: {where}: block {entry.Block} is slot {owned[entry.Block]}'s too";
                if (entry.Version <= shared && MetadataPage.Entry(below, i) != entry) return $"S2: {where}: shares {entry}, below is {MetadataPage.Entry(below, i)}";
            }
        }

        var resting = new HashSet<uint>(_quarantine.SelectMany(q => Enumerable.Range((int)q.Block, (int)q.Count).Select(b => (uint)b)));
        for (uint block = _geometry.DataStart; block < _geometry.DataStart + _geometry.DataBlocks; block++)
        {
            if (_blocks.IsUsed(block) != (owned.ContainsKey(block) || resting.Contains(block) || _blocks.IsBad(block)))
                return $"S9: block {block} is {(_blocks.IsUsed(block) ? "taken, but nobody's" : $"free, but slot {owned.GetValueOrDefault(block)}'s")}";
            if (owned.ContainsKey(block) && resting.Contains(block)) return $"S3: block {block} is in quarantine and in use";
        }

        return owned.Count == (int)_used ? AuditSlots() : $"S9: {owned.Count} blocks are in use, counted are {_used}";
    }

    /// <summary>Counts the slots anew: used ones, those that come back, pages of each volume, and what of promises is left.</summary>
    private string? AuditSlots()
    {
        uint held = 0, returning = 0;
        var pages = new Dictionary<uint, uint>();
        for (uint number = 0; number < _slots.Next; number++)
        {
            Slot slot = _slots[number];
            if (slot.Kind > MetadataKind.Free) held++;
            else if (slot.Pins > 0) returning++; // dirty, or its tombstone is on the way home
            if (slot.Kind == MetadataKind.Extent) pages[slot.VolumeId] = pages.GetValueOrDefault(slot.VolumeId) + 1;
        }

        if (held + returning != _slots.Used || returning != _slots.Returning)
            return $"S9: {held} slots hold something and {returning} come back, counted are {_slots.Used} and of them {_slots.Returning}";
        if (_slots.FreeCount + _slots.Used != _geometry.SlotCount) return $"S9: {_slots.Used} slots are used and {_slots.FreeCount} free of {_geometry.SlotCount}";
        ulong left = 0;
        foreach (Volume volume in _volumes.Values)
        {
            uint own = pages.GetValueOrDefault(volume.Head.Id), mine = volume.PromisedSlots > own ? volume.PromisedSlots - own : 0;
            if (volume.Pages != own) return $"S9: volume {volume.Head.Id} has {own} pages, counted are {volume.Pages}";
            if (volume.SlotsLeft != mine) return $"S10: of {volume.PromisedSlots} slots volume {volume.Head.Id} has {mine} to come, counted are {volume.SlotsLeft}";
            left += mine;
        }

        return left == _slotsPromised ? null : $"S10: {left} slots are promised, counted are {_slotsPromised}";
    }
}
