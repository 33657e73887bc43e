using BlockServer.Cluster;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>The admin API's policies.</summary>
internal sealed class PolicyRoutes(Daemon daemon)
{
    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET policies"] = c => c.AnswerAsync(new PolicyList([.. daemon.Policies.List().Select(Describe)]), ApiJson.Default.PolicyList),
        ["POST policies"] = CreateAsync,
        ["PATCH policies/{name}"] = ChangeAsync,
        ["DELETE policies/{name}"] = DeleteAsync,
    };

    private async Task CreateAsync(ApiCall call)
    {
        CreatePolicy r = await call.ReadAsync(ApiJson.Default.CreatePolicy);
        PolicyRecord made = Must(await daemon.Policies.CreateAsync(new PolicyRecord(
            r.Name, IdsOf(r.Volumes), r.PeriodSeconds, r.KeepCount, r.KeepSeconds, r.PreHook, r.PostHook, r.HookSeconds)));
        await call.AnswerAsync(Describe(made), ApiJson.Default.PolicyInfo, 201);
    }

    private async Task ChangeAsync(ApiCall call)
    {
        ChangePolicy c = await call.ReadAsync(ApiJson.Default.ChangePolicy);
        IReadOnlyList<uint>? volumes = c.Volumes is null ? null : IdsOf(c.Volumes);
        PolicyRecord changed = Must(await daemon.Policies.ChangeAsync(call.Parts[1], c.Revision, old => old with
        {
            Volumes = volumes ?? old.Volumes,
            PeriodSeconds = c.PeriodSeconds ?? old.PeriodSeconds,
            KeepCount = c.KeepCount is 0 ? null : c.KeepCount ?? old.KeepCount,
            KeepSeconds = c.KeepSeconds is 0 ? null : c.KeepSeconds ?? old.KeepSeconds,
            PreHook = c.PreHook is "" ? null : c.PreHook ?? old.PreHook,
            PostHook = c.PostHook is "" ? null : c.PostHook ?? old.PostHook,
            HookSeconds = c.HookSeconds ?? old.HookSeconds,
        }));
        await call.AnswerAsync(Describe(changed), ApiJson.Default.PolicyInfo);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        Must(await daemon.Policies.DeleteAsync(call.Parts[1], call.QueryNumber("revision")));
        await call.AnswerNothingAsync();
    }

    private uint[] IdsOf(IReadOnlyList<string> names) =>
    [
        .. names.Select(n => (n is null ? null : daemon.Directory.Find(n))?.Id
            ?? throw new ApiException(404, "no-such-volume", $"there is no volume '{n}'", "volumes")),
    ];

    /// <summary>All policies, as the API shows them.</summary>
    public IReadOnlyList<PolicyInfo> List() => [.. daemon.Policies.List().Select(Describe)];

    private PolicyInfo Describe(PolicyRecord p)
    {
        var names = daemon.Directory.List().ToDictionary(v => v.Id, v => v.Name);
        PolicyOutcome? last = daemon.PolicyEngine.OutcomeOf(p.Name);
        DateTimeOffset? next = daemon.PolicyEngine.DueIn(p, daemon.PolicyRunner.NowNanos) is { } nanos
            ? SystemClock.Instance.UtcNow + TimeSpan.FromTicks(nanos / 100) : null;
        return new PolicyInfo(
            p.Name, [.. p.Volumes.Where(names.ContainsKey).Select(id => names[id])], p.PeriodSeconds, p.KeepCount, p.KeepSeconds, p.PreHook, p.PostHook,
            p.HookSeconds, p.Revision, last?.LastAt, last?.Result, next);
    }

    private static PolicyRecord Must(PolicyResult result) => result.Fault is { } fault ? throw AdminRoutes.Refusal(fault) : result.Policy!;
}
