using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation.Incoming;

// What is compared with the streams: by readers in between, and after each death.
internal sealed partial class ImportSimulation
{
    /// <summary>Attaches what can be attached and reads all of it, again and again.</summary>
    private async Task ReadersAsync()
    {
        while (!_isOver && Violation is null)
        {
            await _loop.DelayAsync(_random.NextBelow(2_000_000UL));
            string[] names = [.. _contents.Keys];
            if (names.Length == 0) continue;
            string name = names[_random.NextBelow(names.Length)];
            Content content = _contents[name];
            if (_directory.Find(name) is not { } record) continue;
            int[] before = [.. Enumerable.Range(0, SourceStreams.Versions).Where(content.Allows)];
            if (!await _world.AttachAsync(record))
            {
                _counters[ImportDid.Closed]++;
                continue;
            }

            byte[]? shown = await ReadSlowlyAsync(record);
            _world.Detach(record);
            if (shown is null || content.IsGoing || _directory.Find(record.Id) is null) continue;
            if (!before.Any(v => Shows(shown, v)))
                Violate(new Violation(ViolationKind.WrongData, $"a reader of '{name}' was shown what no whole stream held ({Difference(shown, before)})"));
            _counters[ImportDid.Reads]++;
        }
    }

    private async Task<byte[]?> ReadSlowlyAsync(VolumeRecord record)
    {
        if (_store.OpenVolume(record.Id) is not { } device) return null;
        var content = new byte[device.SizeBytes];
        for (int at = 0; at < content.Length; at += 256 << 10)
        {
            Memory<byte> piece = content.AsMemory(at, Math.Min(256 << 10, content.Length - at));
            if ((await device.ReadAsync((ulong)at, piece)).Status != IoStatus.Ok) return null;
            await PauseAsync();
        }

        return content;
    }

    /// <summary>Somebody else on the same disk.</summary>
    private async Task MakeNoiseAsync()
    {
        IBlockDevice? device = _directory.Find(Noise) is { } record ? _store.OpenVolume(record.Id) : null;
        while (!_isOver && Violation is null && device is not null)
        {
            await _loop.DelayAsync(_random.NextBelow(1_000_000UL));
            ulong length = Units.SectorBytes * (1 + _random.NextBelow(64UL));
            ulong at = _random.NextBelow((device.SizeBytes - length) / Units.SectorBytes + 1) * Units.SectorBytes;
            var data = new byte[length];
            _random.Fill(data);
            if (_random.NextChance(0.1)) await device.FlushAsync();
            else if (_random.NextChance(0.2)) await device.TrimAsync(at, length, WriteFlags.None);
            else await device.WriteAsync(at, data, WriteFlags.None);
        }
    }

    private bool Shows(ReadOnlySpan<byte> shown, int version) => shown.SequenceEqual(_source.Contents[version]);

    private string Difference(byte[] shown, int[] allowed) => string.Join("; ", allowed.Select(v =>
        $"version {v} has {_source.Contents[v].Length} bytes, {shown.AsSpan().CommonPrefixLength(_source.Contents[v])} of {shown.Length} agree"));

    /// <summary>What can be attached is whole, what is not says so, and every block is somebody's or free. The model then takes
    /// what it saw as the truth.</summary>
    private bool Judge(bool atRest)
    {
        foreach (string name in _contents.Keys.ToArray()) JudgeVolume(name, _contents[name]);
        foreach (VolumeRecord record in _directory.List().Where(v => v.Name is not (Noise or Ballast) && !_contents.ContainsKey(v.Name)))
            Violate(new Violation(ViolationKind.WrongVolume, $"volume '{record.Name}' is there and must not be"));
        if (atRest && Violation is null) Audit();
        return Violation is null;
    }

    private void JudgeVolume(string name, Content content)
    {
        if (_directory.Find(name) is not { } record)
        {
            bool mayBeGone = content.Known is null || content.IsGoing;
            if (!mayBeGone) Violate(new Violation(ViolationKind.LostVolume, $"'{name}' is lost"));
            _contents.Remove(name);
            return;
        }

        content.IsGoing = false;
        if (record.IsPopulating || record.Import is { IsActive: true, Base: null })
        {
            if (content.Known is not null) Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' was whole and is not any more"));
            return;
        }

        if (record.Import is { IsActive: true })
        {
            Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' stays closed after a start"));
            return;
        }

        byte[] shown = _loop.Run(ReadAllAsync(_store.OpenVolume(record.Id)!));
        int[] allowed = [.. Enumerable.Range(0, SourceStreams.Versions).Where(v => content.Known == v || (record.Import is null && content.Allows(v)))];
        int found = Array.FindIndex(allowed, v => Shows(shown, v));
        if (found < 0)
        {
            Violate(new Violation(ViolationKind.WrongData, $"'{name}' can be attached and shows what no whole stream held ({Difference(shown, allowed)})"));
            return;
        }

        bool isCopy = content.Coming is { Stream.Length: 0 } || (content.Known is not null && content.First is null);
        if (record.Import is null)
        {
            if (!isCopy) content.First ??= allowed[found];
            (content.Known, content.Coming) = (allowed[found], null);
        }

        if (isCopy && _store.BaseOf(record.Id) is not null) Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' is no copy yet: it shares blocks"));
        JudgeSnapshots(name, record, content);
    }

    private void JudgeSnapshots(string name, VolumeRecord record, Content content)
    {
        string[] there = [.. _store.Snapshots(record.Id).Select(s => s.Name).Where(s => s.StartsWith('s'))];
        string[] wanted = content.First is { } first ? [.. Enumerable.Range(first, content.Known!.Value - first + 1).Select(SourceStreams.NameOf)] : [];
        if (!there.SequenceEqual(wanted))
            Violate(new Violation(ViolationKind.LostVolume, $"'{name}' has snapshots {string.Join(' ', there)}, expected {string.Join(' ', wanted)}"));
        string[] parts = [.. _store.Snapshots(record.Id).Select(s => s.Name).Where(s => s.Contains("import-", StringComparison.Ordinal))];
        if (parts.Length > 0 && record.Import is null)
            Violate(new Violation(ViolationKind.Leak, $"'{name}' has parts of streams that nobody goes on with: {string.Join(' ', parts)}"));
        if (Violation is not null || content.First is null || !_random.NextChance(0.3)) return;
        for (int v = content.First.Value; v <= content.Known; v++)
        {
            byte[] shown = _loop.Run(ReadAllAsync(_store.OpenSnapshot(record.Id, _source.Snapshots[v])!));
            if (!Shows(shown, v)) Violate(new Violation(ViolationKind.WrongData, $"snapshot {v} of '{name}' shows something else ({Difference(shown, [v])})"));
        }
    }

    private async ValueTask<byte[]> ReadAllAsync(IBlockDevice device)
    {
        var content = new byte[device.SizeBytes];
        IoStatus status = (await device.ReadAsync(0, content)).Status;
        if (status != IoStatus.Ok) Violate(new Violation(ViolationKind.Unreadable, $"a volume cannot be read: {status}"));
        return content;
    }

    /// <summary>S2 and S9 by the page and the block, once the background is through.</summary>
    private void Audit()
    {
        string? fault = "";
        ulong until = _loop.NowNanos + 60_000_000_000;
        while (fault is not null)
        {
            fault = _loop.Run(_driver.AuditAsync(_store));
            if (fault is not null && _loop.NowNanos > until)
            {
                Violate(new Violation(ViolationKind.Leak, "audit: " + fault));
                return;
            }

            if (fault is not null) _loop.Run(_loop.DelayAsync(500_000_000));
        }

        _counters[ImportDid.Audits]++;
    }

    /// <summary>When everything was deleted nothing is left.</summary>
    private void Clear()
    {
        if (!Judge(atRest: true)) return;
        foreach (string name in _contents.Keys.ToArray())
        {
            if (_directory.Find(name) is { IsPopulating: true } or { Import: not null } && !_isTight)
                Violate(new Violation(ViolationKind.WrongAnswer, $"'{name}' is not whole at the end"));
        }

        ulong until = _loop.NowNanos + 600_000_000_000;
        while (_directory.List() is { Count: > 0 } left && Violation is null)
        {
            foreach (VolumeRecord volume in left.Reverse()) Finish(_directory.DeleteAsync(volume.Name, volume.Id, null, withSnapshots: true));
            Finish(_directory.SweepCopiesAsync());
            _loop.Run(_loop.DelayAsync(100_000_000));
            if (_loop.NowNanos > until)
                Violate(new Violation(ViolationKind.Leak, $"{string.Join(", ", _directory.List().Select(v => v.Name))} cannot be deleted"));
        }

        _contents.Clear();
        if (Violation is not null) return;
        Audit();
        while (_store.GetStats().BlocksUsed > 0 && _loop.NowNanos < until) _loop.Run(_loop.DelayAsync(100_000_000));
        if (_store.GetStats().BlocksUsed > 0)
            Violate(new Violation(ViolationKind.Leak, $"{_store.GetStats().BlocksUsed} blocks are in use and there is no volume"));
        string[] keys = [.. _meta.RangeAsync(SnapshotPrefix).Result.Select(e => e.Key)];
        if (keys.Length > 0) Violate(new Violation(ViolationKind.Leak, $"the metadata still have {string.Join(' ', keys)}"));
    }

    private const string SnapshotPrefix = "snap/";
}
