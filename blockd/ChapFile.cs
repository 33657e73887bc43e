using System.Text;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>The file of CHAP users: <c>user NAME SECRET</c> and <c>mutual NAME SECRET</c>, one a line; empty lines and lines
/// with # are left out.</summary>
internal static class ChapFile
{
    // RFC 7143, 9.2.1: below 96 bits a secret can be guessed from one recorded login.
    private const int SecretBytesMin = 12;

    /// <summary>Reads the file. Throws <see cref="StartException"/> with the line that is wrong, never with a secret.</summary>
    public static IscsiAuthentication Load(string path)
    {
        var users = new Dictionary<string, byte[]>(StringComparer.Ordinal);
        string? mutualName = null;
        byte[]? mutualSecret = null;
        int number = 0;
        foreach (string line in File.ReadLines(path))
        {
            number++;
            string[] words = line.Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            if (words.Length == 0 || words[0][0] == '#') continue;
            if (words.Length != 3 || words[0] is not ("user" or "mutual")) throw Wrong("write 'user NAME SECRET' or 'mutual NAME SECRET'");
            byte[] secret = Encoding.UTF8.GetBytes(words[2]);
            if (secret.Length < SecretBytesMin) throw Wrong($"a secret has at least {SecretBytesMin} characters");
            if (words[0] == "mutual")
            {
                if (mutualName is not null) throw Wrong("there is one mutual name");
                (mutualName, mutualSecret) = (words[1], secret);
            }
            else if (!users.TryAdd(words[1], secret))
            {
                throw Wrong("this user is named twice");
            }
        }

        if (users.Count == 0) throw new StartException($"{path}: there is no user in it");
        try
        {
            return new IscsiAuthentication(users, mutualName, mutualSecret);
        }
        catch (ArgumentException e)
        {
            throw new StartException($"{path}: {e.Message}");
        }

        StartException Wrong(string what) => new($"{path}, line {number}: {what}");
    }
}
