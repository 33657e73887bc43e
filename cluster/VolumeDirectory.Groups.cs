using System.Collections.Concurrent;
using System.Text.Json;
using BlockServer.Core;

namespace BlockServer.Cluster;

// A cut of volumes on several stores. Its members are written down first (cut/UUID); then all changes of all members are held
// back, each store is cut, and changes go on. The record goes in the transaction that labels the snapshots. A record that is
// found means that the cut may be half: its snapshots are deleted.
public sealed partial class VolumeDirectory
{
    private const string CutPrefix = "cut/";

    // Of one store; more do not fit into one page of its log.
    private const int CutMax = 13;

    // Of a group; each is held while all are waited for.
    private const int GroupMax = 128;

    // Snapshots of cuts that are not known to be whole: nobody is shown one.
    private readonly ConcurrentDictionary<Guid, bool> _half = [];

    /// <summary>Holds changes back for cuts over several stores; without it those are refused.</summary>
    public ICutGate? CutGate { get; set; }

    private async Task<SnapshotResult> CutAloneAsync(string name, List<VolumeRecord> members, SnapshotLabel label)
    {
        if (members.Count > GroupMax)
            return new DirectoryFault(IoStatus.Invalid, "too-many-volumes", $"at most {GroupMax} volumes are cut at once", "volumes");
        Guid? group = members.Count > 1 ? random.NextGuid() : null;
        (VolumeRecord Volume, SnapshotRequest Request)[] cuts = [.. members.Select(v => (v, new SnapshotRequest(v.Id, random.NextGuid(), name, Seconds())))];
        SnapshotRecord[] records = [.. cuts.Select(c => new SnapshotRecord(c.Volume.Id, c.Request.Uuid, label.Clean, group, label.Policy, label.IsForCopy))];
        MetaChange[] labels = [.. records.Select(r => new MetaChange(r.Key, r.Encode()))];
        bool isOne = members.Count <= CutMax && members.DistinctBy(v => v.StoreId).Count() == 1;
        bool isLabelled = true;
        if (isOne && label.IsForCopy)
        {
            MetaResult said = await CommitAsync([], labels);
            if (said.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(said.Outcome);
            IoStatus status = await _hosts[members[0].StoreId].CutAsync([.. cuts.Select(c => c.Request)]);
            if (status != IoStatus.Ok) return SnapshotFault(status);
        }
        else if (isOne)
        {
            IoStatus status = await _hosts[members[0].StoreId].CutAsync([.. cuts.Select(c => c.Request)]);
            if (status != IoStatus.Ok) return SnapshotFault(status);
            // Without its record a snapshot counts as labelled unknown, which is always true.
            isLabelled = (await CommitAsync([], labels)).Outcome == MetaOutcome.Committed;
        }
        else if (await CutOverStoresAsync(group!.Value, cuts, labels) is { } fault)
        {
            return fault;
        }

        var done = new List<VolumeSnapshot>();
        for (int i = 0; i < cuts.Length; i++)
        {
            CutSight? sight = await SightAsync(members[i], name);
            if (sight?.Snapshot is not { } info || info.Uuid != cuts[i].Request.Uuid) return AwayFault();
            done.Add(new VolumeSnapshot(members[i], info, isLabelled ? records[i] : null));
            SnapshotChanged?.Invoke(members[i], info.Uuid, info.Name, false);
        }

        return new SnapshotResult(done, null);
    }

    /// <summary>Null when all are cut at one moment, and that is written down.</summary>
    private async Task<DirectoryFault?> CutOverStoresAsync(Guid group, (VolumeRecord Volume, SnapshotRequest Request)[] cuts, MetaChange[] labels)
    {
        if (CutGate is not { } gate)
            return new DirectoryFault(IoStatus.Invalid, "volumes-on-several-disks", "the volumes lie on different disks", "volumes");
        string key = CutPrefix + group.ToString("N");
        var record = new CutRecord([.. cuts.Select(c => new CutMember(c.Volume.Id, c.Volume.StoreId, c.Request.Uuid))]);
        foreach (CutMember member in record.Members) _half[member.Uuid] = true;
        MetaResult written = await CommitAsync([new(key, 0)], [new(key, JsonSerializer.SerializeToUtf8Bytes(record, CutRecordJson.Default.CutRecord))]);
        if (written.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(written.Outcome);

        DirectoryFault? fault = null;
        if (await gate.HoldAsync([.. cuts.Select(c => c.Volume)]) is not { } hold)
        {
            fault = new DirectoryFault(IoStatus.Unavailable, "cut-too-slow", "the volumes did not come to rest in time, nothing was cut; look at their disks, then try again");
        }
        else
        {
            var cutting = new List<Task<IoStatus>>();
            foreach (var there in cuts.GroupBy(c => c.Volume.StoreId))
            {
                foreach (SnapshotRequest[] few in there.Select(c => c.Request).Chunk(CutMax)) cutting.Add(_hosts[there.Key].CutAsync(few));
            }

            Task<IoStatus[]> all = Task.WhenAll(cutting);
            await Task.WhenAny(all, hold.Expired);
            bool isOneMoment = all.IsCompleted;
            isOneMoment &= await hold.ReleaseAsync();
            IoStatus status = (await all).FirstOrDefault(s => s != IoStatus.Ok);
            if (status != IoStatus.Ok) fault = SnapshotFault(status);
            else if (!isOneMoment) fault = new DirectoryFault(IoStatus.Unavailable, "cut-too-slow", "a disk took too long, nothing was cut; look at the disks, then try again");
        }

        if (fault is null)
        {
            MetaResult ended = await CommitAsync([new(key, written.Revision)], [.. labels, new MetaChange(key, null)]);
            if (ended.Outcome == MetaOutcome.Committed)
            {
                foreach (CutMember member in record.Members) _half.TryRemove(member.Uuid, out _);
                return null;
            }

            fault = MetaCommit.FaultOf(ended.Outcome);
        }

        await UndoCutAsync(key, record);
        return fault;
    }

    /// <summary>Deletes the snapshots of a cut that is not whole; the rest when their stores are back.</summary>
    private async Task UndoCutAsync(string key, CutRecord record)
    {
        bool isGone = true;
        foreach (CutMember member in record.Members)
        {
            _half[member.Uuid] = true;
            bool isKnown = await meta.GetAsync(VolumeKey(member.VolumeId)) is not null;
            IoStatus status = !isKnown ? IoStatus.NotFound
                : _hosts.TryGetValue(member.StoreId, out IVolumeHost? host) ? await host.DeleteSnapshotAsync(member.VolumeId, member.Uuid)
                : IoStatus.Unavailable;
            isGone &= status is IoStatus.Ok or IoStatus.NotFound;
        }

        if (!isGone || (await CommitAsync([], [new MetaChange(key, null)])).Outcome != MetaOutcome.Committed) return;
        foreach (CutMember member in record.Members) _half.TryRemove(member.Uuid, out _);
    }

    /// <summary>Undoes the cuts that an earlier run or an absent store left half; what no record names is whole.</summary>
    private async Task UndoCutsAsync()
    {
        IReadOnlyList<MetaEntry> entries = await meta.RangeAsync(CutPrefix);
        _half.Clear();
        foreach (MetaEntry entry in entries)
        {
            CutRecord? record = Deserialize(entry, CutRecordJson.Default.CutRecord);

            if (record?.Members is null || record.Members.Any(m => m is null)) throw Damaged(entry, "it names no members");
            await UndoCutAsync(entry.Key, record);
        }
    }
}
