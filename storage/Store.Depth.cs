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
        List<DepthCut> cuts = CutsBelow(volume, layer);
        return await GatherAsync(
            offsetBytes, lengthBytes, runsMax, runs, at => DepthAtAsync(volume, view, cuts, at), static (length, depth) => new DepthRun(length, depth));
    }

    /// <summary>The cuts in front of a view, newest first. One of an append-only volume shows nothing behind its end, whatever was written
    /// there before it: pieces of an append whose length was not said yet (<see cref="MovedEnd"/>). Older ones end no later.</summary>
    private static List<DepthCut> CutsBelow(Volume volume, Layer? layer)
    {
        List<DepthCut> cuts = [];
        ulong shown = layer?.Head.LengthBytes ?? volume.Appends?.LengthBytes ?? 0;
        for (Layer? below = (layer ?? volume.Top).Parent; below is not null; below = below.Parent)
        {
            if (below.IsDeleting) continue;
            bool isShort = below.Head.IsAppendOnly && below.Head.LengthBytes != shown;
            cuts.Add(new DepthCut(below.Cut, isShort ? below.Head.LengthBytes & ~(ulong)(Units.BlockBytes - 1) : ulong.MaxValue));
        }

        return cuts;
    }

    private async ValueTask<(IoStatus Status, uint Depth, ulong End)> DepthAtAsync(Volume volume, Line? view, List<DepthCut> cuts, ulong offset)
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
                uint depth = DepthOf(entries, start, at, cuts);
                while (next < Units.BlocksPerExtent && DepthOf(entries, start, next, cuts) == depth) next++;
                return (IoStatus.Ok, depth, start + ((ulong)next << Units.BlockShift));
            }

            IoStatus status = await BringSlotAsync(slot);
            if (status != IoStatus.Ok) return (status, 0, 0);
        }
    }

    private static uint DepthOf(ReadOnlySpan<byte> entries, ulong start, int index, List<DepthCut> cuts)
    {
        ulong offset = start + ((ulong)index << Units.BlockShift);
        BlockEntry entry = MetadataPage.Entry(entries, index);
        if (entry.Block == 0) return 0;
        int low = 0, high = cuts.Count; // how many of the cuts show it
        while (low < high)
        {
            int middle = (low + high) / 2;
            if (cuts[middle].Version >= entry.Version && offset < cuts[middle].EndBytes) low = middle + 1;
            else high = middle;
        }

        return (uint)low + 1;
    }

    /// <summary>A snapshot shows what is not newer than its version and lies in front of its end.</summary>
    private readonly record struct DepthCut(ulong Version, ulong EndBytes);
}
