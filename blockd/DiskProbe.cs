using BlockServer.Core;
using BlockServer.Io;
using BlockServer.Storage;

namespace BlockServer.Blockd;

/// <summary>What a look at a path showed; nothing was written.</summary>
/// <param name="Path">The path.</param>
/// <param name="Store">The store that lies there, or null.</param>
/// <param name="Fault">Why it cannot be served as it is, a sentence without the path; null when <paramref name="Store"/> is given or the
/// medium is blank.</param>
/// <param name="SizeBytes">Usable size of the medium.</param>
/// <param name="IsDamagedStore">The remains of a store lie there.</param>
internal sealed record DiskProbe(string Path, Superblock? Store, string? Fault, ulong SizeBytes, bool IsDamagedStore)
{
    /// <summary>Looks at <paramref name="path"/>. Throws <see cref="IOException"/> when it cannot be opened (or another process
    /// has it).</summary>
    public static async Task<DiskProbe> LookAsync(LoopThread thread, string path)
    {
        DiskFile file = DiskFile.Open(thread.Loop, path, readOnly: true);
        try
        {
            DiskProbe? seen = null;
            await thread.InvokeAsync(async () => seen = await LookAsync(file));
            return seen!;
        }
        finally
        {
            await thread.InvokeAsync(() =>
            {
                file.Close();
                return default;
            });
        }
    }

    private static async ValueTask<DiskProbe> LookAsync(DiskFile file)
    {
        StoreProbe probe = await Storage.Store.ProbeAsync(file);
        if (probe.Superblock is { } superblock) return new DiskProbe(file.Path, superblock, null, file.SizeBytes, false);
        if (probe.Damage is { } damage) return new DiskProbe(file.Path, null, "it holds a damaged store: " + damage, file.SizeBytes, true);
        int length = (int)Math.Min(file.SizeBytes, ForeignData.LookBytes);
        var first = new byte[length];
        var last = new byte[length];
        if (length > 0 && (await file.ReadAsync(0, first) != IoStatus.Ok
            || await file.ReadAsync(file.SizeBytes - (ulong)length, last) != IoStatus.Ok))
            return new DiskProbe(file.Path, null, "it cannot be read: " + file.LastError, file.SizeBytes, false);
        return new DiskProbe(file.Path, null, ForeignData.Describe(first, last) is { } kind ? "it holds " + kind : null, file.SizeBytes, false);
    }
}
