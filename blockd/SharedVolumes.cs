using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Blockd;

/// <summary>What the front ends share of one volume. Lives on the volume's loop, which is that of its disk when it is opened
/// first, and stays that when it moves to a disk of another loop.</summary>
internal sealed class SharedVolume(uint id, LoopThread thread, StoreHost host, HomeDevice home, WatchedDevice device, VolumeAdmission door)
{
    /// <summary>Number of the volume.</summary>
    public uint Id { get; } = id;

    /// <summary>The volume's loop. Any thread.</summary>
    public LoopThread Thread { get; } = thread;

    /// <summary>The disk that serves it. Any thread.</summary>
    public StoreHost Host { get; set; } = host;

    /// <summary>Where it lies, under <see cref="Device"/>.</summary>
    public HomeDevice Home { get; } = home;

    /// <summary>It is about to get another home: until then it keeps the one it has.</summary>
    public bool IsHeld { get; set; }

    /// <summary>Its snapshots that somebody has opened, by identity.</summary>
    public Dictionary<Guid, HomeDevice> Snapshots { get; } = [];

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

    /// <summary>What its disk said last of space, when that is on another loop.</summary>
    public ThinUsage LastUsage { get; set; }

    /// <summary>The bringing back of its reservations, once begun.</summary>
    public Task? Loading { get; set; }
}

/// <summary>A snapshot as a SCSI unit, and the disk that serves it.</summary>
internal sealed record SharedSnapshot(SharedVolume Volume, LogicalUnit Unit, SnapshotUse Use);

/// <summary>
/// What the front ends share of the volumes. A volume with saved reservations is not served by anybody before they are
/// back in force, and not at all while they cannot be read. The table is thread-safe; what is in it lives on the loops.
/// </summary>
internal sealed class SharedVolumes(IMetaStore meta, VolumeDirectory directory, StoreSet stores, Settings settings, Action<string> log)
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

    /// <summary>Where a volume that nobody has opened yet is to live, when not on the loop of its disk: that of the target whose
    /// LUN it is.</summary>
    public Func<VolumeRecord, LoopThread?>? Seat { get; init; }

    /// <summary>The loop of a volume; null when it is not open and its disk is not in service. Any thread.</summary>
    public LoopThread? ThreadOf(VolumeRecord record)
    {
        SharedVolume? known = Find(record.Id);
        if (stores.Find(record.StoreId) is not { } host) return null;
        return known is not null && (known.Host == host || known.IsHeld) ? known.Thread : Seat?.Invoke(record) ?? host.Thread;
    }

    /// <summary>Puts saved reservations in force, of the volumes whose disks are in service. Any thread but a loop's.</summary>
    public async Task OpenReservedAsync()
    {
        uint[] reserved;
        lock (_lock) reserved = [.. _reserved];
        foreach (VolumeRecord record in directory.List().Where(v => reserved.Contains(v.Id)))
        {
            if (ThreadOf(record) is { } thread) await thread.InvokeAsync(() => OpenAsync(record, thread));
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

    /// <summary>Holds back the changes of a volume by all of its gate: waits until those before have ended, and hands the range to
    /// <paramref name="keep"/> on the volume's loop, which releases it some day. False when the volume is not served, or when
    /// <paramref name="keep"/> came too late to want it: then it is released here. Any thread but a loop's.</summary>
    public Task<bool> TakeGateAsync(VolumeRecord record, Func<SharedVolume, VolumeGate.Range, bool> keep)
    {
        if (ThreadOf(record) is not { } thread) return Task.FromResult(false);
        return thread.InvokeAsync(async () =>
        {
            if (await OpenAsync(record, thread) is not { } volume) return false;
            VolumeGate.Range range = volume.Gate.Take(0, ulong.MaxValue, isExclusive: true, out ValueTask<bool> wait);
            await wait;
            if (keep(volume, range)) return true;
            volume.Gate.Release(range); // too late: the others have gone on
            return false;
        });
    }

    /// <summary>The volume, with its reservations in force if there are any saved; null when its disk does not serve it, or while
    /// a stream comes into it. On
    /// <paramref name="thread"/>, which <see cref="ThreadOf"/> said. Look at <see cref="SharedVolume.Fault"/> before serving it.</summary>
    public async ValueTask<SharedVolume?> OpenAsync(VolumeRecord record, LoopThread thread)
    {
        if (VolumeDirectory.ImportFault(record) is not null || IsClosed(record.Id)) return null;
        // Where it lies is asked here: it may have moved since the caller looked.
        SharedVolume? volume = Find(record.Id);
        bool isReserved;
        if (directory.Find(record.Id) is not { } now || stores.Find(now.StoreId) is not { } host) return null;
        if (volume is null || (volume.Host != host && !volume.IsHeld))
        {
            (IBlockDevice Device, SpaceWatch? Watch)? opened = await OpenThereAsync(thread, host, store => store.OpenVolume(record.Id));
            if (opened is not { } there) return null;
            lock (_lock)
            {
                SharedVolume? meanwhile = _volumes.GetValueOrDefault(record.Id);
                if (meanwhile is null || meanwhile == volume)
                {
                    var home = new HomeDevice(there.Device);
                    VolumeAdmission door = Doors.Of(record, thread, host);
                    _volumes[record.Id] = meanwhile = new SharedVolume(
                        record.Id, thread, host, home, new WatchedDevice(new PacedDevice(home, door), there.Watch), door);
                }

                volume = meanwhile;
            }
        }

        if (volume.Thread != thread) return null; // somebody opened it elsewhere meanwhile
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
    public async ValueTask<SharedVolume?> OpenUnitAsync(VolumeRecord record, LoopThread thread)
    {
        SharedVolume? volume = await OpenAsync(record, thread);
        if (volume is null) return null;
        if (volume.Unit is not null && !IsShownAlike(volume.ShownAs!, record.Export))
            (volume.Unit, volume.Loading) = (null, null);
        await LoadUnitAsync(volume, record);
        return volume;
    }

    /// <summary>A snapshot as a SCSI unit of its own, write-protected; null when there is none of that name (and identity, when
    /// the unit says it). On <paramref name="thread"/>, as <see cref="OpenAsync"/>. Reservations of it end with the daemon.</summary>
    public async ValueTask<SharedSnapshot?> OpenSnapshotAsync(LunView lun, LoopThread thread)
    {
        VolumeRecord record = lun.Volume;
        if (await OpenAsync(record, thread) is not { } volume) return null;
        (SnapshotInfo Info, IBlockDevice Device)? opened = await OpenSnapshotAsync(
            volume, s => lun.Snapshot is { } uuid ? s.Uuid == uuid : s.Name == lun.SnapshotName);
        if (opened is not { } there) return null;
        (SnapshotInfo info, IBlockDevice device) = there;
        lock (_lock)
        {
            if (_snapshots.TryGetValue(info.Uuid, out SharedSnapshot? known) && known.Volume == volume) return known;
        }

        var options = new LogicalUnitOptions
        {
            Uuid = info.Uuid, IsReadOnly = true, HasSanitize = false, Durability = settings.Durability, Product = "snapshot",
            // The volume may have got larger blocks since.
            BlockBytes = info.SizeBytes % (ulong)record.Export.BlockBytes == 0 ? record.Export.BlockBytes : Units.SectorBytes,
            Admission = volume.Door,
        };
        var unit = new LogicalUnit(thread.Loop, device, options);
        IoStatus status = await unit.LoadAsync();
        Check.That(status == IoStatus.Ok); // nothing is kept of it
        var made = new SharedSnapshot(volume, unit, new SnapshotUse(record.Id, info.Uuid, info.Name));
        lock (_lock) return _snapshots[info.Uuid] = made;
    }

    /// <summary>The snapshot of a volume that <paramref name="which"/> names, wherever it lies; null when there is none. On the
    /// volume's loop.</summary>
    public async ValueTask<(SnapshotInfo Info, IBlockDevice Device)?> OpenSnapshotAsync(SharedVolume volume, Func<SnapshotInfo, bool> which)
    {
        while (true)
        {
            StoreHost host = volume.Host;
            SnapshotInfo? info = await OnLoopOf(
                host.Thread, volume.Thread, () => new ValueTask<SnapshotInfo?>(host.Store.Snapshots(volume.Id).FirstOrDefault(which)));
            if (info is not null && volume.Snapshots.TryGetValue(info.Uuid, out HomeDevice? known)) return (info, new PacedDevice(known, volume.Door));
            (IBlockDevice Device, SpaceWatch?)? opened = info is null ? null
                : await OpenThereAsync(volume.Thread, host, store => store.OpenSnapshot(volume.Id, info.Uuid));
            if (volume.Host != host) continue; // it moved meanwhile
            if (opened is not { } there) return null;
            if (!volume.Snapshots.TryGetValue(info!.Uuid, out known)) volume.Snapshots.Add(info.Uuid, known = new HomeDevice(there.Device));
            return (info, new PacedDevice(known, volume.Door));
        }
    }

    /// <summary>Everybody who uses a volume uses its new home from now on. On the volume's loop, with its changes held back.</summary>
    public async ValueTask<bool> SwitchAsync(SharedVolume volume, StoreHost host)
    {
        (IBlockDevice Device, SpaceWatch? Watch)? opened = await OpenThereAsync(volume.Thread, host, store => store.OpenVolume(volume.Id));
        (volume.Host, volume.Device.Watch) = (host, opened?.Watch);
        volume.Home.Switch(opened?.Device ?? new AwayDevice(volume.Home.SizeBytes));
        foreach ((Guid uuid, HomeDevice snapshot) in volume.Snapshots.ToArray())
        {
            (IBlockDevice Device, SpaceWatch?)? there = await OpenThereAsync(volume.Thread, host, store => store.OpenSnapshot(volume.Id, uuid));
            snapshot.Switch(there?.Device ?? new AwayDevice(snapshot.SizeBytes));
        }

        Doors.OnMoved(volume.Id, host);
        volume.IsHeld = false;
        return opened is not null;
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
        volume.Thread.Post(() =>
        {
            Apply(volume, record);
            volume.Unit?.OnResized();
        });
    }

    /// <summary>As <see cref="OnChanged"/>; it holds when this has ended. Any thread but a loop's.</summary>
    public async Task SealAsync(VolumeRecord record)
    {
        if (Find(record.Id) is not { } volume) return;
        await volume.Thread.InvokeAsync(() =>
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

    /// <summary>Ends every reservation and registration of a volume, damaged ones too. On
    /// <paramref name="thread"/>, as <see cref="OpenAsync"/>; Unavailable when the volume is not served.</summary>
    public async ValueTask<IoStatus> ClearReservationsAsync(VolumeRecord record, LoopThread thread)
    {
        SharedVolume? volume = await OpenUnitAsync(record, thread);
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
            SpaceWatch watch = host.Watch(settings.LowSpacePercent, settings.MetadataWarnPercent);
            watch.Crossed = free => OnLowSpace(host, free);
            return _watches[host] = watch;
        }
    }

    /// <summary>On the loop of the disk: initiators of its volumes are told, and the operator.</summary>
    private void OnLowSpace(StoreHost host, ulong freeBytes)
    {
        StoreStats stats = host.Store.GetStats();
        string what = stats.SlotsHeld * 100 >= stats.SlotsTotal * (ulong)settings.MetadataWarnPercent
            ? $"{stats.SlotsHeld} of {stats.SlotsTotal} metadata slots are in use, more than {settings.MetadataWarnPercent}% (--metadata-warn)"
            : $"{SizeText.Format(freeBytes)} free, less than {settings.LowSpacePercent}% (--low-space)";
        log($"disk {host.Name} runs low: {what}; trim or delete something, or add a disk");
        foreach (SharedVolume volume in List())
        {
            if (volume.Host == host) volume.Thread.Post(() => volume.Unit?.OnLowSpace());
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
            Usage = () => UsageOf(volume),
        };
        var keeper = new ReservationKeeper(meta, record.Id, volume.Thread, MarkReserved);
        return new LogicalUnit(volume.Thread.Loop, DeviceOf(volume, record), options, keeper, volume.Gate);
    }

    /// <summary>On the volume's loop. Of a disk of another loop it is what that said when it was asked last.</summary>
    private static ThinUsage UsageOf(SharedVolume volume)
    {
        StoreHost host = volume.Host;
        if (host.Thread == volume.Thread) return new ThinUsage(host.FreeBytesNow, host.Store.UsedBytes(volume.Id));
        host.Thread.Post(() =>
        {
            var usage = new ThinUsage(host.FreeBytesNow, host.Store.UsedBytes(volume.Id));
            volume.Thread.Post(() => volume.LastUsage = usage);
        });
        return volume.LastUsage;
    }

    /// <summary>Something of a disk as it is seen from a loop; null when it is not there. On <paramref name="thread"/>.</summary>
    private async ValueTask<(IBlockDevice Device, SpaceWatch? Watch)?> OpenThereAsync(
        LoopThread thread, StoreHost host, Func<ILayeredStore, IBlockDevice?> open)
    {
        if (host.Thread == thread) return open(host.Store) is { } here ? (here, WatchOf(host)) : null;
        IBlockDevice? there = await OnLoopOf(host.Thread, thread, () => new ValueTask<IBlockDevice?>(open(host.Store)));
        // The watch belongs to the loop of the disk.
        return there is null ? null : (new RelayDevice(new WatchedDevice(there, WatchOf(host)), thread.Loop, host.Thread.Loop), null);
    }

    /// <summary>Does something on a loop and goes on on another one, where it was called.</summary>
    public static async ValueTask<T> OnLoopOf<T>(LoopThread there, LoopThread here, Func<ValueTask<T>> work)
    {
        if (there == here) return await work();
        Task<T> working = there.InvokeAsync(work);
        var done = new LoopEvent<bool>();
        _ = TellAsync();
        await done.WaitAsync();
        return await working;

        async Task TellAsync()
        {
            await working.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
            here.Post(() => done.Set(true));
        }
    }

    private void MarkReserved(uint volumeId)
    {
        lock (_lock) _reserved.Add(volumeId);
    }
}
