using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>A metadata store that something may happen in front of and behind: a death, for example, of which nobody knows whether
/// the transaction was before it.</summary>
internal sealed class PausingMetaStore(IMetaStore inner, Func<ValueTask> pause) : IMetaStore
{
    public ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default) => inner.GetAsync(key, cancel);

    public ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default) => inner.RangeAsync(prefix, cancel);

    public async ValueTask<MetaResult> TransactAsync(
        IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default)
    {
        await pause();
        MetaResult result = await inner.TransactAsync(compares, changes, cancel);
        await pause();
        return result;
    }

    public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default) => inner.GrantLeaseAsync(timeToLive, cancel);

    public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default) => inner.KeepAliveAsync(leaseId, cancel);

    public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) => inner.WatchAsync(prefix, fromRevision, cancel);

    public ValueTask DisposeAsync() => default;
}
