using BlockServer.Core;

namespace BlockServer.Storage;

// Scrub: reads and verifies every allocated block.
public sealed partial class Store
{
    private const int BadKept = 1000;

    /// <inheritdoc/>
    public async ValueTask<ScrubReport> ScrubAsync(
        uint? volumeId, ulong bytesPerSecond, Action<ScrubReport>? progress, CancellationToken cancel)
    {
        var bad = new List<BadBlock>();
        ulong read = 0, began = _loop.NowNanos, told = began;
        Volume[] volumes = [.. _volumes.Values.Where(v => !v.IsDeleting && (volumeId is null || v.Head.Id == volumeId))];
        ulong total = volumes.Aggregate(0UL, (sum, v) => sum + v.UsedBlocks);
        foreach (Volume volume in volumes)
        {
            for (uint extent = volume.Line.Skip(0); extent < volume.Line.ExtentEnd; extent = volume.Line.Skip(extent + 1))
            {
                if (cancel.IsCancellationRequested || State != StoreState.Online || _isClosing)
                    return new ScrubReport(read, total, bad, Finished: false);
                read += await ScrubExtentAsync(volume, extent, bad);
                ulong due = bytesPerSecond == 0 ? 0 : (ulong)(read * (double)Units.BlockBytes / bytesPerSecond * 1e9);
                ulong passed = _loop.NowNanos - began;
                if (due > passed) await _loop.DelayAsync(due - passed);
                if (_loop.NowNanos - told < 1_000_000_000) continue;
                told = _loop.NowNanos;
                progress?.Invoke(new ScrubReport(read, total, [.. bad], Finished: false));
            }
        }

        var report = new ScrubReport(read, total, bad, Finished: true);
        progress?.Invoke(report);
        return report;
    }

    private async ValueTask<ulong> ScrubExtentAsync(Volume volume, uint extent, List<BadBlock> bad)
    {
        if (!volume.Line.TryGetSlot(extent, out uint slot)) return 0;
        IoBuffer buffer = await _pool.RentAsync(Units.BlockBytes);
        ulong read = 0;
        for (int i = 0; i < Units.BlocksPerExtent; i++)
        {
            IoStatus ready = await ReadyAsync(volume, extent);
            if (!volume.Line.TryGetSlot(extent, out uint now) || now != slot) break;
            if (ready is IoStatus.Corrupt or IoStatus.IoError)
            {
                // Its page: none of its blocks can be found.
                if (bad.Count < BadKept) bad.Add(new BadBlock(volume.Head.Id, (ulong)extent << Units.ExtentShift, ready));
                break;
            }

            if (ready != IoStatus.Ok) break;
            uint block = MetadataPage.Entry(_slots.Entries(slot), i).Block;
            if (block == 0) continue;
            ReadResult result = await ReadBlocksAsync(volume, extent, i, 1, buffer.Slice(0, Units.BlockBytes));
            read++;
            if (result.Status is not (IoStatus.Corrupt or IoStatus.IoError)) continue;
            if (bad.Count < BadKept)
                bad.Add(new BadBlock(volume.Head.Id, ((ulong)extent << Units.ExtentShift) + ((ulong)i << Units.BlockShift), result.Status));
            // The medium did not keep what was written there: once it is overwritten or trimmed it is not used again.
            if (block != MetadataPage.UnknownBlock) await RetireAsync(block);
        }

        buffer.Return();
        return read;
    }
}
