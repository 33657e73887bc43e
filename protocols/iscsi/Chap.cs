using System.Security.Cryptography;

namespace BlockServer.Protocols.Iscsi;

/// <summary>CHAP_A numbers (IANA, PPP authentication algorithms).</summary>
public enum ChapAlgorithm
{
    /// <summary>MD5 (RFC 1994).</summary>
    Md5 = 5,

    /// <summary>SHA-1.</summary>
    Sha1 = 6,

    /// <summary>SHA-256.</summary>
    Sha256 = 7,

    /// <summary>SHA3-256; where the platform has it.</summary>
    Sha3 = 8,
}

/// <summary>The arithmetic of CHAP (RFC 1994; RFC 7143, 12.1.3). Pure.</summary>
public static class Chap
{
    /// <summary>Longest challenge or response, bytes.</summary>
    public const int BinaryBytesMax = 1024;

    /// <summary>Ours first.</summary>
    public static IReadOnlyList<ChapAlgorithm> Preference { get; } =
        [ChapAlgorithm.Sha256, ChapAlgorithm.Sha3, ChapAlgorithm.Sha1, ChapAlgorithm.Md5];

    /// <summary>The platform can compute it.</summary>
    public static bool IsSupported(ChapAlgorithm algorithm) => algorithm switch
    {
        ChapAlgorithm.Md5 or ChapAlgorithm.Sha1 or ChapAlgorithm.Sha256 => true,
        ChapAlgorithm.Sha3 => SHA3_256.IsSupported,
        _ => false,
    };

    /// <summary>Hash of identifier, secret and challenge.</summary>
    public static byte[] Respond(ChapAlgorithm algorithm, byte identifier, ReadOnlySpan<byte> secret, ReadOnlySpan<byte> challenge)
    {
        byte[] input = [identifier, .. secret, .. challenge];
#pragma warning disable CA5350, CA5351 // The protocol names these hashes; whether they are allowed is a setting.
        return algorithm switch
        {
            ChapAlgorithm.Md5 => MD5.HashData(input),
            ChapAlgorithm.Sha1 => SHA1.HashData(input),
            ChapAlgorithm.Sha3 => SHA3_256.HashData(input),
            _ => SHA256.HashData(input),
        };
#pragma warning restore CA5350, CA5351
    }

    /// <summary>Compares in a time that depends on the lengths only.</summary>
    public static bool IsEqual(ReadOnlySpan<byte> left, ReadOnlySpan<byte> right) =>
        CryptographicOperations.FixedTimeEquals(left, right);

    /// <summary>0x and hexadecimal.</summary>
    public static string Text(ReadOnlySpan<byte> binary) => "0x" + Convert.ToHexStringLower(binary);

    /// <summary>Reads 0x hexadecimal or 0b base64 of 1 to 1,024 bytes; null when it is neither.</summary>
    public static byte[]? TryRead(string text)
    {
        if (text.Length < 3 || text[0] != '0') return null;
        var target = new byte[BinaryBytesMax];
        int count;
        if (text[1] is 'x' or 'X')
        {
            ReadOnlySpan<char> digits = text.AsSpan(2);
            if (digits.Length % 2 != 0 || digits.Length > 2 * BinaryBytesMax) return null;
            if (Convert.FromHexString(digits, target, out _, out count) != System.Buffers.OperationStatus.Done) return null;
        }
        else if (text[1] is not ('b' or 'B') || !Convert.TryFromBase64Chars(text.AsSpan(2), target, out count))
        {
            return null;
        }

        return count == 0 ? null : target[..count];
    }
}
