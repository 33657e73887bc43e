using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>A task as the metadata keep it: the value of <c>task/ID</c>. What the daemon adds while it runs (rate, remaining time)
/// is not kept.</summary>
/// <param name="Id">Never used again, also after the task is forgotten.</param>
/// <param name="Kind">scrub, populate, ...</param>
/// <param name="Subject">What it works on, as the operator calls it.</param>
/// <param name="VolumeId">The volume that it works on, or null.</param>
/// <param name="Unit">What is counted: bytes, blocks, volumes; empty when only the part is known.</param>
/// <param name="Cancellable">It can be ended before its end.</param>
/// <param name="State">One of <see cref="TaskStates"/>.</param>
/// <param name="Progress">0 to 1.</param>
/// <param name="Done">So many units are done.</param>
/// <param name="Total">Of so many; 0 when that is not known.</param>
/// <param name="StartedAt">When it began, before all restarts.</param>
/// <param name="EndedAt">When it ended, or null.</param>
/// <param name="Result">What it found, or why it failed.</param>
/// <param name="Code">Stable word of a failure, or null.</param>
/// <param name="Parameters">What whoever goes on with it after a restart must know, or null.</param>
/// <param name="Checkpoint">How far it had come, in the words of its kind, or null.</param>
/// <param name="History">What happened to it, oldest first.</param>
public sealed record TaskRecord(
    long Id, string Kind, string Subject, uint? VolumeId, string Unit, bool Cancellable, string State, double Progress, ulong Done, ulong Total,
    DateTimeOffset StartedAt, DateTimeOffset? EndedAt, string? Result, string? Code, string? Parameters, string? Checkpoint, IReadOnlyList<TaskNote> History)
{
    /// <summary>Keys of all tasks begin with it.</summary>
    public const string Prefix = "task/";

    /// <summary>Key of the last number that a task got.</summary>
    public const string CounterKey = "counter/task";

    /// <summary>Its key; keys sort as numbers do.</summary>
    public string Key => KeyOf(Id);

    /// <summary>The key of a task.</summary>
    public static string KeyOf(long id) => Prefix + id.ToString("D19", CultureInfo.InvariantCulture);

    /// <summary>The value of its key.</summary>
    public byte[] Encode() => JsonSerializer.SerializeToUtf8Bytes(this, TaskRecordJson.Default.TaskRecord);

    /// <summary>The value of the counter.</summary>
    public static byte[] EncodeCounter(long id) => JsonSerializer.SerializeToUtf8Bytes(id, TaskRecordJson.Default.Int64);

    /// <summary>The record, or null when it is damaged.</summary>
    public static TaskRecord? TryDecode(MetaEntry entry)
    {
        try
        {
            TaskRecord? record = JsonSerializer.Deserialize(entry.Value.Span, TaskRecordJson.Default.TaskRecord);
            return record?.Key == entry.Key ? record : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }

    /// <summary>The counter, or 0 when it is damaged.</summary>
    public static long DecodeCounter(MetaEntry? entry)
    {
        try
        {
            return entry is null ? 0 : JsonSerializer.Deserialize(entry.Value.Span, TaskRecordJson.Default.Int64);
        }
        catch (JsonException)
        {
            return 0;
        }
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectRequiredConstructorParameters = true, RespectNullableAnnotations = true)]
[JsonSerializable(typeof(TaskRecord))]
[JsonSerializable(typeof(long))]
internal sealed partial class TaskRecordJson : JsonSerializerContext;
