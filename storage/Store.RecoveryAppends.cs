using BlockServer.Core;

namespace BlockServer.Storage;

// Append-only volumes at recovery. What is left is a prefix: an append above the durable claim counts when its data is there
// and everything in front of it is (B1.7, step 3).
public sealed partial class Store
{
    private readonly Dictionary<uint, AppendPage> _recoveredAppends = []; // by slot
    private readonly Dictionary<uint, SortedSet<uint>> _appendsOf = []; // slots of pages, by volume

    private readonly HashSet<uint> _appendsDropped = []; // volumes of which the log has an append that was not kept

    /// <summary>A snapshot that was cut over an append which a power cut took, and was never answered itself, ends where its volume
    /// does. Nothing behind a dropped append is home yet, so what was replayed up to here says how long that is.</summary>
    private SnapshotLayout WithoutDropped(SnapshotLayout snapshot)
    {
        uint volume = snapshot.Id.Volume;
        if (!snapshot.IsAppendOnly || !_appendsDropped.Contains(volume)) return snapshot;
        ulong length = Math.Min(RecoveredLength(volume), snapshot.LengthBytes);
        return snapshot with { SizeBytes = AppendState.Shown(length), SlackBytes = (uint)(AppendState.Shown(length) - length) };
    }

    private void TakeAppends(uint slot, uint volumeId, AppendPage page)
    {
        _recoveredAppends[slot] = page;
        if (!_appendsOf.TryGetValue(volumeId, out SortedSet<uint>? slots)) _appendsOf.Add(volumeId, slots = []);
        slots.Add(slot);
    }

    private void ForgetAppends(uint slot)
    {
        if (!_recoveredAppends.Remove(slot)) return;
        foreach (SortedSet<uint> slots in _appendsOf.Values) slots.Remove(slot);
    }

    /// <summary>Length of a volume as far as the log was replayed.</summary>
    private ulong RecoveredLength(uint volumeId)
    {
        ulong length = 0;
        if (!_appendsOf.TryGetValue(volumeId, out SortedSet<uint>? slots)) return 0;
        foreach (uint slot in slots) length = Math.Max(length, _recoveredAppends[slot].LengthBytes);
        return length;
    }

    /// <summary>The chain appends where the volume ends, or appends nothing. Behind an append that was dropped there is no
    /// place for the next one. One that begins in front of the end is in a page already that a checkpoint brought home.</summary>
    private bool FollowsLength(ReadOnlySpan<byte> page, int at, int count, int used)
    {
        for (int i = 0; i < count && RedoRecord.TryRead(page, at, used, out RedoRecord record) is null; i++)
        {
            if (record.Kind == RedoKind.Append) return record.AppendEntry.OffsetBytes <= RecoveredLength(record.VolumeId) || Breaks(BrokenRules.AppendOverGap);
            at += record.Length;
        }

        return true;
    }

    private string? ReplayAppend(RedoRecord record, ref Slot slot, bool data)
    {
        bool isHere = slot.Kind == MetadataKind.Appends && slot.VolumeId == record.VolumeId && slot.Extent == record.Extent
            && _recoveredAppends.ContainsKey(record.Slot);
        if (!isHere)
        {
            if (!IsLost(record.Slot)) return "record: appends to a page that is not there";
            (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.Appends, record.VolumeId, record.Extent);
            ForgetHeads(record.Slot);
            TakeAppends(record.Slot, record.VolumeId, new AppendPage());
        }

        if (data) _recoveredAppends[record.Slot].Take(record.AppendEntry);
        return null;
    }

    /// <summary>Loss was accepted, and the page in hand may be an older one: what its clients have appended since cannot be
    /// told, so they are not known any more.</summary>
    private void LoseAppends(uint slot)
    {
        if (_recoveredAppends.TryGetValue(slot, out AppendPage? page)) page.ForgetClients();
    }

    /// <summary>Gives a page to its volume. Answers what cannot be, or null.</summary>
    private string? BuildAppends(uint number)
    {
        Slot slot = _slots[number];
        if (!_recoveredAppends.TryGetValue(number, out AppendPage? page)) return $"slot {number}: a damaged page of appends";
        if (!_volumes.TryGetValue(slot.VolumeId, out Volume? volume) || volume.Appends is not { } state)
        {
            // The head is lost: what was put together of its extents is an ordinary volume.
            if (!_options.AcceptDataLoss) return $"slot {number}: appends of volume {slot.VolumeId}, which is not append-only";
            _slots[number].Kind = MetadataKind.Free;
            Touch(number, _slots[number].PageLsn);
            return null;
        }

        if (slot.Extent >= AppendPage.PagesMax || state.Pages[slot.Extent] is not null) return $"slot {number}: one page of appends too many";
        state.SetPage(slot.Extent, number, page);
        state.DurableBytes = state.LengthBytes;
        state.IsSealing = volume.Head.IsSealed;
        return null;
    }

    /// <summary>Loss was accepted and every page that says the length is gone: then all that is mapped counts.</summary>
    private async ValueTask<string?> AdoptLengthAsync(Volume volume)
    {
        AppendState state = volume.Appends!;
        if (Array.Exists(state.Pages, page => page is not null)) return null;
        if (!_options.AcceptDataLoss) return $"volume {volume.Head.Id} is append-only and nothing says how long it is; accept data loss to open all the same";
        if (!_slots.TryTake(MetadataKind.Appends, volume.Head.Id, 0, out uint slot)) return "no metadata slot is left for the length of an append-only volume";
        state.SetPage(0, slot, new AppendPage());
        Pending record = AppendPageRecord(volume, 0, Math.Min(await HighestUsedByteAsync(volume.Head.Id), volume.Head.SizeBytes));
        record.IsReset = true;
        return await record.Begin() == IoStatus.Ok ? null : "the length of an append-only volume cannot be written";
    }
}
