using System.Collections.Immutable;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>What is kept in a <see cref="MetaTable{T}"/>.</summary>
internal interface IMetaRecord<T>
{
    /// <summary>Its key behind the table's prefix.</summary>
    string Key { get; }

    /// <summary>It says what it must say.</summary>
    bool IsWhole { get; }

    /// <summary>Revision of the transaction that wrote it.</summary>
    long Revision { get; }

    /// <summary>The same with a revision.</summary>
    T WithRevision(long revision);
}

/// <summary>Records of one kind under one prefix of the metadata store, with a copy in RAM. Changes run one at a time;
/// thread-safe; lookups are free.</summary>
internal sealed class MetaTable<T>(IMetaStore meta, string prefix, JsonTypeInfo<T> json) : IDisposable where T : class, IMetaRecord<T>
{
    private readonly SemaphoreSlim _change = new(1, 1);
    private volatile ImmutableSortedDictionary<string, T> _records = ImmutableSortedDictionary.Create<string, T>(StringComparer.Ordinal);

    /// <summary>All, by key.</summary>
    public IReadOnlyList<T> List() => [.. _records.Values];

    /// <summary>How many.</summary>
    public int Count => _records.Count;

    /// <summary>One, or null.</summary>
    public T? Find(string key) => _records.GetValueOrDefault(key);

    /// <inheritdoc/>
    public void Dispose() => _change.Dispose();

    /// <summary>Reads the metadata. Throws <see cref="MetaException"/>, and <see cref="InvalidDataException"/> for a damaged record: who
    /// may do what must not be guessed.</summary>
    public async Task LoadAsync()
    {
        foreach (MetaEntry entry in await meta.RangeAsync(prefix))
        {
            T? record = null;
            try
            {
                record = JsonSerializer.Deserialize(entry.Value.Span, json);
            }
            catch (Exception e) when (e is JsonException or NotSupportedException)
            {
                // Said below, without the parser's words: they may quote what is secret.
            }

            if (record is null || !record.IsWhole || prefix + record.Key != entry.Key)
                throw new InvalidDataException($"the metadata of {entry.Key} are damaged; restore the metadata database from a copy");
            _records = _records.SetItem(record.Key, record.WithRevision(entry.ModRevision));
        }
    }

    /// <summary>Runs a change alone; null, or why not.</summary>
    public async Task<DirectoryFault?> AloneAsync(Func<Task<DirectoryFault?>> change)
    {
        await _change.WaitAsync();
        try
        {
            return await change();
        }
        catch (MetaException e)
        {
            return new DirectoryFault(IoStatus.Unavailable, "metadata-unavailable", e.Message);
        }
        finally
        {
            _change.Release();
        }
    }

    /// <summary>Writes a record over that of its revision (0: there is none yet). Within <see cref="AloneAsync"/>.</summary>
    public async Task<DirectoryFault?> WriteAsync(T record)
    {
        string key = prefix + record.Key;
        MetaResult result = await MetaCommit.CommitAsync(meta, [new(key, record.Revision)], [new(key, JsonSerializer.SerializeToUtf8Bytes(record, json))]);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        _records = _records.SetItem(record.Key, record.WithRevision(result.Revision));
        return null;
    }

    /// <summary>Takes records away, all or none. Within <see cref="AloneAsync"/>.</summary>
    public async Task<DirectoryFault?> RemoveAsync(params T[] records)
    {
        if (records.Length == 0) return null;
        MetaResult result = await MetaCommit.CommitAsync(
            meta, [.. records.Select(r => new MetaCompare(prefix + r.Key, r.Revision))], [.. records.Select(r => new MetaChange(prefix + r.Key, null))]);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        _records = _records.RemoveRange(records.Select(r => r.Key));
        return null;
    }
}
