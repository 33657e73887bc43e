using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

// Append-only volumes: what their clients ask for, with dice of their own, so that seeds without them are what they were.
public sealed partial class StoreSimulation
{
    private const uint FirstAppendVolume = 1_000;
    private const int AppendVolumesMax = 4;
    private const int AppendersMax = 6;

    // More clients of one volume than fit into its first page (AppendPage.PlacesMax): some may be forgotten where slots are few.
    private const int ClientsOfFirstPage = 10, ClientsMax = 14;

    // Appends of a client that are remembered (AppendClient.MemoriesMax).
    private const int Remembered = 16;

    private readonly SeededRandom _appendDice;
    private readonly SortedDictionary<uint, AppendModel> _appendVolumes = [];
    private readonly List<AppendSnapshot> _appendSnapshots = [];
    private uint _nextAppendVolume = FirstAppendVolume;
    private uint _nextAppend = 1;
    private int _appendRequestsLeft;

    private void StartAppenders(IStore store)
    {
        if (!_options.Appends || store is not IAppendStore) return;
        _appendRequestsLeft = 10 + _appendDice.NextBelow(_options.RequestsPerLife);
        int writers = 1 + _appendDice.NextBelow(AppendersMax);
        _clientsRunning += writers;
        for (int i = 0; i < writers; i++) _ = AppenderAsync((ILayeredStore)store, (IAppendStore)store);
    }

    private async Task AppenderAsync(ILayeredStore store, IAppendStore appends)
    {
        try
        {
            while (_appendRequestsLeft-- > 0 && store.State == StoreState.Online && !IsBroken)
            {
                await AppendRequestAsync(store, appends);
                _counters[Did.Requests]++;
                if (_appendDice.NextChance(0.1)) await _loop.DelayAsync(_appendDice.NextBelow(5_000_000UL));
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(ViolationKind.Exception, thrown.ToString());
        }

        _clientsRunning--;
    }

    private async Task AppendRequestAsync(ILayeredStore store, IAppendStore appends)
    {
        List<AppendModel> live = [.. _appendVolumes.Values.Where(v => v is { IsSure: true, IsGone: false, IsDeleting: false })];
        int dice = _appendDice.NextBelow(100);
        if (live.Count == 0 || (dice < 4 && live.Count < AppendVolumesMax))
        {
            await CreateAppendOnlyAsync(store);
            return;
        }

        AppendModel volume = live[_appendDice.NextBelow(live.Count)];
        AppendSnapshot? snapshot = _appendSnapshots.FindLast(s => s.VolumeId == volume.Head.Id && s is { IsSure: true, IsGone: false, IsDeleting: false });
        switch (dice)
        {
            case < 5 when live.Count > 1 || volume.Head.IsSealed:
                await DeleteAppendOnlyAsync(store, volume);
                break;
            case < 8:
                await ChangeAppendOnlyAsync(store, volume);
                break;
            case < 12:
                await CutAppendOnlyAsync(store, volume, null);
                break;
            case < 14 when snapshot is not null:
                await DeleteSnapshotOfAppendsAsync(store, snapshot);
                break;
            case < 18 when snapshot is not null:
                await JudgeOneOfAppendsAsync(store, snapshot);
                break;
            case < 21 when snapshot?.Content is not null && !MayMiss:
                await CutAppendOnlyAsync(store, volume, snapshot);
                break;
            case < 22 when snapshot?.Content is not null && !MayMiss && live.Count < AppendVolumesMax:
                await CloneAppendOnlyAsync(store, snapshot);
                break;
            case < 32:
                await ReadAppendsAsync(store, appends, volume);
                break;
            case < 35:
                await WaitForAppendsAsync(appends, volume);
                break;
            default:
                await AppendOneAsync(appends, volume);
                break;
        }
    }

    private async Task CreateAppendOnlyAsync(ILayeredStore store)
    {
        uint id = _nextAppendVolume++;
        ulong size = _appendDice.NextChance(0.2) ? Units.MiB : 4 * Units.MiB + Units.SectorBytes * _appendDice.NextBelow(9000UL);
        var head = new VolumeHead(id, _appendDice.NextGuid(), $"a{id}", size, 1) { IsAppendOnly = true };
        var volume = new AppendModel(head);
        _appendVolumes.Add(id, volume);
        IoStatus status = await store.CreateVolumeAsync(head);
        volume.IsSure = status == IoStatus.Ok;
        if (status != IoStatus.Ok) Expect(status, "create append-only", IoStatus.NoSpace);
    }

    private async Task DeleteAppendOnlyAsync(ILayeredStore store, AppendModel volume)
    {
        volume.IsDeleting = true;
        IoStatus status = await store.DeleteVolumeAsync(volume.Head.Id);
        if (status == IoStatus.Ok) volume.IsGone = true;
        else if (status == IoStatus.Conflict && _appendVolumes.Keys.Any(other => store.BaseOf(other)?.VolumeId == volume.Head.Id)) volume.IsDeleting = false;
        else Expect(status, "delete append-only");
    }

    /// <summary>A new name, another greatest length, or sealed for good.</summary>
    private async Task ChangeAppendOnlyAsync(ILayeredStore store, AppendModel volume)
    {
        if (volume.HeadMaybe is not null || volume.IsBusy) return;
        VolumeHead head = volume.Head with { Name = $"a{_nextId++}" };
        if (_appendDice.NextChance(0.3)) head = head with { SizeBytes = Units.MiB + Units.SectorBytes * _appendDice.NextBelow(9000UL) };
        if (_appendDice.NextChance(0.1)) head = head with { IsSealed = true };
        bool unseals = volume.Head.IsSealed && !head.IsSealed;
        ulong lengthMin = volume.LengthMin;
        volume.HeadMaybe = head;
        IoStatus status = await store.UpdateVolumeAsync(head);
        ulong lengthMax = volume.LengthMax;
        if (status == IoStatus.Ok)
        {
            if (unseals || head.SizeBytes < lengthMin) Violate(ViolationKind.WrongAnswer, $"append-only volume {head.Id}, {volume.Head}, became {head}");
            volume.Head = head;
            volume.HeadMaybe = null;
            _counters[head.IsSealed ? Did.AppendSeals : Did.AppendRenames]++;
        }
        else if ((status == IoStatus.ReadOnly && unseals) || (status == IoStatus.OutOfRange && (head.SizeBytes < lengthMax || volume.Rollbacks > 0)))
        {
            volume.HeadMaybe = null; // refused before anything was written
        }
        else if (!(status == IoStatus.NotFound && volume.IsDeleting))
        {
            Expect(status, "update append-only", IoStatus.NoSpace);
        }
    }

    /// <summary>Cuts a snapshot; with <paramref name="target"/> the volume goes back there.</summary>
    private async Task CutAppendOnlyAsync(ILayeredStore store, AppendModel volume, AppendSnapshot? target)
    {
        if (volume.IsBusy || volume.HeadMaybe is not null || _appendSnapshots.Count(s => s.VolumeId == volume.Head.Id && !s.IsGone) >= SnapshotsMax) return;
        (volume.IsBusy, volume.IsGoingBack) = (true, target is not null);
        var cut = new AppendSnapshot(volume.Head.Id, _appendDice.NextGuid(), ++_now) { RollBackTo = target };
        _appendSnapshots.Add(cut);
        var request = new SnapshotRequest(volume.Head.Id, cut.Uuid, $"s{_nextId++}", 1);
        IoStatus status = target is null ? await store.CreateSnapshotsAsync([request]) : await store.RollBackAsync(target.Uuid, request);
        _now++;
        cut.IsSure = status == IoStatus.Ok;
        cut.IsGone = status is IoStatus.NoSpace or IoStatus.Conflict or IoStatus.NotFound or IoStatus.ReadOnly;
        if (cut.IsSure) cut.Frozen = volume.Fork();
        if (cut.IsSure && target is not null) WentBack(volume, cut);
        if (cut.IsSure || cut.IsGone) volume.IsBusy = volume.IsGoingBack = false;
        if (cut.IsSure) _counters[target is null ? Did.AppendSnapshots : Did.AppendRollBacks]++;
        else if (status == IoStatus.NotFound && (volume.IsDeleting || target?.IsDeleting == true)) return;
        else if (status == IoStatus.ReadOnly && target is not null && (volume.Head.IsSealed || volume.HeadMaybe?.IsSealed == true)) return;
        else if (status != IoStatus.Conflict || !store.IsFlattening(volume.Head.Id)) Expect(status, "snapshot of appends", IoStatus.NoSpace);
    }

    private static void WentBack(AppendModel volume, AppendSnapshot cut)
    {
        volume.GoBack(cut.RollBackTo!.Content!, cut.Start);
        cut.RollBackTo = null;
    }

    private async Task DeleteSnapshotOfAppendsAsync(ILayeredStore store, AppendSnapshot snapshot)
    {
        snapshot.IsDeleting = true;
        IoStatus status = await store.DeleteSnapshotAsync(snapshot.VolumeId, snapshot.Uuid);
        if (status == IoStatus.Ok) snapshot.IsGone = true;
        else if (status == IoStatus.Conflict) snapshot.IsDeleting = false; // a clone
        else if (!(_appendVolumes[snapshot.VolumeId].IsDeleting && status == IoStatus.NotFound)) Expect(status, "delete of a snapshot of appends");
    }

    private async Task CloneAppendOnlyAsync(ILayeredStore store, AppendSnapshot snapshot)
    {
        uint id = _nextAppendVolume++;
        var head = new VolumeHead(id, _appendDice.NextGuid(), $"a{id}", 16 * Units.MiB, 1) { IsAppendOnly = true };
        var clone = new AppendModel(head);
        clone.GoBack(snapshot.Content!, ++_now);
        clone.IsDamaged = _appendVolumes[snapshot.VolumeId].IsDamaged;
        _appendVolumes.Add(id, clone);
        IoStatus status = await store.CreateCloneAsync(head, snapshot.VolumeId, snapshot.Uuid);
        clone.IsSure = status == IoStatus.Ok;
        if (status == IoStatus.Ok) _counters[Did.AppendClones]++;
        else if (status != IoStatus.NotFound || !(snapshot.IsDeleting || _appendVolumes[snapshot.VolumeId].IsDeleting)) Expect(status, "clone of appends", IoStatus.NoSpace);
    }

    private async Task WaitForAppendsAsync(IAppendStore appends, AppendModel volume)
    {
        ulong length = volume.LengthMin, asked = length + _appendDice.NextBelow(20_000UL);
        int rollbacks = volume.Rollbacks;
        AppendInfo? info = await appends.WaitForAppendAsync(volume.Head.Id, asked, 1 + _appendDice.NextBelow(3_000_000UL));
        if (MayMiss || volume.IsBusy || volume.Rollbacks != rollbacks) return;
        if (info is null ? !volume.IsDeleting : info.Value.LengthBytes < length && !volume.IsDamaged)
            Violate(ViolationKind.StaleRead, $"append-only volume {volume.Head.Id}: was {length} bytes long, then {info}");
    }

    private async Task AppendOneAsync(IAppendStore store, AppendModel volume)
    {
        AppendItem item = DrawAppend(volume, out bool isRetry);
        int length = item.Bytes.Length;
        bool differs = isRetry && item.Calls == 0 && length > AppendItem.LengthMin && _appendDice.NextChance(0.1);
        bool wasThere = item is { Offset: not null, IsAmbiguous: false }, mayBeThere = isRetry && (wasThere || item.Calls > 0);
        // Not where a rollback may make its client a new one meanwhile: then it would land.
        differs &= wasThere && item.Key.Sequence > 1 && !_appendSnapshots.Exists(s => s.VolumeId == volume.Head.Id);
        int rollbacks = volume.Rollbacks;
        // A call that is under way already may have put it in front of this.
        ulong lengthBefore = item.Calls > 0 ? 0 : volume.LengthMin;
        item.Calls++;
        if (!isRetry || (!wasThere && !volume.Items.Contains(item)))
        {
            volume.Old.Remove(item);
            volume.Items.Add(item);
        }

        AppendCall call = volume.Call(item.Key);
        AppendResult result = await store.AppendAsync(volume.Head.Id, item.Key, differs ? item.Bytes.AsMemory(1) : item.Bytes);
        if (volume.Answered(call, result) is { } hole) Violate(hole);
        if (call.Behind is not null) _counters[Did.AppendsRefusedBehind]++;
        _now++;
        if (volume.Rollbacks != rollbacks || volume.IsGoingBack)
        {
            _now++;
            return; // answered for what was, or for what is: the judge looks which
        }

        item.Calls--;
        if (result.Outcome == AppendOutcome.Done)
        {
            _counters[result.IsRepeat ? Did.AppendsRepeated : Did.Appends]++;
            if (differs) Violate(ViolationKind.WrongAnswer, $"append-only volume {volume.Head.Id}: {AppendModel.Name(item)} was taken with another length");
            else if (!MayMiss && !volume.IsDamaged && volume.Landed(item, result.OffsetBytes, lengthBefore, result.IsRepeat, wasThere, mayBeThere || item.Calls > 0, _now) is { } fault) Violate(fault);
        }
        else if (!(differs && result.Outcome == AppendOutcome.Differs))
        {
            if (call.Behind != result.Outcome) ExpectAppend(volume, item, result.Outcome, wasThere);
        }

        _now++;
    }

    /// <summary>A new append, or one that was asked for before.</summary>
    private AppendItem DrawAppend(AppendModel volume, out bool isRetry)
    {
        // Who was forgotten for others and asks for his first one again is a new client to the store: it lands once more (docs/api.md).
        bool isNobodyForgotten = volume.Rollbacks == 0 && volume.Clients.Count + AppendersMax <= ClientsOfFirstPage;
        List<AppendItem> known = [.. volume.Items.Where(i => i.Key.Client != Guid.Empty && !i.IsAmbiguous), .. volume.Old];
        if (!isNobodyForgotten) known.RemoveAll(i => i.Key.Sequence == 1);
        isRetry = known.Count > 0 && _appendDice.NextChance(0.25);
        if (isRetry) return _appendDice.NextChance(0.5) ? known[^(1 + _appendDice.NextBelow(Math.Min(known.Count, 5)))] : known[_appendDice.NextBelow(known.Count)];
        int length = _appendDice.NextBelow(40) switch
        {
            0 => 1 + _appendDice.NextBelow((int)Units.MiB + 300_000),
            < 4 => 65_536 + _appendDice.NextBelow(9),
            < 12 => Units.BlockBytes,
            < 20 => AppendItem.LengthMin + _appendDice.NextBelow(60),
            _ => AppendItem.LengthMin + _appendDice.NextBelow(9000),
        };
        AppendKey key = default;
        if (!_appendDice.NextChance(0.1))
        {
            if (volume.Clients.Count == 0 || (volume.Clients.Count < ClientsMax && _appendDice.NextChance(0.1))) volume.Clients.Add((_appendDice.NextGuid(), 0));
            int client = _appendDice.NextBelow(volume.Clients.Count);
            (Guid id, ulong last) = volume.Clients[client];
            ulong sequence = last + 1 + (last > 0 && _appendDice.NextChance(0.1) ? _appendDice.NextBelow(5UL) : 0);
            volume.Clients[client] = (id, sequence);
            key = new AppendKey(id, sequence);
        }

        return new AppendItem(_nextAppend++, key, Math.Max(length, AppendItem.LengthMin), ++_now);
    }

    private void ExpectAppend(AppendModel volume, AppendItem item, AppendOutcome outcome, bool wasThere)
    {
        if (MayMiss || volume.IsDamaged) return;
        IEnumerable<AppendItem> mine = volume.Items.Concat(volume.Old).Where(i => i.Key.Client == item.Key.Client);
        bool isFine = outcome switch
        {
            AppendOutcome.Sealed => !wasThere && (volume.Head.IsSealed || volume.HeadMaybe?.IsSealed == true),
            AppendOutcome.Full => !wasThere && (volume.LengthMax > Math.Min(volume.Head.SizeBytes, volume.HeadMaybe?.SizeBytes ?? ulong.MaxValue)),
            AppendOutcome.StaleSequence => mine.Count(i => i.Key.Sequence > item.Key.Sequence) >= Remembered,
            // Its first one need not have landed, or is on its way.
            AppendOutcome.UnknownClient => volume.Clients.Count > ClientsOfFirstPage || (!wasThere && item.Key.Sequence > 1),
            AppendOutcome.NotFound => volume.IsDeleting,
            _ => false,
        };
        if (isFine) _counters[outcome == AppendOutcome.Full ? Did.AppendsFull : Did.AppendsRefused]++;
        if (isFine || volume.IsDeleting) return;
        IoStatus status = outcome switch
        {
            AppendOutcome.NoSpace => IoStatus.NoSpace,
            AppendOutcome.Damaged => IoStatus.Corrupt,
            AppendOutcome.Unavailable => IoStatus.Unavailable,
            _ => IoStatus.Invalid,
        };
        Expect(status, $"append-only volume {volume.Head.Id}: {AppendModel.Name(item)} ({outcome})", IoStatus.NoSpace);
    }
}
