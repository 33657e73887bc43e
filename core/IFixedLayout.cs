namespace BlockServer.Core;

/// <summary>
/// A structure whose bytes are fixed: on a wire, where a peer reads them, or on a disk, where a later version of this
/// program does. One type, one file, one table of offsets, one golden test.
/// </summary>
public interface IFixedLayout<TSelf>
    where TSelf : IFixedLayout<TSelf>
{
    /// <summary>How many bytes, always.</summary>
    static abstract int Size { get; }

    /// <summary>Writes exactly <see cref="Size"/> bytes, reserved ones as zero.</summary>
    void WriteTo(Span<byte> target);

    /// <summary>Reads <see cref="Size"/> bytes; says why they are not a TSelf, or null.</summary>
    static abstract string? TryRead(ReadOnlySpan<byte> source, out TSelf value);
}
