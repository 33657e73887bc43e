using System.Text.Json;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>A volume as the plan needs it.</summary>
public sealed record CurrentVolume(uint Id, string Name, ulong SizeBytes, ExportOptions Export, string? Description, Guid StoreId, long Revision, bool Thin = false);

/// <summary>What there is of the kinds that can be declared; targets are the configured ones only.</summary>
public sealed record CurrentState(IReadOnlyList<CurrentVolume> Volumes, IReadOnlyList<TargetInfo> Targets, IReadOnlyList<PolicyInfo> Policies);

/// <summary>One change that brings what is nearer to what is declared: a request of the admin API.</summary>
/// <param name="Kind">Of the declared thing that it belongs to: volume, target or policy.</param>
/// <param name="Name">Its name.</param>
/// <param name="Key">The same for the same difference, until that is gone.</param>
/// <param name="Text">What it does, in a sentence.</param>
/// <param name="Method">HTTP method; empty when nothing can be done.</param>
/// <param name="Path">Path behind <c>/v1/</c>, with its query.</param>
/// <param name="Body">JSON, or null.</param>
/// <param name="Impossible">Why nothing can be done, or null.</param>
public sealed record DeclaredStep(
    string Kind, string Name, string Key, string Text, string Method, string Path, string? Body, string? Impossible = null);

/// <summary>What stands between the declared state and the real one, as steps in an order that works: volumes, targets, their units
/// and rules, policies. Pure. Nothing that it finds by itself deletes a volume, a target or a policy.</summary>
public static class DeclaredPlan
{
    /// <summary>The kinds.</summary>
    public const string Volume = "volume", Target = "target", Policy = "policy";

    /// <summary>The steps. <paramref name="known"/>: by which numbers declared volumes were seen before.</summary>
    public static IReadOnlyList<DeclaredStep> Steps(DeclaredState desired, CurrentState now, IReadOnlyDictionary<string, uint> known)
    {
        var steps = new List<DeclaredStep>();
        Dictionary<string, CurrentVolume> volumes = now.Volumes.ToDictionary(v => v.Name, StringComparer.Ordinal);
        Dictionary<uint, CurrentVolume> byId = now.Volumes.ToDictionary(v => v.Id);
        foreach (DeclaredVolume volume in desired.Volumes ?? []) Add(steps, volume, volumes, byId, known);
        foreach (DeclaredTarget target in desired.Targets ?? []) Add(steps, target, now, volumes);
        foreach (CreatePolicy policy in desired.Policies ?? []) Add(steps, policy, now);
        return steps;
    }

    /// <summary>What is there and not declared.</summary>
    public static IReadOnlyList<DeclaredName> Undeclared(DeclaredState desired, CurrentState now)
    {
        HashSet<string> policies = [.. (desired.Policies ?? []).Select(p => p.Name)], volumes = [.. (desired.Volumes ?? []).Select(v => v.Name)];
        var targets = new HashSet<string>((desired.Targets ?? []).Select(t => t.Name), StringComparer.OrdinalIgnoreCase);
        return
        [
            .. now.Policies.Where(p => !policies.Contains(p.Name)).Select(p => new DeclaredName(Policy, p.Name)),
            .. now.Targets.Where(t => !targets.Contains(t.Name)).Select(t => new DeclaredName(Target, t.Name)),
            .. now.Volumes.Where(v => !volumes.Contains(v.Name)).Select(v => new DeclaredName(Volume, v.Name)),
        ];
    }

    /// <summary>The deletion of something that is not declared, or null when it is gone or declared. Nothing is forced: who is in use,
    /// and a volume with snapshots, is refused by the API.</summary>
    public static DeclaredStep? Prune(DeclaredName gone, DeclaredState desired, CurrentState now)
    {
        if (!Undeclared(desired, now).Contains(gone)) return null;
        string path = gone.Kind switch
        {
            Volume => Text($"volumes/{gone.Name}?id={now.Volumes.First(v => v.Name == gone.Name).Id}"),
            Target => Text($"targets/{gone.Name}?revision={now.Targets.First(t => t.Name == gone.Name).Revision}"),
            _ => Text($"policies/{gone.Name}?revision={now.Policies.First(p => p.Name == gone.Name).Revision}"),
        };
        return new DeclaredStep(gone.Kind, gone.Name, $"{gone.Kind} {gone.Name} prune", "delete it: it is not declared", "DELETE", path, null);
    }

    private static void Add(
        List<DeclaredStep> steps, DeclaredVolume d, Dictionary<string, CurrentVolume> volumes, Dictionary<uint, CurrentVolume> byId, IReadOnlyDictionary<string, uint> known)
    {
        DeclaredStep Step(string what, string text, string method, string path, string? body) => new(Volume, d.Name, $"volume {d.Name} {what}", text, method, path, body);
        void Impossible(string what, string text, string why) => steps.Add(Step(what, text, "", "", null) with { Impossible = why });
        if (!volumes.TryGetValue(d.Name, out CurrentVolume? current))
        {
            if (!known.TryGetValue(d.Name, out uint id))
            {
                var create = new CreateVolume(d.Name, d.SizeBytes, 1, d.Export, d.Description, d.StoreId, Thin: d.Thin);
                steps.Add(Step("create", Text($"make it, with {d.SizeBytes} bytes"), "POST", "volumes", JsonSerializer.Serialize(create, ApiJson.Default.CreateVolume)));
            }
            else if (byId.TryGetValue(id, out CurrentVolume? renamed))
            {
                var back = new ChangeVolume(renamed.Revision, Name: d.Name);
                steps.Add(Step("rename", $"rename it back from '{renamed.Name}'", "PATCH", "volumes/" + renamed.Name, JsonSerializer.Serialize(back, ApiJson.Default.ChangeVolume)));
            }
            else
            {
                // An empty disk under the old name would be wrong data for whoever still uses it.
                Impossible("gone", "it is gone", "it was deleted by hand, with its data; apply the file again to have a new, empty one made");
            }

            return;
        }

        if (d.StoreId is { } disk && disk != current.StoreId) Impossible("disk", "it lies on another disk", $"it lies on disk {current.StoreId}, and declaring another one does not move it");
        if (d.SizeBytes < current.SizeBytes)
            Impossible("size", "it is larger", Text($"it has {current.SizeBytes} bytes and is never shrunk by itself; declare that, or shrink it with pfcli resize_volume"));
        bool grows = d.SizeBytes > current.SizeBytes, isOffered = d.Export is null || d.Export == current.Export, isDescribed = d.Description is null || d.Description == current.Description, isPromised = d.Thin is null || d.Thin == current.Thin;
        string[] parts =
        [
            .. grows ? [Text($"grow it from {current.SizeBytes} to {d.SizeBytes} bytes")] : Array.Empty<string>(),
            .. isOffered ? Array.Empty<string>() : ["change how it is offered"], .. isDescribed ? Array.Empty<string>() : ["change its description"],
            .. isPromised ? Array.Empty<string>() : [d.Thin == true ? "take the promise of room back" : "promise it room for its size"],
        ];
        if (parts.Length == 0) return;
        var change = new ChangeVolume(current.Revision, SizeBytes: grows ? d.SizeBytes : null, Export: isOffered ? null : d.Export, Description: isDescribed ? null : d.Description, Thin: isPromised ? null : d.Thin);
        steps.Add(Step("change", string.Join(", ", parts), "PATCH", "volumes/" + d.Name, JsonSerializer.Serialize(change, ApiJson.Default.ChangeVolume)));
    }

    private static void Add(List<DeclaredStep> steps, DeclaredTarget d, CurrentState now, Dictionary<string, CurrentVolume> volumes)
    {
        DeclaredStep Step(string what, string text, string method, string path, string? body) => new(Target, d.Name, $"target {d.Name} {what}", text, method, path, body);
        TargetInfo? known = now.Targets.FirstOrDefault(t => IsSame(t.Name, d.Name));
        if (known is null)
        {
            var create = new CreateTarget(d.Name, d.Description, d.PortalGroups, d.Enabled);
            steps.Add(Step("create", "make it", "POST", "targets", JsonSerializer.Serialize(create, ApiJson.Default.CreateTarget)));
        }
        else
        {
            bool areGroups = d.PortalGroups is null || d.PortalGroups.Order().SequenceEqual(known.PortalGroups.Order());
            bool isDescribed = d.Description is null || d.Description == known.Description;
            if (known.Enabled != d.Enabled || !areGroups || !isDescribed)
            {
                var change = new ChangeTarget(known.Revision, d.Enabled, isDescribed ? null : d.Description, areGroups ? null : d.PortalGroups);
                string text = known.Enabled != d.Enabled ? d.Enabled ? "enable it" : "disable it" : "change its portals or description";
                steps.Add(Step("change", text, "PATCH", "targets/" + d.Name, JsonSerializer.Serialize(change, ApiJson.Default.ChangeTarget)));
            }
        }

        AddLuns(steps, d, known, volumes, Step);
        IReadOnlyList<AccessRule> wanted = d.Access ?? [], there = known?.Access ?? [];
        foreach (AccessRule rule in wanted.Except(there))
            steps.Add(Step($"allow {rule.Initiator} {rule.Address}", $"let {Named(rule)} log in", "POST", $"targets/{d.Name}/access", JsonSerializer.Serialize(rule, ApiJson.Default.AccessRule)));
        foreach (AccessRule rule in there.Except(wanted))
        {
            string query = "?initiator=" + Uri.EscapeDataString(rule.Initiator) + (rule.Address is null ? "" : "&address=" + Uri.EscapeDataString(rule.Address));
            steps.Add(Step($"deny {rule.Initiator} {rule.Address}", $"take back that {Named(rule)} may log in", "DELETE", $"targets/{d.Name}/access{query}", null));
        }
    }

    private static void AddLuns(
        List<DeclaredStep> steps, DeclaredTarget d, TargetInfo? known, Dictionary<string, CurrentVolume> volumes, Func<string, string, string, string, string?, DeclaredStep> step)
    {
        foreach (LunInfo lun in known?.Luns ?? [])
        {
            if ((d.Luns ?? []).Any(l => l.Lun == lun.Lun && Fits(l, lun, volumes))) continue;
            steps.Add(step(Text($"remove LUN {lun.Lun}"), Text($"take LUN {lun.Lun} ({lun.Volume}) away"), "DELETE", Text($"targets/{d.Name}/luns/{lun.Lun}"), null));
        }

        foreach (DeclaredLun lun in d.Luns ?? [])
        {
            if ((known?.Luns ?? []).Any(l => l.Lun == lun.Lun && Fits(lun, l, volumes))) continue;
            var add = new AddLun(lun.Volume, lun.Lun, lun.ReadOnly);
            steps.Add(step(Text($"add LUN {lun.Lun}"), Text($"make volume {lun.Volume} LUN {lun.Lun}"), "POST", $"targets/{d.Name}/luns", JsonSerializer.Serialize(add, ApiJson.Default.AddLun)));
        }
    }

    // A write-protected volume is so by every target.
    private static bool Fits(DeclaredLun wanted, LunInfo there, Dictionary<string, CurrentVolume> volumes) => wanted.Volume == there.Volume
        && there.ReadOnly == (wanted.ReadOnly || volumes.GetValueOrDefault(wanted.Volume)?.Export.ReadOnly == true);

    private static void Add(List<DeclaredStep> steps, CreatePolicy d, CurrentState now)
    {
        DeclaredStep Step(string what, string text, string method, string path, string body) => new(Policy, d.Name, $"policy {d.Name} {what}", text, method, path, body);
        if (now.Policies.FirstOrDefault(p => p.Name == d.Name) is not { } known)
        {
            steps.Add(Step("create", "make it", "POST", "policies", JsonSerializer.Serialize(d, ApiJson.Default.CreatePolicy)));
            return;
        }

        bool isSame = known.Volumes.Order(StringComparer.Ordinal).SequenceEqual(d.Volumes.Order(StringComparer.Ordinal)) && known.PeriodSeconds == d.PeriodSeconds
            && known.KeepCount == d.KeepCount && known.KeepSeconds == d.KeepSeconds && known.PreHook == d.PreHook && known.PostHook == d.PostHook && known.HookSeconds == d.HookSeconds;
        if (isSame) return;
        var change = new ChangePolicy(
            known.Revision, d.Volumes, d.PeriodSeconds, d.KeepCount ?? 0, d.KeepSeconds ?? 0, d.PreHook ?? "", d.PostHook ?? "", d.HookSeconds);
        steps.Add(Step("change", "change it", "PATCH", "policies/" + d.Name, JsonSerializer.Serialize(change, ApiJson.Default.ChangePolicy)));
    }

    private static string Named(AccessRule rule) => rule.Address is null ? rule.Initiator : $"{rule.Initiator} from {rule.Address}";

    private static bool IsSame(string name, string other) => name.Equals(other, StringComparison.OrdinalIgnoreCase);

    private static string Text(FormattableString text) => FormattableString.Invariant(text);
}
