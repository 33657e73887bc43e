using System.Globalization;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>The admin API's iSCSI targets. A change is in force, for sessions that go on too, when it is answered.</summary>
internal sealed class TargetRoutes(Daemon daemon, ApiAccess access)
{
    private const int SecretCharactersMin = 12, SecretCharactersMax = 255;

    /// <summary>The handlers by the keys of <see cref="ApiRouteTable"/>.</summary>
    public IReadOnlyDictionary<string, Func<ApiCall, Task>> Handlers => new Dictionary<string, Func<ApiCall, Task>>(StringComparer.Ordinal)
    {
        ["GET portals"] = PortalsAsync,
        ["GET targets"] = c => c.AnswerAsync(new TargetList(List(c)), ApiJson.Default.TargetList),
        ["POST targets"] = CreateAsync,
        ["GET targets/{name}"] = c => c.AnswerAsync(Describe(View(c), c), ApiJson.Default.TargetInfo),
        ["PATCH targets/{name}"] = ChangeAsync,
        ["DELETE targets/{name}"] = DeleteAsync,
        ["POST targets/{name}/luns"] = AddLunAsync,
        ["DELETE targets/{name}/luns/{id}"] = RemoveLunAsync,
        ["POST targets/{name}/access"] = AllowAsync,
        ["DELETE targets/{name}/access"] = DenyAsync,
        ["POST targets/{name}/users"] = AddUserAsync,
        ["DELETE targets/{name}/users/{id}"] = RemoveUserAsync,
        ["GET discovery"] = c => c.AnswerAsync(DescribeDiscovery(), ApiJson.Default.DiscoveryInfo),
        ["POST discovery/users"] = AddDiscoveryUserAsync,
        ["DELETE discovery/users/{id}"] = RemoveDiscoveryUserAsync,
    };

    /// <summary>Why a volume may not be deleted without force: it is a unit of configured targets. Null when it may.</summary>
    public string? UseOf(VolumeRecord volume)
    {
        string[] uses = [.. daemon.Targets.List().SelectMany(t => t.Luns.Where(l => l.VolumeId == volume.Id).Select(l => $"LUN {l.Lun} of {t.Name}"))];
        return uses.Length == 0 ? null : $"the volume is {string.Join(", ", uses)}; remove it there or say force=true";
    }

    /// <summary>Takes a volume out of every configured target.</summary>
    public async Task RemoveVolumeAsync(VolumeRecord volume)
    {
        foreach (TargetRecord target in daemon.Targets.List())
        {
            foreach (TargetLun lun in target.Luns.Where(l => l.VolumeId == volume.Id))
                await AppliedAsync(await daemon.Targets.RemoveLunAsync(target.Name, lun.Lun));
        }
    }

    /// <summary>As <see cref="UseOf(VolumeRecord)"/>, of a snapshot.</summary>
    public string? UseOf(Guid snapshot)
    {
        string[] uses = [.. daemon.Targets.List().SelectMany(t => t.Luns.Where(l => l.Snapshot == snapshot).Select(l => $"LUN {l.Lun} of {t.Name}"))];
        return uses.Length == 0 ? null : $"the snapshot is {string.Join(", ", uses)}; remove it there or say force=true";
    }

    /// <summary>Takes a snapshot out of every configured target, and from who reads it by its own.</summary>
    public async Task RemoveSnapshotAsync(VolumeSnapshot snapshot)
    {
        foreach (TargetRecord target in daemon.Targets.List())
        {
            foreach (TargetLun lun in target.Luns.Where(l => l.Snapshot == snapshot.Info.Uuid))
                await AppliedAsync(await daemon.Targets.RemoveLunAsync(target.Name, lun.Lun));
        }

        daemon.Volumes.ForgetSnapshot(snapshot.Info.Uuid);
    }

    private static string AuthenticationWord(IscsiAuthentication? authentication) =>
        authentication is null ? "none" : authentication.MutualName is null ? "chap" : "mutual-chap";

    private static string NameOf(string text) => IscsiName.TryNormalize(text, out string name) ? name
        : throw new ApiException(
            400, "invalid-target-name", $"'{text}' is no iSCSI name; write iqn.YYYY-MM.REVERSED.DOMAIN:NAME, for instance iqn.2026-11.org.example:disks", "name");

    private static IReadOnlyList<ushort>? GroupsOf(IReadOnlyList<int>? groups)
    {
        if (groups is null) return null;
        if (groups.Any(g => g is < 1 or > TargetDirectory.PortalGroupMax))
            throw new ApiException(400, "invalid-portal-group", $"portal groups are numbers from 1 to {TargetDirectory.PortalGroupMax}, each named once", "portalGroups");
        return [.. groups.Select(g => (ushort)g)];
    }

    private static TargetAccess RuleOf(string initiator, string? address)
    {
        string pattern = IscsiRules.NormalizePattern(initiator) ?? throw new ApiException(
            400, "invalid-initiator", $"'{initiator}' is no initiator name; write a whole name such as iqn.1993-08.org.debian:01:abc, or a pattern with * and ?", "initiator");
        if (address is null) return new TargetAccess(pattern, null);
        string network = IscsiRules.NormalizeNetwork(address) ?? throw new ApiException(
            400, "invalid-address", $"'{address}' is no address and no network; write 10.0.0.7, 10.0.0.0/24 or fd00::/64 (no bits behind the prefix)", "address");
        return new TargetAccess(pattern, network);
    }

    private static ChapUserSecret UserOf(AddChapUser request)
    {
        CheckUser(request.User);
        bool fits = request.Secret.Length is >= SecretCharactersMin and <= SecretCharactersMax;
        foreach (char c in request.Secret) fits &= c is > ' ' and < '\x7f';
        if (!fits)
        {
            throw new ApiException(
                400, "invalid-secret", $"a secret has {SecretCharactersMin} to {SecretCharactersMax} printable ASCII characters without spaces", "secret");
        }

        return new ChapUserSecret(request.User, request.Secret, request.Mutual);
    }

    private static void CheckUser(string user)
    {
        bool fits = user.Length is > 0 and <= 223;
        foreach (char c in user) fits &= char.IsAsciiLetterOrDigit(c) || c is '.' or ':' or '_' or '-' or '@';
        if (!fits) throw new ApiException(400, "invalid-user", "a user has 1 to 223 letters, digits and . : _ - @", "user");
    }

    private static TargetRecord Must(TargetResult result)
    {
        if (result.Fault is not { } fault) return result.Target!;
        int status = fault.Code == "revision-differs" ? 412 : fault.Status switch
        {
            IoStatus.Invalid => 400,
            IoStatus.NotFound => 404,
            IoStatus.Conflict => 409,
            _ => 503,
        };
        throw new ApiException(status, fault.Code, fault.Detail, fault.Field);
    }

    private async Task<TargetRecord> AppliedAsync(TargetResult result)
    {
        TargetRecord record = Must(result);
        await daemon.ServedTargets.ApplyAsync(record.Name);
        return record;
    }

    private TargetView View(ApiCall call) => daemon.Catalog.Find(call.Parts[1].ToLowerInvariant())
        ?? throw NoTarget(call.Parts[1]);

    /// <summary>What is answered when there is no such target, or none that the caller sees.</summary>
    public static ApiException NoTarget(string name) => new(404, "no-such-target", $"there is no target '{name}'; pfcli list_target shows all");

    /// <summary>The name of a configured target.</summary>
    private string Configured(ApiCall call)
    {
        TargetView view = View(call);
        return !view.IsOwn ? view.Name : throw new ApiException(
            409, "own-target", $"'{view.Name}' is the own target of volume '{view.Luns[0].Volume.Name}', which everybody may use; to set rules, make one with create_target and add_lun the volume");
    }

    /// <summary>The targets that a caller sees, as he sees them.</summary>
    public IReadOnlyList<TargetInfo> List(ApiCall call) =>
        [.. daemon.Catalog.List().Where(v => access.SeesTarget(call.Caller, v.Name)).Select(v => Describe(v, call))];

    private TargetInfo Describe(TargetView view, ApiCall call)
    {
        TargetRecord? record = view.IsOwn ? null : daemon.Targets.Find(view.Name);
        return new TargetInfo(
            view.Name, view.IsOwn ? "own" : "configured", view.Enabled, record?.Description,
            [.. view.Luns.Where(l => call.Sees(l.Volume.Name)).Select(l => new LunInfo(l.Lun, l.Name, l.SnapshotName is not null || l.ReadOnly || l.Volume.Export.ReadOnly, daemon.ServedTargets.FaultOf(l)))],
            [.. view.PortalGroups.Select(g => (int)g)], [.. view.Access.Select(a => new AccessRule(a.Initiator, a.Address))],
            AuthenticationWord(view.Authentication), record?.Users ?? [], record?.MutualUser, daemon.Sessions.CountOf(view.Name), record?.Revision ?? 0);
    }

    private DiscoveryInfo DescribeDiscovery()
    {
        TargetRecord? record = daemon.Targets.Find(TargetDirectory.Discovery);
        return new DiscoveryInfo(AuthenticationWord(daemon.Catalog.Discovery), record?.Users ?? [], record?.MutualUser);
    }

    private Task AnswerAsync(ApiCall call, string name, int status = 200) =>
        call.AnswerAsync(Describe(daemon.Catalog.Find(name)!, call), ApiJson.Default.TargetInfo, status);

    private Task PortalsAsync(ApiCall call) => call.AnswerAsync(
        new PortalList([.. daemon.Catalog.Portals.Select(p => new PortalInfo(p.EndPoint.ToString(), p.Group, p.IsLocal))]), ApiJson.Default.PortalList);

    private async Task CreateAsync(ApiCall call)
    {
        CreateTarget request = await call.ReadAsync(ApiJson.Default.CreateTarget);
        string name = NameOf(request.Name);
        call.About(name);
        if (!call.Caller.OwnsTarget(name)) throw call.NotYours("name");
        if (daemon.Catalog.Find(name) is { IsOwn: true } own)
        {
            throw new ApiException(
                409, "target-exists", $"'{name}' is the own target of volume '{own.Luns[0].Volume.Name}'; choose another name, or unexport the volume first", "name");
        }

        TargetRecord made = Must(await daemon.Targets.CreateAsync(name, request.Description, GroupsOf(request.PortalGroups) ?? [], request.Enabled));
        await AnswerAsync(call, made.Name, 201);
    }

    private async Task ChangeAsync(ApiCall call)
    {
        string name = Configured(call);
        ChangeTarget change = await call.ReadAsync(ApiJson.Default.ChangeTarget);
        await AppliedAsync(await daemon.Targets.ChangeAsync(name, change.Revision, change.Enabled, change.Description, GroupsOf(change.PortalGroups)));
        await AnswerAsync(call, name);
    }

    private async Task DeleteAsync(ApiCall call)
    {
        string name = Configured(call);
        int sessions = daemon.Sessions.CountOf(name);
        if (sessions > 0 && !call.QueryFlag("force"))
            throw new ApiException(409, "target-in-use", $"{sessions} initiators are attached; log them out or say force=true");
        await AppliedAsync(await daemon.Targets.DeleteAsync(name, call.QueryNumber("revision")));
        await call.AnswerNothingAsync();
    }

    private async Task AddLunAsync(ApiCall call)
    {
        string name = Configured(call);
        AddLun request = await call.ReadAsync(ApiJson.Default.AddLun);
        call.About(request.Volume);
        string[] parts = request.Volume.Split('@', 2);
        VolumeRecord volume = (call.Sees(parts[0]) ? daemon.Directory.Find(parts[0]) : null) ?? throw AdminRoutes.NoVolume(parts[0], "volume");
        SnapshotInfo? snapshot = parts.Length == 1 ? null
            : (await daemon.Directory.SnapshotsAsync(volume)).Snapshots.FirstOrDefault(s => s.Info.Name == parts[1])?.Info
                ?? throw new ApiException(404, "no-such-snapshot", $"'{volume.Name}' has no snapshot '{parts[1]}'", "volume");
        bool withdraws = volume.Export.Iscsi && !request.KeepOwnTarget && snapshot is null;
        string ownName = daemon.Catalog.OwnNameOf(volume);
        int attached = withdraws ? daemon.Sessions.CountOf(ownName) : 0;
        if (attached > 0 && !request.Force)
        {
            throw new ApiException(
                409, "volume-in-use", $"{attached} initiators are attached to the volume's own target, which goes; log them out, keep it (keepOwnTarget) or say force", "volume");
        }

        await AppliedAsync(await daemon.Targets.AddLunAsync(name, volume.Id, request.Lun, request.ReadOnly || snapshot is not null, snapshot?.Uuid, snapshot?.Name));
        if (withdraws)
        {
            // Not before the volume is in its place: what cannot be added changes nothing.
            DirectoryResult withdrawn = await daemon.Directory.ChangeAsync(volume.Name, new ChangeVolume(Export: volume.Export with { Iscsi = false }));
            if (withdrawn.Fault is { } fault)
            {
                throw new ApiException(
                    503, fault.Code, $"the volume is a LUN of the target now, but its own target could not be withdrawn ({fault.Detail}); pfcli unexport_volume --iscsi");
            }

            await daemon.ServedTargets.CutAllAsync(IscsiCatalog.OwnPrefix + volume.Id.ToString(CultureInfo.InvariantCulture), "the volume moved to another target");
        }

        await AnswerAsync(call, name, 201);
    }

    private async Task RemoveLunAsync(ApiCall call)
    {
        string name = Configured(call);
        bool isForced = call.QueryFlag("force");
        if (!int.TryParse(call.Parts[3], NumberStyles.None, CultureInfo.InvariantCulture, out int lun))
            throw new ApiException(404, "no-such-lun", $"'{call.Parts[3]}' is no LUN");
        TargetRecord target = daemon.Targets.Find(name)!;
        int sessions = daemon.Sessions.CountOf(name);
        if (sessions > 0 && !isForced && target.Luns.Any(l => l.Lun == lun))
            throw new ApiException(409, "target-in-use", $"{sessions} initiators are attached and would lose the LUN; say force=true");
        await AppliedAsync(await daemon.Targets.RemoveLunAsync(name, lun));
        await call.AnswerNothingAsync();
    }

    private async Task AllowAsync(ApiCall call)
    {
        string name = Configured(call);
        AccessRule rule = await call.ReadAsync(ApiJson.Default.AccessRule);
        await AppliedAsync(await daemon.Targets.AllowAsync(name, RuleOf(rule.Initiator, rule.Address)));
        await AnswerAsync(call, name, 201);
    }

    private async Task DenyAsync(ApiCall call)
    {
        string name = Configured(call);
        await AppliedAsync(await daemon.Targets.DenyAsync(name, RuleOf(call.Query("initiator") ?? "*", call.Query("address"))));
        await call.AnswerNothingAsync();
    }

    private async Task AddUserAsync(ApiCall call)
    {
        string name = Configured(call);
        await AppliedAsync(await daemon.Targets.AddUserAsync(name, UserOf(await call.ReadAsync(ApiJson.Default.AddChapUser))));
        await AnswerAsync(call, name, 201);
    }

    private async Task RemoveUserAsync(ApiCall call)
    {
        string name = Configured(call);
        await AppliedAsync(await daemon.Targets.RemoveUserAsync(name, call.Parts[3], call.QueryFlag("mutual")));
        await call.AnswerNothingAsync();
    }

    private async Task AddDiscoveryUserAsync(ApiCall call)
    {
        Must(await daemon.Targets.AddUserAsync(TargetDirectory.Discovery, UserOf(await call.ReadAsync(ApiJson.Default.AddChapUser))));
        await call.AnswerAsync(DescribeDiscovery(), ApiJson.Default.DiscoveryInfo, 201);
    }

    private async Task RemoveDiscoveryUserAsync(ApiCall call)
    {
        Must(await daemon.Targets.RemoveUserAsync(TargetDirectory.Discovery, call.Parts[2], call.QueryFlag("mutual")));
        await call.AnswerNothingAsync();
    }
}
