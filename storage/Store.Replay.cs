using BlockServer.Core;

namespace BlockServer.Storage;

// Replay of the redo ring (B1.7, step 3): what is in it, where it ends, which data counts, and the records in order.
public sealed partial class Store
{
    // Reads of data that is judged, under way at a time, and most blocks that several runs together are read by one of; a run
    // by itself is at most 1 MiB.
    private const int JudgesAtOnce = 32, JudgedBlocks = 64;

    /// <summary>What the first look keeps of a log page: 16 bytes for each page of the ring.</summary>
    private readonly record struct RingPage(ulong Number, uint Crc, uint PreviousCrc);

    /// <summary>A request in the log whose data counts only if all of it is there.</summary>
    private sealed class Judged
    {
        public bool IsGood = true;
    }

    /// <summary>Blocks in a row that a record names, and what they must hold for its request to count.</summary>
    private readonly record struct JudgedRun(BlockRun Run, uint[] Crcs, Judged Request)
    {
        /// <summary>The block behind it.</summary>
        public uint End => Run.Block + (uint)Run.Count;
    }

    private async ValueTask<(ulong Last, string? Fault)> ReplayAsync(HashSet<uint> suspects)
    {
        var ahead = new ReadAhead(_log, _pool);
        var ring = new RingPage[_geometry.RingPages];
        (ulong tail, ulong durable) = await ScanRingAsync(ahead, ring);
        ulong first = (tail + 1) / Units.BlockBytes, end = first;
        RingPage previous = default;
        while (end - first < _geometry.RingPages && ring[end % _geometry.RingPages] is var page && page.Number == end
            && end != 0 && (end == first || page.PreviousCrc == previous.Crc))
        {
            previous = page;
            end++;
        }

        ulong last = Math.Max(PageEnd(end - 1), _superblock.StartLsn);
        // A tail may be claimed up to right before the first record of a page that is not there: no record lies in a header.
        bool isLoss = durable > last + (ulong)RedoPageHeader.Size;
        string? fault = null;
        if (isLoss && !_options.AcceptDataLoss)
        {
            fault = $"the log is damaged: it ends at {last}, but was durable up to {durable}; acknowledged writes "
                + "are lost; accept data loss to open all the same";
        }

        else if (end - first < _geometry.RingPages && ahead.BadPages.Contains(_geometry.PageOffset(end)) && !_options.AcceptDataLoss)
        {
            fault = $"the log cannot be read where it may go on (page {end}); acknowledged writes may be lost; accept data loss "
                + "to open all the same";
        }

        for (ulong from = first; from < end && fault is null;)
        {
            // Up to where the ring begins anew.
            ulong to = Math.Min(end, (from / _geometry.RingPages + 1) * _geometry.RingPages);
            ahead.Begin(_geometry.PageOffset(from), _geometry.PageOffset(to - 1) + Units.BlockBytes);
            for (ulong number = from; number < to && fault is null;)
            {
                Memory<byte> piece = await ahead.NextAsync();
                fault = await ReplayPiecePagesAsync(piece, number, ring, durable, suspects);
                number += (ulong)piece.Length / Units.BlockBytes;
            }

            from = to;
        }

        await ahead.CloseAsync();
        // After accepted loss new LSNs must still be above every one that a page holds.
        return (isLoss ? PageEnd(durable / Units.BlockBytes) : last, fault);
    }

    /// <summary>Looks at every page of the ring: those of this incarnation, and the highest claims in them, wherever they
    /// lie, so that a gap in what was durable is noticed.</summary>
    private async ValueTask<(ulong Tail, ulong Durable)> ScanRingAsync(ReadAhead ahead, RingPage[] ring)
    {
        ulong tail = _superblock.StartLsn, durable = 0;
        ahead.Begin(_geometry.RingOffset, _geometry.SlotsOffset);
        for (Memory<byte> piece = await ahead.NextAsync(); !piece.IsEmpty; piece = await ahead.NextAsync())
        {
            ReadOnlySpan<byte> rest = piece.Span;
            for (ulong at = ahead.Offset; !rest.IsEmpty; at += Units.BlockBytes, rest = rest[Units.BlockBytes..])
            {
                ReadOnlySpan<byte> page = rest[..Units.BlockBytes];
                // The incarnation first: it is cheap to see, and most of a ring may be of earlier ones.
                if (RedoPageHeader.TryRead(page, out RedoPageHeader header) is not null
                    || (header.Incarnation != _superblock.Incarnation && !Breaks(BrokenRules.AnyIncarnation))
                    || _geometry.PageOffset(header.PageNumber) != at
                    || TryReadLogPage(page, at, out header) is not null) continue;
                ring[header.PageNumber % _geometry.RingPages] = new RingPage(header.PageNumber, header.Crc, header.PreviousCrc);
                tail = Math.Max(tail, header.TailLsn);
                durable = Math.Max(durable, header.DurableLsn);
            }
        }

        return (tail, Math.Max(durable, tail));
    }

    private string? TryReadLogPage(ReadOnlySpan<byte> page, ulong at, out RedoPageHeader header) =>
        Breaks(BrokenRules.AcceptTornLogPage)
            ? RedoPageHeader.TryRead(page, out header)
            : RedoPageHeader.TryReadPage(page, at, _fold, out header);

    /// <summary>Replays consecutive pages; the data that must be judged is read for all of them at once.</summary>
    private async ValueTask<string?> ReplayPiecePagesAsync(
        Memory<byte> pages, ulong first, RingPage[] ring, ulong durable, HashSet<uint> suspects)
    {
        Dictionary<ulong, Judged> judged = [];
        var reads = new List<JudgedRun>();
        string? fault = await CollectJudgedAsync(pages, first, ring, durable, judged, reads);
        if (fault is not null) return fault;
        await JudgeAsync(reads);
        var chains = new List<(int At, int Count)>();
        for (int i = 0; i < pages.Length / Units.BlockBytes; i++)
        {
            fault = await ReplayPageAsync(pages.Slice(i * Units.BlockBytes, Units.BlockBytes), first + (ulong)i, chains, judged, suspects);
            if (fault is not null) return $"log page {first + (ulong)i}: {fault}";
        }

        return null;
    }

    /// <summary>Checks the pages, and gathers what must be read to judge the requests above the durable claim.</summary>
    private async ValueTask<string?> CollectJudgedAsync(
        Memory<byte> pages, ulong first, RingPage[] ring, ulong durable, Dictionary<ulong, Judged> judged,
        List<JudgedRun> reads)
    {
        var chains = new List<(int At, int Count)>();
        for (ulong number = first; !pages.IsEmpty; number++, pages = pages[Units.BlockBytes..])
        {
            Memory<byte> page = pages[..Units.BlockBytes];
            string? fault = TryReadLogPage(page.Span, _geometry.PageOffset(number), out RedoPageHeader header);
            if (fault is null && header.Crc != ring[number % _geometry.RingPages].Crc) fault = "it changed while it was read";
            fault ??= TryCutChains(page.Span, header, chains);
            if (fault is not null) return $"log page {number}: {fault}";
            foreach ((int at, int count) in chains)
            {
                ulong lsn = number * Units.BlockBytes + (ulong)at;
                // Claims lie at the ends of chains, and a tail inside one means that a home has its first part: below
                // either the data is there by rule (S1).
                if (lsn <= durable || Breaks(BrokenRules.SkipTailCrc)) continue;
                var request = new Judged();
                if (IsAhead(page.Span, at, count, header.UsedBytes, lsn)) fault = await HoldAsync(page, at, count, header.UsedBytes, lsn, judges: true);
                if (fault is not null) return $"log page {number}: {fault}";
                if (JudgeByHomes(page.Span, at, count, header) is { } known) request.IsGood = known;
                else CollectReads(page.Span, at, count, header.UsedBytes, request, reads);
                LetGo();
                judged.Add(lsn, request);
            }
        }

        return null;
    }

    private void CollectReads(
        ReadOnlySpan<byte> page, int at, int count, int used, Judged request,
        List<JudgedRun> reads)
    {
        for (int i = 0; i < count && RedoRecord.TryRead(page, at, used, out RedoRecord record) is null; i++)
        {
            at += record.Length;
            int done = 0;
            for (int r = 0; record.Kind == RedoKind.Write && r < record.RunCount; r++)
            {
                BlockRun run = record.Run(r);
                var crcs = new uint[run.Count];
                for (int b = 0; b < run.Count; b++) crcs[b] = record.CrcOf(done++);
                if (_blocks.Holds(run.Block) && _blocks.Holds(run.Block + (uint)run.Count - 1)) reads.Add(new JudgedRun(run, crcs, request));
                else request.IsGood = false;
            }
        }
    }

    /// <summary>Reads and checks, many at a time; a request of which one block is wrong is not good. Small writes lie behind
    /// one another on the store in the order they came, so that many of them are one read.</summary>
    private async ValueTask JudgeAsync(List<JudgedRun> runs)
    {
        runs.Sort((one, other) => one.Run.Block.CompareTo(other.Run.Block));
        var under = new ValueTask<bool>[JudgesAtOnce];
        int begun = 0, done = 0;
        for (int first = 0; first < runs.Count;)
        {
            int count = 1;
            while (first + count < runs.Count && runs[first + count].Run.Block == runs[first + count - 1].End
                && runs[first + count].End - runs[first].Run.Block <= JudgedBlocks) count++;
            if (begun - done == JudgesAtOnce) await under[done++ % JudgesAtOnce];
#pragma warning disable CA2012 // Several at once; each is awaited exactly once, above or below.
            under[begun++ % JudgesAtOnce] = JudgeTogetherAsync(runs, first, count);
#pragma warning restore CA2012
            first += count;
        }

        while (done < begun) await under[done++ % JudgesAtOnce];
    }

    /// <summary>Judges runs that lie together; those that do not match, and all if the read fails, once more one by one.</summary>
    private async ValueTask<bool> JudgeTogetherAsync(List<JudgedRun> runs, int first, int count)
    {
        uint start = runs[first].Run.Block;
        IoBuffer? buffer = count > 1 ? await _pool.RentAsync((int)(runs[first + count - 1].End - start) * Units.BlockBytes) : null;
        bool isRead = buffer is not null && await _file.ReadAsync(
            (ulong)start << Units.BlockShift, buffer.Slice(0, (int)(runs[first + count - 1].End - start) * Units.BlockBytes)) == IoStatus.Ok;
        var again = new List<JudgedRun>();
        for (int i = first; i < first + count; i++)
        {
            BlockRun run = runs[i].Run;
            if (!isRead || !AreGood(buffer!.Slice((int)(run.Block - start) * Units.BlockBytes, run.Count * Units.BlockBytes).Span, runs[i].Crcs, run.Count))
                again.Add(runs[i]);
        }

        buffer?.Return();
        foreach (JudgedRun one in again)
        {
            if (one.Request.IsGood && !await IsRunGoodAsync(one.Run, one.Crcs)) one.Request.IsGood = false;
        }

        return true;
    }

    /// <summary>False when the blocks do not match. Blocks that cannot be read say nothing about what was acknowledged: to
    /// drop the request could lose it in silence, to keep it gives errors for these blocks.</summary>
    private async ValueTask<bool> IsRunGoodAsync(BlockRun run, uint[] crcs)
    {
        IoBuffer buffer = await _pool.RentAsync(run.Count * Units.BlockBytes);
        Memory<byte> data = buffer.Slice(0, run.Count * Units.BlockBytes);
        bool isGood = true;
        for (int attempt = 0; attempt < 2; attempt++)
        {
            IoStatus status = await _file.ReadAsync((ulong)run.Block << Units.BlockShift, data);
            isGood = status != IoStatus.Ok || AreGood(data.Span, crcs, run.Count);
            if (status == IoStatus.Ok && isGood) break;
        }

        buffer.Return();
        return isGood;
    }

    private async ValueTask<string?> ReplayPageAsync(
        Memory<byte> page, ulong number, List<(int At, int Count)> chains, Dictionary<ulong, Judged> judged,
        HashSet<uint> suspects)
    {
        string? fault = RedoPageHeader.TryRead(page.Span, out RedoPageHeader header) ?? TryCutChains(page.Span, header, chains);
        if (fault is not null) return fault;
        foreach ((int at, int count) in chains)
        {
            ulong lsn = number * Units.BlockBytes + (ulong)at;
            bool data = !judged.TryGetValue(lsn, out Judged? request) || (request.IsGood && FollowsLength(page.Span, at, count, header.UsedBytes));
            fault = await HoldAsync(page, at, count, header.UsedBytes, lsn, judges: false);
            if (fault is not null) return fault;
            for (int i = 0, offset = at; i < count; i++)
            {
                fault = RedoRecord.TryRead(page.Span, offset, header.UsedBytes, out RedoRecord record)
                    ?? Replay(page.Span, offset, header.UsedBytes, lsn + (ulong)(offset - at), data, suspects);
                if (fault is not null) return fault;
                offset += record.Length;
            }

            LetGo();
        }

        return null;
    }

    /// <summary>The records of a page by request: offset of the first and how many. Reads every record once.</summary>
    private string? TryCutChains(ReadOnlySpan<byte> page, RedoPageHeader header, List<(int At, int Count)> chains)
    {
        chains.Clear();
        int at = RedoPageHeader.Size, first = at, count = 0;
        for (int i = 0; i < header.Count; i++)
        {
            string? fault = RedoRecord.TryRead(page, at, header.UsedBytes, out RedoRecord record);
            if (fault is not null) return fault;
            at += record.Length;
            count++;
            if (record.IsContinued && !Breaks(BrokenRules.SplitRequests)) continue;
            chains.Add((first, count));
            (first, count) = (at, 0);
        }

        return count == 0 ? null : "record: a chain is cut off";
    }

    /// <summary>
    /// What an earlier recovery, cut short behind some of its homes, made of a chain: true or false when a home shows it,
    /// else null. Without it rot between the two recoveries could leave a part of a request. True also when every home is
    /// ahead of the chain, so that nothing of it matters any more.
    /// </summary>
    private bool? JudgeByHomes(ReadOnlySpan<byte> page, int at, int count, RedoPageHeader header)
    {
        bool isPast = true;
        for (int i = 0; i < count; i++)
        {
            if (RedoRecord.TryRead(page, at, header.UsedBytes, out RedoRecord record) is not null) return null;
            ulong lsn = header.PageNumber * Units.BlockBytes + (ulong)at;
            at += record.Length;
            if (PageLsnOf(record) < lsn) isPast = false;
            if (record.Kind == RedoKind.Append && PageLsnOf(record) >= lsn)
            {
                // Behind an append that was dropped all others were.
                if (_recoveredAppends.TryGetValue(record.Slot, out AppendPage? appends)) return appends.LengthBytes >= record.AppendEntry.EndBytes;
                continue;
            }

            // A relaid one is alone: where its home has it, nothing of it matters.
            if (record.Kind is not (RedoKind.Write or RedoKind.Hole) || record.IsRelaid || PageLsnOf(record) < lsn) continue;
            Slot slot = _slots[record.Slot];
            if (slot.Kind != MetadataKind.Extent || slot.VolumeId != record.VolumeId || slot.Extent != record.Extent) continue;
            ReadOnlySpan<byte> entries = _slots.Entries(record.Slot);
            for (int r = 0; r < record.RunCount; r++)
            {
                BlockRun run = record.Run(r);
                for (int b = run.First; b < run.First + run.Count; b++)
                {
                    ulong version = MetadataPage.Entry(entries, b).Version;
                    if (version <= record.Version) return version == record.Version;
                }
            }
        }

        return isPast ? true : null;
    }

    private ulong PageLsnOf(RedoRecord record) => record.Slot < _geometry.SlotCount ? _slots[record.Slot].PageLsn : 0;

    private string? Replay(ReadOnlySpan<byte> page, int at, int used, ulong lsn, bool data, HashSet<uint> suspects)
    {
        string? fault = RedoRecord.TryRead(page, at, used, out RedoRecord record);
        if (fault is not null) return fault;
        if (record.Kind is RedoKind.Note or RedoKind.Epoch) return null;
        if (record.Slot >= _geometry.SlotCount) return "record: slot beyond the store";
        _slots.Reach(record.Slot);
        ref Slot slot = ref _slots[record.Slot];
        bool isStale = lsn <= slot.PageLsn;
        if (!isStale && IsOlder(slot, record) && LoseBase(record) is { } lost) return lost;
        // All that came after the page in hand is in the log, whatever the other home held.
        suspects.Remove(record.Slot);
        if (isStale) return null;
        switch (record.Kind)
        {
            case RedoKind.Write or RedoKind.Hole or RedoKind.PageImage or RedoKind.BeginPage or RedoKind.Rekey:
                if (record.BeginsPage)
                {
                    (slot.Kind, slot.VolumeId, slot.Extent, slot.MaxVersion) =
                        (MetadataKind.Extent, record.VolumeId, record.Extent, 0);
                    _slots.Entries(record.Slot).Clear();
                    ForgetHeads(record.Slot);
                    SetLayer(record.Slot, record.Kind == RedoKind.Write ? 0 : record.Layer);
                    if (record.Kind == RedoKind.PageImage) TakeEntries(record, _slots.Entries(record.Slot), ref slot);
                }

                bool isHere = slot.Kind == MetadataKind.Extent && slot.VolumeId == record.VolumeId && slot.Extent == record.Extent;
                if (!isHere && !TryBeginLost(record)) return "record: its slot belongs to another extent";
                if (record.Kind == RedoKind.Rekey) SetLayer(record.Slot, record.Layer);
                if (record.Kind is not (RedoKind.Write or RedoKind.Hole)) break;
                _nextVersion = Math.Max(_nextVersion, record.Version + 1);
                if (data) ReplayBlocks(record, ref slot);
                break;
            case RedoKind.Volume:
                fault = record.TryReadHead(out VolumeHeadLayout head);
                if (fault is not null) return fault;
                _slots.Detach(record.Slot);
                (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.VolumeHead, head.Head.Id, 0);
                ForgetHeads(record.Slot);
                _recoveredHeads[record.Slot] = head;
                break;
            case RedoKind.Snapshot:
                fault = record.TryReadSnapshot(out SnapshotLayout snapshot);
                if (fault is not null) return fault;
                (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.Snapshot, snapshot.Id.Volume, snapshot.Id.Layer);
                ForgetHeads(record.Slot);
                TakeSnapshot(record.Slot, WithoutDropped(snapshot));
                break;
            case RedoKind.VolumeDelete:
                if (!_recoveredHeads.TryGetValue(record.Slot, out VolumeHeadLayout dying))
                {
                    if (!IsLost(record.Slot)) return "record: deletes no volume";
                    slot.Kind = MetadataKind.Free;
                    break;
                }

                _recoveredHeads[record.Slot] = dying with { IsDeleting = true };
                break;
            case RedoKind.BadBlock:
                if (slot.Kind != MetadataKind.BadBlocks || record.Before == 0)
                {
                    _slots.Detach(record.Slot);
                    ForgetHeads(record.Slot);
                    _badSlots.Remove(record.Slot);
                }

                (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.BadBlocks, 0, 0);
                AddBadBlock(record.Slot, record.BadBlock);
                break;
            case RedoKind.BeginAppends:
                _slots.Detach(record.Slot);
                (slot.Kind, slot.VolumeId, slot.Extent) = (MetadataKind.Appends, record.VolumeId, record.Extent);
                ForgetHeads(record.Slot);
                TakeAppends(record.Slot, record.VolumeId, new AppendPage { LengthBytes = record.AppendedBytes });
                break;
            case RedoKind.Append:
                _nextVersion = Math.Max(_nextVersion, record.Version + 1);
                if (ReplayAppend(record, ref slot, data) is { } wrong) return wrong;
                if (!data) _appendsDropped.Add(record.VolumeId);
                break;
            case RedoKind.DropPage:
                slot.Kind = MetadataKind.Free;
                _slots.Detach(record.Slot);
                ForgetHeads(record.Slot);
                break;
        }

        Touch(record.Slot, lsn);
        return null;
    }

    private static void TakeEntries(RedoRecord record, Span<byte> entries, ref Slot slot)
    {
        record.Entries.CopyTo(entries);
        for (int i = 0; i < Units.BlocksPerExtent; i++) slot.MaxVersion = Math.Max(slot.MaxVersion, MetadataPage.Entry(entries, i).Version);
    }

    /// <summary>The page in hand lacks what the record was made on, and the log has it no more.</summary>
    private bool IsOlder(in Slot slot, RedoRecord record) => record.Before > slot.PageLsn && !Breaks(BrokenRules.OlderPage);

    private void ReplayBlocks(RedoRecord record, ref Slot slot)
    {
        Span<byte> entries = _slots.Entries(record.Slot);
        int crc = 0;
        for (int r = 0; r < record.RunCount; r++)
        {
            BlockRun run = record.Run(r);
            for (int i = 0; i < run.Count; i++)
            {
                bool hole = record.Kind == RedoKind.Hole;
                ulong version = record.IsRelaid ? RelaidVersion(entries, run.First + i, record.Version) : record.Version;
                MetadataPage.SetEntry(entries, run.First + i, new BlockEntry(
                    hole ? 0 : run.Block + (uint)i, hole ? 0 : record.CrcOf(crc++), version));
            }
        }

        slot.MaxVersion = Math.Max(slot.MaxVersion, record.Version);
    }
}
