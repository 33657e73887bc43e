using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>A held or awaited lock on a run of blocks of one extent.</summary>
internal sealed class RangeLock : LoopOperation<bool>
{
    public uint VolumeId;
    public uint Extent;
    public int First;
    public int Count;
    public bool IsHeld;
    public RangeLock? Next;

    public bool Meets(RangeLock other) =>
        VolumeId == other.VolumeId && Extent == other.Extent
        && First < other.First + other.Count && other.First < First + Count;
}

/// <summary>Locks on blocks, granted first come first served, so that overlapping changes happen one after the other.
/// Lives on one loop.</summary>
internal sealed class RangeLocks
{
    private const int Buckets = 1024;
    private readonly RangeLock?[] _heads = new RangeLock?[Buckets];
    private RangeLock? _spare;

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<RangeLock> TakeAsync(uint volumeId, uint extent, int first, int count)
    {
        RangeLock wanted = Spare(volumeId, extent, first, count);
        wanted.IsHeld = Add(wanted);
        if (!wanted.IsHeld) await wanted.Begin();
        return wanted;
    }

    /// <summary>Takes the lock if nobody holds any of it or waits for it; else null.</summary>
    public RangeLock? TryTake(uint volumeId, uint extent, int first, int count)
    {
        RangeLock wanted = Spare(volumeId, extent, first, count);
        wanted.IsHeld = Add(wanted);
        if (wanted.IsHeld) return wanted;
        Give(wanted);
        return null;
    }

    public void Give(RangeLock held)
    {
        int bucket = Bucket(held.VolumeId, held.Extent);
        ref RangeLock? at = ref _heads[bucket];
        while (at != held) at = ref at!.Next;
        at = held.Next;
        held.IsHeld = false;
        held.Next = _spare;
        _spare = held;
        while (NextGrantable(_heads[bucket]) is { } next)
        {
            next.IsHeld = true;
            next.Complete(true);
        }
    }

    private RangeLock Spare(uint volumeId, uint extent, int first, int count)
    {
        RangeLock wanted = _spare ?? new RangeLock();
        _spare = wanted.Next;
        wanted.Next = null;
        (wanted.VolumeId, wanted.Extent, wanted.First, wanted.Count) = (volumeId, extent, first, count);
        return wanted;
    }

    /// <summary>Puts a lock at the end of the list; true when it meets none in front of it.</summary>
    private bool Add(RangeLock wanted)
    {
        ref RangeLock? end = ref _heads[Bucket(wanted.VolumeId, wanted.Extent)];
        bool free = true;
        while (end is not null)
        {
            free &= !end.Meets(wanted);
            end = ref end.Next;
        }

        end = wanted;
        return free;
    }

    private static RangeLock? NextGrantable(RangeLock? head)
    {
        for (RangeLock? waiting = head; waiting is not null; waiting = waiting.Next)
        {
            if (waiting.IsHeld) continue;
            RangeLock? before = head;
            while (before != waiting && !before!.Meets(waiting)) before = before.Next;
            if (before == waiting) return waiting;
        }

        return null;
    }

    private static int Bucket(uint volumeId, uint extent) => (int)((volumeId * 2654435761 + extent * 40503) % Buckets);
}
