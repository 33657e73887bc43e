using BlockServer.Core;
using BlockServer.Storage;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;
using Xunit;

namespace BlockServer.Tests.Simulation;

/// <summary>Crash states of append-only volumes: at every event of a workload of appends the power is cut in many ways, and what
/// is recovered is a prefix of what was appended, with all that was answered, never a part of an append; a repeat of every
/// append then lands once.</summary>
public sealed class AppendCrashTests(ITestOutputHelper output)
{
    private static readonly int[][] s_workloads =
    [
        [4096, 4096, 4096, 4096, 4096, 4096],
        [100, 300, 4000, 5000, 1, 70],
        [(1 << 20) - 100, 50, 4096 + 50, 8192, 3],
        [10, (1 << 20) + 5000, 77, 2 << 20, 300],
        // So much waits behind the first one that it is written while that is flushed.
        [(1 << 20) - 100, 70_000, 4096 + 50, 66_000, 3],
    ];

    /// <summary>Workloads by their index, one writer or three at once.</summary>
    [Theory]
    [InlineData(4, 1)]
    [InlineData(4, 3)]
    [InlineData(0, 1)]
    [InlineData(0, 3)]
    [InlineData(1, 1)]
    [InlineData(1, 3)]
    [InlineData(2, 1)]
    [InlineData(2, 2)]
    [InlineData(3, 1)]
    [InlineData(3, 2)]
    public void What_a_power_cut_leaves_is_a_prefix_with_all_that_was_answered(int workload, int writers)
    {
        var run = new AppendCrashes(BrokenRules.None, (ulong)(workload * 10 + writers), Settings.CrashStates / 16);
        run.Run(s_workloads[workload], writers);
        Assert.True(run.Fault is null, run.Fault);
        Assert.True(run.States > 10, $"{run.States} states");
        output.WriteLine($"{run.States} crash states");
    }

    /// <summary>Drawn sizes and numbers of writers, enough of them to take the log round its ring and pages home.</summary>
    [Fact]
    public void Drawn_appends_survive_every_power_cut()
    {
        int states = 0;
        for (ulong seed = 100; states < Settings.CrashStates / 4; seed++)
        {
            var random = new SeededRandom(seed);
            int[] sizes = [.. Enumerable.Range(0, 4 + random.NextBelow(60)).Select(_ => random.NextBelow(8) switch
            {
                0 => 1 + random.NextBelow(10),
                1 or 2 => 4096,
                3 => 65536 + random.NextBelow(3),
                _ => 1 + random.NextBelow(9000),
            })];
            var run = new AppendCrashes(BrokenRules.None, seed, 1000);
            run.Run(sizes, 1 + random.NextBelow(5));
            Assert.True(run.Fault is null, $"seed {seed}: {run.Fault}");
            Assert.True(run.States > 0);
            states += run.States;
        }

        output.WriteLine($"{states} crash states");
    }

    /// <summary>The eleventh client needs a second page, which begins while what the others appended is not durable: the page must not
    /// say more than a power cut leaves.</summary>
    [Fact]
    public void A_page_for_more_clients_says_no_length_that_a_power_cut_takes()
    {
        int states = 0;
        for (ulong seed = 1; seed <= 8; seed++)
        {
            var run = new AppendCrashes(BrokenRules.None, seed, 400);
            run.Run([.. Enumerable.Repeat(100_000, 12)], 12);
            Assert.True(run.Fault is null, $"seed {seed}: {run.Fault}");
            states += run.States;
        }

        Assert.True(states > 100, $"{states} states");
    }

    /// <summary>Every rule of appends, broken, is noticed.</summary>
    [Theory]
    [InlineData(BrokenRules.LengthBeforeData, 0)]
    [InlineData(BrokenRules.ForgetAppends, 0)]
    [InlineData(BrokenRules.AnswerAppendEarly, 0)]
    [InlineData(BrokenRules.LargeAppendUnflushed, 3)]
    [InlineData(BrokenRules.AppendOverGap, 4)]
    [InlineData(BrokenRules.SplitRequests, 1)]
    [InlineData(BrokenRules.SkipTailCrc, 1)]
    public void A_broken_rule_is_caught(BrokenRules broken, int workload)
    {
        for (ulong seed = 1; seed <= 20; seed++)
        {
            foreach (int writers in new[] { 1, 3 })
            {
                var run = new AppendCrashes(broken, seed, 3000);
                run.Run(s_workloads[workload], writers);
                if (run.Fault is null) continue;
                output.WriteLine($"seed {seed}, {writers} writers: {run.Fault}");
                return;
            }
        }

        Assert.Fail($"{broken} was not noticed");
    }
}

/// <summary>One workload of appends and its crash states.</summary>
internal sealed class AppendCrashes(BrokenRules broken, ulong seed, int statesMax)
{
    private const int SubsetsOf = 6, DrawnSubsets = 24;
    private const ulong EventsMax = 1_000_000;
    private static readonly VolumeHead s_head = new(3, new Guid(1, 2, 3, new byte[8]), "log", 64 * Units.MiB, 1) { IsAppendOnly = true };

    private readonly SeededRandom _random = new(seed);
    private readonly List<Item> _items = [];
    private readonly HashSet<ulong> _judged = [];
    private readonly StoreOptions _options = new() { RingBytes = 256 << 10, BrokenRules = broken };
    private SimDisk _disk = null!;
    private ulong _changes;

    private sealed record Item(AppendKey Key, byte[] Bytes)
    {
        public bool IsBegun { get; set; }

        public ulong? Offset { get; set; }
    }

    public int States { get; private set; }

    public string? Fault { get; private set; }

    /// <summary>Each writer appends its share of <paramref name="sizes"/>, one after another, all writers at once.</summary>
    public void Run(int[] sizes, int writers)
    {
        var loop = new SimLoop(_random.NextUInt64());
        _disk = new SimDisk(loop, 24 * Units.MiB, _random.NextUInt64());
        Fault = loop.Run(Store.FormatAsync(loop, _disk, _options));
        if (Fault is not null || Open(loop, _disk) is not { } store || loop.Run(store.CreateVolumeAsync(s_head)) != IoStatus.Ok) return;
        for (int i = 0; i < sizes.Length; i++)
        {
            var bytes = new byte[sizes[i]];
            new SeededRandom(seed * 1000 + (ulong)i).Fill(bytes);
            _items.Add(new Item(new AppendKey(new Guid(i % writers + 1, 0, 0, new byte[8]), (ulong)(i / writers + 1)), bytes));
        }

        _changes = _disk.ChangeCount;
        loop.StopBeforeEvent = _ =>
        {
            if (_disk.ChangeCount != _changes) JudgeNow();
            _changes = _disk.ChangeCount;
            return Fault is not null;
        };
        Task[] running = [.. Enumerable.Range(0, writers).Select(w => WriteAsync((IAppendStore)store, writers, w))];
        loop.RunUntil(() => running.All(r => r.IsCompleted), EventsMax);
        foreach (Task one in running.Where(r => r.IsFaulted)) Fault ??= one.Exception!.InnerException!.Message;
        // Again with everything: nothing is said twice while the store runs either.
        if (Fault is null) Repeat(loop, store, _items);
    }

    private async Task WriteAsync(IAppendStore store, int writers, int writer)
    {
        for (int i = writer; i < _items.Count; i += writers)
        {
            _items[i].IsBegun = true;
            AppendResult result = await store.AppendAsync(s_head.Id, _items[i].Key, _items[i].Bytes);
            if (result.Outcome != AppendOutcome.Done || result.IsRepeat) throw new InvalidOperationException($"an append on a good disk: {result}");
            _items[i].Offset = result.OffsetBytes;
        }
    }

    private void JudgeNow()
    {
        int count = _disk.Pending.Count;
        for (int subset = 0; subset < (count <= SubsetsOf ? 1 << count : DrawnSubsets); subset++)
        {
            ulong kept = count <= SubsetsOf ? (ulong)subset : _random.NextUInt64() | (subset % 2 == 0 ? _random.NextUInt64() : 0);
            JudgeState((write, _) => (kept >> (write % 64) & 1) != 0 ? byte.MaxValue : (byte)0);
        }

        for (int torn = 0; torn < Math.Min(count, DrawnSubsets); torn++)
        {
            int one = torn;
            byte mask = (byte)((1 << (1 + _random.NextBelow(7))) - 1);
            JudgeState((write, _) => write == one ? mask : byte.MaxValue);
        }
    }

    private void JudgeState(Func<int, int, byte> maskOf)
    {
        int answered = _items.Count(i => i.Offset is not null);
        if (Fault is not null || States >= statesMax || !_judged.Add(_disk.NameOfFork(maskOf) ^ ((ulong)answered * 0x9E3779B97F4A7C15))) return;
        States++;
        var loop = new SimLoop(_random.NextUInt64());
        SimDisk fork = _disk.ForkAfterPowerCut(loop, _random.NextUInt64(), maskOf);
        if (_random.NextChance(0.2)) loop = CrashInRecovery(loop, fork);
        if (Open(loop, fork) is not { } store || Judge(loop, store, _items) is not { } landed) return;
        List<Item> there = _random.NextChance(0.3) ? Repeat(loop, store, landed) : _items;
        if (Fault is not null || !_random.NextChance(0.2)) return;
        // Once more, and nothing is different.
        fork.CutPower();
        var next = new SimLoop(_random.NextUInt64());
        fork.Attach(next);
        if (Open(next, fork) is { } again) Judge(next, again, there);
    }

    /// <summary>Looks what is there: which appends, in which order. Null when it is not a sequence of whole appends with all that
    /// was answered at its place.</summary>
    private List<Item>? Judge(SimLoop loop, IStore store, List<Item> items)
    {
        if (((IAppendStore)store).AppendInfoOf(s_head.Id) is not { } info)
        {
            Fault = "the volume is lost";
            return null;
        }

        IBlockDevice device = store.OpenVolume(s_head.Id)!;
        var content = new byte[device.SizeBytes];
        Task<ReadResult> reading = device.ReadAsync(0, content).AsTask();
        loop.RunUntil(() => reading.IsCompleted, EventsMax);
        if (reading.Result.Status != IoStatus.Ok)
        {
            Fault = $"reading: {reading.Result.Status}";
            return null;
        }

        var landed = new List<Item>();
        int at = 0;
        while (at < (int)info.LengthBytes)
        {
            Item? found = items.Find(i => i.IsBegun && !landed.Contains(i) && i.Bytes.Length <= (int)info.LengthBytes - at
                && content.AsSpan(at, i.Bytes.Length).SequenceEqual(i.Bytes));
            if (found is null)
            {
                Fault = $"at byte {at} of {info.LengthBytes} no whole append begins; there lies {Convert.ToHexString(content.AsSpan(at, 8))}, begun {items.Count(i => i.IsBegun)}, answered {items.Count(i => i.Offset is not null)}, landed {landed.Count}, {(items == _items ? "crash" : "repeat")}";
                return null;
            }

            landed.Add(found);
            if (found.Offset is { } offset && offset != (ulong)at) Fault ??= $"what was answered to lie at {offset} lies at {at}";
            at += found.Bytes.Length;
        }

        if (content.AsSpan(at).ContainsAnyExcept((byte)0)) Fault ??= "behind the length are no zeros";
        foreach (Item item in items.Where(i => i.Offset is not null && !landed.Contains(i))) Fault ??= $"an answered append at {item.Offset} is lost";
        foreach (IGrouping<Guid, Item> writer in landed.GroupBy(i => i.Key.Client))
        {
            if (!writer.Select(i => i.Key.Sequence).SequenceEqual(Enumerable.Range(1, writer.Count()).Select(i => (ulong)i)))
                Fault ??= "the appends of a writer are out of order";
        }

        return Fault is null ? landed : null;
    }

    /// <summary>Every append is said again: what is there is answered where it is, the rest lands once.</summary>
    private List<Item> Repeat(SimLoop loop, IStore store, List<Item> landed)
    {
        var at = new Dictionary<Item, ulong>();
        ulong end = 0;
        if (landed == _items) landed = [.. _items.OrderBy(i => i.Offset)];
        foreach (Item item in landed)
        {
            at[item] = end;
            end += (ulong)item.Bytes.Length;
        }

        for (int round = 0; round < 2; round++)
        {
            foreach (Item item in _items)
            {
                Task<AppendResult> again = ((IAppendStore)store).AppendAsync(s_head.Id, item.Key, item.Bytes).AsTask();
                loop.RunUntil(() => again.IsCompleted, EventsMax);
                if (Fault is not null) return _items;
                bool isThere = at.TryGetValue(item, out ulong offset);
                // The last sixteen of a client are remembered; of an older one it is said that nobody knows.
                if (isThere && at.Keys.Count(i => i.Key.Client == item.Key.Client && i.Key.Sequence > item.Key.Sequence) >= AppendClient.MemoriesMax)
                {
                    if (!again.IsCompletedSuccessfully || again.Result != new AppendResult(AppendOutcome.StaleSequence)) Fault ??= "a repeat that is too old was taken";
                    continue;
                }

                if (!isThere) at[item] = offset = end;
                if (!isThere) end += (ulong)item.Bytes.Length;
                if (!again.IsCompletedSuccessfully || again.Result != new AppendResult(AppendOutcome.Done, offset, isThere))
                {
                    Fault ??= $"a repeat that {(isThere ? "had" : "had not")} landed at {offset}: {(again.IsCompletedSuccessfully ? again.Result : "no answer")}";
                    return _items;
                }
            }
        }

        List<Item> all = [.. _items.Select(i => i with { IsBegun = true, Offset = at[i] })];
        Judge(loop, store, all);
        return all;
    }

    private SimLoop CrashInRecovery(SimLoop loop, SimDisk fork)
    {
        ulong stop = _random.NextBelow(120UL);
        loop.StopBeforeEvent = n => n >= stop;
        Task<StoreOpenResult> opening = Store.OpenAsync(loop, fork, null, _options).AsTask();
        loop.RunUntil(() => opening.IsCompleted, EventsMax);
        fork.CutPower();
        var next = new SimLoop(_random.NextUInt64());
        fork.Attach(next);
        return next;
    }

    private IStore? Open(SimLoop loop, SimDisk disk)
    {
        Task<StoreOpenResult> opening = Store.OpenAsync(loop, disk, null, _options).AsTask();
        loop.RunUntil(() => opening.IsCompleted, EventsMax);
        if (opening.IsCompletedSuccessfully && opening.Result.Store is { } store) return store;
        Fault = "opening: " + (opening.IsCompletedSuccessfully ? opening.Result.Refusal : opening.Exception?.InnerException?.ToString() ?? "no answer");
        return null;
    }
}
