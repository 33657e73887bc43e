using BlockServer.Core;

namespace BlockServer.Storage;

// Who may take the last blocks and slots (S10). What replaces blocks of its own takes new ones for a moment only: it may use most of
// the reserve, so overwriting goes on when the store is full. What grows keeps away from the reserve and from what is promised to
// others; new extents end at the level of write protection, so that what exists can be worked with. What a volume was promised is
// its own: nobody else's growth takes it, and its own growth is never refused while it lasts.
public sealed partial class Store
{
    // More often than this a change does not wait for blocks to come back: somebody reads them without end.
    private const int SpaceWaitsMax = 1000;

    // Checkpoints that a change waits for although no slot is known to come back: something is perhaps being deleted.
    private const int SlotWaitsMax = 3;

    private readonly uint _blocksKept;
    private readonly uint _slotsKept;
    private ulong _returning;
    private ulong _relaying; // blocks that a relayout holds besides those that it will give back
    private ulong _blocksPromised;
    private ulong _slotsPromised;

    /// <summary>Blocks that are free when all that is in the log is applied and durable.</summary>
    private ulong BlocksFreeSoon => _blocks.Free + _quarantined + _returning + (Breaks(BrokenRules.RelayTakesPromises) ? 0 : _relaying);

    /// <inheritdoc/>
    public async ValueTask<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced)
    {
        if (TryPromise(volumeId, bytes, isForced, out bool isMore) is var status and not IoStatus.Ok) return status;
        // What was given back a moment ago a power cut takes back, and deletions that it interrupts have given back less: a promise
        // that counts on them is one when they are durable. Whatever comes later in the log finds the promise made.
        return isMore && !isForced && !Breaks(BrokenRules.PromiseEarly) ? await EnsureDurable(_appliedLsn) : IoStatus.Ok;
    }

    private IoStatus TryPromise(uint volumeId, ulong bytes, bool isForced, out bool isMore)
    {
        isMore = false;
        if (Refusal is { } refusal) return refusal;
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
        (ulong blocks, uint slots) before = (volume.PromisedBlocks, volume.PromisedSlots);
        volume.PromisedBlocks = (bytes + Units.BlockBytes - 1) >> Units.BlockShift;
        volume.PromisedSlots = (uint)((bytes + Units.ExtentBytes - 1) >> Units.ExtentShift);
        NotePromise(volume);
        bool isTooMuch = BlocksFreeSoon < _blocksKept + _blocksPromised || SlotsFreeSoon < _slotsKept + _slotsPromised;
        isMore = volume.PromisedBlocks > before.blocks;
        if (isForced || !isMore || !isTooMuch) return IoStatus.Ok;
        (volume.PromisedBlocks, volume.PromisedSlots) = before;
        NotePromise(volume);
        return IoStatus.NoSpace;
    }

    /// <summary>What the volume takes, or was promised, has changed.</summary>
    private void NotePromise(Volume volume)
    {
        _blocksPromised -= volume.BlocksLeft;
        _slotsPromised -= volume.SlotsLeft;
        ulong used = volume.UsedBlocks + (Breaks(BrokenRules.PromiseTwice) ? 0 : volume.GrowthInLog);
        volume.BlocksLeft = volume.PromisedBlocks > used ? volume.PromisedBlocks - used : 0;
        volume.SlotsLeft = volume.PromisedSlots > volume.Pages ? volume.PromisedSlots - volume.Pages : 0;
        _blocksPromised += volume.BlocksLeft;
        _slotsPromised += volume.SlotsLeft;
    }

    /// <summary>A write of whole blocks of one extent goes into the log: what it will add and give back is known from now on.</summary>
    private void NoteGrowth(Pending record, int own)
    {
        Volume volume = record.Volume!;
        record.Returning = own;
        record.Growth = record.BlockCount - own;
        _returning += (ulong)own;
        volume.GrowthInLog += (ulong)record.Growth;
        if (volume.PromisedBlocks != 0) NotePromise(volume);
    }

    /// <summary>A record is applied, or another one says it again.</summary>
    private void EndGrowth(Pending record)
    {
        Volume volume = record.Volume!;
        _returning -= (ulong)record.Returning;
        volume.GrowthInLog -= (ulong)record.Growth;
        record.Returning = record.Growth = 0;
        if (volume.PromisedBlocks != 0) NotePromise(volume);
    }

    /// <summary>Nobody needs to look closer before <paramref name="blocks"/> are taken.</summary>
    private bool IsRoomy(int blocks) => _blocks.Free >= _blocksKept + _blocksPromised + (uint)blocks;

    /// <summary>The volume may take as much more as this change adds. Its pages are in RAM.</summary>
    private bool MayGrow(Volume volume, ulong first, int count, int blocks)
    {
        uint growth = (uint)Math.Max(0, blocks - (blocks < count ? OwnEnds(volume, first, count, blocks) : OwnBlocks(volume, first, count)));
        if (growth == 0) return true;
        if (volume.BlocksLeft >= growth) return BlocksFreeSoon >= _reserve + growth;
        bool isNew = !volume.Line.TryGetSlot(ExtentOf(first), out _) || !volume.Line.TryGetSlot(ExtentOf(first + (ulong)count - 1), out _);
        if (Breaks(BrokenRules.IgnorePromises)) return BlocksFreeSoon >= (isNew ? _blocksKept : _reserve) + growth;
        return BlocksFreeSoon >= (isNew ? _blocksKept : _reserve) + (_blocksPromised - volume.BlocksLeft) + growth;
    }

    /// <summary>Blocks that are there for a change that may be made, at this moment.</summary>
    private bool HasBlocks(int blocks) => _blocks.Free >= _reserve / 4 + (uint)blocks;

    /// <summary>And they will be when what is under way has ended.</summary>
    private bool WillHaveBlocks(int blocks) => BlocksFreeSoon >= _reserve / 4 + (uint)blocks && BlocksFreeSoon > _blocks.Free;

    /// <summary>How many of the blocks a change would replace and give back.</summary>
    private int OwnBlocks(Volume volume, ulong first, int count)
    {
        int own = 0;
        for (int done = 0; done < count;)
        {
            ulong at = first + (ulong)done;
            int here = LowBlocks(at, count - done);
            if (volume.Line.TryGetSlot(ExtentOf(at), out uint slot) && IsOwn(volume, slot)) own += OwnBlocks(slot, IndexOf(at), here);
            done += here;
        }

        return own;
    }

    private int OwnBlocks(uint slot, int index, int count)
    {
        ReadOnlySpan<byte> entries = _slots.Entries(slot);
        ulong shared = SharedUpTo(slot);
        int own = 0;
        for (int i = index; i < index + count; i++)
        {
            BlockEntry entry = MetadataPage.Entry(entries, i);
            if (entry.Block is not (0 or MetadataPage.UnknownBlock) && entry.Version > shared) own++;
        }

        return own;
    }

    /// <summary>Of a change that writes only the blocks at its ends.</summary>
    private int OwnEnds(Volume volume, ulong first, int count, int blocks) =>
        Math.Max(0, OwnBlocks(volume, first, 1) + OwnBlocks(volume, first + (ulong)count - 1, 1) - (2 - blocks));

    /// <summary>Slots that are free when the tombstones of what is gone are home.</summary>
    private uint SlotsFreeSoon => _slots.FreeCount + _slots.Returning;

    /// <summary>There are slots for the pages that a change of the blocks begins, and the volume may take them.</summary>
    private bool HasSlots(Volume volume, ulong first, int count, bool begins) => HasSlots(volume, first, count, begins, _slots.FreeCount);

    /// <summary>And there will be when checkpoints have brought back what is gone.</summary>
    private bool WillHaveSlots(Volume volume, ulong first, int count, bool begins) =>
        _slots.Returning > 0 && HasSlots(volume, first, count, begins, SlotsFreeSoon);

    private bool HasSlots(Volume volume, ulong first, int count, bool begins, uint free)
    {
        uint low = ExtentOf(first), high = ExtentOf(first + (ulong)count - 1);
        uint pages = (uint)PagesToBegin(volume, low, high, begins);
        if (pages == 0) return true;
        if (volume.SlotsLeft >= pages) return free >= pages;
        bool isNew = !volume.Line.TryGetSlot(low, out _) || !volume.Line.TryGetSlot(high, out _);
        return free >= (isNew ? _slotsKept : 0) + (_slotsPromised - volume.SlotsLeft) + pages;
    }

    /// <summary>There are slots for heads, besides those that are promised.</summary>
    private bool HasSlotsForHeads(uint count) => _slots.FreeCount >= count + _slotsPromised;

    /// <summary>Waits for slots for heads; false when none come back. The caller takes them at once.</summary>
    private async ValueTask<bool> WaitForSlotsAsync(uint count)
    {
        for (int waits = 0; !HasSlotsForHeads(count);)
        {
            bool willCome = _slots.Returning > 0 && SlotsFreeSoon >= count + _slotsPromised;
            if (!MayWaitForSlots(willCome, waits)) return false;
            if (await WaitForCheckpoint() || !willCome) waits++;
        }

        return true;
    }

    /// <summary>A checkpoint may give slots back. One cycle takes the pages that were changed first, and may be over before it comes
    /// to a tombstone: where enough will come, only cycles that gave some back, to others then, are counted.</summary>
    private bool MayWaitForSlots(bool willCome, int waits) =>
        State == StoreState.Online && (_dirty.Count > 0 || _isCheckpointing) && waits < (willCome ? SpaceWaitsMax : SlotWaitsMax);

    /// <summary>Counts the pages of each volume; at the end of recovery.</summary>
    private void CountPages()
    {
        foreach (Volume volume in _volumes.Values) volume.Pages = 0;
        for (uint slot = 0; slot < _slots.Next; slot++)
        {
            if (_slots[slot].Kind == MetadataKind.Extent) _volumes[_slots[slot].VolumeId].Pages++;
        }
    }
}
