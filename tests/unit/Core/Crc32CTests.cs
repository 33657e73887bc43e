using System.Text;
using BlockServer.Core;
using Xunit;

namespace BlockServer.Tests.Unit.Core;

public class Crc32CTests
{
    [Fact]
    public void The_check_value_of_the_catalogue_comes_out() =>
        Assert.Equal(0xE3069283u, Crc32C.Compute(Encoding.ASCII.GetBytes("123456789")));

    [Fact]
    public void A_block_in_four_lanes_gives_what_one_stream_gives()
    {
        var random = new SeededRandom(7);
        var block = new byte[Units.BlockBytes];
        for (int round = 0; round < 100; round++)
        {
            random.Fill(block);
            uint oneStream = Crc32C.Append(Crc32C.Compute(block.AsSpan(0, 1)), block.AsSpan(1));
            Assert.Equal(oneStream, Crc32C.Compute(block));
        }
    }

    [Theory]
    [InlineData(4095)]
    [InlineData(4097)]
    [InlineData(8192)]
    [InlineData(12_300)]
    [InlineData(131_072)]
    public void Any_length_gives_what_byte_after_byte_gives(int length)
    {
        var random = new SeededRandom((ulong)length);
        var data = new byte[length];
        random.Fill(data);
        uint expected = 0;
        foreach (byte b in data) expected = Crc32C.Append(expected, [b]);
        Assert.Equal(expected, Crc32C.Compute(data));
        int cut = 1 + (int)(random.NextUInt64() % (ulong)(length - 1));
        Assert.Equal(expected, Crc32C.Append(Crc32C.Compute(data.AsSpan(0, cut)), data.AsSpan(cut)));
    }
}
