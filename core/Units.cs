namespace BlockServer.Core;

/// <summary>The sizes that the whole house shares. All are powers of two; see docs/architecture.md for the words.</summary>
public static class Units
{
    /// <summary>One block: the unit of mapping, checksum and versioning. 4 KiB.</summary>
    public const int BlockBytes = 4096;

    /// <summary>log2 of <see cref="BlockBytes"/>.</summary>
    public const int BlockShift = 12;

    /// <summary>One extent: the run of a volume that one metadata page maps. 1 MiB.</summary>
    public const int ExtentBytes = 1 << ExtentShift;

    /// <summary>log2 of <see cref="ExtentBytes"/>.</summary>
    public const int ExtentShift = 20;

    /// <summary>Blocks in an extent, and so entries in a metadata page. 256.</summary>
    public const int BlocksPerExtent = ExtentBytes / BlockBytes;

    /// <summary>Smallest addressable sector of a medium; what a torn write is torn at.</summary>
    public const int SectorBytes = 512;

    /// <summary>Smallest volume. 1 MiB.</summary>
    public const ulong VolumeBytesMin = 1UL << 20;

    /// <summary>Largest volume (thin). 64 TiB.</summary>
    public const ulong VolumeBytesMax = 64UL << 40;

    /// <summary>Largest single request that a front end accepts. 32 MiB.</summary>
    public const int RequestBytesMax = 32 << 20;

    /// <summary>One kibibyte.</summary>
    public const ulong KiB = 1UL << 10;

    /// <summary>One mebibyte.</summary>
    public const ulong MiB = 1UL << 20;

    /// <summary>One gibibyte.</summary>
    public const ulong GiB = 1UL << 30;

    /// <summary>One tebibyte.</summary>
    public const ulong TiB = 1UL << 40;
}
