using System.Collections.Concurrent;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>A reason not to start, for the operator.</summary>
internal sealed class StartException(string message) : Exception(message);

/// <summary>Everything of one running daemon, wired together. Made by <see cref="StartAsync"/>, ended by
/// <see cref="StopAsync"/>; both on ordinary threads.</summary>
internal sealed class Daemon
{
    private const string TokenKey = "auth/admin";
    // For so long clients wait at most while a group of volumes on several disks is cut.
    private static readonly TimeSpan s_cutPauseMax = TimeSpan.FromSeconds(5);

    private const ulong StopWaitNanos = 10_000_000_000;

    private readonly DataDirectory _data;
    private readonly WatchedMetaStore _meta;
    private readonly List<LoopThread> _threads;
    private readonly ConcurrentQueue<string> _warnings = new();
    private readonly List<ListenerInfo> _listeners = [];
    private NbdFrontEnd? _nbd;
    private IscsiFrontEnd? _iscsi;

    private Daemon(
        Settings settings, DataDirectory data, WatchedMetaStore meta, List<LoopThread> threads, StartWatch watch, Func<IFile, IFile>? layer)
    {
        Settings = settings;
        DenyList = new DenyDirectory(meta);
        Denied = new Denied(DenyList);
        Sessions = new Sessions(settings.Limits.OfConnections(settings.Connections, settings.ConnectionsPerAddress)) { Denied = Denied };
        Audit = AuditLog.Open(data.AuditPath, Warn);
        _data = data;
        _meta = meta;
        _threads = threads;
        Directory = new VolumeDirectory(meta, SystemClock.Instance, new SystemRandom())
        {
            Delay = Task.Delay,
            IsThinByDefault = settings.IsThinByDefault,
            Adopted = NoteAdopted,
        };
        Targets = new TargetDirectory(meta);
        ScrubRecords = new ScrubDirectory(meta);
        Tasks = new TaskRegistry(meta, SystemClock.Instance, Warn);
        Disks = new Disks(settings, data, meta, Directory, threads, Warn, watch, layer);
        Volumes = new SharedVolumes(meta, Directory, Stores, settings, Warn) { Seat = SeatOf };
        Directory.CutGate = new CutGate(Volumes, s_cutPauseMax);
        Around = new DaemonImportWorld(Stores, Volumes, Sessions, () => _iscsi?.Targets.ApplyAllAsync() ?? Task.CompletedTask, Warn);
        Imports = new Imports(Directory, Around, new ImportSeams(new SystemRandom(), SystemClock.Instance), new ImportLimits());
        Policies = new PolicyDirectory(meta);
        Tokens = new TokenDirectory(meta);
        Tenants = new TenantDirectory(meta);
        Directory.Quota = Tenants;
        var stop = new CancellationTokenSource();
        PolicyEngine = new PolicyEngine(
            Directory, Policies, new PolicyHooks(Path.Combine(settings.DataDir, "hooks"), stop.Token), SystemClock.Instance,
            uuid => Sessions.Reading(uuid).Count > 0 || Targets.List().Any(t => t.Luns.Any(l => l.Snapshot == uuid)));
        PolicyRunner = new PolicyRunner(PolicyEngine, Policies, stop, Warn);
        StartedAt = SystemClock.Instance.UtcNow;
        Events = new EventLog(SystemClock.Instance, Path.Combine(settings.DataDir, "events.jsonl"));
        EventWatch = new EventWatch(this, meta);
        Metrics = new Metrics(this);
        Sessions.ListenerFailed = (address, why) => Events.Note(EventCatalogue.ListenerFailed, address, $"{address} is not served any more: {why}");
        Sessions.Lost = (session, reason) => Events.Note(
            EventCatalogue.SessionLost, session.Peer, $"{session.Protocol} client {session.Peer} is gone: {reason}");
    }

    public Settings Settings { get; }

    public VolumeDirectory Directory { get; }

    /// <summary>What changed lately.</summary>
    public WatchHub Watch { get; } = new();

    /// <summary>What keeps the declared state; null until it serves.</summary>
    public DeclaredRunner? Declared { get; private set; }

    /// <summary>The metadata.</summary>
    public IMetaStore Meta => _meta;

    /// <summary>The long jobs.</summary>
    public TaskRegistry Tasks { get; }

    /// <summary>The iSCSI targets that the operator has configured.</summary>
    public TargetDirectory Targets { get; }

    /// <summary>The snapshots that are cut by themselves.</summary>
    public PolicyDirectory Policies { get; }

    /// <summary>Tokens of the admin API besides the administrator's.</summary>
    public TokenDirectory Tokens { get; }

    /// <summary>Who shares the node.</summary>
    public TenantDirectory Tenants { get; }

    /// <summary>The black list as it is kept.</summary>
    public DenyDirectory DenyList { get; }

    /// <summary>The black list as it is asked.</summary>
    public Denied Denied { get; }

    /// <summary>What the admin API changed and refused.</summary>
    public AuditLog Audit { get; }

    /// <summary>Certificate and key, or null: nothing is encrypted.</summary>
    public TlsFiles? Tls { get; private init; }

    /// <summary>Cuts the API's connections of denied addresses; set by the API.</summary>
    public Func<int>? CutDeniedApi { get; set; }

    /// <summary>Puts the black list in force as it is now: whoever is on it is cut, on every front end. How many connections.</summary>
    public int EnforceDenied()
    {
        Denied.Refresh();
        return Sessions.CutDenied() + (CutDeniedApi?.Invoke() ?? 0) + Calls.CutAll((_, id) => Denied.IsToken(id));
    }

    /// <summary>Everything that the metadata hold now.</summary>
    public ValueTask<IReadOnlyList<MetaEntry>> MetadataAsync() => _meta.RangeAsync("");

    /// <summary>Who a token of the admin API stands for.</summary>
    public ApiTokens ApiTokens => new(TokenHash, Tokens, Tenants, Directory, ApiClock);

    /// <summary>The calls of the admin API that are being answered.</summary>
    public ApiCalls Calls { get; } = new();

    /// <summary>Tells which tokens have expired. Set before the API is served.</summary>
    public TimeProvider ApiClock { get; set; } = TimeProvider.System;

    /// <summary>What cuts them.</summary>
    public PolicyEngine PolicyEngine { get; }

    /// <summary>What runs it.</summary>
    public PolicyRunner PolicyRunner { get; }

    public Disks Disks { get; }

    /// <summary>How far scrubs are and what they have found.</summary>
    public ScrubDirectory ScrubRecords { get; }

    /// <summary>The disks in service.</summary>
    public StoreSet Stores => Disks.Stores;

    /// <summary>What the front ends share of the volumes.</summary>
    public SharedVolumes Volumes { get; }

    /// <summary>Streams that come into volumes.</summary>
    public Imports Imports { get; }

    /// <summary>Files that programs of this machine have handed over; null when none can be.</summary>
    public HandedFiles? HandedFiles { get; private set; }

    /// <summary>The node as imports and populations see it.</summary>
    public IImportWorld Around { get; }

    /// <summary>The iSCSI targets as they are now. Set when it serves.</summary>
    public IscsiCatalog Catalog { get; private set; } = null!;

    /// <summary>The iSCSI targets in use. Set when it serves.</summary>
    public ServedTargets ServedTargets => _iscsi!.Targets;

    public Sessions Sessions { get; }

    /// <summary>The append streams that are open.</summary>
    public AppendStreams AppendStreams { get; } = new();

    /// <summary>What each of them may take; tests shorten the times.</summary>
    public AppendStreamLimits AppendLimits { get; set; } = new();

    /// <summary>It is ending: what is under way goes on at the next start.</summary>
    public bool IsStopping { get; private set; }

    /// <summary>What an operator should know.</summary>
    public EventLog Events { get; }

    /// <summary>What finds faults.</summary>
    public EventWatch EventWatch { get; }

    /// <summary>What /metrics shows.</summary>
    public Metrics Metrics { get; }

    public Meters Meters { get; } = new();

    public DateTimeOffset StartedAt { get; }

    /// <summary>The threads that serve.</summary>
    public IReadOnlyList<LoopThread> Threads => _threads;

    public string EngineName => _threads[0].Loop.EngineName;

    public string TokenPath => _data.TokenPath;

    /// <summary>SHA-256 of the admin token, hex.</summary>
    public string TokenHash { get; private set; } = "";

    public IReadOnlyList<string> Warnings => [.. _warnings];

    public IReadOnlyList<ListenerInfo> Listeners => _listeners;

    /// <summary>Set when a loop has died of a bug: the daemon must end.</summary>
    public TaskCompletionSource<Exception> LoopFailed { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Opens everything; serves when it answers. Throws <see cref="StartException"/> or
    /// <see cref="IOException"/>, after closing what it had opened.</summary>
    /// <param name="settings">What the operator wants.</param>
    /// <param name="systemdSockets">Listening sockets that were inherited.</param>
    /// <param name="log">Takes lines for the operator.</param>
    /// <param name="watch">Told which disk it is busy with.</param>
    /// <param name="layer">Put in front of every disk, for a rehearsal of its faults.</param>
    public static async Task<Daemon> StartAsync(
        Settings settings, int systemdSockets, Action<string> log, StartWatch? watch = null, Func<IFile, IFile>? layer = null)
    {
        // First, so that a wrong file changes nothing anywhere.
        TlsFiles? tls = TlsFiles.Open(settings, log);
        DataDirectory data = DataDirectory.Open(settings.DataDir);
        Daemon? daemon = null;
        try
        {
            data.ProtectMetadata();
            var meta = new WatchedMetaStore(SqliteMetaStore.Open(data.MetadataPath));
            var threads = new List<LoopThread>();
            daemon = new Daemon(settings, data, meta, threads, watch ?? new StartWatch(), layer) { Tls = tls };
            for (int i = 0; i < settings.Loops; i++)
            {
                LoopThread thread = LoopFactory.Create(
                    settings.Engine, $"loop-{i}", (long)settings.Limits.LoopBytes, busyPollNanos: (ulong)settings.BusyPollMicros * 1000);
                thread.Failed += e => daemon.LoopFailed.TrySetResult(e);
                threads.Add(thread);
            }

            await daemon.OpenAsync(systemdSockets, tls, log);
            return daemon;
        }
        catch
        {
            if (daemon is not null) await daemon.StopAsync(log);
            else data.Dispose();
            if (daemon is null) tls?.Dispose();
            throw;
        }
    }

    /// <summary>Tells the list of listeners about one that somebody else made.</summary>
    public void AddListener(ListenerInfo listener) => _listeners.Add(listener);

    /// <summary>Serves NBD on a connected socket until its client leaves; the reason.</summary>
    public Task<string> ServeOneAsync(int fd) => _nbd!.ServeOneAsync(fd);

    /// <summary>Ends sessions after what is in flight, closes the stores, gives the directory free. False when a disk did not
    /// answer: then its loop still waits for it, and the process must end.</summary>
    public async Task<bool> StopAsync(Action<string> log)
    {
        IsStopping = true;
        await EventWatch.DisposeAsync();
        if (Declared is { } declared) await declared.DisposeAsync();
        await PolicyRunner.StopAsync();
        await Tasks.StopAsync();
        if (HandedFiles is { } handed) await handed.DisposeAsync();
        if (_nbd is not null) await _nbd.StopAcceptingAsync();
        if (_iscsi is not null) await _iscsi.StopAcceptingAsync();
        Sessions.StopAll();
        for (ulong waited = 0; Sessions.Connections > 0 && waited < StopWaitNanos; waited += 20_000_000)
            await Task.Delay(TimeSpan.FromMilliseconds(20));
        foreach (Session session in Sessions.List()) session.Cut("the daemon stops");
        for (int i = 0; Sessions.Connections > 0 && i < 50; i++) await Task.Delay(TimeSpan.FromMilliseconds(20));
        HashSet<LoopThread> stuck = await CloseStoresAsync(log);
        foreach (LoopThread thread in _threads.Where(t => !stuck.Contains(t))) thread.Dispose();
        Directory.Dispose();
        Targets.Dispose();
        Policies.Dispose();
        Tokens.Dispose();
        Tenants.Dispose();
        DenyList.Dispose();
        Audit.Dispose();
        Tls?.Dispose();
        PolicyRunner.Dispose();
        Disks.Dispose();
        Events.Dispose();
        await _meta.DisposeAsync();
        _data.Dispose();
        return stuck.Count == 0;
    }

    /// <summary>The limits of a tenant have changed: they hold at once, for the volumes that have become its own too.</summary>
    public void ApplyLimits(string tenant)
    {
        Volumes.Doors.SetTenant(tenant, Tenants.Find(tenant)?.IopsMax is { } iops ? new QosLimits(iops) : null);
        foreach (VolumeRecord volume in Directory.List().Where(v => TenantDirectory.IsOf(tenant, v.Name))) Volumes.Doors.OnChanged(volume);
    }

    private void NoteAdopted(IReadOnlyList<VolumeRecord> volumes)
    {
        foreach (IGrouping<Guid, VolumeRecord> there in volumes.GroupBy(v => v.StoreId))
        {
            ILookup<bool, VolumeRecord> byPromise = there.ToLookup(v => v.PromisedBytes != 0);
            Events.Note(
                EventCatalogue.VolumesAdopted, Stores.Find(there.Key)?.Name ?? there.Key.ToString(),
                $"promised their size: {Names(byPromise[true])}; thin: {Names(byPromise[false])}");
        }

        static string Names(IEnumerable<VolumeRecord> some)
        {
            const int NamedMax = 20;
            string[] names = [.. some.Select(v => v.Name)];
            return names.Length == 0 ? "none" : string.Join(", ", names.Take(NamedMax)) + (names.Length > NamedMax ? $" and {names.Length - NamedMax} more" : "");
        }
    }

    /// <summary>Begins to keep what is declared.</summary>
    public async Task ReconcileAsync(DeclaredStates states)
    {
        await states.LoadAsync(Warn);
        if (Declared is { } old) await old.DisposeAsync();
        Declared = new DeclaredRunner(states, Watch, Warn);
        Declared.Start();
    }

    /// <summary>A volume has another size or other export options: whoever is attached is told, and cut off when it is not for him any more.</summary>
    public void OnChanged(VolumeRecord record)
    {
        Volumes.OnChanged(record);
        HashSet<uint> changed = [record.Id];
        foreach (Session session in Sessions.List().Where(s => s.Touches(changed) && !s.MayUse(record))) session.Cut(Session.NotItsVolume);
    }

    /// <summary>Takes a disk out of service; its file stays. Throws <see cref="DiskException"/>.</summary>
    public Task RemoveDiskAsync(Guid id, bool isForced) => Disks.RemoveAsync(id, isForced, store =>
    {
        var volumes = Directory.List().Where(v => v.StoreId == store).Select(v => v.Id).ToHashSet();
        Volumes.Doors.ForgetDisk(store, volumes);
        foreach (Session session in Sessions.List().Where(s => s.Touches(volumes))) session.Cut("the disk was removed");
    });

    /// <summary>Closes all stores at once. A disk that answers nothing for <see cref="Settings.StopWaitSeconds"/> is given up:
    /// what was acknowledged is on it, as after a kill. The loops of those.</summary>
    private async Task<HashSet<LoopThread>> CloseStoresAsync(Action<string> log)
    {
        var stuck = new HashSet<LoopThread>();
        await Task.WhenAll(Stores.All.Where(h => h.Thread.Failure is null).Select(async host =>
        {
            Task<string?> closing = host.CloseAsync();
            ulong answered = host.Answered, waited = 0, limit = (ulong)Settings.StopWaitSeconds * 1_000_000_000;
            for (; !closing.IsCompleted && waited < limit; waited += 20_000_000)
            {
                await Task.WhenAny(closing, Task.Delay(TimeSpan.FromMilliseconds(20)));
                if (host.Answered == answered) continue;
                (answered, waited) = (host.Answered, 0);
            }

            string? fault = closing.IsCompleted ? await closing
                : $"disk {host.Name} ({host.DiskPath}) has answered nothing for {Settings.StopWaitSeconds} s and is given up; nothing "
                    + "acknowledged is lost, it recovers at the next start";
            lock (stuck)
            {
                if (!closing.IsCompleted) stuck.Add(host.Thread);
                if (fault is not null) log(fault);
            }
        }));
        return stuck;
    }

    /// <summary>The loop on which a volume that nobody has opened yet is to live, because it is a LUN of a target: that of the
    /// disk of the target's first volume. Null: its own.</summary>
    private LoopThread? SeatOf(VolumeRecord volume)
    {
        if (Targets.List().FirstOrDefault(t => t.Luns.Any(l => l.VolumeId == volume.Id)) is not { } target) return null;
        foreach (TargetLun lun in target.Luns)
        {
            if (Volumes.Find(lun.VolumeId) is { } known) return known.Thread;
            if (Directory.Find(lun.VolumeId) is { } first && Stores.Find(first.StoreId) is { } host) return host.Thread;
        }

        return null;
    }

    private async Task OpenAsync(int systemdSockets, TlsFiles? tls, Action<string> log)
    {
        if (_threads[0].FallbackReason is { } fallback) Warn($"the aio engine is used: {fallback}");
        MetaEntry? known = await _meta.GetAsync(TokenKey);
        string? knownHash = known is null ? null : System.Text.Encoding.ASCII.GetString(known.Value.Span);
        TokenHash = _data.EnsureToken(knownHash);
        if (TokenHash != knownHash)
        {
            MetaResult kept = await _meta.TransactAsync([], [new MetaChange(TokenKey, System.Text.Encoding.ASCII.GetBytes(TokenHash))]);
            if (kept.Outcome != MetaOutcome.Committed)
                throw new StartException($"the metadata database {_data.MetadataPath} cannot be written; free space or mend its disk");
        }

        await Tasks.LoadAsync();
        await Targets.LoadAsync();
        await Policies.LoadAsync();
        await Tokens.LoadAsync();
        await Tenants.LoadAsync();
        Volumes.Doors.TenantOf = volume => Tenants.OwnerOf(volume.Name)?.Name;
        foreach (TenantRecord tenant in Tenants.List()) ApplyLimits(tenant.Name);
        await Denied.LoadAsync();
        await ScrubRecords.LoadAsync();
        await Volumes.LoadAsync();
        await Disks.OpenAllAsync();
        foreach (string note in await Directory.ReconcileAsync(Stores.All)) Warn(note);
        await Imports.RecoverAsync();
        HandedFiles = HandedFiles.TryOpen(_data.HandedPath, out string? noFiles);
        if (noFiles is not null) log($"files cannot be handed over ({noFiles}); exports and imports go through the admin API");
        await Volumes.OpenReservedAsync();
        foreach (WantedVolume wanted in Settings.CreateVolumes)
        {
            if (Directory.Find(wanted.Name) is not null) continue;
            DirectoryResult created = await Directory.CreateAsync(new CreateVolume(wanted.Name, wanted.SizeBytes));
            if (created.Fault is { Code: "capacity-exceeded" })
            {
                // A first look must not fail because the disk is small; who relies on the room asks for it.
                created = await Directory.CreateAsync(new CreateVolume(wanted.Name, wanted.SizeBytes, Thin: true));
                Warn($"volume '{wanted.Name}' is thin: there is no room for all of its {SizeText.Format(wanted.SizeBytes)}");
            }

            if (created.Fault is { } fault) throw new StartException($"--create-volume {wanted.Name}: {fault.Detail}");
        }

        if (Settings.Stdio is { } export && Directory.Find(export) is null)
            throw new StartException($"--stdio: there is no volume '{export}'; known: {string.Join(", ", Directory.List().Select(v => v.Name))}");
        PublishChanges();
        await ListenAsync(systemdSockets, tls, log);
        PolicyRunner.Start();
        EventWatch.Start();
        Events.Note(EventCatalogue.Started, Environment.MachineName, $"blockd {Program.Version} serves {Settings.DataDir}");
    }

    private void PublishChanges()
    {
        Directory.VolumeChanged = (v, isGone) => Watch.Publish(WatchTypes.Volume, v.Id.ToString(System.Globalization.CultureInfo.InvariantCulture), v.Name, isGone);
        Directory.SnapshotChanged = (v, uuid, name, isGone) => Watch.Publish(WatchTypes.Snapshot, uuid.ToString(), $"{v.Name}@{name}", isGone);
        Targets.Changed = (name, isGone) => Watch.Publish(WatchTypes.Target, name, name, isGone);
        Policies.RecordChanged = (name, isGone) => Watch.Publish(WatchTypes.Policy, name, name, isGone);
        Sessions.Changed = (id, isGone) => Watch.Publish(WatchTypes.Session, id, id, isGone);
        Events.Published += e =>
        {
            string key = e.Id.ToString(System.Globalization.CultureInfo.InvariantCulture);
            Watch.Publish(WatchTypes.Event, key, key, isGone: false);
        };
        Tasks.Changed += id =>
        {
            string key = id.ToString(System.Globalization.CultureInfo.InvariantCulture);
            Watch.Publish(WatchTypes.Task, key, key, Tasks.Find(id) is null);
        };
    }

    private async Task ListenAsync(int systemdSockets, TlsFiles? tls, Action<string> log)
    {
        LoopThread first = _threads[0];
        var options = Settings.Limits.OfNbd() with { TlsMode = Settings.Tls, Tls = tls is null ? null : new TlsUpgrade(first.Loop, () => tls.Current) };
        bool isProven = tls is { Current.Clients: TlsClients.Required };
        _nbd = new NbdFrontEnd(first, Directory, Volumes, Sessions, Meters, options, isProven, Settings.Insecure, Settings.Stdio, log);
        string?[] secrets = [tls is null ? null : Settings.TlsKey, Settings.IscsiChap];
        foreach (string file in secrets.OfType<string>())
        {
            if (File.GetUnixFileMode(file).HasFlag(UnixFileMode.OtherRead))
                Warn($"{file} is readable by everybody on this machine; its mode should be 0600");
        }

        for (int i = 0; i < systemdSockets; i++) _listeners.Add(await _nbd.ListenAsync(SystemdSockets.First + i));
        foreach (ListenAddress address in Settings.Nbd)
        {
            if (systemdSockets == 0 || !Settings.IsNbdDefault) _listeners.Add(await _nbd.ListenAsync(address));
        }

        IscsiAuthentication? chap = Settings.IscsiChap is null ? null : ChapFile.Load(Settings.IscsiChap);
        Catalog = new IscsiCatalog(Directory, Targets, Volumes, Settings, chap);
        _iscsi = new IscsiFrontEnd(first, Catalog, Stores, Volumes, Sessions, Meters, Settings, log);
        foreach (ListenAddress address in Settings.Iscsi)
        {
            try
            {
                _listeners.Add(await _iscsi.ListenAsync(address));
            }
            catch (IOException e) when (Settings.IsIscsiDefault)
            {
                Warn($"iSCSI is not served: {e.Message}"); // nobody asked for it at this address
            }
        }

        if (!Settings.Insecure && Catalog.Portals.FirstOrDefault(p => !p.IsLocal) is { } beyond)
            Warn($"iSCSI at {beyond.EndPoint}: targets without CHAP users, and discovery without, are refused there (--iscsi-chap, pfcli add_chap_user)");
        foreach (ListenerInfo listener in _listeners.Where(l => l.Insecure))
            Warn($"{listener.Protocol} at {listener.Address} is open to everybody who reaches it (--insecure)");
    }

    /// <summary>Adds to what the node warns of.</summary>
    public void Warn(string warning)
    {
        LogTail.Instance.Add(SystemClock.Instance.UtcNow, "warning: " + warning);
        _warnings.Enqueue(warning);
    }
}
