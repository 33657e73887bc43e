using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>How a raw image becomes frames: the same ones wherever it is read and wherever the reading began, so that a cursor means
/// the same to everybody.</summary>
public static class RawImage
{
    /// <summary>Holes are looked for only here: where whole frames begin.</summary>
    public static bool MayBeHole(ulong at) => at % StreamHeader.DataBytesMax == 0;

    /// <summary>How many bytes from <paramref name="at"/> on, in whole blocks, were never written: <paramref name="nextData"/> is where
    /// the file has data next, <paramref name="at"/> itself when that is not known, null when there is none. Behind
    /// <paramref name="lengthBytes"/> nothing was written, up to <paramref name="end"/>.</summary>
    public static ulong HoleBytes(ulong at, ulong lengthBytes, ulong end, ulong? nextData)
    {
        if (at >= lengthBytes || nextData is not { } data) return end - at;
        return (data & ~(ulong)(Units.BlockBytes - 1)) is var next && next > at ? next - at : 0;
    }

    /// <summary>How many bytes are read next, at most to <paramref name="end"/>.</summary>
    public static int PieceBytes(ulong at, ulong end) =>
        (int)Math.Min(StreamHeader.DataBytesMax - at % StreamHeader.DataBytesMax, end - at);
}
