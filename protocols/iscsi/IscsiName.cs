using System.Buffers;

namespace BlockServer.Protocols.Iscsi;

/// <summary>Names of initiators and targets (RFC 7143, 4.2.7): <c>iqn.</c>, <c>eui.</c> and <c>naa.</c>.</summary>
public static class IscsiName
{
    /// <summary>Longest name, bytes.</summary>
    public const int BytesMax = 223;

    // The underscore is not in the standard's set, but widespread in names that people give.
    private static readonly SearchValues<char> Characters = SearchValues.Create("abcdefghijklmnopqrstuvwxyz0123456789.-:_");

    private static readonly SearchValues<char> Hex = SearchValues.Create("0123456789abcdef");

    /// <summary>Lower case of a well-formed name in <paramref name="normal"/>; false when it is none.</summary>
    public static bool TryNormalize(string name, out string normal)
    {
        normal = name.ToLowerInvariant();
        if (normal.Length is 0 or > BytesMax || normal.AsSpan().IndexOfAnyExcept(Characters) >= 0) return false;
        if (normal.StartsWith("eui.", StringComparison.Ordinal)) return IsHex(normal.AsSpan(4), 16);
        if (normal.StartsWith("naa.", StringComparison.Ordinal))
            return IsHex(normal.AsSpan(4), 16) || IsHex(normal.AsSpan(4), 32);

        // iqn.yyyy-mm.reversed-domain[:anything]
        return normal.StartsWith("iqn.", StringComparison.Ordinal) && normal.Length > 12
            && normal.AsSpan(4, 4).IndexOfAnyExceptInRange('0', '9') < 0 && normal[8] == '-'
            && normal.AsSpan(9, 2).IndexOfAnyExceptInRange('0', '9') < 0 && normal[11] == '.';
    }

    private static bool IsHex(ReadOnlySpan<char> text, int length) =>
        text.Length == length && text.IndexOfAnyExcept(Hex) < 0;
}
