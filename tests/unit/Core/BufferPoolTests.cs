using System.Runtime.InteropServices;
using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

public class BufferPoolTests
{
    [Theory]
    [InlineData(1)]
    [InlineData(4096)]
    [InlineData(131072)]
    [InlineData(32 << 20)]
    public void Data_begins_on_a_block_boundary_and_the_header_lies_right_in_front(int bytes)
    {
        var pool = new BufferPool(64 << 20);
        IoBuffer buffer = pool.TryRent(bytes)!;
        Assert.True(MemoryMarshal.TryGetArray(buffer.Data, out ArraySegment<byte> data));
        long address = Marshal.UnsafeAddrOfPinnedArrayElement(data.Array!, data.Offset);
        Assert.Equal(0, address % Units.BlockBytes);
        Assert.True(MemoryMarshal.TryGetArray(buffer.WithHeader(16, bytes), out ArraySegment<byte> whole));
        Assert.Equal(data.Offset - 16, whole.Offset);
        buffer.Return();
        Assert.Equal(0, pool.LentBytes);
    }

    [Fact]
    public void Beyond_the_bound_a_renter_waits_until_something_comes_home()
    {
        var pool = new BufferPool(0); // rounded up to one largest buffer
        IoBuffer largest = pool.TryRent(BufferPool.CapacityBytesMax)!;
        Assert.Null(pool.TryRent(1));
        ValueTask<IoBuffer> waiting = pool.RentAsync(4096);
        Assert.False(waiting.IsCompleted);
        largest.Return();
        Assert.True(waiting.IsCompleted);
        Assert.Equal(1, pool.LentCount);
    }

    [Fact]
    public void Returning_twice_is_a_broken_invariant()
    {
        IoBuffer buffer = new BufferPool(64 << 20).TryRent(1)!;
        buffer.Return();
        Assert.ThrowsAny<Exception>(buffer.Return);
    }
}
