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
        ["GET policies"] = c => c.AnswerAsync(new PolicyList(List(c)), ApiJson.Default.PolicyList),
        ["POST policies"] = CreateAsync,
        ["PATCH policies/{name}"] = ChangeAsync,
        ["DELETE policies/{name}"] = DeleteAsync,
    };

    private async Task CreateAsync(ApiCall call)
    {
        CreatePolicy r = await call.ReadAsync(ApiJson.Default.CreatePolicy);
        call.MustOwn(r.Name);
        CheckHooks(call, r.PreHook, r.PostHook);
        PolicyRecord made = Must(await daemon.Policies.CreateAsync(new PolicyRecord(
            r.Name, IdsOf(r.Volumes, call), r.PeriodSeconds, r.KeepCount, r.KeepSeconds, r.PreHook, r.PostHook, r.HookSeconds)));
        await call.AnswerAsync(Describe(made, call), ApiJson.Default.PolicyInfo, 201);
    }

    private async Task ChangeAsync(ApiCall call)
    {
        ChangePolicy c = await call.ReadAsync(ApiJson.Default.ChangePolicy);
        CheckHooks(call, c.PreHook, c.PostHook);
        IReadOnlyList<uint>? volumes = c.Volumes is null ? null : IdsOf(c.Volumes, call);
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
        await call.AnswerAsync(Describe(changed, call), ApiJson.Default.PolicyInfo);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        Must(await daemon.Policies.DeleteAsync(call.Parts[1], call.QueryNumber("revision")));
        await call.AnswerNothingAsync();
    }

    // A hook is a program of the node that runs as the daemon: not for a tenant to choose.
    private static void CheckHooks(ApiCall call, string? pre, string? post)
    {
        if (call.Caller.IsConfined && (pre is { Length: > 0 } || post is { Length: > 0 }))
            throw new ApiException(403, "whole-node", "hooks are programs of the node; its operators set them", pre is { Length: > 0 } ? "preHook" : "postHook");
    }

    private uint[] IdsOf(IReadOnlyList<string> names, ApiCall call) =>
    [
        .. names.Select(n => (n is null || !call.Sees(n) ? null : daemon.Directory.Find(n))?.Id
            ?? throw AdminRoutes.NoVolume(n ?? "", "volumes")),
    ];

    /// <summary>The policies that a caller sees, as he sees them.</summary>
    public IReadOnlyList<PolicyInfo> List(ApiCall call) => [.. daemon.Policies.List().Where(p => call.Caller.Owns(p.Name)).Select(p => Describe(p, call))];

    private PolicyInfo Describe(PolicyRecord p, ApiCall call)
    {
        var names = daemon.Directory.List().ToDictionary(v => v.Id, v => v.Name);
        PolicyOutcome? last = daemon.PolicyEngine.OutcomeOf(p.Name);
        DateTimeOffset? next = daemon.PolicyEngine.DueIn(p, daemon.PolicyRunner.NowNanos) is { } nanos
            ? SystemClock.Instance.UtcNow + TimeSpan.FromTicks(nanos / 100) : null;
        return new PolicyInfo(
            p.Name, [.. p.Volumes.Where(names.ContainsKey).Select(id => names[id]).Where(call.Sees)], p.PeriodSeconds, p.KeepCount, p.KeepSeconds, p.PreHook, p.PostHook,
            p.HookSeconds, p.Revision, last?.LastAt, last?.Result, next);
    }

    private static PolicyRecord Must(PolicyResult result) => result.Fault is { } fault ? throw AdminRoutes.Refusal(fault) : result.Policy!;
}
