using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Blockd;

/// <summary>Keeps the persistent reservations of one volume in the metadata, as the value of <c>pr/ID</c>. Called on the
/// volume's loop; the database is asked on other threads, since it waits for its disk.</summary>
internal sealed class ReservationKeeper(IMetaStore meta, uint volumeId, LoopThread thread, Action<uint> saved) : IReservationStore
{
    /// <inheritdoc/>
    public ValueTask<(IoStatus Status, ReadOnlyMemory<byte> Bytes)> LoadAsync() => ElsewhereAsync(async () =>
    {
        try
        {
            MetaEntry? entry = await meta.GetAsync(VolumeDirectory.ReservationKey(volumeId));
            if (entry is null) return (IoStatus.Ok, ReadOnlyMemory<byte>.Empty);

            // What was written is never empty: nothing in its place is damage, not "no reservation".
            return (entry.Value.IsEmpty ? IoStatus.Corrupt : IoStatus.Ok, entry.Value);
        }
        catch (MetaException)
        {
            return (IoStatus.IoError, ReadOnlyMemory<byte>.Empty);
        }
    });

    /// <inheritdoc/>
    public ValueTask<IoStatus> SaveAsync(ReadOnlyMemory<byte> bytes) => ElsewhereAsync(async () =>
    {
        string key = VolumeDirectory.ReservationKey(volumeId);
        saved(volumeId);
        MetaResult result = await meta.TransactAsync([], [new MetaChange(key, bytes)]);
        if (result.Outcome != MetaOutcome.Unknown) return result.Outcome == MetaOutcome.Committed ? IoStatus.Ok : IoStatus.IoError;
        try
        {
            MetaEntry? now = await meta.GetAsync(key);
            return now is not null && now.Value.Span.SequenceEqual(bytes.Span) ? IoStatus.Ok : IoStatus.IoError;
        }
        catch (MetaException)
        {
            return IoStatus.IoError;
        }
    });

    private async ValueTask<T> ElsewhereAsync<T>(Func<Task<T>> work)
    {
        var done = new LoopEvent<(T? Value, Exception? Bug)>();
        _ = Task.Run(async () =>
        {
            (T?, Exception?) result;
            try
            {
                result = (await work(), null);
            }
#pragma warning disable CA1031 // It is thrown again where it belongs.
            catch (Exception bug)
#pragma warning restore CA1031
            {
                result = (default, bug);
            }

            thread.Post(() => done.Set(result));
        });
        (T? value, Exception? failure) = await done.WaitAsync();
        return failure is null ? value! : throw new InvalidOperationException("the metadata database met a bug", failure);
    }
}
