using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>What a look at a medium showed.</summary>
/// <param name="Superblock">The store that lies there; null when there is none or it cannot be trusted.</param>
/// <param name="Damage">A store lies there and its superblock cannot be trusted: why. Null otherwise.</param>
public sealed record StoreProbe(Superblock? Superblock, string? Damage)
{
    /// <summary>Neither a store nor the remains of one.</summary>
    public bool IsEmpty => Superblock is null && Damage is null;
}

// What lies on a medium, before anything is written to it.
public sealed partial class Store
{
    /// <summary>Reads who lies on <paramref name="file"/>; writes nothing.</summary>
    public static async ValueTask<StoreProbe> ProbeAsync(IFile file)
    {
        bool isStore = false;
        if (file.SizeBytes < 4 * Units.BlockBytes) return new StoreProbe(null, null);
        var page = new byte[Units.BlockBytes];
        ulong end = file.SizeBytes;
        foreach (ulong offset in new ulong[] { 0, Units.BlockBytes, end - 2 * Units.BlockBytes, end - Units.BlockBytes })
        {
            if (await file.ReadAsync(offset, page) != IoStatus.Ok) return new StoreProbe(null, "its superblock cannot be read");
            isStore |= BinaryPrimitives.ReadUInt64LittleEndian(page.AsSpan(8)) == Superblock.Magic;
        }

        if (!isStore) return new StoreProbe(null, null);
        (Superblock superblock, string? fault) = await ReadSuperblockAsync(file);
        return fault is null ? new StoreProbe(superblock, null) : new StoreProbe(null, fault);
    }

    // Another cluster numbers its volumes by itself: serving its store here would mix them up.
    private static string? ClusterFault(Superblock superblock, StoreOptions options) =>
        superblock.ClusterUuid != Guid.Empty && options.ClusterUuid != Guid.Empty && superblock.ClusterUuid != options.ClusterUuid
            ? $"the store belongs to cluster {superblock.ClusterUuid}, this is cluster {options.ClusterUuid}"
            : null;
}
