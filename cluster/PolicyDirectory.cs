using System.Collections.Immutable;
using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>What the metadata say about a policy; the value of <c>policy/NAME</c>. Times are seconds.</summary>
/// <param name="Name">Name.</param>
/// <param name="Volumes">The volumes, by number; those that are gone are passed over.</param>
/// <param name="PeriodSeconds">0: it rests.</param>
/// <param name="KeepCount">Most snapshots of each volume, or null.</param>
/// <param name="KeepSeconds">Longest life of one that is not the newest, or null.</param>
/// <param name="PreHook">Hook in front of the cut, or null.</param>
/// <param name="PostHook">Hook behind it, or null.</param>
/// <param name="HookSeconds">Time limit of each.</param>
public sealed record PolicyRecord(
    string Name, IReadOnlyList<uint> Volumes, long PeriodSeconds, int? KeepCount, long? KeepSeconds, string? PreHook, string? PostHook, int HookSeconds)
{
    /// <summary>Revision of the transaction that wrote this record; what clients compare.</summary>
    [JsonIgnore]
    public long Revision { get; init; }
}

/// <summary>A policy, or why there is none.</summary>
public readonly record struct PolicyResult(PolicyRecord? Policy, DirectoryFault? Fault)
{
    /// <summary>It was refused.</summary>
    public static implicit operator PolicyResult(DirectoryFault fault) => new(null, fault);
}

/// <summary>Which policies there are. A change is one transaction. Changes run one at a time; thread-safe; lookups are free.</summary>
public sealed class PolicyDirectory(IMetaStore meta) : IDisposable
{
    /// <summary>Longest name: behind it there is room for the time.</summary>
    public const int NameMax = 40;

    private const string Prefix = "policy/";
    private const int PoliciesMax = 1000, VolumesMax = 128;
    private const long SecondsMax = 100L * 366 * 86_400;

    private readonly SemaphoreSlim _change = new(1, 1);
    private ImmutableSortedDictionary<string, PolicyRecord> _policies = ImmutableSortedDictionary.Create<string, PolicyRecord>(StringComparer.Ordinal);

    /// <summary>Called after every change. Set before the first.</summary>
    public Action? Changed { get; set; }

    /// <summary>Told of every policy that came, changed or (true) went, by its name. On any thread; must be quick.</summary>
    public Action<string, bool>? RecordChanged { get; set; }

    /// <summary>All, by name.</summary>
    public IReadOnlyList<PolicyRecord> List() => [.. _policies.Values];

    /// <summary>A policy, or null.</summary>
    public PolicyRecord? Find(string name) => _policies.GetValueOrDefault(name);

    /// <inheritdoc/>
    public void Dispose() => _change.Dispose();

    /// <summary>Reads the metadata. Throws <see cref="MetaException"/>, and <see cref="InvalidDataException"/> for a damaged record.</summary>
    public async Task LoadAsync()
    {
        foreach (MetaEntry entry in await meta.RangeAsync(Prefix))
        {
            PolicyRecord? record = null;
            try
            {
                record = JsonSerializer.Deserialize(entry.Value.Span, PolicyRecordJson.Default.PolicyRecord);
            }
            catch (JsonException)
            {
                // Said below.
            }

            if (record?.Volumes is null || Prefix + record.Name != entry.Key || FaultOf(record) is not null)
                throw new InvalidDataException($"the metadata of {entry.Key} are damaged; restore the metadata database from a copy");
            _policies = _policies.SetItem(record.Name, record with { Revision = entry.ModRevision });
        }
    }

    /// <summary>Makes a policy.</summary>
    public Task<PolicyResult> CreateAsync(PolicyRecord policy) => AloneAsync(async () =>
    {
        if (_policies.ContainsKey(policy.Name))
            return new DirectoryFault(IoStatus.Conflict, "policy-exists", $"a policy '{policy.Name}' exists; choose another name", "name");
        if (_policies.Count >= PoliciesMax)
            return new DirectoryFault(IoStatus.Conflict, "too-many-policies", $"there are {PoliciesMax} policies; delete one first");
        return FaultOf(policy) is { } fault ? fault : await WriteAsync(policy with { Revision = 0 });
    });

    /// <summary>Changes a policy; what holds from now on is what <paramref name="edit"/> answers.</summary>
    public Task<PolicyResult> ChangeAsync(string name, long? revision, Func<PolicyRecord, PolicyRecord> edit) => AloneAsync(async () =>
    {
        if (Get(name, revision, out PolicyRecord old) is { } fault) return fault;
        PolicyRecord wanted = edit(old) with { Name = name, Revision = old.Revision };
        return FaultOf(wanted) is { } wrong ? wrong : await WriteAsync(wanted);
    });

    /// <summary>Deletes a policy; its snapshots stay.</summary>
    public Task<PolicyResult> DeleteAsync(string name, long? revision) => AloneAsync(async () =>
    {
        if (Get(name, revision, out PolicyRecord old) is { } fault) return fault;
        MetaResult result = await MetaCommit.CommitAsync(meta, [new(Prefix + name, old.Revision)], [new(Prefix + name, null)]);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        _policies = _policies.Remove(name);
        RecordChanged?.Invoke(name, true);
        return new PolicyResult(old, null);
    });

    private static DirectoryFault? FaultOf(PolicyRecord p)
    {
        DirectoryFault Wrong(string code, string detail, string field) => new(IoStatus.Invalid, code, detail, field);
        if (!VolumeName.IsValid(p.Name, out string? reason)) return Wrong("invalid-name", reason, "name");
        if (p.Name.Length > NameMax) return Wrong("invalid-name", $"the name of a policy has at most {NameMax} characters", "name");
        if (p.Volumes.Count is 0 or > VolumesMax || p.Volumes.Distinct().Count() != p.Volumes.Count)
            return Wrong("invalid-volumes", $"name 1 to {VolumesMax} volumes, each once", "volumes");
        if (p.PeriodSeconds is < 0 or > SecondsMax) return Wrong("invalid-period", "the period is 0 (it rests) to a hundred years, in seconds", "periodSeconds");
        if (p.KeepCount is < 1 or > 10_000) return Wrong("invalid-retention", "1 to 10,000 snapshots are kept, or any number", "keepCount");
        if (p.KeepSeconds is < 1 or > SecondsMax) return Wrong("invalid-retention", "snapshots are kept a second to a hundred years, or for ever", "keepSeconds");
        if (p.HookSeconds is < 1 or > 3600) return Wrong("invalid-hook", "a hook may take 1 to 3,600 seconds", "hookSeconds");
        if (p.PreHook is not null && !VolumeName.IsValid(p.PreHook, out reason)) return Wrong("invalid-hook", $"a hook is the name of a program in the folder of hooks: {reason}", "preHook");
        return p.PostHook is not null && !VolumeName.IsValid(p.PostHook, out reason)
            ? Wrong("invalid-hook", $"a hook is the name of a program in the folder of hooks: {reason}", "postHook") : null;
    }

    private DirectoryFault? Get(string name, long? revision, out PolicyRecord record)
    {
        record = Find(name)!;
        if (record is null) return new(IoStatus.NotFound, "no-such-policy", $"there is no policy '{name}'; pfcli list_policy shows all");
        return revision is { } wanted && wanted != record.Revision
            ? new(IoStatus.Conflict, "revision-differs", $"the policy has revision {record.Revision} now; read it again", "revision") : null;
    }

    private async Task<PolicyResult> WriteAsync(PolicyRecord record)
    {
        string key = Prefix + record.Name;
        MetaResult result = await MetaCommit.CommitAsync(
            meta, [new(key, record.Revision)], [new(key, JsonSerializer.SerializeToUtf8Bytes(record, PolicyRecordJson.Default.PolicyRecord))]);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        record = record with { Revision = result.Revision };
        _policies = _policies.SetItem(record.Name, record);
        RecordChanged?.Invoke(record.Name, false);
        return new PolicyResult(record, null);
    }

    private async Task<PolicyResult> AloneAsync(Func<Task<PolicyResult>> change)
    {
        PolicyResult result;
        await _change.WaitAsync();
        try
        {
            result = await change();
        }
        catch (MetaException e)
        {
            result = new DirectoryFault(IoStatus.Unavailable, "metadata-unavailable", e.Message);
        }
        finally
        {
            _change.Release();
        }

        if (result.Fault is null) Changed?.Invoke();
        return result;
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true)]
[JsonSerializable(typeof(PolicyRecord))]
internal sealed partial class PolicyRecordJson : JsonSerializerContext;
