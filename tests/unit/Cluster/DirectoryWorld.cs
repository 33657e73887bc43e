using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>How one step goes wrong.</summary>
public enum Mishap
{
    /// <summary>The process dies before the step has an effect.</summary>
    DeathBefore,

    /// <summary>The process dies after it.</summary>
    DeathAfter,

    /// <summary>The step has no effect and its answer says that something failed.</summary>
    FailsUndone,

    /// <summary>The step has its effect and its answer says that something failed.</summary>
    FailsDone,

    /// <summary>As <see cref="FailsUndone"/>, and every later step of the operation fails too.</summary>
    FailsFromHereOn,
}

/// <summary>The process died here.</summary>
public sealed class DeathException : Exception;

/// <summary>Metadata and stores that outlive the directory, and a mishap at one chosen step of either.</summary>
internal sealed class DirectoryWorld
{
    private ulong _starts = 1; // another run draws other identities
    private int _step;
    private int _at = -1;
    private Mishap _mishap;
    private bool _isDead;

    public IMetaStore Meta { get; init; } = new MemoryMetaStore();

    /// <summary>Told after every step that had its effect.</summary>
    public Action? Stepped { get; set; }

    public Dictionary<Guid, SortedDictionary<uint, VolumeHead>> Disks { get; } = new()
    {
        [new Guid(1, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0])] = [],
        [new Guid(2, 0, 0, [0, 0, 0, 0, 0, 0, 0, 0])] = [],
    };

    /// <summary>Snapshots by volume, and what volumes were cloned from.</summary>
    public Dictionary<uint, List<SnapshotInfo>> Snapshots { get; } = [];

    public Dictionary<uint, (uint VolumeId, Guid Snapshot)> Bases { get; } = [];

    /// <summary>Steps since the last <see cref="Arm"/>.</summary>
    public int Steps => _step;

    public bool IsReached => _at >= 0 && _step > _at;

    public int Ranges { get; private set; }

    /// <summary>How often a store listed all snapshots of a volume.</summary>
    public int Listings { get; private set; }

    public void Arm(int at, Mishap mishap) => (_step, _at, _mishap, _isDead) = (0, at, mishap, false);

    public void Disarm() => Arm(-1, default);

    public VolumeDirectory Begin(IWallClock? clock = null)
    {
        Promises.Clear(); // the stores are opened anew
        return new(new WatchedMeta(this), clock ?? new Clock(), new SeededRandom(_starts++)) { Delay = Task.Delay, CutGate = new Gate(this) };
    }

    /// <summary>What each store may promise.</summary>
    public ulong PromisableBytes { get; set; } = 4096 * Units.TiB;

    /// <summary>What stores keep for volumes, by number; lost when they are closed.</summary>
    public Dictionary<uint, ulong> Promises { get; } = [];

    public IVolumeHost[] Hosts() => [.. Disks.Select(d => new Host(this, d.Key, d.Value))];

    /// <summary>Runs one step; the answer is <paramref name="failed"/> when it is to fail.</summary>
    private T Step<T>(Func<T> effect, Func<T> failed)
    {
        if (_isDead) throw new DeathException();
        int step = _step++;
        if (_at < 0 || step < _at || (step > _at && _mishap != Mishap.FailsFromHereOn))
        {
            T done = effect();
            Stepped?.Invoke();
            return done;
        }

        switch (_mishap)
        {
            case Mishap.DeathBefore:
                _isDead = true;
                throw new DeathException();
            case Mishap.DeathAfter:
                effect();
                _isDead = true;
                throw new DeathException();
            case Mishap.FailsDone:
                effect();
                return failed();
            default:
                return failed();
        }
    }

    /// <summary>The gates of volumes: what happens to them, as words.</summary>
    public List<string> Gates { get; } = [];

    /// <summary>A volume that has no room to go back.</summary>
    public uint? RollbackRefused { get; set; }

    /// <summary>The pause is over as soon as the stores are asked.</summary>
    public bool IsSlow { get; set; }

    private sealed class Gate(DirectoryWorld world) : ICutGate, ICutHold
    {
        public Task Expired { get; } = new TaskCompletionSource().Task;

        public Task<ICutHold?> HoldAsync(IReadOnlyList<VolumeRecord> volumes)
        {
            world.Gates.Add("hold " + string.Join(' ', volumes.Select(v => v.Name)));
            return Task.FromResult(world.Step<ICutHold?>(() => this, () => null));
        }

        public Task<bool> ReleaseAsync()
        {
            world.Gates.Add("release");
            return Task.FromResult(!world.IsSlow);
        }
    }

    private sealed class Clock : IWallClock
    {
        public DateTimeOffset UtcNow => DateTimeOffset.UnixEpoch;
    }

    private sealed class WatchedMeta(DirectoryWorld world) : IMetaStore
    {
        public ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default) =>
            world.Step(() => world.Meta.GetAsync(key, cancel), () => throw new MetaException("cannot be read"));

        public ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default)
        {
            world.Ranges++;
            return world.Step(() => world.Meta.RangeAsync(prefix, cancel), () => throw new MetaException("cannot be read"));
        }

        public ValueTask<MetaResult> TransactAsync(
            IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default) =>
            world.Step(
                () => world.Meta.TransactAsync(compares, changes, cancel),
                () => new ValueTask<MetaResult>(new MetaResult(MetaOutcome.Unknown, 0)));

        public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default) => throw new NotSupportedException();

        public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default) => throw new NotSupportedException();

        public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) => throw new NotSupportedException();

        public ValueTask DisposeAsync() => default;
    }

    private sealed class Host(DirectoryWorld world, Guid id, SortedDictionary<uint, VolumeHead> heads) : IVolumeHost
    {
        public Guid StoreId => id;

        public Task<ulong?> FreeBytesAsync() => Task.FromResult<ulong?>(Units.TiB);

        public Task<ulong?> PromisableBytesAsync() => Task.FromResult<ulong?>(
            world.PromisableBytes - Math.Min(world.PromisableBytes, world.Promises.Where(p => heads.ContainsKey(p.Key)).Aggregate(0UL, (sum, p) => sum + p.Value)));

        public Task<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced)
        {
            ulong others = world.Promises.Where(p => p.Key != volumeId && heads.ContainsKey(p.Key)).Aggregate(0UL, (sum, p) => sum + p.Value);
            if (!isForced && others + bytes > world.PromisableBytes) return Task.FromResult(IoStatus.NoSpace);
            world.Promises[volumeId] = bytes;
            return Task.FromResult(IoStatus.Ok);
        }

        public Task<IReadOnlyList<VolumeHead>> ListAsync() => Task.FromResult<IReadOnlyList<VolumeHead>>([.. heads.Values]);

        public Task<IoStatus> CreateAsync(VolumeHead head) => Change(() => heads.TryAdd(head.Id, head) ? IoStatus.Ok : IoStatus.Conflict);

        public Task<IoStatus> UpdateAsync(VolumeHead head) => Change(() =>
        {
            if (!heads.ContainsKey(head.Id)) return IoStatus.NotFound;
            heads[head.Id] = head;
            return IoStatus.Ok;
        });

        public Task<IoStatus> DeleteAsync(uint volumeId) => Change(() =>
        {
            if (world.Bases.Values.Any(b => b.VolumeId == volumeId)) return IoStatus.Conflict;
            world.Snapshots.Remove(volumeId);
            world.Bases.Remove(volumeId);
            return heads.Remove(volumeId) ? IoStatus.Ok : IoStatus.NotFound;
        });

        public Task<VolumeLayers?> LayersAsync(uint volumeId)
        {
            world.Listings++;
            return Task.FromResult(heads.ContainsKey(volumeId)
                ? new VolumeLayers([.. Of(volumeId).Select(WithClones)], world.Bases.TryGetValue(volumeId, out var b) ? b : null, false) : null);
        }

        public Task<CutSight?> SightAsync(uint volumeId, string snapshot) => Task.FromResult(heads.ContainsKey(volumeId)
            ? new CutSight(Of(volumeId).Where(s => s.Name == snapshot).Select(WithClones).FirstOrDefault(), false) : null);

        public Task<IoStatus> CutAsync(IReadOnlyList<SnapshotRequest> requests) => Change(() =>
        {
            world.Gates.Add("cut");
            foreach (SnapshotRequest r in requests) Of(r.VolumeId).Add(InfoOf(r));
            return IoStatus.Ok;
        });

        public Task<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot) => Change(() =>
            world.Bases.Values.Contains((volumeId, snapshot)) ? IoStatus.Conflict
            : Of(volumeId).RemoveAll(s => s.Uuid == snapshot) > 0 ? IoStatus.Ok : IoStatus.NotFound);

        public Task<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety) => Change(() =>
        {
            if (world.RollbackRefused == safety.VolumeId) return IoStatus.NoSpace;
            SnapshotInfo target = Of(safety.VolumeId).Single(s => s.Uuid == snapshot);
            Of(safety.VolumeId).Add(InfoOf(safety));
            heads[safety.VolumeId] = heads[safety.VolumeId] with { SizeBytes = target.SizeBytes };
            return IoStatus.Ok;
        });

        public Task<IoStatus> CloneAsync(VolumeHead head, uint volumeId, Guid snapshot) => Change(() =>
        {
            if (Of(volumeId).All(s => s.Uuid != snapshot)) return IoStatus.NotFound;
            if (!heads.TryAdd(head.Id, head)) return IoStatus.Conflict;
            world.Bases[head.Id] = (volumeId, snapshot);
            return IoStatus.Ok;
        });

        public Task<IoStatus> FlattenAsync(uint volumeId) => Change(() => world.Bases.Remove(volumeId) ? IoStatus.Ok : IoStatus.NotFound);

        private List<SnapshotInfo> Of(uint volumeId) =>
            world.Snapshots.TryGetValue(volumeId, out List<SnapshotInfo>? known) ? known : world.Snapshots[volumeId] = [];

        private SnapshotInfo WithClones(SnapshotInfo s) =>
            s with { Clones = [.. world.Bases.Where(b => b.Value == (s.VolumeId, s.Uuid)).Select(b => b.Key)] };

        private SnapshotInfo InfoOf(SnapshotRequest r) => new(r.VolumeId, r.Uuid, r.Name, heads[r.VolumeId].SizeBytes, r.UnixSeconds, 0, []);

        public Task<ulong> HighestUsedByteAsync(uint volumeId) => Task.FromResult(0UL);

        private Task<IoStatus> Change(Func<IoStatus> effect) => Task.FromResult(world.Step(effect, () => IoStatus.IoError));
    }
}
