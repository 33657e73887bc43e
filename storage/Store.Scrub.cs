using BlockServer.Core;

namespace BlockServer.Storage;

// Scrub: reads and verifies every block once, in the page of the layer that it was written in; metadata slot by slot, which
// is about the order of the store.
public sealed partial class Store
{
    private const int BadKept = 1000;

    // Slots looked at in one turn at most, when none of them is to be read.
    private const uint SlotsPerTurn = 4096;

    // Between two extents while clients ask for something: from the first to the second, so that it goes on all the same.
    private const ulong ScrubRestMin = 20_000_000, ScrubRestMax = 250_000_000;

    // After so many blocks it is told where it is, however quick it is.
    private const ulong ScrubTellBlocks = 32 * Units.MiB / Units.BlockBytes;

    /// <inheritdoc/>
    public async ValueTask<ScrubReport> ScrubAsync(
        uint? volumeId, ulong bytesPerSecond, Action<ScrubReport>? progress, CancellationToken cancel, ulong position = 0)
    {
        var bad = new List<BadBlock>();
        ulong read = 0, began = _loop.NowNanos, told = began, toldRead = 0, rest = 0, requests = _requests;
        HashSet<Volume> volumes = VolumesOf(volumeId);
        ulong total = volumes.Aggregate(0UL, (sum, v) => sum + v.UsedBlocks);
        // A slot stays where it is over restarts; what begins in one behind us was written since.
        for (uint slot = (uint)Math.Min(position, uint.MaxValue); slot < _slots.Next; slot++)
        {
            if (cancel.IsCancellationRequested || State != StoreState.Online || _isClosing)
                return new ScrubReport(read, total, bad, Finished: false, slot);
            if (slot % SlotsPerTurn == SlotsPerTurn - 1) await _loop.DelayAsync(1);
            if (_slots[slot].Kind != MetadataKind.Extent || !volumes.Contains(_volumes[_slots[slot].VolumeId])) continue;
            ulong before = read;
            read += await ScrubPageAsync(slot, bad);
            if (read == before) continue;
            rest = _requests == requests ? 0 : Math.Clamp(2 * rest, ScrubRestMin, ScrubRestMax);
            requests = _requests;
            if (rest > 0) await _loop.DelayAsync(rest);
            ulong due = bytesPerSecond == 0 ? 0 : (ulong)(read * (double)Units.BlockBytes / bytesPerSecond * 1e9);
            ulong passed = _loop.NowNanos - began;
            if (due > passed) await _loop.DelayAsync(due - passed);
            if (_loop.NowNanos - told < 1_000_000_000 && read - toldRead < ScrubTellBlocks) continue;
            (told, toldRead) = (_loop.NowNanos, read);
            progress?.Invoke(new ScrubReport(read, total, [.. bad], Finished: false, slot + 1));
        }

        var report = new ScrubReport(read, total, bad, Finished: true, _slots.Next);
        progress?.Invoke(report);
        return report;
    }

    /// <summary>All volumes, or one and those that it builds on.</summary>
    private HashSet<Volume> VolumesOf(uint? volumeId)
    {
        if (volumeId is not { } id) return [.. _volumes.Values];
        var found = new HashSet<Volume>();
        if (!_volumes.TryGetValue(id, out Volume? volume) || volume.IsDeleting) return found;
        for (; volume is not null && found.Add(volume); volume = BaseOf(volume)?.Volume)
        {
        }

        return found;
    }

    /// <summary>Verifies the blocks that were written in the page's layer; how many.</summary>
    private async ValueTask<ulong> ScrubPageAsync(uint slot, List<BadBlock> bad)
    {
        Layer layer = LayerOf(slot);
        Volume volume = layer.Volume;
        uint extent = _slots[slot].Extent;
        IoBuffer buffer = await _pool.RentAsync(Units.BlockBytes);
        ulong read = 0;
        // While it waits the page may go: the extent is dropped, or its layer.
        bool IsStill() => !volume.IsDeleting && IsPageOf(layer, slot) && _slots[slot].Extent == extent;
        for (int i = 0; i < Units.BlocksPerExtent && IsStill(); i++)
        {
            IoStatus ready = await BringSlotAsync(slot);
            if (!IsStill()) break;
            if (ready is IoStatus.Corrupt or IoStatus.IoError)
            {
                // None of its blocks can be found.
                if (bad.Count < BadKept) bad.Add(new BadBlock(volume.Head.Id, (ulong)extent << Units.ExtentShift, ready));
                break;
            }

            if (ready != IoStatus.Ok) break;
            BlockEntry entry = MetadataPage.Entry(_slots.Entries(slot), i);
            if (entry.Block == 0 || entry.Version <= SharedUpTo(slot)) continue;
            ReadResult result = await ReadRunsAsync(slot, i, 1, buffer.Slice(0, Units.BlockBytes));
            read++;
            if (result.Status is not (IoStatus.Corrupt or IoStatus.IoError)) continue;
            ulong offset = ((ulong)extent << Units.ExtentShift) + ((ulong)i << Units.BlockShift);
            Guid? snapshot = layer.IsTop || await IsShownAsync(volume, extent, i, entry.Block) ? null : layer.Head.Uuid;
            if (bad.Count < BadKept) bad.Add(new BadBlock(volume.Head.Id, offset, result.Status) { Snapshot = snapshot });
            // The medium did not keep what was written there: once it is overwritten or trimmed it is not used again.
            if (entry.Block != MetadataPage.UnknownBlock) await RetireAsync(entry.Block);
        }

        buffer.Return();
        return read;
    }

    /// <summary>The volume itself shows the block, not only a snapshot of it.</summary>
    private async ValueTask<bool> IsShownAsync(Volume volume, uint extent, int index, uint block) =>
        await ReadyAsync(volume, extent) == IoStatus.Ok && volume.Line.TryGetSlot(extent, out uint slot)
        && MetadataPage.Entry(_slots.Entries(slot), index).Block == block;
}
