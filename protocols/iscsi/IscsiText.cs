using System.Buffers;
using System.Text;

namespace BlockServer.Protocols.Iscsi;

/// <summary>Reads and writes the text of login and text PDUs (RFC 7143, 6.1): <c>key=value</c>, each ended by a zero byte.
/// Pure; bounded before anything is kept.</summary>
public static class IscsiText
{
    /// <summary>Longest key, bytes.</summary>
    public const int KeyBytesMax = 63;

    /// <summary>Longest value, bytes.</summary>
    public const int ValueBytesMax = 255;

    /// <summary>Longest value of a CHAP challenge or response, characters: 1,024 bytes in hexadecimal.</summary>
    public const int BinaryValueBytesMax = 2 + 2 * 1024;

    /// <summary>Most pairs in one text.</summary>
    public const int PairsMax = 64;

    private static readonly SearchValues<byte> KeyBytes = SearchValues.Create(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-+@_#"u8);

    private static readonly UTF8Encoding Strict = new(false, true);

    /// <summary>Appends the pairs of <paramref name="text"/> to <paramref name="pairs"/>; null, or what is wrong.</summary>
    public static string? TryRead(ReadOnlySpan<byte> text, List<(string Key, string Value)> pairs)
    {
        if (!text.IsEmpty && text[^1] != 0) return "text does not end with a zero byte";
        while (!text.IsEmpty)
        {
            int end = text.IndexOf((byte)0);
            ReadOnlySpan<byte> pair = text[..end];
            text = text[(end + 1)..];
            if (pair.IsEmpty) continue; // padding that was counted as text
            if (pairs.Count == PairsMax) return "too many keys";
            int equals = pair.IndexOf((byte)'=');
            if (equals <= 0) return "a key without a value";
            if (equals > KeyBytesMax) return "a key is too long";
            if (pair[..equals].IndexOfAnyExcept(KeyBytes) >= 0) return "a key has a forbidden character";
            ReadOnlySpan<byte> value = pair[(equals + 1)..];
            bool isBinary = pair[..equals].SequenceEqual("CHAP_C"u8) || pair[..equals].SequenceEqual("CHAP_R"u8);
            if (value.Length > (isBinary ? BinaryValueBytesMax : ValueBytesMax)) return "a value is too long";
            if (value.IndexOfAnyInRange((byte)0x01, (byte)0x1F) >= 0 || !TryDecode(value, out string decoded))
                return "a value has a forbidden character";
            pairs.Add((Encoding.ASCII.GetString(pair[..equals]), decoded));
        }

        return null;
    }

    /// <summary>Appends one pair.</summary>
    public static void Write(IBufferWriter<byte> output, string key, string value)
    {
        output.Write(Encoding.UTF8.GetBytes(key + "=" + value + "\0"));
    }

    private static bool TryDecode(ReadOnlySpan<byte> value, out string decoded)
    {
        decoded = "";
        if (!System.Text.Unicode.Utf8.IsValid(value)) return false;
        decoded = Strict.GetString(value);
        return true;
    }
}
