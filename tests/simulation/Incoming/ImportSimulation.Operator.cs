using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Streams;

namespace BlockServer.Tests.Simulation.Incoming;

// What is asked of the node: streams, whole and broken ones, copies, deletions.
internal sealed partial class ImportSimulation
{
    private const int ActsPerLife = 8;

    private static readonly string[] s_noRoom = ["no-space"];

    private async Task OperateAsync(bool isLast)
    {
        if (isLast)
        {
            _isOver = true;
            await MendAsync();
        }

        for (int i = 0; i < ActsPerLife && !isLast && Violation is null; i++)
        {
            await ActAsync();
            if (_random.NextChance(0.3)) await _loop.DelayAsync(_random.NextBelow(1_000_000UL));
        }

        _isOver = true;
    }

    /// <summary>What was interrupted goes on, or is given up.</summary>
    private async Task MendAsync()
    {
        if (_directory.Find(Ballast) is { } ballast) await _store.OpenVolume(ballast.Id)!.TrimAsync(0, ballast.SizeBytes, WriteFlags.Fua);
        foreach (string name in _contents.Keys.ToArray())
        {
            if (_directory.Find(name) is not { } record) continue;
            if (record.IsPopulating && !(await _world.Side.LayersAsync(record.Id))!.IsFlattening) StartCopying(record);
        }

        while (_copying > 0 && Violation is null) await _loop.DelayAsync(50_000_000);
        foreach (string name in _contents.Keys.ToArray())
        {
            // Somebody may have it open at first.
            for (int i = 0; i < 20 && _directory.Find(name) is { Import: not null } record; i++)
            {
                await (_random.NextChance(0.7) ? ResumeAsync(name, record) : GiveUpAsync(name, record));
                await _loop.DelayAsync(50_000_000);
            }
        }
    }

    private async Task ActAsync()
    {
        string[] names = [.. _contents.Keys];
        string? name = names.Length == 0 ? null : names[_random.NextBelow(names.Length)];
        VolumeRecord? record = name is null ? null : _directory.Find(name);
        Content? content = name is null ? null : _contents[name];
        if (record is { Import: not null })
        {
            int dice = _random.NextBelow(10);
            if (dice < 6) await ResumeAsync(name!, record);
            else if (dice < 8) await GiveUpAsync(name!, record);
            else await ForeignAsync(name!, record, content!);
            return;
        }

        switch (_random.NextBelow(10))
        {
            case < 3 when names.Length < VolumesMax:
                await BringAsync($"v{_next++}", _random.NextBelow(SourceStreams.Versions - 1), basis: null);
                return;
            case < 7 when content is { Known: { } version, First: not null } && version + 1 < SourceStreams.Versions:
                await BringAsync(name!, version + 1, basis: version);
                return;
            case 7 when content is { Known: { } known } && record is { IsPopulating: false } && names.Length < VolumesMax:
                await CopyAsync(name!, content, known);
                return;
            case 8 when content is { Known: { } version, First: not null }:
                await WrongBaseAsync(name!, version, content.IsImage);
                return;
            case 9 when record is not null:
                await DeleteAsync(name!, record);
                return;
        }
    }

    /// <summary>A stream comes: whole, damaged somewhere, or broken off.</summary>
    private async Task BringAsync(string name, int version, int? basis)
    {
        byte[] stream = basis is null ? _source.Full[version] : _source.Increment[version];
        bool isImage = basis is null && _random.NextChance(0.2), keeps = _random.NextChance(0.7);
        int fate = _random.NextBelow(10), cut = StreamHeader.Size + _random.NextBelow(stream.Length - StreamHeader.Size);
        ReadOnlyMemory<byte> body = stream;
        bool breaks = false, isWhole = fate > 6;
        if (fate < 2)
        {
            byte[] damaged = [.. stream];
            damaged[cut] ^= (byte)(1 << _random.NextBelow(8));
            body = damaged;
        }
        else if (fate < 6)
        {
            body = stream.AsMemory(0, cut);
            breaks = _random.NextChance(0.5);
        }
        else if (fate == 6)
        {
            body = (byte[])[.. stream, 7];
        }

        if (!_contents.TryGetValue(name, out Content? content)) _contents[name] = content = new Content { IsImage = isImage };
        content.Coming = (version, stream);
        bool isCopied = IsBeingCopied(name); // its copy may end meanwhile, or another one begin
        string? fault = await TryAsync(name, body, breaks, keeps, goesOn: false, isImage && basis is null);
        isCopied |= IsBeingCopied(name);
        string[] expected = fate is < 2 or 6 ? ["bad-stream", "truncated-stream"] : fate < 6 ? ["truncated-stream", "interrupted-stream"] : [];
        if (content.IsImage && basis is not null) (expected, isWhole) = (["volume-is-image"], true);
        // What is being copied is held by a snapshot, which is the newest one then.
        if (basis is not null && isCopied) expected = [.. expected, "wrong-base", "volume-being-copied"];
        bool mayBeKept = keeps && fate is >= 2 and < 6;
        Ended(name, content, fault, isWhole, expected, mayBeKept, basis is null ? ImportDid.Fulls : ImportDid.Increments);
    }

    private async Task ResumeAsync(string name, VolumeRecord record)
    {
        Content content = _contents[name];
        if (content.Coming is not { } coming)
        {
            Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' has an import though none was begun"));
            return;
        }

        int at = (int)(StreamCursor.TryParse(record.Import!.Cursor)?.PositionBytes ?? StreamHeader.Size), end = coming.Stream.Length;
        bool isWhole = _isOver || _random.NextChance(0.7), keeps = _random.NextChance(0.8);
        if (!isWhole) end = at + _random.NextBelow(end - at);
        byte[] body = [.. coming.Stream.AsSpan(0, StreamHeader.Size), .. coming.Stream.AsSpan(at, end - at)];
        bool isCopied = IsBeingCopied(name);
        string? fault = await TryAsync(name, body, breaks: !isWhole, keeps, goesOn: true, content.IsImage && content.Known is null);
        isCopied |= IsBeingCopied(name);
        if (fault is null) _counters[ImportDid.Resumed]++;
        string[] expected = isWhole ? [] : ["truncated-stream", "interrupted-stream"];
        if (content.Known is not null && isCopied) expected = [.. expected, "wrong-base", "volume-being-copied"];
        Ended(name, content, fault, isWhole, expected, mayBeKept: keeps || fault is "volume-in-use" or "wrong-base" or "volume-being-copied",
            content.Known is null ? ImportDid.Fulls : ImportDid.Increments);
    }

    private string SnapshotsOf(string name) =>
        _directory.Find(name) is { } record ? string.Join(' ', _store.Snapshots(record.Id).Select(s => $"{s.Name}={s.Uuid.ToString("N")[..8]}")) : "";

    private bool IsBeingCopied(string name) => _directory.Find(name) is { } record
        && _store.Snapshots(record.Id).Any(s => s.Name.StartsWith("copy-", StringComparison.Ordinal));

    private async Task<string?> TryAsync(string name, ReadOnlyMemory<byte> body, bool breaks, bool keeps, bool goesOn, bool isImage)
    {
        _isImporting = true;
        string? fault = null;
        _trace?.Invoke($"{_loop.EventCount}: {(goesOn ? "the rest of a stream" : "a stream")} comes into {name}, {body.Length} bytes{(keeps ? ", to be kept" : "")}: {_directory.Find(name)?.Import}; {SnapshotsOf(name)}");
        try
        {
            await using var stream = new SimBody(_loop, _random, body, breaks);
            await _imports.RunAsync(name, null, stream, null, keeps, goesOn, isImage, CancellationToken.None);
            return null;
        }
        catch (ImportException e)
        {
            return fault = e.Code;
        }
        catch (ApiException e)
        {
            return fault = e.Code;
        }
        finally
        {
            _isImporting = false;
            _trace?.Invoke($"{_loop.EventCount}: {name}: {fault ?? "taken"}, {_directory.Find(name)?.Import}; {SnapshotsOf(name)}");
        }
    }

    /// <summary>Compares what an import answered, and what it left in the record, with what had to come of it.</summary>
    private void Ended(string name, Content content, string? fault, bool isWhole, string[] expected, bool mayBeKept, ImportDid done)
    {
        VolumeRecord? now = _directory.Find(name);
        if (fault is null)
        {
            if (!isWhole) Violate(new Violation(ViolationKind.WrongAnswer, $"a stream into '{name}' that is not whole was taken"));
            if (now is null or { Import: not null }) Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' is not as after a whole stream"));
            content.First ??= content.Coming!.Value.Version;
            (content.Known, content.Coming) = (content.Coming!.Value.Version, null);
            _counters[done]++;
            return;
        }

        bool isInUse = fault == "volume-in-use", isFull = fault == "no-space" && _isTight;
        if (!isInUse && !isFull && !expected.Contains(fault))
            Violate(new Violation(ViolationKind.WrongAnswer, $"a stream into '{name}' answered {fault}, expected {(expected.Length == 0 ? "Ok" : string.Join(" or ", expected))}"));
        _counters[isInUse ? ImportDid.InUse : isFull ? ImportDid.Full : now?.Import is null ? ImportDid.Dropped : ImportDid.Kept]++;
        if (now?.Import is not null)
        {
            if (!mayBeKept && !isFull) Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' keeps a part of a stream that answered {fault}"));
            return;
        }

        content.Coming = null;
        if (content.Known is not null && now is null) Violate(new Violation(ViolationKind.LostVolume, $"'{name}' is gone after {fault}"));
        if (content.Known is null && now is not null) Violate(new Violation(ViolationKind.WrongVolume, $"'{name}' is there after {fault}, and nothing says that it is not whole"));
        if (content.Known is null) _contents.Remove(name);
    }

    private async Task GiveUpAsync(string name, VolumeRecord record)
    {
        Content content = _contents[name];
        if (content.Known is null) content.IsGoing = true;
        string? fault = await AskAsync(() => _imports.GiveUpAsync(record));
        if (fault is not null) Violate(new Violation(ViolationKind.WrongAnswer, $"the giving up of an import of '{name}' answered {fault}"));
        content.Coming = null;
        if (content.Known is null) _contents.Remove(name);
        _counters[ImportDid.GivenUp]++;
    }

    /// <summary>Another stream than the one that was interrupted.</summary>
    private async Task ForeignAsync(string name, VolumeRecord record, Content content)
    {
        bool goesOn = _random.NextChance(0.5);
        if (content.Coming?.Stream == _source.Full[3]) return;
        string? fault = await TryAsync(name, _source.Full[3], breaks: false, keeps: true, goesOn, isImage: false);
        string wanted = goesOn ? "other-stream" : content.Known is null ? "import-unfinished" : "name-taken";
        if (goesOn && content.Known is not null) wanted = "name-taken";
        if (fault != wanted) Violate(new Violation(ViolationKind.WrongAnswer, $"another stream into '{name}' answered {fault}, expected {wanted}"));
        _counters[ImportDid.Refused]++;
    }

    /// <summary>An increment on something else than the newest snapshot.</summary>
    private async Task WrongBaseAsync(string name, int version, bool isImage)
    {
        int[] wrong = [.. Enumerable.Range(1, SourceStreams.Versions - 1).Where(v => v != version + 1)];
        bool isCopied = IsBeingCopied(name);
        string? fault = await TryAsync(name, _source.Increment[wrong[_random.NextBelow(wrong.Length)]], breaks: false, keeps: true, goesOn: false, isImage: false);
        string[] right = isImage ? ["volume-is-image"] : ["wrong-base", "volume-in-use", .. (ReadOnlySpan<string>)(isCopied || IsBeingCopied(name) ? ["volume-being-copied"] : [])];
        if (fault is null || !right.Contains(fault)) Violate(new Violation(ViolationKind.WrongAnswer, $"an increment on another base into '{name}' answered {fault ?? "Ok"}"));
        _counters[ImportDid.Refused]++;
    }

    private async Task CopyAsync(string source, Content content, int version)
    {
        string name = $"c{_next++}";
        string? snapshot = content.First is { } first && _random.NextChance(0.5) ? SourceStreams.NameOf(version = first + _random.NextBelow(version - first + 1)) : null;
        _contents[name] = new Content { Coming = (version, []) };
        DirectoryResult made = await _directory.CloneAsync(source, new CloneVolume(name, snapshot, Full: true));
        if (made.Fault is { } fault)
        {
            _contents.Remove(name);
            bool isRight = fault.Code == "volume-flattening" || (_isTight && s_noRoom.Contains(fault.Code));
            if (!isRight) Violate(new Violation(ViolationKind.WrongAnswer, $"a copy of '{source}' answered {fault.Code}: {fault.Detail}"));
            return;
        }

        StartCopying(made.Volume!);
    }

    private void StartCopying(VolumeRecord volume)
    {
        _ = Watched(PopulateAsync(volume));
    }

    private async Task PopulateAsync(VolumeRecord volume)
    {
        _copying++;
        try
        {
            await new VolumePopulation(_directory, _world, time => _loop.DelayAsync((ulong)time.TotalNanoseconds).AsTask(), _ => { }).RunAsync(volume);
            if (_contents.TryGetValue(volume.Name, out Content? content) && content.Coming is { } coming) (content.Known, content.Coming) = (coming.Version, null);
            _counters[ImportDid.Copies]++;
        }
        catch (IOException e)
        {
            bool isGone = _directory.Find(volume.Id) is null;
            if (!isGone && !_isTight) Violate(new Violation(ViolationKind.WrongAnswer, $"the population of '{volume.Name}' stopped: {e.Message}"));
            if (!isGone) _counters[ImportDid.Full]++;
        }
        finally
        {
            _copying--;
        }
    }

    private async Task DeleteAsync(string name, VolumeRecord record)
    {
        if (_world.AttachedTo(record.Id) > 0) return; // as the API
        Content content = _contents[name];
        content.IsGoing = true;
        DirectoryResult gone = await _directory.DeleteAsync(name, record.Id, null, withSnapshots: true);
        if (gone.Fault is { } fault)
        {
            content.IsGoing = false;
            if (fault.Code is not ("snapshot-has-clones" or "clone-being-deleted"))
                Violate(new Violation(ViolationKind.WrongAnswer, $"the deletion of '{name}' answered {fault.Code}: {fault.Detail}"));
            return;
        }

        _contents.Remove(name);
        _world.Forget(record.Id);
        _counters[ImportDid.Deleted]++;
    }

    private static async Task<string?> AskAsync(Func<Task> ask)
    {
        try
        {
            await ask();
            return null;
        }
        catch (ApiException e)
        {
            return e.Code;
        }
    }
}
