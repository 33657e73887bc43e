using BlockServer.Protocols.Nbd;
using Xunit;

namespace BlockServer.Tests.Unit.Nbd;

public class NbdCodecTests
{
    private const string Compact = "25609513" + "0001" + "0001" + "0102030405060708" + "0000000000001000" + "00000200";
    private const string Extended = "21E41C71" + "0020" + "0001" + "0102030405060708" + "0000000000001000" + "0000000100000200";

    [Theory]
    [InlineData(Compact, NbdReplyMode.Simple)]
    [InlineData(Compact, NbdReplyMode.Structured)]
    [InlineData(Extended, NbdReplyMode.Extended)]
    public void Golden_requests_are_read_and_written(string golden, NbdReplyMode mode)
    {
        byte[] bytes = Convert.FromHexString(golden);
        Assert.Null(NbdRequest.TryRead(bytes, mode, out NbdRequest request));
        Assert.Equal((NbdCommand.Write, 0x0102030405060708UL, 4096UL), (request.Command, request.Cookie, request.OffsetBytes));
        var again = new byte[bytes.Length];
        Assert.Equal(bytes.Length, request.WriteTo(again, mode));
        Assert.Equal(bytes, again);
        Assert.NotNull(NbdRequest.TryRead(bytes.AsSpan(0, bytes.Length - 1), mode, out _));
        bytes[0] ^= 1;
        Assert.Equal("wrong request magic", NbdRequest.TryRead(bytes, mode, out _));
    }

    [Fact]
    public void Golden_replies()
    {
        var request = new NbdRequest(NbdCommand.Read, 0, 0x0102030405060708, 4096, 512);
        Span<byte> target = stackalloc byte[256];
        Check("67446698" + "00000016" + "0102030405060708",
            target[..NbdReplyHeader.WriteAnswer(target, NbdReplyMode.Simple, request, NbdError.Invalid, "x"u8)]);
        Check("668E33EF" + "0001" + "8001" + "0102030405060708" + "00000007" + "00000016" + "0001" + "78",
            target[..NbdReplyHeader.WriteAnswer(target, NbdReplyMode.Structured, request, NbdError.Invalid, "x"u8)]);
        Check("6E8A278C" + "0001" + "0000" + "0102030405060708" + "0000000000001000" + "0000000000000000",
            target[..NbdReplyHeader.WriteAnswer(target, NbdReplyMode.Extended, request, NbdError.None, default)]);
        Check("668E33EF" + "0001" + "0001" + "0102030405060708" + "00000208" + "0000000000001000",
            target[..NbdReplyHeader.WriteData(target, NbdReplyMode.Structured, true, request, 4096, 512)]);
        Check("6E8A278C" + "0000" + "0002" + "0102030405060708" + "0000000000001000" + "000000000000000C"
            + "0000000000001000" + "00000200",
            target[..NbdReplyHeader.WriteHole(target, NbdReplyMode.Extended, false, request, 4096, 512)]);
    }

    private static void Check(string golden, ReadOnlySpan<byte> actual) => Assert.Equal(golden, Convert.ToHexString(actual));
}
