using System.Net;
using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Who may log in where.</summary>
public sealed class IscsiRulesTests
{
    private const string Name = "iqn.2026-11.org.example:one";
    private static readonly IscsiAuthentication s_chap = new(new Dictionary<string, byte[]> { ["alice"] = new byte[16] });

    [Theory]
    [InlineData("*", true)]
    [InlineData("iqn.2026-11.org.example:one", true)]
    [InlineData("iqn.2026-11.org.example:on", false)]
    [InlineData("iqn.2026-11.org.example:one1", false)]
    [InlineData("iqn.2026-11.org.example:*", true)]
    [InlineData("*:one", true)]
    [InlineData("*one*", true)]
    [InlineData("iqn.*.org.*:o?e", true)]
    [InlineData("iqn.*.com.*", false)]
    [InlineData("?", false)]
    [InlineData("**e", true)]
    [InlineData("*a*b*c*", false)]
    public void A_pattern_fits_the_whole_name(string pattern, bool fits) => Assert.Equal(fits, NamePattern.Matches(pattern, Name));

    [Theory]
    [InlineData("IQN.1993-08.org.Debian:01:ab", "iqn.1993-08.org.debian:01:ab")]
    [InlineData("eui.02004567A425678D", "eui.02004567a425678d")]
    [InlineData("iqn.*", "iqn.*")]
    [InlineData("debian", null)] // neither a name nor a pattern
    [InlineData("", null)]
    [InlineData("iqn.2026-11.org.example:a b", null)]
    [InlineData("iqn.2026-11.org.example:[ab]*", null)]
    public void Patterns_are_names_or_have_wildcards(string text, string? kept) => Assert.Equal(kept, IscsiRules.NormalizePattern(text));

    [Theory]
    [InlineData("10.0.0.7", "10.0.0.7/32")]
    [InlineData("10.0.0.0/24", "10.0.0.0/24")]
    [InlineData("fd00::/64", "fd00::/64")]
    [InlineData("::1", "::1/128")]
    [InlineData("10.0.0.7/24", null)]
    [InlineData("10", null)]
    [InlineData("10.0.0.0/33", null)]
    [InlineData("host", null)]
    [InlineData("", null)]
    public void Networks_are_exact(string text, string? kept) => Assert.Equal(kept, IscsiRules.NormalizeNetwork(text));

    [Theory]
    [InlineData("10.0.0.7:1", true)]
    [InlineData("10.0.1.7:1", false)]
    [InlineData("[::ffff:10.0.0.7]:1", true)]
    [InlineData("[fd00::1]:1", false)]
    [InlineData("garbage", false)]
    public void A_rule_with_a_network_lets_in_who_comes_from_there(string peer, bool isLetIn) =>
        Assert.Equal(isLetIn, IscsiRules.IsLetIn([new TargetAccess("*", "10.0.0.0/24")], Name, IscsiRules.AddressOf(peer)));

    [Fact]
    public void Name_and_network_of_one_rule_must_both_fit()
    {
        TargetAccess[] rules = [new("iqn.2026-11.org.example:one", "10.0.0.0/24"), new("iqn.2026-11.org.example:two", null)];
        Assert.True(IscsiRules.IsLetIn(rules, Name, IPAddress.Parse("10.0.0.1")));
        Assert.False(IscsiRules.IsLetIn(rules, Name, IPAddress.Parse("10.9.0.1")));
        Assert.True(IscsiRules.IsLetIn(rules, "iqn.2026-11.org.example:two", IPAddress.Parse("10.9.0.1")));
        Assert.False(IscsiRules.IsLetIn([], Name, IPAddress.Loopback));
    }

    [Theory]
    [InlineData(true, false, false, IscsiLoginStatus.Success)]
    [InlineData(false, false, false, IscsiLoginStatus.AuthorizationFailure)]
    [InlineData(false, true, false, IscsiLoginStatus.Success)]
    [InlineData(false, false, true, IscsiLoginStatus.Success)]
    public void Beyond_loopback_a_target_without_chap_is_refused_unless_insecure(bool isLocal, bool hasChap, bool insecure, IscsiLoginStatus status) =>
        Assert.Equal(status, IscsiRules.Decide(Target(chap: hasChap), Name, IPAddress.Loopback, new PortalPlace(1, isLocal), insecure));

    [Fact]
    public void A_target_is_where_its_portal_groups_are_and_only_while_it_is_enabled()
    {
        var place = new PortalPlace(2, true);
        Assert.Equal(IscsiLoginStatus.Success, IscsiRules.Decide(Target(groups: [2, 3]), Name, IPAddress.Loopback, place, false));
        Assert.Equal(IscsiLoginStatus.NotFound, IscsiRules.Decide(Target(groups: [1]), Name, IPAddress.Loopback, place, false));
        Assert.Equal(IscsiLoginStatus.NotFound, IscsiRules.Decide(Target() with { Enabled = false }, Name, IPAddress.Loopback, place, false));
        Assert.Equal(IscsiLoginStatus.AuthorizationFailure, IscsiRules.Decide(Target() with { Access = [] }, Name, IPAddress.Loopback, place, false));
    }

    [Fact]
    public void Who_logged_in_as_a_user_stays_only_while_there_is_that_user()
    {
        Assert.True(IscsiRules.IsProven(Target(), null));
        Assert.False(IscsiRules.IsProven(Target(), "bob")); // the user is gone, and with it the last one
        Assert.True(IscsiRules.IsProven(Target(chap: true), "alice"));
        Assert.False(IscsiRules.IsProven(Target(chap: true), "bob"));
        Assert.False(IscsiRules.IsProven(Target(chap: true), null));
    }

    private static TargetView Target(bool chap = false, ushort[]? groups = null) =>
        new("iqn.2026-11.org.example:t", null, 1, true, [], groups ?? [], [new TargetAccess("*", null)], chap ? s_chap : null);
}
