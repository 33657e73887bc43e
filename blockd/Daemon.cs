using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Nbd;
using BlockServer.Storage;

namespace BlockServer.Blockd;

/// <summary>A reason not to start, for the operator.</summary>
internal sealed class StartException(string message) : Exception(message);

/// <summary>Everything of one running daemon, wired together. Made by <see cref="StartAsync"/>, ended by
/// <see cref="StopAsync"/>; both on ordinary threads.</summary>
internal sealed class Daemon
{
    private const string TokenKey = "auth/admin";
    private const ulong StopWaitNanos = 10_000_000_000;

    private readonly DataDirectory _data;
    private readonly SqliteMetaStore _meta;
    private readonly List<LoopThread> _threads;
    private readonly List<string> _warnings = [];
    private readonly List<ListenerInfo> _listeners = [];
    private NbdFrontEnd? _nbd;
    private int _nextStore;

    private Daemon(Settings settings, DataDirectory data, SqliteMetaStore meta, List<LoopThread> threads)
    {
        Settings = settings;
        _data = data;
        _meta = meta;
        _threads = threads;
        Directory = new VolumeDirectory(meta, SystemClock.Instance, new SystemRandom());
        StartedAt = SystemClock.Instance.UtcNow;
    }

    public Settings Settings { get; }

    public VolumeDirectory Directory { get; }

    public StoreSet Stores { get; } = new();

    public Sessions Sessions { get; } = new();

    public Meters Meters { get; } = new();

    public DateTimeOffset StartedAt { get; }

    public string EngineName => _threads[0].Loop.EngineName;

    public string TokenPath => _data.TokenPath;

    /// <summary>SHA-256 of the admin token, hex.</summary>
    public string TokenHash { get; private set; } = "";

    public IReadOnlyList<string> Warnings => _warnings;

    public IReadOnlyList<ListenerInfo> Listeners => _listeners;

    /// <summary>Set when a loop has died of a bug: the daemon must end.</summary>
    public TaskCompletionSource<Exception> LoopFailed { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>Opens everything; serves when it answers. Throws <see cref="StartException"/> or
    /// <see cref="IOException"/>, after closing what it had opened.</summary>
    public static async Task<Daemon> StartAsync(Settings settings, int systemdSockets, Action<string> log)
    {
        // First, so that a wrong file changes nothing anywhere.
        TlsIdentity? tls = settings.TlsCert is null ? null
            : TlsIdentity.Load(settings.TlsCert, settings.TlsKey!, settings.TlsCa, settings.TlsClients, SystemClock.Instance);
        DataDirectory data = DataDirectory.Open(settings.DataDir);
        Daemon? daemon = null;
        try
        {
            SqliteMetaStore meta = SqliteMetaStore.Open(data.MetadataPath);
            var threads = new List<LoopThread>();
            daemon = new Daemon(settings, data, meta, threads);
            for (int i = 0; i < settings.Loops; i++)
            {
                LoopThread thread = LoopFactory.Create(settings.Engine, $"loop-{i}");
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
            throw;
        }
    }

    /// <summary>Tells the list of listeners about one that somebody else made.</summary>
    public void AddListener(ListenerInfo listener) => _listeners.Add(listener);

    /// <summary>Serves NBD on a connected socket until its client leaves; the reason.</summary>
    public Task<string> ServeOneAsync(int fd) => _nbd!.ServeOneAsync(fd);

    /// <summary>Ends sessions after what is in flight, closes the stores, gives the directory free.</summary>
    public async Task StopAsync(Action<string> log)
    {
        if (_nbd is not null) await _nbd.StopAcceptingAsync();
        Sessions.StopAll();
        for (ulong waited = 0; Sessions.Connections > 0 && waited < StopWaitNanos; waited += 20_000_000)
            await Task.Delay(TimeSpan.FromMilliseconds(20));
        foreach (Session session in Sessions.List()) session.Cut("the daemon stops");
        for (int i = 0; Sessions.Connections > 0 && i < 50; i++) await Task.Delay(TimeSpan.FromMilliseconds(20));
        foreach (StoreHost host in Stores.All)
        {
            if (host.Thread.Failure is null && await host.CloseAsync() is { } fault) log(fault);
        }

        foreach (LoopThread thread in _threads) thread.Dispose();
        Directory.Dispose();
        await _meta.DisposeAsync();
        _data.Dispose();
    }

    /// <summary>Puts a new file or device into service. Throws <see cref="IOException"/> with a sentence.</summary>
    public async Task<StoreHost> AddDiskAsync(AddDisk request)
    {
        string path = Path.GetFullPath(request.Path);
        string name = request.Name ?? Path.GetFileNameWithoutExtension(path).ToLowerInvariant();
        if (Stores.All.Any(h => h.Name == name || h.DiskPath == path)) throw new IOException($"a disk {name} at {path} is in service already");
        bool isNewFile = !File.Exists(path);
        if (isNewFile) DiskFile.Create(path, request.SizeBytes ?? throw new IOException($"{path} does not exist; give sizeBytes to make it"));
        StoreHost host = await OpenStoreAsync(path, name, isFormat: true, request.Force || isNewFile);
        await RecordAsync(host);
        await Directory.ReconcileAsync([host]);
        return host;
    }

    /// <summary>Takes an empty store out of service; its file stays.</summary>
    public async Task RemoveDiskAsync(StoreHost host)
    {
        Stores.Remove(host.StoreId);
        await Directory.ForgetAsync(host.StoreId);
        await _meta.TransactAsync([], [new MetaChange(DiskKey(host.StoreId), null)]);
        if (await host.CloseAsync() is { } fault) _warnings.Add(fault);
    }

    private static string DiskKey(Guid id) => "disk/" + id.ToString("D");

    private async Task OpenAsync(int systemdSockets, TlsIdentity? tls, Action<string> log)
    {
        if (_threads[0].FallbackReason is { } fallback) Warn($"the aio engine is used: {fallback}");
        MetaEntry? known = await _meta.GetAsync(TokenKey);
        string? knownHash = known is null ? null : System.Text.Encoding.ASCII.GetString(known.Value.Span);
        TokenHash = _data.EnsureToken(knownHash);
        if (TokenHash != knownHash)
            await _meta.TransactAsync([], [new MetaChange(TokenKey, System.Text.Encoding.ASCII.GetBytes(TokenHash))]);

        await OpenStoresAsync();
        foreach (string note in await Directory.ReconcileAsync(Stores.All)) Warn(note);
        foreach (WantedVolume wanted in Settings.CreateVolumes)
        {
            if (Directory.Find(wanted.Name) is not null) continue;
            DirectoryResult created = await Directory.CreateAsync(new CreateVolume(wanted.Name, wanted.SizeBytes));
            if (created.Fault is { } fault) throw new StartException($"--create-volume {wanted.Name}: {fault.Detail}");
        }

        if (Settings.Stdio is { } export && Directory.Find(export) is null)
            throw new StartException($"--stdio: there is no volume '{export}'; known: {string.Join(", ", Directory.List().Select(v => v.Name))}");
        await ListenAsync(systemdSockets, tls, log);
    }

    private async Task ListenAsync(int systemdSockets, TlsIdentity? tls, Action<string> log)
    {
        LoopThread first = _threads[0];
        var options = new NbdOptions { TlsMode = Settings.Tls, Tls = tls is null ? null : new TlsUpgrade(first.Loop, tls) };
        bool isProven = tls is { Clients: TlsClients.Required };
        _nbd = new NbdFrontEnd(first, Directory, Stores, Sessions, Meters, options, isProven, Settings.Insecure, Settings.Stdio, log);
        if (tls is not null && File.GetUnixFileMode(Settings.TlsKey!).HasFlag(UnixFileMode.OtherRead))
            Warn($"{Settings.TlsKey} is readable by everybody on this machine; its mode should be 0600");
        for (int i = 0; i < systemdSockets; i++) _listeners.Add(await _nbd.ListenAsync(SystemdSockets.First + i));
        foreach (ListenAddress address in Settings.Nbd)
        {
            if (systemdSockets == 0 || !Settings.IsNbdDefault) _listeners.Add(await _nbd.ListenAsync(address));
        }

        foreach (ListenerInfo listener in _listeners.Where(l => l.Insecure))
            Warn($"{listener.Protocol} at {listener.Address} is open to everybody who reaches it (--insecure)");
    }

    private async Task OpenStoresAsync()
    {
        var paths = new SortedDictionary<string, string>(StringComparer.Ordinal); // path to name
        foreach (MetaEntry entry in await _meta.RangeAsync("disk/"))
        {
            DiskRecord record = JsonSerializer.Deserialize(entry.Value.Span, DiskRecordJson.Default.DiskRecord)!;
            paths[record.Path] = record.Name;
        }

        foreach (string path in _data.StoreFiles()) paths.TryAdd(path, Path.GetFileNameWithoutExtension(path));
        foreach ((string path, string name) in paths)
        {
            try
            {
                StoreHost host = await OpenStoreAsync(path, name, isFormat: false, isForced: false);
                await RecordAsync(host);
            }
            catch (IOException e)
            {
                Warn($"disk {name} is not served: {e.Message}");
            }
        }

        if (Stores.All.Count > 0) return;
        if (paths.Count > 0) throw new StartException("no disk could be opened: " + string.Join("; ", _warnings));
        string first = _data.StorePath(0);
        ulong bytes = _data.FirstStoreBytes(Settings.StoreSizeBytes);
        string fresh = first + ".new"; // a crash while it is made must not leave something that looks like a store
        File.Delete(fresh);
        DiskFile.Create(fresh, bytes);
        try
        {
            await FormatAsync(fresh);
            File.Move(fresh, first);
        }
        catch
        {
            File.Delete(fresh);
            throw;
        }

        await RecordAsync(await OpenStoreAsync(first, "store-0", isFormat: false, isForced: false));
    }

    private async Task FormatAsync(string path)
    {
        StoreHost host = await StoreHost.OpenAsync(_threads[0], path, "new", format: true, OptionsOf(force: true));
        if (await host.CloseAsync() is { } fault) throw new StartException(fault);
    }

    private StoreOptions OptionsOf(bool force) => new()
    {
        Durability = Settings.Durability,
        MetadataBudgetBytes = Settings.MetadataRamBytes,
        Force = force,
    };

    private async Task<StoreHost> OpenStoreAsync(string path, string name, bool isFormat, bool isForced)
    {
        LoopThread thread = _threads[_nextStore++ % _threads.Count];
        StoreHost host = await StoreHost.OpenAsync(thread, path, name, isFormat, OptionsOf(isForced));
        if (!Stores.TryAdd(host))
        {
            await host.CloseAsync();
            throw new IOException($"{path} has the identity of a disk in service: it is a copy, and serving both would mix them up");
        }

        if (host.Warning is { } warning) Warn($"disk {name}: {warning}");
        return host;
    }

    private async Task RecordAsync(StoreHost host)
    {
        byte[] value = JsonSerializer.SerializeToUtf8Bytes(new DiskRecord(host.DiskPath, host.Name), DiskRecordJson.Default.DiskRecord);
        await _meta.TransactAsync([], [new MetaChange(DiskKey(host.StoreId), value)]);
    }

    private void Warn(string warning) => _warnings.Add(warning);
}

/// <summary>Where a disk is found; the value of <c>disk/UUID</c>.</summary>
internal sealed record DiskRecord(string Path, string Name);

[System.Text.Json.Serialization.JsonSerializable(typeof(DiskRecord))]
internal sealed partial class DiskRecordJson : System.Text.Json.Serialization.JsonSerializerContext;
