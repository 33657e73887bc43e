using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

public class TextTests
{
    [Theory]
    [InlineData("128g", 128UL << 30)]
    [InlineData("128GB", 128UL << 30)]
    [InlineData("128GiB", 128UL << 30)]
    [InlineData("1 m", 1UL << 20)]
    [InlineData("4096", 4096UL)]
    [InlineData("2T", 2UL << 40)]
    public void Sizes_are_binary_however_they_are_written(string text, ulong expected)
    {
        Assert.True(SizeText.TryParse(text, out ulong bytes, out _));
        Assert.Equal(expected, bytes);
    }

    [Theory]
    [InlineData("0")]
    [InlineData("-1g")]
    [InlineData("")]
    [InlineData(null)]
    [InlineData("g")]
    [InlineData("1x")]
    [InlineData("1.5g")]
    [InlineData("9999999999t")]
    [InlineData("99999999999999999999")]
    public void A_wrong_size_is_refused_with_a_sentence(string? text)
    {
        Assert.False(SizeText.TryParse(text, out _, out string reason));
        Assert.NotEmpty(reason);
    }

    [Theory]
    [InlineData("demo", true)]
    [InlineData("0.a_b-c", true)]
    [InlineData("", false)]
    [InlineData("Demo", false)]
    [InlineData(".demo", false)]
    [InlineData("a/b", false)]
    [InlineData("ä", false)]
    public void Names_keep_to_the_rule(string name, bool valid) => Assert.Equal(valid, VolumeName.IsValid(name, out _));

    [Fact]
    public void A_name_has_at_most_63_characters()
    {
        Assert.True(VolumeName.IsValid(new string('a', 63), out _));
        Assert.False(VolumeName.IsValid(new string('a', 64), out _));
    }
}
