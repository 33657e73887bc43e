using BlockServer.Core;

namespace BlockServer.Storage;

// Recovery under the budget of metadata pages: what replay needs is brought back and held, dirty pages go home when room
// runs short, and the map is built from pages that are in RAM and pages that are not.
public sealed partial class Store
{
    private readonly List<uint> _held = [];

    /// <summary>Takes over what the better home of a slot says. Its entries stay in RAM if there is still room; replay or a
    /// reader brings them back otherwise.</summary>
    private void LoadSlot(uint number, ReadOnlySpan<byte> homes, HashSet<uint> suspects)
    {
        ref Slot slot = ref _slots[number];
        int best = -1;
        for (int home = 0; home < 2; home++)
        {
            ReadOnlySpan<byte> page = homes.Slice(home * Units.BlockBytes, Units.BlockBytes);
            ulong address = _geometry.HomeOffset(number, home);
            if (MetadataPage.TryReadPage(page, address, _fold, number, out MetadataPageHeader header) is not null)
            {
                suspects.Add(number); // torn by a checkpoint under way (then the log touches it) or rotten
                _badHomes.Add((number, home));
                slot.NextHome = (byte)home;
                continue;
            }

            if (header.PageLsn < slot.PageLsn) continue;
            best = home;
            slot.Kind = header.Kind;
            slot.VolumeId = header.VolumeId;
            slot.Extent = header.Extent;
            slot.PageLsn = slot.LastLsn = header.PageLsn;
            slot.MaxVersion = header.MaxVersion;
            SetLayer(number, header.LayerId);
            if (!suspects.Contains(number)) slot.NextHome = (byte)(1 - home);
            _nextVersion = Math.Max(_nextVersion, header.MaxVersion + 1);
        }

        if (suspects.Contains(number)) _damaged.Add(number);
        if (best < 0) return;
        ReadOnlySpan<byte> body = homes[(best * Units.BlockBytes + MetadataPage.EntriesOffset)..];
        if (slot.Kind == MetadataKind.Extent && _slots.TryAttach(number, takes: false))
            body[..MetadataPage.EntriesBytes].CopyTo(_slots.Entries(number));
        else if (slot.Kind == MetadataKind.VolumeHead && VolumeHeadLayout.TryRead(body, out VolumeHeadLayout head) is null)
            _recoveredHeads[number] = head;
        else if (slot.Kind == MetadataKind.BadBlocks)
            ReadBadBlocks(number, body);
        else if (slot.Kind == MetadataKind.Snapshot && SnapshotLayout.TryRead(body, out SnapshotLayout snapshot) is null)
            TakeSnapshot(number, snapshot);
        else if (slot.Kind == MetadataKind.Appends && AppendPage.TryRead(body, out AppendPage? appends) is null)
            TakeAppends(number, slot.VolumeId, appends!);
    }

    /// <summary>Brings the entries that the records of one request look at or change, and holds them until
    /// <see cref="LetGo"/>; with <paramref name="judges"/> those of homes that are ahead of it too. Answers why it cannot, or
    /// null.</summary>
    private async ValueTask<string?> HoldAsync(ReadOnlyMemory<byte> page, int at, int count, int used, ulong lsn, bool judges)
    {
        for (int i = 0; i < count; i++)
        {
            if (!NeedsEntries(page.Span, ref at, used, ref lsn, judges, out uint slot, out bool begins)) continue;
            if (!_slots.IsResident(slot))
            {
                while (!_slots.TrySpare(1))
                {
                    string? fault = await RecoveryCycleAsync(spills: true);
                    if (fault is not null) return fault;
                }

                if (begins) Check.That(_slots.TryAttach(slot));
                else if (await ReadHomeAsync(slot) != IoStatus.Ok) return $"the metadata page of slot {slot} cannot be read again";
            }

            _slots.Pin(slot);
            _held.Add(slot);
        }

        return null;
    }

    /// <summary>A home has a part of a request that the log holds: an earlier recovery was cut short behind it.</summary>
    private bool IsAhead(ReadOnlySpan<byte> page, int at, int count, int used, ulong lsn)
    {
        for (int i = 0; i < count && RedoRecord.TryRead(page, at, used, out RedoRecord record) is null; i++)
        {
            if (PageLsnOf(record) >= lsn) return true;
            at += record.Length;
            lsn += (ulong)record.Length;
        }

        return false;
    }

    private void LetGo()
    {
        foreach (uint slot in _held) _slots.Unpin(slot);
        _held.Clear();
    }

    /// <summary>Whether replay looks at the entries of the record's slot, and whether they begin anew; steps on to the next
    /// record.</summary>
    private bool NeedsEntries(
        ReadOnlySpan<byte> page, ref int at, int used, ref ulong lsn, bool judges, out uint slot, out bool begins)
    {
        slot = 0;
        begins = false;
        if (RedoRecord.TryRead(page, at, used, out RedoRecord record) is not null) return false; // whoever replays it says why
        ulong own = lsn;
        at += record.Length;
        lsn += (ulong)record.Length;
        if (!record.IsOfPage || record.Slot >= _geometry.SlotCount) return false;
        slot = record.Slot;
        Slot known = _slots[slot];
        bool isHere = known.Kind == MetadataKind.Extent && known.VolumeId == record.VolumeId && known.Extent == record.Extent;
        if (own <= known.PageLsn) return judges && isHere; // only to see what an earlier recovery made of it
        // When it is judged, what came before it is not replayed yet; when it is replayed, a page that lacks that is lost.
        begins = record.BeginsPage || !isHere || (!judges && IsOlder(known, record));
        return true;
    }

    /// <summary>Volumes, extents and the bitmap, from the slots. Finds what cannot be (S2).</summary>
    private async ValueTask<string?> BuildMapAsync(ulong last)
    {
        foreach ((uint number, VolumeHeadLayout layout) in _recoveredHeads)
        {
            if (_slots[number].Kind != MetadataKind.VolumeHead) continue;
            if (_recoveredHeadOf.TryGetValue(layout.Head.Id, out _)) return $"two heads of volume {layout.Head.Id}";
            _recoveredHeadOf.Add(layout.Head.Id, number);
        }

        if (BuildLayers() is { } wrongLayers) return wrongLayers;
        var shared = new List<(uint Slot, uint Block)>();
        var chunk = new HomesChunk();
        for (uint number = 0; number < _slots.Next; number++)
        {
            Slot slot = _slots[number];
            if (slot.Kind == MetadataKind.VolumeHead && !_volumes.ContainsKey(slot.VolumeId)) return $"slot {number}: a damaged volume head";
            if (slot.Kind == MetadataKind.Snapshot && !_recoveredSnapshots.ContainsKey(number)) return $"slot {number}: a damaged snapshot";
            if (slot.Kind == MetadataKind.Appends && BuildAppends(number) is { } wrongAppends) return wrongAppends;
            if (slot.Kind != MetadataKind.Extent) continue;
            if (!_slots.IsResident(number) && await ReadChunkAsync(chunk, number) is { } fault) return fault;
            string? wrong = MapExtent(number, _slots.IsResident(number) ? _slots.Entries(number) : chunk.Entries(number), shared);
            if (wrong is not null) return wrong;
        }

        foreach ((uint number, uint block) in shared)
        {
            // S2: what a page shares another one has. Where its owner was lost nobody else may use it.
            if (!_blocks.Holds(block)) return $"slot {number}: block {block} is outside the data";
            if (_blocks.TryTake(block) && !_options.AcceptDataLoss && _damaged.Count == 0 && !_isDoubtful && !HasUnknown(number))
                return $"slot {number}: block {block} is shared with a page that does not have it";
        }

        foreach (uint block in _badSlots.Values.SelectMany(blocks => blocks))
        {
            if (_blocks.Holds(block)) _blocks.Retire(block);
        }

        if (_isDoubtful) DoubtAll(last);
        // A dropped slot whose tombstone is not home yet is released by the checkpoint, not here.
        _slots.Rebuild(_superblock.SlotHighWater);
        _recoveredHeads.Clear();
        _recoveredSnapshots.Clear();
        _recoveredHeadOf.Clear();
        _recoveredAppends.Clear();
        _appendsOf.Clear();
        return null;
    }

    private string? MapExtent(uint number, ReadOnlySpan<byte> entries, List<(uint Slot, uint Block)> shared)
    {
        ref Slot slot = ref _slots[number];
        Volume volume = _volumes[slot.VolumeId];
        ulong limit = SharedUpTo(number);
        slot.Mapped = 0;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            (uint block, _, ulong version) = MetadataPage.Entry(entries, i);
            if (block != 0) slot.Mapped++;
            if (block is 0 or MetadataPage.UnknownBlock) continue;
            if (version <= limit)
            {
                if (!volume.IsDeleting) shared.Add((number, block));
                continue;
            }

            if (!_blocks.Holds(block) || !_blocks.TryTake(block))
                return $"block {block} of volume {slot.VolumeId}, extent {slot.Extent} is outside the data or referenced twice";
            volume.UsedBlocks++;
            _used++;
        }

        NoteCuts(number, CutsIn(entries));
        if (slot.IsScattered) _relayCredit += slot.Mapped;
        return null;
    }

    /// <summary>Homes of consecutive slots as they were read, for those that are not in RAM.</summary>
    private sealed class HomesChunk
    {
        public const uint Slots = 128;
        public readonly byte[] Bytes = new byte[Slots * 2 * Units.BlockBytes];
        public uint First;
        public uint Count;
        public int Home;

        public Memory<byte> Page(uint slot) => Bytes.AsMemory((int)((slot - First) * 2 + (uint)Home) * Units.BlockBytes, Units.BlockBytes);

        public ReadOnlySpan<byte> Entries(uint slot) => Page(slot).Span.Slice(MetadataPage.EntriesOffset, MetadataPage.EntriesBytes);
    }

    private async ValueTask<string?> ReadChunkAsync(HomesChunk chunk, uint number)
    {
        if (number >= chunk.First + chunk.Count || chunk.Count == 0)
        {
            chunk.First = number;
            chunk.Count = Math.Min(HomesChunk.Slots, _slots.Next - number);
            Memory<byte> all = chunk.Bytes.AsMemory(0, (int)chunk.Count * 2 * Units.BlockBytes);
            if (await _file.ReadAsync(_geometry.HomeOffset(number, 0), all) != IoStatus.Ok) all.Span.Clear(); // one by one below
        }

        chunk.Home = 1 - _slots[number].NextHome;
        ulong address = _geometry.HomeOffset(number, chunk.Home);
        for (int attempt = 0; attempt < 2 && !IsImageOf(number, chunk.Page(number).Span, address); attempt++)
        {
            if (await _file.ReadAsync(address, chunk.Page(number)) != IoStatus.Ok) chunk.Page(number).Span.Clear();
        }

        return IsImageOf(number, chunk.Page(number).Span, address) ? null : $"the metadata page of slot {number} cannot be read again";
    }
}
