using System.Runtime.InteropServices;

namespace BlockServer.Core;

/// <summary>
/// The I/O memory of one loop: pinned, aligned to 4096, in a few sizes, bounded in all. When the bound is reached
/// <see cref="TryRent"/> answers null and the caller stops reading its socket until <see cref="RentAsync"/> answers:
/// that is the back-pressure (trust.md D.5). Lives on one loop.
/// </summary>
public sealed class BufferPool
{
    // Data capacities. 132 KiB and 1,028 KiB take the common request sizes at any offset within a block.
    private static readonly int[] Capacities =
        [4 << 10, 16 << 10, 68 << 10, 132 << 10, 260 << 10, 1028 << 10, 4100 << 10, (32 << 10 << 10) + 8192];

    // Buffers of at most this capacity are kept for ever; larger ones go back to the runtime when they come home.
    private const int KeptBytesMax = 1028 << 10;
    private const int SlabBytes = 1 << 20;

    private readonly IoBuffer?[] _free = new IoBuffer?[Capacities.Length];
    private readonly Queue<(int Bytes, LoopEvent<IoBuffer> Ready)> _waiting = new();

    /// <summary>A pool that lends at most <paramref name="limitBytes"/> at once (at least one largest buffer).</summary>
    public BufferPool(long limitBytes) => LimitBytes = Math.Max(limitBytes, Capacities[^1]);

    /// <summary>Bound of <see cref="LentBytes"/>.</summary>
    public long LimitBytes { get; }

    /// <summary>Capacity lent at this moment.</summary>
    public long LentBytes { get; private set; }

    /// <summary>Buffers lent at this moment; zero at quiescence or somebody leaks.</summary>
    public int LentCount { get; private set; }

    /// <summary>Largest capacity that can be rented.</summary>
    public static int CapacityBytesMax => Capacities[^1];

    /// <summary>Capacity of the buffer that a request for so many bytes gets.</summary>
    public static int CapacityOf(int bytes) => Capacities[ClassOf(bytes)];

    /// <summary>A buffer of at least <paramref name="bytes"/>, content undefined, or null when the bound is reached or
    /// others wait already.</summary>
    public IoBuffer? TryRent(int bytes) => _waiting.Count > 0 ? null : RentNow(ClassOf(bytes));

    /// <summary>A buffer of at least <paramref name="bytes"/>, as soon as there is one; served in order.</summary>
    public ValueTask<IoBuffer> RentAsync(int bytes)
    {
        IoBuffer? buffer = TryRent(bytes);
        if (buffer is not null) return new ValueTask<IoBuffer>(buffer);
        var ready = new LoopEvent<IoBuffer>();
        _waiting.Enqueue((bytes, ready));
        return ready.WaitAsync();
    }

    internal void TakeBack(IoBuffer buffer)
    {
        buffer.MarkLent(false);
        LentBytes -= buffer.CapacityBytes;
        LentCount--;
        if (buffer.CapacityBytes <= KeptBytesMax)
        {
            buffer.Next = _free[buffer.SizeClass];
            _free[buffer.SizeClass] = buffer;
        }

        while (_waiting.TryPeek(out (int Bytes, LoopEvent<IoBuffer> Ready) first))
        {
            IoBuffer? next = RentNow(ClassOf(first.Bytes));
            if (next is null) break;
            _waiting.Dequeue();
            first.Ready.Set(next);
        }
    }

    private static int ClassOf(int bytes)
    {
        for (int i = 0; i < Capacities.Length; i++)
        {
            if (bytes <= Capacities[i]) return i;
        }

        Check.Broken("a buffer of more than 32 MiB was asked for");
        return -1;
    }

    private IoBuffer? RentNow(int sizeClass)
    {
        int capacity = Capacities[sizeClass];
        if (LentBytes + capacity > LimitBytes) return null;
        IoBuffer? buffer = _free[sizeClass] ?? Grow(sizeClass);
        _free[sizeClass] = buffer.Next;
        buffer.Next = null;
        buffer.MarkLent(true);
        LentBytes += capacity;
        LentCount++;
        return buffer;
    }

    /// <summary>Makes a slab of buffers and chains them; the first is the free list's new head.</summary>
    private IoBuffer Grow(int sizeClass)
    {
        int capacity = Capacities[sizeClass];
        int stride = capacity + IoBuffer.HeadroomBytes;
        int count = Math.Max(1, SlabBytes / stride);
        byte[] slab = GC.AllocateUninitializedArray<byte>(count * stride + Units.BlockBytes, pinned: true);
        long address = Marshal.UnsafeAddrOfPinnedArrayElement(slab, 0);
        int start = (int)(-address & (Units.BlockBytes - 1));
        IoBuffer? chain = null;
        for (int i = count - 1; i >= 0; i--)
        {
            int dataStart = start + i * stride + IoBuffer.HeadroomBytes;
            chain = new IoBuffer(this, slab, dataStart, capacity, sizeClass) { Next = chain };
        }

        return chain!;
    }
}
