namespace BlockServer.Core.Api;

// Policies in the admin API: GET, POST /v1/policies; PATCH, DELETE /v1/policies/{name}.

/// <summary>Snapshots that are cut by themselves.</summary>
/// <param name="Name">Its name; those of its snapshots begin with it.</param>
/// <param name="Volumes">Names of the volumes, all cut at one moment.</param>
/// <param name="PeriodSeconds">Seconds from one to the next; 0: none are cut or deleted.</param>
/// <param name="KeepCount">Of each volume at most so many are kept; null: any number.</param>
/// <param name="KeepSeconds">None is kept longer, but the newest; null: for ever.</param>
/// <param name="PreHook">Program in the folder of hooks that brings what uses the volumes to rest; null: none.</param>
/// <param name="PostHook">Program that lets it go on; null: none.</param>
/// <param name="HookSeconds">How long each may take; then it is ended.</param>
/// <param name="Revision">For changes.</param>
/// <param name="LastAt">When it cut last since the start, or null.</param>
/// <param name="LastResult">What came of it, in a sentence.</param>
/// <param name="NextAt">When it cuts next, or null.</param>
public sealed record PolicyInfo(
    string Name, IReadOnlyList<string> Volumes, long PeriodSeconds, int? KeepCount, long? KeepSeconds, string? PreHook, string? PostHook,
    int HookSeconds, long Revision, DateTimeOffset? LastAt, string? LastResult, DateTimeOffset? NextAt);

/// <summary>All policies, by name.</summary>
public sealed record PolicyList(IReadOnlyList<PolicyInfo> Policies);

/// <summary>Asks for a policy; as <see cref="PolicyInfo"/>.</summary>
public sealed record CreatePolicy(
    string Name, IReadOnlyList<string> Volumes, long PeriodSeconds, int? KeepCount = null, long? KeepSeconds = null, string? PreHook = null,
    string? PostHook = null, int HookSeconds = 30);

/// <summary>Changes a policy; null leaves as it is. <c>KeepCount</c> and <c>KeepSeconds</c> 0: without that limit. A hook that is an empty
/// string: none. With a <c>Revision</c> the change is refused (412) unless the policy still has it.</summary>
public sealed record ChangePolicy(
    long? Revision = null, IReadOnlyList<string>? Volumes = null, long? PeriodSeconds = null, int? KeepCount = null, long? KeepSeconds = null,
    string? PreHook = null, string? PostHook = null, int? HookSeconds = null);
