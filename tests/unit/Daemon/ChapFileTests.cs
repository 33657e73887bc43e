using BlockServer.Blockd;
using BlockServer.Protocols.Iscsi;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The file of CHAP users: what it may hold, and that a mistake is told without a secret.</summary>
public sealed class ChapFileTests
{
    [Fact]
    public void Users_and_the_mutual_name_are_read()
    {
        IscsiAuthentication read = Load("# people\nuser alice  twelve-or-more\n\n  user bob another-secret\nmutual target the-other-way\n");
        Assert.Equal("twelve-or-more"u8.ToArray(), read.SecretOf("alice"));
        Assert.Equal("another-secret"u8.ToArray(), read.SecretOf("bob"));
        Assert.Null(read.SecretOf("Alice"));
        Assert.Equal(("target", "the-other-way"), (read.MutualName, System.Text.Encoding.ASCII.GetString(read.MutualSecret!)));
    }

    [Theory]
    [InlineData("", "there is no user")]
    [InlineData("mutual t the-other-way", "there is no user")]
    [InlineData("user alice", "line 1: write")]
    [InlineData("\nuser alice a b", "line 2: write")]
    [InlineData("admin alice twelve-or-more", "line 1: write")]
    [InlineData("user alice eleven-chrs", "at least 12")]
    [InlineData("user alice twelve-or-more\nuser alice twelve-or-more", "line 2: this user")]
    [InlineData("user alice twelve-or-more\nmutual t the-other-way\nmutual u the-other-way", "line 3: there is one")]
    [InlineData("user alice twelve-or-more\nmutual t twelve-or-more", "must differ")]
    public void Mistakes_are_told_without_secrets(string text, string what)
    {
        StartException refused = Assert.Throws<StartException>(() => Load(text));
        Assert.Contains(what, refused.Message, StringComparison.Ordinal);
        Assert.DoesNotContain("twelve-or-more", refused.Message, StringComparison.Ordinal);
    }

    private static IscsiAuthentication Load(string text)
    {
        string path = Path.GetTempFileName();
        try
        {
            File.WriteAllText(path, text);
            return ChapFile.Load(path);
        }
        finally
        {
            File.Delete(path);
        }
    }
}
