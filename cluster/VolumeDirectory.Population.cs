using BlockServer.Core;

namespace BlockServer.Cluster;

// Volumes that become copies of others: clones that nobody may attach before their store has copied what they share. Which blocks
// are copied is the store's affair and survives everything; the record adds only that the volume is not to be attached yet.
public sealed partial class VolumeDirectory
{
    /// <summary>Goes on with populating a volume, or says that it is populated: then it may be attached, and its record does not
    /// say <see cref="VolumeRecord.IsPopulating"/> any more. May be repeated at any time.</summary>
    public Task<DirectoryResult> PopulateAsync(uint id) => ChangeAloneAsync(async () =>
    {
        if (_table.FindById(id) is not { } volume) return new DirectoryFault(IoStatus.NotFound, "no-such-volume", "the volume was deleted meanwhile");
        if (!volume.IsPopulating) return volume;
        if (await LayersAsync(volume) is not { } layers) return AwayFault();
        if (layers.Base is not null || layers.IsFlattening)
        {
            IoStatus status = layers.IsFlattening ? IoStatus.Ok : await _hosts[volume.StoreId].FlattenAsync(id);
            return status == IoStatus.Ok ? volume : SnapshotFault(status);
        }

        VolumeRecord wanted = volume with { IsPopulating = false };
        MetaResult written = await WriteAsync(wanted);
        return written.Outcome == MetaOutcome.Committed ? Show(wanted with { Revision = written.Revision }) : MetaCommit.FaultOf(written.Outcome);
    });

    /// <summary>The snapshot was cut for a copy and goes when nothing builds on it. Throws <see cref="MetaException"/>.</summary>
    public async Task<bool> IsCutForCopyAsync(uint volumeId, Guid snapshot) =>
        await meta.GetAsync(new SnapshotRecord(volumeId, snapshot, false, null, null).Key) is { } entry && SnapshotRecord.TryDecode(entry) is { IsForCopy: true };

    /// <summary>Deletes the snapshots that were cut for copies and on which nothing builds any more. False while a deleted copy
    /// still holds one, or a disk does not serve.</summary>
    public Task<bool> SweepCopiesAsync() => AloneAsync(async () =>
    {
        bool isDone = true;
        foreach (MetaEntry entry in await meta.RangeAsync(SnapshotRecord.Prefix))
        {
            if (SnapshotRecord.TryDecode(entry) is not { IsForCopy: true } record || _table.FindById(record.VolumeId) is not { } volume) continue;
            if (await LayersAsync(volume) is not { } layers)
            {
                isDone = false;
                continue;
            }

            SnapshotInfo? snapshot = layers.Snapshots.FirstOrDefault(s => s.Uuid == record.Uuid);
            if (snapshot is { Clones.Count: > 0 })
            {
                isDone &= snapshot.Clones.Any(c => _table.FindById(c) is not null); // who is there tells us when he goes
                continue;
            }

            IoStatus status = snapshot is null ? IoStatus.NotFound : await _hosts[volume.StoreId].DeleteSnapshotAsync(volume.Id, record.Uuid);
            if (status is IoStatus.Ok or IoStatus.NotFound) await CommitAsync([], [new MetaChange(entry.Key, null)]);
            else isDone = false;
        }

        return isDone;
    }, _ => false);

    private static DirectoryFault PopulationFault(VolumeRecord volume) => new(
        IoStatus.Conflict, "volume-initializing",
        $"'{volume.Name}' is being populated and not whole yet; wait (pfcli list_task shows how far it is), or delete it");
}
