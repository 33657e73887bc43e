using System.Collections.Concurrent;
using System.Collections.Immutable;

namespace BlockServer.Cluster;

/// <summary>
/// The volumes that exist for clients, in RAM: what the metadata say, without those being created or deleted. One writer,
/// any number of readers; each change costs a logarithm, not a copy of all.
/// </summary>
internal sealed class VolumeTable
{
    private readonly ConcurrentDictionary<uint, VolumeRecord> _byId = [];
    private readonly Dictionary<Guid, (ulong Bytes, int Count)> _promised = [];
    private volatile Snapshot _now = new(ImmutableSortedDictionary.Create<string, VolumeRecord>(StringComparer.Ordinal));

    /// <summary>Told of every volume that was entered, replaced or (true) taken out; after that shows.</summary>
    public Action<VolumeRecord, bool>? Changed { get; set; }

    /// <summary>By name, or null. Any thread.</summary>
    public VolumeRecord? Find(string name) => _now.Names.GetValueOrDefault(name);

    /// <summary>All, by name in ordinal order; made at the first asking after a change. Any thread.</summary>
    public IReadOnlyList<VolumeRecord> List() => _now.List;

    /// <summary>By number, or null. Any thread.</summary>
    public VolumeRecord? FindById(uint id) => _byId.GetValueOrDefault(id);

    /// <summary>Sum of the sizes promised on a store. Writer only.</summary>
    public ulong PromisedBytes(Guid storeId) => _promised.GetValueOrDefault(storeId).Bytes;

    /// <summary>Volumes on a store. Writer only.</summary>
    public int CountOn(Guid storeId) => _promised.GetValueOrDefault(storeId).Count;

    /// <summary>Enters or replaces a volume. Writer only.</summary>
    public void Show(VolumeRecord record)
    {
        ImmutableSortedDictionary<string, VolumeRecord> names = _now.Names;
        if (_byId.TryGetValue(record.Id, out VolumeRecord? old))
        {
            if (old.Name != record.Name) names = names.Remove(old.Name);
            Promise(old, isGiven: false);
        }

        _byId[record.Id] = record;
        Promise(record, isGiven: true);
        _now = new Snapshot(names.SetItem(record.Name, record));
        Changed?.Invoke(record, false);
    }

    /// <summary>Takes a volume out. Writer only.</summary>
    public void Hide(uint id)
    {
        if (!_byId.TryRemove(id, out VolumeRecord? old)) return;
        Promise(old, isGiven: false);
        _now = new Snapshot(_now.Names.Remove(old.Name));
        Changed?.Invoke(old, true);
    }

    private void Promise(VolumeRecord record, bool isGiven)
    {
        (ulong bytes, int count) = _promised.GetValueOrDefault(record.StoreId);
        // The size of an append-only volume is a limit, not a promise.
        ulong size = record.IsAppendOnly ? 0 : record.SizeBytes;
        _promised[record.StoreId] = isGiven ? (bytes + size, count + 1) : (bytes - size, count - 1);
    }

    private sealed class Snapshot(ImmutableSortedDictionary<string, VolumeRecord> names)
    {
        private VolumeRecord[]? _list;

        public ImmutableSortedDictionary<string, VolumeRecord> Names { get; } = names;

        // Two readers may both make it: the same content, and one is dropped.
        public VolumeRecord[] List => _list ??= [.. Names.Values];
    }
}
