using BlockServer.Core;
using BlockServer.Storage;
using Xunit;

namespace BlockServer.Tests.Unit.Storage;

public class BlockAllocatorTests(ITestOutputHelper output)
{
    private const uint Start = 77;

    [Theory]
    [InlineData(1, 1u)]
    [InlineData(2, 63u)]
    [InlineData(3, 64u)]
    [InlineData(4, 1000u)]
    [InlineData(5, 4096u)]
    [InlineData(6, 70_001u)]
    public void It_gives_what_a_list_of_bits_would_allow(ulong seed, uint count)
    {
        var random = new SeededRandom(seed);
        var blocks = new BlockAllocator(Start, count);
        var used = new bool[count];
        var bad = new HashSet<uint>();
        var held = new List<(uint Block, int Count)>();
        for (int step = 0; step < 4000; step++)
        {
            int dice = random.NextBelow(100);
            if (dice < 55 && blocks.Free > 0) Take(blocks, used, held, 1 + random.NextBelow(random.NextBelow(3) == 0 ? 256 : 20));
            else if (dice < 97 && held.Count > 0) Give(blocks, used, bad, held, random);
            else if (dice == 97 && bad.Count < count / 10) Retire(blocks, used, bad, (uint)random.NextBelow((int)count));
            else if (dice == 98) TakeNamed(blocks, used, held, (uint)random.NextBelow((int)count));
            if (step % 16 == 0) Assert.Equal((uint)used.Count(u => !u), blocks.Free);
            Assert.Equal((uint)bad.Count, blocks.Bad);
        }

        for (uint i = 0; i < count; i++) Assert.Equal(used[i], blocks.IsUsed(Start + i));
    }

    /// <summary>Blocks taken by name between the two calls leave everything as if each had been taken by itself.</summary>
    [Theory]
    [InlineData(1, 1u)]
    [InlineData(2, 63u)]
    [InlineData(3, 64u)]
    [InlineData(4, 1000u)]
    [InlineData(5, 4096u)]
    [InlineData(6, 70_001u)]
    public void What_is_loaded_is_found_like_what_was_taken(ulong seed, uint count)
    {
        foreach (int percent in (int[])[0, 1, 30, 90, 100])
        {
            var random = new SeededRandom(seed);
            var loaded = new BlockAllocator(Start, count);
            var taken = new BlockAllocator(Start, count);
            loaded.BeginLoad();
            for (uint i = 0; i < count; i++)
            {
                // A part of it in runs, so that whole words are free, taken and mixed.
                bool takes = random.NextBelow(100) < (i / 200 % 2 == 0 ? percent : percent / 30 * 30);
                if (!takes) continue;
                Assert.True(loaded.TryTake(Start + i));
                Assert.False(loaded.TryTake(Start + i));
                Assert.True(taken.TryTake(Start + i));
            }

            loaded.EndLoad();
            while (taken.Free > 0)
            {
                Assert.Equal(taken.Free, loaded.Free);
                int want = 1 + random.NextBelow(random.NextBelow(3) == 0 ? 256 : 20);
                Assert.Equal((taken.TakeRun(want, out int expected), expected), (loaded.TakeRun(want, out int got), got));
            }

            Assert.Equal(0u, loaded.Free);
        }
    }

    [Fact]
    public void Large_requests_stay_sequential_although_small_ones_come_in_between()
    {
        var blocks = new BlockAllocator(Start, 100_000);
        uint next = blocks.TakeRun(256, out _) + 256;
        for (int i = 0; i < 100; i++)
        {
            blocks.TakeRun(1, out _);
            Assert.Equal(next, blocks.TakeRun(256, out int got));
            Assert.Equal(256, got);
            next += 256;
        }
    }

    [Fact]
    public void Small_requests_stay_sequential()
    {
        var blocks = new BlockAllocator(Start, 100_000);
        for (uint i = 0; i < 1000; i++) Assert.Equal(Start + i, blocks.TakeRun(1, out _));
    }

    [Fact]
    public void A_full_word_is_found_wherever_the_last_one_is()
    {
        const uint count = 1 << 20;
        var blocks = new BlockAllocator(0, count);
        for (uint i = 0; i < count; i++) Assert.True(blocks.TryTake(i));
        var random = new SeededRandom(9);
        // Every 16th block is free, which is of little use to a large request; one whole word is, far away.
        for (uint i = 0; i < count; i += 16) blocks.Give(i, 1);
        for (int round = 0; round < 100; round++)
        {
            uint word = (uint)random.NextBelow((int)count / 64) * 64;
            for (uint i = word; i < word + 64; i++)
            {
                if (blocks.IsUsed(i)) blocks.Give(i, 1);
            }

            uint at = blocks.TakeRun(256, out int got);
            Assert.InRange(got, 64, 66); // the free block on either side may belong to it
            Assert.InRange(at, word == 0 ? 0 : word - 1, word);
        }
    }

    /// <summary>A store that is 90 % full and was overwritten at random by 4 KiB for a long time; then a large file comes.</summary>
    [Fact]
    public void On_an_aged_store_large_requests_find_the_long_runs()
    {
        const int count = 1 << 20;
        var random = new SeededRandom(4);
        var blocks = new BlockAllocator(0, count);
        var map = new uint[count / 10 * 9];
        for (int i = 0; i < map.Length; i += 256)
        {
            uint at = blocks.TakeRun(Math.Min(256, map.Length - i), out int got);
            for (int j = 0; j < got; j++) map[i + j] = at + (uint)j;
            i -= 256 - got;
        }

        var quarantine = new Queue<uint>();
        for (int i = 0; i < 2 * map.Length; i++)
        {
            int index = random.NextBelow(map.Length);
            quarantine.Enqueue(map[index]);
            map[index] = blocks.TakeRun(1, out _);
            if (quarantine.Count > 10_000) blocks.Give(quarantine.Dequeue(), 1);
        }

        while (quarantine.TryDequeue(out uint old)) blocks.Give(old, 1);
        // The file takes half of what is free.
        int runs = 0, requests = (int)(blocks.Free / 2 / 256);
        for (int i = 0; i < requests; i++)
        {
            for (int done = 0; done < 256; runs++)
            {
                blocks.TakeRun(256 - done, out int got);
                done += got;
            }
        }

        double fragments = runs / (double)requests;
        output.WriteLine($"1 MiB of a new file lies in {fragments:F2} runs");
        Assert.True(fragments < 3, $"1 MiB lies in {fragments:F2} runs");
    }

    [Fact]
    public void A_tree_of_bits_finds_the_next_member_as_a_sorted_set_does()
    {
        var random = new SeededRandom(8);
        foreach (int bound in new[] { 1, 63, 64, 65, 4095, 4096, 4097, 300_000 })
        {
            var tree = new BitTree(bound);
            var set = new SortedSet<int>();
            for (int step = 0; step < 2000; step++)
            {
                int index = random.NextBelow(bound);
                if (random.NextBelow(2) == 0)
                {
                    tree.Set(index);
                    set.Add(index);
                }
                else
                {
                    tree.Clear(index);
                    set.Remove(index);
                }

                int from = random.NextBelow(bound + 1);
                SortedSet<int> rest = set.GetViewBetween(from, int.MaxValue);
                Assert.Equal(rest.Count == 0 ? -1 : rest.Min, tree.FindFrom(from));
            }
        }
    }

    private static void Take(BlockAllocator blocks, bool[] used, List<(uint Block, int Count)> held, int want)
    {
        bool isWordFree = want >= 64 && Enumerable.Range(0, used.Length / 64).Any(word => !used.AsSpan(word * 64, 64).Contains(true));
        uint at = blocks.TakeRun(want, out int got);
        Assert.InRange(got, isWordFree ? 64 : 1, want);
        for (uint i = at - Start; i < at - Start + got; i++)
        {
            Assert.False(used[i]);
            used[i] = true;
        }

        held.Add((at, got));
    }

    private static void Give(
        BlockAllocator blocks, bool[] used, HashSet<uint> bad, List<(uint Block, int Count)> held, SeededRandom random)
    {
        int which = random.NextBelow(held.Count);
        (uint block, int count) = held[which];
        held.RemoveAt(which);
        blocks.Give(block, (uint)count);
        for (uint i = block; i < block + count; i++) used[i - Start] = bad.Contains(i);
    }

    private static void Retire(BlockAllocator blocks, bool[] used, HashSet<uint> bad, uint index)
    {
        Assert.Equal(bad.Add(Start + index), blocks.Retire(Start + index));
        used[index] = true;
        Assert.True(blocks.IsBad(Start + index));
    }

    private static void TakeNamed(BlockAllocator blocks, bool[] used, List<(uint Block, int Count)> held, uint index)
    {
        Assert.Equal(!used[index], blocks.TryTake(Start + index));
        if (!used[index]) held.Add((Start + index, 1));
        used[index] = true;
    }
}
