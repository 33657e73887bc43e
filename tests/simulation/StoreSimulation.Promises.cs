using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

// Promises of room: who was promised room for all that it can ever take is never refused for want of it, and a promise is kept to the
// block over every restart. Dice of their own, so that seeds without promises are what they were.
public sealed partial class StoreSimulation
{
    /// <summary>What a volume was promised.</summary>
    /// <param name="Bytes">How much.</param>
    /// <param name="BlocksBad">Blocks that the medium had lost by then: what it loses later is nobody's to promise.</param>
    /// <param name="Since">Model time from which on it holds: who asked earlier may have been refused earlier.</param>
    /// <param name="IsForced">A disk that failed has left too little for it, and so perhaps for others.</param>
    private readonly record struct Promised(ulong Bytes, ulong BlocksBad, ulong Since, bool IsForced = false);

    private const int PromiseStepsMax = 12;

    private readonly SeededRandom _promiseDice;
    private readonly SortedDictionary<uint, Promised> _promises = [];
    private ILayeredStore? _promising;

    private bool IsHonest => !MayMiss && !HasReason && !_disk.HasFailedFlush;

    /// <summary>As the daemon does when a disk comes into service: what is written down is promised anew. There must be room for all of it.</summary>
    private void KeepPromises(IStore store)
    {
        _promising = _options.Promises ? store as ILayeredStore : null;
        if (_promising is null || store.State != StoreState.Online) return;
        foreach (uint gone in _promises.Keys.Where(id => _volumes[id].IsGone).ToArray()) _promises.Remove(gone);
        bool isExact = IsHonest && !_promises.Values.Any(p => p.IsForced || store.GetStats().BlocksBad > p.BlocksBad);
        foreach ((uint id, Promised promised) in _promises.ToArray())
        {
            if (PromiseNow(id, promised.Bytes, isForced: true) != IoStatus.Ok) return;
        }

        _promising.ResumeFlattening();

        // Who fills an extent that exists goes below the level of write protection, but never into what others were promised.
        StoreStats stats = store.GetStats();
        // Pages of its own layers that went when it was opened are slots that come back: whoever needs one waits for them.
        ulong slotsFreeSoon = stats.SlotsTotal - stats.SlotsUsed + stats.SlotsReturning;
        if (stats.BlocksFreeSoon >= stats.BlocksReserved + stats.BlocksPromised && slotsFreeSoon >= stats.SlotsPromised)
        {
            _counters[Did.PromisesKept] += _promises.Count;
            return;
        }

        if (isExact) Violate(ViolationKind.BrokenPromise, $"after a restart there is no room for all that was promised: {Room(store)}, {stats.BlocksReserved} reserved");
        foreach ((uint id, Promised promised) in _promises.ToArray()) _promises[id] = promised with { IsForced = true };
    }

    private IoStatus? PromiseNow(uint id, ulong bytes, bool isForced)
    {
        Task<IoStatus> promising = _promising!.PromiseAsync(id, bytes, isForced).AsTask();
        if (_loop.RunUntil(() => promising.IsCompleted, EventsPerLifeMax)) return promising.GetAwaiter().GetResult();
        Violate(ViolationKind.Hang, "a promise was never answered");
        return null;
    }

    private void StartPromiser(IStore store)
    {
        if (_promising is null) return;
        _clientsRunning++;
        _ = PromiserAsync(store, _promising, 1 + _promiseDice.NextBelow(PromiseStepsMax));
    }

    private async Task PromiserAsync(IStore store, ILayeredStore layered, int steps)
    {
        try
        {
            while (steps-- > 0 && store.State == StoreState.Online && !IsBroken)
            {
                await _loop.DelayAsync(_promiseDice.NextBelow(4_000_000UL));
                if (store.State == StoreState.Online) await PromiseAsync(store, layered);
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(ViolationKind.Exception, thrown.ToString());
        }

        _clientsRunning--;
    }

    private async Task PromiseAsync(IStore store, ILayeredStore layered)
    {
        // The daemon changes one thing at a time: nothing is promised while a volume is on its way out.
        List<VolumeModel> live = [.. _volumes.Values.Where(v => v is { IsSure: true, IsGone: false })];
        if (live.Count == 0 || live.Exists(v => v.IsDeleting)) return;
        VolumeModel volume = live[_promiseDice.NextBelow(live.Count)];
        uint id = volume.Head.Id;
        ulong before = _promises.GetValueOrDefault(id).Bytes;
        int dice = _promiseDice.NextBelow(100);
        ulong bytes = dice switch
        {
            < 50 => volume.Head.SizeBytes,
            < 65 => MostBytes(volume),
            < 80 => AllThatIsLeft(store, id, before),
            < 88 => 0,
            _ => Units.BlockBytes * _promiseDice.NextBelow(2048UL),
        };
        StoreStats stats = store.GetStats();
        // What is taken back is nobody's from now on; what is promised besides is from the answer on.
        if (bytes < before) _promises[id] = new Promised(bytes, stats.BlocksBad, ++_now);
        switch (await layered.PromiseAsync(id, bytes, isForced: false))
        {
            case IoStatus.Ok when bytes == 0:
                _promises.Remove(id);
                _counters[Did.PromisesTakenBack]++;
                break;
            case IoStatus.Ok:
                _promises[id] = new Promised(bytes, stats.BlocksBad, ++_now);
                _counters[Did.PromisesMade]++;
                break;
            case IoStatus.NoSpace when bytes > before:
                _counters[Did.PromisesRefused]++;
                break;
            case var status and (IoStatus.Unavailable or IoStatus.NotFound):
                if (!volume.IsDeleting && !volume.IsGone) Expect(status, "a promise");
                break;
            case var status:
                Violate(ViolationKind.WrongAnswer, $"a promise of {bytes} bytes to volume {id}, which had {before}, was answered {status}");
                break;
        }
    }

    // So that everybody else is refused soon.
    private ulong AllThatIsLeft(IStore store, uint id, ulong before)
    {
        StoreStats s = store.GetStats();
        ulong used = store.UsedBytes(id), taken = s.BlocksKept + s.BlocksPromised;
        ulong left = s.BlocksFreeSoon > taken ? (s.BlocksFreeSoon - taken) * Units.BlockBytes : 0;
        return Math.Max(used, before) + left * (ulong)_promiseDice.NextBelow(11) / 10;
    }

    /// <summary>A change was refused for want of room. Whoever was promised room for all that it can take must never hear that.</summary>
    private void JudgeRefusal(VolumeModel volume, string what, ulong start, ulong sectors)
    {
        if (_promising is not { } store || !IsHonest || store.State != StoreState.Online || !IsEntitled(store, volume)) return;
        if (_promises[volume.Head.Id].Since > start) return;
        // Copies of overwrites come from the reserve, which on disks as small as these does not cover a whole extent at once.
        ulong atOnce = Math.Min(Units.BlocksPerExtent, sectors / (Units.BlockBytes / Units.SectorBytes) + 2);
        if (atOnce > store.GetStats().BlocksReserved * 3 / 4) return;
        Violate(ViolationKind.BrokenPromise,
            $"{what} of volume {volume.Head.Id}, {volume.Head.SizeBytes} bytes, at most {MostBytes(volume)} with its layers, "
            + $"promised {_promises[volume.Head.Id].Bytes}, was refused for want of room: {Room(store)}");
    }

    // All of its size, in each of its layers that ever was: then nothing is left that it could want besides.
    private bool IsEntitled(IStore store, VolumeModel volume)
    {
        if (!_promises.TryGetValue(volume.Head.Id, out Promised promised) || store.GetStats().BlocksBad > promised.BlocksBad) return false;
        if (volume.HeadMaybe is not null || volume.IsDeleting || _promises.Values.Any(p => p.IsForced)) return false;
        return promised.Bytes >= MostBytes(volume);
    }

    /// <summary>What a volume can take at most: every block of it, and of each of its snapshots, also those that are gone, which may still be on
    /// their way out.</summary>
    private ulong MostBytes(VolumeModel volume)
    {
        ulong bytes = volume.Head.SizeBytes;
        bool isLayered = false;
        foreach (SnapshotModel snapshot in _snapshots.Where(s => s.VolumeId == volume.Head.Id))
        {
            bytes = InExtents(bytes) + InExtents(snapshot.SizeBytes);
            isLayered = true;
        }

        return isLayered ? InExtents(bytes) : bytes;
    }

    // Each layer has metadata pages of its own.
    private static ulong InExtents(ulong bytes) => (bytes + Units.ExtentBytes - 1) / Units.ExtentBytes * Units.ExtentBytes;

    /// <summary>At rest the store keeps just as much as was promised and not taken.</summary>
    private void JudgePromises(IStore store)
    {
        if (_promising is null || IsBroken) return;
        ulong Kept()
        {
            ulong kept = 0;
            foreach ((uint id, Promised promised) in _promises)
            {
                if (store.OpenVolume(id) is null) continue;
                ulong blocks = (promised.Bytes + Units.BlockBytes - 1) / Units.BlockBytes, used = store.UsedBytes(id) / Units.BlockBytes;
                kept += blocks > used ? blocks - used : 0;
            }

            return kept;
        }

        ulong until = _loop.NowNanos + 60_000_000_000;
        _loop.RunUntil(() => store.GetStats().BlocksPromised == Kept() || store.State != StoreState.Online || _loop.NowNanos > until, EventsPerLifeMax);
        if (store.State == StoreState.Online && store.GetStats().BlocksPromised != Kept())
            Violate(ViolationKind.BrokenPromise, $"{store.GetStats().BlocksPromised} blocks are kept for promises, and {Kept()} were promised and not taken");
        _counters[Did.PromisesJudged]++;
    }

    /// <summary>Whoever was promised nothing takes all that it gets; then whoever was promised its room writes every block of it.</summary>
    private void FillPromised(IStore store)
    {
        if (_promising is null || !IsHonest || IsBroken || _disk.HasHung || store.State != StoreState.Online) return;
        Task filling = FillPromisedAsync(store);
        if (!_loop.RunUntil(() => filling.IsCompleted, EventsPerLifeMax)) Violate(ViolationKind.Hang, "filling the store never ended");
        else if (filling.Exception is { } thrown) Violate(ViolationKind.Exception, thrown.InnerException!.ToString());
    }

    private async Task FillPromisedAsync(IStore store)
    {
        VolumeModel[] live = [.. _volumes.Values.Where(v => v is { IsSure: true, IsGone: false, IsDeleting: false, IsBusy: false, HeadMaybe: null })];
        foreach (VolumeModel volume in live.OrderBy(v => IsEntitled(store, v)))
        {
            if (IsEntitled(store, volume)) _counters[Did.PromisedFilled]++;
            if (store.OpenVolume(volume.Head.Id) is { } device && !await FillAsync(device, volume) && IsBroken) return;
        }
    }

    private async Task<bool> FillAsync(IBlockDevice device, VolumeModel volume)
    {
        const ulong piece = 128 * Units.KiB / Units.SectorBytes;
        for (ulong first = 0; first < volume.Sectors; first += piece)
        {
            if (!await PutAsync(device, volume, first, Math.Min(piece, volume.Sectors - first), WriteFlags.None)) return false;
        }

        return true;
    }

    private static string Room(IStore store)
    {
        StoreStats s = store.GetStats();
        return $"{s.BlocksFreeSoon} blocks free soon of {s.BlocksTotal}, {s.BlocksKept} kept, {s.BlocksPromised} promised; "
            + $"{s.SlotsTotal - s.SlotsUsed} slots free, {s.SlotsReturning} coming back, {s.SlotsKept} kept, {s.SlotsPromised} promised";
    }
}
