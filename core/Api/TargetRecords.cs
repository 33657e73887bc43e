namespace BlockServer.Core.Api;

// iSCSI targets as the admin API shows and takes them. Secrets are taken and never shown.

/// <summary>An address at which iSCSI is served.</summary>
/// <param name="Address">ADDRESS:PORT.</param>
/// <param name="Group">Tag of its portal group.</param>
/// <param name="Local">Only this machine reaches it; elsewhere targets without CHAP are refused.</param>
public sealed record PortalInfo(string Address, int Group, bool Local);

/// <summary>All portals.</summary>
public sealed record PortalList(IReadOnlyList<PortalInfo> Portals);

/// <summary>A volume as a logical unit. <paramref name="Fault"/>: why initiators do not see it, or null.</summary>
public sealed record LunInfo(int Lun, string Volume, bool ReadOnly, string? Fault = null);

/// <summary>A rule that lets initiators in.</summary>
/// <param name="Initiator">Name, with * and ? as wildcards.</param>
/// <param name="Address">Address or network (CIDR) that they must come from; null: any.</param>
public sealed record AccessRule(string Initiator = "*", string? Address = null);

/// <summary>A target.</summary>
/// <param name="Name">IQN.</param>
/// <param name="Kind">own: of one volume, made by exporting it; configured: made by create_target.</param>
/// <param name="Enabled">Initiators may log in.</param>
/// <param name="Description">The operator's words.</param>
/// <param name="Luns">Its units.</param>
/// <param name="PortalGroups">Where it is offered; empty: everywhere.</param>
/// <param name="Access">Who may log in; empty: nobody.</param>
/// <param name="Authentication">none, chap or mutual-chap.</param>
/// <param name="Users">CHAP users of its own; without any those of --iscsi-chap hold.</param>
/// <param name="MutualUser">Name by which it proves itself, if it has one of its own.</param>
/// <param name="Sessions">Connections of initiators.</param>
/// <param name="Revision">For changes; 0 for a volume's own target.</param>
public sealed record TargetInfo(
    string Name, string Kind, bool Enabled, string? Description, IReadOnlyList<LunInfo> Luns, IReadOnlyList<int> PortalGroups,
    IReadOnlyList<AccessRule> Access, string Authentication, IReadOnlyList<string> Users, string? MutualUser, int Sessions, long Revision);

/// <summary>All targets, by name.</summary>
public sealed record TargetList(IReadOnlyList<TargetInfo> Targets);

/// <summary>Asks for a target; nobody may log in until a rule lets them.</summary>
public sealed record CreateTarget(string Name, string? Description = null, IReadOnlyList<int>? PortalGroups = null, bool Enabled = true);

/// <summary>Changes a target; null leaves as it is.</summary>
/// <param name="Revision">When given, the change is refused (412) unless the target still has this revision.</param>
/// <param name="Enabled">False: sessions end and nobody logs in.</param>
/// <param name="Description">New description.</param>
/// <param name="PortalGroups">New list; empty: all.</param>
public sealed record ChangeTarget(
    long? Revision = null, bool? Enabled = null, string? Description = null, IReadOnlyList<int>? PortalGroups = null);

/// <summary>Makes a volume a unit of a target.</summary>
/// <param name="Volume">Its name; <c>VOLUME@SNAPSHOT</c> for a snapshot, which is write-protected.</param>
/// <param name="Lun">0 to 16383; null: the first that is free.</param>
/// <param name="ReadOnly">Changes that come by this target are refused.</param>
/// <param name="KeepOwnTarget">The volume keeps its own target beside this one; else it is withdrawn, or the rules of this
/// target could be gone around.</param>
/// <param name="Force">Also while initiators are attached to the volume's own target, which is withdrawn.</param>
public sealed record AddLun(string Volume, int? Lun = null, bool ReadOnly = false, bool KeepOwnTarget = false, bool Force = false);

/// <summary>Adds a CHAP user.</summary>
/// <param name="User">1 to 223 of letters, digits and . : _ - @.</param>
/// <param name="Secret">12 to 255 printable ASCII characters. Never shown again.</param>
/// <param name="Mutual">By it the target proves itself to initiators.</param>
public sealed record AddChapUser(string User, string Secret, bool Mutual = false)
{
    /// <summary>Without the secret, wherever it is written.</summary>
    public override string ToString() => $"{nameof(AddChapUser)} {User}";
}

/// <summary>Who may discover targets.</summary>
/// <param name="Authentication">none, chap or mutual-chap.</param>
/// <param name="Users">CHAP users of discovery; without any those of --iscsi-chap hold.</param>
/// <param name="MutualUser">Name by which we prove ourselves.</param>
public sealed record DiscoveryInfo(string Authentication, IReadOnlyList<string> Users, string? MutualUser);
