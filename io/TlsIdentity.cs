using System.Net.Security;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using BlockServer.Core;

namespace BlockServer.Io;

/// <summary>What a client must show of itself.</summary>
public enum TlsClients
{
    /// <summary>Nothing; it is not asked.</summary>
    None,

    /// <summary>A certificate if it has one; one that does not verify is refused.</summary>
    Optional,

    /// <summary>A certificate that one of the authorities signed.</summary>
    Required,
}

/// <summary>The server's certificate, key and rules: read and checked once, then unchanged. Any thread.</summary>
public sealed class TlsIdentity
{
    private const string ServerUse = "1.3.6.1.5.5.7.3.1";

    // Forward secret and authenticated only; every TLS 1.3 suite is both.
#pragma warning disable CA1416 // This room is for Linux only.
    private static readonly CipherSuitesPolicy s_suites = new(
    [
        TlsCipherSuite.TLS_AES_256_GCM_SHA384, TlsCipherSuite.TLS_AES_128_GCM_SHA256,
        TlsCipherSuite.TLS_CHACHA20_POLY1305_SHA256,
        TlsCipherSuite.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TlsCipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        TlsCipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TlsCipherSuite.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TlsCipherSuite.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TlsCipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ]);
#pragma warning restore CA1416

    private readonly SslStreamCertificateContext _certificate;
    private readonly X509Certificate2Collection _authorities;

    private TlsIdentity(SslStreamCertificateContext certificate, X509Certificate2Collection authorities, TlsClients clients)
    {
        _certificate = certificate;
        _authorities = authorities;
        Clients = clients;
    }

    /// <summary>What is asked of clients.</summary>
    public TlsClients Clients { get; }

    /// <summary>
    /// Reads PEM files: the server's certificate with the intermediates behind it, its key, and the authorities that
    /// sign clients (null with <see cref="TlsClients.None"/>). Throws <see cref="IOException"/> that names the file and
    /// says what is wrong with it: missing, not PEM, not a pair, not yet or no longer valid, made for another use.
    /// </summary>
    public static TlsIdentity Load(string certificatePath, string keyPath, string? authorityPath, TlsClients clients, IWallClock clock)
    {
        X509Certificate2Collection chain = ReadMany(certificatePath);
        X509Certificate2 own = chain[0];
        CheckTime(own, certificatePath, clock);
        foreach (X509EnhancedKeyUsageExtension use in own.Extensions.OfType<X509EnhancedKeyUsageExtension>())
        {
            if (!use.EnhancedKeyUsages.Cast<Oid>().Any(oid => oid.Value == ServerUse))
                throw new IOException($"{certificatePath}: the certificate of {own.Subject} is not made for servers (extended key usage)");
        }

        X509Certificate2 pair = WithKey(own, certificatePath, keyPath);
        chain.RemoveAt(0);
        var authorities = new X509Certificate2Collection();
        if (authorityPath is not null)
        {
            authorities = ReadMany(authorityPath);
            foreach (X509Certificate2 authority in authorities) CheckTime(authority, authorityPath, clock);
        }

        Check.That(clients == TlsClients.None || authorities.Count > 0);
        // Offline: nothing is fetched from addresses that a certificate names.
        return new TlsIdentity(SslStreamCertificateContext.Create(pair, chain, offline: true), authorities, clients);
    }

    /// <summary>The certificate is made for a server of this name, or address.</summary>
    public bool IsNamed(string host) => _certificate.TargetCertificate.MatchesHostname(host, allowWildcards: true, allowCommonName: false);

    /// <summary>The rules of a handshake in which clients are asked for nothing: they prove themselves otherwise.</summary>
    public SslServerAuthenticationOptions OptionsWithoutClients() => new()
    {
        ServerCertificateContext = _certificate,
        EnabledSslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13,
        EncryptionPolicy = EncryptionPolicy.RequireEncryption,
        CipherSuitesPolicy = s_suites,
        AllowRenegotiation = false,
        AllowTlsResume = false,
        ClientCertificateRequired = false,
        CertificateRevocationCheckMode = X509RevocationMode.NoCheck,
    };

    /// <summary>The rules of one handshake.</summary>
    internal SslServerAuthenticationOptions Options() => new()
    {
        ServerCertificateContext = _certificate,
        EnabledSslProtocols = SslProtocols.Tls12 | SslProtocols.Tls13,
        EncryptionPolicy = EncryptionPolicy.RequireEncryption,
        CipherSuitesPolicy = s_suites,
        AllowRenegotiation = false,
        AllowTlsResume = false, // a ticket would be a second way to prove who one is
        ClientCertificateRequired = Clients != TlsClients.None,
        CertificateRevocationCheckMode = X509RevocationMode.NoCheck,
        CertificateChainPolicy = ChainPolicy(),
        RemoteCertificateValidationCallback = (_, certificate, _, errors) =>
            certificate is null ? Clients != TlsClients.Required : errors == SslPolicyErrors.None,
    };

    private X509ChainPolicy ChainPolicy()
    {
        var policy = new X509ChainPolicy
        {
            TrustMode = X509ChainTrustMode.CustomRootTrust,
            RevocationMode = X509RevocationMode.NoCheck,
            DisableCertificateDownloads = true,
        };
        policy.CustomTrustStore.AddRange(_authorities);
        return policy;
    }

    private static X509Certificate2Collection ReadMany(string path)
    {
        var found = new X509Certificate2Collection();
        try
        {
            found.ImportFromPem(File.ReadAllText(path));
        }
        catch (Exception e) when (e is CryptographicException or ArgumentException or UnauthorizedAccessException or IOException)
        {
            throw new IOException($"{path}: {e.Message}", e);
        }

        return found.Count > 0 ? found : throw new IOException($"{path}: it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)");
    }

    private static X509Certificate2 WithKey(X509Certificate2 own, string certificatePath, string keyPath)
    {
        string text;
        try
        {
            text = File.ReadAllText(keyPath);
        }
        catch (Exception e) when (e is UnauthorizedAccessException or IOException)
        {
            throw new IOException($"{keyPath}: {e.Message}", e);
        }

        if (text.Contains("ENCRYPTED", StringComparison.Ordinal))
            throw new IOException($"{keyPath}: the key is encrypted; give one without a passphrase, readable by the daemon's user only");
        try
        {
            return X509Certificate2.CreateFromPem(own.ExportCertificatePem(), text);
        }
        catch (Exception e) when (e is CryptographicException or ArgumentException)
        {
            throw new IOException($"{keyPath}: it is not the private key (PEM) of the certificate in {certificatePath}: {e.Message}", e);
        }
    }

    private static void CheckTime(X509Certificate2 certificate, string path, IWallClock clock)
    {
        DateTime now = clock.UtcNow.UtcDateTime;
        DateTime from = certificate.NotBefore.ToUniversalTime(), until = certificate.NotAfter.ToUniversalTime();
        if (now > until) throw new IOException($"{path}: the certificate of {certificate.Subject} expired at {until:u}");
        if (now < from) throw new IOException($"{path}: the certificate of {certificate.Subject} is not valid before {from:u}");
    }
}
