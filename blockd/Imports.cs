using System.Collections.Concurrent;
using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Streams;

namespace BlockServer.Blockd;

/// <summary>
/// Streams that come into volumes (docs/decisions/0012): a full one fills a volume that nobody may attach before it is whole, an
/// increment is written onto its base, to which the volume goes back when the stream breaks. Thread-safe; one import of a
/// volume at a time.
/// </summary>
internal sealed class Imports(VolumeDirectory directory, IImportWorld world, ImportSeams seams, ImportLimits limits)
{
    private readonly ConcurrentDictionary<uint, byte> _running = new();
    private readonly ConcurrentDictionary<string, byte> _names = new(StringComparer.Ordinal);

    // For clients that could not read the refusal, since they were still sending.
    private readonly ConcurrentQueue<(string Name, ImportException Fault)> _faults = new();

    /// <summary>Ends what the last run of the daemon left half: before anybody may attach, and when a disk comes back.</summary>
    public async Task RecoverAsync()
    {
        foreach (VolumeRecord volume in directory.List().Where(v => v.Import is { } i && (i.IsActive || i.IsGoing) && !_running.ContainsKey(v.Id)))
        {
            if (volume.Import!.IsActive) world.Close(volume.Id);
            if (world.FindStore(volume.StoreId) is not { } host) continue;
            try
            {
                if (volume.Import.IsGoing) await DropAsync(volume, host, volume.Import);
                else if (await IsCompleteAsync(volume, host)) await EndAsync(volume, volume.Import);
                else if (volume.Import.Base is not null) await PutAsideAsync(volume, host, volume.Import);
            }
            catch (ImportException e)
            {
                world.Warn($"volume '{volume.Name}' stays closed, its interrupted import cannot be put aside: {e.Message}");
            }
        }

        // A copy that was finished by its store may be attached at once; others go on.
        foreach (VolumeRecord volume in directory.List().Where(v => v.IsPopulating && world.FindStore(v.StoreId) is not null))
        {
            if ((await directory.PopulateAsync(volume.Id)).Fault is { } fault) world.Warn($"volume '{volume.Name}' stays closed, it cannot be populated: {fault.Detail}");
        }
    }

    /// <summary>Brings a stream in; the volume when it is whole. <paramref name="keepsPart"/>: a stream that breaks off can be
    /// continued later, by <paramref name="goesOn"/>. <paramref name="handed"/>: the body is the header alone, and what follows it lies
    /// there, which stays the caller's. <paramref name="progress"/> is told bytes of how many. Throws <see cref="ImportException"/> or <see cref="ApiException"/>.</summary>
    public async Task<VolumeRecord> RunAsync(
        string name, Guid? storeId, Stream body, ICompressor? compressor, bool keepsPart, bool goesOn, bool isImage, CancellationToken cancel,
        Action<ulong, ulong>? progress = null, bool? isThin = null, HandedImport? handed = null)
    {
        // A new volume has no number yet.
        if (!_names.TryAdd(name, 0)) throw Busy(name);
        try
        {
            StreamHeader header = await ReadHeaderAsync(body, cancel);
            VolumeRecord? known = directory.Find(name);
            if (known is not null && !_running.TryAdd(known.Id, 0)) throw Busy(name);
            VolumeRecord? begun = null;
            try
            {
                begun = header.Base is null
                    ? await BeginFullAsync(name, storeId, isThin, known, header, goesOn, isImage)
                    : await BeginIncrementAsync(name, known, header, goesOn, isImage);
                _running.TryAdd(begun.Id, 0);
                return await FillAsync(begun, header, from => SourceOf(header, body, handed, compressor, from), keepsPart, progress, cancel);
            }
            catch (ImportException e)
            {
                _faults.Enqueue((name, e));
                while (_faults.Count > FaultsMax) _faults.TryDequeue(out _);
                throw;
            }
            finally
            {
                if ((begun ?? known) is { } volume) _running.TryRemove(volume.Id, out _);
            }
        }
        finally
        {
            _names.TryRemove(name, out _);
        }
    }

    /// <summary>A stream is coming into the volume of this name.</summary>
    public bool IsRunning(string name) => _names.ContainsKey(name);

    /// <summary>Why the last stream for a volume of this name was refused or broke; null when it was not, as far as is remembered.</summary>
    public ImportException? FaultOf(string name) => _faults.LastOrDefault(f => f.Name == name).Fault;

    /// <summary>Looks at a stream's header, without any change. Throws as <see cref="RunAsync"/>.</summary>
    public async Task CheckAsync(string name, Stream body, bool goesOn, bool isImage, CancellationToken cancel)
    {
        StreamHeader header = await ReadHeaderAsync(body, cancel);
        if (_names.ContainsKey(name)) throw Busy(name);
        VolumeRecord? known = directory.Find(name);
        if (header.Base is null)
        {
            CheckFull(name, known, header, goesOn);
            return;
        }

        ImportRecord import = CheckIncrement(name, known, header, goesOn, isImage);
        if (AttachedTo(known!.Id) is > 0 and int attached) throw InUse(attached);
        await CheckBaseAsync(known, HostOf(known), header, import);
    }

    /// <summary>Gives up an import that was interrupted: a volume that was to be filled goes, what came of an increment too.</summary>
    public async Task GiveUpAsync(VolumeRecord volume)
    {
        if (volume.Import is not { } import) throw new ApiException(404, "no-import", $"nothing comes into '{volume.Name}'");
        if (!_running.TryAdd(volume.Id, 0)) throw Busy(volume.Name);
        try
        {
            await DropAsync(volume, HostOf(volume), import);
        }
        catch (ImportException e)
        {
            throw new ApiException(e.Status, e.Code, e.Message);
        }
        finally
        {
            _running.TryRemove(volume.Id, out _);
        }
    }

    /// <summary>Makes a volume an image, while nobody is attached and nothing comes into it. Throws <see cref="ApiException"/>.</summary>
    public async Task<VolumeRecord> MarkImageAsync(VolumeRecord volume, ChangeVolume change)
    {
        if (!_running.TryAdd(volume.Id, 0)) throw Busy(volume.Name);
        try
        {
            // The closing would take the unit away from initiators.
            if (AttachedTo(volume.Id) is > 0 and int there) throw InUse(there);
            world.Close(volume.Id);
            try
            {
                // As for an increment: whoever attaches from here on finds it closed, who was there before is seen now.
                await world.RenewTargetsAsync();
                if (AttachedTo(volume.Id) is > 0 and int attached) throw InUse(attached);
                VolumeRecord image = AdminRoutes.Must(await directory.ChangeAsync(volume.Name, change));
                await world.SealAsync(image);
                return image;
            }
            finally
            {
                await ReopenAsync(volume.Id);
            }
        }
        finally
        {
            _running.TryRemove(volume.Id, out _);
        }
    }

    private static async Task<StreamHeader> ReadHeaderAsync(Stream body, CancellationToken cancel)
    {
        var bytes = new byte[StreamHeader.Size];
        int count = 0;
        while (count < bytes.Length && await body.ReadAsync(bytes.AsMemory(count), cancel) is > 0 and int more) count += more;
        return StreamHeader.TryRead(bytes.AsSpan(0, count), out StreamHeader? header) is { } fault
            ? throw new ImportException(false, 400, "bad-stream", fault + "; nothing was changed") : header!;
    }

    private static void CheckFull(string name, VolumeRecord? known, StreamHeader header, bool goesOn)
    {
        if (known is null)
        {
            if (goesOn) throw new ApiException(404, "no-import", $"there is no volume '{name}' whose import could go on");
            return;
        }

        if (known.Import is not { Base: null } import)
            throw new ApiException(409, "name-taken", $"a volume '{name}' exists; a full stream makes a new one: choose another name");
        if (!goesOn)
            throw new ApiException(409, "import-unfinished", $"'{name}' is what an interrupted import has left; resume that, or delete the volume");
        CheckSame(import, header);
        if (known.SizeBytes != header.SizeBytes) throw OtherStream();
    }

    private async Task<VolumeRecord> BeginFullAsync(string name, Guid? storeId, bool? isThin, VolumeRecord? known, StreamHeader header, bool goesOn, bool isImage)
    {
        CheckFull(name, known, header, goesOn);
        if (known is not null) return known;
        var begun = new ImportRecord(header.StreamId, null, 0, header.Target, StreamCursor.AtStart(header).ToString(), IsActive: true, isImage);
        return AdminRoutes.Must(await directory.CreateForImportAsync(new CreateVolume(name, header.SizeBytes, StoreId: storeId, Thin: isThin), begun));
    }

    /// <summary>What the record of the volume will say while the increment comes.</summary>
    private static ImportRecord CheckIncrement(string name, VolumeRecord? known, StreamHeader header, bool goesOn, bool isImage)
    {
        if (isImage) throw new ApiException(400, "invalid-query", "only a full stream makes an image; bring the increment in, then pfcli create_image", "image");
        if (known is null)
            throw new ApiException(409, "wrong-base", $"the stream is an increment and there is no volume '{name}' with its base; import the full stream first");
        if ((VolumeDirectory.ImageFault(known) ?? VolumeDirectory.AppendOnlyFault(known)) is { } fault) throw AdminRoutes.Refusal(fault);
        if (known.Import is { Base: null }) throw new ApiException(409, "import-unfinished", $"'{name}' is not whole itself yet");
        if (!goesOn)
        {
            return new ImportRecord(
                header.StreamId, header.Base, header.BaseSizeBytes, header.Target, StreamCursor.AtStart(header).ToString(), IsActive: true);
        }

        ImportRecord import = known.Import ?? throw new ApiException(404, "no-import", $"no import of '{name}' could go on");
        if (import.IsGoing) throw new ApiException(409, "import-unfinished", "the import is being given up, which was interrupted; give it up again and begin anew");
        CheckSame(import, header);
        return import with { IsActive = true, IsUntouched = false };
    }

    private async Task<VolumeRecord> BeginIncrementAsync(string name, VolumeRecord? known, StreamHeader header, bool goesOn, bool isImage)
    {
        ImportRecord begun = CheckIncrement(name, known, header, goesOn, isImage);
        IMoveSide host = HostOf(known!);
        // The closing would take the unit away from initiators, who were to be refused for.
        if (AttachedTo(known!.Id) is > 0 and int there) throw InUse(there);
        if (!goesOn && known.Import is { } left) await DropAsync(known, host, left);
        known = directory.Find(name) ?? throw new ApiException(404, "no-such-volume", $"there is no volume '{name}'");
        world.Close(known.Id);
        VolumeRecord? volume = null;
        try
        {
            // Whoever attaches from here on finds the volume closed; who was there before is seen now.
            await world.RenewTargetsAsync();
            if (AttachedTo(known.Id) is > 0 and int attached) throw InUse(attached);
            await CheckBaseAsync(known, host, header, begun);
            volume = Must(await directory.SetImportAsync(known.Id, known.Import, begun));
            if (goesOn) await TakeUpAsync(volume, host, begun, known.Import is { IsUntouched: true });
            return header.SizeBytes > volume.SizeBytes ? Must(await directory.ResizeForImportAsync(volume.Id, header.SizeBytes)) : volume;
        }
        catch (Exception e) when (e is ImportException or ApiException)
        {
            if (volume is null) await ReopenAsync(known.Id);
            else await PutAsideAsync(directory.Find(name) ?? volume, host, begun);
            throw;
        }
    }

    /// <summary>The newest snapshot is the base and nothing was written since.</summary>
    private async Task CheckBaseAsync(VolumeRecord volume, IMoveSide host, StreamHeader header, ImportRecord import)
    {
        IReadOnlyList<SnapshotInfo> known = await SnapshotsAsync(volume, host);
        SnapshotInfo? newest = known.LastOrDefault(s => !IsOurs(s, import) && !IsOurs(s, volume.Import ?? import));
        if (newest?.Uuid != header.Base)
        {
            if (newest is not null && known.Any(s => s.Uuid == header.Base) && CopiesOf(newest) is { Length: > 0 } copies
                && await directory.IsCutForCopyAsync(volume.Id, newest.Uuid))
            {
                throw new ApiException(409, "volume-being-copied",
                    $"{string.Join(", ", copies)} is still being populated from '{volume.Name}', whose snapshot '{newest.Name}' goes when that has ended; "
                    + "wait (pfcli list_task shows how far it is), then import again");
            }

            string has = newest is null ? "it has none" : $"it is '{newest.Name}' ({newest.Uuid})";
            throw new ApiException(409, "wrong-base", $"the stream builds on snapshot {header.Base}, which must be the newest one of '{volume.Name}': {has}"
                + (known.Any(s => s.Uuid == header.Base) ? "; delete the newer ones first (pfcli delete_snapshot)" : ""));
        }

        if (header.Target is { } target && known.FirstOrDefault(s => s.Uuid == target || s.Name == header.TargetName) is { } taken)
            throw new ApiException(409, "snapshot-exists", $"'{volume.Name}' has a snapshot '{taken.Name}' already, which the stream would bring");
        if (volume.SizeBytes != newest!.SizeBytes || await HasChangedAsync(volume, host, newest.Uuid, newest.SizeBytes))
        {
            throw new ApiException(409, "changed-since-base",
                $"'{volume.Name}' has changed since its snapshot '{newest.Name}'; take that back first: pfcli rollback_snapshot -v {volume.Name} -n {newest.Name}");
        }
    }

    /// <summary>Names of the volumes that a snapshot is kept for until they are populated; none when anything else builds on it too.</summary>
    private string[] CopiesOf(SnapshotInfo snapshot)
    {
        VolumeRecord?[] clones = [.. snapshot.Clones.Select(directory.Find)];
        return clones.All(c => c is { IsPopulating: true }) ? [.. clones.Select(c => $"'{c!.Name}'")] : [];
    }

    private IImportSource SourceOf(StreamHeader header, Stream body, HandedImport? handed, ICompressor? compressor, StreamCursor from)
    {
        if (handed is { IsImage: true }) return new ImageSource(handed.File, header, from);
        Stream frames = handed is null ? body : new HandedStream(handed.File, (long)from.PositionBytes);
        return new FrameSource(frames, new StreamDecoder(header, compressor, from), limits.Patience);
    }

    private async Task<VolumeRecord> FillAsync(
        VolumeRecord volume, StreamHeader header, Func<StreamCursor, IImportSource> open, bool keepsPart, Action<ulong, ulong>? progress, CancellationToken cancel)
    {
        IMoveSide host = HostOf(volume);
        ImportRecord import = volume.Import!;
        StreamCursor from = StreamCursor.TryParse(import.Cursor)
            ?? throw new ApiException(409, "import-unfinished", "where the import stood is not known any more; give it up and begin anew");
        try
        {
            var job = new StreamImport(host, volume.Id, header, open(from), limits, async cursor =>
            {
                ImportRecord now = import with { Cursor = cursor };
                Must(await directory.SetImportAsync(volume.Id, import, now));
                import = now;
            }) { Progress = progress is null ? null : done => progress(done, header.SizeBytes) };
            await job.RunAsync(cancel);
            if (limits.Broken.HasFlag(BrokenImports.OpenEarly)) await EndAsync(volume, import);
            await FinishAsync(volume, host, header);
            return limits.Broken.HasFlag(BrokenImports.OpenEarly) ? volume : await EndAsync(volume, import);
        }
        catch (ImportException e)
        {
            volume = directory.Find(volume.Name) ?? volume;
            bool isKept = e.CanGoOn && keepsPart;
            if (!isKept) await DropAsync(volume, host, import);
            else if (import.Base is not null) await PutAsideAsync(volume, host, import);
            if (e.Code != NoSpace) throw;
            throw new ImportException(isKept, e.Status, NoSpace, isKept
                ? "the disk is full; what has come is kept: make room, then resume the import, or give it up"
                : "the disk is full; nothing of the stream was taken");
        }
    }

    /// <summary>Everything is there: the size, and the snapshot that later increments build on.</summary>
    private async Task FinishAsync(VolumeRecord volume, IMoveSide host, StreamHeader header)
    {
        VolumeRecord now = directory.Find(volume.Name) ?? volume;
        if (header.SizeBytes < now.SizeBytes) Must(await directory.ResizeForImportAsync(volume.Id, header.SizeBytes));
        if (header.Target is not { } target) return;
        var cut = new SnapshotRequest(volume.Id, target, header.TargetName, header.UnixSeconds);
        IoStatus status = await host.RunAsync(store => store.CreateSnapshotsAsync([cut]));
        if (status != IoStatus.Ok) throw Failed(status);
    }

    private async Task<VolumeRecord> EndAsync(VolumeRecord volume, ImportRecord import)
    {
        // While the record still names the stream: nobody would know later whose they are.
        if (import.Base is not null && world.FindStore(volume.StoreId) is { } host) await DropPartsAsync(volume, host, import, keepNewest: false);
        VolumeRecord done = Must(await directory.SetImportAsync(volume.Id, import, null));
        await ReopenAsync(volume.Id);
        return done;
    }

    /// <summary>The target was cut, and only that was not written down any more.</summary>
    private static async Task<bool> IsCompleteAsync(VolumeRecord volume, IMoveSide host) =>
        volume.Import!.Target is { } target && (await SnapshotsAsync(volume, host)).Any(s => s.Uuid == target);

    /// <summary>Goes back to the base; what has come is kept in a snapshot. May be repeated wherever it was cut off.</summary>
    private async Task PutAsideAsync(VolumeRecord volume, IMoveSide host, ImportRecord import)
    {
        await GoBackAsync(volume, host, import, PrefixOf(import));
        await DropPartsAsync(volume, host, import, keepNewest: true);
        bool isUntouched = await PartOfAsync(volume, host, import) is null;
        Must(await directory.SetImportAsync(volume.Id, import, import with { IsActive = false, IsUntouched = isUntouched }));
        await ReopenAsync(volume.Id);
    }

    /// <summary>Makes the volume again what it was when it was put aside.</summary>
    private async Task TakeUpAsync(VolumeRecord volume, IMoveSide host, ImportRecord import, bool wasUntouched)
    {
        SnapshotInfo? part = await PartOfAsync(volume, host, import);
        if (part is null && wasUntouched) return;
        if (part is null) throw new ApiException(409, "import-unfinished", "what had come of the stream was deleted; give the import up and begin anew");
        await RollBackAsync(volume, host, part.Uuid, TemporaryPrefix + PrefixOf(import));
    }

    /// <summary>The snapshot that keeps what has come, or null.</summary>
    private static async Task<SnapshotInfo?> PartOfAsync(VolumeRecord volume, IMoveSide host, ImportRecord import) =>
        (await SnapshotsAsync(volume, host)).LastOrDefault(s => s.Name.StartsWith(PrefixOf(import), StringComparison.Ordinal));

    /// <summary>Leaves nothing of the import.</summary>
    private async Task DropAsync(VolumeRecord volume, IMoveSide host, ImportRecord import)
    {
        if (import.Base is null)
        {
            DirectoryResult gone = await directory.DeleteImportAsync(volume.Id);
            if (gone.Fault is { Code: not "no-such-volume" } fault) throw new ImportException(false, 503, fault.Code, fault.Detail);
            world.Forget(volume.Id);
            return;
        }

        // From here on nobody goes on with it: what has come may be gone in part when this is interrupted.
        ImportRecord going = import with { IsGoing = true };
        if (going != import) Must(await directory.SetImportAsync(volume.Id, import, going));
        if (import.IsActive) await GoBackAsync(volume, host, import, TemporaryPrefix + PrefixOf(import));
        await DropPartsAsync(volume, host, import, keepNewest: false);
        Must(await directory.SetImportAsync(volume.Id, going, null));
        await ReopenAsync(volume.Id);
    }

    private Task ReopenAsync(uint volumeId)
    {
        world.Reopen(volumeId);
        return world.RenewTargetsAsync();
    }

    private async Task GoBackAsync(VolumeRecord volume, IMoveSide host, ImportRecord import, string prefix)
    {
        if (limits.Broken.HasFlag(BrokenImports.LeavePart)) return;
        Guid basis = import.Base!.Value;
        // Not by its size: a start gives a volume that has gone back the size of its record again. Going back twice would keep the base
        // itself in the place of what has come.
        if (await HasChangedAsync(volume, host, basis, import.BaseSizeBytes)) await RollBackAsync(volume, host, basis, prefix);
        if (volume.SizeBytes != import.BaseSizeBytes) Must(await directory.ResizeForImportAsync(volume.Id, import.BaseSizeBytes));
    }

    private async Task RollBackAsync(VolumeRecord volume, IMoveSide host, Guid snapshot, string prefix)
    {
        IReadOnlyList<SnapshotInfo> known = await SnapshotsAsync(volume, host);
        string safety = prefix;
        for (int i = 1; known.Any(s => s.Name == safety); i++) safety = string.Create(CultureInfo.InvariantCulture, $"{prefix}-{i}");
        var request = new SnapshotRequest(volume.Id, seams.Random.NextGuid(), safety, (ulong)seams.Clock.UtcNow.ToUnixTimeSeconds());
        IoStatus status = await host.RunAsync(store => store.RollBackAsync(snapshot, request));
        if (status != IoStatus.Ok) throw Failed(status);
    }

    private async Task DropPartsAsync(VolumeRecord volume, IMoveSide host, ImportRecord import, bool keepNewest)
    {
        if (limits.Broken.HasFlag(BrokenImports.KeepParts)) return;
        IReadOnlyList<SnapshotInfo> known = await SnapshotsAsync(volume, host);
        SnapshotInfo[] parts = [.. known.Where(s => s.Name.StartsWith(PrefixOf(import), StringComparison.Ordinal))];
        IEnumerable<SnapshotInfo> going = known.Where(s => s.Name.StartsWith(TemporaryPrefix + PrefixOf(import), StringComparison.Ordinal))
            .Concat(keepNewest ? parts.SkipLast(1) : parts);
        foreach (SnapshotInfo part in going)
        {
            IoStatus status = await host.RunAsync(store => store.DeleteSnapshotAsync(volume.Id, part.Uuid));
            if (status is not (IoStatus.Ok or IoStatus.NotFound)) throw Failed(status);
        }
    }

    /// <summary>It holds something else than the snapshot, which is of <paramref name="sizeBytes"/>, whatever its own size is.</summary>
    private static async Task<bool> HasChangedAsync(VolumeRecord volume, IMoveSide host, Guid since, ulong sizeBytes)
    {
        var runs = new List<DiffRun>();
        IoStatus status = await host.RunAsync(store => store.DiffAsync(
            volume.Id, since, null, 0, Math.Max(sizeBytes, store.Volumes.FirstOrDefault(v => v.Id == volume.Id)?.SizeBytes ?? 0), 2, runs));
        if (status != IoStatus.Ok) throw Failed(status);
        return runs.Any(r => r.IsChanged);
    }

    private static Task<IReadOnlyList<SnapshotInfo>> SnapshotsAsync(VolumeRecord volume, IMoveSide host) =>
        host.RunAsync(store => new ValueTask<IReadOnlyList<SnapshotInfo>>(store.Snapshots(volume.Id)));

    private int AttachedTo(uint volumeId) => limits.Broken.HasFlag(BrokenImports.IgnoreClients) ? 0 : world.AttachedTo(volumeId);

    private IMoveSide HostOf(VolumeRecord volume) => world.FindStore(volume.StoreId)
        ?? throw new ApiException(503, "disk-unavailable", "the volume's disk is not in service");

    private const string TemporaryPrefix = "undo-";

    private const string NoSpace = "no-space";

    private const int FaultsMax = 64;

    /// <summary>What the snapshots are called that keep what has come.</summary>
    private static string PrefixOf(ImportRecord import) => "import-" + import.StreamId.ToString("N")[..12];

    private static bool IsOurs(SnapshotInfo snapshot, ImportRecord import) =>
        snapshot.Name.StartsWith(PrefixOf(import), StringComparison.Ordinal)
        || snapshot.Name.StartsWith(TemporaryPrefix + PrefixOf(import), StringComparison.Ordinal);

    private static void CheckSame(ImportRecord import, StreamHeader header)
    {
        bool isSame = import.StreamId == header.StreamId && import.Base == header.Base && import.Target == header.Target;
        if (!isSame) throw OtherStream();
    }

    private static ApiException OtherStream() => new(409, "other-stream", "the import that was interrupted is of another stream; resume with that one, or give the import up");

    private static ApiException InUse(int attached) => new(409, "volume-in-use", $"{attached} clients are attached; detach them first");

    private static ApiException Busy(string name) => new(409, "import-running", $"a stream is coming into '{name}'; wait until that has ended");

    private static VolumeRecord Must(DirectoryResult result) =>
        result.Fault is not { } fault ? result.Volume!
            : throw (fault.Code.StartsWith("quota-", StringComparison.Ordinal) ? new ImportException(false, 409, fault.Code, fault.Detail) : new ImportException(true, 503, fault.Code, fault.Detail));

    private static ImportException Failed(IoStatus status) => status == IoStatus.NoSpace
        ? new(true, 507, NoSpace, "the disk is full")
        : new(true, 503, "disk-unavailable", $"the volume's disk does not serve ({status}); see pfcli list_disk");
}
