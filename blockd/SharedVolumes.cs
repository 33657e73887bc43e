using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Blockd;

/// <summary>What the front ends share of one volume. Lives on the volume's loop.</summary>
internal sealed class SharedVolume(uint id, StoreHost host, WatchedDevice device, VolumeAdmission door)
{
    /// <summary>Number of the volume.</summary>
    public uint Id { get; } = id;

    /// <summary>The disk that serves it, and its loop.</summary>
    public StoreHost Host { get; } = host;

    /// <summary>The volume itself.</summary>
    public WatchedDevice Device { get; } = device;

    /// <summary>Passed by every request, before it stands in a queue.</summary>
    public VolumeAdmission Door { get; } = door;

    /// <summary>Passed by every change.</summary>
    public VolumeGate Gate { get; } = new();

    /// <summary>The volume as a SCSI unit; null until somebody needs it.</summary>
    public LogicalUnit? Unit { get; set; }

    /// <summary>How <see cref="Unit"/> shows it.</summary>
    public ExportOptions? ShownAs { get; set; }

    /// <summary>Why it may not be served: its reservations cannot be read. Null when all is well.</summary>
    public string? Fault { get; set; }

    /// <summary>The bringing back of its reservations, once begun.</summary>
    public Task? Loading { get; set; }
}

/// <summary>A snapshot as a SCSI unit, and the disk that serves it.</summary>
internal sealed record SharedSnapshot(StoreHost Host, LogicalUnit Unit, SnapshotUse Use);

/// <summary>
/// What the front ends share of the volumes. A volume with saved reservations is not served by anybody before they are
/// back in force, and not at all while they cannot be read. The table is thread-safe; what is in it lives on the loops.
/// </summary>
internal sealed class SharedVolumes(IMetaStore meta, Settings settings, Action<string> log)
{
    private readonly Lock _lock = new();
    private readonly Dictionary<uint, SharedVolume> _volumes = [];
    private readonly Dictionary<Guid, SharedSnapshot> _snapshots = [];
    private readonly HashSet<uint> _reserved = [];
    private readonly HashSet<uint> _closed = [];
    private readonly Dictionary<StoreHost, SpaceWatch> _watches = [];

    /// <summary>The doors of the volumes, and the limits of tenants.</summary>
    public QosDoors Doors { get; } = new(settings.DiskShareBytes);

    /// <summary>Reads which volumes have reservations. Throws <see cref="MetaException"/>.</summary>
    public async Task LoadAsync()
    {
        foreach (MetaEntry entry in await meta.RangeAsync(VolumeDirectory.ReservationPrefix))
        {
            if (uint.TryParse(entry.Key.AsSpan(VolumeDirectory.ReservationPrefix.Length), NumberStyles.None, CultureInfo.InvariantCulture, out uint id))
                MarkReserved(id);
        }
    }

    /// <summary>Puts saved reservations in force, of the volumes whose disks are in service. Any thread but a loop's.</summary>
    public async Task OpenReservedAsync(VolumeDirectory directory, StoreSet stores)
    {
        uint[] reserved;
        lock (_lock) reserved = [.. _reserved];
        foreach (VolumeRecord record in directory.List().Where(v => reserved.Contains(v.Id)))
        {
            if (stores.Find(record.StoreId) is { } host) await host.Thread.InvokeAsync(() => OpenAsync(record, host));
        }
    }

    /// <summary>What is known of a volume that is served, or null. Any thread.</summary>
    public SharedVolume? Find(uint volumeId)
    {
        lock (_lock) return _volumes.GetValueOrDefault(volumeId);
    }

    /// <summary>From now on nobody may attach the volume: an increment comes into it. Any thread.</summary>
    public void Close(uint volumeId)
    {
        lock (_lock) _closed.Add(volumeId);
    }

    /// <summary>Ends <see cref="Close"/>. Any thread.</summary>
    public void Reopen(uint volumeId)
    {
        lock (_lock) _closed.Remove(volumeId);
    }

    /// <summary>Nobody may attach the volume. Whoever enters his session asks again afterwards: who closes looks for sessions
    /// after closing. Any thread.</summary>
    public bool IsClosed(uint volumeId)
    {
        lock (_lock) return _closed.Contains(volumeId);
    }

    /// <summary>The volumes that somebody has used since the start. Any thread.</summary>
    public IReadOnlyList<SharedVolume> List()
    {
        lock (_lock) return [.. _volumes.Values];
    }

    /// <summary>The volume, with its reservations in force if there are any saved; null when its disk does not serve it, or while
    /// a stream comes into it. On
    /// the loop of <paramref name="host"/>. Look at <see cref="SharedVolume.Fault"/> before serving it.</summary>
    public async ValueTask<SharedVolume?> OpenAsync(VolumeRecord record, StoreHost host)
    {
        if (VolumeDirectory.ImportFault(record) is not null || IsClosed(record.Id)) return null;
        SharedVolume? volume = Find(record.Id);
        bool isReserved;
        if (volume is null || volume.Host != host)
        {
            if (host.Store.OpenVolume(record.Id) is not { } device) return null;
            volume = new SharedVolume(record.Id, host, new WatchedDevice(device, WatchOf(host)), Doors.Of(record, host));
            lock (_lock) _volumes[record.Id] = volume;
        }

        Apply(volume, record);
        lock (_lock) isReserved = _reserved.Contains(record.Id);
        if (isReserved) await LoadUnitAsync(volume, record);
        return volume;
    }

    /// <summary>What a client has learnt at its start and would not look at again is the same: a volume is shown otherwise
    /// only while nobody is attached, and then by another unit.</summary>
    public static bool IsShownAlike(ExportOptions one, ExportOptions other) =>
        (one.BlockBytes, one.Removable, one.Thick) == (other.BlockBytes, other.Removable, other.Thick);

    /// <summary>The device under a volume as it is exported now.</summary>
    public static IBlockDevice DeviceOf(SharedVolume volume, VolumeRecord record) =>
        record.Export.Thick ? new ThickDevice(volume.Device) : volume.Device;

    /// <summary>As <see cref="OpenAsync"/>, and with its SCSI unit unless there is a fault.</summary>
    public async ValueTask<SharedVolume?> OpenUnitAsync(VolumeRecord record, StoreHost host)
    {
        SharedVolume? volume = await OpenAsync(record, host);
        if (volume is null) return null;
        if (volume.Unit is not null && !IsShownAlike(volume.ShownAs!, record.Export))
            (volume.Unit, volume.Loading) = (null, null);
        await LoadUnitAsync(volume, record);
        return volume;
    }

    /// <summary>A snapshot as a SCSI unit of its own, write-protected; null when there is none of that name (and identity, when
    /// the unit says it). On the loop of <paramref name="host"/>. Reservations of it end with the daemon.</summary>
    public async ValueTask<SharedSnapshot?> OpenSnapshotAsync(LunView lun, StoreHost host)
    {
        VolumeRecord record = lun.Volume;
        SnapshotInfo? info = host.Store.Snapshots(record.Id).FirstOrDefault(
            s => lun.Snapshot is { } uuid ? s.Uuid == uuid : s.Name == lun.SnapshotName);
        if (info is null || host.Store.OpenSnapshot(record.Id, info.Uuid) is not { } device) return null;
        lock (_lock)
        {
            if (_snapshots.TryGetValue(info.Uuid, out SharedSnapshot? known) && known.Host == host) return known;
        }

        var options = new LogicalUnitOptions
        {
            Uuid = info.Uuid, IsReadOnly = true, HasSanitize = false, Durability = settings.Durability, Product = "snapshot",
            // The volume may have got larger blocks since.
            BlockBytes = info.SizeBytes % (ulong)record.Export.BlockBytes == 0 ? record.Export.BlockBytes : Units.SectorBytes,
            Admission = Doors.Of(record, host),
        };
        var unit = new LogicalUnit(host.Thread.Loop, device, options);
        IoStatus status = await unit.LoadAsync();
        Check.That(status == IoStatus.Ok); // nothing is kept of it
        var made = new SharedSnapshot(host, unit, new SnapshotUse(record.Id, info.Uuid, info.Name));
        lock (_lock) return _snapshots[info.Uuid] = made;
    }

    /// <summary>A snapshot is gone. Any thread.</summary>
    public void ForgetSnapshot(Guid uuid)
    {
        lock (_lock) _snapshots.Remove(uuid);
    }

    /// <summary>The size or the export options of a volume have changed: that holds at once. Any thread.</summary>
    public void OnChanged(VolumeRecord record)
    {
        Doors.OnChanged(record);
        if (Find(record.Id) is not { } volume) return;
        volume.Host.Thread.Post(() =>
        {
            Apply(volume, record);
            volume.Unit?.OnResized();
        });
    }

    /// <summary>As <see cref="OnChanged"/>; it holds when this has ended. Any thread but a loop's.</summary>
    public async Task SealAsync(VolumeRecord record)
    {
        if (Find(record.Id) is not { } volume) return;
        await volume.Host.Thread.InvokeAsync(() =>
        {
            Apply(volume, record);
            return default;
        });
    }

    /// <summary>The volume is gone. Any thread.</summary>
    public void Forget(uint volumeId)
    {
        lock (_lock)
        {
            _volumes.Remove(volumeId);
            foreach (Guid snapshot in _snapshots.Where(s => s.Value.Use.VolumeId == volumeId).Select(s => s.Key).ToArray()) _snapshots.Remove(snapshot);
            _reserved.Remove(volumeId);
            _closed.Remove(volumeId);
        }

        Doors.Forget(volumeId);
    }

    /// <summary>Ends every reservation and registration of a volume, damaged ones too. On the loop of
    /// <paramref name="host"/>; false when the volume is not served.</summary>
    public async ValueTask<IoStatus> ClearReservationsAsync(VolumeRecord record, StoreHost host)
    {
        SharedVolume? volume = await OpenUnitAsync(record, host);
        if (volume is null) return IoStatus.Unavailable;
        bool wasDamaged = volume.Fault is not null;
        if (wasDamaged) volume.Unit = MakeUnit(volume, record);
        IoStatus status = await volume.Unit!.ClearReservationsAsync();
        if (wasDamaged && status != IoStatus.Ok)
        {
            volume.Unit = null;
            volume.Gate.Fence = Fence.All;
        }

        if (status == IoStatus.Ok) volume.Fault = null;
        return status;
    }

    /// <summary>The reservations of a volume, or null when there are none. On the loop of the volume.</summary>
    public ReservationInfo? Describe(uint volumeId)
    {
        if (Find(volumeId) is not { } volume) return null;
        if (volume.Fault is { } fault) return new ReservationInfo("unknown", null, false, 0, [], fault);
        if (volume.Unit is not { } unit || (unit.Registrations.Count == 0 && unit.ReservedBy is null)) return null;
        return new ReservationInfo(
            TypeWord(unit), unit.ReservedBy ?? unit.Registrations.FirstOrDefault(r => r.IsHolder).InitiatorPort,
            unit.IsReservationPersistent, unit.ReservationGeneration,
            [.. unit.Registrations.Select(r => new RegistrantInfo(
                r.InitiatorPort, r.PortalGroup, "0x" + r.Key.ToString("x16", CultureInfo.InvariantCulture), r.IsHolder, r.IsAttached))]);
    }

    private static string TypeWord(LogicalUnit unit) => unit.ReservedBy is not null ? "reserve-6" : unit.ReservationType switch
    {
        ReservationType.WriteExclusive => "write-exclusive",
        ReservationType.ExclusiveAccess => "exclusive-access",
        ReservationType.WriteExclusiveRegistrants => "write-exclusive-registrants-only",
        ReservationType.ExclusiveAccessRegistrants => "exclusive-access-registrants-only",
        ReservationType.WriteExclusiveAll => "write-exclusive-all-registrants",
        ReservationType.ExclusiveAccessAll => "exclusive-access-all-registrants",
        _ => "none",
    };

    private SpaceWatch WatchOf(StoreHost host)
    {
        lock (_lock)
        {
            if (_watches.TryGetValue(host, out SpaceWatch? known)) return known;
            SpaceWatch watch = host.Watch(settings.LowSpacePercent);
            watch.Crossed = free => OnLowSpace(host, free);
            return _watches[host] = watch;
        }
    }

    /// <summary>On the loop of the disk: initiators of its volumes are told, and the operator.</summary>
    private void OnLowSpace(StoreHost host, ulong freeBytes)
    {
        log($"disk {host.Name} runs low: {SizeText.Format(freeBytes)} free, less than {settings.LowSpacePercent}% (--low-space); trim or delete something, or add a disk");
        foreach (SharedVolume volume in List())
        {
            if (volume.Host == host) volume.Unit?.OnLowSpace();
        }
    }

    private static void Apply(SharedVolume volume, VolumeRecord record)
    {
        volume.Device.IsSealed = record.IsImage;
        volume.Gate.IgnoresFence = record.Export.NbdIgnoresReservations;
        if (volume.Unit is { } unit) unit.IsReadOnly = record.Export.ReadOnly || record.IsImage;
    }

    private Task LoadUnitAsync(SharedVolume volume, VolumeRecord record) => volume.Loading ??= LoadUnitOnceAsync(volume, record);

    private async Task LoadUnitOnceAsync(SharedVolume volume, VolumeRecord record)
    {
        // Until it is known who has reserved it, nobody is let in.
        volume.Gate.Fence = Fence.All;
        LogicalUnit unit = MakeUnit(volume, record);
        IoStatus status = await unit.LoadAsync();
        if (status == IoStatus.Ok)
        {
            (volume.Unit, volume.Fault) = (unit, null);
            return;
        }

        if (status != IoStatus.Corrupt) volume.Loading = null; // the next one tries again
        volume.Fault = status == IoStatus.Corrupt
            ? "its saved persistent reservations are damaged; it is not served, since a fenced initiator could get in: look who may use it, then pfcli clear_reservations"
            : $"its persistent reservations cannot be read ({status}); it is not served, since a fenced initiator could get in: mend the metadata database, then try again";
        log($"volume '{record.Name}': {volume.Fault}");
    }

    private LogicalUnit MakeUnit(SharedVolume volume, VolumeRecord record)
    {
        volume.ShownAs = record.Export;
        var options = new LogicalUnitOptions
        {
            Uuid = record.Uuid,
            IsReadOnly = record.Export.ReadOnly || record.IsImage,
            IsRemovable = record.Export.Removable,
            IsThin = !record.Export.Thick,
            BlockBytes = record.Export.BlockBytes,
            Durability = settings.Durability,
            Admission = volume.Door,
            Usage = () => new ThinUsage(volume.Host.FreeBytesNow, volume.Host.Store.UsedBytes(volume.Id)),
        };
        var keeper = new ReservationKeeper(meta, record.Id, volume.Host.Thread, MarkReserved);
        return new LogicalUnit(volume.Host.Thread.Loop, DeviceOf(volume, record), options, keeper, volume.Gate);
    }

    private void MarkReserved(uint volumeId)
    {
        lock (_lock) _reserved.Add(volumeId);
    }
}
