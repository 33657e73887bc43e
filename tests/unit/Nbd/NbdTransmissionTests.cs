using BlockServer.Protocols.Nbd;
using Xunit;

namespace BlockServer.Tests.Unit.Nbd;

public class NbdTransmissionTests
{
    [Theory]
    [InlineData(NbdReplyMode.Simple)]
    [InlineData(NbdReplyMode.Structured)]
    [InlineData(NbdReplyMode.Extended)]
    public void What_was_written_is_read_back_at_any_offset(NbdReplyMode mode)
    {
        for (ulong seed = 1; seed <= 5; seed++)
        {
            NbdWorld world = new NbdWorld(seed).Enter(mode);
            foreach ((ulong offset, int length) in new (ulong, int)[] { (0, 4096), (512, 512), (4095, 4098), (100_000, 300_001) })
            {
                byte[] data = NbdWorld.Pattern(length, length);
                Assert.Equal(NbdError.None, world.Write(offset, data));
                Assert.Equal(data, world.Read(offset, length));
            }

            Assert.Equal(NbdError.None, world.Ask(NbdCommand.Flush, 0, 0));
            Assert.Equal(1, world.Device.Flushes);
            world.Send(world.RequestBytes(NbdCommand.Disconnect, 0, 0, 0));
            Assert.Equal("the client left", world.End());
            Assert.Equal(0, world.Loop.Buffers.LentCount);
        }
    }
}
