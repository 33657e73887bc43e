namespace BlockServer.Tests.Simulation;

/// <content>
/// A block is stored, checked and replaced as a whole, and a request that covers only a part of it is merged with what
/// the block held when its turn came. So a block read at any time is as one change left it, its maker: the sectors that
/// the maker covers hold its content, every other sector holds what was current when the maker merged.
/// <para>
/// After a power cut this has a consequence that looks like a torn request and is none. Request A covers blocks 1 to 3
/// and is acknowledged, not flushed; request B covers half of block 3 and merges A's other half. The power fails: A is
/// dropped as a whole because its data in block 1 did not reach the medium, B is kept because all of its data did, and
/// block 3 shows A's sectors although A never happened. Nothing acknowledged durable is lost by it and every sector
/// holds something that was current once, which is what a disk with a cache promises. What P3 forbids is that A itself
/// is there in part: it made one of the blocks, and another of its blocks is as it was before A.
/// </para>
/// </content>
public sealed partial class VolumeModel
{
    /// <summary>Every block was made by one change, and every change that may not be torn made all of its blocks or none.</summary>
    private Violation? JudgeBlocks(ModelWrite?[] seen, bool powerWasCut, Func<ModelWrite, bool>? isFirm = null)
    {
        var made = new HashSet<ModelWrite>(ReferenceEqualityComparer.Instance);
        for (ulong first = 0; first < (ulong)seen.Length; first += SectorsPerBlock)
        {
            Violation? fault = JudgeBlock(first, seen.AsSpan((int)first), out ModelWrite? maker);
            if (fault is not null) return fault;
            if (maker is { IsAtomic: true } && !(isFirm?.Invoke(maker) ?? IsFirm(maker, powerWasCut))) made.Add(maker);
        }

        foreach (ModelWrite write in made)
        {
            ulong end = Math.Min(write.FirstSector + write.Sectors, (ulong)seen.Length);
            for (ulong s = write.FirstSector; s < end; s++)
            {
                if (seen[s] is { } found && found.IsBefore(write))
                {
                    return new Violation(
                        ViolationKind.TornRequest,
                        $"volume {Head.Id} sector {s}: only a part of {Name(write)} is there, this sector holds {Name(found)}");
                }
            }
        }

        WholeRequests += made.Count;
        foreach (ModelWrite write in _notDurable)
        {
            if (powerWasCut && write.IsAtomic && !made.Contains(write)) AbsentRequests++;
        }

        return null;
    }

    /// <summary>Looks for the maker of the block at sector <paramref name="first"/>; <paramref name="seen"/> begins there.
    /// <paramref name="maker"/> is null when there are several that may be it.</summary>
    private Violation? JudgeBlock(ulong first, ReadOnlySpan<ModelWrite?> seen, out ModelWrite? maker)
    {
        maker = null;
        int count = Math.Min((int)SectorsPerBlock, seen.Length);
        seen = seen[..count];
        if (seen.Contains(null)) return null; // unreadable
        ModelWrite one = seen[0]!;
        if (!seen.ContainsAnyExcept(one) && (one.IsZero || Covers(one, first, (int)SectorsPerBlock)))
        {
            if (!one.IsZero) maker = one;
            return null;
        }

        bool isFound = false;
        foreach (ModelWrite candidate in Candidates(first))
        {
            if (!IsMadeBy(candidate, first, seen)) continue;
            maker = isFound ? null : candidate;
            isFound = true;
        }

        return isFound ? null : new Violation(
            ViolationKind.WrongData,
            $"volume {Head.Id} sectors {first}+{count}: a mixture that no change left: "
                + string.Join(", ", seen.ToArray().Select(write => Name(write!)).Distinct()));
    }

    private static bool Covers(ModelWrite write, ulong first, int count) =>
        write.FirstSector <= first && write.FirstSector + write.Sectors >= first + (ulong)count;

    /// <summary>Changes that may have made the block, also those that touch it only behind the end of the volume.</summary>
    private IEnumerable<ModelWrite> Candidates(ulong first)
    {
        var told = new HashSet<ModelWrite>(ReferenceEqualityComparer.Instance);
        for (ulong s = first; s < first + SectorsPerBlock; s++)
        {
            foreach (ModelWrite write in HistoryOf(s) ?? [Fresh])
            {
                if (told.Add(write)) yield return write;
            }
        }
    }

    private bool IsMadeBy(ModelWrite maker, ulong first, ReadOnlySpan<ModelWrite?> seen)
    {
        bool isFresh = ReferenceEquals(maker, Fresh);
        for (int i = 0; i < seen.Length; i++)
        {
            ulong sector = first + (ulong)i;
            ModelWrite found = seen[i]!;
            if (isFresh || Covers(maker, sector, 1))
            {
                if (maker.IsZero ? !found.IsZero : !ReferenceEquals(found, maker)) return false;
            }
            else if (found.IsZero ? !WereZerosCurrent(sector, maker) : !WasCurrent(sector, found, maker))
            {
                return false;
            }
        }

        return true;
    }

    /// <summary>Any zeroing, or the first zeros, may be what the maker found.</summary>
    private bool WereZerosCurrent(ulong sector, ModelWrite maker)
    {
        if (HistoryOf(sector) is not { } history) return true;
        foreach (ModelWrite write in history)
        {
            if (write.IsZero && WasCurrent(sector, write, maker)) return true;
        }

        return false;
    }

    /// <summary><paramref name="write"/> may have been the sector's content when <paramref name="maker"/> merged: it is not
    /// after the maker, and nothing that certainly happened lies between.</summary>
    private bool WasCurrent(ulong sector, ModelWrite write, ModelWrite maker)
    {
        if (maker.IsBefore(write)) return false;
        foreach (ModelWrite between in HistoryOf(sector) ?? [])
        {
            if (between.IsSure && write.IsBefore(between) && between.IsBefore(maker)) return false;
        }

        return true;
    }
}
