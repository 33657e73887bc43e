using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>What the real daemon does to too many, too slow and untrustworthy connections.</summary>
public class LimitsTests
{
    private const string Begin = """
        import socket, sys, time
        port = int(sys.argv[1])
        def come():
            s = socket.create_connection(("127.0.0.1", port)); s.settimeout(30)
            return s
        def greeted(s):
            try: return len(s.recv(18, socket.MSG_WAITALL)) == 18
            except ConnectionResetError: return False
        def ended(s):
            try: return s.recv(100) == b""
            except ConnectionResetError: return True

        """;

    [Fact]
    public void The_33rd_connection_of_an_address_is_refused_until_one_leaves()
    {
        using var blockd = new Blockd("demo", "8m");
        Run(blockd, """
            many = [come() for i in range(32)]
            assert all(greeted(s) for s in many)
            assert not greeted(come())
            many.pop().close()
            for i in range(100):
                s = come()
                if greeted(s): break
                time.sleep(0.1)
            else: raise AssertionError("never admitted again")
            """);
        Assert.Equal(0, blockd.Stop());
        Assert.Contains("more than 32 connections of 127.0.0.1", blockd.Said, StringComparison.Ordinal);
    }

    [Fact]
    public void The_oldest_of_65_that_do_not_negotiate_gives_way_and_the_81st_connection_is_refused()
    {
        using var blockd = new Blockd("demo", "8m", "--connections", "80", "--connections-per-address", "1000");
        Run(blockd, """
            import nbd
            served = [nbd.NBD() for i in range(20)]
            for h in served: h.connect_uri(f"nbd://127.0.0.1:{port}/demo")
            silent = []
            for i in range(60):
                silent.append(come())
                assert greeted(silent[-1])
            assert not greeted(come())
            for h in served[10:]: h.shutdown()
            time.sleep(1)
            for i in range(5):
                silent.append(come())
                assert greeted(silent[-1])
            assert ended(silent[0])
            for h in served[:10]: assert h.pread(512, 0) == bytes(512)
            """);
        Assert.Equal(0, blockd.Stop());
        Assert.Contains("more than 80 connections", blockd.Said, StringComparison.Ordinal);
        Assert.Contains("gave way to newer connections", blockd.Said, StringComparison.Ordinal);
    }

    [Fact]
    public void A_client_that_does_not_negotiate_is_dropped()
    {
        using var blockd = new Blockd("demo", "8m");
        Run(blockd, "s = come()\nassert greeted(s) and ended(s)");
        Assert.Equal(0, blockd.Stop());
        Assert.Contains("the handshake took too long", blockd.Said, StringComparison.Ordinal);
    }

    [Fact]
    public void Five_failed_TLS_handshakes_block_an_address()
    {
        using var pki = new Pki();
        using var blockd = new Blockd("demo", "8m", "--tls-cert", pki.CertificateOf("server"), "--tls-key", pki.KeyOf("server"));
        Run(blockd, """
            def fail():
                s = come()
                if not greeted(s): return False
                s.sendall(b"\0\0\0\3IHAVEOPT\0\0\0\5\0\0\0\0")
                assert len(s.recv(20, socket.MSG_WAITALL)) == 20
                s.sendall(b"this is not TLS, whatever it may be")
                while not ended(s): pass
                return True
            assert [fail() for i in range(5)] == [True] * 5
            for i in range(100):
                if not greeted(come()): break
                time.sleep(0.05)
            else: raise AssertionError("never blocked")
            """);
        Assert.Equal("8388608", Blockd.Run("nbdinfo", "--size", blockd.UnixUri).Trim()); // nobody else is
        Assert.Equal(0, blockd.Stop());
        Assert.Contains("is blocked for 30 s", blockd.Said, StringComparison.Ordinal);
    }

    private static void Run(Blockd blockd, string script) => Blockd.Run(
        "/usr/bin/python3", "-c", Begin + script, blockd.Port.ToString(System.Globalization.CultureInfo.InvariantCulture));
}
