using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

// The clients: what they ask for, and which answers they accept.
public sealed partial class StoreSimulation
{
    private void Work(IStore store)
    {
        _requestsLeft = 10 + _random.NextBelow(_options.RequestsPerLife);
        _clientsRunning = 1 + _random.NextBelow(8);
        int clients = _clientsRunning;
        for (int i = 0; i < clients; i++) _ = ClientAsync(store);
        StartAppenders(store);
        StartPromiser(store);
        bool ended = _loop.RunUntil(() => _clientsRunning == 0, EventsPerLifeMax);
        if (!ended && !_loop.IsStopped && !_disk.HasHung) Violate(ViolationKind.Hang, "clients hang");
    }

    private async ValueTask<bool> ClientAsync(IStore store)
    {
        try
        {
            while (_requestsLeft-- > 0 && store.State == StoreState.Online && !IsBroken)
            {
                await RequestAsync(store);
                _counters[Did.Requests]++;
                if (_clients.NextChance(0.1)) await _loop.DelayAsync(_clients.NextBelow(5_000_000UL));
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(ViolationKind.Exception, thrown.ToString());
        }

        _clientsRunning--;
        return true;
    }

    private async ValueTask<bool> RequestAsync(IStore store)
    {
        List<VolumeModel> live = [.. _volumes.Values.Where(volume => volume is { IsSure: true, IsGone: false, IsDeleting: false, IsBusy: false })];
        if (_layerChance > 0 && live.Count > 0 && store is ILayeredStore layered && _clients.NextChance(_layerChance))
            return await LayerRequestAsync(layered, live);
        int dice = _clients.NextBelow(100);
        if (live.Count == 0 || (dice < 3 && live.Count < 4)) return await CreateAsync(store);
        VolumeModel volume = live[_clients.NextBelow(live.Count)];
        if (dice < 5 && live.Count > 1) return await DeleteAsync(store, volume);
        if (store.OpenVolume(volume.Head.Id) is not { } device)
        {
            Violate(ViolationKind.WrongVolume, $"volume {volume.Head.Id} cannot be opened");
            return false;
        }

        if (dice is >= 5 and < 7) return await ResizeAsync(store, volume);
        if (volume.HeadMaybe is not null)
        {
            await _loop.DelayAsync(1_000);
            return true;
        }

        return dice switch
        {
            < 14 => await FlushAsync(device, volume),
            < 18 => await MapAsync(device, volume),
            < 19 => await ScrubAsync(store, volume),
            < 20 => await PrefetchAsync(device, volume),
            < 40 => await ReadAsync(device, volume),
            < 48 => await ZeroAsync(device, volume, isTrim: true),
            < 55 => await ZeroAsync(device, volume, isTrim: false),
            _ => await WriteAsync(device, volume),
        };
    }

    private async ValueTask<bool> CreateAsync(IStore store)
    {
        uint id = _nextVolume++;
        ulong size = Units.MiB * (1 + _clients.NextBelow(3UL)) + Units.SectorBytes * _clients.NextBelow(2UL) * _clients.NextBelow(64UL);
        var head = new VolumeHead(id, _clients.NextGuid(), $"v{id}", size, 1);
        var volume = new VolumeModel(head);
        _volumes.Add(id, volume);
        IoStatus status = await store.CreateVolumeAsync(head);
        volume.IsSure = status == IoStatus.Ok;
        if (status != IoStatus.Ok) Expect(status, "create", IoStatus.NoSpace);
        return true;
    }

    private async ValueTask<bool> DeleteAsync(IStore store, VolumeModel volume)
    {
        volume.IsDeleting = true;
        // The daemon writes down first that the volume goes: nothing is promised to it any more, whatever becomes of that.
        bool wasPromised = _promises.Remove(volume.Head.Id, out Promised promised);
        IoStatus status = await store.DeleteVolumeAsync(volume.Head.Id);
        if (status == IoStatus.Ok) volume.IsGone = true;
        if (status == IoStatus.Conflict && _snapshots.Exists(s => s.VolumeId == volume.Head.Id && s.WasCloned))
        {
            _counters[Did.HeldByClones]++;
            volume.IsDeleting = false;
            if (wasPromised) _promises[volume.Head.Id] = promised;
            return true;
        }

        if (status != IoStatus.Ok) Expect(status, "delete");
        return true;
    }

    private async ValueTask<bool> ResizeAsync(IStore store, VolumeModel volume)
    {
        if (volume.HeadMaybe is not null || volume.IsCutting || _inFlight.Exists(entry => ReferenceEquals(entry.Volume, volume))) return false;
        ulong size = Units.MiB * (1 + _clients.NextBelow(4UL));
        if (_clients.NextChance(0.5)) size += Units.SectorBytes * _clients.NextBelow(2048UL);
        VolumeHead head = volume.Head with { SizeBytes = size, Name = $"{volume.Head.Name[..2]}-{_nextId++}" };
        volume.HeadMaybe = head;
        ModelWrite? shrink = null;
        if (size < volume.Head.SizeBytes)
        {
            ulong first = size / Units.SectorBytes;
            shrink = volume.Begin(_nextId++, first, volume.Sectors - first, isZero: true, ++_now);
            _inFlight.Add((volume, shrink));
        }

        IoStatus status = await store.UpdateVolumeAsync(head);
        bool isOk = status == IoStatus.Ok;
        if (shrink is not null) EndWrite(volume, shrink, isOk, isDurable: true);
        if (!isOk)
        {
            ExpectOf(volume, status, "update", IoStatus.NoSpace);
            return false; // HeadMaybe stays: a restart tells
        }

        volume.SettleHead(head);
        return true;
    }

    private async ValueTask<bool> FlushAsync(IBlockDevice device, VolumeModel volume)
    {
        ulong start = ++_now;
        IoStatus status = await device.FlushAsync();
        _now++;
        if (status == IoStatus.Ok) volume.Flushed(start);
        else ExpectOf(volume, status, "flush");
        return true;
    }

    private async ValueTask<bool> WriteAsync(IBlockDevice device, VolumeModel volume)
    {
        (ulong first, ulong count) = DrawRange(volume, _clients.NextChance(0.03) ? 6144UL : 64UL);
        await PutAsync(device, volume, first, count, _clients.NextChance(0.1) ? WriteFlags.Fua : WriteFlags.None);
        return true;
    }

    /// <summary>Writes new content; true when it was taken.</summary>
    private async ValueTask<bool> PutAsync(IBlockDevice device, VolumeModel volume, ulong first, ulong count, WriteFlags flags)
    {
        ulong id = _nextId++;
        var data = new byte[count * Units.SectorBytes];
        VolumeModel.Fill(data, id, volume.Head.Id, first);
        ulong start = ++_now;
        ModelWrite write = volume.Begin(id, first, count, isZero: false, start);
        _inFlight.Add((volume, write));
        IoStatus status = await device.WriteAsync(first * Units.SectorBytes, data, flags);
        EndWrite(volume, write, status == IoStatus.Ok, flags.HasFlag(WriteFlags.Fua));
        if (status == IoStatus.NoSpace) JudgeRefusal(volume, "a write", start, count);
        if (status != IoStatus.Ok) ExpectOf(volume, status, "write", IoStatus.NoSpace);
        return status == IoStatus.Ok;
    }

    private async ValueTask<bool> ZeroAsync(IBlockDevice device, VolumeModel volume, bool isTrim)
    {
        (ulong first, ulong count) = DrawRange(volume, _clients.NextChance(0.2) ? 8192UL : 128UL);
        WriteFlags flags = _clients.NextChance(0.1) ? WriteFlags.Fua : WriteFlags.None;
        if (!isTrim && _clients.NextChance(0.3)) flags |= WriteFlags.NoHole;
        const ulong perBlock = Units.BlockBytes / Units.SectorBytes;
        ulong begin = first, end = first + count;
        if (isTrim)
        {
            begin = (first + perBlock - 1) / perBlock * perBlock;
            // The last block of a volume may be shorter than a block; it may be trimmed or not, so it is left out.
            ulong last = end / perBlock * perBlock;
            end = Math.Max(begin, last);
            if (first + count != last && first + count == volume.Sectors) count = Math.Max(last, first) - first;
        }

        if (count == 0) return true;
        ulong start = ++_now;
        ModelWrite write = volume.Begin(_nextId++, begin, end - begin, isZero: true, start);
        _inFlight.Add((volume, write));
        IoStatus status = isTrim
            ? await device.TrimAsync(first * Units.SectorBytes, count * Units.SectorBytes, flags)
            : await device.WriteZeroesAsync(first * Units.SectorBytes, count * Units.SectorBytes, flags);
        EndWrite(volume, write, status == IoStatus.Ok, flags.HasFlag(WriteFlags.Fua));
        if (status == IoStatus.NoSpace) JudgeRefusal(volume, isTrim ? "a trim" : "zeroing", start, count);
        // S10: a trim needs no block, so it is never refused for want of one. Over a snapshot it needs a metadata slot.
        bool mayLack = !isTrim || _layerChance > 0;
        if (status != IoStatus.Ok) ExpectOf(volume, status, isTrim ? "trim" : "zero", mayLack ? IoStatus.NoSpace : IoStatus.Unavailable);
        return true;
    }

    private async ValueTask<bool> MapAsync(IBlockDevice device, VolumeModel volume)
    {
        (ulong first, ulong count) = DrawRange(volume, 8192);
        var runs = new List<MapRun>();
        int max = 1 + _clients.NextBelow(20);
        volume.BeginRead();
        ulong start = ++_now;
        IoStatus status = await device.MapAsync(first * Units.SectorBytes, count * Units.SectorBytes, max, runs);
        _now++;
        JudgeMap(volume, first, count, status, max, runs, start);
        volume.ReadDone();
        return true;
    }

    private void JudgeMap(VolumeModel volume, ulong first, ulong count, IoStatus status, int max, List<MapRun> runs, ulong start)
    {
        if (status != IoStatus.Ok)
        {
            ExpectOf(volume, status, "map");
            return;
        }

        _counters[Did.MapsJudged]++;
        ulong at = first;
        for (int i = 0; i < runs.Count && !IsBroken; i++)
        {
            ulong sectors = runs[i].LengthBytes / Units.SectorBytes;
            if (sectors == 0 || at + sectors > first + count || (i > 0 && runs[i].IsHole == runs[i - 1].IsHole))
                Violate(ViolationKind.WrongMap, $"run {i} of the map from sector {first}+{count} is {runs[i]}");
            else if (runs[i].IsHole && volume.JudgeHole(at, sectors, start) is { } fault) Violate(fault);
            if (runs[i].IsHole) _counters[Did.HolesJudged]++;
            at += sectors;
        }

        if (runs.Count > max || (runs.Count < max && at != first + count))
            Violate(ViolationKind.WrongMap, $"the map from sector {first}+{count} has {runs.Count} runs of {max} and ends at {at}");
    }

    private async ValueTask<bool> ScrubAsync(IStore store, VolumeModel volume)
    {
        ScrubReport report = await store.ScrubAsync(
            _clients.NextChance(0.5) ? volume.Head.Id : null, _clients.NextBelow(2UL) * 100_000_000, null, CancellationToken.None);
        if (MayMiss || HasReason) return true;
        foreach ((uint id, ulong offset, _) in report.Bad)
        {
            if (_volumes.TryGetValue(id, out VolumeModel? found) && found.Excused.Contains(offset / Units.BlockBytes)) continue;
            if (_appendVolumes.TryGetValue(id, out AppendModel? appends) && appends.IsDamaged) continue;
            Violate(ViolationKind.WrongScrub, $"a scrub found volume {id} offset {offset} on an honest disk");
            break;
        }

        return true;
    }

    private async ValueTask<bool> PrefetchAsync(IBlockDevice device, VolumeModel volume)
    {
        (ulong first, ulong count) = DrawRange(volume, 512);
        IoStatus status = await device.PrefetchAsync(first * Units.SectorBytes, count * Units.SectorBytes);
        if (status != IoStatus.Ok) ExpectOf(volume, status, "prefetch");
        return true;
    }

    private async ValueTask<bool> ReadAsync(IBlockDevice device, VolumeModel volume)
    {
        (ulong first, ulong count) = DrawRange(volume, _clients.NextChance(0.1) ? 4096UL : 128UL);
        var target = new byte[count * Units.SectorBytes];
        volume.BeginRead();
        ulong start = ++_now;
        ReadResult result = await device.ReadAsync(first * Units.SectorBytes, target);
        _now++;
        if (result.Status == IoStatus.Ok)
        {
            _counters[Did.BytesJudged] += target.Length;
            _counters[Did.ReadsJudged]++;
            if (volume.EndRead(first, target, start) is { } fault) Violate(fault);
        }
        else
        {
            ExpectOf(volume, result.Status, "read");
        }

        volume.ReadDone();
        return true;
    }

    private void EndWrite(VolumeModel volume, ModelWrite write, bool isOk, bool isDurable)
    {
        volume.End(write, isOk, isDurable || _durability == Core.Durability.Ack, ++_now);
        _now++;
        _inFlight.RemoveAll(entry => ReferenceEquals(entry.Write, write));
    }

    private (ulong First, ulong Count) DrawRange(VolumeModel volume, ulong sectorsMax)
    {
        ulong count = 1 + _clients.NextBelow(Math.Min(sectorsMax, volume.Sectors));
        ulong first = _clients.NextBelow(volume.Sectors - count + 1);
        if (_clients.NextChance(0.5)) first = Math.Min(first, 256); // a hot corner, so that requests meet
        if (_clients.NextChance(0.6) && count >= 8) (first, count) = (first / 8 * 8, count / 8 * 8);
        return (first, Math.Min(count, volume.Sectors - first));
    }

    private void ExpectOf(VolumeModel volume, IoStatus status, string what, IoStatus alsoFine = IoStatus.Unavailable)
    {
        if (volume.IsDeleting && status is IoStatus.Unavailable or IoStatus.NotFound) return;
        if (volume.HeadMaybe is not null && status == IoStatus.OutOfRange) return;
        if (status == IoStatus.Corrupt && volume.Excused.Count > 0) return;
        Expect(status, what, alsoFine);
    }

    /// <summary>Errors are fine only when the disk gave a reason for them.</summary>
    private void Expect(IoStatus status, string what, IoStatus alsoFine = IoStatus.Unavailable)
    {
        if (status == IoStatus.NoSpace && status == alsoFine && !HasReason) _counters[Did.FullStores]++;
        if (status == alsoFine && (status != IoStatus.Unavailable || HasReason)) return;
        if (HasReason && status is IoStatus.Unavailable or IoStatus.IoError or IoStatus.NoSpace) return;
        // Pages stay unreadable across lives, and a failed flush takes content away under a read that is under way.
        if (MayMiss && status is IoStatus.Corrupt or IoStatus.IoError) return;
        if (_disk.HasFailedFlush && status is IoStatus.Corrupt or IoStatus.Unavailable) return;
        Violate(
            status == IoStatus.Corrupt ? ViolationKind.Unreadable : ViolationKind.WrongAnswer,
            $"{what} answered {status} without a reason");
    }
}
