using System.Collections.Concurrent;
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
public sealed partial class VolumeDirectory(IMetaStore meta, IWallClock clock, IRandom random) : IDisposable
{
    private readonly SemaphoreSlim _change = new(1, 1);
    private readonly ConcurrentDictionary<Guid, IVolumeHost> _hosts = [];
    private readonly VolumeTable _table = new();

    /// <summary>Waits so long; between two questions to a metadata store that is away.</summary>
    public required Func<TimeSpan, Task> Delay { get; init; }

    /// <summary>Asked before a volume is made, grows or gets another name; null: nobody is.</summary>
    public IVolumeQuota? Quota { get; set; }

    /// <summary>Every volume that was created and is not being deleted, by name in ordinal order; also those whose store is
    /// not in service.</summary>
    public IReadOnlyList<VolumeRecord> List() => _table.List();

    /// <summary>A volume, or null.</summary>
    public VolumeRecord? Find(string name) => _table.Find(name);

    /// <summary>A volume by its number, or null.</summary>
    public VolumeRecord? Find(uint id) => _table.FindById(id);

    /// <summary>Told of every volume that came, changed or (true) went, after <see cref="Find(string)"/> says so. On any thread; must be quick.</summary>
    public Action<VolumeRecord, bool>? VolumeChanged
    {
        get => _table.Changed;
        set => _table.Changed = value;
    }

    /// <summary>Told of every snapshot that was cut or (true) deleted: its volume, identity and name. As <see cref="VolumeChanged"/>.</summary>
    public Action<VolumeRecord, Guid, string, bool>? SnapshotChanged { get; set; }

    /// <inheritdoc/>
    public void Dispose() => _change.Dispose();

    /// <summary>Creates a volume: on <see cref="CreateVolume.StoreId"/>, else where the most space is neither used nor
    /// promised.</summary>
    public Task<DirectoryResult> CreateAsync(CreateVolume request) => CreateAsync(request, null);

    private async Task<DirectoryResult> CreateAsync(CreateVolume request, ImportRecord? import)
    {
        if (!VolumeName.IsValid(request.Name, out string? reason)) return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "name");
        if (SizeFault(request.SizeBytes) is { } fault) return fault;
        if (request.RepCount != 1)
            return new DirectoryFault(IoStatus.Invalid, "invalid-rep-count", "one node keeps one copy: repCount must be 1", "repCount");
        if (request.IdempotencyKey is { Length: > 128 })
            return new DirectoryFault(IoStatus.Invalid, "invalid-idempotency-key", "the key is longer than 128 characters", "idempotencyKey");
        if (DescriptionFault(request.Description) is { } wordy) return wordy;
        if (request.Export is { } export && (ExportFault(export, request.SizeBytes) ?? ThinFault(request.Thin, export)) is { } odd) return odd;
        if (QosFault(request.Qos) is { } limits) return limits;
        return await ChangeAloneAsync(() => CreateAloneAsync(request, import));
    }

    /// <summary>Changes name, size, export options and description. A shrink needs <see cref="ChangeVolume.Force"/> and
    /// nothing allocated beyond the new end.</summary>
    public async Task<DirectoryResult> ChangeAsync(string name, ChangeVolume change)
    {
        if (change.Name is not null && !VolumeName.IsValid(change.Name, out string? reason))
            return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "name");
        if (change.SizeBytes is { } size && SizeFault(size) is { } fault) return fault;
        if (DescriptionFault(change.Description) is { } wordy) return wordy;
        if (QosFault(change.Qos) is { } limits) return limits;
        return await ChangeAloneAsync(() => ChangeAloneAsync(name, change));
    }

    /// <summary>Deletes a volume; its space comes back in the background. <paramref name="evenIfAbsent"/>: also while its disk
    /// is not in service; what lies there is deleted as soon as the disk is back. <paramref name="withSnapshots"/>: its snapshots
    /// go too; those that clones build on are always in the way.</summary>
    public Task<DirectoryResult> DeleteAsync(string name, uint? id, long? revision, bool evenIfAbsent = false, bool withSnapshots = false) =>
        ChangeAloneAsync(() => DeleteAloneAsync(name, id, revision, evenIfAbsent, withSnapshots));

    private Task<DirectoryResult> ChangeAloneAsync(Func<Task<DirectoryResult>> change) => AloneAsync(change, fault => fault);

    private async Task<T> AloneAsync<T>(Func<Task<T>> change, Func<DirectoryFault, T> refused)
    {
        await _change.WaitAsync();
        try
        {
            await SettleAsync();
            return await change();
        }
        catch (MetaException e)
        {
            return refused(new DirectoryFault(IoStatus.Unavailable, "metadata-unavailable", e.Message));
        }
        finally
        {
            _change.Release();
        }
    }

    private async Task<DirectoryResult> CreateAloneAsync(CreateVolume request, ImportRecord? import)
    {
        if (Repeated(request) is { } repeated) return repeated;
        if (Quota?.FaultOf(request.Name, request.SizeBytes, null, List()) is { } tooMuch) return tooMuch;
        bool isPromised = IsReserved(request.Thin, request.AppendOnly) || request.Export is { Thick: true };
        IVolumeHost? host = await PlaceAsync(request.StoreId);
        if (host is not null && isPromised && request.StoreId is null)
        {
            (IVolumeHost? roomy, ulong most) = await PlaceReservedAsync(request.SizeBytes);
            if (roomy is null) return CapacityFault(request.SizeBytes, most, "sizeBytes");
            host = roomy;
        }

        return host is null
            ? new DirectoryFault(IoStatus.NotFound, "no-disk", "no such disk is in service", "storeId")
            : await CreateOnAsync(request, host, host.CreateAsync, import);
    }

    /// <summary>The answer to a name that is taken: the same volume when it is the same request again. Null when it is free.</summary>
    private DirectoryResult? Repeated(CreateVolume request)
    {
        if (Find(request.Name) is not { } existing) return null;
        bool isSame = request.IdempotencyKey is not null && existing.IdempotencyKey == request.IdempotencyKey
            && existing.SizeBytes == request.SizeBytes && existing.IsAppendOnly == request.AppendOnly;
        return isSame ? existing : NameTaken(request.Name);
    }

    /// <summary>Records a volume, lets <paramref name="make"/> make it on its store, and records that.</summary>
    private async Task<DirectoryResult> CreateOnAsync(
        CreateVolume request, IVolumeHost host, Func<VolumeHead, Task<IoStatus>> make, ImportRecord? import = null, bool isPopulating = false)
    {
        (uint id, MetaEntry? counter) = await NextIdAsync();
        var record = new VolumeRecord(
            id, random.NextGuid(), request.Name, request.SizeBytes, VolumeState.Creating, ExportOf(request.Export ?? new ExportOptions(), request.AppendOnly),
            request.Description, host.StoreId, clock.UtcNow, request.IdempotencyKey, import, IsPopulating: isPopulating,
            IsAppendOnly: request.AppendOnly, Qos: LimitsOf(request.Qos), IsReserved: IsReserved(request.Thin, request.AppendOnly));
        _unsettled.Add(id); // until what follows is known to have happened, or not
        MetaResult written = await CommitAsync(
            [new(CounterKey, counter?.ModRevision ?? 0), new(NameKey(record.Name), 0), new(VolumeKey(id), 0)],
            [new(CounterKey, Number(id)), new(NameKey(record.Name), Number(id)), new(VolumeKey(id), Encode(record))]);
        if (written.Outcome != MetaOutcome.Committed)
        {
            _unsettled.Remove(id);
            return MetaCommit.FaultOf(written.Outcome);
        }

        IoStatus status = await make(HeadOf(record));
        DirectoryFault? fault = status != IoStatus.Ok ? StoreFault(status)
            : record.PromisedBytes == 0 ? null : await PromiseFaultAsync(host, id, record.PromisedBytes);
        if (fault is null)
        {
            MetaResult done = await WriteAsync(record with { State = VolumeState.Ready, Revision = written.Revision });
            if (done.Outcome == MetaOutcome.Committed)
            {
                _unsettled.Remove(id);
                return Show(record with { State = VolumeState.Ready, Revision = done.Revision });
            }

            fault = MetaCommit.FaultOf(done.Outcome);
        }

        await SettleAsync(); // as a start would: a volume that is only being created goes
        return fault;
    }

    private async Task<DirectoryResult> ChangeAloneAsync(string name, ChangeVolume change, bool isImport = false)
    {
        if (Find(name) is not { } old) return NoVolume(name);
        if (!isImport && ImportFault(old) is { } coming) return coming;
        if (ImageFault(old, change) is { } image) return image;
        if (AppendOnlyFault(old, change) is { } appends) return appends;
        if (change.Revision is { } revision && revision != old.Revision) return RevisionFault(old);
        string newName = change.Name ?? old.Name;
        ulong newSize = change.SizeBytes ?? old.SizeBytes;
        bool isRename = newName != old.Name;
        if (isRename && Find(newName) is not null) return NameTaken(newName);
        VolumeRecord wanted = old with
        {
            Name = newName,
            SizeBytes = newSize,
            Export = ExportOf(change.Export ?? old.Export, old.IsAppendOnly),
            Description = change.Description ?? old.Description,
            Qos = change.Qos is null ? old.Qos : LimitsOf(change.Qos),
            IsReserved = change.Thin is { } thin ? !thin : old.IsReserved,
            State = VolumeState.Ready,
        };
        if (change.Image == true) wanted = AsImage(wanted);
        if ((ExportFault(wanted.Export, newSize) ?? ThinFault(change.Thin, wanted.Export)) is { } odd) return odd;
        bool isHeadSame = !isRename && newSize == old.SizeBytes;
        if ((!isHeadSame || wanted.PromisedBytes != old.PromisedBytes) && MoveFault(old) is { } moving) return moving;
        bool isUndone = isImport && newSize == old.Import?.BaseSizeBytes; // what it had before is its own
        if (!isUndone && Quota?.FaultOf(newName, newSize, old, List()) is { } tooMuch) return tooMuch;
        bool isServed = _hosts.TryGetValue(old.StoreId, out IVolumeHost? host);
        if (!isServed && (!isHeadSame || wanted.PromisedBytes > old.PromisedBytes)) return StoreFault(IoStatus.Unavailable);
        if (newSize < old.SizeBytes && !isImport && await ShrinkFaultAsync(host!, old.Id, newSize, change.Force) is { } shrinkFault)
            return shrinkFault;
        if (wanted.PromisedBytes > old.PromisedBytes
            && await PromiseFaultAsync(host!, old.Id, wanted.PromisedBytes, newSize == old.SizeBytes ? "thin" : "sizeBytes") is { } full) return full;
        DirectoryResult result = isHeadSame ? await ChangeRecordAsync(wanted) : await ChangeHeadAsync(host!, old, wanted, isRename);
        if (Find(old.Id) is { } now && wanted.PromisedBytes != old.PromisedBytes) await KeepPromiseAsync(now);
        return result;
    }

    private async Task<DirectoryResult> ChangeRecordAsync(VolumeRecord wanted)
    {
        MetaResult written = await WriteAsync(wanted);
        return written.Outcome == MetaOutcome.Committed ? Show(wanted with { Revision = written.Revision }) : MetaCommit.FaultOf(written.Outcome);
    }

    private async Task<DirectoryResult> ChangeHeadAsync(IVolumeHost host, VolumeRecord old, VolumeRecord wanted, bool isRename)
    {
        string newName = wanted.Name;
        _unsettled.Add(old.Id);
        MetaResult written = await WriteAsync(wanted with { State = VolumeState.Changing }, isRename ? old.Name : null);
        if (written.Outcome != MetaOutcome.Committed)
        {
            _unsettled.Remove(old.Id);
            return MetaCommit.FaultOf(written.Outcome);
        }

        IoStatus status = await host.UpdateAsync(HeadOf(wanted));
        bool isDone = status == IoStatus.Ok;
        // Where the store refused, the old record comes back, and the next start (or settling) renews the head by it.
        VolumeRecord final = (isDone ? wanted : old) with { State = VolumeState.Ready, Revision = written.Revision };
        MetaResult ended = await WriteAsync(final, isRename && !isDone ? newName : null);
        if (ended.Outcome == MetaOutcome.Committed)
        {
            Show(final with { Revision = ended.Revision });
            if (isDone || status is IoStatus.Invalid or IoStatus.NoSpace or IoStatus.Conflict) _unsettled.Remove(old.Id);
        }
        else
        {
            // The record still says what was wanted and that it is being changed: settling carries it through.
            Show(wanted with { State = VolumeState.Changing, Revision = written.Revision });
        }

        return isDone ? Find(newName)! : StoreFault(status);
    }

    private async Task<DirectoryResult> DeleteAloneAsync(string name, uint? id, long? revision, bool evenIfAbsent, bool withSnapshots)
    {
        if (Find(name) is not { } old) return NoVolume(name);
        if (id is { } wanted && wanted != old.Id)
            return new DirectoryFault(IoStatus.Conflict, "id-differs", $"'{name}' is volume {old.Id} now; read it again");
        if (revision is { } expected && expected != old.Revision) return RevisionFault(old);
        if (!_hosts.ContainsKey(old.StoreId) && !evenIfAbsent)
        {
            return new DirectoryFault(
                IoStatus.Unavailable, "disk-unavailable",
                "the volume's disk is not in service; bring it back, or force the deletion: then the data goes when the disk is back");
        }

        if (MoveFault(old) is { } moving) return moving;
        if (await LayerFaultAsync(old, withSnapshots) is { } inTheWay) return inTheWay;
        _unsettled.Add(old.Id);
        MetaResult written = await CommitAsync(
            [new(VolumeKey(old.Id), old.Revision)],
            [new(VolumeKey(old.Id), Encode(old with { State = VolumeState.Deleting })), new(NameKey(old.Name), null)]);
        if (written.Outcome != MetaOutcome.Committed)
        {
            _unsettled.Remove(old.Id);
            return MetaCommit.FaultOf(written.Outcome);
        }

        // From here on it is deleted for good: whatever fails now is finished by the next settling or start.
        _table.Hide(old.Id);
        if (!_hosts.TryGetValue(old.StoreId, out IVolumeHost? host)) return old;
        IoStatus status = await host.DeleteAsync(old.Id);
        if (status is not (IoStatus.Ok or IoStatus.NotFound))
        {
            return new DirectoryFault(
                IoStatus.Unavailable, "delete-unfinished",
                $"the volume is deleted, but its disk does not serve ({status}): its space comes back when the disk does");
        }

        if (await RemoveAsync(old) == MetaOutcome.Committed) _unsettled.Remove(old.Id);
        return old;
    }

    private VolumeRecord Show(VolumeRecord record)
    {
        _table.Show(record);
        return record;
    }

    private static VolumeHead HeadOf(VolumeRecord record) => new(record.Id, record.Uuid, record.Name, record.SizeBytes, record.Epoch)
    {
        IsAppendOnly = record.IsAppendOnly, IsSealed = record.IsSealed,
    };

    private static DirectoryFault? SizeFault(ulong bytes)
    {
        if (bytes is < Units.VolumeBytesMin or > Units.VolumeBytesMax)
            return new DirectoryFault(IoStatus.Invalid, "invalid-size", "a volume has 1 MiB to 64 TiB", "sizeBytes");
        return bytes % Units.SectorBytes == 0 ? null
            : new DirectoryFault(IoStatus.Invalid, "invalid-size", "the size must be a multiple of 512 bytes", "sizeBytes");
    }

    private static DirectoryFault? ExportFault(ExportOptions export, ulong sizeBytes)
    {
        if (export.BlockBytes is not (Units.SectorBytes or Units.BlockBytes))
            return new DirectoryFault(IoStatus.Invalid, "invalid-block-size", "a logical block has 512 or 4096 bytes", "export.blockBytes");
        if (NbdClients.FaultOf(export.NbdClients) is { } wrong) return new DirectoryFault(IoStatus.Invalid, "invalid-nbd-clients", wrong, "export.nbdClients");
        return sizeBytes % (ulong)export.BlockBytes == 0 ? null : new DirectoryFault(
            IoStatus.Invalid, "invalid-size", "the size must be a multiple of the logical block", "sizeBytes");
    }

    private static DirectoryFault? QosFault(QosLimits? limits) => limits?.Fault() is { } fault
        ? new(IoStatus.Invalid, "invalid-qos", fault.Detail, "qos." + fault.Field) : null;

    // Limits that limit nothing are none.
    private static QosLimits? LimitsOf(QosLimits? limits) => limits is { Iops: 0, BytesPerSecond: 0 } ? null : limits;

    private static DirectoryFault? DescriptionFault(string? description) => description is { Length: > 1024 }
        ? new(IoStatus.Invalid, "invalid-description", "the description is longer than 1,024 characters", "description") : null;

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

    private static DirectoryFault NameTaken(string name) =>
        new(IoStatus.Conflict, "name-taken", $"a volume '{name}' exists; choose another name", "name");

    private static DirectoryFault NoVolume(string name) =>
        new(IoStatus.NotFound, "no-such-volume", $"there is no volume '{name}'");

    private static DirectoryFault RevisionFault(VolumeRecord old) =>
        new(IoStatus.Conflict, "revision-differs", $"the volume has revision {old.Revision} now; read it again", "revision");

    private static DirectoryFault StoreFault(IoStatus status) => status switch
    {
        IoStatus.NoSpace => new(status, "no-space", "the disk has no room for another volume"),
        IoStatus.Invalid => new(status, "invalid-size", "the disk cannot hold a volume of this size", "sizeBytes"),
        _ => new(status, "disk-unavailable", $"the disk does not serve ({status}); see pfcli list_disk"),
    };

    private async Task<IVolumeHost?> PlaceAsync(Guid? storeId)
    {
        if (storeId is { } wanted) return _hosts.GetValueOrDefault(wanted);
        IVolumeHost? best = null;
        double bestRoom = 0;
        foreach (IVolumeHost host in _hosts.Values.OrderBy(h => h.StoreId))
        {
            if (IsDraining(host.StoreId)) continue;
            if (await host.FreeBytesAsync() is not { } free) continue;
            // Thin volumes use nothing at first: what is promised counts, or every new one would go to the same disk.
            double room = (double)free - _table.PromisedBytes(host.StoreId);
            if (best is not null && room <= bestRoom) continue;
            best = host;
            bestRoom = room;
        }

        return best;
    }
}
