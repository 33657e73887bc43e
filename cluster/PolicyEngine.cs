using System.Collections.Concurrent;
using System.Globalization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>Runs the programs of policies. Any thread.</summary>
public interface IPolicyHooks
{
    /// <summary>Runs one to its end, or ends it when it takes longer than the policy allows. Null when it went well, else why not.</summary>
    /// <param name="policy">The policy.</param>
    /// <param name="hook">Name of the program.</param>
    /// <param name="moment"><c>pre</c> or <c>post</c>.</param>
    /// <param name="snapshot">Name of the snapshot.</param>
    /// <param name="volumes">Names of the volumes.</param>
    Task<string?> RunAsync(PolicyRecord policy, string hook, string moment, string snapshot, IReadOnlyList<string> volumes);
}

/// <summary>What became of a policy since the start.</summary>
/// <param name="LastAt">When it cut last, or tried to.</param>
/// <param name="Result">What came of it.</param>
/// <param name="IsCut">A snapshot was cut; null: there was nothing to cut.</param>
/// <param name="HasHookFailed">A hook failed.</param>
public sealed record PolicyOutcome(DateTimeOffset LastAt, string Result, bool? IsCut = null, bool HasHookFailed = false);

/// <summary>
/// Does what policies ask for when it is due: hooks, cut, retention. Time is told by the caller (nanoseconds of a clock that
/// never jumps), so a jump of the wall clock makes no snapshot early or late; it only names them and tells their age. One
/// <see cref="StepAsync"/> at a time; the rest is thread-safe.
/// </summary>
public sealed class PolicyEngine(VolumeDirectory volumes, PolicyDirectory policies, IPolicyHooks hooks, IWallClock clock, Func<Guid, bool> isInUse)
{
    private const long Second = 1_000_000_000;

    private readonly ConcurrentDictionary<string, PolicyOutcome> _outcomes = new(StringComparer.Ordinal);
    private readonly ConcurrentDictionary<string, long> _last = new(StringComparer.Ordinal); // nanoseconds of the last cut, or of when it is taken for one

    /// <summary>What became of a policy since the start, or null.</summary>
    public PolicyOutcome? OutcomeOf(string policy) => _outcomes.GetValueOrDefault(policy);

    /// <summary>Nanoseconds from <paramref name="now"/> until a policy cuts next; null when it rests.</summary>
    public long? DueIn(PolicyRecord policy, long now)
    {
        if (policy.PeriodSeconds == 0) return null;
        long due = (_last.TryGetValue(policy.Name, out long last) ? last : now) + policy.PeriodSeconds * Second;
        return Math.Max(0, due - now);
    }

    /// <summary>Does what is due at <paramref name="now"/>; nanoseconds until there is more to do, null: never, as it is.</summary>
    public async Task<long?> StepAsync(long now)
    {
        long? next = null;
        foreach (string gone in _last.Keys.Where(n => policies.Find(n) is null).ToArray())
        {
            _last.TryRemove(gone, out _);
            _outcomes.TryRemove(gone, out _);
        }

        foreach (PolicyRecord policy in policies.List())
        {
            if (policy.PeriodSeconds == 0)
            {
                _last.TryRemove(policy.Name, out _); // once it goes on, a whole period passes
                continue;
            }

            if (!_last.ContainsKey(policy.Name)) _last[policy.Name] = await BeganAsync(policy, now);
            if (DueIn(policy, now) == 0)
            {
                // What was missed is not made up for: the next is a whole period away.
                _last[policy.Name] = now;
                _outcomes[policy.Name] = await RunAsync(policy);
            }

            long left = DueIn(policy, now)!.Value;
            next = next is { } sooner && sooner < left ? sooner : left;
        }

        return next;
    }

    /// <summary>A policy that is seen for the first time goes on from its newest snapshot, at most a period ago; without one it
    /// begins at once.</summary>
    private async Task<long> BeganAsync(PolicyRecord policy, long now)
    {
        ulong newest = 0;
        foreach (VolumeRecord volume in MembersOf(policy))
        {
            foreach (VolumeSnapshot s in await OfAsync(policy, volume)) newest = Math.Max(newest, s.Info.UnixSeconds);
        }

        long age = newest == 0 ? policy.PeriodSeconds : Math.Clamp(clock.UtcNow.ToUnixTimeSeconds() - (long)newest, 0, policy.PeriodSeconds);
        return now - age * Second;
    }

    private async Task<PolicyOutcome> RunAsync(PolicyRecord policy)
    {
        VolumeRecord[] members = [.. MembersOf(policy)];
        if (members.Length == 0) return new PolicyOutcome(clock.UtcNow, "none of its volumes exists any more; change or delete the policy");
        string[] names = [.. members.Select(v => v.Name)];
        string snapshot = $"{policy.Name}-{clock.UtcNow.ToString("yyyyMMdd-HHmmss", CultureInfo.InvariantCulture)}";
        var notes = new List<string>();
        bool isClean = false, hasHookFailed = false;
        SnapshotResult cut;
        try
        {
            if (policy.PreHook is { } pre)
            {
                string? trouble = await hooks.RunAsync(policy, pre, "pre", snapshot, names);
                isClean = trouble is null;
                hasHookFailed = !isClean;
                if (trouble is not null) notes.Add($"the pre hook failed: {trouble}");
            }

            cut = await volumes.CutAsync(snapshot, names, new SnapshotLabel(isClean, policy.Name));
        }
        finally
        {
            // Also when nothing was cut, and when the pre hook failed half way: whatever rests must go on.
            if (policy.PostHook is { } post && await hooks.RunAsync(policy, post, "post", snapshot, names) is { } trouble)
            {
                notes.Add($"the post hook failed: {trouble}");
                hasHookFailed = true;
            }
        }

        notes.Insert(0, cut.Fault is { } fault ? $"no snapshot was cut: {fault.Detail}" : $"{snapshot} was cut, {(isClean ? "clean" : "label unknown")}");
        if (cut.Fault is null)
        {
            foreach (VolumeRecord member in members) notes.AddRange(await ExpireAsync(policy, member));
        }

        return new PolicyOutcome(clock.UtcNow, string.Join("; ", notes), cut.Fault is null, hasHookFailed);
    }

    /// <summary>Deletes what the policy has and keeps no longer. The newest stays whatever the wall clock says of its age; what
    /// has clones or readers stays until it has none.</summary>
    private async Task<List<string>> ExpireAsync(PolicyRecord policy, VolumeRecord volume)
    {
        var notes = new List<string>();
        VolumeSnapshot[] newestFirst = [.. (await OfAsync(policy, volume)).Reverse()];
        long now = clock.UtcNow.ToUnixTimeSeconds();
        for (int i = 1; i < newestFirst.Length; i++)
        {
            SnapshotInfo info = newestFirst[i].Info;
            bool isTooMany = policy.KeepCount is { } count && i >= count;
            bool isTooOld = policy.KeepSeconds is { } seconds && now - (long)info.UnixSeconds > seconds;
            if ((!isTooMany && !isTooOld) || info.Clones.Count > 0 || isInUse(info.Uuid)) continue;
            if ((await volumes.DeleteSnapshotAsync(volume.Name, info.Name, info.Uuid)).Fault is { } fault) notes.Add($"{volume.Name}@{info.Name} stays: {fault.Detail}");
        }

        return notes;
    }

    private IEnumerable<VolumeRecord> MembersOf(PolicyRecord policy)
    {
        var wanted = policy.Volumes.ToHashSet();
        return volumes.List().Where(v => wanted.Contains(v.Id));
    }

    private async Task<IEnumerable<VolumeSnapshot>> OfAsync(PolicyRecord policy, VolumeRecord volume) =>
        (await volumes.SnapshotsAsync(volume)).Snapshots.Where(s => s.Record?.Policy == policy.Name);
}
