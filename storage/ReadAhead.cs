using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// Reads a range of a file in order, in large pieces of which several are under way: for recovery, which reads much and
/// waits for all of it. A page that the medium cannot read is filled with ones, which no checksum accepts, so that one bad
/// page does not hide its neighbours. Holds at most <see cref="PiecesAtOnce"/> MiB. Lives on one loop; one caller.
/// </summary>
internal sealed class ReadAhead(IFile file, BufferPool pool)
{
    /// <summary>Bytes of a piece.</summary>
    public const int PieceBytes = 1 << 20;

    /// <summary>Pieces under way at a time.</summary>
    public const int PiecesAtOnce = 8;

    private readonly IoBuffer?[] _buffers = new IoBuffer?[PiecesAtOnce];
    private readonly ValueTask<IoStatus>[] _reads = new ValueTask<IoStatus>[PiecesAtOnce];
    private ulong _asked;
    private ulong _given;
    private ulong _end;

    /// <summary>Offsets of the pages that could not be read.</summary>
    public HashSet<ulong> BadPages { get; } = [];

    /// <summary>Offset of the piece given last.</summary>
    public ulong Offset { get; private set; }

    /// <summary>Begins to read from <paramref name="start"/> to <paramref name="end"/>; the range before was read to its
    /// end or closed.</summary>
    public void Begin(ulong start, ulong end)
    {
        Check.That(_asked == _given);
        _asked = _given = start;
        _end = end;
    }

    /// <summary>The next piece, valid until the next call; empty at the end.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<Memory<byte>> NextAsync()
    {
        int index = 0;
        while (_asked < _end && _asked / PieceBytes - _given / PieceBytes < PiecesAtOnce)
        {
            index = IndexOf(_asked);
            IoBuffer buffer = _buffers[index] ??= await pool.RentAsync(PieceBytes);
            int length = LengthAt(_asked);
#pragma warning disable CA2012 // Several at once; each is awaited exactly once, below or in CloseAsync.
            _reads[index] = file.ReadAsync(_asked, buffer.Slice(0, length));
#pragma warning restore CA2012
            _asked += (ulong)length;
        }

        if (_given == _end) return default;
        index = IndexOf(_given);
        Memory<byte> piece = _buffers[index]!.Slice(0, LengthAt(_given));
        Offset = _given;
        _given += (ulong)piece.Length;
        if (await _reads[index] != IoStatus.Ok) await ReadSinglyAsync(Offset, piece);
        return piece;
    }

    /// <summary>Waits for what is under way and gives the memory back.</summary>
    public async ValueTask CloseAsync()
    {
        for (; _given < _asked; _given += (ulong)LengthAt(_given)) await _reads[IndexOf(_given)];
        for (int i = 0; i < PiecesAtOnce; i++)
        {
            _buffers[i]?.Return();
            _buffers[i] = null;
        }
    }

    // Pieces are cut at multiples of their size, so that an offset tells its place.
    private static int IndexOf(ulong offset) => (int)(offset / PieceBytes % PiecesAtOnce);

    private int LengthAt(ulong offset) => (int)Math.Min(_end - offset, PieceBytes - offset % PieceBytes);

    private async ValueTask ReadSinglyAsync(ulong offset, Memory<byte> piece)
    {
        for (int at = 0; at < piece.Length; at += Units.BlockBytes)
        {
            Memory<byte> page = piece.Slice(at, Units.BlockBytes);
            if (await file.ReadAsync(offset + (ulong)at, page) == IoStatus.Ok) continue;
            page.Span.Fill(byte.MaxValue);
            BadPages.Add(offset + (ulong)at);
        }
    }
}
