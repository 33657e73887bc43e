using System.Runtime.InteropServices;
using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>LZ4 blocks by the system's liblz4. Thread-safe.</summary>
public sealed unsafe partial class Lz4 : ICompressor
{
    private Lz4()
    {
    }

    /// <summary>LZ4, or null on a machine without liblz4 (package liblz4-1 of Debian).</summary>
    public static Lz4? Instance { get; } = TryLoad();

    /// <inheritdoc/>
    public int Compress(ReadOnlySpan<byte> source, Span<byte> target)
    {
        fixed (byte* from = source)
        fixed (byte* to = target)
            return Math.Max(0, LZ4_compress_default(from, to, source.Length, target.Length));
    }

    /// <inheritdoc/>
    public bool Decompress(ReadOnlySpan<byte> source, Span<byte> target)
    {
        fixed (byte* from = source)
        fixed (byte* to = target)
            return LZ4_decompress_safe(from, to, source.Length, target.Length) == target.Length;
    }

    private static Lz4? TryLoad()
    {
        try
        {
            return LZ4_versionNumber() >= 10700 ? new Lz4() : null;
        }
        catch (DllNotFoundException)
        {
            return null;
        }
    }

    [LibraryImport("liblz4.so.1")]
    private static partial int LZ4_versionNumber();

    [LibraryImport("liblz4.so.1")]
    private static partial int LZ4_compress_default(byte* source, byte* target, int sourceBytes, int targetBytes);

    [LibraryImport("liblz4.so.1")]
    private static partial int LZ4_decompress_safe(byte* source, byte* target, int packedBytes, int targetBytes);
}
