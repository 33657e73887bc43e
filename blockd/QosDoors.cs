using System.Collections.Concurrent;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>
/// The doors of the volumes (<see cref="VolumeAdmission"/>), one for all front ends and snapshots of a volume, and the limits that
/// tenants share. Of <paramref name="diskShareBytes"/> several volumes of a disk have equal parts (<see cref="DiskShare"/>); 0: of as many as come. The tables are thread-safe; a door lives
/// on the loop of its volume, and shares the disk on which the volume lay when it was opened there.
/// </summary>
internal sealed class QosDoors(ulong diskShareBytes)
{
    private readonly ConcurrentDictionary<uint, Entry> _doors = [];
    private readonly ConcurrentDictionary<(LoopThread Thread, StoreHost Host), DiskShare> _shares = [];
    private readonly ConcurrentDictionary<string, SharedLimiter> _tenants = new(StringComparer.Ordinal);

    /// <summary>Whose limits a volume takes from too; null: nobody's. Asked on the volume's loop; set once, before volumes are
    /// served.</summary>
    public Func<VolumeRecord, string?> TenantOf { get; set; } = static _ => null;

    /// <summary>The door of a volume that lies on <paramref name="host"/>, with the limits of its record in force. It stays when the
    /// volume moves, for its limits hold for all who came in by it. On <paramref name="thread"/>, the volume's loop.</summary>
    public VolumeAdmission Of(VolumeRecord record, LoopThread thread, StoreHost host)
    {
        if (!_doors.TryGetValue(record.Id, out Entry? known) || known.Thread != thread)
        {
            DiskShare? share = diskShareBytes == 0 ? null : _shares.GetOrAdd((thread, host), _ => new DiskShare(diskShareBytes));
            known = new Entry(thread, host, new VolumeAdmission(thread.Loop, share));
            _doors[record.Id] = known;
        }

        Apply(record, known);
        return known.Door;
    }

    /// <summary>The limits or the tenant of a volume have changed: that holds at once, also for requests that wait. Any thread.</summary>
    public void OnChanged(VolumeRecord record)
    {
        if (_doors.TryGetValue(record.Id, out Entry? known)) known.Thread.Post(() => Apply(record, known));
    }

    /// <summary>What all volumes of a tenant may be asked for together; null takes the limits away. They hold at once. Any thread.</summary>
    public void SetTenant(string tenant, QosLimits? limits) => LimiterOf(tenant).SetLimits(limits);

    /// <summary>What all volumes of a tenant may be asked for together, as it is in force. Any thread.</summary>
    public QosLimits LimitsOf(string tenant) => LimiterOf(tenant).Limits;

    /// <summary>The door of a volume that somebody has used since the start, or null. Any thread.</summary>
    public VolumeAdmission? Find(uint volumeId) => _doors.GetValueOrDefault(volumeId)?.Door;

    /// <summary>The volume is gone. Any thread.</summary>
    public void Forget(uint volumeId) => _doors.TryRemove(volumeId, out _);

    /// <summary>The disk is out of service. Any thread.</summary>
    public void ForgetDisk(Guid storeId)
    {
        foreach ((LoopThread, StoreHost) there in _shares.Keys.Where(k => k.Host.StoreId == storeId)) _shares.TryRemove(there, out _);
        foreach ((uint volume, _) in _doors.Where(d => d.Value.Host.StoreId == storeId)) _doors.TryRemove(volume, out _);
    }

    // A client that comes may bring a record that was read before the last change.
    private void Apply(VolumeRecord record, Entry entry)
    {
        if (record.Revision < entry.Revision) return;
        entry.Revision = record.Revision;
        entry.Door.SetLimits(record.Qos);
        entry.Door.SetTenant(TenantOf(record) is { } tenant ? LimiterOf(tenant) : null);
    }

    private SharedLimiter LimiterOf(string tenant) => _tenants.GetOrAdd(tenant, static _ => new SharedLimiter());

    /// <summary>A door and what it was told last; on the loop of its volume.</summary>
    private sealed class Entry(LoopThread thread, StoreHost host, VolumeAdmission door)
    {
        public StoreHost Host { get; } = host;

        public LoopThread Thread { get; } = thread;

        public VolumeAdmission Door { get; } = door;

        public long Revision { get; set; }
    }
}
