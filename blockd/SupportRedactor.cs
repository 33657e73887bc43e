using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;

namespace BlockServer.Blockd;

/// <summary>
/// Takes secrets out of text: every value that is known to be one, however it is written (plain, in JSON, in a URL, in base64), and
/// what looks like a key or a token though nobody told. The last thing that every byte of a support bundle passes.
/// </summary>
internal sealed partial class SupportRedactor
{
    /// <summary>Stands where a secret was.</summary>
    public const string Mark = "[removed]";

    // Shorter values would take half the text with them; nothing that is so short is accepted as a secret.
    private const int SecretCharactersMin = 8;

    private readonly string[] _known;

    /// <summary>Knows these secrets; shorter ones than eight characters are left out.</summary>
    public SupportRedactor(IEnumerable<string> secrets)
    {
        var known = new HashSet<string>(StringComparer.Ordinal);
        foreach (string secret in secrets.Select(s => s.Trim()).Where(s => s.Length >= SecretCharactersMin))
        {
            known.Add(secret);
            known.Add(Uri.EscapeDataString(secret));
            known.Add(JsonEncodedText.Encode(secret).ToString());
            known.Add(JsonEncodedText.Encode(secret, System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping).ToString());
            known.Add(Convert.ToBase64String(Encoding.UTF8.GetBytes(secret)));
            known.Add(Convert.ToHexString(Encoding.UTF8.GetBytes(secret)));
            known.Add(Convert.ToHexStringLower(Encoding.UTF8.GetBytes(secret)));
        }

        // A longer one first: it may contain a shorter one.
        _known = [.. known.OrderByDescending(k => k.Length)];
    }

    /// <summary>The text without them.</summary>
    public string Clean(string text)
    {
        foreach (string secret in _known) text = text.Replace(secret, Mark, StringComparison.Ordinal);
        text = PrivateKey().Replace(text, Mark);
        text = Bearer().Replace(text, "$1" + Mark);
        text = Named().Replace(text, "$1" + Mark);
        return UserInfo().Replace(text, "$1" + Mark + "@");
    }

    [GeneratedRegex("-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|$)", RegexOptions.Singleline, matchTimeoutMilliseconds: 10_000)]
    private static partial Regex PrivateKey();

    [GeneratedRegex(@"(Bearer\s+)[A-Za-z0-9._~+/=-]{8,}", RegexOptions.IgnoreCase, matchTimeoutMilliseconds: 10_000)]
    private static partial Regex Bearer();

    // A setting or field that is called so, with its value.
    [GeneratedRegex("""((?:password|passwd|secret|token|passphrase|api[_-]?key)["']?\s*[:=]\s*["']?)(?!\[removed\])[^\s"',}\]]{8,}""", RegexOptions.IgnoreCase, matchTimeoutMilliseconds: 10_000)]
    private static partial Regex Named();

    [GeneratedRegex(@"([a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@", RegexOptions.IgnoreCase, matchTimeoutMilliseconds: 10_000)]
    private static partial Regex UserInfo();
}
