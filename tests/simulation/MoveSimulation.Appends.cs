using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

// An append-only volume among those that move: what was answered lies where it was said to lie, and lands once, in whichever home.
internal sealed partial class MoveSimulation
{
    private const string LogName = "log";
    private const int Appenders = 2, RememberedOfClient = 16;

    private readonly List<(Guid Client, ulong Last)> _appenders = [];
    private readonly List<(string Name, byte[] Content)> _logSnapshots = [];
    private readonly bool _isAppending;
    private AppendModel _log = null!;
    private uint _nextAppend = 1;

    /// <summary>Appends that were asked for again after a death and had landed.</summary>
    public int Repeats { get; private set; }

    /// <summary>Appends that were told that their volume had moved.</summary>
    public int Redirected { get; private set; }

    private (ILayeredStore Layered, IAppendStore Appends, uint Id) LogHome()
    {
        VolumeRecord record = _directory.Find(LogName)!;
        ILayeredStore store = _sides.Single(s => s.StoreId == record.StoreId).Store;
        return (store, (IAppendStore)store, record.Id);
    }

    private void CreateLog()
    {
        VolumeRecord record = Finish(_directory.CreateAsync(new Core.Api.CreateVolume(LogName, 64 * Units.MiB, StoreId: _sides[0].StoreId, AppendOnly: true))).Volume!;
        _log = new AppendModel(new VolumeHead(record.Id, record.Uuid, record.Name, 64 * Units.MiB, 1) { IsAppendOnly = true }) { IsSure = true };
        NewAppenders();
    }

    private void NewAppenders()
    {
        _appenders.Clear();
        for (int i = 0; i < Appenders; i++) _appenders.Add((_random.NextGuid(), 0));
        _log.Clients.Clear();
        _log.Clients.AddRange(_appenders.Select(a => (a.Client, 0UL)));
    }

    /// <summary>A snapshot of it, or back to one, when nobody appends and nothing moves.</summary>
    private void ChangeLog()
    {
        if (_directory.Moves.Count > 0 || !_isAppending) return;
        if (_logSnapshots.Count < 3 && _random.NextChance(0.3))
        {
            string name = $"l{_logSnapshots.Count}";
            if (Finish(_directory.CutAsync(name, [LogName], default)).Fault is null) _logSnapshots.Add((name, _log.Settled));
        }
        else if (_logSnapshots.Count > 0 && _random.NextChance(0.15))
        {
            (string name, byte[] content) = _logSnapshots[_random.NextBelow(_logSnapshots.Count)];
            if (Finish(_directory.RollBackAsync(LogName, name, null)).Fault is not null) return;
            _log.GoBack(content, ++_now);
            NewAppenders(); // the old ones are not known any more
        }
    }

    private async Task AppenderAsync(int index, Func<bool> isOver, Action ended)
    {
        try
        {
            (Guid client, ulong last) = _appenders[index];
            // What was under way at the last death, in its order and with its numbers.
            List<AppendItem> items = [.. _log.Old.Where(i => i.Key.Client == client && i.Offset is null).OrderBy(i => i.Key.Sequence)];
            foreach (AppendItem item in items) _log.Old.Remove(item);
            for (int round = 0; round < (_isAppending ? 500 : 0) && Violation is null && !isOver(); round++)
            {
                while (items.Count == 0 || (items.Count < 6 && _random.NextChance(0.5)))
                {
                    int length = _random.NextChance(0.03) ? (int)Units.MiB + _random.NextBelow(200_000) : AppendItem.LengthMin + _random.NextBelow(_random.NextChance(0.3) ? 20_000 : 300);
                    items.Add(new AppendItem(_nextAppend++, new AppendKey(client, ++last), length, ++_now));
                    _appenders[index] = (client, last);
                }

                _log.Items.AddRange(items);
                await AppendAllAsync(items);
                items.Clear();
                if (_random.NextChance(0.5)) await _loop.DelayAsync(_random.NextBelow(2_000_000UL));
            }
        }
        catch (Exception thrown) when (thrown is not OutOfMemoryException)
        {
            Violate(new Violation(ViolationKind.Exception, thrown.ToString()));
        }

        ended();
    }

    /// <summary>All at once and in their order; those that were told that the volume has moved go to its new home.</summary>
    private async Task AppendAllAsync(List<AppendItem> items)
    {
        List<AppendItem> left = [.. items];
        while (left.Count > 0 && Violation is null)
        {
            (_, IAppendStore store, uint id) = LogHome();
            ulong before = _log.LengthMin;
            ValueTask<AppendResult>[] under = [.. left.Select(i => store.AppendAsync(id, i.Key, i.Bytes))];
            var again = new List<AppendItem>();
            for (int i = 0; i < under.Length; i++)
            {
                AppendResult result = await under[i];
                _now++;
                if (result.Outcome is AppendOutcome.Moved or AppendOutcome.NotFound) again.Add(left[i]);
                else if (result.Outcome != AppendOutcome.Done) Violate(new Violation(ViolationKind.WrongAnswer, $"{AppendModel.Name(left[i])}: {result.Outcome}"));
                else if (again.Count > 0) Violate(new Violation(ViolationKind.WrongAnswer, $"{AppendModel.Name(left[i])} landed behind one that did not"));
                else if (_log.Landed(left[i], result.OffsetBytes, before, result.IsRepeat, wasThere: false, mayBeThere: false, _now) is { } fault) Violate(fault);
                _now++;
            }

            Redirected += again.Count;
            left = again;
            if (left.Count > 0) await _loop.DelayAsync(100_000);
        }
    }

    private void JudgeLog()
    {
        (ILayeredStore layered, IAppendStore appends, uint id) = LogHome();
        byte[] shown = _loop.Run(ReadAllAsync(layered.OpenVolume(id)!));
        ulong length = appends.AppendInfoOf(id)!.Value.LengthBytes;
        if ((ulong)shown.Length != AppendModel.Shown(length) || shown.AsSpan((int)length).ContainsAnyExcept((byte)0))
            Violate(new Violation(ViolationKind.WrongData, $"the device shows {shown.Length} bytes for {length}, or no zeros behind them"));
        else if (_log.Judge(shown.AsSpan(0, (int)length), ulong.MaxValue, out List<AppendItem> landed) is { } fault) Violate(fault);
        else _log.Settle(shown.AsSpan(0, (int)length), landed);
        foreach ((string name, byte[] content) in _logSnapshots)
        {
            if (layered.Snapshots(id).FirstOrDefault(s => s.Name == name) is not { } info)
                Violate(new Violation(ViolationKind.LostVolume, $"snapshot {name} of the log is lost"));
            else if (info.LengthBytes != (ulong)content.Length || !_loop.Run(ReadAllAsync(layered.OpenSnapshot(id, info.Uuid)!)).AsSpan(0, content.Length).SequenceEqual(content))
                Violate(new Violation(ViolationKind.WrongData, $"snapshot {name} of the log shows something else, {info.LengthBytes} bytes for {content.Length}"));
        }

        if (Violation is null && _random.NextChance(0.3)) JudgeRepeats();
    }

    /// <summary>The last appends of every client are asked for again: each has landed already.</summary>
    private void JudgeRepeats()
    {
        (_, IAppendStore appends, uint id) = LogHome();
        foreach ((Guid client, _) in _appenders)
        {
            foreach (AppendItem item in _log.Old.Where(i => i.Key.Client == client && i.Offset is not null).OrderByDescending(i => i.Key.Sequence).Take(RememberedOfClient))
            {
                AppendResult result = _loop.Run(appends.AppendAsync(id, item.Key, item.Bytes));
                if (result != new AppendResult(AppendOutcome.Done, item.Offset!.Value, IsRepeat: true))
                    Violate(new Violation(ViolationKind.WrongAnswer, $"{AppendModel.Name(item)} is asked for again: {result}"));
                Repeats++;
            }
        }
    }
}
