using BlockServer.Core;

namespace BlockServer.Cluster;

/// <summary>Transactions whose outcome is found out.</summary>
internal static class MetaCommit
{
    /// <summary>
    /// A transaction whose unknown outcome is found out by reading back: nobody else changes these keys while the caller holds
    /// its change lock. Committed, Failed (a compare did not hold), or Unknown when it certainly did not happen because the
    /// store failed. Throws <see cref="MetaException"/> when it cannot be found out.
    /// </summary>
    public static async Task<MetaResult> CommitAsync(IMetaStore meta, IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes)
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

    /// <summary>What a transaction that was not committed is called.</summary>
    public static DirectoryFault FaultOf(MetaOutcome outcome) => outcome == MetaOutcome.Failed
        ? new(IoStatus.Conflict, "changed-meanwhile", "the metadata changed meanwhile; try again")
        : new(IoStatus.Unavailable, "metadata-unavailable", "the metadata database failed and nothing was changed; see the daemon's log");
}
