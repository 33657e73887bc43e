using System.Diagnostics.CodeAnalysis;
using BlockServer.Core;

namespace BlockServer.Storage;

// What becomes of slots whose content is lost when the operator accepts data loss (P4: never wrong, zeros never invented).
//
// One home damaged, the log does not explain it: the other home may be older, and the blocks that it names may be others'
// by now. Its extent is known, so all its entries are unknown: EIO until they are overwritten or trimmed.
// No home says whose the slot is: then any extent without a page may be the lost one. Every volume becomes doubtful: an
// extent without a page is unknown until it is overwritten or trimmed as a whole.
// Extents of a volume that has no head get a new head, named after the volume's number.
public sealed partial class Store
{
    private readonly HashSet<uint> _damaged = []; // slots of which a home did not read well when the store was opened
    private readonly SortedSet<uint> _nameless = []; // slots of which nobody knows whose they were
    private readonly HashSet<uint> _adopted = []; // slots of heads that were made for extents without one
    private bool _isDoubtful;

    private bool IsLost(uint slot) => _options.AcceptDataLoss && _damaged.Contains(slot);

    /// <summary>A record names a slot of which no home tells that it is this extent's: the record itself tells, and all but
    /// what the log says is unknown.</summary>
    private bool TryBeginLost(RedoRecord record)
    {
        if (!IsLost(record.Slot)) return false;
        ref Slot slot = ref _slots[record.Slot];
        (slot.Kind, slot.VolumeId, slot.Extent, slot.MaxVersion) = (MetadataKind.Extent, record.VolumeId, record.Extent, 0);
        _recoveredHeads.Remove(record.Slot);
        FillUnknown(_slots.Entries(record.Slot));
        return true;
    }

    private static void FillUnknown(Span<byte> entries)
    {
        for (int i = 0; i < Units.BlocksPerExtent; i++)
            MetadataPage.SetEntry(entries, i, new BlockEntry(MetadataPage.UnknownBlock, 0, 0));
    }

    /// <summary>Data loss was accepted: settles what the log did not explain. Answers why it cannot, or null.</summary>
    private async ValueTask<string?> LoseAsync(HashSet<uint> suspects, ulong last)
    {
        foreach (uint number in suspects.Order())
        {
            switch (_slots[number].Kind)
            {
                case MetadataKind.Extent:
                    while (!_slots.IsResident(number) && !_slots.TryAttach(number))
                    {
                        if (await CycleAsync(spills: true) is { } fault) return fault;
                    }

                    FillUnknown(_slots.Entries(number));
                    Touch(number, last);
                    break;
                case MetadataKind.VolumeHead or MetadataKind.BadBlocks:
                    Touch(number, last); // perhaps an older name or size; its damaged home is written anew
                    break;
                default:
                    _slots[number].Kind = MetadataKind.Free;
                    _nameless.Add(number);
                    _isDoubtful = true;
                    break;
            }
        }

        return null;
    }

    /// <summary>Makes a head for extents that have none, in a slot of which nobody knows what it was.</summary>
    private bool TryAdopt(uint volumeId, [NotNullWhen(true)] out Volume? volume)
    {
        volume = null;
        if (_nameless.Count == 0) return false;
        uint number = _nameless.Min;
        _nameless.Remove(number);
        _adopted.Add(number);
        ref Slot slot = ref _slots[number];
        (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.VolumeHead, volumeId, 0);
        volume = new Volume(new VolumeHead(volumeId, _loop.Random.NextGuid(), $"lost-{volumeId}", Units.VolumeBytesMin, 1), number, _slots);
        _volumes.Add(volumeId, volume);
        return true;
    }

    private static void Stretch(Volume volume, uint extent) => volume.Head = volume.Head with
    {
        SizeBytes = Math.Max(volume.Head.SizeBytes, (ulong)(extent + 1) << Units.ExtentShift),
    };

    private void DoubtAll(ulong last)
    {
        foreach (Volume volume in _volumes.Values)
        {
            volume.IsDoubtful = true;
            Touch(volume.Slot, last);
        }
    }

    /// <summary>Once the heads say what is in doubt: tombstones in both homes of the nameless slots, a second image of the
    /// new heads. From here on the loss is settled and the store opens without accepting it again.</summary>
    private async ValueTask<string?> HealLostAsync(ulong last)
    {
        foreach (uint number in _adopted) Touch(number, last);
        while (_dirty.Count > 0)
        {
            if (await CycleAsync() is { } fault) return fault;
        }

        foreach (uint number in _nameless)
        {
            for (int home = 0; home < 2; home++)
            {
                var page = new byte[Units.BlockBytes];
                ulong address = _geometry.HomeOffset(number, home);
                new MetadataPageHeader { Kind = MetadataKind.Free, Slot = number, PageLsn = last }.WriteTo(page);
                Seal.Put(page, address, _fold);
                if (await _file.WriteAsync(address, page) != IoStatus.Ok) return $"slot {number} cannot be written";
            }

            _slots[number].PageLsn = last;
        }

        bool any = _nameless.Count > 0;
        _nameless.Clear();
        _adopted.Clear();
        _damaged.Clear();
        return any && await FlushFilesAsync() != IoStatus.Ok ? "flush failed" : null;
    }

    /// <summary>The change begins a page where a lost one may have been: only a change of all of it is taken, for the rest
    /// of it would be unknown.</summary>
    private static bool IsDoubtfulPart(Volume volume, ulong first, int count)
    {
        if (!volume.IsDoubtful) return false;
        for (ulong block = first; block < first + (ulong)count;)
        {
            ulong next = Math.Min(first + (ulong)count, (block / Units.BlocksPerExtent + 1) * Units.BlocksPerExtent);
            if (next - block < Units.BlocksPerExtent && !volume.Line.TryGetSlot(ExtentOf(block), out _)) return true;
            block = next;
        }

        return false;
    }
}
