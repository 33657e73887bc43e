using System.Collections.Concurrent;
using System.Text.Json;
using System.Text.Json.Serialization;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>A block that a scrub could not read right.</summary>
/// <param name="VolumeId">The volume.</param>
/// <param name="OffsetBytes">Where in it.</param>
/// <param name="Reason">Corrupt or IoError.</param>
/// <param name="Snapshot">Only snapshots show it, and this is the oldest of them that does; null when the volume does.</param>
/// <param name="FoundAt">When.</param>
public sealed record ScrubFinding(uint VolumeId, ulong OffsetBytes, IoStatus Reason, Guid? Snapshot, DateTimeOffset FoundAt);

/// <summary>How far the scrub of a store is and what was found there; the value of <c>scrub/STORE</c>.</summary>
/// <param name="BeganAt">When the pass that runs, or ran last, began; null: none did.</param>
/// <param name="EndedAt">When that ended; null while it runs.</param>
/// <param name="Done">Volumes up to this number were read in it.</param>
/// <param name="Bad">What is known to be bad.</param>
/// <param name="Volume">The volume that is being read in it; 0: none is.</param>
/// <param name="Position">How far, as the store says it.</param>
public sealed record ScrubRecord(
    DateTimeOffset? BeganAt, DateTimeOffset? EndedAt, uint Done, IReadOnlyList<ScrubFinding> Bad, uint Volume = 0, ulong Position = 0)
{
    /// <summary>Of a store that was never scrubbed.</summary>
    public static ScrubRecord None { get; } = new(null, null, 0, []);
}

/// <summary>How far scrubs are and what they have found, over restarts. Thread-safe; one writer for each store at a time.</summary>
public sealed class ScrubDirectory(IMetaStore meta)
{
    /// <summary>Bad blocks that are kept of one store.</summary>
    public const int BadMax = 1000;

    private const string Prefix = "scrub/";

    private readonly ConcurrentDictionary<Guid, ScrubRecord> _records = [];

    /// <summary>Reads all. Throws <see cref="MetaException"/> and <see cref="InvalidDataException"/>.</summary>
    public async Task LoadAsync()
    {
        foreach (MetaEntry entry in await meta.RangeAsync(Prefix))
        {
            // What is damaged is found again by the next pass.
            if (Guid.TryParse(entry.Key[Prefix.Length..], out Guid store) && TryDecode(entry) is { } record) _records[store] = record;
        }
    }

    /// <summary>What is known of a store.</summary>
    public ScrubRecord Find(Guid store) => _records.GetValueOrDefault(store, ScrubRecord.None);

    /// <summary>Everything that is known to be bad, by volume and offset.</summary>
    public IReadOnlyList<ScrubFinding> Bad() =>
        [.. _records.Values.SelectMany(r => r.Bad).DistinctBy(b => (b.VolumeId, b.OffsetBytes, b.Snapshot)).OrderBy(b => b.VolumeId).ThenBy(b => b.OffsetBytes)];

    /// <summary>Writes down how far a scrub is. False when the metadata cannot be written: it holds until the next restart.</summary>
    public async Task<bool> KeepAsync(Guid store, ScrubRecord record)
    {
        ScrubRecord kept = record with { Bad = [.. record.Bad.Take(BadMax)] };
        _records[store] = kept;
        byte[] value = JsonSerializer.SerializeToUtf8Bytes(kept, ScrubRecordJson.Default.ScrubRecord);
        return (await meta.TransactAsync([], [new MetaChange(Prefix + store.ToString("D"), value)])).Outcome == MetaOutcome.Committed;
    }

    private static ScrubRecord? TryDecode(MetaEntry entry)
    {
        try
        {
            return JsonSerializer.Deserialize(entry.Value.Span, ScrubRecordJson.Default.ScrubRecord) is { Bad: not null } record ? record : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }
}

[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase)]
[JsonSerializable(typeof(ScrubRecord))]
internal sealed partial class ScrubRecordJson : JsonSerializerContext;
