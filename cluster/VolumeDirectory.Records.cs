using System.Globalization;
using System.Text.Json;
using BlockServer.Core;

namespace BlockServer.Cluster;

// The directory's keys in the metadata store, and what becomes of a transaction whose outcome is not known.
public sealed partial class VolumeDirectory
{
    /// <summary>What the keys of saved reservations begin with.</summary>
    public const string ReservationPrefix = "pr/";

    private const string CounterKey = "counter/volume";

    /// <summary>The key of the persistent reservations of a volume; its value is the front end's. It goes with the volume.</summary>
    public static string ReservationKey(uint volumeId) => ReservationPrefix + volumeId.ToString(CultureInfo.InvariantCulture);

    private static string VolumeKey(uint id) => "vol/" + id.ToString(CultureInfo.InvariantCulture);

    private static string NameKey(string name) => "name/" + name;

    private static byte[] Number(uint id) => JsonSerializer.SerializeToUtf8Bytes(id, VolumeRecordJson.Default.UInt32);

    private static uint NumberOf(MetaEntry entry) => JsonSerializer.Deserialize(entry.Value.Span, VolumeRecordJson.Default.UInt32);

    private static byte[] Encode(VolumeRecord record) =>
        JsonSerializer.SerializeToUtf8Bytes(record, VolumeRecordJson.Default.VolumeRecord);

    private static VolumeRecord Decode(MetaEntry entry)
    {
        VolumeRecord record = JsonSerializer.Deserialize(entry.Value.Span, VolumeRecordJson.Default.VolumeRecord)
            ?? throw new InvalidDataException($"the metadata of {entry.Key} are empty");
        return record with { Revision = entry.ModRevision };
    }

    /// <summary>
    /// A transaction whose unknown outcome is found out by reading back: nobody else changes these keys while the change
    /// lock is held. Committed, Failed (a compare did not hold), or Unknown when it certainly did not happen because the
    /// store failed. Throws <see cref="MetaException"/> when it cannot be found out: the volume stays unsettled.
    /// </summary>
    private async Task<MetaResult> CommitAsync(IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes)
    {
        MetaResult result = await meta.TransactAsync(compares, changes);
        if (result.Outcome != MetaOutcome.Unknown) return result;
        long revision = 0;
        foreach (MetaChange change in changes)
        {
            MetaEntry? now = await meta.GetAsync(change.Key);
            bool isThere = change.Value is { } value ? now is not null && now.Value.Span.SequenceEqual(value.Span) : now is null;
            if (!isThere) return result;
            revision = Math.Max(revision, now?.ModRevision ?? 0);
        }

        return new MetaResult(MetaOutcome.Committed, revision);
    }

    /// <summary>Writes a record over that of its revision and, on a rename, moves the name's key from
    /// <paramref name="oldName"/>.</summary>
    private Task<MetaResult> WriteAsync(VolumeRecord record, string? oldName = null)
    {
        var compares = new List<MetaCompare> { new(VolumeKey(record.Id), record.Revision) };
        var changes = new List<MetaChange> { new(VolumeKey(record.Id), Encode(record)) };
        if (oldName is not null)
        {
            compares.Add(new MetaCompare(NameKey(record.Name), 0));
            changes.Add(new MetaChange(NameKey(record.Name), Number(record.Id)));
            changes.Add(new MetaChange(NameKey(oldName), null));
        }

        return CommitAsync(compares, changes);
    }

    /// <summary>Forgets a volume, and its name if that is still its own.</summary>
    private async Task<MetaOutcome> RemoveAsync(VolumeRecord record)
    {
        var changes = new List<MetaChange> { new(VolumeKey(record.Id), null), new(ReservationKey(record.Id), null) };
        MetaEntry? name = await meta.GetAsync(NameKey(record.Name));
        if (name is not null && NumberOf(name) == record.Id) changes.Add(new MetaChange(NameKey(record.Name), null));
        return (await CommitAsync([], changes)).Outcome;
    }

    private async Task<(uint Id, MetaEntry? Counter)> NextIdAsync()
    {
        MetaEntry? counter = await meta.GetAsync(CounterKey);
        return (checked((counter is null ? 0 : NumberOf(counter)) + 1), counter);
    }
}
