using BlockServer.Core;

namespace BlockServer.Storage;

// Which layer what a view shows was written in: its version lies between the cuts of that layer and of the one below.
public sealed partial class Store
{
    /// <inheritdoc/>
    public async ValueTask<IoStatus> DepthAsync(
        uint volumeId, Guid? snapshot, ulong offsetBytes, ulong lengthBytes, int runsMax, List<DepthRun> runs)
    {
        runs.Clear();
        if (Refusal is { } refusal) return refusal;
        Layer? layer = snapshot is { } uuid ? Find(volumeId, uuid) : null;
        if (layer is null && snapshot is not null) return IoStatus.NotFound;
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting) return IoStatus.NotFound;
        Line? view = layer is null ? null : new Line(_slots, layer);
        ulong size = layer?.Head.SizeBytes ?? EndOf(volume);
        if (offsetBytes > size || lengthBytes > size - offsetBytes) return IoStatus.OutOfRange;
        List<ulong> cuts = [];
        for (Layer? below = (layer ?? volume.Top).Parent; below is not null; below = below.Parent)
        {
            if (!below.IsDeleting) cuts.Add(below.Cut); // newest first
        }

        return await GatherAsync(
            offsetBytes, lengthBytes, runsMax, runs, at => DepthAtAsync(volume, view, cuts, at), static (length, depth) => new DepthRun(length, depth));
    }

    private async ValueTask<(IoStatus Status, uint Depth, ulong End)> DepthAtAsync(Volume volume, Line? view, List<ulong> cuts, ulong offset)
    {
        uint extent = (uint)(offset >> Units.ExtentShift);
        ulong start = (ulong)extent << Units.ExtentShift;
        while (true)
        {
            if (State == StoreState.Closed || volume.IsDeleting || view is { IsClosed: true }) return (IoStatus.Unavailable, 0, 0);
            Line line = view ?? volume.Line;
            if (!line.TryGetSlot(extent, out uint slot))
            {
                uint next = line.Skip(extent + 1);
                return (IoStatus.Ok, volume.IsDoubtful ? 1u : 0u, next >= line.ExtentEnd ? ulong.MaxValue : (ulong)next << Units.ExtentShift);
            }

            if (_slots[slot].Mapped == 0) return (IoStatus.Ok, 0, start + Units.ExtentBytes);
            if (_slots.IsResident(slot))
            {
                ReadOnlySpan<byte> entries = _slots.Entries(slot);
                int at = (int)(offset % Units.ExtentBytes) >> Units.BlockShift, next = at + 1;
                uint depth = DepthOf(entries, at, cuts);
                while (next < Units.BlocksPerExtent && DepthOf(entries, next, cuts) == depth) next++;
                return (IoStatus.Ok, depth, start + ((ulong)next << Units.BlockShift));
            }

            IoStatus status = await BringSlotAsync(slot);
            if (status != IoStatus.Ok) return (status, 0, 0);
        }
    }

    private static uint DepthOf(ReadOnlySpan<byte> entries, int index, List<ulong> cuts)
    {
        BlockEntry entry = MetadataPage.Entry(entries, index);
        if (entry.Block == 0) return 0;
        int low = 0, high = cuts.Count; // how many of the cuts are not older than it
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (cuts[middle] >= entry.Version) low = middle + 1;
            else high = middle;
        }

        return (uint)low + 1;
    }
}
