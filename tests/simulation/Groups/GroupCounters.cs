namespace BlockServer.Tests.Simulation.Groups;

/// <summary>What a run of groups did; each must have happened in a run of the default seeds.</summary>
public enum GroupDid
{
    /// <summary>Numbers that were written and answered.</summary>
    Numbers,

    /// <summary>Groups that were cut over two disks.</summary>
    CutOverDisks,

    /// <summary>Groups that were cut on one disk.</summary>
    CutOnOne,

    /// <summary>Cuts that took too long, and left nothing.</summary>
    TooSlow,

    /// <summary>Groups that were judged again after a death.</summary>
    Judged,

    /// <summary>Groups that were deleted.</summary>
    Deleted,

    /// <summary>Deaths of the process, or cuts of the power, while a group was cut.</summary>
    DeathsInCut,

    /// <summary>Groups that volumes were rolled back to together.</summary>
    RolledBack,

    /// <summary>Deaths while volumes were rolled back together.</summary>
    DeathsInRollback,

    /// <summary>Deaths of a start.</summary>
    DeathsInRecovery,

    /// <summary>Stores whose blocks were all accounted for.</summary>
    Audits,
}

/// <summary>Counts of <see cref="GroupDid"/>.</summary>
public sealed class GroupCounters : IRunCounters<GroupCounters>
{
    private readonly long[] _counts = new long[Enum.GetValues<GroupDid>().Length];

    /// <summary>How often.</summary>
    public long this[GroupDid what]
    {
        get => _counts[(int)what];
        set => _counts[(int)what] = value;
    }

    /// <inheritdoc/>
    public IReadOnlyList<string> Missing => [.. Enum.GetValues<GroupDid>().Where(d => this[d] == 0).Select(d => d.ToString())];

    /// <inheritdoc/>
    public void Add(GroupCounters other)
    {
        for (int i = 0; i < _counts.Length; i++) _counts[i] += other._counts[i];
    }

    /// <inheritdoc/>
    public override string ToString() => string.Join(", ", Enum.GetValues<GroupDid>().Select(d => $"{d} {this[d]}"));
}
