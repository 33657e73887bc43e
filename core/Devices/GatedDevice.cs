using System.Runtime.CompilerServices;

namespace BlockServer.Core;

/// <summary>
/// A volume as a protocol without reservations sees it: changes pass the volume's gate, and what the fence forbids is answered
/// <see cref="IoStatus.Reserved"/>. Flushing is always allowed. Lives on the volume's loop; does not own the device.
/// </summary>
public sealed class GatedDevice(IBlockDevice device, VolumeGate gate) : IBlockDevice
{
    /// <inheritdoc/>
    public ulong SizeBytes => device.SizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => device.IsReadOnly;

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) =>
        gate.Forbids(isChange: false) ? new(IoStatus.Reserved) : device.ReadAsync(offsetBytes, target);

    /// <inheritdoc/>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        VolumeGate.Range held = gate.Take(offsetBytes, (ulong)source.Length, false, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (gate.Forbids(isChange: true)) return IoStatus.Reserved;
            return await device.WriteAsync(offsetBytes, source, flags);
        }
        finally
        {
            gate.Release(held);
        }
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => device.FlushAsync();

    /// <inheritdoc/>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        VolumeGate.Range held = gate.Take(offsetBytes, lengthBytes, false, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (gate.Forbids(isChange: true)) return IoStatus.Reserved;
            return await device.TrimAsync(offsetBytes, lengthBytes, flags);
        }
        finally
        {
            gate.Release(held);
        }
    }

    /// <inheritdoc/>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        VolumeGate.Range held = gate.Take(offsetBytes, lengthBytes, false, out ValueTask<bool> wait);
        await wait;
        try
        {
            if (gate.Forbids(isChange: true)) return IoStatus.Reserved;
            return await device.WriteZeroesAsync(offsetBytes, lengthBytes, flags);
        }
        finally
        {
            gate.Release(held);
        }
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) =>
        gate.Forbids(isChange: false) ? new(IoStatus.Reserved) : device.PrefetchAsync(offsetBytes, lengthBytes);

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
        gate.Forbids(isChange: false) ? new(IoStatus.Reserved) : device.MapAsync(offsetBytes, lengthBytes, runsMax, runs);
}
