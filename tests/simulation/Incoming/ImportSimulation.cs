using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation.Incoming;

/// <summary>What of an import is broken on purpose.</summary>
/// <param name="Rules">Rules of the product.</param>
/// <param name="SaysCopied">The store says of every clone that it is a copy.</param>
internal readonly record struct BrokenIncoming(BrokenImports Rules, bool SaysCopied = false)
{
    public static BrokenIncoming Parse(string name) =>
        name == nameof(SaysCopied) ? new(BrokenImports.None, true) : new(Enum.Parse<BrokenImports>(name));

    public override string ToString() => SaysCopied ? nameof(SaysCopied) : Rules.ToString();
}

/// <summary>
/// A node into which streams come and on which copies of volumes are populated, while others try to attach them; and the node dies,
/// with or without its power, at any event of that. After each death the metadata and the store are opened again as the daemon
/// does it. What can be attached must then be exactly what some whole stream held: the one that came last, or the one before.
/// Everything follows from the seed.
/// </summary>
internal sealed partial class ImportSimulation
{
    private const ulong EventsPerLifeMax = 4_000_000;
    private const int LivesMax = 14, Readers = 2, VolumesMax = 4;
    private const string Noise = "noise", Ballast = "ballast";

    private readonly SeededRandom _random;
    private readonly BrokenIncoming _broken;
    private readonly Action<string>? _trace;
    private readonly Durability _durability;
    private readonly bool _isTight;
    private readonly StorageDriver _driver = new();
    private readonly MemoryMetaStore _meta = new();
    private readonly SourceStreams _source;
    private readonly SimDisk _disk;
    private readonly SortedDictionary<string, Content> _contents = new(StringComparer.Ordinal);
    private readonly ImportCounters _counters = new();
    private World _world = null!;
    private VolumeDirectory _directory = null!;
    private BlockServer.Blockd.Imports _imports = null!;
    private ILayeredStore _store = null!;
    private SimLoop _loop;
    private int _next = 1;
    private bool _isImporting, _isOver;
    private int _copying;

    private ImportSimulation(ulong seed, BrokenIncoming broken, Action<string>? trace)
    {
        _random = new SeededRandom(seed);
        _broken = broken;
        _trace = trace;
        _durability = _random.NextChance(0.7) ? Durability.Flush : Durability.Ack;
        _isTight = _random.NextChance(0.25);
        _source = new SourceStreams(new SeededRandom(_random.NextUInt64()));
        _loop = new SimLoop(_random.NextUInt64());
        _disk = new SimDisk(_loop, _driver.MediumBytes, _random.NextUInt64());
        Check.That(_loop.Run(_driver.FormatAsync(_loop, _disk, _random.NextBelow(4))) is null);
    }

    /// <summary>The first thing that was wrong, or null.</summary>
    private Violation? Violation { get; set; }

    private ulong Hash { get; set; } = 14695981039346656037;

    /// <summary>Seeds, and how to see one again.</summary>
    internal static SeedRunner<ImportCounters> RunnerOf(BrokenIncoming broken, Action<string>? trace = null) => new(
        seed => Run(seed, broken, trace),
        seed => $"dotnet run -c Release --project tests/simulation -- simulate --imports --seed {seed}{(broken == default ? "" : $" --broken {broken}")}");

    /// <summary>Runs one seed.</summary>
    internal static SeedResult<ImportCounters> Run(ulong seed, BrokenIncoming broken, Action<string>? trace)
    {
        var simulation = new ImportSimulation(seed, broken, trace);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(new Violation(ViolationKind.Exception, thrown.ToString()));
        }

        return new SeedResult<ImportCounters>(seed, simulation.Hash, simulation.Violation is { } found ? [found] : [], simulation._counters);
    }

    private void RunLives()
    {
        for (int life = 0; life < LivesMax && Violation is null; life++)
        {
            _loop = new SimLoop(_random.NextUInt64());
            using var context = new LoopContext(_loop);
            bool isLast = life == LivesMax - 1;
            if (!Open()) return;
            if (!Begin(life > 0 && !isLast && _random.NextChance(0.3) ? _random.NextBelow(200UL) : EventsPerLifeMax))
            {
                if (Violation is not null) return;
                _counters[ImportDid.DeathsInRecovery]++;
                Fold();
                Die();
                continue;
            }

            if ((life == 0 && !Create()) || !Judge(atRest: true)) return;
            Live(isLast ? EventsPerLifeMax : _random.NextBelow(_random.NextChance(0.3) ? 6_000UL : 800UL), isLast);
            if (isLast && Violation is null) Clear();
            Fold();
            Die();
        }
    }

    private void Fold() => Hash = (Hash ^ _loop.EventHash) * 1099511628211;

    private async ValueTask PauseAsync()
    {
        if (_random.NextChance(0.7)) await _loop.DelayAsync(_random.NextBelow(100_000UL));
    }

    private bool Open()
    {
        _disk.Attach(_loop);
        Task<Opened> opening = _driver.OpenAsync(_loop, _disk, null, _durability).AsTask();
        if (!_loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax) || opening.Result.Store is not ILayeredStore store)
        {
            Violate(new Violation(ViolationKind.Refused, $"the disk does not open: {(opening.IsCompleted ? opening.Result.Refusal : "it hangs")}"));
            return false;
        }

        _store = store;
        _isOver = _isImporting = false;
        _copying = 0;
        _world = new World(this, new SimSide(store, PauseAsync, _broken.SaysCopied));
        _directory = new VolumeDirectory(new PausingMetaStore(_meta, PauseAsync), new Clock(), new SeededRandom(_random.NextUInt64()))
        {
            Delay = _loop.DelayAsync,
            IsThinByDefault = true, // a full disk is to be met while a stream comes, not before
        };
        var limits = new ImportLimits
        {
            BatchBytes = Streams.StreamHeader.DataBytesMax, KeepEveryBytes = 256 * Units.KiB, Patience = Timeout.InfiniteTimeSpan, Broken = _broken.Rules,
        };
        _imports = new BlockServer.Blockd.Imports(_directory, _world, new ImportSeams(new SeededRandom(_random.NextUInt64()), new Clock()), limits);
        return true;
    }

    /// <summary>As the daemon begins. False when it died meanwhile.</summary>
    private bool Begin(ulong length)
    {
        ulong end = _loop.EventCount + length;
        _loop.StopBeforeEvent = _ => _loop.EventCount >= end;
        Task beginning = BeginAsync();
        bool isDone = _loop.RunUntil(() => beginning.IsCompleted, EventsPerLifeMax);
        _loop.StopBeforeEvent = null;
        if (beginning.IsFaulted) Violate(new Violation(ViolationKind.Exception, beginning.Exception!.ToString()));
        // The node may die in the very turn in which the beginning ends.
        return isDone && !_loop.IsStopped && Violation is null;
    }

    private async Task BeginAsync()
    {
        IReadOnlyList<string> notes = await _directory.ReconcileAsync([_world.Side]);
        if (notes.Count > 0) Violate(new Violation(ViolationKind.WrongAnswer, "the start says: " + string.Join("; ", notes)));
        foreach (string name in _contents.Keys) _trace?.Invoke($"found {name}: {SnapshotsOf(name)}");
        await _imports.RecoverAsync();
        foreach (string name in _contents.Keys) _trace?.Invoke($"recovered {name}: {SnapshotsOf(name)}");
    }

    private bool Create()
    {
        Finish(_directory.CreateAsync(new Core.Api.CreateVolume(Noise, Units.MiB)));
        if (!_isTight) return true;
        // Room for a few volumes, but not for all that is wanted.
        VolumeRecord ballast = Finish(_directory.CreateAsync(new Core.Api.CreateVolume(Ballast, 24 * Units.MiB))).Volume!;
        ulong spare = (ulong)(2 + _random.NextBelow(4)) * Units.MiB, at = 0;
        var data = new byte[64 << 10];
        while (_store.GetStats().BlocksFree * Units.BlockBytes > spare)
        {
            _random.Fill(data);
            Check.That(_loop.Run(_store.OpenVolume(ballast.Id)!.WriteAsync(at, data, WriteFlags.None)) == IoStatus.Ok);
            at += (ulong)data.Length;
        }

        return true;
    }

    private T Finish<T>(Task<T> task)
    {
        if (!_loop.RunUntil(() => task.IsCompleted, EventsPerLifeMax)) throw new InvalidOperationException("it never ended");
        return task.GetAwaiter().GetResult();
    }

    private void Live(ulong length, bool isLast)
    {
        ulong end = _loop.EventCount + length;
        _loop.StopBeforeEvent = _ => Violation is not null || _loop.EventCount >= end;
        var running = new List<Task> { Watched(OperateAsync(isLast)) };
        running.AddRange(_directory.List().Where(v => v.IsPopulating).Select(v => Watched(PopulateAsync(v))));
        for (int i = 0; i < Readers; i++) running.Add(Watched(ReadersAsync()));
        running.Add(Watched(MakeNoiseAsync()));
        bool ended = _loop.RunUntil(() => running.TrueForAll(t => t.IsCompleted) && _copying == 0, EventsPerLifeMax);
        _loop.StopBeforeEvent = null;
        if (ended || Violation is not null) return;
        if (isLast) Violate(new Violation(ViolationKind.Hang, "the last life does not end"));
        if (_isImporting) _counters[ImportDid.DeathsInImport]++;
        if (_copying > 0) _counters[ImportDid.DeathsInCopy]++;
    }

    private async Task Watched(Task work)
    {
        try
        {
            await work;
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(new Violation(ViolationKind.Exception, thrown.ToString()));
        }
    }

    private void Die()
    {
        bool isCut = _random.NextChance(0.5);
        _trace?.Invoke(isCut ? "the power is cut" : "the process dies");
        if (isCut) _disk.CutPower();
        else _disk.Kill();
    }

    private void Violate(Violation found) => Violation ??= found with { Text = $"{found.Text} [{_durability}{(_isTight ? ", tight" : "")}]" };

    /// <summary>What a volume must show when it can be attached.</summary>
    private sealed class Content
    {
        /// <summary>The version that it holds; null: no stream has come whole yet.</summary>
        public int? Known { get; set; }

        /// <summary>The stream that comes or was interrupted, and what it brings; null: none.</summary>
        public (int Version, byte[] Stream)? Coming { get; set; }

        /// <summary>The oldest version of which it has a snapshot; null: it is a copy and has none.</summary>
        public int? First { get; set; }

        /// <summary>It may be gone.</summary>
        public bool IsGoing { get; set; }

        /// <summary>Streams make no other version of it.</summary>
        public bool IsImage { get; set; }

        public bool Allows(int version) => Known == version || Coming?.Version == version;
    }

    private sealed class Clock : IWallClock
    {
        public DateTimeOffset UtcNow => DateTimeOffset.UnixEpoch;
    }

    /// <summary>The daemon around the imports: who is attached, and what may be.</summary>
    private sealed class World(ImportSimulation simulation, SimSide side) : IImportWorld
    {
        private readonly Dictionary<uint, int> _attached = [];
        private readonly HashSet<uint> _closed = [];

        public SimSide Side => side;

        public IMoveSide? FindStore(Guid storeId) => storeId == side.StoreId ? side : null;

        public int AttachedTo(uint volumeId) => _attached.GetValueOrDefault(volumeId);

        public void Close(uint volumeId) => _closed.Add(volumeId);

        public void Reopen(uint volumeId) => _closed.Remove(volumeId);

        public void Forget(uint volumeId) => _closed.Remove(volumeId);

        public async Task RenewTargetsAsync() => await simulation.PauseAsync();

        public async Task SealAsync(VolumeRecord image) => await simulation.PauseAsync();

        public void Warn(string warning) => simulation.Violate(new Violation(ViolationKind.WrongAnswer, "warning: " + warning));

        /// <summary>As a front end: looks, enters, and looks again.</summary>
        public async Task<bool> AttachAsync(VolumeRecord record)
        {
            if (VolumeDirectory.ImportFault(record) is not null || _closed.Contains(record.Id)) return false;
            await simulation.PauseAsync();
            _attached[record.Id] = AttachedTo(record.Id) + 1;
            if (!_closed.Contains(record.Id)) return true;
            Detach(record);
            return false;
        }

        public void Detach(VolumeRecord record) => _attached[record.Id]--;
    }
}
