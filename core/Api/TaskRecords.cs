namespace BlockServer.Core.Api;

//   GET    /v1/tasks                           TaskList, newest first; ?state= and ?kind= choose
//   GET    /v1/tasks/{id}                      TaskInfo with its history
//   DELETE /v1/tasks/{id}                      204, it is asked to end (409 task-goes-on when it cannot)

/// <summary>The words of <see cref="TaskInfo.State"/>.</summary>
public static class TaskStates
{
    /// <summary>It works.</summary>
    public const string Running = "running";

    /// <summary>It was asked to end and has not yet.</summary>
    public const string Cancelling = "cancelling";

    /// <summary>Done.</summary>
    public const string Succeeded = "succeeded";

    /// <summary>It ended without being done; its code and result say why.</summary>
    public const string Failed = "failed";

    /// <summary>It was asked to end, and did.</summary>
    public const string Cancelled = "cancelled";

    /// <summary>It has not ended.</summary>
    public static bool IsOpen(string state) => state is Running or Cancelling;
}

/// <summary>Something that happened to a task.</summary>
/// <param name="At">When.</param>
/// <param name="Text">A sentence.</param>
public sealed record TaskNote(DateTimeOffset At, string Text);

/// <summary>A long job. It survives a restart of the daemon: a kind that can go on does so under its number, another one has
/// failed with code <c>interrupted</c>.</summary>
/// <param name="Id">Number of the task, never used again.</param>
/// <param name="Kind">scrub, populate, ...</param>
/// <param name="Target">What it works on.</param>
/// <param name="State">running, cancelling, succeeded, failed or cancelled.</param>
/// <param name="Progress">0 to 1.</param>
/// <param name="StartedAt">When it began.</param>
/// <param name="EndedAt">When it ended, or null.</param>
/// <param name="Result">What it found, in a sentence, or why it failed.</param>
/// <param name="Code">Stable word of a failure; null unless it failed.</param>
/// <param name="Unit">What done and total count: bytes, blocks, ...; empty when only the part is known.</param>
/// <param name="Done">So many units are done.</param>
/// <param name="Total">Of so many; 0 when that is not known.</param>
/// <param name="Rate">Units a second lately; null when it is not known.</param>
/// <param name="RemainingSeconds">How long it will still take at that rate; null when it is not known.</param>
/// <param name="Cancellable">DELETE ends it before its end.</param>
/// <param name="VolumeId">The volume that it works on, or null.</param>
/// <param name="History">What happened to it, oldest first, at most 32 notes; null in lists.</param>
public sealed record TaskInfo(
    long Id, string Kind, string Target, string State, double Progress, DateTimeOffset StartedAt,
    DateTimeOffset? EndedAt, string? Result, string? Code = null, string Unit = "", ulong Done = 0, ulong Total = 0,
    double? Rate = null, double? RemainingSeconds = null, bool Cancellable = false, uint? VolumeId = null, IReadOnlyList<TaskNote>? History = null);

/// <summary>Tasks, newest first.</summary>
public sealed record TaskList(IReadOnlyList<TaskInfo> Tasks);
