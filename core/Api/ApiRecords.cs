using System.Text.Json.Serialization;

namespace BlockServer.Core.Api;

// The admin API's resources, spoken by blockd and pfcli. JSON names are camelCase and stable; sizes are bytes, times are
// ISO 8601 UTC, enums are lower-case words.
//
//   GET    /v1/version                         VersionInfo
//   GET    /v1/node                            NodeInfo
//   GET    /v1/volumes                         VolumeList
//   POST   /v1/volumes                         CreateVolume -> 201 VolumeInfo
//   GET    /v1/volumes/{name}                  VolumeInfo (404 when there is none)
//   PATCH  /v1/volumes/{name}                  ChangeVolume -> VolumeInfo (412 when the revision differs)
//   DELETE /v1/volumes/{name}?id=..&revision=..  204 (412 when id or revision differ, 409 while in use without force=true,
//                                              or with snapshots without snapshots=true)
//   POST   /v1/volumes/{name}/scrub            ScrubRequest -> 202 TaskInfo
//   DELETE /v1/volumes/{name}/reservations     204, every reservation and registration of the volume ends
//   snapshots and clones: SnapshotRecords.cs; policies: PolicyRecords.cs; streams: StreamRecords.cs; tokens and tenants:
//   AccessRecords.cs
//   GET    /v1/disks                           DiskList
//   POST   /v1/disks                           AddDisk -> 201 DiskInfo
//   DELETE /v1/disks/{id}                      204 (409 while volumes lie on it without force=true)
//   GET    /v1/capacity                        CapacityInfo (CapacityRecords.cs)
//   GET    /v1/sessions                        SessionList
//   DELETE /v1/sessions/{id}                   204, the session is cut
//   GET    /v1/portals                         PortalList
//   GET    /v1/targets, POST /v1/targets       TargetList; CreateTarget -> 201 TargetInfo
//   GET, PATCH, DELETE /v1/targets/{name}      TargetInfo, ChangeTarget (TargetRecords.cs)
//   POST   /v1/targets/{name}/luns, /access, /users   AddLun, AccessRule, AddChapUser -> TargetInfo; DELETE takes each away
//   GET    /v1/discovery, POST /v1/discovery/users    DiscoveryInfo
//   GET    /v1/stats                           StatsInfo (counters since start; a client computes rates)
//   GET    /v1/events                          EventList (EventRecords.cs)
//   tasks: TaskRecords.cs; watch: WatchRecords.cs; declared state: DeclaredRecords.cs
//   GET    /v1/openapi.json                    the OpenAPI document
//   GET    /healthz, /readyz                   200 "ok", or 503 with what is the matter, without a token (Host rules still hold)
//   GET    /metrics                            text for Prometheus, with a token
//
// Every answer but 2xx is application/problem+json: ApiProblem.

/// <summary>An error answer (RFC 9457). <see cref="Code"/> is stable and for programs, <see cref="Detail"/> is for people
/// and says what to do.</summary>
public sealed record ApiProblem(string Type, string Title, int Status, string Code, string? Detail, string? Field);

/// <summary>Which daemon answers.</summary>
public sealed record VersionInfo(string Product, string Version, string ApiVersion);

/// <summary>The node: where it listens, what it runs on.</summary>
public sealed record NodeInfo(
    string Id, string Version, string DataDir, string Engine, string Durability, DateTimeOffset StartedAt,
    IReadOnlyList<ListenerInfo> Listeners, IReadOnlyList<string> Warnings);

/// <summary>One listening address.</summary>
public sealed record ListenerInfo(string Protocol, string Address, bool Tls, bool Insecure);

/// <summary>How a volume is offered.</summary>
/// <param name="Nbd">Offered over NBD.</param>
/// <param name="Iscsi">Offered over iSCSI.</param>
/// <param name="ReadOnly">Every front end refuses changes.</param>
/// <param name="Removable">Over iSCSI it is a medium that can be ejected.</param>
/// <param name="Thick">All blocks are allocated (a task does that) and none is given back: trims change nothing.</param>
/// <param name="BlockBytes">Logical block over iSCSI: 512 or 4096, of which the size must be a multiple.</param>
/// <param name="NbdIgnoresReservations">NBD clients read and write whatever is reserved over iSCSI.</param>
/// <param name="NbdClients">Which NBD clients may use the volume and see it listed: patterns over the subject of their certificate,
/// and <c>unix</c> for who comes by a unix socket, separated by semicolons. Null: everybody whom the listener lets in.</param>
public sealed record ExportOptions(
    bool Nbd = true, bool Iscsi = true, bool ReadOnly = false, bool Removable = false, bool Thick = false, int BlockBytes = 512,
    bool NbdIgnoresReservations = false, string? NbdClients = null);

/// <summary>Who is registered with a volume over iSCSI. <paramref name="Port"/> is the relative identifier of the target port,
/// <paramref name="Key"/> the reservation key in hexadecimal.</summary>
public sealed record RegistrantInfo(string Initiator, int Port, string Key, bool Holder, bool Attached);

/// <summary>Who has reserved a volume over iSCSI.</summary>
/// <param name="Type">none (there are registrations only), reserve-6, a type of persistent reservation such as write-exclusive, or unknown.</param>
/// <param name="Holder">Initiator port that holds it; null when all registrants do, or none.</param>
/// <param name="Persistent">It survives a restart (APTPL).</param>
/// <param name="Generation">Counts changes of the registrations since the start.</param>
/// <param name="Registrants">Who is registered.</param>
/// <param name="Fault">Why it is unknown; the volume is not served then.</param>
public sealed record ReservationInfo(
    string Type, string? Holder, bool Persistent, long Generation, IReadOnlyList<RegistrantInfo> Registrants, string? Fault = null);

/// <summary>A volume. Its status is <c>online</c>, <c>initializing</c> (a stream comes into it or it is being populated, and nobody may attach it; a reason says why that does not go on), or
/// <c>unavailable</c> with the reason. <paramref name="Reservation"/> is null while nobody has reserved it or registered with it.
/// <paramref name="Base"/> is the snapshot that it was cloned from and still shares blocks with, as VOLUME@SNAPSHOT; while
/// <paramref name="Flattening"/> it copies them. <paramref name="Import"/> is null unless a stream comes into it or was interrupted.
/// An <paramref name="Image"/> never changes its content. Bytes are only added at the end of an <paramref name="AppendOnly"/> volume,
/// of which the size is the maximum, and none to a <paramref name="Sealed"/> one.
/// <paramref name="Qos"/> is null without limits. A <paramref name="Thin"/> one takes what is written, as long as there is room; the
/// others were promised room for their size.</summary>
public sealed record VolumeInfo(
    uint Id, Guid Uuid, string Name, ulong SizeBytes, ulong UsedBytes, int RepCount, string Status,
    ExportOptions Export, string? Description, Guid StoreId, int Sessions, long Revision, DateTimeOffset CreatedAt,
    string? FailReason = null, ReservationInfo? Reservation = null, string? Base = null, bool Flattening = false, int Snapshots = 0,
    ImportInfo? Import = null, bool Image = false, bool AppendOnly = false, bool Sealed = false, QosLimits? Qos = null, bool Thin = false);

/// <summary>All volumes, by name.</summary>
public sealed record VolumeList(IReadOnlyList<VolumeInfo> Volumes);

/// <summary>Asks for a volume. <see cref="IdempotencyKey"/>: repeating the same request with the same key answers the same
/// volume instead of a conflict. <see cref="AppendOnly"/>: bytes are only added at its end, up to the size. <see cref="Thin"/>: it is
/// not promised room for its size; null is as the daemon is set up, and true when it is append-only.</summary>
public sealed record CreateVolume(
    string Name, ulong SizeBytes, int RepCount = 1, ExportOptions? Export = null, string? Description = null,
    Guid? StoreId = null, string? IdempotencyKey = null, bool AppendOnly = false, QosLimits? Qos = null, bool? Thin = null);

/// <summary>Changes a volume; null leaves as it is.</summary>
/// <param name="Revision">When given, the change is refused (412) unless the volume still has this revision.</param>
/// <param name="Name">New name; refused when taken.</param>
/// <param name="SizeBytes">New size. A smaller one is refused unless nothing is allocated beyond it and <paramref name="Force"/>.</param>
/// <param name="Force">Confirms a shrink.</param>
/// <param name="Export">New export options, all of them.</param>
/// <param name="Description">New description.</param>
/// <param name="Image">True makes the volume an image, read-only for ever: refused while clients are attached, and never taken back.</param>
/// <param name="Qos">New limits, all of them; they hold at once for who is attached. All 0 takes them away.</param>
/// <param name="Thin">False promises it room for its size, true takes that back.</param>
public sealed record ChangeVolume(
    long? Revision = null, string? Name = null, ulong? SizeBytes = null, bool Force = false,
    ExportOptions? Export = null, string? Description = null, bool? Image = null, QosLimits? Qos = null, bool? Thin = null);

/// <summary>A disk, that is one store. Its status is <c>online</c>, <c>failed</c> (stopped by an error), <c>missing</c> (not where
/// it was) or <c>refused</c> (there, and not fit to be served); all but the first come with a reason. The figures of a disk
/// that is not open are 0. Bad blocks are those of 4 KiB that the disk did not take or keep, and that are never used again.
/// Scattered extents are the MiB of volumes that are to be laid out anew; relaid bytes were written for that since the disk was
/// opened. While it is <paramref name="Draining"/> nothing new is placed there. Its <paramref name="Health"/> is <c>good</c>,
/// <c>failing</c> (it answered errors, or gave wrong data), <c>hung</c> (it does not answer) or <c>failed</c>.</summary>
public sealed record DiskInfo(
    Guid Id, string Name, string Path, string Kind, string Status, ulong SizeBytes, ulong DataBytes, ulong UsedBytes,
    ulong FreeBytes, ulong MetadataSlots, ulong MetadataSlotsUsed, ulong MetadataResidentBytes, int Volumes,
    ulong ChecksumErrors, ulong IoErrors, ulong BlocksBad, double RingOccupancy, string? FailReason,
    ulong ScatteredExtents = 0, ulong RelaidBytes = 0, bool Draining = false, string Health = "good");

/// <summary>All disks.</summary>
public sealed record DiskList(IReadOnlyList<DiskInfo> Disks);

/// <summary>Adds a file or raw device as a store. One that carries a store of this cluster is attached as it is, with its
/// volumes; a blank one is formatted; anything else is refused unless <paramref name="Force"/>.</summary>
/// <param name="Path">Absolute path.</param>
/// <param name="Name">The operator's name for it; default: made from the path.</param>
/// <param name="SizeBytes">For a file that does not exist yet: how large to make it.</param>
/// <param name="Force">Overwrite whatever the device holds.</param>
public sealed record AddDisk(string Path, string? Name = null, ulong? SizeBytes = null, bool Force = false);

/// <summary>One client attached to a volume, or over iSCSI to a <paramref name="Target"/> with several: their names with commas.</summary>
public sealed record SessionInfo(
    string Id, string Protocol, string Volume, string Peer, string Listener, bool Tls, string? Identity,
    DateTimeOffset Since, ulong ReadOps, ulong ReadBytes, ulong WriteOps, ulong WriteBytes, int InFlight, string? Target = null);

/// <summary>All sessions.</summary>
public sealed record SessionList(IReadOnlyList<SessionInfo> Sessions);

/// <summary>Counters of one volume since it was opened. Latency sums are nanoseconds from request to reply; the
/// histogram's bucket i counts operations of less than 2^i microseconds (and at least 2^(i-1)). Of the sums the queue's are what
/// operations waited to be let in (limits, other volumes of the disk); the rest is the device's.</summary>
public sealed record VolumeStats(
    string Volume, ulong ReadOps, ulong ReadBytes, ulong WriteOps, ulong WriteBytes, ulong FlushOps, ulong TrimOps,
    ulong Errors, ulong ReadNanos, ulong WriteNanos, IReadOnlyList<ulong> ReadHistogram, IReadOnlyList<ulong> WriteHistogram,
    ulong ReadQueueNanos = 0, ulong WriteQueueNanos = 0);

/// <summary>Counters of everything, taken at one moment.</summary>
public sealed record StatsInfo(DateTimeOffset At, double UptimeSeconds, double CpuSeconds, IReadOnlyList<VolumeStats> Volumes);

/// <summary>Asks for a scrub.</summary>
public sealed record ScrubRequest(ulong BytesPerSecond = 0);

/// <summary>Source-generated JSON of the admin API: no reflection at run time, unknown members refused.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
    DefaultIgnoreCondition = JsonIgnoreCondition.Never,
    AllowDuplicateProperties = false,
    RespectNullableAnnotations = true,
    RespectRequiredConstructorParameters = true,
    MaxDepth = 32)]
[JsonSerializable(typeof(AofInfo))]
[JsonSerializable(typeof(AofList))]
[JsonSerializable(typeof(OpenAof))]
[JsonSerializable(typeof(RenameAof))]
[JsonSerializable(typeof(SealAof))]
[JsonSerializable(typeof(AppendAnswerInfo))]
[JsonSerializable(typeof(AppendSummary))]
[JsonSerializable(typeof(ApiProblem))]
[JsonSerializable(typeof(VersionInfo))]
[JsonSerializable(typeof(NodeInfo))]
[JsonSerializable(typeof(VolumeInfo))]
[JsonSerializable(typeof(VolumeList))]
[JsonSerializable(typeof(CreateVolume))]
[JsonSerializable(typeof(ChangeVolume))]
[JsonSerializable(typeof(SnapshotEntry))]
[JsonSerializable(typeof(SnapshotList))]
[JsonSerializable(typeof(CreateSnapshot))]
[JsonSerializable(typeof(RollbackSnapshot))]
[JsonSerializable(typeof(RollbackInfo))]
[JsonSerializable(typeof(RollbackTogether))]
[JsonSerializable(typeof(RollbackTogetherInfo))]
[JsonSerializable(typeof(CloneVolume))]
[JsonSerializable(typeof(FlattenVolume))]
[JsonSerializable(typeof(PolicyInfo))]
[JsonSerializable(typeof(PolicyList))]
[JsonSerializable(typeof(CreatePolicy))]
[JsonSerializable(typeof(ChangePolicy))]
[JsonSerializable(typeof(DiffInfo))]
[JsonSerializable(typeof(DiskInfo))]
[JsonSerializable(typeof(DiskList))]
[JsonSerializable(typeof(CapacityInfo))]
[JsonSerializable(typeof(PortalList))]
[JsonSerializable(typeof(TargetList))]
[JsonSerializable(typeof(TargetInfo))]
[JsonSerializable(typeof(CreateTarget))]
[JsonSerializable(typeof(ChangeTarget))]
[JsonSerializable(typeof(AddLun))]
[JsonSerializable(typeof(AccessRule))]
[JsonSerializable(typeof(AddChapUser))]
[JsonSerializable(typeof(DiscoveryInfo))]
[JsonSerializable(typeof(AddDisk))]
[JsonSerializable(typeof(AuditEntry))]
[JsonSerializable(typeof(AuditList))]
[JsonSerializable(typeof(DeniedInfo))]
[JsonSerializable(typeof(DeniedList))]
[JsonSerializable(typeof(Deny))]
[JsonSerializable(typeof(TokenList))]
[JsonSerializable(typeof(TokenInfo))]
[JsonSerializable(typeof(CreateToken))]
[JsonSerializable(typeof(TokenCreated))]
[JsonSerializable(typeof(TenantList))]
[JsonSerializable(typeof(TenantInfo))]
[JsonSerializable(typeof(CreateTenant))]
[JsonSerializable(typeof(ChangeTenant))]
[JsonSerializable(typeof(MoveVolume))]
[JsonSerializable(typeof(DrainDisk))]
[JsonSerializable(typeof(Rebalance))]
[JsonSerializable(typeof(BadBlockList))]
[JsonSerializable(typeof(SessionList))]
[JsonSerializable(typeof(StatsInfo))]
[JsonSerializable(typeof(EventList))]
[JsonSerializable(typeof(ScrubRequest))]
[JsonSerializable(typeof(TaskInfo))]
[JsonSerializable(typeof(ImportInfo))]
[JsonSerializable(typeof(ExportSummary))]
[JsonSerializable(typeof(TaskList))]
[JsonSerializable(typeof(WatchEvent))]
[JsonSerializable(typeof(ApplyDeclared))]
[JsonSerializable(typeof(DeclaredInfo))]
public sealed partial class ApiJson : JsonSerializerContext;
