using System.Collections.Concurrent;
using System.Globalization;
using System.Text.Json;
using BlockServer.Core;

namespace BlockServer.Cluster;

// Volumes that go to another store. A copy is made there under the same number with epoch 0, which nobody adopts. One
// transaction removes the move, writes the new home into the records, and notes what is left at the old one (left/STORE/ID),
// which is then deleted whenever that store serves. Given up, a move ends the same way with the copies as what is left.
public sealed partial class VolumeDirectory
{
    private const string LeftPrefix = "left/";

    private readonly ConcurrentDictionary<uint, MoveRecord> _moves = []; // by the number of the first volume
    private readonly ConcurrentDictionary<uint, uint> _movedWith = []; // volume to move
    private readonly ConcurrentDictionary<Guid, bool> _draining = [];
    private readonly ConcurrentDictionary<Guid, bool> _cutForMove = []; // nobody is shown these
    private readonly ConcurrentDictionary<(Guid Store, uint Volume), bool> _leaving = []; // homes that somebody still reads from

    /// <summary>The moves that are under way.</summary>
    public IReadOnlyList<MoveRecord> Moves => [.. _moves.Values.OrderBy(m => m.Id)];

    /// <summary>The move that a volume takes part in, or null.</summary>
    public MoveRecord? MoveOf(uint volumeId) => _movedWith.TryGetValue(volumeId, out uint move) ? _moves.GetValueOrDefault(move) : null;

    /// <summary>Nothing new is placed on a store, or again.</summary>
    public void SetDraining(Guid storeId, bool isDraining)
    {
        if (isDraining) _draining[storeId] = true;
        else _draining.TryRemove(storeId, out _);
    }

    /// <summary>The store is being emptied.</summary>
    public bool IsDraining(Guid storeId) => _draining.ContainsKey(storeId);

    /// <summary>A snapshot that a move has cut for itself: it is nobody's business.</summary>
    public bool IsCutForMove(Guid snapshot) => _cutForMove.ContainsKey(snapshot);

    /// <summary>Writes down that a volume, with all that share blocks with it, goes to another store. The same move again is
    /// answered when it is under way already.</summary>
    public Task<(MoveRecord? Move, DirectoryFault? Fault)> BeginMoveAsync(string name, Guid to) => AloneAsync<(MoveRecord?, DirectoryFault?)>(async () =>
    {
        if (Find(name) is not { } volume) return (null, NoVolume(name));
        if (MoveOf(volume.Id) is { } running)
            return running.To == to ? (running, null) : (null, MoveFault(volume));
        if (!_hosts.TryGetValue(volume.StoreId, out IVolumeHost? from)) return (null, AwayFault());
        if (!_hosts.TryGetValue(to, out IVolumeHost? target) || await target.FreeBytesAsync() is null)
            return (null, new DirectoryFault(IoStatus.NotFound, "no-disk", "no such disk is in service", "storeId"));
        if (volume.StoreId == to) return (null, new DirectoryFault(IoStatus.Conflict, "already-there", $"'{name}' lies on that disk already", "storeId"));
        (List<VolumeRecord> family, DirectoryFault? fault) = await FamilyAsync(volume, from);
        if (fault is not null) return (null, fault);
        foreach (VolumeRecord member in family)
        {
            if (await meta.GetAsync(LeftKey(to, member.Id)) is not null)
                return (null, new DirectoryFault(IoStatus.Conflict, "copy-being-deleted", $"an older copy of '{member.Name}' still gives its blocks back there; try again in a moment"));
        }

        ulong promised = family.Aggregate(0UL, (sum, v) => sum + v.PromisedBytes);
        if (promised > 0 && await target.PromisableBytesAsync() is { } left && left < promised)
            return (null, CapacityFault(promised, left, "storeId", "choose a disk with more room, add one (pfcli add_disk), or make some of what goes along thin (pfcli resize_volume --thin)"));
        var record = new MoveRecord([.. family.Select(v => new MoveMember(v.Id))], volume.StoreId, to, []);
        MetaResult written = await CommitAsync([new(MoveKey(record.Id), 0)], [new(MoveKey(record.Id), Encode(record))]);
        if (written.Outcome != MetaOutcome.Committed) return (null, MetaCommit.FaultOf(written.Outcome));
        return (ShowMove(record with { Revision = written.Revision }), null);
    }, fault => (null, fault));

    /// <summary>Writes down how far a move is; null when it is not under way any more or the metadata cannot be written.
    /// One caller at a time for each move.</summary>
    public async Task<MoveRecord?> AdvanceMoveAsync(MoveRecord move)
    {
        try
        {
            MetaResult written = await CommitAsync([new(MoveKey(move.Id), move.Revision)], [new(MoveKey(move.Id), Encode(move))]);
            return written.Outcome == MetaOutcome.Committed ? ShowMove(move with { Revision = written.Revision }) : null;
        }
        catch (MetaException)
        {
            return null;
        }
    }

    /// <summary>
    /// Gives the volumes of a move their new home, in one transaction. <paramref name="bring"/> is called while nothing else
    /// changes here: it holds the volumes' changes back and makes the copies whole and durable, or says why not. Whoever
    /// called holds changes back until this has answered. With a fault the old home is the only one. The answer is not given
    /// before it is known which home is written down, however long that takes.
    /// </summary>
    public Task<(IReadOnlyList<VolumeRecord>? Moved, DirectoryFault? Fault)> SwitchHomeAsync(
        uint moveId, Func<MoveRecord, IReadOnlyList<VolumeRecord>, Task<DirectoryFault?>> bring, CancellationToken cancel) =>
        AloneAsync<(IReadOnlyList<VolumeRecord>?, DirectoryFault?)>(async () =>
        {
            if (!_moves.TryGetValue(moveId, out MoveRecord? move)) return (null, NoMove());
            VolumeRecord[] members = [.. move.Members.Select(m => _table.FindById(m.Id)).OfType<VolumeRecord>()];
            if (members.Length < move.Members.Count) return (null, NoMove());
            if (await bring(move, members) is { } fault) return (null, fault);
            cancel.ThrowIfCancellationRequested();
            IVolumeHost to = _hosts[move.To];
            VolumeRecord[] moved = [.. members.Select(v => v with { StoreId = move.To, Epoch = v.Epoch + 1 })];
            // From here to the transaction both have the same content, and nobody writes to either.
            foreach (VolumeRecord volume in moved)
            {
                IoStatus status = await to.UpdateAsync(HeadOf(volume));
                if (status == IoStatus.Ok) continue;
                await LowerAsync(to, moved);
                return (null, StoreFault(status));
            }

            var compares = new List<MetaCompare> { new(MoveKey(move.Id), move.Revision) };
            var changes = new List<MetaChange> { new(MoveKey(move.Id), null) };
            for (int i = 0; i < moved.Length; i++)
            {
                compares.Add(new MetaCompare(VolumeKey(moved[i].Id), members[i].Revision));
                changes.Add(new MetaChange(VolumeKey(moved[i].Id), Encode(moved[i])));
                changes.Add(new MetaChange(LeftKey(move.From, moved[i].Id), Encode(move)));
            }

            MetaResult written = await CommitForSureAsync(compares, changes);
            if (written.Outcome != MetaOutcome.Committed)
            {
                await LowerAsync(to, moved);
                return (null, MetaCommit.FaultOf(written.Outcome));
            }

            foreach (VolumeRecord volume in moved) _leaving[(move.From, volume.Id)] = true;
            HideMove(move);
            return ([.. moved.Select(v => Show(v with { Revision = written.Revision }))], null);
        }, fault => (null, fault));

    /// <summary>Ends a move before it changed anything: its copies go.</summary>
    public Task<DirectoryFault?> AbandonMoveAsync(uint moveId) => AloneAsync<DirectoryFault?>(async () =>
    {
        if (!_moves.TryGetValue(moveId, out MoveRecord? move)) return NoMove();
        List<MetaChange> changes = [new MetaChange(MoveKey(move.Id), null)];
        foreach (MoveMember member in move.Members) changes.Add(new MetaChange(LeftKey(move.To, member.Id), Encode(move)));
        // They go as snapshots for copies do: whenever their store serves.
        foreach (MoveMember member in move.Members)
        {
            foreach (Guid cut in move.Cuts)
            {
                var label = new SnapshotRecord(member.Id, cut, false, null, null, IsForCopy: true);
                if (await HasSnapshotAsync(move.From, member.Id, cut)) changes.Add(new MetaChange(label.Key, label.Encode()));
            }
        }

        MetaResult written = await CommitForSureAsync([new(MoveKey(move.Id), move.Revision)], changes);
        if (written.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(written.Outcome);
        HideMove(move);
        return null;
    }, fault => fault);

    /// <summary>Nobody reads from the old homes of a move any more: what they hold may be deleted.</summary>
    public void HasLeft(MoveRecord move)
    {
        foreach (MoveMember member in move.Members) _leaving.TryRemove((move.From, member.Id), out _);
    }

    /// <summary>Deletes what moves have left on the stores that serve. False while something is still to go there: a clone
    /// that goes holds its base. A store that is away keeps what it has until it is back.</summary>
    public Task<bool> SweepMovesAsync() => AloneAsync(SweepMovesAloneAsync, _ => false);

    /// <summary>Why a volume cannot be changed: it is on its way to another disk. Null when it is not.</summary>
    public DirectoryFault? MoveFault(VolumeRecord volume) => MoveOf(volume.Id) is null ? null : new(
        IoStatus.Conflict, "volume-moving", $"'{volume.Name}' is on its way to another disk; wait until it is there, or cancel that (pfcli list_task, cancel_task)");

    private async Task<bool> SweepMovesAloneAsync()
    {
        bool isDone = true;
        // What others were cloned from has the lower number and goes last.
        foreach (MetaEntry entry in (await meta.RangeAsync(LeftPrefix)).OrderByDescending(e => LeftOf(e).VolumeId))
        {
            (Guid store, uint id) = LeftOf(entry);
            if (_leaving.ContainsKey((store, id)) || !_hosts.TryGetValue(store, out IVolumeHost? host) || await host.FreeBytesAsync() is null)
            {
                isDone &= !_leaving.ContainsKey((store, id)); // for a disk that does not serve nobody waits
                continue;
            }

            IoStatus status = await host.DeleteAsync(id);
            if (status is IoStatus.Ok or IoStatus.NotFound) await CommitAsync([], [new MetaChange(entry.Key, null)]);
            else isDone = false;
        }

        return isDone;
    }

    /// <summary>Everything that shares blocks with a volume, what is cloned from behind what it is cloned from; or why it cannot
    /// go.</summary>
    private async Task<(List<VolumeRecord> Family, DirectoryFault? Fault)> FamilyAsync(VolumeRecord volume, IVolumeHost host)
    {
        var found = new Dictionary<uint, (VolumeRecord Volume, VolumeLayers Layers)>();
        var open = new Queue<uint>([volume.Id]);
        while (open.TryDequeue(out uint id))
        {
            if (found.ContainsKey(id)) continue;
            if (_table.FindById(id) is not { } member)
                return ([], new DirectoryFault(IoStatus.Conflict, "clone-being-deleted", $"a deleted clone in the family of '{volume.Name}' still gives its blocks back; try again in a moment"));
            if (await host.LayersAsync(id) is not { } layers) return ([], AwayFault());
            if (ImportFault(member) is { } coming) return ([], coming);
            if (MoveFault(member) is { } moving) return ([], moving);
            if (layers.IsFlattening)
                return ([], new DirectoryFault(IoStatus.Conflict, "volume-flattening", $"'{member.Name}' is being flattened; wait until that has ended"));
            if (_unsettled.Contains(id)) return ([], new DirectoryFault(IoStatus.Conflict, "changed-meanwhile", $"'{member.Name}' is being changed; try again in a moment"));
            found.Add(id, (member, layers));
            if (layers.Base is { } basis) open.Enqueue(basis.VolumeId);
            foreach (uint clone in layers.Snapshots.SelectMany(s => s.Clones)) open.Enqueue(clone);
        }

        var family = new List<VolumeRecord>();
        while (family.Count < found.Count)
        {
            VolumeRecord[] next = [.. found.Values.Where(f => !family.Contains(f.Volume)
                && (f.Layers.Base is not { } basis || family.Any(v => v.Id == basis.VolumeId))).Select(f => f.Volume).OrderBy(v => v.Id)];
            Check.That(next.Length > 0);
            family.AddRange(next);
        }

        return (family, null);
    }

    private async Task<bool> HasSnapshotAsync(Guid store, uint volumeId, Guid snapshot) =>
        !_hosts.TryGetValue(store, out IVolumeHost? host) || await host.LayersAsync(volumeId) is not { } layers
        || layers.Snapshots.Any(s => s.Uuid == snapshot);

    /// <summary>Copies that did not become homes are nobody's again.</summary>
    private static async Task LowerAsync(IVolumeHost to, IEnumerable<VolumeRecord> moved)
    {
        foreach (VolumeRecord volume in moved) await to.UpdateAsync(HeadOf(volume) with { Epoch = CopyEpoch });
    }

    private static readonly TimeSpan s_metaRetry = TimeSpan.FromMilliseconds(100);

    /// <summary>As <see cref="CommitAsync"/>, and asks until it is known what became of it.</summary>
    private async Task<MetaResult> CommitForSureAsync(List<MetaCompare> compares, List<MetaChange> changes)
    {
        MetaResult result = await meta.TransactAsync(compares, changes);
        while (result.Outcome == MetaOutcome.Unknown)
        {
            try
            {
                // The first change removes a key that was there: all or nothing of the rest goes with it.
                MetaEntry? now = await meta.GetAsync(changes[0].Key);
                if (now is not null) return result;
                long revision = 0;
                foreach (MetaChange change in changes) revision = Math.Max(revision, (await meta.GetAsync(change.Key))?.ModRevision ?? 0);
                return new MetaResult(MetaOutcome.Committed, revision);
            }
            catch (MetaException)
            {
                await Delay(s_metaRetry);
            }
        }

        return result;
    }

    /// <summary>Reads the moves; before the volumes are looked at.</summary>
    private async Task<HashSet<(Guid Store, uint Volume)>> LoadMovesAsync()
    {
        var copies = new HashSet<(Guid, uint)>();
        foreach (MetaEntry entry in await meta.RangeAsync(MoveRecord.Prefix))
        {
            MoveRecord move = DecodeMove(entry);
            if (!_moves.TryGetValue(move.Id, out MoveRecord? known) || known.Revision < move.Revision) ShowMove(move);
            foreach (MoveMember member in move.Members) copies.Add((move.To, member.Id));
        }

        foreach (MetaEntry entry in await meta.RangeAsync(LeftPrefix)) copies.Add(LeftOf(entry));
        return copies;
    }

    private MoveRecord ShowMove(MoveRecord move)
    {
        _moves[move.Id] = move;
        foreach (MoveMember member in move.Members) _movedWith[member.Id] = move.Id;
        foreach (Guid cut in move.Cuts) _cutForMove[cut] = true;
        return move;
    }

    private void HideMove(MoveRecord move)
    {
        _moves.TryRemove(move.Id, out _);
        foreach (MoveMember member in move.Members) _movedWith.TryRemove(member.Id, out _);
        // The cuts stay hidden: they are about to go.
    }

    /// <summary>Epoch of a copy that is not whole.</summary>
    public const ulong CopyEpoch = 0;

    private static string MoveKey(uint id) => MoveRecord.Prefix + id.ToString(CultureInfo.InvariantCulture);

    private static string LeftKey(Guid store, uint id) => string.Create(CultureInfo.InvariantCulture, $"{LeftPrefix}{store:D}/{id}");

    private static (Guid Store, uint VolumeId) LeftOf(MetaEntry entry)
    {
        string[] parts = entry.Key[LeftPrefix.Length..].Split('/');
        return parts.Length == 2 && Guid.TryParse(parts[0], out Guid store)
            && uint.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out uint id)
            ? (store, id) : throw Damaged(entry, "it names no volume of a disk");
    }

    private static byte[] Encode(MoveRecord move) => JsonSerializer.SerializeToUtf8Bytes(move, MoveRecordJson.Default.MoveRecord);

    private static MoveRecord DecodeMove(MetaEntry entry)
    {
        MoveRecord? move = Deserialize(entry, MoveRecordJson.Default.MoveRecord);

        if (move is not { Members.Count: > 0, Cuts: not null } || move.Members.Any(m => m is null) || MoveKey(move.Id) != entry.Key)
            throw Damaged(entry, "it names no volumes");
        return move with { Revision = entry.ModRevision };
    }

    private static DirectoryFault NoMove() => new(IoStatus.NotFound, "no-such-move", "that move has ended");
}
