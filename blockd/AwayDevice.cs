using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>A device that is not there: everything answers Unavailable. Any loop.</summary>
internal sealed class AwayDevice(ulong sizeBytes) : IBlockDevice
{
    /// <inheritdoc/>
    public ulong SizeBytes => sizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => false;

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => new(IoStatus.Unavailable);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) => new(IoStatus.Unavailable);

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => new(IoStatus.Unavailable);

    /// <inheritdoc/>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) => new(IoStatus.Unavailable);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) => new(IoStatus.Unavailable);

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.Unavailable);

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) => new(IoStatus.Unavailable);
}
