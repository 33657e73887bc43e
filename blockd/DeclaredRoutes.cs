using System.Text.Json;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>The admin API's declared state: what is to be, what is, and what stands between.</summary>
internal sealed class DeclaredRoutes(DeclaredStates states, Func<DeclaredRunner?> runner)
{
    private const int ItemsMax = 20_000;

    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET declared"] = async c =>
        {
            DeclaredScope mine = states.Of(c.Caller);
            await c.AnswerAsync(await DescribeAsync(mine.World, mine.Reconciler.Document, mine.Reconciler.Differences, []), ApiJson.Default.DeclaredInfo);
        },
        ["PUT declared"] = ApplyAsync,
        ["DELETE declared"] = ForgetAsync,
    };

    private async Task ApplyAsync(ApiCall call)
    {
        (DeclaredReconciler reconciler, IDeclaredWorld world) = Changing(call);
        ApplyDeclared request = await call.ReadAsync(ApiJson.Default.ApplyDeclared);
        DeclaredState state = Checked(request.State);
        OnlyOwn(call, state);
        DeclaredName[] gone = [.. request.Prune ?? []];
        CurrentState current = await world.ReadAsync();
        if (call.QueryFlag("dryRun"))
        {
            // As it would be after a declaration, that lets volumes be made anew.
            var known = (reconciler.Document?.Known ?? new Dictionary<string, uint>()).Where(k => current.Volumes.Any(v => v.Id == k.Value)).ToDictionary();
            var document = new DeclaredDocument(state, known) { Declared = reconciler.Document?.Declared ?? 0 };
            IReadOnlyList<DeclaredDifference> differences = [.. DeclaredPlan.Steps(state, current, known).Select(s => new DeclaredDifference(s, s.Impossible, 0))];
            DeclaredItem[] pruned = [.. gone.Where(g => DeclaredPlan.Prune(g, state, current) is not null).Select(g => Pruned(g, "differs", null))];
            await call.AnswerAsync(await DescribeAsync(world, document, differences, pruned), ApiJson.Default.DeclaredInfo);
            return;
        }

        if (await states.DeclareAsync(call.Caller, state, request.Revision) is { } fault) throw AdminRoutes.Refusal(fault);
        var deleted = new List<DeclaredItem>();
        foreach (DeclaredName one in gone)
        {
            // Nothing that was declared or is gone meanwhile, and each with what is there now.
            if (DeclaredPlan.Prune(one, state, await world.ReadAsync()) is not { } step) continue;
            string? reason = await world.SendAsync(step);
            deleted.Add(Pruned(one, reason is null ? "pruned" : "refused", reason));
        }

        await reconciler.StepAsync(runner()?.NowNanos ?? 0);
        runner()?.Wake();
        await call.AnswerAsync(await DescribeAsync(world, reconciler.Document, reconciler.Differences, deleted), ApiJson.Default.DeclaredInfo);
    }

    private async Task ForgetAsync(ApiCall call)
    {
        Changing(call);
        if (await states.DeclareAsync(call.Caller, null, call.QueryNumber("revision")) is { } fault) throw AdminRoutes.Refusal(fault);
        await call.AnswerNothingAsync();
    }

    // A tenant's operator may do by a file what he may do by hand; the whole node's is the administrator's.
    private DeclaredScope Changing(ApiCall call)
    {
        if (!call.Caller.IsConfined && call.Caller.Role < ApiRole.Admin)
            throw new ApiException(403, "wrong-role", "what is declared for the whole node needs a token of the role admin");
        return states.Of(call.Caller);
    }

    /// <summary>Everything that is named would be the caller's; else it is answered as making it by hand is.</summary>
    private static void OnlyOwn(ApiCall call, DeclaredState state)
    {
        void Must(string name, string field)
        {
            if (!call.Caller.Owns(name)) throw call.NotYours(field);
        }

        foreach (DeclaredVolume v in state.Volumes ?? []) Must(v.Name, "volumes.name");
        foreach (DeclaredTarget t in state.Targets ?? [])
        {
            if (!call.Caller.OwnsTarget(t.Name)) throw call.NotYours("targets.name");
            foreach (DeclaredLun lun in t.Luns ?? []) Must(lun.Volume, "targets.luns.volume");
        }

        foreach (CreatePolicy p in state.Policies ?? [])
        {
            Must(p.Name, "policies.name");
            foreach (string volume in p.Volumes) Must(volume, "policies.volumes");
        }
    }

    private static DeclaredItem Pruned(DeclaredName one, string status, string? reason) =>
        new(one.Kind, one.Name, status, status == "pruned" ? [] : ["delete it: it is not declared"], reason, null, null, null);

    private async Task<DeclaredInfo> DescribeAsync(IDeclaredWorld world, DeclaredDocument? document, IReadOnlyList<DeclaredDifference> differences, IReadOnlyCollection<DeclaredItem> pruned)
    {
        ILookup<(string, string), DeclaredDifference> found = differences.ToLookup(d => (d.Step.Kind, d.Step.Name));
        if (document is null) return new DeclaredInfo(0, true, [], []);
        CurrentState current = await world.ReadAsync();
        DeclaredState state = document.State;
        Dictionary<string, CurrentVolume> volumes = current.Volumes.ToDictionary(v => v.Name, StringComparer.Ordinal);
        var items = new List<DeclaredItem>();
        foreach (DeclaredVolume v in state.Volumes ?? [])
        {
            CurrentVolume? now = volumes.GetValueOrDefault(v.Name);
            DeclaredVolume? shown = now is null ? null : new DeclaredVolume(now.Name, now.SizeBytes, now.Export, now.Description, now.StoreId, now.Thin);
            items.Add(Item(DeclaredPlan.Volume, v.Name, Element(v, ApiJson.Default.DeclaredVolume), Element(shown, ApiJson.Default.DeclaredVolume), found[(DeclaredPlan.Volume, v.Name)]));
        }

        foreach (DeclaredTarget t in state.Targets ?? [])
        {
            TargetInfo? now = current.Targets.FirstOrDefault(c => c.Name == t.Name);
            DeclaredTarget? shown = now is null ? null : new DeclaredTarget(
                now.Name, [.. now.Luns.Select(l => new DeclaredLun(l.Lun, l.Volume, l.ReadOnly))], now.Access, now.Enabled, now.Description, now.PortalGroups);
            items.Add(Item(DeclaredPlan.Target, t.Name, Element(t, ApiJson.Default.DeclaredTarget), Element(shown, ApiJson.Default.DeclaredTarget), found[(DeclaredPlan.Target, t.Name)]));
        }

        foreach (CreatePolicy p in state.Policies ?? [])
        {
            PolicyInfo? now = current.Policies.FirstOrDefault(c => c.Name == p.Name);
            CreatePolicy? shown = now is null ? null : new CreatePolicy(
                now.Name, now.Volumes, now.PeriodSeconds, now.KeepCount, now.KeepSeconds, now.PreHook, now.PostHook, now.HookSeconds);
            items.Add(Item(DeclaredPlan.Policy, p.Name, Element(p, ApiJson.Default.CreatePolicy), Element(shown, ApiJson.Default.CreatePolicy), found[(DeclaredPlan.Policy, p.Name)]));
        }

        items.AddRange(pruned);
        return new DeclaredInfo(document.Declared, items.All(i => i.Status is "current" or "pruned"), items, DeclaredPlan.Undeclared(state, current));
    }

    private DeclaredItem Item(string kind, string name, JsonElement? desired, JsonElement? current, IEnumerable<DeclaredDifference> differences)
    {
        DeclaredDifference[] here = [.. differences];
        string status = here.Length == 0 ? "current" : here.Any(d => d.Step.Impossible is not null) ? "impossible" : here.Any(d => d.Reason is not null) ? "waiting" : "differs";
        long[] later = [.. here.Where(d => d.NotBefore > 0).Select(d => d.NotBefore)];
        DateTimeOffset? next = later.Length == 0 || runner() is not { } r ? null
            : SystemClock.Instance.UtcNow + TimeSpan.FromTicks(Math.Max(0, later.Min() - r.NowNanos) / 100);
        return new DeclaredItem(kind, name, status, [.. here.Select(d => d.Step.Text)], here.Select(d => d.Reason).FirstOrDefault(r => r is not null), next, desired, current);
    }

    private static JsonElement? Element<T>(T? value, System.Text.Json.Serialization.Metadata.JsonTypeInfo<T> type)
        where T : class => value is null ? null : JsonSerializer.SerializeToElement(value, type);

    /// <summary>The state with names as the daemon writes them; throws 400 where something can never be.</summary>
    private static DeclaredState Checked(DeclaredState state)
    {
        IReadOnlyList<DeclaredVolume> volumes = state.Volumes ?? [];
        IReadOnlyList<CreatePolicy> policies = state.Policies ?? [];
        if (volumes.Count + (state.Targets?.Count ?? 0) + policies.Count > ItemsMax) throw Wrong($"at most {ItemsMax} things can be declared", "state");
        foreach (DeclaredVolume v in volumes)
        {
            if (!VolumeName.IsValid(v.Name, out string? reason)) throw Wrong($"'{v.Name}': {reason}", "volumes.name");
            if (v.SizeBytes is < Units.VolumeBytesMin or > Units.VolumeBytesMax || v.SizeBytes % Units.SectorBytes != 0)
                throw Wrong($"volume {v.Name}: a volume has 1 MiB to 64 TiB, a multiple of 512 bytes", "volumes.sizeBytes");
        }

        DeclaredTarget[] targets = [.. (state.Targets ?? []).Select(Checked)];
        Unique(volumes.Select(v => v.Name), "volume");
        Unique(targets.Select(t => t.Name), "target");
        Unique(policies.Select(p => p.Name), "policy");
        return new DeclaredState(volumes, targets, policies);
    }

    private static DeclaredTarget Checked(DeclaredTarget t)
    {
        if (!IscsiName.TryNormalize(t.Name, out string name)) throw Wrong($"'{t.Name}' is no iSCSI name", "targets.name");
        Unique((t.Luns ?? []).Select(l => $"LUN {l.Lun}"), "of " + name);
        AccessRule[] access = [.. (t.Access ?? []).Select(a => new AccessRule(
            IscsiRules.NormalizePattern(a.Initiator) ?? throw Wrong($"target {name}: '{a.Initiator}' is no initiator name", "targets.access.initiator"),
            a.Address is null ? null : IscsiRules.NormalizeNetwork(a.Address) ?? throw Wrong($"target {name}: '{a.Address}' is no address and no network", "targets.access.address")))];
        return t with { Name = name, Access = [.. access.Distinct()] };
    }

    private static void Unique(IEnumerable<string> names, string kind)
    {
        if (names.GroupBy(n => n, StringComparer.Ordinal).FirstOrDefault(g => g.Count() > 1) is { } twice)
            throw Wrong($"{kind} {twice.Key} is declared more than once", "state");
    }

    private static ApiException Wrong(string detail, string field) => new(400, "invalid-declaration", detail, field);
}
