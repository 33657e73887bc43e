using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
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

    private static uint NumberOf(MetaEntry entry)
    {
        uint number = Deserialize(entry, VolumeRecordJson.Default.UInt32);
        return number < uint.MaxValue ? number : throw Damaged(entry, "the number is the last one");
    }

    /// <summary>The value of an entry; what is no JSON of it throws <see cref="InvalidDataException"/>.</summary>
    private static T? Deserialize<T>(MetaEntry entry, JsonTypeInfo<T> type)
    {
        try
        {
            return JsonSerializer.Deserialize(entry.Value.Span, type);
        }
        catch (JsonException e)
        {
            throw Damaged(entry, e.Message);
        }
    }

    private static InvalidDataException Damaged(MetaEntry entry, string what) =>
        new($"the metadata of {entry.Key} are damaged ({what}); restore the database, or move it away: volumes are found on the disks again");

    private static byte[] Encode(VolumeRecord record) =>
        JsonSerializer.SerializeToUtf8Bytes(record, VolumeRecordJson.Default.VolumeRecord);

    /// <summary>Reads a record. Throws <see cref="InvalidDataException"/>: nothing of a record that is not whole is acted on,
    /// since a wrong state or number could delete a volume.</summary>
    private static VolumeRecord Decode(MetaEntry entry)
    {
        VolumeRecord? record = Deserialize(entry, VolumeRecordJson.Default.VolumeRecord);

        if (record is null) throw Damaged(entry, "it is empty");
        if (VolumeKey(record.Id) != entry.Key) throw Damaged(entry, "it is of another volume");
        if (!Enum.IsDefined(record.State)) throw Damaged(entry, "its state is unknown");
        if (!VolumeName.IsValid(record.Name, out string? reason)) throw Damaged(entry, reason);
        if (record.Export is null) throw Damaged(entry, "it does not say how the volume is offered");
        if (record.SizeBytes == 0 || record.SizeBytes % Units.SectorBytes != 0) throw Damaged(entry, "its size cannot be");
        return record with { Revision = entry.ModRevision };
    }

    /// <summary>As <see cref="MetaCommit.CommitAsync"/>; when it throws, the volume stays unsettled.</summary>
    private Task<MetaResult> CommitAsync(IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes) =>
        MetaCommit.CommitAsync(meta, compares, changes);

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
        foreach (MetaEntry snapshot in await meta.RangeAsync(SnapshotRecord.PrefixOf(record.Id))) changes.Add(new MetaChange(snapshot.Key, null));
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
