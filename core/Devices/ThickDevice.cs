namespace BlockServer.Core;

/// <summary>
/// A layer that gives no block back: trims change nothing, zeros are written. A volume that was allocated once stays so.
/// Lives on the loop of the device under it, and holds nothing of its own.
/// </summary>
public sealed class ThickDevice(IBlockDevice inner) : IBlockDevice
{
    /// <inheritdoc/>
    public ulong SizeBytes => inner.SizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => inner.IsReadOnly;

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => inner.ReadAsync(offsetBytes, target);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) =>
        inner.WriteAsync(offsetBytes, source, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => inner.FlushAsync();

    /// <summary>Advice that is not taken; a range outside is still refused.</summary>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        if (inner.IsReadOnly) return new(IoStatus.ReadOnly);
        return new(offsetBytes > SizeBytes || lengthBytes > SizeBytes - offsetBytes ? IoStatus.OutOfRange : IoStatus.Ok);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        inner.WriteZeroesAsync(offsetBytes, lengthBytes, flags | WriteFlags.NoHole);

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => inner.PrefetchAsync(offsetBytes, lengthBytes);

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
        inner.MapAsync(offsetBytes, lengthBytes, runsMax, runs);
}
