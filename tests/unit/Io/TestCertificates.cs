using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace BlockServer.Tests.Unit.Io;

/// <summary>An authority of its own and what it signs, as PEM files in one folder.</summary>
internal sealed class TestCertificates
{
    public const string ForServers = "1.3.6.1.5.5.7.3.1";
    public const string ForClients = "1.3.6.1.5.5.7.3.2";

    private readonly string _directory;
    private readonly X509Certificate2 _authority;

    public TestCertificates(string directory, string name)
    {
        _directory = directory;
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = new CertificateRequest("CN=" + name, key, HashAlgorithmName.SHA256);
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(true, false, 0, true));
        request.CertificateExtensions.Add(new X509KeyUsageExtension(X509KeyUsageFlags.KeyCertSign, true));
        _authority = request.CreateSelfSigned(DateTimeOffset.UtcNow.AddYears(-3), DateTimeOffset.UtcNow.AddYears(3));
        Path = System.IO.Path.Combine(directory, name + ".pem");
        File.WriteAllText(Path, _authority.ExportCertificatePem());
    }

    /// <summary>The authority's file.</summary>
    public string Path { get; }

    /// <summary>Signs; writes NAME.pem and NAME.key and answers the pair.</summary>
    public X509Certificate2 Sign(string name, string? use, int fromDays = -1, int untilDays = 30)
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = new CertificateRequest("CN=" + name, key, HashAlgorithmName.SHA256);
        request.CertificateExtensions.Add(new X509BasicConstraintsExtension(false, false, 0, true));
        if (use is not null) request.CertificateExtensions.Add(new X509EnhancedKeyUsageExtension([new Oid(use)], false));
        var names = new SubjectAlternativeNameBuilder();
        names.AddDnsName("localhost");
        request.CertificateExtensions.Add(names.Build());
        DateTimeOffset now = DateTimeOffset.UtcNow;
        using X509Certificate2 signed = request.Create(_authority, now.AddDays(fromDays), now.AddDays(untilDays), Guid.NewGuid().ToByteArray());
        File.WriteAllText(CertificateOf(name), signed.ExportCertificatePem());
        File.WriteAllText(KeyOf(name), key.ExportPkcs8PrivateKeyPem());
        return signed.CopyWithPrivateKey(key);
    }

    public string CertificateOf(string name) => System.IO.Path.Combine(_directory, name + ".pem");

    public string KeyOf(string name) => System.IO.Path.Combine(_directory, name + ".key");
}
