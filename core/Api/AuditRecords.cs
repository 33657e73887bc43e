namespace BlockServer.Core.Api;

// What was done and refused, and who is denied: GET /v1/audit; GET, POST, DELETE /v1/denied.

/// <summary>One call of the admin API that changed something, or was refused.</summary>
/// <param name="Sequence">Counts up, across restarts.</param>
/// <param name="At">When it was answered.</param>
/// <param name="Caller">Id of the token; <c>admin</c> is the one of the data directory, <c>-</c> nobody's.</param>
/// <param name="From">Address of the client, or unix.</param>
/// <param name="Method">HTTP method.</param>
/// <param name="Path">Path, without the query.</param>
/// <param name="Subject">What the body named, or null.</param>
/// <param name="Status">HTTP status of the answer; 499: the client was gone before it.</param>
/// <param name="Code">The refusal's code, or null.</param>
public sealed record AuditEntry(
    long Sequence, DateTimeOffset At, string Caller, string From, string Method, string Path, string? Subject, int Status, string? Code);

/// <summary>Entries, newest first.</summary>
public sealed record AuditList(IReadOnlyList<AuditEntry> Entries);

/// <summary>Somebody who is kept out.</summary>
/// <param name="Kind">initiator, address or token.</param>
/// <param name="Value">Name of an initiator (* and ? stand for any), address or network, or id of a token.</param>
/// <param name="Reason">The operator's words.</param>
/// <param name="CreatedAt">Since when.</param>
/// <param name="Cut">How many connections were cut by it; only in the answer to the denial.</param>
public sealed record DeniedInfo(string Kind, string Value, string? Reason, DateTimeOffset CreatedAt, int? Cut = null);

/// <summary>All who are denied.</summary>
public sealed record DeniedList(IReadOnlyList<DeniedInfo> Denied);

/// <summary>Keeps somebody out: what is open is cut at once, what comes is refused.</summary>
/// <param name="Kind">initiator, address or token.</param>
/// <param name="Value">Name of an initiator (* and ? stand for any), address or network (CIDR), or id of a token.</param>
/// <param name="Reason">Free text.</param>
public sealed record Deny(string Kind, string Value, string? Reason = null);
