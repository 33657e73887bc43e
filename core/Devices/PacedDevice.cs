using System.Runtime.CompilerServices;

namespace BlockServer.Core;

/// <summary>
/// A layer that does large requests in pieces, one after the other, while other volumes use the disk too, so that they wait for a
/// piece and not for all of it. While nobody else does, and for what is no longer than a piece, it is the device itself. Lives on the
/// loop of <paramref name="door"/>.
/// </summary>
public sealed class PacedDevice(IBlockDevice device, VolumeAdmission door) : IBlockDevice
{
    /// <summary>What is read at a time, bytes: what one volume of two may have in flight (<see cref="DiskShare.InsideBytesMax"/>).</summary>
    public const int ReadBytes = 128 << 10;

    /// <summary>What is written at a time, bytes. A request of so much is whole or not there after a power cut, so it is not cut.</summary>
    public const int WriteBytes = Units.ExtentBytes;

    /// <inheritdoc/>
    public ulong SizeBytes => device.SizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => device.IsReadOnly;

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) =>
        target.Length <= ReadBytes || !door.HasNeighbours ? device.ReadAsync(offsetBytes, target) : ReadPiecesAsync(offsetBytes, target);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) =>
        source.Length <= WriteBytes || !door.HasNeighbours
            ? device.WriteAsync(offsetBytes, source, flags)
            : WritePiecesAsync(offsetBytes, source, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => device.FlushAsync();

    /// <inheritdoc/>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        device.TrimAsync(offsetBytes, lengthBytes, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        bool writes = (flags & (WriteFlags.NoHole | WriteFlags.FastOnly)) == WriteFlags.NoHole;
        return !writes || lengthBytes <= WriteBytes || IsOutside(offsetBytes, lengthBytes) || !door.HasNeighbours
            ? device.WriteZeroesAsync(offsetBytes, lengthBytes, flags)
            : ZeroPiecesAsync(offsetBytes, lengthBytes, flags);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => device.PrefetchAsync(offsetBytes, lengthBytes);

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
        device.MapAsync(offsetBytes, lengthBytes, runsMax, runs);

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadPiecesAsync(ulong offsetBytes, Memory<byte> target)
    {
        bool hasHoles = false;
        if (IsOutside(offsetBytes, (ulong)target.Length)) return await device.ReadAsync(offsetBytes, target);
        while (!target.IsEmpty)
        {
            int length = (int)NextBytes(offsetBytes, (ulong)target.Length, ReadBytes);
            ReadResult piece = await device.ReadAsync(offsetBytes, target[..length]);
            if (piece.Status != IoStatus.Ok) return piece;
            hasHoles |= piece.HasHoles;
            (offsetBytes, target) = (offsetBytes + (ulong)length, target[length..]);
        }

        return new ReadResult(IoStatus.Ok, hasHoles);
    }

    // What must be durable is so piece by piece: nothing says that the last one's flag covers those before it.
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> WritePiecesAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        // Refused as a whole, or else a part of it would be there.
        if (IsOutside(offsetBytes, (ulong)source.Length)) return await device.WriteAsync(offsetBytes, source, flags);
        while (!source.IsEmpty)
        {
            int length = (int)NextBytes(offsetBytes, (ulong)source.Length, WriteBytes);
            IoStatus status = await device.WriteAsync(offsetBytes, source[..length], flags);
            if (status != IoStatus.Ok) return status;
            (offsetBytes, source) = (offsetBytes + (ulong)length, source[length..]);
        }

        return IoStatus.Ok;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ZeroPiecesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        while (lengthBytes > 0)
        {
            ulong length = NextBytes(offsetBytes, lengthBytes, WriteBytes);
            IoStatus status = await device.WriteZeroesAsync(offsetBytes, length, flags);
            if (status != IoStatus.Ok) return status;
            (offsetBytes, lengthBytes) = (offsetBytes + length, lengthBytes - length);
        }

        return IoStatus.Ok;
    }

    private bool IsOutside(ulong offsetBytes, ulong lengthBytes) =>
        offsetBytes > device.SizeBytes || lengthBytes > device.SizeBytes - offsetBytes;

    /// <summary>Up to the next border of pieces, or all when the others rest meanwhile.</summary>
    private ulong NextBytes(ulong offsetBytes, ulong leftBytes, ulong pieceBytes) =>
        door.HasNeighbours ? Math.Min(leftBytes, pieceBytes - offsetBytes % pieceBytes) : leftBytes;
}
