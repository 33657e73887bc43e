using System.Text.Json;

namespace BlockServer.Core.Api;

//   GET    /v1/watch?from=&types=&initial=     server-sent events; the data of each is a WatchEvent (docs/api.md)

/// <summary>What is watched.</summary>
public static class WatchTypes
{
    /// <summary><see cref="VolumeInfo"/>, by id.</summary>
    public const string Volume = "volume";

    /// <summary><see cref="SnapshotEntry"/>, by uuid; named VOLUME@SNAPSHOT.</summary>
    public const string Snapshot = "snapshot";

    /// <summary><see cref="TargetInfo"/> of a configured target, by name.</summary>
    public const string Target = "target";

    /// <summary><see cref="PolicyInfo"/>, by name.</summary>
    public const string Policy = "policy";

    /// <summary><see cref="TaskInfo"/>, by number.</summary>
    public const string Task = "task";

    /// <summary><see cref="SessionInfo"/>, by id.</summary>
    public const string Session = "session";

    /// <summary>An entry of the event log, by number.</summary>
    public const string Event = "event";

    /// <summary>All of them.</summary>
    public static readonly IReadOnlyList<string> All = [Volume, Snapshot, Target, Policy, Task, Session, Event];
}

/// <summary>The words of <see cref="WatchEvent.Action"/>.</summary>
public static class WatchActions
{
    /// <summary>It is new or has changed, and is now as the value says.</summary>
    public const string Changed = "changed";

    /// <summary>It is gone.</summary>
    public const string Deleted = "deleted";

    /// <summary>Forget all that is known: everything comes now, as changed.</summary>
    public const string Resync = "resync";

    /// <summary>That was everything; changes follow.</summary>
    public const string Synced = "synced";

    /// <summary>Nothing has happened for a while.</summary>
    public const string Heartbeat = "heartbeat";
}

/// <summary>One event of the watch stream.</summary>
/// <param name="Revision">Grows with every change, also over restarts of the daemon; what <c>from</c> takes.</param>
/// <param name="Action">changed, deleted, resync, synced or heartbeat.</param>
/// <param name="Type">What it is about; empty for the last three.</param>
/// <param name="Key">Which one, for ever.</param>
/// <param name="Name">What it is called.</param>
/// <param name="Reason">Of a resync: <c>start</c>, or <c>gap</c> when what happened since <c>from</c> is not known any more.</param>
/// <param name="Value">The resource as its own GET shows it; null unless changed.</param>
public sealed record WatchEvent(
    long Revision, string Action, string Type = "", string Key = "", string Name = "", string? Reason = null, JsonElement? Value = null);
