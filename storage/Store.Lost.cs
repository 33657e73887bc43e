using System.Diagnostics.CodeAnalysis;
using BlockServer.Core;

namespace BlockServer.Storage;

// What becomes of slots whose content is lost when the operator accepts data loss (P4: never wrong, zeros never invented).
//
// One home damaged, the log does not explain it: the other home may be older, and the blocks that it names may be others'
// by now. Its extent is known, so all its entries are unknown: EIO until they are overwritten or trimmed. The same when a
// record in the log was made for a newer page than the one that can be read (RedoRecord.Before).
// No home says whose the slot is: then any extent without a page may be the lost one. Every volume becomes doubtful: an
// extent without a page is unknown until it is overwritten or trimmed as a whole.
// Extents of a volume that has no head get a new head, named after the volume's number.
public sealed partial class Store
{
    private readonly HashSet<uint> _damaged = []; // slots of which a home did not read well, or is older than the log needs
    private readonly HashSet<(uint Slot, int Home)> _badHomes = []; // homes that did not read well and are not written anew yet
    private readonly SortedSet<uint> _nameless = []; // slots of which nobody knows whose they were
    private readonly HashSet<uint> _adopted = []; // slots of heads that were made for extents without one
    private bool _isDoubtful;
    private bool _hasLost; // something that the log does not explain was given up

    private bool IsLost(uint slot) => _options.AcceptDataLoss && _damaged.Contains(slot);

    /// <summary>A record names a slot of which no home tells that it is this extent's: the record itself tells, and all but
    /// what the log says is unknown.</summary>
    private bool TryBeginLost(RedoRecord record)
    {
        if (!IsLost(record.Slot)) return false;
        ref Slot slot = ref _slots[record.Slot];
        (slot.Kind, slot.VolumeId, slot.Extent, slot.MaxVersion) = (MetadataKind.Extent, record.VolumeId, record.Extent, 0);
        ForgetHeads(record.Slot);
        FillUnknown(_slots.Entries(record.Slot));
        return true;
    }

    /// <summary>The record changes a page that held more than the one in hand: the newer home is damaged, or was never
    /// written. What came between is not in the log any more. Answers why the store is refused; null when the loss is accepted
    /// and the record may be replayed.</summary>
    private string? LoseBase(RedoRecord record)
    {
        if (!_options.AcceptDataLoss)
        {
            return $"slot {record.Slot} has a damaged home that the log does not explain: it goes on from LSN {record.Before}, and "
                + $"what can be read ends at {_slots[record.Slot].PageLsn}; what it maps is lost; accept data loss to open all the same";
        }

        _hasLost = true;
        _damaged.Add(record.Slot);
        if (record.Kind is RedoKind.Write or RedoKind.Hole) TryBeginLost(record);
        else if (record.Kind == RedoKind.Append) LoseAppends(record.Slot);
        return null;
    }

    private static void FillUnknown(Span<byte> entries)
    {
        for (int i = 0; i < Units.BlocksPerExtent; i++)
            MetadataPage.SetEntry(entries, i, new BlockEntry(MetadataPage.UnknownBlock, 0, 0));
    }

    /// <summary>Data loss was accepted: settles what the log did not explain. Answers why it cannot, or null.</summary>
    private async ValueTask<string?> LoseAsync(HashSet<uint> suspects, ulong last)
    {
        _hasLost = true;
        foreach (uint number in suspects.Order())
        {
            switch (_slots[number].Kind)
            {
                case MetadataKind.Extent:
                    while (!_slots.IsResident(number) && !_slots.TryAttach(number))
                    {
                        if (await RecoveryCycleAsync(spills: true) is { } fault) return fault;
                    }

                    FillUnknown(_slots.Entries(number));
                    Touch(number, last);
                    break;
                case MetadataKind.VolumeHead or MetadataKind.BadBlocks:
                    Touch(number, last); // perhaps an older name or size; its damaged home is written anew
                    break;
                case MetadataKind.Appends:
                    LoseAppends(number);
                    Touch(number, last);
                    break;
                default:
                    _slots[number].Kind = MetadataKind.Free;
                    _slots[number].PageLsn = last;
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

    /// <summary>Writes every damaged home anew that recovery has not written yet: the log explains it now and may not at the
    /// next opening, and an accepted loss is settled by it. Answers why it cannot, or null.</summary>
    private async ValueTask<string?> HealHomesAsync()
    {
        foreach ((uint number, int home) in _badHomes.Order().ToArray())
        {
            if (_slots[number].Kind <= MetadataKind.Free)
            {
                var page = new byte[Units.BlockBytes];
                PutTombstone(page, number, home, _slots[number].PageLsn);
                if (await _file.WriteAsync(_geometry.HomeOffset(number, home), page) != IoStatus.Ok)
                    return $"slot {number} cannot be written";
                continue;
            }

            if (_slots[number].Kind == MetadataKind.Extent && !_slots.IsResident(number))
            {
                while (!_slots.TrySpare(1))
                {
                    if (await RecoveryCycleAsync() is { } full) return full;
                }

                if (await ReadHomeAsync(number) != IoStatus.Ok) return $"the metadata page of slot {number} cannot be read again";
            }

            Touch(number, _slots[number].PageLsn);
        }

        while (_dirty.Count > 0)
        {
            if (await RecoveryCycleAsync() is { } fault) return fault;
        }

        bool any = _badHomes.Count > 0;
        _badHomes.Clear();
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
