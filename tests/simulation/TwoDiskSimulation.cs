using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

/// <summary>What becomes of the worse of two disks.</summary>
public enum DiskFate
{
    /// <summary>Nothing.</summary>
    Fine,

    /// <summary>It fails now and then.</summary>
    Fails,

    /// <summary>It also loses, misplaces and rots.</summary>
    Lies,

    /// <summary>From some moment of each life on it answers nothing but errors; the last life is without it.</summary>
    IsDead,

    /// <summary>From some moment of each life on it answers nothing at all; the last life is without it.</summary>
    IsGone,
}

/// <summary>
/// A node with two disks: two stores on one loop, volumes and clients on both. Whatever one disk does, the requests to
/// volumes on the other one succeed, end, and are right, over crashes of the node too; and when the worse one only failed,
/// its own volumes are right as well. Everything follows from the seed.
/// </summary>
public sealed class TwoDiskSimulation
{
    private const ulong EventsPerLifeMax = 2_000_000;
    private const int Lives = 3, VolumesEach = 2, ClientsEach = 2;

    private readonly SeededRandom _random;
    private readonly Side[] _sides;
    private readonly Side _good;
    private readonly Side _bad;
    private readonly Durability _durability;
    private readonly StorageDriver _driver = new();
    private SimLoop _loop;
    private ulong _now;
    private ulong _nextId = 1;

    private TwoDiskSimulation(ulong seed)
    {
        _random = new SeededRandom(seed);
        _durability = _random.NextChance(0.5) ? Durability.Flush : Durability.Ack;
        Fate = (DiskFate)_random.NextBelow(5);
        _loop = new SimLoop(_random.NextUInt64());
        _sides = [NewSide(0), NewSide(1)];
        int bad = _random.NextBelow(2);
        (_bad, _good) = (_sides[bad], _sides[1 - bad]);
    }

    /// <summary>What became of the worse disk.</summary>
    public DiskFate Fate { get; }

    /// <summary>The first thing that was wrong, or null.</summary>
    public Violation? Violation { get; private set; }

    /// <summary>Folded over all events.</summary>
    public ulong Hash { get; private set; } = 14695981039346656037;

    /// <summary>Requests to the good disk that were answered while the store of the other one had stopped or did not answer.</summary>
    public long RequestsBeside { get; private set; }

    /// <summary>Runs one seed.</summary>
    public static TwoDiskSimulation Run(ulong seed)
    {
        var simulation = new TwoDiskSimulation(seed);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(ViolationKind.Exception, thrown.ToString());
        }

        return simulation;
    }

    private Side NewSide(int number)
    {
        var side = new Side(new SimDisk(_loop, _driver.MediumBytes, _random.NextUInt64()));
        Check.That(_loop.Run(_driver.FormatAsync(_loop, side.Disk, _random.NextBelow(4))) is null);
        for (uint i = 0; i < VolumesEach; i++)
        {
            uint id = (uint)number * VolumesEach + i + 1;
            side.Volumes.Add(new VolumeModel(new VolumeHead(id, _random.NextGuid(), $"v{id}", 2 * Units.MiB, 1)) { IsSure = true });
        }

        return side;
    }

    private void RunLives()
    {
        for (int life = 0; life <= Lives && Violation is null; life++)
        {
            bool isLast = life == Lives;
            _loop = new SimLoop(_random.NextUInt64());
            foreach (Side side in _sides)
            {
                side.Disk.Faults = SimDiskFaults.None;
                side.Disk.Attach(_loop);
                side.InFlight.Clear();
            }

            // A disk that went away stays away, and the node starts without it.
            if (isLast && Fate is DiskFate.IsDead or DiskFate.IsGone) _bad.Store = null;
            else if (!TryOpen(_bad, mayRefuse: IsExcused)) return;
            if (!TryOpen(_good, mayRefuse: false) || !JudgeContent(_good) || (!IsExcused && !JudgeContent(_bad))) return;
            if (life == 0) CreateVolumes();
            Work(isLast);
            Hash = (Hash ^ _loop.EventHash) * 1099511628211;
            if (Violation is null) EndLife();
        }

        foreach (string misuse in _good.Disk.Misuse.Concat(_bad.Disk.Misuse)) Violate(ViolationKind.DiskMisuse, misuse);
    }

    /// <summary>The worse disk lied: what its volumes hold is judged in other simulations.</summary>
    private bool IsExcused => _bad.Disk.DestructiveFaultCount > 0;

    private bool TryOpen(Side side, bool mayRefuse)
    {
        Task<Opened> opening = _driver.OpenAsync(_loop, side.Disk, null, _durability).AsTask();
        if (!_loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax))
        {
            Violate(ViolationKind.Hang, "opening a store never ended");
            return false;
        }

        side.Store = opening.GetAwaiter().GetResult().Store;
        if (side.Store is null && !mayRefuse)
            Violate(ViolationKind.Refused, "opening was refused though the disk is honest: " + opening.Result.Refusal);
        return Violation is null;
    }

    private void CreateVolumes()
    {
        foreach (Side side in _sides)
        {
            foreach (VolumeModel volume in side.Volumes)
                Check.That(_loop.Run(side.Store!.CreateVolumeAsync(volume.Head)) == IoStatus.Ok);
        }
    }

    /// <summary>Clients on both disks; it ends when those of the good disk have had all their answers.</summary>
    private void Work(bool isLast)
    {
        ulong start = _loop.EventCount, end = start + _random.NextBelow(3_000UL);
        _bad.Disk.Faults = isLast ? SimDiskFaults.None : Fate switch
        {
            DiskFate.Fails => SimDiskFaults.DrawHonest(_random) with { WriteError = 0.01, FlushError = 0.02, ReadError = 0.01 },
            DiskFate.Lies => SimDiskFaults.DrawLying(_random) with { BitRot = 0.01, LostWrite = 0.01 },
            _ => SimDiskFaults.None,
        };
        _loop.StopBeforeEvent = _ =>
        {
            if (_loop.EventCount >= end && !isLast) Break();
            return Violation is not null;
        };
        int running = ClientsEach;
        for (int i = 0; i < ClientsEach; i++)
        {
            _ = ClientAsync(_good, 20 + _random.NextBelow(60), () => running--);
            if (_bad.Store is not null) _ = ClientAsync(_bad, 60, () => { });
        }

        if (!_loop.RunUntil(() => running == 0, EventsPerLifeMax) && Violation is null)
            Violate(ViolationKind.Hang, "clients of the good disk hang");
    }

    private void Break()
    {
        if (Fate == DiskFate.IsGone) _bad.Disk.Faults = new SimDiskFaults { Hang = 1 };
        else if (Fate == DiskFate.IsDead) _bad.Disk.Faults = new SimDiskFaults { ReadError = 1, WriteError = 1, FlushError = 1 };
    }

    private void EndLife()
    {
        bool isCut = _random.NextChance(0.5), isClean = _random.NextChance(0.3);
        if (isClean)
        {
            Task<IoStatus> closing = _good.Store!.CloseAsync().AsTask();
            if (!_loop.RunUntil(() => closing.IsCompleted, EventsPerLifeMax) || closing.Result != IoStatus.Ok)
                Violate(ViolationKind.WrongAnswer, "the good disk does not close");
            foreach (VolumeModel volume in _good.Volumes) volume.Flushed(++_now);
        }

        foreach (Side side in _sides)
        {
            // What a failed flush dropped is gone as if the power had failed.
            side.PowerWasCut = isCut || side.Disk.HasFailedFlush;
            if (isCut) side.Disk.CutPower();
            else side.Disk.Kill();
            _now++;
            foreach ((VolumeModel volume, ModelWrite write) in side.InFlight) volume.End(write, isOk: false, isDurable: false, _now);
            _now++;
        }
    }

    private async ValueTask<bool> ClientAsync(Side side, int requests, Action ended)
    {
        try
        {
            for (int i = 0; i < requests && Violation is null; i++)
            {
                VolumeModel volume = side.Volumes[_random.NextBelow(VolumesEach)];
                if (side.Store!.OpenVolume(volume.Head.Id) is not { } device)
                {
                    if (side == _good || !IsExcused) Violate(ViolationKind.LostVolume, $"volume {volume.Head.Id} is lost");
                    break;
                }

                IoStatus status = await RequestAsync(side, volume, device);
                if (side == _good && (_bad.Store?.State != StoreState.Online || _bad.Disk.HasHung)) RequestsBeside++;
                if (status == IoStatus.Ok) continue;
                if (side == _good || _bad.Disk.FaultCount == 0)
                    Violate(ViolationKind.WrongAnswer, $"a request to a volume on a disk without faults answered {status}");
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(ViolationKind.Exception, thrown.ToString());
        }

        ended();
        return true;
    }

    private async ValueTask<IoStatus> RequestAsync(Side side, VolumeModel volume, IBlockDevice device)
    {
        ulong count = 1 + _random.NextBelow(_random.NextChance(0.05) ? 2048UL : 64UL), first = _random.NextBelow(volume.Sectors - count + 1);
        int dice = _random.NextBelow(100);
        if (dice < 10)
        {
            ulong start = ++_now;
            IoStatus flushed = await device.FlushAsync();
            _now++;
            if (flushed == IoStatus.Ok) volume.Flushed(start);
            return flushed;
        }

        if (dice < 40) return await ReadAsync(side, volume, device, first, count);
        bool isZero = dice < 50;
        ulong id = _nextId++;
        var data = new byte[isZero ? 0 : count * Units.SectorBytes];
        VolumeModel.Fill(data, id, volume.Head.Id, first);
        WriteFlags flags = _random.NextChance(0.1) ? WriteFlags.Fua : WriteFlags.None;
        ModelWrite write = volume.Begin(id, first, count, isZero, ++_now);
        side.InFlight.Add((volume, write));
        IoStatus status = isZero
            ? await device.WriteZeroesAsync(first * Units.SectorBytes, count * Units.SectorBytes, flags)
            : await device.WriteAsync(first * Units.SectorBytes, data, flags);
        volume.End(write, status == IoStatus.Ok, flags == WriteFlags.Fua || _durability == Durability.Ack, ++_now);
        _now++;
        side.InFlight.RemoveAll(entry => ReferenceEquals(entry.Write, write));
        return status;
    }

    private async ValueTask<IoStatus> ReadAsync(Side side, VolumeModel volume, IBlockDevice device, ulong first, ulong count)
    {
        var target = new byte[count * Units.SectorBytes];
        volume.BeginRead();
        ulong start = ++_now;
        ReadResult result = await device.ReadAsync(first * Units.SectorBytes, target);
        _now++;
        if (result.Status == IoStatus.Ok && (side == _good || !IsExcused) && volume.EndRead(first, target, start) is { } fault) Violate(fault);
        volume.ReadDone();
        return result.Status;
    }

    /// <summary>The whole content of a disk's volumes against the model, which then takes it as the truth.</summary>
    private bool JudgeContent(Side side)
    {
        if (side.Store is null || side.Store.Volumes.Count == 0 && _now == 0) return true;
        foreach (VolumeModel volume in side.Volumes)
        {
            if (side.Store.OpenVolume(volume.Head.Id) is not { } device)
            {
                Violate(ViolationKind.LostVolume, $"volume {volume.Head.Id} is lost");
                return false;
            }

            var content = new byte[device.SizeBytes];
            IoStatus status = _loop.Run(device.ReadAsync(0, content)).Status;
            if (status != IoStatus.Ok) Violate(ViolationKind.Unreadable, $"volume {volume.Head.Id} cannot be read: {status}");
            else if (volume.JudgeAfterRestart(content, side.PowerWasCut, staleAllowed: false, null, settle: true, ++_now) is { } fault) Violate(fault);
            _now++;
            if (Violation is not null) return false;
        }

        return true;
    }

    private void Violate(ViolationKind kind, string what) => Violate(new Violation(kind, what));

    private void Violate(Violation found) => Violation ??= found with { Text = $"{found.Text} [{_durability}, the other disk: {Fate}]" };

    /// <summary>One disk with its store and volumes.</summary>
    private sealed class Side(SimDisk disk)
    {
        public SimDisk Disk { get; } = disk;

        public IStore? Store { get; set; }

        public List<VolumeModel> Volumes { get; } = [];

        public List<(VolumeModel Volume, ModelWrite Write)> InFlight { get; } = [];

        public bool PowerWasCut { get; set; }
    }
}
