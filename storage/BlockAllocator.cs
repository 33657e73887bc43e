using System.Numerics;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// Which data blocks are free: a bitmap in RAM only (so it cannot disagree with the map), with a count of free blocks
/// for every 4,096. Prefers one contiguous run behind the last one; on a full store it gathers pieces, skipping full
/// groups by their count. Lives on one loop.
/// </summary>
internal sealed class BlockAllocator
{
    private const int GroupBlocks = 4096;
    private readonly ulong[] _used;
    private readonly ushort[] _freeInGroup;
    private readonly uint _start;
    private readonly uint _count;
    private uint _cursor;

    public BlockAllocator(uint start, uint count)
    {
        _start = start;
        _count = count;
        int groups = (int)((count + GroupBlocks - 1) / GroupBlocks);
        _used = new ulong[groups * (GroupBlocks / 64)];
        _freeInGroup = new ushort[groups];
        for (int g = 0; g < groups; g++) _freeInGroup[g] = (ushort)Math.Min(GroupBlocks, count - (uint)g * GroupBlocks);
        for (uint i = count; i < (uint)groups * GroupBlocks; i++) _used[i >> 6] |= 1UL << (int)(i & 63);
        Free = count;
    }

    /// <summary>Free blocks.</summary>
    public uint Free { get; private set; }

    public bool IsUsed(uint block) => (_used[(block - _start) >> 6] >> (int)((block - _start) & 63) & 1) != 0;

    public bool Holds(uint block) => block >= _start && block - _start < _count;

    /// <summary>Takes a named block; false when it is taken already.</summary>
    public bool TryTake(uint block)
    {
        if (IsUsed(block)) return false;
        Mark(block - _start, 1);
        return true;
    }

    public void Give(uint block, uint count)
    {
        for (uint i = block - _start; i < block - _start + count; i++)
        {
            ulong bit = 1UL << (int)(i & 63);
            Check.That((_used[i >> 6] & bit) != 0);
            _used[i >> 6] &= ~bit;
            _freeInGroup[i / GroupBlocks]++;
        }

        Free += count;
    }

    /// <summary>Takes a run of at most <paramref name="want"/> blocks; the caller made sure that one is free.</summary>
    public uint TakeRun(int want, out int got)
    {
        Check.That(Free > 0);
        uint at = _cursor;
        while (true)
        {
            if (at >= _count) at = 0;
            if (_freeInGroup[at / GroupBlocks] == 0)
            {
                at = (at / GroupBlocks + 1) * GroupBlocks;
                continue;
            }

            ulong free = ~_used[at >> 6] >> (int)(at & 63);
            if (free != 0) break;
            at = (at | 63) + 1;
        }

        at += (uint)BitOperations.TrailingZeroCount(~_used[at >> 6] >> (int)(at & 63));
        uint run = 1;
        while (run < want && at + run < _count && (_used[(at + run) >> 6] >> (int)((at + run) & 63) & 1) == 0) run++;
        Mark(at, run);
        _cursor = at + run;
        got = (int)run;
        return _start + at;
    }

    private void Mark(uint index, uint count)
    {
        for (uint i = index; i < index + count; i++)
        {
            _used[i >> 6] |= 1UL << (int)(i & 63);
            _freeInGroup[i / GroupBlocks]--;
        }

        Free -= count;
    }
}
