using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Reads: look up, read, verify every block (S11), once more on a mismatch.
public sealed partial class Store
{
    /// <summary>Reads whole blocks of one extent. Contiguous blocks are one file read.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<ReadResult> ReadBlocksAsync(
        Volume volume, uint extent, int first, int count, Memory<byte> target)
    {
        bool holes = false;
        for (int done = 0; done < count;)
        {
            // Looked up anew after every wait: the mapping may have moved, the page may have left RAM, a trim may have
            // dropped it.
            if (State != StoreState.Online || volume.IsDeleting) return IoStatus.Unavailable;
            if (!volume.TryGetSlot(extent, out uint slot))
            {
                if (volume.IsDoubtful) return IoStatus.Corrupt;
                target.Span[(done << Units.BlockShift)..].Clear();
                return new ReadResult(IoStatus.Ok, HasHoles: true);
            }

            IoStatus status = _slots.IsResident(slot) ? IoStatus.Ok : await ReadyAsync(volume, extent);
            if (status != IoStatus.Ok) return status;
            if (!volume.TryGetSlot(extent, out uint now) || now != slot) continue;
            int run = RunAt(slot, first + done, count - done, out uint block);
            Memory<byte> piece = target.Slice(done << Units.BlockShift, run << Units.BlockShift);
            if (block == 0)
            {
                piece.Span.Clear();
                holes = true;
            }
            else
            {
                status = await ReadRunAsync(slot, first + done, run, block, piece);
                if (status != IoStatus.Ok) return status;
            }

            done += run;
        }

        return new ReadResult(IoStatus.Ok, holes);
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
            else if (!AreGood(target.Span, crcs, count)) status = IoStatus.Corrupt;
            if (status is not (IoStatus.Corrupt or IoStatus.IoError)) break;
        }

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
