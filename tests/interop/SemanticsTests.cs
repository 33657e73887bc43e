using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>semantics.py by libnbd against the real daemon, over TCP and unix sockets. Debian's libnbd 1.14 knows no extended
/// headers: those are judged by the unit tests only.</summary>
public sealed class SemanticsTests
{
    [Theory]
    [InlineData("structured")]
    [InlineData("status")]
    [InlineData("disorder")]
    [InlineData("coherent")]
    [InlineData("changes")]
    [InlineData("sizes")]
    [InlineData("errors")]
    public void Holds(string check)
    {
        using var blockd = new Blockd("demo", "64m");
        Judge(check, blockd.Uri);
        Assert.Equal(0, blockd.Stop());
        using var second = new Blockd("demo", "64m");
        Judge(check, second.UnixUri);
        Assert.Equal(0, second.Stop());
    }

    [Fact]
    public void A_full_store_says_so_and_keeps_what_it_acknowledged()
    {
        using var blockd = new Blockd("demo", "2g");
        Judge("full", blockd.UnixUri);
        Assert.Equal(0, blockd.Stop());
    }

    [Fact]
    public void A_read_only_export_takes_no_change()
    {
        using var blockd = new Blockd("demo", "64m");
        Blockd.Run(
            Path.Combine(Blockd.Root, "out", "pfcli"), "--server", blockd.ApiUrl, "--token-file",
            Path.Combine(blockd.Directory, "admin.token"), "export_volume", "-v", "demo", "--read-only");
        Judge("readonly", blockd.Uri);
        Assert.Equal(0, blockd.Stop());
    }

    private static void Judge(string check, string uri) => Assert.Contains(
        "held", Blockd.Run("/usr/bin/python3", Path.Combine(Blockd.Root, "tests", "interop", "semantics.py"), check, uri), StringComparison.Ordinal);
}
