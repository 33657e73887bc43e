using System.Globalization;

namespace BlockServer.Core;

/// <summary>
/// Sizes as an operator types them: a whole number with k, m, g or t, optionally followed by b or ib, in any case;
/// always binary ("128g", "128GB" and "128GiB" are the same). Negative, zero and overflowing sizes are refused.
/// </summary>
public static class SizeText
{
    private static readonly string[] Suffixes = ["", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"];

    /// <summary>Parses <paramref name="text"/> to bytes; false with a sentence in <paramref name="reason"/>.</summary>
    public static bool TryParse(string? text, out ulong bytes, out string reason)
    {
        bytes = 0;
        string trimmed = (text ?? "").Trim();
        int digits = 0;
        while (digits < trimmed.Length && char.IsAsciiDigit(trimmed[digits])) digits++;
        if (digits == 0)
        {
            reason = $"'{text}' is not a size; write for instance 512m, 128g or 2t";
            return false;
        }

        int shift = ShiftOf(trimmed[digits..].Trim().ToLowerInvariant());
        if (shift < 0)
        {
            reason = $"'{text}' has an unknown unit; use k, m, g or t (binary)";
            return false;
        }

        if (!ulong.TryParse(trimmed[..digits], NumberStyles.None, CultureInfo.InvariantCulture, out ulong number)
            || number > (ulong)long.MaxValue >> shift)
        {
            reason = $"'{text}' is too large";
            return false;
        }

        bytes = number << shift;
        reason = bytes == 0 ? "a size must be greater than zero" : "";
        return bytes != 0;
    }

    /// <summary>Formats bytes for people: exact when it divides, else one decimal ("1.5 GiB").</summary>
    public static string Format(ulong bytes)
    {
        int unit = 0;
        double value = bytes;
        while (value >= 1024 && unit < Suffixes.Length - 1)
        {
            value /= 1024;
            unit++;
        }

        string number = value.ToString(value == Math.Floor(value) ? "0" : "0.0", CultureInfo.InvariantCulture);
        return number + (unit == 0 ? " B" : Suffixes[unit]);
    }

    private static int ShiftOf(string unit) => unit switch
    {
        "" or "b" => 0,
        "k" or "kb" or "kib" => 10,
        "m" or "mb" or "mib" => 20,
        "g" or "gb" or "gib" => 30,
        "t" or "tb" or "tib" => 40,
        _ => -1,
    };
}
