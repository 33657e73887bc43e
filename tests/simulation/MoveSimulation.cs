using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

/// <summary>
/// A node with two disks between which volumes move while clients write, read, flush and append; and the node dies, with or without its
/// power, at any event of that. After each death the metadata and both stores are opened again, what the clients must find is
/// judged by the model, and the move goes on. Everything follows from the seed.
/// </summary>
internal sealed partial class MoveSimulation
{
    private const ulong EventsPerLifeMax = 4_000_000;
    private const int LivesMax = 40, Clients = 2;
    private const ulong VolumeBytes = 2 * Units.MiB;

    private readonly SeededRandom _random;
    private readonly Durability _durability;
    private readonly BrokenMoves _broken;
    private readonly bool _aimsAtSwitch;
    private readonly StorageDriver _driver = new();
    private readonly MemoryMetaStore _meta = new();
    private readonly SimDisk[] _disks;
    private readonly List<VolumeModel> _volumes = [];
    private readonly List<(uint VolumeId, string Name, byte[] Content)> _snapshots = [];
    private readonly List<(VolumeModel Volume, ModelWrite Write)> _inFlight = [];
    private readonly SimSide[] _sides = new SimSide[2];
    private readonly int _movesWanted;
    private Dictionary<uint, Used> _used = [];
    private VolumeDirectory _directory = null!;
    private SimLoop _loop;
    private ulong _now, _nextId = 1;
    private bool _powerWasCut, _mayDieAtSwitch;
    private ulong _end;

    private MoveSimulation(ulong seed, BrokenMoves broken, bool aimsAtSwitch)
    {
        _random = new SeededRandom(seed);
        (_broken, _aimsAtSwitch) = (broken, aimsAtSwitch);
        _durability = _random.NextChance(0.7) || aimsAtSwitch ? Durability.Flush : Durability.Ack;
        _movesWanted = 1 + _random.NextBelow(3);
        // What makes appends durable makes everything durable: a flush that is left out is noticed where nobody appends.
        bool mayAppend = _random.NextChance(0.5);
        _isAppending = broken == BrokenMoves.None ? mayAppend : (broken & (BrokenMoves.SkipAppendHold | BrokenMoves.ForgetClients)) != 0;
        _loop = new SimLoop(_random.NextUInt64());
        _disks = [NewDisk(), NewDisk()];
    }

    /// <summary>The first thing that was wrong, or null.</summary>
    public Violation? Violation { get; private set; }

    /// <summary>Folded over all events.</summary>
    public ulong Hash { get; private set; } = 14695981039346656037;

    /// <summary>Moves that were carried through.</summary>
    public int Moved { get; private set; }

    /// <summary>Deaths in the middle of a move.</summary>
    public int Deaths { get; private set; }

    /// <summary>Runs one seed. With <paramref name="aimsAtSwitch"/> nothing is durable that was not flushed, and nearly every death is a
    /// power cut in the last difference, of which little is in any other world.</summary>
    public static MoveSimulation Run(ulong seed, BrokenMoves broken = BrokenMoves.None, bool aimsAtSwitch = false)
    {
        var simulation = new MoveSimulation(seed, broken, aimsAtSwitch);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(new Violation(ViolationKind.Exception, thrown.ToString()));
        }

        return simulation;
    }

    private SimDisk NewDisk()
    {
        var disk = new SimDisk(_loop, _driver.MediumBytes, _random.NextUInt64());
        Check.That(_loop.Run(_driver.FormatAsync(_loop, disk, _random.NextBelow(4))) is null);
        return disk;
    }

    private void RunLives()
    {
        for (int life = 0; life < LivesMax && Violation is null && Moved < _movesWanted; life++)
        {
            _loop = new SimLoop(_random.NextUInt64());
            if (!Open() || (life == 0 ? !Create() : !Judge())) return;
            // The last lives are long enough for a move to end.
            ulong length = life > LivesMax - 10 ? EventsPerLifeMax : _aimsAtSwitch ? 20_000 : _random.NextBelow(_random.NextChance(0.2) ? 2_000UL : 150UL);
            Live(length);
            Hash = (Hash ^ _loop.EventHash) * 1099511628211;
            Die();
        }

        if (Violation is not null) return;
        if (Moved < _movesWanted) Violate(new Violation(ViolationKind.Hang, $"{Moved} of {_movesWanted} moves ended in {LivesMax} lives"));
        _loop = new SimLoop(_random.NextUInt64());
        if (Open() && Judge()) JudgeRepeats();
    }

    private bool Open()
    {
        for (int i = 0; i < 2; i++)
        {
            _disks[i].Attach(_loop);
            Task<Opened> opening = _driver.OpenAsync(_loop, _disks[i], null, _durability).AsTask();
            if (!_loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax) || opening.Result.Store is not ILayeredStore store)
            {
                Violate(new Violation(ViolationKind.Refused, $"disk {i} does not open: {(opening.IsCompleted ? opening.Result.Refusal : "it hangs")}"));
                return false;
            }

            _sides[i] = new SimSide(store, updating: OnUpdating);
        }

        _inFlight.Clear();
        _used = [];
        _directory = new VolumeDirectory(_meta, new Clock(), new SeededRandom(_random.NextUInt64())) { Delay = _loop.DelayAsync };
        IReadOnlyList<string> notes = Finish(_directory.ReconcileAsync(_sides));
        if (notes.Count > 0) Violate(new Violation(ViolationKind.WrongAnswer, "the start says: " + string.Join("; ", notes)));
        return Violation is null;
    }

    private bool Create()
    {
        for (int i = 0; i < 2; i++)
        {
            VolumeRecord record = Finish(_directory.CreateAsync(new Core.Api.CreateVolume($"v{i}", VolumeBytes, StoreId: _sides[0].StoreId))).Volume!;
            _volumes.Add(new VolumeModel(new VolumeHead(record.Id, record.Uuid, record.Name, VolumeBytes, 1)) { IsSure = true });
            Fill(_volumes[^1]);
        }

        CreateLog();
        return true;
    }

    /// <summary>So that there is something to copy.</summary>
    private void Fill(VolumeModel volume)
    {
        const ulong Sectors = 128;
        IBlockDevice device = Use(volume.Head.Id).Device;
        for (ulong first = 0; first < volume.Sectors; first += Sectors * (1 + _random.NextBelow(2UL)))
        {
            var data = new byte[Sectors * Units.SectorBytes];
            ulong id = _nextId++;
            VolumeModel.Fill(data, id, volume.Head.Id, first);
            ModelWrite write = volume.Begin(id, first, Sectors, false, ++_now);
            Check.That(_loop.Run(device.WriteAsync(first * Units.SectorBytes, data, WriteFlags.Fua)) == IoStatus.Ok);
            volume.End(write, true, true, ++_now);
        }
    }

    /// <summary>A store is told what it is to say of a volume. As the home of one that moves it is the last that is heard of the move before
    /// the metadata say so.</summary>
    private void OnUpdating(VolumeHead head)
    {
        if (_aimsAtSwitch && _mayDieAtSwitch && head.Epoch != VolumeDirectory.CopyEpoch && _random.NextChance(0.7))
            _end = Math.Min(_end, _loop.EventCount + _random.NextBelow(4UL));
    }

    private T Finish<T>(Task<T> task)
    {
        if (!_loop.RunUntil(() => task.IsCompleted, EventsPerLifeMax)) throw new InvalidOperationException("it never ended");
        return task.GetAwaiter().GetResult();
    }

    private void Live(ulong length)
    {
        bool isOver = false;
        int running = Clients;
        foreach (VolumeModel volume in _volumes) Use(volume.Head.Id);
        ChangeLog();
        if (_snapshots.Count < 2 && _directory.Moves.Count == 0 && _random.NextChance(0.5)) CutOne();
        _end = _loop.EventCount + length;
        _mayDieAtSwitch = length < EventsPerLifeMax;
        _loop.StopBeforeEvent = _ => Violation is not null || _loop.EventCount >= _end;
        for (int i = 0; i < Clients; i++) _ = ClientAsync(() => isOver, () => running--);
        running += Appenders;
        for (int i = 0; i < Appenders; i++) _ = AppenderAsync(i, () => isOver, () => running--);
        Task moving = MoveAsync(() => isOver = true);
        _loop.RunUntil(() => moving.IsCompleted && running == 0, EventsPerLifeMax);
        if (moving.IsFaulted) Violate(new Violation(ViolationKind.Exception, moving.Exception!.ToString()));
        if (!moving.IsCompleted && Violation is null) Deaths++;
    }

    /// <summary>A snapshot at a moment when nobody writes, and what it must show for ever.</summary>
    private void CutOne()
    {
        VolumeModel volume = _volumes[_random.NextBelow(_volumes.Count)];
        string name = $"s{_snapshots.Count}";
        byte[] content = _loop.Run(ReadAllAsync(_used[volume.Head.Id].Device));
        if (Finish(_directory.CutAsync(name, [volume.Head.Name], default)).Fault is not null) return;
        _snapshots.Add((volume.Head.Id, name, content));
    }

    private async Task MoveAsync(Action ended)
    {
        MoveRecord? move = _directory.Moves is [var known, ..] ? known : null;
        if (move is null)
        {
            int which = _random.NextBelow(_volumes.Count + (_isAppending ? 1 : 0));
            VolumeRecord volume = _directory.Find(which < _volumes.Count ? _volumes[which].Head.Name : LogName)!;
            Guid to = _sides.Single(s => s.StoreId != volume.StoreId).StoreId;
            (move, DirectoryFault? fault) = await _directory.BeginMoveAsync(volume.Name, to);
            if (fault is { Code: "copy-being-deleted" })
            {
                await _directory.SweepMovesAsync();
                ended();
                return;
            }

            if (move is null) throw new InvalidOperationException(fault!.Detail);
        }

        var limits = new MoveLimits
        {
            BatchBytes = Streams.StreamHeader.DataBytesMax, KeepEveryBytes = 256 * Units.KiB, LastRoundBytes = 128 * Units.KiB, RoundsMax = 3, FreeBytesMin = 0, Broken = _broken, PauseMax = TimeSpan.FromSeconds(100),
        };
        var seams = new MoveSeams(new SeededRandom(_random.NextUInt64()), new Clock(), _loop.DelayAsync);
        var one = new VolumeMove(
            _directory, _sides.Single(s => s.StoreId == move.From), _sides.Single(s => s.StoreId == move.To), new Gate(this), seams, limits, _ => { }, default);
        await one.RunAsync(move);
        Moved++;
        await one.Leaving;
        ended();
    }

    private Used Use(uint id)
    {
        if (_used.TryGetValue(id, out Used? known)) return known;
        VolumeRecord record = _directory.Find(id)!;
        var home = new HomeDevice(_sides.Single(s => s.StoreId == record.StoreId).Store.OpenVolume(id)!);
        var gate = new VolumeGate();
        return _used[id] = new Used(home, gate, new GatedDevice(home, gate));
    }

    private async ValueTask<bool> ClientAsync(Func<bool> isOver, Action ended)
    {
        try
        {
            int requests = _aimsAtSwitch ? 10 : 2_000; // few: what is overwritten later shows nothing
            for (int i = 0; i < requests && Violation is null && !isOver(); i++)
            {
                VolumeModel volume = _volumes[_random.NextBelow(_volumes.Count)];
                IoStatus status = await RequestAsync(volume, _used[volume.Head.Id].Device);
                if (status != IoStatus.Ok) Violate(new Violation(ViolationKind.WrongAnswer, $"a request to volume {volume.Head.Id} answered {status}"));
                if (_random.NextChance(0.5)) await _loop.DelayAsync(_random.NextBelow(2_000_000UL));
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(new Violation(ViolationKind.Exception, thrown.ToString()));
        }

        ended();
        return true;
    }

    /// <summary>What the last difference has to bring, and nobody has flushed.</summary>
    private async Task WriteSomeAsync(IReadOnlyList<VolumeRecord> volumes)
    {
        foreach (VolumeModel volume in _volumes.Where(v => volumes.Any(one => one.Id == v.Head.Id)))
        {
            for (int i = 0; i < 4; i++) await RequestAsync(volume, Use(volume.Head.Id).Device, flushes: false);
        }
    }

    private async ValueTask<IoStatus> RequestAsync(VolumeModel volume, IBlockDevice device, bool flushes = true)
    {
        ulong count = 1 + _random.NextBelow(_random.NextChance(0.05) ? 1024UL : 32UL), first = _random.NextBelow(volume.Sectors - count + 1);
        int dice = _random.NextBelow(100);
        if (dice < 10 && flushes)
        {
            ulong start = ++_now;
            IoStatus flushed = await device.FlushAsync();
            _now++;
            if (flushed == IoStatus.Ok) volume.Flushed(start);
            return flushed;
        }

        if (dice < 35)
        {
            var target = new byte[count * Units.SectorBytes];
            volume.BeginRead();
            ulong start = ++_now;
            ReadResult result = await device.ReadAsync(first * Units.SectorBytes, target);
            _now++;
            if (result.Status == IoStatus.Ok && volume.EndRead(first, target, start) is { } fault) Violate(fault);
            volume.ReadDone();
            return result.Status;
        }

        bool isZero = dice < 45;
        ulong id = _nextId++;
        var data = new byte[isZero ? 0 : count * Units.SectorBytes];
        VolumeModel.Fill(data, id, volume.Head.Id, first);
        WriteFlags flags = flushes && _random.NextChance(0.1) ? WriteFlags.Fua : WriteFlags.None;
        ModelWrite write = volume.Begin(id, first, count, isZero, ++_now);
        _inFlight.Add((volume, write));
        IoStatus status = isZero
            ? await device.WriteZeroesAsync(first * Units.SectorBytes, count * Units.SectorBytes, flags)
            : await device.WriteAsync(first * Units.SectorBytes, data, flags);
        volume.End(write, status == IoStatus.Ok, flags == WriteFlags.Fua || _durability == Durability.Ack, ++_now);
        _now++;
        _inFlight.RemoveAll(entry => ReferenceEquals(entry.Write, write));
        return status;
    }

    private void Die()
    {
        _powerWasCut = _random.NextChance(0.5) || _aimsAtSwitch;
        foreach (SimDisk disk in _disks)
        {
            if (_powerWasCut) disk.CutPower();
            else disk.Kill();
        }

        _now++;
        foreach ((VolumeModel volume, ModelWrite write) in _inFlight) volume.End(write, isOk: false, isDurable: false, _now);
        _now++;
    }

    /// <summary>The whole content of the volumes in their home against the model, which then takes it as the truth; and the
    /// snapshots.</summary>
    private bool Judge()
    {
        foreach (VolumeModel volume in _volumes)
        {
            byte[] content = _loop.Run(ReadAllAsync(Use(volume.Head.Id).Device));
            if (volume.JudgeAfterRestart(content, _powerWasCut, staleAllowed: false, null, settle: true, ++_now) is { } fault) Violate(fault);
            _now++;
        }

        if (Violation is null) JudgeLog();
        foreach ((uint id, string name, byte[] content) in _snapshots)
        {
            ILayeredStore store = _sides.Single(s => s.StoreId == _directory.Find(id)!.StoreId).Store;
            if (store.Snapshots(id).FirstOrDefault(s => s.Name == name) is not { } info)
                Violate(new Violation(ViolationKind.LostVolume, $"snapshot {name} of volume {id} is lost"));
            else if (!_loop.Run(ReadAllAsync(store.OpenSnapshot(id, info.Uuid)!)).AsSpan().SequenceEqual(content))
                Violate(new Violation(ViolationKind.WrongData, $"snapshot {name} of volume {id} shows something else"));
        }

        return Violation is null;
    }

    private async ValueTask<byte[]> ReadAllAsync(IBlockDevice device)
    {
        var content = new byte[device.SizeBytes];
        IoStatus status = (await device.ReadAsync(0, content)).Status;
        if (status != IoStatus.Ok) Violate(new Violation(ViolationKind.Unreadable, $"it cannot be read: {status}"));
        return content;
    }

    private void Violate(Violation found) => Violation ??= found;

    private sealed record Used(HomeDevice Home, VolumeGate Gate, IBlockDevice Device);

    private sealed class Clock : IWallClock
    {
        public DateTimeOffset UtcNow => DateTimeOffset.UnixEpoch;
    }

    private sealed class Gate(MoveSimulation world) : IMoveGate, IMoveHold
    {
        private readonly List<(Used Volume, VolumeGate.Range Range)> _held = [];

        public async Task<IMoveHold?> HoldAsync(IReadOnlyList<VolumeRecord> volumes)
        {
            // Around the moment at which the home changes a death means most.
            if (world._aimsAtSwitch) await world.WriteSomeAsync(volumes);
            else if (world._mayDieAtSwitch && world._random.NextChance(0.4)) world._end = Math.Min(world._end, world._loop.EventCount + world._random.NextBelow(80UL));
            foreach (VolumeRecord volume in volumes)
            {
                if (world._broken.HasFlag(BrokenMoves.SkipHold)) continue;
                Used used = world.Use(volume.Id);
                VolumeGate.Range range = used.Gate.Take(0, ulong.MaxValue, isExclusive: true, out ValueTask<bool> wait);
                await wait;
                _held.Add((used, range));
            }

            return this;
        }

        public Task SwitchAsync(IReadOnlyList<VolumeRecord> moved)
        {
            foreach (VolumeRecord volume in moved)
                world.Use(volume.Id).Home.Switch(world._sides.Single(s => s.StoreId == volume.StoreId).Store.OpenVolume(volume.Id)!);
            return Task.CompletedTask;
        }

        public Task ReleaseAsync()
        {
            foreach ((Used volume, VolumeGate.Range range) in _held) volume.Gate.Release(range);
            return Task.CompletedTask;
        }

        public async Task DrainAsync()
        {
            foreach ((Used volume, _) in _held) await volume.Home.DrainAsync();
        }
    }
}
