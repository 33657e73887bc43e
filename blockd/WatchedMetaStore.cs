using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>The metadata store, and whether it works: the last call that failed, until one of the same kind succeeds. Thread-safe;
/// owns the store.</summary>
internal sealed class WatchedMetaStore(IMetaStore store) : IMetaStore
{
    private const string ProbeKey = "events/probe";

    private volatile string? _fault;

    /// <summary>Why it does not work, or null. While it does not, this tries to write.</summary>
    public async ValueTask<string?> FaultAsync()
    {
        if (_fault is null) return null;
        try
        {
            // Read first: a transaction that may have happened leaves it unknown what is there.
            await store.GetAsync(ProbeKey);
            MetaResult written = await store.TransactAsync([], [new MetaChange(ProbeKey, "1"u8.ToArray())]);
            if (written.Outcome == MetaOutcome.Committed) _fault = null;
        }
        catch (MetaException e)
        {
            _fault = e.Message;
        }

        return _fault;
    }

    /// <inheritdoc/>
    public async ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default)
    {
        try
        {
            return await store.GetAsync(key, cancel);
        }
        catch (MetaException e)
        {
            _fault = e.Message;
            throw;
        }
    }

    /// <inheritdoc/>
    public async ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default)
    {
        try
        {
            return await store.RangeAsync(prefix, cancel);
        }
        catch (MetaException e)
        {
            _fault = e.Message;
            throw;
        }
    }

    /// <inheritdoc/>
    public async ValueTask<MetaResult> TransactAsync(
        IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default)
    {
        MetaResult result = await store.TransactAsync(compares, changes, cancel);
        if (result.Outcome == MetaOutcome.Unknown) _fault = "the metadata database cannot be written";
        return result;
    }

    /// <inheritdoc/>
    public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default) => store.GrantLeaseAsync(timeToLive, cancel);

    /// <inheritdoc/>
    public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default) => store.KeepAliveAsync(leaseId, cancel);

    /// <inheritdoc/>
    public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) => store.WatchAsync(prefix, fromRevision, cancel);

    /// <inheritdoc/>
    public ValueTask DisposeAsync() => store.DisposeAsync();
}
