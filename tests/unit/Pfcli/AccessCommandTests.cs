using System.Net;
using System.Text.Json;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Pfcli;

/// <summary>Tokens, tenants, the black list and the audit log by pfcli.</summary>
public class AccessCommandTests
{
    private static readonly DateTimeOffset Then = new(2026, 1, 2, 3, 4, 5, TimeSpan.Zero);
    private static readonly TokenInfo Info = new("0011223344556677", "ops", "operator", "acme", null, Then, Then.AddDays(90), false, null);
    private static readonly TenantInfo Acme = new("acme", Units.TiB, 20, null, null, Then, 2, 3 * Units.GiB, Units.GiB, 7);

    [Fact]
    public async Task A_token_is_made_and_shown_once()
    {
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/tokens", new TokenCreated(Info, "blockd_secret"), ApiJson.Default.TokenCreated, HttpStatusCode.Created);
        Assert.Equal(0, await daemon.RunAsync("create_token", "-n", "ops", "--role", "operator", "-t", "acme", "--expires", "90d"));
        CreateToken sent = JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CreateToken)!;
        Assert.Equal(("ops", "operator", "acme", 90L * 86_400), (sent.Name, sent.Role, sent.Tenant, sent.ExpiresSeconds!.Value));
        Assert.Null(sent.Volumes);
        Assert.Contains("blockd_secret", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(2, await daemon.RunAsync("create_token", "-n", "ops", "--role", "root"));
    }

    [Fact]
    public async Task A_token_that_is_written_to_a_file_is_not_shown()
    {
        string path = Path.Combine(Path.GetTempPath(), $"pfcli-{Guid.NewGuid():N}.token");
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/tokens", new TokenCreated(Info, "blockd_secret"), ApiJson.Default.TokenCreated, HttpStatusCode.Created);
        try
        {
            Assert.Equal(0, await daemon.RunAsync("create_token", "-n", "ops", "-v", "db", "-o", path));
            Assert.DoesNotContain("blockd_secret", daemon.Out, StringComparison.Ordinal);
            Assert.Equal("blockd_secret\n", await File.ReadAllTextAsync(path, TestContext.Current.CancellationToken));
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(path));
            Assert.Equal(1, await daemon.RunAsync("create_token", "-n", "ops", "-v", "db", "-o", path)); // never over a file
            Assert.Single(daemon.Bodies);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public async Task A_token_is_revoked_by_its_name()
    {
        StubDaemon daemon = new StubDaemon().Answer("GET /v1/tokens", new TokenList([Info]), ApiJson.Default.TokenList)
            .AnswerText("DELETE /v1/tokens/0011223344556677", "", HttpStatusCode.NoContent);
        Assert.Equal(1, await daemon.RunAsync("delete_token", "-n", "ops"));
        Assert.Equal(0, await daemon.RunAsync("delete_token", "-n", "ops", "--yes"));
        Assert.Equal(1, await daemon.RunAsync("delete_token", "-n", "none", "--yes"));
        Assert.Equal(0, await daemon.RunAsync("list_token"));
        Assert.Contains("tenant acme", daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Tenants_are_made_changed_listed_and_deleted()
    {
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/tenants", Acme, ApiJson.Default.TenantInfo, HttpStatusCode.Created)
            .Answer("PATCH /v1/tenants/acme", Acme, ApiJson.Default.TenantInfo).Answer("GET /v1/tenants", new TenantList([Acme]), ApiJson.Default.TenantList)
            .Answer("GET /v1/tenants/acme", Acme, ApiJson.Default.TenantInfo).AnswerText("DELETE /v1/tenants/acme?revision=7", "", HttpStatusCode.NoContent);
        Assert.Equal(0, await daemon.RunAsync("create_tenant", "-t", "acme", "--bytes", "1t", "--volumes", "20"));
        Assert.Equal(new CreateTenant("acme", Units.TiB, 20), JsonSerializer.Deserialize(daemon.Bodies[0], ApiJson.Default.CreateTenant));
        Assert.Equal(0, await daemon.RunAsync("set_tenant", "-t", "acme", "--unlimited", "bytes", "--iops", "500"));
        ChangeTenant change = JsonSerializer.Deserialize(daemon.Bodies[1], ApiJson.Default.ChangeTenant)!;
        Assert.Equal(((ulong?)null, 500UL, "bytesMax"), (change.BytesMax, change.IopsMax!.Value, Assert.Single(change.Unlimited!)));
        Assert.Equal(0, await daemon.RunAsync("list_tenant"));
        Assert.Contains("acme  acme  2        20          3 GiB        1 TiB           1 GiB  -", daemon.Out, StringComparison.Ordinal);
        Assert.Equal(1, await daemon.RunAsync("delete_tenant", "-t", "acme"));
        Assert.Equal(0, await daemon.RunAsync("delete_tenant", "-t", "acme", "--yes"));
    }

    [Fact]
    public async Task Volumes_are_listed_by_tenant()
    {
        StubDaemon daemon = new StubDaemon().Answer("GET /v1/volumes?tenant=acme", new VolumeList([]), ApiJson.Default.VolumeList);
        Assert.Equal(0, await daemon.RunAsync("list_volume", "-t", "acme"));
        Assert.StartsWith("0 volumes returned.", daemon.Out, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Somebody_is_denied_and_allowed_again()
    {
        StubDaemon daemon = new StubDaemon().Answer("POST /v1/denied", new DeniedInfo("address", "10.0.0.0/8", null, Then, 3), ApiJson.Default.DeniedInfo, HttpStatusCode.Created)
            .AnswerText("DELETE /v1/denied?kind=address&value=10.0.0.0%2F8", "", HttpStatusCode.NoContent)
            .Answer("GET /v1/tokens", new TokenList([Info]), ApiJson.Default.TokenList);
        Assert.Equal(0, await daemon.RunAsync("deny", "--address", "10.0.0.0/8", "--yes"));
        Assert.Equal("address 10.0.0.0/8 is denied; 3 connections were cut.\n", daemon.Out);
        Assert.Equal(0, await daemon.RunAsync("allow", "--address", "10.0.0.0/8"));
        Assert.Equal(0, await daemon.RunAsync("deny", "--token_name", "ops", "--yes"));
        Assert.Equal(Info.Id, JsonSerializer.Deserialize(daemon.Bodies[1], ApiJson.Default.Deny)!.Value);
        Assert.Equal(2, await daemon.RunAsync("deny", "--yes"));
        Assert.Equal(2, await daemon.RunAsync("deny", "--address", "::1", "--initiator", "iqn.x", "--yes"));
    }

    [Fact]
    public async Task The_audit_log_is_listed()
    {
        var entry = new AuditEntry(9, Then, "admin", "127.0.0.1", "POST", "/v1/volumes", "db", 409, "name-taken");
        StubDaemon daemon = new StubDaemon().Answer("GET /v1/audit?limit=5&kind=refused&before=10", new AuditList([entry]), ApiJson.Default.AuditList);
        Assert.Equal(0, await daemon.RunAsync("list_audit", "-n", "5", "--kind", "refused", "--before", "10"));
        Assert.Contains("POST /v1/volumes  db       409 name-taken", daemon.Out, StringComparison.Ordinal);
    }
}
