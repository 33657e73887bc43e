using BlockServer.Core;

namespace BlockServer.Storage;

// How far the background is with layers, from tables in RAM alone.
public sealed partial class Store
{
    /// <inheritdoc/>
    public FreeingState? FreeingOf(uint volumeId, Guid snapshot)
    {
        if (!_volumes.TryGetValue(volumeId, out Volume? volume) || volume.IsDeleting) return null;
        Layer? layer = volume.Layers.Values.FirstOrDefault(l => l is { IsTop: false, IsDeleting: true } && l.Head.Uuid == snapshot);
        return layer is null ? null : new FreeingState(PagesOf(layer).Count, layer.Children.Count > 1);
    }

    /// <inheritdoc/>
    public double OwnPart(uint volumeId)
    {
        if (!_volumes.TryGetValue(volumeId, out Volume? volume)) return 1;
        ulong mapped = 0;
        for (uint extent = volume.Line.Skip(0); extent < volume.Line.ExtentEnd; extent = volume.Line.Skip(extent + 1))
        {
            if (volume.Line.TryGetSlot(extent, out uint slot)) mapped += _slots[slot].Mapped;
        }

        return mapped == 0 ? 1 : Math.Min(1, (double)volume.UsedBlocks / mapped);
    }
}
