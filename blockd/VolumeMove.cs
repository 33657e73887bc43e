using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Streams;

namespace BlockServer.Blockd;

/// <summary>A store that volumes are moved from or to, or that streams come into.</summary>
internal interface IMoveSide : IVolumeHost
{
    /// <summary>Does something on the loop of the store.</summary>
    Task<T> RunAsync<T>(Func<ILayeredStore, ValueTask<T>> work);
}

/// <summary>Holds the changes of volumes back while they get another home.</summary>
internal interface IMoveGate
{
    /// <summary>Holds back every change of the volumes; null when that was not to be had.</summary>
    Task<IMoveHold?> HoldAsync(IReadOnlyList<VolumeRecord> volumes);
}

/// <summary>Changes held back.</summary>
internal interface IMoveHold
{
    /// <summary>Whoever uses the volumes uses their new homes from now on.</summary>
    Task SwitchAsync(IReadOnlyList<VolumeRecord> moved);

    /// <summary>Changes go on. Call it once, whatever happened.</summary>
    Task ReleaseAsync();

    /// <summary>Answers when nobody reads from the old homes any more.</summary>
    Task DrainAsync();
}

/// <summary>Dice, watch and patience of moves.</summary>
/// <param name="Random">For identities.</param>
/// <param name="Clock">For the times of snapshots.</param>
/// <param name="Delay">Waits so long.</param>
internal sealed record MoveSeams(IRandom Random, IWallClock Clock, Func<TimeSpan, Task> Delay);

/// <summary>Why a move ended before it was done.</summary>
/// <param name="canGoOn">The move stays written down and goes on later: its disks are away, or the metadata.</param>
/// <param name="message">A sentence for the operator.</param>
internal sealed class MoveException(bool canGoOn, string message) : IOException(message)
{
    public bool CanGoOn { get; } = canGoOn;
}

/// <summary>Rules of a move that a test breaks, to see that it is noticed.</summary>
[Flags]
internal enum BrokenMoves
{
    None = 0,

    /// <summary>The new home is entered before it is durable.</summary>
    SkipCopyFlush = 1,

    /// <summary>What is not durable in the old home is copied.</summary>
    SkipHomeFlush = 2,

    /// <summary>Changes are not held back for the last difference.</summary>
    SkipHold = 4,

    /// <summary>A move that was interrupted goes on behind the place that it had reached.</summary>
    SkipAhead = 8,

    /// <summary>Appends are not held back for the last difference.</summary>
    SkipAppendHold = 16,

    /// <summary>The new home of an append-only volume does not know who has appended.</summary>
    ForgetClients = 32,
}

/// <summary>What a move may cost those who use its volumes.</summary>
internal sealed record MoveLimits
{
    /// <summary>Longest time that changes are held back for the last difference.</summary>
    public TimeSpan PauseMax { get; init; } = TimeSpan.FromSeconds(4);

    /// <summary>A round that copied less is the last one in front of the pause.</summary>
    public ulong LastRoundBytes { get; init; } = 8 * Units.MiB;

    /// <summary>Rounds after which the pause is tried whatever was copied; and as often as that it may fail.</summary>
    public int RoundsMax { get; init; } = 12;

    /// <summary>Copied bytes between two places from which the move can go on after a crash.</summary>
    public ulong KeepEveryBytes { get; init; } = 64 * Units.MiB;

    /// <summary>What must stay free at the old home while clients change what snapshots keep: below it the move is given up
    /// before they get an error.</summary>
    public ulong FreeBytesMin { get; init; } = 64 * Units.MiB;

    /// <summary>Bytes that are read and written in one go.</summary>
    public int BatchBytes { get; init; } = 2 << 20;

    /// <summary>Tests only.</summary>
    public BrokenMoves Broken { get; init; }

    /// <summary>Copied bytes a second, 0: as fast as the disks allow.</summary>
    public ulong BytesPerSecond { get; init; }
}

/// <summary>
/// Carries one move through: copies the volumes' snapshots and what they are now while clients go on, then what has changed
/// meanwhile, round by round, then holds changes back for the rest and gives the volumes their new home. May be begun again
/// from any moment at which the process ended. Lives on no loop; one use.
/// </summary>
internal sealed class VolumeMove(
    VolumeDirectory directory, IMoveSide from, IMoveSide to, IMoveGate gate, MoveSeams seams, MoveLimits limits,
    Action<double> progress, CancellationToken cancel)
{
    private const int MakeTriesMax = 3000; // a minute of moments
    private static readonly TimeSpan s_moment = TimeSpan.FromMilliseconds(20);

    private readonly StreamBatch _batch = new(limits.BatchBytes);
    private readonly Pacer _pacer = new(limits.BytesPerSecond);
    private MoveRecord _move = null!;
    private ulong _copied, _expected, _freeAtStart;

    /// <summary>Ends when nobody reads from the old home any more and its deletion was begun.</summary>
    public Task Leaving { get; private set; } = Task.CompletedTask;

    /// <summary>Bytes that were copied.</summary>
    public ulong CopiedBytes => _copied;

    /// <summary>Carries it through; the volumes in their new home. Throws <see cref="MoveException"/> and
    /// <see cref="OperationCanceledException"/>; the old home is the only one then.</summary>
    public async Task<IReadOnlyList<VolumeRecord>> RunAsync(MoveRecord move)
    {
        _move = move;
        await PrepareAsync();
        bool isStill = await from.RunAsync(store => new ValueTask<bool>(store.State == StoreState.Failed));
        for (int round = 0, pauses = 0; ; round++)
        {
            ulong before = _copied;
            // A disk that takes no changes any more has nothing to cut; what it holds does not change either.
            for (int i = 0; i < _move.Members.Count; i++) await CatchUpAsync(i, cuts: !isStill);
            if (!isStill && _copied - before > limits.LastRoundBytes && round < limits.RoundsMax) continue;
            if (await TrySwitchAsync(isStill) is { } moved) return moved;
            if (++pauses >= limits.RoundsMax)
                throw new MoveException(false, "clients change the volume faster than it can be copied; try again when there is less to do, or limit them");
        }
    }

    /// <summary>Makes the copies fit to go on with, or anew.</summary>
    private async Task PrepareAsync()
    {
        _freeAtStart = await from.FreeBytesAsync() ?? 0;
        foreach (MoveMember member in _move.Members)
        {
            _expected += await from.RunAsync(store => new ValueTask<ulong>(store.UsedBytes(member.Id)));
        }

        if (await CanGoOnAsync())
        {
            foreach (MoveMember member in _move.Members) await IsPromisedThereAsync(member.Id);
            return;
        }

        foreach (MoveMember member in _move.Members.Reverse()) await DropAsync(member.Id);
        await KeepAsync(_move with { Members = [.. _move.Members.Select(m => new MoveMember(m.Id))] });
    }

    /// <summary>What the record says of the copies is so.</summary>
    private async Task<bool> CanGoOnAsync()
    {
        foreach (MoveMember member in _move.Members)
        {
            IReadOnlyList<SnapshotInfo> ours = await SnapshotsAsync(from, member.Id), theirs = await SnapshotsAsync(to, member.Id);
            bool isThere = await to.RunAsync(store => new ValueTask<bool>(store.OpenVolume(member.Id) is not null));
            bool wasBegun = member.Base is not null || member.Point is not null;
            if (isThere != wasBegun) return false;
            if (!wasBegun) continue;
            bool IsKnown(Guid? snapshot) => snapshot is null || ours.Any(s => s.Uuid == snapshot);
            if (!IsKnown(member.Base) || !IsKnown(member.Point)) return false;
            // Every snapshot up to the base is there; one more may have been cut without that being written down.
            Guid[] due = [.. Users(member.Base is { } basis ? Upto(ours, basis) : [])];
            if (!theirs.Select(s => s.Uuid).Take(due.Length).SequenceEqual(due)) return false;
            if (theirs.Count > due.Length && !(theirs.Count == due.Length + 1 && theirs[^1].Uuid == member.Point)) return false;
        }

        return true;
    }

    private async Task DropAsync(uint id)
    {
        while (true)
        {
            IoStatus status = await to.DeleteAsync(id);
            if (status == IoStatus.NotFound)
            {
                // Its number is free again when its pages are.
                if (!await to.RunAsync(store => new ValueTask<bool>(store.Volumes.Any(v => v.Id == id)))) return;
            }
            else if (status is not (IoStatus.Ok or IoStatus.Conflict))
            {
                throw Failed(status, "the disk that it goes to");
            }

            cancel.ThrowIfCancellationRequested();
            await seams.Delay(s_moment);
        }
    }

    /// <summary>Copies every snapshot that the copy does not have yet, and a new one.</summary>
    private async Task CatchUpAsync(int index, bool cuts)
    {
        uint id = _move.Members[index].Id;
        if (cuts) await CutAsync(id);
        foreach (SnapshotInfo point in After(await SnapshotsAsync(from, id), _move.Members[index].Base)) await CopyPointAsync(index, point);
        await DropOldCutsAsync(index);
    }

    private async Task CutAsync(uint id)
    {
        Guid uuid = seams.Random.NextGuid();
        await KeepAsync(_move with { Cuts = [.. _move.Cuts, uuid] });
        var request = new SnapshotRequest(id, uuid, "moving-" + uuid.ToString("N")[..12], (ulong)Math.Max(0, seams.Clock.UtcNow.ToUnixTimeSeconds()));
        IoStatus status = await from.CutAsync([request]);
        if (status != IoStatus.Ok) throw Failed(status, "the disk that it lies on");
    }

    private async Task CopyPointAsync(int index, SnapshotInfo point)
    {
        MoveMember member = _move.Members[index];
        ulong offset = member.Point == point.Uuid ? member.OffsetBytes : 0;
        if (limits.Broken.HasFlag(BrokenMoves.SkipAhead) && offset > 0) offset = Math.Min(point.SizeBytes, offset + Units.MiB / 2);
        if (member.Point != point.Uuid) await KeepMemberAsync(index, member with { Point = point.Uuid, OffsetBytes = 0 });
        if (member.Base is null && offset == 0) await MakeAsync(index, point.SizeBytes);
        await SizeAsync(member.Id, point.SizeBytes, point.LengthBytes is { } length ? new AppendCopyState(length, []) : null);
        (Guid? basis, bool isBlank) = await BaseOfAsync(member);
        SnapshotReader reader = await from.RunAsync(store => new ValueTask<SnapshotReader?>(
            SnapshotReader.Open(store, member.Id, basis, point.Uuid, offset))) ?? throw new MoveException(true, "a snapshot was deleted meanwhile");
        await CopyAsync(member.Id, reader, isBlank, async at => await KeepMemberAsync(index, _move.Members[index] with { OffsetBytes = at }), null);
        if (!_move.Cuts.Contains(point.Uuid)) await CutCopyAsync(point);
        await KeepMemberAsync(index, new MoveMember(member.Id, point.Uuid));
    }

    /// <summary>Makes the empty copy, or a clone of the copy of what it was cloned from.</summary>
    private async Task MakeAsync(int index, ulong sizeBytes)
    {
        MoveMember member = _move.Members[index];
        VolumeRecord record = directory.Find(member.Id) ?? throw new MoveException(false, "the volume was deleted");
        (uint VolumeId, Guid Snapshot)? basis = await from.RunAsync(store => new ValueTask<(uint, Guid)?>(store.BaseOf(member.Id)));
        if (basis is { } cloned)
            sizeBytes = Math.Max(sizeBytes, (await SnapshotsAsync(from, cloned.VolumeId)).First(s => s.Uuid == cloned.Snapshot).SizeBytes);
        if (record.IsAppendOnly) sizeBytes = RoomOf(record, sizeBytes);
        var head = new VolumeHead(record.Id, record.Uuid, record.Name, sizeBytes, VolumeDirectory.CopyEpoch) { IsAppendOnly = record.IsAppendOnly };
        for (int i = 0; ; i++)
        {
            if (await IsPromisedThereAsync(member.Id)) return;
            IoStatus status = basis is { } on ? await to.CloneAsync(head, on.VolumeId, on.Snapshot) : await to.CreateAsync(head);
            if (status == IoStatus.Ok) continue;
            // The pages of an older copy go first.
            if (status != IoStatus.Conflict || i == MakeTriesMax) throw Failed(status, "the disk that it goes to");
            cancel.ThrowIfCancellationRequested();
            await seams.Delay(s_moment);
        }
    }

    /// <summary>What the volume was promised is promised to its copy too, from the begin on. False while there is no copy.</summary>
    private async Task<bool> IsPromisedThereAsync(uint id)
    {
        VolumeRecord record = directory.Find(id) ?? throw new MoveException(false, "the volume was deleted");
        IoStatus status = await to.PromiseAsync(id, record.PromisedBytes, isForced: false);
        if (status == IoStatus.NoSpace)
            throw new MoveException(false, $"the disk that it goes to cannot promise the room that '{record.Name}' was promised; make the volume thin, or add a larger disk");
        return status == IoStatus.Ok;
    }

    /// <summary>What the copy shows now, and whether that is nothing.</summary>
    private async Task<(Guid? Base, bool IsBlank)> BaseOfAsync(MoveMember member)
    {
        if (member.Base is { } own) return (own, false);
        (uint VolumeId, Guid Snapshot)? cloned = await from.RunAsync(store => new ValueTask<(uint, Guid)?>(store.BaseOf(member.Id)));
        return (cloned?.Snapshot, cloned is null);
    }

    /// <summary>The copy is so long; one that is append-only has so many bytes, and knows these clients.</summary>
    private async Task SizeAsync(uint id, ulong sizeBytes, AppendCopyState? appends)
    {
        VolumeHead head = await to.RunAsync(store => new ValueTask<VolumeHead?>(store.Volumes.FirstOrDefault(v => v.Id == id)))
            ?? throw new MoveException(true, "the copy is gone");
        if (appends is not null) sizeBytes = Math.Max(head.SizeBytes, RoomOf(directory.Find(id) ?? throw new MoveException(false, "the volume was deleted"), sizeBytes));
        // It may have been made the home already when the process ended, and that was not written down.
        VolumeHead wanted = head with { SizeBytes = sizeBytes, Epoch = VolumeDirectory.CopyEpoch };
        IoStatus status = head == wanted ? IoStatus.Ok : await to.UpdateAsync(wanted);
        if (status == IoStatus.Ok && appends is not null) status = await to.RunAsync(store => ((IAppendCopy)store).SetCopyAsync(id, appends));
        if (status != IoStatus.Ok) throw Failed(status, "the disk that it goes to");
    }

    /// <summary>Maximum size of the copy of an append-only volume until it becomes the home: what it shows is in whole blocks.</summary>
    private static ulong RoomOf(VolumeRecord record, ulong shownBytes) =>
        (Math.Max(record.SizeBytes, shownBytes) + Units.BlockBytes - 1) & ~(ulong)(Units.BlockBytes - 1);

    /// <summary>Copies what the reader finds, and makes it durable. False when it took too long.</summary>
    private async Task<bool> CopyAsync(uint id, SnapshotReader reader, bool isBlank, Func<ulong, Task>? keep, Task? deadline)
    {
        bool isAppendOnly = directory.Find(id)?.IsAppendOnly == true;
        IBlockDevice device = await to.RunAsync(store => new ValueTask<IBlockDevice?>(isAppendOnly ? ((IAppendCopy)store).OpenCopy(id) : store.OpenVolume(id)))
            ?? throw new MoveException(true, "the copy is gone");
        ulong sinceKept = 0;
        while (true)
        {
            cancel.ThrowIfCancellationRequested();
            if (deadline is { IsCompleted: true }) return false;
            IoStatus status = await from.RunAsync(_ => reader.FillAsync(_batch));
            if (status is IoStatus.Corrupt or IoStatus.IoError)
            {
                ulong bad = await from.RunAsync(_ => reader.FindBadAsync(_batch));
                throw new MoveException(false, $"volume {directory.Find(id)?.Name} cannot be read at byte {bad} ({status}); it stays where it is: look with pfcli scrub_volume, overwrite or trim what is bad, then move it again");
            }

            if (status != IoStatus.Ok) throw Failed(status, "the disk that it lies on");
            if (_batch.Pieces.Count == 0) break;
            status = await to.RunAsync(_ => BatchWriter.ApplyAsync(device, _batch, isBlank));
            if (status != IoStatus.Ok) throw Failed(status, "the disk that it goes to");
            ulong bytes = (ulong)_batch.UsedBytes;
            (_copied, sinceKept) = (_copied + bytes, sinceKept + bytes);
            progress(_expected == 0 ? 0.99 : Math.Min(0.99, (double)_copied / _expected));
            if (keep is not null && sinceKept >= limits.KeepEveryBytes)
            {
                await FlushAsync();
                await keep(reader.OffsetBytes);
                sinceKept = 0;
            }

            if (deadline is null) await CheckRoomAsync();
            if (deadline is null) await _pacer.PassAsync(bytes, cancel);
        }

        await FlushAsync();
        return true;

        async Task FlushAsync()
        {
            if (limits.Broken.HasFlag(BrokenMoves.SkipCopyFlush)) return;
            IoStatus flushed = await to.RunAsync(store => store.FlushAsync());
            if (flushed != IoStatus.Ok) throw Failed(flushed, "the disk that it goes to");
        }
    }

    /// <summary>Snapshots keep what clients overwrite: they must not run out of space for the sake of a move.</summary>
    private async Task CheckRoomAsync()
    {
        if (await from.FreeBytesAsync() is { } free && free < limits.FreeBytesMin && free < _freeAtStart / 2)
            throw new MoveException(false, "clients change so much meanwhile that the disk would run full; nothing was moved: free some space, then move it again");
    }

    private async Task CutCopyAsync(SnapshotInfo point)
    {
        if ((await SnapshotsAsync(to, point.VolumeId)).Any(s => s.Uuid == point.Uuid)) return;
        IoStatus status = await to.CutAsync([new SnapshotRequest(point.VolumeId, point.Uuid, point.Name, point.UnixSeconds)]);
        if (status != IoStatus.Ok) throw Failed(status, "the disk that it goes to");
    }

    /// <summary>Deletes the cuts that nothing is compared with any more.</summary>
    private async Task DropOldCutsAsync(int index)
    {
        MoveMember member = _move.Members[index];
        foreach (SnapshotInfo old in await SnapshotsAsync(from, member.Id))
        {
            if (old.Uuid == member.Base) break;
            if (!_move.Cuts.Contains(old.Uuid)) continue;
            IoStatus status = await from.DeleteSnapshotAsync(member.Id, old.Uuid);
            if (status is not (IoStatus.Ok or IoStatus.NotFound)) return; // a disk that takes no change keeps it until it goes as a whole
            await KeepAsync(_move with { Cuts = [.. _move.Cuts.Where(c => c != old.Uuid)] });
        }
    }

    /// <summary>Holds changes back, copies what is left and changes home. Null when that took too long, or a snapshot was cut
    /// meanwhile: another round, then.</summary>
    private async Task<IReadOnlyList<VolumeRecord>?> TrySwitchAsync(bool isStill)
    {
        IMoveHold? hold = null;
        bool hasMoved = false;
        var heldAppends = new List<uint>();
        IReadOnlyList<MoveMember> reached = _move.Members;
        // What a failed disk shows may be gone when it is opened again: a copy of that is not gone on with.
        if (isStill) await KeepAsync(_move with { Members = [.. reached.Select(m => new MoveMember(m.Id))] });
        try
        {
            (IReadOnlyList<VolumeRecord>? moved, DirectoryFault? fault) = await directory.SwitchHomeAsync(_move.Id, BringAsync, cancel);
            hasMoved = moved is not null;
            if (fault is { Code: Again } or { Code: "changed-meanwhile" }) return null;
            if (fault is not null) throw new MoveException(true, fault.Detail);
            // Who waits to append is sent to the new home; whoever uses the volume otherwise goes there with all that he has begun.
            await ReleaseAppendsAsync();
            await hold!.SwitchAsync(moved!);
            await hold.ReleaseAsync();
            IMoveHold done = hold;
            hold = null;
            Leaving = LeaveAsync(done);
            return moved!;
        }
        finally
        {
            await ReleaseAppendsAsync();
            if (hold is not null) await hold.ReleaseAsync();
        }

        async Task ReleaseAppendsAsync()
        {
            foreach (uint id in heldAppends)
            {
                await from.RunAsync(store =>
                {
                    ((IAppendCopy)store).ReleaseAppends(id, hasMoved);
                    return new ValueTask<bool>(true);
                });
            }

            heldAppends.Clear();
        }

        async Task<DirectoryFault?> BringAsync(MoveRecord move, IReadOnlyList<VolumeRecord> members)
        {
            hold = await gate.HoldAsync(members);
            if (hold is null) return new DirectoryFault(IoStatus.Unavailable, Again, "the volume did not come to rest in time");
            foreach (VolumeRecord member in members.Where(m => m.IsAppendOnly && !limits.Broken.HasFlag(BrokenMoves.SkipAppendHold)))
            {
                heldAppends.Add(member.Id);
                if (await HoldAppendsAsync(member.Id) is { } busy) return busy;
            }

            Task deadline = isStill ? new TaskCompletionSource().Task : seams.Delay(limits.PauseMax);
            // Durable first: what a power cut would take from the old home must not be in the new one.
            IoStatus flushed = isStill || limits.Broken.HasFlag(BrokenMoves.SkipHomeFlush) ? IoStatus.Ok : await from.RunAsync(store => store.FlushAsync());
            if (flushed != IoStatus.Ok) throw Failed(flushed, "the disk that it lies on");
            for (int i = 0; i < members.Count; i++)
            {
                if (After(await SnapshotsAsync(from, members[i].Id), reached[i].Base).Length > 0)
                    return new DirectoryFault(IoStatus.Conflict, Again, "a snapshot was cut meanwhile");
                if (reached[i].Base is null) await MakeAsync(i, members[i].SizeBytes);
                AppendCopyState? appends = members[i].IsAppendOnly ? await AppendsOfAsync(members[i].Id) : null;
                await SizeAsync(members[i].Id, appends is null ? members[i].SizeBytes : 0, appends);
                (Guid? basis, bool isBlank) = await BaseOfAsync(reached[i]);
                SnapshotReader reader = await from.RunAsync(store => new ValueTask<SnapshotReader?>(SnapshotReader.OpenLive(store, members[i].Id, basis)))
                    ?? throw new MoveException(true, "its disk does not serve the volume");
                if (!await CopyAsync(members[i].Id, reader, isBlank, null, deadline))
                    return new DirectoryFault(IoStatus.Conflict, Again, "too much had changed");
                await DropStrayCopiesAsync(members[i].Id);
            }

            return null;
        }
    }

    private const string Again = "once-more";

    private async Task<DirectoryFault?> HoldAppendsAsync(uint id)
    {
        IoStatus status = await from.RunAsync(store => ((IAppendCopy)store).HoldAppendsAsync(id, (ulong)limits.PauseMax.Ticks * 100));
        if (status == IoStatus.Conflict) return new DirectoryFault(IoStatus.Unavailable, Again, "an append did not end in time");
        return status == IoStatus.Ok ? null : throw Failed(status, "the disk that it lies on");
    }

    /// <summary>How long the volume is and who has appended what, while appends are held back.</summary>
    private async Task<AppendCopyState> AppendsOfAsync(uint id)
    {
        AppendCopyState state = await from.RunAsync(store => new ValueTask<AppendCopyState?>(((IAppendCopy)store).CopyStateOf(id)))
            ?? throw new MoveException(true, "its disk does not serve the volume");
        return limits.Broken.HasFlag(BrokenMoves.ForgetClients) ? state with { Clients = [] } : state;
    }

    /// <summary>Snapshots that were deleted here and are there still go.</summary>
    private async Task DropStrayCopiesAsync(uint id)
    {
        HashSet<Guid> ours = [.. (await SnapshotsAsync(from, id)).Select(s => s.Uuid)];
        foreach (SnapshotInfo stray in (await SnapshotsAsync(to, id)).Where(s => !ours.Contains(s.Uuid))) await to.DeleteSnapshotAsync(id, stray.Uuid);
    }

    private async Task LeaveAsync(IMoveHold hold)
    {
        await hold.DrainAsync();
        directory.HasLeft(_move);
        await directory.SweepMovesAsync();
    }

    private async Task KeepMemberAsync(int index, MoveMember member) =>
        await KeepAsync(_move with { Members = [.. _move.Members.Select((m, i) => i == index ? member : m)] });

    private async Task KeepAsync(MoveRecord move) =>
        _move = await directory.AdvanceMoveAsync(move) ?? throw new MoveException(true, "how far the move is cannot be written down: the metadata database does not serve, or the move has ended");

    private static Task<IReadOnlyList<SnapshotInfo>> SnapshotsAsync(IMoveSide side, uint id) =>
        side.RunAsync(store => new ValueTask<IReadOnlyList<SnapshotInfo>>(store.Snapshots(id)));

    private IEnumerable<Guid> Users(IEnumerable<SnapshotInfo> snapshots) =>
        snapshots.Where(s => !_move.Cuts.Contains(s.Uuid)).Select(s => s.Uuid);

    private static IEnumerable<SnapshotInfo> Upto(IEnumerable<SnapshotInfo> snapshots, Guid last)
    {
        foreach (SnapshotInfo snapshot in snapshots)
        {
            yield return snapshot;
            if (snapshot.Uuid == last) yield break;
        }
    }

    private static SnapshotInfo[] After(IReadOnlyList<SnapshotInfo> snapshots, Guid? last) =>
        last is null ? [.. snapshots] : [.. snapshots.SkipWhile(s => s.Uuid != last).Skip(1)];

    private static MoveException Failed(IoStatus status, string where) => status switch
    {
        IoStatus.NoSpace => new MoveException(false, $"{where} has no room for it; free some, add a disk, or move it elsewhere"),
        IoStatus.Conflict => new MoveException(true, $"{where} is busy with an older copy of it; try again in a moment"),
        _ => new MoveException(true, $"{where} does not serve ({status}); see pfcli list_disk"),
    };
}

/// <summary>Keeps to so many bytes a second.</summary>
internal sealed class Pacer(ulong bytesPerSecond)
{
    private long _due = Environment.TickCount64;

    /// <summary>Waits until so many bytes more may have passed.</summary>
    public async Task PassAsync(ulong bytes, CancellationToken cancel)
    {
        if (bytesPerSecond == 0) return;
        _due = Math.Max(_due, Environment.TickCount64 - 100) + (long)(bytes * 1000 / bytesPerSecond);
        long ahead = _due - Environment.TickCount64;
        if (ahead > 20) await Task.Delay(TimeSpan.FromMilliseconds(ahead), cancel);
    }
}
