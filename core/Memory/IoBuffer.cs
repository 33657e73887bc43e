using System.Runtime.InteropServices;

namespace BlockServer.Core;

/// <summary>
/// A piece of I/O memory lent by a <see cref="BufferPool"/>. <see cref="Data"/> begins at an address that is a multiple
/// of 4096; in front of it lie <see cref="HeadroomBytes"/> more bytes, so that a reply's header and its aligned data are
/// one piece of memory and leave in one send. Owned by whoever rented it until <see cref="Return"/>. Lives on one loop.
/// The memory is pinned and outlives every I/O on it.
/// </summary>
public sealed class IoBuffer
{
    /// <summary>Bytes in front of the data for protocol headers.</summary>
    public const int HeadroomBytes = 4096;

    private readonly BufferPool _pool;
    private readonly byte[] _slab;
    private readonly int _dataStart;

    internal IoBuffer(BufferPool pool, byte[] slab, int dataStart, int capacityBytes, int sizeClass)
    {
        _pool = pool;
        _slab = slab;
        _dataStart = dataStart;
        CapacityBytes = capacityBytes;
        SizeClass = sizeClass;
    }

    /// <summary>How much data fits.</summary>
    public int CapacityBytes { get; }

    /// <summary>The aligned part, all of it.</summary>
    public Memory<byte> Data => PinnedMemory(_dataStart, CapacityBytes);

    /// <summary>Counts up at every return: a late user of an earlier lease can tell.</summary>
    public uint Generation { get; private set; }

    internal int SizeClass { get; }

    internal bool IsLent { get; private set; }

    internal IoBuffer? Next { get; set; }

    /// <summary>The last <paramref name="headerBytes"/> of the headroom followed by <paramref name="dataBytes"/> of data.</summary>
    public Memory<byte> WithHeader(int headerBytes, int dataBytes)
    {
        Check.That(headerBytes <= HeadroomBytes && dataBytes <= CapacityBytes);
        return PinnedMemory(_dataStart - headerBytes, headerBytes + dataBytes);
    }

    /// <summary>A piece of the data.</summary>
    public Memory<byte> Slice(int start, int length)
    {
        Check.That((uint)start + (uint)length <= (uint)CapacityBytes);
        return PinnedMemory(_dataStart + start, length);
    }

    /// <summary>Gives it back; the caller forgets it. No I/O may be outstanding on it.</summary>
    public void Return()
    {
        Check.That(IsLent);
        Generation++;
        _pool.TakeBack(this);
    }

    internal void MarkLent(bool lent) => IsLent = lent;

    /// <summary>Memory that knows that it is pinned: to pin it once more for an I/O costs no handle.</summary>
    private Memory<byte> PinnedMemory(int start, int length) =>
        MemoryMarshal.CreateFromPinnedArray(_slab, start, length);
}
