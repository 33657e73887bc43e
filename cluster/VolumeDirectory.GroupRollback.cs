using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

// A rollback of volumes together. What is to be done is written down first (back/UUID); then changes of all members are held back,
// each goes back by itself, keeping what it was, and the record goes in the transaction that labels what was kept as a group. A
// record that is found is carried through: the identity of what a member keeps says whether it has gone back. Where one cannot,
// the record is turned round, and those that have gone back come again.
public sealed partial class VolumeDirectory
{
    private const string BackPrefix = "back/";

    // There are records that are not carried through. Under the change lock.
    private bool _hasBacks;

    /// <summary>Makes each volume what its snapshot of that name is: all of them or, when one cannot, none. What they were is kept
    /// as a group of snapshots, the answer, named <paramref name="safetyName"/> or by the time. Interrupted, it is carried through
    /// by the next start or, for a disk that is away, when that is back.</summary>
    public Task<SnapshotResult> RollBackTogetherAsync(string snapshot, IReadOnlyList<string> volumes, string? safetyName) => AloneAsync(async () =>
    {
        if (volumes.Count == 0 || volumes.Any(v => v is null) || volumes.Distinct(StringComparer.Ordinal).Count() != volumes.Count)
            return new DirectoryFault(IoStatus.Invalid, "invalid-volumes", "name at least one volume, and each once", "volumes");
        if (volumes.Count > GroupMax)
            return new DirectoryFault(IoStatus.Invalid, "too-many-volumes", $"at most {GroupMax} volumes are rolled back at once", "volumes");
        if (safetyName is not null && !VolumeName.IsValid(safetyName, out string? reason))
            return new DirectoryFault(IoStatus.Invalid, "invalid-name", reason, "safetyName");
        var targets = new List<VolumeSnapshot>();
        string safety = safetyName ?? "before-rollback-" + Now();
        foreach (string volume in volumes)
        {
            (VolumeSnapshot? found, DirectoryFault? missing) = await FindSnapshotAsync(volume, snapshot);
            if (found is null) return missing!;
            VolumeRecord old = found.Volume;
            if ((ImageFault(old) ?? SealedFault(old) ?? MoveFault(old)) is { } fixedOne) return fixedOne;
            if (Quota?.FaultOf(old.Name, found.Info.SizeBytes, old, List()) is { } tooMuch) return tooMuch;
            targets.Add(found);
        }

        if (safetyName is null)
        {
            // One name that is free for all of them.
            for (string? last = null; last != safety;)
            {
                last = safety;
                foreach (VolumeSnapshot target in targets) safety = await FreeNameAsync(target.Volume, safety);
            }
        }

        foreach (VolumeSnapshot target in targets)
        {
            VolumeRecord old = target.Volume;
            if (await CutFaultAsync(old, safety) is { } inTheWay) return inTheWay with { Field = "safetyName" };
            if (old.PromisedBytes != 0 && target.Info.SizeBytes > old.SizeBytes
                && await PromiseFaultAsync(_hosts[old.StoreId], old.Id, target.Info.SizeBytes, "snapshot") is { } full) return full;
        }

        return await RollBackAloneAsync(targets, safety);
    }, fault => fault);

    /// <summary>The volumes of the group that a snapshot is part of, as far as they have theirs still, by name.</summary>
    public async Task<(IReadOnlyList<string> Volumes, DirectoryFault? Fault)> MembersOfGroupAsync(string volume, string snapshot)
    {
        (VolumeSnapshot? found, DirectoryFault? missing) = await FindSnapshotAsync(volume, snapshot);
        if (found is null) return ([], missing);
        if (found.Record?.Group is not { } group)
            return ([], new DirectoryFault(IoStatus.Conflict, "no-group", $"'{volume}@{snapshot}' is not part of a group; name the volumes", "group"));
        IEnumerable<VolumeRecord> members = (await meta.RangeAsync(SnapshotRecord.Prefix)).Select(SnapshotRecord.TryDecode)
            .Where(r => r?.Group == group).Select(r => _table.FindById(r!.VolumeId)).OfType<VolumeRecord>();
        return ([.. members.Select(m => m.Name).Order(StringComparer.Ordinal)], null);
    }

    private async Task<SnapshotResult> RollBackAloneAsync(List<VolumeSnapshot> targets, string safety)
    {
        Guid group = random.NextGuid();
        var record = new BackRecord(
            group, safety, Seconds(), IsUndone: false, [.. targets.Select(t => new BackMember(t.Volume.Id, t.Volume.StoreId, t.Info.Uuid, random.NextGuid()))]);
        ICutHold? hold = null;
        if (CutGate is { } gate && (hold = await gate.HoldAsync([.. targets.Select(t => t.Volume)])) is null)
            return new DirectoryFault(IoStatus.Unavailable, "cut-too-slow", "the volumes did not come to rest in time, nothing was rolled back; look at their disks, then try again");
        bool isOneMoment = false;
        DirectoryFault? fault;
        try
        {
            _hasBacks = true; // also when it is not known whether it was written
            MetaResult written = await CommitAsync([new(record.Key, 0)], [new(record.Key, record.Encode())]);
            if (written.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(written.Outcome);
            fault = await CarryBackAsync(record);
        }
        finally
        {
            if (hold is not null) isOneMoment = await hold.ReleaseAsync();
        }

        if (fault is not null) return fault;
        if (hold is not null && !isOneMoment) await UngroupAsync(record);
        var kept = new List<VolumeSnapshot>();
        foreach (BackMember member in record.Members)
        {
            VolumeRecord volume = _table.FindById(member.VolumeId)!;
            if ((await SnapshotsAsync(volume)).Snapshots.FirstOrDefault(s => s.Info.Uuid == member.Safety) is not { } one) return AwayFault();
            kept.Add(one);
            SnapshotChanged?.Invoke(volume, one.Info.Uuid, one.Info.Name, false);
        }

        return new SnapshotResult(kept, null);
    }

    /// <summary>What was kept is no group after all: a disk took so long that changes went on in between.</summary>
    private Task<MetaResult> UngroupAsync(BackRecord record) => CommitAsync(
        [], [.. record.Members.Select(m => new SnapshotRecord(m.VolumeId, m.Safety, false, null, null)).Select(r => new MetaChange(r.Key, r.Encode()))]);

    /// <summary>Carries one through as far as its stores answer; null when all have gone back.</summary>
    private async Task<DirectoryFault?> CarryBackAsync(BackRecord record)
    {
        _hasBacks = true; // until it is known to be done
        DirectoryFault? refused = null;
        bool isLeft = false;
        foreach (BackMember member in record.Members)
        {
            if (record.IsUndone) break;
            if (_table.FindById(member.VolumeId) is not { } volume) continue;
            if (await LayersAsync(volume) is not { } layers)
            {
                isLeft = true;
                continue;
            }

            if (layers.Snapshots.Any(s => s.Uuid == member.Safety)) continue;
            IoStatus status = await GoBackAsync(volume, member.Snapshot, new SnapshotRequest(volume.Id, member.Safety, record.SafetyName, record.UnixSeconds));
            if (status is IoStatus.Unavailable or IoStatus.ShuttingDown or IoStatus.IoError) isLeft = true;
            else if (status != IoStatus.Ok) refused = SnapshotFault(status);
            if (refused is not null) break;
        }

        if (refused is not null)
        {
            record = record with { IsUndone = true };
            if ((await CommitAsync([], [new(record.Key, record.Encode())])).Outcome != MetaOutcome.Committed) return UnfinishedFault();
        }

        if (record.IsUndone)
        {
            foreach (BackMember member in record.Members) isLeft |= !await ComeAgainAsync(record, member);
        }

        if (isLeft) return UnfinishedFault();
        MetaChange[] labels = record.IsUndone ? [] :
            [.. record.Members.Select(m => new SnapshotRecord(m.VolumeId, m.Safety, false, record.Members.Count > 1 ? record.Group : null, null)).Select(r => new MetaChange(r.Key, r.Encode()))];
        if ((await CommitAsync([], [.. labels, new MetaChange(record.Key, null)])).Outcome != MetaOutcome.Committed) return UnfinishedFault();
        _hasBacks = false;
        return refused;
    }

    private async Task<IoStatus> GoBackAsync(VolumeRecord volume, Guid snapshot, SnapshotRequest safety)
    {
        _unsettled.Add(volume.Id);
        MetaResult written = await WriteAsync(volume with { State = VolumeState.RollingBack });
        if (written.Outcome != MetaOutcome.Committed) return IoStatus.Unavailable;
        IoStatus status = await _hosts[volume.StoreId].RollBackAsync(snapshot, safety);
        await RepairUnsettledAsync(); // takes the size over from the store
        return status;
    }

    /// <summary>Makes a member again what it was, and leaves nothing of its going back. False when its store does not serve it.</summary>
    private async Task<bool> ComeAgainAsync(BackRecord record, BackMember member)
    {
        if (_table.FindById(member.VolumeId) is not { } volume) return true;
        string name = "undo-" + record.Group.ToString("N")[..12];
        if (await LayersAsync(volume) is not { } layers || !await DropAsync(layers)) return false;
        if (layers.Snapshots.All(s => s.Uuid != member.Safety)) return true;
        var between = new SnapshotRequest(volume.Id, random.NextGuid(), name, record.UnixSeconds);
        if (await GoBackAsync(volume, member.Safety, between) != IoStatus.Ok) return false;
        if (await LayersAsync(volume) is not { } after || !await DropAsync(after)) return false;
        return await _hosts[volume.StoreId].DeleteSnapshotAsync(volume.Id, member.Safety) is IoStatus.Ok or IoStatus.NotFound;

        async Task<bool> DropAsync(VolumeLayers from)
        {
            foreach (SnapshotInfo left in from.Snapshots.Where(s => s.Name == name))
            {
                if (await _hosts[volume.StoreId].DeleteSnapshotAsync(volume.Id, left.Uuid) is not (IoStatus.Ok or IoStatus.NotFound)) return false;
            }

            return true;
        }
    }

    /// <summary>Carries through what an earlier run or an absent store has left.</summary>
    private async Task CarryBacksAsync()
    {
        IReadOnlyList<MetaEntry> entries = await meta.RangeAsync(BackPrefix);
        bool isLeft = false;
        foreach (MetaEntry entry in entries)
        {
            BackRecord? record = Deserialize(entry, BackRecordJson.Default.BackRecord);

            if (record?.Members is null || record.Members.Any(m => m is null) || record.Key != entry.Key) throw Damaged(entry, "it names no members");
            isLeft |= await CarryBackAsync(record) is { Code: "rollback-unfinished" };
        }

        _hasBacks = isLeft;
    }

    private static DirectoryFault UnfinishedFault() => new(
        IoStatus.Unavailable, "rollback-unfinished",
        "a disk does not serve; some of the volumes have gone back already, the others follow when it does (pfcli list_disk), also after a restart");
}

/// <summary>A volume that goes back, and the identity of what it keeps.</summary>
internal sealed record BackMember(uint VolumeId, Guid StoreId, Guid Snapshot, Guid Safety);

/// <summary>A rollback of several volumes that is not known to be done; the value of <c>back/UUID</c>.</summary>
/// <param name="Group">Identity of the group that they keep.</param>
/// <param name="SafetyName">Its name.</param>
/// <param name="UnixSeconds">Its time.</param>
/// <param name="IsUndone">One could not go back: the others come again.</param>
/// <param name="Members">The volumes.</param>
internal sealed record BackRecord(Guid Group, string SafetyName, ulong UnixSeconds, bool IsUndone, IReadOnlyList<BackMember> Members)
{
    [JsonIgnore]
    public string Key => "back/" + Group.ToString("N");

    public byte[] Encode() => JsonSerializer.SerializeToUtf8Bytes(this, BackRecordJson.Default.BackRecord);
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(BackRecord))]
internal sealed partial class BackRecordJson : JsonSerializerContext;
