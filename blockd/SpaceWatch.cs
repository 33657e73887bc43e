using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>
/// Notices that a store runs low. It is asked by writes, not by a clock: the store is looked at again when so much was written
/// that the level could have been reached, so an idle daemon stays idle. Lives on the store's loop.
/// </summary>
internal sealed class SpaceWatch(Func<StoreStats?> look, Func<StoreStats, ulong> free, int percent, int metadataPercent = 100)
{
    private const long LookBytesMin = (long)(256 * Units.KiB), LookBytesMax = (long)Units.GiB;

    private long _budget;

    /// <summary>Called when less than the level has become free, or more than the other level of metadata slots is in use; once until a good deal more is free again.</summary>
    public Action<ulong>? Crossed { get; set; }

    /// <summary>Less than the level is free.</summary>
    public bool IsLow { get; private set; }

    /// <summary>So much is about to be written.</summary>
    public void OnWriting(ulong bytes)
    {
        if (percent == 0 && metadataPercent == 100) return;
        _budget -= (long)bytes + 2 * Units.BlockBytes; // both ends may take a block more
        if (_budget < 0) Look();
    }

    private void Look()
    {
        _budget = LookBytesMin;
        if (look() is not { } stats) return;
        ulong level = stats.BlocksTotal * Units.BlockBytes / 100 * (ulong)percent, now = free(stats);
        bool wasLow = IsLow;
        ulong slots = metadataPercent == 100 ? ulong.MaxValue : stats.SlotsTotal * (ulong)metadataPercent / 100, used = stats.SlotsHeld + (wasLow ? stats.SlotsTotal * 3 / 100 : 0);
        IsLow = now < (wasLow ? level + level / 4 : level) || used >= slots;
        // A write begins two extents at most.
        ulong until = slots == ulong.MaxValue ? slots : (slots - Math.Min(slots, used)) * Units.BlockBytes;
        if (!IsLow) _budget = Math.Clamp((long)Math.Min(Math.Min(now - level, until), long.MaxValue) / 2, LookBytesMin, LookBytesMax);
        if (IsLow && !wasLow) Crossed?.Invoke(now);
    }
}

/// <summary>A volume whose writes are told to the watch of its store. Lives on the volume's loop; does not own the device.</summary>
internal sealed class WatchedDevice(IBlockDevice device, SpaceWatch? watch) : IBlockDevice
{
    /// <summary>The watch of its store; null when that is told on another loop.</summary>
    public SpaceWatch? Watch { get; set; } = watch;

    /// <inheritdoc/>
    public ulong SizeBytes => device.SizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly => IsSealed || device.IsReadOnly;

    /// <summary>It is an image: whoever was let in when it was none changes nothing either.</summary>
    public bool IsSealed { get; set; }

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => device.ReadAsync(offsetBytes, target);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        if (IsSealed) return new(IoStatus.ReadOnly);
        Watch?.OnWriting((ulong)source.Length);
        return device.WriteAsync(offsetBytes, source, flags);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => device.FlushAsync();

    /// <inheritdoc/>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        IsSealed ? new(IoStatus.ReadOnly) : device.TrimAsync(offsetBytes, lengthBytes, flags);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        if (IsSealed) return new(IoStatus.ReadOnly);
        Watch?.OnWriting((flags & WriteFlags.NoHole) != 0 ? lengthBytes : 0); // of holes the ends only
        return device.WriteZeroesAsync(offsetBytes, lengthBytes, flags);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => device.PrefetchAsync(offsetBytes, lengthBytes);

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
        device.MapAsync(offsetBytes, lengthBytes, runsMax, runs);
}
