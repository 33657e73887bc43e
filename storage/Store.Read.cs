using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Reads: look up, read, verify every block (S11), once more on a mismatch.
public sealed partial class Store
{
    private readonly Stack<ValueTask<IoStatus>[]> _runReads = new();

    /// <summary>Reads whole blocks of one extent. Contiguous blocks are one file read; all runs are under way at once.</summary>
    /// <remarks>With a <paramref name="view"/> it shows a snapshot, else what is written.</remarks>
    internal ValueTask<ReadResult> ReadBlocksAsync(
        Volume volume, uint extent, int first, int count, Memory<byte> target, Line? view = null)
    {
        // A store that failed takes no change any more, but what it mapped can still be read and verified.
        if (State == StoreState.Closed || volume.IsDeleting || view is { IsClosed: true }) return new(IoStatus.Unavailable);
        if (!(view ?? volume.Line).TryGetSlot(extent, out uint slot))
        {
            if (volume.IsDoubtful) return new(IoStatus.Corrupt);
            target.Span.Clear();
            return new(new ReadResult(IoStatus.Ok, HasHoles: true));
        }

        _requests++;
        if (!_slots.IsResident(slot)) return ReadWhenReadyAsync(volume, extent, first, count, target, view);

        // What is read is the mapping of this moment; the blocks stay put until the reads are over (_readsIn).
        int run = RunAt(slot, first, count, out uint block);
        if (run < count)
        {
            HintRelayout(slot, count);
            return ReadRunsAsync(slot, first, count, target);
        }

        if (block != 0) return ReadOneRunAsync(slot, first, count, block, target);
        target.Span.Clear();
        return new(new ReadResult(IoStatus.Ok, HasHoles: true));
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadWhenReadyAsync(
        Volume volume, uint extent, int first, int count, Memory<byte> target, Line? view)
    {
        IoStatus status = await ReadyAsync(volume, extent, view);
        return status == IoStatus.Ok ? await ReadBlocksAsync(volume, extent, first, count, target, view) : status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadOneRunAsync(uint slot, int first, int count, uint block, Memory<byte> target) =>
        await ReadRunAsync(slot, first, count, block, target);

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadRunsAsync(uint slot, int first, int count, Memory<byte> target)
    {
        ValueTask<IoStatus>[] reads = _runReads.TryPop(out ValueTask<IoStatus>[]? spare)
            ? spare : new ValueTask<IoStatus>[Units.BlocksPerExtent];
        int started = 0;
        bool holes = false;
        for (int done = 0; done < count;)
        {
            int run = RunAt(slot, first + done, count - done, out uint block);
            Memory<byte> piece = target.Slice(done << Units.BlockShift, run << Units.BlockShift);
            if (block == 0)
            {
                piece.Span.Clear();
                holes = true;
            }
            else
            {
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
                reads[started++] = ReadRunAsync(slot, first + done, run, block, piece);
#pragma warning restore CA2012
            }

            done += run;
        }

        IoStatus status = IoStatus.Ok;
        for (int i = 0; i < started; i++)
        {
            IoStatus part = await reads[i];
            if (status == IoStatus.Ok) status = part;
        }

        _runReads.Push(reads);
        return new ReadResult(status, holes);
    }

    private int RunAt(uint slot, int first, int max, out uint block)
    {
        ReadOnlySpan<byte> entries = _slots.Entries(slot);
        block = MetadataPage.Entry(entries, first).Block;
        int run = 1;
        while (run < max && MetadataPage.Entry(entries, first + run).Block == (block == 0 ? 0 : block + (uint)run)) run++;
        return run;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ReadRunAsync(uint slot, int first, int count, uint block, Memory<byte> target)
    {
        if (block == MetadataPage.UnknownBlock) return IoStatus.Corrupt;
        uint[] crcs = _crcPool.TryPop(out uint[]? spare) ? spare : new uint[Units.BlocksPerExtent];
        for (int i = 0; i < count; i++) crcs[i] = MetadataPage.Entry(_slots.Entries(slot), first + i).Crc;
        ulong generation = _generation;
        _readsIn[generation % ReadGenerations]++;
        IoStatus status = IoStatus.Ok;
        for (int attempt = 0; attempt < 2; attempt++)
        {
            status = await _file.ReadAsync((ulong)block << Units.BlockShift, target);
            if (status != IoStatus.Ok) _ioErrors++;
            else if (!AreGood(target.Span, crcs, count) && !Breaks(BrokenRules.SkipReadCrc)) status = IoStatus.Corrupt;
            if (status is not (IoStatus.Corrupt or IoStatus.IoError)) break;
        }

        // After a failed flush the medium may have gone back to what it held before.
        if (status is (IoStatus.Corrupt or IoStatus.IoError) && State == StoreState.Failed) status = IoStatus.Unavailable;
        if (status == IoStatus.Corrupt) _checksumErrors++;
        _readsIn[generation % ReadGenerations]--;
        _crcPool.Push(crcs);
        return status;
    }

    private readonly Stack<uint[]> _crcPool = new();

    private static bool AreGood(ReadOnlySpan<byte> data, uint[] crcs, int count)
    {
        for (int i = 0; i < count; i++)
        {
            if (Crc32C.Compute(data.Slice(i << Units.BlockShift, Units.BlockBytes)) != crcs[i]) return false;
        }

        return true;
    }
}
