using System.Net;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Blockd;

/// <summary>A connection that a target has let in.</summary>
/// <param name="Session">Its session.</param>
/// <param name="Address">Where it comes from.</param>
/// <param name="Portal">Where it came in.</param>
internal sealed record Admission(IscsiSession Session, IPAddress? Address, PortalPlace Portal);

/// <summary>A target with its sessions. Lives on the loop of its units, except where said.</summary>
internal sealed class ServedTarget(string key, LoopThread thread, ScsiTarget scsi, IscsiTarget iscsi, LunMeter meter)
{
    /// <summary>As <see cref="TargetView.Key"/>. Any thread.</summary>
    public string Key { get; } = key;

    /// <summary>The loop. Any thread.</summary>
    public LoopThread Thread { get; } = thread;

    /// <summary>The volumes that sessions reach now. Any thread; replaced as a whole.</summary>
    public IReadOnlyList<uint> Volumes { get; set; } = [];

    /// <summary>The snapshots that sessions read now. Any thread; replaced as a whole.</summary>
    public IReadOnlyList<SnapshotUse> Snapshots { get; set; } = [];

    /// <summary>Connections that are on their way in or served; under the lock of <see cref="ServedTargets"/>.</summary>
    public int Users { get; set; }

    public string Name { get; set; } = scsi.Options.Name;

    public ScsiTarget Scsi { get; } = scsi;

    public IscsiTarget Iscsi { get; } = iscsi;

    public LunMeter Meter { get; } = meter;

    public List<Admission> Admissions { get; } = [];

    /// <summary>The last renewal; they run one at a time.</summary>
    public Task Renewal { get; set; } = Task.CompletedTask;
}

/// <summary>
/// The targets that initiators have used since the start. A target is made for the first one and kept, since reservations and
/// unit attentions live behind it; what changes in the catalog is brought to it while sessions go on. The table is
/// thread-safe.
/// </summary>
internal sealed class ServedTargets(
    IscsiCatalog catalog, StoreSet stores, SharedVolumes volumes, Meters meters, LoopThread first, Settings settings, IIscsiTargets listing,
    IscsiOptions options)
{
    private readonly Lock _lock = new();
    private readonly Dictionary<string, ServedTarget> _targets = new(StringComparer.Ordinal);

    /// <summary>The target of a view, for one connection until <see cref="Leave"/>. Any thread.</summary>
    public ServedTarget Enter(TargetView view)
    {
        LoopThread wanted = catalog.ThreadOf(view) ?? first;
        lock (_lock)
        {
            // With nobody on it, it moves to where its units are now.
            ServedTarget? known = _targets.GetValueOrDefault(view.Key);
            if (known is null || (known.Thread != wanted && known.Users == 0)) _targets[view.Key] = known = Make(view, wanted);
            known.Users++;
            return known;
        }
    }

    /// <summary>The connection has ended. Any thread.</summary>
    public void Leave(ServedTarget target)
    {
        lock (_lock)
        {
            // Whoever asks for a snapshot makes a target; its unit is kept while the snapshot is there.
            if (--target.Users == 0 && IsOfSnapshot(target.Key) && _targets.GetValueOrDefault(target.Key) == target) _targets.Remove(target.Key);
        }
    }

    /// <summary>Brings what the catalog says now to the target of <paramref name="key"/> and ends the sessions that it does not let
    /// in any more; done when it answers. Any thread but a loop's.</summary>
    public async Task ApplyAsync(string key)
    {
        ServedTarget? target;
        lock (_lock) target = _targets.GetValueOrDefault(key);
        if (target is not null) await target.Thread.InvokeAsync(() => new ValueTask(RenewAsync(target)));
    }

    /// <summary>As <see cref="ApplyAsync"/>, for every target.</summary>
    public async Task ApplyAllAsync()
    {
        string[] keys;
        lock (_lock) keys = [.. _targets.Keys];
        foreach (string key in keys) await ApplyAsync(key);
    }

    /// <summary>Ends every session of a target. Any thread but a loop's.</summary>
    public async Task CutAllAsync(string key, string reason)
    {
        ServedTarget? target;
        lock (_lock) target = _targets.GetValueOrDefault(key);
        if (target is null) return;
        await target.Thread.InvokeAsync(() =>
        {
            target.Iscsi.CutAll(reason);
            return default;
        });
    }

    /// <summary>Why initiators do not see a unit, or null. Any thread.</summary>
    public string? FaultOf(LunView lun)
    {
        if (stores.Find(lun.Volume.StoreId) is null) return "its disk is not in service";
        if (Cluster.VolumeDirectory.ImportFault(lun.Volume) is { } coming) return coming.Detail;
        return volumes.Find(lun.Volume.Id)?.Fault;
    }

    /// <summary>Brings what the catalog says now to a target. On its loop.</summary>
    public Task RenewAsync(ServedTarget target) => target.Renewal = RenewAfterAsync(target.Renewal, target);

    private static bool IsOfSnapshot(string key) =>
        key.StartsWith(IscsiCatalog.OwnPrefix, StringComparison.Ordinal) && key.IndexOf('/', IscsiCatalog.OwnPrefix.Length) >= 0;

    private async Task RenewAfterAsync(Task previous, ServedTarget target)
    {
        if (!previous.IsCompleted) await Task.WhenAny(previous);
        await RenewNowAsync(target);
    }

    private async Task RenewNowAsync(ServedTarget target)
    {
        if (catalog.FindByKey(target.Key) is not { } view)
        {
            // A volume that is exported no more keeps those who are attached; a configured target that is gone keeps nobody.
            if (target.Key.StartsWith(IscsiCatalog.OwnPrefix, StringComparison.Ordinal)) return;
            target.Iscsi.CutAll("the target was deleted");
            foreach (ushort lun in target.Scsi.Luns.Keys.ToArray()) Take(target, lun);
            (target.Volumes, target.Snapshots) = ([], []);
            return;
        }

        target.Name = view.Name;
        target.Scsi.Configure(OptionsOf(view));
        var wanted = new SortedDictionary<ushort, (LogicalUnit Unit, LunView Lun)>();
        var snapshots = new List<SnapshotUse>();
        foreach (LunView lun in view.Luns)
        {
            if (volumes.ThreadOf(lun.Volume) is not { } there) continue;
            if (lun.SnapshotName is not null)
            {
                SharedSnapshot? snapshot = await SharedVolumes.OnLoopOf(there, target.Thread, () => volumes.OpenSnapshotAsync(lun, there));
                if (snapshot is null) continue;
                wanted[lun.Lun] = (snapshot.Unit, lun);
                snapshots.Add(snapshot.Use);
            }
            else if (await SharedVolumes.OnLoopOf(there, target.Thread, () => UnitOfAsync(lun.Volume, there)) is { } unit)
            {
                wanted[lun.Lun] = (unit, lun);
            }
        }

        foreach ((ushort lun, LogicalUnit unit) in target.Scsi.Luns.ToArray())
        {
            if (!wanted.TryGetValue(lun, out (LogicalUnit Unit, LunView Lun) now) || now.Unit != unit) Take(target, lun);
        }

        foreach ((ushort number, (LogicalUnit unit, LunView lun)) in wanted)
        {
            // A volume's counters are those of its loop.
            VolumeMeter? meter = lun.SnapshotName is null ? meters.Of(lun.Volume.Id) : null;
            bool isElsewhere = target.Scsi.LivesElsewhere(unit);
            target.Scsi.SetLun(number, unit, lun.ReadOnly, isElsewhere ? meter : null);
            target.Meter.Set(number, isElsewhere ? null : meter);
        }

        target.Volumes = [.. wanted.Values.Where(w => w.Lun.SnapshotName is null).Select(w => w.Lun.Volume.Id)];
        target.Snapshots = snapshots;
        foreach (Admission admission in target.Admissions.ToArray())
        {
            IscsiSession session = admission.Session;
            bool isLetIn = IscsiRules.IsProven(view, session.User) && IscsiRules.Decide(
                view with { PortalGroups = [] }, session.InitiatorName, admission.Address, admission.Portal, settings.Insecure) == IscsiLoginStatus.Success;
            if (!isLetIn) target.Iscsi.Cut(session.Tsih, "the target does not let it in any more");
            else if (!view.IsAt(admission.Portal.Group)) target.Iscsi.AskToLeave(session.Tsih, "the target moved to another portal group");
        }
    }

    private async ValueTask<LogicalUnit?> UnitOfAsync(Cluster.VolumeRecord volume, LoopThread thread) =>
        (await volumes.OpenUnitAsync(volume, thread))?.Unit;

    private static void Take(ServedTarget target, ushort lun)
    {
        target.Scsi.SetLun(lun, null);
        target.Meter.Set(lun, null);
    }

    private ServedTarget Make(TargetView view, LoopThread thread)
    {
        var scsi = new ScsiTarget(thread.Loop, OptionsOf(view));
        var meter = new LunMeter();
        return new ServedTarget(view.Key, thread, scsi, new IscsiTarget(thread.Loop, scsi, listing, options) { Meter = meter }, meter);
    }

    private ScsiTargetOptions OptionsOf(TargetView view)
    {
        IReadOnlyList<ushort> groups = [.. catalog.Portals.Select(p => p.Group).Distinct().Where(view.IsAt).Order()];
        return new ScsiTargetOptions
        {
            Name = view.Name, AtDoorMax = Math.Max(1, options.WindowCommands / 2), PortalGroups = groups.Count > 0 ? groups : [1], PortBase = (ushort)(view.Number * (Cluster.TargetDirectory.PortalGroupMax + 1)),
        };
    }
}
