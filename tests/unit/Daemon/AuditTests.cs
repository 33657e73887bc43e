using System.Text.Json;
using BlockServer.Blockd;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The audit log: what it holds, what it never holds, and that it stays bounded.</summary>
public sealed class AuditTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("blockd-audit-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private static async Task<IReadOnlyList<AuditEntry>> ListAsync(ApiServer server, string query = "")
    {
        RawAnswer answer = await server.SendAsync("GET", "/v1/audit" + query);
        Assert.True(answer.Status == 200, answer.Body);
        return JsonSerializer.Deserialize(answer.Body, ApiJson.Default.AuditList)!.Entries;
    }

    private static AuditEntry Entry(int status, string path = "/v1/volumes") =>
        new(0, DateTimeOffset.UnixEpoch, "admin", "127.0.0.1", "POST", path, "x", status, null);

    [Fact]
    public async Task Changes_and_refusals_are_told_with_who_what_and_result_and_never_a_secret()
    {
        await using ApiServer server = await ApiServer.StartAsync(null, null, "iscsi=127.0.0.1:0");
        (string id, string token) = await ApiAccessTests.TokenAsync(server, "ops", "operator");
        await server.SendAsAsync(token, "POST", "/v1/volumes", """{"name":"vol","sizeBytes":1048576}""");
        await server.SendAsAsync(token, "POST", "/v1/volumes", """{"name":"vol","sizeBytes":1048576}""");
        await server.SendAsAsync(token, "DELETE", "/v1/disks/none?force=true");
        await server.SendAsAsync("guessed-secret", "GET", "/v1/node");
        await server.SendAsAsync(null, "GET", "/v1/node");
        await server.SendAsAsync(token, "GET", "/v1/volumes"); // looking is not told
        await server.SendAsync("POST", "/v1/targets", """{"name":"iqn.2026-11.org.example:t"}""");
        await server.SendAsync("POST", "/v1/targets/iqn.2026-11.org.example:t/users", """{"user":"u","secret":"chap-secret-0123"}""");
        IReadOnlyList<AuditEntry> entries = await ListAsync(server);
        Assert.Equal(
            [
                ("POST /v1/targets/iqn.2026-11.org.example:t/users", "admin", 201, null, null), ("POST /v1/targets", "admin", 201, null, "iqn.2026-11.org.example:t"),
                ("GET /v1/node", "-", 401, "no-token", null), ("GET /v1/node", "-", 401, "wrong-token", null),
                ("DELETE /v1/disks/none", id, 403, "wrong-role", null), ("POST /v1/volumes", id, 409, "name-taken", "vol"),
                ("POST /v1/volumes", id, 201, null, "vol"), ("POST /v1/tokens", "admin", 201, (string?)null, "ops, operator"),
            ],
            entries.Select(e => ($"{e.Method} {e.Path}", e.Caller, e.Status, e.Code, e.Subject)));
        Assert.All(entries, e => Assert.Equal("127.0.0.1", e.From));
        Assert.Equal(8, entries[0].Sequence);
        string files = string.Concat(Directory.EnumerateFiles(server.Test.Daemon.Settings.DataDir + "/audit").Select(ReadShared));
        foreach (string secret in new[] { token[^64..], server.Token, "guessed-secret", "chap-secret" }) Assert.DoesNotContain(secret, files, StringComparison.Ordinal);
        Assert.All(Directory.EnumerateFiles(server.Test.DataDir + "/audit"), f => Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(f)));

        // It goes on behind a restart, and can be looked through.
        await server.RestartAsync();
        await server.SendAsync("POST", "/v1/volumes", """{"name":"two","sizeBytes":1048576}""");
        Assert.Equal((9, "two"), ((await ListAsync(server))[0].Sequence, (await ListAsync(server))[0].Subject));
        Assert.Equal([5L, 4L], (await ListAsync(server, "?before=6&limit=2")).Select(e => e.Sequence));
        Assert.All(await ListAsync(server, "?kind=changes"), e => Assert.True(e.Status < 300));
        Assert.All(await ListAsync(server, "?kind=refused"), e => Assert.True(e.Status >= 400));
        foreach (string query in new[] { "?limit=0", "?limit=1001", "?kind=x", "?before=x" })
            Assert.Equal("invalid-query", (await server.SendAsync("GET", "/v1/audit" + query)).Code);
    }

    private static string ReadShared(string path)
    {
        using var reader = new StreamReader(new FileStream(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite));
        return reader.ReadToEnd();
    }

    [Fact]
    public void It_is_bounded_and_refusals_do_not_push_changes_out()
    {
        using (AuditLog log = AuditLog.Open(_folder, _ => Assert.Fail("it was not written"), fileBytes: 4096))
        {
            log.Add(Entry(201, "/v1/first"));
            for (int i = 0; i < 2000; i++) log.Add(Entry(401));
            Assert.Equal("/v1/first", Assert.Single(log.List(10, long.MaxValue, true, false)).Path);
            Assert.Equal(2001, log.List(1, long.MaxValue, false, true)[0].Sequence);
            log.Add(Entry(201, "/v1/" + new string('x', 100_000)));
            Assert.True(log.List(1, long.MaxValue, true, true)[0].Path.Length < 400);
        }

        FileInfo[] files = new DirectoryInfo(_folder).GetFiles();
        Assert.Equal(1 + AuditLog.FilesMax, files.Length);
        Assert.All(files, f => Assert.InRange(f.Length, 1, 4096));
    }

    [Fact]
    public void A_line_that_a_crash_left_half_is_passed_over()
    {
        using (AuditLog log = AuditLog.Open(_folder, _ => { }))
        {
            log.Add(Entry(201, "/v1/a"));
            log.Add(Entry(201, "/v1/b"));
        }

        string path = Path.Combine(_folder, "changes.jsonl");
        File.WriteAllBytes(path, File.ReadAllBytes(path)[..^20]);
        using AuditLog again = AuditLog.Open(_folder, _ => { });
        again.Add(Entry(201, "/v1/c"));
        again.Add(Entry(201, "/v1/d"));
        Assert.Equal(["/v1/d", "/v1/c", "/v1/a"], again.List(10, long.MaxValue, true, true).Select(e => e.Path));
    }

    [Fact]
    public void A_disk_that_takes_nothing_is_warned_of_once()
    {
        var warnings = new List<string>();
        using AuditLog log = AuditLog.Open(_folder, warnings.Add, fileBytes: 300);
        log.Add(Entry(201));
        // What stands in the way of the next file is a folder that is not empty.
        Directory.CreateDirectory(Path.Combine(_folder, "changes.jsonl.1", "full"));
        for (int i = 0; i < 5; i++) log.Add(Entry(201));
        Assert.Single(warnings);
    }
}
