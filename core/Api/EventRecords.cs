namespace BlockServer.Core.Api;

// Events, spoken by blockd and pfcli:
//
//   GET /v1/events?open=&since=&severity=&limit=   EventList, newest first

/// <summary>Something that an operator should know. A fault is open until it is over; everything else has happened once.</summary>
/// <param name="Id">Number of the event; grows, also over restarts.</param>
/// <param name="Change">Grows with every event and every change of one: what is larger than the largest seen is new.</param>
/// <param name="Code">Stable word; docs/events.md describes each.</param>
/// <param name="Severity">info, warning, error or critical.</param>
/// <param name="Subject">What it is about: a disk, volume, policy or listener by its name.</param>
/// <param name="Detail">What happened, in a sentence.</param>
/// <param name="RaisedAt">When.</param>
/// <param name="ClearedAt">When a fault was over; null: it is open, or it is no fault.</param>
/// <param name="Fault">It is over some day.</param>
/// <param name="Cause">What leads to events of this code.</param>
/// <param name="Advice">What to do.</param>
public sealed record EventInfo(
    long Id, long Change, string Code, string Severity, string Subject, string Detail, DateTimeOffset RaisedAt, DateTimeOffset? ClearedAt,
    bool Fault, string Cause, string Advice)
{
    /// <summary>A fault that is not over.</summary>
    [System.Text.Json.Serialization.JsonIgnore]
    public bool IsOpen => Fault && ClearedAt is null;
}

/// <summary>Events, newest first.</summary>
public sealed record EventList(IReadOnlyList<EventInfo> Events);
