using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>Who may use a volume over NBD (<see cref="ExportOptions.NbdClients"/>). Pure; any thread.</summary>
public static class NbdClients
{
    /// <summary>The identity of a client without a certificate that came by a unix socket: the modes of its file let it in.</summary>
    public const string Unix = "unix";

    private const int PatternsMax = 32;
    private const int PatternCharactersMax = 255;

    /// <summary>The patterns as they are kept: trimmed, each once, null for none.</summary>
    public static string? Normalize(string? clients)
    {
        string[] patterns = (clients ?? "").Split(';', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries);
        return patterns.Length == 0 ? null : string.Join(';', patterns.Distinct(StringComparer.Ordinal));
    }

    /// <summary>What is wrong with patterns, or null.</summary>
    public static string? FaultOf(string? clients)
    {
        if (Normalize(clients)?.Split(';') is not { } patterns) return null;
        if (patterns.Length > PatternsMax) return $"more than {PatternsMax} patterns";
        foreach (string pattern in patterns)
        {
            if (pattern.Length > PatternCharactersMax || pattern.Any(char.IsControl)) return $"a pattern is one line of at most {PatternCharactersMax} characters";
            if (pattern.Contains('=', StringComparison.Ordinal) || pattern is Unix or "*") continue;
            return $"'{pattern}' is no subject of a certificate, for instance CN=host1 or CN=acme-*; {Unix} stands for unix sockets";
        }

        return null;
    }

    /// <summary>A client may use the volume, and know of it. <paramref name="identity"/>: the subject of its certificate, or
    /// <see cref="Unix"/>, or null for who has proved nothing. A * alone stands for everybody who has proved who he is.</summary>
    public static bool Admits(ExportOptions export, string? identity)
    {
        if (export.NbdClients is not { } clients) return true;
        if (identity is null) return false;
        string[] patterns = clients.Split(';');
        return identity == Unix ? patterns.Contains(Unix) : patterns.Any(pattern => NamePattern.Matches(pattern, identity));
    }
}
