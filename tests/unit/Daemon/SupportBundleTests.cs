using System.Formats.Tar;
using System.IO.Compression;
using System.Text;
using BlockServer.Blockd;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The support bundle holds what helps and no secret, wherever one was planted.</summary>
public sealed class SupportBundleTests
{
    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public async Task The_bundle_has_everything_and_none_of_the_planted_secrets()
    {
        string folder = Directory.CreateTempSubdirectory("support").FullName;
        string chapFile = Path.Combine(folder, "chap"), secretFile = Path.Combine(folder, "one");
        await File.WriteAllTextAsync(chapFile, "user host1 planted-chap-file-1\nmutual self planted-mutual-file\n", Stop);
        File.SetUnixFileMode(chapFile, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        await using ApiServer server = await ApiServer.StartAsync(null, null, "iscsi-chap=" + chapFile);
        await server.DoneAsync("create_volume", "-v", "db", "-s", "1m", "--description", "password: planted-in-words-1");
        await server.DoneAsync("create_target", "-t", "iqn.2026-11.org.example:t");
        foreach ((string secret, string[] where) in new (string, string[])[]
        {
            ("planted\"target<1>", ["-t", "iqn.2026-11.org.example:t", "-u", "host2"]), ("planted-target-mutual", ["-t", "iqn.2026-11.org.example:t", "-u", "self2", "--mutual"]),
            ("planted-discovery", ["--discovery", "-u", "host3"]),
        })
        {
            await File.WriteAllTextAsync(secretFile, secret, Stop);
            await server.DoneAsync(["add_chap_user", .. where, "--secret-file", secretFile]);
        }

        // Where no secret belongs, and one may be all the same: in what an operator wrote, and in the log.
        await server.DoneAsync("create_volume", "-v", "v2", "-s", "1m", "--description", $"the token is {server.Token} and planted\"target<1> is a secret");
        const string Key = "-----BEGIN EC PRIVATE KEY-----\nplanted-key-bytes-AAAA\nplanted-key-bytes-BBBB\n-----END EC PRIVATE KEY-----";
        LogTail.Instance.Add(DateTimeOffset.UnixEpoch, $"Authorization: Bearer planted-bearer-token-1 and {Key} and https://me:planted-in-a-url@images.example/x");
        LogTail.Instance.Add(DateTimeOffset.UnixEpoch, $"{Convert.ToBase64String(Encoding.UTF8.GetBytes(server.Token))} planted-chap-file-1 a plain line");
        await server.Test.Daemon.Tasks.EndedAsync(
            server.Test.Daemon.Tasks.Start(new TaskSpec("test", "t"), _ => throw new IOException("secret=planted-in-a-task")).Id, Stop);

        string path = Path.Combine(folder, "bundle.tar.gz");
        await server.DoneAsync("support_bundle", "-o", path);
        Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(path));
        Dictionary<string, string> files = await ReadAsync(path);
        foreach ((string name, string shown) in new[]
        {
            ("api/volumes.txt", "\"db\""), ("api/targets.txt", "host2"), ("api/tasks.txt", "\"test\""), ("api/disks.txt", "\"online\""), ("api/node.txt", "engine"),
            ("api/version.txt", "BlockServer"), ("api/declared.txt", "converged"), ("settings.txt", "iscsi-chap: a file is set"), ("log.txt", "a plain line"),
            ("runtime.txt", "processors"), ("kernel-proc-version.txt", "Linux"), ("contents.txt", "log.txt"),
        })
        {
            Assert.True(files.TryGetValue(name, out string? text), $"{name} is missing: {string.Join(' ', files.Keys)}");
            Assert.Contains(shown, text, StringComparison.Ordinal);
            Assert.DoesNotContain("could not be read", text, StringComparison.Ordinal);
        }

        Assert.Contains(files, f => f.Key.StartsWith("stores/", StringComparison.Ordinal) && f.Value.Contains("copy 3: Superblock", StringComparison.Ordinal));
        foreach ((string name, string text) in files)
        {
            Assert.DoesNotContain(server.Token, text, StringComparison.Ordinal);
            Assert.DoesNotContain(server.Test.Daemon.TokenHash, text, StringComparison.OrdinalIgnoreCase);
            Assert.True(!text.Contains("planted", StringComparison.OrdinalIgnoreCase), $"{name}: {text}");
            Assert.DoesNotContain(Convert.ToBase64String(Encoding.UTF8.GetBytes(server.Token)), text, StringComparison.Ordinal);
        }

        (int exit, _, string error) = await server.RunAsync("support_bundle", "-o", path);
        Assert.True(exit == 1 && error.Contains("exists", StringComparison.Ordinal), error);
        Directory.Delete(folder, recursive: true);
    }

    [Theory]
    [InlineData("Bearer abcdefghijkl", "Bearer [removed]")]
    [InlineData("password=hunter2hunter2 x", "password=[removed] x")]
    [InlineData("\"token\": \"abcdefghijkl\",", "\"token\": \"[removed]\",")]
    [InlineData("postgres://u:pwpw@h/x", "postgres://u:[removed]@h/x")]
    [InlineData("a known-secret-1 b", "a [removed] b")]
    [InlineData("a a25vd24tc2VjcmV0LTE= b", "a [removed] b")]
    [InlineData("nothing to hide: 12345678", "nothing to hide: 12345678")]
    public void Secrets_go_and_the_rest_stays(string text, string clean) =>
        Assert.Equal(clean, new SupportRedactor(["known-secret-1", "short"]).Clean(text));

    private static async Task<Dictionary<string, string>> ReadAsync(string path)
    {
        var files = new Dictionary<string, string>(StringComparer.Ordinal);
        await using FileStream file = File.OpenRead(path);
        await using var unpacked = new GZipStream(file, CompressionMode.Decompress);
        await using var tar = new TarReader(unpacked);
        while (await tar.GetNextEntryAsync(copyData: true, Stop) is { } entry)
        {
            Assert.StartsWith("blockd-support/", entry.Name, StringComparison.Ordinal);
            using var reader = new StreamReader(entry.DataStream ?? Stream.Null);
            files.Add(entry.Name["blockd-support/".Length..], await reader.ReadToEndAsync(Stop));
        }

        return files;
    }
}
