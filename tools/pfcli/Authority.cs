using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace BlockServer.Pfcli;

/// <summary>Whom pfcli believes that a server is the one it names.</summary>
internal static class Authority
{
    /// <summary>Lets <paramref name="transport"/> trust only what the authorities in a PEM file signed; null: the system's.</summary>
    public static HttpMessageHandler Trust(HttpMessageHandler transport, string? path)
    {
        if (path is null || transport is not SocketsHttpHandler handler) return transport;
        var authorities = new X509Certificate2Collection();
        try
        {
            authorities.ImportFromPem(File.ReadAllText(path));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or CryptographicException or ArgumentException)
        {
            throw new CliException($"the authority '{path}' cannot be read ({e.Message}); give --ca-file the PEM file that signed the server's certificate", inner: e);
        }

        if (authorities.Count == 0) throw new CliException($"'{path}' holds no certificate in PEM form; give --ca-file the one that signed the server's");
        handler.SslOptions.CertificateChainPolicy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust, RevocationMode = X509RevocationMode.NoCheck, DisableCertificateDownloads = true,
        };
        handler.SslOptions.CertificateChainPolicy.CustomTrustStore.AddRange(authorities);
        return handler;
    }
}
