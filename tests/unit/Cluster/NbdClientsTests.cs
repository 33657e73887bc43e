using BlockServer.Cluster;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Cluster;

/// <summary>Who may use a volume over NBD.</summary>
public sealed class NbdClientsTests
{
    [Theory]
    [InlineData(null, null, true)]
    [InlineData(null, "CN=any", true)]
    [InlineData("CN=web", null, false)]
    [InlineData("CN=web", "unix", false)]
    [InlineData("CN=web", "CN=web", true)]
    [InlineData("CN=web", "CN=web2", false)]
    [InlineData("CN=web", "CN=web, O=other", false)]
    [InlineData("CN=db-*;CN=web", "CN=web", true)]
    [InlineData("CN=db-*;CN=web", "CN=db-7, O=acme", true)]
    [InlineData("CN=db-?", "CN=db-17", false)]
    [InlineData("CN=web;unix", "unix", true)]
    [InlineData("CN=web;unix", "CN=unix", false)]
    [InlineData("*", "CN=any", true)]
    [InlineData("*", "unix", false)]
    [InlineData("*", null, false)]
    public void Patterns_admit_whom_they_mean(string? patterns, string? identity, bool admits) =>
        Assert.Equal(admits, NbdClients.Admits(new ExportOptions(NbdClients: patterns), identity));

    [Theory]
    [InlineData(null, null)]
    [InlineData(" ; ", null)]
    [InlineData(" CN=a ;CN=b, O=c;CN=a;", "CN=a;CN=b, O=c")]
    public void Patterns_are_kept_trimmed_and_once(string? said, string? kept) => Assert.Equal(kept, NbdClients.Normalize(said));

    [Theory]
    [InlineData("web", "'web' is no subject")]
    [InlineData("CN=a;Unix", "'Unix' is no subject")]
    [InlineData("any", "'any' is no subject")]
    [InlineData("CN=a\nb", "one line")]
    public void What_can_mean_nobody_is_refused(string patterns, string why) =>
        Assert.Contains(why, NbdClients.FaultOf(patterns), StringComparison.Ordinal);

    [Fact]
    public void Patterns_are_bounded()
    {
        Assert.Null(NbdClients.FaultOf(string.Join(';', Enumerable.Range(0, 32).Select(i => $"CN={i}"))));
        Assert.Contains("more than 32", NbdClients.FaultOf(string.Join(';', Enumerable.Range(0, 33).Select(i => $"CN={i}"))), StringComparison.Ordinal);
        Assert.Null(NbdClients.FaultOf("CN=" + new string('a', 252)));
        Assert.Contains("255", NbdClients.FaultOf("CN=" + new string('a', 253)), StringComparison.Ordinal);
    }
}
