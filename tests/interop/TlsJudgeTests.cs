using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>Foreign TLS clients (gnutls under libnbd and qemu) against the real daemon, with openssl's certificates.</summary>
public sealed class TlsJudgeTests : IDisposable
{
    private readonly Pki _pki = new();

    public void Dispose() => _pki.Dispose();

    [Fact]
    public void Required_with_client_certificates_serves_those_who_have_one_and_nobody_else()
    {
        using var blockd = new Blockd("demo", "64m", ["--tls", "required", .. Server(), .. Clients("required")]);
        string image = Path.Combine(blockd.Directory, "in.img"), back = Path.Combine(blockd.Directory, "out.img");
        Blockd.Run("/sbin/mkfs.ext4", "-q", "-d", AppContext.BaseDirectory, image, "64m");
        Blockd.Run("nbdcopy", "--flush", image, Secure(blockd.Uri, _pki.Client));
        Blockd.Run("nbdcopy", Secure(blockd.UnixUri, _pki.Client), back);
        Blockd.Run("cmp", image, back);
        Assert.Contains("newstyle-fixed with TLS", Blockd.Run("nbdinfo", Secure(blockd.Uri, _pki.Client)), StringComparison.Ordinal);
        Assert.Contains("demo", Blockd.Run("nbdinfo", "--list", Secure($"nbd://127.0.0.1:{blockd.Port}", _pki.Client)), StringComparison.Ordinal);

        Assert.NotEqual(0, Blockd.Try("nbdinfo", blockd.Uri).Code);
        Assert.NotEqual(0, Blockd.Try("nbdinfo", "--list", blockd.Uri).Code);
        foreach (string folder in new[] { _pki.Stranger, _pki.Late, _pki.NoCertificate })
            Assert.NotEqual(0, Blockd.Try("nbdinfo", "--size", Secure(blockd.Uri, folder)).Code);
        Assert.Equal("67108864", Blockd.Run("nbdinfo", "--size", Secure(blockd.Uri, _pki.Client)).Trim());
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void A_volume_that_is_for_one_client_is_shown_to_him_and_to_nobody_else()
    {
        using var blockd = new Blockd("demo", "8m", [.. Server(), .. Clients("optional")]);
        var pfcli = new Pfcli(blockd);
        pfcli.Run("create_volume", "-v", "other", "-s", "8m");
        pfcli.Run("export_volume", "-v", "demo", "--nbd-clients", "CN=client");
        pfcli.Run("export_volume", "-v", "other", "--nbd-clients", "CN=else*", "unix");
        string all = $"nbd://127.0.0.1:{blockd.Port}";
        string his = Blockd.Run("nbdinfo", "--list", Secure(all, _pki.Client));
        Assert.Contains("demo", his, StringComparison.Ordinal);
        Assert.DoesNotContain("other", his, StringComparison.Ordinal);
        Assert.Equal("8388608", Blockd.Run("nbdinfo", "--size", Secure(blockd.Uri, _pki.Client)).Trim());
        Assert.NotEqual(0, Blockd.Try("nbdinfo", "--size", Secure(all + "/other", _pki.Client)).Code);
        foreach (string uri in new[] { blockd.Uri, blockd.UnixUri, Secure(blockd.Uri, _pki.NoCertificate) })
            Assert.NotEqual(0, Blockd.Try("nbdinfo", "--size", uri).Code);
        Assert.DoesNotContain("demo", Blockd.Try("nbdinfo", "--list", Secure(all, _pki.NoCertificate)).Output, StringComparison.Ordinal);
        Assert.Equal("8388608", Blockd.Run("nbdinfo", "--size", blockd.UnixUri.Replace("demo", "other", StringComparison.Ordinal)).Trim());
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Qemu_writes_and_compares_over_TLS_1_2_and_1_3_and_gets_no_older_one()
    {
        using var blockd = new Blockd("demo", "64m", [.. Server(), .. Clients("required")]);
        string source = Path.Combine(blockd.Directory, "in.qcow2");
        Blockd.Run("qemu-img", "create", "-q", "-f", "qcow2", source, "64m");
        Blockd.Run("qemu-io", "-c", "write -P 0x5a 1m 3m", "-c", "write -P 0xa5 32m 4k", source);
        foreach (string version in new[] { "1.2", "1.3" })
        {
            string[] target = ["--object", Credentials(version), "--image-opts", Target(blockd)];
            Blockd.Run("qemu-img", ["convert", "-n", "--object", Credentials(version), "--target-image-opts", "-f", "qcow2", source, Target(blockd)]);
            Blockd.Run("qemu-img", ["compare", "--object", Credentials(version), "--image-opts", $"driver=qcow2,file.driver=file,file.filename={source}", Target(blockd)]);
            Assert.Contains("64 MiB", Blockd.Run("qemu-img", ["info", .. target]), StringComparison.Ordinal);
        }

        Assert.NotEqual(0, Blockd.Try("qemu-img", ["info", "--object", Credentials("1.1"), "--image-opts", Target(blockd)]).Code);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Optional_serves_with_and_without()
    {
        using var blockd = new Blockd("demo", "64m", Server());
        Assert.Contains("without TLS", Blockd.Run("nbdinfo", blockd.Uri), StringComparison.Ordinal);
        Assert.Contains("with TLS", Blockd.Run("nbdinfo", Secure(blockd.Uri, _pki.NoCertificate)), StringComparison.Ordinal);
        Assert.Contains("with TLS", Blockd.Run("nbdinfo", Secure(blockd.UnixUri, _pki.Client)), StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Many_connections_verify_random_writes_over_TLS()
    {
        using var blockd = new Blockd("demo", "64m", Server());
        const string Script = """
            import nbd, random, sys
            handles = []
            for i in range(8):
                h = nbd.NBD()
                h.set_uri_allow_local_file(True)
                h.connect_uri(sys.argv[1])
                assert h.get_tls_negotiated() and h.get_protocol() == "newstyle-fixed"
                handles.append(h)
            dice = random.Random(7)
            model = bytearray(64 << 20)
            for i in range(600):
                h = handles[dice.randrange(8)]
                at = dice.randrange(len(model)); n = min(len(model) - at, dice.choice([1, 511, 4096, 70000, 1 << 20]))
                data = dice.randbytes(n)
                h.pwrite(data, at)
                model[at:at + n] = data
            for i in range(0, 64, 4):
                assert handles[i % 8].pread(4 << 20, i << 20) == model[i << 20:(i + 4) << 20], i
            for h in handles: h.shutdown()
            print("verified")
            """;
        Assert.Contains("verified", Blockd.Run("/usr/bin/python3", "-c", Script, Secure(blockd.Uri, _pki.Client)), StringComparison.Ordinal);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void Wrong_files_and_contradictions_are_refused_by_name_and_nothing_is_made()
    {
        string data = Path.Combine(Path.GetTempPath(), "blockd-never-" + Path.GetRandomFileName());
        (string[] Arguments, string Word)[] cases =
        [
            (["--tls-cert", _pki.CertificateOf("expired"), "--tls-key", _pki.KeyOf("expired")], "expired-cert.pem"),
            (["--tls-cert", _pki.CertificateOf("client"), "--tls-key", _pki.KeyOf("client")], "client-cert.pem"),
            (["--tls-cert", _pki.CertificateOf("server"), "--tls-key", _pki.KeyOf("client")], "client-key.pem"),
            (["--tls-cert", "/nonexistent.pem", "--tls-key", _pki.KeyOf("client")], "/nonexistent.pem"),
            (["--tls-cert", _pki.CertificateOf("server")], "--tls-key"),
            (["--tls", "required"], "--tls"),
            ([.. Server(), "--tls-clients", "required"], "--tls-ca"),
            ([.. Server(), "--nbd", "0.0.0.0:0"], "--tls-clients required"),
            ([.. Server(), .. Clients("required"), "--tls", "off"], "--tls"),
        ];
        foreach ((string[] arguments, string word) in cases)
        {
            (int code, string output) = Blockd.Try(Blockd.Program, ["--data-dir", data, "--api", "none", .. arguments]);
            Assert.NotEqual(0, code);
            Assert.Contains(word, output, StringComparison.Ordinal);
            Assert.False(Directory.Exists(data), string.Join(' ', arguments));
        }
    }

    private static string Secure(string uri, string folder) =>
        "nbds" + uri["nbd".Length..] + (uri.Contains('?', StringComparison.Ordinal) ? "&" : "?") + "tls-certificates=" + folder;

    private static string Target(Blockd blockd) => $"driver=nbd,host=127.0.0.1,port={blockd.Port},export=demo,tls-creds=t";

    private string Credentials(string version) =>
        $"tls-creds-x509,id=t,dir={_pki.Client},endpoint=client,priority=NORMAL:-VERS-ALL:+VERS-TLS{version}";

    private string[] Server() => ["--tls-cert", _pki.CertificateOf("server"), "--tls-key", _pki.KeyOf("server")];

    private string[] Clients(string mode) => ["--tls-ca", _pki.CertificateOf("ours"), "--tls-clients", mode];
}
