using System.Net;
using System.Net.Security;
using System.Security.Cryptography.X509Certificates;
using BlockServer.Blockd;
using BlockServer.Tests.Unit.Io;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The API over HTTPS, and TLS files that are read again.</summary>
public sealed class HttpsTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("blockd-https-").FullName;
    private readonly TestCertificates _pki;

    public HttpsTests()
    {
        _pki = new TestCertificates(_folder, "authority");
        _pki.Sign("server", TestCertificates.ForServers).Dispose();
    }

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private Task<ApiServer> StartAsync() => ApiServer.StartAsync(
        null, null, $"tls-cert={_pki.CertificateOf("server")}", $"tls-key={_pki.KeyOf("server")}", "api-tls=always");

    private async Task<(HttpStatusCode Status, string Serial)> GetAsync(ApiServer server, string host, bool isTrusted = true)
    {
        string serial = "";
        using var handler = new SocketsHttpHandler { UseProxy = false };
        handler.SslOptions.RemoteCertificateValidationCallback = (_, certificate, _, errors) =>
        {
            serial = certificate!.GetSerialNumberString();
            return (errors & ~SslPolicyErrors.RemoteCertificateNameMismatch) == SslPolicyErrors.None; // the Host header is wrong on purpose
        };
        handler.SslOptions.CertificateChainPolicy = new X509ChainPolicy { TrustMode = X509ChainTrustMode.CustomRootTrust, RevocationMode = X509RevocationMode.NoCheck };
        if (isTrusted) handler.SslOptions.CertificateChainPolicy.CustomTrustStore.ImportFromPemFile(_pki.Path);
        using var client = new HttpClient(handler);
        using var request = new HttpRequestMessage(HttpMethod.Get, $"https://localhost:{server.Port}/v1/node");
        request.Headers.Host = host;
        request.Headers.Authorization = new("Bearer", server.Token);
        using HttpResponseMessage answer = await client.SendAsync(request, TestContext.Current.CancellationToken);
        return (answer.StatusCode, serial);
    }

    [Fact]
    public async Task The_API_speaks_TLS_by_the_certificate_and_nothing_else_there()
    {
        await using ApiServer server = await StartAsync();
        Assert.Equal(HttpStatusCode.OK, (await GetAsync(server, "localhost")).Status);
        Assert.Equal(HttpStatusCode.MisdirectedRequest, (await GetAsync(server, "evil.example")).Status);
        await Assert.ThrowsAsync<HttpRequestException>(() => GetAsync(server, "localhost", isTrusted: false));
        Assert.NotEqual(200, (await server.SendAsync("GET", "/v1/node")).Status); // plain HTTP
    }

    [Fact]
    public async Task A_new_certificate_is_used_without_a_restart_and_a_broken_one_is_not()
    {
        await using ApiServer server = await StartAsync();
        string first = (await GetAsync(server, "localhost")).Serial;
        TlsFiles files = server.Test.Daemon.Tls!;
        Assert.False(files.Look());
        _pki.Sign("server", TestCertificates.ForServers).Dispose();
        File.SetLastWriteTimeUtc(_pki.CertificateOf("server"), DateTime.UnixEpoch); // whatever the clock's grain
        Assert.True(files.Look());
        string second = (await GetAsync(server, "localhost")).Serial;
        Assert.NotEqual(first, second);
        await File.WriteAllTextAsync(_pki.KeyOf("server"), "no key", TestContext.Current.CancellationToken);
        Assert.False(files.Look());
        Assert.Equal(second, (await GetAsync(server, "localhost")).Serial);
        Assert.Same(files.Current, files.Current);
    }

    [Theory]
    [InlineData("api=192.0.2.1:1", "refused --api")]
    [InlineData("api=[::]:1", "refused --api")]
    [InlineData("api=192.0.2.1:1 cert", "False")]
    [InlineData("api=192.0.2.1:1 insecure=true", "False")]
    [InlineData("api-tls=always", "refused --api-tls")]
    [InlineData("api-tls=always cert", "True")]
    [InlineData("api-tls=never cert", "refused --api-tls")]
    public void Beyond_loopback_the_API_needs_a_certificate_or_a_word(string given, string expected)
    {
        var values = new Dictionary<string, IReadOnlyList<string>>();
        foreach (string word in given.Split(' '))
        {
            if (word == "cert") (values["tls-cert"], values["tls-key"]) = ([_pki.Path], [_pki.Path]);
            else values[word[..word.IndexOf('=', StringComparison.Ordinal)]] = [word[(word.IndexOf('=', StringComparison.Ordinal) + 1)..]];
        }

        string found;
        try
        {
            found = SettingsReader.Read(values, "/tmp/nothing", 1UL << 30).IsApiAlwaysTls.ToString();
        }
        catch (SettingException e)
        {
            found = "refused " + e.Name;
        }

        Assert.Equal(expected, found);
    }
}
