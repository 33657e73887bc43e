using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

/// <summary>What to simulate; null: drawn from the seed.</summary>
public sealed record SimulationOptions
{
    /// <summary>The store under test.</summary>
    public required StoreDriver Driver { get; init; }

    /// <summary>Durability mode.</summary>
    public Durability? Durability { get; init; }

    /// <summary>Let the disk lie (rot, lost and misdirected writes).</summary>
    public bool? LyingDisk { get; init; }

    /// <summary>Faults of the disk at all; false: only crashes.</summary>
    public bool DiskFaults { get; init; } = true;

    /// <summary>Processes that live one after another on the medium.</summary>
    public int Lives { get; init; } = 4;

    /// <summary>Requests of one life at most.</summary>
    public int RequestsPerLife { get; init; } = 150;

    /// <summary>Power-cut states tried beside the run itself: each is a fork of the medium that is opened and judged.</summary>
    public int CrashStates { get; init; }
}

/// <summary>Plain counts of what a run did.</summary>
public sealed class SimulationCounters
{
    /// <summary>Requests answered.</summary>
    public long Requests { get; set; }

    /// <summary>Bytes read and judged.</summary>
    public long BytesJudged { get; set; }

    /// <summary>Process kills.</summary>
    public long Kills { get; set; }

    /// <summary>Power cuts.</summary>
    public long PowerCuts { get; set; }

    /// <summary>Crashes that hit the opening of a store.</summary>
    public long RecoveryCrashes { get; set; }

    /// <summary>Clean closes.</summary>
    public long Closes { get; set; }

    /// <summary>Faults the disk injected.</summary>
    public long DiskFaults { get; set; }

    /// <summary>Crash states recovered and judged.</summary>
    public long CrashStates { get; set; }

    /// <summary>Stores that stopped themselves.</summary>
    public long FailStops { get; set; }

    /// <summary>Opens refused because the disk had lied.</summary>
    public long Refusals { get; set; }

    /// <summary>Adds another run's counts.</summary>
    public void Add(SimulationCounters other)
    {
        Requests += other.Requests;
        BytesJudged += other.BytesJudged;
        Kills += other.Kills;
        PowerCuts += other.PowerCuts;
        RecoveryCrashes += other.RecoveryCrashes;
        Closes += other.Closes;
        DiskFaults += other.DiskFaults;
        CrashStates += other.CrashStates;
        FailStops += other.FailStops;
        Refusals += other.Refusals;
    }

    /// <inheritdoc/>
    public override string ToString() =>
        $"requests {Requests}, judged {BytesJudged >> 20} MiB, kills {Kills}, power cuts {PowerCuts}, "
        + $"crashes in recovery {RecoveryCrashes}, closes {Closes}, disk faults {DiskFaults}, crash states {CrashStates}, "
        + $"fail stops {FailStops}, refused opens {Refusals}";
}

/// <summary>What a run gave: equal seeds give equal hashes; no violations is the aim.</summary>
public sealed record SimulationResult(ulong Seed, ulong EventHash, IReadOnlyList<string> Violations, SimulationCounters Counters);

/// <summary>
/// One store on one simulated disk through several lives of its process: random clients, killed or cut at any event,
/// also during recovery, judged by <see cref="VolumeModel"/> after every restart. Everything follows from the seed.
/// </summary>
public sealed class StoreSimulation
{
    private const ulong EventsPerLifeMax = 2_000_000;

    private readonly SimulationOptions _options;
    private readonly SeededRandom _random;
    private readonly SeededRandom _clients; // the clients' dice
    private readonly List<string> _violations = [];
    private readonly SimulationCounters _counters = new();
    private readonly SortedDictionary<uint, VolumeModel> _volumes = [];
    private readonly List<(VolumeModel Volume, ModelWrite Write)> _inFlight = [];
    private readonly Durability _durability;
    private readonly bool _isLying;
    private readonly SimDiskFaults _faults;
    private readonly ulong _seed;
    private SimDisk _disk = null!;
    private SimLoop _loop = null!;
    private ulong _hash = 14695981039346656037;
    private ulong _now; // model time: counts calls and answers
    private ulong _nextId = 1;
    private uint _nextVolume = 1;
    private bool _powerWasCut;
    private int _crashStatesLeft;
    private ulong _changesSeen;
    private int _clientsRunning;
    private int _requestsLeft;

    private StoreSimulation(ulong seed, SimulationOptions options)
    {
        _seed = seed;
        _options = options;
        _random = new SeededRandom(seed);
        _clients = new SeededRandom(_random.NextUInt64());
        Durability drawn = _random.NextChance(0.5) ? Core.Durability.Flush : Core.Durability.Ack;
        bool lies = _random.NextChance(0.3);
        _durability = options.Durability ?? drawn;
        _isLying = options.DiskFaults && (options.LyingDisk ?? lies);
        SimDiskFaults faults = _isLying ? SimDiskFaults.DrawLying(_random) : SimDiskFaults.DrawHonest(_random);
        _faults = options.DiskFaults ? faults
            : new SimDiskFaults { LatencyNanosMax = faults.LatencyNanosMax, Slow = faults.Slow };
        _crashStatesLeft = options.CrashStates;
    }

    private bool IsBroken => _violations.Count > 0;

    /// <summary>The medium has lied at least once: content may be missing, but it must never be wrong.</summary>
    private bool MayMiss => _disk.DestructiveFaultCount > 0;

    /// <summary>Runs one seed.</summary>
    public static SimulationResult Run(ulong seed, SimulationOptions options)
    {
        var simulation = new StoreSimulation(seed, options);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation._violations.Add("exception: " + thrown);
        }

        return new SimulationResult(seed, simulation._hash, simulation._violations, simulation._counters);
    }

    private void RunLives()
    {
        _loop = new SimLoop(_random.NextUInt64());
        _disk = new SimDisk(_loop, _options.Driver.MediumBytes, _random.NextUInt64());
        string? refusal = _loop.Run(_options.Driver.FormatAsync(_loop, _disk));
        if (refusal is not null) Violate("format: " + refusal);
        for (int life = 0; life < _options.Lives && !IsBroken; life++)
        {
            if (!RunLife()) break;
        }

        if (!IsBroken) RunLastLife();
        foreach (string misuse in _disk.Misuse) Violate("disk misuse: " + misuse);
        _counters.DiskFaults += (long)_disk.FaultCount;
    }

    /// <summary>Opens, judges, works and ends in some way; false when there is nothing to go on with.</summary>
    private bool RunLife()
    {
        NewLoop();
        bool crashInRecovery = _random.NextChance(0.25);
        ulong crashAt = _random.NextBelow(crashInRecovery ? 150UL : 6_000UL);
        _disk.Faults = _isLying ? _faults with { WriteError = 0, FlushError = 0, NoSpace = 0 } : SimDiskFaults.None;
        _loop.StopBeforeEvent = crashInRecovery ? n => n >= crashAt : null;
        if (!TryOpen(out IStore? store))
        {
            if (!_loop.IsStopped) return false;
            _counters.RecoveryCrashes++;
            Crash();
            return true;
        }

        ulong begin = _loop.EventCount;
        _loop.StopBeforeEvent = null;
        if (!JudgeAll(store!)) return false;
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
        if (store!.State == StoreState.Failed) _counters.FailStops++;
        if (endsClean && !_loop.IsStopped && store.State == StoreState.Online) CloseCleanly(store);
        else Crash();
        return !IsBroken;
    }

    /// <summary>Faults off: everything must open, be right, take writes, and be right again.</summary>
    private void RunLastLife()
    {
        for (int round = 0; round < 2 && !IsBroken; round++)
        {
            NewLoop();
            _disk.Faults = SimDiskFaults.None;
            if (!TryOpen(out IStore? store) || !JudgeAll(store!)) return;
            if (round == 0) Work(store!);
            if (IsBroken) return;
            CloseCleanly(store!);
        }
    }

    private void NewLoop()
    {
        _loop = new SimLoop(_random.NextUInt64());
        _disk.Attach(_loop);
    }

    private bool TryOpen(out IStore? store)
    {
        store = null;
        Task<Opened> opening = _options.Driver.OpenAsync(_loop, _disk, _durability).AsTask();
        if (!_loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax))
        {
            if (!_loop.IsStopped) Violate("opening the store never ended");
            FoldLoop();
            return false;
        }

        Opened opened = opening.GetAwaiter().GetResult();
        store = opened.Store;
        if (store is not null) return true;
        _counters.Refusals++;
        if (!MayMiss) Violate("opening was refused though the disk is honest: " + opened.Refusal);
        FoldLoop();
        return false;
    }

    private void Crash()
    {
        if (!_loop.IsStopped || _loop.StopBeforeEvent is null) _loop.Note(1);
        FoldLoop();
        if (_disk.HasFailedFlush) _powerWasCut = true; // what the kernel dropped is gone as if the power had failed
        if (_random.NextChance(0.5))
        {
            _counters.PowerCuts++;
            _powerWasCut = true;
            _disk.CutPower();
        }
        else
        {
            _counters.Kills++;
            _disk.Kill();
        }

        _now++;
        foreach ((VolumeModel volume, ModelWrite write) in _inFlight) volume.End(write, isOk: false, isDurable: false, _now);
        _inFlight.Clear();
        _now++;
    }

    private void CloseCleanly(IStore store)
    {
        if (!MayMiss && store.State == StoreState.Online && _inFlight.Count == 0) JudgeSpace(store);
        if (store.State == StoreState.Failed)
        {
            // The last fault was drawn while waiting for the space to settle.
            _counters.FailStops++;
            Crash();
            return;
        }

        _loop.StopBeforeEvent = null;
        _disk.Faults = SimDiskFaults.None;
        Task<IoStatus> closing = store.CloseAsync().AsTask();
        bool ended = _loop.RunUntil(() => closing.IsCompleted, EventsPerLifeMax);
        if (!ended) Violate("closing the store never ended");
        else if (closing.GetAwaiter().GetResult() is not IoStatus.Ok and var status && !MayMiss) Violate($"close answered {status}: {store.GetStats().FailReason}");
        else if (_loop.Buffers.LentCount != 0) Violate($"{_loop.Buffers.LentCount} buffers leak");
        _counters.Closes++;
        FoldLoop();
        _disk.CutPower(); // a clean close is durable
        _now += 2;
        foreach (VolumeModel volume in _volumes.Values) volume.Flushed(_now++);
    }

    /// <summary>S9 as far as it shows: what volumes use is what is used in all, once deletions are through.</summary>
    private void JudgeSpace(IStore store)
    {
        ulong Sum()
        {
            ulong sum = 0;
            foreach (VolumeHead head in store.Volumes) sum += store.UsedBytes(head.Id);
            return sum / Units.BlockBytes;
        }

        ulong until = _loop.NowNanos + 60_000_000_000;
        bool Holds() => store.GetStats().BlocksUsed == Sum();
        _loop.RunUntil(() => Holds() || store.State != StoreState.Online || _loop.NowNanos > until, EventsPerLifeMax);
        StoreStats stats = store.GetStats();
        if (store.State == StoreState.Online && stats.BlocksUsed != Sum())
            Violate($"S9: {stats.BlocksUsed} blocks are in use, volumes use {Sum()}");
    }

    /// <summary>Compares heads and the whole content with the model, which then takes what it saw as the truth.</summary>
    private bool JudgeAll(IStore store)
    {
        JudgeHeads(store, settle: true);
        foreach (VolumeModel volume in _volumes.Values)
        {
            if (IsBroken || volume.IsGone) continue;
            JudgeContent(_loop, store, volume, _powerWasCut, settle: true, () => MayMiss);
        }

        _powerWasCut = false;
        if (IsBroken) FoldLoop();
        return !IsBroken;
    }

    private void JudgeHeads(IStore store, bool settle)
    {
        IReadOnlyList<VolumeHead> heads = store.Volumes;
        foreach (VolumeHead head in heads)
        {
            if (!_volumes.TryGetValue(head.Id, out VolumeModel? volume) || (volume.IsGone && !MayMiss))
            {
                Violate($"volume {head.Id} is there and must not be");
                return;
            }

            if (head != volume.Head && head != volume.HeadMaybe && !MayMiss)
                Violate($"volume {head.Id} has head {head}, expected {volume.Head} or {volume.HeadMaybe}");
        }

        foreach (VolumeModel volume in _volumes.Values)
        {
            VolumeHead? found = heads.FirstOrDefault(head => head.Id == volume.Head.Id);
            if (found is null && !volume.IsGone && volume.IsSure && !volume.IsDeleting && !MayMiss)
                Violate($"volume {volume.Head.Id} is lost");
            if (!settle) continue;
            volume.IsGone = found is null || volume.IsGone;
            volume.IsDeleting = false;
            if (found is null) continue;
            volume.IsSure = true;
            volume.SettleHead(found);
        }
    }

    private void JudgeContent(SimLoop loop, IStore store, VolumeModel volume, bool powerWasCut, bool settle, Func<bool> mayMiss)
    {
        IBlockDevice? device = store.OpenVolume(volume.Head.Id);
        if (device is null)
        {
            if (store.Volumes.Any(head => head.Id == volume.Head.Id)) Violate($"volume {volume.Head.Id} cannot be opened");
            return;
        }

        var content = new byte[device.SizeBytes];
        var unreadable = new HashSet<ulong>();
        const int piece = Units.ExtentBytes;
        for (int at = 0; at < content.Length; at += piece)
        {
            Memory<byte> target = content.AsMemory(at, Math.Min(piece, content.Length - at));
            if (ReadNow(loop, device, (ulong)at, target) == IoStatus.Ok) continue;
            for (int block = 0; block < target.Length; block += Units.BlockBytes)
            {
                Memory<byte> one = target.Slice(block, Math.Min(Units.BlockBytes, target.Length - block));
                IoStatus status = ReadNow(loop, device, (ulong)(at + block), one);
                if (status == IoStatus.Ok) continue;
                unreadable.Add((ulong)(at + block) / Units.BlockBytes);
                if (!mayMiss())
                {
                    Violate($"volume {volume.Head.Id} offset {at + block}: read answered {status} though the disk is honest");
                    return;
                }
            }
        }

        if (settle) _counters.BytesJudged += content.Length;
        string? fault = volume.JudgeAfterRestart(
            content, powerWasCut, mayMiss(), sector => unreadable.Contains(sector / (Units.BlockBytes / Units.SectorBytes)), settle, ++_now);
        _now++;
        if (fault is not null) Violate(fault);
    }

    private static IoStatus ReadNow(SimLoop loop, IBlockDevice device, ulong offset, Memory<byte> target)
    {
        Task<ReadResult> reading = device.ReadAsync(offset, target).AsTask();
        return loop.RunUntil(() => reading.IsCompleted, EventsPerLifeMax)
            ? reading.GetAwaiter().GetResult().Status
            : IoStatus.Unavailable;
    }

    /// <summary>Forks the medium as a power cut would leave it now, opens the fork in a world of its own and judges it.</summary>
    private void TryCrashState()
    {
        if (_crashStatesLeft <= 0 || _disk.ChangeCount == _changesSeen || MayMiss || _disk.HasFailedFlush) return;
        _changesSeen = _disk.ChangeCount;
        if (!_random.NextChance(0.5)) return;
        int states = Math.Min(_crashStatesLeft, 1 + _random.NextBelow(3));
        _crashStatesLeft -= states;
        for (int i = 0; i < states && !IsBroken; i++) JudgeCrashState();
    }

    private void JudgeCrashState()
    {
        var dice = new SeededRandom(_random.NextUInt64());
        int kind = dice.NextBelow(4);
        int odd = dice.NextBelow(Math.Max(1, _disk.Pending.Count));
        byte[][] masks = [.. _disk.Pending.Select((write, i) => kind switch
        {
            0 => Filled(write.Pages.Count, 0), // a prefix at a flush boundary
            1 => Filled(write.Pages.Count, write.IsAnswered ? byte.MaxValue : (byte)0), // everything answered
            2 => i == odd ? SimDisk.DrawMasks(dice, write.Pages.Count) : Filled(write.Pages.Count, byte.MaxValue), // one dropped or torn
            _ => SimDisk.DrawMasks(dice, write.Pages.Count),
        })];
        var loop = new SimLoop(dice.NextUInt64());
        SimDisk fork = _disk.ForkAfterPowerCut(loop, dice.NextUInt64(), (write, page) => masks[write][page]);
        _counters.CrashStates++;
        Task<Opened> opening = _options.Driver.OpenAsync(loop, fork, _durability).AsTask();
        loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax);
        if (!opening.IsCompletedSuccessfully || opening.Result.Store is not { } store)
        {
            Violate("crash state: opening failed: "
                + (opening.IsCompletedSuccessfully ? opening.Result.Refusal : opening.Exception?.InnerException?.ToString() ?? "no answer"));
            return;
        }

        JudgeHeads(store, settle: false);
        foreach (VolumeModel volume in _volumes.Values)
        {
            if (!IsBroken && !volume.IsGone) JudgeContent(loop, store, volume, powerWasCut: true, settle: false, () => false);
        }

        _hash = (_hash ^ loop.EventHash) * 1099511628211;
    }

    private static byte[] Filled(int count, byte value)
    {
        var masks = new byte[count];
        Array.Fill(masks, value);
        return masks;
    }

    private void Work(IStore store)
    {
        _requestsLeft = 10 + _random.NextBelow(_options.RequestsPerLife);
        _clientsRunning = 1 + _random.NextBelow(8);
        int clients = _clientsRunning;
        for (int i = 0; i < clients; i++) _ = ClientAsync(store);
        if (!_loop.RunUntil(() => _clientsRunning == 0, EventsPerLifeMax) && !_loop.IsStopped) Violate("clients hang");
    }

    private async ValueTask<bool> ClientAsync(IStore store)
    {
        try
        {
            while (_requestsLeft-- > 0 && store.State == StoreState.Online && !IsBroken)
            {
                await RequestAsync(store);
                _counters.Requests++;
                if (_clients.NextChance(0.1)) await _loop.DelayAsync(_clients.NextBelow(5_000_000UL));
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate("exception: " + thrown);
        }

        _clientsRunning--;
        return true;
    }

    private async ValueTask<bool> RequestAsync(IStore store)
    {
        List<VolumeModel> live = [.. _volumes.Values.Where(volume => volume is { IsSure: true, IsGone: false, IsDeleting: false })];
        int dice = _clients.NextBelow(100);
        if (live.Count == 0 || (dice < 3 && live.Count < 4)) return await CreateAsync(store);
        VolumeModel volume = live[_clients.NextBelow(live.Count)];
        if (dice < 5 && live.Count > 1) return await DeleteAsync(store, volume);
        if (store.OpenVolume(volume.Head.Id) is not { } device)
        {
            Violate($"volume {volume.Head.Id} cannot be opened");
            return false;
        }

        if (dice is >= 5 and < 7) return await ResizeAsync(store, volume);
        if (volume.HeadMaybe is not null)
        {
            await _loop.DelayAsync(1_000);
            return true;
        }

        return dice switch
        {
            < 15 => await FlushAsync(device, volume),
            < 40 => await ReadAsync(device, volume),
            < 48 => await ZeroAsync(device, volume, isTrim: true),
            < 55 => await ZeroAsync(device, volume, isTrim: false),
            _ => await WriteAsync(device, volume),
        };
    }

    private async ValueTask<bool> CreateAsync(IStore store)
    {
        uint id = _nextVolume++;
        ulong size = Units.MiB * (1 + _clients.NextBelow(3UL)) + Units.SectorBytes * _clients.NextBelow(2UL) * _clients.NextBelow(64UL);
        var head = new VolumeHead(id, _clients.NextGuid(), $"v{id}", size, 1);
        var volume = new VolumeModel(head);
        _volumes.Add(id, volume);
        IoStatus status = await store.CreateVolumeAsync(head);
        volume.IsSure = status == IoStatus.Ok;
        if (status != IoStatus.Ok) Expect(status, "create", IoStatus.NoSpace);
        return true;
    }

    private async ValueTask<bool> DeleteAsync(IStore store, VolumeModel volume)
    {
        volume.IsDeleting = true;
        IoStatus status = await store.DeleteVolumeAsync(volume.Head.Id);
        if (status == IoStatus.Ok) volume.IsGone = true;
        else Expect(status, "delete");
        return true;
    }

    private async ValueTask<bool> ResizeAsync(IStore store, VolumeModel volume)
    {
        if (volume.HeadMaybe is not null || _inFlight.Exists(entry => ReferenceEquals(entry.Volume, volume))) return false;
        ulong size = Units.MiB * (1 + _clients.NextBelow(4UL));
        VolumeHead head = volume.Head with { SizeBytes = size, Name = $"{volume.Head.Name[..2]}-{_nextId++}" };
        volume.HeadMaybe = head;
        ModelWrite? shrink = null;
        if (size < volume.Head.SizeBytes)
        {
            ulong first = size / Units.SectorBytes;
            shrink = volume.Begin(_nextId++, first, volume.Sectors - first, isZero: true, ++_now);
            _inFlight.Add((volume, shrink));
        }

        IoStatus status = await store.UpdateVolumeAsync(head);
        bool isOk = status == IoStatus.Ok;
        if (shrink is not null) EndWrite(volume, shrink, isOk, isDurable: true);
        if (!isOk)
        {
            Expect(status, "update", IoStatus.NoSpace);
            return false; // HeadMaybe stays: a restart tells
        }

        volume.SettleHead(head);
        return true;
    }

    private async ValueTask<bool> FlushAsync(IBlockDevice device, VolumeModel volume)
    {
        ulong start = ++_now;
        IoStatus status = await device.FlushAsync();
        _now++;
        if (status == IoStatus.Ok) volume.Flushed(start);
        else ExpectOf(volume, status, "flush");
        return true;
    }

    private async ValueTask<bool> WriteAsync(IBlockDevice device, VolumeModel volume)
    {
        (ulong first, ulong count) = DrawRange(volume, _clients.NextChance(0.03) ? 6144UL : 64UL);
        ulong id = _nextId++;
        var data = new byte[count * Units.SectorBytes];
        VolumeModel.Fill(data, id, volume.Head.Id, first);
        WriteFlags flags = _clients.NextChance(0.1) ? WriteFlags.Fua : WriteFlags.None;
        ModelWrite write = volume.Begin(id, first, count, isZero: false, ++_now);
        _inFlight.Add((volume, write));
        IoStatus status = await device.WriteAsync(first * Units.SectorBytes, data, flags);
        EndWrite(volume, write, status == IoStatus.Ok, flags.HasFlag(WriteFlags.Fua));
        if (status != IoStatus.Ok) ExpectOf(volume, status, "write", IoStatus.NoSpace);
        return true;
    }

    private async ValueTask<bool> ZeroAsync(IBlockDevice device, VolumeModel volume, bool isTrim)
    {
        (ulong first, ulong count) = DrawRange(volume, _clients.NextChance(0.2) ? 8192UL : 128UL);
        WriteFlags flags = _clients.NextChance(0.1) ? WriteFlags.Fua : WriteFlags.None;
        if (!isTrim && _clients.NextChance(0.3)) flags |= WriteFlags.NoHole;
        const ulong perBlock = Units.BlockBytes / Units.SectorBytes;
        ulong begin = first, end = first + count;
        if (isTrim)
        {
            begin = (first + perBlock - 1) / perBlock * perBlock;
            // The last block of a volume may be shorter than a block; it may be trimmed or not, so it is left out.
            end = Math.Max(begin, end / perBlock * perBlock);
            if (first + count != end && first + count == volume.Sectors) count = Math.Max(end, first) - first;
        }

        if (count == 0) return true;
        ModelWrite write = volume.Begin(_nextId++, begin, end - begin, isZero: true, ++_now);
        _inFlight.Add((volume, write));
        IoStatus status = isTrim
            ? await device.TrimAsync(first * Units.SectorBytes, count * Units.SectorBytes, flags)
            : await device.WriteZeroesAsync(first * Units.SectorBytes, count * Units.SectorBytes, flags);
        EndWrite(volume, write, status == IoStatus.Ok, flags.HasFlag(WriteFlags.Fua));
        if (status != IoStatus.Ok) ExpectOf(volume, status, isTrim ? "trim" : "zero", IoStatus.NoSpace);
        return true;
    }

    private async ValueTask<bool> ReadAsync(IBlockDevice device, VolumeModel volume)
    {
        (ulong first, ulong count) = DrawRange(volume, _clients.NextChance(0.1) ? 4096UL : 128UL);
        var target = new byte[count * Units.SectorBytes];
        volume.BeginRead();
        ulong start = ++_now;
        ReadResult result = await device.ReadAsync(first * Units.SectorBytes, target);
        _now++;
        if (result.Status == IoStatus.Ok)
        {
            _counters.BytesJudged += target.Length;
            if (volume.EndRead(first, target, start) is { } fault) Violate(fault);
        }
        else
        {
            ExpectOf(volume, result.Status, "read");
        }

        volume.ReadDone();
        return true;
    }

    private void EndWrite(VolumeModel volume, ModelWrite write, bool isOk, bool isDurable)
    {
        volume.End(write, isOk, isDurable || _durability == Core.Durability.Ack, ++_now);
        _now++;
        _inFlight.RemoveAll(entry => ReferenceEquals(entry.Write, write));
    }

    private (ulong First, ulong Count) DrawRange(VolumeModel volume, ulong sectorsMax)
    {
        ulong count = 1 + _clients.NextBelow(Math.Min(sectorsMax, volume.Sectors));
        ulong first = _clients.NextBelow(volume.Sectors - count + 1);
        if (_clients.NextChance(0.5)) first = Math.Min(first, 256); // a hot corner, so that requests meet
        if (_clients.NextChance(0.6) && count >= 8) (first, count) = (first / 8 * 8, count / 8 * 8);
        return (first, Math.Min(count, volume.Sectors - first));
    }

    private void ExpectOf(VolumeModel volume, IoStatus status, string what, IoStatus alsoFine = IoStatus.Unavailable)
    {
        if (volume.IsDeleting && status is IoStatus.Unavailable or IoStatus.NotFound) return;
        if (volume.HeadMaybe is not null && status == IoStatus.OutOfRange) return;
        Expect(status, what, alsoFine);
    }

    /// <summary>Errors are fine only when the disk gave a reason for them.</summary>
    private void Expect(IoStatus status, string what, IoStatus alsoFine = IoStatus.Unavailable)
    {
        if (status == alsoFine && (status != IoStatus.Unavailable || _disk.FaultCount > 0)) return;
        if (_disk.FaultCount > 0 && status is IoStatus.Unavailable or IoStatus.IoError or IoStatus.NoSpace) return;
        if (MayMiss && status == IoStatus.Corrupt) return;
        Violate($"{what} answered {status} without a reason");
    }

    private void FoldLoop()
    {
        _hash = (_hash ^ _loop.EventHash) * 1099511628211;
        _hash = (_hash ^ _loop.EventCount) * 1099511628211;
    }

    private void Violate(string what)
    {
        if (_violations.Count < 20) _violations.Add($"{what} [{_durability}{(_isLying ? ", lying disk" : "")}, seed {_seed}]");
    }
}
