namespace BlockServer.Core;

/// <summary>One key as the metadata store holds it.</summary>
/// <param name="Key">Path-like name, e.g. <c>vol/17</c>. Ordinal order.</param>
/// <param name="Value">Opaque bytes (JSON by convention).</param>
/// <param name="CreateRevision">Revision of the transaction that created it.</param>
/// <param name="ModRevision">Revision of the transaction that changed it last.</param>
public sealed record MetaEntry(string Key, ReadOnlyMemory<byte> Value, long CreateRevision, long ModRevision);

/// <summary>A condition of a transaction: the key's mod revision equals <paramref name="ModRevision"/> (0: absent).</summary>
public readonly record struct MetaCompare(string Key, long ModRevision);

/// <summary>A change of a transaction: put when <paramref name="Value"/> is given, delete when null.</summary>
public readonly record struct MetaChange(string Key, ReadOnlyMemory<byte>? Value, long LeaseId = 0);

/// <summary>What became of a transaction.</summary>
public enum MetaOutcome
{
    /// <summary>All compares held and all changes are durable.</summary>
    Committed,

    /// <summary>A compare did not hold; nothing changed.</summary>
    Failed,

    /// <summary>It may or may not have happened: read back before going on.</summary>
    Unknown,
}

/// <summary>Outcome and the revision that a committed transaction made.</summary>
public readonly record struct MetaResult(MetaOutcome Outcome, long Revision);

/// <summary>The metadata store could not be read. Nothing is known about the keys that were asked for.</summary>
public sealed class MetaException(string message, Exception? inner = null) : Exception(message, inner);

/// <summary>
/// The metadata store: a revisioned key-value store with multi-key compare-and-set, leases and watch (engine B3). Never
/// holds per-I/O data. Implementations: SQLite (embedded, default), memory (simulation), etcd (clusters, later); one
/// conformance suite. Thread-safe; answers on any thread. Leases and watches are never used for safety. A read that fails
/// throws <see cref="MetaException"/>; a transaction never does.
/// </summary>
public interface IMetaStore : IAsyncDisposable
{
    /// <summary>The newest value, linearizable, or null.</summary>
    ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default);

    /// <summary>All keys that begin with <paramref name="prefix"/>, in order.</summary>
    ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default);

    /// <summary>All changes if all compares hold, else none.</summary>
    ValueTask<MetaResult> TransactAsync(
        IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default);

    /// <summary>A lease: keys put with its id vanish when it is not kept alive for <paramref name="timeToLive"/>.</summary>
    ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default);

    /// <summary>Renews a lease; false when it has expired.</summary>
    ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default);

    /// <summary>Changes after <paramref name="fromRevision"/> under <paramref name="prefix"/>, for ever; deletions have a null value.</summary>
    IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel);
}

/// <summary>One watched change.</summary>
public sealed record MetaEvent(string Key, ReadOnlyMemory<byte>? Value, long Revision);
