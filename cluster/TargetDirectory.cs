using System.Collections.Immutable;
using System.Text.Json;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>What became of a change of a target.</summary>
/// <param name="Target">As it is now; null when it was refused.</param>
/// <param name="Fault">Why not.</param>
public sealed record TargetResult(TargetRecord? Target, DirectoryFault? Fault)
{
    /// <summary>It was done.</summary>
    public static implicit operator TargetResult(TargetRecord target) => new(target, null);

    /// <summary>It was refused.</summary>
    public static implicit operator TargetResult(DirectoryFault fault) => new(null, fault);
}

/// <summary>
/// Which iSCSI targets the operator has configured: records <c>target/NAME</c>, secrets <c>chap/NAME</c> and the counter
/// <c>counter/target</c> in the metadata store. A change is one transaction. Names and patterns are checked by the caller,
/// which knows iSCSI. Changes run one at a time; thread-safe; lookups are free.
/// </summary>
public sealed class TargetDirectory(IMetaStore meta) : IDisposable
{
    /// <summary>Stands for discovery, which has users and nothing else.</summary>
    public const string Discovery = "discovery";

    /// <summary>Largest number of a target.</summary>
    public const int NumberMax = 1023;

    /// <summary>Largest LUN.</summary>
    public const int LunMax = 0x3FFF;

    /// <summary>Largest tag of a portal group.</summary>
    public const int PortalGroupMax = 63;

    private const string RecordPrefix = "target/", SecretPrefix = "chap/", CounterKey = "counter/target";
    private const int LunsMax = 256, AccessMax = 256, UsersMax = 64;

    private readonly SemaphoreSlim _change = new(1, 1);
    private ImmutableSortedDictionary<string, Entry> _targets = ImmutableSortedDictionary.Create<string, Entry>(StringComparer.Ordinal);

    /// <summary>Told of every target (by name; discovery too) that came, changed or (true) went. On any thread; must be quick.</summary>
    public Action<string, bool>? Changed { get; set; }

    /// <summary>The configured targets, by name.</summary>
    public IReadOnlyList<TargetRecord> List() => [.. _targets.Values.Select(e => e.Record).Where(r => r.Name != Discovery)];

    /// <summary>A target, or null.</summary>
    public TargetRecord? Find(string name) => _targets.GetValueOrDefault(name)?.Record;

    /// <summary>The users of a target (or of discovery) with their secrets.</summary>
    public IReadOnlyList<ChapUserSecret> SecretsOf(string name) => _targets.GetValueOrDefault(name)?.Secrets ?? [];

    /// <inheritdoc/>
    public void Dispose() => _change.Dispose();

    /// <summary>Reads the metadata. Throws <see cref="MetaException"/>, and <see cref="InvalidDataException"/> when a record is
    /// damaged: a target that lost its rules must not be served.</summary>
    public async Task LoadAsync()
    {
        IReadOnlyList<MetaEntry> secrets = await meta.RangeAsync(SecretPrefix);
        foreach (MetaEntry entry in await meta.RangeAsync(RecordPrefix))
        {
            try
            {
                TargetRecord record = JsonSerializer.Deserialize(entry.Value.Span, TargetRecordJson.Default.TargetRecord)!;
                MetaEntry? own = secrets.FirstOrDefault(s => s.Key == SecretPrefix + record.Name);
                ChapUserSecret[] users = own is null ? [] : JsonSerializer.Deserialize(own.Value.Span, TargetRecordJson.Default.ChapUserSecretArray)!;
                bool isWhole = users.Where(u => !u.Mutual).Select(u => u.User).Order(StringComparer.Ordinal)
                    .SequenceEqual(record.Users.Order(StringComparer.Ordinal));
                if (!isWhole) throw new JsonException();
                _targets = _targets.SetItem(record.Name, new Entry(record with { Revision = entry.ModRevision }, users));
            }
            catch (Exception e) when (e is JsonException or NullReferenceException)
            {
                // The parser's words may quote a secret.
                throw new InvalidDataException($"the metadata of {entry.Key} are damaged; restore the metadata database from a copy");
            }
        }
    }

    /// <summary>Makes a target without units and users.</summary>
    public Task<TargetResult> CreateAsync(string name, string? description, IReadOnlyList<ushort> portalGroups, bool enabled) => AloneAsync(async () =>
    {
        if (description is { Length: > 1024 })
            return new DirectoryFault(IoStatus.Invalid, "invalid-description", "the description is longer than 1,024 characters", "description");
        if (PortalGroupFault(portalGroups) is { } fault) return fault;
        if (_targets.ContainsKey(name))
            return new DirectoryFault(IoStatus.Conflict, "target-exists", $"a target '{name}' exists; choose another name", "name");
        MetaEntry? counter = await meta.GetAsync(CounterKey);
        uint number = (counter is null ? 0 : JsonSerializer.Deserialize(counter.Value.Span, TargetRecordJson.Default.UInt32)) + 1;
        if (number > NumberMax)
        {
            // Every number was used once: the smallest that is free again.
            number = (uint)Enumerable.Range(1, NumberMax + 1).First(n => _targets.Values.All(t => t.Record.Number != n));
            if (number > NumberMax)
                return new DirectoryFault(IoStatus.Conflict, "too-many-targets", $"there are {NumberMax} targets; delete one first");
        }

        var record = new TargetRecord(name, (ushort)number, enabled, description, [], [.. portalGroups.Order()], [], [], null);
        uint next = Math.Min(number, NumberMax);
        return await WriteAsync(record, null, new MetaChange(CounterKey, JsonSerializer.SerializeToUtf8Bytes(next, TargetRecordJson.Default.UInt32)));
    });

    /// <summary>Deletes a target with its users.</summary>
    public Task<TargetResult> DeleteAsync(string name, long? revision) => AloneAsync(async () =>
    {
        if (Get(name, revision, out TargetRecord old) is { } fault) return fault;
        MetaResult result = await MetaCommit.CommitAsync(
            meta, [new(RecordPrefix + name, old.Revision)], [new(RecordPrefix + name, null), new(SecretPrefix + name, null)]);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        _targets = _targets.Remove(name);
        Changed?.Invoke(name, true);
        return old;
    });

    /// <summary>Changes what is not null.</summary>
    public Task<TargetResult> ChangeAsync(string name, long? revision, bool? enabled, string? description, IReadOnlyList<ushort>? portalGroups) =>
        EditAsync(name, revision, old =>
        {
            if (description is { Length: > 1024 })
                return new DirectoryFault(IoStatus.Invalid, "invalid-description", "the description is longer than 1,024 characters", "description");
            if (portalGroups is not null && PortalGroupFault(portalGroups) is { } fault) return fault;
            return old with
            {
                Enabled = enabled ?? old.Enabled, Description = description ?? old.Description,
                PortalGroups = portalGroups is null ? old.PortalGroups : [.. portalGroups.Order()],
            };
        });

    /// <summary>Makes a volume a unit, or a snapshot of it (identity and name); <paramref name="lun"/> null: the first number that is
    /// free.</summary>
    public Task<TargetResult> AddLunAsync(
        string name, uint volumeId, int? lun, bool readOnly, Guid? snapshot = null, string? snapshotName = null) => EditAsync(name, null, old =>
    {
        if (lun is < 0 or > LunMax) return new DirectoryFault(IoStatus.Invalid, "invalid-lun", $"a LUN is 0 to {LunMax}", "lun");
        if (old.Luns.FirstOrDefault(l => l.VolumeId == volumeId && l.Snapshot == snapshot) is { } same)
            return new DirectoryFault(IoStatus.Conflict, "volume-is-lun", $"the volume is LUN {same.Lun} of this target already", "volume");
        if (old.Luns.Count >= LunsMax) return new DirectoryFault(IoStatus.Conflict, "too-many-luns", $"a target has at most {LunsMax} LUNs", "lun");
        int number = lun ?? Enumerable.Range(0, LunMax + 1).First(n => old.Luns.All(l => l.Lun != n));
        if (old.Luns.Any(l => l.Lun == number))
            return new DirectoryFault(IoStatus.Conflict, "lun-taken", $"LUN {number} is another volume; choose another number or remove it first", "lun");
        return old with { Luns = [.. old.Luns.Append(new TargetLun((ushort)number, volumeId, readOnly, snapshot, snapshotName)).OrderBy(l => l.Lun)] };
    });

    /// <summary>Takes a unit away; the volume stays.</summary>
    public Task<TargetResult> RemoveLunAsync(string name, int lun) => EditAsync(name, null, old =>
        old.Luns.Any(l => l.Lun == lun)
            ? old with { Luns = [.. old.Luns.Where(l => l.Lun != lun)] }
            : new DirectoryFault(IoStatus.NotFound, "no-such-lun", $"the target has no LUN {lun}"));

    /// <summary>Lets somebody in.</summary>
    public Task<TargetResult> AllowAsync(string name, TargetAccess access) => EditAsync(name, null, old =>
    {
        if (old.Access.Contains(access)) return old;
        return old.Access.Count < AccessMax
            ? old with { Access = [.. old.Access, access] }
            : new DirectoryFault(IoStatus.Conflict, "too-many-rules", $"a target has at most {AccessMax} rules of access; use wildcards");
    });

    /// <summary>Takes a rule back.</summary>
    public Task<TargetResult> DenyAsync(string name, TargetAccess access) => EditAsync(name, null, old =>
        old.Access.Contains(access)
            ? old with { Access = [.. old.Access.Where(a => a != access)] }
            : new DirectoryFault(IoStatus.NotFound, "no-such-rule", "there is no such rule; pfcli show_target lists them as they were given"));

    /// <summary>Adds a user to a target or to discovery.</summary>
    public Task<TargetResult> AddUserAsync(string name, ChapUserSecret user) => AloneAsync(async () =>
    {
        TargetRecord? old = Find(name) ?? (name == Discovery ? new TargetRecord(name, 0, true, null, [], [], [], [], null) : null);
        if (old is null) return NoTarget(name);
        IReadOnlyList<ChapUserSecret> known = SecretsOf(name);
        if (user.Mutual && old.MutualUser is { } mutual)
            return new DirectoryFault(IoStatus.Conflict, "user-exists", $"'{mutual}' is its name already; remove that first", "user");
        if (!user.Mutual && old.Users.Contains(user.User))
            return new DirectoryFault(IoStatus.Conflict, "user-exists", $"there is a user '{user.User}'; remove it first", "user");
        if (old.Users.Count >= UsersMax) return new DirectoryFault(IoStatus.Conflict, "too-many-users", $"a target has at most {UsersMax} users", "user");
        if (known.Any(u => u.Mutual != user.Mutual && u.Secret == user.Secret))
            return new DirectoryFault(IoStatus.Invalid, "secret-reused", "the other direction has this secret; each needs its own", "secret");
        TargetRecord record = user.Mutual ? old with { MutualUser = user.User } : old with { Users = [.. old.Users, user.User] };
        return await WriteAsync(record, [.. known, user]);
    });

    /// <summary>Takes a user away.</summary>
    public Task<TargetResult> RemoveUserAsync(string name, string user, bool mutual) => AloneAsync(async () =>
    {
        if (Get(name, null, out TargetRecord old) is { } fault) return name == Discovery ? NoUser(user) : fault;
        if (mutual ? old.MutualUser != user : !old.Users.Contains(user)) return NoUser(user);
        TargetRecord record = mutual ? old with { MutualUser = null } : old with { Users = [.. old.Users.Where(u => u != user)] };
        return await WriteAsync(record, [.. SecretsOf(name).Where(u => u.Mutual != mutual || u.User != user)]);
    });

    private static DirectoryFault NoUser(string user) => new(IoStatus.NotFound, "no-such-user", $"there is no user '{user}' of this kind");

    private static DirectoryFault NoTarget(string name) =>
        new(IoStatus.NotFound, "no-such-target", $"there is no configured target '{name}'; pfcli create_target makes one");

    private static DirectoryFault? PortalGroupFault(IReadOnlyList<ushort> groups) =>
        groups.Any(g => g is 0 or > PortalGroupMax) || groups.Distinct().Count() != groups.Count
            ? new(IoStatus.Invalid, "invalid-portal-group", $"portal groups are numbers from 1 to {PortalGroupMax}, each named once", "portalGroups") : null;

    private DirectoryFault? Get(string name, long? revision, out TargetRecord record)
    {
        record = Find(name)!;
        if (record is null) return NoTarget(name);
        return revision is { } wanted && wanted != record.Revision
            ? new(IoStatus.Conflict, "revision-differs", $"the target has revision {record.Revision} now; read it again", "revision") : null;
    }

    private Task<TargetResult> EditAsync(string name, long? revision, Func<TargetRecord, TargetResult> edit) => AloneAsync(async () =>
    {
        if (Get(name, revision, out TargetRecord old) is { } fault) return fault;
        TargetResult wanted = edit(old);
        return wanted.Target is not { } record || ReferenceEquals(record, old) ? wanted : await WriteAsync(record, null);
    });

    private async Task<TargetResult> WriteAsync(TargetRecord record, ChapUserSecret[]? secrets, params MetaChange[] more)
    {
        string key = RecordPrefix + record.Name;
        List<MetaChange> changes = [new(key, JsonSerializer.SerializeToUtf8Bytes(record, TargetRecordJson.Default.TargetRecord)), .. more];
        if (secrets is not null)
            changes.Add(new(SecretPrefix + record.Name, JsonSerializer.SerializeToUtf8Bytes(secrets, TargetRecordJson.Default.ChapUserSecretArray)));
        MetaResult result = await MetaCommit.CommitAsync(meta, [new(key, record.Revision)], changes);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        record = record with { Revision = result.Revision };
        _targets = _targets.SetItem(record.Name, new Entry(record, secrets ?? SecretsOf(record.Name)));
        Changed?.Invoke(record.Name, false);
        return record;
    }

    private async Task<TargetResult> AloneAsync(Func<Task<TargetResult>> change)
    {
        await _change.WaitAsync();
        try
        {
            return await change();
        }
        catch (MetaException e)
        {
            return new DirectoryFault(IoStatus.Unavailable, "metadata-unavailable", e.Message);
        }
        finally
        {
            _change.Release();
        }
    }

    private sealed class Entry(TargetRecord record, IReadOnlyList<ChapUserSecret> secrets)
    {
        public TargetRecord Record { get; } = record;

        public IReadOnlyList<ChapUserSecret> Secrets { get; } = secrets;
    }
}
