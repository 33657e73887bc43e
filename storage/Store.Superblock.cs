using BlockServer.Core;

namespace BlockServer.Storage;

// The four copies of the superblock (B1.3): written so that at any cut two good copies of one state are there.
public sealed partial class Store
{
    private const int SuperblockCopies = 4;

    /// <summary>
    /// The worst two copies first (unreadable, then any that differ from <paramref name="now"/>), flush, the other two,
    /// flush, read back: three must be good. The two that are not being written are good and equal, so at every cut a store
    /// that could be opened before can be opened again, as it was or as it shall be. Errors: IoError (a write or flush
    /// failed, or too few copies read back); then the store is to be opened anew.
    /// </summary>
    /// <param name="file">The medium.</param>
    /// <param name="flush">Makes what was written durable.</param>
    /// <param name="now">The state that the store was opened with or wrote last; <c>default</c> when there is none.</param>
    /// <param name="next">The state to write.</param>
    private static async ValueTask<IoStatus> WriteSuperblocksAsync(
        IFile file, Func<ValueTask<IoStatus>> flush, Superblock now, Superblock next)
    {
        int[] order = await OrderCopiesAsync(file, now with { Copy = 0 }, next);
        if (await WriteCopiesAsync(file, flush, next, order[0], order[1]) != IoStatus.Ok) return IoStatus.IoError;
        // The other two may be touched only when the new state can be opened without them.
        if (await CountCopiesAsync(file, next, order[..2]) < 2) return IoStatus.IoError;
        if (await WriteCopiesAsync(file, flush, next, order[2], order[3]) != IoStatus.Ok) return IoStatus.IoError;
        return await CountCopiesAsync(file, next, order) >= SuperblockCopies - 1 ? IoStatus.Ok : IoStatus.IoError;
    }

    /// <summary>Copies from the one that may be lost first to the one that must be kept longest. One that a cut left ahead
    /// of the others counts as bad: nobody has opened the store by it. Of equal ones 0 and 2 go first, so that one pair of
    /// neighbours never holds all that is good.</summary>
    private static async ValueTask<int[]> OrderCopiesAsync(IFile file, Superblock now, Superblock next)
    {
        var found = new List<(int Copy, int Worth)>();
        for (int copy = 0; copy < SuperblockCopies; copy++)
        {
            Superblock? block = await ReadCopyAsync(file, next, copy);
            found.Add((copy, block is null ? 0 : block == now ? 2 : 1));
        }

        return [.. found.OrderBy(f => f.Worth).ThenBy(f => f.Copy % 2).ThenBy(f => f.Copy).Select(f => f.Copy)];
    }

    private static async ValueTask<IoStatus> WriteCopiesAsync(
        IFile file, Func<ValueTask<IoStatus>> flush, Superblock next, int one, int two)
    {
        foreach (int copy in new[] { one, two })
        {
            var page = new byte[Units.BlockBytes];
            (next with { Copy = copy }).WriteTo(page);
            if (await file.WriteAsync(next.Geometry.SuperblockOffset(copy), page) != IoStatus.Ok) return IoStatus.IoError;
        }

        return await flush();
    }

    private static async ValueTask<int> CountCopiesAsync(IFile file, Superblock next, int[] copies)
    {
        int good = 0;
        foreach (int copy in copies)
        {
            if (await ReadCopyAsync(file, next, copy) is { } back && back == next with { Copy = 0 }) good++;
        }

        return good;
    }

    /// <summary>A copy of this store as it lies on the medium, its number taken out; null when it is not good or of another
    /// store.</summary>
    private static async ValueTask<Superblock?> ReadCopyAsync(IFile file, Superblock store, int copy)
    {
        var page = new byte[Units.BlockBytes];
        if (await file.ReadAsync(store.Geometry.SuperblockOffset(copy), page) != IoStatus.Ok) return null;
        if (Superblock.TryRead(page, out Superblock found) is not null) return null;
        return found.Copy == copy && found.StoreUuid == store.StoreUuid ? found with { Copy = 0 } : null;
    }
}
