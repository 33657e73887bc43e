using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>What a disk is made of and what may still be promised there, told from the figures of its store.</summary>
internal static class DiskSpace
{
    /// <summary>Bytes that may still be promised to a volume: new extents keep their distance, and each needs a metadata slot.</summary>
    public static ulong PromisableBytes(StoreStats s)
    {
        ulong blocks = Left(s.BlocksFreeSoon, s.BlocksKept + s.BlocksPromised);
        // One slot is for the head of the volume.
        ulong slots = Left(s.SlotsTotal, s.SlotsHeld + s.SlotsKept + s.SlotsPromised + 1);
        return Math.Min(blocks * Units.BlockBytes, slots * Units.ExtentBytes);
    }

    /// <summary>Bytes that data may take in all, when it fills the extents that it touches.</summary>
    public static ulong UsableBytes(StoreStats s) => Math.Min(
        Left(s.BlocksTotal, s.BlocksKept + s.BlocksBad) * Units.BlockBytes, Left(s.SlotsTotal, s.SlotsKept + 1) * Units.ExtentBytes);

    /// <summary>How many volumes of a size may still be promised.</summary>
    public static long Fitting(StoreStats s, ulong sizeBytes)
    {
        ulong blocks = Left(s.BlocksFreeSoon, s.BlocksKept + s.BlocksPromised), slots = Left(s.SlotsTotal, s.SlotsHeld + s.SlotsKept + s.SlotsPromised);
        ulong each = (sizeBytes + Units.BlockBytes - 1) >> Units.BlockShift, extents = (sizeBytes + Units.ExtentBytes - 1) >> Units.ExtentShift;
        return (long)Math.Min(blocks / each, slots / (extents + 1));
    }

    /// <summary>The figures of a disk. <paramref name="promised"/>: what its volumes were promised together;
    /// <paramref name="thin"/>: what those that were not could still ask for.</summary>
    public static CapacityFigures Describe(StoreStats s, ulong promised, ulong thin, ulong? sizeBytes)
    {
        ulong usable = UsableBytes(s), used = s.BlocksUsed * Units.BlockBytes;
        return new CapacityFigures(
            s.MediumBytes, s.LogBytes, s.MediumBytes - s.LogBytes - s.BlocksTotal * Units.BlockBytes, s.BlocksKept * Units.BlockBytes, s.BlocksBad * Units.BlockBytes,
            usable, used, Left(s.BlocksFreeSoon, s.BlocksKept) * Units.BlockBytes, promised, s.BlocksPromised * Units.BlockBytes, thin, PromisableBytes(s),
            Ratio(used, s.BlocksPromised * Units.BlockBytes, thin, usable), s.SlotsTotal, s.SlotsHeld, sizeBytes is { } size ? Fitting(s, size) : null);
    }

    /// <summary>All disks together.</summary>
    public static CapacityFigures Sum(IReadOnlyCollection<CapacityFigures> disks)
    {
        ulong Of(Func<CapacityFigures, ulong> figure) => disks.Aggregate(0UL, (sum, d) => sum + figure(d));
        ulong usable = Of(d => d.UsableBytes), used = Of(d => d.UsedBytes), left = Of(d => d.PromisedLeftBytes), thin = Of(d => d.ThinBytes);
        return new CapacityFigures(
            Of(d => d.RawBytes), Of(d => d.LogBytes), Of(d => d.MetadataBytes), Of(d => d.ReserveBytes), Of(d => d.BadBytes), usable, used, Of(d => d.FreeBytes),
            Of(d => d.PromisedBytes), left, thin, Of(d => d.AvailableBytes), Ratio(used, left, thin, usable), Of(d => d.MetadataSlots), Of(d => d.MetadataSlotsUsed),
            disks.Any(d => d.Fits is not null) ? disks.Sum(d => d.Fits) : null);
    }

    private static double Ratio(ulong used, ulong left, ulong thin, ulong usable) => usable == 0 ? 0 : Math.Round(((double)used + left + thin) / usable, 3);

    private static ulong Left(ulong all, ulong taken) => taken >= all ? 0 : all - taken;
}
