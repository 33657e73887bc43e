using System.Buffers;
using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The blocks that the admin API's connections are read into.</summary>
public sealed class ApiMemoryTests
{
    [Fact]
    public void Every_block_is_a_large_one_and_is_used_again()
    {
        using var memory = new ApiMemory();
        IMemoryOwner<byte> first = memory.Rent(1);
        Assert.Equal(ApiMemory.BlockBytes, first.Memory.Length);
        first.Memory.Span[5] = 77;
        first.Dispose();
        Assert.Equal(1, memory.FreeBlocks);
        using IMemoryOwner<byte> second = memory.Rent(4096);
        Assert.Equal(77, second.Memory.Span[5]);
        Assert.Equal(0, memory.FreeBlocks);
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.Rent(ApiMemory.BlockBytes + 1));
    }

    [Fact]
    public void A_block_that_is_given_back_twice_goes_to_one()
    {
        using var memory = new ApiMemory();
        IMemoryOwner<byte> block = memory.Rent();
        block.Dispose();
        block.Dispose();
        using IMemoryOwner<byte> one = memory.Rent(), other = memory.Rent();
        one.Memory.Span.Fill(1);
        other.Memory.Span.Fill(2);
        Assert.False(one.Memory.Span.ContainsAnyExcept((byte)1));
    }

    [Fact]
    public void No_more_blocks_are_kept_than_said()
    {
        using var memory = new ApiMemory();
        IMemoryOwner<byte>[] blocks = [.. Enumerable.Range(0, ApiMemory.KeptBlocksMax + 5).Select(_ => memory.Rent())];
        foreach (IMemoryOwner<byte> block in blocks) block.Dispose();
        Assert.Equal(ApiMemory.KeptBlocksMax, memory.FreeBlocks);
    }
}
