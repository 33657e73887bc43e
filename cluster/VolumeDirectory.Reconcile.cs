using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

// What was interrupted is finished or undone: at the start, when a disk comes back, and before the next change.
public sealed partial class VolumeDirectory
{
    // Volumes of which a change was begun and whose end is not known to be written. Under the change lock.
    private readonly HashSet<uint> _unsettled = [];

    /// <summary>Told which volumes a store brought that the metadata did not know, now recorded. Inside the change lock: be quick, and
    /// call nothing of this class that changes.</summary>
    public Action<IReadOnlyList<VolumeRecord>>? Adopted { get; set; }

    /// <summary>
    /// Takes the stores into service: finishes or undoes interrupted changes of their volumes, and adopts volumes that lie
    /// on a store and are unknown to the metadata (a lost database). Answers sentences for the operator. Call it with no
    /// stores to read the metadata. Throws <see cref="MetaException"/>.
    /// </summary>
    public async Task<IReadOnlyList<string>> ReconcileAsync(IEnumerable<IVolumeHost> hosts)
    {
        await _change.WaitAsync();
        try
        {
            var notes = new List<string>();
            var heads = new SortedDictionary<uint, (VolumeHead Head, IVolumeHost Host)>();
            var fresh = new HashSet<Guid>();
            HashSet<(Guid, uint)> copies = await LoadMovesAsync();
            VolumeRecord[] records = [.. (await meta.RangeAsync("vol/")).Select(Decode)];
            Dictionary<uint, VolumeRecord> known = records.ToDictionary(r => r.Id);
            foreach (IVolumeHost host in hosts)
            {
                _hosts[host.StoreId] = host;
                fresh.Add(host.StoreId);
                foreach (VolumeHead head in await host.ListAsync())
                {
                    if (copies.Contains((host.StoreId, head.Id))) continue;
                    if (head.Epoch == CopyEpoch)
                    {
                        notes.Add($"an unfinished copy of volume '{head.Name}' (number {head.Id}) lies on disk {host.StoreId}; it is not served");
                        continue;
                    }

                    if (heads.TryAdd(head.Id, (head, host))) continue;
                    (VolumeHead Head, IVolumeHost Host) other = heads[head.Id];
                    bool isHome = known.TryGetValue(head.Id, out VolumeRecord? home) && (home.StoreId == host.StoreId || home.StoreId == other.Host.StoreId)
                        ? home.StoreId == host.StoreId : head.Epoch > other.Head.Epoch;
                    if (isHome) heads[head.Id] = (head, host);
                    notes.Add($"volume number {head.Id} lies on two disks; the one on {(isHome ? other.Host : host).StoreId} is not served");
                }
            }

            foreach (VolumeRecord record in records)
            {
                if (fresh.Contains(record.StoreId) || heads.ContainsKey(record.Id)) await RepairAsync(record, heads, notes);
                else if (record.State is VolumeState.Ready or VolumeState.Changing or VolumeState.RollingBack) Show(record);
            }

            var adopted = new List<VolumeRecord>();
            foreach ((VolumeHead head, IVolumeHost host) in heads.Values)
            {
                if (await AdoptAsync(head, host, notes) is { } volume) adopted.Add(volume);
            }

            if (adopted.Count > 0) Adopted?.Invoke(adopted);
            await UndoCutsAsync();
            await CarryBacksAsync();
            await SweepMovesAloneAsync();
            await ForgetLostSnapshotsAsync(fresh);
            foreach (IVolumeHost host in _hosts.Values.Where(h => fresh.Contains(h.StoreId))) await host.ResumeFlatteningAsync();
            return notes;
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Takes a store out of service: nothing is placed there any more. Refused while volumes lie there, unless
    /// <paramref name="withVolumes"/>: then they stay known and are unavailable until the store comes back.</summary>
    public async Task<DirectoryFault?> ForgetAsync(Guid storeId, bool withVolumes)
    {
        await _change.WaitAsync();
        try
        {
            int count = _table.CountOn(storeId);
            if (count > 0 && !withVolumes)
            {
                return new DirectoryFault(
                    IoStatus.Conflict, "disk-in-use",
                    $"{count} volumes lie on this disk; delete them first, or force: then they are unavailable until the disk is added again");
            }

            _hosts.TryRemove(storeId, out _);
            return null;
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>How many volumes lie on a store.</summary>
    public int CountOn(Guid storeId) => List().Count(v => v.StoreId == storeId);

    /// <summary>Brings every unsettled volume to a state that metadata and store agree on, as far as they answer.</summary>
    private async Task SettleAsync()
    {
        if (!_half.IsEmpty) await UndoCutsAsync();
        await RepairUnsettledAsync();
        if (_hasBacks) await CarryBacksAsync();
    }

    private async Task RepairUnsettledAsync()
    {
        foreach (uint id in _unsettled.Order().ToArray())
        {
            MetaEntry? entry = await meta.GetAsync(VolumeKey(id));
            if (entry is null)
            {
                _table.Hide(id);
                _unsettled.Remove(id);
                continue;
            }

            VolumeRecord record = Decode(entry);
            if (!_hosts.TryGetValue(record.StoreId, out IVolumeHost? host) || await host.FreeBytesAsync() is null) continue;
            var heads = new SortedDictionary<uint, (VolumeHead Head, IVolumeHost Host)>();
            if ((await host.ListAsync()).FirstOrDefault(h => h.Id == id) is { } head) heads.Add(id, (head, host));
            if (await RepairAsync(record, heads, [])) _unsettled.Remove(id);
        }
    }

    /// <summary>Makes record and head one; takes the head off the list. True when nothing is left to do.</summary>
    private async Task<bool> RepairAsync(
        VolumeRecord record, SortedDictionary<uint, (VolumeHead Head, IVolumeHost Host)> heads, List<string> notes)
    {
        bool isThere = heads.TryGetValue(record.Id, out (VolumeHead Head, IVolumeHost Host) found)
            && found.Head.Uuid == record.Uuid && (found.Host.StoreId == record.StoreId || found.Head.Epoch >= record.Epoch);
        if (isThere) heads.Remove(record.Id);
        if (record.State is VolumeState.Creating or VolumeState.Deleting)
        {
            _table.Hide(record.Id);
            if (isThere && await found.Host.DeleteAsync(record.Id) is not (IoStatus.Ok or IoStatus.NotFound))
            {
                notes.Add($"volume '{record.Name}' could not be deleted from its disk; the next start tries again");
                return false;
            }

            if (await RemoveAsync(record) == MetaOutcome.Committed) return true;
            notes.Add($"deleted volume '{record.Name}' could not be taken out of the metadata; the next start tries again");
            return false;
        }

        if (!isThere)
        {
            Show(record);
            notes.Add($"volume '{record.Name}' (number {record.Id}) is not on its disk {record.StoreId}");
            return true;
        }

        if (record.State == VolumeState.RollingBack) record = record with { SizeBytes = found.Head.SizeBytes };
        VolumeHead head = HeadOf(record) with { Epoch = found.Head.Epoch };
        IoStatus status = head == found.Head ? IoStatus.Ok : await found.Host.UpdateAsync(head);
        if (status != IoStatus.Ok)
        {
            Show(record);
            notes.Add($"the head of volume '{record.Name}' could not be renewed: {status}");
            return false;
        }

        VolumeRecord settled = record with { State = VolumeState.Ready, StoreId = found.Host.StoreId, Epoch = found.Head.Epoch };
        if (settled != record)
        {
            MetaResult written = await WriteAsync(settled);
            if (written.Outcome != MetaOutcome.Committed)
            {
                Show(record);
                notes.Add($"the change of volume '{record.Name}' could not be recorded as done; the next start does it");
                return false;
            }

            settled = settled with { Revision = written.Revision };
        }

        // In front of its being shown: from then on it can be used.
        if (settled.PromisedBytes != 0 || _unsettled.Contains(settled.Id)) await found.Host.PromiseAsync(settled.Id, settled.PromisedBytes, isForced: true);
        Show(settled);
        return true;
    }

    /// <summary>Records a volume that its store alone knows; null when that is not possible. Whether it was promised its size is lost with
    /// the metadata: it is again, as a new one would be, as long as there is room.</summary>
    private async Task<VolumeRecord?> AdoptAsync(VolumeHead head, IVolumeHost host, List<string> notes)
    {
        if (await meta.GetAsync(VolumeKey(head.Id)) is not null)
        {
            notes.Add($"a volume '{head.Name}' on disk {host.StoreId} has the number of another volume; it is not served");
            return null;
        }

        string name = head.Name;
        if (Find(name) is not null || !VolumeName.IsValid(name, out _)) name = $"rescued-{head.Id}";
        var record = new VolumeRecord(
            head.Id, head.Uuid, name, head.SizeBytes, VolumeState.Ready, ExportOf(new ExportOptions(), head.IsAppendOnly), null, host.StoreId, clock.UtcNow, null,
            Epoch: head.Epoch, IsAppendOnly: head.IsAppendOnly, IsSealed: head.IsSealed);
        if (name != head.Name && await host.UpdateAsync(head with { Name = name }) != IoStatus.Ok)
        {
            notes.Add($"volume '{head.Name}' was found on disk {host.StoreId} but could not be renamed to '{name}'");
            return null;
        }

        if (IsReserved(null, head.IsAppendOnly) && await host.PromiseAsync(head.Id, head.SizeBytes, isForced: false) == IoStatus.Ok)
            record = record with { IsReserved = true };
        (uint next, MetaEntry? counter) = await NextIdAsync();
        MetaResult written = await CommitAsync(
            [new(CounterKey, counter?.ModRevision ?? 0), new(NameKey(name), 0), new(VolumeKey(head.Id), 0)],
            [new(CounterKey, Number(Math.Max(next - 1, head.Id))), new(NameKey(name), Number(head.Id)), new(VolumeKey(head.Id), Encode(record))]);
        if (written.Outcome != MetaOutcome.Committed)
        {
            notes.Add($"volume '{head.Name}' was found on disk {host.StoreId} but could not be recorded");
            return null;
        }

        notes.Add($"volume '{name}' (number {head.Id}) was unknown to the metadata and has been adopted from disk {host.StoreId}");
        return Show(record with { Revision = written.Revision });
    }
}
