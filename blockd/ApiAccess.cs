namespace BlockServer.Blockd;

/// <summary>
/// Decides by the table of routes whether a caller may use one for what its path names. What he may not see is answered as what does
/// not exist, in the same words, before anybody looks whether it does.
/// </summary>
internal sealed class ApiAccess(Daemon daemon, Func<string, string?> taskTarget)
{
    /// <summary>Throws the refusal: 403 for the role, 404 for what the caller does not see.</summary>
    public void Check(ApiRoute route, ApiCall call)
    {
        ApiCaller caller = call.Caller;
        if (caller.Role < route.Role)
            throw new ApiException(403, "wrong-role", $"this needs a token of the role {WordOf(route.Role)}; this one is of a {WordOf(caller.Role)}");
        if (!caller.IsConfined || route.Reach is ApiReach.Everybody or ApiReach.Seen) return;
        if (route.Reach == ApiReach.Node)
            throw new ApiException(403, "whole-node", "this concerns the whole node; a token of a tenant or of single volumes is not enough");
        string name = call.Parts[1];
        switch (route.Reach)
        {
            case ApiReach.Volume when !caller.Sees(name):
                throw AdminRoutes.NoVolume(name);
            case ApiReach.Policy when !caller.Owns(name):
                throw new ApiException(404, "no-such-policy", $"there is no policy '{name}'; pfcli list_policy shows all");
            case ApiReach.Target when !SeesTarget(caller, name.ToLowerInvariant()):
                throw TargetRoutes.NoTarget(name);
            case ApiReach.Tenant when caller.Tenant != name:
                throw TenantRoutes.NoTenant(name);
            case ApiReach.Task when taskTarget(name) is not { } target || !Sees(caller, target):
                throw new ApiException(404, "no-such-task", $"there is no task '{name}'");
            case ApiReach.Session when daemon.Sessions.Find(name) is not { } session || !Sees(caller, session):
                throw new ApiException(404, "no-such-session", $"there is no session '{name}'");
        }
    }

    /// <summary>VOLUME, or VOLUME@SNAPSHOT, is of a volume that the caller sees.</summary>
    public static bool Sees(ApiCaller caller, string target) => caller.Sees(target.Split('@')[0]);

    /// <summary>The caller sees every volume that the session reaches.</summary>
    public bool Sees(ApiCaller caller, Session session)
    {
        if (!caller.IsConfined) return true;
        uint[] reached = [.. session.Volumes, .. session.Snapshots.Select(s => s.VolumeId)];
        return reached.Length > 0 && reached.All(id => daemon.Directory.Find(id) is { } volume && caller.Sees(volume.Name));
    }

    /// <summary>The caller sees a target: its volume's own, or one that is named as his.</summary>
    public bool SeesTarget(ApiCaller caller, string iqn)
    {
        if (!caller.IsConfined || daemon.Targets.Find(iqn) is not null) return caller.OwnsTarget(iqn);
        return daemon.Catalog.Find(iqn) is { IsOwn: true } own ? caller.Sees(own.Luns[0].Volume.Name) : caller.OwnsTarget(iqn);
    }

    /// <summary>A role as people and programs say it.</summary>
    public static string WordOf(ApiRole role) => role.ToString().ToLowerInvariant();
}
