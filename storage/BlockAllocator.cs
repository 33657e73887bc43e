using System.Numerics;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// Which data blocks are free: a bitmap in RAM only (so it cannot disagree with the map). Two <see cref="BitTree"/> over
/// its words say which of them are free in part and which as a whole, so that no request walks over what is used, however
/// full the store is. Large and small requests go on behind their own last run: small writes in between do not cut a
/// sequential one. Once whole free words are scarce, small requests fill holes and leave them to the large ones. Bad
/// blocks never come back. Lives on one loop.
/// </summary>
internal sealed class BlockAllocator
{
    // From here on a request is worth a search for a whole free word.
    private const int LargeBlocks = 16;

    // Words that one request looks into for a better run than the first one.
    private const int Probes = 8;

    // Below a quarter of the store, whole free words are for large requests.
    private const int WholesSpared = 4;
    private readonly ulong[] _used;
    private readonly BitTree _holes; // words that are free in part
    private readonly BitTree _wholes; // words that are free as a whole
    private readonly HashSet<uint> _bad = [];
    private readonly uint _start;
    private readonly uint _count;
    private uint _wholeCount;
    private bool _isLoading;
    private uint _smallCursor;
    private uint _largeCursor;

    /// <summary>All of <paramref name="count"/> blocks from <paramref name="start"/> on are free.</summary>
    public BlockAllocator(uint start, uint count)
    {
        _start = start;
        _count = count;
        int words = (int)((count + 63UL) / 64);
        _used = new ulong[words];
        _holes = new BitTree(words);
        _wholes = new BitTree(words);
        if (count % 64 != 0) _used[^1] = ulong.MaxValue << (int)(count % 64);
        for (int word = 0; word < words; word++) Enter(word);
        Free = count;
        _largeCursor = count / 2 / 64 * 64; // apart from the small ones as long as there is room
    }

    /// <summary>Tests only: what comes back is given out first.</summary>
    public bool PrefersReturned { get; init; }

    /// <summary>Free blocks.</summary>
    public uint Free { get; private set; }

    /// <summary>Blocks that are never given out again.</summary>
    public uint Bad => (uint)_bad.Count;

    /// <summary>Bytes of the bitmap and what finds its way in it.</summary>
    public ulong Bytes => (ulong)_used.Length * sizeof(ulong) + _holes.Bytes + _wholes.Bytes;

    /// <summary>True when the block is taken or bad.</summary>
    public bool IsUsed(uint block) => (_used[(block - _start) >> 6] >> (int)((block - _start) & 63) & 1) != 0;

    /// <summary>True when the block lies in the data area.</summary>
    public bool Holds(uint block) => block >= _start && block - _start < _count;

    /// <summary>True when the block was retired.</summary>
    public bool IsBad(uint block) => _bad.Contains(block);

    /// <summary>Takes a named block; false when it is taken already.</summary>
    public bool TryTake(uint block)
    {
        if (IsUsed(block)) return false;
        if (!_isLoading)
        {
            Mark(block - _start, 1);
            return true;
        }

        _used[(block - _start) >> 6] |= 1UL << (int)((block - _start) & 63);
        Free--;
        return true;
    }

    /// <summary>From here to <see cref="EndLoad"/> blocks are taken by name only, many of them and none given back: what finds
    /// free ones is brought up to date once, at the end. Called when nothing is taken.</summary>
    public void BeginLoad()
    {
        Check.That(!_isLoading && Free == _count);
        _isLoading = true;
    }

    /// <summary>Free blocks can be found again.</summary>
    public void EndLoad()
    {
        Check.That(_isLoading);
        _isLoading = false;
        for (int word = 0; word < _used.Length; word++)
        {
            if (_used[word] == 0) continue;
            // As it was listed when nothing was taken: the last one may have ended early.
            if (word == _used.Length - 1 && _count % 64 != 0)
            {
                _holes.Clear(word);
            }
            else
            {
                _wholes.Clear(word);
                _wholeCount--;
            }

            Enter(word);
        }
    }

    /// <summary>Takes a block out of use for ever: now when it is free, else when it is given back. Answers false when it
    /// was bad already.</summary>
    public bool Retire(uint block)
    {
        Check.That(Holds(block));
        if (!_bad.Add(block)) return false;
        TryTake(block);
        return true;
    }

    /// <summary>Gives blocks back; bad ones stay taken.</summary>
    public void Give(uint block, uint count)
    {
        if (PrefersReturned) _smallCursor = _largeCursor = block - _start;
        if (_bad.Count > 0)
        {
            for (uint i = block; i < block + count; i++)
            {
                if (!_bad.Contains(i)) GiveGood(i - _start, 1);
            }

            return;
        }

        GiveGood(block - _start, count);
    }

    /// <summary>Takes a run of at most <paramref name="want"/> blocks; the caller made sure that one is free.</summary>
    public uint TakeRun(int want, out int got)
    {
        Check.That(Free > 0 && want > 0 && !_isLoading);
        bool isLarge = want >= LargeBlocks;
        bool sparesWholes = !isLarge && _wholeCount < _used.Length / WholesSpared;
        uint at = isLarge ? _largeCursor : _smallCursor;
        if (at >= _count) at = 0;
        int run = sparesWholes && _used[at >> 6] == 0 ? 0 : RunAt(at, want);
        if (run < want && isLarge) TryWholes(ref at, ref run, want);
        if (run < want) TryHoles(ref at, ref run, want, sparesWholes);
        Mark(at, (uint)run);
        if (isLarge) _largeCursor = at + (uint)run;
        else _smallCursor = at + (uint)run;
        got = run;
        return _start + at;
    }

    /// <summary>The next whole free word, with the free blocks around it.</summary>
    private void TryWholes(ref uint at, ref int run, int want)
    {
        int word = Next(_wholes, (int)(at >> 6));
        if (word < 0) return;
        uint begin = (uint)word * 64;
        if (word > 0) begin -= (uint)BitOperations.LeadingZeroCount(_used[word - 1]);
        int length = RunAt(begin, want);
        if (length > run) (at, run) = (begin, length);
    }

    /// <summary>The best of the next few words with a free block.</summary>
    private void TryHoles(ref uint at, ref int run, int want, bool sparesWholes)
    {
        int from = (int)(at >> 6);
        for (int probe = 0; probe < Probes && run < want; probe++)
        {
            int hole = Next(_holes, from), whole = sparesWholes && (hole >= 0 || run > 0) ? -1 : Next(_wholes, from);
            int word = Nearer(hole, whole, from);
            if (word < 0) return;
            Try(word, ref at, ref run, want);
            from = word + 1;
        }
    }

    /// <summary>The next member, from the beginning on when there is none behind; -1 when there is none at all.</summary>
    private static int Next(BitTree words, int from)
    {
        int next = words.FindFrom(from);
        return next >= 0 ? next : words.FindFrom(0);
    }

    /// <summary>The one that comes first when walking up from <paramref name="from"/> and round the end.</summary>
    private static int Nearer(int one, int two, int from)
    {
        if (one < 0 || two < 0) return Math.Max(one, two);
        return one >= from == two >= from ? Math.Min(one, two) : Math.Max(one, two);
    }

    private void Try(int word, ref uint at, ref int run, int want)
    {
        for (ulong free = ~_used[word]; free != 0;)
        {
            int first = BitOperations.TrailingZeroCount(free);
            uint begin = (uint)(word * 64 + first);
            int length = RunAt(begin, want);
            if (length > run) (at, run) = (begin, length);
            if (run >= want || first + length >= 64) return;
            free &= ulong.MaxValue << (first + length);
        }
    }

    /// <summary>Free blocks from <paramref name="at"/> on, at most <paramref name="want"/>.</summary>
    private int RunAt(uint at, int want)
    {
        int run = 0;
        while (run < want && at + (uint)run < _count)
        {
            int bit = (int)((at + (uint)run) & 63);
            int free = BitOperations.TrailingZeroCount(_used[(at + (uint)run) >> 6] >> bit);
            free = Math.Min(free, 64 - bit);
            run += free;
            if (free < 64 - bit) break;
        }

        return Math.Min(run, want);
    }

    private void GiveGood(uint index, uint count)
    {
        Check.That(!_isLoading);
        Free += count;
        while (count > 0)
        {
            int word = (int)(index >> 6);
            ulong mask = MaskAt(index, count, out uint length);
            Check.That((_used[word] & mask) == mask);
            Leave(word);
            _used[word] &= ~mask;
            Enter(word);
            index += length;
            count -= length;
        }
    }

    private void Mark(uint index, uint count)
    {
        Free -= count;
        while (count > 0)
        {
            int word = (int)(index >> 6);
            ulong mask = MaskAt(index, count, out uint length);
            Check.That((_used[word] & mask) == 0);
            Leave(word);
            _used[word] |= mask;
            Enter(word);
            index += length;
            count -= length;
        }
    }

    private void Enter(int word)
    {
        ulong used = _used[word];
        if (used == 0)
        {
            _wholes.Set(word);
            _wholeCount++;
        }
        else if (used != ulong.MaxValue)
        {
            _holes.Set(word);
        }
    }

    private void Leave(int word)
    {
        ulong used = _used[word];
        if (used == 0)
        {
            _wholes.Clear(word);
            _wholeCount--;
        }
        else if (used != ulong.MaxValue)
        {
            _holes.Clear(word);
        }
    }

    private static ulong MaskAt(uint index, uint count, out uint length)
    {
        int bit = (int)(index & 63);
        length = Math.Min(count, 64 - (uint)bit);
        return (length == 64 ? ulong.MaxValue : (1UL << (int)length) - 1) << bit;
    }
}
