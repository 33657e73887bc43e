using System.Buffers;
using System.Collections.Concurrent;
using Microsoft.AspNetCore.Connections;

namespace BlockServer.Blockd;

/// <summary>
/// Memory of the admin API's connections, in blocks of <see cref="BlockBytes"/>. The HTTP server's own are 4 KiB and each takes
/// calls of the kernel to fill: an import of 512 MiB of data needed 262,000 of them (docs/performance.md). Thread-safe.
/// </summary>
internal sealed class ApiMemory : MemoryPool<byte>, IMemoryPoolFactory<byte>
{
    /// <summary>Bytes of a block. An idle connection holds none, one that has sent half a request one.</summary>
    public const int BlockBytes = 64 << 10;

    /// <summary>Free blocks that are kept for later; more go to the collector.</summary>
    public const int KeptBlocksMax = 32;

    private readonly ConcurrentQueue<byte[]> _free = new();

    /// <inheritdoc/>
    public override int MaxBufferSize => BlockBytes;

    /// <summary>Blocks that lie free.</summary>
    public int FreeBlocks => _free.Count;

    /// <summary>The one of its own for each of the server's queues; throws nothing.</summary>
    public MemoryPool<byte> Create(MemoryPoolOptions? options = null) => new ApiMemory();

    /// <summary>A whole block, however little is asked for. Its bytes are those of its last use.</summary>
    public override IMemoryOwner<byte> Rent(int minBufferSize = -1)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(minBufferSize, BlockBytes);
        return new Block(this, _free.TryDequeue(out byte[]? bytes) ? bytes : GC.AllocateUninitializedArray<byte>(BlockBytes, pinned: true));
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing) => _free.Clear();

    private void Return(byte[] bytes)
    {
        if (_free.Count < KeptBlocksMax) _free.Enqueue(bytes);
    }

    /// <summary>A block in use, until it is disposed.</summary>
    private sealed class Block(ApiMemory pool, byte[] bytes) : IMemoryOwner<byte>
    {
        private byte[]? _bytes = bytes;

        public Memory<byte> Memory { get; } = System.Runtime.InteropServices.MemoryMarshal.CreateFromPinnedArray(bytes, 0, bytes.Length);

        public void Dispose()
        {
            // Twice by mistake must not hand one block to two.
            if (Interlocked.Exchange(ref _bytes, null) is { } mine) pool.Return(mine);
        }
    }
}
