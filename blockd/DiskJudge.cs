using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>What can be seen of a disk from outside its loop.</summary>
internal readonly record struct DiskPulse(string Name, ulong Answered, int InFlight);

/// <summary>What its loop says of a disk.</summary>
/// <param name="State">Whether it serves.</param>
/// <param name="Stats">Its figures.</param>
/// <param name="FreeBytes">What may still be written.</param>
/// <param name="Operations">Requests that the medium answered.</param>
/// <param name="Nanos">How long those took together.</param>
internal sealed record DiskLook(StoreState State, StoreStats Stats, ulong FreeBytes, ulong Operations, ulong Nanos);

/// <summary>
/// Judges one disk, look after look: which faults it has now. The clock is the caller's. Lives with whoever calls it, one call at a
/// time.
/// </summary>
internal sealed class DiskJudge(int lowSpacePercent, int metadataWarnPercent = 100)
{
    /// <summary>Without an answer for so long a disk with requests hangs.</summary>
    public static readonly TimeSpan HungAfter = TimeSpan.FromSeconds(5);

    private static readonly TimeSpan s_errorsStay = TimeSpan.FromHours(1), s_slowStays = TimeSpan.FromMinutes(1);

    private const double SlowNanos = 500e6, FastNanos = 250e6;

    private ulong _answered, _operations, _nanos, _checksumErrors, _ioErrors;
    private TimeSpan _answeredAt, _checksumAt, _ioErrorAt, _slowAt;
    private bool _isSlow, _isLow, _isMetadataLow, _isProtected, _hasChecksum, _hasIoError, _isKnown;
    private DiskLook? _last;

    /// <summary>Something may have changed since the last look: the loop is worth a visit. An idle disk with no fault is left
    /// alone.</summary>
    public bool IsWorthALook(DiskPulse pulse) =>
        _last is null || pulse.Answered != _answered || _hasChecksum || _hasIoError || _isSlow || _isLow || _isMetadataLow || _isProtected || IsFull(_last.Stats);

    /// <summary>The faults at <paramref name="now"/>; <paramref name="look"/> is null when the loop was not visited or did not
    /// answer.</summary>
    public IReadOnlyList<SeenFault> Judge(TimeSpan now, DiskPulse pulse, DiskLook? look)
    {
        if (pulse.InFlight == 0 || pulse.Answered != _answered || !_isKnown) _answeredAt = now;
        (_answered, _isKnown) = (pulse.Answered, true);
        if (look is not null) Take(now, look);
        var faults = new List<SeenFault>();
        if (now - _answeredAt >= HungAfter)
            faults.Add(new SeenFault(EventCatalogue.DiskHung, pulse.Name, $"disk {pulse.Name} answers none of {pulse.InFlight} requests"));
        if (_last is not { } last) return faults;
        if (last.State == StoreState.Failed)
        {
            faults.Add(new SeenFault(EventCatalogue.DiskFailed, pulse.Name, $"disk {pulse.Name} has failed: {last.Stats.FailReason}"));
            return faults; // the rest follows from it
        }

        if (_isSlow) faults.Add(new SeenFault(EventCatalogue.DiskSlow, pulse.Name, $"disk {pulse.Name} takes more than half a second for a request"));
        if (_hasIoError) faults.Add(new SeenFault(EventCatalogue.DiskErrors, pulse.Name, $"disk {pulse.Name} has answered {last.Stats.IoErrors} requests with errors since it was opened"));
        if (_hasChecksum) faults.Add(new SeenFault(EventCatalogue.Checksum, pulse.Name, $"disk {pulse.Name} holds {last.Stats.ChecksumErrors} blocks that are not what was written, as far as they were read"));
        if (last.Stats.BlocksBad > 0) faults.Add(new SeenFault(EventCatalogue.DiskBadBlocks, pulse.Name, $"disk {pulse.Name} has {SizeText.Format(last.Stats.BlocksBad * Units.BlockBytes)} of bad blocks"));
        // One of these, the worst.
        if (IsFull(last.Stats)) faults.Add(new SeenFault(EventCatalogue.StoreFull, pulse.Name, $"disk {pulse.Name} is full"));
        else if (_isProtected) faults.Add(new SeenFault(EventCatalogue.StoreProtected, pulse.Name, $"disk {pulse.Name} takes no new extents: {Why(last.Stats)}"));
        else if (_isLow) faults.Add(new SeenFault(EventCatalogue.StoreLow, pulse.Name, $"disk {pulse.Name} has less than {lowSpacePercent}% free"));
        if (_isMetadataLow && !_isProtected)
            faults.Add(new SeenFault(EventCatalogue.MetadataLow, pulse.Name, $"disk {pulse.Name} uses {last.Stats.SlotsHeld} of {last.Stats.SlotsTotal} metadata slots"));
        return faults;
    }

    private static string Why(StoreStats s) => SlotRoom(s) == 0
        ? $"{s.SlotsHeld} of {s.SlotsTotal} metadata slots are in use" : $"{SizeText.Format(Room(s) * Units.BlockBytes)} are left in front of the level of --write-protect";

    /// <summary>Nothing grows any more.</summary>
    private static bool IsFull(StoreStats s) => s.BlocksFreeSoon <= s.BlocksReserved;

    private static ulong Room(StoreStats s) => s.BlocksFreeSoon - Math.Min(s.BlocksFreeSoon, s.BlocksKept);

    private static ulong SlotRoom(StoreStats s) => s.SlotsTotal - Math.Min(s.SlotsTotal, s.SlotsHeld + s.SlotsKept);

    private void Take(TimeSpan now, DiskLook look)
    {
        ulong operations = look.Operations - _operations, nanos = look.Nanos - _nanos;
        if (operations > 0 && nanos / (double)operations >= SlowNanos) (_isSlow, _slowAt) = (true, now);
        else if ((operations > 0 && nanos / (double)operations < FastNanos) || now - _slowAt >= s_slowStays) _isSlow = false;
        (_operations, _nanos) = (look.Operations, look.Nanos);
        Follow(look.Stats.ChecksumErrors, ref _checksumErrors, ref _checksumAt, ref _hasChecksum, now);
        Follow(look.Stats.IoErrors, ref _ioErrors, ref _ioErrorAt, ref _hasIoError, now);
        ulong level = look.Stats.BlocksTotal * Units.BlockBytes / 100 * (ulong)lowSpacePercent;
        _isLow = look.FreeBytes < (_isLow ? level + level / 4 : level);
        StoreStats s = look.Stats;
        _isMetadataLow = metadataWarnPercent < 100 && s.SlotsHeld * 100 >= s.SlotsTotal * (ulong)metadataWarnPercent - (_isMetadataLow ? s.SlotsTotal * 3 : 0);
        // Over when a hundredth more is free: not at the first extent that is trimmed.
        bool isNear = s.BlocksKept > s.BlocksReserved && Room(s) < Math.Max(Units.BlocksPerExtent, _isProtected ? s.BlocksTotal / 100 : 0);
        _isProtected = isNear || SlotRoom(s) <= (_isProtected ? s.SlotsTotal / 100 : 0);
        _last = look;
    }

    private static void Follow(ulong count, ref ulong known, ref TimeSpan at, ref bool isOpen, TimeSpan now)
    {
        if (count > known) (isOpen, at) = (true, now);
        else if (now - at >= s_errorsStay) isOpen = false;
        known = count;
    }
}
