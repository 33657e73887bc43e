using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

/// <summary>One step of a small workload.</summary>
public enum CrashStep
{
    /// <summary>4 KiB at the start.</summary>
    Write,

    /// <summary>Three blocks over the same place, misaligned at both ends.</summary>
    Overlap,

    /// <summary>1 MiB across the border of two extents.</summary>
    Large,

    /// <summary>Trim of two blocks at the start.</summary>
    Trim,

    /// <summary>Zeroes in the middle of a block.</summary>
    Zero,

    /// <summary>Flush.</summary>
    Flush,

    /// <summary>4 KiB with FUA in the second extent.</summary>
    Fua,

    /// <summary>A snapshot; from here on the steps are of layers.</summary>
    Snapshot,

    /// <summary>The oldest snapshot is deleted.</summary>
    DeleteOldest,

    /// <summary>The newest snapshot is deleted.</summary>
    DeleteNewest,

    /// <summary>A snapshot of the volume and of its clone at one moment.</summary>
    Group,

    /// <summary>Back to the oldest snapshot.</summary>
    RollBack,

    /// <summary>A clone of the newest snapshot.</summary>
    Clone,

    /// <summary>The clone is flattened.</summary>
    Flatten,

    /// <summary>The clone is deleted.</summary>
    DeleteVolume,

    /// <summary>Waits until the background is through.</summary>
    Rest,
}

/// <summary>
/// Crash states of small workloads (trust C.5): before every event at which the medium changed, the power is cut in every
/// way: all subsets of at most eight unflushed writes, else drawn ones, and each write alone torn. Every state is
/// recovered (some twice, after a crash inside the recovery), judged, written to, closed and recovered again.
/// </summary>
public sealed partial class CrashEnumeration(StoreDriver driver, Durability durability, ulong seed)
{
    private const int SubsetsOf = 8;
    private const int DrawnSubsets = 40;

    // However few are left, so that no event goes without: the last steps come when most are used up.
    private const int StatesPerChange = 8;
    private const ulong EventsMax = 1_000_000;

    private readonly SeededRandom _random = new(seed);
    private readonly VolumeModel _volume = new(new VolumeHead(1, Guid.Empty, "crash", 2 * Units.MiB, 1));
    private SimLoop _loop = null!;
    private SimDisk _disk = null!;
    private readonly HashSet<ulong> _statesJudged = [];
    private readonly HashSet<ulong> _momentsJudged = [];
    private ulong _now;
    private ulong _nextId = 1;
    private ulong _changesSeen;
    private int _statesLeft;
    private byte[] _content = [];

    /// <summary>Distinct disk states judged so far.</summary>
    public int States { get; private set; }

    /// <summary>The first thing that was wrong, or null.</summary>
    public Violation? Violation { get; private set; }

    /// <summary>Runs the steps one after another and judges about <paramref name="statesMax"/> states of it, some of every change.</summary>
    public void Run(IReadOnlyList<CrashStep> steps, int statesMax)
    {
        _statesLeft = statesMax;
        _loop = new SimLoop(_random.NextUInt64());
        _disk = new SimDisk(_loop, driver.MediumBytes, _random.NextUInt64());
        if (_loop.Run(driver.FormatAsync(_loop, _disk, _random.NextBelow(4))) is { } refusal)
        {
            Violation = new Violation(ViolationKind.Refused, "format: " + refusal);
            return;
        }

        Opened opened = _loop.Run(driver.OpenAsync(_loop, _disk, null, durability));
        if (opened.Store is null || _loop.Run(opened.Store.CreateVolumeAsync(_volume.Head)) != IoStatus.Ok)
        {
            Violation = new Violation(ViolationKind.Refused, "a fresh store does not take a volume: " + opened.Refusal);
            return;
        }

        IBlockDevice device = opened.Store.OpenVolume(1)!;
        _changesSeen = _disk.ChangeCount;
        _loop.StopBeforeEvent = _ =>
        {
            if (_disk.ChangeCount != _changesSeen) JudgeNow();
            _changesSeen = _disk.ChangeCount;
            return Violation is not null;
        };
        foreach (CrashStep step in steps)
        {
            Task<bool> running = step < CrashStep.Snapshot ? StepAsync(device, step).AsTask()
                : LayerStepAsync((ILayeredStore)opened.Store, step).AsTask();
            bool ended = _loop.RunUntil(() => running.IsCompleted, EventsMax);
            if (Violation is not null) break;
            if (!ended || !running.GetAwaiter().GetResult()) Violation = new Violation(ViolationKind.WrongAnswer, $"{step} failed on a good disk");
        }

        if (Violation is { } found)
            Violation = found with { Text = $"{found.Text} [{durability}, steps {string.Join(' ', steps)}, seed {seed}]" };
    }

    private async ValueTask<bool> StepAsync(IBlockDevice device, CrashStep step) => step switch
    {
        CrashStep.Write => await WriteAsync(device, 0, 8, WriteFlags.None),
        CrashStep.Overlap => await WriteAsync(device, 3, 17, WriteFlags.None),
        CrashStep.Large => await WriteAsync(device, 1024, 2048, WriteFlags.None),
        CrashStep.Trim => await ZeroAsync(device, 0, 16, isTrim: true),
        CrashStep.Zero => await ZeroAsync(device, 2, 11, isTrim: false),
        CrashStep.Flush => await FlushAsync(device),
        _ => await WriteAsync(device, 2056, 8, WriteFlags.Fua),
    };

    private async ValueTask<bool> WriteAsync(IBlockDevice device, ulong first, ulong count, WriteFlags flags)
    {
        var data = new byte[count * Units.SectorBytes];
        ulong id = _nextId++;
        VolumeModel.Fill(data, id, 1, first);
        ModelWrite write = _volume.Begin(id, first, count, isZero: false, ++_now);
        IoStatus status = await device.WriteAsync(first * Units.SectorBytes, data, flags);
        _volume.End(write, status == IoStatus.Ok, flags != WriteFlags.None || durability == Durability.Ack, ++_now);
        return status == IoStatus.Ok;
    }

    private async ValueTask<bool> ZeroAsync(IBlockDevice device, ulong first, ulong count, bool isTrim)
    {
        ModelWrite write = _volume.Begin(_nextId++, first, count, isZero: true, ++_now);
        IoStatus status = isTrim
            ? await device.TrimAsync(first * Units.SectorBytes, count * Units.SectorBytes, WriteFlags.None)
            : await device.WriteZeroesAsync(first * Units.SectorBytes, count * Units.SectorBytes, WriteFlags.None);
        _volume.End(write, status == IoStatus.Ok, durability == Durability.Ack, ++_now);
        return status == IoStatus.Ok;
    }

    private async ValueTask<bool> FlushAsync(IBlockDevice device)
    {
        ulong start = ++_now;
        IoStatus status = await device.FlushAsync();
        _now++;
        if (status == IoStatus.Ok) _volume.Flushed(start);
        return status == IoStatus.Ok;
    }

    private void JudgeNow()
    {
        int count = _disk.Pending.Count;
        _statesLeft = Math.Max(_statesLeft, StatesPerChange);
        if (count <= SubsetsOf)
        {
            for (int subset = 0; subset < 1 << count; subset++)
            {
                int kept = subset;
                JudgeState((write, _) => (kept & (1 << write)) != 0 ? byte.MaxValue : (byte)0);
            }
        }
        else
        {
            for (int i = 0; i < DrawnSubsets; i++)
            {
                ulong kept = _random.NextUInt64() | (i % 2 == 0 ? _random.NextUInt64() : 0);
                JudgeState((write, _) => (kept >> (write % 64) & 1) != 0 ? byte.MaxValue : (byte)0);
            }
        }

        for (int torn = 0; torn < Math.Min(count, DrawnSubsets); torn++)
        {
            int one = torn;
            byte mask = (byte)((1 << (1 + _random.NextBelow(7))) - 1);
            JudgeState((write, _) => write == one ? mask : byte.MaxValue);
        }
    }

    private void JudgeState(Func<int, int, byte> maskOf)
    {
        if (Violation is not null || _statesLeft <= 0) return;
        ulong name = _disk.NameOfFork(maskOf);
        // The same state may be right at one time and wrong after the next acknowledgement.
        if (!_momentsJudged.Add(name ^ (_now * 0x9E3779B97F4A7C15))) return;
        _statesLeft--;
        if (_statesJudged.Add(name)) States++;
        var loop = new SimLoop(_random.NextUInt64());
        SimDisk fork = _disk.ForkAfterPowerCut(loop, _random.NextUInt64(), maskOf);
        if (_random.NextChance(0.2)) loop = CrashInRecovery(loop, fork);
        if (Open(loop, fork) is not { } store) return;
        if (store.OpenVolume(1) is not { } device)
        {
            Violation = new Violation(ViolationKind.LostVolume, "the volume is lost");
            return;
        }

        if (_cuts.Count > 0 && !JudgeLayers(loop, (ILayeredStore)store)) return;
        if (Violation is not null) return;
        byte[] content = _content.Length == (int)device.SizeBytes ? _content : _content = new byte[device.SizeBytes];
        if (!Read(loop, device, content)) return;
        Violation = _volume.JudgeAfterRestart(content, powerWasCut: true, staleAllowed: false, null, settle: false, ++_now);
        if (Violation is null && _cuts.Count > 0 && _random.NextChance(0.2)) Audit(loop, store);
        if (Violation is null && _random.NextChance(0.1)) GoOn(loop, fork, store, device, content);
    }

    private SimLoop CrashInRecovery(SimLoop loop, SimDisk fork)
    {
        ulong at = _random.NextBelow(200UL);
        loop.StopBeforeEvent = n => n >= at;
        Task<Opened> opening = driver.OpenAsync(loop, fork, null, durability).AsTask();
        loop.RunUntil(() => opening.IsCompleted, EventsMax);
        fork.CutPower();
        var next = new SimLoop(_random.NextUInt64());
        fork.Attach(next);
        return next;
    }

    /// <summary>The recovered store takes a write, is cut again, and holds exactly what it showed plus the write.</summary>
    private void GoOn(SimLoop loop, SimDisk fork, IStore store, IBlockDevice device, byte[] content)
    {
        var block = new byte[Units.BlockBytes];
        VolumeModel.Fill(block, ulong.MaxValue, 1, 16);
        block.CopyTo(content, 16 * Units.SectorBytes);
        Task<IoStatus> writing = device.WriteAsync(16 * Units.SectorBytes, block, WriteFlags.Fua).AsTask();
        loop.RunUntil(() => writing.IsCompleted, EventsMax);
        Task<IoStatus> flushing = store.FlushAsync().AsTask();
        loop.RunUntil(() => flushing.IsCompleted, EventsMax);
        if (!flushing.IsCompletedSuccessfully || writing.Result != IoStatus.Ok || flushing.Result != IoStatus.Ok)
        {
            Violation = new Violation(ViolationKind.WrongAnswer, "a recovered store does not take a write");
            return;
        }

        fork.CutPower();
        var next = new SimLoop(_random.NextUInt64());
        fork.Attach(next);
        if (Open(next, fork) is not { } again || again.OpenVolume(1) is not { } reopened) return;
        var second = new byte[content.Length];
        if (!Read(next, reopened, second)) return;
        int differs = content.AsSpan().CommonPrefixLength(second);
        if (differs < content.Length) Violation = new Violation(ViolationKind.WrongData, $"byte {differs} changed between two recoveries");
    }

    private IStore? Open(SimLoop loop, SimDisk fork)
    {
        Task<Opened> opening = driver.OpenAsync(loop, fork, null, durability).AsTask();
        loop.RunUntil(() => opening.IsCompleted, EventsMax);
        if (opening.IsCompletedSuccessfully && opening.Result.Store is { } store) return store;
        Violation = new Violation(
            ViolationKind.Refused,
            "opening failed: "
                + (opening.IsCompletedSuccessfully ? opening.Result.Refusal : opening.Exception?.InnerException?.ToString() ?? "no answer"));
        return null;
    }

    private bool Read(SimLoop loop, IBlockDevice device, byte[] content)
    {
        Task<ReadResult> reading = device.ReadAsync(0, content).AsTask();
        loop.RunUntil(() => reading.IsCompleted, EventsMax);
        if (reading.IsCompletedSuccessfully && reading.Result.Status == IoStatus.Ok) return true;
        Violation = new Violation(
            ViolationKind.Unreadable, "reading failed: " + (reading.IsCompletedSuccessfully ? reading.Result.Status.ToString() : "no answer"));
        return false;
    }
}
