using System.Globalization;
using System.Text.Json;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>Why the directory refused.</summary>
/// <param name="Status">What kind of refusal.</param>
/// <param name="Code">Stable word for programs.</param>
/// <param name="Detail">A sentence that says what to do.</param>
/// <param name="Field">The field of the request that is wrong, or null.</param>
public sealed record DirectoryFault(IoStatus Status, string Code, string Detail, string? Field = null);

/// <summary>A record, or why there is none.</summary>
public readonly record struct DirectoryResult(VolumeRecord? Volume, DirectoryFault? Fault)
{
    /// <summary>It was done.</summary>
    public static implicit operator DirectoryResult(VolumeRecord volume) => new(volume, null);

    /// <summary>It was refused.</summary>
    public static implicit operator DirectoryResult(DirectoryFault fault) => new(null, fault);
}

/// <summary>
/// Which volumes exist, what they are called and where they lie: records <c>vol/ID</c>, names <c>name/NAME</c> (value: the
/// id) and the counter <c>counter/volume</c> in the metadata store. Changes run one at a time and in two phases, so that a
/// crash anywhere leaves something that <see cref="ReconcileAsync"/> finishes or undoes. Thread-safe; lookups are free.
/// </summary>
public sealed class VolumeDirectory(IMetaStore meta, IWallClock clock, IRandom random) : IDisposable
{
    private const string CounterKey = "counter/volume";

    private readonly SemaphoreSlim _change = new(1, 1);
    private readonly Dictionary<Guid, IVolumeHost> _hosts = [];
    private volatile IReadOnlyDictionary<string, VolumeRecord> _byName = new Dictionary<string, VolumeRecord>();

    /// <summary>Raised after every change, with the mutation lock held: do not call back into the directory.</summary>
    public event Action? Changed;

    /// <summary>Every volume that was created and is not being deleted, by name in ordinal order.</summary>
    public IReadOnlyList<VolumeRecord> List() =>
        [.. _byName.Values.OrderBy(v => v.Name, StringComparer.Ordinal)];

    /// <summary>A volume, or null.</summary>
    public VolumeRecord? Find(string name) => _byName.GetValueOrDefault(name);

    /// <inheritdoc/>
    public void Dispose() => _change.Dispose();

    /// <summary>
    /// Takes the stores into service: finishes or undoes interrupted changes, and adopts volumes that lie on a store and
    /// are unknown to the metadata (a lost database). Answers sentences for the operator. Call once, before serving.
    /// </summary>
    public async Task<IReadOnlyList<string>> ReconcileAsync(IEnumerable<IVolumeHost> hosts)
    {
        await _change.WaitAsync();
        try
        {
            var notes = new List<string>();
            var heads = new SortedDictionary<uint, (VolumeHead Head, IVolumeHost Host)>();
            foreach (IVolumeHost host in hosts)
            {
                _hosts[host.StoreId] = host;
                foreach (VolumeHead head in await host.ListAsync())
                {
                    if (!heads.TryAdd(head.Id, (head, host)))
                        notes.Add($"volume number {head.Id} lies on two stores; the one on {host.StoreId} is not served");
                }
            }

            foreach (VolumeRecord record in await ReadAllAsync()) await RepairAsync(record, heads, notes);
            await ReloadAsync();
            foreach ((VolumeHead head, IVolumeHost host) in heads.Values) await AdoptAsync(head, host, notes);
            await ReloadAsync();
            return notes;
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Takes an empty store out of service: nothing is placed there any more.</summary>
    public async Task ForgetAsync(Guid storeId)
    {
        await _change.WaitAsync();
        _hosts.Remove(storeId);
        _change.Release();
    }

    /// <summary>Creates a volume: on <see cref="CreateVolume.StoreId"/>, else on the store with the most free space.</summary>
    public async Task<DirectoryResult> CreateAsync(CreateVolume request)
    {
        if (!VolumeName.IsValid(request.Name, out string? reason)) return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "name");
        if (SizeFault(request.SizeBytes) is { } fault) return fault;
        if (request.RepCount != 1)
            return new DirectoryFault(IoStatus.Invalid, "invalid-rep-count", "one node keeps one copy: repCount must be 1", "repCount");
        if (request.IdempotencyKey is { Length: > 128 })
            return new DirectoryFault(IoStatus.Invalid, "invalid-idempotency-key", "the key is longer than 128 characters", "idempotencyKey");

        await _change.WaitAsync();
        try
        {
            if (Find(request.Name) is { } existing)
            {
                bool isSame = request.IdempotencyKey is not null && existing.IdempotencyKey == request.IdempotencyKey
                    && existing.SizeBytes == request.SizeBytes;
                return isSame ? existing : new DirectoryFault(
                    IoStatus.Conflict, "name-taken", $"a volume '{request.Name}' exists; choose another name", "name");
            }

            IVolumeHost? host = await PlaceAsync(request.StoreId);
            if (host is null)
                return new DirectoryFault(IoStatus.NotFound, "no-disk", "no such disk is in service", "storeId");
            (uint id, MetaEntry? counter) = await NextIdAsync();
            var record = new VolumeRecord(
                id, random.NextGuid(), request.Name, request.SizeBytes, VolumeState.Creating, request.Export ?? new ExportOptions(),
                request.Description, host.StoreId, clock.UtcNow, request.IdempotencyKey);
            MetaResult written = await meta.TransactAsync(
                [new(CounterKey, counter?.ModRevision ?? 0), new(NameKey(record.Name), 0), new(VolumeKey(id), 0)],
                [new(CounterKey, Number(id)), new(NameKey(record.Name), Number(id)), new(VolumeKey(id), Encode(record))]);
            if (written.Outcome != MetaOutcome.Committed) return MetaFault(written.Outcome);

            IoStatus status = await host.CreateAsync(HeadOf(record));
            if (status != IoStatus.Ok)
            {
                await RemoveAsync(record);
                return StoreFault(status);
            }

            return await FinishAsync(record with { State = VolumeState.Ready });
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Changes name, size, export options and description. A shrink needs <see cref="ChangeVolume.Force"/> and
    /// nothing allocated beyond the new end.</summary>
    public async Task<DirectoryResult> ChangeAsync(string name, ChangeVolume change)
    {
        await _change.WaitAsync();
        try
        {
            if (Find(name) is not { } old) return NoVolume(name);
            if (change.Revision is { } revision && revision != old.Revision) return RevisionFault(old);
            if (change.Name is not null && !VolumeName.IsValid(change.Name, out string? reason))
                return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "name");
            string newName = change.Name ?? old.Name;
            ulong newSize = change.SizeBytes ?? old.SizeBytes;
            if (SizeFault(newSize) is { } sizeFault) return sizeFault;
            bool isRename = newName != old.Name;
            if (isRename && Find(newName) is not null)
                return new DirectoryFault(IoStatus.Conflict, "name-taken", $"a volume '{newName}' exists; choose another name", "name");
            if (!_hosts.TryGetValue(old.StoreId, out IVolumeHost? host)) return StoreFault(IoStatus.Unavailable);
            if (newSize < old.SizeBytes && await ShrinkFaultAsync(host, old.Id, newSize, change.Force) is { } shrinkFault)
                return shrinkFault;

            bool isOnStore = isRename || newSize != old.SizeBytes;
            VolumeRecord record = old with
            {
                Name = newName,
                SizeBytes = newSize,
                Export = change.Export ?? old.Export,
                Description = change.Description ?? old.Description,
                State = isOnStore ? VolumeState.Changing : VolumeState.Ready,
            };
            if (!isOnStore) return await FinishAsync(record);

            MetaResult written = await WriteAsync(record, old.Revision, isRename ? old.Name : null);
            if (written.Outcome != MetaOutcome.Committed) return MetaFault(written.Outcome);
            record = record with { Revision = written.Revision };
            IoStatus status = await host.UpdateAsync(HeadOf(record));
            if (status == IoStatus.Ok) return await FinishAsync(record with { State = VolumeState.Ready });

            await WriteAsync(old, written.Revision, isRename ? newName : null);
            await ReloadAsync();
            return StoreFault(status);
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Deletes a volume; its space comes back in the background.</summary>
    public async Task<DirectoryResult> DeleteAsync(string name, uint? id, long? revision)
    {
        await _change.WaitAsync();
        try
        {
            if (Find(name) is not { } old) return NoVolume(name);
            if (id is { } wanted && wanted != old.Id)
                return new DirectoryFault(IoStatus.Conflict, "id-differs", $"'{name}' is volume {old.Id} now; read it again");
            if (revision is { } expected && expected != old.Revision) return RevisionFault(old);
            if (!_hosts.TryGetValue(old.StoreId, out IVolumeHost? host)) return StoreFault(IoStatus.Unavailable);

            MetaResult written = await WriteAsync(old with { State = VolumeState.Deleting }, old.Revision, null);
            if (written.Outcome != MetaOutcome.Committed) return MetaFault(written.Outcome);
            await ReloadAsync();
            IoStatus status = await host.DeleteAsync(old.Id);
            if (status is not (IoStatus.Ok or IoStatus.NotFound)) return StoreFault(status);
            await RemoveAsync(old);
            return old;
        }
        finally
        {
            _change.Release();
        }
    }

    private static string VolumeKey(uint id) => "vol/" + id.ToString(CultureInfo.InvariantCulture);

    private static string NameKey(string name) => "name/" + name;

    private static byte[] Number(uint id) => JsonSerializer.SerializeToUtf8Bytes(id, VolumeRecordJson.Default.UInt32);

    private static byte[] Encode(VolumeRecord record) =>
        JsonSerializer.SerializeToUtf8Bytes(record, VolumeRecordJson.Default.VolumeRecord);

    private static VolumeHead HeadOf(VolumeRecord record) => new(record.Id, record.Uuid, record.Name, record.SizeBytes, 1);

    private static DirectoryFault? SizeFault(ulong bytes)
    {
        if (bytes is < Units.VolumeBytesMin or > Units.VolumeBytesMax)
            return new DirectoryFault(IoStatus.Invalid, "invalid-size", "a volume has 1 MiB to 64 TiB", "sizeBytes");
        return bytes % Units.SectorBytes == 0 ? null
            : new DirectoryFault(IoStatus.Invalid, "invalid-size", "the size must be a multiple of 512 bytes", "sizeBytes");
    }

    private static async Task<DirectoryFault?> ShrinkFaultAsync(IVolumeHost host, uint id, ulong newSize, bool force)
    {
        ulong used = await host.HighestUsedByteAsync(id);
        if (used > newSize)
        {
            return new DirectoryFault(
                IoStatus.Conflict, "data-beyond-size", $"data lies up to byte {used}; trim or move it first", "sizeBytes");
        }

        return force ? null : new DirectoryFault(
            IoStatus.Conflict, "shrink-not-confirmed", "a smaller size must be confirmed with force", "force");
    }

    private static DirectoryFault NoVolume(string name) =>
        new(IoStatus.NotFound, "no-such-volume", $"there is no volume '{name}'");

    private static DirectoryFault RevisionFault(VolumeRecord old) =>
        new(IoStatus.Conflict, "revision-differs", $"the volume has revision {old.Revision} now; read it again", "revision");

    private static DirectoryFault MetaFault(MetaOutcome outcome) => outcome == MetaOutcome.Failed
        ? new(IoStatus.Conflict, "changed-meanwhile", "the metadata changed meanwhile; try again")
        : new(IoStatus.Unavailable, "metadata-unavailable", "the metadata database failed; see the daemon's log");

    private static DirectoryFault StoreFault(IoStatus status) => status switch
    {
        IoStatus.NoSpace => new(status, "no-space", "the disk has no room for another volume"),
        IoStatus.Invalid => new(status, "invalid-size", "the disk cannot hold a volume of this size", "sizeBytes"),
        _ => new(status, "disk-unavailable", $"the disk does not serve ({status}); see pfcli list_disk"),
    };

    private async Task RepairAsync(
        VolumeRecord record, SortedDictionary<uint, (VolumeHead Head, IVolumeHost Host)> heads, List<string> notes)
    {
        bool isThere = heads.TryGetValue(record.Id, out (VolumeHead Head, IVolumeHost Host) found)
            && found.Head.Uuid == record.Uuid;
        bool isStoreHere = _hosts.ContainsKey(record.StoreId);
        switch (record.State)
        {
            case VolumeState.Creating when isThere || isStoreHere:
            case VolumeState.Deleting when isThere || isStoreHere:
                if (isThere && await found.Host.DeleteAsync(record.Id) != IoStatus.Ok)
                {
                    notes.Add($"volume '{record.Name}' could not be deleted from its disk");
                    heads.Remove(record.Id);
                    return;
                }

                heads.Remove(record.Id);
                await RemoveAsync(record);
                return;
            case VolumeState.Ready or VolumeState.Changing when isThere:
                VolumeHead head = HeadOf(record) with { Epoch = found.Head.Epoch };
                IoStatus status = head == found.Head ? IoStatus.Ok : await found.Host.UpdateAsync(head);
                if (status != IoStatus.Ok) notes.Add($"the head of volume '{record.Name}' could not be renewed: {status}");
                else if (record.State == VolumeState.Changing || record.StoreId != found.Host.StoreId)
                    await WriteAsync(record with { State = VolumeState.Ready, StoreId = found.Host.StoreId }, record.Revision, null);
                heads.Remove(record.Id);
                return;
            default:
                notes.Add($"volume '{record.Name}' (number {record.Id}) was not found on any disk in service");
                return;
        }
    }

    private async Task AdoptAsync(VolumeHead head, IVolumeHost host, List<string> notes)
    {
        if ((await meta.GetAsync(VolumeKey(head.Id))) is not null)
        {
            notes.Add($"a volume '{head.Name}' on disk {host.StoreId} has the number of another volume; it is not served");
            return;
        }

        string name = head.Name;
        if (Find(name) is not null || !VolumeName.IsValid(name, out _)) name = $"rescued-{head.Id}";
        var record = new VolumeRecord(
            head.Id, head.Uuid, name, head.SizeBytes, VolumeState.Changing, new ExportOptions(), null, host.StoreId, clock.UtcNow, null);
        (uint next, MetaEntry? counter) = await NextIdAsync();
        MetaResult written = await meta.TransactAsync(
            [new(CounterKey, counter?.ModRevision ?? 0), new(NameKey(name), 0), new(VolumeKey(head.Id), 0)],
            [new(CounterKey, Number(Math.Max(next - 1, head.Id))), new(NameKey(name), Number(head.Id)), new(VolumeKey(head.Id), Encode(record))]);
        if (written.Outcome != MetaOutcome.Committed)
        {
            notes.Add($"volume '{head.Name}' was found on disk {host.StoreId} but could not be recorded");
            return;
        }

        if (name != head.Name) await host.UpdateAsync(head with { Name = name });
        await FinishAsync(record with { State = VolumeState.Ready, Revision = written.Revision });
        notes.Add($"volume '{name}' (number {head.Id}) was unknown to the metadata and has been adopted from disk {host.StoreId}");
    }

    private async Task<IVolumeHost?> PlaceAsync(Guid? storeId)
    {
        if (storeId is { } wanted) return _hosts.GetValueOrDefault(wanted);
        IVolumeHost? best = null;
        ulong bestFree = 0;
        foreach (IVolumeHost host in _hosts.Values.OrderBy(h => h.StoreId))
        {
            ulong free = await host.FreeBytesAsync();
            if (best is not null && free <= bestFree) continue;
            best = host;
            bestFree = free;
        }

        return best;
    }

    private async Task<(uint Id, MetaEntry? Counter)> NextIdAsync()
    {
        MetaEntry? counter = await meta.GetAsync(CounterKey);
        uint last = counter is null ? 0 : JsonSerializer.Deserialize(counter.Value.Span, VolumeRecordJson.Default.UInt32);
        return (checked(last + 1), counter);
    }

    /// <summary>Writes a record and, on a rename, moves the name's key from <paramref name="oldName"/>.</summary>
    private async Task<MetaResult> WriteAsync(VolumeRecord record, long revision, string? oldName)
    {
        var compares = new List<MetaCompare> { new(VolumeKey(record.Id), revision) };
        var changes = new List<MetaChange> { new(VolumeKey(record.Id), Encode(record)) };
        if (oldName is not null)
        {
            compares.Add(new MetaCompare(NameKey(record.Name), 0));
            changes.Add(new MetaChange(NameKey(record.Name), Number(record.Id)));
            changes.Add(new MetaChange(NameKey(oldName), null));
        }

        return await meta.TransactAsync(compares, changes);
    }

    private async Task<DirectoryResult> FinishAsync(VolumeRecord record)
    {
        MetaEntry? current = await meta.GetAsync(VolumeKey(record.Id));
        MetaResult written = await WriteAsync(record, current?.ModRevision ?? 0, null);
        await ReloadAsync();
        return written.Outcome == MetaOutcome.Committed && Find(record.Name) is { } done ? done : MetaFault(written.Outcome);
    }

    private async Task RemoveAsync(VolumeRecord record)
    {
        await meta.TransactAsync([], [new(VolumeKey(record.Id), null), new(NameKey(record.Name), null)]);
        await ReloadAsync();
    }

    private async Task<List<VolumeRecord>> ReadAllAsync()
    {
        var records = new List<VolumeRecord>();
        foreach (MetaEntry entry in await meta.RangeAsync("vol/"))
        {
            VolumeRecord record = JsonSerializer.Deserialize(entry.Value.Span, VolumeRecordJson.Default.VolumeRecord)
                ?? throw new InvalidDataException($"the metadata of {entry.Key} are empty");
            records.Add(record with { Revision = entry.ModRevision });
        }

        return records;
    }

    private async Task ReloadAsync()
    {
        _byName = (await ReadAllAsync())
            .Where(r => r.State is VolumeState.Ready or VolumeState.Changing)
            .ToDictionary(r => r.Name, StringComparer.Ordinal);
        Changed?.Invoke();
    }
}
