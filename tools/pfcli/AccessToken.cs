namespace BlockServer.Pfcli;

/// <summary>Finds and reads the daemon's admin token.</summary>
public static class AccessToken
{
    private const int LengthMax = 4096;

    /// <summary>Where the token lies unless --token-file says otherwise.</summary>
    public static string DefaultPath(Func<string, string?> environment)
    {
        if (environment("BLOCKD_TOKEN_FILE") is { Length: > 0 } named) return named;
        string? data = environment("XDG_DATA_HOME");
        // The XDG rules say that a relative path is to be ignored.
        if (string.IsNullOrEmpty(data) || !Path.IsPathRooted(data))
            data = Path.Combine(environment("HOME") ?? "/", ".local", "share");
        return Path.Combine(data, "blockd", "admin.token");
    }

    /// <summary>Reads the token; never shows what the file holds.</summary>
    public static string Read(string path)
    {
        const string Hint = "give --token-file or set BLOCKD_TOKEN_FILE to the admin.token that blockd wrote";
        string text;
        try
        {
            var file = new FileInfo(path);
            if (file.Exists && file.Length > LengthMax)
                throw new CliException($"'{path}' is too long for a token file; {Hint}");
            text = File.ReadAllText(path).Trim();
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new CliException($"there is no token file '{path}'; is blockd running here? Else {Hint}", inner: e);
        }
        catch (UnauthorizedAccessException e)
        {
            throw new CliException($"the token file '{path}' may not be read by this user; run as blockd's user, or {Hint}", inner: e);
        }
        catch (Exception e) when (e is IOException or ArgumentException or NotSupportedException)
        {
            throw new CliException($"the token file '{path}' cannot be read; {Hint}", inner: e);
        }

        bool fits = text.Length > 0;
        foreach (char c in text) fits &= c is > ' ' and < '\x7f';
        return fits ? text : throw new CliException($"'{path}' holds no token; {Hint}");
    }
}
