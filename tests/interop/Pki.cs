namespace BlockServer.Tests.Interop;

/// <summary>Authorities and certificates made by openssl, in folders as libnbd and qemu want them.</summary>
internal sealed class Pki : IDisposable
{
    private readonly string _root = Directory.CreateTempSubdirectory("blockd-pki-").FullName;

    public Pki()
    {
        Authority("ours");
        Sign("ours", "server", "serverAuth", 20);
        Sign("ours", "expired", "serverAuth", -1);
        Sign("ours", "client", "clientAuth", 20);
        Sign("ours", "late", "clientAuth", -1);
        Authority("theirs");
        Sign("theirs", "stranger", "clientAuth", 20);
        Client = ClientFolder("client");
        Stranger = ClientFolder("stranger");
        Late = ClientFolder("late");
        NoCertificate = ClientFolder(null);
    }

    /// <summary>A client's folder with our authority and a certificate that it signed.</summary>
    public string Client { get; }

    /// <summary>The same with a certificate of another authority.</summary>
    public string Stranger { get; }

    /// <summary>The same with one that has expired.</summary>
    public string Late { get; }

    /// <summary>Our authority and nothing else.</summary>
    public string NoCertificate { get; }

    public string CertificateOf(string name) => Path.Combine(_root, name + "-cert.pem");

    public string KeyOf(string name) => Path.Combine(_root, name + "-key.pem");

    public void Dispose() => Directory.Delete(_root, recursive: true);

    private void Authority(string name) => Blockd.Run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
        "-subj", "/CN=" + name, "-keyout", KeyOf(name), "-out", CertificateOf(name));

    private void Sign(string authority, string name, string use, int days)
    {
        string request = Path.Combine(_root, name + ".csr"), extensions = Path.Combine(_root, name + ".ext");
        File.WriteAllText(extensions, $"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={use}\n");
        // RSA here, elliptic curves above: both kinds are met in the field.
        Blockd.Run("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=" + name, "-keyout", KeyOf(name), "-out", request);
        Blockd.Run(
            "openssl", "x509", "-req", "-in", request, "-CA", CertificateOf(authority), "-CAkey", KeyOf(authority), "-CAcreateserial",
            "-days", days.ToString(System.Globalization.CultureInfo.InvariantCulture), "-extfile", extensions, "-out", CertificateOf(name));
    }

    private string ClientFolder(string? name)
    {
        string folder = Directory.CreateDirectory(Path.Combine(_root, "folder-" + (name ?? "none"))).FullName;
        File.Copy(CertificateOf("ours"), Path.Combine(folder, "ca-cert.pem"));
        if (name is null) return folder;
        File.Copy(CertificateOf(name), Path.Combine(folder, "client-cert.pem"));
        File.Copy(KeyOf(name), Path.Combine(folder, "client-key.pem"));
        return folder;
    }
}
