using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

// Blocks that the medium does not take or keep (engine B1.5). A write that fails is tried again block by block; a block
// that fails twice is bad: the log says so, it never comes back into use, and the request's data goes to other blocks
// under a second chain of records that says all of it again. The first chain stays in the log and counts for nothing but
// the pages that it begins. It is applied in one go with the second one and with all between, so no durable claim can lie
// between the two, and recovery drops its data by the checksums.
public sealed partial class Store
{
    private readonly SortedDictionary<uint, List<uint>> _badSlots = [];

    // Places that a request tries before the medium is given up.
    private const int MovesMax = 4;

    private void RetryByBlock(DataWrite write)
    {
        ulong offset = write.Offset;
        ReadOnlyMemory<byte> source = write.Source;
        Pending record = write.Record;
        int blocks = source.Length >> Units.BlockShift;
        record.DataPending += blocks - 1;
        // The first one last: it is the object that the caller let go of.
        for (int i = blocks - 1; i >= 0; i--)
        {
            DataWrite one = i == 0 ? write : new DataWrite(this);
            one.Record = record;
            one.Offset = offset + ((ulong)i << Units.BlockShift);
            one.Source = source.Slice(i << Units.BlockShift, Units.BlockBytes);
            one.IsRetry = true;
            one.Start(_file.WriteAsync(one.Offset, one.Source));
        }
    }

    private void NoteBadBlock(DataWrite write)
    {
        _blocks.Retire((uint)(write.Offset >> Units.BlockShift));
        write.Record.First.HasBadBlocks = true;
    }

    /// <summary>Says a chain again, with other blocks in the place of the bad ones, and the bad ones in front of it.</summary>
    private void MoveChain(Pending first)
    {
        Pending end = first;
        uint bad = CountBad(first);
        while (end.IsContinued)
        {
            end = end.Next!;
            bad += CountBad(end);
        }

        if (first.Moves == MovesMax || _blocks.Free < bad || RingOccupancy > 0.98)
        {
            Fail($"writing data failed at {first.Moves + 1} places, and there is no other left for it");
            return;
        }

        int length = 0;
        var moved = new List<Pending>();
        for (Pending record = first; ; record = record.Next!)
        {
            RetireAll(record);
            moved.Add(Again(record));
            length += LengthOf(moved[^1]);
            if (!record.IsContinued) break;
        }

        Reserve(length);
        foreach (Pending record in moved)
        {
            record.First = moved[0];
            record.DataPending = 1; // held until all is submitted
            AppendBlocks(record);
        }

        moved[^1].Origin = end.Origin ?? end;
        moved[0].Moves = first.Moves + 1;
        first.HasBadBlocks = false;
        first.Moved = moved[0];
        // All of it again: what is at its place already costs little.
        foreach (Pending record in moved) StartData(record);
        foreach (Pending record in moved) record.DataPending--;
        if (moved[0].HasBadBlocks && !IsDataPending(moved[0])) MoveChain(moved[0]);
    }

    private async Task NoteBadBlockAsync(uint block) => await LogBadBlock(block);

    private uint CountBad(Pending record)
    {
        uint bad = 0;
        for (int r = 0; r < record.RunCount && record.Kind == RedoKind.Write; r++)
        {
            BlockRun run = record.Runs[r];
            for (uint i = 0; i < run.Count; i++)
            {
                if (_blocks.IsBad(run.Block + i)) bad++;
            }
        }

        return bad;
    }

    private void RetireAll(Pending record)
    {
        for (int r = 0; r < record.RunCount && record.Kind == RedoKind.Write; r++)
        {
            BlockRun run = record.Runs[r];
            for (uint i = 0; i < run.Count; i++)
            {
                if (_blocks.IsBad(run.Block + i)) _ = NoteBadBlockAsync(run.Block + i);
            }
        }
    }

    /// <summary>The same record with other blocks where its own are bad.</summary>
    private Pending Again(Pending record)
    {
        Pending again = NewPending(record.Kind, record.Volume, record.Slot);
        again.Extent = record.Extent;
        again.IsContinued = record.IsContinued;
        again.Source = record.Source;
        again.Version = record.Version;
        again.Entry = record.Entry;
        again.BlockCount = record.BlockCount;
        record.Crcs.AsSpan(0, record.BlockCount).CopyTo(again.Crcs);
        for (int r = 0; r < record.RunCount; r++)
        {
            BlockRun run = record.Runs[r];
            if (record.Kind != RedoKind.Write)
            {
                again.Runs[again.RunCount++] = run;
                continue;
            }

            for (int i = 0; i < run.Count; i++)
            {
                uint block = run.Block + (uint)i;
                AddBlock(again, run.First + i, _blocks.IsBad(block) ? _blocks.TakeRun(1, out _) : block);
            }
        }

        return again;
    }

    private static void AddBlock(Pending record, int index, uint block)
    {
        if (record.RunCount > 0)
        {
            ref BlockRun last = ref record.Runs[record.RunCount - 1];
            if (last.First + last.Count == index && last.Block + (uint)last.Count == block)
            {
                last = last with { Count = last.Count + 1 };
                return;
            }
        }

        record.Runs[record.RunCount++] = new BlockRun(index, 1, block);
    }

    /// <summary>A moved chain is complete when everything up to the end of what says it again is: then all of that is applied
    /// in one go.</summary>
    private bool IsMoveComplete(Pending first)
    {
        Pending target = first.Moved!;
        if (!first.Page.IsDone) return false;
        for (Pending? chain = NextChain(first); chain is not null; chain = NextChain(chain))
        {
            if (!IsComplete(chain)) return false;
            if (ReferenceEquals(chain, target)) return true;
        }

        return false;
    }

    private static Pending? NextChain(Pending record)
    {
        while (record.IsContinued) record = record.Next!;
        return record.Next;
    }

    /// <summary>Takes a block that did not keep its content out of use, for scrub. It stays mapped until it is overwritten.</summary>
    private async ValueTask RetireAsync(uint block)
    {
        await WaitForRing();
        if (State != StoreState.Online || !_blocks.Retire(block)) return;
        await LogBadBlock(block);
    }

    /// <summary>Puts a bad block into the log, and from there into a page of bad blocks. Without a slot for it the block is
    /// bad until the store is closed.</summary>
    private ValueTask<IoStatus> LogBadBlock(uint block)
    {
        uint? slot = null;
        foreach ((uint number, List<uint> blocks) in _badSlots)
        {
            if (blocks.Contains(block)) return new(IoStatus.Ok);
            if (blocks.Count < MetadataPage.BadBlocksMax - Units.BlocksPerExtent) slot = number; // some may be under way
        }

        if (slot is null)
        {
            if (!_slots.TryTake(MetadataKind.BadBlocks, 0, (uint)_badSlots.Count, out uint taken)) return new(IoStatus.NoSpace);
            _badSlots.Add(taken, []);
            slot = taken;
        }

        Pending record = NewPending(RedoKind.BadBlock, null, slot.Value);
        record.Runs[0] = new BlockRun(0, 1, block);
        Span<byte> target = Append(record, RedoRecord.BadBlockLength);
        RedoRecordWriter.BadBlock(target, slot.Value, record.Before, block);
        return record.Begin();
    }

    private void AddBadBlock(uint slot, uint block)
    {
        if (!_badSlots.TryGetValue(slot, out List<uint>? blocks)) _badSlots.Add(slot, blocks = []);
        if (!blocks.Contains(block)) blocks.Add(block);
    }

    private void WriteBadBlocks(uint slot, Span<byte> target)
    {
        List<uint> blocks = _badSlots[slot];
        for (int i = 0; i < blocks.Count; i++) BinaryPrimitives.WriteUInt32LittleEndian(target[(i * sizeof(uint))..], blocks[i]);
    }

    private void ReadBadBlocks(uint slot, ReadOnlySpan<byte> source)
    {
        _badSlots[slot] = [];
        for (int i = 0; i < MetadataPage.BadBlocksMax; i++)
        {
            uint block = MetadataPage.BadBlock(source, i);
            if (block != 0) AddBadBlock(slot, block);
        }
    }
}
