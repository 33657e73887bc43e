namespace BlockServer.Tests.Simulation.Incoming;

/// <summary>What a run of imports did; each must have happened in a run of the default seeds.</summary>
public enum ImportDid
{
    /// <summary>Full streams that were taken.</summary>
    Fulls,

    /// <summary>Increments that were taken.</summary>
    Increments,

    /// <summary>Interrupted streams that went on and were taken.</summary>
    Resumed,

    /// <summary>Streams that broke and were kept.</summary>
    Kept,

    /// <summary>Streams that broke and were taken back at once.</summary>
    Dropped,

    /// <summary>Imports that were given up.</summary>
    GivenUp,

    /// <summary>Streams that were refused before anything was changed.</summary>
    Refused,

    /// <summary>Streams that were refused since somebody had the volume open.</summary>
    InUse,

    /// <summary>Streams that found the disk full.</summary>
    Full,

    /// <summary>Copies that were populated.</summary>
    Copies,

    /// <summary>Volumes that were deleted.</summary>
    Deleted,

    /// <summary>Contents that readers were shown in between.</summary>
    Reads,

    /// <summary>Times that nobody could attach what was not whole.</summary>
    Closed,

    /// <summary>Deaths of the process, or cuts of the power, while a stream came.</summary>
    DeathsInImport,

    /// <summary>The same while a copy was made.</summary>
    DeathsInCopy,

    /// <summary>The same while the daemon took up what an earlier death had left.</summary>
    DeathsInRecovery,

    /// <summary>Stores whose blocks were all accounted for.</summary>
    Audits,
}

/// <summary>Counts of <see cref="ImportDid"/>.</summary>
public sealed class ImportCounters : IRunCounters<ImportCounters>
{
    private readonly long[] _counts = new long[Enum.GetValues<ImportDid>().Length];

    /// <summary>How often.</summary>
    public long this[ImportDid what]
    {
        get => _counts[(int)what];
        set => _counts[(int)what] = value;
    }

    /// <inheritdoc/>
    public IReadOnlyList<string> Missing => [.. Enum.GetValues<ImportDid>().Where(d => this[d] == 0).Select(d => d.ToString())];

    /// <inheritdoc/>
    public void Add(ImportCounters other)
    {
        for (int i = 0; i < _counts.Length; i++) _counts[i] += other._counts[i];
    }

    /// <inheritdoc/>
    public override string ToString() => string.Join(", ", Enum.GetValues<ImportDid>().Select(d => $"{d} {this[d]}"));
}
