using BlockServer.Core;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation;

// What is compared with the model: after every opening, and in forks of the medium.
public sealed partial class StoreSimulation
{
    [ThreadStatic]
    private static byte[]? t_content;

    private readonly HashSet<ulong> _statesJudged = [];
    private readonly HashSet<ulong> _momentsJudged = [];

    /// <summary>S9 as far as it shows: what volumes use is what is used in all, and nothing else is taken, once deletions are
    /// through.</summary>
    private void JudgeSpace(IStore store)
    {
        ulong Sum()
        {
            ulong sum = 0;
            foreach (VolumeHead head in store.Volumes) sum += store.UsedBytes(head.Id);
            return sum / Units.BlockBytes;
        }

        ulong until = _loop.NowNanos + 60_000_000_000;
        // Bad blocks may be in use or not.
        static bool Leaks(StoreStats stats) =>
            stats.BlocksTotal - stats.BlocksFree > stats.BlocksUsed + stats.BlocksQuarantined + stats.BlocksBad;
        bool Holds() => store.GetStats() is { } now && now.BlocksUsed == Sum() && !Leaks(now);
        _loop.RunUntil(() => Holds() || store.State != StoreState.Online || _loop.NowNanos > until, EventsPerLifeMax);
        StoreStats stats = store.GetStats();
        if (store.State == StoreState.Online && stats.BlocksUsed != Sum())
            Violate(ViolationKind.Leak, $"S9: {stats.BlocksUsed} blocks are in use, volumes use {Sum()}");
        if (store.State == StoreState.Online && Leaks(stats))
            Violate(ViolationKind.Leak, $"S9: {stats.BlocksTotal - stats.BlocksFree} blocks are taken, {stats.BlocksUsed} used, {stats.BlocksQuarantined} in quarantine");
        _counters[Did.SpaceJudged]++;
    }

    /// <summary>Compares heads and the whole content with the model, which then takes what it saw as the truth.</summary>
    private bool JudgeAll(IStore store)
    {
        SettleRollBacks(store);
        JudgeHeads(store, settle: true);
        JudgeSnapshots(_loop, store, _powerWasCut, settle: true);
        foreach (VolumeModel volume in _volumes.Values)
        {
            if (IsBroken || volume.IsGone) continue;
            JudgeContent(_loop, store, volume, _powerWasCut, settle: true, () => MayMiss);
        }

        if (!IsBroken) JudgeAppends(_loop, store, settle: true);
        _powerWasCut = false;
        _wasBlind = false;
        if (IsBroken) FoldLoop();
        return !IsBroken;
    }

    private void JudgeHeads(IStore store, bool settle)
    {
        IReadOnlyList<VolumeHead> heads = store.Volumes;
        foreach (VolumeHead head in heads)
        {
            if (_appendVolumes.TryGetValue(head.Id, out AppendModel? appends) && (!appends.IsGone || MayMiss)) continue;
            if (!_volumes.TryGetValue(head.Id, out VolumeModel? volume) || (volume.IsGone && !MayMiss))
            {
                Violate(ViolationKind.WrongVolume, $"volume {head.Id} is there and must not be");
                return;
            }

            if (head != volume.Head && head != volume.HeadMaybe && !MayMiss && !(volume.IsBusy && !settle))
                Violate(ViolationKind.WrongVolume, $"volume {head.Id} has head {head}, expected {volume.Head} or {volume.HeadMaybe}");
        }

        foreach (VolumeModel volume in _volumes.Values)
        {
            VolumeHead? found = heads.FirstOrDefault(head => head.Id == volume.Head.Id);
            if (found is null && !volume.IsGone && volume.IsSure && !volume.IsDeleting && !MayMiss)
                Violate(ViolationKind.LostVolume, $"volume {volume.Head.Id} is lost");
            if (found is null && volume.IsGone) _counters[Did.GoneVolumes]++;
            if (!settle) continue;
            volume.IsGone = found is null || volume.IsGone;
            volume.IsDeleting = volume.IsBusy = volume.IsCutting = false;
            if (found is null) continue;
            volume.IsSure = true;
            volume.SettleHead(found);
        }
    }

    private void JudgeContent(SimLoop loop, IStore store, VolumeModel volume, bool powerWasCut, bool settle, Func<bool> mayMiss)
    {
        IBlockDevice? device = store.OpenVolume(volume.Head.Id);
        if (device is null)
        {
            if (store.Volumes.Any(head => head.Id == volume.Head.Id))
                Violate(ViolationKind.WrongVolume, $"volume {volume.Head.Id} cannot be opened");
            return;
        }

        if (t_content is null || (ulong)t_content.Length < device.SizeBytes) t_content = new byte[device.SizeBytes];
        Memory<byte> content = t_content.AsMemory(0, (int)device.SizeBytes);
        HashSet<ulong> unreadable = ReadAll(loop, device, content);
        _counters[Did.UnreadableBlocks] += unreadable.Count;
        foreach (ulong block in unreadable)
        {
            if (mayMiss() || volume.Excused.Contains(block) || (_wasBlind && volume.IsUnsettled(block, powerWasCut))) continue;
            Violate(ViolationKind.Unreadable, $"volume {volume.Head.Id} block {block}: cannot be read though the disk is honest");
            return;
        }

        if (settle)
        {
            volume.Excused.Clear();
            volume.Excused.UnionWith(unreadable);
        }

        if (settle) _counters[Did.BytesJudged] += content.Length;
        Violation? fault = volume.JudgeAfterRestart(
            content.Span, powerWasCut, mayMiss(),
            unreadable.Count == 0 ? null : sector => unreadable.Contains(sector / (Units.BlockBytes / Units.SectorBytes)), settle, ++_now);
        _now++;
        if (fault is not null) Violate(fault);
    }

    /// <summary>Reads a whole volume; the blocks that answered an error.</summary>
    private static HashSet<ulong> ReadAll(SimLoop loop, IBlockDevice device, Memory<byte> content)
    {
        var unreadable = new HashSet<ulong>();
        const int piece = Units.ExtentBytes;
        for (int at = 0; at < content.Length; at += piece)
        {
            Memory<byte> target = content.Slice(at, Math.Min(piece, content.Length - at));
            if (ReadNow(loop, device, (ulong)at, target) == IoStatus.Ok) continue;
            for (int block = 0; block < target.Length; block += Units.BlockBytes)
            {
                Memory<byte> one = target.Slice(block, Math.Min(Units.BlockBytes, target.Length - block));
                if (ReadNow(loop, device, (ulong)(at + block), one) != IoStatus.Ok)
                    unreadable.Add((ulong)(at + block) / Units.BlockBytes);
            }
        }

        return unreadable;
    }

    private static IoStatus ReadNow(SimLoop loop, IBlockDevice device, ulong offset, Memory<byte> target)
    {
        Task<ReadResult> reading = device.ReadAsync(offset, target).AsTask();
        return loop.RunUntil(() => reading.IsCompleted, EventsPerLifeMax)
            ? reading.GetAwaiter().GetResult().Status
            : IoStatus.Unavailable;
    }

    /// <summary>Blocks in use when no deletion is under way; null when one is, or when the store does not count them.</summary>
    private static ulong? UsedAtRest(IStore store)
    {
        ulong sum = store is ILayeredStore ? 0 : ulong.MaxValue;
        foreach (VolumeHead head in store.Volumes) sum += store.UsedBytes(head.Id) / Units.BlockBytes;
        return store.GetStats().BlocksUsed == sum ? sum : null;
    }

    /// <summary>On a disk that has come to rest a scrub finds exactly the blocks that a reader cannot read.</summary>
    private void JudgeScrub(IStore store)
    {
        if (store.State != StoreState.Online) return;
        var expected = new SortedSet<(uint, ulong)>();
        var expectedOfSnapshots = new SortedSet<(uint, ulong)>();
        foreach (VolumeHead head in store.Volumes)
        {
            foreach (SnapshotInfo snapshot in (store as ILayeredStore)?.Snapshots(head.Id) ?? [])
            {
                IBlockDevice view = ((ILayeredStore)store).OpenSnapshot(head.Id, snapshot.Uuid)!;
                foreach (ulong block in ReadAll(_loop, view, new byte[view.SizeBytes]))
                    expectedOfSnapshots.Add((head.Id, block * Units.BlockBytes));
            }

            IBlockDevice device = store.OpenVolume(head.Id)!;
            foreach (ulong block in ReadAll(_loop, device, new byte[device.SizeBytes]))
                expected.Add((head.Id, block * Units.BlockBytes));
        }

        ulong? used = UsedAtRest(store);
        Task<ScrubReport> scrubbing = store.ScrubAsync(null, 0, null, CancellationToken.None).AsTask();
        if (!_loop.RunUntil(() => scrubbing.IsCompleted, EventsPerLifeMax))
        {
            Violate(ViolationKind.Hang, "a scrub never ended");
            return;
        }

        ScrubReport report = scrubbing.GetAwaiter().GetResult();
        var found = new SortedSet<(uint, ulong)>(report.Bad.Where(bad => bad.Snapshot is null).Select(bad => (bad.VolumeId, bad.OffsetBytes)));
        var foundOfSnapshots = new SortedSet<(uint, ulong)>(report.Bad.Where(bad => bad.Snapshot is not null).Select(bad => (bad.VolumeId, bad.OffsetBytes)));
        // What a clone shows of its base is found there, at the same offset.
        bool IsFound((uint Volume, ulong Offset) bad) => found.Contains(bad) || foundOfSnapshots.Contains(bad) || IsFoundInBase(bad);

        bool IsFoundInBase((uint Volume, ulong Offset) bad) =>
            (store as ILayeredStore)?.BaseOf(bad.Volume) is { } basis && IsFound((basis.VolumeId, bad.Offset));

        // A snapshot's own block and the head's own may both be bad at one offset; one that the head shows is said to be the head's.
        bool isRight = found.All(expected.Contains) && foundOfSnapshots.All(expectedOfSnapshots.Contains)
            && expected.All(bad => found.Contains(bad) || IsFoundInBase(bad)) && expectedOfSnapshots.All(IsFound);
        if (!report.Finished || !isRight)
        {
            Violate(ViolationKind.WrongScrub, $"a scrub found {string.Join(' ', found)} and of snapshots {string.Join(' ', foundOfSnapshots)}, "
                + $"unreadable are {string.Join(' ', expected)} and of snapshots {string.Join(' ', expectedOfSnapshots)}");
        }
        else if (used is { } before && UsedAtRest(store) == before && report.BlocksRead != before && !MayMiss)
        {
            Violate(ViolationKind.WrongScrub, $"a scrub verified {report.BlocksRead} blocks, {store.GetStats().BlocksUsed} are in use");
        }

        _counters[Did.ScrubsJudged]++;
        _counters[Did.BadFound] += found.Count;
    }

    /// <summary>Forks the medium as a power cut would leave it now, opens the fork in a world of its own and judges it.</summary>
    private void TryCrashState()
    {
        if (_crashStatesLeft <= 0 || _disk.ChangeCount == _changesSeen || MayMiss || _disk.HasFailedFlush) return;
        _changesSeen = _disk.ChangeCount;
        if (!_random.NextChance(_options.CrashStateChance)) return;
        int states = Math.Min(_crashStatesLeft, 1 + _random.NextBelow(3));
        for (int i = 0; i < states && !IsBroken; i++) JudgeCrashState();
    }

    private void JudgeCrashState()
    {
        var dice = new SeededRandom(_random.NextUInt64());
        int kind = dice.NextBelow(4);
        int odd = dice.NextBelow(Math.Max(1, _disk.Pending.Count));
        byte[][] masks = [.. _disk.Pending.Select((write, i) => kind switch
        {
            0 => Filled(write.Pages.Count, 0), // a prefix at a flush boundary
            1 => Filled(write.Pages.Count, write.IsAnswered ? byte.MaxValue : (byte)0), // everything answered
            2 => i == odd ? SimDisk.DrawMasks(dice, write.Pages.Count) : Filled(write.Pages.Count, byte.MaxValue), // one dropped or torn
            _ => SimDisk.DrawMasks(dice, write.Pages.Count),
        })];
        ulong name = _disk.NameOfFork((write, page) => masks[write][page]);
        // The same state may be right at one time and wrong after the next acknowledgement.
        if (!_momentsJudged.Add(name ^ (_now * 0x9E3779B97F4A7C15))) return;
        if (_statesJudged.Add(name)) _counters[Did.CrashStates]++;
        _crashStatesLeft--;
        var loop = new SimLoop(dice.NextUInt64());
        SimDisk fork = _disk.ForkAfterPowerCut(loop, dice.NextUInt64(), (write, page) => masks[write][page]);
        Task<Opened> opening = _options.Driver.OpenAsync(loop, fork, _hasSeparateLog ? fork.OpenView() : null, _durability).AsTask();
        loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax);
        if (!opening.IsCompletedSuccessfully || opening.Result.Store is not { } store)
        {
            Violate(
                opening.IsCompletedSuccessfully ? ViolationKind.Refused : opening.IsFaulted ? ViolationKind.Exception : ViolationKind.Hang,
                "crash state: opening failed: "
                    + (opening.IsCompletedSuccessfully ? opening.Result.Refusal : opening.Exception?.InnerException?.ToString() ?? "no answer"));
            return;
        }

        // An unanswered rollback may have happened in this state and not in another: then the head cannot be judged.
        JudgeHeads(store, settle: false);
        if (!IsBroken) JudgeSnapshots(loop, store, powerWasCut: true, settle: false);
        foreach (VolumeModel volume in _volumes.Values)
        {
            if (!IsBroken && !volume.IsGone && !volume.IsBusy) JudgeContent(loop, store, volume, powerWasCut: true, settle: false, () => false);
        }

        if (!IsBroken) JudgeAppends(loop, store, settle: false);
        _hash = (_hash ^ loop.EventHash) * 1099511628211;
    }

    private static byte[] Filled(int count, byte value)
    {
        var masks = new byte[count];
        Array.Fill(masks, value);
        return masks;
    }
}
