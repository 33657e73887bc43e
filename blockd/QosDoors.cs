using System.Collections.Concurrent;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>
/// The doors of the volumes (<see cref="VolumeAdmission"/>), and the limits that tenants share. A volume has one door for all front ends and
/// snapshots on its loop, and one more for its appends while it lies on a disk of another loop: they take from its limits together. Of
/// <paramref name="diskShareBytes"/> several volumes of a disk have equal parts (<see cref="DiskShare"/>); 0: of as many as come. The tables are
/// thread-safe; a door lives on its loop.
/// </summary>
internal sealed class QosDoors(ulong diskShareBytes)
{
    private readonly ConcurrentDictionary<uint, VolumeDoors> _volumes = [];
    private readonly ConcurrentDictionary<(LoopThread Thread, StoreHost Host), DiskShare> _shares = [];
    private readonly ConcurrentDictionary<string, SharedLimiter> _tenants = new(StringComparer.Ordinal);

    /// <summary>Whose limits a volume takes from too; null: nobody's. Asked on the volume's loop; set once, before volumes are
    /// served.</summary>
    public Func<VolumeRecord, string?> TenantOf { get; set; } = static _ => null;

    /// <summary>The door of a volume that lies on <paramref name="host"/>, with the limits of its record in force. It stays when the
    /// volume moves, for its limits hold for all who came in by it. On <paramref name="thread"/>, where it is used.</summary>
    public VolumeAdmission Of(VolumeRecord record, LoopThread thread, StoreHost host)
    {
        VolumeDoors volume = _volumes.GetOrAdd(record.Id, static _ => new VolumeDoors());
        Door door = volume.Find(thread) ?? volume.Add(new Door(thread, new VolumeAdmission(thread.Loop, ShareOf(thread, host), volume.Limiter)));
        Apply(record, volume, door);
        return door.Admission;
    }

    /// <summary>The limits or the tenant of a volume have changed: that holds at once, also for requests that wait. Any thread.</summary>
    public void OnChanged(VolumeRecord record)
    {
        if (!_volumes.TryGetValue(record.Id, out VolumeDoors? volume)) return;
        foreach (Door door in volume.All) door.Thread.Post(() => Apply(record, volume, door));
    }

    /// <summary>The volume lies on <paramref name="host"/> from now on: its doors share that disk. Any thread.</summary>
    public void OnMoved(uint volumeId, StoreHost host)
    {
        if (!_volumes.TryGetValue(volumeId, out VolumeDoors? volume)) return;
        foreach (Door door in volume.All) door.Thread.Post(() => door.Admission.SetDisk(ShareOf(door.Thread, host)));
    }

    /// <summary>What all volumes of a tenant may be asked for together; null takes the limits away. They hold at once. Any thread.</summary>
    public void SetTenant(string tenant, QosLimits? limits) => LimiterOf(tenant).SetLimits(limits);

    /// <summary>What all volumes of a tenant may be asked for together, as it is in force. Any thread.</summary>
    public QosLimits LimitsOf(string tenant) => LimiterOf(tenant).Limits;

    /// <summary>The doors of a volume that somebody has used since the start. Any thread; the doors live on their loops.</summary>
    public IReadOnlyList<VolumeAdmission> Find(uint volumeId) => _volumes.GetValueOrDefault(volumeId)?.Admissions ?? [];

    /// <summary>The volume is gone. Any thread.</summary>
    public void Forget(uint volumeId) => _volumes.TryRemove(volumeId, out _);

    /// <summary>The disk is out of service, and with it the <paramref name="volumes"/> that lie there now. Any thread.</summary>
    public void ForgetDisk(Guid storeId, IEnumerable<uint> volumes)
    {
        foreach ((LoopThread, StoreHost) there in _shares.Keys.Where(k => k.Host.StoreId == storeId)) _shares.TryRemove(there, out _);
        foreach (uint volume in volumes) Forget(volume);
    }

    // A client that comes may bring a record that was read before the last change.
    private void Apply(VolumeRecord record, VolumeDoors volume, Door door)
    {
        volume.SetLimits(record, door.Thread.Loop.NowNanos);
        if (record.Revision < door.Revision) return;
        door.Revision = record.Revision;
        door.Admission.SetTenant(TenantOf(record) is { } tenant ? LimiterOf(tenant) : null);
    }

    private DiskShare? ShareOf(LoopThread thread, StoreHost host) =>
        diskShareBytes == 0 ? null : _shares.GetOrAdd((thread, host), _ => new DiskShare(diskShareBytes));

    private SharedLimiter LimiterOf(string tenant) => _tenants.GetOrAdd(tenant, static _ => new SharedLimiter());

    /// <summary>The doors of a volume, one for each loop where it was used, and what they take from together. Thread-safe.</summary>
    private sealed class VolumeDoors
    {
        private readonly Lock _lock = new();
        private Door[] _doors = []; // replaced, never changed
        private long _revision;

        public SharedLimiter Limiter { get; } = new();

        public Door[] All => Volatile.Read(ref _doors);

        public IReadOnlyList<VolumeAdmission> Admissions => [.. All.Select(d => d.Admission)];

        public Door? Find(LoopThread thread)
        {
            foreach (Door door in All)
            {
                if (door.Thread == thread) return door;
            }

            return null;
        }

        public Door Add(Door door)
        {
            lock (_lock) _doors = [.. _doors, door];
            return door;
        }

        public void SetLimits(VolumeRecord record, ulong now)
        {
            lock (_lock)
            {
                if (record.Revision < _revision) return;
                _revision = record.Revision;
                Limiter.SetLimits(record.Qos, now);
            }
        }
    }

    /// <summary>A door of a volume and what it was told last; on its loop.</summary>
    private sealed class Door(LoopThread thread, VolumeAdmission admission)
    {
        public LoopThread Thread { get; } = thread;

        public VolumeAdmission Admission { get; } = admission;

        public long Revision { get; set; }
    }
}
