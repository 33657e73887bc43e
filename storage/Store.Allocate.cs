using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

// Giving holes a block of zeros without touching what is there: what a thick volume is made of.
public sealed partial class Store
{
    /// <summary>Gives every hole of a range within one extent a block of zeros; allocated blocks stay as they are, whoever
    /// writes at the same time. Each run of holes is a change of its own.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<IoStatus> AllocateAsync(Volume volume, ulong offset, int length, ReadOnlyMemory<byte> zeros)
    {
        if (Refusal is { } refusal) return refusal;
        ulong at = offset >> Units.BlockShift, end = at + (ulong)BlocksOf(offset, length);
        _active++;
        RangeLock held = await TakeLowAsync(volume, at, (int)(end - at));
        IoStatus status = IoStatus.Ok;
        while (true)
        {
            // The page may leave RAM at every wait; the mapping cannot change, because the blocks are locked.
            status = await ReadyAsync(volume, ExtentOf(at));
            if (status != IoStatus.Ok) break;
            while (at < end && !IsHoleAt(volume, at)) at++;
            if (at == end) break;
            int run = 1;
            while (at + (ulong)run < end && IsHoleAt(volume, at + (ulong)run)) run++;
            status = await MakeRoomAsync(volume, at, run, run, begins: true);
            if (status == IoStatus.Ok) status = Reach(volume, at << Units.BlockShift, 1, isBounded: true);
            // From here to the end of the chain nothing is awaited.
            if (status == IoStatus.Ok && IsDoubtfulPart(volume, at, run)) status = IoStatus.Corrupt;
            if (status == IoStatus.Ok && !HasSlots(volume, at, run, begins: true)) status = IoStatus.NoSpace;
            if (status != IoStatus.Ok) break;
            ChainWrite(volume, at, zeros[..(run << Units.BlockShift)]);
            volume.InFlight++;
            status = await StartChain();
            EndFlight(volume);
            at += (ulong)run;
            if (status != IoStatus.Ok || at == end) break;
        }

        _locks.Give(held);
        _active--;
        return status;
    }
}
