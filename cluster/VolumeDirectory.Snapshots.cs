using System.Globalization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

// Snapshots: the store alone says which there are. The metadata add what a store does not keep (SnapshotRecord).
public sealed partial class VolumeDirectory
{
    /// <summary>The snapshots of a volume, oldest first. Throws <see cref="MetaException"/>.</summary>
    public async Task<SnapshotResult> SnapshotsAsync(VolumeRecord volume)
    {
        if (await LayersAsync(volume) is not { } layers) return AwayFault();
        var records = new Dictionary<Guid, SnapshotRecord>();
        foreach (MetaEntry entry in await meta.RangeAsync(SnapshotRecord.PrefixOf(volume.Id)))
        {
            if (SnapshotRecord.TryDecode(entry) is { } record) records[record.Uuid] = record;
        }

        return new([.. layers.Snapshots.Where(s => !_half.ContainsKey(s.Uuid) && !_cutForMove.ContainsKey(s.Uuid)).Select(s => new VolumeSnapshot(volume, s, records.GetValueOrDefault(s.Uuid)))], null);
    }

    /// <summary>The layers of a volume, or null when its disk does not serve it.</summary>
    public async Task<VolumeLayers?> LayersAsync(VolumeRecord volume) =>
        _hosts.TryGetValue(volume.StoreId, out IVolumeHost? host) ? await host.LayersAsync(volume.Id) : null;

    /// <summary>Cuts a snapshot of each volume, at one moment. <paramref name="label"/>: whether clean, and the policy that
    /// asks.</summary>
    public Task<SnapshotResult> CutAsync(string name, IReadOnlyList<string> volumes, SnapshotLabel label) => AloneAsync(async () =>
    {
        if (!VolumeName.IsValid(name, out string? reason))
            return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "name");
        if (volumes.Count == 0 || volumes.Any(v => v is null) || volumes.Distinct(StringComparer.Ordinal).Count() != volumes.Count)
            return new DirectoryFault(IoStatus.Invalid, "invalid-volumes", "name at least one volume, and each once", "volumes");
        var members = new List<VolumeRecord>();
        foreach (string volume in volumes)
        {
            if (Find(volume) is not { } record) return NoVolume(volume);
            if (await CutFaultAsync(record, name) is { } fault) return fault;
            members.Add(record);
        }

        return await CutAloneAsync(name, members, label);
    }, fault => fault);

    /// <summary>Deletes a snapshot; its space comes back in the background. <paramref name="uuid"/>: only if it is this one.</summary>
    public Task<SnapshotResult> DeleteSnapshotAsync(string volume, string snapshot, Guid? uuid) => AloneAsync(async () =>
    {
        (VolumeSnapshot? found, DirectoryFault? fault) = await FindSnapshotAsync(volume, snapshot);
        if (found is null) return fault!;
        if (uuid is { } wanted && wanted != found.Info.Uuid)
            return new DirectoryFault(IoStatus.Conflict, "uuid-differs", $"'{volume}@{snapshot}' is another snapshot now; read it again", "uuid");
        if (ImportFault(found.Volume) is { } coming) return coming;
        if (MoveFault(found.Volume) is { } moving) return moving;
        if (CloneFault(found) is { } inTheWay) return inTheWay;
        IoStatus status = await _hosts[found.Volume.StoreId].DeleteSnapshotAsync(found.Volume.Id, found.Info.Uuid);
        if (status is not (IoStatus.Ok or IoStatus.NotFound)) return SnapshotFault(status);
        // Where this is not written, the next start does it.
        await CommitAsync([], [new MetaChange(SnapshotRecord.PrefixOf(found.Volume.Id) + found.Info.Uuid.ToString("N"), null)]);
        SnapshotChanged?.Invoke(found.Volume, found.Info.Uuid, found.Info.Name, true);
        return new SnapshotResult([found], null);
    }, fault => fault);

    /// <summary>Makes a volume what its snapshot is. What it was is kept as a snapshot, the one of the answer, named
    /// <paramref name="safetyName"/> or by the time.</summary>
    public Task<SnapshotResult> RollBackAsync(string volume, string snapshot, string? safetyName) => AloneAsync(async () =>
    {
        (VolumeSnapshot? found, DirectoryFault? fault) = await FindSnapshotAsync(volume, snapshot);
        if (found is null) return fault!;
        VolumeRecord old = found.Volume;
        if ((ImageFault(old) ?? SealedFault(old)) is { } image) return image;
        if (MoveFault(old) is { } moving) return moving;
        if (Quota?.FaultOf(old.Name, found.Info.SizeBytes, old, List()) is { } tooMuch) return tooMuch;
        IVolumeHost host = _hosts[old.StoreId];
        string name = safetyName ?? await FreeNameAsync(old, "before-rollback-" + Now());
        if (!VolumeName.IsValid(name, out string? reason)) return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "safetyName");
        if (await CutFaultAsync(old, name) is { } inTheWay) return inTheWay with { Field = "safetyName" };
        if (old.PromisedBytes != 0 && found.Info.SizeBytes > old.SizeBytes
            && await PromiseFaultAsync(host, old.Id, found.Info.SizeBytes, "name") is { } full) return full;
        var safety = new SnapshotRequest(old.Id, random.NextGuid(), name, Seconds());
        _unsettled.Add(old.Id);
        MetaResult written = await WriteAsync(old with { State = VolumeState.RollingBack });
        if (written.Outcome != MetaOutcome.Committed)
        {
            _unsettled.Remove(old.Id);
            return MetaCommit.FaultOf(written.Outcome);
        }

        IoStatus status = await host.RollBackAsync(found.Info.Uuid, safety);
        await SettleAsync(); // takes the size over from the store, whatever became of it
        if (status != IoStatus.Ok) return SnapshotFault(status);
        SnapshotChanged?.Invoke(Find(volume) ?? old, safety.Uuid, safety.Name, false);
        IReadOnlyList<VolumeSnapshot> now = (await SnapshotsAsync(Find(volume) ?? old)).Snapshots;
        return now.FirstOrDefault(s => s.Info.Uuid == safety.Uuid) is { } kept ? new SnapshotResult([kept], null) : AwayFault();
    }, fault => fault);

    /// <summary>Makes a volume with the content of a snapshot of <paramref name="source"/>, or of what that is now.</summary>
    public async Task<DirectoryResult> CloneAsync(string source, CloneVolume request)
    {
        if (!VolumeName.IsValid(request.Name, out string? reason)) return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "name");
        if (request.SizeBytes is { } size && SizeFault(size) is { } fault) return fault;
        if (request.IdempotencyKey is { Length: > 128 })
            return new DirectoryFault(IoStatus.Invalid, "invalid-idempotency-key", "the key is longer than 128 characters", "idempotencyKey");
        if (DescriptionFault(request.Description) is { } wordy) return wordy;
        return await ChangeAloneAsync(() => CloneAloneAsync(source, request));
    }

    /// <summary>Begins to copy what a clone shares with its base.</summary>
    public Task<DirectoryResult> FlattenAsync(string name) => ChangeAloneAsync(async () =>
    {
        if (Find(name) is not { } volume) return NoVolume(name);
        // Of one that is being populated this goes on with a copying that could not.
        if (!volume.IsPopulating && ImportFault(volume) is { } coming) return coming;
        if (MoveFault(volume) is { } moving) return moving;
        if (await LayersAsync(volume) is not { } layers) return AwayFault();
        if (layers.Base is null) return new DirectoryFault(IoStatus.Conflict, "not-a-clone", $"'{name}' shares nothing with another volume");
        if (layers.Snapshots.Count > 0)
        {
            return new DirectoryFault(
                IoStatus.Conflict, "volume-has-snapshots",
                $"its snapshots ({Few(layers.Snapshots.Select(s => s.Name))}) share what would be copied; delete them first");
        }

        IoStatus status = await _hosts[volume.StoreId].FlattenAsync(volume.Id);
        return status == IoStatus.Ok ? volume : SnapshotFault(status);
    });

    private async Task<DirectoryResult> CloneAloneAsync(string source, CloneVolume request)
    {
        if (Find(source) is not { } from) return NoVolume(source);
        if (ImportFault(from) is { } coming) return coming;
        if (MoveFault(from) is { } moving) return moving;
        VolumeSnapshot? basis = null;
        if (request.Snapshot is { } wantedSnapshot)
        {
            (basis, DirectoryFault? missing) = await FindSnapshotAsync(source, wantedSnapshot);
            if (basis is null) return missing!;
        }

        ulong size = request.SizeBytes ?? (from.IsAppendOnly ? null : basis?.Info.SizeBytes) ?? from.SizeBytes;
        ExportOptions export = request.Export ?? from.Export with { ReadOnly = false, Thick = false };
        var wanted = new CreateVolume(request.Name, size, 1, export, request.Description, from.StoreId, request.IdempotencyKey, from.IsAppendOnly,
            Thin: request.Thin ?? from.PromisedBytes == 0);
        if (ThinFault(request.Thin, export) is { } both) return both;
        if (Repeated(wanted) is { } repeated) return repeated;
        if (ExportFault(export, size) is { } odd) return odd;
        if (Quota?.FaultOf(request.Name, size, null, List()) is { } tooMuch) return tooMuch;
        if (size < (basis?.Info.SizeBytes ?? from.SizeBytes))
            return new DirectoryFault(IoStatus.Invalid, "invalid-size", "a clone is at least as large as what it is cloned from", "sizeBytes");
        bool isOurs = request.Snapshot is null;
        if (isOurs)
        {
            // Short enough for a number behind it.
            string name = await FreeNameAsync(from, (request.Full ? "copy-" : "clone-") + request.Name[..Math.Min(request.Name.Length, VolumeName.LengthMax - 16)]);
            if (await CutFaultAsync(from, name) is { } inTheWay) return inTheWay;
            SnapshotResult cut = await CutAloneAsync(name, [from], new SnapshotLabel(false, IsForCopy: request.Full));
            if (cut.Fault is { } fault) return fault;
            basis = cut.Snapshots[0];
        }

        IVolumeHost host = _hosts[from.StoreId];
        DirectoryResult made = await CreateOnAsync(wanted, host, head => host.CloneAsync(head, from.Id, basis!.Info.Uuid), isPopulating: request.Full);
        // A snapshot that was cut for a clone that is not made is of no use.
        if (isOurs && made.Fault is not null) await host.DeleteSnapshotAsync(from.Id, basis!.Info.Uuid);
        return made;
    }

    private async Task<(VolumeSnapshot? Found, DirectoryFault? Fault)> FindSnapshotAsync(string volume, string snapshot)
    {
        if (Find(volume) is not { } record) return (null, NoVolume(volume));
        SnapshotResult known = await SnapshotsAsync(record);
        if (known.Fault is { } fault) return (null, fault);
        return known.Snapshots.FirstOrDefault(s => s.Info.Name == snapshot) is { } found ? (found, null) : (null, NoSnapshot(volume, snapshot));
    }

    private async Task<CutSight?> SightAsync(VolumeRecord volume, string snapshot) =>
        _hosts.TryGetValue(volume.StoreId, out IVolumeHost? host) ? await host.SightAsync(volume.Id, snapshot) : null;

    /// <summary>Why no snapshot of that name can be cut, or null.</summary>
    private async Task<DirectoryFault?> CutFaultAsync(VolumeRecord volume, string name)
    {
        if (ImportFault(volume) is { } coming) return coming;
        if (await SightAsync(volume, name) is not { } sight) return AwayFault();
        if (sight.IsFlattening)
            return new DirectoryFault(IoStatus.Conflict, "volume-flattening", $"'{volume.Name}' is being flattened; wait until that has ended");
        return sight.Snapshot is not null
            ? new DirectoryFault(IoStatus.Conflict, "snapshot-exists", $"'{volume.Name}' has a snapshot '{name}'; choose another name", "name")
            : null;
    }

    /// <summary>What of a volume's layers is in the way of its deletion, or null.</summary>
    private async Task<DirectoryFault?> LayerFaultAsync(VolumeRecord volume, bool withSnapshots)
    {
        if (await LayersAsync(volume) is not { Snapshots.Count: > 0 } layers) return null;
        foreach (SnapshotInfo snapshot in layers.Snapshots)
        {
            if (CloneFault(new VolumeSnapshot(volume, snapshot, null)) is { } fault) return fault;
        }

        if (withSnapshots) return null;
        SnapshotResult known = await SnapshotsAsync(volume);
        if (known.Fault is { } unknown) return unknown;
        string[] kept = [.. known.Snapshots.Where(s => s.Record is not { IsForCopy: true }).Select(s => s.Info.Name)];
        return kept.Length == 0 ? null : new DirectoryFault(
            IoStatus.Conflict, "volume-has-snapshots",
            $"'{volume.Name}' has {kept.Length} snapshots ({Few(kept)}); delete them first, or say that they go too (pfcli delete_volume --snapshots)");
    }

    private DirectoryFault? CloneFault(VolumeSnapshot snapshot)
    {
        if (snapshot.Info.Clones.Count == 0) return null;
        VolumeRecord[] clones = [.. snapshot.Info.Clones.Select(_table.FindById).OfType<VolumeRecord>()];
        string[] names = [.. clones.Select(c => c.Name)];
        string what = $"'{snapshot.Volume.Name}@{snapshot.Info.Name}'";
        if (clones.Length > 0 && clones.All(c => c.IsPopulating))
            return new(IoStatus.Conflict, "snapshot-has-clones", $"{Few(names)} {(names.Length == 1 ? "is" : "are")} still being populated from {what}; wait until that has ended");
        return names.Length == 0
            ? new(IoStatus.Conflict, "clone-being-deleted", $"a deleted clone of {what} still gives its blocks back; try again in a moment")
            : new(IoStatus.Conflict, "snapshot-has-clones", $"{Few(names)} {(names.Length == 1 ? "is a clone" : "are clones")} of {what}; flatten or delete {(names.Length == 1 ? "it" : "them")} first");
    }

    /// <summary>Removes records of snapshots that their stores do not have any more.</summary>
    private async Task ForgetLostSnapshotsAsync(HashSet<Guid> fresh)
    {
        var layers = new Dictionary<uint, VolumeLayers?>();
        var lost = new List<MetaChange>();
        foreach (MetaEntry entry in await meta.RangeAsync(SnapshotRecord.Prefix))
        {
            SnapshotRecord? record = SnapshotRecord.TryDecode(entry);
            bool isLost = record is null;
            if (record is not null && _table.FindById(record.VolumeId) is { } volume)
            {
                if (!fresh.Contains(volume.StoreId)) continue;
                if (!layers.TryGetValue(volume.Id, out VolumeLayers? there))
                    layers.Add(volume.Id, there = await _hosts[volume.StoreId].LayersAsync(volume.Id));
                isLost = there is not null && there.Snapshots.All(s => s.Uuid != record.Uuid);
            }
            else if (record is not null)
            {
                isLost = await meta.GetAsync(VolumeKey(record.VolumeId)) is null;
            }

            if (isLost) lost.Add(new MetaChange(entry.Key, null));
        }

        if (lost.Count > 0) await CommitAsync([], lost);
    }

    private async Task<string> FreeNameAsync(VolumeRecord volume, string name)
    {
        HashSet<string> taken = [.. (await LayersAsync(volume))?.Snapshots.Select(s => s.Name) ?? []];
        string free = name;
        for (int i = 2; taken.Contains(free); i++) free = string.Create(CultureInfo.InvariantCulture, $"{name}-{i}");
        return free;
    }

    private string Now() => clock.UtcNow.ToString("yyyyMMdd-HHmmss", CultureInfo.InvariantCulture);

    private ulong Seconds() => (ulong)Math.Max(0, clock.UtcNow.ToUnixTimeSeconds());

    private static string Few(IEnumerable<string> names)
    {
        string[] all = [.. names];
        return all.Length <= 5 ? string.Join(", ", all) : $"{string.Join(", ", all.Take(5))} and {all.Length - 5} more";
    }

    private static DirectoryFault NoSnapshot(string volume, string snapshot) =>
        new(IoStatus.NotFound, "no-such-snapshot", $"'{volume}' has no snapshot '{snapshot}'; pfcli list_snapshot shows what there is");

    private static DirectoryFault AwayFault() =>
        new(IoStatus.Unavailable, "disk-unavailable", "the volume's disk does not serve it; see pfcli list_disk");

    private static DirectoryFault SnapshotFault(IoStatus status) => status switch
    {
        IoStatus.NoSpace => new(status, "no-space", "the disk has no room for the metadata of another snapshot; delete one first"),
        IoStatus.Conflict => new(status, "changed-meanwhile", "the volume changed meanwhile; try again"),
        IoStatus.NotFound => new(status, "no-such-snapshot", "it was deleted meanwhile"),
        _ => new(IoStatus.Unavailable, "disk-unavailable", $"the disk does not serve ({status}); see pfcli list_disk"),
    };
}

/// <summary>What is said of a snapshot by whoever asks for it.</summary>
/// <param name="Clean">What uses the volumes was brought to rest.</param>
/// <param name="Policy">The policy that asks, or null.</param>
/// <param name="IsForCopy">It is to go when nothing builds on it.</param>
public readonly record struct SnapshotLabel(bool Clean, string? Policy = null, bool IsForCopy = false);
