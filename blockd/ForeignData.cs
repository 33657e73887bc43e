using System.Buffers.Binary;

namespace BlockServer.Blockd;

/// <summary>
/// Says what lies on a medium that is about to become a disk: pure, over its first and last bytes. Anything but zeros is
/// foreign, whether it is recognised or not; the well-known signatures only make the sentence better.
/// </summary>
internal static class ForeignData
{
    /// <summary>How much is looked at, at either end: 1 MiB. Partition tables, file systems, RAID and LVM all leave a mark
    /// there.</summary>
    public const int LookBytes = 1 << 20;

    // Name, byte offset from the start, mark. Offsets are those of the formats' own documents and of libblkid.
    private static readonly (string Name, int Offset, byte[] Mark)[] s_marks =
    [
        ("a GPT partition table", 512, "EFI PART"u8.ToArray()),
        ("a GPT partition table", 4096, "EFI PART"u8.ToArray()),
        ("an LVM physical volume", 512, "LABELONE"u8.ToArray()),
        ("an LVM physical volume", 0, "LABELONE"u8.ToArray()),
        ("a LUKS volume", 0, [0x4C, 0x55, 0x4B, 0x53, 0xBA, 0xBE]),
        ("an ext2, ext3 or ext4 file system", 1024 + 56, [0x53, 0xEF]),
        ("an XFS file system", 0, "XFSB"u8.ToArray()),
        ("a btrfs file system", 65536 + 64, "_BHRfS_M"u8.ToArray()),
        ("an F2FS file system", 1024, [0x10, 0x20, 0xF5, 0xF2]),
        ("a Linux RAID member", 4096, [0xFC, 0x4E, 0x2B, 0xA9]),
        ("a Linux RAID member", 0, [0xFC, 0x4E, 0x2B, 0xA9]),
        ("swap space", 4086, "SWAPSPACE2"u8.ToArray()),
        ("an NTFS file system", 3, "NTFS    "u8.ToArray()),
        ("a qcow2 image", 0, [0x51, 0x46, 0x49, 0xFB]),
        ("an SQLite database", 0, "SQLite format 3\0"u8.ToArray()),
        ("an ISO 9660 image", 32769, "CD001"u8.ToArray()),
        ("a partition table", 510, [0x55, 0xAA]),
    ];

    /// <summary>What lies there ("an XFS file system"), or null when both ends hold zeros only.</summary>
    public static string? Describe(ReadOnlySpan<byte> first, ReadOnlySpan<byte> last)
    {
        if (!first.ContainsAnyExcept((byte)0) && !last.ContainsAnyExcept((byte)0)) return null;
        foreach ((string name, int offset, byte[] mark) in s_marks)
        {
            if (first.Length >= offset + mark.Length && first.Slice(offset, mark.Length).SequenceEqual(mark)) return name;
        }

        if (last.Length >= 512 && last[^512..].StartsWith("EFI PART"u8)) return "the backup of a GPT partition table";
        // RAID 0.90 lies in the last whole 64 KiB but one, RAID 1.0 between 8 and 12 KiB from the end.
        for (int at = last.Length - 4096; at >= Math.Max(0, last.Length - (192 << 10)); at -= 4096)
        {
            if (BinaryPrimitives.ReadUInt32LittleEndian(last[at..]) == 0xA92B4EFC) return "a Linux RAID member";
        }

        return "data of unknown kind";
    }
}
