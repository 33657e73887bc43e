using System.Text.Json;

namespace BlockServer.Core.Api;

//   GET    /v1/declared                        DeclaredInfo: what is declared, what is, and why they differ
//   PUT    /v1/declared?dryRun=                ApplyDeclared -> DeclaredInfo (412 when the revision differs)
//   DELETE /v1/declared                        204, nothing is declared any more; everything stays as it is

/// <summary>A volume that is to be there. It is made, grown, renamed back and offered as it says; never shrunk, moved or deleted.</summary>
/// <param name="Name">Its name.</param>
/// <param name="SizeBytes">At least so large.</param>
/// <param name="Export">How it is offered; null: as it is.</param>
/// <param name="Description">Free text; null: as it is.</param>
/// <param name="StoreId">The disk that it is made on; null: any.</param>
/// <param name="Thin">Whether it is not promised room for its size; null: as it is, and as the daemon is set up when it is made.</param>
public sealed record DeclaredVolume(
    string Name, ulong SizeBytes, ExportOptions? Export = null, string? Description = null, Guid? StoreId = null, bool? Thin = null);

/// <summary>A unit of a target.</summary>
public sealed record DeclaredLun(int Lun, string Volume, bool ReadOnly = false);

/// <summary>A target that is to be there, with these units and rules and no others. Its CHAP users are not declared, and stay.</summary>
public sealed record DeclaredTarget(
    string Name, IReadOnlyList<DeclaredLun>? Luns = null, IReadOnlyList<AccessRule>? Access = null, bool Enabled = true,
    string? Description = null, IReadOnlyList<int>? PortalGroups = null);

/// <summary>All that is declared. What is not named in it is left alone.</summary>
public sealed record DeclaredState(
    IReadOnlyList<DeclaredVolume>? Volumes = null, IReadOnlyList<DeclaredTarget>? Targets = null, IReadOnlyList<CreatePolicy>? Policies = null);

/// <summary>Names one thing.</summary>
/// <param name="Kind">volume, target or policy.</param>
/// <param name="Name">Its name.</param>
public sealed record DeclaredName(string Kind, string Name);

/// <summary>Declares a state in place of the one before.</summary>
/// <param name="State">The state.</param>
/// <param name="Revision">When given, it is refused (412) unless this one is in force; 0: none.</param>
/// <param name="Prune">To be deleted now, once, unless they are declared. What is in use, and a volume with snapshots, is refused and told.</param>
public sealed record ApplyDeclared(DeclaredState State, long? Revision = null, IReadOnlyList<DeclaredName>? Prune = null);

/// <summary>One declared thing: as it is to be, as it is, and what stands between.</summary>
/// <param name="Kind">volume, target or policy.</param>
/// <param name="Name">Its name.</param>
/// <param name="Status">current, differs (it is being changed), waiting (that failed and is tried again), impossible (by hand only),
/// pruned, or refused (it was to be pruned).</param>
/// <param name="Differences">What is to be done, in sentences.</param>
/// <param name="Reason">Why it is not done.</param>
/// <param name="NextTryAt">When it is tried again.</param>
/// <param name="Desired">As declared; null when it is to go.</param>
/// <param name="Current">As it is; null while it is not there.</param>
public sealed record DeclaredItem(
    string Kind, string Name, string Status, IReadOnlyList<string> Differences, string? Reason, DateTimeOffset? NextTryAt,
    JsonElement? Desired, JsonElement? Current);

/// <summary>The declared state and the real one.</summary>
/// <param name="Revision">Of what is declared; 0: nothing is.</param>
/// <param name="Converged">Everything is as it is declared.</param>
/// <param name="Items">Each thing; at an answer to PUT also what was, or would be, pruned.</param>
/// <param name="Undeclared">What is there and not declared: what <c>prune</c> may name.</param>
public sealed record DeclaredInfo(long Revision, bool Converged, IReadOnlyList<DeclaredItem> Items, IReadOnlyList<DeclaredName> Undeclared);
