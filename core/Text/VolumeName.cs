using System.Diagnostics.CodeAnalysis;

namespace BlockServer.Core;

/// <summary>The rule for names of volumes, disks and snapshots: <c>[a-z0-9][a-z0-9._-]{0,62}</c>.</summary>
public static class VolumeName
{
    /// <summary>Longest name, in characters and bytes.</summary>
    public const int LengthMax = 63;

    /// <summary>True when <paramref name="name"/> may be used; else <paramref name="reason"/> is a sentence for the operator.</summary>
    public static bool IsValid([NotNullWhen(true)] string? name, [NotNullWhen(false)] out string? reason)
    {
        reason = Fault(name);
        return reason is null;
    }

    private static string? Fault(string? name)
    {
        if (string.IsNullOrEmpty(name)) return "the name is empty";
        if (name.Length > LengthMax) return $"the name is longer than {LengthMax} characters";
        if (!IsLetterOrDigit(name[0])) return "the name must begin with a-z or 0-9";
        foreach (char c in name)
        {
            if (!IsLetterOrDigit(c) && c is not ('.' or '_' or '-'))
                return "the name may hold only a-z, 0-9, '.', '_' and '-'";
        }

        return null;
    }

    private static bool IsLetterOrDigit(char c) => c is (>= 'a' and <= 'z') or (>= '0' and <= '9');
}
