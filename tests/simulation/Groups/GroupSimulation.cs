using System.Buffers.Binary;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation.Groups;

/// <summary>What of a group is broken on purpose.</summary>
/// <param name="Rules">Rules of the product.</param>
/// <param name="ForgetsHalf">What the metadata say of cuts and rollbacks that are not whole is lost when the node dies.</param>
internal readonly record struct BrokenGroups(BrokenCuts Rules, bool ForgetsHalf = false)
{
    public static BrokenGroups Parse(string name) =>
        name == nameof(ForgetsHalf) ? new(BrokenCuts.None, true) : new(Enum.Parse<BrokenCuts>(name));

    public override string ToString() => ForgetsHalf ? nameof(ForgetsHalf) : Rules.ToString();
}

/// <summary>
/// A node with two disks and one ordered counter that is written across volumes on both, each number when the one before was
/// answered, while groups of the volumes are cut and rolled back to together; and the node dies, with or without its power, at any
/// event. Every group that can be seen must show a moment of the counter: nothing of a number whose predecessor is missing. After a
/// rollback all volumes are what they were at that moment, or none is. Everything follows from the seed.
/// </summary>
internal sealed class GroupSimulation
{
    private const ulong EventsPerLifeMax = 4_000_000;
    private const int LivesMax = 12, Volumes = 4, GroupsMax = 4;

    private readonly SeededRandom _random;
    private readonly BrokenGroups _broken;
    private readonly Durability _durability;
    private readonly StorageDriver _driver = new();
    private readonly MemoryMetaStore _meta = new();
    private readonly SimDisk[] _disks;
    private readonly SimSide[] _sides = new SimSide[2];
    private readonly SortedDictionary<string, Group> _groups = new(StringComparer.Ordinal);
    private readonly VolumeRecord[] _volumes = new VolumeRecord[Volumes];
    private readonly VolumeGate[] _gates = new VolumeGate[Volumes];
    private readonly GroupCounters _counters = new();
    private VolumeDirectory _directory = null!;
    private SimLoop _loop;
    private ulong _begun, _answered;
    private int _next = 1;
    private bool _isOver, _isCutting, _isHeldUp;
    private (string Group, string Safety, string[] Names)? _goingBack;

    private GroupSimulation(ulong seed, BrokenGroups broken)
    {
        _random = new SeededRandom(seed);
        _broken = broken;
        _durability = _random.NextChance(0.7) ? Durability.Flush : Durability.Ack;
        _loop = new SimLoop(_random.NextUInt64());
        _disks = [NewDisk(), NewDisk()];
    }

    private Violation? Violation { get; set; }

    private ulong Hash { get; set; } = 14695981039346656037;

    /// <summary>Seeds, and how to see one again.</summary>
    internal static SeedRunner<GroupCounters> RunnerOf(BrokenGroups broken) => new(
        seed => Run(seed, broken),
        seed => $"dotnet run -c Release --project tests/simulation -- simulate --groups --seed {seed}{(broken == default ? "" : $" --broken {broken}")}");

    private static SeedResult<GroupCounters> Run(ulong seed, BrokenGroups broken)
    {
        var simulation = new GroupSimulation(seed, broken);
        try
        {
            simulation.RunLives();
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            simulation.Violate(ViolationKind.Exception, thrown.ToString());
        }

        return new SeedResult<GroupCounters>(seed, simulation.Hash, simulation.Violation is { } found ? [found] : [], simulation._counters);
    }

    private SimDisk NewDisk()
    {
        var disk = new SimDisk(_loop, _driver.MediumBytes, _random.NextUInt64());
        Check.That(_loop.Run(_driver.FormatAsync(_loop, disk, _random.NextBelow(4))) is null);
        return disk;
    }

    private void RunLives()
    {
        for (int life = 0; life < LivesMax && Violation is null; life++)
        {
            _loop = new SimLoop(_random.NextUInt64());
            using var context = new LoopContext(_loop);
            bool isLast = life == LivesMax - 1;
            if (!Open()) return;
            Task beginning = _directory.ReconcileAsync(_sides);
            bool dies = life > 0 && !isLast && _random.NextChance(0.3);
            if (!RunFor(dies ? _random.NextBelow(60UL) : EventsPerLifeMax, () => beginning.IsCompleted))
            {
                _counters[GroupDid.DeathsInRecovery]++;
                Die();
                continue;
            }

            if (beginning.IsFaulted) Violate(ViolationKind.Exception, beginning.Exception!.ToString());
            if (life == 0) Create();
            else Judge();
            if (Violation is not null) return;
            Audit();
            Renumber();
            Task[] running = [Watched(CountAsync()), Watched(CutAsync()), Watched(HoldUpAsync())];
            RunFor(isLast ? EventsPerLifeMax : _random.NextBelow(_random.NextChance(0.3) ? 6_000UL : 700UL), () => Array.TrueForAll(running, t => t.IsCompleted));
            if (isLast && Violation is null) Judge();
            Die();
        }
    }

    /// <summary>True when it was done before so many events had run.</summary>
    private bool RunFor(ulong events, Func<bool> done)
    {
        ulong end = _loop.EventCount + events;
        _loop.StopBeforeEvent = _ => Violation is not null || _loop.EventCount >= end;
        bool isDone = _loop.RunUntil(done, EventsPerLifeMax);
        _loop.StopBeforeEvent = null;
        return isDone && !_loop.IsStopped; // the nodes may die in the very turn in which it is done
    }

    private async Task Watched(Task work)
    {
        try
        {
            await work;
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(ViolationKind.Exception, thrown.ToString());
        }
    }

    private bool Open()
    {
        for (int i = 0; i < 2; i++)
        {
            _disks[i].Attach(_loop);
            Task<Opened> opening = _driver.OpenAsync(_loop, _disks[i], null, _durability).AsTask();
            if (!_loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax) || opening.Result.Store is not ILayeredStore store)
            {
                Violate(ViolationKind.Refused, $"disk {i} does not open: {(opening.IsCompleted ? opening.Result.Refusal : "it hangs")}");
                return false;
            }

            _sides[i] = new SimSide(store, PauseAsync);
        }

        _isOver = _isCutting = _isHeldUp = false;
        for (int i = 0; i < Volumes; i++) _gates[i] = new VolumeGate();
        if (_broken.ForgetsHalf) ForgetHalf();
        // Long enough for most cuts.
        ulong pause = (1 + _random.NextBelow(30UL)) * 1_000_000;
        _directory = new VolumeDirectory(new PausingMetaStore(_meta, PauseAsync), new Clock(), new SeededRandom(_random.NextUInt64()))
        {
            Delay = _loop.DelayAsync,
            CutGate = new CutGate(TakeAsync, () => _loop.DelayAsync(pause).AsTask()) { Broken = _broken.Rules },
        };
        return true;
    }

    private void ForgetHalf()
    {
        foreach (string prefix in new[] { "cut/", "back/" })
        {
            foreach (MetaEntry entry in _meta.RangeAsync(prefix).Result) _ = _meta.TransactAsync([], [new MetaChange(entry.Key, null)]).Result;
        }
    }

    private async ValueTask PauseAsync()
    {
        if (_random.NextChance(0.7)) await _loop.DelayAsync(_random.NextBelow(200_000UL));
    }

    private async Task<bool> TakeAsync(VolumeRecord record, Func<HeldGate, bool> keep)
    {
        await PauseAsync();
        VolumeGate gate = _gates[Array.FindIndex(_volumes, v => v.Id == record.Id)];
        VolumeGate.Range range = gate.Take(0, ulong.MaxValue, isExclusive: true, out ValueTask<bool> wait);
        await wait;
        await PauseAsync();
        bool isKept = keep(new HeldGate(async () =>
        {
            await PauseAsync();
            gate.Release(range);
        }));
        if (!isKept) gate.Release(range);
        return isKept;
    }

    private void Create()
    {
        for (int i = 0; i < Volumes; i++)
        {
            Task<DirectoryResult> creating = _directory.CreateAsync(new Core.Api.CreateVolume($"v{i}", Units.MiB, StoreId: _sides[i % 2].StoreId));
            Check.That(_loop.RunUntil(() => creating.IsCompleted, EventsPerLifeMax));
            _volumes[i] = creating.Result.Volume!;
        }
    }

    private IBlockDevice DeviceOf(int i) => _sides[i % 2].Store.OpenVolume(_volumes[i].Id)!;

    /// <summary>After a death the newest numbers may be gone here and not there: the counter begins anew behind all that was.</summary>
    private void Renumber()
    {
        ulong first = _begun + 1;
        for (int i = 0; i < Volumes; i++)
        {
            ulong n = first + (ulong)i;
            Check.That(_loop.Run(DeviceOf((int)(n % Volumes)).WriteAsync(0, Block(n), WriteFlags.Fua)) == IoStatus.Ok);
            _begun = _answered = n;
        }
    }

    private static byte[] Block(ulong n)
    {
        var block = new byte[Units.BlockBytes];
        BinaryPrimitives.WriteUInt64LittleEndian(block, n);
        return block;
    }

    /// <summary>Writes one number behind the other, each when the one before was answered.</summary>
    private async Task CountAsync()
    {
        while (!_isOver && Violation is null)
        {
            if (_goingBack is not null)
            {
                await _loop.DelayAsync(1_000_000); // nobody is attached while volumes go back
                continue;
            }

            int volume = (int)((_begun + 1) % Volumes);
            _begun++;
            var device = new GatedDevice(DeviceOf(volume), _gates[volume]);
            IoStatus status = await device.WriteAsync(0, Block(_begun), _random.NextChance(0.05) ? WriteFlags.Fua : WriteFlags.None);
            if (status != IoStatus.Ok) Violate(ViolationKind.WrongAnswer, $"number {_begun} answered {status}");
            _answered = _begun;
            _counters[GroupDid.Numbers]++;
            if (_random.NextChance(0.1)) await _loop.DelayAsync(_random.NextBelow(300_000UL));
            if (_random.NextChance(0.05)) await new GatedDevice(DeviceOf(volume), _gates[volume]).FlushAsync();
        }
    }

    /// <summary>Now and then a change that takes long, so that a cut waits for it.</summary>
    private async Task HoldUpAsync()
    {
        while (!_isOver && Violation is null)
        {
            await _loop.DelayAsync(_random.NextBelow(40_000_000UL));
            if (_isHeldUp || !_random.NextChance(0.3)) continue;
            VolumeGate gate = _gates[_random.NextBelow(Volumes)];
            VolumeGate.Range range = gate.Take(1 << 19, Units.BlockBytes, isExclusive: false, out ValueTask<bool> wait);
            await wait;
            await _loop.DelayAsync(_random.NextBelow(40_000_000UL));
            gate.Release(range);
        }
    }

    private async Task CutAsync()
    {
        for (int i = 0; i < 10 && Violation is null; i++)
        {
            await _loop.DelayAsync(_random.NextBelow(3_000_000UL));
            string[] all = [.. _groups.Keys];
            if (all.Length > 0 && _random.NextChance(0.25)) await RollBackAsync(all[_random.NextBelow(all.Length)]);
            else if (all.Length >= GroupsMax) await DeleteAsync(all[0]);
            else await CutOneAsync();
        }

        _isOver = true;
    }

    private async Task CutOneAsync()
    {
        int[] members = _random.NextBelow(4) switch
        {
            0 => [0, 2],
            1 => [1, 2, 3],
            _ => [0, 1, 2, 3],
        };
        string name = $"g{_next++:d4}";
        var group = new Group(members);
        _groups[name] = group;
        ulong before = _answered;
        _isCutting = true;
        SnapshotResult cut = await _directory.CutAsync(name, [.. members.Select(m => _volumes[m].Name)], default);
        _isCutting = false;
        ulong after = _begun;
        if (cut.Fault is { } fault)
        {
            if (fault.Code != "cut-too-slow") Violate(ViolationKind.WrongAnswer, $"a cut answered {fault.Code}: {fault.Detail}");
            _counters[GroupDid.TooSlow]++;
            _groups.Remove(name);
            await ExpectAsync(name, members, isThere: false);
            return;
        }

        group.IsSure = true;
        ulong[] shown = await ShownAsync(cut.Snapshots, members);
        group.Shown = shown;
        if (MomentFault(members, shown, before, after) is { } wrong) Violate(ViolationKind.WrongData, $"group {name} {wrong}");
        _counters[members.Length == 2 ? GroupDid.CutOnOne : GroupDid.CutOverDisks]++;
    }

    private async Task DeleteAsync(string name)
    {
        Group group = _groups[name];
        group.IsGoing = true;
        foreach (int member in group.Members)
        {
            SnapshotResult gone = await _directory.DeleteSnapshotAsync(_volumes[member].Name, name, null);
            if (gone.Fault is { Code: not "no-such-snapshot" } fault) Violate(ViolationKind.WrongAnswer, $"the deletion of {name} answered {fault.Code}");
        }

        _groups.Remove(name);
        _counters[GroupDid.Deleted]++;
    }

    private async Task RollBackAsync(string name)
    {
        Group group = _groups[name];
        if (group.Shown is null) return;
        string safety = $"k{_next++:d4}";
        string[] names = [.. group.Members.Select(m => _volumes[m].Name)];
        ulong[] before = new ulong[group.Members.Length];
        _goingBack = (name, safety, names);
        while (_begun != _answered) await _loop.DelayAsync(100_000); // its last client lets go
        for (int i = 0; i < before.Length; i++) before[i] = await ReadAsync(DeviceOf(group.Members[i]));
        _groups[safety] = new Group(group.Members) { Shown = before, IsSafety = true };
        SnapshotResult back = await _directory.RollBackTogetherAsync(name, names, safety);
        if (back.Fault is { } fault)
        {
            if (fault.Code != "cut-too-slow") Violate(ViolationKind.WrongAnswer, $"a rollback answered {fault.Code}: {fault.Detail}");
            _groups.Remove(safety);
        }
        else
        {
            _groups[safety].IsSure = true;
            for (int i = 0; i < before.Length; i++)
            {
                ulong now = await ReadAsync(DeviceOf(group.Members[i]));
                if (now != group.Shown[i]) Violate(ViolationKind.WrongData, $"after the rollback to {name} volume {group.Members[i]} shows {now}, not {group.Shown[i]}");
            }

            ulong[] kept = await ShownAsync(back.Snapshots, group.Members);
            if (!kept.SequenceEqual(before)) Violate(ViolationKind.WrongData, $"what was kept of the rollback to {name} shows {string.Join(' ', kept)}, not {string.Join(' ', before)}");
            _counters[GroupDid.RolledBack]++;
            // The counter goes on from all volumes.
            for (int i = 0; i < Volumes; i++)
            {
                ulong n = ++_begun;
                Check.That(await DeviceOf((int)(n % Volumes)).WriteAsync(0, Block(n), WriteFlags.Fua) == IoStatus.Ok);
                _answered = n;
            }
        }

        _goingBack = null;
    }

    private async Task<ulong[]> ShownAsync(IReadOnlyList<VolumeSnapshot> snapshots, int[] members)
    {
        var shown = new ulong[members.Length];
        foreach (VolumeSnapshot one in snapshots)
        {
            int at = Array.FindIndex(members, m => _volumes[m].Id == one.Volume.Id);
            shown[at] = await ReadAsync(_sides[members[at] % 2].Store.OpenSnapshot(one.Volume.Id, one.Info.Uuid)!);
        }

        return shown;
    }

    private async Task<ulong> ReadAsync(IBlockDevice device)
    {
        var block = new byte[Units.BlockBytes];
        IoStatus status = (await device.ReadAsync(0, block)).Status;
        if (status != IoStatus.Ok) Violate(ViolationKind.Unreadable, $"a number cannot be read: {status}");
        return BinaryPrimitives.ReadUInt64LittleEndian(block);
    }

    /// <summary>There is a number such that each volume shows the newest of its own up to that. Null, or what is wrong.</summary>
    private static string? MomentFault(int[] members, ulong[] shown, ulong before, ulong after)
    {
        ulong low = Math.Max(shown.Max(), before), high = Math.Min(shown.Min() + Volumes - 1, after);
        bool isRight = Enumerable.Range(0, members.Length).All(i => shown[i] % Volumes == (ulong)members[i]);
        return isRight && low <= high ? null
            : $"of volumes {string.Join(' ', members)} shows {string.Join(' ', shown)}; {before} was answered before it and {after} begun at its end";
    }

    private async Task ExpectAsync(string name, int[] members, bool isThere)
    {
        foreach (int member in members)
        {
            SnapshotResult known = await _directory.SnapshotsAsync(_directory.Find(_volumes[member].Id)!);
            if (known.Snapshots.Any(s => s.Info.Name == name) != isThere)
                Violate(ViolationKind.WrongAnswer, $"snapshot {name} of volume {member} is {(isThere ? "gone" : "there")}");
        }
    }

    private void Die()
    {
        if (_isCutting) _counters[GroupDid.DeathsInCut]++;
        if (_goingBack is not null) _counters[GroupDid.DeathsInRollback]++;
        bool isCut = _random.NextChance(0.5);
        foreach (SimDisk disk in _disks)
        {
            if (isCut) disk.CutPower();
            else disk.Kill();
        }

        Hash = (Hash ^ _loop.EventHash) * 1099511628211;
    }

    /// <summary>Every group is whole and shows a moment, or is not there; a rollback was carried through, or nothing of it.</summary>
    private void Judge()
    {
        Task judging = JudgeAsync();
        if (!_loop.RunUntil(() => judging.IsCompleted, EventsPerLifeMax)) Violate(ViolationKind.Hang, "what is there cannot be read");
        else if (judging.IsFaulted) Violate(ViolationKind.Exception, judging.Exception!.ToString());
        _isCutting = false;
        _goingBack = null;
    }

    private async Task JudgeAsync()
    {
        var there = new Dictionary<string, List<VolumeSnapshot>>(StringComparer.Ordinal);
        for (int i = 0; i < Volumes; i++)
        {
            VolumeRecord volume = _directory.Find(_volumes[i].Id)!;
            IReadOnlyList<VolumeSnapshot> known = (await _directory.SnapshotsAsync(volume)).Snapshots;
            foreach (VolumeSnapshot one in known)
            {
                if (!there.TryGetValue(one.Info.Name, out List<VolumeSnapshot>? list)) there[one.Info.Name] = list = [];
                list.Add(one);
            }

            if (_sides[i % 2].Store.Snapshots(volume.Id).Count != known.Count)
                Violate(ViolationKind.Leak, $"volume {i} has snapshots of a cut that was not whole");
        }

        await JudgeRollbackAsync(there);
        foreach ((string name, Group group) in _groups.ToArray())
        {
            int count = there.GetValueOrDefault(name)?.Count ?? 0;
            if (group.IsGoing)
            {
                foreach (VolumeSnapshot left in there.GetValueOrDefault(name) ?? []) await _directory.DeleteSnapshotAsync(left.Volume.Name, name, null);
                _groups.Remove(name);
                continue;
            }

            if (count == 0 && !group.IsSure)
            {
                _groups.Remove(name);
                continue;
            }

            if (count != group.Members.Length)
            {
                // One store cuts all of it or nothing; the labels of a group over two do not come before all is cut.
                Violate(ViolationKind.LostVolume, $"group {name} has {count} of {group.Members.Length} snapshots");
                return;
            }

            ulong[] shown = await ShownAsync(there[name], group.Members);
            // What a power cut took from the volumes is not in what they kept when the rollback was carried through after it.
            bool isFirst = group is { IsSafety: true, IsSure: false };
            if (group.Shown is { } known && !isFirst && !known.SequenceEqual(shown))
                Violate(ViolationKind.WrongData, $"group {name} shows {string.Join(' ', shown)}, before it was {string.Join(' ', known)}");
            else if (!group.IsSafety && MomentFault(group.Members, shown, 0, ulong.MaxValue) is { } wrong)
                Violate(ViolationKind.WrongData, $"group {name} {wrong}");
            (group.Shown, group.IsSure) = (shown, true);
            _counters[GroupDid.Judged]++;
        }

        if (there.Keys.FirstOrDefault(n => !_groups.ContainsKey(n) && n[0] is not ('g' or 'k')) is { } stray)
            Violate(ViolationKind.Leak, $"there is a snapshot {stray} that nobody cut");
    }

    private async Task JudgeRollbackAsync(Dictionary<string, List<VolumeSnapshot>> there)
    {
        if (_goingBack is not { } back) return;
        Group group = _groups[back.Group];
        int kept = there.GetValueOrDefault(back.Safety)?.Count ?? 0;
        if (kept != 0 && kept != back.Names.Length)
        {
            Violate(ViolationKind.LostVolume, $"the rollback to {back.Group} was carried through for {kept} of {back.Names.Length} volumes");
            return;
        }

        // Behind it the counter may have gone on.
        if (kept == 0 || _groups.GetValueOrDefault(back.Safety) is not { IsSure: false }) return;
        for (int i = 0; i < group.Members.Length; i++)
        {
            ulong now = await ReadAsync(DeviceOf(group.Members[i]));
            if (now != group.Shown![i]) Violate(ViolationKind.WrongData, $"after the rollback to {back.Group} volume {group.Members[i]} shows {now}, not {group.Shown[i]}");
        }
    }

    private void Audit()
    {
        foreach (SimSide side in _sides)
        {
            string? fault = "";
            ulong until = _loop.NowNanos + 60_000_000_000;
            while (fault is not null)
            {
                fault = _loop.Run(_driver.AuditAsync(side.Store));
                if (fault is not null && _loop.NowNanos > until)
                {
                    Violate(ViolationKind.Leak, "audit: " + fault);
                    return;
                }

                if (fault is not null) _loop.Run(_loop.DelayAsync(500_000_000));
            }

            _counters[GroupDid.Audits]++;
        }
    }

    private void Violate(ViolationKind kind, string what) => Violation ??= new Violation(kind, $"{what} [{_durability}]");

    /// <summary>A group as it was cut.</summary>
    private sealed class Group(int[] members)
    {
        public int[] Members { get; } = members;

        /// <summary>It was answered, or seen.</summary>
        public bool IsSure { get; set; }

        /// <summary>It is being deleted, one after the other.</summary>
        public bool IsGoing { get; set; }

        /// <summary>It is what volumes were that went back.</summary>
        public bool IsSafety { get; init; }

        /// <summary>What it must show for ever; null while nobody has looked.</summary>
        public ulong[]? Shown { get; set; }
    }

    private sealed class Clock : IWallClock
    {
        public DateTimeOffset UtcNow => DateTimeOffset.UnixEpoch;
    }
}
