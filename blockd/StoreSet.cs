using System.Collections.Concurrent;
using System.Collections.Immutable;

namespace BlockServer.Blockd;

/// <summary>The stores in service. Thread-safe; a snapshot is replaced as a whole.</summary>
internal sealed class StoreSet
{
    private ImmutableDictionary<Guid, StoreHost> _hosts = ImmutableDictionary<Guid, StoreHost>.Empty;

    /// <summary>All, by name.</summary>
    public IReadOnlyList<StoreHost> All => [.. _hosts.Values.OrderBy(h => h.Name, StringComparer.Ordinal)];

    public StoreHost? Find(Guid id) => _hosts.GetValueOrDefault(id);

    /// <summary>False when a store of this identity is in service already (a copied disk).</summary>
    public bool TryAdd(StoreHost host) => ImmutableInterlocked.TryAdd(ref _hosts, host.StoreId, host);

    public void Remove(Guid id) => ImmutableInterlocked.TryRemove(ref _hosts, id, out _);
}

/// <summary>A meter per volume, made at the first use and kept. Thread-safe.</summary>
internal sealed class Meters
{
    private readonly ConcurrentDictionary<uint, VolumeMeter> _meters = new();
    private readonly FrontEndFigures[] _gone = new FrontEndFigures[2]; // of volumes that were deleted

    public VolumeMeter Of(uint volumeId) => _meters.GetOrAdd(volumeId, _ => new VolumeMeter());

    /// <summary>Those of all volumes that were attached, as they come.</summary>
    public IEnumerable<(uint VolumeId, VolumeMeter Meter)> All => _meters.Select(m => (m.Key, m.Value));

    /// <summary>The meter of a volume that was attached, or null.</summary>
    public VolumeMeter? Find(uint volumeId) => _meters.GetValueOrDefault(volumeId);

    public void Forget(uint volumeId)
    {
        if (!_meters.TryRemove(volumeId, out VolumeMeter? meter)) return;
        lock (_gone)
        {
            for (int i = 0; i < _gone.Length; i++) _gone[i] = Sum(_gone[i], meter.FrontEnd(i));
        }
    }

    /// <summary>What a front end has done since the start, on volumes that were deleted too; a request that is counted meanwhile may
    /// be missing. Any thread.</summary>
    public FrontEndFigures FrontEnd(int protocol)
    {
        FrontEndFigures sum;
        lock (_gone) sum = _gone[protocol];
        foreach (VolumeMeter meter in _meters.Values) sum = Sum(sum, meter.FrontEnd(protocol));
        return sum;
    }

    private static FrontEndFigures Sum(FrontEndFigures one, FrontEndFigures other) =>
        new(one.Operations + other.Operations, one.Bytes + other.Bytes, one.Errors + other.Errors);
}
