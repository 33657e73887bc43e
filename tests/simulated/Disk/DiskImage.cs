using BlockServer.Core;

namespace BlockServer.Tests.Simulated.Disk;

/// <summary>
/// What a medium holds: 4 KiB pages by number, a page that was never written is zeros. Pages are never changed in place,
/// so a fork is an overlay over its parent; the parent must not change while the fork is in use.
/// </summary>
public sealed class DiskImage(DiskImage? parent = null)
{
    private readonly Dictionary<ulong, byte[]> _pages = [];

    /// <summary>The page's content (borrowed, unchanging), or null when it was never written.</summary>
    public byte[]? Find(ulong page)
    {
        for (DiskImage? image = this; image is not null; image = image.Parent)
        {
            if (image._pages.TryGetValue(page, out byte[]? content)) return content;
        }

        return null;
    }

    private DiskImage? Parent { get; } = parent;

    /// <summary>Replaces a page; the image keeps <paramref name="content"/>, which nobody changes any more.</summary>
    public void Set(ulong page, byte[] content)
    {
        Check.That(content.Length == Units.BlockBytes);
        _pages[page] = content;
    }

    /// <summary>Numbers of all pages that were ever written, ascending.</summary>
    public IReadOnlyList<ulong> WrittenPages()
    {
        var numbers = new SortedSet<ulong>(_pages.Keys);
        if (Parent is not null) numbers.UnionWith(Parent.WrittenPages());
        return [.. numbers];
    }

    /// <summary>Puts those 512 B sectors of <paramref name="content"/> over the page whose bit is set in
    /// <paramref name="sectorMask"/>.</summary>
    public void Merge(ulong page, byte[] content, byte sectorMask)
    {
        if (sectorMask == 0) return;
        Set(page, sectorMask == byte.MaxValue ? content : Mixed(Find(page), content, sectorMask));
    }

    /// <summary>A new page: <paramref name="over"/> where the mask's bit is set, else <paramref name="under"/> (null: zeros).</summary>
    public static byte[] Mixed(byte[]? under, byte[] over, byte sectorMask)
    {
        var mixed = new byte[Units.BlockBytes];
        under?.CopyTo(mixed, 0);
        for (int sector = 0; sector < Units.BlockBytes / Units.SectorBytes; sector++)
        {
            if ((sectorMask & (1 << sector)) == 0) continue;
            int at = sector * Units.SectorBytes;
            over.AsSpan(at, Units.SectorBytes).CopyTo(mixed.AsSpan(at));
        }

        return mixed;
    }
}
