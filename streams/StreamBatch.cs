using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>A stretch of content.</summary>
/// <param name="Kind">Data, zeros or a hole.</param>
/// <param name="OffsetBytes">Where it begins.</param>
/// <param name="LengthBytes">How long it is; data at most <see cref="StreamHeader.DataBytesMax"/>.</param>
/// <param name="DataStart">Where in the batch's memory its data lies.</param>
public readonly record struct StreamPiece(StreamKind Kind, ulong OffsetBytes, ulong LengthBytes, int DataStart = 0);

/// <summary>
/// Stretches that are read from a volume, or written to it, in one visit to its loop; and the memory for their data: pinned,
/// aligned to a block, so that the device copies nothing. Handed from one owner to the next, never used by two.
/// </summary>
public sealed class StreamBatch
{
    /// <summary>So many stretches are enough for a batch; those of one megabyte of an image may be on top.</summary>
    public const int PiecesMax = 512;

    private readonly byte[] _slab;
    private readonly int _start;

    /// <summary>A batch for <paramref name="capacityBytes"/> of data, a multiple of <see cref="StreamHeader.DataBytesMax"/>.</summary>
    public StreamBatch(int capacityBytes)
    {
        Check.That(capacityBytes > 0 && capacityBytes % StreamHeader.DataBytesMax == 0);
        _slab = GC.AllocateUninitializedArray<byte>(capacityBytes + Units.BlockBytes, pinned: true);
        nint address = System.Runtime.InteropServices.Marshal.UnsafeAddrOfPinnedArrayElement(_slab, 0);
        _start = (int)(-address & (Units.BlockBytes - 1));
        CapacityBytes = capacityBytes;
    }

    /// <summary>Data that fits.</summary>
    public int CapacityBytes { get; }

    /// <summary>Data in it, each piece's rounded up to blocks.</summary>
    public int UsedBytes { get; private set; }

    /// <summary>What is in it, by offset.</summary>
    public IReadOnlyList<StreamPiece> Pieces => _pieces;

    /// <summary>It takes a piece with so much data.</summary>
    public bool HasRoom(ulong dataBytes) => _pieces.Count < PiecesMax && dataBytes <= (ulong)(CapacityBytes - UsedBytes);

    private readonly List<StreamPiece> _pieces = [];

    /// <summary>Empties it.</summary>
    public void Clear()
    {
        _pieces.Clear();
        UsedBytes = 0;
    }

    /// <summary>The memory of the next piece's data, which may still be filled when the piece is not added.</summary>
    public Memory<byte> Room(int bytes) => Slice(UsedBytes, bytes);

    /// <summary>Adds a piece; its data is what was put into <see cref="Room"/>, or will be put into <see cref="DataOf"/>.</summary>
    public void Add(StreamKind kind, ulong offsetBytes, ulong lengthBytes)
    {
        bool hasData = kind == StreamKind.Data;
        Check.That((hasData ? lengthBytes : 0) <= (ulong)(CapacityBytes - UsedBytes));
        _pieces.Add(new StreamPiece(kind, offsetBytes, lengthBytes, hasData ? UsedBytes : 0));
        if (hasData) UsedBytes += ((int)lengthBytes + Units.BlockBytes - 1) & -Units.BlockBytes;
    }

    /// <summary>Leaves out bytes of the room, whole blocks: the next piece's data lies behind them.</summary>
    public void Leave(int bytes)
    {
        Check.That(bytes % Units.BlockBytes == 0 && bytes <= CapacityBytes - UsedBytes);
        UsedBytes += bytes;
    }

    /// <summary>The data of a piece.</summary>
    public Memory<byte> DataOf(in StreamPiece piece) => Slice(piece.DataStart, (int)piece.LengthBytes);

    private Memory<byte> Slice(int start, int length)
    {
        Check.That((uint)start + (uint)length <= (uint)CapacityBytes);
        return System.Runtime.InteropServices.MemoryMarshal.CreateFromPinnedArray(_slab, _start + start, length);
    }
}
