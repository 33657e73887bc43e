using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

/// <summary>
/// One store on one simulated disk through several lives of its process: random clients, killed or cut at any event,
/// also during recovery and close, judged by <see cref="VolumeModel"/> after every restart. Everything follows from the
/// seed; runs share nothing, so several may go on at a time.
/// </summary>
public sealed partial class StoreSimulation
{
    private const ulong EventsPerLifeMax = 2_000_000;

    private readonly SimulationOptions _options;
    private readonly SeededRandom _random;
    private readonly SeededRandom _clients; // the clients' dice
    private readonly List<Violation> _violations = [];
    private readonly SimulationCounters _counters = new();
    private readonly SortedDictionary<uint, VolumeModel> _volumes = [];
    private readonly List<(VolumeModel Volume, ModelWrite Write)> _inFlight = [];
    private readonly Durability _durability;
    private readonly bool _isLying;
    private readonly bool _hasSeparateLog;
    private readonly SimDiskFaults _faults;
    private readonly ulong _seed;
    private SimDisk _disk = null!;
    private SimLoop _loop = null!;
    private ulong _hash = 14695981039346656037;
    private ulong _now; // model time: counts calls and answers
    private ulong _nextId = 1;
    private uint _nextVolume = 1;
    private bool _powerWasCut;
    private bool _wasBlind; // reads failed in an opening since the content was judged last
    private ulong _faultsBefore; // of the disk, before this life
    private int _crashStatesLeft;
    private ulong _changesSeen;
    private int _clientsRunning;
    private int _requestsLeft;
    private int _misuseJudged;

    private StoreSimulation(ulong seed, SimulationOptions options)
    {
        _seed = seed;
        _options = options;
        _random = new SeededRandom(seed);
        _clients = new SeededRandom(_random.NextUInt64());
        Durability drawn = _random.NextChance(0.5) ? Core.Durability.Flush : Core.Durability.Ack;
        bool lies = _random.NextChance(0.3);
        _hasSeparateLog = _random.NextChance(0.3);
        _durability = options.Durability ?? drawn;
        _isLying = options.DiskFaults && (options.LyingDisk ?? lies);
        SimDiskFaults faults = _isLying ? SimDiskFaults.DrawLying(_random) : SimDiskFaults.DrawHonest(_random);
        _faults = options.DiskFaults ? faults
            : new SimDiskFaults { LatencyNanosMax = faults.LatencyNanosMax, Slow = faults.Slow };
        _crashStatesLeft = options.CrashStates;
        bool hasLayers = _random.NextChance(0.5);
        _appendDice = new SeededRandom(seed ^ 0xA99E4D);
        _promiseDice = new SeededRandom(seed ^ 0x9120715E);
        _layerChance = options.Layers ?? hasLayers ? 0.05 + _random.NextBelow(10UL) / 50.0 : 0;
    }

    private bool IsBroken => _violations.Count > 0;

    /// <summary>The medium has lied at least once: content may be missing, but it must never be wrong.</summary>
    private bool MayMiss => _disk.DestructiveFaultCount > 0;

    /// <summary>The disk failed in this life, which is a reason for errors.</summary>
    private bool HasReason => _disk.FaultCount > _faultsBefore;

    /// <summary>Runs seeds with these options, and says how to run each again.</summary>
    internal static SeedRunner<SimulationCounters> RunnerOf(SimulationOptions options) => new(
        seed => Run(seed, options),
        seed => $"dotnet run -c Release --project tests/simulation -- simulate --seed {seed} --crash-states {options.CrashStates}"
            + (options.LyingDisk is { } lying ? $" --lying {(lying ? "yes" : "no")}" : "")
            + (options.SmallDisk == true ? " --small-disk" : "")
            + (options.Appends ? " --appends" : "")
            + (options.Promises ? " --promises" : "")
            + options.Driver.Arguments);

    /// <summary>Runs many seeds: see <see cref="SeedSweep{TCounters}"/>.</summary>
    public static SeedSweep<SimulationCounters> Sweep(ulong from, ulong to, SimulationOptions options, bool twice, bool keepGoing) =>
        SeedSweep<SimulationCounters>.Run(from, to, RunnerOf(options), twice, keepGoing, goOn: null);

    /// <summary>Runs one seed.</summary>
    public static SeedResult<SimulationCounters> Run(ulong seed, SimulationOptions options)
    {
        var simulation = new StoreSimulation(seed, options);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(ViolationKind.Exception, thrown.ToString());
        }

        return new SeedResult<SimulationCounters>(seed, simulation._hash, simulation._violations, simulation._counters);
    }

    private void RunLives()
    {
        int ring = _random.NextBelow(4);
        ulong bytes = (_random.NextChance(0.3) || _options.SmallDisk == true) && _options.SmallDisk != false ? _options.Driver.MediumBytesMin : _options.Driver.MediumBytes;
        _counters[_durability == Core.Durability.Ack ? Did.AckMode : Did.FlushMode]++;
        if (_hasSeparateLog) _counters[Did.SeparateLog]++;
        if (ring == 0) _counters[Did.SmallestRing]++;
        if (bytes == _options.Driver.MediumBytesMin) _counters[Did.SmallestDisk]++;
        _loop = new SimLoop(_random.NextUInt64());
        _disk = new SimDisk(_loop, bytes, _random.NextUInt64());
        string? refusal = _loop.Run(_options.Driver.FormatAsync(_loop, _disk, ring));
        if (refusal is not null) Violate(ViolationKind.Refused, "format: " + refusal);
        for (int life = 0; life < _options.Lives && !IsBroken; life++)
        {
            if (!RunLife()) break;
        }

        if (!IsBroken) RunLastLife();
        JudgeMisuse();
        _counters.Add(_disk);
        foreach (VolumeModel volume in _volumes.Values)
        {
            _counters[Did.KeptSectors] += volume.KeptSectors;
            _counters[Did.WholeRequests] += volume.WholeRequests;
            _counters[Did.AbsentRequests] += volume.AbsentRequests;
        }
    }

    /// <summary>Opens, judges, works and ends in some way; false when there is nothing to go on with.</summary>
    private bool RunLife()
    {
        NewLoop();
        bool crashInRecovery = _random.NextChance(0.25);
        ulong crashAt = _random.NextBelow(crashInRecovery ? 150UL : 6_000UL);
        SimDiskFaults quiet = _isLying ? _faults with { ReadError = 0, WriteError = 0, FlushError = 0, NoSpace = 0, Hang = 0 } : SimDiskFaults.None;
        // Some openings have to cope with a disk that fails meanwhile: they may refuse, no more.
        _disk.Faults = _random.NextChance(0.2) ? Magnified(_faults with { Hang = 0 }) : quiet;
        _loop.StopBeforeEvent = crashInRecovery ? n => n >= crashAt : null;
        bool isOpen = TryOpen(out IStore? store);
        _disk.Faults = quiet;
        // The crash may come in the very turn in which the opening ended: then nothing runs any more that could be judged.
        if (!isOpen || _loop.IsStopped)
        {
            if (IsBroken || (!_loop.IsStopped && MayMiss))
            {
                // The process that was refused ends with what it had asked of the disk.
                if (_disk.Pending.Any(write => !write.IsAnswered)) _disk.Kill();
                return false;
            }

            if (_loop.IsStopped) _counters[Did.CrashesInRecovery]++;
            Crash();
            return true;
        }

        _loop.StopBeforeEvent = null;
        if (!JudgeAll(store!)) return false;
        KeepPromises(store!);
        if (IsBroken) return false;
        bool endsClean = _random.NextChance(0.25);
        _disk.Faults = _faults;
        ulong start = _loop.EventCount;
        _loop.StopBeforeEvent = n =>
        {
            TryCrashState();
            return IsBroken || (!endsClean && n >= start + crashAt);
        };
        Work(store!);
        if (IsBroken) return false;
        if (store!.State == StoreState.Failed) _counters[Did.FailStops]++;
        if (store.State == StoreState.Failed && !HasReason && !MayMiss)
            Violate(ViolationKind.Exception, "the store stopped though the disk is honest: " + store.GetStats().FailReason);
        CountStore(store.GetStats());
        if (endsClean && !_loop.IsStopped && !_disk.HasHung && store.State == StoreState.Online)
        {
            if (_random.NextChance(0.3)) CrashInClose(store);
            else CloseCleanly(store);
        }
        else
        {
            _counters[_crashCutsPower ? Did.PowerCuts : Did.Kills]++;
            Crash();
        }

        return !IsBroken;
    }

    private void CountStore(StoreStats stats)
    {
        _counters[Did.Checkpoints] += (long)stats.Checkpoints;
        _counters[Did.BlocksRelaid] += (long)stats.BlocksRelaid;
        _counters[Did.RelayoutsLost] += (long)stats.RelayoutsLost;
        _counters[Did.RelayoutsSkipped] += (long)stats.RelayoutsSkipped;
    }

    /// <summary>Opening is short: without more faults it would hardly ever meet one.</summary>
    private static SimDiskFaults Magnified(SimDiskFaults faults) => faults with
    {
        ReadError = faults.ReadError * 10,
        WriteError = faults.WriteError * 20,
        FlushError = faults.FlushError * 10,
        NoSpace = faults.NoSpace * 20,
    };

    /// <summary>Faults off: everything must open, be right, take writes, and be right again.</summary>
    private void RunLastLife()
    {
        for (int round = 0; round < 2 && !IsBroken; round++)
        {
            NewLoop();
            _disk.Faults = SimDiskFaults.None;
            if (!TryOpen(out IStore? store))
            {
                if (!IsBroken && !MayMiss) Violate(ViolationKind.Refused, "the last opening was refused");
                return;
            }

            if (!JudgeAll(store!)) return;
            KeepPromises(store!);
            if (IsBroken) return;
            if (round == 0) Work(store!);
            if (round == 0) FillPromised(store!);
            if (!IsBroken) JudgeScrub(store!);
            if (IsBroken) return;
            CloseCleanly(store!);
        }
    }

    private void NewLoop()
    {
        _loop = new SimLoop(_random.NextUInt64());
        _disk.Attach(_loop);
        _faultsBefore = _disk.FaultCount;
        _crashCutsPower = _random.NextChance(0.5);
    }

    private bool _crashCutsPower; // how this life ends, if by a crash

    private bool TryOpen(out IStore? store)
    {
        store = null;
        ulong readErrors = _disk.CountOf(DiskEvent.ReadError);
        Task<Opened> opening = _options.Driver
            .OpenAsync(_loop, _disk, _hasSeparateLog ? _disk.OpenView() : null, _durability, _options.Promises).AsTask();
        bool ended = _loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax);
        _wasBlind |= _disk.CountOf(DiskEvent.ReadError) > readErrors;
        if (!ended)
        {
            if (!_loop.IsStopped) Violate(ViolationKind.Hang, "opening the store never ended");
            return false;
        }

        Opened opened = opening.GetAwaiter().GetResult();
        store = opened.Store;
        if (store is not null) return true;
        if (MayMiss) _counters[Did.RefusedAfterLie]++;
        else if (HasReason) _counters[Did.RefusedAfterError]++;
        else Violate(ViolationKind.Refused, "opening was refused though the disk is honest: " + opened.Refusal);
        if (MayMiss || IsBroken) FoldLoop();
        return false;
    }

    /// <summary>What the store did to the disk against its rules, before anything that followed from it.</summary>
    private void JudgeMisuse()
    {
        for (; _misuseJudged < _disk.Misuse.Count; _misuseJudged++) Violate(ViolationKind.DiskMisuse, _disk.Misuse[_misuseJudged]);
    }

    private void Crash()
    {
        JudgeMisuse();
        if (!_loop.IsStopped || _loop.StopBeforeEvent is null) _loop.Note(1);
        FoldLoop();
        if (_disk.HasFailedFlush) _powerWasCut = true; // what the kernel dropped is gone as if the power had failed
        if (_crashCutsPower)
        {
            _powerWasCut = true;
            _disk.CutPower();
        }
        else
        {
            _disk.Kill();
        }

        _now++;
        foreach ((VolumeModel volume, ModelWrite write) in _inFlight) volume.End(write, isOk: false, isDurable: false, _now);
        _inFlight.Clear();
        CrashSnapshots();
        CrashAppends();
        _now++;
    }

    private void CrashInClose(IStore store)
    {
        ulong at = _loop.EventCount + _random.NextBelow(60UL);
        _loop.StopBeforeEvent = n => n >= at;
        Task<IoStatus> closing = store.CloseAsync().AsTask();
        _loop.RunUntil(() => closing.IsCompleted, EventsPerLifeMax);
        _counters[Did.CrashesInClose]++;
        Crash();
    }

    private void CloseCleanly(IStore store)
    {
        if (!MayMiss && store.State == StoreState.Online && _inFlight.Count == 0) JudgeSpace(store);
        if (!MayMiss && store.State == StoreState.Online && _inFlight.Count == 0 && !IsBroken) JudgePromises(store);
        if (!MayMiss && store.State == StoreState.Online && _inFlight.Count == 0 && !IsBroken) Audit(store);
        if (store.State == StoreState.Failed || _disk.HasHung)
        {
            // The last fault was drawn while waiting for the space to settle. A disk that answers nothing lets nobody close.
            if (store.State == StoreState.Failed) _counters[Did.FailStops]++;
            Crash();
            return;
        }

        _loop.StopBeforeEvent = null;
        _disk.Faults = SimDiskFaults.None;
        if (IsBroken) return;
        Task<IoStatus> closing = store.CloseAsync().AsTask();
        bool ended = _loop.RunUntil(() => closing.IsCompleted, EventsPerLifeMax);
        if (!ended) Violate(ViolationKind.Hang, "closing the store never ended");
        else if (closing.GetAwaiter().GetResult() is not IoStatus.Ok and var status)
        {
            if (!MayMiss && !HasReason) Violate(ViolationKind.WrongAnswer, $"close answered {status}: {store.GetStats().FailReason}");
            Crash();
            return;
        }
        else if (_loop.Buffers.LentCount != 0) Violate(ViolationKind.Leak, $"{_loop.Buffers.LentCount} buffers leak");
        _counters[Did.Closes]++;
        FoldLoop();
        _disk.CutPower(); // a clean close is durable
        _now += 2;
        foreach (VolumeModel volume in _volumes.Values) volume.Flushed(_now++);
    }

    private void FoldLoop()
    {
        _hash = (_hash ^ _loop.EventHash) * 1099511628211;
        _hash = (_hash ^ _loop.EventCount) * 1099511628211;
    }

    private void Violate(ViolationKind kind, string what) => Violate(new Violation(kind, what));

    private void Violate(Violation violation)
    {
        if (_violations.Count >= 20) return;
        string world = $"{_durability}{(_isLying ? ", lying disk" : "")}{(_hasSeparateLog ? ", separate log" : "")}";
        _violations.Add(violation with { Text = $"{violation.Text} [{world}, seed {_seed}]" });
    }
}
