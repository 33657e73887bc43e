using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Relayout of one extent: its blocks are read and verified, written to free places that lie together, and one record says
// where they are now. Nothing is locked meanwhile. A client that changes the extent wins: the record is written only if the
// page still says what it said when the reads began and nobody is about to change it. From there to the end of the record
// the extent is locked, for as long as one log page takes.
//
// The record goes into the log when its data is written, so that no client's answer waits for that data behind it. Neither
// is durable then: recovery keeps the old layout unless the whole new one is on the medium, as with any write, and the old
// places stay in quarantine until a durable page claims the record (S3).
public sealed partial class Store
{
    // Blocks that are read and written at a time: what stands in the way of a client that comes meanwhile.
    private const int RelayoutPieceBlocks = 32;

    // The copy lies in two runs if there is room for that within a few tries, else in more, up to 16 (64 KiB each in a full
    // extent) and a quarter of what there are now. Where much was overwritten at random free blocks lie in short runs, and
    // they grow together only while extents are laid out anew.
    private const int RelayoutRunsFew = 2, RelayoutRuns = 16, RelayoutTries = 8;
    private readonly byte[] _relayEntries = new byte[MetadataPage.EntriesBytes];
    private readonly BlockRun[] _relayTaken = new BlockRun[RelayoutRuns]; // First counts the blocks that hold data
    private int _relayTakenCount;

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<RelayoutStep> RelayAsync(uint slot)
    {
        Volume volume = _volumes[_slots[slot].VolumeId];
        if (!IsAlone(volume, slot)) return SkipRelayout(slot);
        uint extent = _slots[slot].Extent;
        ulong lsn = _slots[slot].PageLsn;
        // What is laid out anew must not outlive a request that a power cut takes: all that made the page is claimed.
        if (lsn > _claimedLsn && !Breaks(BrokenRules.RelayUnclaimed)) await ShareSpaceAsync();
        IoStatus status = await ReadyAsync(volume, extent);
        if (status is IoStatus.Corrupt or IoStatus.IoError) return SkipRelayout(slot);
        if (status != IoStatus.Ok || !IsStill(volume, extent, slot, lsn)) return RelayoutStep.Next;
        if (lsn > _claimedLsn && !Breaks(BrokenRules.RelayUnclaimed)) return RelayoutStep.Next;
        _slots.Entries(slot).CopyTo(_relayEntries);
        int count = CountToRelay();
        if (count < 0) return SkipRelayout(slot);
        if (_relayCredit < count) return RelayoutStep.Parked;
        int runs = Math.Clamp(_slots[slot].Cuts / 4, RelayoutRunsFew, RelayoutRuns);
        if (!TryTakeRuns(count, runs))
        {
            if (_quarantined == 0) return RelayoutStep.Parked;
            await ShareSpaceAsync();
            // What a read under way keeps in quarantine comes back with the next flush, which a store at rest does not make.
            if (!MayRelay || !TryTakeRuns(count, runs)) return _quarantined == 0 ? RelayoutStep.Parked : RelayoutStep.AllHot;
        }

        status = await CopyAsync(volume, extent, slot, lsn);
        if (status == IoStatus.Ok) status = await CommitRelayoutAsync(volume, extent, slot, lsn);
        if (status == IoStatus.Ok)
        {
            _blocksRelaid += (ulong)count;
            return RelayoutStep.Next;
        }

        if (State == StoreState.Online) GiveRuns();
        if (status == IoStatus.Conflict && MayRelay) _relayoutsLost++;
        return status == IoStatus.Corrupt ? SkipRelayout(slot) : status == IoStatus.NoSpace ? RelayoutStep.Parked : RelayoutStep.Next;
    }

    /// <summary>Until it is written again the extent stays as it is.</summary>
    private RelayoutStep SkipRelayout(uint slot)
    {
        if (!_slots[slot].IsScattered) return RelayoutStep.Next;
        SetScattered(slot, false);
        _relayoutsSkipped++;
        return RelayoutStep.Next;
    }

    /// <summary>Nothing has changed the extent since its page had this LSN.</summary>
    private bool IsStill(Volume volume, uint extent, uint slot, ulong lsn) =>
        MayRelay && !volume.IsDeleting && volume.Freezes == 0 && volume.Line.TryGetSlot(extent, out uint now) && now == slot
        && IsAlone(volume, slot)
        && (_slots[slot].PageLsn == lsn || Breaks(BrokenRules.RelayOverWrite));

    /// <summary>Nobody shares a block of the page: it is of the layer that is written to, and no page lies below it.</summary>
    private bool IsAlone(Volume volume, uint slot) => IsOwn(volume, slot) && _slots.Link(slot).Older == 0;

    /// <summary>Blocks that hold data; -1 when one of them is unknown.</summary>
    private int CountToRelay()
    {
        int count = 0;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            uint block = BlockAt(_relayEntries, i);
            if (block == MetadataPage.UnknownBlock) return -1;
            if (block != 0) count++;
        }

        return count;
    }

    /// <summary>Takes places in few runs; keeps as far from the reserve as the reserve is large.</summary>
    private bool TryTakeRuns(int count, int runs)
    {
        _relayTakenCount = 0;
        if (_blocks.Free < 2 * _reserve + (uint)count) return false;
        for (int most = RelayoutRunsFew; most <= runs; most *= 2)
        {
            // Each try goes on where the one before it ended.
            for (int i = 0; i < RelayoutTries; i++)
            {
                if (TryTakeWithin(count, most)) return true;
            }
        }

        return false;
    }

    private bool TryTakeWithin(int count, int most)
    {
        for (int done = 0; done < count;)
        {
            if (_relayTakenCount == most)
            {
                GiveRuns();
                return false;
            }

            uint block = _blocks.TakeRun(count - done, out int got);
            _relayTaken[_relayTakenCount++] = new BlockRun(done, got, block);
            done += got;
        }

        _relaying = (ulong)count;
        return true;
    }

    /// <summary>No record names them, so they are free at once.</summary>
    private void GiveRuns()
    {
        for (int i = 0; i < _relayTakenCount; i++) _blocks.Give(_relayTaken[i].Block, (uint)_relayTaken[i].Count);
        _relayTakenCount = 0;
        _relaying = 0;
    }

    /// <summary>Place of the n-th block that holds data, and how many of those behind it lie together with it.</summary>
    private uint PlaceOf(int index, out int together)
    {
        int at = 0;
        while (index >= _relayTaken[at].First + _relayTaken[at].Count) at++;
        together = _relayTaken[at].First + _relayTaken[at].Count - index;
        return _relayTaken[at].Block + (uint)(index - _relayTaken[at].First);
    }

    /// <summary>Reads the extent, verified, and writes it to its new places. Errors: Conflict (changed meanwhile), Corrupt (a
    /// block cannot be read), IoError (a place was not taken by the medium and is bad now), NoSpace (any other failure).</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> CopyAsync(Volume volume, uint extent, uint slot, ulong lsn)
    {
        IoBuffer buffer = await _pool.RentAsync(RelayoutPieceBlocks * Units.BlockBytes);
        IoStatus status = IoStatus.Ok;
        for (int first = 0, done = 0; first < Units.BlocksPerExtent && status == IoStatus.Ok; first += RelayoutPieceBlocks)
        {
            status = await ReadyAsync(volume, extent);
            if (status == IoStatus.Ok && !IsStill(volume, extent, slot, lsn)) status = IoStatus.Conflict;
            if (status != IoStatus.Ok) break;
            Memory<byte> piece = buffer.Slice(0, RelayoutPieceBlocks * Units.BlockBytes);
            status = (await ReadRunsAsync(slot, first, RelayoutPieceBlocks, piece)).Status;
            if (status != IoStatus.Ok) status = await FindBadAsync(volume, extent, slot, lsn, first, piece);
            for (int i = 0; i < RelayoutPieceBlocks && status == IoStatus.Ok;)
            {
                int count = MappedAt(first + i, RelayoutPieceBlocks - i);
                if (count > 0)
                {
                    uint block = PlaceOf(done, out int together);
                    count = Math.Min(count, together);
                    status = await WriteAnewAsync(block, piece.Slice(i << Units.BlockShift, count << Units.BlockShift));
                    done += count;
                }

                i += Math.Max(count, 1);
            }
        }

        buffer.Return();
        return status;
    }

    /// <summary>Blocks from an index on that hold data, at most <paramref name="max"/>.</summary>
    private int MappedAt(int index, int max)
    {
        int count = 0;
        while (count < max && BlockAt(_relayEntries, index + count) != 0) count++;
        return count;
    }

    /// <summary>A read of several blocks failed: finds those that are bad and takes them out of use as scrub does. They stay
    /// mapped until they are overwritten.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> FindBadAsync(Volume volume, uint extent, uint slot, ulong lsn, int first, Memory<byte> piece)
    {
        IoStatus found = IoStatus.Ok;
        for (int i = 0; i < RelayoutPieceBlocks; i++)
        {
            uint block = BlockAt(_relayEntries, first + i);
            if (block == 0) continue;
            IoStatus status = await ReadyAsync(volume, extent);
            if (status != IoStatus.Ok || !IsStill(volume, extent, slot, lsn)) return IoStatus.Conflict;
            status = (await ReadRunsAsync(slot, first + i, 1, piece.Slice(i << Units.BlockShift, Units.BlockBytes))).Status;
            if (status == IoStatus.Ok) continue;
            if (status is not (IoStatus.Corrupt or IoStatus.IoError)) return IoStatus.NoSpace;
            found = IoStatus.Corrupt;
            await RetireAsync(block);
        }

        return found; // Ok: each of them can be read after all, and has been
    }

    /// <summary>Writes to free places; what fails is tried again block by block, and a block that fails twice is bad.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> WriteAnewAsync(uint block, ReadOnlyMemory<byte> source)
    {
        _volatileBytes += (ulong)source.Length;
        _relayCredit -= source.Length >> Units.BlockShift;
        IoStatus status = await _file.WriteAsync((ulong)block << Units.BlockShift, source);
        if (status == IoStatus.Ok || State != StoreState.Online) return status == IoStatus.Ok ? status : IoStatus.NoSpace;
        _ioErrors++;
        status = IoStatus.Ok;
        for (int at = 0; at < source.Length; at += Units.BlockBytes, block++)
        {
            IoStatus one = await _file.WriteAsync((ulong)block << Units.BlockShift, source.Slice(at, Units.BlockBytes));
            if (one == IoStatus.Ok) continue;
            _ioErrors++;
            if (one != IoStatus.IoError || State != StoreState.Online) return IoStatus.NoSpace;
            status = IoStatus.IoError;
            await RetireAsync(block);
        }

        return status;
    }

    /// <summary>Says where the blocks are now, unless a client came first (Conflict).</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> CommitRelayoutAsync(Volume volume, uint extent, uint slot, ulong lsn)
    {
        while (IsRingFull || !IsReady(volume, extent))
        {
            await WaitForRing();
            IoStatus ready = await ReadyAsync(volume, extent);
            if (ready != IoStatus.Ok) return ready == IoStatus.Unavailable ? IoStatus.Conflict : IoStatus.Corrupt;
        }

        // From here to the record nothing is awaited.
        if (!IsStill(volume, extent, slot, lsn)) return IoStatus.Conflict;
        RangeLock? held = _locks.TryTake(volume.Head.Id, extent, 0, Units.BlocksPerExtent);
        if (held is null && !Breaks(BrokenRules.RelayOverWrite)) return IoStatus.Conflict;
        if (!Breaks(BrokenRules.RelayOverWrite)) Check.That(_slots.Entries(slot).SequenceEqual(_relayEntries));
        Pending record = NewPending(RedoKind.Write, volume, slot);
        record.Extent = extent;
        record.IsRelaid = true;
        record.Version = _slots[slot].MaxVersion;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            BlockEntry entry = MetadataPage.Entry(_relayEntries, i);
            if (entry.Block == 0) continue;
            AddBlock(record, i, PlaceOf(record.BlockCount, out _));
            record.Crcs[record.BlockCount++] = entry.Crc;
        }

        AppendBlocks(record);
        volume.InFlight++;
        IoStatus status = await record.Begin();
        EndFlight(volume);
        if (held is not null) _locks.Give(held);
        if (_volatileBytes >= _options.FlushBytes && !_isTidying) _loop.CallAtTurnEnd(_tidyHook);
        return status;
    }

    /// <summary>Version of a block that replay finds at a new place; <paramref name="otherwise"/> when what the page said is
    /// lost.</summary>
    private static ulong RelaidVersion(ReadOnlySpan<byte> entries, int index, ulong otherwise)
    {
        BlockEntry entry = MetadataPage.Entry(entries, index);
        return entry.Block is 0 or MetadataPage.UnknownBlock ? otherwise : entry.Version;
    }
}
