using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

/// <summary>What a run did and judged; every one must have happened in a run of the default seeds, or a promise was not
/// looked at.</summary>
public enum Did
{
    /// <summary>Requests answered.</summary>
    Requests,

    /// <summary>Bytes read and compared with the model.</summary>
    BytesJudged,

    /// <summary>Runs with durability flush.</summary>
    FlushMode,

    /// <summary>Runs with durability ack.</summary>
    AckMode,

    /// <summary>Runs whose log goes through a second view of the disk.</summary>
    SeparateLog,

    /// <summary>Runs on the smallest redo ring.</summary>
    SmallestRing,

    /// <summary>Runs on the smallest disk.</summary>
    SmallestDisk,

    /// <summary>Kills while serving.</summary>
    Kills,

    /// <summary>Power cuts while serving.</summary>
    PowerCuts,

    /// <summary>Crashes while opening.</summary>
    CrashesInRecovery,

    /// <summary>Crashes while closing.</summary>
    CrashesInClose,

    /// <summary>Clean closes.</summary>
    Closes,

    /// <summary>Distinct disk states that were recovered and judged.</summary>
    CrashStates,

    /// <summary>Stores that stopped themselves.</summary>
    FailStops,

    /// <summary>Opens refused because the disk had lied.</summary>
    RefusedAfterLie,

    /// <summary>Opens refused because the disk failed meanwhile.</summary>
    RefusedAfterError,

    /// <summary>Checkpoint cycles.</summary>
    Checkpoints,

    /// <summary>Sectors with acknowledged content that had to be there after a crash and was (P1).</summary>
    KeptSectors,

    /// <summary>Reads of clients judged (P2).</summary>
    ReadsJudged,

    /// <summary>Undurable requests that were there as a whole after a crash (P3).</summary>
    WholeRequests,

    /// <summary>Acknowledged, undurable requests of which nothing was there after a crash (P3).</summary>
    AbsentRequests,

    /// <summary>Blocks that answered an error instead of wrong data (P4).</summary>
    UnreadableBlocks,

    /// <summary>Deleted volumes that a later opening did not show (P8).</summary>
    GoneVolumes,

    /// <summary>Checks that what volumes use is what is used (S9).</summary>
    SpaceJudged,

    /// <summary>Blocks laid out anew.</summary>
    BlocksRelaid,

    /// <summary>Extents that a client wrote while they were laid out anew.</summary>
    RelayoutsLost,

    /// <summary>Extents left as they were because a block could not be read.</summary>
    RelayoutsSkipped,

    /// <summary>Requests refused because the store was full (S10).</summary>
    FullStores,

    /// <summary>Allocation answers judged.</summary>
    MapsJudged,

    /// <summary>Holes in them.</summary>
    HolesJudged,

    /// <summary>Scrubs judged.</summary>
    ScrubsJudged,

    /// <summary>Bad blocks that a scrub had to find and did.</summary>
    BadFound,

    /// <summary>Snapshots cut.</summary>
    Snapshots,

    /// <summary>Snapshots cut of several volumes at once.</summary>
    Groups,

    /// <summary>Snapshots whose whole content was compared.</summary>
    SnapshotsJudged,

    /// <summary>Snapshots that a crash left unanswered and that were there.</summary>
    SnapshotsKept,

    /// <summary>Snapshots deleted.</summary>
    SnapshotsDeleted,

    /// <summary>Volumes rolled back.</summary>
    RollBacks,

    /// <summary>Clones created.</summary>
    Clones,

    /// <summary>Clones flattened to the end.</summary>
    Flattened,

    /// <summary>Deletions refused because of a clone.</summary>
    HeldByClones,

    /// <summary>Differences between snapshots compared.</summary>
    DiffsJudged,

    /// <summary>Stores at rest of which every page and block was counted (S2, S9).</summary>
    Audits,

    /// <summary>Appends that landed. From here on: only with <see cref="SimulationOptions.Appends"/>.</summary>
    Appends,

    /// <summary>Appends asked for again and answered as such.</summary>
    AppendsRepeated,

    /// <summary>Appends refused because they were too old, their client unknown, or the volume sealed or gone.</summary>
    AppendsRefused,

    /// <summary>Appends refused because the volume was full.</summary>
    AppendsFull,

    /// <summary>Appends that waited while one in front of them, of the same client, was refused.</summary>
    AppendsRefusedBehind,

    /// <summary>Append-only volumes sealed.</summary>
    AppendSeals,

    /// <summary>Append-only volumes with a new name or greatest length.</summary>
    AppendRenames,

    /// <summary>Snapshots of them.</summary>
    AppendSnapshots,

    /// <summary>Their rollbacks.</summary>
    AppendRollBacks,

    /// <summary>Their clones.</summary>
    AppendClones,

    /// <summary>Times that the whole of one was compared.</summary>
    AppendsJudged,

    /// <summary>Times that the whole of a snapshot of one was compared.</summary>
    AppendSnapshotsJudged,

    /// <summary>Promises of room that were made. From here on: only with <see cref="SimulationOptions.Promises"/>.</summary>
    PromisesMade,

    /// <summary>Promises that were refused because there was no room.</summary>
    PromisesRefused,

    /// <summary>Promises taken back.</summary>
    PromisesTakenBack,

    /// <summary>Promises for which there was room after a restart.</summary>
    PromisesKept,

    /// <summary>Times that what is kept was compared with what is promised.</summary>
    PromisesJudged,

    /// <summary>Volumes that were filled to the last block because they were promised it.</summary>
    PromisedFilled,
}

/// <summary>Plain counts of a run, or of many.</summary>
public sealed class SimulationCounters : IRunCounters<SimulationCounters>
{
    private readonly long[] _did = new long[Enum.GetValues<Did>().Length];
    private readonly long[] _disk = new long[Enum.GetValues<DiskEvent>().Length];

    /// <summary>How often.</summary>
    public long this[Did what]
    {
        get => _did[(int)what];
        set => _did[(int)what] = value;
    }

    /// <summary>How often the disk did it.</summary>
    public long this[DiskEvent what] => _disk[(int)what];

    /// <summary>Everything that never happened.</summary>
    public IReadOnlyList<string> Missing =>
    [
        .. Enum.GetValues<Did>().Where(what => what < Did.Appends && this[what] == 0).Select(what => what.ToString()),
        .. Enum.GetValues<DiskEvent>().Where(what => this[what] == 0).Select(what => what.ToString()),
    ];

    /// <summary>Everything about appends that never happened.</summary>
    public IReadOnlyList<string> MissingAppends =>
        [.. Enum.GetValues<Did>().Where(what => what is >= Did.Appends and < Did.PromisesMade && this[what] == 0).Select(what => what.ToString())];

    /// <summary>Everything about promises that never happened.</summary>
    public IReadOnlyList<string> MissingPromises =>
        [.. Enum.GetValues<Did>().Where(what => what >= Did.PromisesMade && this[what] == 0).Select(what => what.ToString())];

    /// <summary>Adds another run's counts.</summary>
    public void Add(SimulationCounters other)
    {
        for (int i = 0; i < _did.Length; i++) _did[i] += other._did[i];
        for (int i = 0; i < _disk.Length; i++) _disk[i] += other._disk[i];
    }

    /// <summary>Adds a disk's counts.</summary>
    public void Add(SimDisk disk)
    {
        for (int i = 0; i < _disk.Length; i++) _disk[i] += (long)disk.CountOf((DiskEvent)i);
    }

    /// <inheritdoc/>
    public override string ToString() => string.Join(", ",
        Enum.GetValues<Did>().Select(what => $"{what} {(what == Did.BytesJudged ? $"{this[what] >> 20} MiB" : this[what])}")
            .Concat(Enum.GetValues<DiskEvent>().Select(what => $"{what} {this[what]}")));
}
