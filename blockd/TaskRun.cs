using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>What a task is, for <see cref="TaskRegistry.Start"/>.</summary>
/// <param name="Kind">A word: scrub, populate, drain, ...</param>
/// <param name="Subject">What it works on, as the operator calls it. After a restart a task is found again by kind and subject.</param>
/// <param name="VolumeId">The volume that it works on, if it is one: who may not see the volume does not see the task.</param>
/// <param name="Cancellable">False: it is carried through to its end whatever anybody wants, and the task only shows how far it is.</param>
/// <param name="Unit">What <see cref="TaskRun.Report(ulong, ulong)"/> counts; empty when only the part is reported.</param>
/// <param name="Parameters">What must be known to go on after a restart, at most 64 KiB; no secrets.</param>
internal sealed record TaskSpec(
    string Kind, string Subject, uint? VolumeId = null, bool Cancellable = true, string Unit = "", string? Parameters = null);

/// <summary>Why a task failed, with a stable word for programs.</summary>
internal sealed class TaskException(string code, string message, Exception? inner = null) : Exception(message, inner)
{
    /// <summary>The word.</summary>
    public string Code { get; } = code;
}

/// <summary>What the work of one task sees of it. Thread-safe: loops may report too.</summary>
internal sealed class TaskRun
{
    private readonly TaskRegistry _registry;

    internal TaskRun(TaskRegistry registry, TaskRecord record, bool isResumed, CancellationToken cancel) =>
        (_registry, Id, IsResumed, Parameters, Checkpoint, Cancel) = (registry, record.Id, isResumed, record.Parameters, record.Checkpoint, cancel);

    /// <summary>Number of the task.</summary>
    public long Id { get; }

    /// <summary>It began in an earlier run of the daemon.</summary>
    public bool IsResumed { get; }

    /// <summary>What it was begun with.</summary>
    public string? Parameters { get; }

    /// <summary>What <see cref="SaveCheckpoint"/> kept in the earlier run, or null.</summary>
    public string? Checkpoint { get; }

    /// <summary>Fires when the task is to end: it is cancelled, or the daemon stops. The work throws
    /// <see cref="OperationCanceledException"/>; the registry knows which it was.</summary>
    public CancellationToken Cancel { get; }

    /// <summary>So many units are done of so many.</summary>
    public void Report(ulong done, ulong total) => _registry.Report(Id, done, total, total == 0 ? 0 : Math.Min(1, (double)done / total));

    /// <summary>Such a part is done, 0 to 1.</summary>
    public void Report(double part) => _registry.Report(Id, null, null, Math.Clamp(part, 0, 1));

    /// <summary>Keeps how far it is, for the next run of the daemon; returns when that is durable (or the metadata failed: then the
    /// last one that was holds).</summary>
    public Task SaveCheckpoint(string checkpoint) => _registry.SaveCheckpointAsync(Id, checkpoint);

    /// <summary>Writes a sentence into its history.</summary>
    public void Note(string text) => _registry.Note(Id, text);
}
