using System.Collections.Immutable;
using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Storage;

namespace BlockServer.Blockd;

/// <summary>Why a disk was not added or removed.</summary>
internal sealed class DiskException(int status, string code, string message, string? field = "path") : IOException(message)
{
    /// <summary>HTTP status.</summary>
    public int Status { get; } = status;

    /// <summary>Stable word for programs.</summary>
    public string Code { get; } = code;

    /// <summary>The wrong field of the request, or null.</summary>
    public string? Field { get; } = field;
}

/// <summary>
/// The disks of this node: which store lies where (<c>disk/UUID</c> in the metadata), which are in service, and why the
/// others are not. Nothing is written to a medium before it is known what lies on it. Thread-safe; changes run one at a
/// time.
/// </summary>
internal sealed class Disks(
    Settings settings, DataDirectory data, IMetaStore meta, VolumeDirectory directory, IReadOnlyList<LoopThread> threads,
    Action<string> warn, StartWatch watch, Func<IFile, IFile>? layer) : IDisposable
{
    private const string ClusterKey = "cluster/uuid";
    private const string FreshSuffix = ".blockd-new";

    private readonly SemaphoreSlim _change = new(1, 1);
    private ImmutableDictionary<Guid, AbsentDisk> _absent = ImmutableDictionary<Guid, AbsentDisk>.Empty;
    private int _nextThread;
    private int _storesAtStart = 1;

    /// <summary>Those in service.</summary>
    public StoreSet Stores { get; } = new();

    /// <summary>Those that belong here and are not in service, by name.</summary>
    public IReadOnlyList<AbsentDisk> Absent => [.. _absent.Values.OrderBy(d => d.Name, StringComparer.Ordinal)];

    /// <summary>Identity of the cluster, in every superblock. Set by <see cref="OpenAllAsync"/>.</summary>
    public Guid ClusterId { get; private set; }

    /// <inheritdoc/>
    public void Dispose() => _change.Dispose();

    /// <summary>A disk that is not in service, or null.</summary>
    public AbsentDisk? FindAbsent(Guid id) => _absent.GetValueOrDefault(id);

    /// <summary>Opens every disk that can be opened; makes the first one on a node that never had any. Call once.</summary>
    public async Task OpenAllAsync()
    {
        Dictionary<Guid, DiskRecord> records = await ReadRecordsAsync();
        var faults = new SortedDictionary<string, string>(StringComparer.Ordinal); // path to reason
        var found = new SortedDictionary<string, Superblock>(StringComparer.Ordinal); // path to store
        foreach (string path in records.Values.Where(r => !r.IsRemoved).Select(r => r.Path)
            .Concat(data.StoreFiles()).Distinct(StringComparer.Ordinal))
        {
            watch.DiskPath = path;
            try
            {
                DiskProbe probe = await DiskProbe.LookAsync(threads[0], path);
                if (probe.Store is { } store) found.Add(path, store);
                else faults.Add(path, $"{path}: {probe.Fault ?? "it is empty: the store that was here is gone"}");
            }
            catch (IOException e)
            {
                faults.Add(path, e.Message);
            }
        }

        _storesAtStart = Math.Max(1, found.Count);
        await EstablishClusterAsync(found);
        foreach (IGrouping<Guid, (string Path, Superblock Store)> same in found.Select(f => (Path: f.Key, Store: f.Value)).GroupBy(f => f.Store.StoreUuid))
            await OpenFoundAsync(same.Key, [.. same], records, faults);
        foreach ((Guid id, DiskRecord record) in records)
        {
            if (record.IsRemoved || Stores.Find(id) is not null || _absent.ContainsKey(id)) continue;
            string state = File.Exists(record.Path) ? "refused" : "missing";
            string reason = faults.GetValueOrDefault(record.Path)
                ?? $"{record.Path} holds another disk ({found[record.Path].StoreUuid}), not this one";
            Miss(new AbsentDisk(id, record.Name, record.Path, state, reason));
        }

        foreach ((string path, string fault) in faults)
        {
            if (records.Values.All(r => r.Path != path)) warn($"a store file in the data directory is not served: {fault}");
        }

        if (records.Count == 0 && found.Count == 0 && faults.Count == 0) await MakeFirstAsync();
    }

    /// <summary>
    /// Puts a file or device into service. What carries a store of this cluster is attached as it is, with its volumes; a
    /// blank medium is formatted; everything else is refused unless forced. Throws <see cref="DiskException"/>.
    /// </summary>
    public async Task<StoreHost> AddAsync(AddDisk request)
    {
        await _change.WaitAsync();
        try
        {
            return await AddAloneAsync(request);
        }
        catch (IOException e) when (e is not DiskException)
        {
            throw new DiskException(409, "disk-refused", e.Message);
        }
        catch (MetaException e)
        {
            throw new DiskException(503, "metadata-unavailable", e.Message, null);
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Takes a disk out of service; what lies on it stays. Refused while volumes lie there unless
    /// <paramref name="isForced"/>. <paramref name="cut"/> ends the sessions of its volumes. Throws <see cref="DiskException"/>.</summary>
    public async Task RemoveAsync(Guid id, bool isForced, Action<Guid> cut)
    {
        await _change.WaitAsync();
        try
        {
            StoreHost? host = Stores.Find(id);
            AbsentDisk? absent = FindAbsent(id);
            if (host is null && absent is null) throw new DiskException(404, "no-such-disk", $"there is no disk '{id}'", null);
            // A disk that does not answer may keep whoever has asked it for ever: then it is given up.
            Task<DirectoryFault?> forgetting = directory.ForgetAsync(id, isForced);
            if (host is not null && await Task.WhenAny(forgetting, Task.Delay(StopWait)) != forgetting) host.GiveUp();
            if (await forgetting is { } fault) throw new DiskException(409, fault.Code, fault.Detail, null);
            try
            {
                await RecordAsync(id, new DiskRecord(host?.DiskPath ?? absent!.Path, host?.Name ?? absent!.Name, IsRemoved: true));
            }
            catch (Exception e) when (e is DiskException or MetaException)
            {
                if (host is not null) await directory.ReconcileAsync([host]);
                throw new DiskException(503, "metadata-unavailable", e.Message, null);
            }

            ImmutableInterlocked.TryRemove(ref _absent, id, out _);
            if (host is null) return;
            Stores.Remove(id);
            directory.SetDraining(id, false);
            cut(id);
            Task<string?> closing = host.CloseAsync();
            ulong answered = host.Answered;
            // As long as it answers at all it may take its time.
            while (await Task.WhenAny(closing, Task.Delay(StopWait)) != closing && host.Answered != answered) answered = host.Answered;
            host.GiveUp();
            string? trouble = closing.IsCompleted ? await closing
                : $"disk {host.Name} ({host.DiskPath}) answers nothing and is given up; what was acknowledged is on it, and it can be added again after a restart";
            if (trouble is not null) warn(trouble);
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Writes down that a disk is to be emptied, or not any more. Throws <see cref="DiskException"/>.</summary>
    public async Task MarkDrainingAsync(Guid id, bool isDraining)
    {
        await _change.WaitAsync();
        try
        {
            StoreHost host = Stores.Find(id) ?? throw new DiskException(404, "no-such-disk", $"there is no disk '{id}' in service", null);
            await RecordAsync(id, new DiskRecord(host.DiskPath, host.Name, IsDraining: isDraining));
            directory.SetDraining(id, isDraining);
        }
        catch (MetaException e)
        {
            throw new DiskException(503, "metadata-unavailable", e.Message, null);
        }
        finally
        {
            _change.Release();
        }
    }

    private TimeSpan StopWait => TimeSpan.FromSeconds(settings.StopWaitSeconds);

    private static string DiskKey(Guid id) => "disk/" + id.ToString("D");

    private async Task<Dictionary<Guid, DiskRecord>> ReadRecordsAsync()
    {
        var records = new Dictionary<Guid, DiskRecord>();
        foreach (MetaEntry entry in await meta.RangeAsync("disk/"))
        {
            (Guid id, DiskRecord record) = DecodeRecord(entry);
            records.Add(id, record);
        }

        return records;
    }

    /// <summary>Reads one record. Throws <see cref="InvalidDataException"/> with its key.</summary>
    internal static (Guid Id, DiskRecord Record) DecodeRecord(MetaEntry entry)
    {
        DiskRecord? record = null;
        string what = "it is empty";
        try
        {
            record = JsonSerializer.Deserialize(entry.Value.Span, DiskRecordJson.Default.DiskRecord);
        }
        catch (JsonException e)
        {
            what = e.Message;
        }

        bool isWhole = Guid.TryParse(entry.Key["disk/".Length..], out Guid id) & record is { Path: not null, Name: not null };
        return isWhole ? (id, record!) : throw new InvalidDataException($"the metadata of {entry.Key} are damaged ({what})");
    }

    /// <summary>Reads the cluster's identity; without one (a first start, or a lost database) takes that of the stores in the
    /// data directory, else draws one.</summary>
    private async Task EstablishClusterAsync(SortedDictionary<string, Superblock> found)
    {
        if (await meta.GetAsync(ClusterKey) is { } known)
        {
            ClusterId = Guid.TryParse(System.Text.Encoding.ASCII.GetString(known.Value.Span), out Guid cluster)
                ? cluster : throw new InvalidDataException($"the metadata of {ClusterKey} are damaged");
            return;
        }

        Guid[] clusters = [.. found.Values.Select(s => s.ClusterUuid).Where(c => c != Guid.Empty).Distinct()];
        if (clusters.Length > 1)
        {
            throw new StartException(
                $"{settings.DataDir} holds stores of {clusters.Length} clusters ({string.Join(", ", clusters)}) and no metadata that say "
                + "which is ours; move the foreign ones away");
        }

        ClusterId = clusters.Length == 1 ? clusters[0] : new SystemRandom().NextGuid();
        MetaResult written = await meta.TransactAsync(
            [new(ClusterKey, 0)], [new(ClusterKey, System.Text.Encoding.ASCII.GetBytes(ClusterId.ToString("D")))]);
        if (written.Outcome != MetaOutcome.Committed)
            throw new StartException($"the metadata database {data.MetadataPath} cannot be written; free space or mend the disk");
    }

    private async Task OpenFoundAsync(
        Guid id, IReadOnlyList<(string Path, Superblock Store)> places, Dictionary<Guid, DiskRecord> records, SortedDictionary<string, string> faults)
    {
        records.TryGetValue(id, out DiskRecord? record);
        if (record is { IsRemoved: true }) return; // the operator took it out; it stays out until it is added again
        string path = places[0].Path;
        string name = record?.Name ?? NameFor(path, null);
        if (places.Count > 1)
        {
            string copies = string.Join(" and ", places.Select(p => p.Path));
            Miss(new AbsentDisk(id, name, path, "refused", $"{copies} carry the same identity: one is a copy; take it away and add the other"));
            return;
        }

        Guid cluster = places[0].Store.ClusterUuid;
        if (cluster != Guid.Empty && cluster != ClusterId)
        {
            string fault = $"{path} belongs to another cluster ({cluster}), not to this one ({ClusterId})";
            if (record is null) faults.Add(path, fault);
            else Miss(new AbsentDisk(id, name, path, "refused", fault));
            return;
        }

        try
        {
            StoreHost host = await OpenAsync(path, name);
            if (record is null || record.Path != path) await RecordAsync(id, new DiskRecord(path, name, IsDraining: record?.IsDraining ?? false));
            if (record is { IsDraining: true }) directory.SetDraining(id, true);
            if (host.Warning is { } warning) warn($"disk {name}: {warning}");
        }
        catch (IOException e)
        {
            Miss(new AbsentDisk(id, name, path, "refused", e.Message));
        }
    }

    private void Miss(AbsentDisk disk)
    {
        ImmutableInterlocked.Update(ref _absent, (all, d) => all.SetItem(d.Id, d), disk);
        warn($"disk {disk.Name} is not served: {disk.Reason}");
    }

    private async Task MakeFirstAsync()
    {
        string path = data.StorePath(0);
        await MakeFileAsync(path, data.FirstStoreBytes(settings.StoreSizeBytes));
        StoreHost host = await OpenAsync(path, "store-0");
        await RecordAsync(host.StoreId, new DiskRecord(path, host.Name));
    }

    private async Task<StoreHost> AddAloneAsync(AddDisk request)
    {
        string path = Path.GetFullPath(request.Path);
        data.CheckMayHoldStore(path);
        if (Stores.All.FirstOrDefault(h => h.DiskPath == path) is { } served)
            throw new DiskException(409, "disk-in-service", $"{path} is in service already, as disk {served.Name}");
        bool isNew = !File.Exists(path);
        if (isNew && request.SizeBytes is null)
            throw new DiskException(409, "no-such-file", $"{path} does not exist; give a size to make a file there");
        if (isNew && (request.SizeBytes % Units.MiB != 0 || request.SizeBytes is 0 or > 16 * Units.TiB))
            throw new DiskException(400, "invalid-size", "a file is made in whole MiB, at most 16 TiB", "sizeBytes");
        if (isNew) await MakeFileAsync(path, request.SizeBytes!.Value);

        DiskProbe probe = await DiskProbe.LookAsync(threads[0], path);
        if (!isNew && request.SizeBytes is { } bytes && bytes != probe.SizeBytes)
            throw new DiskException(409, "size-differs", $"{path} exists with {probe.SizeBytes} bytes; leave the size out", "sizeBytes");
        Superblock? store = await ToAttachAsync(probe, request.Force) ? probe.Store : null;
        if (store is null)
        {
            await FormatAsync(path);
            store = (await DiskProbe.LookAsync(threads[0], path)).Store
                ?? throw new DiskException(409, "disk-refused", $"{path} does not keep what was written to it");
        }

        Guid id = store.Value.StoreUuid;
        Dictionary<Guid, DiskRecord> records = await ReadRecordsAsync();
        string name = NameFor(path, request.Name ?? records.GetValueOrDefault(id)?.Name, isWanted: request.Name is not null, besides: id);
        StoreHost host = await OpenAsync(path, name);
        try
        {
            await RecordAsync(id, new DiskRecord(path, name));
            foreach (string note in await directory.ReconcileAsync([host])) warn(note);
        }
        catch
        {
            Stores.Remove(id);
            await directory.ForgetAsync(id, withVolumes: true);
            if (await host.CloseAsync() is { } trouble) warn(trouble);
            throw;
        }

        ImmutableInterlocked.TryRemove(ref _absent, id, out _);
        if (host.Warning is { } warning) warn($"disk {name}: {warning}");
        return host;
    }

    /// <summary>True: what lies there is ours and is attached. False: it may be formatted. Else it throws.</summary>
    private async Task<bool> ToAttachAsync(DiskProbe probe, bool isForced)
    {
        string path = probe.Path;
        if (probe.Store is { } store)
        {
            // Formatting a copy would be harmless, but somebody who adds one is mistaken about which disk this is.
            if (Stores.Find(store.StoreUuid) is { } twin)
            {
                throw new DiskException(
                    409, "disk-is-a-copy", $"{path} has the identity of disk {twin.Name} ({twin.DiskPath}): it is a copy; take it away or wipe it first");
            }

            if (isForced) return false;
            if (store.ClusterUuid != Guid.Empty && store.ClusterUuid != ClusterId)
            {
                throw new DiskException(
                    409, "other-cluster", $"{path} belongs to another cluster ({store.ClusterUuid}); force destroys what lies on it");
            }

            await CheckMovedAsync(store.StoreUuid, path);
            return true;
        }

        if (probe.Fault is null || isForced) return false;
        throw new DiskException(
            409, probe.IsDamagedStore ? "damaged-store" : "not-blank",
            $"{path}: {probe.Fault}; " + (probe.IsDamagedStore ? "look at it with pfinspect; " : "") + "force destroys what lies there");
    }

    // A copy is attached in the place of the disk that was recorded: refuse it while that one is still there.
    private async Task CheckMovedAsync(Guid id, string path)
    {
        if ((await ReadRecordsAsync()).GetValueOrDefault(id) is not { } record || record.Path == path || !File.Exists(record.Path)) return;
        DiskProbe there;
        try
        {
            there = await DiskProbe.LookAsync(threads[0], record.Path);
        }
        catch (IOException)
        {
            return; // what cannot be read is not served either
        }

        bool isOneMedium = Path.GetFullPath(File.ResolveLinkTarget(path, true)?.FullName ?? path)
            == Path.GetFullPath(File.ResolveLinkTarget(record.Path, true)?.FullName ?? record.Path);
        if (!isOneMedium && there.Store?.StoreUuid == id)
        {
            throw new DiskException(
                409, "disk-is-a-copy", $"{path} and {record.Path} carry the same identity: one is a copy; take it away, then add the other");
        }
    }

    private async Task MakeFileAsync(string path, ulong bytes)
    {
        string fresh = path + FreshSuffix; // a crash while it is made must not leave something that looks like a store
        File.Delete(fresh);
        DiskFile.Create(fresh, bytes);
        try
        {
            await FormatAsync(fresh);
            File.Move(fresh, path);
            DiskFile.SyncDirectory(Path.GetDirectoryName(path)!);
        }
        catch
        {
            File.Delete(fresh);
            throw;
        }
    }

    private Task FormatAsync(string path) => StoreHost.FormatAsync(threads[0], path, Options with { Force = true });

    private StoreOptions Options => new()
    {
        ProtectPercent = settings.WriteProtectPercent,
        Durability = settings.Durability,
        // In equal shares; a disk that is added later gets one more until the next start.
        MetadataBudgetBytes = settings.MetadataRamBytes / (ulong)_storesAtStart,
        ClusterUuid = ClusterId,
        RelayoutBytesPerSecond = settings.RelayoutBytesPerSecond,
        AwaitsPromises = true,
    };

    private async Task<StoreHost> OpenAsync(string path, string name)
    {
        LoopThread thread = threads[_nextThread++ % threads.Count];
        watch.DiskPath = path;
        StoreHost host = await StoreHost.OpenAsync(thread, path, name, Options, layer);
        watch.DiskPath = null;
        if (Stores.TryAdd(host)) return host;
        await host.CloseAsync();
        throw new DiskException(409, "disk-is-a-copy", $"{path} has the identity of a disk in service: it is a copy; take it away");
    }

    private async Task RecordAsync(Guid id, DiskRecord record)
    {
        byte[] value = JsonSerializer.SerializeToUtf8Bytes(record, DiskRecordJson.Default.DiskRecord);
        MetaResult written = await meta.TransactAsync([], [new MetaChange(DiskKey(id), value)]);
        if (written.Outcome == MetaOutcome.Committed) return;
        if (await meta.GetAsync(DiskKey(id)) is { } now && now.Value.Span.SequenceEqual(value)) return;
        throw new DiskException(503, "metadata-unavailable", "the metadata database cannot be written; free space or mend its disk", null);
    }

    /// <summary>The name that was asked for, else one made from the path; unique among the disks.</summary>
    private string NameFor(string path, string? wanted, bool isWanted = false, Guid besides = default)
    {
        var taken = Stores.All.Where(h => h.StoreId != besides).Select(h => h.Name)
            .Concat(_absent.Values.Where(d => d.Id != besides).Select(d => d.Name)).ToHashSet(StringComparer.Ordinal);
        if (wanted is not null && !taken.Contains(wanted)) return wanted;
        if (isWanted) throw new DiskException(409, "name-taken", $"a disk '{wanted}' exists; choose another name", "name");
        string stem = string.Concat(Path.GetFileNameWithoutExtension(path).ToLowerInvariant()
            .Select(c => c is (>= 'a' and <= 'z') or (>= '0' and <= '9') or '.' or '_' or '-' ? c : '-')).TrimStart('.', '_', '-');
        if (stem.Length == 0) stem = "disk";
        if (stem.Length > 56) stem = stem[..56];
        string name = stem;
        for (int i = 2; taken.Contains(name); i++) name = $"{stem}-{i}";
        return name;
    }
}
