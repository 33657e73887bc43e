using BlockServer.Core;
using BlockServer.Protocols.Nbd;
using Xunit;
using static BlockServer.Tests.Unit.Nbd.NbdWorld;

namespace BlockServer.Tests.Unit.Nbd;

/// <summary>A connection that ends at any byte, in both phases and all dialects.</summary>
public class NbdCutTests
{
    [Theory]
    [InlineData(NbdReplyMode.Simple)]
    [InlineData(NbdReplyMode.Structured)]
    [InlineData(NbdReplyMode.Extended)]
    public void The_connection_may_be_cut_at_every_byte(NbdReplyMode mode)
    {
        byte[] first = Pattern(600, 1), second = Pattern(100, 2);
        var maker = new NbdWorld { Mode = mode };
        byte[] handshake = Join(
            U32(3),
            OptionBytes(NbdOption.List),
            mode == NbdReplyMode.Simple ? [] : OptionBytes(mode == NbdReplyMode.Extended ? NbdOption.ExtendedHeaders : NbdOption.StructuredReply),
            OptionBytes(NbdOption.SetMetaContext, Text("disk"), U32(1), Text("base:allocation")),
            OptionBytes(NbdOption.Go, Text("disk"), U16(1), U16(3)));
        byte[] written = Join(handshake, maker.RequestBytes(NbdCommand.Write, 1, 4096, 600, 0, first));
        byte[] bytes = Join(
            written,
            maker.RequestBytes(NbdCommand.Read, 2, 0, 8192),
            maker.RequestBytes(NbdCommand.Write, 3, 9000, 100, NbdCommandFlags.Fua, second),
            maker.RequestBytes(NbdCommand.WriteZeroes, 4, 16384, 4096),
            maker.RequestBytes(NbdCommand.Flush, 5, 0, 0));
        for (int cut = 0; cut <= bytes.Length; cut++)
        {
            var world = new NbdWorld((ulong)cut + 1);
            if (cut > 0) world.Send(bytes[..cut]);
            if (cut % 2 == 0) world.Loop.Run(world.Loop.DelayAsync(200_000));
            if (cut % 3 == 0) world.Client.Break();
            else world.Client.Close();
            Assert.NotEqual("", world.End());
            Assert.Equal(0, world.Loop.Buffers.LentCount);
            byte[] stored = Stored(world, 4096, 600);
            bool isWhole = stored.AsSpan().SequenceEqual(first);
            Assert.True(isWhole || !stored.AsSpan().ContainsAnyExcept((byte)0), $"a part of a write that was cut at {cut}");
            Assert.False(isWhole && cut < written.Length, $"a write that was cut at {cut} was done");
        }
    }

    private static byte[] Stored(NbdWorld world, ulong offset, int length)
    {
        var bytes = new byte[length];
        Assert.Equal(IoStatus.Ok, world.Loop.Run(world.Device.ReadAsync(offset, bytes)).Status);
        return bytes;
    }
}
