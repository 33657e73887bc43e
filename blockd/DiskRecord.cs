using System.Text.Json.Serialization;

namespace BlockServer.Blockd;

/// <summary>What the metadata say about a disk; the value of <c>disk/UUID</c>.</summary>
/// <param name="Path">Where it was found last.</param>
/// <param name="Name">The operator's name.</param>
/// <param name="IsRemoved">Taken out of service by the operator: not served again until it is added again, even when its
/// file lies in the data directory.</param>
/// <param name="IsDraining">It is being emptied, or is empty because it was: nothing new is placed there.</param>
internal sealed record DiskRecord(string Path, string Name, bool IsRemoved = false, bool IsDraining = false);

[JsonSerializable(typeof(DiskRecord))]
internal sealed partial class DiskRecordJson : JsonSerializerContext;

/// <summary>A disk that belongs to this node and is not in service.</summary>
/// <param name="Id">Identity of its store.</param>
/// <param name="Name">The operator's name.</param>
/// <param name="Path">Where it should be.</param>
/// <param name="State"><c>missing</c>: not there. <c>refused</c>: there, and not fit to be served.</param>
/// <param name="Reason">A sentence that says why and what to do.</param>
internal sealed record AbsentDisk(Guid Id, string Name, string Path, string State, string Reason);
