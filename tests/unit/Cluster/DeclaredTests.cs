using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>The reconciler against a world of its own, with a clock that is moved: whatever drifts, it converges, destroys nothing
/// and does not run in circles.</summary>
public sealed class DeclaredTests
{
    private const long Second = 1_000_000_000;

    private static readonly DeclaredState State = new(
        [new DeclaredVolume("db", Units.GiB, new ExportOptions(Iscsi: false)), new DeclaredVolume("log", 64 * Units.MiB)],
        [new DeclaredTarget("iqn.2026-11.org.example:t", [new DeclaredLun(0, "db"), new DeclaredLun(3, "log", true)], [new AccessRule("iqn.*", "10.0.0.0/8")])],
        [new CreatePolicy("hourly", ["db", "log"], 3600, 24)]);

    [Fact]
    public async Task What_is_declared_comes_about_in_one_step_and_then_nothing_more_is_sent()
    {
        var world = new World();
        var reconciler = new DeclaredReconciler(new MemoryMetaStore(), world);
        Assert.Null(await reconciler.StepAsync(0)); // nothing is declared
        Assert.Null(await reconciler.DeclareAsync(State, 0));
        await RunAsync(reconciler, world, 0, 10 * Second);
        AssertConverged(reconciler, world);
        int sent = world.Sent.Count, read = world.Reads;
        Assert.Null(await reconciler.StepAsync(11 * Second)); // until something changes
        Assert.Equal((sent, read + 1), (world.Sent.Count, world.Reads));
    }

    [Fact]
    public async Task An_export_that_is_taken_away_by_hand_is_back_at_the_next_step()
    {
        (DeclaredReconciler reconciler, World world) = await ConvergedAsync();
        world.Volumes["db"] = world.Volumes["db"] with { Export = new ExportOptions(false, false) };
        world.Targets.Clear();
        await reconciler.StepAsync(20 * Second);
        AssertConverged(reconciler, world);
    }

    [Fact]
    public async Task A_volume_that_was_deleted_by_hand_is_not_made_anew_until_it_is_declared_again()
    {
        (DeclaredReconciler reconciler, World world) = await ConvergedAsync();
        world.Volumes.Remove("log");
        int sent = world.Sent.Count;
        for (long t = 100; t < 200; t++) await reconciler.StepAsync(t * Second);
        Assert.DoesNotContain("log", world.Volumes.Keys);
        Assert.DoesNotContain(world.Sent.Skip(sent), s => s.Kind == DeclaredPlan.Volume);
        Assert.Contains(reconciler.Differences, d => d.Step.Name == "log" && d.Step.Impossible is not null);

        // Not after a restart either.
        var again = new DeclaredReconciler(world.Meta, world);
        await again.LoadAsync();
        await again.StepAsync(0);
        Assert.DoesNotContain("log", world.Volumes.Keys);
        Assert.Null(await again.DeclareAsync(State, null));
        await RunAsync(again, world, 0, 20 * Second);
        AssertConverged(again, world);
    }

    [Fact]
    public async Task A_volume_that_was_renamed_by_hand_gets_its_name_back_and_keeps_its_data()
    {
        (DeclaredReconciler reconciler, World world) = await ConvergedAsync();
        uint id = world.Volumes["db"].Id;
        world.Rename("db", "other");
        await RunAsync(reconciler, world, 20 * Second, 40 * Second);
        Assert.Equal(id, world.Volumes["db"].Id);
        AssertConverged(reconciler, world);
    }

    [Fact]
    public async Task What_is_impossible_shows_its_reason_and_sends_nothing()
    {
        (DeclaredReconciler reconciler, World world) = await ConvergedAsync();
        Assert.Null(await reconciler.DeclareAsync(new DeclaredState([new DeclaredVolume("db", Units.MiB)]), null));
        int sent = world.Sent.Count;
        Assert.Null(await reconciler.StepAsync(30 * Second));
        Assert.Equal(sent, world.Sent.Count);
        Assert.Contains("never shrunk", Assert.Single(reconciler.Differences).Reason, StringComparison.Ordinal);
        Assert.Equal(Units.GiB, world.Volumes["db"].SizeBytes);
    }

    [Fact]
    public async Task What_is_refused_is_tried_again_later_and_later()
    {
        var world = new World { Refuses = _ => "the disk is full" };
        var reconciler = new DeclaredReconciler(world.Meta, world);
        await reconciler.DeclareAsync(new DeclaredState([new DeclaredVolume("db", Units.GiB)]), 0);
        var tries = new List<long>();
        for (long now = 0; now < 400 * Second; now += Second / 4)
        {
            int before = world.Sent.Count;
            long? next = await reconciler.StepAsync(now);
            if (world.Sent.Count > before) tries.Add(now / Second);
            Assert.True(next is > 0, "a refusal is no reason to be asked at once");
            Assert.Equal("the disk is full", Assert.Single(reconciler.Differences).Reason);
        }

        Assert.Equal([0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363], tries);
        world.Refuses = _ => null;
        await RunAsync(reconciler, world, 424 * Second, 500 * Second);
        AssertConverged(reconciler, world, 1);
    }

    [Fact]
    public async Task What_is_done_and_does_not_stay_is_not_done_in_circles()
    {
        var world = new World { IsDeaf = true };
        var reconciler = new DeclaredReconciler(world.Meta, world);
        await reconciler.DeclareAsync(new DeclaredState([new DeclaredVolume("db", Units.GiB)]), 0);
        for (long now = 0; now < 60 * Second; now += Second / 100) await reconciler.StepAsync(now);
        Assert.True(world.Sent.Count <= 6, $"{world.Sent.Count} requests in a minute");
    }

    [Fact]
    public async Task A_declaration_names_the_one_that_it_replaces()
    {
        (DeclaredReconciler reconciler, World world) = await ConvergedAsync();
        long revision = reconciler.Document!.Declared;
        Assert.Equal("revision-differs", (await reconciler.DeclareAsync(State, revision + 1))!.Code);
        Assert.Equal("revision-differs", (await reconciler.DeclareAsync(State, 0))!.Code);
        Assert.Null(await reconciler.DeclareAsync(State, revision));
        Assert.NotEqual(revision, reconciler.Document!.Declared);
        Assert.Null(await reconciler.DeclareAsync(null, null));
        Assert.Null(reconciler.Document);
        var again = new DeclaredReconciler(world.Meta, world);
        await again.LoadAsync();
        Assert.Null(again.Document);
    }

    [Fact]
    public async Task Only_what_is_named_and_not_declared_is_pruned()
    {
        var world = new World();
        world.Add("old", Units.GiB);
        CurrentState now = await world.ReadAsync();
        Assert.Equal([new DeclaredName("volume", "old")], DeclaredPlan.Undeclared(State, now));
        Assert.Equal("DELETE", DeclaredPlan.Prune(new("volume", "old"), State, now)!.Method);
        Assert.Null(DeclaredPlan.Prune(new("volume", "gone"), State, now));
        Assert.Null(DeclaredPlan.Prune(new("volume", "old"), new DeclaredState([new DeclaredVolume("old", Units.GiB)]), now));
    }

    [Fact]
    public async Task Random_drift_and_refusals_converge_and_delete_no_volume()
    {
        for (int seed = 0; seed < 300; seed++)
        {
            var random = new SeededRandom((ulong)seed);
            int Below(int n) => (int)(random.NextUInt64() % (ulong)n);
            var world = new World();
            var reconciler = new DeclaredReconciler(world.Meta, world);
            string[] names = ["a", "b", "c", "d"];
            DeclaredState state = RandomState(Below, names);
            await reconciler.DeclareAsync(state, 0);
            long now = 0;
            for (int round = 0; round < 40; round++)
            {
                world.Refuses = _ => Below(4) == 0 ? "not now" : null;
                switch (Below(7))
                {
                    case 0 when world.Volumes.Count > 0:
                        string name = world.Volumes.Keys.ElementAt(Below(world.Volumes.Count));
                        world.Volumes[name] = world.Volumes[name] with { Export = new ExportOptions(Below(2) == 0, Below(2) == 0), Revision = world.Next() };
                        break;
                    case 1 when world.Targets.Count > 0:
                        world.Targets.Remove(world.Targets.Keys.ElementAt(Below(world.Targets.Count)));
                        break;
                    case 2 when world.Targets.Count > 0:
                        string target = world.Targets.Keys.ElementAt(Below(world.Targets.Count));
                        world.Targets[target] = world.Targets[target] with { Luns = [], Enabled = Below(2) == 0, Access = [new AccessRule("*")] };
                        break;
                    case 3:
                        world.Policies.Clear();
                        break;
                    case 4 when world.Volumes.Count > 0:
                        world.Rename(world.Volumes.Keys.ElementAt(Below(world.Volumes.Count)), "moved" + world.Next());
                        break;
                    case 5: // the daemon is restarted
                        reconciler = new DeclaredReconciler(world.Meta, world);
                        await reconciler.LoadAsync();
                        break;
                    default:
                        state = RandomState(Below, names);
                        await reconciler.DeclareAsync(state, null);
                        break;
                }

                now += Below(3) * Second;
                await reconciler.StepAsync(now);
            }

            world.Refuses = _ => null;
            // Names that a volume under another name now bears, or that shrank, stay impossible: all others come about.
            await RunAsync(reconciler, world, now, now + (400 * Second));
            Assert.True(reconciler.Differences.All(d => d.Step.Impossible is not null), $"seed {seed}: {string.Join("; ", reconciler.Differences.Select(d => $"{d.Step.Key}: {d.Reason}"))}");
            Assert.True(world.DeletedVolumes == 0, $"seed {seed}: a volume was deleted");
        }
    }

    private static DeclaredState RandomState(Func<int, int> below, string[] names)
    {
        DeclaredVolume[] volumes = [.. names.Where(_ => below(3) > 0).Select(n => new DeclaredVolume(n, (ulong)(1 + below(4)) * Units.GiB, below(2) == 0 ? null : new ExportOptions(below(2) == 0)))];
        DeclaredLun[] luns = [.. volumes.Where(_ => below(2) == 0).Select((v, i) => new DeclaredLun(i, v.Name, below(2) == 0))];
        return new DeclaredState(volumes, below(3) == 0 ? null : [new DeclaredTarget("iqn.t", luns, below(2) == 0 ? [new AccessRule("iqn.*")] : null, below(2) == 0)],
            volumes.Length == 0 || below(2) == 0 ? null : [new CreatePolicy("p", [volumes[0].Name], 60 * (1 + below(3)))]);
    }

    private static async Task<(DeclaredReconciler, World)> ConvergedAsync()
    {
        var world = new World();
        var reconciler = new DeclaredReconciler(world.Meta, world);
        await reconciler.DeclareAsync(State, 0);
        await RunAsync(reconciler, world, 0, 10 * Second);
        AssertConverged(reconciler, world);
        return (reconciler, world);
    }

    // As the runner does it: again when it is due, and at once after a change.
    private static async Task RunAsync(DeclaredReconciler reconciler, World world, long from, long to)
    {
        for (long now = from; now < to;)
        {
            int sent = world.Sent.Count;
            long? next = await reconciler.StepAsync(now);
            if (next is null && sent == world.Sent.Count) return;
            now += Math.Max(next ?? 0, Second / 5);
        }
    }

    private static void AssertConverged(DeclaredReconciler reconciler, World world, int volumes = 2)
    {
        Assert.Empty(reconciler.Differences);
        Assert.Equal(volumes, world.Volumes.Count);
        if (volumes == 1) return;
        Assert.False(world.Volumes["db"].Export.Iscsi);
        Assert.Equal([(0, "db", false), (3, "log", true)], world.Targets["iqn.2026-11.org.example:t"].Luns.Select(l => (l.Lun, l.Volume, l.ReadOnly)).Order());
        Assert.Equal([new AccessRule("iqn.*", "10.0.0.0/8")], world.Targets["iqn.2026-11.org.example:t"].Access);
        Assert.Equal(24, world.Policies["hourly"].KeepCount);
    }

    /// <summary>What the admin API would do, in RAM.</summary>
    private sealed class World : IDeclaredWorld
    {
        private long _revision;

        public MemoryMetaStore Meta { get; } = new();

        public SortedDictionary<string, CurrentVolume> Volumes { get; } = new(StringComparer.Ordinal);

        public SortedDictionary<string, TargetInfo> Targets { get; } = new(StringComparer.Ordinal);

        public SortedDictionary<string, PolicyInfo> Policies { get; } = new(StringComparer.Ordinal);

        public List<DeclaredStep> Sent { get; } = [];

        public int Reads { get; private set; }

        public int DeletedVolumes { get; private set; }

        /// <summary>It says that all is done, and does nothing.</summary>
        public bool IsDeaf { get; init; }

        public Func<DeclaredStep, string?> Refuses { get; set; } = _ => null;

        public long Next() => ++_revision;

        public void Add(string name, ulong size, ExportOptions? export = null) =>
            Volumes[name] = new CurrentVolume((uint)Next(), name, size, export ?? new ExportOptions(), null, Guid.Empty, Next());

        public void Rename(string from, string to)
        {
            CurrentVolume volume = Volumes[from];
            Volumes.Remove(from);
            Volumes[to] = volume with { Name = to, Revision = Next() };
            foreach ((string name, TargetInfo target) in Targets.ToArray())
                Targets[name] = target with { Luns = [.. target.Luns.Select(l => l.Volume == from ? l with { Volume = to } : l)] };
            foreach ((string name, PolicyInfo policy) in Policies.ToArray())
                Policies[name] = policy with { Volumes = [.. policy.Volumes.Select(v => v == from ? to : v)] };
        }

        public Task<CurrentState> ReadAsync()
        {
            Reads++;
            // As the API shows them: write-protected when the volume is.
            TargetInfo[] targets = [.. Targets.Values.Select(t => t with
            {
                Luns = [.. t.Luns.Select(l => l with { ReadOnly = l.ReadOnly || Volumes.GetValueOrDefault(l.Volume)?.Export.ReadOnly == true })],
            })];
            return Task.FromResult(new CurrentState([.. Volumes.Values], targets, [.. Policies.Values]));
        }

        public Task<string?> SendAsync(DeclaredStep step)
        {
            Sent.Add(step);
            if (Refuses(step) is { } reason) return Task.FromResult<string?>(reason);
            return Task.FromResult(IsDeaf ? null : Do(step));
        }

        private string? Do(DeclaredStep step)
        {
            string[] parts = step.Path.Split('?')[0].Split('/');
            T Body<T>(System.Text.Json.Serialization.Metadata.JsonTypeInfo<T> type) => JsonSerializer.Deserialize(step.Body!, type)!;
            switch (step.Method + " " + string.Join('/', parts.Select((p, i) => i % 2 == 1 ? "*" : p)))
            {
                case "POST volumes":
                    CreateVolume create = Body(ApiJson.Default.CreateVolume);
                    if (Volumes.ContainsKey(create.Name)) return "taken";
                    Add(create.Name, create.SizeBytes, create.Export);
                    return null;
                case "PATCH volumes/*":
                    ChangeVolume change = Body(ApiJson.Default.ChangeVolume);
                    if (!Volumes.TryGetValue(parts[1], out CurrentVolume? volume) || volume.Revision != change.Revision) return "other revision";
                    if (change.Name is { } name)
                    {
                        if (Volumes.ContainsKey(name)) return "taken";
                        Rename(parts[1], name);
                        return null;
                    }

                    if (change.SizeBytes < volume.SizeBytes) throw new InvalidOperationException("a shrink");
                    Volumes[parts[1]] = volume with { SizeBytes = change.SizeBytes ?? volume.SizeBytes, Export = change.Export ?? volume.Export, Revision = Next() };
                    return null;
                case "DELETE volumes/*":
                    DeletedVolumes++;
                    return null;
                case "POST targets":
                    CreateTarget made = Body(ApiJson.Default.CreateTarget);
                    Targets[made.Name] = new TargetInfo(made.Name, "configured", made.Enabled, made.Description, [], made.PortalGroups ?? [], [], "none", [], null, 0, Next());
                    return null;
                case "PATCH targets/*":
                    ChangeTarget other = Body(ApiJson.Default.ChangeTarget);
                    Targets[parts[1]] = Targets[parts[1]] with { Enabled = other.Enabled ?? Targets[parts[1]].Enabled, Revision = Next() };
                    return null;
                case "POST targets/*/luns":
                    AddLun add = Body(ApiJson.Default.AddLun);
                    if (!Targets.TryGetValue(parts[1], out TargetInfo? there) || !Volumes.ContainsKey(add.Volume)) return "no such target or volume";
                    if (there.Luns.Any(l => l.Lun == add.Lun || l.Volume == add.Volume)) return "taken";
                    Targets[parts[1]] = there with { Luns = [.. there.Luns, new LunInfo(add.Lun!.Value, add.Volume, add.ReadOnly)] };
                    return null;
                case "DELETE targets/*/luns/*":
                    Targets[parts[1]] = Targets[parts[1]] with { Luns = [.. Targets[parts[1]].Luns.Where(l => l.Lun.ToString(System.Globalization.CultureInfo.InvariantCulture) != parts[3])] };
                    return null;
                case "POST targets/*/access":
                    if (!Targets.TryGetValue(parts[1], out there)) return "no such target";
                    Targets[parts[1]] = there with { Access = [.. there.Access, Body(ApiJson.Default.AccessRule)] };
                    return null;
                case "DELETE targets/*/access":
                    string initiator = Uri.UnescapeDataString(step.Path.Split("initiator=")[1].Split('&')[0]);
                    Targets[parts[1]] = Targets[parts[1]] with { Access = [.. Targets[parts[1]].Access.Where(a => a.Initiator != initiator)] };
                    return null;
                case "POST policies":
                    CreatePolicy p = Body(ApiJson.Default.CreatePolicy);
                    if (!p.Volumes.All(Volumes.ContainsKey)) return "no such volume";
                    Policies[p.Name] = new PolicyInfo(p.Name, p.Volumes, p.PeriodSeconds, p.KeepCount, p.KeepSeconds, p.PreHook, p.PostHook, p.HookSeconds, Next(), null, null, null);
                    return null;
                case "PATCH policies/*":
                    ChangePolicy c = Body(ApiJson.Default.ChangePolicy);
                    if (!c.Volumes!.All(Volumes.ContainsKey)) return "no such volume";
                    Policies[parts[1]] = Policies[parts[1]] with
                    {
                        Volumes = c.Volumes!, PeriodSeconds = c.PeriodSeconds!.Value, KeepCount = c.KeepCount is 0 ? null : c.KeepCount,
                        KeepSeconds = c.KeepSeconds is 0 ? null : c.KeepSeconds, PreHook = c.PreHook is "" ? null : c.PreHook, PostHook = c.PostHook is "" ? null : c.PostHook,
                        HookSeconds = c.HookSeconds!.Value, Revision = Next(),
                    };
                    return null;
                default:
                    throw new InvalidOperationException(step.Method + " " + step.Path);
            }
        }
    }
}
