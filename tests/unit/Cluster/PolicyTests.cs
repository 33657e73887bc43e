using System.Text;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>Policies in virtual time: when they cut, what they keep, and what a snapshot may be labelled.</summary>
public sealed class PolicyTests : IPolicyHooks, IWallClock, IAsyncLifetime
{
    private const long Second = 1_000_000_000;

    private readonly DirectoryWorld _world = new();
    private readonly List<string> _ran = [];
    private readonly HashSet<Guid> _inUse = [];
    private VolumeDirectory _volumes = null!;
    private PolicyDirectory _policies = null!;
    private PolicyEngine _engine = null!;
    private long _now; // seconds; nanoseconds for the engine
    private string? _preTrouble, _postTrouble;

    public DateTimeOffset UtcNow => DateTimeOffset.FromUnixTimeSeconds(1_700_000_000 + _now + Jump);

    /// <summary>What the wall clock is wrong by, seconds.</summary>
    private long Jump { get; set; }

    public async ValueTask InitializeAsync()
    {
        Begin();
        await _volumes.ReconcileAsync(_world.Hosts());
        await _volumes.CreateAsync(new CreateVolume("a", Units.MiB, StoreId: _world.Disks.Keys.First()));
        await _volumes.CreateAsync(new CreateVolume("b", Units.MiB, StoreId: _world.Disks.Keys.First()));
    }

    public ValueTask DisposeAsync()
    {
        _volumes.Dispose();
        _policies.Dispose();
        return default;
    }

    Task<string?> IPolicyHooks.RunAsync(PolicyRecord policy, string hook, string moment, string snapshot, IReadOnlyList<string> volumes)
    {
        _ran.Add($"{moment} {hook} {string.Join(',', volumes)} {_world.Snapshots.Values.Sum(s => s.Count)}");
        return Task.FromResult(moment == "pre" ? _preTrouble : _postTrouble);
    }

    [Fact]
    public async Task Snapshots_come_every_period_for_a_day_and_count_and_age_bound_them()
    {
        await CreateAsync("p", 60, keepCount: 5);
        await RunForAsync(86_400);
        Assert.Equal(5, Names("a").Count);
        Assert.Equal(5, Names("b").Count);
        Assert.Equal("p-20231115-221320", Names("a")[^1]);
        Assert.Equal(1441, _cuts);
        await ChangeAsync("p", p => p with { KeepCount = null, KeepSeconds = 600 });
        await RunForAsync(3600);
        Assert.Equal(11, Names("a").Count); // none older than ten minutes
    }

    [Fact]
    public async Task A_period_is_changed_live_and_0_stops_it()
    {
        await CreateAsync("p", 3600);
        await RunForAsync(1800);
        Assert.Single(Names("a"));
        await ChangeAsync("p", p => p with { PeriodSeconds = 2 });
        await RunForAsync(600);
        Assert.Equal(1 + 301, Names("a").Count); // due at once, since the last is older than the new period
        await ChangeAsync("p", p => p with { PeriodSeconds = 0 });
        Assert.Null(await _engine.StepAsync(_now * Second));
        await RunForAsync(86_400);
        Assert.Equal(302, Names("a").Count);
        Assert.Null(_engine.DueIn(_policies.Find("p")!, _now * Second));
        await ChangeAsync("p", p => p with { PeriodSeconds = 100_000 });
        await RunForAsync(10);
        Assert.Equal(302, Names("a").Count); // goes on from its newest
    }

    [Fact]
    public async Task After_a_restart_it_goes_on_from_its_newest_snapshot_and_makes_up_for_none()
    {
        await CreateAsync("p", 3600);
        await RunForAsync(1);
        Assert.Single(Names("a"));
        await RestartAsync(after: 600);
        await RunForAsync(2900);
        Assert.Single(Names("a"));
        await RunForAsync(200);
        Assert.Equal(2, Names("a").Count);
        await RestartAsync(after: 10 * 3600);
        await RunForAsync(3000);
        Assert.Equal(3, Names("a").Count);
    }

    [Theory]
    [InlineData(-1_000_000_000)]
    [InlineData(1_000_000_000)]
    public async Task A_jump_of_the_wall_clock_cuts_none_early_and_never_deletes_the_newest(long jump)
    {
        await CreateAsync("p", 3600, keepSeconds: 7200);
        await RunForAsync(3 * 3600 + 10);
        int before = Names("a").Count;
        Jump = jump;
        await RunForAsync(3500);
        Assert.Equal(before, Names("a").Count);
        await RunForAsync(200);
        string newest = Names("a")[^1];
        Assert.StartsWith($"p-{UtcNow.Year}", newest, StringComparison.Ordinal);
        await RestartAsync(after: 1);
        await RunForAsync(10);
        Assert.Equal(newest, Names("a")[^1]);
    }

    [Fact]
    public async Task A_label_is_clean_only_when_the_pre_hook_went_well_and_the_post_hook_runs_whatever_happened()
    {
        await CreateAsync("none", 1_000_000);
        await RunForAsync(1);
        Assert.Empty(_ran);
        await CreateAsync("hooked", 10, pre: "freeze", post: "thaw");
        await RunForAsync(1);
        Assert.Equal(["pre freeze a,b 2", "post thaw a,b 4"], _ran); // in front of the cut, and behind it
        _preTrouble = "exit 1";
        _postTrouble = "exit 2";
        await RunForAsync(10);
        Assert.Equal(4, _ran.Count);
        Assert.Contains("the pre hook failed: exit 1; the post hook failed: exit 2", _engine.OutcomeOf("hooked")!.Result, StringComparison.Ordinal);
        (_preTrouble, _postTrouble) = (null, null);
        await RunForAsync(10);
        await _volumes.DeleteAsync("b", null, null, withSnapshots: true);
        VolumeSnapshot[] all = [.. (await _volumes.SnapshotsAsync(_volumes.Find("a")!)).Snapshots];
        Assert.Equal([false, true, false, true], all.Select(s => s.Record!.Clean));
        Assert.Equal(["none", "hooked", "hooked", "hooked"], all.Select(s => s.Record!.Policy));
        await RunForAsync(10);
        Assert.StartsWith("pre freeze a ", _ran[^2], StringComparison.Ordinal); // b is passed over

        // Nothing is cut, and what rests goes on all the same.
        string next = "hooked-" + UtcNow.AddSeconds(_engine.DueIn(_policies.Find("hooked")!, _now * Second)!.Value / Second).ToString("yyyyMMdd-HHmmss", System.Globalization.CultureInfo.InvariantCulture);
        Assert.Null((await _volumes.CutAsync(next, ["a"], default)).Fault);
        int before = _ran.Count;
        await RunForAsync(10);
        Assert.Equal(before + 2, _ran.Count);
        Assert.StartsWith("no snapshot was cut", _engine.OutcomeOf("hooked")!.Result, StringComparison.Ordinal);
    }

    [Fact]
    public async Task What_has_clones_or_readers_or_is_of_others_stays()
    {
        await _volumes.CutAsync("mine", ["a"], default);
        await CreateAsync("other", 1_000_000);
        await CreateAsync("p", 10, keepCount: 1);
        await RunForAsync(1);
        string cloned = Names("a").Single(n => n[0] == 'p');
        await _volumes.CloneAsync("a", new CloneVolume("c", cloned));
        await RunForAsync(10);
        string read = Names("a").Single(n => n[0] == 'p' && n != cloned);
        Guid uuid = _world.Snapshots[1].Single(s => s.Name == read).Uuid;
        _inUse.Add(uuid);
        await RunForAsync(30);
        Assert.Equal(5, Names("a").Count); // mine, other's, cloned, read, newest
        Assert.Contains(cloned, Names("a"));
        Assert.Contains(read, Names("a"));
        _inUse.Clear();
        await _volumes.DeleteAsync("c", null, null);
        await RunForAsync(10);
        Assert.Equal(3, Names("a").Count);
    }

    [Fact]
    public async Task Wrong_policies_are_refused_and_damaged_ones_named()
    {
        var right = new PolicyRecord("p", [1], 60, null, null, null, null, 30);
        (PolicyRecord Policy, string Code, string Field)[] wrong =
        [
            (right with { Name = "P" }, "invalid-name", "name"), (right with { Name = new string('p', 41) }, "invalid-name", "name"),
            (right with { Volumes = [] }, "invalid-volumes", "volumes"), (right with { Volumes = [1, 1] }, "invalid-volumes", "volumes"),
            (right with { PeriodSeconds = -1 }, "invalid-period", "periodSeconds"), (right with { PeriodSeconds = long.MaxValue }, "invalid-period", "periodSeconds"),
            (right with { KeepCount = 0 }, "invalid-retention", "keepCount"), (right with { KeepSeconds = -5 }, "invalid-retention", "keepSeconds"),
            (right with { HookSeconds = 0 }, "invalid-hook", "hookSeconds"), (right with { PreHook = "../../bin/sh" }, "invalid-hook", "preHook"),
            (right with { PostHook = "/bin/sh" }, "invalid-hook", "postHook"),
        ];
        foreach ((PolicyRecord policy, string code, string field) in wrong)
        {
            DirectoryFault fault = (await _policies.CreateAsync(policy)).Fault!;
            Assert.Equal((code, field), (fault.Code, fault.Field));
        }

        Assert.Null((await _policies.CreateAsync(right)).Fault);
        Assert.Equal("policy-exists", (await _policies.CreateAsync(right)).Fault!.Code);
        Assert.Equal("revision-differs", (await _policies.ChangeAsync("p", 1, p => p)).Fault!.Code);
        Assert.Equal("invalid-period", (await _policies.ChangeAsync("p", null, p => p with { PeriodSeconds = -1 })).Fault!.Code);
        Assert.Equal("no-such-policy", (await _policies.DeleteAsync("q", null)).Fault!.Code);
        foreach (string damaged in new[] { "{", "null", "{}", "{\"name\":\"q\",\"volumes\":[1],\"periodSeconds\":1,\"keepCount\":null,\"keepSeconds\":null,\"preHook\":\"/bin/sh\",\"postHook\":null,\"hookSeconds\":1}" })
        {
            await _world.Meta.TransactAsync([], [new MetaChange("policy/q", Encoding.UTF8.GetBytes(damaged))]);
            using var again = new PolicyDirectory(_world.Meta);
            InvalidDataException refused = await Assert.ThrowsAsync<InvalidDataException>(again.LoadAsync);
            Assert.Contains("policy/q", refused.Message, StringComparison.Ordinal);
        }
    }

    private int _cuts;

    private void Begin()
    {
        _volumes = _world.Begin(this);
        _policies = new PolicyDirectory(_world.Meta);
        _engine = new PolicyEngine(_volumes, _policies, this, this, _inUse.Contains);
    }

    private async Task RestartAsync(long after)
    {
        await DisposeAsync();
        _now += after;
        Begin();
        await _policies.LoadAsync();
        await _volumes.ReconcileAsync(_world.Hosts());
    }

    /// <summary>As the runner would: sleeps until something is due.</summary>
    private async Task RunForAsync(long seconds)
    {
        long end = _now + seconds;
        while (true)
        {
            string? before = _engine.OutcomeOf("p")?.ToString();
            long? next = await _engine.StepAsync(_now * Second);
            if (_engine.OutcomeOf("p")?.ToString() != before) _cuts++;
            long wait = next is { } nanos ? (nanos + Second - 1) / Second : long.MaxValue / 2;
            Assert.True(wait > 0, "due again at once");
            if (_now + wait > end) break;
            _now += wait;
        }

        _now = end;
    }

    private async Task CreateAsync(string name, long period, int? keepCount = null, long? keepSeconds = null, string? pre = null, string? post = null) =>
        Assert.Null((await _policies.CreateAsync(new PolicyRecord(name, [1, 2], period, keepCount, keepSeconds, pre, post, 30))).Fault);

    private async Task ChangeAsync(string name, Func<PolicyRecord, PolicyRecord> edit) => Assert.Null((await _policies.ChangeAsync(name, null, edit)).Fault);

    private List<string> Names(string volume) =>
        [.. (_world.Snapshots.GetValueOrDefault(_volumes.Find(volume)!.Id) ?? []).Select(s => s.Name)];
}
