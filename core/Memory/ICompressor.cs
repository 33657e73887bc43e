namespace BlockServer.Core;

/// <summary>Packs bytes and unpacks them again. Thread-safe and without state between calls.</summary>
public interface ICompressor
{
    /// <summary>Packs <paramref name="source"/> into <paramref name="target"/>; how many bytes it became, or 0 when they do not
    /// fit there.</summary>
    int Compress(ReadOnlySpan<byte> source, Span<byte> target);

    /// <summary>Unpacks; true when exactly <paramref name="target"/> was filled. Any <paramref name="source"/> is safe; the
    /// target's content is undefined when false.</summary>
    bool Decompress(ReadOnlySpan<byte> source, Span<byte> target);
}
