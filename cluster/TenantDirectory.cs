using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>What the metadata say about a tenant; the value of <c>tenant/NAME</c>.</summary>
/// <param name="Name">What the names of all its objects begin with, before a dot.</param>
/// <param name="BytesMax">Sum of the sizes of its volumes, at most; null: no limit.</param>
/// <param name="VolumesMax">Its volumes, at most; null: no limit.</param>
/// <param name="IopsMax">Operations a second of all its volumes together; null: no limit.</param>
/// <param name="Description">The operator's words.</param>
/// <param name="CreatedAt">When it was made.</param>
public sealed record TenantRecord(
    string Name, ulong? BytesMax, int? VolumesMax, ulong? IopsMax, string? Description, DateTimeOffset CreatedAt) : IMetaRecord<TenantRecord>
{
    /// <summary>Revision of the transaction that wrote this record; what clients compare.</summary>
    [JsonIgnore]
    public long Revision { get; init; }

    [JsonIgnore]
    string IMetaRecord<TenantRecord>.Key => Name;

    [JsonIgnore]
    bool IMetaRecord<TenantRecord>.IsWhole => TenantDirectory.FaultOf(this) is null;

    TenantRecord IMetaRecord<TenantRecord>.WithRevision(long revision) => this with { Revision = revision };
}

/// <summary>Says whether a volume may be made or become larger. Asked while no other volume is made or changed.</summary>
public interface IVolumeQuota
{
    /// <summary>Null, or why not.</summary>
    /// <param name="name">The volume's name as it will be.</param>
    /// <param name="sizeBytes">Its size as it will be.</param>
    /// <param name="old">The volume as it is, or null for a new one.</param>
    /// <param name="all">Every volume.</param>
    DirectoryFault? FaultOf(string name, ulong sizeBytes, VolumeRecord? old, IReadOnlyList<VolumeRecord> all);
}

/// <summary>
/// Tenants: who shares the node without seeing one another. What belongs to a tenant says its name: volume <c>acme.db</c> is
/// tenant acme's. So one look at a name tells whose it is, nobody's name can be taken by another, and no answer can depend on
/// what another tenant has. Thread-safe; lookups are free.
/// </summary>
public sealed class TenantDirectory(IMetaStore meta) : IVolumeQuota, IDisposable
{
    /// <summary>Longest name: behind it there is room for those of its objects.</summary>
    public const int NameMax = 24;

    private const int TenantsMax = 1000;

    private readonly MetaTable<TenantRecord> _table = new(meta, "tenant/", TenantRecordJson.Default.TenantRecord);

    /// <summary>All, by name.</summary>
    public IReadOnlyList<TenantRecord> List() => _table.List();

    /// <summary>A tenant, or null.</summary>
    public TenantRecord? Find(string name) => _table.Find(name);

    /// <inheritdoc/>
    public void Dispose() => _table.Dispose();

    /// <summary>As <see cref="MetaTable{T}.LoadAsync"/>.</summary>
    public Task LoadAsync() => _table.LoadAsync();

    /// <summary>An object of this name would belong to the tenant.</summary>
    public static bool IsOf(string tenant, string name) =>
        name.Length > tenant.Length + 1 && name[tenant.Length] == '.' && name.StartsWith(tenant, StringComparison.Ordinal);

    /// <summary>The tenant to whom an object of this name belongs, or null: to the node's own operators.</summary>
    public TenantRecord? OwnerOf(string name)
    {
        int dot = name.IndexOf('.', StringComparison.Ordinal);
        return dot > 0 ? Find(name[..dot]) : null;
    }

    /// <summary>A tenant may have this name.</summary>
    public static bool IsName(string name) => NameFault(name) is null;

    /// <summary>Makes a tenant.</summary>
    public Task<DirectoryFault?> CreateAsync(TenantRecord tenant) => _table.AloneAsync(async () =>
    {
        if (FaultOf(tenant) is { } wrong) return wrong;
        if (Find(tenant.Name) is not null)
            return new DirectoryFault(IoStatus.Conflict, "tenant-exists", $"a tenant '{tenant.Name}' exists; choose another name", "name");
        if (_table.Count >= TenantsMax) return new DirectoryFault(IoStatus.Conflict, "too-many-tenants", $"there are {TenantsMax} tenants; delete one first");
        return await _table.WriteAsync(tenant with { Revision = 0 });
    });

    /// <summary>Changes a tenant to what <paramref name="edit"/> answers.</summary>
    public Task<DirectoryFault?> ChangeAsync(string name, long? revision, Func<TenantRecord, TenantRecord> edit) => _table.AloneAsync(async () =>
    {
        if (Get(name, revision, out TenantRecord old) is { } fault) return fault;
        TenantRecord wanted = edit(old) with { Name = name, Revision = old.Revision };
        return FaultOf(wanted) ?? await _table.WriteAsync(wanted);
    });

    /// <summary>Deletes a tenant. The caller has looked that it owns nothing.</summary>
    public Task<DirectoryFault?> DeleteAsync(string name, long? revision) => _table.AloneAsync(async () =>
        Get(name, revision, out TenantRecord old) ?? await _table.RemoveAsync(old));

    /// <inheritdoc/>
    public DirectoryFault? FaultOf(string name, ulong sizeBytes, VolumeRecord? old, IReadOnlyList<VolumeRecord> all)
    {
        if (OwnerOf(name) is not { } tenant) return null;
        bool wasItsOwn = old is not null && OwnerOf(old.Name) == tenant;
        if (wasItsOwn && sizeBytes <= old!.SizeBytes) return null; // whatever the quota has become
        int count = 0;
        UInt128 bytes = sizeBytes;
        foreach (VolumeRecord volume in all)
        {
            if (volume.Id == old?.Id || !IsOf(tenant.Name, volume.Name)) continue;
            count++;
            bytes += volume.SizeBytes;
        }

        if (!wasItsOwn && count >= tenant.VolumesMax)
            return new DirectoryFault(IoStatus.Conflict, "quota-volumes", $"tenant '{tenant.Name}' may have {tenant.VolumesMax} volumes and has {count}; delete one, or ask for more");
        return bytes <= (tenant.BytesMax ?? ulong.MaxValue) ? null : new DirectoryFault(
            IoStatus.Conflict, "quota-bytes",
            $"tenant '{tenant.Name}' may have volumes of {SizeText.Format(tenant.BytesMax!.Value)} together, {SizeText.Format((ulong)(bytes - sizeBytes))} are in use; choose a smaller size, or ask for more",
            "sizeBytes");
    }

    private static DirectoryFault? NameFault(string name)
    {
        if (!VolumeName.IsValid(name, out string? reason)) return new(IoStatus.Invalid, "invalid-name", reason, "name");
        return name.Length <= NameMax && !name.Contains('.', StringComparison.Ordinal) ? null
            : new(IoStatus.Invalid, "invalid-name", $"the name of a tenant has at most {NameMax} characters and no dot: a dot ends it in the names of its volumes", "name");
    }

    /// <summary>Why a tenant cannot be as it says, or null.</summary>
    internal static DirectoryFault? FaultOf(TenantRecord t)
    {
        if (NameFault(t.Name) is { } fault) return fault;
        if (t.VolumesMax < 0) return new(IoStatus.Invalid, "invalid-quota", "a number of volumes is not negative", "volumesMax");
        if (t.IopsMax is 0 or > 100_000_000) return new(IoStatus.Invalid, "invalid-quota", "operations a second are 1 to 100,000,000, or without limit", "iopsMax");
        return t.Description is { Length: > 1024 } ? new(IoStatus.Invalid, "invalid-description", "the description is longer than 1,024 characters", "description") : null;
    }

    private DirectoryFault? Get(string name, long? revision, out TenantRecord record)
    {
        record = Find(name)!;
        if (record is null) return new(IoStatus.NotFound, "no-such-tenant", $"there is no tenant '{name}'");
        return revision is { } wanted && wanted != record.Revision
            ? new(IoStatus.Conflict, "revision-differs", $"the tenant has revision {record.Revision} now; read it again", "revision") : null;
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true, RespectNullableAnnotations = true)]
[JsonSerializable(typeof(TenantRecord))]
internal sealed partial class TenantRecordJson : JsonSerializerContext;
